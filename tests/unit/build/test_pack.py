# SPDX-License-Identifier: GPL-2.0-or-later
"""What is packed while others hold the shared trees: it is signed, nothing in it leads elsewhere, and a new key voids it."""

from __future__ import annotations

import gzip
import lzma
import os
import tarfile
import time
from typing import TYPE_CHECKING

import machinetree
import pytest
import zstandard
from machinetree import ARCH, GOOD, KERNEL

from knetstatd.build import pack, sign
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind
from knetstatd.formats import compression
from knetstatd.state import staged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write(path: Path) -> Path:
    path.write_bytes(b"x")
    time.sleep(0.02)  # the next file is newer, by the clock of file systems too
    return path


def test_an_archive_counts_until_the_key_is_replaced(tmp_path: Path) -> None:
    artefact = staged.Staged(tmp_path / "tree", (), tmp_path / "log")
    private, certificate = write(tmp_path / "mok.key"), write(tmp_path / "mok.pub")
    key = sign.Key(tmp_path, tmp_path / "sign-file", "sha256", os.fspath(private), os.fspath(certificate))
    assert pack.packed(artefact, key) is None, "nothing was packed"
    archive = write(tmp_path / pack.ARCHIVE)
    assert pack.packed(artefact, key) == archive
    assert pack.packed(artefact, None) == archive, "unsigned"
    for replaced in (certificate, private):
        write(replaced)
        assert pack.packed(artefact, key) is None, f"{replaced.name} is newer"
        archive = write(tmp_path / pack.ARCHIVE)
        assert pack.packed(artefact, key) == archive
    inside = key._replace(private="pkcs11:token=machine")
    assert pack.packed(artefact, inside) == archive
    write(certificate)
    assert pack.packed(artefact, inside) is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path, signed=True)
    return tmp_path


def stage(root: Path, name: str = "demo.ko", data: bytes = GOOD) -> staged.Staged:
    """What staging has left."""
    place = root / f"var/lib/knetstatd/stage/{KERNEL}/demo/tree/demo/1.0/{KERNEL}/{ARCH}"
    machinetree.write(place / "module" / name, data)
    machinetree.write(place / "log/make.log", "log")
    artefact = staged.built(root / f"var/lib/knetstatd/stage/{KERNEL}/demo/tree", KERNEL, "demo", "1.0")
    assert artefact is not None
    return artefact


def packed(root: Path, artefact: staged.Staged) -> dict[str, bytes] | None:
    """The contents of the archive that is made, by the files' names; None if there is none."""
    pack.pack(machinetree.job(root), artefact, root / f"usr/src/linux-headers-{KERNEL}", [])
    path = artefact.tree.parent / pack.ARCHIVE
    if not path.exists():
        return None
    with tarfile.open(path) as archive:
        return {os.path.basename(m.name): f.read() for m in archive if m.isfile() and (f := archive.extractfile(m))}


def keys(root: Path) -> None:
    for name in ("mok.key", "mok.pub"):
        machinetree.write(root / "var/lib/dkms" / name, "key")


@pytest.mark.spawns
def test_nothing_is_packed_before_there_is_a_key(root: Path) -> None:
    artefact = stage(root)
    assert packed(root, artefact) is None
    assert machinetree.ran(root, "openssl") == [], "staging makes none"
    keys(root)
    made = packed(root, artefact)
    assert made is not None
    assert made["demo.ko"] == GOOD + (root / "signature").read_bytes()
    assert made["make.log"] == b"log"
    assert artefact.modules[0].read_bytes() == GOOD, "what was staged stays as it is"
    assert sorted(os.listdir(artefact.tree.parent)) == [pack.ARCHIVE, "tree"]


@pytest.mark.spawns
def test_a_kernel_without_signatures(tmp_path: Path) -> None:
    machinetree.make(tmp_path)
    made = packed(tmp_path, stage(tmp_path))
    assert made is not None
    assert made["demo.ko"] == GOOD
    assert machinetree.ran(tmp_path, "sign-file") == []


@pytest.mark.spawns
@pytest.mark.parametrize("form", ["xz", "gz", "zst"])
def test_a_compressed_module_is_signed_inside(root: Path, form: str) -> None:
    keys(root)
    packs: dict[str, Callable[[bytes], bytes]] = {
        "xz": lzma.compress,
        "gz": gzip.compress,
        "zst": zstandard.ZstdCompressor().compress,
    }
    unpacks: dict[str, Callable[[bytes], bytes]] = {
        "xz": lzma.decompress,
        "gz": gzip.decompress,
        "zst": zstandard.ZstdDecompressor().decompressobj().decompress,
    }
    made = packed(root, stage(root, f"demo.ko.{form}", packs[form](GOOD)))
    assert made is not None
    assert [name for name in made if ".ko" in name] == [f"demo.ko.{form}"]
    assert unpacks[form](made[f"demo.ko.{form}"]) == GOOD + (root / "signature").read_bytes()
    if form == "xz":
        decompressor = lzma.LZMADecompressor()
        decompressor.decompress(made["demo.ko.xz"])
        assert decompressor.check == lzma.CHECK_CRC32, "the kernel's own decompressor knows no other"
        small = lzma.LZMADecompressor(memlimit=3 << 20)
        assert small.decompress(made["demo.ko.xz"]), "nor a large dictionary"
    elif form == "gz":
        assert made["demo.ko.gz"][4:8] == bytes(4), "the same module gives the same file"
    program = {"xz": "xz", "gz": "gzip", "zst": "zstd"}[form]
    assert len(machinetree.ran(root, program)) == 2, "unpacked once, packed once"


@pytest.mark.spawns
def test_framework_conf_says_how_modules_are_packed(root: Path) -> None:
    keys(root)
    said = machinetree.write(root / "etc/dkms/framework.conf", 'compress_xz_opts="--check=crc32 --lzma2=dict=4KiB"\n')
    assert packed(root, stage(root, "demo.ko.xz", lzma.compress(GOOD))) is not None
    assert machinetree.ran(root, "xz")[-1].startswith("--check=crc32 --lzma2=dict=4KiB -qf ")
    said.write_text("compress_xz_opts=--nonsense\n")
    with pytest.raises(BuildError, match="xz failed: .*nonsense") as e:
        packed(root, stage(root, "demo.ko.xz", lzma.compress(GOOD)))
    assert e.value.kind == Kind.PUBLISH


@pytest.mark.spawns
def test_a_link_in_the_stage_is_not_followed(root: Path) -> None:
    keys(root)
    artefact = stage(root)
    [module] = artefact.modules
    secret = machinetree.write(root / "etc/shadow", "secret")
    module.unlink()
    module.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        packed(root, artefact)
    module.unlink()
    os.mkfifo(module)  # whose reader would wait for ever
    with pytest.raises(BuildError, match="is no regular file"):
        packed(root, artefact)
    module.unlink()
    module.touch()
    with pytest.raises(BuildError, match="the staged module is empty") as e:
        packed(root, artefact)
    assert e.value.kind == Kind.PUBLISH
    assert os.listdir(artefact.tree.parent) == ["tree"]


@pytest.mark.spawns
def test_dkms_makes_no_archive(root: Path) -> None:
    keys(root)
    machinetree.tell(root, "dkms mktarball", "echo broken; exit 0")
    with pytest.raises(BuildError, match="made no archive") as e:
        packed(root, stage(root))
    assert (e.value.kind, e.value.evidence) == (Kind.PUBLISH, ("broken",))


@pytest.mark.spawns
def test_a_module_that_cannot_be_signed_is_not_packed(root: Path) -> None:
    keys(root)
    machinetree.tell(root, "sign-file sha512", "exit 0")
    artefact = stage(root)
    assert packed(root, artefact) is None, "publishing decides what follows from that"
    assert os.listdir(artefact.tree.parent) == ["tree"]


@pytest.mark.spawns
@pytest.mark.parametrize("check", [lzma.CHECK_CRC64, lzma.CHECK_CRC32])
def test_an_unsigned_module_is_packed_as_the_kernel_takes_it(tmp_path: Path, check: int) -> None:
    """dkms before 3.1 packs with CRC64. With CRC32 it was the compilation that stored it."""
    machinetree.make(tmp_path)
    stored = lzma.compress(GOOD, check=check)
    made = packed(tmp_path, stage(tmp_path, "demo.ko.xz", stored))
    assert made is not None
    assert not compression.refused(made["demo.ko.xz"][:8])
    assert lzma.decompress(made["demo.ko.xz"]) == GOOD
    assert len(machinetree.ran(tmp_path, "xz")) == 2
    assert [name for name in made if ".ko" in name] == ["demo.ko.xz"]
