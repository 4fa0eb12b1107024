# SPDX-License-Identifier: GPL-2.0-or-later
"""The staged artefacts: the modules that were compiled and proven for one kernel, and not published yet."""

from __future__ import annotations

import itertools
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.state.paths import PUBLISHING
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from knetstatd.state.paths import Places

MOST = 256  # files of a build beside its modules
_PLAIN = re.compile(r"[\w.+~@/-]{1,200}", re.ASCII)


class Staged(NamedTuple):
    """A staged artefact. tree: a private dkms tree that holds it.  modules: its module files.  log: make's log.

    more: what else the build left beside them, by the path below the build's directory: Module.symvers for packages to come.
    """

    tree: Path
    modules: tuple[Path, ...]
    log: Path
    more: tuple[tuple[str, Path], ...] = ()


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
            log = place / "log" / "make.log"
            return Staged(tree, modules, log, tuple(_more(place, {log, *modules})))
    return None


def _more(place: Path, known: Collection[Path]) -> Iterator[tuple[str, Path]]:
    """The other regular files of a build, links not followed; the first MOST of them."""
    paths = (Path(where, name) for where, _, here in os.walk(place) for name in sorted(here))
    named = ((os.path.relpath(path, place), path) for path in paths if path not in known)
    plain = ((name, path) for name, path in named if _PLAIN.fullmatch(name) and stat.S_ISREG(path.lstat().st_mode))
    yield from itertools.islice(plain, MOST)


def clear(places: Places, kernel: str, package: str) -> None:
    """Removes the staged artefact and what killed runs left behind. The caller holds our lock."""
    import shutil  # only here: it imports four packers

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
