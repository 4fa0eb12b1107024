# SPDX-License-Identifier: GPL-2.0-or-later
"""Files: read with a limit, told apart by identity, replaced atomically, synced to the disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core import roots
from knetstatd.core.errors import KnetstatdError
from knetstatd.system.once import once

if TYPE_CHECKING:
    from collections.abc import Iterator


# The root of the machine that runs this; any other directory holds a system that does not run.
HERE = Path("/")

inside = once(roots.inside)


class Identity(NamedTuple):
    """What changes when a file's contents do: enough to keep a computed answer for as long as the file is the same.

    ctime is in it because mtime can be set back (dpkg and tar do), and the inode because rename replaces files.
    """

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Digest(NamedTuple):
    """SHA-256 of a module, in hex. file: as it lies there, maybe packed and signed.  contents: what a signature is over."""

    file: str
    contents: str


def identity(path: Path) -> Identity | None:
    """The identity of the file that `path` leads to, None if there is none."""
    try:
        st = os.stat(path)
    except (OSError, ValueError):
        return None
    return Identity(st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)


# What our units do not see (ProtectHome= in systemd.exec(5)): who is asked elsewhere must not see it either.
_HOMES = ("home", "root", "run/user")
HIDDEN = "where knetstatd's services may not look; it must lie outside of /home and /root"


def is_hidden(root: Path, path: Path) -> bool:
    """Whether a path, every link in it followed, lies where our units may not look."""
    return any(home in path.parents for home in (root / name for name in _HOMES))


def read(path: Path, limit: int) -> bytes:
    """The whole file, at most `limit` bytes. Raises OSError, and KnetstatdError if it is larger."""
    return _whole(_readable(path), path, limit)


def text(path: Path, limit: int = 1 << 20) -> str | None:
    """The file as text (undecodable bytes replaced), None if it cannot be read. At most `limit` bytes."""
    try:
        with open(_readable(path), "rb") as f:
            return f.read(limit).decode("utf-8", "replace")
    except OSError:
        return None


def untrusted(path: Path, limit: int, *, owner: int | None = None, directory: int | None = None) -> bytes:
    """The whole of a regular file in a place where somebody else may write; the last part of `path` is no link.

    limit: bytes.  owner: the user whose file it must be.  directory: a descriptor below which a relative path is looked for.
    Raises OSError, and KnetstatdError for a file that is larger or not the owner's.
    """
    fd = _open(path, os.O_NOFOLLOW, directory)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or owner not in (None, status.st_uid):
        os.close(fd)
        raise KnetstatdError("is no regular file of its owner's", os.fspath(path))
    return _whole(fd, path, limit)


def _open(path: Path, flags: int = 0, directory: int | None = None) -> int:
    """A descriptor to read from, which never waits: a FIFO in a file's place must not stop the daemon. Raises OSError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=directory)
    except ValueError as e:  # a NUL in the path: no file can have that name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from e


def _readable(path: Path) -> int:
    """A descriptor of a file that has an end, or of /dev/null, which stands for an empty one. Raises OSError."""
    fd = _open(path)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISCHR(mode):
        return fd
    os.close(fd)
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(number, os.strerror(number), os.fspath(path))


def _whole(fd: int, path: Path, limit: int) -> bytes:
    with open(fd, "rb") as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise KnetstatdError(f"is larger than {limit} bytes, and was not read", os.fspath(path))
    return data


def names(directory: Path) -> list[str]:
    """The names in a directory, sorted; none if it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except (OSError, ValueError):
        return []


def sync_dir(directory: Path) -> None:
    """Makes renames and creations in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync(path: Path) -> None:
    """Makes one regular file's contents durable."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replaces `path` atomically: a reader, or a power cut, finds the old contents or the new, never a part.

    durable: synced before the rename and after; leave it out only if a reboot empties the place anyway (/run).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fchmod(f.fileno(), mode)
            if durable:
                os.fsync(f.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        sync_dir(path.parent)


def write_json(path: Path, document: dict[str, Any], *, durable: bool = True) -> None:
    """`write` for a JSON document: indented, sorted, ends with a newline."""
    write(path, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode(), durable=durable)


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """A file descriptor for the length of a block."""
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def followed(root: Path, path: Path) -> Path:
    """Where a path below `root` really is: every symlink on the way, the last one too, stays inside `root`."""
    return inside(root, below(root, path))


def below(root: Path, path: Path) -> str:
    """A path below `root` as a program whose root directory that is names it."""
    text, top = os.fspath(path), os.fspath(root).rstrip("/") + "/"
    if text.startswith(top) and "/.." not in text:  # all but a few; relpath() is slow
        return text[len(top) - 1 :]
    return f"/{os.path.relpath(path, root)}"


def of_kernel(root: Path, path: str) -> Path:
    """Where a file is that a running kernel shows, in /proc or /sys, of the system under `root`.

    If another root has them mounted, as a chroot does, they show the kernel of this machine, which says nothing of that system:
    then the path that is returned does not exist.
    """
    top = inside(root, "/" + path.lstrip("/").partition("/")[0])
    if root != HERE and os.path.isdir(top) and os.stat(top).st_dev != os.stat(root).st_dev:
        return top / os.devnull / path.lstrip("/")
    return inside(root, path)
