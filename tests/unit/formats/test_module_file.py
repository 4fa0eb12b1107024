# SPDX-License-Identifier: GPL-2.0-or-later
"""Module files: what they say is read in every form, and every fault is a ModuleFileError that names it."""

from __future__ import annotations

import gzip
import lzma
import os
import random
import subprocess
from typing import TYPE_CHECKING, Any

import elf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packers import zstd

from knetstatd.core.errors import ModuleFileError
from knetstatd.formats import compression, module_file
from knetstatd.formats.symvers import Export

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FORMS = pytest.mark.parametrize(("bits", "little"), [(64, True), (64, False), (32, True), (32, False)])
FULL: dict[str, Any] = {
    "undefined": ["printk", "kfree"],
    "weak": ["maybe"],
    "crcs": {"module_layout": 0x11223344, "printk": 0xFFFFFFFF, "kfree": 0},
    "info": {
        "depends": "a,b-c",
        "import_ns": ["ONE", "TWO"],
        "srcversion": "ABC",
        "version": "1.0",
        "intree": "Y",
        "alias": ["net-pf-1", "x"],
        "parmtype": ["debug:int", "list:array of int", "odd"],
    },
    "build_id": "00ff",
}


def read(path: Path, data: bytes) -> module_file.Module:
    (path / "demo.ko").write_bytes(data)
    return module_file.from_path(path / "demo.ko")


def refused(path: Path, data: bytes, why: str) -> None:
    with pytest.raises(ModuleFileError, match=why) as caught:
        read(path, data)
    assert caught.value.where == f"{path}/demo.ko"


@FORMS
def test_everything_is_read(tmp_path: Path, bits: int, little: bool) -> None:
    module = read(tmp_path, elf.module("my-demo", **FULL, bits=bits, little=little))
    assert module == module_file.Module(
        name="my_demo",
        vermagic=elf.MAGIC,
        license="GPL",
        depends=("a", "b-c"),
        import_ns=("ONE", "TWO"),
        srcversion="ABC",
        version="1.0",
        intree=True,
        crcs={"module_layout": 0x11223344, "printk": 0xFFFFFFFF, "kfree": 0},
        ext_crcs=None,
        undefined=("printk", "kfree"),
        weak=("maybe",),
        common=(),
        exports={},
        struct_size=1280,
        machine=module.machine,
        signature=None,
        compiler=elf.COMPILER,
        build_id="00ff",
        aliases=("net-pf-1", "x"),
        btf=None,
        hooks={"init_module": 320} if (bits, little) == (64, True) else {},
        parameters={"debug": "int", "list": "array of int", "odd": ""},
    )
    assert module.machine == (62, bits, little)
    assert module.release == "6.1.0-1-amd64"
    assert module.flags == " SMP preempt mod_unload modversions "


def test_machines_have_names(tmp_path: Path) -> None:
    assert str(read(tmp_path, elf.module()).machine) == "x86-64, 64 bits, little endian"
    assert str(read(tmp_path, elf.module(machine=9999, little=False)).machine) == "machine 9999, 64 bits, big endian"


def test_what_is_not_there_is_empty(tmp_path: Path) -> None:
    made = elf.file([elf.Sec(".gnu.linkonce.this_module", bytes(64))])
    module = read(tmp_path, made)
    assert (module.name, module.vermagic, module.release, module.flags, module.license) == ("demo", "", "", "", "")
    assert (module.crcs, module.ext_crcs, module.undefined, module.exports) == (None, None, (), {})


def test_sections_without_contents_are_empty(tmp_path: Path) -> None:
    empty = elf.Sec(".modinfo", b"vermagic=1\0", kind=elf.NOBITS)
    assert read(tmp_path, elf.file([empty, elf.Sec(".gnu.linkonce.this_module", bytes(64))])).vermagic == ""


def test_name_without_modinfo_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "snd-x.ko.xz"
    path.write_bytes(elf.file([elf.Sec(".gnu.linkonce.this_module", bytes(64))]))
    assert module_file.from_path(path).name == "snd_x"


def test_the_first_value_counts(tmp_path: Path) -> None:
    info = elf.modinfo(license=["GPL", "Proprietary"], vermagic=["1 a", "2 b"]) + b"odd\0"
    made = elf.file([elf.Sec(".modinfo", info), elf.Sec(".gnu.linkonce.this_module", bytes(64))])
    module = read(tmp_path, made)
    assert (module.license, module.vermagic) == ("GPL", "1 a")


@FORMS
@pytest.mark.parametrize("old", [True, False])
def test_exports(tmp_path: Path, bits: int, little: bool, old: bool) -> None:
    exports = {"plain": (1, "", ""), "gpl": (2, "_gpl", ""), "flagged": (0xF0000003, "flag", "NS"), "not_crc": (0, "", "A")}
    module = read(tmp_path, elf.module(exports=exports, old_exports=old, bits=bits, little=little))
    assert module.exports == {
        "plain": Export(1, "demo", gpl_only=False),
        "gpl": Export(2, "demo", gpl_only=True),
        "flagged": Export(0xF0000003, "demo", gpl_only=True, namespace="NS"),
        "not_crc": Export(0, "demo", gpl_only=False, namespace="A"),
    }


def test_export_labels_that_lead_nowhere(tmp_path: Path) -> None:
    sections = [elf.Sec(".gnu.linkonce.this_module", bytes(64)), elf.Sec("__kcrctab", bytes(3)), elf.Sec("__ksymtab", b"")]
    labels = [
        elf.Sym("__ksymtab_short", "__ksymtab"),
        elf.Sym("__crc_short", "__kcrctab"),
        elf.Sym("__ksymtab_far", "__ksymtab"),
        elf.Sym("__crc_far", "__kcrctab", 4000),
        elf.Sym("__kstrtabns_far", "__ksymtab", 1 << 40),
        elf.Sym("__ksymtab_bare", "__ksymtab"),
        elf.Sym("__kstrtabns_bare", elf.ABS),
        elf.Sym("__ksymtab_undefined"),
    ]
    module = read(tmp_path, elf.file(sections, labels))
    assert module.exports == {name: Export(0, "demo", gpl_only=False) for name in ("short", "far", "bare")}


@FORMS
def test_extended_checksums(tmp_path: Path, bits: int, little: bool) -> None:
    long = "a_rust_symbol_" * 20
    module = read(tmp_path, elf.module(crcs={"a": 1}, ext_crcs={"a": 1, long: 0xFEDCBA98}, bits=bits, little=little))
    assert module.crcs == {"a": 1}
    assert module.ext_crcs == {"a": 1, long: 0xFEDCBA98}


def test_extended_checksums_alone(tmp_path: Path) -> None:
    module = read(tmp_path, elf.module(ext_crcs={}))
    assert (module.crcs, module.ext_crcs) == (None, {})


def test_common_symbols(tmp_path: Path) -> None:
    assert read(tmp_path, elf.module(common=["loose", "__gnu_lto_slim"])).common == ("loose",)


def test_sections_that_are_not_loaded_do_not_count(tmp_path: Path) -> None:
    more = [elf.Sec("__versions", elf.versions({"a": 1}), 0), elf.Sec("nothing", b"", 2, 0)]
    assert read(tmp_path, elf.module(more=more)).crcs is None


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd])
@pytest.mark.parametrize("name", ["demo.ko", "demo.ko.gz", "demo.ko.xz", "demo.ko.zst"])
def test_compression_is_seen_by_content(tmp_path: Path, pack: Callable[[bytes], bytes], name: str) -> None:
    (tmp_path / name).write_bytes(pack(elf.module(**FULL)))
    assert module_file.from_path(tmp_path / name) == read(tmp_path, elf.module(**FULL))


def test_damaged_compression(tmp_path: Path) -> None:
    refused(tmp_path, gzip.compress(elf.module())[:-20], "ends too early")
    refused(tmp_path, compression.XZ + b"nonsense", "xz")


def test_contents_that_are_in_memory(tmp_path: Path) -> None:
    plain = elf.module(**FULL)
    for data in (plain, gzip.compress(elf.sign(plain, b"PKCS#7"))):
        (tmp_path / "x.ko").write_bytes(data)
        assert module_file.unsigned(data) == plain
        with module_file.opened(tmp_path / "x.ko") as opened:
            assert b"".join(opened.parts()) == plain
        assert module_file.parse(data, "x.ko") == module_file.from_path(tmp_path / "x.ko")
    for data in (b"no module", gzip.compress(plain)[:-9]):
        with pytest.raises(ModuleFileError, match="x.ko"):
            module_file.parse(data, "x.ko")
    for data in (gzip.compress(plain)[:-9], b"short" + elf.MARKER):
        (tmp_path / "x.ko").write_bytes(data)
        with pytest.raises(ModuleFileError), module_file.opened(tmp_path / "x.ko"):
            pass


def test_signature(tmp_path: Path) -> None:
    plain = elf.module(**FULL)
    assert read(tmp_path, elf.sign(plain, b"PKCS#7")) == read(tmp_path, plain)._replace(signature=b"PKCS#7")
    assert read(tmp_path, gzip.compress(elf.sign(plain, b"PKCS#7"))).signed
    assert not read(tmp_path, elf.sign(plain, b"old", kind=1, odd=4)).signed
    refused(tmp_path, elf.sign(plain, b"x", size=1 << 31), "its signature does not parse")
    refused(tmp_path, elf.sign(plain, b"x", odd=1), "its signature does not parse")
    refused(tmp_path, b"short" + elf.MARKER, "its signature is incomplete")
    refused(tmp_path, elf.sign(plain, b"x", size=200), "section table lies outside")


def test_files_that_are_no_modules(tmp_path: Path) -> None:
    with pytest.raises(ModuleFileError, match="does not exist"):
        module_file.from_path(tmp_path / "absent.ko")
    with pytest.raises(ModuleFileError, match="cannot be opened"):
        module_file.from_path(tmp_path / "nul\0.ko")
    with pytest.raises(ModuleFileError, match="is not a regular file"):
        module_file.from_path(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModuleFileError, match="is not a regular file"):
        module_file.from_path(tmp_path / "fifo")
    with open(tmp_path / "huge.ko", "wb") as f:
        f.truncate(compression.LIMIT + 1)
    with pytest.raises(ModuleFileError, match="is larger than"):
        module_file.from_path(tmp_path / "huge.ko")
    refused(tmp_path, b"", "is empty")
    refused(tmp_path, b"\x7fELF", "is not an ELF file")
    refused(tmp_path, bytes(5000), "is not an ELF file")
    refused(tmp_path, elf.file([], kind=2), "not a relocatable one")
    refused(tmp_path, elf.file([]), "is not a kernel module")
    nobits = elf.Sec(".gnu.linkonce.this_module", bytes(64), kind=elf.NOBITS)
    refused(tmp_path, elf.file([nobits]), "is not a kernel module")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    refused(tmp_path, elf.module(), "cannot be read: Input/output error")


def test_file_that_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: b"\x7fELF"[:size])
    refused(tmp_path, elf.module(), "changed while it was read")


THIS = elf.Sec(".gnu.linkonce.this_module", bytes(64))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (elf.file([THIS, THIS]), "two sections .gnu.linkonce.this_module"),
        (elf.file([THIS], tables=0), "no symbol table; was it stripped?"),
        (elf.file([THIS], tables=2), "has two symbol tables"),
        (elf.file([THIS], strings=b""), "symbol names do not end"),
        (elf.file([THIS], strings=b"\0open"), "symbol names do not end"),
        (elf.file([THIS], strings=b"shut\0"), "symbol names do not end"),
        (elf.file([THIS], [elf.Sym("x" * 40), elf.Sym("y")], strings=b"\0\0"), "symbol's name lies outside"),
        (elf.file([THIS], section_names=b"\0open"), "section names do not end"),
        (elf.file([THIS], section_names=b""), "section names do not end"),
        (elf.file([THIS], section_names=b"\0\0"), "a section's name lies outside the names"),
        (elf.file([THIS, elf.Sec(".modinfo", b"name=demo")]), "its .modinfo does not end"),
        (elf.module(more=[elf.Sec("__versions", b"x" * 64)]), "a name in its checksum table does not end"),
        (elf.module(more=[elf.Sec("__version_ext_crcs", b"")]), "half of its extended checksum table"),
        (elf.module(more=[elf.Sec("__version_ext_names", b"")]), "half of its extended checksum table"),
        (
            elf.module(more=[elf.Sec("__version_ext_crcs", bytes(8)), elf.Sec("__version_ext_names", b"a\0b")]),
            "fewer names than checksums",
        ),
    ],
)
def test_damaged_modules(tmp_path: Path, made: bytes, why: str) -> None:
    refused(tmp_path, made, why)


def test_every_truncation_is_seen(tmp_path: Path) -> None:
    made = elf.module(**FULL, struct_size=64)
    for size in (*range(70), *range(70, len(made) - 70, 9), *range(len(made) - 70, len(made))):
        refused(tmp_path, made[:size], "is empty|is not an ELF file|is truncated or damaged|no section table")


BASES = [
    elf.module(**FULL, bits=bits, little=little, ext_crcs={"a": 1}, exports={"e": (1, "flag", "N")}, signature=b"s" * 30)
    for bits in (64, 32)
    for little in (True, False)
]


@given(st.sampled_from(BASES), st.integers(0, 2**32), st.integers(1, 12))
def test_random_damage_is_a_module_file_error_or_nothing(tmp_path: Path, base: bytes, seed: int, count: int) -> None:
    dice, data = random.Random(seed), bytearray(base)
    for _ in range(count):
        # Headers, which say where everything is, are hit as often as all the rest.
        part = dice.choice([(0, 64), (len(data) - 1100, len(data)), (0, len(data))])
        at = dice.randrange(*part)
        data[at] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
    try:
        read(tmp_path, bytes(data))
    except ModuleFileError as e:
        assert e.what
        assert e.where


@given(st.binary(max_size=300))
def test_anything_else(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModuleFileError):
        read(tmp_path, b"\x7fELF\x02\x01" + data)


@pytest.mark.parametrize("name", [".modinfo", "__versions", "__version_ext_names", ".comment"])
def test_tables_too_large_to_be_true(tmp_path: Path, name: str) -> None:
    """A file of some KB, unpacked, could have millions of entries, each of which takes a hundred bytes."""
    sections = [elf.this_module("demo", 1280), elf.Sec(name, b"k=\0\0" * (1 << 20) + b"\0")]
    if name == "__version_ext_names":
        sections.append(elf.Sec("__version_ext_crcs", bytes(4)))
    refused(tmp_path, gzip.compress(elf.file(sections)), "a section that is a few KB")


OLD, NEW = "GCC: (GNU) 4.4.7 20120313 (Red Hat 4.4.7-1)", "GCC: (GNU) 99.1.0"


@pytest.mark.spawns
@pytest.mark.parametrize(("own", "vendor"), [(None, OLD), (None, NEW), (OLD, NEW)])
def test_the_compiler_is_that_of_what_was_compiled_here(tmp_path: Path, own: str | None, vendor: str) -> None:
    """Real objects, linked by the real linker in kbuild's order; a vendor's are more, and may come first."""

    def make(name: str, source: str, comment: str | None = None) -> str:
        run("gcc", "-xc", "-c", "-o", f"{name}.o", "-", text=source)
        if comment is not None:
            (tmp_path / "comment").write_bytes(b"\0" + comment.encode() + b"\0")
            run("objcopy", "--update-section", ".comment=comment", f"{name}.o")
        return f"{name}.o"

    def run(*argv: str, text: str = "") -> None:
        subprocess.run(argv, cwd=tmp_path, input=text, text=True, check=True)

    blobs = [make(f"blob{n}", f"int blob{n}(void) {{ return {n}; }}", vendor) for n in range(3)]
    mine = make("mine", "int mine(void) { return 1; }", own)
    run("ld", "-r", "-o", "x.o", blobs[0], mine, *blobs[1:])
    struct = '__attribute__((section(".gnu.linkonce.this_module"))) char this_module[64];'
    run("ld", "-r", "-o", "x.ko", "x.o", make("x.mod", struct, own))
    here = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    compiler = module_file.from_path(tmp_path / "x.ko").compiler
    assert compiler == own if own else compiler.endswith(f" {here}")


@pytest.mark.parametrize(
    ("comments", "compiler"),
    [
        ([], ""),
        (["", ""], ""),
        (["Debian clang version 16.0.6 (27)", "Linker: LLD 16.0.6"], "Debian clang version 16.0.6 (27)"),
        (["clang version 18.1.8", "rustc version 1.85.0"], "clang version 18.1.8"),
        (["GCC: (GNU) 4.4.7", "clang version 18.1.8"], "clang version 18.1.8"),
        (["a", "b"], "b"),
    ],
)
def test_a_linker_is_no_compiler(tmp_path: Path, comments: list[str], compiler: str) -> None:
    assert read(tmp_path, elf.module("demo", compiler="\0".join(comments))).compiler == compiler
