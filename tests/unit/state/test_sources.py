# SPDX-License-Identifier: GPL-2.0-or-later
"""Of which source modules were compiled: contents decide, whatever happens to their times."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import guardedtree
import machinetree
import pytest
from machinetree import KERNEL

from knetstatd.core.errors import ChildLost
from knetstatd.core.model import Action, Artefact
from knetstatd.machine import kernels
from knetstatd.state import sources

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from knetstatd.verdict.observe import Machine

SOURCE, COPY = "usr/src/demo-1.0", f"var/lib/dkms/demo/1.0/{KERNEL}/{machinetree.ARCH}/module/demo.ko"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a good module that plain dkms has built, of a source that is older."""
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/knetstatd")
    guardedtree.make(tmp_path)
    return machinetree.machine(tmp_path, running="")


def touch(root: Path) -> None:
    """What is looked at later than modules were made: also by the clock of file systems."""
    time.sleep(0.02)
    for path in (root / SOURCE).iterdir():
        os.utime(path)


def judged(machine: Machine) -> Artefact:
    return machinetree.look(machine).observation.installed


def keep(machine: Machine) -> None:
    machine.refresh()
    machine.sources.keep(KERNEL, machine.package("demo"))


def test_times_decide_nothing_and_contents_do(tmp_path: Path, machine: Machine) -> None:
    assert judged(machine) is Artefact.GOOD
    keep(machine)
    touch(tmp_path)
    assert judged(machine) is Artefact.GOOD
    path = tmp_path / SOURCE / "demo.c"
    path.write_text("x")
    assert judged(machine) is Artefact.OTHER
    path.write_text("")
    assert judged(machine) is Artefact.GOOD, "it is again what it was"


def test_a_source_whose_times_were_set_back(tmp_path: Path, machine: Machine) -> None:
    """As by tar, dpkg and cp -p: another source may be older than what was compiled of the one before."""
    keep(machine)
    path = tmp_path / SOURCE / "demo.c"
    was, text = path.stat(), path.read_text()
    for another, artefact in (("another", Artefact.OTHER), (text, Artefact.GOOD)):
        time.sleep(0.02)
        path.write_text(another)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert judged(machine) is artefact
        keep(machine)
        assert judged(machine) is artefact, "it is not taken for the one that was compiled"


def test_other_contents_that_are_older_than_the_modules_are_another_source(tmp_path: Path, machine: Machine) -> None:
    """As `cp -a` and `rsync -a` leave them: with the times that they had where they come from."""
    keep(machine)
    path = tmp_path / SOURCE / "demo.c"
    path.write_text("x")
    os.utime(path, (1e8, 1e8))
    assert judged(machine) is Artefact.OTHER
    keep(machine)
    assert judged(machine) is Artefact.OTHER, "no builder takes it for the source of the modules"


def test_a_lost_child_leaves_it_to_the_times(tmp_path: Path, machine: Machine) -> None:
    def in_child(work: Callable[[], list[object]]) -> list[object]:
        if lost:
            raise ChildLost("it had no memory")
        return work()

    lost = True
    keep(machine)
    machine.sources = sources.Sources(machine.places, in_child)
    touch(tmp_path)
    assert judged(machine) is Artefact.OTHER
    lost = False
    assert judged(machine) is Artefact.GOOD, "it is tried again"


def test_without_what_was_kept_times_decide(tmp_path: Path, machine: Machine) -> None:
    touch(tmp_path)
    assert judged(machine) is Artefact.OTHER
    keep(machine)
    assert judged(machine) is Artefact.OTHER, "what may be of another source is not taken for one of this"
    place = machine.places.sources(KERNEL, "demo")
    assert not place.exists()
    for text in ("", "{}", '{"schema": 1, "mark": "x", "digest": "y", "copies": {"demo.ko": 1}}'):
        machinetree.write(place, text)
        assert judged(machine) is Artefact.OTHER


def test_what_is_kept_counts_for_that_very_file(tmp_path: Path, machine: Machine) -> None:
    """A build by plain dkms of a source that was changed, and changed back, is no build of this source."""
    keep(machine)
    (tmp_path / COPY).write_bytes(machinetree.GOOD)
    os.utime(tmp_path / COPY, (1e9 + 1, 1e9 + 1))
    touch(tmp_path)
    assert judged(machine) is Artefact.OTHER


def test_contents_are_read_once(tmp_path: Path, machine: Machine) -> None:
    read: list[int] = []

    def in_child(work: Callable[[], list[object]]) -> list[object]:
        read.append(1)
        return work()

    keep(machine)
    machine.sources = sources.Sources(machine.places, in_child)
    assert judged(machine) is Artefact.GOOD
    assert read == [], "the times are those that are kept"
    touch(tmp_path)
    assert [judged(machine) for _ in range(3)] == [Artefact.GOOD] * 3
    assert read == [1]
    known = machine.package("demo")
    assert machine.sources.unkept(KERNEL, known) == kernels.age(tmp_path / SOURCE).mark
    machine.sources.keep(KERNEL, known)
    assert machine.sources.unkept(KERNEL, known) == ""
    machine.sources = sources.Sources(machine.places, in_child)
    assert judged(machine) is Artefact.GOOD
    assert read == [1], "the new times are kept, too"


def test_a_child_that_is_lost_is_asked_again(tmp_path: Path, machine: Machine) -> None:
    lost = [True]

    def in_child(work: Callable[[], list[object]]) -> list[object]:
        if lost:
            raise ChildLost("it was killed")
        return work()

    keep(machine)
    machine.sources = sources.Sources(machine.places, in_child)
    touch(tmp_path)
    assert judged(machine) is Artefact.OTHER, "whether it is of this source is not known"
    lost.clear()
    assert judged(machine) is Artefact.GOOD


@pytest.mark.spawns
def test_a_publication_keeps_it(tmp_path: Path) -> None:
    machinetree.make(tmp_path)
    machine = machinetree.machine(tmp_path, running="")
    builder = machinetree.builder(machine)
    for action in (Action.STAGE, Action.PUBLISH):
        assert builder.step(machinetree.look(machine), action)
    touch(tmp_path)
    assert judged(machine) is Artefact.GOOD


def test_all_that_a_compilation_sees_is_in_the_digest(tmp_path: Path) -> None:
    machinetree.write(tmp_path / "a/b.c", "x")
    seen = {sources.digest(tmp_path)}

    def changes(what: Callable[[], object]) -> None:
        what()
        assert sources.digest(tmp_path) not in seen
        seen.add(sources.digest(tmp_path))

    changes(lambda: machinetree.write(tmp_path / "a/b.c", "y"))
    changes(lambda: (tmp_path / "a/b.c").rename(tmp_path / "a/c.c"))
    changes(lambda: (tmp_path / "a/c.c").chmod(0o755))
    changes(lambda: (tmp_path / "link").symlink_to("a"))
    (tmp_path / "link").unlink()
    changes(lambda: (tmp_path / "link").symlink_to("b"))
    changes(lambda: (tmp_path / "empty").mkdir())
    os.utime(tmp_path / "a/c.c", (1e9, 1e9))
    assert sources.digest(tmp_path) in seen


def test_what_cannot_be_read_whole_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.digest(tmp_path / "gone") == ""
    assert sources.digest(tmp_path) == "", "an empty tree is no source"
    machinetree.write(tmp_path / "a.c", "x")
    age = kernels.age(tmp_path)
    assert sources.of_now(tmp_path, age) == (age.mark, sources.digest(tmp_path))
    assert sources.of_now(tmp_path, age._replace(mark="another")) is None, "it was changed meanwhile"
    monkeypatch.setattr(sources, "_MOST_FILES", 0)
    assert sources.digest(tmp_path) == ""
    monkeypatch.undo()
    os.mkfifo(tmp_path / "pipe")
    assert sources.digest(tmp_path) == ""
