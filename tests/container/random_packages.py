# SPDX-License-Identifier: GPL-2.0-or-later
"""Random DKMS packages: each a dkms.conf with valid settings, in one of the ways in which people write them.

The same seed gives the same packages. Nothing of them is compiled: each .ko is a copy of one that was (see `KBUILD`), with the
package's own name and a digest of its source, so that five hundred packages take minutes.
"""

from __future__ import annotations

import random
import re
import textwrap
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .rig import Container, Kernel

MODEL = "ktrandom0a"  # the module that was compiled; as long as the name of each other
STAMP = "stamp-00000000"
MODEL_SOURCE = f"""\
#include <linux/module.h>
#include <linux/slab.h>
static void *kept;
static int __init m_init(void) {{ kept = kmalloc(64, GFP_KERNEL); return kept ? 0 : -ENOMEM; }}
static void __exit m_exit(void) {{ kfree(kept); }}
module_init(m_init);
module_exit(m_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("{STAMP}");
"""
# Stands in for the kernel's build system. Beside each object's source there may be flags; an `#error` in it is one.
KBUILD = """\
#!/usr/bin/python3 -ISB
import hashlib, os, re, sys
where, model, target = sys.argv[1:4]
text = next(open(f"{where}/{n}").read() for n in ("Kbuild", "Makefile") if os.path.exists(f"{where}/{n}"))
for name in re.findall(r"\\S+\\.o\\b", " ".join(re.findall(r"^obj-m\\s*[:+]?=(.*)", text, re.M))):
    made = f"{where}/{name[:-2]}"
    if target == "clean":
        if os.path.exists(made + ".ko"):
            os.unlink(made + ".ko")
        continue
    source = open(made + ".c").read()
    if error := re.search("#error (.*)", source):
        print(f"{made}.c:{source[:error.start()].count(chr(10)) + 1}:2: error: #error {error[1]}", file=sys.stderr)
        sys.exit(2)
    stamp = hashlib.sha256((source + os.environ.get("FLAGS", "")).encode()).hexdigest()[:8]
    data = open(model, "rb").read()
    data = data.replace(b"@MODEL@", os.path.basename(made).encode()).replace(b"@STAMP@", b"stamp-" + stamp.encode())
    open(made + ".ko", "wb").write(data)
    print("  LD [M] ", made + ".ko")
open(f"{where}/Module.symvers", "w").close()
"""
# The original line stays, for who reads it to find the common headers.
HEADERS_MAKEFILE = """\
{before}
else
export FLAGS
modules clean: ; @/usr/local/lib/kt-kbuild $(M) {model} $@
.PHONY: modules clean
endif
"""
ARCH = "x86_64"


def prepare(c: Container, kernel: Kernel) -> None:
    """Compiles the model for a kernel, and puts the quick build system in the place of the kernel's."""
    tree, model = c.path(f"/lib/modules/{kernel.release}"), f"/usr/local/lib/kt-model-{kernel.release}.ko"
    c.write(f"/srv/model/{MODEL}.c", MODEL_SOURCE)
    c.write("/srv/model/Makefile", f"obj-m := {MODEL}.o\nccflags-y := -g\n")
    c.run(["make", "-C", f"/lib/modules/{kernel.release}/build", "M=/srv/model", "modules"], check=True)
    c.path(model).write_bytes(c.path(f"/srv/model/{MODEL}.ko").read_bytes())
    c.write("/usr/local/lib/kt-kbuild", KBUILD.replace("@MODEL@", MODEL).replace("@STAMP@", STAMP), 0o755)
    makefile = c.path(f"/usr/src/linux-headers-{kernel.release}/Makefile")
    lines = makefile.read_text().rstrip("\n")
    before = "\n".join(f"ifdef KT_NEVER\n{line}\nendif" if line.startswith("include") else line for line in lines.splitlines())
    makefile.write_text(HEADERS_MAKEFILE.format(before=f"{before}\nifdef KT_NEVER", model=model))
    # depmod reads each file of a tree: a few are enough.
    for path in sorted((tree / "kernel").rglob("*.ko*"))[40:]:
        path.unlink()
    c.run(["depmod", kernel.release], check=True)


class Package(NamedTuple):
    """A package. files: of its source, and of /etc/dkms, by absolute path: the text, and whether it can be run.

    after: the packages that it is built after.  note: what is special about it, for who reads of a difference.
    """

    name: str
    version: str
    files: dict[str, tuple[str, bool]]
    after: tuple[str, ...]
    note: tuple[str, ...]


def packages(seed: int, count: int, kernel: str) -> list[Package]:
    """The packages of a seed."""
    chance = random.Random(seed)
    made: list[Package] = []
    for number in range(count):
        made.append(_Writer(chance, number, kernel, [p.name for p in made[-3:]]).package())
    return made


class _Writer:
    """Writes one package."""

    def __init__(self, chance: random.Random, number: int, kernel: str, before: Sequence[str]) -> None:
        self.chance, self.number, self.kernel, self.before = chance, number, kernel, before
        self.name = f"{chance.choice(['kt', 'kt-gen', 'kt_gen', 'Kt.gen'])}{number:03}"
        self.version = chance.choice(["1.0", "0.1-2", "2.3~rc1", "20240101+git1", "1.0.0.4711", "v7"])
        self.source = f"/usr/src/{self.name}-{self.version}"
        self.files: dict[str, tuple[str, bool]] = {}
        self.note: list[str] = []
        self.lines: list[str] = []
        self.after: tuple[str, ...] = ()

    def often(self, share: float) -> bool:
        return self.chance.random() < share

    def package(self) -> Package:
        count = self.chance.choice([1, 1, 1, 1, 2, 2, 3])
        # Ten characters, as the model's has.
        modules = [f"kt{self.chance.choice(['mod_', 'dev_'])}{self.number:03}{'abc'[i]}" for i in range(count)]
        places = [self.chance.choice(["", "", ".", "./", "sub", "sub/", "sub/deep"]) for _ in modules]
        self._sources(modules, places)
        groups = [
            self._head(), self._modules(modules, places), self._make(), self._exclusive(), self._scripts(),
            self._patches(modules, places), self._others(),
        ]  # fmt: skip
        self.chance.shuffle(groups)
        lines = [line for group in groups for line in group]
        head = [line for line in lines if line.startswith("#!first ")]
        text = "".join(f"{line.removeprefix('#!first ')}\n" for line in (*head, *(line for line in lines if line not in head)))
        if self.often(0.03) and not re.search(
            r"[\\;{]\n|\bdo\n|\bin\n| \n|&& ", text
        ):  # in such a line bash takes the CR for a word
            text = text.replace("\n", "\r\n")
            self.note.append("CRLF")
        self._put("dkms.conf", text)
        self._overrides(modules)
        return Package(self.name, self.version, self.files, self.after, tuple(self.note))

    def _put(self, name: str, text: str, run: bool = False) -> None:
        self.files[name if name.startswith("/") else f"{self.source}/{name}"] = (text, run)

    def _quoted(self, value: str) -> str:
        """A value in one of the ways of quoting it, which all mean the same to a shell."""
        ways = [f'"{value}"', f'"{value}"', f"'{value}'" if "'" not in value and "$" not in value else f'"{value}"']
        if value and not set(value) & set(" $'\"\\()*?[]!#&;<>|~^"):
            ways.append(value)
        return self.chance.choice(ways)

    def _set(self, name: str, value: str, index: int | None = None) -> str:
        where = "" if index is None else f"[{index}]"
        comment = self.chance.choice(["", "", "", "  # as it is", " "])
        return f"{name}{where}={self._quoted(value)}{comment}"

    # -- the parts of dkms.conf -------------------------------------------------------------------------------------------

    def _head(self) -> list[str]:
        match self.chance.randrange(8):
            case 3:
                return [f'#!first PACKAGE_VERSION="$(echo {self.version})"', self._first("PACKAGE_NAME", self.name)]
            case 0:
                first = f"#!first ver={self._quoted(self.version)}"
                return [first, '#!first PACKAGE_VERSION="$ver"', self._first("PACKAGE_NAME", self.name)]
            case 1:
                version = f'#!first PACKAGE_VERSION="{self.version}"'
                return [self._first("PACKAGE_NAME", self.name), version, "# A comment, and an empty line", ""]
            case 2:
                first = f"#!first _n={self.name} _v='{self.version}'"
                return [first, "#!first PACKAGE_NAME=$_n", "#!first PACKAGE_VERSION=${_v}"]
            case _:
                return [self._first("PACKAGE_VERSION", self.version), self._first("PACKAGE_NAME", self.name)]

    def _first(self, name: str, value: str) -> str:
        return "#!first " + self._set(name, value)

    def _modules(self, modules: Sequence[str], places: Sequence[str]) -> list[str]:
        lines = []
        one = len(modules) == 1
        renamed = self.often(0.2)
        style = self.chance.choice(["index"] * 4 + ["array", "kernel", *([] if renamed else ["loop", "function"])])
        dests = [
            self.chance.choice(["/updates", "/updates/dkms", "/extra", "/kernel/drivers/net", "/kernel/extra/"])
            for _ in modules
        ]
        if style == "loop":
            self.note.append("loop")
            lines.append(f"i=0; for m in {' '.join(modules)}; do")
            lines += ['  BUILT_MODULE_NAME[$i]="$m"', f'  DEST_MODULE_LOCATION[i]="{dests[0]}"']
            lines += [f"  BUILT_MODULE_LOCATION[$i]={places[0] or '.'}"] if len(set(places)) == 1 else []
            lines += ["  i=$((i + 1))", "done"]
            if len(set(places)) > 1:
                lines += [f"BUILT_MODULE_LOCATION=({' '.join(p or '.' for p in places)})"]
        elif style == "function":
            self.note.append("function")
            lines += ["made() {", '  BUILT_MODULE_NAME[$1]="$2"; BUILT_MODULE_LOCATION[$1]=$3']
            lines += ["  DEST_MODULE_LOCATION[$1]=/updates", "}"]
            lines += [f"made {i} {module} {places[i] or '.'}" for i, module in enumerate(modules)]
        elif style == "kernel":
            self.note.append("by kernel")
            for i, (module, place, dest) in enumerate(zip(modules, places, dests, strict=True)):
                lines += ['case "$kernelver" in', f'  [4-5].*) BUILT_MODULE_NAME[{i}]="old" ;;']
                lines += [f'  *) BUILT_MODULE_NAME[{i}]="{module}" ;;', "esac"]
                where = f"DEST_MODULE_LOCATION[{i}]"
                lines += [f'[[ $kernelver =~ ^[67] ]] && {where}="{dest}" || {where}=/extra']
                lines += [f'BUILT_MODULE_LOCATION[{i}]="{place}"'] if place else []
        elif style == "array":
            lines.append(f"BUILT_MODULE_NAME=({' '.join(map(self._quoted, modules))})")
            lines.append(f"BUILT_MODULE_LOCATION=({' '.join(p or '.' for p in places)})")
            lines.append(f"DEST_MODULE_LOCATION=({' '.join(map(self._quoted, dests))})")
        else:
            for i, (module, place, dest) in enumerate(zip(modules, places, dests, strict=True)):
                index = None if one and self.often(0.3) else i
                lines.append(self._set("BUILT_MODULE_NAME", module, index))
                lines += [self._set("BUILT_MODULE_LOCATION", place, index)] if place else []
                lines.append(self._set("DEST_MODULE_LOCATION", dest, index))
        if renamed:
            self.note.append("renamed")
            lines += [self._set("DEST_MODULE_NAME", module.replace("kt", "kd", 1), i) for i, module in enumerate(modules)]
        if style == "index":
            self.chance.shuffle(lines)
        if self.often(0.25):
            which = self.chance.randrange(len(modules))
            lines.append(self._set("STRIP", self.chance.choice(["no", "yes", "n", "Y"]), which))
        return lines

    def _make(self) -> list[str]:
        build = self.chance.choice([
            "${dkms_tree}/${PACKAGE_NAME}/${PACKAGE_VERSION}/build", "$dkms_tree/$PACKAGE_NAME/$PACKAGE_VERSION/build",
            "${dkms_tree}/${module}/${module_version}/build", f"${{dkms_tree}}/{self.name}/{self.version}/build",
        ])  # fmt: skip
        flags = self.chance.choice(["", "", " FLAGS=-O2", " EXTRA=1 FLAGS=$kernelver"])
        commands = [
            f"make -C ${{kernel_source_dir}} M={build}{flags} modules",
            f"make{flags} -C $kernel_source_dir M={build}",
            f"make KVER=$kernelver{flags}",
            f"make all KDIR=/lib/modules/${{kernelver}}/build{flags}",
            f"cd {build} && make KVER=${{kernelver}}{flags}",
            f"true; make KVER=${{kernelver}}{flags}",
            f"env A=b make KDIR=$kernel_source_dir{flags}",
        ]
        lines = []
        match self.chance.randrange(8):
            case 0:
                pass  # dkms's own
            case 1:
                first, second = self.chance.sample(commands, 2)
                lines = [
                    f'MAKE[0]="{first}"',
                    f'MAKE[1]="{second}"',
                    self._set("MAKE_MATCH", self.chance.choice(["^6", "^5\\.4", "^[67]"]), 1),
                ]
            case 2:
                command = self.chance.choice(commands)
                lines = [f'MAKE[{self.chance.choice([0, 1])}]="{command}"', self._set("MAKE_MATCH", ".*", 1)]
            case 3:
                command = self.chance.choice(commands)
                before, _, after = command.partition(" ")
                lines = [f'MAKE="{before} \\', f'    {after}"']
            case 4:
                command = self.chance.choice(commands)
                lines = [f"MAKE[0]='{command}'"]
            case 5:
                lines = [f'if [ -n "$kernelver" ]; then MAKE="{self.chance.choice(commands)}"; else MAKE="false"; fi']
            case _:
                lines = [f'MAKE{self.chance.choice(["", "[0]"])}="{self.chance.choice(commands)}"']
        clean = self.chance.choice(
            [None, None, "true", "make clean", "rm -f *.o", f"make -C ${{kernel_source_dir}} M={build} clean", "false"]
        )
        return lines + ([f'CLEAN{self.chance.choice(["", "[0]"])}="{clean}"'] if clean else [])

    def _exclusive(self) -> list[str]:
        if not self.often(0.3):
            return []
        series = self.kernel.partition(".")[0]
        setting, value = self.chance.choice([
            ("BUILD_EXCLUSIVE_KERNEL", ".*"), ("BUILD_EXCLUSIVE_KERNEL", "^[5-9]\\."), ("BUILD_EXCLUSIVE_KERNEL", "^5\\.4"),
            ("BUILD_EXCLUSIVE_KERNEL", f"^({series}|5)\\.[0-9]+\\."), ("BUILD_EXCLUSIVE_ARCH", ARCH),
            ("BUILD_EXCLUSIVE_ARCH", "(i.86|x86_64)"), ("BUILD_EXCLUSIVE_ARCH", "aarch64"),
            ("BUILD_EXCLUSIVE_CONFIG", "CONFIG_MODULES"), ("BUILD_EXCLUSIVE_CONFIG", "!CONFIG_MODULES"),
            ("BUILD_EXCLUSIVE_CONFIG", "CONFIG_MODULES !CONFIG_NOT_THERE"), ("BUILD_EXCLUSIVE_CONFIG", "CONFIG_NOT_THERE"),
            ("BUILD_EXCLUSIVE_KERNEL_MIN", "5.4"), ("BUILD_EXCLUSIVE_KERNEL_MIN", "99.0"),
            ("BUILD_EXCLUSIVE_KERNEL_MAX", "99.0"), ("BUILD_EXCLUSIVE_KERNEL_MAX", "5.4.0"),
            ("OBSOLETE_BY", "99.0"), ("OBSOLETE_BY", "5.4.0"),
        ])  # fmt: skip
        self.note.append(f"{setting}={value}")
        return [f'{setting}="{value}"']

    def _scripts(self) -> list[str]:
        lines = []
        firmware = f"/lib/firmware/kt-{self.number:03}"
        for setting, share, texts in (
            ("PRE_BUILD", 0.15, [
                "echo '/* made */' >>gen.h\n", "sed -i 's/int x/int y/' *.c 2>/dev/null; true\n", "echo cannot; exit 3\n",
            ]),
            ("POST_BUILD", 0.12, ["echo built\n", f'echo x >"$1/{ARCH}/kt-left"\n', "exit 7\n"]),
            ("PRE_INSTALL", 0.1, ["true\n", f"mkdir -p {firmware} && echo pre >{firmware}/pre\n", "exit 5\n"]),
            ("POST_INSTALL", 0.15, [
                f"mkdir -p {firmware} && cp fw.bin {firmware}/\n",
                f"echo 'options kt x=1' >/etc/modprobe.d/kt-{self.number:03}.conf\n", "exit 9\n",
            ]),
        ):  # fmt: skip
            if not self.often(share):
                continue
            text = self.chance.choice(texts)
            script = self.chance.choice([f"{setting.lower()}.sh", f"scripts/{setting.lower()}", f"dkms-{setting.lower()}.sh"])
            can_run = self.often(0.93)
            self._put(script, f"#!/bin/sh\n{text}", can_run)
            self._put("fw.bin", f"firmware of {self.name}\n")
            self.note.append(f"{setting}: {text.strip()}{'' if can_run else ' (cannot be run)'}")
            argument = (
                " ${dkms_tree}/${PACKAGE_NAME}/${PACKAGE_VERSION}/${kernelver}" if "$1" in text or self.often(0.3) else ""
            )
            lines.append(f'{setting}="{script}{argument}"' if argument else self._set(setting, script))
        return lines

    def _patches(self, modules: Sequence[str], places: Sequence[str]) -> list[str]:
        lines = []
        path = "/".join(part for part in (*places[0].strip("./").split("/"), f"{modules[0]}.c") if part)
        for i in range(self.chance.choice([0, 0, 0, 0, 1, 1, 2])):
            line = self.chance.choice([f"int patched{i};", f"int patched{i};", "int other;"]) if i == 0 else f"int patched{i};"
            fits = self.often(0.9)
            # Each replaces a line of its own, with the line after it.
            patch = f"@@ -{1 + 2 * i},2 +{1 + 2 * i},2 @@\n-int before{i if fits else 9};\n+{line}\n int after{i};\n"
            self._put(f"patches/fix-{i}.patch", f"--- a/{path}\n+++ b/{path}\n{patch}")
            lines.append(self._set("PATCH", f"fix-{i}.patch", i))
            if self.often(0.4):
                match = self.chance.choice(["^[67]", "^5\\.4", ".*"])
                lines.append(f'PATCH_MATCH[{i}]="{match}"')
            if not fits:
                self.note.append("patch that does not fit")
        self.chance.shuffle(lines)
        return lines

    def _others(self) -> list[str]:
        value = self.chance.choice(["yes", '"yes"', "YES", "'Yes'", '"no"'])
        lines = [f"AUTOINSTALL={value}"] if self.often(0.8) else []
        lines += ['MODULES_CONF[0]="alias kt off"'] if self.often(0.05) else []
        lines += ['REMAKE_INITRD="no"'] if self.often(0.1) else []
        lines += ['NO_WEAK_MODULES="yes"'] if self.often(0.05) else []
        lines += ['BUILD_DEPENDS_REBUILD="yes"'] if self.often(0.05) else []
        lines += ["# " + "x" * 60, ""] if self.often(0.3) else []
        if self.before and self.often(0.15):
            self.after = tuple(self.chance.sample(self.before, min(len(self.before), self.chance.choice([1, 1, 2]))))
            lines += [f'BUILD_DEPENDS[{i}]="{name}"' for i, name in enumerate(self.after)]
        elif self.often(0.02):
            lines.append('BUILD_DEPENDS[0]="kt-nowhere"')
            self.note.append("depends on nothing that is there")
        return lines

    # -- beside it --------------------------------------------------------------------------------------------------------

    def _sources(self, modules: Sequence[str], places: Sequence[str]) -> None:
        objects = []
        for module, place in zip(modules, places, strict=True):
            path = "/".join(part for part in (*place.strip("./").split("/"), module) if part)
            objects.append(f"{path}.o")
            lines = [line for i in range(3) for line in (f"int before{i};", f"int after{i};")]
            self._put(
                f"{path}.c", "\n".join([*lines, f"int x_{module};", *(["#error broken"] if self.often(0.03) else []), ""])
            )
        by_hand = "KVER ?= $(shell uname -r)\nKDIR ?= /lib/modules/$(KVER)/build\n"
        by_hand += "all:\n\t$(MAKE) -C $(KDIR) M=$(CURDIR) FLAGS=$(FLAGS) modules\nclean:\n\trm -f *.ko\n"
        if self.often(0.3):
            self._put("Kbuild", f"obj-m := {' '.join(objects)}\n")
            self._put("Makefile", by_hand)
        else:
            text = "".join(f"obj-m += {name}\n" for name in objects)
            self._put("Makefile", f"{text}{by_hand}")

    def _overrides(self, modules: Sequence[str]) -> None:
        if not self.often(0.15):
            return
        version = f"{self.name}-{self.version}"
        names = [
            self.name,
            version,
            f"{version}-{self.kernel}",
            f"{version}-{self.kernel}-{ARCH}",
            f"{self.name}--{self.kernel}",
        ]
        for name in self.chance.sample(names, self.chance.choice([1, 1, 2])):
            text = self.chance.choice([
                'MAKE[0]+=" FLAGS=-Oover"\n', 'STRIP[0]="no"\n', 'AUTOINSTALL=""\n', "# nothing\n", 'CLEAN="true"\n',
                f'DEST_MODULE_NAME[0]="{modules[0].replace("kt", "ko", 1)}"\n', "unset PATCH\n", 'PATCH_MATCH[0]="^9"\n',
                'BUILD_EXCLUSIVE_KERNEL="^[0-9]"\n',
            ])  # fmt: skip
            self._put(f"/etc/dkms/{name}.conf", text)
            self.note.append(f"/etc/dkms/{name}.conf: {text.strip()}")


def texts(package: Package) -> Iterator[str]:
    """A package as text, for who has to find out."""
    for path, (text, _) in sorted(package.files.items()):
        if path.endswith(("dkms.conf", ".sh", ".patch")) or path.startswith("/etc") or "/scripts/" in path:
            yield f"--- {path}\n{textwrap.indent(text, '    ')}"
