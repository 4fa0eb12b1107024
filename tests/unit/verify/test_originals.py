# SPDX-License-Identifier: GPL-2.0-or-later
"""What DKMS would put back: a whole module of that kernel that it has not made itself, and nothing else."""

from __future__ import annotations

import lzma
import os
import random
from typing import TYPE_CHECKING

import kerneltree
import pytest
from kerneltree import KERNEL
from machinetree import ARCH, write

from knetstatd.verify import originals

if TYPE_CHECKING:
    from pathlib import Path

GOOD = kerneltree.module("demo")
GARBAGE = random.Random(14).randbytes(3000)
PLACE = f"var/lib/dkms/demo/original_module/{KERNEL}/{ARCH}"
IN_TREE = f"/lib/modules/{KERNEL}/kernel/net/demo.ko\n"


def reasons(root: Path) -> list[str]:
    return [one.reason for one in originals.unfit(root)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (GOOD, ""),
        (lzma.compress(GOOD), ""),
        (GARBAGE, "it "),
        (b"", "it "),
        (GOOD[:-200], "it "),
        (lzma.compress(GOOD)[:-30], "it "),
        (kerneltree.module("demo", vermagic="6.1.0-9-amd64 SMP "), "it is for the kernel "),
        (kerneltree.module("demo", vermagic=""), "it does not say"),
        (GOOD.replace(b"demo" + bytes(40), b"dema" + bytes(40)), "its form is damaged: its struct module has another name"),
    ],
    ids=["whole", "packed", "garbage", "empty", "cut", "packed-cut", "foreign", "nobody's", "formless"],
)
@pytest.mark.parametrize("below", ["", "collisions/kernel/net/"])
def test_only_a_whole_module_of_that_kernel_is_an_original(tmp_path: Path, data: bytes, reason: str, below: str) -> None:
    path = write(tmp_path / PLACE / below / "demo.ko.xz", data)
    write(path.with_name("demo.ko.xz.origin"), IN_TREE)
    [*answers] = originals.unfit(tmp_path)
    if not reason:
        assert answers == []
        return
    [one] = answers
    assert one.reason.startswith(reason)
    assert one.kernel == KERNEL
    assert [path.name for path in one.paths] == ["demo.ko.xz", "demo.ko.xz.origin"]
    originals.remove(one)
    assert sorted(os.listdir(tmp_path / "var/lib/dkms/demo")) == []


def test_what_dkms_has_made_itself_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / PLACE / "demo.ko", GOOD)
    assert reasons(tmp_path) == []
    origin = write(path.with_name("demo.ko.origin"), f"/lib/modules/{KERNEL}/updates/dkms/demo.ko\n")
    assert reasons(tmp_path) == ["DKMS itself had installed it"]
    origin.write_text(f"/lib/modules/{KERNEL}/extra/demo.ko\n")
    assert reasons(tmp_path) == []
    (tmp_path / "var/lib/dkms/demo/0.9").mkdir()
    (tmp_path / "var/lib/dkms/demo/0.9/source").symlink_to("/usr/src/demo-0.9")
    write(tmp_path / f"var/lib/dkms/demo/0.9/{KERNEL}/{ARCH}/module/demo.ko", GOOD)
    assert reasons(tmp_path) == ["DKMS itself had built it"]


def test_what_cannot_be_judged_is_left(tmp_path: Path) -> None:
    path = tmp_path / PLACE / "demo.ko"
    path.parent.mkdir(parents=True)
    path.symlink_to("/lib/modules/6.0/extra/demo.ko")
    write(tmp_path / "var/lib/dkms/demo/original_module/$(reboot)/x86_64/demo.ko", GARBAGE)
    assert reasons(tmp_path) == []


def test_an_original_that_stays_keeps_its_directory(tmp_path: Path) -> None:
    write(tmp_path / PLACE / "demo.ko", GOOD)
    write(tmp_path / PLACE / "other.ko", GARBAGE)
    [one] = originals.unfit(tmp_path)
    originals.remove(one)
    assert os.listdir(tmp_path / PLACE) == ["demo.ko"]
