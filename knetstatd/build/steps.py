# SPDX-License-Identifier: GPL-2.0-or-later
"""Carrying out one step of the plan: what `knetstatctl build` does, by hand and started by the daemon alike.

Rules:

1. One run at a time on a machine, held by a lock that the programs of a publication inherit: killed or not, while one of
   them lives nobody else starts.
2. Right before a step the machine is observed again; when the planner then answers another step, nothing is done.
3. A failure is remembered before it is told, and what is told carries cause, evidence and cure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.state import attempts, load_history, rehearsal_results, staged
from knetstatd.diagnosis import build_log
from knetstatd.machine import kernels
from knetstatd.build import load as loading, publish, stage
from knetstatd.system import locks, process
from knetstatd.verdict import judge, states
from knetstatd.build.compile import Job
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.events import Event
from knetstatd.core.model import Action, Artefact, Attempt, Headers, Kind, Retry, Outcome, Why
from knetstatd.system.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from knetstatd.state.rehearsal_results import Subject
    from knetstatd.system.journal import Journal
    from knetstatd.core.model import Answer, Proof, Step
    from knetstatd.verdict.observe import Machine, Seen


class Builder:
    """Carries out steps for modules and kernels of one machine, under the lock."""

    def __init__(self, machine: Machine, journal: Journal, progress: Progress, lock: int) -> None:
        self.machine = machine
        self.journal = journal
        self.progress = progress
        self.lock = lock
        # A failure could not be remembered: whoever started us would start the next at once.
        self.forgetful = False

    def step(self, seen: Seen, action: Action) -> bool:
        """Carries out one step that the planner has just answered; True where it succeeded. Never raises KnetstatdError."""
        o = seen.observation
        begin = time.monotonic()
        try:
            self._begun(seen, action)
            match action:
                case Action.STAGE:
                    self._stage(seen)
                case Action.PUBLISH:
                    self._publish(seen, begin)
                case Action.REHEARSE:
                    if not self._rehearse(seen).outcome.good:
                        return False  # told, and remembered, already
                case Action.LOAD:
                    self._load(seen)
                case Action.FETCH_HEADERS:
                    self._fetch_headers(seen)
                case _:
                    raise AssertionError(action)
        except BuildError as e:
            self._failed(seen, action, e)
            return False
        except OSError as e:
            kind = {28: Kind.DISK, 30: Kind.READ_ONLY, 12: Kind.MEMORY}.get(e.errno or 0, Kind.PUBLISH)
            self._failed(seen, action, BuildError(kind, e.strerror or str(e), os.fspath(e.filename or "")))
            return False
        except KnetstatdError as e:
            self._failed(seen, action, BuildError(Kind.PUBLISH, e.what, e.where, e.fix))
            return False
        finally:
            self.progress.end()
        attempts.forget(self.machine.places, o.kernel, o.package)
        return True

    def _remember(self, seen: Seen, attempt: Attempt) -> None:
        o = seen.observation
        attempts.save(self.machine.root, self.machine.places, o.kernel, o.package, o.version, seen.fingerprint, attempt)

    def _begun(self, seen: Seen, action: Action) -> None:
        """Kept before the work starts: what brings the machine down must not be tried at every boot for ever."""
        fix = f"journalctl -b -1 -e may show why; to try it again: knetstatctl build {seen.observation.kernel}"
        interrupted = Attempt(Kind.INTERRUPTED, 1, reason=_INTERRUPTED, fix=fix, loading=action is Action.LOAD)
        try:
            self._remember(seen, attempts.following(seen.observation.attempt, interrupted, self.machine.limits))
        except OSError:
            if action is not Action.LOAD:  # which takes no room
                raise

    def _failed(self, seen: Seen, action: Action, e: BuildError) -> None:
        o, before = seen.observation, seen.observation.attempt
        kind = Kind(e.kind)
        if self.machine.refresh_locks() and kind.retry is Retry.NEVER:
            # Half of the headers may not be unpacked yet, or dkms.conf just replaced: not an honest attempt.
            kind = Kind.DURING_TRANSACTION
        if kind is not Kind.DURING_TRANSACTION and shutil.disk_usage(self.machine.places.state).free < 1 << 20:
            kind = Kind.DISK
        fix = e.fix or f"Run: knetstatctl explain {o.kernel}"
        failed = Attempt(
            kind, 1, reason=e.what, fix=fix, evidence=e.evidence, log=e.where if e.where.endswith(".log") else "",
            loading=action is Action.LOAD,
        )  # fmt: skip
        attempt = attempts.following(before, failed, self.machine.limits)
        try:
            self._remember(seen, attempt)
        except OSError:  # a full disk must not hide the reason
            self.forgetful = True
        if kind is Kind.REHEARSAL and before is not None and before.reason == e.what:
            return  # said once
        failure, next_attempt = states.failure(attempt)
        self.journal.log(
            failure, f"{o.package} {o.version} for {o.kernel}: {e.what}; {next_attempt}",
            package=o.package, version=o.version, kernel=o.kernel,
            kind=kind, reason=e.what, fix=fix, evidence="\n".join(e.evidence), log=attempt.log, attempt=attempt.times,
        )  # fmt: skip

    def not_done(self, seen: Seen, step: Step) -> None:
        """Remembers that what was just published is to be built again: were it done at once, it would be done for ever."""
        verdict = judge.verdict(self.machine, seen, step)
        what = f"it was published and verified, and something has changed it since: {verdict.reason or verdict.state}"
        self._failed(seen, step.action, BuildError(Kind.PUBLISH, what, "", verdict.fix))

    def _say(self, event: Event, seen: Seen, text: str, **fields: object) -> None:
        o = seen.observation
        self.journal.log(
            event, f"{o.package} {o.version} for {o.kernel}: {text}",
            package=o.package, version=o.version, kernel=o.kernel, **fields,
        )  # fmt: skip

    def _job(self, seen: Seen, timeout: float) -> Job:
        o = seen.observation
        assert seen.source is not None, "the planner stages and publishes only what DKMS has a source of"
        return Job(self.machine.places, o.kernel, o.package, o.version, seen.source, seen.passed, seen.fingerprint, timeout)

    def _stage(self, seen: Seen) -> None:
        o = seen.observation
        self.progress.phase(f"Compiling {o.package} {o.version} for {o.kernel}")
        why = "the installed one is wrong" if o.installed is not Artefact.NONE else "there is none yet"
        self._say(Event.STAGE_STARTED, seen, f"compiling in a private tree, {why}")
        begin = time.monotonic()
        job = self._job(seen, self.machine.config.compile_timeout_seconds)

        def prove(path: Path, others: Sequence[Path]) -> Proof:
            return self.machine.prove_file(self.machine.look(o.kernel), path, others)

        artefact = stage.stage(job, prove, self.progress.tick)
        assert seen.headers.path is not None, "the planner stages only with headers"
        publish.pack(job, artefact, seen.headers.path, [self.lock])
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
            publish.publish(job, artefact, seen.headers.path, prove, [self.lock], self.progress.tick)
        staged.clear(job.places, o.kernel, o.package)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(job.places.log(o.kernel, o.package))
        took = time.monotonic() - begin
        self._say(Event.PUBLISHED, seen, f"published and verified from the disk in {took:.1f} s", duration_usec=int(took * 1e6))

    def _rehearse(self, seen: Seen) -> Answer:
        assert seen.subject is not None, "the planner rehearses what is installed, on a kernel with an image"
        try:
            answer = self.rehearse(seen, seen.subject, fresh=False)
        except KnetstatdError as e:
            raise BuildError(Kind.REHEARSAL, e.what, e.where, e.fix) from e
        if answer.outcome is Outcome.UNDECIDED:
            raise BuildError(Kind.REHEARSAL, f"it was not rehearsed: {answer.reason}", "", answer.fix, answer.words)
        return answer

    def rehearse(self, seen: Seen, subject: Subject, *, fresh: bool) -> Answer:
        """What the kernel says of the installed modules; kept, and told. fresh: a kept answer about the same files is none.

        Raises KnetstatdError where this machine cannot rehearse, and OSError where the answer cannot be kept.
        """
        from knetstatd.rehearsal import rehearse  # only here: most steps start no machine

        o, places = seen.observation, self.machine.places
        self.progress.phase(f"Rehearsing {o.package} {o.version} on {o.kernel}")
        found = rehearse.inputs(subject)
        answer = None if fresh else rehearsal_results.same(places, subject, found.hashes)
        if answer is None:
            self._say(Event.REHEARSAL_STARTED, seen, "asking the kernel, in a throwaway machine")
            answer = rehearse.rehearsed(
                self.machine.root, places, subject, found, self.machine.config.rehearse_timeout_seconds,
                self.progress.tick,
            )  # fmt: skip
            if answer.outcome is Outcome.UNDECIDED:
                return answer
            self._tell(seen, answer)
        rehearsal_results.save(places, subject, found.inputs, found.hashes, answer)
        if not answer.outcome.good and seen.source is not None:
            # The same source is not built again in the hope that the kernel takes it then.
            mark = seen.fingerprint or kernels.fingerprint(self.machine.root, seen.source, seen.headers.path)
            refused = Attempt(Kind.REFUSED, 1, reason=answer.reason, fix=answer.fix, evidence=answer.words)
            self._remember(seen._replace(fingerprint=mark), attempts.following(None, refused, self.machine.limits))
        return answer

    def _tell(self, seen: Seen, answer: Answer) -> None:
        from knetstatd.rehearsal.rehearse import disagreement

        words, took = "\n".join(answer.words), f"{answer.machine}, {answer.seconds:.1f} s"
        spent = int(answer.seconds * 1e6)
        if answer.outcome.good:
            text = f"the kernel takes it ({took})" + (f"; {answer.remark}" if answer.remark else "")
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
        tool = "apt-get" if shutil.which("apt-get", path=process.PATH) else "dnf"
        self.progress.phase(f"Installing {package}")
        done = process.run(
            [tool, "install", "-y", package], timeout=self.machine.config.compile_timeout_seconds,
            env=process.environment(more={"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}),
            tick=self.progress.tick,
        )  # fmt: skip
        if kernels.headers(self.machine.root, o.kernel).state is not Headers.COMPLETE:
            raise BuildError(
                Kind.PACKAGES, f"{package} could not be installed ({tool} ended with {done.code})", "",
                f"Run: {tool} install {package}", build_log.last_lines(done.text, 4),
            )  # fmt: skip
        self._say(Event.HEADERS_INSTALLED, seen, f"{package} is installed, as the configuration asks", package=package)


# Done by programs, or units, of their own: each with other privileges.
STEPS = {"build": (Action.STAGE, Action.PUBLISH, Action.REHEARSE), "load": (Action.LOAD,), "headers": (Action.FETCH_HEADERS,)}


def run_manual(
    machine: Machine, journal: Journal, progress: Progress, kernels: Sequence[str], modules: Sequence[str], *, wait: bool
) -> None:
    """All steps for these kernels and modules, whatever failed before. wait: for package managers and for other runs.

    Raises KnetstatdError where another run does not end.
    """
    process.adopt_orphans()
    every = tuple(action for actions in STEPS.values() for action in actions)
    with locks.locked(machine.places.build_lock, 3600.0 if wait else 0.0) as lock:
        builder = Builder(machine, journal, progress, lock)
        for kernel in kernels:
            for package in modules:
                attempts.forget(machine.places, kernel, package)
                if kernel == machine.running:
                    load_history.forget(machine.places, package)
                _run_steps(builder, kernel, package, every, wait=wait)


def step_by_step(machine: Machine, journal: Journal, kernel: str, modules: Sequence[str], kind: str) -> bool | None:
    """What the daemon starts: the steps of one kind that are due now, for one kernel.

    None where another run is at work, False where a failure could not be remembered.
    """
    process.adopt_orphans()
    try:
        lock = locks.hold(machine.places.build_lock)
    except KnetstatdError:
        return None
    builder = Builder(machine, journal, Progress(shown=False), lock)
    with process.undisturbed():  # a service manager that stops everything waits for what has begun
        for package in modules:
            _run_steps(builder, kernel, package, STEPS[kind], wait=False)
    process.kill_orphans()
    os.close(lock)
    return not builder.forgetful


def _run_steps(builder: Builder, kernel: str, package: str, steps: Collection[Action], *, wait: bool) -> None:
    """Step after step, until the next one is none of `steps`, or one fails."""
    published = ""
    while True:
        builder.machine.refresh()  # a package may have been taken out of DKMS since: publishing would bring it back
        seen = builder.machine.observe(builder.machine.look(kernel), package, own=True)
        step = builder.machine.plan(seen, attempts.now())
        if step.action in steps:
            if published and published == seen.fingerprint and step.action in (Action.STAGE, Action.PUBLISH):
                builder.not_done(seen, step)
                return
            if not builder.step(seen, step.action):
                return
            published = seen.fingerprint if step.action is Action.PUBLISH else published
            continue
        if step.action is not Action.WAIT or not wait or step.why in (Why.BACKOFF, Why.NOT_REHEARSED):
            return
        verdict = judge.verdict(builder.machine, seen, step)
        builder.progress.phase(f"{verdict.title}: {verdict.reason}")
        while (step.until or 0) > attempts.now():
            time.sleep(0.1)
            builder.progress.tick()


_INTERRUPTED = "the last attempt was interrupted (killed, or the machine went down)"
