# SPDX-License-Identifier: GPL-2.0-or-later
"""Causes of failed builds, judged on logs that real failures have just written: real dkms, kernels' headers, make, gcc.

Each case makes one thing wrong, runs `dkms build`, and says which cause is to be named, with which words, on which line of the
log, and which cure. No log is kept: dkms, gcc and the kernels of the day write them anew each time.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from knetstatd.core.model import Kind, Retry
from knetstatd.diagnosis import build_log, compare_kernels

from . import product

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .rig import Container, Kernel

CONF = """PACKAGE_NAME="{package}"
PACKAGE_VERSION="1.0"
BUILT_MODULE_NAME[0]="{name}"
BUILT_MODULE_LOCATION[0]="."
DEST_MODULE_LOCATION[0]="/updates"
"""
BUILD = "${dkms_tree}/${PACKAGE_NAME}/${PACKAGE_VERSION}/build"
MAKE = f"make -C ${{kernel_source_dir}} M={BUILD} modules"
BY_HAND = "all:\n\t$(MAKE) -C $(KDIR) M=$(CURDIR) modules\n"
PLUGIN = "obj-m := {name}.o\nccflags-y := -fplugin=$(src)/p.so\n$(obj)/{name}.o: $(src)/p.so\n$(src)/p.so: $(src)/p.c\n"
PLUGIN += "\tgcc -shared -fPIC -o $@ $<\n"
KILL = "while sleep 0.1; do pkill -KILL -x cc1; done &\nmake -C $1 M=$PWD modules; e=$?; kill $!; exit $e\n"
# What is asked by the way, and fails, and does no harm.
ASKS = "A := $(shell nothere-git describe)\nB := $(shell nothere-release -d; true)\nC := $(shell mkdir /sys/kt)\n"
QUOTED = '\tstatic struct class *c;\n\tif (c)\n\t\tpr_err("%p: {}", c->owner);'
PATCH = "--- a/{name}.c\n+++ b/{name}.c\n@@ -1,2 +1,2 @@\n-not there\n+x\n y\n"
# Sixty million numbers: what a compiler needs much memory and time for.
HUGE = "#define B0 1,2,3,4,\n" + "".join(f"#define B{i} {f'B{i - 1} ' * 4}\n" for i in range(1, 13)) + "int kt_a[] = { B12 };\n"


def function(body: str, head: str = "") -> str:
    return f"{head}\nint kt_f(void);\nint kt_f(void)\n{{\n{body}\n\treturn 0;\n}}\n"


class Case(NamedTuple):
    """kernel: "first" (of the suite's oldest series) or "last" (of its newest).  {name}, {package}, {release}: filled in.

    reason, fix: patterns that what is said must fit.  evidence: one that a quoted line must fit.
    damage: what is wrong with the machine for the length of the build.  suites: where it can be caused.
    """

    name: str
    kind: Kind
    reason: str
    fix: str
    evidence: str
    body: str = ""
    kernel: str = "first"
    files: Mapping[str, str] = {}
    make: str = MAKE
    conf: str = ""
    licence: str = "GPL"
    damage: Callable[[Container, Kernel, Path], contextlib.AbstractContextManager[object]] | None = None
    suites: tuple[str, ...] = ("bookworm", "trixie")


@contextlib.contextmanager
def away(*paths: Path) -> Iterator[None]:
    """Files that are not there."""
    there = [path for path in paths if path.is_symlink() or path.exists()]
    assert there, paths
    for path in there:
        path.rename(f"{path}.away")
    try:
        yield
    finally:
        for path in there:
            Path(f"{path}.away").rename(path)


@contextlib.contextmanager
def instead(path: Path, data: bytes) -> Iterator[None]:
    """Other contents of a file, or a file that was not there."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def headers(c: Container, kernel: Kernel) -> Path:
    return c.path(f"/usr/src/linux-headers-{kernel.release}")


def common(c: Container, kernel: Kernel) -> Path:
    return c.path((headers(c, kernel) / "Makefile").read_text().split("include ")[1].split("/Makefile")[0])


def kbuild(c: Container, kernel: Kernel) -> Path:
    return c.path("/usr/lib") / (headers(c, kernel) / "scripts").readlink().parent.name


@contextlib.contextmanager
def small(c: Container, package: str, size: str, option: str = "rw") -> Iterator[None]:
    """A small file system under a package's directory in dkms's tree."""
    place = f"/var/lib/dkms/{package}"
    c.run(["mkdir", "-p", place], check=True)
    c.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    script = "mkdir -p $1/1.0/build; ln -sn /usr/src/$2-1.0 $1/1.0/source; mount -o remount,$3 $1"
    c.run(["sh", "-ec", script, "sh", place, package, option], check=True)
    try:
        yield
    finally:
        c.run(["umount", place], check=True)


@contextlib.contextmanager
def both(*managers: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


def compilers(c: Container, _: Kernel, __: Path) -> contextlib.AbstractContextManager[object]:
    found = [p for p in c.path("/usr/bin").iterdir() if re.fullmatch(r"(x86_64-linux-gnu-)?gcc(-\d+)?", p.name)]
    return away(*found)


@contextlib.contextmanager
def half_built(c: Container, kernel: Kernel, source: Path) -> Iterator[None]:
    (c.path(f"/var/lib/dkms/{source.name[:-4]}/1.0/{kernel.release}/x86_64/log")).mkdir(parents=True)
    yield


@contextlib.contextmanager
def no_source(c: Container, kernel: Kernel, source: Path) -> Iterator[None]:
    shutil.rmtree(source)
    yield


def symbol(pattern: str) -> str:
    return rf"modpost.*{pattern}"


API, SYMBOL, COMPILE = Kind.API, Kind.SYMBOL, Kind.COMPILE
PORT, REINSTALL = "get a newer version", "apt install --reinstall linux-kbuild-"
CASES = (
    # The kernel's interface has moved on.
    Case("implicit", API, r"implicit\.c line 7: implicit declaration of function .strlcpy.", PORT, "strlcpy",
         function('\tchar a[4];\n\tstrlcpy(a, "x", 4);', "#include <linux/string.h>"), "last"),
    Case("header", API, r"header\.c line 2 includes asm/unaligned\.h.*here it is linux/unaligned\.h", PORT, "asm/unaligned",
         "#include <asm/unaligned.h>", "last", suites=("bookworm",)),
    Case("member", API, r"member\.c line 3: .struct class. has no member named .owner.", PORT, "owner",
         '#include <linux/device.h>\nstruct class kt_c = { .name = "x", .owner = THIS_MODULE };', "last"),
    Case("toomany", API, r"toomany\.c line 6: too many arguments to function .class_create.", PORT, "class_create",
         function('\treturn IS_ERR(class_create(THIS_MODULE, "x"));', "#include <linux/device.h>"), "last"),
    Case("toofew", API, r'toofew\.c line 6: macro "class_create" requires 2', PORT, "class_create",
         function('\treturn IS_ERR(class_create("x"));', "#include <linux/device.h>"), suites=("bookworm",)),
    Case("operation", API, r"operation\.c line 4: initialization of .void \(\*\)\(struct platform_device", PORT, "incompatible",
         "#include <linux/platform_device.h>\nstatic int r(struct platform_device *p) { return 0; }\n"
         "static struct platform_driver d = { .remove = r };\nmodule_platform_driver(d);", "last"),
    Case("undeclared", API, r"undeclared\.c line 3: .no_llseek. undeclared.*", PORT, "no_llseek",
         "#include <linux/fs.h>\nconst struct file_operations kt_f = { .llseek = no_llseek };", "last"),
    Case("type", API, r"type\.c line 6: unknown type name .mm_segment_t.", PORT, "mm_segment_t",
         function("\tmm_segment_t fs;", "#include <linux/uaccess.h>"), "last"),
    Case("conflict", API, r"conflict\.c line 3: conflicting types for .kfree.", PORT, "kfree",
         "#include <linux/slab.h>\nint kfree(void *p);"),
    Case("static", API, r"static\.c line 3: static declaration of .kfree. follows", PORT, "kfree",
         "#include <linux/slab.h>\nstatic void kfree(const void *p) { }"),
    Case("redefined", API, r"redefined\.c line 3: redefinition of .size_mul.", PORT, "size_mul",
         "#include <linux/overflow.h>\nstatic inline size_t size_mul(size_t a, size_t b) { return a * b; }"),
    Case("iterate", API, r"iterate\.c line 4: .const struct file_operations. has no member named .iterate.", PORT, "iterate",
         "#include <linux/fs.h>\nstatic int it(struct file *f, struct dir_context *c) { return 0; }\n"
         "const struct file_operations kt_f = { .iterate = it };", "last"),
    Case("refuses", API, r'refuses\.c line 4: #error "too new"', PORT, "too new",
         '#include <linux/version.h>\n#if LINUX_VERSION_CODE > KERNEL_VERSION(6,0,0)\n#error "too new"\n#endif'),
    Case("flags", API, r".KT_OWN. undeclared.*; Makefile line 2 gives it by EXTRA_CFLAGS", "ccflags-y", "KT_OWN",
         function("\treturn KT_OWN;"), "last", files={"Makefile": "obj-m := {name}.o\nEXTRA_CFLAGS += -DKT_OWN=0\n"},
         suites=("trixie",)),
    Case("namespace-literal", API, r"line 2: .DMA_BUF. undeclared", PORT, "DMA_BUF", "MODULE_IMPORT_NS(DMA_BUF);", "last",
         suites=("trixie",)),
    Case("quoted-memory", API, r"quoted_memory\.c line \d+: .struct class. has no member named .owner.", PORT, "owner",
         function(QUOTED.format("out of memory"), "#include <linux/device.h>"), "last"),
    Case("quoted-disk", API, r"quoted_disk\.c line \d+: .struct class. has no member named .owner.", PORT, "owner",
         function(QUOTED.format("No space left on device"), "#include <linux/device.h>"), "last"),
    Case("asks", API, r"asks\.c line 7: implicit declaration of function .strlcpy.", PORT, "strlcpy",
         function('\tchar a[4];\n\tstrlcpy(a, "x", 4);', "#include <linux/string.h>"), "last",
         files={"Makefile": ASKS + "obj-m := {name}.o\n"}),
    # Symbols.
    Case("asks-symbol", SYMBOL, "does not export the symbol kt_nowhere", "KBUILD_EXTRA_SYMBOLS", symbol("kt_nowhere"),
         function("\treturn kt_nowhere();", "int kt_nowhere(void);"), files={"Makefile": ASKS + "obj-m := {name}.o\n"}),
    Case("nowhere", SYMBOL, "does not export the symbol kt_nowhere, and no header of it knows it", "KBUILD_EXTRA_SYMBOLS",
         symbol("kt_nowhere"), function("\treturn kt_nowhere();", "int kt_nowhere(void);")),
    Case("unexported", SYMBOL, r"kallsyms_lookup_name: include/linux/kallsyms\.h declares it, for the kernel's own use", PORT,
         symbol("kallsyms_lookup_name"),
         function('\treturn kallsyms_lookup_name("x") != 0;', "#include <linux/kallsyms.h>")),
    Case("dropped", SYMBOL, r"no longer exports the symbol {dropped}, which \S+ exports", PORT, symbol("{dropped}"),
         function("\t{dropped}();", "void {dropped}(void);"), "last"),
    Case("renamed", SYMBOL, r"no longer exports the symbol {renamed}, which \S+ exports.*; it exports \S*{renamed}_noprof",
         PORT, symbol("{renamed}"), function("\t{renamed}();", "#undef {renamed}\nvoid {renamed}(void);"), "last",
         suites=("bookworm",)),
    Case("gpl", SYMBOL, "licence does not allow the GPL-only symbol kobject_create_and_add", PORT, symbol("kobject_create"),
         function('\treturn !kobject_create_and_add("x", NULL);', "#include <linux/kobject.h>"), licence="Proprietary"),
    Case("gpl-newest", SYMBOL, "licence does not allow the GPL-only symbol kobject_create_and_add", PORT,
         symbol("kobject_create"), function('\treturn !kobject_create_and_add("x", NULL);', "#include <linux/kobject.h>"),
         "last", licence="Proprietary"),
    Case("namespace", SYMBOL, "symbol dma_buf_put is in namespace DMA_BUF", r'MODULE_IMPORT_NS\("DMA_BUF"\)',
         symbol("dma_buf_put"), function("\tdma_buf_put(NULL);", "#include <linux/dma-buf.h>")),
    Case("namespace-newest", SYMBOL, "symbol dma_buf_put is in namespace DMA_BUF", r'MODULE_IMPORT_NS\("DMA_BUF"\)',
         symbol("dma_buf_put"), function("\tdma_buf_put(NULL);", "struct dma_buf;\nvoid dma_buf_put(struct dma_buf *);"),
         "last"),
    Case("nowhere-newest", SYMBOL, "symbol kt_nowhere, and no header of it knows it", "EXTRA_SYMBOLS", symbol("kt_nowhere"),
         function("\treturn kt_nowhere();", "int kt_nowhere(void);"), "last"),
    # The module's own faults.
    Case("syntax", COMPILE, r"syntax\.c line 2: expected", "Correct the source", "expected", "int x y;"),
    Case("warning", COMPILE, r"warning\.c line 6: unused variable", "Correct the source", "unused",
         function("\tint unused;"), files={"Makefile": "obj-m := {name}.o\nccflags-y := -Wall -Werror\n"}),
    Case("own-header", API, "not have; no installed kernel has it", "Add the file", "gone.h", '#include "gone.h"'),
    Case("no-rule", COMPILE, r"how to make \S*gone\.o", "Makefile", "gone.o",
         files={"Makefile": "obj-m := {name}.o\n{name}-y := gone.o\n"}),
    Case("blob", COMPILE, r"how to make \S*lib\.o_shipped", "Makefile", "lib.o_shipped",
         files={"Makefile": "obj-m := {name}.o\n{name}-y := main.o lib.o_shipped\n", "main.c": ""}),
    Case("separator", COMPILE, "make stopped in line 2: missing separator", "Makefile", "separator",
         files={"Makefile": "obj-m := {name}.o\nall\n    echo\n"}),
    Case("error", COMPILE, "make stopped in line 1: set the version", "Makefile", "set the version",
         files={"Makefile": "$(error set the version)\n"}),
    Case("licence", COMPILE, r"has no MODULE_LICENSE", "Add MODULE_LICENSE", "MODULE_LICENSE", licence=""),
    Case("no-module", Kind.NO_MODULE, "did not make the module", "BUILT_MODULE_NAME", "kt_other",
         conf=CONF.replace('NAME[0]="{name}"', 'NAME[0]="kt_other"') + f'MAKE[0]="{MAKE}"\n'),
    # Headers and the kernel's directory.
    # It is asked from outside of the container, where its archive is not mounted: apt's list of that is a link into it.
    Case("no-headers", Kind.HEADERS, "does not find the kernel's headers", "to learn which package .* apt update", "headers",
         damage=lambda c, k, _: away(c.path(f"/lib/modules/{k.release}/build"))),
    Case("no-common", Kind.HEADERS, "incomplete: /usr/src/linux-headers-", "--reinstall linux-headers-{release} linux-",
         "common", damage=lambda c, k, _: away(common(c, k) / "Makefile")),
    Case("no-autoconf", Kind.HEADERS, "incomplete: .*autoconf.h", "apt install --reinstall linux-headers-{release}", "autoconf",
         damage=lambda c, k, _: away(headers(c, k) / "include/generated/autoconf.h")),
    Case("kernel-directory", Kind.KERNEL_DIR, "takes /usr/src/linux for", "kernel_source_dir", "/usr/src/linux",
         make="make KDIR=/usr/src/linux", files={"Makefile": BY_HAND}),
    Case("another-kernel's", Kind.KERNEL_DIR, "takes /lib/modules/5.0.0/build for", "kernel_source_dir", "5.0.0",
         make="make KDIR=/lib/modules/5.0.0/build", files={"Makefile": BY_HAND}),
    Case("empty-directory", Kind.KERNEL_DIR, "takes M=.* for the kernel's directory", "kernel_source_dir", "M=",
         make="make", files={"Makefile": BY_HAND}),
    Case("not-a-kernel", Kind.KERNEL_DIR, "takes /usr/share for the kernel's directory", "kernel_source_dir", "/usr/share",
         make="make KDIR=/usr/share", files={"Makefile": BY_HAND}),
    Case("old-include", Kind.KERNEL_DIR, "takes /usr/src/linux/Rules.make for", "kernel_source_dir", "Rules.make",
         make="make", files={"Makefile": "include /usr/src/linux/Rules.make\n"}),
    # The tools.
    Case("no-compiler", Kind.COMPILER, r"missing: \S*gcc\S*.*the kernel was compiled by \S*gcc", r"Run: apt install gcc-\d+$",
         "gcc", damage=compilers),
    Case("no-compiler-newest", Kind.COMPILER, r"missing: \S*gcc", r"Run: apt install gcc-\d+$", "gcc", "", "last",
         damage=compilers),
    Case("clang", Kind.COMPILER, "missing: clang-99", "Run: apt install clang-99", "clang-99",
         make=MAKE.replace("modules", "CC=clang-99 modules")),
    Case("option", Kind.COMPILER, r"does not know the option -fzero-init-padding-bits=all; the kernel was compiled by \S*gcc",
         "take the option out", "-fzero", files={"Makefile": "obj-m := {name}.o\nccflags-y := -fzero-init-padding-bits=all\n"}),
    Case("bison", Kind.COMPILER, "missing: bison", "apt install bison", "bison", make=f"make -C {BUILD} -f mk",
         files={"mk": "all:\n\tbison -d x.y\n"}),
    Case("flex", Kind.COMPILER, "missing: flex", "apt install flex", "flex", make="bash x.sh", files={"x.sh": "flex x\n"}),
    Case("no-fixdep", Kind.TOOLS, "build tool scripts/basic/fixdep is missing", REINSTALL, "fixdep",
         damage=lambda c, k, _: away(kbuild(c, k) / "scripts/basic/fixdep")),
    Case("no-objtool", Kind.TOOLS, "build tool ./tools/objtool/objtool is missing", REINSTALL, "objtool",
         damage=lambda c, k, _: away(kbuild(c, k) / "tools/objtool/objtool")),
    Case("no-modpost", Kind.TOOLS, "build tool scripts/mod/modpost is missing", REINSTALL, "modpost",
         damage=lambda c, k, _: away(kbuild(c, k) / "scripts/mod/modpost")),
    Case("no-plugin", Kind.TOOLS, r"cannot use the plugin \S*/nothere\.so", "plugin", "nothere",
         files={"Makefile": "obj-m := {name}.o\nccflags-y := -fplugin=$(src)/nothere.so\n"}),
    Case("old-plugin", Kind.TOOLS, r"cannot use the plugin \S*/p\.so", "made for this very compiler", "initialize plugin",
         files={"Makefile": PLUGIN, "p.c": "int plugin_is_GPL_compatible;\nint plugin_init(void *a, void *b) { return 1; }\n"}),
    Case("free-plugin", Kind.TOOLS, r"cannot use the plugin \S*/p\.so", "plugin", "GPL-compatible",
         files={"Makefile": PLUGIN, "p.c": "int plugin_init(void *a, void *b) { return 0; }\n"}),
    Case("btf", Kind.TOOLS, "type information", "vmlinux", "(?i)btf|pahole|vmlinux",
         damage=lambda c, k, _: instead(headers(c, k) / "vmlinux", b"junk\n")),
    Case("no-pahole", Kind.TOOLS, "type information", "pahole", "pahole",
         damage=lambda c, k, _: both(instead(headers(c, k) / "vmlinux", b"junk\n"), away(c.path("/usr/bin/pahole")))),
    # The machine.
    Case("disk", Kind.DISK, "disk is full", "df -h", "No space left",
         make="bash fill.sh ${kernel_source_dir}", files={"fill.sh": "cat /dev/zero >fill\nmake -C $1 M=$PWD modules\n"},
         damage=lambda c, k, source: small(c, source.name[:-4], "1m")),
    Case("read-only", Kind.READ_ONLY, "read-only", "Remount", "Read-only",
         damage=lambda c, k, source: small(c, source.name[:-4], "1m", "ro")),
    Case("memory", Kind.MEMORY, "out of memory", "more memory", "(?i)memory", HUGE,
         make=f"bash -c 'ulimit -v 150000; make -C ${{kernel_source_dir}} M={BUILD} modules'"),
    Case("cc1-killed", Kind.MEMORY, "out of memory", "journalctl -k", "Killed", HUGE, make="bash kill.sh ${kernel_source_dir}",
         files={"kill.sh": KILL}),
    Case("killed", Kind.INTERRUPTED, "was killed", "journalctl -k", "137|Killed", make="bash x.sh",
         files={"x.sh": "kill -9 $$\n"}),
    Case("terminated", Kind.INTERRUPTED, "was killed", "journalctl -k", "Terminated", make=f"make -C {BUILD} -f mk",
         files={"mk": "all:\n\tkill -TERM $$$$\n"}),
    # dkms.
    Case("exclusive", Kind.EXCLUDED, "BUILD_EXCLUSIVE", "BUILD_EXCLUSIVE", "BUILD_EXCLUSIVE|does not match",
         conf=CONF + f'MAKE[0]="{MAKE}"\nBUILD_EXCLUSIVE_KERNEL="^5\\."\n'),
    Case("exclusive-arch", Kind.EXCLUDED, "BUILD_EXCLUSIVE", "BUILD_EXCLUSIVE", "BUILD_EXCLUSIVE|does not match",
         conf=CONF + f'MAKE[0]="{MAKE}"\nBUILD_EXCLUSIVE_ARCH="^sparc"\n'),
    Case("exclusive-config", Kind.EXCLUDED, "BUILD_EXCLUSIVE", "BUILD_EXCLUSIVE", "BUILD_EXCLUSIVE|does not match",
         conf=CONF + f'MAKE[0]="{MAKE}"\nBUILD_EXCLUSIVE_CONFIG="CONFIG_NOT_THERE"\n'),
    Case("no-name", Kind.CONF, "does not accept the module's dkms.conf", "Correct dkms.conf", "PACKAGE_NAME",
         conf='PACKAGE_VERSION="1.0"\nBUILT_MODULE_NAME[0]="{name}"\nDEST_MODULE_LOCATION[0]="/updates"\n'),
    Case("no-place", Kind.CONF, "does not accept the module's dkms.conf", "Correct dkms.conf", "DEST_MODULE_LOCATION",
         conf='PACKAGE_NAME="{package}"\nPACKAGE_VERSION="1.0"\nBUILT_MODULE_NAME[0]="{name}"\n'),
    Case("patch", Kind.CONF, r"the patch a\.patch that dkms.conf names does not fit", "PATCH", "patch",
         conf=CONF + f'MAKE[0]="{MAKE}"\nPATCH[0]="a.patch"\n', files={"patches/a.patch": PATCH}),
    Case("half-built", Kind.DKMS_TREE, "without a module in it", "knetstatctl repair", "already", damage=half_built),
    Case("no-source", Kind.DKMS_TREE, "a source that does not exist", "repair", "dkms.conf|broken", damage=no_source),
)  # fmt: skip


def exports(c: Container, kernel: Kernel) -> set[str]:
    lines = (headers(c, kernel) / "Module.symvers").read_text().splitlines()
    return {line.split("\t")[1] for line in lines if line.split("\t")[2] == "vmlinux"}


def choose(c: Container, old: Kernel, new: Kernel) -> dict[str, str]:
    """Symbols that the newer kernel dropped and renamed, as the headers of the day have them."""
    before, after = exports(c, old), exports(c, new)
    gone = sorted(name for name in before - after if re.fullmatch(r"[a-z][a-z0-9_]{8,40}", name))
    renamed = [name for name in gone if f"{name}_noprof" in after]
    plain = [name for name in gone if not any(name in other for other in after)]
    return {"dropped": plain[0], "renamed": renamed[0] if renamed else ""}


def cause(c: Container, case: Case, kernel: Kernel, words: dict[str, str]) -> tuple[build_log.Cause, str]:
    """Makes it fail; returns what is said of it, and the log."""
    package, name = f"kt-{case.name}".replace("'", ""), f"kt_{case.name}".replace("-", "_").replace("'", "")
    words = {**words, "package": package, "name": name}

    def fill(text: str) -> str:
        for word, value in words.items():
            text = text.replace(f"{{{word}}}", value)
        return text

    source, tree = c.path(f"/usr/src/{package}-1.0"), c.path(f"/var/lib/dkms/{package}")
    licence = f'MODULE_LICENSE("{case.licence}");\n' if case.licence else ""
    code = f'#include <linux/module.h>\n{fill(case.body)}\n{licence}MODULE_DESCRIPTION("x");\n'
    files = {"Makefile": "obj-m := {name}.o\n", "{name}.c": code, **case.files}
    files["dkms.conf"] = case.conf or CONF + f'MAKE[0]="{case.make}"\n'
    for path, text in files.items():
        (source / fill(path)).parent.mkdir(parents=True, exist_ok=True)
        (source / fill(path)).write_text(fill(text) if text is not code else text)
    with case.damage(c, kernel, source) if case.damage else contextlib.nullcontext():
        mounted = c.run(["mountpoint", "-q", f"/var/lib/dkms/{package}"]).returncode == 0
        if not mounted and not (tree / "1.0/source").is_symlink():
            (tree / "1.0").mkdir(parents=True, exist_ok=True)
            (tree / "1.0/source").symlink_to(f"/usr/src/{package}-1.0")
        done = c.run(["dkms", "build", "-m", package, "-v", "1.0", "-k", kernel.release], env={"LC_ALL": "C"}, timeout=200)
        log = c.run(["cat", f"/var/lib/dkms/{package}/1.0/build/make.log"]).stdout
        output = done.stdout + done.stderr
        assert done.returncode != 0, f"{case.name} did not fail: {output}\n{log}"
        found = build_log.classify(log, output, done.returncode)
        return compare_kernels.refine(found, c.root, kernel.release, source), f"{output}\n{log}"


def faults(case: Case, found: build_log.Cause, log: str, words: dict[str, str]) -> Iterator[str]:
    """What is wrong with what was said."""

    def fill(text: str) -> str:
        for word, value in words.items():
            text = text.replace(f"{{{word}}}", re.escape(value))
        return text

    if found.kind is not case.kind:
        yield f"{found.kind}, not {case.kind}"
    for what, said, pattern in (("reason", found.reason, case.reason), ("fix", found.fix, case.fix)):
        if not re.search(fill(pattern), said):
            yield f"{what} {said!r} does not fit {fill(pattern)!r}"
    if not any(re.search(fill(case.evidence), line) for line in found.evidence):
        yield f"evidence {found.evidence} does not fit {fill(case.evidence)!r}"
    printable = "".join(ch if ch.isprintable() or ch == "\n" else "?" for ch in log.replace("\t", " "))
    for line in found.evidence:
        if line.removesuffix("...")[:390] not in printable:
            yield f"not in the log: {line!r}"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", ["bookworm", pytest.param("trixie", marks=pytest.mark.slow)], indirect=True)
def test_every_cause_is_named(machine: Container, tmp_path: Path) -> None:
    c = machine
    first, last = c.kernels()[0], c.kernels()[-1]
    for kernel in c.kernels()[1:]:
        c.install_kernel(kernel, image=False)
    chosen = choose(c, first, last)
    cases = [case for case in CASES if c.suite in case.suites]
    wrong, logs = [], set()
    for case in cases:
        kernel = last if case.kernel == "last" else first
        words = {**chosen, "release": kernel.release}
        try:
            found, log = cause(c, case, kernel, words)
        except AssertionError as e:
            wrong.append(f"{case.name}: {e}")
            continue
        (tmp_path / case.name).write_text(f"{found}\n{log}")
        logs.add(log)
        wrong += [f"{case.name}: {fault}" for fault in faults(case, found, log, words)]
    assert not wrong, "\n".join([*wrong, f"logs: {tmp_path}"])
    assert len(logs) == len(cases) >= 55


def test_a_licence_and_a_namespace_that_changed_between_kernels(machine: Container) -> None:
    """Symbols that the newer kernel gives to GPL modules only, and some that it has moved into a namespace."""
    c = machine
    first, last = c.kernels()[0], c.kernels()[-1]
    c.install_kernel(last, image=False)

    def table(kernel: Kernel) -> dict[str, tuple[str, str]]:
        rows = [line.split("\t") for line in (headers(c, kernel) / "Module.symvers").read_text().splitlines()]
        return {row[1]: (row[3], row[4]) for row in rows if row[2] == "vmlinux" and re.fullmatch(r"[a-z]\w+", row[1])}

    old, new = table(first), table(last)
    both = sorted(old.keys() & new.keys())
    closed = [s for s in both if old[s] == ("EXPORT_SYMBOL", "") and new[s] == ("EXPORT_SYMBOL_GPL", "")]
    moved = [s for s in both if not old[s][1] and new[s][1] and not new[s][1].lower().startswith("module:")]
    assert closed or moved
    for symbols, licence, words in ((closed, "Proprietary", "open to every licence"), (moved, "GPL", "in no namespace")):
        for number, name in enumerate(symbols[:2]):
            body = function(f"\t{name}();", f"void {name}(void);")
            case = Case(f"{licence.lower()}-{number}", SYMBOL, "", "", "", body, "last", licence=licence)
            found, _ = cause(c, case, last, {})
            assert found.subject == name
            assert f"in {first.release} it is {words}" in found.reason


def test_what_the_product_makes_of_it(machine: Container) -> None:
    """From the failed build to `explain`: kind, reason, evidence, cure, and whether another attempt can help."""
    c = machine
    kernel = c.kernels()[0]
    for name in ("undef", "slow"):
        c.add_fixture(name, autoinstall=False, files={"delay": "90\n"} if name == "slow" else None)
    product.install(c, ["kt-undef", "kt-slow"], compile_timeout_seconds=20)
    assert c.run(["knetstatctl", "build", kernel.release]).returncode == 1
    document = json.loads(c.output("knetstatctl", "explain", "--json", "running"))
    seen = {v["package"]: v["last_failure"] for v in document["verdicts"]}
    assert seen["kt-undef"]["kind"] == "undefined-symbol"
    assert "kt_undef_nowhere" in seen["kt-undef"]["reason"]
    assert any("kt_undef_nowhere" in line for line in seen["kt-undef"]["evidence"])
    assert seen["kt-undef"]["retry"] == str(Retry.NEVER)
    assert seen["kt-slow"]["kind"] == "timeout"
    assert "compile_timeout_seconds" in seen["kt-slow"]["fix"]
    assert seen["kt-slow"]["retry"] == str(Retry.TWICE)
    text = c.output("knetstatctl", "explain", "running")
    assert "Retry:   no: waiting does not heal this" in text


def test_two_dkms_at_once(machine: Container) -> None:
    """dkms has no lock. The one that loses is told of the other, not of the module's source."""
    c = machine
    kernel = c.kernels()[0]
    c.add_fixture("slow", autoinstall=False, files={"delay": "3\n"})
    argv = ["dkms", "build", "kt-slow/1.0", "-k", kernel.release]
    tree = c.path("/var/lib/dkms/kt-slow/1.0")
    said = []
    for delay in (1.0, 2.5, 4.0, 3.5, 3.0, 2.0):
        shutil.rmtree(tree / kernel.release, ignore_errors=True)
        first = c.start(argv, env={"LC_ALL": "C"})
        time.sleep(delay)
        results = [c.run(argv, env={"LC_ALL": "C"}), first.wait()]
        log = next((path.read_text() for path in [tree / "build/make.log"] if path.exists()), "")
        lost = [done for done in results if done.returncode]
        said += [build_log.classify(log, done.stdout + done.stderr, done.returncode) for done in lost]
        if any(cause.kind is Kind.FOREIGN_DKMS for cause in said):
            break
    kinds = [cause.kind for cause in said]
    assert Kind.FOREIGN_DKMS in kinds, said
    assert not {Kind.API, Kind.SYMBOL} & set(kinds), said
    assert Kind.FOREIGN_DKMS.retry is Retry.BACKOFF


def test_a_key_that_does_not_sign(machine: Container) -> None:
    """dkms goes on with an unsigned module, which this kernel takes. We do the same, and say so."""
    c = machine
    c.add_fixture("good", autoinstall=False)
    product.install(c, ["kt-good"])
    for name in ("mok.key", "mok.pub"):
        c.write(f"/var/lib/dkms/{name}", "no key\n")
    assert c.run(["knetstatctl", "build", "running"], timeout=200).returncode == 0
    found = product.verdict(c, "running")
    assert found["state"] == "ready"
    assert "it is not signed: sign-file failed" in found["reason"]
    assert "/var/lib/dkms/mok.key" in found["fix"]
    assert {name: c.path(f"/var/lib/dkms/{name}").read_text() for name in ("mok.key", "mok.pub")} == {
        "mok.key": "no key\n", "mok.pub": "no key\n"
    }  # fmt: skip


OWNER = """\
mok_signing_key="/root/keys/$kernelver.key"
mok_certificate="/root/keys/$kernelver.der"
"""


def test_an_owners_key(machine: Container) -> None:
    """It lies in /root, as very many do, one for each kernel: the daemon's unit signs with it, and keeps no copy."""
    c = machine
    kernel = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    c.path("/root/keys").mkdir(0o700)
    argv = ["openssl", "req", "-new", "-x509", "-nodes", "-days", "9", "-subj", "/CN=the owner", "-newkey", "rsa:2048"]
    pair = ["-keyout", f"/root/keys/{kernel.release}.key", "-outform", "DER", "-out", f"/root/keys/{kernel.release}.der"]
    c.run([*argv, *pair], check=True)
    before = {path.name: path.read_bytes() for path in c.path("/root/keys").iterdir()}
    c.write("/etc/dkms/framework.conf", OWNER)
    product.start(c, ["kt-good"])
    product.wait_ready(c, "running")
    assert c.output("modinfo", "-k", kernel.release, "-F", "signer", "kt_good") == "the owner"
    assert product.verdict(c, "running")["reason"] == ""
    assert {path.name: path.read_bytes() for path in c.path("/root/keys").iterdir()} == before
    product.wait("the copies are gone", lambda: not c.output("find", "/run/knetstatd-build/keys", "-type", "f"), 20)
    # Without its certificate the key stays as it is, and both are named.
    c.path(f"/root/keys/{kernel.release}.der").unlink()
    c.run(["sh", "-c", "echo >>/usr/src/kt-good-1.0/kt_good.c"], check=True)
    product.wait("it is said", lambda: "it is not signed" in product.verdict(c, "running")["reason"])
    reason = product.verdict(c, "running")["reason"]
    assert f"{kernel.release}.key is there" in reason
    assert f"{kernel.release}.der is not" in reason
    assert c.path(f"/root/keys/{kernel.release}.key").read_bytes() == before[f"{kernel.release}.key"]
    # When it is there again, what is installed is signed without a build.
    c.path(f"/root/keys/{kernel.release}.der").write_bytes(before[f"{kernel.release}.der"])
    assert "kt-good 1.0" in c.output("knetstatctl", "resign", kernel.release)
    assert c.output("modinfo", "-k", kernel.release, "-F", "signer", "kt_good") == "the owner"
    assert [v["reason"] for v in product.verdicts(c, "running")] == [""]
    assert product.kinds(c, kernel=kernel.release).count("stage-started") == 2
