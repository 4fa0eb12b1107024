# SPDX-License-Identifier: GPL-2.0-or-later
"""inotify's hard facts, each caused for real."""

from __future__ import annotations

import os
import select
import shutil
from typing import TYPE_CHECKING

import pytest

from knetstatd.daemon.inotify import Mounts, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The first inotify object of a process asks ldconfig where libc is.
pytestmark = pytest.mark.spawns


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch()
    yield made
    made.close()


def test_a_change_is_reported_under_its_label_with_its_name(watch: Watch, tmp_path: Path) -> None:
    assert watch.refresh([("modules", tmp_path)]) == {"modules"}
    assert watch.read().labels == frozenset()
    (tmp_path / "6.1").mkdir()
    changes = watch.read()
    assert changes.labels == {"modules"}
    assert changes.entries == {"modules": {"6.1"}}
    assert not changes.lost


def test_what_is_opened_to_all_is_seen_from_where_it_lies(watch: Watch, tmp_path: Path) -> None:
    """A directory that the daemon may not read cannot be watched itself."""
    (tmp_path / "source").mkdir(mode=0o700)
    watch.refresh([("dkms", tmp_path)])
    (tmp_path / "source").chmod(0o755)
    assert watch.read().entries == {"dkms": {"source"}}


def test_refresh_without_a_change_watches_nothing_anew(watch: Watch, tmp_path: Path) -> None:
    wanted = [("a", tmp_path), ("b", tmp_path / "missing"), ("c", tmp_path / "missing too")]
    assert watch.refresh(wanted) == {"a", "b", "c"}
    assert watch.refresh(wanted) == set(), "a daemon that looked again at each refresh would never sleep"


def test_a_missing_directory_is_seen_when_it_comes(watch: Watch, tmp_path: Path) -> None:
    wanted = [("boot", tmp_path / "boot")]
    watch.refresh(wanted)
    (tmp_path / "boot").mkdir()
    assert watch.read().labels == {"boot"}
    assert watch.refresh(wanted) == {"boot"}
    (tmp_path / "boot" / "vmlinuz").touch()
    assert watch.read().entries == {"boot": {"vmlinuz"}}


def test_removed_and_made_again(watch: Watch, tmp_path: Path) -> None:
    place = tmp_path / "d"
    place.mkdir()
    watch.refresh([("d", place)])
    place.rmdir()
    place.mkdir()
    assert watch.read().labels == {"d"}
    assert watch.refresh([("d", place)]) == {"d"}
    (place / "x").touch()
    assert watch.read().entries == {"d": {"x"}}


def test_renamed_away_and_replaced(watch: Watch, tmp_path: Path) -> None:
    """The watch would stay on the old inode and speak for the path."""
    place, other = tmp_path / "d", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    watch.refresh([("d", place)])
    place.rename(tmp_path / "old")
    other.rename(place)
    assert watch.read().labels == {"d"}
    watch.refresh([("d", place)])
    (tmp_path / "old" / "x").touch()
    assert watch.read().labels == frozenset()
    (place / "y").touch()
    assert watch.read().entries == {"d": {"y"}}


def test_a_symlink_that_is_pointed_elsewhere(watch: Watch, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("a")
    watch.refresh([("d", link)])
    link.unlink()
    link.symlink_to("b")
    assert watch.refresh([("d", link)]) == {"d"}
    (tmp_path / "b" / "x").touch()
    assert watch.read().entries == {"d": {"x"}}


def test_two_labels_for_one_directory(watch: Watch, tmp_path: Path) -> None:
    watch.refresh([("a", tmp_path), ("b", tmp_path)])
    (tmp_path / "x").touch()
    assert watch.read().entries == {"a": {"x"}, "b": {"x"}}


def test_no_longer_wanted(watch: Watch, tmp_path: Path) -> None:
    watch.refresh([("a", tmp_path)])
    watch.refresh([])
    (tmp_path / "x").touch()
    assert watch.read().labels == frozenset()


def test_overflow_is_said(watch: Watch, tmp_path: Path) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events") as f:
        most = int(f.read())
    watch.refresh([("a", tmp_path)])
    for number in range(most // 2 + 100):  # each makes two events: created, closed
        os.close(os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY))
    assert any(watch.read().lost for _ in range(most)), "the last event of a full queue says so"
    shutil.rmtree(tmp_path)


def test_strange_names_arrive_as_they_are(watch: Watch, tmp_path: Path) -> None:
    watch.refresh([("a", tmp_path)])
    for name in ("6.1.0-$(touch x)", "new\nline", "n" * 255):
        (tmp_path / name).touch()
    (tmp_path / os.fsdecode(b"\xff\xfe")).touch()
    assert len(watch.read().entries["a"]) == 4


def test_mounts_is_quiet_while_nothing_is_mounted() -> None:
    mounts = Mounts()
    try:
        poll = select.poll()
        poll.register(mounts.fileno(), select.POLLIN)
        assert poll.poll(0) == []
        mounts.read()
    finally:
        mounts.close()
