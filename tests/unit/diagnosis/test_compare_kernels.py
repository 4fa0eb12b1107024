# SPDX-License-Identifier: GPL-2.0-or-later
"""What two kernels' headers say about a failure; with real headers and real failures in the containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kerneltree
import pytest

from knetstatd.core.model import Kind
from knetstatd.diagnosis import compare_kernels
from knetstatd.diagnosis.build_log import Cause
from knetstatd.diagnosis.build_rules import Cure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

OLD, NEW = "6.1.0-9-amd64", "6.12.1-amd64"


Exports = dict[str, tuple[str, str, str]]


def headers(kernel: str, exports: Exports, included: dict[str, str], cc: str = "gcc-12") -> dict[str, str]:
    place, common = f"usr/src/linux-headers-{kernel}", f"usr/src/linux-headers-{kernel}-common"
    table = "".join(f"0x00000000\t{name}\t{owner}\t{kind}\t{space}\n" for name, (owner, kind, space) in exports.items())
    return {
        f"usr/lib/modules/{kernel}/build": f"-> /{place}",
        f"{place}/Makefile": f"include /{common}/Makefile\n",
        f"{place}/.config": f'CONFIG_CC_VERSION_TEXT="{cc} (Debian) 1.2"\n' if cc else "",
        f"{place}/Module.symvers": table,
        f"{place}/scripts": "-> ../../lib/linux-kbuild-6.1/scripts",
        f"{place}/include/generated/utsrelease.h": f'#define UTS_RELEASE "{kernel}"\n',
        f"{common}/Makefile": "",
        **{f"{common}/include/{path}": text for path, text in included.items()},
    }


PLAIN, GPL = ("vmlinux", "EXPORT_SYMBOL", ""), ("vmlinux", "EXPORT_SYMBOL_GPL", "")


INNER = " * gone_fn(x) is no more\nint inner_fn(void);\n"


@pytest.fixture
def root(tree: Make) -> Path:
    old = {"kept": PLAIN, "closed": PLAIN, "moved": PLAIN, "dropped": PLAIN, "alloc": ("lib/my-lib", "EXPORT_SYMBOL", "")}
    new = {"kept": PLAIN, "closed": GPL, "moved": ("vmlinux", "EXPORT_SYMBOL", "SPACE"), "__alloc_noprof": PLAIN}
    return tree({
        "lib": "-> usr/lib",
        "etc/debian_version": "",
        "usr/lib/linux-kbuild-6.1/scripts/": "",
        **headers(OLD, old, {"asm/unaligned.h": "", "linux/x.h": "int gone_fn(int a);\n#define MACRO(a) a\n",
            "linux/a.h": "\tgone_fn(1);\n\tMACRO(2);\nenum {\n\tVALUE,\n};\n"}),
        **headers(NEW, new, {"linux/unaligned.h": "", "linux/a.h": "-> no", "linux/x.h": INNER}, "x86_64-linux-gnu-gcc-14"),
    })  # fmt: skip


def said(root: Path, kind: Kind, subject: str, kernel: str = NEW, evidence: str = "", cure: Cure = Cure.AS_SAID) -> Cause:
    cause = Cause(kind, "why, which this kernel does not have", "as before", (evidence,), subject, cure)
    return compare_kernels.refine(cause, root, kernel, root / "src")


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("dropped", f"no longer exports the symbol dropped, which {OLD} exports"),
        ("alloc", f"which {OLD} exports (module my_lib); it exports __alloc_noprof"),
        ("closed", f"in {OLD} it is open to every licence"),
        ("moved", f"in {OLD} it is in no namespace"),
        ("inner_fn", "include/linux/x.h declares it, for the kernel's own use"),
        ("nowhere", "no header of it knows it"),
        ("kept", "why"),
    ],
)
def test_symbols(root: Path, subject: str, words: str) -> None:
    assert words in said(root, Kind.SYMBOL, subject).reason


def test_a_symbol_that_nobody_knows_may_be_another_modules(root: Path) -> None:
    assert "BUILD_DEPENDS" in said(root, Kind.SYMBOL, "nowhere").fix
    assert "it exports __alloc_noprof" in said(root, Kind.SYMBOL, "_alloc").reason


def test_headers_that_moved_or_never_were(root: Path) -> None:
    assert f"{OLD} has it, and here it is linux/unaligned.h" in said(root, Kind.API, "asm/unaligned.h").reason
    assert f"{NEW} has it" in said(root, Kind.API, "linux/unaligned.h", OLD).reason
    never = said(root, Kind.API, "own.h")
    assert "no installed kernel has" in never.reason
    assert "Add the file" in never.fix


def test_identifiers(root: Path) -> None:
    assert f"{OLD} declares it in include/linux/x.h, this kernel does not" in said(root, Kind.API, "gone_fn").reason
    assert f"{OLD} declares it in include/linux/x.h" in said(root, Kind.API, "MACRO").reason
    assert f"{OLD} declares it in include/linux/a.h" in said(root, Kind.API, "VALUE").reason
    for same in ("inner_fn", "typo"):
        assert "declares" not in said(root, Kind.API, same).reason


@pytest.mark.parametrize(
    ("subject", "line"),
    [("OWN", 4), ("WITH_SPACE", 6), ("own.h", 4), ("OWNER", 0), ("absent.h", 0), ("COMMENT", 0)],
)
def test_flags_that_the_build_system_ignores(root: Path, subject: str, line: int) -> None:
    """From 6.15 on EXTRA_CFLAGS is not read."""
    makefile = "obj-m := x.o\n# EXTRA_CFLAGS = -DCOMMENT\n\nEXTRA_CFLAGS += -I$(src)/include \\\n\t-DOWN=1\n"
    (root / "src/include").mkdir(parents=True)
    (root / "src/include/own.h").touch()
    (root / "src/Makefile").write_text(makefile + "EXTRA_CFLAGS:=-D WITH_SPACE\n")
    rules = root / "usr/lib/linux-kbuild-6.1/scripts/Makefile.lib"
    for text, ignored in (("ccflags-y\n", True), ("ccflags-y += $(EXTRA_CFLAGS)\n", False)):
        rules.write_text(text)
        cause = said(root, Kind.API, subject)
        assert (f"; Makefile line {line} gives it by EXTRA_CFLAGS" in cause.reason) is bool(line and ignored)
        assert ("ccflags-y" in cause.fix) is bool(line and ignored)


def test_compilers(root: Path) -> None:
    missing = said(root, Kind.COMPILER, "x86_64-linux-gnu-gcc-14")
    assert "compiled by x86_64-linux-gnu-gcc-14 (Debian) 1.2" in missing.reason
    assert missing.fix == "Run: apt install gcc-14"
    assert said(root, Kind.COMPILER, "ld").fix == "Run: apt install binutils"
    assert said(root, Kind.COMPILER, "bison").fix == "Run: apt install bison"
    older = said(root, Kind.COMPILER, "-fnew", evidence="gcc-12: error: unrecognized command-line option '-fnew'")
    assert "this compile ran gcc-12" in older.reason
    assert older.fix == "Run: apt install gcc-14"
    line = "x86_64-linux-gnu-gcc-14: error: unrecognized command-line option '-fnew'"
    same = said(root, Kind.COMPILER, "-fnew", evidence=line)
    assert same.fix == "as before"


@pytest.mark.spawns
def test_incomplete_headers(root: Path) -> None:
    kerneltree.offer(root, f"linux-headers-{NEW}", f"linux-headers-{NEW}-common", "linux-headers-amd64", "linux-kbuild-6.1")
    fix = said(root, Kind.HEADERS, "", cure=Cure.REINSTALL_HEADERS).fix
    assert fix == f"Run: apt install --reinstall linux-headers-{NEW} linux-headers-{NEW}-common linux-kbuild-6.1"
    fix = said(root, Kind.TOOLS, "scripts/basic/fixdep", cure=Cure.REINSTALL_HEADERS).fix
    assert fix == "Run: apt install --reinstall linux-kbuild-6.1"
    assert said(root, Kind.HEADERS, "", cure=Cure.INSTALL_HEADERS).fix.startswith(f"Run: apt install linux-headers-{NEW};")
    (root / "etc/debian_version").unlink()
    assert said(root, Kind.HEADERS, "", cure=Cure.REINSTALL_HEADERS).fix == f"Run: dnf reinstall kernel-devel-{NEW}"


def test_nothing_is_said_without_witnesses(root: Path) -> None:
    for kernel, kind, subject in (("7.0.0", Kind.SYMBOL, "x"), (NEW, Kind.SYMBOL, ""), (NEW, Kind.DISK, "x")):
        assert said(root, kind, subject, kernel).reason.startswith("why, which this kernel does not have")
    (root / f"usr/src/linux-headers-{OLD}/Module.symvers").write_text("junk\n")
    assert OLD not in said(root, Kind.SYMBOL, "dropped").reason
    (root / f"usr/src/linux-headers-{NEW}/scripts").unlink()
    assert "linux-kbuild" not in said(root, Kind.HEADERS, "", cure=Cure.REINSTALL_HEADERS).fix
