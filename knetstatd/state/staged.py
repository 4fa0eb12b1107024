# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a staged artefact lies: the modules that were compiled and proven for one kernel, and not published yet."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.system import files

if TYPE_CHECKING:
    from pathlib import Path


# How the working directories of publications begin, beside those of the kernels.
PUBLISHING = ".publish."


class Staged(NamedTuple):
    """A staged artefact. tree: a private dkms tree that holds it.  modules: its .ko files.  log: make's log."""

    tree: Path
    modules: tuple[Path, ...]
    log: Path


def directory(state: Path, kernel: str, package: str) -> Path:
    """Where the staged artefact of one module and kernel lies."""
    return state / "stage" / kernel / package


def log_path(state: Path, kernel: str, package: str) -> Path:
    """Where the log of the last failed build of one module and kernel is kept."""
    return state / "kernels" / kernel / f"{package}.log"


def find(state: Path, kernel: str, package: str, version: str, fingerprint: str) -> Staged | None:
    """The staged artefact, None where there is none or it was made from another source, other headers or compiler."""
    place = directory(state, kernel, package)
    if files.text(place / "fingerprint") != fingerprint:
        return None
    return built(place / "tree", kernel, package, version)


def built(tree: Path, kernel: str, package: str, version: str) -> Staged | None:
    """What a dkms tree holds for one kernel, None where nothing was built."""
    for arch in files.names(tree / package / version / kernel):
        built = tree / package / version / kernel / arch
        modules = tuple(built / "module" / name for name in files.names(built / "module") if ".ko" in name)
        if modules:
            return Staged(tree, modules, built / "log" / "make.log")
    return None


def clear(state: Path, kernel: str, package: str) -> None:
    """Removes the staged artefact and what killed runs left behind. The caller holds our lock."""
    base = directory(state, kernel, package).parent
    for name in files.names(base.parent):
        if name.startswith(PUBLISHING):
            shutil.rmtree(base.parent / name, ignore_errors=True)
    for name in files.names(base):
        if name == package or name.startswith(f".{package}."):
            shutil.rmtree(base / name, ignore_errors=True)
    for empty in (base, base.parent):
        try:
            empty.rmdir()
        except OSError:
            return
