# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's facts: found where each distribution puts them, and believed only from the kernel itself."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import shutil
from typing import TYPE_CHECKING

import elf
import images
import kerneltree
import pytest
from kerneltree import KERNEL

from knetstatd.core.errors import KernelFileError
from knetstatd.core.model import Check, Result
from knetstatd.formats import kernel_image
from knetstatd.machine import paths
from knetstatd.verify import target_kernel

if TYPE_CHECKING:
    from collections.abc import Callable
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


WANTED = {"printk", "gpl_thing", "lib_fn", "spaced", "absent"}
CURE = f"Reinstall the package of {KERNEL}'s image"


def asked(root: Path, wanted: set[str] = WANTED) -> target_kernel.Exports:
    return target_kernel.exports(root, target_kernel.facts(root, KERNEL), wanted)


def refused(root: Path, *words: str, wanted: set[str] = WANTED) -> KernelFileError:
    with pytest.raises(KernelFileError) as caught:
        asked(root, wanted)
    for word in words:
        assert word in caught.value.what
    return caught.value


def headers(root: Path) -> Path:
    return root / f"usr/src/linux-headers-{KERNEL}"


def told(root: Path, version: str, file: str = "utsversion.h") -> None:
    (headers(root) / "include/generated" / file).write_text(f'#define X\n#define UTS_VERSION "{version}"\n')


@pytest.mark.parametrize("modversions", [True, False])
def test_the_image_says_what_the_headers_say(tmp_path: Path, *, modversions: bool) -> None:
    kerneltree.make(tmp_path, modversions=modversions)
    by_headers = asked(tmp_path)
    assert (by_headers.said_by, by_headers.headers) == (headers(tmp_path) / "Module.symvers", None)
    path = kerneltree.image(tmp_path, modversions=modversions)
    both = asked(tmp_path)
    shutil.rmtree(headers(tmp_path))
    alone = asked(tmp_path)
    assert alone.said_by == both.said_by == path
    assert alone.symbols.keys() == both.symbols.keys() == by_headers.symbols.keys() >= WANTED - {"absent"}
    for name, export in by_headers.symbols.items():
        for other in (both.symbols[name], alone.symbols[name]):
            assert (other.crc, other.module, other.gpl_only, other.namespace) == (
                export.crc, export.module, export.gpl_only, export.namespace,
            )  # fmt: skip
    assert alone.headers is None
    assert both.headers == Check("headers", Result.PASS, images.VERSION, "they agree with the image")


@pytest.mark.spawns
def test_headers_of_another_build(tmp_path: Path) -> None:
    kerneltree.make(tmp_path)
    kerneltree.offer(tmp_path, f"linux-headers-{KERNEL}")
    kerneltree.image(tmp_path)
    told(tmp_path, images.VERSION)
    assert asked(tmp_path).headers == Check("headers", Result.PASS, images.VERSION, images.VERSION)
    other = images.VERSION.replace("6.1.9-1", "6.1.9-2")
    told(tmp_path, other)
    check = asked(tmp_path).headers
    assert check is not None
    assert (check.result, check.expected, check.found) == (Result.WARN, images.VERSION, other)
    assert "another build of this kernel" in check.reason
    assert f"linux-headers-{KERNEL}" in check.fix
    (headers(tmp_path) / "include/generated/utsversion.h").unlink()
    told(tmp_path, other, "compile.h")
    assert asked(tmp_path).headers == check, "where kernels before 6.1 have it"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("0x22222222\tprintk", "0x22222223\tprintk"),
        lambda text: text.replace("\tEXPORT_SYMBOL_GPL\t", "\tEXPORT_SYMBOL\t"),
        lambda text: text.replace("\tSPACE\n", "\t\n"),
        lambda text: "".join(line for line in text.splitlines(keepends=True) if "gpl_thing" not in line),
        lambda text: text + "0x00000001\tabsent\tvmlinux\tEXPORT_SYMBOL\t\n",
    ],
    ids=["checksum", "licence", "namespace", "one less", "one more"],
)
def test_headers_that_contradict_the_image(tmp_path: Path, change: Callable[[str], str]) -> None:
    kerneltree.make(tmp_path)
    kerneltree.image(tmp_path)
    told(tmp_path, other := images.VERSION.replace("6.1.9-1", "6.1.9-2"))
    path = headers(tmp_path) / "Module.symvers"
    before = asked(tmp_path).symbols
    path.write_text(change(path.read_text()))
    exports = asked(tmp_path)
    assert exports.symbols == before, "the kernel that boots decides"
    assert exports.headers is not None
    assert (exports.headers.result, exports.headers.expected) == (Result.FAIL, images.VERSION)
    assert (exports.headers.found, "1 of the symbols" in exports.headers.reason) == (other, True)


def test_headers_that_cannot_be_read(tmp_path: Path) -> None:
    kerneltree.make(tmp_path)
    kerneltree.image(tmp_path)
    path = headers(tmp_path) / "Module.symvers"
    path.write_text(path.read_text()[:-9])
    check = asked(tmp_path).headers
    assert check == Check(
        "headers", Result.WARN, "a Module.symvers", str(path), "is no Module.symvers: it ends in the middle of a line",
        "Reinstall the kernel's headers",
    )  # fmt: skip


def test_an_image_of_another_build_than_its_modules(tmp_path: Path) -> None:
    kerneltree.make(tmp_path)
    kerneltree.image(tmp_path, crcs=kerneltree.CRCS | {"printk": 9})
    assert refused(tmp_path, "of another build than its modules").fix == CURE
    kerneltree.image(tmp_path)
    path = tmp_path / f"boot/vmlinuz-{KERNEL}"
    rows = {"printk": (kerneltree.CRCS["printk"], "EXPORT_SYMBOL", "")}
    path.write_bytes(images.bzimage(images.vmlinux(rows, rodata=images.text(flags="SMP preempt_rt mod_unload modversions "))))
    assert refused(tmp_path, "of another build than its modules").where == str(path)
    path.write_bytes(images.bzimage(images.vmlinux(rows, crcs=False)))
    refused(tmp_path, "of another build than its modules")


def test_the_image_that_the_next_boot_starts_speaks(tmp_path: Path) -> None:
    """kernel-install's copy on the ESP may be left from an earlier build: the ESP was full."""
    kerneltree.make(tmp_path)
    stale = kerneltree.image(tmp_path, crcs=kerneltree.CRCS | {"gpl_thing": 9})
    copy = tmp_path / f"efi/machine/{KERNEL}/linux"
    for directory in (copy.parent, tmp_path / "efi/loader/entries"):
        directory.mkdir(parents=True)
    shutil.copy(stale, copy)
    new = kerneltree.image(tmp_path)
    assert asked(tmp_path).said_by == new, "no entry starts the copy"
    entry = tmp_path / "efi/loader/entries/a.conf"
    entry.write_text(f"version {KERNEL}\nlinux /machine/{KERNEL}/linux\n")
    assert refused(tmp_path, "of another build than its modules").where == str(copy)
    shutil.copy(new, copy)
    assert asked(tmp_path).said_by == copy


def test_the_image_that_the_next_boot_starts_is_cut_off(tmp_path: Path) -> None:
    """A whole one that lies beside it, as Debian's has from 7.0 on, is not asked in its place."""
    tree = kerneltree.make(tmp_path)
    path = kerneltree.image(tmp_path)
    shutil.copy(path, tree / "vmlinuz")
    path.write_bytes(path.read_bytes()[:-500])
    assert asked(tmp_path).said_by == tree / "vmlinuz", "nothing starts the other"
    (tmp_path / "boot/grub").mkdir()
    (tmp_path / "boot/grub/grub.cfg").write_text(f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL}\n}}\n")
    assert refused(tmp_path, "is cut off", "whether it starts is not known").where == str(path)


def test_an_image_that_tells_nothing(tmp_path: Path) -> None:
    """The headers speak alone; without them nothing is known."""
    kerneltree.make(tmp_path)
    by_headers = asked(tmp_path)
    path = kerneltree.image(tmp_path)
    whole = path.read_bytes()
    for wrong in (b"some image", whole[: len(whole) // 2]):
        path.write_bytes(wrong)
        assert asked(tmp_path) == by_headers
    kerneltree.image(tmp_path, kernel=KERNEL).rename(path)
    path.write_bytes(images.bzimage(images.vmlinux({})))
    assert asked(tmp_path) == by_headers
    rows = {"printk": (kerneltree.CRCS["printk"], "EXPORT_SYMBOL", "")}
    path.write_bytes(images.bzimage(images.vmlinux(rows, rodata=images.text(kernel="6.1.0-2-amd64"))))
    assert asked(tmp_path) == by_headers
    shutil.rmtree(headers(tmp_path))
    assert refused(tmp_path, "The kernel's image is of 6.1.0-2-amd64", "its headers are not installed").where == str(path)
    named = bytearray(whole)
    named[0x20E:0x210], named[0x380:0x39C] = (0x180).to_bytes(2, "little"), b"6.1.0-3-amd64 (who@where) #1".ljust(0x1C, b"\0")
    path.write_bytes(named)
    refused(tmp_path, "The kernel's image is of 6.1.0-3-amd64", "its headers are not installed")
    path.write_bytes(b"some image")
    refused(tmp_path, "of a kind that is not known here", "its headers are not installed")
    path.unlink()
    assert refused(tmp_path, "The kernel has no image", "its headers are not installed").where == "not found"


ROWS = {"printk": (kerneltree.CRCS["printk"], "EXPORT_SYMBOL", "")}


@pytest.mark.spawns
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (lambda whole: whole[:-100] + bytes([whole[-100] ^ 0x55]) + whole[-99:], "has damaged gzip data"),
        (lambda _: images.bzimage(images.vmlinux(ROWS), "lz4", size=7), "and says 7"),
        (lambda _: images.bzimage(images.vmlinux(ROWS)[:-200]), "truncated or damaged"),
        (lambda _: images.bzimage(images.vmlinux(ROWS, replaced={"__kcrctab": bytes(8)})), "do not fit each other"),
    ],
    ids=["data", "size", "kernel", "tables"],
)
def test_a_damaged_image(tmp_path: Path, data: Callable[[bytes], bytes], why: str) -> None:
    """Whether it starts is not known, whatever its headers say."""
    kerneltree.make(tmp_path)
    path = kerneltree.image(tmp_path)
    path.write_bytes(data(path.read_bytes()))
    error = refused(tmp_path, why, "whether it starts is not known")
    assert (error.where, error.fix) == (str(path), CURE)


@pytest.mark.parametrize(("number", "headers_speak"), [(errno.EIO, False), (errno.EACCES, True)])
def test_an_image_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, headers_speak: bool
) -> None:
    """Nothing good follows from a bad disk; if only root may read the image, as on Ubuntu, the headers speak."""
    kerneltree.make(tmp_path)
    by_headers, path = asked(tmp_path), kerneltree.image(tmp_path)

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(kernel_image, "section", fails)  # the first that reads it whole
    if headers_speak:
        assert asked(tmp_path) == by_headers
    else:
        assert refused(tmp_path, os.strerror(number), "whether it starts is not known").where == str(path)


def test_what_the_kernels_modules_export(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    kerneltree.image(tmp_path)
    shutil.rmtree(headers(tmp_path))
    (tree / "kernel/lib/my-lib.ko").write_bytes(b"damaged")
    found = refused(tmp_path, "A module of the kernel")
    assert (found.where, found.fix) == (str(tree / "kernel/lib/my-lib.ko"), CURE)
    (tree / "kernel/lib/my-lib.ko").unlink()
    assert "lib_fn" not in asked(tmp_path).symbols, "it is not installed"
    kerneltree.image(tmp_path)
    (tree / "modules.symbols").unlink()
    assert refused(tmp_path, "depmod's table").fix == f"Run: depmod {KERNEL}"
    assert "printk" in asked(tmp_path, {"printk"}).symbols, "no module is asked"
    headers(tmp_path).mkdir(parents=True)
    (headers(tmp_path) / "include/generated").mkdir(parents=True)
    (headers(tmp_path) / "include/generated/utsrelease.h").write_text(kerneltree.UTS_RELEASE.format(KERNEL))
    (headers(tmp_path) / "Module.symvers").write_text(kerneltree.symvers())
    assert asked(tmp_path).symbols["lib_fn"].module == "my_lib", "the headers know"


def test_headers_know_of_an_export_that_the_module_does_not_have(tmp_path: Path) -> None:
    """They are of another build; what is installed decides, and of what is not installed they may speak."""
    tree = kerneltree.make(tmp_path)
    kerneltree.image(tmp_path)
    with open(headers(tmp_path) / "Module.symvers", "a") as file:
        file.write("0x00000001\tlib_new\tlib/my-lib\tEXPORT_SYMBOL\t\n")
        file.write("0x00000001\tfar_fn\tnet/far\tEXPORT_SYMBOL\t\n")
    symbols = asked(tmp_path, {"lib_fn", "lib_new", "far_fn"}).symbols
    assert ("lib_new" in symbols, symbols["far_fn"].module, symbols["lib_fn"].module) == (False, "far", "my_lib")
    with open(tree / "modules.symbols", "a") as file:
        file.write("alias symbol:lib_new added\n")
    assert asked(tmp_path, {"lib_new"}).symbols["lib_new"].module == "my_lib", "a module in updates exports it too"
    (tree / "modules.symbols").unlink()
    assert "lib_new" in asked(tmp_path, {"lib_new"}).symbols, "nothing else says it"


def test_what_the_image_tells_without_a_module(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path, headers=False)
    kerneltree.image(tmp_path)
    shutil.rmtree(tree / "kernel")
    (tmp_path / f"boot/config-{KERNEL}").unlink()
    facts = target_kernel.facts(tmp_path, KERNEL)
    assert (facts.witness, facts.flags, facts.machine, facts.modversions) == (None, FLAGS, (62, 64, True), True)
    assert (facts.struct_size, facts.configured) == (0, False)
