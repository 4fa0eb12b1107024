# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of our units, and what is taken of what a unit without privileges has left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import units

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# What systemd makes of %I is read from systemd-escape's manual: \xNN is the byte NN, - is /.
NAMES = {
    ("6.1.0-9-amd64", "zfs"): r"knetstatd-compile@6.1.0\x2d9\x2damd64:zfs.service",
    ("6.12.1+deb13-amd64", "nvidia_drm"): r"knetstatd-compile@6.12.1\x2bdeb13\x2damd64:nvidia_drm.service",
    ("6.1~rc1", "a.b"): r"knetstatd-compile@6.1\x7erc1:a.b.service",
}


@pytest.mark.parametrize(("arguments", "name"), NAMES.items())
def test_an_instance_s_name(arguments: tuple[str, str], name: str) -> None:
    assert units.instance("compile", *arguments) == name


def test_what_a_unit_has_left(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    with units.directory(tmp_path) as place:
        assert units.left(place, "x", os.getuid(), 5) == b"12345"
        with pytest.raises(KnetstatdError, match="is larger than 4 bytes"):
            units.left(place, "x", os.getuid(), 4)
        with pytest.raises(KnetstatdError, match="is no regular file of its owner's"):
            units.left(place, "x", os.getuid() + 1, 5)
        with pytest.raises(FileNotFoundError):
            units.left(place, "absent", os.getuid(), 5)
        with pytest.raises(FileNotFoundError):
            units.left(place, "a\0b", os.getuid(), 5)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_no_file_is_not_taken(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    with units.directory(tmp_path) as place, pytest.raises((OSError, KnetstatdError)):
        units.left(place, "x", os.getuid(), 1 << 20)


def test_a_link_in_the_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match=r"Not a directory|symbolic link"), units.directory(tmp_path / "link"):
        pass
