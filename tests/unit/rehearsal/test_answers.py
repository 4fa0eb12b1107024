# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine's end says of the modules; tests/vm/test_trial_real.py asks real kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from knetstatd.core.model import Answer, Check, Outcome, Proof, Result
from knetstatd.rehearsal import answers
from knetstatd.rehearsal.vm import Ending, Insertion, Rehearsal
from knetstatd.state import rehearsal_results

if TYPE_CHECKING:
    from pathlib import Path

FINE = Insertion("dep", True, "", (), True)
DEMO = Insertion("demo", True, "", ("demo: hello",), True)


@pytest.fixture
def subject(tmp_path: Path) -> rehearsal_results.Subject:
    return rehearsal_results.Subject("6.1", "demo", tmp_path / "image", ((tmp_path / "demo.ko", (tmp_path / "dep.ko",)),))


def judge(
    subject: rehearsal_results.Subject, *insertions: Insertion, ending: Ending = Ending.LOADED, words: str = ""
) -> Answer:
    rehearsal = Rehearsal(
        ending, insertions, tuple(words.splitlines()), (), None, "", {}, elapsed=60.0, booted=2.0, console="last words\n"
    )
    return answers.judge(rehearsal, subject, {path: path.stem for path in subject.files})


def test_loaded(subject: rehearsal_results.Subject) -> None:
    assert judge(subject, FINE, DEMO).outcome is Outcome.LOADED


def test_a_console_that_lost_a_line(subject: rehearsal_results.Subject) -> None:
    """The kernel may speak into the line that says that an insertion begins; what became of that module is not known."""
    for there in (FINE,), (DEMO,), ():
        answer = judge(subject, *there)
        assert (answer.outcome, answer.reason.startswith("the machine's console does not tell")) == (Outcome.UNDECIDED, True)


@pytest.mark.parametrize(
    ("message", "word", "outcome", "check", "reason"),
    [
        ("module has wrong symbol version", "demo: disagrees about version of symbol printk", Outcome.REFUSED, "crcs",
         "the kernel refuses demo: the symbol printk has another checksum there"),
        ("invalid module format", "demo: version magic '6.1.0-1 SMP ' should be '6.1.0-2 SMP '", Outcome.REFUSED, "release",
         "the kernel refuses demo: it was built for 6.1.0-1, and this is 6.1.0-2"),
        ("invalid module format", "demo: version magic '6.1.0-1 SMP ' should be '6.1.0-1 SMP preempt '", Outcome.REFUSED,
         "vermagic", "the kernel refuses demo: its version magic is 'SMP', and must be 'SMP preempt'"),
        ("unknown symbol in module, or unknown parameter", "demo: Unknown symbol gone (err -2)", Outcome.REFUSED, "symbols",
         "the kernel refuses demo: that kernel has no symbol gone"),
        ("invalid module format", "module demo: .gnu.linkonce.this_module section size must match the kernel's built struct",
         Outcome.REFUSED, "struct-module", "the kernel refuses demo: its struct module has another size"),
        ("invalid module format", "failed to validate module [demo] BTF: -22", Outcome.REFUSED, "btf",
         "the kernel refuses demo: its type information (BTF) is damaged"),
        ("Key was rejected by service", "Loading of unsigned module is rejected", Outcome.REFUSED, "signature",
         "the kernel refuses demo: its signature is none that this kernel accepts"),
        ("Required key not available", "", Outcome.REFUSED, "signature", "the kernel refuses demo: its signature is none"),
        ("Operation not permitted", "Lockdown: insmod: unsigned module loading is restricted; see man kernel_lockdown.7",
         Outcome.REFUSED, "signature", "the kernel refuses demo: its signature is none"),
        ("Operation not permitted", "Module demo is blacklisted", Outcome.REFUSED, "denied", "the kernel refuses demo"),
        ("invalid module format", "demo: exports duplicate symbol x (owned by kernel)", Outcome.REFUSED, "exports",
         "the kernel refuses demo: it exports x"),
        ("invalid module format", "", Outcome.REFUSED, "file", "the kernel refuses demo: invalid module format"),
        ("Input/output error", "", Outcome.REFUSED, "init", "demo's init function fails: Input/output error"),
        ("unknown symbol in module, or unknown parameter", "", Outcome.UNDECIDED, "", "demo asks for something"),
        ("Cannot allocate memory", "", Outcome.UNDECIDED, "", "the machine had too little memory"),
        ("", "", Outcome.NOT_WORKING, "init", "demo went in, and the kernel does not call it live"),
    ],
)  # fmt: skip
def test_not_loaded(
    subject: rehearsal_results.Subject, message: str, word: str, outcome: Outcome, check: str, reason: str
) -> None:
    insertion = Insertion("demo", False, message, (word,) if word else (), True)
    answer = judge(subject, FINE, insertion, ending=Ending.REFUSED)
    assert (answer.outcome, answer.check) == (outcome, check)
    assert answer.reason.startswith(reason)
    if word and outcome is Outcome.REFUSED:
        assert word[:50] in "\n".join(answer.words)


@pytest.mark.parametrize("message", ["No such device", "No such device or address", "Operation not supported"])
@pytest.mark.parametrize("first", [False, True])
def test_hardware_that_is_not_there_is_no_fault(subject: rehearsal_results.Subject, message: str, first: bool) -> None:
    absent = Insertion("dep" if first else "demo", False, message, (), True)
    follows = Insertion("demo", False, "invalid module format", ("demo: Unknown symbol x (err -2)",), True)
    found = judge(subject, *((absent, follows) if first else (FINE, absent)), ending=Ending.REFUSED)
    assert found.outcome is Outcome.DECLINED
    assert message in found.remark


@pytest.mark.parametrize(
    ("ending", "outcome", "reason"),
    [
        (Ending.PANIC, Outcome.PANIC, "the kernel gives up while it loads demo"),
        (Ending.RESET, Outcome.PANIC, "the machine resets itself while it loads demo"),
        (Ending.HANG, Outcome.HANG, "nothing comes back after 58 s while it loads demo"),
        (Ending.SLOW, Outcome.UNDECIDED, "60 s were not enough for it"),
        (Ending.NO_BOOT, Outcome.UNDECIDED, "the machine did not start"),
    ],
)
def test_a_machine_that_ends(subject: rehearsal_results.Subject, ending: Ending, outcome: Outcome, reason: str) -> None:
    found = judge(subject, FINE, Insertion("demo", False, "", (), False), ending=ending)
    assert found.outcome is outcome
    assert found.reason.startswith(reason)
    assert judge(subject, FINE, DEMO, ending=Ending.PANIC).reason.endswith("while the loaded modules are probed")


def test_of_a_register_dump_the_lines_that_matter_are_kept(subject: rehearsal_results.Subject) -> None:
    dump = "kernel BUG at demo.c:1!\n" + "R10: 0\n" * 30 + "RIP: 0010:demo+1\nKernel panic - not syncing: Fatal exception"
    assert [line[:6] for line in judge(subject, FINE, ending=Ending.PANIC, words=dump).words] == ["kernel", "RIP: 0", "Kernel"]


def test_memory_that_ran_out_says_nothing(subject: rehearsal_results.Subject) -> None:
    words = "Out of memory: Killed process 90 (insmod)\nKernel panic - not syncing: System is deadlocked on memory"
    assert judge(subject, FINE, ending=Ending.PANIC, words=words).outcome is Outcome.UNDECIDED


def proofs(**results: Result) -> list[Proof]:
    return [Proof("/x.ko", tuple(Check(name, result, reason="because") for name, result in results.items()))]


def test_disagreement() -> None:
    refused = Answer(Outcome.REFUSED, "crcs", "refused")
    assert answers.disagreement(refused, proofs(crcs=Result.PASS)) == "refused, and the check crcs found nothing wrong"
    assert answers.disagreement(refused, proofs(crcs=Result.FAIL)) == ""
    assert answers.disagreement(refused._replace(check="init"), proofs(crcs=Result.PASS)) == ""
    loaded = Answer(Outcome.LOADED)
    assert answers.disagreement(loaded, proofs(crcs=Result.FAIL)) == "the kernel loads it, and the check crcs says: because"
    assert answers.disagreement(loaded, proofs(crcs=Result.PASS, release=Result.UNKNOWN)) == ""
    assert answers.disagreement(loaded._replace(remark="its signature was not rehearsed"), proofs(crcs=Result.FAIL)) == ""


@pytest.mark.parametrize("used", [False, True])
def test_an_init_that_declines(subject: rehearsal_results.Subject, used: bool) -> None:
    """-EINVAL of the init function itself; of a module that this machine has loaded it is a fault."""
    subject = subject._replace(used=(subject.modules[0][0],) if used else ())
    words = ("calling  demo_init+0x0/0x1000 [demo] @ 58", "initcall demo_init+0x0/0x1000 [demo] returned -22 after 3 usecs")
    declined = Insertion("demo", False, "Invalid argument", (words[0], "demo: no stack here", words[1]), True)
    answer = judge(subject, FINE, declined, ending=Ending.REFUSED)
    if used:
        assert (answer.outcome, answer.check) == (Outcome.REFUSED, "init")
        assert answer.words == ("demo: no stack here", "insmod: Invalid argument")
    else:
        assert answer.outcome is Outcome.DECLINED
        assert answer.remark.startswith("proven to link, not to work: ")
        assert answer.remark.endswith("(demo: Invalid argument)")


@pytest.mark.parametrize("words", [
    (),
    ("initcall dep_init+0x0/0x1000 [dep] returned -22 after 3 usecs",),
    ("initcall demo_init+0x0/0x1000 [demo] returned -2 after 3 usecs",),
    ("demo: initcall demo_init+0x0/0x1000 [demo] returned -22 after 3 usecs",),
])  # fmt: skip
def test_an_invalid_argument_may_be_the_loader_s(subject: rehearsal_results.Subject, words: tuple[str, ...]) -> None:
    refused = Insertion("demo", False, "Invalid argument", words, True)
    answer = judge(subject, FINE, refused, ending=Ending.REFUSED)
    assert (answer.outcome, answer.check) == (Outcome.REFUSED, "init")
    machine = Rehearsal(Ending.REFUSED, (FINE, refused), (), (), None, "", {}, 1.0, 1.0, "")
    assert answers.is_ambiguous(answer, machine)
    other = refused._replace(message="Input/output error")
    assert not answers.is_ambiguous(judge(subject, FINE, other), machine._replace(insertions=(FINE, other)))
