# SPDX-License-Identifier: GPL-2.0-or-later
"""The proof: each check passes and fails for its own reason, and what cannot be known is never a pass."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import elf
import kerneltree
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kerneltree import CRCS, KERNEL
from keys import variable

from knetstatd.core.errors import LibraryMissing, ModuleFileError
from knetstatd.core.model import Check, Proof, Result
from knetstatd.machine import host, paths
from knetstatd.machine.host import Origin
from knetstatd.system import files
from knetstatd.verify import target_kernel, verify

if TYPE_CHECKING:
    from collections.abc import Mapping

PASS, FAIL, WARN, UNKNOWN, NA = Result.PASS, Result.FAIL, Result.WARN, Result.UNKNOWN, Result.NOT_APPLICABLE
OTHER = elf.MAGIC.replace("6.1.0-1", "6.1.0-2")
NO_CRCS = elf.MAGIC.replace("modversions ", "")
FORCE = "CONFIG_MODULE_FORCE_LOAD=y\n"
NAMES = (
    "file", "machine", "form", "release", "vermagic", "struct-module", "btf", "symbols", "exports", "depends", "crcs",
    "compression", "compiler", "signature",
)  # fmt: skip


def results(proof: Proof) -> dict[str, Result]:
    return {check.name: check.result for check in proof.checks}


def named(proof: Proof, name: str) -> Check:
    return next(check for check in proof.checks if check.name == name)


def judge(root: Path, data: bytes, others: list[Path] | None = None) -> Proof:
    path = root / "staged.ko"
    path.write_bytes(data)
    return verify.verify(root, KERNEL, path, others=others or [])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    kerneltree.make(tmp_path)
    return tmp_path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A kernel without MODVERSIONS."""
    kerneltree.make(tmp_path, modversions=False)
    return tmp_path


def test_a_good_module(root: Path) -> None:
    proof = judge(root, kerneltree.module(info={"version": "1.0"}))
    assert proof.loads
    assert proof.worst is None
    assert proof.path == str(root / "staged.ko")
    assert results(proof) == dict.fromkeys(NAMES, PASS) | {"exports": NA, "btf": NA, "signature": NA}
    assert named(proof, "file").found == "demo 1.0"
    kerneltree.kmod(root, b"gzread")
    assert judge(root, gzip.compress(kerneltree.module())).loads


def test_a_good_module_without_modversions(plain: Path) -> None:
    proof = judge(plain, kerneltree.module(vermagic=NO_CRCS, crcs=None))
    assert proof.loads
    assert named(proof, "crcs").result is NA


def test_not_a_module(root: Path) -> None:
    proof = judge(root, b"")
    assert results(proof) == {"file": FAIL}
    assert named(proof, "file").found == "is empty"
    assert not proof.loads
    assert results(verify.verify(root, KERNEL, root / "absent.ko")) == {"file": FAIL}


def test_machine(root: Path) -> None:
    proof = judge(root, kerneltree.module(machine=183))
    check = named(proof, "machine")
    assert (check.result, check.expected, check.found) == (
        FAIL,
        "x86-64, 64 bits, little endian",
        "arm64, 64 bits, little endian",
    )
    assert results(judge(root, kerneltree.module(bits=32)))["machine"] is FAIL


def test_another_release_is_a_warning_where_checksums_decide(root: Path) -> None:
    proof = judge(root, kerneltree.module(vermagic=OTHER))
    assert results(proof)["release"] is WARN
    assert proof.loads
    assert named(proof, "release")[2:4] == (KERNEL, "6.1.0-2-amd64")


def test_another_release_is_fatal_where_the_kernel_has_no_checksums(plain: Path) -> None:
    for crcs in (None, {"module_layout": 1}):
        proof = judge(plain, kerneltree.module(vermagic=OTHER.replace("modversions ", ""), crcs=crcs))
        others = dict.fromkeys(("exports", "btf", "crcs", "signature"), NA)
        assert results(proof) == dict.fromkeys(NAMES, PASS) | others | {"release": FAIL}
        expected = f"version magic '6.1.0-2-amd64 SMP preempt mod_unload ' should be '{KERNEL} SMP preempt mod_unload '"
        assert expected in named(proof, "release").reason
        assert not proof.loads


def test_another_release_is_fatal_where_the_module_has_no_checksums(root: Path) -> None:
    for ext_crcs in (None, CRCS):
        proof = judge(root, kerneltree.module(vermagic=OTHER, crcs=None, ext_crcs=ext_crcs))
        assert results(proof)["release"] is FAIL


def test_other_flags_are_fatal(root: Path, tmp_path: Path) -> None:
    magic = elf.MAGIC.replace("preempt", "preempt_rt")
    check = named(judge(root, kerneltree.module(vermagic=magic)), "vermagic")
    assert (check.result, check.expected, check.found) == (
        FAIL,
        "SMP preempt mod_unload modversions",
        "SMP preempt_rt mod_unload modversions",
    )
    assert f"version magic '{magic}' should be '{elf.MAGIC}'" in check.reason
    # The kernel compares the whole text: one space less is another text.
    assert results(judge(root, kerneltree.module(vermagic=elf.MAGIC.strip())))["vermagic"] is FAIL


def test_no_vermagic(root: Path) -> None:
    proof = judge(root, kerneltree.module(vermagic=None))
    assert (results(proof)["release"], results(proof)["vermagic"]) == (FAIL, NA)


def test_forced_loading(tmp_path: Path) -> None:
    kerneltree.make(tmp_path, config=FORCE)
    proof = judge(tmp_path, kerneltree.module(vermagic=None, crcs=None))
    assert (results(proof)["release"], results(proof)["crcs"]) == (WARN, WARN)
    assert "taints the kernel" in named(proof, "crcs").reason


def test_where_struct_module_has_its_functions(root: Path) -> None:
    check = named(judge(root, kerneltree.module(hook=328)), "struct-module")
    assert (check.result, check.expected, check.found) == (FAIL, "at byte 320", "at byte 328")
    assert "init_module is at another place" in check.reason
    assert results(judge(root, kerneltree.module(hook=0)))["struct-module"] is PASS  # it has none


def test_struct_module(root: Path) -> None:
    check = named(judge(root, kerneltree.module(struct_size=896)), "struct-module")
    assert (check.result, check.expected, check.found) == (FAIL, "1280 bytes", "896 bytes")


BTF = "CONFIG_DEBUG_INFO_BTF_MODULES=y\n"


@pytest.mark.parametrize(
    ("config", "result"),
    [("", NA), (BTF, FAIL), (f"{BTF}CONFIG_MODULE_ALLOW_BTF_MISMATCH=y\n", WARN), (None, UNKNOWN)],
)
def test_type_information(tmp_path: Path, config: str | None, result: Result) -> None:
    kerneltree.make(tmp_path, config=config or "")
    if config is None:
        (tmp_path / f"boot/config-{KERNEL}").unlink()
    whole = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 4, 4, 4) + bytes(8)
    for data, expected in (
        (None, NA),
        (b"", NA),
        (whole, UNKNOWN if result in (FAIL, UNKNOWN) else PASS),  # if the kernel insists, only a rehearsal tells of the rest
        (b"XX" + whole[2:], result),
        (whole[:2] + b"\2" + whole[3:], result),
        (whole[:3] + b"\1" + whole[4:], result),
        (whole[:-1], result),
        (whole[:20], result),
        (b"\0", result),
    ):
        more = [elf.Sec(".BTF", data, 0)] if data is not None else []
        proof = judge(tmp_path, kerneltree.module(more=more))
        assert results(proof)["btf"] is expected, data
        assert proof.holds(linked=True) == (expected is not FAIL)
        if data == whole:  # of the kernel's own it is taken for granted
            assert results(judge(tmp_path, kerneltree.module(more=more, info={"intree": "Y"})))["btf"] is PASS


def test_missing_symbols(root: Path) -> None:
    many = [f"gone_{number}" for number in range(8)]
    check = named(judge(root, kerneltree.module(undefined=["printk", *many])), "symbols")
    assert (check.result, check.expected) == (FAIL, "9 symbols")
    assert check.found == "gone_0, gone_1, gone_2, gone_3, gone_4 and 3 more"
    assert "'Unknown symbol gone_0'" in check.reason


def test_a_symbols_name_is_shown_as_one_line(root: Path) -> None:
    odd = "a\x1b[2J\nb"
    for check in judge(root, kerneltree.module(undefined=["printk", odd], crcs={odd: 1})).checks:
        assert all(text.isprintable() for text in (check.expected, check.found, check.reason, check.fix)), check


def test_weak_symbols_may_be_missing(root: Path) -> None:
    assert judge(root, kerneltree.module(weak=["gone"])).loads


def test_a_name_that_binutils_leave_behind(root: Path) -> None:
    assert judge(root, kerneltree.module(undefined=["printk", "_GLOBAL_OFFSET_TABLE_"])).loads
    arm = judge(root, kerneltree.module(undefined=["printk", "_GLOBAL_OFFSET_TABLE_"], machine=183))
    assert results(arm)["symbols"] is FAIL


@pytest.mark.parametrize(
    ("licence", "result"), [("GPL", PASS), ("Dual MIT/GPL", PASS), ("GPL v3", FAIL), ("Proprietary", FAIL), (None, FAIL)]
)
def test_licence(root: Path, licence: str | None, result: Result) -> None:
    crcs = {name: CRCS[name] for name in ("module_layout", "gpl_thing")}
    proof = judge(root, kerneltree.module(undefined=["gpl_thing"], crcs=crcs, license=licence))
    assert results(proof)["symbols"] is result
    # A weak reference finds nothing, which is allowed.
    assert results(judge(root, kerneltree.module(weak=["gpl_thing"], license=licence)))["symbols"] is PASS


def test_common_symbols(root: Path) -> None:
    check = named(judge(root, kerneltree.module(common=["loose"])), "symbols")
    assert (check.result, check.found) == (FAIL, "loose")


def test_namespaces(tmp_path: Path) -> None:
    kerneltree.make(tmp_path)
    crcs = {name: CRCS[name] for name in ("module_layout", "spaced")}
    module = kerneltree.module(undefined=["spaced"], crcs=crcs)
    assert results(judge(tmp_path, module))["symbols"] is FAIL
    assert judge(tmp_path, kerneltree.module(undefined=["spaced"], crcs=crcs, info={"import_ns": ["A", "SPACE"]})).loads
    config = "#\nCONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS=y\n"
    (tmp_path / f"boot/config-{KERNEL}").write_text(config)
    assert results(judge(tmp_path, module))["symbols"] is WARN


@pytest.mark.parametrize(
    ("namespace", "result"),
    [
        ("module:demo", PASS),
        ("module:a,demo", PASS),
        ("module:a,de*", PASS),
        ("module:my-demo,demo", PASS),
        ("module:dem", FAIL),
        ("module:", FAIL),
        ("demo", FAIL),
    ],
)
def test_namespaces_for_named_modules(root: Path, namespace: str, result: Result) -> None:
    exports = kerneltree.EXPORTS | {"printk": ("vmlinux", "EXPORT_SYMBOL", namespace)}
    (root / f"usr/src/linux-headers-{KERNEL}/Module.symvers").write_text(kerneltree.symvers(exports=exports))
    assert results(judge(root, kerneltree.module()))["symbols"] is result


def test_exports(root: Path) -> None:
    def exporting(name: str) -> Check:
        return named(judge(root, kerneltree.module(exports={name: (1, "", "")})), "exports")

    assert exporting("mine").result is PASS
    assert exporting("printk").result is FAIL
    assert "'exports duplicate symbol printk'" in exporting("printk").reason
    assert exporting("lib_fn").result is WARN
    replacing = judge(root, kerneltree.module("my-lib", exports={"lib_fn": (1, "", "")}))
    assert results(replacing)["exports"] is PASS


def uses_lib(crcs: Mapping[str, int] = CRCS) -> bytes:
    return kerneltree.module(undefined=["printk", "lib_fn"], crcs=crcs)


def test_modules_that_are_needed(root: Path) -> None:
    tree = root / "usr/lib/modules" / KERNEL
    check = named(judge(root, uses_lib()), "depends")
    assert (check.result, check.expected) == (PASS, "my_lib")
    kerneltree.tables(tree, "kernel/fs/big.ko:")
    check = named(judge(root, uses_lib()), "depends")
    assert (check.result, check.found) == (FAIL, "not installed: my_lib")
    (tree / "modules.dep").unlink()
    assert results(judge(root, uses_lib()))["depends"] is UNKNOWN


def test_modules_that_come_with_it(root: Path) -> None:
    other = root / "other.ko"
    uses = kerneltree.module(undefined=["printk", "fn"], crcs={**CRCS, "fn": 7})
    assert results(judge(root, uses, [other]))["symbols"] is FAIL
    for crc, crcs, result in ((7, CRCS, PASS), (8, CRCS, FAIL), (0, CRCS, PASS)):
        other.write_bytes(kerneltree.module("other", crcs=crcs, exports={"fn": (crc, "", "")}))
        proof = judge(root, uses, [other, root / "staged.ko"])
        assert (results(proof)["symbols"], results(proof)["depends"], results(proof)["crcs"]) == (PASS, PASS, result)
    other.write_bytes(b"")
    assert results(judge(root, uses, [other]))["symbols"] is FAIL


def test_a_module_that_replaces_the_kernels(root: Path) -> None:
    other = root / "my-lib.ko"
    exports = {"lib_fn": (0x999, "", ""), "printk": (0x999, "", "")}
    other.write_bytes(kerneltree.module("my-lib", exports=exports))
    assert results(judge(root, uses_lib(), [other]))["crcs"] is FAIL
    proof = judge(root, uses_lib(crcs={**CRCS, "lib_fn": 0x999}), [other])
    assert results(proof)["crcs"] is PASS
    other.write_bytes(kerneltree.module("unrelated", exports=exports))
    assert results(judge(root, uses_lib(), [other]))["crcs"] is PASS


def test_checksums_that_differ(root: Path) -> None:
    crcs = {"module_layout": 1, "printk": CRCS["printk"]}
    check = named(judge(root, kerneltree.module(crcs=crcs)), "crcs")
    assert (check.result, check.found) == (FAIL, "1 differ: module_layout")
    assert check.reason == "'disagrees about version of symbol module_layout'"
    # The kernel compares the whole word, of which the checksum is the lower half.
    wide = {"module_layout": CRCS["module_layout"], "printk": CRCS["printk"] | 1 << 32}
    assert named(judge(root, kerneltree.module(crcs=wide)), "crcs").found == "1 differ: printk"


def test_checksums_of_weak_symbols_count(root: Path) -> None:
    proof = judge(root, kerneltree.module(weak=["gpl_thing"], crcs={**CRCS, "gpl_thing": 1}))
    assert named(proof, "crcs").found == "1 differ: gpl_thing"


def test_checksums_that_are_missing(root: Path) -> None:
    check = named(judge(root, kerneltree.module(crcs={"module_layout": CRCS["module_layout"]})), "crcs")
    assert (check.result, check.found, check.reason) == (FAIL, "1 missing: printk", "'no symbol version for printk'")
    check = named(judge(root, kerneltree.module(crcs={"printk": 1})), "crcs")
    assert check.found == "1 differ: printk; 1 missing: module_layout"
    assert named(judge(root, kerneltree.module(crcs=None)), "crcs").result is FAIL


def test_extended_checksums_win(root: Path) -> None:
    wrong = {"module_layout": 1, "printk": 2}
    right = {name: CRCS[name] for name in wrong}
    assert results(judge(root, kerneltree.module(crcs=wrong, ext_crcs=right)))["crcs"] is PASS
    assert results(judge(root, kerneltree.module(crcs=right, ext_crcs=wrong)))["crcs"] is FAIL
    # What they leave out is let through.
    assert results(judge(root, kerneltree.module(crcs=right, ext_crcs={})))["crcs"] is PASS


@pytest.mark.spawns
def test_no_headers(tmp_path: Path) -> None:
    kerneltree.make(tmp_path, headers=False)
    kerneltree.offer(tmp_path, f"linux-headers-{KERNEL}")
    proof = judge(tmp_path, kerneltree.module())
    assert {name for name, result in results(proof).items() if result is UNKNOWN} == {"symbols", "crcs"}
    assert not proof.loads
    assert f"apt install linux-headers-{KERNEL}" in named(proof, "symbols").fix


def test_damaged_headers(root: Path) -> None:
    path = root / f"usr/src/linux-headers-{KERNEL}/Module.symvers"
    path.write_text("half a li")
    check = named(judge(root, kerneltree.module()), "crcs")
    assert (check.result, check.found) == (UNKNOWN, str(path))


def test_headers_of_another_build(root: Path) -> None:
    path = root / f"usr/src/linux-headers-{KERNEL}/Module.symvers"
    path.write_text(kerneltree.symvers(CRCS | {"module_layout": 5}))
    proof = judge(root, kerneltree.module(crcs={**CRCS, "module_layout": 5}))
    assert results(proof)["crcs"] is UNKNOWN
    assert "another build" in named(proof, "crcs").reason


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    proof = judge(tmp_path, kerneltree.module())
    unknown = ("machine", "vermagic", "struct-module", "symbols", "crcs", "compiler")
    assert results(proof) == dict.fromkeys(unknown, UNKNOWN) | {
        "file": PASS, "form": PASS, "release": PASS, "btf": NA, "signature": NA, "compression": PASS,
    }  # fmt: skip
    assert results(judge(tmp_path, kerneltree.module(vermagic=OTHER)))["release"] is UNKNOWN


def test_a_kernel_whose_modules_are_gone(root: Path) -> None:
    for path in (root / "usr/lib/modules" / KERNEL / "kernel").rglob("*.ko"):
        path.unlink()
    proof = judge(root, kerneltree.module())
    assert (results(proof)["vermagic"], results(proof)["crcs"]) == (UNKNOWN, PASS)
    (root / f"boot/config-{KERNEL}").write_text("#\n")
    found = judge(root, kerneltree.module(vermagic=OTHER))
    assert (results(found)["release"], results(found)["crcs"]) == (FAIL, NA)
    (root / f"boot/config-{KERNEL}").unlink()
    assert results(judge(root, kerneltree.module()))["crcs"] is UNKNOWN


@pytest.mark.parametrize(
    ("kernel", "module", "result"),
    [
        ("gcc-12 (Debian 12.2.0-14) 12.2.0", "GCC: (Debian 12.2.0-9) 12.1.0", PASS),
        ("x86_64-linux-gnu-gcc-12 (Debian 12.2.0-14) 12.2.0", "GCC: (crosstool-NG 1.25.0) 12.2.0", PASS),
        ("gcc-12 (Debian 12.2.0-14) 12.2.0", "GCC: (Debian 14.2.0-19) 14.2.0", WARN),
        ("gcc (GCC) 11.4.1 20230605 (Red Hat 11.4.1-2)", "GCC: (GNU) 11.4.1 20231218 (Red Hat 11.4.1-3)", PASS),
        ("Debian clang version 16.0.6 (27)", "Debian clang version 16.0.6 (27)", PASS),
        ("gcc (Debian) 16.1.0", "clang version 16.1.0", WARN),
        ("", "GCC: (Debian 12.2.0-14) 12.2.0", UNKNOWN),
        ("gcc-12 (Debian 12.2.0-14) 12.2.0", "", UNKNOWN),
        ("gcc of mine", "GCC: (Debian 12.2.0-14) 12.2.0", UNKNOWN),
    ],
)
def test_compiler(root: Path, kernel: str, module: str, result: Result) -> None:
    (root / f"boot/config-{KERNEL}").write_text(f'#\nCONFIG_MODVERSIONS=y\nCONFIG_CC_VERSION_TEXT="{kernel}"\n')
    proof = judge(root, kerneltree.module(compiler=module))
    assert results(proof)["compiler"] is result
    assert proof.loads  # a remark, whatever it says


def test_facts_are_read_once(root: Path) -> None:
    facts = target_kernel.facts(root, KERNEL)
    path = root / "staged.ko"
    path.write_bytes(kerneltree.module())
    assert verify.verify(root, KERNEL, path, facts=facts) == verify.verify(root, KERNEL, path)


def test_what_was_read_before_is_not_read_again(root: Path) -> None:
    """facts, host: a look is of one moment, so that proofs of modules that belong together rest on the same files."""
    tree, path = root / "usr/lib/modules" / KERNEL, root / "staged.ko"
    path.write_bytes(kerneltree.module())
    kerneltree.add(tree, "updates/demo.ko", kerneltree.module())
    facts, machine = target_kernel.facts(root, KERNEL), host.facts(root)
    for own in (tree / "kernel").rglob("*.ko"):
        own.unlink()
    (root / "etc/modprobe.d").mkdir(parents=True)
    (root / "etc/modprobe.d/x.conf").write_text("install demo /bin/false\n")
    assert results(verify.verify(root, KERNEL, path, facts=facts))["vermagic"] is PASS
    assert results(verify.verify(root, KERNEL, path))["vermagic"] is UNKNOWN
    [proof] = verify.prove(root, KERNEL, ["demo"], facts, machine)
    assert (results(proof)["vermagic"], results(proof)["modprobe"], proof.loads) == (PASS, PASS, True)
    [proof] = verify.prove(root, KERNEL, ["demo"])
    assert (results(proof)["vermagic"], results(proof)["modprobe"], proof.loads) == (UNKNOWN, FAIL, False)


def test_the_firmware_is_the_hosts(tmp_path: Path) -> None:
    kerneltree.make(tmp_path, config="CONFIG_MODULE_SIG=y\nCONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y\n")
    machine, path = host.facts(tmp_path), tmp_path / "staged.ko"
    path.write_bytes(kerneltree.module())
    variable(tmp_path, "SecureBoot", b"\1")
    assert results(verify.verify(tmp_path, KERNEL, path, host=machine))["signature"] is NA
    assert results(verify.verify(tmp_path, KERNEL, path))["signature"] is FAIL


def test_what_names_the_file_and_its_build(root: Path) -> None:
    """The proof's own fields: with the exports known, and without."""
    data = kerneltree.module("my-demo", info={"srcversion": "ABC", "version": "1\x1b"}, build_id="0102")
    whole = judge(root, data)
    assert (whole.path, whole.srcversion, whole.needed, whole.build_id, whole.module) == (
        str(root / "staged.ko"), "ABC", (), "0102", "my_demo",
    )  # fmt: skip
    assert named(whole, "file") == Check("file", PASS, found="my_demo 1?")
    next((root / "usr/src").glob("*/Module.symvers")).unlink()
    unknown = judge(root, data)
    assert (unknown[0], *unknown[2:]) == (whole[0], *whole[2:])
    assert [check.name for check in unknown.checks if check.result is UNKNOWN] == ["symbols", "crcs"]


def test_a_file_that_is_no_module_as_a_whole(root: Path) -> None:
    proof = judge(root, b"")
    build = f"Run: knetstatctl build {KERNEL}"
    assert proof == Proof(str(root / "staged.ko"), (Check("file", FAIL, "a kernel module", "is empty", "It is empty", build),))


@pytest.mark.spawns
def test_exports_that_cannot_be_known_as_a_whole(tmp_path: Path) -> None:
    kerneltree.make(tmp_path, headers=False)
    kerneltree.offer(tmp_path, f"linux-headers-{KERNEL}")
    cure = f"apt install linux-headers-{KERNEL}"
    for name in ("symbols", "crcs"):
        check = named(judge(tmp_path, kerneltree.module()), name)
        assert check[:4] == (name, UNKNOWN, "what the kernel exports", "not found")
        assert ("its headers are not installed" in check.reason, cure in check.fix) == (True, True)
    headers = tmp_path / f"usr/src/linux-headers-{KERNEL}"
    (headers / "include/generated").mkdir(parents=True)
    (headers / "include/generated/utsrelease.h").write_text(kerneltree.UTS_RELEASE.format(KERNEL))
    (headers / "Module.symvers").write_text(kerneltree.symvers(CRCS | {"printk": 5}))
    check = named(judge(tmp_path, kerneltree.module()), "symbols")
    assert check[:4] == ("symbols", UNKNOWN, "what the kernel exports", str(headers / "Module.symvers"))
    assert ("another build of this kernel" in check.reason, cure in check.fix) == (True, True)


class TestInstalled:
    """prove: the file that modprobe takes."""

    @pytest.fixture
    def tree(self, root: Path) -> Path:
        return root / "usr/lib/modules" / KERNEL

    def test_good(self, root: Path, tree: Path) -> None:
        path = kerneltree.add(tree, "updates/dkms/my-demo.ko", kerneltree.module("my-demo"))
        for name in ("my-demo", "my_demo"):
            proof = verify.prove(root, KERNEL, [name])[0]
            assert proof.loads
            assert proof.path == str(path)
            assert proof.checks[0] == Check("depmod", PASS, found=str(path))

    def test_nowhere(self, root: Path) -> None:
        proof = verify.prove(root, KERNEL, ["demo"])[0]
        assert (proof.path, results(proof)) == ("", {"file": FAIL})
        assert not proof.loads
        assert results(verify.prove(root, "6.9.9-no-such", ["demo"])[0]) == {"file": FAIL}

    def test_depmod_did_not_run_after_it(self, root: Path, tree: Path) -> None:
        path = kerneltree.add(tree, "updates/demo.ko", kerneltree.module())
        kerneltree.tables(tree, "kernel/lib/my-lib.ko:")
        proof = verify.prove(root, KERNEL, ["demo"])[0]
        assert (proof.path, proof.checks[0].result, results(proof)["crcs"]) == (str(path), FAIL, PASS)
        assert "modules.dep lacks it" in proof.checks[0].reason
        assert not proof.loads
        (tree / "modules.dep").unlink()
        assert "depmod has not run" in verify.prove(root, KERNEL, ["demo"])[0].checks[0].reason

    def test_the_file_is_gone(self, root: Path, tree: Path) -> None:
        path = kerneltree.add(tree, "updates/demo.ko", kerneltree.module())
        path.unlink()
        proof = verify.prove(root, KERNEL, ["demo"])[0]
        assert (proof.path, results(proof)) == ("", {"depmod": FAIL})
        assert proof.checks[0].expected == str(path)

    def test_each_answer_as_a_whole(self, root: Path, tree: Path) -> None:
        build, depmod = f"Run: knetstatctl build {KERNEL}", f"Run: depmod {KERNEL}"

        def first() -> Check:
            return verify.prove(root, KERNEL, ["my-demo"])[0].checks[0]

        reason = f"The module is not installed for {KERNEL}"
        assert first() == Check("file", FAIL, "my_demo.ko", "no such file", reason, build)
        before = (tree / "modules.dep").read_text().splitlines()
        path = kerneltree.add(tree, "updates/my-demo.ko", kerneltree.module("my-demo"))
        (tree / "modules.dep.bin").write_bytes(b"")
        reason = "modules.dep names it; modules.dep.bin, which modprobe reads, does not"
        assert first() == Check("depmod", FAIL, str(path), "nothing", reason, depmod)
        kerneltree.tables(tree, *before)
        assert first() == Check("depmod", FAIL, str(path), "nothing", first().reason, depmod)
        assert first().reason.startswith("modprobe does not find it: ")
        kerneltree.add(tree, "updates/my-demo.ko", b"").unlink()
        assert first() == Check("depmod", FAIL, str(path), "no such file", "modules.dep names a file that is gone", depmod)
        own = kerneltree.add(tree, "kernel/net/my-demo.ko", kerneltree.module("my-demo"))
        (tree / "modules.order").write_text("kernel/net/my-demo.ko\n")
        [proof] = verify.prove(root, KERNEL, ["my-demo"], origins={"my-demo": Origin("1.0")})
        reason = f"The module is not installed for {KERNEL}"
        assert proof.checks == (Check("file", FAIL, "my_demo.ko", f"{own}, the kernel's own", reason, build),)

    def test_the_order_of_its_checks(self, root: Path, tree: Path) -> None:
        path = kerneltree.add(tree, "updates/demo.ko", kerneltree.module(), "kernel/lib/my-lib.ko")
        [proof] = verify.prove(root, KERNEL, ["demo"])
        placed = ("winner", "origin", "contents", "modprobe", "boot", "initrd")
        assert set(results(proof)) == {"depmod", *NAMES, *placed}
        assert (proof.path, proof.needed) == (str(path), (str(tree / "kernel/lib/my-lib.ko"),))
        path.write_bytes(b"junk")
        [proof] = verify.prove(root, KERNEL, ["demo"])
        assert (proof.path, proof.needed) == (str(path), (str(tree / "kernel/lib/my-lib.ko"),))

    def test_half_of_depmods_work(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, "updates/demo.ko", kerneltree.module())
        (tree / "modules.dep.bin").write_bytes(b"updates/other.ko:")
        proof = verify.prove(root, KERNEL, ["demo"])[0]
        assert (results(proof)["depmod"], results(proof)["crcs"]) == (FAIL, PASS)

    def test_a_file_that_is_no_module(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, "updates/demo.ko", b"nonsense")
        assert results(verify.prove(root, KERNEL, ["demo"])[0]) == {"depmod": PASS, "file": FAIL}

    def test_with_a_module_of_the_same_package(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, "updates/other.ko", kerneltree.module("other", exports={"fn": (7, "", "")}))
        uses = kerneltree.module(undefined=["printk", "fn"], crcs={**CRCS, "fn": 7})
        kerneltree.add(tree, "updates/demo.ko", uses, "updates/other.ko kernel/lib/my-lib.ko")
        assert verify.prove(root, KERNEL, ["demo"])[0].loads
        kerneltree.add(tree, "updates/demo.ko", uses)
        assert not verify.prove(root, KERNEL, ["demo"])[0].loads

    def test_together_as_alone(self, root: Path, tree: Path) -> None:
        """What one module of them needs, exports or brings with it is nothing to the others."""
        kerneltree.add(tree, "updates/first.ko", kerneltree.module("first", exports={"fn": (7, "", "")}))
        uses = ["printk", "fn"]
        for number, needs in enumerate(("updates/first.ko", "")):
            data = kerneltree.module(f"user{number}", undefined=uses, crcs={**CRCS, "fn": 7})
            kerneltree.add(tree, f"updates/user{number}.ko", data, needs)
        kerneltree.add(tree, "updates/damaged.ko", b"\x7fELF")
        modules = ["first", "user0", "user1", "damaged", "absent"]
        proofs = verify.prove(root, KERNEL, modules)
        assert [proof.loads for proof in proofs] == [True, True, False, False, False]
        assert proofs == [verify.prove(root, KERNEL, [name])[0] for name in modules]
        next((root / "usr/src").glob("*/Module.symvers")).unlink()
        proofs = verify.prove(root, KERNEL, modules)
        assert [results(proof).get("symbols") for proof in proofs] == [UNKNOWN, UNKNOWN, UNKNOWN, None, None]


class TestBefore:
    """prove: what modprobe inserts before the module must go in, too."""

    @pytest.fixture
    def tree(self, root: Path) -> Path:
        tree = root / "usr/lib/modules" / KERNEL
        kerneltree.add(tree, "updates/other.ko", kerneltree.module("other", exports={"fn": (7, "", "")}))
        self.demo(tree, "updates/other.ko kernel/lib/my-lib.ko")
        return tree

    def demo(self, tree: Path, needed: str) -> None:
        uses = ["printk", "fn", "lib_fn"]
        kerneltree.add(tree, "updates/demo.ko", kerneltree.module(undefined=uses, crcs={**CRCS, "fn": 7}), needed)

    def proof(self, root: Path) -> Proof:
        return verify.prove(root, KERNEL, ["demo"])[0]

    def test_good(self, root: Path, tree: Path) -> None:
        assert self.proof(root).loads
        assert [path.rpartition("/")[2] for path in self.proof(root).needed] == ["my-lib.ko", "other.ko"]

    @pytest.mark.parametrize("data", [b"", b"junk", kerneltree.module("x")[:-64], None], ids=["empty", "junk", "cut", "gone"])
    @pytest.mark.parametrize("name", ["updates/other.ko", "kernel/lib/my-lib.ko"])
    def test_it_cannot_be_read(self, root: Path, tree: Path, name: str, data: bytes | None) -> None:
        if data is None:
            (tree / name).unlink()
        else:
            (tree / name).write_bytes(data)
        assert results(self.proof(root))["depends"] is FAIL
        assert "which is loaded first" in named(self.proof(root), "depends").reason
        assert not self.proof(root).loads

    @pytest.mark.parametrize(
        "more", [{"vermagic": NO_CRCS.replace("SMP ", "")}, {"undefined": ["printk", "nowhere"]}], ids=["vermagic", "symbols"]
    )
    def test_it_is_for_another_kernel(self, root: Path, tree: Path, more: dict[str, Any]) -> None:
        (tree / "updates/other.ko").write_bytes(kerneltree.module("other", exports={"fn": (7, "", "")}, **more))
        assert results(self.proof(root))["depends"] is FAIL

    def test_one_of_the_kernels_own_is_for_another_kernel(self, root: Path, tree: Path) -> None:
        """Copied there by hand, or left by an interrupted upgrade."""
        own = tree / "kernel/lib/my-lib.ko"
        magic = NO_CRCS.replace("SMP ", "")
        for data in (kerneltree.module("my-lib", vermagic=magic), kerneltree.module("my-lib", struct_size=64)):
            own.write_bytes(data)
            check = named(self.proof(root), "depends")
            assert (check.result, check.expected) == (FAIL, str(own))
            assert check.fix == f"Reinstall the package of {KERNEL}'s image"

    @pytest.mark.usefixtures("open_to_all")
    def test_one_of_the_kernels_own_that_may_not_be_read(self, root: Path, tree: Path) -> None:
        (tree / "kernel/lib/my-lib.ko").chmod(0)
        os.seteuid(65534 if os.getuid() == 0 else os.getuid())
        try:
            check = named(self.proof(root), "depends")
        finally:
            os.seteuid(os.getuid())
        assert (check.result, "may not go in: This user may not read" in check.reason) == (UNKNOWN, True)

    def test_one_that_replaces_the_kernels_and_lacks_the_symbol(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, "updates/my-lib.ko", kerneltree.module("my-lib", exports={"another": (1, "", "")}))
        self.demo(tree, "updates/other.ko updates/my-lib.ko")
        assert results(self.proof(root))["symbols"] is FAIL

    @pytest.mark.parametrize(
        ("line", "loads"),
        [
            ("install other /bin/false", False),
            ("install my[_]lib /bin/true", False),
            ("install other modprobe -i other", True),
            ("blacklist other", True),
            ("alias other demo", True),
        ],
    )
    def test_modprobe_is_told_otherwise(self, root: Path, tree: Path, line: str, loads: bool) -> None:
        (root / "etc/modprobe.d").mkdir(parents=True)
        (root / "etc/modprobe.d/x.conf").write_text(f"{line}\n")
        assert self.proof(root).loads is loads

    def test_each_answer_as_a_whole(self, root: Path, tree: Path) -> None:
        other, own = tree / "updates/other.ko", tree / "kernel/lib/my-lib.ko"

        def depends() -> Check:
            return named(self.proof(root), "depends")

        assert depends() == Check("depends", PASS, "my_lib", "installed")
        data = own.read_bytes()
        image = f"Reinstall the package of {KERNEL}'s image"
        own.write_bytes(b"")
        said = "my_lib, which is loaded first, does not go in: It is empty"
        assert depends() == Check("depends", FAIL, str(own), "is empty", said, image)
        own.unlink()
        said = "my_lib, which is loaded first, does not go in: It does not exist"
        assert depends() == Check("depends", FAIL, str(own), "does not exist", said, image)
        own.write_bytes(data)
        other.write_bytes(kerneltree.module("other", struct_size=64, exports={"fn": (7, "", "")}))
        wrong = depends()
        assert wrong[:4] == ("depends", FAIL, str(other), "64 bytes")
        assert wrong.reason.startswith("other, which is loaded first, does not go in: Compiled for a kernel with another")
        assert wrong.fix == f"Run: knetstatctl build {KERNEL}"

    def test_a_warning_about_it_is_none_about_the_module(self, root: Path, tree: Path) -> None:
        exports = {"fn": (7, "", "")}
        (tree / "updates/other.ko").write_bytes(kerneltree.module("other", vermagic=OTHER, exports=exports))
        assert results(self.proof(root))["depends"] is PASS

    def test_one_that_needs_another_of_those_before_it(self, root: Path, tree: Path) -> None:
        """What goes in first is judged with all that goes in before it."""
        uses = kerneltree.module("other", undefined=["gn"], crcs={**CRCS, "gn": 8}, exports={"fn": (7, "", "")})
        kerneltree.add(tree, "updates/base.ko", kerneltree.module("base", exports={"gn": (8, "", "")}))
        kerneltree.add(tree, "updates/other.ko", uses, "updates/base.ko")
        self.demo(tree, "updates/other.ko updates/base.ko kernel/lib/my-lib.ko")
        assert self.proof(root).loads
        self.demo(tree, "updates/other.ko kernel/lib/my-lib.ko")
        check = named(self.proof(root), "depends")
        assert (check.result, check.expected, check.found) == (FAIL, str(tree / "updates/other.ko"), "gn")

    def test_a_fault_of_its_own_is_kept(self, root: Path, tree: Path) -> None:
        """That it depends on something which is not installed is not hidden by what is."""
        uses = kerneltree.module(undefined=["printk", "fn", "lib_fn"], crcs={**CRCS, "fn": 7})
        kerneltree.add(tree, "updates/demo.ko", uses, "updates/other.ko")
        lines = [line for line in (tree / "modules.dep").read_text().splitlines() if not line.startswith("kernel/lib")]
        kerneltree.tables(tree, *lines)
        (tree / "updates/other.ko").write_bytes(kerneltree.module("other", struct_size=64, exports={"fn": (7, "", "")}))
        assert named(self.proof(root), "depends").found == "not installed: my_lib"

    def test_of_two_modules(self, root: Path, tree: Path) -> None:
        (tree / "updates/other.ko").write_bytes(b"")
        kerneltree.add(tree, "updates/again.ko", kerneltree.module("again"), "updates/other.ko")
        for proof in verify.prove(root, KERNEL, ["demo", "again"]):
            assert results(proof)["depends"] is FAIL

    def test_a_line_from_before_it_used_them(self, root: Path, tree: Path) -> None:
        self.demo(tree, "updates/other.ko")
        proof = self.proof(root)
        assert named(proof, "depmod") == Check(
            "depmod", FAIL, "my_lib", "not in its line", named(proof, "depmod").reason, f"Run: depmod {KERNEL}"
        )
        assert not proof.loads


def test_the_story(tmp_path: Path) -> None:
    """A module for the kernel before, in the tree of the new one, where the release decides."""
    tree = kerneltree.make(tmp_path, "4.10.0-40-generic", modversions=False)
    magic = "4.10.0-38-generic SMP preempt mod_unload "
    kerneltree.add(tree, "updates/dkms/knetstat.ko", kerneltree.module("knetstat", vermagic=magic, crcs=None))
    worst = verify.prove(tmp_path, "4.10.0-40-generic", ["knetstat"])[0].worst
    assert worst
    assert worst.reason == (
        "knetstat: version magic '4.10.0-38-generic SMP preempt mod_unload ' "
        "should be '4.10.0-40-generic SMP preempt mod_unload '"
    )


def test_inputs_change_whenever_the_answer_may(root: Path) -> None:
    tree = root / "usr/lib/modules" / KERNEL
    path = kerneltree.add(tree, "updates/dkms/demo.ko", kerneltree.module())

    def now() -> list[files.Identity | None]:
        return [files.identity(each) for each in (path, *paths.inputs(root, KERNEL))]

    before = now()
    assert now() == before
    for change in (
        lambda: path.write_bytes(kerneltree.module(license="X")),
        lambda: (root / f"usr/src/linux-headers-{KERNEL}/Module.symvers").unlink(),
        lambda: kerneltree.tables(tree, "kernel/fs/big.ko:"),
        lambda: (tree / "modules.dep.bin").unlink(),
        lambda: (root / f"boot/config-{KERNEL}").write_text(""),
        lambda: (tree / "updates/other.ko").write_bytes(b""),
        lambda: (tree / "updates/dkms/new.ko").write_bytes(b""),
        lambda: (root / f"boot/symvers-{KERNEL}.gz").write_bytes(b""),
    ):
        change()
        assert now() != before, change
        before = now()


@given(st.binary(max_size=60), st.sampled_from(["Module.symvers", ".config", "include/generated/utsrelease.h"]), st.booleans())
def test_hostile_kernel_files_raise_nothing(root: Path, data: bytes, name: str, keep: bool) -> None:
    tree = root / "usr/lib/modules" / KERNEL
    paths = [root / f"usr/src/linux-headers-{KERNEL}" / name, tree / "modules.dep", tree / "kernel/lib/my-lib.ko"]
    before = [path.read_bytes() if path.exists() else b"" for path in paths]
    for path, was in zip(paths, before, strict=True):
        path.write_bytes((was if keep else b"") + data)
    proof = verify.prove(root, KERNEL, ["demo"])[0]
    assert not proof.loads
    judge(root, kerneltree.module())
    for path, was in zip(paths, before, strict=True):
        path.write_bytes(was)


@pytest.mark.parametrize(("cause", "result", "seen", "reason", "fix"), [
    (None, FAIL, "is damaged", "It is damaged", "build it"),
    (LibraryMissing("zstd", "python3-zstandard"), UNKNOWN, "is damaged", "It is damaged", "Run: apt install python3-zstandard"),
    (PermissionError(), UNKNOWN, "", "This user may not read /x.ko: whether it loads is unknown", "Run this as root"),
])  # fmt: skip
def test_a_file_that_was_not_read(cause: Exception | None, result: Result, seen: str, reason: str, fix: str) -> None:
    error = ModuleFileError("is damaged")
    error.__cause__ = cause
    assert verify._unread(Path("/x.ko"), error, "build it") == Check("file", result, "a kernel module", seen, reason, fix)
