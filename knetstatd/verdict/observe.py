# SPDX-License-Identifier: GPL-2.0-or-later
"""Observing: all that the planner needs to know of one package on one kernel, read from files, each time anew."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import planner
from knetstatd.core.model import (
    ELSEWHERE,
    UNMADE,
    UNPUBLISHED,
    Artefact,
    Headers,
    Loaded,
    Observation,
    Proof,
    Rehearsed,
    Result,
    Source,
)
from knetstatd.dkms import dkms_conf, dkms_tree
from knetstatd.machine import kernels
from knetstatd.state import attempts, digests, load_history, rehearsal_results, staged
from knetstatd.system import locks
from knetstatd.system.once import one_look
from knetstatd.verdict.survey import Survey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knetstatd.core.model import Answer, Step
    from knetstatd.state.digests import Remark
    from knetstatd.verify.proof_cache import Look

_WEAK = "/weak-updates/"


class Seen(NamedTuple):
    """An observation, and what it was made from: for the builder that acts on it and for the report that explains it."""

    observation: Observation
    installed: tuple[tuple[str, Proof], ...] = ()
    headers: kernels.HeadersFound = kernels.HeadersFound(Headers.MISSING, None)
    source: Path | None = None
    source_reason: str = ""
    source_fix: str = ""
    passed: frozenset[str] = frozenset()
    fingerprint: str = ""
    subject: rehearsal_results.Subject | None = None
    answer: Answer | None = None
    remark: str = ""
    remarks: tuple[Remark, ...] = ()
    lacking: tuple[str, ...] = ()


class Machine(Survey):
    """A machine whose packages can be observed on its kernels."""

    def _rehearsed(self, seen: Seen) -> Seen:
        """Adds what a kernel has said of good modules, and whether it is to be asked."""
        o, mode = seen.observation, self.config.rehearse
        wanted = o.kernel == self.next and mode != "never"
        if o.installed is not Artefact.GOOD or not (wanted or self.places.rehearsal(o.kernel, o.package).exists()):
            return seen
        subject = self.rehearsal(o.kernel, o.package, seen.installed)
        answer = rehearsal_results.load(self.places, subject) if subject is not None else None
        rehearsed = rehearsal_results.state(answer, wanted and subject is not None, self.no_rehearsal, mode)
        return seen._replace(observation=o._replace(rehearsed=rehearsed), subject=subject, answer=answer)

    def observe(self, look: Look, package: str, changed: float = 0.0, *, own: bool = False) -> Seen:
        """One module on one kernel. changed: when the kernel's directory last moved.  own: the caller holds our lock."""
        kernel = look.kernel
        if look.together:  # all at once, so that what the kernel exports is read once
            self._installed(look, *look.together)
            look.together = ()
        installed = self._installed(look, package)
        judged = self._judge(kernel, package, installed)
        loaded, remark = self._loaded(kernel, package, installed)
        seen = Seen(
            Observation(
                package,
                kernel,
                state=self.state_of(kernel),
                headers=look.headers.state,
                installed=judged,
                loaded=loaded,
                transaction=self._transaction,
                foreign_dkms=self._foreign,
                removing=self._removing,
                own_run="another run of knetstatd" if not own and self._builds() else "",
                changed=changed,
                loads=load_history.known(self.places, package) if loaded is Loaded.NO else (),
                initrd=judged is Artefact.DENIED and _needs_initrd(installed),
            ),
            installed=installed,
            headers=look.headers,
            remark=remark,
            remarks=self._remarks(kernel, package),
        )
        return self._with_source(look, self._rehearsed(seen))

    @one_look()
    def observe_all(self, kernel: str, packages: Sequence[str], changed: float = 0.0) -> tuple[Look, list[Seen]]:
        """Several packages on one kernel, and the look that they share. changed: as for `observe`."""
        look = self.look(kernel, packages)
        return look, [self.observe(look, package, changed) for package in packages]

    def _remarks(self, kernel: str, package: str) -> tuple[Remark, ...]:
        """What is to be said of what is installed for a kernel: who chose it, and what we could not do as we published it."""
        known = self._registered.get(package)
        installed = known.installed(kernel) if known is not None else None
        if known is None or installed is None:
            return ()
        said = digests.remarks(self.places, kernel, package, installed[1].directory / "module")
        chosen, highest = known.wanted(kernel).version, known.highest.version
        if chosen == highest:
            return said
        reason = f"version {chosen} was installed by hand after {highest} was registered, and is left alone"
        return (digests.Remark(reason, f"dkms install --force -m {package} -v {highest} -k {kernel}"), *said)

    def _with_source(self, look: Look, seen: Seen) -> Seen:
        """Adds what DKMS and the module's source say."""
        o = seen.observation
        known = self._registered.get(o.package)
        if known is None:
            version, reason, fix = self.missing.explain(o.package)
            o = o._replace(source=Source.MISSING, version=version)
            return seen._replace(observation=o, source_reason=reason, source_fix=fix)
        wanted = known.wanted(o.kernel)
        version, source = wanted.version, wanted.source
        o = o._replace(version=version)
        conf = self._conf(known, o.kernel)
        broken = wanted.broken or "; ".join(conf.faults)
        if broken:
            return seen._replace(
                observation=o._replace(source=Source.BROKEN),
                source_reason=f"the source of {o.package} {version} cannot be used: {broken}",
                source_fix=f"sed -i 's/\\r$//' {shlex.quote(conf.crlf)}"
                if conf.crlf
                else f"Reinstall its -dkms package, or restore /usr/src/{o.package}-{version}",
            )
        make = dkms_conf.chosen_make(conf, o.kernel)
        passed = frozenset(name for name, _ in make.variables) if make else frozenset()
        seen = seen._replace(observation=o, source=source, passed=passed, lacking=self.lacking(o.kernel, o.package))
        idle = o.loaded is not Loaded.NO and o.rehearsed not in (Rehearsed.DUE, Rehearsed.BAD)
        if o.installed is Artefact.GOOD and idle and not o.own_run:
            return seen  # nothing is to be done, so nothing is asked of the stage and of earlier attempts
        mark = self.fingerprint(o.kernel, o.package, source, look.headers.path)
        artefact = staged.find(self.places, o.kernel, o.package, version, mark)
        modules = artefact.modules if artefact is not None else ()
        others = (*modules, *self.built_before(o.kernel, o.package)) if modules else ()
        proofs = [self.prove_file(look, path, others) for path in modules]
        good = all(proof.holds(UNPUBLISHED, linked=True) and proof.is_current for proof in proofs)
        o = o._replace(
            staged=Artefact.NONE if artefact is None else Artefact.GOOD if good else Artefact.BAD,
            hook_builds=bool(conf.autoinstall) and dkms_tree.hook_present(self.root),
            attempt=attempts.load(self.root, self.places, o.kernel, o.package, mark),
        )
        return seen._replace(observation=o, fingerprint=mark)

    def _judge(self, kernel: str, package: str, installed: tuple[tuple[str, Proof], ...]) -> Artefact:
        if len(installed) < len(self.made(kernel, package)) or not installed:
            return Artefact.NONE if not installed else Artefact.BAD
        if kernel == self.running and load_history.refused(self.places, package, (Path(proof.path) for _, proof in installed)):
            return Artefact.BAD  # the kernel's own word, whatever the analysis says
        if any(check.name == UNMADE for _, proof in installed for check in proof.checks):
            return Artefact.DENIED  # nobody can say that another build would be better
        if any(check.name == "winner" and check.result is Result.FAIL for _, proof in installed for check in proof.checks):
            return Artefact.DENIED  # what is wrong with that file, if anything, no build changes: it is not ours
        if not all(proof.holds(ELSEWHERE) for _, proof in installed):
            return Artefact.BAD if any(proof.fails for _, proof in installed) else Artefact.UNKNOWN
        if not all(proof.loads for _, proof in installed):
            return Artefact.DENIED
        # weak-updates are meant to be another release's (RHEL, SUSE): the kernel's symbols have the same checksums.
        return Artefact.GOOD if all(p.is_current or _WEAK in p.path for _, p in installed) else Artefact.OTHER

    def _loaded(self, kernel: str, package: str, installed: tuple[tuple[str, Proof], ...]) -> tuple[Loaded, str]:
        """Whether the running kernel has the modules, whether they are the installed ones and work, and a remark of Live's."""
        if kernel != self.running:
            return Loaded.NOT_HERE, ""
        return self._live.look(installed, wanted=bool({package, "*"} & set(self.config.load)))

    def _builds(self) -> bool:
        return bool(self.running) and locks.held(self.places.build_lock)

    def plan(self, seen: Seen, now: float) -> Step:
        """The planner's answer to what was seen."""
        return planner.plan(seen.observation, now, self.limits)


def _needs_initrd(installed: tuple[tuple[str, Proof], ...]) -> bool:
    """Whether a new initrd is all that these modules need. One that cannot be read is not made anew."""
    return all(proof.loads or (proof.fails and proof.holds(frozenset({"initrd"}))) for _, proof in installed)
