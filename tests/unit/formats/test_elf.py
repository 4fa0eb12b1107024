# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF files: what damages them is told, and sections, symbols and relocations are those that pyelftools reads."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import elf
import oracles
import pytest

from knetstatd.core.errors import Damaged
from knetstatd.formats.elf import Elf, Source, Symbols, words

if TYPE_CHECKING:
    from pathlib import Path

THIS = elf.Sec(".gnu.linkonce.this_module", bytes(64))


def opened(made: bytes) -> tuple[Elf, Symbols]:
    file = Elf(Source(-1, 0, made), len(made))
    return file, Symbols(file)


def refused(made: bytes, why: str) -> None:
    with pytest.raises(Damaged, match=why):
        opened(made)


@pytest.mark.parametrize(("bits", "little", "machine"), [(64, True, 62), (64, False, 22), (32, True, 40), (32, False, 21)])
def test_as_pyelftools_reads_it(bits: int, little: bool, machine: int) -> None:
    more = [
        elf.Sec(".data", bytes(80), elf.WRITE | elf.ALLOC, align=16), elf.Sec(".bss", b"", elf.ALLOC, elf.NOBITS, size=4096),
        elf.Sec(".rela.data", bytes(48), 0, elf.RELA, ".data"), elf.Sec(".empty", b"", 0),
    ]  # fmt: skip
    symbols = [elf.Sym("here", ".data", 8, elf.LOCAL), elf.Sym("far", elf.ABS, 0xFFFFFFFF), elf.Sym("\u00fcber", ".bss", 1)]
    made = elf.module(
        more=more, more_symbols=symbols, undefined=["printk"], weak=["maybe"], common=["shared"], bits=bits, little=little,
        machine=machine, exports={"given": (7, "_gpl", "SPACE")}, build_id="00ff",
    )  # fmt: skip
    read = oracles.elf(made)
    file, table = opened(made)
    assert (file.machine.machine, file.machine.bits, file.machine.little) == (read.machine, read.bits, read.little)
    rows = range(len(table.names))
    assert [(file.name(s).decode(), *s[1:]) for s in file.sections] == read.sections
    assert [oracles.Symbol(table.name(n), table.sections[n], table.bind(n), table.value(n)) for n in rows] == read.symbols
    assert list(table.values) == [symbol.value for symbol in read.symbols]
    assert read.relocations[".rela.data"] == 48 // (24 if bits == 64 else 12)
    [data] = [section for section in file.sections if file.name(section) == b".data"]
    assert file.data(data) == bytes(80)
    [row] = [n for n in rows if table.name(n) == "here"]
    assert (table.target(row), table.target(0)) == (bytes(72), b"")


def test_a_source_is_a_file_or_memory(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    with open(path, "rb") as f:
        for source in (Source(f.fileno(), 10), Source(-1, 0, b"0123456789")):
            assert (source.size, source.at(2, 3), source.at(10, 0)) == (10, b"234", b"")
            with pytest.raises(Damaged, match="truncated"):
                source.at(8, 3)
        os.truncate(path, 4)
        with pytest.raises(Damaged, match="changed while it was read"):
            Source(f.fileno(), 10).at(2, 3)


def test_words_in_either_order() -> None:
    assert list(words("H", b"\1\0\2\0", little=True)) == [1, 2]
    assert list(words("I", b"\0\0\1\2", little=False)) == [0x102]


def patched(made: bytes, at: int, form: str, value: int) -> bytes:
    return made[:at] + struct.pack(form, value) + made[at + struct.calcsize(form) :]


def test_damaged_headers() -> None:
    made = elf.module(undefined=["printk"], build_id="00ff")
    (start,) = struct.unpack_from("<Q", made, 40)
    count, strings = struct.unpack_from("<HH", made, 60)
    refused(patched(made, 4, "B", 3), "unknown ELF class")
    refused(patched(made, 5, "B", 0), "unknown ELF class or byte order")
    refused(patched(made, 40, "<Q", 1 << 63), "section table lies outside")
    refused(patched(made, 58, "<H", 40), "it has no section table")
    refused(patched(made, 60, "<H", 0), "it has no section table")
    refused(patched(made, 60, "<H", 0xFFFF), "section table lies outside")
    refused(patched(made, 62, "<H", 0), "its sections have no names")
    refused(patched(made, 62, "<H", count), "its sections have no names")
    refused(patched(made, 62, "<H", 1), "its sections have no names")
    refused(patched(made, start + 64 + 32, "<Q", 1 << 40), "a section lies outside")
    table = start + 64 * (strings - 1)
    for link in (0, 1, count):
        refused(patched(made, table + 40, "<I", link), "its symbols have no names")
    refused(patched(made, start + 64 * 2, "<I", 1 << 31), "a section's name lies outside")
    nameless = opened(patched(made, start + 64 * 2, "<I", 0))[0]
    assert nameless.name(nameless.sections[2]) == b""
    for member, form in ((4, "<I"), (8, "<Q"), (16, "<Q"), (32, "<Q")):
        refused(patched(made, start + member, form, 1), "its section 0 is not empty")
    assert opened(patched(made, start + 40, "<I", 1))


def test_a_section_too_large_to_be_true(tmp_path: Path) -> None:
    made = elf.module()
    (start,) = struct.unpack_from("<Q", made, 40)
    path = tmp_path / "demo.ko"
    made = patched(made, start + 64 + 24, "<Q", len(made))
    path.write_bytes(patched(made, start + 64 + 32, "<Q", 100 << 20))
    os.truncate(path, 200 << 20)
    with open(path, "rb") as f:
        file = Elf(Source(f.fileno(), 200 << 20), 200 << 20)
        with pytest.raises(Damaged, match="a section that is a few KB"):
            file.data(file.sections[1])
        with pytest.raises(Damaged, match="a section that is a few KB"):
            file.part(file.sections[1], 0, 8)


def test_sections_that_overlap() -> None:
    made = elf.module()
    (start,) = struct.unpack_from("<Q", made, 40)
    (offset,) = struct.unpack_from("<Q", made, start + 64 + 24)
    for at in (0, 63, offset + 1, start - 1, start):
        refused(patched(made, start + 64 + 24, "<Q", at), "two of its sections overlap")
    # One that is empty may lie anywhere.
    empty = patched(made, start + 64 + 32, "<Q", 0)
    assert opened(patched(empty, start + 64 + 24, "<Q", offset + 1))


def test_symbols_of_sections_that_are_not_there() -> None:
    for section in (200, 0xFF00, 0xFFFF):
        refused(elf.file([THIS], [elf.Sym("x", section)]), "a section that it does not have")
    for section in (0, 1, 0xFF20, elf.ABS, elf.COMMON):
        assert opened(elf.file([THIS], [elf.Sym("x", section)]))


def test_names_too_long_to_be_true() -> None:
    """Thousands of symbols may share one name of megabytes."""
    for size in (1024, 1025):
        text = b"\0" + b"x" * size + b"\0"
        file, table = opened(elf.file([THIS], [elf.Sym("x")], strings=text))
        if size == 1024:
            assert table.name(1) == "x" * size
        else:
            with pytest.raises(Damaged, match="a symbol's name has more than 1024 bytes"):
                table.name(1)
        named = elf.file([THIS, elf.Sec("y" * size, b"")])
        if size == 1024:
            file = opened(named)[0]
            assert file.name(file.sections[2]) == b"y" * size
        else:
            file = opened(named)[0]
            with pytest.raises(Damaged, match="a section's name has more than 1024 bytes"):
                file.name(file.sections[2])
