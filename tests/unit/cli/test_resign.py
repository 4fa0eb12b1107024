# SPDX-License-Identifier: GPL-2.0-or-later
"""What DKMS has installed gets a signature by the key of today, or stays as it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import elf
import kerneltree
import machinetree
import pytest
from keys import Key
from machinetree import ARCH, GOOD, KERNEL

from knetstatd.cli import resign
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.model import Action
from knetstatd.system.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.spawns
INSTALLED = f"lib/modules/{KERNEL}/updates/dkms/demo.ko"
COPY = f"var/lib/dkms/demo/1.0/{KERNEL}/{ARCH}/module/demo.ko"


@pytest.fixture
def told(tmp_path: Path) -> Iterator[machinetree.Told]:
    (tmp_path / "journal.d").mkdir()
    with machinetree.Told(tmp_path / "journal.d") as told:
        yield told


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with a signed module, and since then another key."""
    machinetree.make(tmp_path, signed=True)
    made = machinetree.machine(tmp_path)
    builder = machinetree.builder(made)
    for action in (Action.STAGE, Action.PUBLISH):
        assert builder.step(machinetree.look(made), action)
    assert (tmp_path / INSTALLED).read_bytes() == GOOD + (tmp_path / "signature").read_bytes()
    return tmp_path


def again(root: Path, told: machinetree.Told) -> list[str]:
    """Why each package was not signed."""
    made = machinetree.machine(root)
    return [one.reason for one in resign.resign(made, told.journal, Progress(shown=False), [KERNEL])]


def test_a_new_key_takes_the_place_of_the_old_ones_signature(root: Path, told: machinetree.Told) -> None:
    (root / "signature").write_bytes(new := elf.sign(b"", Key("another", 9).signature(GOOD)))
    machinetree.tell(root, "sign-file sha512", 'tail -c 29 "$4" | grep -q appended && exit 1')  # nothing is signed twice
    assert again(root, told) == [""]
    assert (root / INSTALLED).read_bytes() == (root / COPY).read_bytes() == GOOD + new
    [entry] = told.entries()
    assert (entry["event"], "signed again" in entry["message"]) == ("published", True)
    assert "build" not in [line.split()[0] for line in machinetree.ran(root, "dkms")[-3:]]
    assert all(proof.loads for proof in machinetree.prove(root))


def test_what_cannot_be_signed_stays(root: Path, told: machinetree.Told) -> None:
    before = (root / INSTALLED).read_bytes()
    machinetree.tell(root, "sign-file sha512", "echo no; exit 1")
    [reason] = again(root, told)
    assert "sign-file failed: no; nothing was changed" in reason
    assert (root / INSTALLED).read_bytes() == before
    assert told.entries() == []


def test_what_is_not_good_is_left_to_a_build(root: Path, told: machinetree.Told) -> None:
    (root / INSTALLED).write_bytes(kerneltree.module("demo", undefined=["printk", "gone"]))
    [reason] = again(root, told)
    assert reason.startswith("it is not good as it is: ")
    machinetree.register(root, "2.0")
    assert again(root, told) == [f"version 2.0 is registered, and another is installed; run knetstatctl build {KERNEL}"]


def test_nothing_to_sign(root: Path, told: machinetree.Told) -> None:
    config = root / f"usr/src/linux-headers-{KERNEL}/.config"
    config.write_text("")
    assert again(root, told) == ["nothing signs for this kernel here"]
    os.unlink(root / f"var/lib/dkms/demo/kernel-{KERNEL}-{ARCH}")
    assert again(root, told) == []


def test_while_others_are_at_work(root: Path, told: machinetree.Told) -> None:
    lock = root / "var/lib/dpkg/lock-frontend"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.symlink_to(lock)  # whether it is held cannot be known: that counts as held
    with pytest.raises(KnetstatdError, match="is at work"):
        again(root, told)
