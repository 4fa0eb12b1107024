# SPDX-License-Identifier: GPL-2.0-or-later
"""A package's modules in the running kernel: are they in, are they the installed ones, and do they work?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knetstatd.core.model import Loaded
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from knetstatd.core.model import Proof

# The module that has a probe.
PROBED = "knetstat"


class Live:
    """What /sys/module says, and which loading of knetstat has passed its probe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._passed = 0

    def look(self, installed: tuple[tuple[str, Proof], ...], *, wanted: bool) -> tuple[Loaded, str]:
        """The state of the installed modules. For FAULTY, with what the probe found wrong; for OUTDATED, with the names of
        those modules, each behind the modules of the package that use it, as `modprobe -r` wants them.

        wanted: whether it matters that one of them is not loaded.
        """
        contained = (self._root / "run/systemd/container").exists()  # shares its host's kernel, and may load nothing
        if contained or not (self._root / "proc/modules").exists():
            return Loaded.NOT_HERE, ""
        installed = tuple((proof.module or name, proof) for name, proof in installed)  # a file may be called otherwise
        places = {name: self._root / "sys/module" / name for name, _ in installed}
        outdated = [name for name, proof in installed if not _is_copy(places[name], proof)]
        # A package without modules is not loaded: else its first loading would count as one after an unloading.
        if not installed or not all(map(is_live, places.values())):
            return Loaded.NO if wanted else Loaded.NOT_HERE, ""
        if outdated:
            return Loaded.OUTDATED, " ".join(dict.fromkeys(one for name in outdated for one in _with_users(places, name)))
        faults = "; ".join(self._probe(places[PROBED])) if PROBED in places else ""
        return (Loaded.FAULTY, faults) if faults else (Loaded.CURRENT, "")

    def _probe(self, place: Path) -> tuple[str, ...]:
        """What is wrong with the loaded knetstat. One loading that has passed is not asked again."""
        before = _loading(place)
        if before in (0, self._passed):
            return ()
        from knetstatd.formats import knetstat_proc  # not in the memory of a daemon that never needs it

        faults = knetstat_proc.probe(self._root)
        if _loading(place) != before:
            return ()  # it was taken out meanwhile; that is told by an event
        if not faults:
            self._passed = before
        return faults


def _with_users(places: Mapping[str, Path], name: str) -> Iterator[str]:
    """A loaded module, behind those of `places` that use it."""
    for user in files.names(places[name] / "holders"):
        if user in places:
            yield from _with_users(places, user)
    yield name


def _is_copy(place: Path, proof: Proof) -> bool:
    """Whether a loaded module is of the installed file: by its source, or, if neither tells that, by its build."""
    source = (files.text(place / "srcversion", 128) or "").strip()
    if source or proof.srcversion:
        return source == proof.srcversion
    try:
        note = files.read(place / "notes/.note.gnu.build-id", 4096)
    except OSError:
        return True  # a kernel that does not tell
    return not proof.build_id or note[16:].hex() == proof.build_id  # as ko reads that of the file


def is_live(place: Path) -> bool:
    """Whether a module is in, by its directory in /sys/module: one whose init hangs, or has died, stays `coming` for ever."""
    return (files.text(place / "initstate", 16) or "").strip() == "live"


def _loading(place: Path) -> int:
    """Which loading of a module this is: its directory has a new inode each time. 0: it is not live, or not yet."""
    identity = files.identity(place)
    return identity.ino if identity is not None and is_live(place) else 0
