# SPDX-License-Identifier: GPL-2.0-or-later
"""Files: limits, identity, atomic replacement, and links that stay inside a root."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Callable

    Tree = Callable[[dict[str, str]], Path]


def test_identity_changes_with_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert files.identity(path) is None
    path.write_text("a")
    first = files.identity(path)
    assert first is not None
    assert first == files.identity(path)
    # The same size and modification time; another inode.
    (tmp_path / "y").write_text("b")
    os.utime(tmp_path / "y", ns=(first.mtime_ns, first.mtime_ns))
    (tmp_path / "y").rename(path)
    second = files.identity(path)
    assert second is not None
    assert (second.size, second.mtime_ns) == (first.size, first.mtime_ns)
    assert second != first
    (tmp_path / "link").symlink_to("x")
    assert files.identity(tmp_path / "link") == files.identity(path)
    assert files.identity(tmp_path / "a\0b") is None


def test_read_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert files.read(path, 5) == b"12345"
    with pytest.raises(KnetstatdError, match="larger than 4 bytes") as caught:
        files.read(path, 4)
    assert caught.value.where == os.fspath(path)
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "none", 4)


def test_text_never_raises(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\xff\xc3\xa9")
    assert files.text(tmp_path / "x") == "a\N{REPLACEMENT CHARACTER}é"
    assert files.text(tmp_path / "x", 1) == "a"
    assert files.text(tmp_path) is None
    assert files.text(tmp_path / "none") is None
    assert files.text(tmp_path / "a\0b") is None


def test_names_are_sorted(tree: Tree) -> None:
    root = tree({"d/b": "", "d/a": "", "d/c/": ""})
    assert files.names(root / "d") == ["a", "b", "c"]
    assert files.names(root / "d/a") == []
    assert files.names(root / "none") == []


def test_reading_never_waits(tmp_path: Path) -> None:
    """A FIFO in a file's place would hold the daemon up for ever."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="Invalid argument"):
        files.read(tmp_path / "fifo", 9)
    with pytest.raises(KnetstatdError, match="no regular file"):
        files.untrusted(tmp_path / "fifo", 9)
    assert files.text(tmp_path / "fifo") is None
    assert files.text(Path("/dev/null")) == "", "which stands for an empty file"


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    path = tmp_path / "a\0b"
    with pytest.raises(FileNotFoundError):
        files.read(path, 9)
    with pytest.raises(FileNotFoundError):
        files.untrusted(path, 9)
    assert files.text(path) is None
    assert files.names(path) == []
    assert files.identity(path) is None


def test_what_somebody_else_may_have_written(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("x")
    assert files.untrusted(tmp_path / "x", 5) == b"12345"
    assert files.untrusted(tmp_path / "x", 5, owner=os.getuid()) == b"12345"
    assert files.read(tmp_path / "link", 5) == b"12345"
    with pytest.raises(KnetstatdError, match="larger than 4 bytes"):
        files.untrusted(tmp_path / "x", 4)
    with pytest.raises(KnetstatdError, match="no regular file of its owner's"):
        files.untrusted(tmp_path / "x", 5, owner=os.getuid() + 1)
    with pytest.raises(OSError, match="symbolic link"):
        files.untrusted(tmp_path / "link", 5)
    with pytest.raises(KnetstatdError, match="no regular file"):
        files.untrusted(Path("/dev/null"), 5)


@pytest.mark.parametrize("durable", [True, False])
def test_write_replaces(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "x"
    files.write(path, b"one", durable=durable)
    reader = open(path, "rb")
    with reader:
        files.write(path, b"two", 0o600, durable=durable)
        # Who has the old file open goes on reading the old one.
        assert reader.read() == b"one"
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["x"]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/y").write_text("")
    with pytest.raises(IsADirectoryError):
        files.write(tmp_path / "x", b"data")
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(FileNotFoundError):
        files.write(tmp_path / "none/x", b"data")


def test_a_leftover_or_a_trap_in_the_temporary_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("safe")
    (tmp_path / f".x.{os.getpid()}.tmp").symlink_to("victim")
    files.write(tmp_path / "x", b"data")
    assert (tmp_path / "victim").read_text() == "safe"
    assert sorted(os.listdir(tmp_path)) == ["victim", "x"]


def test_write_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x", {"b": 1, "a": ["é"]}, durable=False)
    text = (tmp_path / "x").read_text()
    assert json.loads(text) == {"b": 1, "a": ["é"]}
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")


def test_sync(tree: Tree) -> None:
    root = tree({"d/x": "", "link": "-> d/x"})
    files.sync(root / "d/x")
    files.sync_dir(root / "d")
    with pytest.raises(OSError, match="symbolic link"):
        files.sync(root / "link")
    with pytest.raises(NotADirectoryError):
        files.sync_dir(root / "d/x")


def test_opened_closes_in_every_case(tmp_path: Path) -> None:
    with files.opened(tmp_path / "x", os.O_WRONLY | os.O_CREAT, 0o600) as fd:
        assert os.write(fd, b"x") == 1
        assert not os.get_inheritable(fd)
    with pytest.raises(KeyError), files.opened(tmp_path / "x", os.O_RDONLY) as fd:
        raise KeyError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(("root", "path", "shown"), [
    ("/", "/usr/src", "/usr/src"),
    ("/", "/", "/"),
    ("/r", "/r/usr/src", "/usr/src"),
    ("/r", "/r", "/."),
    ("/r", "/r/a/../b", "/b"),
    ("/r", "/r/..b/c", "/..b/c"),
    ("/r", "/rest/a", "/../rest/a"),
])  # fmt: skip
def test_a_path_below_a_root(root: str, path: str, shown: str) -> None:
    assert files.below(Path(root), Path(path)) == shown
