# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verdict says, field by field, and the document in which all of them stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kerneltree
import pytest
from kerneltree import KERNEL

from knetstatd.core.config import Config
from knetstatd.core.events import Event
from knetstatd.core.model import (
    Action,
    Answer,
    Artefact,
    Attempt,
    Check,
    Kind,
    Loaded,
    Observation,
    Outcome,
    Proof,
    Rehearsed,
    Result,
    Step,
    Why,
)  # fmt: skip
from knetstatd.state.rehearsal_results import Subject
from knetstatd.verdict import judge
from knetstatd.verdict.observe import Machine, Seen
from knetstatd.verdict.states import State

if TYPE_CHECKING:
    from pathlib import Path

GOOD = Check("release", Result.PASS, "6.1", "6.1")
WRONG = Check("vermagic", Result.FAIL, "a", "b", "of another kernel", "build it")
READY = Step(Action.DONE, Why.READY)
SEEN = Seen(
    Observation("demo", KERNEL, "1.0", installed=Artefact.GOOD, loaded=Loaded.CURRENT),
    (("demo", Proof("/demo.ko", (GOOD,))), ("more", Proof("/more.ko", (GOOD._replace(name="crcs"),)))),
)
BROKEN = Seen(Observation("demo", KERNEL, "1.0", installed=Artefact.BAD), (("demo", Proof("/demo.ko", (GOOD, WRONG))),))
STATUS = "Package: {}\nStatus: install ok {}\nArchitecture: amd64\nVersion: 1\n\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with one kernel; it runs another."""
    kerneltree.make(tmp_path)
    (tmp_path / f"boot/vmlinuz-{KERNEL}").write_text("image")
    made = Machine(tmp_path, Config())
    made.refresh()
    made.running = "5.10.0-9-amd64"
    return made


def half_way(machine: Machine, *packages: tuple[str, str]) -> None:
    """dpkg has left these packages half-way."""
    path = machine.root / "var/lib/dpkg/status"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(STATUS.format(name, state) for name, state in packages))
    machine.refresh_locks()


def test_ready(machine: Machine) -> None:
    made = judge.verdict(machine, SEEN, READY)
    assert made == judge.Verdict(
        package="demo", version="1.0", kernel=KERNEL, role="next", state=State.READY, ready=True, progress=False,
        proof="analysed", reason="", fix="", checks=(("/demo.ko", GOOD), ("/more.ko", GOOD._replace(name="crcs"))),
        why="ready", log="", event=Event.READY,
    )  # fmt: skip


def test_failed(machine: Machine) -> None:
    attempt = Attempt(Kind.COMPILE, 1, reason="line 3 is wrong", fix="correct it", log="/make.log")
    seen = BROKEN._replace(observation=BROKEN.observation._replace(attempt=attempt))
    made = judge.verdict(machine, seen, Step(Action.GIVE_UP, Why.FAILED))
    assert (made.state, made.ready, made.progress, made.event) == (State.FAILED, False, False, Event.GAVE_UP)
    assert (made.reason, made.fix, made.log, made.why) == ("line 3 is wrong", "correct it", "/make.log", "failed")
    assert made.checks == (("/demo.ko", GOOD), ("/demo.ko", WRONG))


def test_a_good_module_of_a_kernel_that_cannot_be_started_is_not_ready(machine: Machine) -> None:
    made = judge.verdict(machine, SEEN, Step(Action.DONE, Why.NO_IMAGE))
    assert (made.state, made.ready, made.event) == (State.NO_BOOT_IMAGE, False, None)


def test_a_wait_is_told_as_such(machine: Machine) -> None:
    """What apt or another dkms holds up is an event; what only settles is none. Both are under way."""
    for why, event in ((Why.TRANSACTION, Event.WAITING), (Why.FOREIGN_DKMS, Event.WAITING), (Why.SETTLING, None)):
        made = judge.verdict(machine, BROKEN, Step(Action.WAIT, why, 1.0))
        assert (made.ready, made.progress, made.event) == (False, True, event)


@pytest.mark.parametrize(
    ("action", "why", "progress", "event"),
    [
        (Action.DONE, Why.FAULTY, False, Event.FAULTY),
        (Action.GIVE_UP, Why.DENIED, False, Event.GAVE_UP),
        (Action.GIVE_UP, Why.HEADERS_MISSING, False, Event.HEADERS_MISSING),
        (Action.STAGE, Why.WRONG, True, None),
        (Action.GIVE_UP, Why.SOURCE_MISSING, False, Event.SOURCE_MISSING),
    ],
)
def test_what_the_journal_calls_it(machine: Machine, action: Action, why: Why, progress: bool, event: Event | None) -> None:
    made = judge.verdict(machine, BROKEN, Step(action, why))
    assert (made.progress, made.event) == (progress, event)


def test_what_it_rests_on(machine: Machine) -> None:
    assert judge.verdict(machine, Seen(SEEN.observation), READY).proof == "none"
    said = Answer(Outcome.LOADED, "", "", "", machine="emulation", seconds=2.5)
    image = machine.root / "boot/image"
    rehearsed = SEEN._replace(answer=said, subject=Subject(KERNEL, "demo", image, ()))
    made = judge.verdict(machine, rehearsed, READY)
    assert made.proof == "rehearsed"
    file, check = made.checks[-1]
    assert (file, check.name, check.result) == (str(image), "rehearsal", Result.PASS)
    assert judge.verdict(machine, SEEN, READY).checks[-1][1].name == "crcs"


def test_ready_is_announced_only_of_what_is(machine: Machine) -> None:
    """A rehearsal that is not due again yet is called ready where nobody requires it."""
    later = Step(Action.WAIT, Why.NOT_REHEARSED, 9.0)
    seen = SEEN._replace(observation=SEEN.observation._replace(rehearsed=Rehearsed.DUE, attempt=Attempt(Kind.REHEARSAL, 1)))
    made = judge.verdict(machine, seen, later)
    assert (made.ready, made.event) == (True, Event.READY)
    machine.config = Config(rehearse="require")
    made = judge.verdict(machine, seen, later)
    assert (made.ready, made.event, made.state) == (False, None, State.NOT_REHEARSED)


@pytest.mark.parametrize(
    ("following", "running", "role"),
    [(KERNEL, KERNEL, "next, running"), (KERNEL, "", "next"), ("", KERNEL, "running"), ("", "", "")],
)
def test_roles(machine: Machine, following: str, running: str, role: str) -> None:
    machine.next, machine.running = following, running
    assert judge.role(machine, KERNEL) == role
    made = judge.verdict(machine, SEEN, READY)
    assert made.title == f"demo 1.0 for {KERNEL}" + (f" ({role})" if role else "")
    assert made._replace(version="").title == made.title.replace(" 1.0", "")


def test_what_to_do_something_about_comes_first(machine: Machine) -> None:
    ready = judge.verdict(machine, SEEN, READY)
    wrong = ready._replace(ready=False)
    order = [wrong, wrong._replace(role="running"), wrong._replace(progress=True), ready, ready._replace(role="")]
    assert min(order[::-1], key=lambda verdict: verdict.urgency) == order[0]
    assert [verdict.urgency for verdict in order] == sorted({verdict.urgency for verdict in order})


def test_json(machine: Machine) -> None:
    made = judge.verdict(machine, BROKEN, Step(Action.STAGE, Why.WRONG))
    assert made.json() == {
        "package": "demo", "version": "1.0", "kernel": KERNEL, "role": "next", "state": "needs-rebuild", "ready": False,
        "in_progress": True, "proof": "analysed", "reason": made.reason, "fix": f"knetstatctl build {KERNEL}",
        "why": "wrong-module", "documentation": "troubleshooting.md#needs-rebuild", "log": "",
        "checks": [
            {"file": "/demo.ko", "name": "release", "result": "pass", "expected": "6.1", "found": "6.1",
             "reason": "", "fix": ""},
            {"file": "/demo.ko", "name": "vermagic", "result": "fail", "expected": "a", "found": "b",
             "reason": "of another kernel", "fix": "build it"},
        ],
    }  # fmt: skip
    assert "of another kernel" in made.reason


def test_document(machine: Machine) -> None:
    ready = judge.verdict(machine, SEEN, READY)
    wrong = judge.verdict(machine, BROKEN, Step(Action.STAGE, Why.WRONG))
    document = judge.document(machine, [ready])
    assert document == {
        "schema": 1, "next": KERNEL, "next_why": machine.next_why, "next_basis": "assumed",
        "running": machine.running, "ready": True, "packages": list(machine.packages()),
        "kernels": {KERNEL: "bootable"}, "refused": [], "verdicts": [ready.json()],
    }  # fmt: skip
    assert machine.next_why
    elsewhere = wrong._replace(kernel="5.10.0-9-amd64")
    for bad in ([], [wrong], [ready, wrong], [elsewhere]):
        assert judge.document(machine, bad)["ready"] is False
    assert judge.document(machine, [ready, elsewhere])["ready"] is True
    (machine.root / "usr/lib/modules/6.1 odd").mkdir()
    machine.refresh()
    [refused] = judge.document(machine, [ready])["refused"]
    assert (refused["name"], bool(refused["reason"])) == ("'6.1 odd'", True)


class TestHalfConfigured:
    IMAGE, HEADERS = f"linux-image-{KERNEL}", f"linux-headers-{KERNEL}"

    def test_the_kernel_itself(self, machine: Machine) -> None:
        half_way(machine, (self.IMAGE, "half-configured"))
        made = judge.verdict(machine, SEEN, READY)
        assert (made.state, made.ready, made.progress, made.why) == (
            State.KERNEL_HALF_CONFIGURED, False, False, "half-configured",
        )  # fmt: skip
        assert (made.event, made.fix) == (Event.HALF_CONFIGURED, f"knetstatctl repair {KERNEL}")
        assert f"the module is good, but {self.IMAGE} is half-configured:" in made.reason

    def test_who_finishes_it_makes_the_initrd_that_is_missing(self, machine: Machine) -> None:
        lacks = Proof("/demo.ko", (GOOD, WRONG._replace(name="initrd")))
        seen = Seen(Observation("demo", KERNEL, "1.0", installed=Artefact.DENIED, initrd=True), (("demo", lacks),))
        half_way(machine, (self.IMAGE, "half-configured"))
        made = judge.verdict(machine, seen, Step(Action.GIVE_UP, Why.DENIED))
        assert (made.state, made.fix) == (State.KERNEL_HALF_CONFIGURED, f"knetstatctl repair {KERNEL}")

    def test_nothing_that_is_under_way_cures_it(self, machine: Machine) -> None:
        out = SEEN._replace(observation=SEEN.observation._replace(loaded=Loaded.NO))
        load = Step(Action.LOAD, Why.NOT_LOADED)
        assert judge.verdict(machine, out, load).progress
        half_way(machine, (self.IMAGE, "half-configured"))
        assert not judge.verdict(machine, out, load).progress

    def test_its_headers_alone(self, machine: Machine) -> None:
        half_way(machine, (self.HEADERS, "unpacked"))
        made = judge.verdict(machine, SEEN, READY)
        assert (made.state, made.ready, made.event, made.why) == (State.READY, True, Event.READY, "ready")
        assert (f"{self.HEADERS} is unpacked" in made.reason, made.fix) == (True, f"knetstatctl repair {KERNEL}")

    def test_one_that_must_be_unpacked_again(self, machine: Machine) -> None:
        half_way(machine, (self.IMAGE, "half-installed"), (self.HEADERS, "half-installed"))
        made = judge.verdict(machine, SEEN, READY)
        assert made.fix == f"apt-get install --reinstall {self.HEADERS} {self.IMAGE}"
        assert f"{self.HEADERS} is half-installed, {self.IMAGE} is half-installed" in made.reason

    def test_beside_another_fault(self, machine: Machine) -> None:
        before = judge.verdict(machine, BROKEN, Step(Action.STAGE, Why.WRONG))
        half_way(machine, (self.IMAGE, "half-configured"))
        made = judge.verdict(machine, BROKEN, Step(Action.STAGE, Why.WRONG))
        besides = f"besides, {self.IMAGE} is half-configured"
        assert made == before._replace(reason=f"{before.reason}; {besides}")
        waits = Step(Action.WAIT, Why.FOREIGN_DKMS, 1.0)
        silent = judge.verdict(machine, BROKEN, waits)
        assert silent.reason.endswith(f"; {besides}")

    def test_of_another_kernel(self, machine: Machine) -> None:
        half_way(machine, ("linux-image-6.9.0-1-amd64", "half-configured"))
        assert judge.verdict(machine, SEEN, READY).ready


@pytest.mark.parametrize(("fix", "command"), [("Run: depmod", "depmod"), ("Reinstall it", "Reinstall it"), ("", "")])
def test_a_cure_after_its_word(fix: str, command: str) -> None:
    assert judge.command(fix) == command


@pytest.mark.parametrize(
    ("checks", "lacks"),
    [
        ((Check("release", Result.PASS), Check("initrd", Result.FAIL)), True),
        ((Check("release", Result.PASS), Check("initrd", Result.UNKNOWN)), True),
        ((Check("key", Result.FAIL), Check("initrd", Result.FAIL)), False),
    ],
)
def test_what_only_lacks_an_initrd(checks: tuple[Check, ...], lacks: bool) -> None:
    o = Observation("m", "6.1", "1", installed=Artefact.DENIED)
    assert judge.lacks_initrd(Seen(o, (("m", Proof("/m.ko", checks)),))) is lacks
    good = o._replace(installed=Artefact.GOOD)
    assert not judge.lacks_initrd(Seen(good, (("m", Proof("/m.ko", checks)),)))
