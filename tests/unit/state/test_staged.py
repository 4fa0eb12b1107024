# SPDX-License-Identifier: GPL-2.0-or-later
"""Staged artefacts: found for the fingerprint that they were made with, and cleared with what killed runs left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from knetstatd.state import paths, staged

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.state.paths import Places

K = "6.1.0-9-amd64"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """With one module staged."""
    made = paths.places(tmp_path)
    built = made.stage(K, "m") / "tree/m/1" / K / "x86_64"
    (built / "module").mkdir(parents=True)
    for name in ("m.ko.xz", "a.ko", "notes.txt"):
        (built / "module" / name).touch()
    (made.stage(K, "m") / "fingerprint").write_text("mark")
    return made


def test_it_is_found(places: Places) -> None:
    artefact = staged.find(places, K, "m", "1", "mark")
    assert artefact is not None
    assert [path.name for path in artefact.modules] == ["a.ko", "m.ko.xz"]
    assert artefact.tree == places.stage(K, "m") / "tree"
    assert artefact.log == artefact.modules[0].parents[1] / "log/make.log"


@pytest.mark.parametrize(("kernel", "package", "version", "mark"), [
    (K, "m", "1", "other"), (K, "m", "2", "mark"), (K, "n", "1", "mark"), ("6.2", "m", "1", "mark"),
])  # fmt: skip
def test_another_one_is_none(places: Places, kernel: str, package: str, version: str, mark: str) -> None:
    assert staged.find(places, kernel, package, version, mark) is None


def test_half_of_one_is_none(places: Places) -> None:
    (places.stage(K, "m") / "fingerprint").unlink()
    assert staged.find(places, K, "m", "1", "mark") is None
    os.mkfifo(places.stage(K, "m") / "fingerprint")
    assert staged.find(places, K, "m", "1", "mark") is None, "and nobody waits for it"


def test_without_a_module_there_is_none(places: Places) -> None:
    artefact = staged.find(places, K, "m", "1", "mark")
    assert artefact is not None
    for path in artefact.modules:
        path.unlink()
    assert staged.find(places, K, "m", "1", "mark") is None


def test_clearing_leaves_what_is_of_others(places: Places) -> None:
    for name in (f"{K}/.m.killed/tree", f"{K}/other/tree", f"{K}/.other.at_work", ".publish.killed/tree"):
        (places.stages / name).mkdir(parents=True)
    staged.clear(places, K, "m")
    assert sorted(os.listdir(places.stages)) == [K]
    assert sorted(os.listdir(places.stages / K)) == [".other.at_work", "other"]


def test_clearing_the_last_one_leaves_no_directory(places: Places) -> None:
    staged.clear(places, K, "m")
    assert not places.stages.exists()
    staged.clear(places, K, "m")


def test_clearing_leaves_what_is_no_directory(places: Places) -> None:
    """Somebody else's file has one of our names: a builder goes on all the same."""
    (places.stages / ".publish.file").touch()
    (places.stages / K / ".m.file").touch()
    staged.clear(places, K, "m")
    assert not places.stage(K, "m").exists()
