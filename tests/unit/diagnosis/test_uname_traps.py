# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines that read the running kernel, and the override that cures them; that it does is shown in the containers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from knetstatd.diagnosis import uname_traps
from knetstatd.dkms import dkms_conf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]


def test_the_line_that_reads_the_running_kernel(tree: Make) -> None:
    source = tree(
        {
            "Makefile": "# uname -r in a comment\nKSRC ?= /lib/modules/$(shell uname -r)/build\nall:\n\tmake -C $(KSRC)\n",
            "sub/Kbuild": "KVER := $(shell uname -r)\n",
            "configure": "release=`uname -r`\n",
            "m.c": "/* uname -r */",
            ".git/Makefile": "X = $(shell uname -r)",
        }
    )
    reads = uname_traps.reads(source, {"KVER"})
    assert [(r.file, r.line, r.variable, r.passed) for r in reads] == [
        ("Makefile", 2, "KSRC", False),
        ("configure", 1, "release", False),
        ("sub/Kbuild", 1, "KVER", True),
    ]
    assert reads[0].text == "KSRC ?= /lib/modules/$(shell uname -r)/build"


@pytest.mark.parametrize(
    "asks",
    [
        "uname -r", "uname -sr", "uname -a", "uname --kernel-release",
        'python3 -c "import platform; print(platform.release())"',
        'python3 -c "import os; print(os.uname().release)"', "perl -MPOSIX -e 'print((POSIX::uname())[2])'",
        "perl -MPOSIX=uname -e 'print((uname)[2])'", "cut -d' ' -f3 /proc/version", "cat /proc/version_signature",
        "cat /proc/sys/kernel/osrelease", "sysctl -n kernel.osrelease", "sysctl -n kernel/osrelease",
        "hostnamectl | grep Kernel",
        "ls /lib/modules", "ls -t /usr/lib/modules/ | head -1", "basename /lib/modules/*",
    ],
)  # fmt: skip
def test_the_ways_of_asking_for_the_running_kernel(tree: Make, asks: str) -> None:
    [read] = uname_traps.reads(tree({"Makefile": f"K := $(shell {asks})\n", "m.c": "int x;\n"}), ())
    assert (read.line, read.variable) == (1, "K")
    assert uname_traps.cure([read]) == "Makefile line 1 asks for the running kernel; set K in dkms.conf's MAKE"


@pytest.mark.parametrize(
    "line", ["A := $(shell uname -m)", "ls /lib/modules/$(KVER)/build", "cat /proc/versions", "D := /lib/modules/$(K)/build"]
)
def test_what_does_not_ask_for_it(tree: Make, line: str) -> None:
    assert uname_traps.reads(tree({"Makefile": f"{line}\n", "m.c": "p = utsname()->release; uname(&x);\n"}), ()) == ()


def test_a_program_of_the_source_that_asks(tree: Make) -> None:
    source = tree({"Makefile": "K := $(shell tools/kver)\n", "tools/kver": "#!/bin/sh\n\nuname -r\n", "doc": "#!uname -r\n"})
    assert uname_traps.reads(source, ()) == (), "it cannot be run"
    (source / "tools/kver").chmod(0o755)
    (source / "tools/gone").symlink_to("/nowhere")
    assert [(r.file, r.line) for r in uname_traps.reads(source, ())] == [("tools/kver", 3)]
    (source / "tools/kver").unlink()
    (source / "tools/kver.c").write_text("#include <sys/utsname.h>\nint main(void)\n{\n\tuname(&u);\n}\n")
    [read] = uname_traps.reads(source, ())
    assert (read.file, read.line) == ("tools/kver.c", 4)
    assert uname_traps.cure([read]).startswith("tools/kver.c line 4 asks for the running kernel; give make the kernel")
    assert uname_traps.cure([]).startswith("No line of its build files")


def test_a_huge_source_is_not_searched_for_ever(tree: Make) -> None:
    line = "X = $(shell uname -r)\n"
    source = tree({f"{number:03}/Makefile": line for number in range(250)} | {"m.c": "error:\n"})
    assert len(uname_traps.reads(source, ())) == 201


def test_a_source_that_does_not_ask_has_no_such_line(tree: Make) -> None:
    assert uname_traps.reads(tree({"Makefile": "KDIR ?= /lib/modules/$(KVER)/build\n"}), ()) == ()


def conf(make: str, more: str = "") -> str:
    return f'PACKAGE_NAME="m"\nPACKAGE_VERSION="1"\nDEST_MODULE_LOCATION[0]="/updates"\nMAKE[0]="{make}"\n{more}'


def override(tree: Make, make: str, line: str, more: str = "") -> uname_traps.Override | None:
    source = tree({"dkms.conf": conf(make, more), "Makefile": f"{line}\n"})
    read = dkms_conf.evaluate(source, source)
    passed = {name for each in read.make for name, _ in each.variables}
    active = uname_traps.active(read, uname_traps.reads(source, passed))
    return uname_traps.override("m", "1", read, active, source) if active else None


@pytest.mark.parametrize(
    ("line", "set"),
    [
        ("KSRC ?= /lib/modules/$(shell uname -r)/build", "KSRC=/lib/modules/${kernelver}/build"),
        ("KVER := $(shell uname -r)", "KVER=${kernelver}"),
        ("export KVERSION = `uname -r`", "KVERSION=${kernelver}"),
    ],
)
def test_the_override_passes_the_variable_at_fault(tree: Make, line: str, set: str) -> None:
    found = override(tree, "make -C . X=/lib/modules/${kernelver}/build", line)
    assert found is not None
    assert found.path == "/etc/dkms/m-1.conf", "another version has none"
    assert found.text.endswith(f'MAKE[0]+=" {set}"\n'), "what the package's own dkms.conf says stays as that changes it"
    assert f"Makefile line 1 reads the running kernel: {line}" in found.text


@pytest.mark.parametrize(
    ("make", "line", "more"),
    [
        ("make", "X = $(shell uname -r | cut -c1)", ""),  # only make can tell, and there is no obj-m
        ("make -C ${kernel_source_dir} M=.", "KSRC ?= /lib/modules/$(shell uname -r)/build", ""),  # not reached
        ("make KSRC=x", "KSRC ?= /lib/modules/$(shell uname -r)/build", ""),  # passed already
        ("", "KSRC ?= /lib/modules/$(shell uname -r)/build", ""),  # dkms's own default
        ("make", "all:\n\tmake -C /lib/modules/`uname -r`/build", ""),  # no variable to pass
        ("make", "X = $(shell uname -r)", 'MAKE[1]="make y"\nMAKE_MATCH[1]="^6"\n'),  # which of them?
    ],
)
def test_no_override_where_it_would_be_a_guess(tree: Make, make: str, line: str, more: str) -> None:
    assert override(tree, make, line, more) is None


@pytest.mark.parametrize(
    ("make", "line"),
    [
        ("make", "obj-m := m.o\nall:\n\tmake -C /lib/modules/`uname -r`/build M=$(PWD)"),
        ("make A=`date`", "obj-m := m.o\nX = $(shell uname -r)"),
    ],
)
def test_the_override_goes_through_the_kernels_directory(tree: Make, make: str, line: str) -> None:
    found = override(tree, make, line)
    assert found is not None
    build = "${dkms_tree}/${PACKAGE_NAME}/${PACKAGE_VERSION}/build"
    assert found.text.endswith(f"MAKE[0]='make -C ${{kernel_source_dir}} M={build} modules'\n")


def test_overrides_of_ours(tree: Make) -> None:
    root = tree(
        {
            "etc/dkms/a.conf": f"{uname_traps.HEAD}\nx=y\n",
            "etc/dkms/a-1.conf": "x=y\n",
            "etc/dkms/a-2.conf": f"{uname_traps.HEAD}\n",
        }
    )
    assert uname_traps.ours(root, "a") == uname_traps.ours(root, "a", "1") == ("/etc/dkms/a.conf",)
    assert uname_traps.ours(root, "a", "2") == ("/etc/dkms/a.conf", "/etc/dkms/a-2.conf")
    assert uname_traps.ours(root, "b", "1") == ()


def test_a_hostile_makefile_ends_quickly(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("\n" * 200_000 + "ls " * 12_000 + "\nall:\n\tmake -C /lib/modules/`uname -r`/build\n")
    (tmp_path / "dkms.conf").write_text("MAKE[0]=make\n")
    conf = dkms_conf.evaluate(tmp_path, tmp_path)
    start = time.process_time()
    lines = uname_traps.reads(tmp_path, [])
    assert lines
    assert uname_traps.override("demo", "1.0", conf, lines, tmp_path) is None
    assert time.process_time() - start < 2
