# SPDX-License-Identifier: GPL-2.0-or-later
"""`check`, `status` and `verify` on trees: the line, the exit status, and which of several verdicts decides it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import kerneltree
import pytest
import systems
from kerneltree import KERNEL
from systems import NEWER

from knetstatd.cli import verdicts
from knetstatd.cli.main import main
from knetstatd.core.config import Config
from knetstatd.core.exits import Exit
from knetstatd.core.model import Check, Result
from knetstatd.system import locks
from knetstatd.verdict.judge import Verdict
from knetstatd.verdict.observe import Machine
from knetstatd.verdict.states import State

if TYPE_CHECKING:
    from pathlib import Path

GOOD = Verdict("good", "1.0", KERNEL, "next", State.READY, True, False, "analysed", "", "", (), "ready", "")
BAD = GOOD._replace(package="bad", state=State.FAILED, ready=False, why="failed", reason="x.c line 3")
BUILT = BAD._replace(package="soon", state=State.NOT_BUILT, why="not-built", progress=True, reason="it is not built yet")
OPEN = BAD._replace(package="open", state=State.UNPROVEN, why="headers-missing", reason="no headers")
UNREAD = BAD._replace(
    package="unread", state=State.NEEDS_REBUILD, why="wrong-module", checks=(("x.ko", Check("file", Result.UNKNOWN)),)
)  # fmt: skip
NO_KERNEL = OPEN._replace(state=State.NOT_A_KERNEL)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "run/knetstatd").mkdir(parents=True)
    return Machine(tmp_path, Config())


@pytest.mark.parametrize(
    ("rows", "alone", "with_daemon"),
    [
        ([], Exit.UNKNOWN, Exit.UNKNOWN),
        ([GOOD], Exit.OK, Exit.OK),
        ([GOOD, BAD], Exit.FAILED, Exit.FAILED),
        ([GOOD, BUILT], Exit.FAILED, Exit.IN_PROGRESS),
        ([GOOD._replace(progress=True)], Exit.OK, Exit.IN_PROGRESS),
        ([GOOD, OPEN], Exit.UNKNOWN, Exit.UNKNOWN),
        ([UNREAD], Exit.UNKNOWN, Exit.UNKNOWN),
        ([OPEN, BAD], Exit.FAILED, Exit.FAILED),
        ([OPEN, BUILT], Exit.FAILED, Exit.UNKNOWN),
        ([GOOD, NO_KERNEL], Exit.UNKNOWN, Exit.UNKNOWN),
    ],
)
def test_one_exit_status_for_several_verdicts(machine: Machine, rows: list[Verdict], alone: Exit, with_daemon: Exit) -> None:
    assert verdicts.exit_code(machine, rows) == alone
    for lock in (machine.places.daemon_lock, machine.places.build_lock):
        with locks.locked(lock, 0.0):
            assert verdicts.exit_code(machine, rows) == with_daemon


def test_a_file_that_fails_is_not_unknown_although_another_may_not_be_read() -> None:
    both = (*UNREAD.checks, ("y.ko", Check("crcs", Result.FAIL)))
    assert verdicts.is_unknown(UNREAD)
    assert not verdicts.is_unknown(UNREAD._replace(checks=both))
    assert not verdicts.is_unknown(UNREAD._replace(why="failed")), "the kernel's own word counts more"
    assert not verdicts.is_unknown(GOOD._replace(checks=UNREAD.checks))


def test_the_line_names_the_worst_and_counts_the_others(machine: Machine) -> None:
    old = BAD._replace(package="old", kernel="5.10", role="")
    assert verdicts.summary(machine, "all", [old, GOOD, BAD]) == (
        f"bad 1.0 for {KERNEL} (next) is not ready: x.c line 3 (and 1 more)"
    )
    assert verdicts.summary(machine, "next", [GOOD]) == f"good 1.0 for {KERNEL} (next) is ready"
    waits = GOOD._replace(reason="it will be loaded")
    assert verdicts.summary(machine, "next", [waits]).endswith(" is ready: it will be loaded")
    assert verdicts.summary(machine, "next", [UNREAD]) == f"unread 1.0 for {KERNEL} (next) is unknown: x.c line 3"
    assert verdicts.summary(machine, "next", []).startswith("the next kernel is not known")


@pytest.mark.parametrize(
    ("kernel", "code", "word"), [(KERNEL, Exit.OK, "OK: "), (NEWER, Exit.FAILED, "CRITICAL: "), ("next", Exit.OK, "OK: ")]
)
def test_check_says_it_in_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kernel: str, code: Exit, word: str
) -> None:
    root = os.fspath(systems.make(tmp_path))
    assert main(["--root", root, "check", kernel]) == code
    said = capsys.readouterr().out
    assert said.startswith(f"{word}demo 1.0 for ")
    assert main(["--root", root, "check", "--quiet", kernel]) == code
    assert capsys.readouterr().out == ""


def test_check_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = systems.make(tmp_path, config="modules = []\n")
    assert main(["--root", os.fspath(root), "check"]) == Exit.UNKNOWN
    assert capsys.readouterr().out.startswith("UNKNOWN: no module is guarded; set `modules`")


def test_check_of_all_that_is_registered_if_nothing_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = systems.make(tmp_path, config='modules = ["*"]\n')
    systems.write(root / "etc/dkms/framework.conf", "dkms_tree=/srv/dkms\n")
    for path in (root / "usr/src/demo-1.0").iterdir():
        path.unlink()
    nothing = "* matches nothing: no package is registered in /srv/dkms"
    for verb, begin in (("check", f"UNKNOWN: {nothing}; "), ("status", f"{nothing}.\n\nNext: "), ("explain", f"{nothing}; ")):
        main(["--root", os.fspath(root), verb])
        said = capsys.readouterr().out
        assert said.startswith(begin), said
        assert "dkms add DIRECTORY" in said


def test_verify_of_a_file_and_of_the_installed_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = systems.make(tmp_path)
    assert main(["--root", os.fspath(root), "verify"]) == Exit.OK
    assert f"updates/dkms/demo.ko: loads on {KERNEL}\n" in capsys.readouterr().out
    file = systems.write(tmp_path / "x.ko", "no module")
    assert main(["--root", os.fspath(root), "verify", os.fspath(file), "-k", NEWER]) == Exit.FAILED
    assert f"{file}: will not load on {NEWER}\n" in capsys.readouterr().out
    assert main(["--root", os.fspath(root), "verify", "-k", NEWER]) == Exit.FAILED
    assert "no guarded module is installed" in capsys.readouterr().err
    assert main(["--root", os.fspath(root), "verify", "-k", "all"]) == Exit.USAGE


def test_a_file_that_was_not_built_for_it_may_load_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = systems.make(tmp_path)
    installed = root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko"
    installed.write_bytes(kerneltree.module("demo", build_id="bbbb"))
    assert main(["--root", os.fspath(root), "verify", os.fspath(installed), "-k", KERNEL]) == Exit.OK
    assert f"demo.ko: loads on {KERNEL}\n" in capsys.readouterr().out
    assert main(["--root", os.fspath(root), "verify"]) == Exit.FAILED
    assert f"demo.ko: may load, but is not the right one on {KERNEL}\n" in capsys.readouterr().out


def test_what_cannot_be_known_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its headers nothing tells what the kernel exports."""
    root = systems.make(tmp_path)
    (root / f"usr/src/linux-headers-{KERNEL}").rename(root / "gone")
    assert main(["--root", os.fspath(root), "verify"]) == Exit.UNKNOWN
    assert f"demo.ko: it is not known whether it loads on {KERNEL}" in capsys.readouterr().out
    assert main(["--root", os.fspath(root), "check"]) == Exit.UNKNOWN
