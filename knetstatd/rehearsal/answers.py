# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rehearsal's machine says of the modules that were put into it.

Rules:

1. Only what the kernel did with the module counts against the module. A machine says nothing if it did not start, ran out of
   memory or of time, or lacks what an init function asks for.
2. An init function that declines for want of hardware is no fault: the kernel has linked the module. -EINVAL is so too, if the
   init function itself has answered it, for a module that this machine has not loaded and does not load at boot.
3. A probe compares what the module says with what the kernel says by its other ways.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.core.model import Answer, Outcome, Result
from knetstatd.diagnosis import kernel_messages
from knetstatd.rehearsal import probe
from knetstatd.rehearsal.vm import Ending

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from knetstatd.core.model import Proof
    from knetstatd.rehearsal.vm import Insertion, Rehearsal
    from knetstatd.state.rehearsal_results import Subject

_STARVED = re.compile(r"Out of memory|deadlocked on memory|page allocation failure|Initramfs unpacking failed")
_MOST_WORDS = 8

# What an init function answers if its hardware is not there.
_NO_DEVICE = (errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP)
# What the kernel says with `initcall_debug` (init/main.c): so it is the module that has answered -EINVAL, not the loader.
DEBUG = "initcall_debug"
_RETURNED = re.compile(rf"^initcall \S+ \[(\S+)\] returned -{errno.EINVAL} after ")
_INITCALL = re.compile(r"^(?:calling|initcall) +\S+ \[\S+\] ")


# A symbol that the kernel does not know may be of a module that modprobe did not insert before.
_ALSO = {"symbols": ("depends", "depmod")}


def disagreement(answer: Answer, proofs: Iterable[Proof]) -> str:
    """What the kernel and the analysis say differently, "" for nothing."""
    checks = [check for proof in proofs for check in proof.checks]
    wrong = next((check for check in checks if check.result is Result.FAIL), None)
    if answer.outcome is Outcome.LOADED and not answer.remark and wrong is not None:
        return f"the kernel loads it, and the check {wrong.name} says: {wrong.reason or wrong.found}"
    same = [check for check in checks if check.name in (answer.check, *_ALSO.get(answer.check, ()))]
    if not answer.outcome.good and same and all(check.result is Result.PASS for check in same):
        return f"{answer.reason}, and the check {answer.check} found nothing wrong"
    return ""


def is_ambiguous(answer: Answer, rehearsal: Rehearsal) -> bool:
    """Whether it is open who answered -EINVAL, which a machine that is started with DEBUG tells."""
    return answer.check == "init" and any(insertion.error == errno.EINVAL for insertion in rehearsal.insertions)


def is_starved(rehearsal: Rehearsal) -> bool:
    """Whether the machine ran out of memory."""
    return any(i.error == errno.ENOMEM for i in rehearsal.insertions) or (
        rehearsal.ending is not Ending.LOADED and any(_STARVED.search(line) for line in rehearsal.words)
    )


def judge(rehearsal: Rehearsal, subject: Subject, called: Mapping[Path, str]) -> Answer:
    """What the machine's end says of the modules. called: the kernel's name of each module file."""
    last = tuple(names.clean(line) for line in rehearsal.console.splitlines() if line.strip())[-3:]
    if is_starved(rehearsal):
        return undecided("the machine had too little memory for it", rehearsal.words)
    match rehearsal.ending:
        case Ending.NO_BOOT:
            return undecided("the machine did not start", last)
        case Ending.SLOW:
            return undecided(f"{rehearsal.elapsed:.0f} s were not enough for it: this machine is slow, or busy", last)
        case Ending.PANIC:
            oops = dict.fromkeys(line for line in rehearsal.words if kernel_messages.OOPS.search(line))
            words = tuple(oops) or rehearsal.words
            return Answer(Outcome.PANIC, "panic", f"the kernel gives up {_while(rehearsal)}", _REPORT, _words(words))
        case Ending.RESET:
            what = f"the machine resets itself {_while(rehearsal)}"
            return Answer(Outcome.PANIC, "panic", what, _REPORT, _words(rehearsal.words))
        case Ending.HANG:
            what = f"nothing comes back after {rehearsal.elapsed - (rehearsal.booted or 0):.0f} s {_while(rehearsal)}"
            return Answer(Outcome.HANG, "hang", what, _REPORT, _words(rehearsal.words))
    return _inserted(rehearsal, subject, called)


_REPORT = "Do not load it on this kernel; tell the module's author what the kernel says"


def _while(rehearsal: Rehearsal) -> str:
    """What the machine was doing when it ended."""
    pending = next((i for i in rehearsal.insertions if not i.ended), None)
    return f"while it loads {pending.module}" if pending else "while the loaded modules are probed"


def _inserted(rehearsal: Rehearsal, subject: Subject, called: Mapping[Path, str]) -> Answer:
    """The answer of a machine that went through everything."""
    by_name = {insertion.module: insertion for insertion in rehearsal.insertions}
    absent: set[Path] = set()
    remarks = []
    for path, needed in subject.modules:
        for step in (*needed, path):
            insertion = by_name.get(called[step])
            if insertion is None:
                return undecided(f"the machine's console does not tell what became of {called[step]}", _words(rehearsal.words))
            if insertion.loaded or step in absent:
                continue
            declined = insertion.error in _NO_DEVICE or (path not in subject.used and _declines(insertion))
            if declined or (step == path and absent.intersection(needed)):
                absent |= {step, path}
                remarks.append(f"{insertion.module}: {insertion.message}")
                continue
            return _refused(insertion, subject)
    live = set(called.values()) - {called[path] for path in absent}
    if faults := probe.faults(live, rehearsal.files):
        reason = f"it loads, and does not work: {faults[0]}"
        return Answer(Outcome.NOT_WORKING, "probe", reason, _REPORT, (*faults, *_words(rehearsal.words)))
    if absent:
        remark = f"proven to link, not to work: in the rehearsal's machine its init function declined ({'; '.join(remarks)})"
        return Answer(Outcome.DECLINED, remark=remark)
    if probe.asked_nothing(live, rehearsal.files):
        return undecided("no socket could be opened in the machine: nothing was compared", _words(rehearsal.words))
    return Answer(Outcome.LOADED, words=_words(rehearsal.words))


def _declines(insertion: Insertion) -> bool:
    """Whether the module's own init function has answered -EINVAL: for want of hardware, or of another's symbols."""
    returned = (match for line in insertion.words if (match := _RETURNED.match(line)))
    return insertion.error == errno.EINVAL and any(match[1] == insertion.module for match in returned)


def _refused(insertion: Insertion, subject: Subject) -> Answer:
    words = _words((*insertion.words, f"insmod: {insertion.message}" if insertion.message else ""))
    if refusal := kernel_messages.find(words):
        reason = f"the kernel refuses {insertion.module}: {refusal.reason}"
        return Answer(Outcome.REFUSED, refusal.check, reason, f"Run: knetstatctl build {subject.kernel}", words)
    if insertion.error == errno.ENOEXEC:
        reason = f"the kernel refuses {insertion.module}: {insertion.message}"
        return Answer(Outcome.REFUSED, "file", reason, f"Run: knetstatctl build {subject.kernel}", words)
    if insertion.error == errno.ENOENT:  # an unknown symbol or parameter
        return undecided(f"{insertion.module} asks for something that the rehearsal's machine does not have", words)
    if not insertion.message:
        reason = f"{insertion.module} went in, and the kernel does not call it live"
        return Answer(Outcome.NOT_WORKING, "init", reason, _REPORT, words)
    return Answer(Outcome.REFUSED, "init", f"{insertion.module}'s init function fails: {insertion.message}", _REPORT, words)


def _words(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(names.clean(line) for line in lines if line.strip() and not _INITCALL.match(line))[-_MOST_WORDS:]


def undecided(reason: str, words: tuple[str, ...] = ()) -> Answer:
    return Answer(Outcome.UNDECIDED, reason=reason, words=_words(words))
