# SPDX-License-Identifier: GPL-2.0-or-later
"""Each rule of the table: the words that show its cause, and what it says of them."""

from __future__ import annotations

import pytest

from knetstatd.core.model import Kind
from knetstatd.diagnosis import build_log
from knetstatd.diagnosis.build_rules import RULES, Cure, Rule

COMPILE = """make[1]: Entering directory '/usr/src/linux-headers'
  CC [M]  /stage/m/1/build/m.o
/stage/m/1/build/m.c:7:9: error: expected ';' before '}' token
make[2]: *** [scripts/Makefile.build:250: /stage/m/1/build/m.o] Error 1
"""


@pytest.mark.parametrize(
    ("log", "output", "code", "kind", "words"),
    [
        (COMPILE, "", 10, Kind.COMPILE, "m.c line 7: a syntax error of the module's own: expected ';'"),
        (
            COMPILE + "m.c:9:2: error: 'x' undeclared (first use in this function)\n",
            "",
            10,
            Kind.COMPILE,
            "line 7: a syntax error",
        ),
        ("m.c:5:2: error: 'x' undeclared (first use in this function)\n" + COMPILE, "", 10, Kind.API, "'x' undeclared"),
        ("m.c:2:2: error: expected ',' or ';' before 'return'\n", "", 10, Kind.COMPILE, "line 2: a syntax error"),
        ("m.c:2:2: error: expected ',' or ';' before 'DMA_BUF'\n", "", 10, Kind.COMPILE, "line 2: expected ',' or ';'"),
        ("m.c:4:1: error: expected declaration or statement at end of input\n", "", 10, Kind.COMPILE, "line 4: a syntax error"),
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
            "",
            10,
            Kind.COMPILE,
            "configure script stopped: cannot find a way",
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


# A line that shows the cause of each rule, in the order of the rules, and what the cause is about.
SHOWN = [
    ("as: a.o: No space left on device", ""),
    ("cp: cannot create x: Read-only file system", ""),
    ("/var/lib/dkms/m/1/build/make.log: No such file or directory", ""),
    ("cc1: out of memory allocating 5 bytes", ""),
    ("cc1: error: cannot load plugin ./plug.so: it is another compiler's", "./plug.so"),
    ("make: *** No rule to make target 'scripts/basic/fixdep', needed by 'x'.  Stop.", "scripts/basic/fixdep"),
    ("sh: 1: pahole: not found", ""),
    ("make[1]: *** [m.o] Terminated", ""),
    ("gcc: error: unrecognized command-line option '-fnew'", "-fnew"),
    ("gcc: fatal error: cannot execute 'cc1': execvp: No such file or directory", "cc1"),
    ("/bin/sh: 1: flex: not found", "flex"),
    ('ERROR: modpost: "gone" [m.ko] undefined!', "gone"),
    ("ERROR: modpost: GPL-incompatible module m.ko uses GPL-only symbol 'theirs'", "theirs"),
    ("ERROR: modpost: module m uses symbol s from namespace N, but does not import it.", "s"),
    ("ERROR: modpost: missing MODULE_LICENSE() in m.o", ""),
    ("/usr/src/linux-headers-6.1/Makefile:7: include/config/auto.conf: No such file or directory", ""),
    ("m.c:3:10: fatal error: linux/gone.h: No such file or directory", "linux/gone.h"),
    ("m.c:3:10: error: expected ';' before '}' token", ""),
    ("m.c:3:10: error: implicit declaration of function 'gone'", "gone"),
    ("m.c:3:10: error: division by zero in a constant", ""),
    ("Error! Your kernel headers for kernel 6.1 cannot be found at /lib/modules/6.1/build.", ""),
    ("make: *** /lib/modules/6.1/nothing: No such file or directory.  Stop.", ""),
    ("configure: error: no such kernel", ""),
    ("make: *** No rule to make target 'modulez'.  Stop.", ""),
    ("Makefile:3: *** set KDIR.  Stop.", ""),
    ("sign-file: /var/lib/dkms/mok.key: No such file or directory", ""),
    ("Error! Application of patch fix.patch failed.", ""),
    ("make: *** [Makefile:5: all] Error 2", ""),
]


@pytest.mark.parametrize(("rule", "line", "subject"), [(rule, *shown) for rule, shown in zip(RULES, SHOWN, strict=True)])
def test_each_rule_decides_for_its_own_words(rule: Rule, line: str, subject: str) -> None:
    cause = build_log.classify(f"make: Entering directory\n{line}\n", "", 10)
    assert (cause.kind, cause.subject, cause.cure) == (rule.kind, subject, rule.cure)
    assert cause.reason.startswith(rule.reason.partition("{")[0])
    assert cause.fix.startswith(rule.fix.partition("{")[0])
    assert cause.evidence == (line,)
    assert "{" not in (cause.reason + cause.fix).replace("${kernel_source_dir}", "")


def test_headers_are_what_somebody_else_knows_better() -> None:
    cures = {rule.kind: rule.cure for rule in RULES if rule.cure is not Cure.AS_SAID}
    assert cures == {Kind.TOOLS: Cure.REINSTALL_HEADERS, Kind.HEADERS: Cure.INSTALL_HEADERS}
    assert {rule.cure for rule in RULES} == set(Cure)


def test_what_a_makefile_asks_by_the_way_is_a_cause_only_if_it_was_needed() -> None:
    [missing] = [rule for rule in RULES if rule.reason == "a program that the build needs is missing: {1}"]
    assert missing.counts("sh: git: not found", 0)
    assert not missing.counts("sh: git: not found\nm.c:1:1: error: x", 0)
    assert missing.counts("sh: git: not found\nmake: *** [x] Error 127\nm.c:1:1: error: x", 0)
