# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of a kernel or a package goes when that does; nothing else does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from knetstatd.state import leftovers, paths
from knetstatd.system import locks

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.state.paths import Places

K, GONE = "6.12.1+deb13-amd64", "6.1.0-9-amd64"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Everything that can be kept, for two kernels and two packages."""
    made = paths.places(tmp_path)
    for kernel in (K, GONE):
        for package in ("mine", "purged"):
            for path in (
                made.attempt(kernel, package), made.log(kernel, package), made.rehearsal(kernel, package),
                made.stage(kernel, package) / "fingerprint", made.loads(package), made.refused(package),
                made.initrds / f"{kernel}.json",
            ):  # fmt: skip
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    (made.stages / ".publish.x").mkdir()
    (made.stages / K / ".mine.x").mkdir()
    made.runtime.mkdir(parents=True)
    for path in (made.status, made.motd, made.build_lock):
        path.touch()
    return made


def kept(places: Places) -> set[str]:
    return {os.path.relpath(os.path.join(where, name), places.state.parents[2])
            for where, _, names in os.walk(places.state.parents[2]) for name in names}  # fmt: skip


def test_nothing_of_what_is_there_is_a_leftover(places: Places) -> None:
    assert leftovers.find(places, {K, GONE}, {"mine", "purged"}) == []


def test_a_kernel_that_is_gone(places: Places) -> None:
    before = kept(places)
    leftovers.forget(places, {K}, {"mine", "purged"})
    assert before - kept(places) == {name for name in before if GONE in name}
    assert not (places.stages / GONE).exists()
    assert leftovers.find(places, {K}, {"mine", "purged"}) == []


def test_a_package_that_is_gone(places: Places) -> None:
    before = kept(places)
    leftovers.forget(places, {K, GONE}, {"mine"})
    assert before - kept(places) == {name for name in before if "purged" in name}
    assert (places.stages / K / ".mine.x").exists(), "a compilation is at work in it"
    assert (places.stages / ".publish.x").exists()


def test_both(places: Places) -> None:
    leftovers.forget(places, {K}, {"mine"})
    assert not [name for name in kept(places) if GONE in name or "purged" in name]
    assert {"run/knetstatd/status.json", f"var/lib/knetstatd/initrd/{K}.json"} <= kept(places)


def test_empty_directories_go_and_ours_stay(places: Places) -> None:
    leftovers.forget(places, (), ())
    assert sorted(os.listdir(places.state)) == ["stage"], "a publication is at work there"
    assert sorted(os.listdir(places.runtime)) == ["motd", "status.json"]
    assert os.listdir(places.builders) == ["builder.lock"]


def test_names_that_are_nobodys_are_left_alone(places: Places) -> None:
    (places.state / "kernels" / "not a kernel").mkdir()
    (places.state / "kernels" / K / "not a package.json").touch()
    (places.state / "kernels" / GONE).rename(places.state / "elsewhere")
    (places.state / "kernels" / GONE).symlink_to("../elsewhere")
    leftovers.forget(places, {K}, {"mine"})
    assert (places.state / "kernels" / "not a kernel").exists()
    assert (places.state / "kernels" / K / "not a package.json").exists()
    assert not os.path.lexists(places.state / "kernels" / GONE), "a link is taken away"
    assert (places.state / "elsewhere" / "mine.json").exists(), "and not followed"


def test_without_any_state(tmp_path: Path) -> None:
    assert leftovers.find(paths.places(tmp_path), (), ()) == []
    leftovers.forget(paths.places(tmp_path), (), ())
    assert os.listdir(tmp_path) == []


def test_all_is_left_to_a_builder_that_is_at_work(places: Places) -> None:
    before = kept(places)
    with locks.locked(places.build_lock, 0.0):
        leftovers.forget(places, {K}, {"mine"})
        assert kept(places) == before
    leftovers.forget(places, {K}, {"mine"})
    assert kept(places) < before


def test_a_kernel_may_be_called_like_a_file_of_ours(tmp_path: Path) -> None:
    places, odd = paths.places(tmp_path), "6.1.json"
    places.attempt(odd, "m").parent.mkdir(parents=True)
    assert list(places.of_kernels()) == [(odd, places.state / "kernels" / odd)]


def test_a_runtime_directory_that_is_gone_is_no_error(places: Places) -> None:
    """The lock cannot be taken, so nothing is deleted."""
    before = kept(places)
    places.build_lock.unlink()
    places.build_lock.mkdir()
    leftovers.forget(places, (), ())
    assert kept(places) == before - {f"run/knetstatd-build/{places.build_lock.name}"}
