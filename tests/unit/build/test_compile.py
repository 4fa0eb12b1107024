# SPDX-License-Identifier: GPL-2.0-or-later
"""A compilation in a private tree: for the target kernel, with what other packages have installed, and nowhere else."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import machinetree
import pytest
from machinetree import ARCH, KERNEL

from knetstatd.build.compile import LOG_LIMIT, Compiled, compile_here

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.spawns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path)
    return tmp_path


def compiled(root: Path, timeout: float = 20.0) -> Compiled:
    work = root / "cache"
    work.mkdir()
    return compile_here(machinetree.job(root, timeout=timeout), work, None)


def tree(directory: Path) -> set[str]:
    return {os.path.relpath(path, directory) for path in directory.rglob("*")}


def test_modules_are_made_for_the_kernel_that_is_asked_for(root: Path) -> None:
    before = tree(root / "var"), tree(root / "usr")
    done = compiled(root)
    assert done.staged is not None
    assert [path.name for path in done.staged.modules] == ["demo.ko"]
    assert done.log == f"made for {KERNEL}\n", "uname -r answers the target kernel"
    assert (done.code, done.timed_out) == (0, False)
    assert machinetree.ran(root, "dkms") == [f"build -m demo -v 1.0 -k {KERNEL} --dkmstree {root}/cache/tree"]
    assert (tree(root / "var"), tree(root / "usr")) == before, "nothing else has changed"
    assert set(os.listdir(root / "cache")) == {"tree"}


def test_dkms_finds_no_program_that_signs(root: Path) -> None:
    machinetree.tell(root, "dkms build", 'echo "$sign_file" >"$root/signs"')
    compiled(root)
    named = (root / "signs").read_text().strip()
    assert named
    assert not os.path.exists(named)


def test_what_the_build_says_of_other_things_than_the_kernel_is_left(root: Path) -> None:
    machinetree.tell(root, "dkms build", 'uname -m >"$root/says"; uname -a >>"$root/says"')
    compiled(root)
    machine, everything = (root / "says").read_text().splitlines()
    assert machine == os.uname().machine
    assert KERNEL in everything.split()
    assert os.uname().release not in everything.split()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_what_asks_for_the_running_kernel_gets_the_target(root: Path) -> None:
    """Also where no unit sees to it; and nobody else sees it."""
    running = os.uname().release
    for name in ("unshare", "mount", "mkdir", "sh", "true"):
        machinetree.link(root, name)
    machinetree.write(root / "proc/version", f"Linux version {running} (me@there)\n")
    machinetree.write(root / "proc/sys/kernel/osrelease", f"{running}\n")
    (root / f"lib/modules/6.9/{KERNEL}").mkdir(parents=True)
    asks = 'cat "$root/proc/version" "$root/proc/sys/kernel/osrelease"; ls "$root/lib/modules"; '
    asks += f'[ "$root/lib/modules/{running}/kernel" -ef "$root/lib/modules/{KERNEL}/kernel" ] && echo same'
    machinetree.tell(root, "dkms build", asks)
    done = compiled(root)
    assert done.staged is not None
    assert done.output.splitlines() == [
        f"Linux version {KERNEL} (me@there)", KERNEL, *sorted([KERNEL, running]), "same"
    ]  # fmt: skip
    assert (root / "proc/sys/kernel/osrelease").read_text() == f"{running}\n"
    assert sorted(os.listdir(root / "lib/modules")) == sorted(["6.9", KERNEL])
    assert set(os.listdir(root / "cache")) == {"tree"}


def test_packages_that_it_depends_on_are_there(root: Path) -> None:
    """dkms 3.2 looks in its tree for what BUILD_DEPENDS names."""
    base = root / "var/lib/dkms/base"
    machinetree.write(base / f"2/{KERNEL}/{ARCH}/module/base.ko", "built")
    (base / "2/source").symlink_to("/usr/src/base-2")
    machinetree.write(root / "usr/src/base-2/dkms.conf", "")
    (base / f"kernel-{KERNEL}-{ARCH}").symlink_to(f"2/{KERNEL}/{ARCH}")
    machinetree.write(root / f"var/lib/dkms/other/1/6.9/{ARCH}/module/other.ko", "for another kernel")
    (root / "var/lib/dkms/other/1/source").symlink_to("/usr/src/base-2")
    does = f'ls "$9" >"$root/packages"; cat "$9/base/kernel-{KERNEL}-{ARCH}/module/base.ko" >>"$root/packages"'
    machinetree.tell(root, "dkms build", does)
    done = compiled(root)
    assert (root / "packages").read_text() == "base\ndemo\nbuilt"
    assert done.staged is not None
    assert os.listdir(done.staged.tree) == ["demo"], "what was lent is not staged"
    assert (base / f"2/{KERNEL}/{ARCH}/module/base.ko").exists()


def test_a_failure_is_told_by_its_log(root: Path) -> None:
    long = "x" * LOG_LIMIT
    machinetree.write(root / "log", f"begin{long}end")
    machinetree.tell(root, "dkms build", 'd=$9/demo/1.0/build; mkdir -p "$d"; cp "$root/log" "$d/make.log"; echo no; exit 10')
    done = compiled(root)
    assert (done.staged, done.code, done.output) == (None, 10, "no\n")
    assert done.log.startswith("begin")
    assert "[8 bytes left out]" in done.log
    assert done.log.endswith("end")
    assert len(done.log) < LOG_LIMIT + 100


def test_what_a_killed_build_has_made_does_not_count(root: Path) -> None:
    does = f'd=$9/demo/1.0/{KERNEL}/{ARCH}/module; mkdir -p "$d"; echo torn >"$d/demo.ko"; sleep 30'
    machinetree.tell(root, "dkms build", does)
    done = compiled(root, timeout=0.3)
    assert (done.staged, done.timed_out, done.code) == (None, True, -9)


PACKERS = [
    ("xz", "xz -f {}"),
    ("xz", "xz --check=crc32 --lzma2=dict=1MiB -f {}"),
    ("gzip", "gzip -9f {}"),
    ("zstd", "zstd -q -f -T0 -20 --ultra {}"),
]


@pytest.mark.parametrize(("program", "command"), PACKERS, ids=[command.partition(" {")[0] for _, command in PACKERS])
def test_what_dkms_packs_at_the_end_is_only_stored(root: Path, program: str, command: str) -> None:
    """Publishing packs it, with its signature."""
    does = 'b=$9/demo/1.0/build; mkdir -p "$b"; cp "$root/made/demo.ko" "$b"\n'
    machinetree.tell(root, "dkms build", does + command.format('"$b/demo.ko"') + '; cp "$b"/demo.ko?* "$root/packed"')
    compiled(root)
    assert machinetree.ran(root, program) == []
    packed = (root / "packed").read_bytes()
    assert machinetree.GOOD in packed
    assert subprocess.run([program, "-dc"], input=packed, capture_output=True, check=True).stdout == machinetree.GOOD


@pytest.mark.parametrize(
    "command",
    ["xz -9 $root/firmware", "xz -kf $b/demo.ko", "xz -dc $b/blob.ko.xz", "gzip -9f $b/demo.txt", "xz -6f $b/demo.ko"],
)
def test_what_a_package_packs_itself_is_packed_as_it_asks(root: Path, command: str) -> None:
    does = 'b=$9/demo/1.0/build; mkdir -p "$b"\nfor f in "$b/demo.ko" "$b/demo.txt" "$root/firmware"; do echo x >"$f"; done\n'
    machinetree.tell(root, "dkms build", does + f'/usr/bin/xz -c "$b/demo.ko" >"$b/blob.ko.xz"; {command}')
    compiled(root)
    program, _, words = command.partition(" ")
    build = f"{root}/cache/tree/demo/1.0/build"
    assert machinetree.ran(root, program) == [words.replace("$root", f"{root}").replace("$b", build)]
