# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes keys, certificates, signatures and EFI variables for tests. The RSA is real, and small."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, NamedTuple

import elf

if TYPE_CHECKING:
    from pathlib import Path

# Two primes of 384 bits: a modulus that a SHA-256 with its padding fits into.
_P = 2**384 - 317
_Q = 2**383 - 31
_MODULUS = _P * _Q
# The private exponent as whoever knows the primes takes it, which is four times as quick (RFC 8017, 5.1.2).
_PRIVATE = pow(65537, -1, (_P - 1) * (_Q - 1))
_D_P, _D_Q, _Q_INVERSE = _PRIVATE % (_P - 1), _PRIVATE % (_Q - 1), pow(_Q, -1, _P)
RSA, ML_DSA = bytes.fromhex("2a864886f70d010101"), bytes.fromhex("608648016503040311")
_SHA256 = bytes.fromhex("608648016503040201")
_PKCS7 = bytes.fromhex("2a864886f70d0107")  # then 1 for data, 2 for signed data
_EFI_X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
VARIABLES = "sys/firmware/efi/efivars"
GUIDS = {
    "SecureBoot": "8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "db": "d719b2cb-3d3a-4596-a3bc-dad00e67656f",
    "MokListRT": "605dab50-e046-4300-abb6-3dd810dd8b23",
    "MokListRT1": "605dab50-e046-4300-abb6-3dd810dd8b23",
    "MokNew": "605dab50-e046-4300-abb6-3dd810dd8b23",
    "MokIgnoreDB": "605dab50-e046-4300-abb6-3dd810dd8b23",
    "MokSBStateRT": "605dab50-e046-4300-abb6-3dd810dd8b23",
}


def tlv(tag: int, *parts: bytes) -> bytes:
    """An element of DER."""
    data = b"".join(parts)
    size = len(data)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + data


def number(value: int) -> bytes:
    """An INTEGER."""
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _private(value: int) -> int:
    """`value` to the private exponent."""
    by_p, by_q = pow(value % _P, _D_P, _P), pow(value % _Q, _D_Q, _Q)
    return by_q + _Q * ((by_p - by_q) * _Q_INVERSE % _P)


class Key(NamedTuple):
    """A key by its owner's name and serial number."""

    name: str = "us"
    serial: int = 7
    old: bool = False  # a certificate without extensions

    @property
    def issuer(self) -> bytes:
        return tlv(0x30, tlv(0x31, tlv(0x30, tlv(6, b"\x55\x04\x03"), tlv(12, self.name.encode()))))

    @property
    def skid(self) -> bytes:
        return hashlib.sha1(f"{self.name}{self.serial}".encode()).digest()

    @property
    def certificate(self) -> bytes:
        algorithm = tlv(0x30, tlv(6, RSA), tlv(5))
        public = tlv(0x30, algorithm, tlv(3, b"\0", tlv(0x30, number(_MODULUS), number(65537))))
        extension = tlv(0x30, tlv(6, b"\x55\x1d\x0e"), tlv(4, tlv(4, self.skid)))
        body = tlv(
            0x30, tlv(0xA0, number(2)), number(self.serial), algorithm, self.issuer, tlv(0x30), self.issuer, public,
            b"" if self.old else tlv(0xA3, tlv(0x30, tlv(0x30, tlv(6, b"\x55\x1d\x0f"), tlv(4)), extension)),
        )  # fmt: skip
        return tlv(0x30, body, algorithm, tlv(3, b"\0sig"))

    def signature(
        self,
        contents: bytes,
        *,
        by_skid: bool = False,
        attributes: bool = False,
        kind: bytes = RSA,
        more: bytes = b"",
        signers: int = 1,
    ) -> bytes:
        """PKCS#7 data as sign-file makes it. kind: what it says that it is.  more: follows it.  signers: how many."""
        inner = tlv(0x30, tlv(6, _SHA256), tlv(5))
        info = tlv(0x30, inner, tlv(4, hashlib.sha256(contents).digest()))
        size = (_MODULUS.bit_length() + 7) // 8
        padded = b"\0\1" + b"\xff" * (size - len(info) - 3) + b"\0" + info
        value = _private(int.from_bytes(padded, "big")).to_bytes(size, "big")
        who = tlv(0x80, self.skid) if by_skid else tlv(0x30, self.issuer, number(self.serial))
        version = number(3 if by_skid else 1)
        extra = tlv(0xA0) if attributes else b""
        signer = tlv(0x30, version, who, inner, extra, tlv(0x30, tlv(6, kind), tlv(5)), tlv(4, value), more)
        signed = tlv(0x30, version, tlv(0x31, inner), tlv(0x30, tlv(6, _PKCS7, b"\1")), tlv(0xA0), tlv(0x31, signer * signers))
        return tlv(0x30, tlv(6, _PKCS7, b"\2"), tlv(0xA0, signed))

    def sign(self, made: bytes) -> bytes:
        """A module, signed."""
        return elf.sign(made, self.signature(made))


def signature_list(*certificates: bytes) -> bytes:
    """An EFI_SIGNATURE_LIST for each."""
    return b"".join(_EFI_X509 + struct.pack("<III", 28 + 16 + len(c), 0, 16 + len(c)) + bytes(16) + c for c in certificates)


def variable(root: Path, name: str, value: bytes, attributes: int = 6) -> None:
    """Sets a variable of the firmware."""
    directory = root / VARIABLES
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}-{GUIDS[name]}").write_bytes(attributes.to_bytes(4, "little") + value)
