# SPDX-License-Identifier: GPL-2.0-or-later
"""Who else is at work on the trees that we would change: a package manager, or somebody's dkms.

Rule 1: locks are asked for, never taken. F_GETLK on a file opened for reading names the holder; taking one of them,
        even for an instant, makes apt or rpm fail.
Rule 2: what cannot be known counts as busy: waiting costs seconds, a wrong start leaves a kernel half-configured.
Rule 3: a dkms that works on other trees (a container's, or a private --dkmstree) is not in our way.
Rule 4: what a process calls itself is shown, never trusted: it may only make us wait, and only if it could change the trees.
        Any user can start a script that is called dkms.

Sources: fcntl(2) and fcntl_locking(2); proc_locks(5), proc_pid_stat(5), proc_pid_mountinfo(5); dkms(8).
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.dkms import dkms_framework
from knetstatd.system import files, locks

if TYPE_CHECKING:
    from pathlib import Path

# dpkg, apt and everything on libapt hold the first for the whole transaction, dpkg the second while it runs; rpm has
# one per database, and the database moved in Fedora 36.
_LOCKS = (
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/lock",
    "usr/lib/sysimage/rpm/.rpm.lock",
    "var/lib/rpm/.rpm.lock",
)
# struct flock: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")

# The kernel cuts a process's name after 15 bytes.
_SCRIPTS = ("dkms", "dkms_autoinstaller", "common.postinst", "40-dkms.install")
_SHELLS = ("sh", "bash", "dash")
_COMMANDS = frozenset(name[:15].encode() for name in _SCRIPTS + _SHELLS)
# Actions that change a dkms tree, and of those the ones that change /lib/modules too, whatever the dkms tree.
_TREE_ACTIONS = frozenset({"add", "build", "unbuild", "ldtarball"})
_SHARED_ACTIONS = frozenset("install uninstall remove autoinstall match kernel_preinst kernel_postinst kernel_prerm".split())
# Those that take out what a package has for a kernel. In the middle of one, the package looks as if it were to be built.
_REMOVING_ACTIONS = frozenset({"unbuild", "uninstall", "remove", "kernel_prerm"})
_VALUE_OPTIONS = re.compile(
    r"-[mvkcaj]|--(?:module|kernelver|templatekernel|dkmstree|sourcetree|installtree|config|arch|kernelsourcedir|"
    r"directive).*"
)


class Dkms(NamedTuple):
    """A dkms at work. shown: its command line and pid.  removes: whether it takes out what packages have for kernels."""

    shown: str
    removes: bool


def package(root: Path) -> str | None:
    """Who holds a package transaction open, as a part of a sentence; None if nobody does. Raises nothing."""
    for lock in _LOCKS:
        try:
            pid = _holder(root, root / lock)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, KnetstatdError) as e:
            return f"it cannot be known whether /{lock} is held: {names.clean(str(e))}"
        if pid is not None:
            return f"{_who(root, pid)} holds /{lock}"
    return None


def _who(root: Path, pid: int) -> str:
    if pid <= 0:  # a lock from another pid namespace, or of an open file description
        return "another process"
    name = names.clean(files.text(root / f"proc/{pid}/comm", 64) or "", 32)
    return f"{name} (pid {pid})" if name else f"process {pid}"


def _holder(root: Path, path: Path) -> int | None:
    """The pid of the process that holds a write lock on the file (0 or -1: it has none here), None for nobody.

    Raises OSError and KnetstatdError if neither the file nor /proc/locks can be read.
    """
    try:
        with files.opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            # Asked for as a reader: only a writer is in the way.
            answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    except PermissionError:
        return locks.listed(path, root / "proc/locks", b"POSIX", b"OFDLCK")
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else int(pid)


def foreign_dkms(root: Path, ours: int | None) -> Dkms | None:
    """A live dkms that may change the trees of this machine, one that removes before all others; None if there is none.

    ours: the pid of our own builder, whose descendants do not count; None if nothing of ours runs. Raises nothing.
    One small read for each process of the machine, more only for what may be dkms.
    """
    proc, tree = os.fspath(root / "proc"), dkms_framework.framework(root).dkms_tree
    able = {b"0", *_owner(files.inside(root, tree))}
    try:
        processes = [name for name in os.listdir(proc) if name.isascii() and name.isdigit()]
    except OSError:
        return None
    other: Dkms | None = None
    for pid in processes:
        if _read(f"{proc}/{pid}/comm", 64).rstrip(b"\n") not in _COMMANDS:
            continue
        # Empty for a zombie and for a kernel's thread.
        command = _read(f"{proc}/{pid}/cmdline", 65536).decode("utf-8", "replace").rstrip("\0").split("\0")
        work = _work(command, tree)
        if work and _user(proc, pid) in (None, *able) and not _descends(proc, pid, ours) and _shares_trees(root, tree, pid):
            other = Dkms(f"{names.clean(work, 120)} (pid {pid})", _removes(command))
            if other.removes:
                break
    return other


def _owner(tree: Path) -> list[bytes]:
    """The user who owns the tree; none if there is no tree."""
    try:
        return [str(os.stat(tree).st_uid).encode()]
    except OSError:
        return []


def _user(proc: str, pid: str) -> bytes | None:
    """The real user of a process: one who starts a set-user-ID program under another name stays himself. None: unknown."""
    real = re.search(rb"^Uid:\t(\d+)", _read(f"{proc}/{pid}/status", 4096), re.MULTILINE)
    return real[1] if real else None


def _read(path: str, limit: int) -> bytes:
    """The beginning of a file in /proc; nothing if its process is gone or hidden."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, limit)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _work(command: list[str], tree: str) -> str:
    """The command without its interpreter if it is one that changes a shared tree, else ""."""
    if os.path.basename(command[0]) in _SHELLS:
        command = command[1:]
        while command and command[0].startswith("-") and command[0] != "-c":
            command = command[1:]
    directory, _, script = command[0].rpartition("/") if command else ("", "", "")
    if script not in _SCRIPTS:
        return ""
    text = " ".join([script, *command[1:]])
    if script == "dkms_autoinstaller":
        return text if command[1:2] == ["start"] else ""
    if script != "dkms" or directory.endswith(".d"):  # a package's or a kernel's hook, about to start dkms
        return text
    return text if _changes(command[1:], tree) else ""


def _removes(command: list[str]) -> bool:
    """Whether a command that changes a shared tree takes something out; a kernel's hook that is about to, too."""
    at = next((i for i, word in enumerate(command) if os.path.basename(word) in _SCRIPTS), 0)
    directory, script = os.path.split(command[at])
    if directory.endswith(".d"):
        return os.path.basename(directory) == "prerm.d"
    return script == "dkms" and _action(command[at + 1 :], "")[0] in _REMOVING_ACTIONS


def _changes(arguments: list[str], machines: str) -> bool:
    """Whether dkms with these arguments changes the machine's dkms tree (`machines`) or its modules."""
    action, tree = _action(arguments, machines)
    return action in _SHARED_ACTIONS or (action in _TREE_ACTIONS and os.path.normpath(tree) == os.path.normpath(machines))


def _action(arguments: list[str], tree: str) -> tuple[str, str]:
    """What dkms is to do, "" for nothing, and in which tree. tree: where it works if it is not told."""
    action = ""
    left = iter(arguments)
    for argument in left:
        option, equals, value = argument.partition("=")
        if argument in ("--version", "-V"):
            return "", tree
        if _VALUE_OPTIONS.fullmatch(option):
            value = value if equals else next(left, "")
            tree = value if option.startswith("--dkmstree") else tree
        elif not argument.startswith("-"):
            action = action or argument
    return action, tree


def _descends(proc: str, pid: str, ours: int | None) -> bool:
    """Whether the process is `ours` or started by it. After our builder's death its orphans are in our way too."""
    for _ in range(64 if ours is not None else 0):
        if int(pid) == ours:
            return True
        # The name in parentheses may have parentheses and spaces itself.
        fields = _read(f"{proc}/{pid}/stat", 4096).rpartition(b")")[2].split()
        if len(fields) < 2 or not fields[1].isdigit():
            break
        pid = fields[1].decode()
    return False


def _shares_trees(root: Path, tree: str, pid: str) -> bool:
    """Whether the process sees one of our trees, from its mounts and ours.

    Not from its pid namespace: a container may have the machine's /lib/modules mounted, and a chroot has no namespace.
    Not from /proc/PID/root, which only a tracer may follow; mountinfo is for everybody and ends at the process's root.
    """
    # mountinfo has no links in its paths: /lib is one to /usr/lib on most systems.
    trees = [files.below(root, files.inside(root, place)) for place in (tree, "/lib/modules")]
    theirs, mine = (_places(root / "proc" / who / "mountinfo", trees) for who in (pid, "self"))
    # Nothing of our own: we live in a chroot ourselves, and cannot tell.
    return theirs is None or not mine or not theirs.isdisjoint(mine)


def _places(mountinfo: Path, trees: list[str]) -> set[tuple[str, str]] | None:
    """Where the trees are for a process, as (device, path in that file system); None if it cannot be read."""
    text = files.text(mountinfo)
    if text is None:
        return None
    mounts = [fields for line in text.splitlines() if len(fields := line.split()) > 4]
    places = set()
    for tree in trees:
        covering = [(len(f[4]), f) for f in mounts if tree == f[4] or tree.startswith(f[4].rstrip("/") + "/")]
        if covering:
            # The longest mount point; of several mounts on it, the last.
            fields = max(reversed(covering), key=lambda pair: pair[0])[1]
            places.add((fields[2], fields[3].rstrip("/") + tree[len(fields[4].rstrip("/")) :]))
    return places
