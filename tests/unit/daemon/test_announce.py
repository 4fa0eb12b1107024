# SPDX-License-Identifier: GPL-2.0-or-later
"""What people read first: the line at login, and the sentence about a wrong module."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.model import Action, Artefact, Check, Observation, Proof, Result, Step, Why
from knetstatd.daemon import announce
from knetstatd.state import paths
from knetstatd.state.paths import Places
from knetstatd.system import locks
from knetstatd.system.journal import Journal
from knetstatd.verdict.judge import Verdict
from knetstatd.verdict.observe import Seen
from knetstatd.verdict.states import State

if TYPE_CHECKING:
    from pathlib import Path

GOOD = Verdict("good", "1.0", "6.1.0-9", "running", State.READY, True, False, "analysed", "", "", (), "ready", "")
BAD = GOOD._replace(
    package="bad", kernel="6.1.0-10", role="next", state=State.FAILED, ready=False, why="failed",
    reason="bad.c line 13: too few arguments to function call, and a long story of what was expected there",
    fix="Run: apt install new-bad",
)  # fmt: skip


def test_a_login_shows_the_worst_and_what_to_do() -> None:
    assert announce.motd([GOOD, BAD]) == (
        f"knetstatd: bad 1.0 for 6.1.0-10 (next): NOT ready: {BAD.reason}\n"
        "  To do: apt install new-bad\n"
        "  See: knetstatctl status\n"
    )  # fmt: skip
    old = BAD._replace(package="old", kernel="5.10", role="")
    assert announce.motd([old, GOOD, BAD]) == announce.motd([BAD]).replace("status\n", "status (1 more)\n")
    forged = BAD._replace(reason="\x1b]0;owned\x07\nroot password: ")
    assert len(announce.motd([forged]).splitlines()) == 3
    assert announce.motd([forged]).replace("\n", "").isprintable()


def test_a_login_shows_nothing_that_is_well_or_heals_by_itself() -> None:
    outdated = GOOD._replace(state=State.LOADED_OUTDATED, why="loaded-outdated")
    assert announce.motd([GOOD, outdated, BAD._replace(progress=True)]) == ""
    refused = GOOD._replace(state=State.READY_NOT_LOADED, why="failed", reason="the kernel does not load it")
    assert announce.motd([refused]).startswith(
        "knetstatd: good 1.0 for 6.1.0-9 (running): ready-not-loaded: the kernel does not"
    )


def test_a_login_says_that_the_next_kernel_is_not_known() -> None:
    text = announce.motd([GOOD], "", "the firmware\nis told so")
    assert text.startswith("knetstatd: the next kernel is not known: the firmware")
    assert len(text.splitlines()) == 2
    assert announce.motd([GOOD, BAD], "", "x") == announce.motd([BAD]), "that is worse"


def test_what_a_login_shows_is_dated_and_goes_with_the_daemon(tmp_path: Path) -> None:
    places = Places(tmp_path / "state", tmp_path, tmp_path / "caches")
    motd, status = places.motd, places.status
    announce.write_motd(places, "knetstatd: x\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d knetstatd: x\n", motd.read_text())
    assert motd.stat().st_mode & 0o777 == 0o644
    announce.write_motd(places, "")
    announce.write_motd(places, "")
    assert not motd.exists()
    announce.write_motd(places, "knetstatd: x\n")
    status.touch()
    announce.withdraw(places)
    announce.withdraw(places)
    assert not motd.exists()
    assert not status.exists()


def test_a_faulty_configuration_is_shown_unless_a_daemon_runs_all_the_same(tmp_path: Path) -> None:
    places = paths.places(tmp_path)
    motd = places.motd
    with locks.locked(places.daemon_lock, 0.0):
        announce.not_started(places)
        assert not motd.exists()
    announce.not_started(places)
    assert "does not run: its configuration is faulty" in motd.read_text()
    announce.not_started(paths.places(tmp_path / "nowhere"))  # a machine where /run cannot be written has other worries


def test_a_rejected_configuration_is_shown_until_one_is_taken() -> None:
    fault = "/etc/knetstatd/knetstatd.toml:3: modules is 7"
    lines = announce.motd([BAD], fault).splitlines()
    assert lines[0] == f"knetstatd: an old configuration is in force, the new one is faulty: {fault}"
    assert lines[1] == "  To do: correct it, then: systemctl reload knetstatd"
    assert "\n".join(lines[2:]) + "\n" == announce.motd([BAD])
    assert announce.motd([GOOD], fault).splitlines() == lines[:2]


@pytest.mark.parametrize(("check", "word"), [("contents", "is not the right one"), ("crcs", "will not load")])
def test_only_what_the_kernel_refuses_is_said_not_to_load(capfd: pytest.CaptureFixture[str], check: str, word: str) -> None:
    proof = Proof("/demo.ko", (Check(check, Result.FAIL, "a", "b", "it is wrong"),))
    seen = Seen(Observation("bad", "6.1.0-10", "1.0", installed=Artefact.BAD), (("demo", proof),))
    announce.Teller(Journal(path="")).verdict(BAD, seen, Step(Action.STAGE, Why.WRONG))
    assert f"the installed module {word}: /demo.ko: b: it is wrong" in capfd.readouterr().err
