# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading, one step of the builder: on a full disk, and after the running kernel's refusal. With real kernels: tests/faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kerneltree
import pytest

from knetstatd.build import load as loading
from knetstatd.build import steps
from knetstatd.build.steps import Builder
from knetstatd.core.config import Config
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Action, Artefact, Kind, Step, Why
from knetstatd.state import attempts, load_history
from knetstatd.system.journal import Journal
from knetstatd.system.progress import Progress
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.verdict.observe import Seen


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """For a machine with knetstat installed for the running kernel."""
    tree = kerneltree.make(tmp_path)
    kerneltree.add(tree, "updates/dkms/knetstat.ko", kerneltree.module("knetstat"))
    (tmp_path / "boot" / f"vmlinuz-{kerneltree.KERNEL}").touch()
    machine = Machine(tmp_path, Config(load=("knetstat",)))
    machine.running = kerneltree.KERNEL
    machine.places.state.mkdir(parents=True)
    machine.places.runtime.mkdir(parents=True)
    machine.refresh()
    return Builder(machine, Journal(quiet=True), Progress(shown=False), -1)


def load(builder: Builder, monkeypatch: pytest.MonkeyPatch, error: BuildError | None) -> bool:
    """Whether the step succeeds, where the kernel says this."""

    def said(root: Path, modules: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(loading, "load", said)
    return builder.step(builder.machine.observe(builder.machine.look(kerneltree.KERNEL), "knetstat"), Action.LOAD)


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_loading_needs_no_room(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "save", full)
    assert load(builder, monkeypatch, None)
    assert not builder.forgetful


def test_a_failure_that_cannot_be_kept_is_told_to_who_would_start_the_next(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not load(builder, monkeypatch, BuildError(Kind.REFUSED, "its init fails"))
    assert not builder.forgetful
    monkeypatch.setattr(attempts, "save", full)
    assert not load(builder, monkeypatch, BuildError(Kind.REFUSED, "its init fails"))
    assert builder.forgetful


def test_what_the_running_kernel_calls_another_kernels_is_wrong_once(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is called wrong, so that it is built again; the next one that is refused is not, and that is final."""
    machine = builder.machine

    def seen() -> Artefact:
        return machine.observe(machine.look(kerneltree.KERNEL), "knetstat").observation.installed

    assert seen() is Artefact.GOOD
    assert not load(builder, monkeypatch, BuildError(Kind.MISMATCH, "another checksum"))
    assert seen() is Artefact.BAD
    [path] = machine.root.glob("usr/lib/modules/*/updates/dkms/knetstat.ko")
    path.write_bytes(path.read_bytes())
    assert seen() is Artefact.GOOD
    assert not load_history.refuse(machine.places, "knetstat", [path])


def test_what_is_to_be_built_again_right_after_its_publication_is_not(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something changes it as soon as it is there: that is remembered as a failure, and ends the run."""
    done: list[Action] = []
    answers = iter([Action.STAGE, Action.PUBLISH, Action.STAGE])

    def carried_out(seen: Seen, action: Action) -> bool:
        done.append(action)
        return True

    seen = builder.machine.observe(builder.machine.look(kerneltree.KERNEL), "knetstat")
    seen = seen._replace(fingerprint="the same")
    monkeypatch.setattr(builder, "step", carried_out)
    monkeypatch.setattr(builder.machine, "observe", lambda *_, **__: seen)
    monkeypatch.setattr(builder.machine, "plan", lambda *_: Step(next(answers), Why.WRONG))
    steps._run_steps(builder, kerneltree.KERNEL, "knetstat", steps.STEPS["build"], wait=False)
    assert done == [Action.STAGE, Action.PUBLISH]
    kept = attempts.load(builder.machine.root, builder.machine.places, kerneltree.KERNEL, "knetstat", "the same")
    assert kept is not None
    assert (kept.kind, "something has changed it since" in kept.reason) == (Kind.PUBLISH, True)
