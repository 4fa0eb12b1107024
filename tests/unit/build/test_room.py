# SPDX-License-Identifier: GPL-2.0-or-later
"""The room that a compilation may take, and that what it leaves can be removed whatever it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.build import room
from knetstatd.build.room import Room, clear
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind
from knetstatd.state import paths

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.spawns


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 16 MiB and 64 files."""
    made = tmp_path / "disk"
    made.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=16M,nr_inodes=64", "tmpfs", os.fspath(made)]
    if os.geteuid() or subprocess.run(argv, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield made
    subprocess.run(["umount", "--lazy", made], check=True)


def test_half_of_a_small_disk_stays_free(disk: Path) -> None:
    space = Room((disk, disk / "absent"))
    (disk / "a").write_bytes(bytes(7 << 20))
    space.check()
    (disk / "b").write_bytes(bytes(2 << 20))
    with pytest.raises(BuildError, match=r"only 7 MiB of .* are free; 8 MiB must stay free for others") as e:
        space.check()
    assert (e.value.kind, e.value.fix) == (Kind.DISK, f"df -h -i {disk}")


def test_files_are_counted_too(disk: Path) -> None:
    space = Room((disk,))
    for number in range(55):
        (disk / f"{number}").touch()
    with pytest.raises(BuildError, match=r"only 8 more files fit on .*; 15 must stay free"):
        space.check()


def test_what_others_take_of_a_shared_place_is_not_held_against_a_build(disk: Path) -> None:
    own = disk / "own"
    own.mkdir()
    space = Room((), (own,))
    (disk / "others").write_bytes(bytes(15 << 20))
    space.check()
    (disk / "others").unlink()
    (own / "a").mkdir()
    (own / "a/b").write_bytes(bytes(9 << 20))
    with pytest.raises(BuildError, match=r"only 7 MiB of .*/own are free"):
        space.check()
    (own / "a/b").unlink()
    for number in range(40):
        (disk / f"{number}").touch()
    (disk / "others").write_bytes(bytes(9 << 20))
    space.check()
    for number in range(12):
        (own / f"{number}").touch()
    space.check()


def test_a_build_hides_nothing_in_a_directory_without_rights(disk: Path) -> None:
    (disk / "own/hidden").mkdir(parents=True)
    (disk / "own/hidden/x").write_bytes(bytes(9 << 20))
    (disk / "own/hidden").chmod(0)
    code = (
        "import sys; from pathlib import Path; from knetstatd.build import room; print(room._is_less(Path(sys.argv[1]), 9, 9))"
    )
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=4711", "--clear-groups"]
    argv = [*bare, sys.executable, "-c", code, os.fspath(disk / "own")]
    disk.chmod(0o755)
    done = subprocess.run(argv, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_all_below_a_directory_is_counted(disk: Path) -> None:
    """Three entries, and three pages; a directory of a tmpfs takes none."""
    (disk / "own/d").mkdir(parents=True)
    (disk / "own/a").write_bytes(bytes(4096))
    (disk / "own/d/b").write_bytes(bytes(8192))
    (disk / "loop").symlink_to("loop")
    asked = [(12289, 4), (12288, 4), (12289, 3), (12289, 1), (12289, 0)]
    assert [room._is_less(disk / "own", *most) for most in asked] == [True, False, False, False, True]
    assert room._is_less(disk / "gone", 1, 1)
    assert not room._is_less(disk / "loop", 9, 9), "what cannot be seen"


@pytest.mark.parametrize("mode", [0o000, 0o555, 0o700])
def test_everything_can_be_removed(tmp_path: Path, mode: int) -> None:
    """By an owner without root's privileges, as in the unit."""
    base = tmp_path / "cache"
    for name in ("a/b/c", "a/d"):
        (base / name).mkdir(parents=True)
        (base / name / "file").touch()
    (base / "a/outside").symlink_to(tmp_path)
    (tmp_path / "mine").touch()
    for where, _, _ in os.walk(base / "a", topdown=False):
        os.chmod(where, mode)
    code = "import sys; from pathlib import Path; from knetstatd.build.room import clear; print(clear(Path(sys.argv[1])))"
    argv = [sys.executable, "-c", code, os.fspath(base / "a")]
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"] if not os.geteuid() else []
    done = subprocess.run([*bare, *argv], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
    assert not (base / "a").exists()
    assert (tmp_path / "mine").exists()


def test_any_depth_can_be_removed(tmp_path: Path) -> None:
    place = tmp_path / "deep"
    place.mkdir()
    here = os.open(place, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("x", dir_fd=here)
        below = os.open("x", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert clear(place)
    assert clear(place), "also what is not there"
    (tmp_path / "file").touch()
    assert clear(tmp_path / "file")


def test_a_build_needs_what_the_last_one_took_where_it_is_compiled(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_RESERVE", 1 << 20)
    places = paths.places(tmp_path, runs=False)

    def refuse() -> None:
        room.refuse_full(tmp_path, places, "6.1", "demo", disk / "not/made/yet")

    refuse()  # nothing is remembered
    room.remember(places, "demo", room.Need(8 << 20, 1 << 20))
    refuse()  # 10 of 16 MiB, and 4 must stay free
    room.remember(places, "demo", room.Need(10 << 20, 1 << 20))
    with pytest.raises(BuildError) as e:
        refuse()
    what = f"only 16 MiB of {disk} are free, 16 MiB are wanted: the last build of demo took 10 MiB"
    assert (e.value.kind, e.value.what) == (Kind.DISK, what)
    places.room("demo").write_text("torn")
    refuse()
    (disk / "full").write_bytes(bytes((16 << 20) - 8192))
    with pytest.raises(BuildError, match=f"only 0 MiB of {disk} are free, 1 MiB are wanted\\. "):
        refuse()


def test_one_disk_is_asked_for_all_that_lies_there(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_RESERVE", 1 << 20)
    places = paths.places(disk, runs=False)
    room.remember(places, "demo", room.Need(1 << 20, 1 << 20))
    room.refuse_full(disk, places, "6.1", "demo", places.compile_cache)
    room.remember(places, "demo", room.Need(3 << 20, 2 << 20))
    with pytest.raises(BuildError, match="the last build of demo took 3 MiB"):  # 3.75 and six times two of 16, and 4 stay free
        room.refuse_full(disk, places, "6.1", "demo", places.compile_cache)


def test_the_most_that_a_directory_held_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_FIRST", 0.0)
    peak = room.Peak(tmp_path)
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    peak.look()
    (tmp_path / "a").unlink()
    peak.look()
    assert peak.bytes == 3 << 20
