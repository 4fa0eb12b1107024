# SPDX-License-Identifier: GPL-2.0-or-later
"""What dpkg and apt say: which kernel packages were left half-way, whose a file is, and which packages an archive has.

Rule 1: dpkg's locks are not taken. /var/lib/dpkg/status and the journal in updates/ say which state a package is in: a look
        reads them, and starts no program. dpkg-query says whose a file is; only `repair` asks that.
        Which packages an archive has is asked only if something is missing that one may bring, and once for the same lists.
Rule 2: if dpkg-query cannot read a package's list of files, the answer is unknown, never "no package": `owners` raises.

Sources: dpkg(1), "Package states"; deb-version(7); dpkg-query(1), --search; dpkg 1.21 and 1.22.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
_DPKG = "var/lib/dpkg"
_LIMIT = 128 << 20  # bytes; the status of 10,000 packages has 15 MB
_STATUS = re.compile(r"^Status: \S+ (\S+) (\S+)$", re.MULTILINE)
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,127}")
# Debian's and Ubuntu's kernels, and Proxmox's. Whether they are signed says a word behind the release, or Ubuntu's before it.
_KERNEL_PACKAGE = re.compile(
    r"(?:linux-(?:image|binary|headers|modules|base)(?:-unsigned|-extra)?|linux-kbuild|(?:proxmox|pve)-(?:kernel|headers))"
    r"-(\d\S*?)(?:-unsigned|-signed)?"
)
_DOES_NOT_BOOT = ("linux-headers-", "linux-kbuild-", "proxmox-headers-", "pve-headers-")
# The states that `dpkg --configure` takes to their end; "half-installed" needs the package itself again.
CONFIGURABLE = ("unpacked", "half-configured")
_UNFINISHED = (*CONFIGURABLE, "half-installed")
# `a, b:amd64: /path`, `diversion by a from: /path`, `local diversion to: /path`; what dpkg-query would take for a pattern.
_OWNED = re.compile(r"(?:diversion by )?([a-z0-9][a-z0-9+.-]*)[^/]*: (/.*)", re.DOTALL)
_GLOB = re.compile(r"[*?\[\\]")
_COMMAND_LINE = 1 << 20  # bytes; the kernel takes 2 MB, or a quarter of the stack's limit


class Unfinished(NamedTuple):
    """A package that is neither installed nor not. kernel: the release in its name, "" for none."""

    name: str
    state: str
    kernel: str
    depends: frozenset[str]

    @property
    def boots(self) -> bool:
        """Whether the kernel itself is in it: then its initrd and its boot entry may be missing."""
        return not self.name.startswith(_DOES_NOT_BOOT)


def unfinished(root: Path) -> tuple[Unfinished, ...]:
    """All packages that a failed or interrupted transaction left half-way, by name. Raises nothing: no dpkg, no packages."""
    packages: dict[str, Unfinished] = {}
    updates = (name for name in files.names(files.inside(root, f"/{_DPKG}/updates")) if name[0].isdigit())
    for name in ("status", *(f"updates/{update}" for update in updates)):
        text = files.text(files.inside(root, f"/{_DPKG}/{name}"), _LIMIT) or ""
        if name == "status" and not any(f" {state}\n" in text for state in _UNFINISHED):
            continue  # as nearly always
        for stanza in text.split("\n\n"):
            if name != "status":
                packages.pop(_field(stanza, "Package"), None)
            match = _STATUS.search(stanza)
            if match and match[2] in _UNFINISHED and (package := _package(stanza, match[2])) is not None:
                packages[package.name] = package
    return tuple(packages[name] for name in sorted(packages))


def _field(stanza: str, name: str) -> str:
    match = re.search(rf"^{name}:[ \t]*(.*)$", stanza, re.MULTILINE)
    return match[1].strip() if match else ""


def _package(stanza: str, state: str) -> Unfinished | None:
    name = _field(stanza, "Package")
    if not _NAME.fullmatch(name):
        return None
    kernel = _KERNEL_PACKAGE.fullmatch(name)
    release = kernel[1] if kernel and names.is_kernel(kernel[1]) else ""
    needs = f"{_field(stanza, 'Pre-Depends')}, {_field(stanza, 'Depends')}"
    depends = re.findall(r"(?<![a-z0-9+.-])[a-z0-9][a-z0-9+.-]++(?=[\s(:,|]|$)", needs)
    return Unfinished(name, state, release, frozenset(depends))


def of_kernel(packages: Collection[Unfinished], kernel: str) -> tuple[Unfinished, ...]:
    """The unfinished packages of a kernel, and those that wait for them (its meta packages)."""
    mine = {p.name for p in packages if p.kernel == kernel}
    while more := {p.name for p in packages if p.name not in mine and not p.kernel and p.depends & mine}:
        mine |= more
    return tuple(p for p in packages if p.name in mine)


def has_dpkg(root: Path) -> bool:
    """Whether dpkg knows about this machine's files."""
    there = os.path.isfile(files.inside(root, f"/{_DPKG}/status"))
    return there and bool(files.names(files.inside(root, f"/{_DPKG}/info")))


def is_removed(root: Path, package: str) -> bool:
    """Whether dpkg knows a package as removed, or not at all; False if dpkg's status cannot be read."""
    text = files.text(root / _DPKG / "status", _LIMIT)
    if text is None:
        return False
    match = re.search(rf"^Package: {re.escape(package)}\nStatus: \S+ \S+ (\S+)$", text, re.MULTILINE)
    return match is None or match[1] in ("not-installed", "config-files")


# The lists may be compressed, and have hundreds of megabytes. Without one of them nobody can say that there is no such package.
_LISTS = re.compile(r"_Packages(?:\.[a-z0-9]+)?")
_LONGEST = 10  # seconds: the daemon asks in its loop, and has a watchdog
_OFFERED = """lines=$1; shift
{ /usr/lib/apt/apt-helper cat-file "$@" || echo unread; } 2>&1 | grep -Fx -e unread -e "$lines" | sort -u"""


def offered(root: Path, packages: Sequence[str]) -> frozenset[str] | None:
    """Which of these packages an archive has, by the lists that apt keeps; None if there are none, or they cannot be read."""
    place = files.inside(root, "/var/lib/apt/lists")
    # The list of an archive that is a directory (file:) is a link to it.
    lists = tuple(os.fspath(files.followed(root, place / name)) for name in files.names(place) if _LISTS.search(name))
    wanted = tuple(filter(_NAME.fullmatch, packages))
    return _offered(lists, tuple(files.identity(Path(path)) for path in lists), wanted) if lists else None


@functools.lru_cache(maxsize=64)
def _offered(lists: tuple[str, ...], mark: object, packages: tuple[str, ...]) -> frozenset[str] | None:
    """mark: the lists' identities; the answer is theirs."""
    from knetstatd.system import process  # only here: what starts programs takes 5 ms to import

    lines = "\n".join(f"Package: {name}" for name in packages)
    try:
        done = process.run(["sh", "-c", _OFFERED, "sh", lines, *lists], timeout=_LONGEST)
    except KnetstatdError:
        return None
    said = done.text.split("\n")
    if done.code or done.timed_out or "unread" in said:
        return None
    return frozenset(line.removeprefix("Package: ") for line in said if line)


def is_installed(root: Path, package: str) -> bool:
    """Whether dpkg keeps a list of a package's files: it has been unpacked, and not purged."""
    return os.path.isfile(files.inside(root, f"/{_DPKG}/info") / f"{package}.list")


def owners(root: Path, paths: Collection[str]) -> dict[str, str]:
    """For each path that a package brought, one such package. The paths may be spelt with /lib or /usr/lib.

    Raises KnetstatdError if dpkg-query cannot tell: then no path may be taken for nobody's.
    """
    wanted = {spelling: path for path in paths if "\n" not in path for spelling in _spellings(path)}  # dpkg refuses those
    owner: dict[str, str] = {}
    for part in _parts(list(wanted)):
        for line in _search(root, part).split("\n"):
            match = _OWNED.fullmatch(line)
            if match and match[2] in wanted:
                owner.setdefault(wanted[match[2]], match[1])
    return owner


def _parts(paths: list[str]) -> Iterator[list[str]]:
    """The paths in as many command lines as the kernel takes them; one, nearly always (execve(2), MAX_ARG_STRLEN)."""
    begin = size = 0
    for end, path in enumerate(paths):
        size += len(os.fsencode(path)) + 16
        if size > _COMMAND_LINE:
            yield paths[begin:end]
            begin, size = end, len(os.fsencode(path)) + 16
    if paths[begin:]:
        yield paths[begin:]


def _search(root: Path, paths: list[str]) -> str:
    """What `dpkg-query --search` prints for paths."""
    from knetstatd.system import process  # only here: what starts programs takes 5 ms to import

    argv = ["dpkg-query", f"--admindir={root / _DPKG}", "--search", "--", *(_GLOB.sub(r"\\\g<0>", path) for path in paths)]
    errors = os.memfd_create("dpkg-query")  # apart from the output, in the middle of whose lines it would be
    try:
        done = process.run(argv, timeout=300, limit=_LIMIT, errors=errors)
        said = os.pread(errors, 1 << 20, 0).decode("utf-8", "replace").splitlines()
    finally:
        os.close(errors)
    # A list that is missing is one that says nothing, for dpkg-query.
    lost = next((line for line in said if line.startswith("dpkg-query: warning: files list file for package")), "")
    if done.code not in (0, 1) or done.truncated or lost:
        last = " ".join(line.strip() for line in said[-2:])
        fix = "Reinstall that package" if lost else "Run: dpkg --audit"
        raise KnetstatdError(f"does not tell whose files are whose: {names.clean(lost or last)}", "dpkg-query", fix)
    return done.output.decode("utf-8", "surrogateescape")


def _spellings(path: str) -> tuple[str, ...]:
    """/lib is a link to /usr/lib; packages ship one spelling or the other."""
    if path.startswith("/lib/"):
        return (path, f"/usr{path}")
    return (path, path.removeprefix("/usr")) if path.startswith("/usr/lib/") else (path,)
