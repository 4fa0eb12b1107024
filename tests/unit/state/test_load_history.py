# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of loadings, and that neither damage nor a directory that cannot be written is an error."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from knetstatd.state import load_history
from knetstatd.state.paths import Places

if TYPE_CHECKING:
    from pathlib import Path


def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "unused", tmp_path / "run", tmp_path / "unused")
    if tmp_path.exists():
        made.runtime.mkdir(exist_ok=True)
        made.builders.mkdir(exist_ok=True)
    return made


def test_loadings_are_kept_until_they_are_forgotten(tmp_path: Path) -> None:
    assert load_history.known(places(tmp_path), "demo") == ()
    load_history.add(places(tmp_path), "demo", 5.25)
    load_history.add(places(tmp_path), "demo", 3.5)
    load_history.add(places(tmp_path), "other", 1.0)
    assert load_history.known(places(tmp_path), "demo") == (3.5, 5.25)
    load_history.forget(places(tmp_path), "demo")
    assert load_history.known(places(tmp_path), "demo") == ()
    assert load_history.known(places(tmp_path), "other") == (1.0,)


def test_what_was_forgotten_does_not_count(tmp_path: Path) -> None:
    load_history.add(places(tmp_path), "demo", 5.0)
    places(tmp_path).loads("demo").write_text("4.0\n5.0\n-5.0\n7.0\n")
    assert load_history.known(places(tmp_path), "demo") == (7.0,)


def test_one_that_somebody_else_loaded_counts_once(tmp_path: Path) -> None:
    load_history.seen(places(tmp_path), "demo", 7.0)
    load_history.seen(places(tmp_path), "demo", 8.0)
    assert load_history.known(places(tmp_path), "demo") == (7.0,)


def test_no_more_is_kept_than_anybody_asks_for(tmp_path: Path) -> None:
    for when in range(100):
        load_history.add(places(tmp_path), "demo", float(when))
    kept = load_history.known(places(tmp_path), "demo")
    assert len(kept) < 50
    assert kept[-1] == 99.0


@pytest.mark.parametrize("damage", [b"\xff nonsense", b"inf\n", b"1.0\nnan\n", b"1e999", b"1.0\n" * (1 << 18) + b"1"])
def test_a_damaged_file_allows_a_loading(tmp_path: Path, damage: bytes) -> None:
    load_history.add(places(tmp_path), "demo", 1.0)
    places(tmp_path).loads("demo").write_bytes(damage)
    assert load_history.known(places(tmp_path), "demo") == ()
    load_history.add(places(tmp_path), "demo", 2.0)
    assert load_history.known(places(tmp_path), "demo") == (2.0,)


def test_a_fifo_in_the_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    for place in (places(tmp_path).loads("demo"), places(tmp_path).refused("demo")):
        place.parent.mkdir()
        os.mkfifo(place)
    assert load_history.known(places(tmp_path), "demo") == ()
    assert not load_history.refused(places(tmp_path), "demo", [])


def test_a_directory_that_cannot_be_written_allows_a_loading(tmp_path: Path) -> None:
    nowhere = places(tmp_path / "nowhere/at/all")
    load_history.add(nowhere, "demo", 1.0)
    assert load_history.known(nowhere, "demo") == ()
    assert not load_history.refuse(nowhere, "demo", []), "who cannot remember it must not build again and again"


def test_a_file_of_any_name_may_be_refused(tmp_path: Path) -> None:
    """A module's directory is somebody else's; its name need not be text."""
    odd = tmp_path / os.fsdecode(b"\xff.ko")
    odd.touch()
    assert load_history.refuse(places(tmp_path), "m", [odd])
    assert load_history.refused(places(tmp_path), "m", [odd])


def test_one_refusal_is_remembered_in_a_boot(tmp_path: Path) -> None:
    place, first, second = places(tmp_path), tmp_path / "first.ko", tmp_path / "second.ko"
    first.touch()
    second.touch()
    assert not load_history.refused(place, "m", [first])
    assert load_history.refuse(place, "m", [first])
    assert load_history.refused(place, "m", [first])
    assert not load_history.refused(place, "m", [second])
    assert not load_history.refuse(place, "m", [second]), "it was built again once already"
    first.write_text("another file")
    assert not load_history.refused(place, "m", [first])
    load_history.forget(place, "m")
    assert load_history.refuse(place, "m", [second])


def test_what_the_daemon_has_seen_counts_until_an_administrator_forgets_it(tmp_path: Path) -> None:
    """The daemon has a directory of its own: it writes in no file of a builder's, nor the other way round."""
    place, now = places(tmp_path), time.clock_gettime(time.CLOCK_BOOTTIME)
    load_history.seen(place, "m", now - 5)
    load_history.seen(place, "m", now - 4)
    assert load_history.known(place, "m") == (now - 5,)
    load_history.add(place, "m", now - 3)
    assert load_history.known(place, "m") == (now - 5, now - 3)
    load_history.forget(place, "m")
    assert load_history.known(place, "m") == ()
    assert place.seen("m").exists()
    load_history.seen(place, "m", now + 60)
    assert load_history.known(place, "m") == (now + 60,)
