# SPDX-License-Identifier: GPL-2.0-or-later
"""`knetstatctl rehearse`: a person asks what a kernel says of modules."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.build import steps
from knetstatd.cli import render, subjects, terminal
from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError, UsageError
from knetstatd.core.exits import Exit
from knetstatd.core.model import Answer, Outcome
from knetstatd.formats import compression, module_file, modules_dep
from knetstatd.machine import kernels
from knetstatd.rehearsal import rehearse
from knetstatd.state.rehearsal_results import Subject
from knetstatd.system import files, locks, process, units
from knetstatd.system.journal import Journal
from knetstatd.system.progress import Progress

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from knetstatd.verdict.observe import Machine


class Rehearsal(NamedTuple):
    """One rehearsal by hand. title: module, version and kernel, as it is called elsewhere."""

    package: str
    title: str
    answer: Answer

    @property
    def exit_code(self) -> Exit:
        """0 it loads and works, 1 the kernel refuses it or it does not work, 3 nothing is known."""
        if self.answer.outcome is Outcome.UNDECIDED:
            return Exit.UNKNOWN
        return Exit.OK if self.answer.outcome.good else Exit.FAILED

    def json(self) -> dict[str, Any]:
        """The outcome as it stands in the JSON document."""
        return {"package": self.package, **self.answer._asdict(), "words": list(self.answer.words)}

    def text(self, enabled: bool) -> str:
        """The outcome for a person. enabled: with colours."""
        a, colour = self.answer, {Exit.OK: "green", Exit.FAILED: "red", Exit.UNKNOWN: "yellow"}[self.exit_code]
        how = f"  ({a.machine}, {a.seconds:.1f} s)" if a.machine else ""
        lines = [f"{self.title}: {render.paint(a.outcome, colour, enabled)}{how}"]
        remarks = (("Reason: ", a.reason), ("Note:   ", a.remark), ("Fix:    ", a.fix))
        lines += [f"  {label}{text}" for label, text in remarks if text]
        return "\n".join([*lines, *(f"    | {line}" for line in a.words)])


def exit_code(outcomes: Sequence[Rehearsal]) -> Exit:
    """One for several: a refusal beats what is not known."""
    codes = {outcome.exit_code for outcome in outcomes}
    return next(code for code in (Exit.FAILED, Exit.UNKNOWN, Exit.OK) if code in codes)


def verb(arguments: argparse.Namespace) -> Exit:
    """Rehearses on one kernel, and prints the outcomes."""
    subjects.only_here(arguments, "starts kernels on the machine that runs")
    if arguments.kernel == "all":
        raise UsageError("one kernel is rehearsed at a time", fix="Name one")
    machine = subjects.machine(arguments)
    kernel = subjects.one_kernel(machine, arguments.kernel, "knetstatctl rehearse KERNEL")
    packages = machine.packages() if arguments.module is None else (names.package(arguments.module),)
    outcomes = manual(machine, kernel, packages, arguments.file, shown=not arguments.json)
    if arguments.json:
        terminal.show_document({"kernel": kernel, "rehearsals": [outcome.json() for outcome in outcomes]})
    else:
        print("\n".join(outcome.text(terminal.is_coloured()) for outcome in outcomes))
    return exit_code(outcomes)


def manual(machine: Machine, kernel: str, packages: Sequence[str], file: str | None, *, shown: bool) -> list[Rehearsal]:
    """Rehearses on one kernel, each package by itself. file: a module's file instead.  shown: the progress.

    As root, the answers about installed modules are kept, and told in the journal. What cannot be done is an outcome too.
    Raises KnetstatdError if there is nothing to rehearse, or another run does not end within an hour.
    """
    progress = Progress(shown=shown)
    process.adopt_orphans()
    with locks.locked(machine.places.build_lock, 3600.0) if os.geteuid() == 0 else contextlib.nullcontext(-1) as lock:
        builder = steps.Builder(machine, Journal(quiet=True), progress, lock)
        try:
            if file is not None:
                return [_of_file(machine, kernel, Path(file).absolute(), progress)]
            outcomes = [outcome for package in packages if (outcome := _of_installed(builder, kernel, package))]
        finally:
            progress.end()
    if not outcomes:
        image = kernels.image(machine.root, kernel)
        what = f"no guarded module is installed for {kernel}" if image else f"{kernel} has no boot image"
        raise KnetstatdError(what, fix=f"Run: knetstatctl build {kernel}" if image else "")
    return outcomes


def _of_installed(builder: steps.Builder, kernel: str, package: str) -> Rehearsal | None:
    machine = builder.machine
    seen = machine.observe(machine.look(kernel), package, own=True)
    subject = machine.rehearsal(kernel, package, seen.installed)
    if subject is None:
        return None
    try:
        answer = builder.rehearse(seen, subject, fresh=True) if os.geteuid() == 0 else _ask(machine, subject, builder.progress)
    except KnetstatdError as e:
        answer = rehearse.cannot(e)
    return Rehearsal(package, f"{package} {seen.observation.version} on {kernel}", answer)


def _of_file(machine: Machine, kernel: str, path: Path, progress: Progress) -> Rehearsal:
    subject = of_file(machine, kernel, path)
    try:
        with _readable(machine, subject) as shown:
            answer = _ask(machine, shown, progress)
    except KnetstatdError as e:
        answer = rehearse.cannot(e)
    return Rehearsal(subject.package, f"{path} on {kernel}", answer)


@contextlib.contextmanager
def _readable(machine: Machine, subject: Subject) -> Iterator[Subject]:
    """The same, with the file in a place that the unit may read: it may not look into homes."""
    [(path, needed)] = subject.modules
    if os.geteuid() != 0 or not units.available(machine.root, rehearse.TEMPLATE):
        yield subject
        return
    copy = machine.places.rehearsed_file
    try:
        files.write(copy, files.read(path, compression.LIMIT), durable=False)
    except OSError as e:
        raise KnetstatdError(f"cannot be copied: {e.strerror}", os.fspath(path)) from e
    try:
        yield subject._replace(modules=((copy, needed),))
    finally:
        copy.unlink(missing_ok=True)


def of_file(machine: Machine, kernel: str, path: Path) -> Subject:
    """What a rehearsal of a module's file is about. Raises KnetstatdError if the kernel lacks what must go in first."""
    image, module = kernels.image(machine.root, kernel), module_file.from_path(path)
    if image is None:
        raise KnetstatdError(f"{kernel} has no boot image")
    tables = modules_dep.Tables(machine.root, files.inside(machine.root, f"/lib/modules/{kernel}"))
    needed: list[Path] = []
    for name in module.depends:
        entry = tables.entry(name)
        if entry is not None:
            needed += [*entry.needed, entry.file]
        elif not tables.builtin(name):
            raise KnetstatdError(f"needs {names.show(name)}, which {kernel} does not have", os.fspath(path))
    return Subject(kernel, module.name, image, ((path, tuple(dict.fromkeys(needed))),), machine.arguments(kernel))


def _ask(machine: Machine, subject: Subject, progress: Progress) -> Answer:
    progress.phase(f"Rehearsing {subject.package} on {subject.kernel}")
    timeout = machine.config.rehearse_timeout_seconds
    return rehearse.rehearsed(machine.root, machine.places, subject, rehearse.inputs(subject), timeout, progress.tick)
