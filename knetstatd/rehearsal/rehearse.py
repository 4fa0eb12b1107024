# SPDX-License-Identifier: GPL-2.0-or-later
"""The rehearsal of a package's modules on a kernel: what goes into the machine, and what its answer means.

Rules:

1. Only what the kernel did with the module counts against the module. A machine says nothing if it did not start, ran out of
   memory or of time, or lacks what an init function asks for.
2. By hardware acceleration if that works, else by emulation: an answer that is none is asked for again by the surer way.
3. The files are the same before and after, or it was no rehearsal of them.
4. A probe compares what the module says with what the kernel says by its other ways.
5. If systemd manages this machine, root's rehearsal runs in a unit without privileges, and the answer that it leaves is
   checked. Elsewhere it runs as nobody. In any case it gets what time the other programs leave.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import Damaged, KnetstatdError, ModuleFileError
from knetstatd.core.model import Answer, Outcome, Result
from knetstatd.diagnosis import kernel_messages
from knetstatd.formats import compression, elf, module_file
from knetstatd.rehearsal import insertions, probe, vm
from knetstatd.rehearsal.vm import Ending
from knetstatd.state import rehearsal_results
from knetstatd.state.paths import ANSWER
from knetstatd.system import documents, files, units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from knetstatd.core.model import Proof
    from knetstatd.rehearsal.vm import Insertion, Rehearsal
    from knetstatd.state.paths import Places
    from knetstatd.state.rehearsal_results import Subject
    from knetstatd.system.documents import Node
    from knetstatd.verdict.observe import Machine

TEMPLATE = "rehearse"
_KVM = "/dev/kvm"
# Seconds. If acceleration works a machine needs one or two; if it only seems to, this is lost once.
_KVM_TIMEOUT = 20.0
_MORE_MEMORY = 1024  # MB
_STARVED = re.compile(r"Out of memory|deadlocked on memory|page allocation failure|Initramfs unpacking failed")
_MACHINE = elf.Machine(62, 64, True)  # EM_X86_64 of elf.h
_IMAGE_LIMIT = 256 << 20
_MOST_WORDS = 8

# What an init function answers if its hardware is not there.
_NO_DEVICE = (errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP)


class Files(NamedTuple):
    """The files of a rehearsal as they were read. inputs: their identities before.  hashes: of the image, then the modules.
    modules: each with its unpacked contents.  packed: the compressed ones as they lie on the disk."""

    inputs: list[list[Any]]
    hashes: tuple[str, ...]
    modules: Mapping[Path, tuple[module_file.Module, bytes]]
    packed: Mapping[Path, bytes]


def inputs(subject: Subject) -> Files:
    """Reads what is rehearsed. Raises KnetstatdError if a file cannot be read, or is no module."""
    inputs = rehearsal_results.identities(subject)
    try:
        hashes = [hashlib.sha256(files.read(subject.image, _IMAGE_LIMIT)).hexdigest()]
        modules, packed = {}, {}
        for path in subject.files:
            data = files.read(path, compression.LIMIT)
            hashes.append(hashlib.sha256(data).hexdigest())
            modules[path] = (module_file.from_path(path), compression.unpack(data))
            if compression.is_packed(data):
                packed[path] = data
    except OSError as e:
        raise KnetstatdError(f"cannot be read: {e.strerror}", os.fspath(e.filename)) from e
    except Damaged as e:
        raise ModuleFileError(str(e), subject.package) from e
    return Files(inputs, tuple(hashes), modules, packed)


def rehearsed(
    root: Path, places: Places, subject: Subject, read_before: Files, timeout: float, tick: Callable[[], None] | None = None
) -> Answer:
    """The kernel's answer, with as few privileges as this machine can give. timeout: seconds for one machine.

    tick: called meanwhile.  Raises KnetstatdError if this machine cannot do it at all.
    """
    _able(root, read_before)
    if units.available(root, TEMPLATE) and os.geteuid() == 0:
        return _in_unit(root, places, subject, read_before, timeout, tick)
    return carry_out(root, subject, read_before, timeout, tick)


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


def carry_out(
    root: Path, subject: Subject, read_before: Files, timeout: float, tick: Callable[[], None] | None = None
) -> Answer:
    """As `rehearsed`, here and now, and not in the unit. The machine itself has no privileges in either case."""
    _able(root, read_before)
    modules = insertions.modules(root, subject.kernel, read_before.modules, read_before.packed)
    plan = vm.Plan(modules, probe.program(module.name for module in modules), probe.FILES)
    begin = time.monotonic()

    def ask(arguments: tuple[str, ...]) -> tuple[Answer, str]:
        rehearsal, machine = _boot(root, subject.image, plan, arguments, timeout, tick)
        return judge(rehearsal, subject, read_before), machine

    answer, machine = ask(subject.arguments)
    signed = all(module.signed for path, (module, _) in read_before.modules.items() if path in dict(subject.modules))
    if answer.check == "signature" and signed:
        # Keys that were enrolled in this machine's firmware are not in the other one's: its refusal says nothing of ours.
        free = tuple(word for word in subject.arguments if word.startswith("module_blacklist"))
        answer, machine = ask(free) if free != subject.arguments else (answer, machine)
        answer = answer._replace(remark=_KEYS) if answer.check != "signature" else _undecided(_KEYS, answer.words)
    if rehearsal_results.identities(subject) != read_before.inputs:
        answer = _undecided("the files changed while it ran")
    return answer._replace(machine=machine, seconds=round(time.monotonic() - begin, 3), when=time.time())


_KEYS = "its signature was not rehearsed: the machine does not have the keys that are enrolled in this one's firmware"


def _able(root: Path, read_before: Files) -> None:
    """Raises KnetstatdError if no rehearsal can be had here, or not of these modules."""
    if reason := rehearsal_results.missing(root):
        raise KnetstatdError(reason, fix=rehearsal_results.FIX)
    for path, (module, _) in read_before.modules.items():
        if module.machine != _MACHINE:
            raise KnetstatdError(f"is for {module.machine}, and rehearsals are for x86-64", os.fspath(path))


def _boot(
    root: Path, image: Path, plan: vm.Plan, arguments: tuple[str, ...], timeout: float, tick: Callable[[], None] | None
) -> tuple[Rehearsal, str]:
    """The first answer that is one, or the last that is none."""
    size = sum(len(module.data) for module in plan.modules)
    memory = vm.MEMORY + 3 * size // (1 << 20)
    ways = [("emulation", memory, timeout), ("emulation", max(_MORE_MEMORY, 2 * memory), timeout)]
    if _accelerated(root / _KVM.lstrip("/")):
        ways.insert(0, ("KVM", memory, min(timeout, _KVM_TIMEOUT)))
    for machine, megabytes, limit in ways:
        rehearsal = vm.rehearse(
            image, plan, root=root, memory=megabytes, timeout=limit, arguments=arguments, kvm=machine == "KVM", restricted=True,
            tick=tick,
        )  # fmt: skip
        if rehearsal.ending is Ending.SLOW and machine != "KVM":
            break  # more memory makes no machine faster
        if rehearsal.ending not in (Ending.SLOW, Ending.NO_BOOT) and not _starved(rehearsal):
            break
    return rehearsal, machine


def _accelerated(device: Path) -> bool:
    """Whether the user who will run the machine may use this: root starts it as nobody."""
    if os.geteuid() != 0:
        return os.access(device, os.R_OK | os.W_OK)
    return device.exists() and device.stat().st_mode & 0o6 == 0o6


def _starved(rehearsal: Rehearsal) -> bool:
    """Whether the machine ran out of memory."""
    return any(i.error == errno.ENOMEM for i in rehearsal.insertions) or (
        rehearsal.ending is not Ending.LOADED and any(_STARVED.search(line) for line in rehearsal.words)
    )


def judge(rehearsal: Rehearsal, subject: Subject, read_before: Files) -> Answer:
    """What the machine's end says of the modules."""
    last = tuple(names.clean(line) for line in rehearsal.console.splitlines() if line.strip())[-3:]
    if _starved(rehearsal):
        return _undecided("the machine had too little memory for it", rehearsal.words)
    match rehearsal.ending:
        case Ending.NO_BOOT:
            return _undecided("the machine did not start", last)
        case Ending.SLOW:
            return _undecided(f"{rehearsal.elapsed:.0f} s were not enough for it: this machine is slow, or busy", last)
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
    return _inserted(rehearsal, subject, read_before)


_REPORT = "Do not load it on this kernel; tell the module's author what the kernel says"


def _while(rehearsal: Rehearsal) -> str:
    """What the machine was doing when it ended."""
    pending = next((i for i in rehearsal.insertions if not i.ended), None)
    return f"while it loads {pending.module}" if pending else "while the loaded modules are probed"


def _inserted(rehearsal: Rehearsal, subject: Subject, read_before: Files) -> Answer:
    """The answer of a machine that went through everything."""
    name = {path: module.name for path, (module, _) in read_before.modules.items()}
    by_name = {insertion.module: insertion for insertion in rehearsal.insertions}
    absent: set[Path] = set()
    remarks = []
    for path, needed in subject.modules:
        for step in (*needed, path):
            insertion = by_name[name[step]]
            if insertion.loaded or step in absent:
                continue
            if insertion.error in _NO_DEVICE or (step == path and absent.intersection(needed)):
                absent |= {step, path}
                remarks.append(f"{insertion.module}: {insertion.message}")
                continue
            return _refused(insertion, subject)
    live = set(name.values()) - {name[path] for path in absent}
    if faults := probe.faults(live, rehearsal.files):
        reason = f"it loads, and does not work: {faults[0]}"
        return Answer(Outcome.NOT_WORKING, "probe", reason, _REPORT, (*faults, *_words(rehearsal.words)))
    if absent:
        remark = f"the kernel takes it; its hardware is not in the rehearsal's machine ({'; '.join(remarks)})"
        return Answer(Outcome.NO_DEVICE, remark=remark)
    if probe.asked_nothing(live, rehearsal.files):
        return _undecided("no socket could be opened in the machine: nothing was compared", _words(rehearsal.words))
    return Answer(Outcome.LOADED, words=_words(rehearsal.words))


def _refused(insertion: Insertion, subject: Subject) -> Answer:
    words = _words((*insertion.words, f"insmod: {insertion.message}" if insertion.message else ""))
    if refusal := kernel_messages.find(words):
        reason = f"the kernel refuses {insertion.module}: {refusal.reason}"
        return Answer(Outcome.REFUSED, refusal.check, reason, f"Run: knetstatctl build {subject.kernel}", words)
    if insertion.error == errno.ENOEXEC:
        reason = f"the kernel refuses {insertion.module}: {insertion.message}"
        return Answer(Outcome.REFUSED, "file", reason, f"Run: knetstatctl build {subject.kernel}", words)
    if insertion.error == errno.ENOENT:  # an unknown symbol or parameter
        return _undecided(f"{insertion.module} asks for something that the rehearsal's machine does not have", words)
    if not insertion.message:
        reason = f"{insertion.module} went in, and the kernel does not call it live"
        return Answer(Outcome.NOT_WORKING, "init", reason, _REPORT, words)
    return Answer(Outcome.REFUSED, "init", f"{insertion.module}'s init function fails: {insertion.message}", _REPORT, words)


def _words(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(names.clean(line) for line in lines if line.strip())[-_MOST_WORDS:]


def cannot(e: KnetstatdError) -> Answer:
    """The answer if nobody could be asked."""
    return Answer(Outcome.UNDECIDED, reason=f"{e.where}: {e.what}" if e.where else e.what, fix=e.fix)


def _undecided(reason: str, words: tuple[str, ...] = ()) -> Answer:
    return Answer(Outcome.UNDECIDED, reason=reason, words=_words(words))


# -- in a unit ------------------------------------------------------------------------------------------------------------


def _in_unit(
    root: Path, places: Places, subject: Subject, read_before: Files, timeout: float, tick: Callable[[], None] | None
) -> Answer:
    """Rehearses in the unit. The caller holds our lock: there is one order and one cache."""
    order = {
        "kernel": subject.kernel,
        "package": subject.package,
        "image": os.fspath(subject.image),
        "modules": [
            {"module": os.fspath(path), "needed": [os.fspath(needed) for needed in others]} for path, others in subject.modules
        ],
        "arguments": list(subject.arguments),
        "timeout": timeout,
    }
    files.write_json(places.order, order, durable=False)
    unit = units.instance(TEMPLATE, subject.kernel, subject.package)
    # The program keeps to the time limit itself, for each of its machines; this one is for a program that does not.
    result = units.complete(root, unit, 3 * timeout + 60, tick)
    if result != "success":
        what = f"the unit that rehearses failed ({result or 'no result'})"
        raise KnetstatdError(what, unit, f"Run: journalctl -u '{unit}'")
    try:
        with units.directory(places.rehearse_cache) as place:
            document = documents.parse(units.left(place, ANSWER, os.fstat(place).st_uid, documents.LIMIT))
        answer, hashes = rehearsal_results.parse(document.get("answer")), document.get("hashes").value
        if document.get("order").value != order or hashes not in (list(read_before.hashes), None):
            raise KnetstatdError("it is the result of another rehearsal")
        if hashes is None and answer.outcome is not Outcome.UNDECIDED:
            raise KnetstatdError("it is an answer about nothing")
        return answer
    except (OSError, KnetstatdError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise KnetstatdError(f"the rehearsal left no usable answer: {reason}", os.fspath(places.rehearse_cache)) from e


def unit_program(machine: Machine, what: str, cache: str) -> None:
    """The program of the unit. what: KERNEL:PACKAGE, as the order must say.  cache: where it may write.

    Raises KnetstatdError if that cannot be done.
    """
    if not cache:
        raise KnetstatdError("this is the program of knetstatd-rehearse@.service", fix="Run: knetstatctl rehearse")
    place = machine.places.order
    order = documents.read(place)
    if order is None:
        raise KnetstatdError("there is no order for it, or it is damaged", os.fspath(place), "Run: knetstatctl rehearse")
    subject, timeout = _ordered(order), order.number("timeout")
    if what != f"{subject.kernel}:{subject.package}":
        raise KnetstatdError(f"the order is not about {names.show(what)}", os.fspath(place))
    document: dict[str, Any] = {"order": order.value, "hashes": None}
    try:
        read_before = inputs(subject)
        answer = carry_out(machine.root, subject, read_before, timeout)
        document["hashes"] = list(read_before.hashes)
    except KnetstatdError as e:
        answer = cannot(e)
    document["answer"] = answer._asdict()
    files.write_json(Path(cache, ANSWER), document, durable=False)


def _ordered(order: Node) -> Subject:
    """What is to be rehearsed. Raises Malformed and NameRefused."""
    pairs = order.items("modules")
    modules = tuple((pair.path("module"), tuple(node.as_path() for node in pair.items("needed"))) for pair in pairs)
    kernel, package = names.kernel(order.text("kernel")), names.package(order.text("package"))
    return rehearsal_results.Subject(kernel, package, order.path("image"), modules, order.texts("arguments"))
