# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images: what the kernel in them exports and says of itself comes back; of others nothing is concluded."""

from __future__ import annotations

import gzip
import struct
import time
from typing import TYPE_CHECKING, Any

import elf
import images
import pytest
from elf import Sec
from hypothesis import given
from hypothesis import strategies as st
from images import KERNEL

from knetstatd.core.errors import KernelFileError
from knetstatd.formats import kernel_image

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.formats.kernel_image import Image

EXPORTS = {
    "printk": (0x22222222, "EXPORT_SYMBOL", ""),
    "gpl_thing": (0x33333333, "EXPORT_SYMBOL_GPL", ""),
    "spaced": (0x5555, "EXPORT_SYMBOL", "SPACE"),
    "to_come": (7, "EXPORT_SYMBOL_GPL_FUTURE", "SPACE"),
}
TODAY = {name: row for name, row in EXPORTS.items() if name != "to_come"}
CONFIG = b"CONFIG_MODVERSIONS=y\n"


def lines(exports: dict[str, tuple[int, str, str]]) -> list[str]:
    return sorted(f"0x{crc:08x}\t{name}\tvmlinux\t{kind}\t{space}" for name, (crc, kind, space) in exports.items())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vmlinuz"


def read(path: Path, data: bytes) -> Image:
    path.write_bytes(data)
    return kernel_image.read(path)


def refused(path: Path, data: bytes, *words: str) -> KernelFileError:
    path.write_bytes(data)
    with pytest.raises(KernelFileError) as caught:
        kernel_image.read(path)
    assert caught.value.where == str(path)
    for word in words:
        assert word in caught.value.what
    return caught.value


def test_what_it_says(path: Path) -> None:
    image = read(path, images.bzimage(images.vmlinux(EXPORTS)))
    assert sorted(image.symvers.decode().splitlines()) == lines(EXPORTS)
    assert image.symvers.endswith(b"\n")
    assert (image.release, image.vermagic) == (KERNEL, f"{KERNEL} SMP preempt mod_unload modversions ")
    assert image.banner == images.banner().decode()[:-2]
    assert (image.build_id, image.crcs, image.btf, image.config) == (images.BUILD_ID, True, False, b"")


@pytest.mark.spawns
@pytest.mark.parametrize("kind", ["gzip", "bzip2", "lzma", "xz", "lzo", "lz4", "zstd", ""])
def test_every_compression(path: Path, kind: str) -> None:
    kernel = images.vmlinux(TODAY, more=[Sec("padding", bytes(3 << 20))])
    image = read(path, images.bzimage(kernel, kind, tail=b"signature"))
    assert sorted(image.symvers.decode().splitlines()) == lines(TODAY)


def test_as_unified_image_and_as_plain_kernel(path: Path) -> None:
    kernel = images.vmlinux(TODAY)
    image = read(path, kernel)
    assert read(path, images.bzimage(kernel)) == read(path, images.unified(images.bzimage(kernel))) == image
    assert read(path, images.unified(kernel)) == image
    refused(path, images.unified(b""), "of a kind that is not known here")


def test_one_table_for_both_kinds(path: Path) -> None:
    """From 7.0 on flags tell them apart; without CONFIG_MODVERSIONS there are no checksums."""
    image = read(path, images.vmlinux(TODAY, flagged=True, crcs=False, more=[Sec(".BTF", b"types")]))
    assert sorted(image.symvers.decode().splitlines()) == lines({name: (0, *row[1:]) for name, row in TODAY.items()})
    assert (image.crcs, image.btf) == (False, True)


def test_its_configuration(path: Path) -> None:
    marked = b"IKCFG_ST" + gzip.compress(CONFIG) + b"IKCFG_ED"
    far = bytes((1 << 20) - 300)  # on both sides of the border of two blocks
    assert read(path, images.vmlinux(TODAY, rodata=images.text(far, marked))).config == CONFIG
    for wrong in (b"IKCFG_ED" + marked[:-8], b"IKCFG_ST" + CONFIG + b"IKCFG_ED", marked[:-8]):
        assert read(path, images.vmlinux(TODAY, rodata=images.text(wrong))).config == b""


def test_version_magic(path: Path) -> None:
    assert read(path, images.vmlinux(TODAY, rodata=images.text(flags=""))).vermagic == f"{KERNEL} "
    two = images.text(f"\0{KERNEL} SMP ".encode())
    assert read(path, images.vmlinux(TODAY, rodata=two)).vermagic == "", "which of two it is cannot be told"
    assert read(path, images.vmlinux(TODAY, rodata=images.banner())).vermagic == ""


def test_which_kernel_it_is(path: Path) -> None:
    refused(path, images.vmlinux(TODAY, rodata=b"nothing"), "does not say which kernel it is")
    two = images.text(images.banner("6.1.0-2-amd64"))
    refused(path, images.vmlinux(TODAY, rodata=two), "names 2 kernels")
    refused(path, images.vmlinux(TODAY, without=[".rodata"]), "has no section .rodata")
    again = images.text(bytes((1 << 20) - 200), images.banner())
    assert read(path, images.vmlinux(TODAY, rodata=again)).release == KERNEL, "the same one twice"


def test_no_build_id(path: Path) -> None:
    kernel = images.vmlinux(TODAY).replace(images.notes(), images.notes().replace(b"GNU\0", b"GNO\0"))
    assert read(path, kernel).build_id == ""


def test_other_kinds(path: Path) -> None:
    refused(path, images.vmlinux(TODAY, machine=183), "is for arm64", "not known here")
    refused(path, images.vmlinux(TODAY, kind=1), "not a program as kernels are")
    refused(path, bytes(0x38) + b"ARMd" + bytes(999), "of a kind that is not known here")
    refused(path, b"", "of a kind that is not known here")
    refused(path, images.bzimage(images.vmlinux(TODAY), protocol=0x207), "its boot protocol is 2.07")
    refused(path, images.bzimage(b"no kernel"), "is not an ELF file")
    refused(path, images.bzimage(b"no kernel", ""), "compressed in a way that is not known here")
    path.unlink()
    with pytest.raises(KernelFileError, match="No such file") as caught:
        kernel_image.read(path)
    assert caught.value.where == str(path)


@pytest.mark.spawns
@pytest.mark.parametrize("kind", ["gzip", "xz", "lz4"])
def test_cut_off_or_damaged(path: Path, kind: str) -> None:
    whole = images.bzimage(images.vmlinux(TODAY), kind)
    for size in range(0, len(whole), 97):
        refused(path, whole[:size])
    refused(path, whole[:-100], "is cut off")
    for at in range(1100, len(whole) - 100, 331):
        damaged = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        path.write_bytes(damaged)
        try:
            image = kernel_image.read(path)
        except KernelFileError:
            continue
        assert kind == "lz4", f"{kind} has checksums: byte {at}"
        assert isinstance(image.symvers, bytes)


@pytest.mark.spawns
def test_the_size_that_it_says(path: Path) -> None:
    kernel = images.vmlinux(TODAY)
    refused(path, images.bzimage(kernel, "xz", size=len(kernel) + 1), f"it unpacks to {len(kernel)} bytes")
    whole = images.bzimage(kernel)
    refused(path, whole[:-4] + b"\1\0\0\0", "damaged")


def test_tables_that_do_not_fit(path: Path) -> None:
    def broken(what: str, **more: Any) -> None:
        refused(path, images.vmlinux(TODAY, **more), what)

    broken("has no table of exports", without=["__ksymtab"])
    broken("has no table of exports", without=["__ksymtab_strings"])
    broken("do not fit each other", replaced={"__kcrctab": bytes(4)})
    broken("do not fit each other", replaced={"__ksymtab": bytes(13)}, crcs=False)
    broken("do not fit each other", replaced={"__kflagstab": b"\0"}, flagged=True)
    broken("lies outside the names", replaced={"__ksymtab": struct.pack("<iii", 0, 1 << 30, 0)}, crcs=False)
    broken("lies outside the names", replaced={"__ksymtab": struct.pack("<iii", 0, -(1 << 30), 0)}, crcs=False)
    broken("lies outside the names", replaced={"__ksymtab_strings": b"no end" * 500})
    broken("lies outside the names", replaced={"__ksymtab_strings": b"\0pri\tk\0" + bytes(99)})
    broken("an export has no name", replaced={"__ksymtab_strings": bytes(99)})
    broken("a section that is a few KB", replaced={"__ksymtab": bytes(5 << 20)}, crcs=False)


def test_a_hostile_text_ends_quickly(path: Path) -> None:
    start = time.process_time()
    for text in (b"Linux version a b#1 ", b"Linux version a " + b"#1" * 500):
        refused(path, images.vmlinux(TODAY, rodata=text * (100_000 // len(text))), "does not say which kernel it is")
    assert time.process_time() - start < 0.5


@given(st.binary(max_size=300), st.integers(0, 4000))
def test_any_bytes_anywhere(tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int) -> None:
    kernel = images.vmlinux(TODAY)
    path = tmp_path_factory.getbasetemp() / "junk"
    path.write_bytes(kernel[:at] + junk + kernel[at + len(junk) :])
    try:
        image = kernel_image.read(path)
    except KernelFileError:
        return
    assert image.symvers.count(b"\t") == 4 * image.symvers.count(b"\n")


def test_sections_of_other_files(path: Path) -> None:
    with open(path, "w+b") as file:
        assert kernel_image.section(file, b".linux") is None
        file.write(elf.module())
        assert kernel_image.section(file, b".linux") is None
