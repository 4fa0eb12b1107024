# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers to rehearsals, one small file for each package and kernel: asking again would cost seconds.

Rules:

1. An answer counts for the files that were rehearsed, the boot image among them, and for the kernel's command line. It is
   void if one of them changes. Losing our files at any time changes no verdict but `rehearsed` to `analysed`.
2. A look compares the files' identities alone: hashing an image at each look would cost the daemon more than all the rest.
   If an identity has changed, the answer is void for the look. The next rehearsal compares the hashes; if they are the same,
   it keeps the answer and starts no machine.
3. An undecided rehearsal is not kept here: it is an attempt (see attempts).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.boot import bootloader
from knetstatd.boot.kernel_parameters import own_parameters
from knetstatd.core.model import Answer, Check, Outcome, Rehearsed, Result
from knetstatd.machine import kernels, signature_policy
from knetstatd.system import documents, files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from knetstatd.core.model import Proof
    from knetstatd.state.paths import Places
    from knetstatd.system.documents import Node

# Raised when the same question is put to another test.
SCHEMA = 1
QEMU, BUSYBOX = "usr/bin/qemu-system-x86_64", ("usr/bin/busybox", "bin/busybox")
FIX = "Run: apt install qemu-system-x86 busybox-static"
# Of the command line that the boot loader gives: what decides whether a module may be loaded
# (Documentation/admin-guide/kernel-parameters.txt).
_DECIDES = re.compile(r"(?:module\.sig_enforce|lockdown|module_blacklist)(?:=|$)")


class Subject(NamedTuple):
    """What is rehearsed: a package's modules on a kernel, each with the files that go in before it, in order.

    arguments: those of the kernel's command line that decide about modules.
    used: the package's modules that this machine has loaded, or loads at boot.
    """

    kernel: str
    package: str
    image: Path
    modules: tuple[tuple[Path, tuple[Path, ...]], ...]
    arguments: tuple[str, ...] = ()
    used: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All module files, each once, in the order in which they go in."""
        return tuple(dict.fromkeys(path for own, needed in self.modules for path in (*needed, own)))


def subject_of(
    root: Path, kernel: str, package: str, proofs: Iterable[Proof], arguments: Sequence[str], used: Iterable[Path] = ()
) -> Subject | None:
    """What a rehearsal of installed modules is about; None if the kernel has no boot image or nothing is installed."""
    image = kernels.image(root, kernel)
    modules = tuple((Path(proof.path), tuple(map(Path, proof.needed))) for proof in proofs if proof.path)
    return Subject(kernel, package, image, modules, tuple(arguments), tuple(used)) if image is not None and modules else None


def arguments(root: Path, kernel: str) -> tuple[str, ...]:
    """What decides about modules on the command line that `kernel` will get, and what this machine's firmware adds to it.

    If no boot loader tells, the running kernel's command line stands for it.
    """
    line = bootloader.command_line(root, kernel)
    words = [word for word in dict.fromkeys(own_parameters(line)) if _DECIDES.match(word)]
    if signature_policy.secure_boot(root) and not any(word.startswith("module.sig") for word in words):
        words.append("module.sig_enforce=1")
    return tuple(words)


def missing(root: Path) -> str:
    """Why no rehearsal can be had on this machine, "" if one can."""
    if os.uname().machine != "x86_64":
        return f"rehearsals are for x86-64, and this machine is {os.uname().machine}"
    if not all(any(os.access(files.inside(root, name), os.X_OK) for name in names) for names in ((QEMU,), BUSYBOX)):
        return "qemu-system-x86 and busybox-static are not both installed"
    return ""


def checks(subject: Subject | None, answer: Answer | None, unable: str) -> tuple[tuple[str, Check], ...]:
    """The rehearsal as one more check of a verdict; if there was none, what is needed for one. unable: from `missing`."""
    if subject is None:
        return ()
    expected = "the kernel loads it, and it works"
    said, fix = (f"none: {unable}", FIX) if unable else ("none yet", "")
    check = Check("rehearsal", Result.NOT_APPLICABLE, expected, said, fix=fix)
    if answer is not None:
        said = f"{answer.outcome}, {answer.machine}, {answer.seconds:.1f} s" + (f"; {answer.remark}" if answer.remark else "")
        result = Result.PASS if answer.outcome.good else Result.FAIL
        check = Check("rehearsal", result, expected, said, answer.reason, answer.fix)
    return ((os.fspath(subject.image), check),)


def load(places: Places, subject: Subject) -> Answer | None:
    """The answer that stands, None if there is none, one of its files has changed, or our file is damaged."""
    return _load(places, subject, "inputs", identities(subject))


def same(places: Places, subject: Subject, hashes: Sequence[str]) -> Answer | None:
    """The kept answer if it is about files of these contents, whatever their identities."""
    return _load(places, subject, "hashes", list(hashes))


def _load(places: Places, subject: Subject, key: str, wanted: list[Any]) -> Answer | None:
    document = documents.read(places.rehearsal(subject.kernel, subject.package))
    try:
        if document is None or document.integer("schema") != SCHEMA or document.texts("arguments") != subject.arguments:
            return None
        if document.texts("used") != tuple(map(os.fspath, subject.used)):
            return None
        return parse(document.get("answer")) if document.get(key).value == wanted else None
    except documents.Malformed:
        return None


def state(answer: Answer | None, wanted: bool, unable: str, mode: str) -> Rehearsed:
    """What is known of a rehearsal. wanted: somebody would ask for one.  unable: from `missing`.  mode: the configuration's."""
    if answer is not None:
        return Rehearsed.GOOD if answer.outcome.good else Rehearsed.BAD
    if wanted and unable and mode == "require":
        return Rehearsed.IMPOSSIBLE
    return Rehearsed.DUE if wanted and not unable else Rehearsed.NOT_DUE


def save(places: Places, subject: Subject, inputs: list[list[Any]], hashes: Sequence[str], answer: Answer) -> None:
    """Keeps an answer durably. inputs: `identities` before the machine was started.  hashes: of the same files.

    Raises OSError if the state directory cannot be written.
    """
    target = places.rehearsal(subject.kernel, subject.package)
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema": SCHEMA, "arguments": list(subject.arguments), "inputs": inputs, "hashes": list(hashes)}
    document["used"] = list(map(os.fspath, subject.used))
    files.write_json(target, {**document, "answer": answer._asdict(), "kernel": subject.kernel, "package": subject.package})


def identities(subject: Subject) -> list[list[Any]]:
    """The files that the answer is about, each with what changes when its contents do; as JSON has it."""
    return [[os.fspath(file), *(files.identity(file) or ())] for file in (subject.image, *subject.files)]


def parse(document: Node) -> Answer:
    """An answer from JSON. Raises Malformed."""
    return Answer(
        outcome=document.word("outcome", Outcome),
        check=document.text("check"),
        reason=document.text("reason"),
        fix=document.text("fix"),
        words=document.texts("words"),
        remark=document.text("remark"),
        machine=document.text("machine"),
        seconds=document.number("seconds"),
        when=document.number("when"),
    )
