# SPDX-License-Identifier: GPL-2.0-or-later
"""Every answer of the proof's checks as a whole: what was expected, what was found, the kernel's own words, and the cure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import elf
import kerneltree
import pytest
from kerneltree import KERNEL

from knetstatd.core.model import Check, Result
from knetstatd.formats import module_file
from knetstatd.formats.symvers import Export
from knetstatd.verify import loader_checks, target_kernel

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.formats.module_file import Module
    from knetstatd.verify.target_kernel import Target

PASS, FAIL, WARN, UNKNOWN, NA = Result.PASS, Result.FAIL, Result.WARN, Result.UNKNOWN, Result.NOT_APPLICABLE
BUILD, DEPMOD = f"Run: knetstatctl build {KERNEL}", f"Run: depmod {KERNEL}"
AGAIN = "6.1.0-2-amd64"
OTHER = elf.MAGIC.replace(KERNEL, AGAIN)
FLAGS = "SMP preempt mod_unload modversions"
COMPILER = "gcc-12 (Debian 12.2.0-14) 12.2.0"
SAID = "all exported, by /boot/image"


@pytest.fixture
def facts(tmp_path: Path) -> Target:
    kerneltree.make(tmp_path)
    return target_kernel.facts(tmp_path, KERNEL)


def module(**more: Any) -> Module:
    return module_file.parse(kerneltree.module(**more), "demo.ko")


def export(module: str = "", crc: int = 0, *, gpl: bool = False, namespace: str = "") -> Export:
    return Export(crc, f"drivers/{module}" if module else "vmlinux", gpl, namespace)


def answer(check: Check, result: Result, expected: str, found: str, *reason: str, fix: str = "") -> None:
    """The whole check; its reason has these words, or there is none."""
    assert check == Check(check.name, result, expected, found, check.reason, fix)
    assert bool(check.reason) == bool(reason)
    for words in reason:
        assert words in check.reason


def test_machine(facts: Target) -> None:
    amd64, arm64 = (f"{name}, 64 bits, little endian" for name in ("x86-64", "arm64"))
    answer(loader_checks.machine(module(), facts), PASS, "", amd64)
    answer(loader_checks.machine(module(machine=183), facts), FAIL, amd64, arm64, "another machine")
    unknown = facts._replace(machine=None)
    answer(loader_checks.machine(module(), unknown), UNKNOWN, "", amd64, "none of the kernel's own modules")
    assert loader_checks.machine(module(), facts).name == "machine"


def test_release(facts: Target) -> None:
    """Compiled for another kernel, and whether that matters, are two questions."""
    check = loader_checks.release
    answer(check(module(), facts), PASS, KERNEL, KERNEL)
    answer(check(module(vermagic=OTHER), facts), WARN, KERNEL, AGAIN, "CONFIG_MODVERSIONS", fix=BUILD)
    wordy = f"demo: version magic '{OTHER}' should be '{elf.MAGIC}'"
    answer(check(module(vermagic=OTHER, crcs=None), facts), FAIL, KERNEL, AGAIN, wordy, fix=BUILD)
    plain = facts._replace(modversions=False)
    answer(check(module(vermagic=OTHER), plain), FAIL, KERNEL, AGAIN, wordy, fix=BUILD)
    blind = facts._replace(modversions=None, witness=None, flags="")
    answer(check(module(vermagic=OTHER), blind), UNKNOWN, KERNEL, AGAIN, "cannot be seen", fix=BUILD)
    alone = plain._replace(witness=None, flags="")
    short = f"demo: version magic '{OTHER}' is not for {KERNEL}"
    answer(check(module(vermagic=OTHER), alone), FAIL, KERNEL, AGAIN, short, fix=BUILD)
    answer(check(module(vermagic="6\x1b.1 SMP"), plain), FAIL, KERNEL, "6?.1", "version magic '6\\x1b.1 SMP'", fix=BUILD)
    assert check(module(), facts).name == "release"


def test_no_vermagic(facts: Target) -> None:
    release, vermagic = loader_checks.release, loader_checks.vermagic
    answer(release(module(vermagic=None), facts), FAIL, KERNEL, "no vermagic", "'Exec format error'", fix=BUILD)
    forced = facts._replace(options=facts.options | {"MODULE_FORCE_LOAD"})
    answer(release(module(vermagic=None), forced), WARN, KERNEL, "no vermagic", "'bad vermagic: kernel tainted.'", fix=BUILD)
    assert release(module(vermagic=None), facts).name == release(module(vermagic=None), forced).name == "release"
    answer(vermagic(module(vermagic=None), facts), NA, FLAGS, "", "no vermagic")


def test_vermagic(facts: Target) -> None:
    check = loader_checks.vermagic
    answer(check(module(), facts), PASS, FLAGS, FLAGS)
    real_time = elf.MAGIC.replace("preempt", "preempt_rt")
    reason = f"version magic '{real_time}' should be '{elf.MAGIC}'"
    answer(check(module(vermagic=real_time), facts), FAIL, FLAGS, FLAGS.replace("preempt", "preempt_rt"), reason, fix=BUILD)
    answer(check(module(vermagic=f"{KERNEL} S\x1bP "), facts), FAIL, FLAGS, "S?P", "S\\x1bP", fix=BUILD)
    answer(
        check(module(), facts._replace(witness=None, flags="")), UNKNOWN, "", f" {FLAGS}", "none of the kernel's own modules"
    )
    assert check(module(), facts).name == "vermagic"


def test_struct_module(facts: Target) -> None:
    check = loader_checks.struct_module
    answer(check(module(), facts), PASS, "1280 bytes", "1280 bytes")
    answer(check(module(struct_size=896), facts), FAIL, "1280 bytes", "896 bytes", "section size must match", fix=BUILD)
    unknown = facts._replace(witness=None, flags="")
    answer(check(module(struct_size=896), unknown), UNKNOWN, "", "896 bytes", "none of the kernel's own modules")
    assert check(module(), facts).name == "struct-module"


def test_type_information(facts: Target) -> None:
    check, damaged = loader_checks.btf, module(more=[elf.Sec(".BTF", b"no", 0)])
    kind = "type information (BTF)"
    answer(check(module(), facts), NA, "", "", "no type information")
    answer(check(damaged._replace(btf=True), facts), PASS, "", "begins as type information does")
    answer(check(damaged, facts), NA, kind, "damaged", "does not read it")
    reads = facts._replace(options=frozenset({"DEBUG_INFO_BTF_MODULES"}))
    answer(check(damaged, reads), FAIL, kind, "damaged", "'failed to validate module [demo] BTF'", fix=BUILD)
    lenient = facts._replace(options=frozenset({"DEBUG_INFO_BTF_MODULES", "MODULE_ALLOW_BTF_MISMATCH"}))
    answer(check(damaged, lenient), WARN, kind, "damaged", "CONFIG_MODULE_ALLOW_BTF_MISMATCH", fix=BUILD)
    answer(check(damaged, reads._replace(configured=False)), UNKNOWN, kind, "damaged", "cannot be seen", fix=BUILD)
    assert check(damaged._replace(name="a\x1bb"), reads).reason == "'failed to validate module [a?b] BTF'"
    assert {check(one, facts).name for one in (module(), damaged)} == {"btf"}


class TestSymbols:
    def check(self, facts: Target, exports: dict[str, Export], **more: Any) -> Check:
        found = loader_checks.symbols(module(**more), facts, exports, "/boot/image")
        assert found.name == "symbols"
        return found

    def test_all_exported(self, facts: Target) -> None:
        answer(self.check(facts, {"printk": export()}), PASS, "1 symbols", SAID)
        answer(self.check(facts, {}, undefined=[], weak=["gone"]), PASS, "0 symbols", SAID)

    def test_not_exported(self, facts: Target) -> None:
        found = self.check(facts, {"printk": export()}, undefined=["a", "printk", "b"])
        answer(found, FAIL, "3 symbols", "a, b", "'Unknown symbol a'", fix=BUILD)

    def test_withheld(self, facts: Target) -> None:
        exports = {"free": export(), "printk": export(gpl=True)}
        cure = "Only the module's author can change that"
        for licence, said in (("X", "licence is 'X'"), (None, "licence is none"), ("X\x1b", "licence is 'X\\x1b'")):
            found = self.check(facts, exports, undefined=["printk", "free"], license=licence)
            answer(found, FAIL, "2 symbols", "printk", "GPL-compatible modules only", said, fix=cure)
        # Before what it does not export itself: that is the first thing that the kernel says.
        assert self.check(facts, exports, undefined=["gone", "printk"], license="X").found == "gone"

    @pytest.mark.parametrize("licence", ["GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MPL/GPL"])
    def test_free_licences(self, facts: Target, licence: str) -> None:
        assert self.check(facts, {"printk": export(gpl=True)}, license=licence).result is PASS

    def test_common(self, facts: Target) -> None:
        found = self.check(facts, {"printk": export()}, common=["loose"])
        cure = "Add -fno-common to the module's flags"
        answer(found, FAIL, "1 symbols", "loose", "'please compile with -fno-common'", fix=cure)

    def test_namespaces(self, facts: Target) -> None:
        exports = {"a": export(namespace="Z"), "b": export(namespace="Y"), "c": export(namespace="Z"), "d": export()}
        wanted = {"undefined": ["a", "b", "d"], "weak": ["c", "gone"]}
        reason, cure = "namespaces they belong to: Y, Z", "Add MODULE_IMPORT_NS() to the module's source"
        answer(self.check(facts, exports, **wanted), FAIL, "3 symbols", "a, b, c", reason, fix=cure)
        lenient = facts._replace(options=frozenset({"MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS"}))
        answer(self.check(lenient, exports, **wanted), WARN, "3 symbols", "a, b, c", f"{reason}; this kernel only warns")
        imported = wanted | {"info": {"import_ns": ["Y", "Z"]}}
        assert self.check(facts, exports, **imported).result is PASS
        # What is withheld from its licence is not found, so that its namespace is not looked at.
        exports["c"] = export(gpl=True, namespace="Z")
        assert self.check(facts, exports, **wanted, license="X").found == "a, b"

    @pytest.mark.parametrize(
        ("name", "namespace", "result"),
        [
            ("my-demo", "module:my-demo", PASS),
            ("my-demo", "module:my_d*", PASS),
            ("demo", "module:a,b,demo", PASS),
            ("demo", "module:demo*", PASS),
            ("demo", "module:*", PASS),
            ("demo", "module:dem", FAIL),
            ("demo", "module:demos*", FAIL),
            ("demo", "modules:demo", FAIL),
            ("demo", "x:module:demo", FAIL),
        ],
    )
    def test_namespaces_for_named_modules(self, facts: Target, name: str, namespace: str, result: Result) -> None:
        assert self.check(facts, {"printk": export(namespace=namespace)}, name=name).result is result

    @pytest.mark.parametrize(("machine", "result"), [(3, PASS), (62, PASS), (183, FAIL)])
    def test_a_name_that_binutils_leave_behind(self, facts: Target, machine: int, result: Result) -> None:
        found = self.check(facts, {}, undefined=["_GLOBAL_OFFSET_TABLE_"], machine=machine)
        assert found.result is result
        assert self.check(facts, {}, undefined=["_GLOBAL"], machine=machine).result is FAIL


def test_exports(facts: Target) -> None:
    check = loader_checks.exports
    own = module(exports=dict.fromkeys(("b", "a"), (1, "", "")))
    answer(check(module(), {"a": export()}), NA, "", "", "exports nothing")
    answer(check(own, {"a": export("demo"), "c": export()}), PASS, "", "2 symbols")
    mine = "names of its own"
    clash = {"a": export(), "b": export("other")}
    answer(check(own, clash), FAIL, mine, "a", "'exports duplicate symbol a'")
    rivals = {"a": export("other"), "b": export("net/an-other")}
    answer(check(own, rivals), WARN, mine, "b, a", "only one of the two can be loaded: an_other, other")
    assert {check(one, clash).name for one in (own, module())} == {"exports"}


def test_depends(facts: Target) -> None:
    check, uses = loader_checks.depends, module(undefined=["a", "b", "printk", "gone"], weak=["c"])
    exports = {"a": export("my-lib"), "b": export("came"), "c": export("big"), "printk": export()}
    none = "no other module of the kernel"
    answer(check(module(), facts, exports, ()), PASS, "", none)
    answer(check(uses, facts, exports, ["came"]), PASS, "big, my_lib", "installed")
    answer(check(uses, facts, exports, ["came", "big", "my_lib"]), PASS, "", none)
    answer(check(uses, facts, exports, ()), FAIL, "big, came, my_lib", "not installed: came", "are not installed")
    (facts.tables.tree / "modules.dep").unlink()
    bare = facts._replace(tables=type(facts.tables)(facts.tables.tree.parents[3], facts.tables.tree))
    answer(check(uses, bare, exports, ()), UNKNOWN, "big, came, my_lib", "", f"depmod has not run for {KERNEL}", fix=DEPMOD)
    assert {check(uses, each, exports, ()).name for each in (facts, bare)} == {"depends"}


class TestChecksums:
    EXPORTS = {"module_layout": export(crc=1), "printk": export(crc=2), "fn": export("came", 0), "weak": export(crc=4)}
    RIGHT = {"module_layout": 1, "printk": 2, "weak": 4}

    def check(self, facts: Target, *others: str, **more: Any) -> Check:
        exports = more.pop("exported", self.EXPORTS)
        one = module(**({"undefined": ["printk"], "weak": ["weak"]} | more))
        found = loader_checks.crcs(one, facts, exports, others)
        assert found.name == "crcs"
        return found

    def expected(self, count: int) -> str:
        return f"{count} checksums as in {KERNEL}"

    def test_equal(self, facts: Target) -> None:
        answer(self.check(facts, crcs=self.RIGHT), PASS, self.expected(3), "all equal")
        answer(self.check(facts, crcs=self.RIGHT | {"more": 9}, weak=["gone"]), PASS, self.expected(2), "all equal")

    def test_not_compared(self, facts: Target) -> None:
        answer(self.check(facts._replace(modversions=None)), UNKNOWN, "", "", "cannot be seen")
        answer(self.check(facts._replace(modversions=False)), NA, "", "", "it compares the release")

    def test_differ(self, facts: Target) -> None:
        found = self.check(facts, crcs={"module_layout": 1, "printk": 3, "weak": 5})
        reason = "'disagrees about version of symbol printk'"
        answer(found, FAIL, self.expected(3), "2 differ: printk, weak", reason, fix=BUILD)

    def test_missing(self, facts: Target) -> None:
        found = self.check(facts, crcs={"module_layout": 1, "weak": 4})
        answer(found, FAIL, self.expected(3), "1 missing: printk", "'no symbol version for printk'", fix=BUILD)
        found = self.check(facts, crcs={"module_layout": 7, "weak": 4})
        answer(found, FAIL, self.expected(3), "1 differ: module_layout; 1 missing: printk", "symbol module_layout'", fix=BUILD)

    def test_no_table(self, facts: Target) -> None:
        wanted = "a checksum for each symbol"
        answer(self.check(facts, crcs=None), FAIL, wanted, "none", "'Exec format error'", fix=BUILD)
        forced = facts._replace(options=frozenset({"MODULE_FORCE_LOAD"}))
        answer(self.check(forced, crcs=None), WARN, wanted, "none", "'module_layout: kernel tainted.'", fix=BUILD)

    def test_an_export_without_one_of_a_module_that_comes_with_it(self, facts: Target) -> None:
        both = {"undefined": ["printk", "fn"], "crcs": self.RIGHT}
        answer(self.check(facts, "came", **both), PASS, self.expected(3), "all equal")
        assert self.check(facts, **both).found == "1 missing: fn", "the kernel's own have checksums"
        exported = self.EXPORTS | {"fn": export("came", 8)}
        assert self.check(facts, "came", **both, exported=exported).found == "1 missing: fn"


def test_compiler(facts: Target) -> None:
    check, mine = loader_checks.compiler, elf.COMPILER
    answer(check(module(), facts), PASS, COMPILER, mine)
    newer = "GCC: (Debian 14.2.0-19) 14.2.0"
    install = f"Install gcc-12, then run: knetstatctl build {KERNEL}"
    answer(check(module(compiler=newer), facts), WARN, COMPILER, newer, "major version", fix=install)
    clang = facts._replace(compiler="Debian clang version 16.0.6 (27)")
    install = f"Install clang-16, then run: knetstatctl build {KERNEL}"
    answer(check(module(compiler=newer), clang), WARN, clang.compiler, newer, "Another compiler", fix=install)
    answer(check(module(compiler=""), facts), UNKNOWN, COMPILER, "", "from the module")
    answer(check(module(), facts._replace(compiler="")), UNKNOWN, "", mine, "from the kernel's configuration")
    answer(check(module(compiler="mine"), facts), UNKNOWN, COMPILER, "mine", "version cannot be read")
    answer(check(module(), facts._replace(compiler="mine")), UNKNOWN, "mine", mine, "version cannot be read")
    long = f"GCC: {'x' * 200} 12.1"
    assert check(module(compiler=long), facts).found == f"{long[:117]}..."
    assert {check(module(compiler=each), facts).name for each in (mine, newer, "", "mine")} == {"compiler"}


@pytest.mark.parametrize(
    ("words", "said"),
    [([], ""), (["a"], "a"), (list("abcde"), "a, b, c, d, e"), (list("abcdefg"), "a, b, c, d, e and 2 more"),
     (["x" * 101, "\x1b"], f"{'x' * 97}..., ?")],
)  # fmt: skip
def test_some(words: list[str], said: str) -> None:
    assert loader_checks.some(words) == said
