# SPDX-License-Identifier: GPL-2.0-or-later
"""The rehearsal of a package's modules on a kernel: what goes into the machine, and how it is asked.

Rules:

1. By hardware acceleration if that works, else by emulation: an answer that is none is asked for again by the surer way.
2. The files are the same before and after, or it was no rehearsal of them.
3. If systemd manages this machine, root's rehearsal runs in a unit without privileges, and the answer that it leaves is
   checked. Elsewhere it runs as nobody. In any case it gets what time the other programs leave.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import Damaged, KnetstatdError, ModuleFileError
from knetstatd.core.model import Answer, Outcome
from knetstatd.formats import compression, elf, module_file
from knetstatd.rehearsal import answers, insertions, probe, vm
from knetstatd.rehearsal.vm import Ending
from knetstatd.state import rehearsal_results
from knetstatd.state.paths import ANSWER
from knetstatd.system import documents, files, units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from knetstatd.rehearsal.vm import Rehearsal
    from knetstatd.state.paths import Places
    from knetstatd.state.rehearsal_results import Subject
    from knetstatd.system.documents import Node
    from knetstatd.verdict.observe import Machine

TEMPLATE = "rehearse"
_KVM = "/dev/kvm"
# Seconds. If acceleration works a machine needs one or two; if it only seems to, this is lost once.
_KVM_TIMEOUT = 20.0
_MORE_MEMORY = 1024  # MB
_MACHINE = elf.Machine(62, 64, True)  # EM_X86_64 of elf.h
_IMAGE_LIMIT = 256 << 20


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


def carry_out(
    root: Path, subject: Subject, read_before: Files, timeout: float, tick: Callable[[], None] | None = None
) -> Answer:
    """As `rehearsed`, here and now, and not in the unit. The machine itself has no privileges in either case."""
    _able(root, read_before)
    modules = insertions.modules(root, subject.kernel, read_before.modules, read_before.packed)
    plan = vm.Plan(modules, probe.program(module.name for module in modules), probe.FILES)
    called = {path: module.name for path, (module, _) in read_before.modules.items()}
    begin = time.monotonic()

    def ask(arguments: tuple[str, ...]) -> tuple[Answer, str]:
        rehearsal, machine = _boot(root, subject.image, plan, arguments, timeout, tick)
        answer = answers.judge(rehearsal, subject, called)
        if answers.is_ambiguous(answer, rehearsal) and answers.DEBUG not in arguments:
            return ask((*arguments, answers.DEBUG))
        return answer, machine

    answer, machine = ask(subject.arguments)
    signed = all(module.signed for path, (module, _) in read_before.modules.items() if path in dict(subject.modules))
    if answer.check == "signature" and signed:
        # Keys that were enrolled in this machine's firmware are not in the other one's: its refusal says nothing of ours.
        free = tuple(word for word in subject.arguments if word.startswith("module_blacklist"))
        answer, machine = ask(free) if free != subject.arguments else (answer, machine)
        answer = answer._replace(remark=_KEYS) if answer.check != "signature" else answers.undecided(_KEYS, answer.words)
    if rehearsal_results.identities(subject) != read_before.inputs:
        answer = answers.undecided("the files changed while it ran")
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
        if rehearsal.ending not in (Ending.SLOW, Ending.NO_BOOT) and not answers.is_starved(rehearsal):
            break
    return rehearsal, machine


def _accelerated(device: Path) -> bool:
    """Whether the user who will run the machine may use this: root starts it as nobody."""
    if os.geteuid() != 0:
        return os.access(device, os.R_OK | os.W_OK)
    return device.exists() and device.stat().st_mode & 0o6 == 0o6


def cannot(e: KnetstatdError) -> Answer:
    """The answer if nobody could be asked."""
    return Answer(Outcome.UNDECIDED, reason=f"{e.where}: {e.what}" if e.where else e.what, fix=e.fix)


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
        "used": list(map(os.fspath, subject.used)),
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
    used = tuple(map(Path, order.texts("used")))
    return rehearsal_results.Subject(kernel, package, order.path("image"), modules, order.texts("arguments"), used)
