# SPDX-License-Identifier: GPL-2.0-or-later
"""Attempts: kept for each fingerprint, damaged files are no attempts, a reboot ends a wait."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.model import Attempt, Kind, Limits
from knetstatd.state import attempts
from knetstatd.state import paths as places

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = Limits(retry_first=30, retry_longest=3600)
FAILED = Attempt(Kind.DISK, 1, reason="full", fix="free", evidence=("a", "b"), log="/l")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    boot = tmp_path / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("one\n")
    return tmp_path


def test_kept_and_read_back(root: Path) -> None:
    kept = FAILED._replace(not_before=123.5, when=5.0)
    attempts.save(root, places.places(root), "6.1", "m", "1", "mark", kept)
    assert attempts.load(root, places.places(root), "6.1", "m", "mark") == kept


def test_another_fingerprint_starts_from_zero(root: Path) -> None:
    attempts.save(root, places.places(root), "6.1", "m", "1", "mark", FAILED)
    assert attempts.load(root, places.places(root), "6.1", "m", "other") is None
    assert attempts.load(root, places.places(root), "6.2", "m", "mark") is None


def test_a_reboot_ends_the_wait_but_not_the_count(root: Path) -> None:
    attempts.save(root, places.places(root), "6.1", "m", "1", "mark", FAILED._replace(times=4, not_before=9e9))
    (root / "proc/sys/kernel/random/boot_id").write_text("two\n")
    found = attempts.load(root, places.places(root), "6.1", "m", "mark")
    assert found
    assert (found.times, found.not_before) == (4, 0.0)


@pytest.mark.parametrize(
    ("kind", "loading", "again"),
    [(Kind.REFUSED, True, True), (Kind.DENIED, True, True), (Kind.REFUSED, False, False), (Kind.INTERRUPTED, True, False)],
)
def test_what_the_kernel_refused_is_asked_again_after_a_reboot(root: Path, kind: Kind, loading: bool, again: bool) -> None:
    """A firmware file, a device, a line in modprobe.d may be there now. Not within the boot; not what a rehearsal answered, nor
    what the machine did not survive."""
    attempts.save(root, places.places(root), "6.1", "m", "1", "mark", FAILED._replace(kind=kind, loading=loading))
    assert attempts.load(root, places.places(root), "6.1", "m", "mark")
    (root / "proc/sys/kernel/random/boot_id").write_text("two\n")
    assert (attempts.load(root, places.places(root), "6.1", "m", "mark") is None) == again


def test_a_machine_that_builds_bring_down_has_peace_after_the_boot(root: Path) -> None:
    attempt = None
    for count in range(1, 6):
        attempt = attempts.following(attempt, Attempt(Kind.INTERRUPTED, 1), LIMITS)
        attempts.save(root, places.places(root), "6.1", "m", "1", "mark", attempt)
        (root / "proc/sys/kernel/random/boot_id").write_text(f"{count}\n")
        attempt = attempts.load(root, places.places(root), "6.1", "m", "mark")
        assert attempt is not None
        assert attempt.times == count
        assert attempt.not_before == (600.0 if count > 3 else 0.0)


def test_loading_and_building_are_counted_apart() -> None:
    build = attempts.following(Attempt(Kind.INTERRUPTED, 2), Attempt(Kind.INTERRUPTED, 1), LIMITS)
    assert build.times == 3
    assert attempts.following(build, Attempt(Kind.INTERRUPTED, 1, loading=True), LIMITS).times == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 99}', "null", '{"schema": 1}', "\x00" * 50, "[" * 99999])
def test_a_damaged_file_is_no_attempt(root: Path, damage: str) -> None:
    attempts.save(root, places.places(root), "6.1", "m", "1", "mark", FAILED)
    places.places(root).attempt("6.1", "m").write_text(damage)
    assert attempts.load(root, places.places(root), "6.1", "m", "mark") is None


@pytest.mark.parametrize(("key", "value"), [
    ("kind", "no such"), ("times", "x"), ("evidence", 5), ("not_before", None), ("times", 1.5), ("loading", 1),
    ("not_before", float("inf")), ("boot_id", None), ("log", ["/x"]), ("reason", "\udcff"),
])  # fmt: skip
def test_a_wrong_value_is_no_attempt(root: Path, key: str, value: object) -> None:
    attempts.save(root, places.places(root), "6.1", "m", "1", "mark", FAILED)
    path = places.places(root).attempt("6.1", "m")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert attempts.load(root, places.places(root), "6.1", "m", "mark") is None


def test_forgotten(root: Path) -> None:
    attempts.forget(places.places(root), "6.1", "m")
    attempts.save(root, places.places(root), "6.1", "m", "1", "mark", FAILED)
    attempts.forget(places.places(root), "6.1", "m")
    assert attempts.load(root, places.places(root), "6.1", "m", "mark") is None


def test_the_same_failure_counts_up_and_waits_longer() -> None:
    now = attempts.now()
    first = attempts.following(None, FAILED, LIMITS)
    second = attempts.following(first, FAILED, LIMITS)
    assert (first.times, second.times) == (1, 2)
    assert 29 < first.not_before - now < 31
    assert 59 < second.not_before - now < 61
    assert attempts.following(second, FAILED._replace(kind=Kind.TIMEOUT), LIMITS).times == 1


def test_the_first_interruptions_wait_for_nothing() -> None:
    """Restarts are no failures; a build that brings the machine down every time is one."""
    before, waits = None, []
    for _ in range(5):
        before = attempts.following(before, Attempt(Kind.INTERRUPTED, 1), LIMITS)
        waits.append(before.not_before > attempts.now())
        assert abs(before.when - time.time()) < 60, "on the clock that people read"
    assert waits == [False, False, False, True, True]
