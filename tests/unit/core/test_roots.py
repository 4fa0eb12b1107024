# SPDX-License-Identifier: GPL-2.0-or-later
"""Links stay inside of a root, whatever they say."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.core import roots

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/usr/lib/x", "usr/lib/x"),
        ("lib/x", "usr/lib/x"),
        ("/lib//./x/../y", "usr/lib/y"),
        ("/../../etc", "etc"),
        ("/absolute", "usr/lib"),
        ("/outside", "etc/passwd"),
        ("/up", "etc"),
        ("/missing/a/b", "missing/a/b"),
        ("/missing/a/../../lib/x", "usr/lib/x"),
        ("/chain/x", "usr/lib/x"),
        ("/", ""),
    ],
)
def test_links_stay_inside_the_root(tree: Tree, path: str, found: str) -> None:
    root = tree({
        "usr/lib/x": "", "lib": "-> usr/lib", "absolute": "-> /usr/lib", "outside": "-> ../../../../etc/passwd",
        "up": "-> ../../etc", "chain": "-> lib2", "lib2": "-> /lib",
    })  # fmt: skip
    assert roots.inside(root, path) == root / found


def test_links_that_go_round(tree: Tree) -> None:
    root = tree({"a": "-> b", "b": "-> a", "deep": "-> deep/x"})
    assert roots.inside(root, "/a") in (root / "a", root / "b")
    assert root in roots.inside(root, "/deep").parents
    assert roots.inside(root, "/a\0b") == root / "a\0b"


@given(st.lists(st.sampled_from(["..", ".", "", "a", "link", "up"])).map("/".join))
def test_no_path_leaves_the_root(tree: Tree, path: str) -> None:
    root = tree({"a/": ""})
    for name, target in (("link", "/a/../../.."), ("up", "../../../x")):
        if not os.path.lexists(root / name):
            (root / name).symlink_to(target)
    found = roots.inside(root, path)
    assert found == root or root in found.parents


@pytest.mark.parametrize("what", ["fifo", "socket", "directory", "device", "absent"])
def test_only_a_regular_file_is_opened_and_nothing_is_waited_for(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    with contextlib.ExitStack() as stack:
        match what:
            case "fifo":
                os.mkfifo(path)
            case "socket":
                stack.enter_context(socket.socket(socket.AF_UNIX)).bind(os.fspath(path))
            case "directory":
                path.mkdir()
            case "device":
                path.symlink_to("/dev/zero")
        with pytest.raises(OSError, match=r"regular file|No such|Is a directory"):
            roots.regular(path)
    (tmp_path / "file").write_bytes(b"abc")
    with roots.regular(tmp_path / "file") as file:
        assert file.read() == b"abc"
