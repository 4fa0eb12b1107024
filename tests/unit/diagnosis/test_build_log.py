# SPDX-License-Identifier: GPL-2.0-or-later
"""Causes from logs; whether they are right for real logs is shown in the containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.core.model import Kind
from knetstatd.diagnosis import build_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

COMPILE = """make[1]: Entering directory '/usr/src/linux-headers'
  CC [M]  /stage/m/1/build/m.o
/stage/m/1/build/m.c:7:9: error: expected ';' before '}' token
make[2]: *** [scripts/Makefile.build:250: /stage/m/1/build/m.o] Error 1
"""


@pytest.mark.parametrize(
    ("log", "output", "code", "kind", "words"),
    [
        (COMPILE, "", 10, Kind.COMPILE, "m.c line 7: expected ';'"),
        (COMPILE + "cc1: No space left on device\n", "", 10, Kind.DISK, "disk is full"),
        ("a.c:1:2: error: implicit declaration of function 'foo'; did you mean 'bar'?\n", "", 10, Kind.API, "'foo'"),
        ("a.c:1:10: fatal error: linux/gone.h: No such file or directory\n", "", 10, Kind.API, "linux/gone.h"),
        ('ERROR: modpost: "gone" [/b/m.ko] undefined!\n', "", 10, Kind.SYMBOL, "symbol gone"),
        ("ERROR: modpost: GPL-incompatible module m.ko uses GPL-only symbol 'x'\n", "", 10, Kind.SYMBOL, "symbol x"),
        (
            "ERROR: modpost: module m uses symbol s from namespace N, but does not import it.\n",
            "",
            10,
            Kind.SYMBOL,
            "namespace N",
        ),
        ("cc1: out of memory allocating 65536 bytes\n", "", 10, Kind.MEMORY, "memory"),
        ("/usr/sbin/dkms: line 88:   266 Killed                  make -j2\n", "", 10, Kind.INTERRUPTED, "killed"),
        ("make[2]: *** [scripts/Makefile.build:250: m.o] Killed\n", "", 10, Kind.INTERRUPTED, "killed"),
        ("", "make -j2 ...(bad exit status: 137)\n", 10, Kind.INTERRUPTED, "killed"),
        ("/bin/sh: 1: gcc-12: not found\n", "", 10, Kind.COMPILER, "gcc-12"),
        ("", "Your kernel headers for kernel 6.1 cannot be found at /lib/modules", 1, Kind.HEADERS, "headers"),
        (
            "make: *** /lib/modules/6.1/build: No such file or directory.  Stop.\n",
            "",
            10,
            Kind.KERNEL_DIR,
            "/lib/modules/6.1/build",
        ),
        (
            "checking for ld... ld\nchecking how to set cflags... configure: error: cannot find a way\nmake: *** no\n",
            "", 10, Kind.COMPILE, "configure script stopped: cannot find a way",
        ),
        ("make: *** No rule to make target 'modulez'.  Stop.\n", "", 10, Kind.COMPILE, "modulez"),
        ("Makefile:3: *** set KDIR.  Stop.\n", "", 10, Kind.COMPILE, "set KDIR"),
        ("make: *** [Makefile:5: all] Error 2\n", "", 10, Kind.COMPILE, "make failed"),
        ("", "does not match this kernel: BUILD_EXCLUSIVE", 77, Kind.EXCLUDED, "BUILD_EXCLUSIVE"),
        ("LD m.ko\n", "Build of m.ko failed for: 6.1", 7, Kind.NO_MODULE, "did not make"),
        ("", "Build of m.ko failed for: 6.1", 7, Kind.FOREIGN_DKMS, "another dkms"),
        ("", "This module/version has already been built on: 6.1", 3, Kind.DKMS_TREE, "without a module in it"),
        ("", "Error! Could not locate dkms.conf file.\nFile: does not exist.", 4, Kind.DKMS_TREE, "a source"),
        ("", "rm: Read-only file system\nhas already been built on: 6.1", 3, Kind.READ_ONLY, "read-only"),
        ("", "nothing that is known", 3, Kind.COMPILE, "exit code 3"),
        ("", "Error! No 'PACKAGE_NAME' directive specified", 8, Kind.CONF, "dkms.conf"),
        ("", "nonsense", 9, Kind.COMPILE, "exit code 9"),
        (
            "/usr/src/linux-headers-6.1/x.h:1:2: error: passing argument 1 of 'f'\nm.c:3:4: error: too many arguments to 'f'\n",
            "",
            10,
            Kind.API,
            "m.c line 3: too many",
        ),
        ("/usr/src/linux-headers-6.1/x.h:1:2: error: passing argument 1 of 'f'\n", "", 10, Kind.API, "x.h line 1: passing"),
        ("cp: cannot create regular file: Read-only file system\n", "", 10, Kind.READ_ONLY, "read-only"),
        ("cp: x: Read-only file system\n" + COMPILE, "", 10, Kind.COMPILE, "m.c line 7"),
        (COMPILE + "cp: x: Read-only file system\nmake: *** [Makefile:2: x] Error 1\n", "", 10, Kind.READ_ONLY, "read-only"),
        ("m.c:1:1: fatal error: cannot open m.d: Read-only file system\n", "", 10, Kind.READ_ONLY, "read-only"),
        ("make: git: No such file or directory\n" + COMPILE, "", 10, Kind.COMPILE, "m.c line 7"),
        ("make: [Makefile:1: version] Error 127 (ignored)\nsh: git: not found\n" + COMPILE, "", 10, Kind.COMPILE, "m.c line 7"),
        ("/bin/sh: 1: scripts/version: not found\n" + COMPILE, "", 10, Kind.COMPILE, "m.c line 7"),
        ('/bin/sh: 1: lsb_release: not found\nERROR: modpost: "s" [m.ko] undefined!\n', "", 10, Kind.SYMBOL, "symbol s"),
        (COMPILE + "/bin/sh: 1: gcc: not found\nmake[2]: *** [x.o] Error 127\n", "", 10, Kind.COMPILER, "missing: gcc"),
        (COMPILE + '    7 |   f("out of memory");\n      |  ^ No space left on device\n', "", 10, Kind.COMPILE, "m.c line 7"),
    ],
)
def test_causes(log: str, output: str, code: int, kind: Kind, words: str) -> None:
    cause = build_log.classify(log, output, code)
    assert cause.kind is kind
    assert words in cause.reason
    assert all(line in "".join(c if c.isprintable() or c == "\n" else "?" for c in log + output) for line in cause.evidence)


def test_evidence_is_quoted_and_cannot_forge_lines() -> None:
    log = "\x1b[31mm.c:1:1: error: x\rMESSAGE=forged\x07\n<3>y\n"
    cause = build_log.classify(log, "", 10)
    assert cause.evidence
    assert all(line.isprintable() for line in cause.evidence)
    assert cause.reason.isprintable()


@given(st.text(max_size=300), st.text(max_size=300), st.integers(-64, 255))
def test_any_log_has_a_cause(log: str, output: str, code: int) -> None:
    cause = build_log.classify(log, output, code)
    assert cause.reason.isprintable()
    assert len(cause.evidence) <= 6


def test_evidence_is_at_most_three_different_lines() -> None:
    log = "a.c:1:1: error: x\n" * 5 + "".join(f"b{n}.c:1:1: error: y\n" for n in range(5))
    assert build_log.classify(log, "", 10).evidence == ("a.c:1:1: error: x", "b0.c:1:1: error: y", "b1.c:1:1: error: y")
