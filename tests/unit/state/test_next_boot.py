# SPDX-License-Identifier: GPL-2.0-or-later
"""What the next boot starts: root looks into the ESP, and who may not goes by what root has found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.boot.bootloader import Basis, Next
from knetstatd.state import next_boot
from knetstatd.state.paths import Places
from knetstatd.system import child

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
MINE, ROOTS = Next("6.1.0-1-amd64", "grub first entry"), Next("", "", "the ESP's grub.cfg leads away", Basis.UNKNOWN)

pytestmark = [
    pytest.mark.usefixtures("open_to_all"),
    pytest.mark.skipif(os.geteuid() != 0, reason="closes directories to others"),
]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A machine with GRUB, whose ESP is open to root alone, as Debian mounts it."""
    for name in ("boot/grub/grub.cfg", "boot/efi/EFI/debian/grub.cfg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("configfile\n")
    (tmp_path / "boot/efi").chmod(0o700)
    yield tmp_path
    (tmp_path / "boot/efi").chmod(0o755)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "state", tmp_path / "run/knetstatd", tmp_path / "caches")


def by_nobody(root: Path, places: Places, mine: Next = MINE) -> tuple[Next, str]:
    """The same for the daemon's user."""

    def work() -> list[str]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, 0)
        answer, closed = next_boot.settled(root, places, mine)
        os.setresuid(0, 0, 0)  # coverage writes what ran
        return [answer.release, answer.source, answer.detail, answer.basis.value, closed]

    release, source, detail, basis, closed = child.in_child(work)
    return Next(release, source, detail, Basis(basis)), closed


def test_root_goes_by_its_own_look(root: Path, places: Places) -> None:
    assert next_boot.settled(root, places, ROOTS) == (ROOTS, "")
    assert next_boot.settled(root, places, MINE) == (MINE, "")


def test_another_user_goes_by_roots(root: Path, places: Places) -> None:
    answer, closed = by_nobody(root, places)
    assert (answer, closed.startswith(f"{root}/boot/efi ")) == (MINE, True), "root is asked to look"
    next_boot.settled(root, places, ROOTS._replace(arguments="quiet", initrds=(Path("/boot/initrd.img"),)))
    assert by_nobody(root, places) == (ROOTS, "")
    next_boot.settled(root, places, MINE)
    assert by_nobody(root, places, ROOTS) == (MINE, "")


def test_roots_answer_stands_while_nothing_has_changed(root: Path, places: Places) -> None:
    next_boot.settled(root, places, ROOTS)
    (root / "boot/grub/grub.cfg").write_text("menuentry\n")
    answer, closed = by_nobody(root, places)
    assert (answer, bool(closed)) == (MINE, True)
    next_boot.settled(root, places, ROOTS)
    assert by_nobody(root, places) == (ROOTS, "")


def test_nothing_is_kept_that_everybody_may_see(root: Path, places: Places) -> None:
    (root / "boot/efi").chmod(0o755)
    next_boot.settled(root, places, ROOTS)
    assert not places.next_boot.parent.exists()


def test_the_same_answer_is_not_written_twice(root: Path, places: Places) -> None:
    next_boot.settled(root, places, ROOTS)
    before = places.next_boot.stat()
    next_boot.settled(root, places, ROOTS)
    assert places.next_boot.stat() == before


def test_a_menu_that_is_closed(root: Path, places: Places) -> None:
    """As GRUB's is that has a password in it."""
    (root / "boot/efi").chmod(0o755)
    assert by_nobody(root, places, ROOTS) == (ROOTS, ""), "nothing is closed"
    (root / "boot/grub/grub.cfg").chmod(0o600)
    next_boot.settled(root, places, MINE)
    assert by_nobody(root, places, ROOTS) == (MINE, "")


@pytest.mark.parametrize("change", [{"basis": "sure"}, {"release": 7}, {"mark": []}, {"detail": None}, None])
def test_what_was_kept_may_be_anything(root: Path, places: Places, change: dict[str, object] | None) -> None:
    next_boot.settled(root, places, ROOTS)
    document = json.loads(places.next_boot.read_text())
    places.next_boot.write_text(json.dumps(document | change) if change else "{")
    answer, closed = by_nobody(root, places)
    assert (answer, bool(closed)) == (MINE, True)


def test_nowhere_to_keep_it(root: Path, places: Places) -> None:
    places.next_boot.parent.parent.mkdir(parents=True, exist_ok=True)
    places.next_boot.parent.write_text("no directory")
    assert next_boot.settled(root, places, ROOTS) == (ROOTS, "")
