# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's facts: found where each distribution puts them, and believed only from the kernel itself."""

from __future__ import annotations

import gzip
import lzma
import shutil
from typing import TYPE_CHECKING

import elf
import kerneltree
import pytest
from kerneltree import KERNEL

from knetstatd.machine import paths
from knetstatd.verify import target_kernel

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = " SMP preempt mod_unload modversions "


def test_debian(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path, config="CONFIG_MODULE_FORCE_LOAD=y\n")
    facts = target_kernel.facts(tmp_path, KERNEL)
    assert facts.witness == tree / "kernel/lib/my-lib.ko"
    assert (facts.flags, facts.struct_size, facts.machine) == (FLAGS, 1280, (62, 64, True))
    assert facts.witness_crcs == kerneltree.CRCS
    assert facts.modversions is True
    assert facts.symvers == tmp_path / f"usr/src/linux-headers-{KERNEL}/Module.symvers"
    assert {word for word in facts.options if not word.startswith("RD_")} == {"MODVERSIONS", "MODULE_FORCE_LOAD"}


def test_without_modversions(tmp_path: Path) -> None:
    kerneltree.make(tmp_path, modversions=False)
    facts = target_kernel.facts(tmp_path, KERNEL)
    assert (facts.modversions, facts.witness_crcs, "MODVERSIONS" in facts.options) == (False, {}, False)


def test_nothing_there(tmp_path: Path) -> None:
    facts = target_kernel.facts(tmp_path, KERNEL)
    assert (facts.witness, facts.machine, facts.modversions, facts.symvers) == (None, None, None, None)
    assert facts.options == frozenset()


def test_nothing_there_means_nothing(tmp_path: Path) -> None:
    """No value stands for one that is not known: a flag or a size by which a module could pass or fail."""
    facts = target_kernel.facts(tmp_path, KERNEL)
    assert (facts.kernel, facts.flags, facts.struct_size, facts.witness_crcs) == (KERNEL, "", 0, {})
    assert (facts.configured, facts.compiler, facts.signature, facts.tables.tree.name) == (False, "", b"", KERNEL)


def test_what_headers_and_configuration_tell_without_a_module(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path, config="CONFIG_MODULE_SIG=y\n")
    whole = target_kernel.facts(tmp_path, KERNEL)
    assert (whole.configured, whole.compiler) == (True, "gcc-12 (Debian 12.2.0-14) 12.2.0")
    shutil.rmtree(tree / "kernel")
    bare = target_kernel.facts(tmp_path, KERNEL)
    assert (bare.symvers, bare.options, bare.configured, bare.compiler) == (
        whole.symvers, whole.options, True, whole.compiler,
    )  # fmt: skip
    assert bare.symvers is not None


def test_the_signature_of_the_witness(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    assert target_kernel.facts(tmp_path, KERNEL).signature == b""
    lib = tree / "kernel/lib/my-lib.ko"
    lib.write_bytes(elf.sign(lib.read_bytes(), b"by the kernel"))
    (tree / "kernel/fs/big.ko").unlink()
    assert target_kernel.facts(tmp_path, KERNEL).signature == b"by the kernel"


def test_a_listed_module_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    kerneltree.tables(tree, "kernel/a/gone.ko:", "kernel/fs/big.ko:", "kernel/lib/my-lib.ko:")
    (tree / "modules.order").write_text("kernel/a/gone.ko\nkernel/fs/big.ko\nkernel/lib/my-lib.ko\n")
    assert target_kernel.facts(tmp_path, KERNEL).witness == tree / "kernel/lib/my-lib.ko"


def test_configuration_answers_where_no_module_does(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    shutil.rmtree(tree / "kernel")
    assert target_kernel.facts(tmp_path, KERNEL).modversions is True
    (tmp_path / f"boot/config-{KERNEL}").write_text("#\n# CONFIG_MODVERSIONS is not set\n")
    assert target_kernel.facts(tmp_path, KERNEL).modversions is False


def test_configuration_places(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    (tmp_path / f"boot/config-{KERNEL}").unlink()
    (tmp_path / f"usr/src/linux-headers-{KERNEL}/.config").write_text("#\nCONFIG_MODULE_FORCE_LOAD=y\n")
    assert target_kernel.facts(tmp_path, KERNEL).options == {"MODULE_FORCE_LOAD"}
    (tree / "config").write_text("#\nCONFIG_MODVERSIONS=y\n")
    assert target_kernel.facts(tmp_path, KERNEL).options == {"MODVERSIONS"}
    (tmp_path / f"boot/config-{KERNEL}").write_text("")
    assert target_kernel.facts(tmp_path, KERNEL).options == {"MODVERSIONS"}
    (tree / "config").write_bytes(bytes(5 << 20))
    assert target_kernel.facts(tmp_path, KERNEL).options == {"MODULE_FORCE_LOAD"}


def test_depmod_has_not_run(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path, depmod=False)
    assert target_kernel.facts(tmp_path, KERNEL).witness == tree / "kernel/lib/my-lib.ko"
    for name in ("fs/big.ko", "lib/my-lib.ko"):
        path = tree / "kernel" / name
        path.with_name(path.name + ".xz").write_bytes(lzma.compress(path.read_bytes()))
        path.unlink()
    witness = target_kernel.facts(tmp_path, KERNEL).witness
    assert witness in {tree / "kernel/lib/my-lib.ko.xz", tree / "kernel/fs/big.ko.xz"}


def test_only_the_kernels_own_modules_are_witnesses(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    lib = tree / "kernel/lib/my-lib.ko"
    for impostor in (
        elf.module(crcs={}),  # an added module that lies among the kernel's
        elf.module(vermagic=elf.MAGIC.replace("6.1.0-1", "6.1.0-2"), info={"intree": "Y"}),  # another kernel's
        b"",
        b"not a module",
    ):
        lib.write_bytes(impostor)
        assert target_kernel.facts(tmp_path, KERNEL).witness == tree / "kernel/fs/big.ko"
    lib.unlink()
    lib.symlink_to(tree / "kernel/fs/big.ko")
    assert target_kernel.facts(tmp_path, KERNEL).witness == tree / "kernel/fs/big.ko"
    lib.unlink()
    lib.mkdir()
    assert target_kernel.facts(tmp_path, KERNEL).witness == tree / "kernel/fs/big.ko"


def test_a_witness_tells_where_struct_module_has_its_functions(tmp_path: Path) -> None:
    """A small one without them, or a damaged one, is no better for being smaller."""
    tree = kerneltree.make(tmp_path)
    lib, big = tree / "kernel/lib/my-lib.ko", tree / "kernel/fs/big.ko"
    assert target_kernel.facts(tmp_path, KERNEL).hooks == {"init_module": 320}
    both = elf.relocations(".gnu.linkonce.this_module", (320, 1, 2, 0), (400, 1, 3, 0))
    more = [elf.Sec("x", bytes(2000)), both]
    big.write_bytes(elf.module("big", info={"intree": "Y"}, hook=0, more=more, more_symbols=[elf.Sym("cleanup_module", "x")]))
    for smaller in (lib.read_bytes(), elf.module("my-lib", info={"intree": "Y"}, hook=0), b"damaged"):
        lib.write_bytes(smaller)
        facts = target_kernel.facts(tmp_path, KERNEL)
        assert (facts.witness, facts.hooks) == (big, {"init_module": 320, "cleanup_module": 400})
    big.unlink()
    lib.write_bytes(elf.module("my-lib", info={"intree": "Y"}, hook=0))
    facts = target_kernel.facts(tmp_path, KERNEL)
    assert (facts.witness, facts.hooks) == (lib, {})


def test_extended_table_of_the_witness(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    made = elf.module(ext_crcs={"printk": 1}, info={"intree": "Y"}, struct_size=64)
    (tree / "kernel/lib/my-lib.ko").write_bytes(made)
    facts = target_kernel.facts(tmp_path, KERNEL)
    assert (facts.witness_crcs, facts.struct_size) == ({"printk": 1}, 64)


def test_many_modules_are_sampled(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    lines = []
    for number in range(500):
        name = f"kernel/fs/m{number}.ko"
        lines.append(f"{name}:")
        (tree / name).write_bytes(elf.module(info={"intree": "Y"}, struct_size=1280, more=[elf.Sec("x", bytes(number))]))
    kerneltree.tables(tree, *lines)
    assert target_kernel.facts(tmp_path, KERNEL).witness == tree / "kernel/fs/m0.ko"


def test_symvers_of_other_distributions(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path, headers=False)
    data = kerneltree.symvers().encode()
    places = [tree / "symvers.gz", tree / "symvers.xz", tmp_path / f"boot/symvers-{KERNEL}.gz"]
    for path in places:
        path.write_bytes(gzip.compress(data))
        assert target_kernel.facts(tmp_path, KERNEL).symvers == path


def test_headers_without_the_link(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    (tree / "build").unlink()
    assert target_kernel.facts(tmp_path, KERNEL).symvers == tmp_path / f"usr/src/linux-headers-{KERNEL}/Module.symvers"


@pytest.mark.parametrize("text", ["", '#define UTS_RELEASE "6.1.0-2-amd64"\n', None])
def test_headers_of_another_kernel_are_not_believed(tmp_path: Path, text: str | None) -> None:
    kerneltree.make(tmp_path)
    header = tmp_path / f"usr/src/linux-headers-{KERNEL}/include/generated/utsrelease.h"
    header.unlink()
    if text is not None:
        header.write_text(text)
    assert target_kernel.facts(tmp_path, KERNEL).symvers is None


def test_links_stay_inside_the_root(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path / "root")
    assert target_kernel.facts(tmp_path / "root", KERNEL).witness == tree / "kernel/lib/my-lib.ko"
    assert all(tmp_path / "root" in path.parents for path in paths.inputs(tmp_path / "root", KERNEL))


def test_inputs_name_what_was_read(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    inputs = paths.inputs(tmp_path, KERNEL)
    headers = tmp_path / f"usr/src/linux-headers-{KERNEL}"
    for path in (
        tree / "modules.dep",
        tree / "modules.dep.bin",
        headers / "Module.symvers",
        headers / "include/generated/utsrelease.h",
        headers / ".config",
        tmp_path / f"boot/config-{KERNEL}",
        tmp_path / f"boot/symvers-{KERNEL}.gz",
        tree / "symvers.xz",
    ):
        assert path in inputs
