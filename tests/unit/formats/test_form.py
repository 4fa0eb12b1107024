# SPDX-License-Identifier: GPL-2.0-or-later
"""The form of a module's file: each refusal of the kernel's loader is found, and beside each stands a file that has none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import elf
import pytest

from knetstatd.formats import module_file

if TYPE_CHECKING:
    from pathlib import Path

NOBITS, REL, KLP = elf.NOBITS, elf.REL, 0x00100000
OUTSIDE = "a symbol lies outside of its section"
TEXT, DATA = elf.ALLOC | elf.EXEC, elf.ALLOC | elf.WRITE


def form(path: Path, data: bytes) -> str | None:
    (path / "demo.ko").write_bytes(data)
    return module_file.from_path(path / "demo.ko", formed=True).form


def having(*more: elf.Sec, **rest: Any) -> bytes:
    return elf.module(more=more, **rest)


def sec(name: str, flags: int, **rest: Any) -> elf.Sec:
    return elf.Sec(name, bytes(32), flags, **rest)


def test_a_good_file(tmp_path: Path) -> None:
    assert form(tmp_path, elf.module()) == ""
    assert module_file.from_path(tmp_path / "demo.ko").form is None  # it was not asked for


def test_relocations_of_another_machine_are_not_known(tmp_path: Path) -> None:
    for other in ({"machine": 183}, {"bits": 32}, {"little": False}):
        assert form(tmp_path, elf.module(**other)) is None
    assert form(tmp_path, having(sec("x", 7), machine=183)) == "'section x has invalid WRITE|EXEC flags'"


@pytest.mark.parametrize(
    ("bad", "good", "why"),
    [
        # module_enforce_rwx_sections()
        (sec("x", 7), sec("x", TEXT), "'section x has invalid WRITE|EXEC flags'"),
        (sec("x", 5), sec("x", 1), "'section x has invalid WRITE|EXEC flags'"),
        # layout_sections()
        (sec(".text", elf.ALLOC), sec(".text", TEXT), "is not marked as such sections are"),
        (sec(".text", elf.EXEC), sec(".text.x", TEXT), "is not marked as such sections are"),
        (sec(".text.x", DATA), sec("text", DATA), "is not marked as such sections are"),
        (sec(".text", TEXT, kind=NOBITS), sec(".text", TEXT), "is not marked as such sections are"),
        (sec(".data", elf.ALLOC), sec(".data", DATA), "is not marked as such sections are"),
        (sec("__jump_table", elf.ALLOC), sec("__jump_table", DATA), "is not marked as such sections are"),
        (sec(".static_call_sites", elf.ALLOC), sec(".static_call_sites", DATA), "is not marked as such sections are"),
        (sec(".bss", elf.ALLOC, kind=NOBITS), sec(".bss", DATA, kind=NOBITS), "is not marked as such sections are"),
        (sec("x", DATA, align=24), sec("x", DATA, align=64), "aligned to 24, which is no power of two"),
        (sec("x", DATA, align=1 << 31), sec("x", DATA, align=0), "MB of memory"),
        (sec("x", DATA, kind=NOBITS, size=1 << 30), sec("x", DATA, kind=NOBITS, size=1 << 20), "it needs 1024 MB of memory"),
        (sec("x", elf.ALLOC, kind=0), sec("x", 0, kind=0), "without a type is to be in memory"),
        # percpu_modalloc()
        (
            sec(".data..percpu", DATA, kind=NOBITS, size=40000),
            sec(".data..percpu", DATA, kind=NOBITS, size=4000),
            "'Could not allocate 40000 bytes percpu data'",
        ),
        # add_sect_attrs()
        (sec("", DATA), sec("", 0), "a section in memory has no name"),
        # apply_relocations()
        (sec("x", 0, kind=REL, info=".modinfo"), sec("x", 0, kind=REL, info=".comment"), "'REL relocation unsupported'"),
        (sec("x", KLP, info=".modinfo"), sec(".klp.rela.vmlinux.x", KLP, info=".modinfo"), "relocations for livepatch"),
    ],
)  # fmt: skip
def test_sections(tmp_path: Path, bad: elf.Sec, good: elf.Sec, why: str) -> None:
    assert why in (form(tmp_path, having(bad)) or "")
    assert form(tmp_path, having(good)) == ""


def test_names_of_sections_in_memory_are_different(tmp_path: Path) -> None:
    one, other = sec("x", DATA), sec("x", elf.ALLOC)
    assert form(tmp_path, having(one, other)) == "it has two sections x"
    assert form(tmp_path, having(one, other._replace(flags=0))) == ""
    for name in (".symtab", ".strtab"):
        assert form(tmp_path, having(sec(name, DATA))) == f"it has two sections {name}"
        assert form(tmp_path, having(sec(name, 0))) == ""
    assert form(tmp_path, having(sec(".shstrtab", DATA))) == ""
    assert form(tmp_path, having(one, other._replace(data=b""))) == ""


def test_two_tables_of_constructors(tmp_path: Path) -> None:
    assert form(tmp_path, having(sec(".ctors", DATA), sec(".init_array", DATA))) == "'has both .ctors and .init_array'"
    assert form(tmp_path, having(sec(".init_array", DATA))) == ""


def test_struct_module_is_as_modpost_leaves_it(tmp_path: Path) -> None:
    made = elf.module()
    at = made.index(b"demo" + bytes(40))
    for place in (at - 24, at - 1, at + 56, at + 1000):
        damaged = made[:place] + b"\1" + made[place + 1 :]
        assert form(tmp_path, damaged) == "its struct module has more in it than a name", place
    for place in (at, at + 3, at + 4, at + 55):
        damaged = made[:place] + b"\1" + made[place + 1 :]
        assert form(tmp_path, damaged) == "its struct module has another name than .modinfo", place
    assert form(tmp_path, elf.module("x" * 55)) == ""


@pytest.mark.parametrize("old", [True, False])
def test_tables_of_exports(tmp_path: Path, old: bool) -> None:
    exports = {"a": (1, "", "NS"), "b": (2, "_gpl", ""), "c": (3, "flag", "")}
    made = elf.module(exports=exports, old_exports=old)
    assert form(tmp_path, made) == ""
    for name in ("__ksymtab", "__ksymtab_gpl", "__kflagstab", "__ksymtab_strings", *([] if old else ["__kcrctab"])):
        damaged = made.replace(f"\0{name}\0".encode(), f"\0x{name[1:]}\0".encode())
        assert form(tmp_path, damaged) == "the tables of what it exports are not where its labels are", name


def test_symbols_lie_in_their_sections(tmp_path: Path) -> None:
    for value, why in ((32, ""), (33, OUTSIDE), (1 << 63, OUTSIDE)):
        assert form(tmp_path, having(sec("x", DATA), more_symbols=[elf.Sym("s", "x", value)])) == why
    assert form(tmp_path, elf.module(more_symbols=[elf.Sym("s", elf.ABS, 1 << 63)])) == ""


def test_thousands_of_sections_are_compared_quickly(tmp_path: Path) -> None:
    sections = [elf.Sec(f"s{number}", b"x") for number in range(10_000)]
    made = elf.module(more=[*sections, elf.Sec("twice", b"x"), elf.Sec("twice", b"x")])
    start = time.process_time()
    assert form(tmp_path, made) == "it has two sections twice"
    assert time.process_time() - start < 1


def test_a_name_is_shown_as_one_line(tmp_path: Path) -> None:
    assert form(tmp_path, having(sec("x\x1b[2J\n", 7))) == "'section x?[2J has invalid WRITE|EXEC flags'"
