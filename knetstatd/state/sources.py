# SPDX-License-Identifier: GPL-2.0-or-later
"""Of which source the modules that DKMS has for a kernel were compiled: contents decide, and not their times.

Rule 1: losing these files costs one thing: times decide. A source counts as changed if it is younger than its modules.
Rule 2: what is kept counts for as long as DKMS's copy of a module is the file that it was. Who builds anew makes another one.
Rule 3: contents are read only if the times are not those that are kept: `touch` costs one reading, a steady look none.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core.errors import ChildLost
from knetstatd.machine import host, kernels
from knetstatd.state import digests
from knetstatd.system import documents, files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from knetstatd.dkms.dkms_tree import Package
    from knetstatd.state.paths import Places

SCHEMA = 1
_MOST_FILES, _MOST_BYTES = 20000, 1 << 30  # the largest package has 5,000 files and 200 MB


class Source(NamedTuple):
    """A source tree. mark: its times, see kernels.Age.  digest: of its contents."""

    mark: str
    digest: str


def digest(source: Path) -> str:
    """The digest of all that a compilation sees of a source tree; "" if that cannot be read, or is too much."""
    import hashlib  # 3 MB; only if something is compared

    known, count, size = hashlib.sha256(), 0, 0
    blind: list[OSError] = []
    try:
        for where, below, names in os.walk(source, onerror=blind.append):
            below.sort()
            for name in sorted((*names, *below)):
                path = os.path.join(where, name)
                seen = os.lstat(path)
                kind, length = stat.S_IFMT(seen.st_mode), seen.st_size
                target = os.readlink(path) if stat.S_ISLNK(kind) else ""
                count, size = count + 1, size + length
                if count > _MOST_FILES or size > _MOST_BYTES or kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
                    return ""
                # Each part is ended by a NUL, which no name has: no two trees give the same text.
                runs = seen.st_mode & 0o111 != 0
                about = (os.path.relpath(path, source), f"{kind:o} {runs}", target)
                known.update(b"".join(os.fsencode(part) + b"\0" for part in about))
                if kind == stat.S_IFREG:
                    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
                        known.update(hashlib.file_digest(f, "sha256").digest())
    except OSError:
        return ""
    return "" if blind or not count else known.hexdigest()


def save(places: Places, kernel: str, package: str, copies: Iterable[Path], source: Source) -> None:
    """Keeps, durably, of which source DKMS's copies of modules were compiled. Raises OSError."""
    target = places.sources(kernel, package)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(
        target, {"schema": SCHEMA, **source._asdict(), "copies": {copy.name: digests.mark(copy) for copy in copies}}
    )


def of(places: Places, kernel: str, package: str, copy: Path) -> Source | None:
    """The source of one of DKMS's copies; None if it is not kept, or the copy was another file."""
    document = documents.read(places.sources(kernel, package))
    try:
        if document is None or document.integer("schema") != SCHEMA:
            return None
        known = document.table("copies").get(copy.name)
        return Source(document.text("mark"), document.text("digest")) if known and known == digests.mark(copy) else None
    except documents.Malformed:
        return None


def of_now(source: Path, age: kernels.Age) -> Source | None:
    """A source tree as it is; None if it is not what `age` says any more, or cannot be read."""
    contents = digest(source)
    return Source(age.mark, contents) if contents and kernels.age(source) == age else None


def of_then(source: Path, age: kernels.Age) -> Source | None:
    """What a module that was compiled at `age` is of; None if the source cannot be read. Of one that was edited since, the
    contents are not known: it has no digest, so that no other source is taken for it."""
    now = of_now(source, age)
    return Source(age.mark, "") if now is None and kernels.age(source) != age else now


class Sources:
    """The sources of a machine's packages. ages: what their times say; to be emptied when the machine is looked at anew."""

    def __init__(self, places: Places, in_child: Callable[[Callable[[], list[Any]]], list[Any]] | None = None) -> None:
        """in_child: computes an answer apart, so that the memory that it takes is given back."""
        self.ages: dict[Path, kernels.Age] = {}
        self._places = places
        self._in_child = in_child
        self._now: dict[Path, tuple[kernels.Age, Source | None]] = {}

    def age(self, source: Path) -> kernels.Age:
        """What the times of a source say."""
        if source not in self.ages:
            self.ages[source] = kernels.age(source)
        return self.ages[source]

    def is_of(self, kernel: str, package: Package, copy: Path) -> bool | None:
        """Whether one of DKMS's copies was compiled of the source as it is, whatever its times; None if that is not known."""
        kept, source = of(self._places, kernel, package.name, copy), package.wanted(kernel).source
        if kept is None or kept.mark == self.age(source).mark:
            return None if kept is None else True
        now = self._read(source)
        return None if now is None else now.digest == kept.digest

    def unkept(self, kernel: str, package: Package | None) -> str:
        """The mark of the source, if a kernel's modules are known to be of it, and that is not kept with this mark; else ""."""
        copies = _copies(kernel, package) if package is not None else []
        if package is None or not copies:
            return ""
        age, kept = self.age(package.wanted(kernel).source), (of(self._places, kernel, package.name, copy) for copy in copies)
        if all(one is not None and one.mark == age.mark for one in kept):
            return ""
        known = ((self.is_of(kernel, package, copy), age.changed <= host.written(copy)) for copy in copies)
        return age.mark if all(not_later if is_of is None else is_of for is_of, not_later in known) else ""

    def keep(self, kernel: str, package: Package | None) -> None:
        """Keeps of which source they are: should only times change later, they still are. Raises OSError."""
        if package is None or not self.unkept(kernel, package):
            return
        if (source := self._read(package.wanted(kernel).source)) is not None:
            save(self._places, kernel, package.name, _copies(kernel, package), source)

    def _read(self, source: Path) -> Source | None:
        age = self.age(source)
        if source not in self._now or self._now[source][0] != age:
            if self._in_child is None:
                now = of_now(source, age)
            else:
                try:
                    [answer] = self._in_child(lambda: [of_now(source, age)])
                except ChildLost:  # the next look tries again
                    return None
                now = Source(*answer) if answer else None
            self._now[source] = age, now
        return self._now[source][1]


def _copies(kernel: str, package: Package) -> list[Path]:
    """DKMS's copies of the modules of the version that a kernel is to have, if it has that installed."""
    installed = package.installed(kernel)
    if installed is None or installed[0] != package.wanted(kernel):
        return []
    return [installed[1].directory / "module" / name for name in installed[1].files]
