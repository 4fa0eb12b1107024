# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocations: what apply_relocate_add() refuses or writes outside is found, and beside each stands one that is right."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Any

import elf
import pytest

from knetstatd.formats import module_file, relocations
from knetstatd.formats.elf import Elf, Section

if TYPE_CHECKING:
    from pathlib import Path

NONE, ABS64, PC32, PLT32, ABS32, ABS32S, PC64 = 0, 1, 2, 4, 10, 11, 24
# Rows of the symbol table, as elf.module() numbers them.
IN_TEXT, IN_NOTHING, IN_PERCPU, SMALL, LARGE, MINUS, ELSEWHERE, UNDEFINED, IN_INFO, KEY, TRAMPOLINE, MAYBE = range(3, 15)
SYMBOLS = [
    elf.Sym("in_text", ".text", 4), elf.Sym("in_nothing", "not.loaded", 4), elf.Sym("in_percpu", ".data..percpu", 4),
    elf.Sym("small", elf.ABS, 0x7FFFFFFF), elf.Sym("large", elf.ABS, 1 << 32), elf.Sym("minus", elf.ABS, 0xFFFFFFFF80000000),
    elf.Sym("elsewhere", 0xFF20), elf.Sym("undefined"),
    elf.Sym("in_info", ".modinfo", 4), elf.Sym("__SCK__x", ".text"), elf.Sym("__SCT__x"), elf.Sym("maybe", bind=elf.WEAK),
]  # fmt: skip
TEXT, DATA = elf.ALLOC | elf.EXEC, elf.ALLOC | elf.WRITE
SIZE = 32
SECTIONS = [
    elf.Sec(".text", bytes(64), TEXT), elf.Sec("not.loaded", bytes(64), 0), elf.Sec(".data..percpu", bytes(64), DATA)
]  # fmt: skip


def form(path: Path, data: bytes) -> str | None:
    (path / "demo.ko").write_bytes(data)
    return module_file.from_path(path / "demo.ko", formed=True).form


def relocated(*rows: tuple[int, int, int, int], place: bytes = bytes(SIZE), flags: int = DATA, **rest: Any) -> bytes:
    """A module with a section `x` that has these relocations."""
    changed = elf.Sec("x", place, flags, **rest)
    return elf.module(more=[*SECTIONS, changed, elf.relocations("x", *rows)], more_symbols=SYMBOLS)


@pytest.mark.parametrize(
    ("bad", "good", "why"),
    [
        ((0, 3, IN_TEXT, 0), (0, PC32, IN_TEXT, 0), "'Unknown rela relocation: 3'"),
        ((0, 9, IN_TEXT, 0), (0, PLT32, IN_TEXT, -4), "'Unknown rela relocation: 9'"),
        ((0, PC32, 1000, 0), (0, PC32, UNDEFINED, 0), "of a symbol that it does not have"),
        ((0, PC32, 0, 0), (0, PC32, UNDEFINED, 0), "of a symbol that it does not have"),
        ((0, NONE, 0, 0), (0, PC32, IN_TEXT, 0), "a relocation in a table does nothing"),
        ((0, ABS32S, IN_INFO, 0), (0, ABS64, IN_INFO, 0), "'overflow in relocation type'"),
        ((0, PC32, IN_TEXT, 60 + 4097), (0, PC32, IN_TEXT, 60 + 4096), "a table has what is of no section"),
        ((0, PC32, IN_TEXT, -4 - 4097), (0, PC32, IN_TEXT, -4 - 4096), "a table has what is of no section"),
        ((0, ABS64, IN_TEXT, -(1 << 63)), (0, ABS64, UNDEFINED, 1 << 60), "a table has what is of no section"),
        ((29, PC32, IN_TEXT, 0), (28, PC32, IN_TEXT, 0), "outside of its section"),
        ((25, ABS64, IN_TEXT, 0), (24, ABS64, IN_TEXT, 0), "outside of its section"),
        (((1 << 64) - 4, PC64, IN_TEXT, 0), (24, PC64, IN_TEXT, 0), "outside of its section"),
        ((0, ABS32S, UNDEFINED, -(1 << 28)), (0, ABS32S, UNDEFINED, 4096), "'overflow in relocation'"),
        ((0, PC32, UNDEFINED, 1 << 28), (0, ABS64, UNDEFINED, 1 << 60), "'overflow in relocation'"),
        ((0, ABS32, IN_TEXT, 0), (0, ABS32S, IN_TEXT, 0), "'overflow in relocation type'"),
        ((0, ABS32S, IN_NOTHING, 0), (0, ABS64, IN_NOTHING, 0), "'overflow in relocation type'"),
        ((0, ABS32, LARGE, 0), (0, ABS32, IN_PERCPU, 0), "'overflow in relocation type'"),
        ((0, ABS32S, LARGE, 0), (0, ABS32S, IN_PERCPU, 0), "'overflow in relocation type'"),
        ((0, ABS32, MINUS, 0), (0, ABS32S, MINUS, 0), "'overflow in relocation type'"),
        ((0, ABS32, LARGE, 0), (0, ABS32, SMALL, 0), "'overflow in relocation type'"),
        ((0, ABS32S, LARGE, 0), (0, ABS32S, SMALL, 0), "'overflow in relocation type'"),
        ((0, ABS32S, LARGE, 0), (0, ABS32S, ELSEWHERE, 0), "'overflow in relocation type'"),
        ((0, ABS32S, LARGE, 0), (0, ABS32S, UNDEFINED, 4000), "'overflow in relocation type'"),
        ((0, ABS32, UNDEFINED, 0), (0, ABS32, MAYBE, 0), "'overflow in relocation type'"),
    ],
)
def test_one(tmp_path: Path, bad: tuple[int, int, int, int], good: tuple[int, int, int, int], why: str) -> None:
    assert why in (form(tmp_path, relocated(bad)) or "")
    assert form(tmp_path, relocated(good)) == ""


@pytest.mark.parametrize("kind", [ABS64, PC32, PLT32, ABS32S, PC64])
def test_its_place_is_zero(tmp_path: Path, kind: int) -> None:
    width = 8 if kind in (ABS64, PC64) else 4
    for at in range(16):
        place = bytes(at) + b"\1" + bytes(SIZE - 1 - at)
        found = form(tmp_path, relocated((4, kind, IN_TEXT, 0), place=place))
        assert (found != "") == (4 <= at < 4 + width), at
        assert not found or "existing value is nonzero" in found
    assert form(tmp_path, relocated((4, kind, IN_TEXT, 0), place=b"", kind=elf.NOBITS, size=SIZE)) == ""


def test_no_two_are_of_one_place(tmp_path: Path) -> None:
    rows = [(0, ABS64, IN_TEXT, 0), (8, PC32, IN_TEXT, 0), (12, PC32, IN_TEXT, 0)]
    assert form(tmp_path, relocated(*rows)) == ""
    assert form(tmp_path, relocated(*reversed(rows))) == ""
    for odd in ((0, PC32), (4, PC32), (7, ABS64), (13, PC32)):
        more = (*odd, IN_TEXT, 0)
        assert "two relocations are of one place" in (form(tmp_path, relocated(*rows, more)) or ""), odd
        assert "two relocations are of one place" in (form(tmp_path, relocated(more, *rows)) or ""), odd
    assert form(tmp_path, relocated(*rows, (4, NONE, 0, 0), flags=TEXT)) == ""
    assert form(tmp_path, relocated((4, NONE, 0, 0), flags=TEXT)) == ""


def test_code_may_mean_what_lies_far_away(tmp_path: Path) -> None:
    """An index that does not begin with zero, for one."""
    for addend in (1 - (1 << 28), (1 << 28) - 1):
        assert form(tmp_path, relocated((0, ABS32S, IN_TEXT, addend), flags=TEXT)) == ""
        assert form(tmp_path, relocated((0, ABS32S, IN_TEXT, addend))) != ""


def test_static_calls_have_keys(tmp_path: Path) -> None:
    def calls(*rows: tuple[int, int, int, int]) -> str | None:
        sites = [elf.Sec(".static_call_sites", bytes(16), DATA), elf.relocations(".static_call_sites", *rows)]
        return form(tmp_path, elf.module(more=[*SECTIONS, *sites], more_symbols=SYMBOLS))

    for row, addend in ((KEY, 0), (KEY, 1), (TRAMPOLINE, 0), (TRAMPOLINE, 3)):
        assert calls((0, PC32, IN_TEXT, 5), (4, PC32, row, addend)) == ""
    for row, addend in ((KEY, 4), (TRAMPOLINE, -1), (UNDEFINED, 0), (IN_TEXT, 0)):
        assert "a static call is of something else" in (calls((0, PC32, IN_TEXT, 5), (4, PC32, row, addend)) or "")


def test_sections_that_are_not_loaded_do_not_matter(tmp_path: Path) -> None:
    assert form(tmp_path, relocated((1000, 99, 1000, 0), flags=0)) == ""
    assert form(tmp_path, relocated((1000, 99, 1000, 0), flags=elf.ALLOC)) != ""
    assert form(tmp_path, relocated()) == ""


def test_they_belong_to_the_section_of_their_name(tmp_path: Path) -> None:
    made = relocated((0, PC32, IN_TEXT, 0))
    (start,) = struct.unpack_from("<Q", made, 40)
    (count,) = struct.unpack_from("<H", made, 60)
    kinds = [struct.unpack_from("<I", made, start + 64 * row + 4)[0] for row in range(count)]
    row = kinds.index(elf.RELA)
    for member, value, why in (
        (44, 2, "for another section than their name says"),
        (44, 0, "for a section that it does not have"),
        (44, count, "for a section that it does not have"),
        (4, 1, "no relocations by their type"),
    ):
        at = start + 64 * row + member
        assert why in (form(tmp_path, made[:at] + struct.pack("<I", value) + made[at + 4 :]) or ""), value


def test_each_section_has_its_relocations_in_one_place(tmp_path: Path) -> None:
    """The second of two meets what the first has written; and to read a large section for each of thousands takes hours."""
    twice = [elf.relocations("x", (offset, PC32, IN_TEXT, 0)) for offset in (0, 0)]
    made = elf.module(more=[*SECTIONS, elf.Sec("x", bytes(SIZE), DATA), *twice], more_symbols=SYMBOLS)
    assert form(tmp_path, made) == "two sections of relocations are for one section"
    # Of what is not in memory nobody cares.
    twice = [elf.relocations("x", (0, PC32, IN_TEXT, 0))] * 2
    made = elf.module(more=[*SECTIONS, elf.Sec("x", bytes(SIZE), 0), *twice], more_symbols=SYMBOLS)
    assert form(tmp_path, made) == ""


@pytest.mark.parametrize("order", ["rising", "falling", "any"])
def test_many_are_looked_at_piece_by_piece(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, in pieces of four relocations and 96 bytes; against each of them the answer of one byte after the other."""
    monkeypatch.setattr(relocations, "_PIECE", 96)
    read: list[int] = []
    part = Elf.part

    def counted(self: Elf, section: Section, offset: int, size: int) -> bytes:
        read.append(size)
        return part(self, section, offset, size)

    monkeypatch.setattr(Elf, "part", counted)
    dice = random.Random(order)
    answers = set()
    for _ in range(50):
        # Wide and narrow ones with gaps, some of which are larger than a piece.
        rows, at = [], 0
        for _ in range(30):
            kind = dice.choice((ABS64, PC32))
            rows.append((at, kind, IN_TEXT, 0))
            at += {ABS64: 8, PC32: 4}[kind] + dice.choice((0, 0, 0, 1, 8, 150))
        place = bytearray(dice.choice((0, 0xFF)) for _ in range(at + 8))
        for offset, kind, *_ in rows:
            place[offset : offset + (8 if kind == ABS64 else 4)] = bytes(8 if kind == ABS64 else 4)
        if dice.randrange(2):
            place[dice.randrange(at)] = 7
        if not dice.randrange(4):
            rows.append((dice.randrange(at), PC32, IN_TEXT, 0))
        rows = rows if order == "rising" else rows[::-1] if order == "falling" else dice.sample(rows, len(rows))
        every = [at for offset, kind, *_ in rows for at in range(offset, offset + (8 if kind == ABS64 else 4))]
        two, changed = len(set(every)) < len(every), any(place[at] for at in every)
        said = form(tmp_path, relocated(*rows, place=bytes(place)))
        answers.add((two, changed))
        assert ("two relocations are of one place" in str(said)) == two
        assert bool(said) == (two or changed), said
    assert len(answers) >= 3
    assert 0 < max(read) <= 96
