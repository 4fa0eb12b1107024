# SPDX-License-Identifier: GPL-2.0-or-later
"""The staged artefacts: the modules that were compiled and proven for one kernel, and not published yet."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.state.paths import PUBLISHING
from knetstatd.system import files

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.state.paths import Places


class Staged(NamedTuple):
    """A staged artefact. tree: a private dkms tree that holds it.  modules: its module files.  log: make's log."""

    tree: Path
    modules: tuple[Path, ...]
    log: Path


def find(places: Places, kernel: str, package: str, version: str, fingerprint: str) -> Staged | None:
    """The staged artefact, None if there is none or it was made from another source, other headers or compiler."""
    place = places.stage(kernel, package)
    if files.text(place / "fingerprint") != fingerprint:
        return None
    return built(place / "tree", kernel, package, version)


def built(tree: Path, kernel: str, package: str, version: str) -> Staged | None:
    """What a dkms tree holds for one kernel, None if nothing was built."""
    for arch in files.names(tree / package / version / kernel):
        place = tree / package / version / kernel / arch
        modules = tuple(place / "module" / name for name in files.names(place / "module") if names.module_of(name))
        if modules:
            return Staged(tree, modules, place / "log" / "make.log")
    return None


def clear(places: Places, kernel: str, package: str) -> None:
    """Removes the staged artefact and what killed runs left behind. The caller holds our lock."""
    base = places.stage(kernel, package).parent
    for name in files.names(places.stages):
        if name.startswith(PUBLISHING):
            shutil.rmtree(places.stages / name, ignore_errors=True)
    for name in files.names(base):
        if name == package or name.startswith(f".{package}."):
            shutil.rmtree(base / name, ignore_errors=True)
    for empty in (base, places.stages):
        try:
            empty.rmdir()
        except OSError:
            return
