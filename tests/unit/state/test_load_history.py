# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of loadings, and that neither damage nor a directory that cannot be written is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from knetstatd.state import load_history

if TYPE_CHECKING:
    from pathlib import Path


def test_loadings_are_kept_until_they_are_forgotten(tmp_path: Path) -> None:
    assert load_history.known(tmp_path, "demo") == ()
    load_history.add(tmp_path, "demo", 5.25)
    load_history.add(tmp_path, "demo", 3.5)
    load_history.add(tmp_path, "other", 1.0)
    assert load_history.known(tmp_path, "demo") == (3.5, 5.25)
    load_history.forget(tmp_path, "demo")
    assert load_history.known(tmp_path, "demo") == ()
    assert load_history.known(tmp_path, "other") == (1.0,)


def test_one_that_somebody_else_loaded_counts_once(tmp_path: Path) -> None:
    load_history.seen(tmp_path, "demo", 7.0)
    load_history.seen(tmp_path, "demo", 8.0)
    assert load_history.known(tmp_path, "demo") == (7.0,)


def test_no_more_is_kept_than_anybody_asks_for(tmp_path: Path) -> None:
    for when in range(100):
        load_history.add(tmp_path, "demo", float(when))
    kept = load_history.known(tmp_path, "demo")
    assert len(kept) < 50
    assert kept[-1] == 99.0


def test_what_cannot_be_read_or_written_allows_a_loading(tmp_path: Path) -> None:
    load_history.add(tmp_path, "demo", 1.0)
    (tmp_path / "loads/demo").write_bytes(b"\xff nonsense")
    assert load_history.known(tmp_path, "demo") == ()
    load_history.add(tmp_path / "nowhere/at/all", "demo", 1.0)
    assert load_history.known(tmp_path / "nowhere/at/all", "demo") == ()
