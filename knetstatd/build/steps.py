# SPDX-License-Identifier: GPL-2.0-or-later
"""Carrying out one step of the plan: to compile, to publish, to rehearse, to load a package, to make an initrd, or to install
headers.

Rule: the caller holds our lock, and has observed the machine right before. A step raises nothing that the machine is at fault
for: it is remembered, and told (see failures).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.build import initrd, pack, publish, stage
from knetstatd.build import load as loading
from knetstatd.build.compile import Job
from knetstatd.build.failures import Failures, classified
from knetstatd.core.errors import BuildError, KnetstatdError, ShuttingDown
from knetstatd.core.events import Event
from knetstatd.core.model import Action, Artefact, Headers, Kind, Outcome
from knetstatd.diagnosis import build_log
from knetstatd.machine import kernels
from knetstatd.state import attempts, load_history, rehearsal_results, staged
from knetstatd.system import process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knetstatd.core.model import Answer, Proof
    from knetstatd.state.rehearsal_results import Subject
    from knetstatd.system.journal import Journal
    from knetstatd.system.progress import Progress
    from knetstatd.verdict.observe import Machine, Seen


class Builder:
    """Carries out steps for packages and kernels of one machine, under the lock."""

    def __init__(self, machine: Machine, journal: Journal, progress: Progress, lock: int) -> None:
        self.machine = machine
        self.journal = journal
        self.progress = progress
        self.lock = lock
        self.failures = Failures(machine, journal)

    def step(self, seen: Seen, action: Action) -> bool:
        """Carries out one step that the planner has just answered; True if it succeeded. Never raises KnetstatdError."""
        begin = time.monotonic()
        try:
            self.failures.begun(seen, action)
            match action:
                case Action.STAGE:
                    self._stage(seen)
                case Action.PUBLISH:
                    self._publish(seen, begin)
                case Action.MAKE_INITRD:
                    self._make_initrd(seen)
                case Action.REHEARSE:
                    if not self._rehearse(seen).outcome.good:
                        return False  # told, and remembered, already
                case Action.LOAD:
                    self._load(seen)
                case Action.FETCH_HEADERS:
                    self._fetch_headers(seen)
                case _:
                    raise AssertionError(action)
        except ShuttingDown:
            self.failures.withdrawn(seen)
            return False
        except (OSError, KnetstatdError) as e:
            self.failures.failed(seen, action, classified(e))
            return False
        finally:
            self.progress.end()
        attempts.forget(self.machine.places, seen.observation.kernel, seen.observation.package)
        return True

    def _say(self, event: Event, seen: Seen, text: str, **fields: object) -> None:
        o = seen.observation
        self.journal.log(
            event, f"{o.package} {o.version} for {o.kernel}: {text}",
            package=o.package, version=o.version, kernel=o.kernel, **fields,
        )  # fmt: skip

    def _job(self, seen: Seen, timeout: float) -> Job:
        o = seen.observation
        assert seen.source is not None, "the planner stages and publishes only what DKMS has a source of"
        root, places = self.machine.root, self.machine.places
        mark = seen.fingerprint
        return Job(root, places, o.kernel, o.package, o.version, seen.source, seen.passed, mark, timeout, seen.lacking)

    def _stage(self, seen: Seen) -> None:
        o = seen.observation
        self.progress.phase(f"Compiling {o.package} {o.version} for {o.kernel}")
        why = "the installed one is wrong" if o.installed is not Artefact.NONE else "there is none yet"
        self._say(Event.STAGE_STARTED, seen, f"compiling in a private tree, {why}")
        begin = time.monotonic()
        job = self._job(seen, self.machine.config.compile_timeout_seconds)

        def prove(path: Path, others: Sequence[Path]) -> Proof:
            before = self.machine.built_before(o.kernel, o.package)
            return self.machine.prove_file(self.machine.look(o.kernel), path, (*others, *before))

        artefact = stage.stage(job, prove, self.progress.tick)
        assert seen.headers.path is not None, "the planner stages only with headers"
        pack.pack(job, artefact, seen.headers.path, [self.lock])
        took = time.monotonic() - begin
        self._say(Event.STAGED, seen, f"compiled and verified in {took:.1f} s", duration_usec=int(took * 1e6))

    def _publish(self, seen: Seen, begin: float) -> None:
        o = seen.observation
        job = self._job(seen, self.machine.config.publish_timeout_seconds)
        artefact = staged.find(job.places, o.kernel, o.package, o.version, job.fingerprint)
        assert artefact is not None, "the planner publishes what is staged"
        assert seen.headers.path is not None, "and has headers"

        def prove() -> tuple[Proof, ...]:
            self.machine.refresh()  # DKMS has marked another version as installed
            return self.machine.prove_all(self.machine.look(o.kernel), o.package)

        self.progress.phase(f"Publishing {o.package} {o.version} for {o.kernel}")
        self._say(Event.PUBLISH_STARTED, seen, "publishing into DKMS and /lib/modules")
        with process.undisturbed():  # from here on nothing may leave half of it
            insists = self.machine.insists(o.kernel)
            required = f"the kernel insists on a signature ({insists})" if insists else ""
            remarks = publish.publish(job, artefact, seen.headers.path, prove, [self.lock], self.progress.tick, required)
        if remarks is None:
            return  # the next look sees another source
        staged.clear(job.places, o.kernel, o.package)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(job.places.log(o.kernel, o.package))
        took = time.monotonic() - begin
        self._say(Event.PUBLISHED, seen, f"published and verified from the disk in {took:.1f} s", duration_usec=int(took * 1e6))
        for remark in remarks:
            self._say(Event.INCOMPLETE, seen, remark.reason, reason=remark.reason, fix=remark.fix)

    def _make_initrd(self, seen: Seen) -> None:
        o, machine = seen.observation, self.machine
        self.progress.phase(f"Making the initrd of {o.kernel}")
        with process.undisturbed():
            initrd.make(machine.root, o.kernel, machine.config.publish_timeout_seconds, [self.lock], self.progress.tick)
        machine.refresh()
        if check := initrd.wrong(machine.prove_all(machine.look(o.kernel), o.package)):
            raise BuildError(Kind.INITRD, f"the initrd was made anew, and is still wrong: {check.reason}", fix=check.fix)
        self._say(Event.INITRD_MADE, seen, "the initrd was made anew, as the configuration asks")

    def _rehearse(self, seen: Seen) -> Answer:
        assert seen.subject is not None, "the planner rehearses what is installed, on a kernel with an image"
        try:
            answer = self.rehearse(seen, seen.subject, fresh=False)
        except ShuttingDown:
            raise
        except KnetstatdError as e:
            raise BuildError(Kind.REHEARSAL, e.what, e.where, e.fix) from e
        if answer.outcome is Outcome.UNDECIDED:
            raise BuildError(Kind.REHEARSAL, f"it was not rehearsed: {answer.reason}", fix=answer.fix, evidence=answer.words)
        return answer

    def rehearse(self, seen: Seen, subject: Subject, *, fresh: bool) -> Answer:
        """What the kernel says of the installed modules; kept, and told. fresh: a kept answer about the same files is none.

        Raises KnetstatdError if this machine cannot rehearse, and OSError if the answer cannot be kept.
        """
        from knetstatd.rehearsal import rehearse  # only here: most steps start no machine

        o, places = seen.observation, self.machine.places
        self.progress.phase(f"Rehearsing {o.package} {o.version} on {o.kernel}")
        inputs = rehearse.inputs(subject)
        answer = None if fresh else rehearsal_results.same(places, subject, inputs.hashes)
        if answer is None:
            self._say(Event.REHEARSAL_STARTED, seen, "asking the kernel, in a throwaway machine")
            answer = rehearse.rehearsed(
                self.machine.root, places, subject, inputs, self.machine.config.rehearse_timeout_seconds,
                self.progress.tick,
            )  # fmt: skip
            if answer.outcome is Outcome.UNDECIDED:
                return answer
            self._tell(seen, answer)
        rehearsal_results.save(places, subject, inputs.inputs, inputs.hashes, answer)
        if not answer.outcome.good:
            self.failures.refused(seen, answer)
        return answer

    def _tell(self, seen: Seen, answer: Answer) -> None:
        from knetstatd.rehearsal.answers import disagreement

        words, took = "\n".join(answer.words), f"{answer.machine}, {answer.seconds:.1f} s"
        spent = int(answer.seconds * 1e6)
        if answer.outcome.good:
            does = "links" if answer.outcome is Outcome.DECLINED else "takes"
            text = f"the kernel {does} it ({took})" + (f"; {answer.remark}" if answer.remark else "")
            self._say(Event.REHEARSED, seen, text, evidence=words, duration_usec=spent)
        else:
            self._say(
                Event.REHEARSAL_FAILED, seen, f"in the rehearsal, {answer.reason} ({took})",
                reason=answer.reason, fix=answer.fix, evidence=words, duration_usec=spent,
            )  # fmt: skip
        if other := disagreement(answer, (proof for _, proof in seen.installed)):
            self._say(Event.DISAGREEMENT, seen, f"the kernel and the analysis disagree: {other}", reason=other, evidence=words)

    def _load(self, seen: Seen) -> None:
        o = seen.observation
        try:
            loading.load(self.machine.root, [(name, proof.module or name) for name, proof in seen.installed])
        except BuildError as e:
            paths = (Path(proof.path) for _, proof in seen.installed)
            again = e.kind is Kind.MISMATCH and load_history.refuse(self.machine.places, o.package, paths)
            kind = Kind.REFUSED if e.kind is Kind.MISMATCH and not again else e.kind
            raise BuildError(kind, e.what, e.where, e.fix, e.evidence) from e
        load_history.add(self.machine.places, o.package, attempts.now())
        self._say(Event.LOADED, seen, "loaded again: somebody had unloaded it" if o.loads else "loaded")

    def _fetch_headers(self, seen: Seen) -> None:
        o = seen.observation
        package = kernels.headers_package(self.machine.root, o.kernel)
        if not package:
            what = "the headers cannot be installed: no archive of apt's has them"
            raise BuildError(Kind.PACKAGES, what, fix=kernels.headers_fix(self.machine.root, o.kernel))
        tool = "apt-get" if process.which(self.machine.root, "apt-get") else "dnf"
        self.progress.phase(f"Installing {package}")
        done = process.run(
            [tool, "install", "-y", package], timeout=self.machine.config.compile_timeout_seconds,
            env=process.environment(
                more={"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}, root=self.machine.root
            ),
            tick=self.progress.tick,
        )  # fmt: skip
        if kernels.headers(self.machine.root, o.kernel).state is not Headers.COMPLETE:
            raise BuildError(
                Kind.PACKAGES, f"{package} could not be installed ({tool} ended with {done.code})",
                fix=kernels.headers_fix(self.machine.root, o.kernel), evidence=build_log.last_lines(done.text, 4),
            )  # fmt: skip
        self._say(Event.HEADERS_INSTALLED, seen, f"{package} is installed, as the configuration asks", headers=package)
