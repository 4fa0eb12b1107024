# SPDX-License-Identifier: GPL-2.0-or-later
"""What others read in the same bytes: pyelftools in ELF files, asn1crypto in signatures and certificates."""

from __future__ import annotations

import io
from typing import NamedTuple

from asn1crypto import cms, x509
from elftools.elf import enums
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

_TYPES = {**enums.ENUM_SH_TYPE_BASE, **enums.ENUM_SH_TYPE_AMD64}
_PLACES = {"SHN_UNDEF": 0, "SHN_ABS": 0xFFF1, "SHN_COMMON": 0xFFF2}


class Symbol(NamedTuple):
    """A row of the symbol table."""

    name: str
    section: int
    bind: int
    value: int


class File(NamedTuple):
    """An ELF file. sections: name, sh_type, sh_flags, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_addr.

    relocations: their number, by the name of the section that holds them.
    """

    machine: int
    bits: int
    little: bool
    sections: list[tuple[str, int, int, int, int, int, int, int, int]]
    symbols: list[Symbol]
    relocations: dict[str, int]


def elf(data: bytes) -> File:
    """A relocatable file, as pyelftools reads it."""
    file = ELFFile(io.BytesIO(data))
    sections, symbols, relocations = [], [], {}
    for one in file.iter_sections():
        kind = _TYPES.get(one["sh_type"], one["sh_type"])
        rest = (one[f"sh_{field}"] for field in ("flags", "offset", "size", "link", "info", "addralign", "addr"))
        sections.append((one.name, kind, *rest))
        if isinstance(one, SymbolTableSection):
            for row in one.iter_symbols():
                place, bind = row["st_shndx"], enums.ENUM_ST_INFO_BIND[row["st_info"]["bind"]]
                symbols.append(Symbol(row.name, _PLACES.get(place, place), bind, row["st_value"]))
        elif isinstance(one, RelocationSection):
            relocations[one.name] = one.num_relocations()
    machine = enums.ENUM_E_MACHINE.get(file["e_machine"], file["e_machine"])
    return File(machine, file.elfclass, file.little_endian, sections, symbols, relocations)


class Signer(NamedTuple):
    """Who signed, and how. issuer: its Name in DER, and serial its number; or else skid."""

    issuer: bytes
    serial: int
    skid: bytes
    digest: str
    value: bytes


def signer(data: bytes) -> Signer:
    """The first signer of PKCS#7 data, as asn1crypto reads it."""
    info = cms.ContentInfo.load(data)["content"]["signer_infos"][0]
    who = info["sid"]
    how = (info["digest_algorithm"]["algorithm"].native, info["signature"].native)
    if who.name == "subject_key_identifier":
        return Signer(b"", 0, who.native, *how)
    return Signer(who.chosen["issuer"].dump(), who.chosen["serial_number"].native, b"", *how)


class Certificate(NamedTuple):
    """A certificate; modulus and exponent are 0 if its key is not RSA."""

    issuer: bytes
    serial: int
    skid: bytes
    modulus: int
    exponent: int


def certificate(data: bytes) -> Certificate:
    """A certificate in DER, as asn1crypto reads it."""
    read = x509.Certificate.load(data)
    body, public = read["tbs_certificate"], read.public_key
    skids = [e["extn_value"].parsed.native for e in body["extensions"] if e["extn_id"].native == "key_identifier"]
    modulus = exponent = 0
    if public.algorithm == "rsa":
        modulus, exponent = (public["public_key"].parsed[part].native for part in ("modulus", "public_exponent"))
    return Certificate(read.issuer.dump(), read.serial_number, skids[0] if skids else b"", modulus, exponent)
