# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine's end says of the modules; tests/vm/test_trial_real.py asks real kernels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import kerneltree
import machinetree
import pytest
from keys import Key

from knetstatd.core.errors import KnetstatdError
from knetstatd.core.model import Answer, Check, Outcome, Proof, Result
from knetstatd.formats import module_file
from knetstatd.rehearsal import rehearse
from knetstatd.rehearsal.vm import Ending, Insertion, Rehearsal
from knetstatd.state import rehearsal_results
from knetstatd.state.paths import places

if TYPE_CHECKING:
    from pathlib import Path

FINE = Insertion("dep", True, "", (), True)
DEMO = Insertion("demo", True, "", ("demo: hello",), True)


@pytest.fixture
def subject(tmp_path: Path) -> rehearsal_results.Subject:
    for name in ("dep", "demo"):
        (tmp_path / f"{name}.ko").write_bytes(kerneltree.module(name))
    (tmp_path / "image").write_bytes(b"image")
    return rehearsal_results.Subject("6.1", "demo", tmp_path / "image", ((tmp_path / "demo.ko", (tmp_path / "dep.ko",)),))


def judge(
    subject: rehearsal_results.Subject, *insertions: Insertion, ending: Ending = Ending.LOADED, words: str = ""
) -> Answer:
    rehearsal = Rehearsal(
        ending, insertions, tuple(words.splitlines()), (), None, "", {}, elapsed=60.0, booted=2.0, console="last words\n"
    )
    return rehearse.judge(rehearsal, subject, rehearse.inputs(subject))


def test_files_are_read_once_in_the_order_of_insertion(subject: rehearsal_results.Subject) -> None:
    found = rehearse.inputs(subject)
    assert [module.name for module, _ in found.modules.values()] == ["dep", "demo"]
    assert len(found.hashes) == len(found.inputs) == 3
    assert all(isinstance(module, module_file.Module) for module, _ in found.modules.values())


def test_a_file_that_cannot_be_read(subject: rehearsal_results.Subject) -> None:
    subject.image.unlink()
    with pytest.raises(KnetstatdError, match="cannot be read: No such file"):
        rehearse.inputs(subject)


def test_loaded(subject: rehearsal_results.Subject) -> None:
    assert judge(subject, FINE, DEMO).outcome is Outcome.LOADED


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
    assert found.outcome is Outcome.NO_DEVICE
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
    assert rehearse.disagreement(refused, proofs(crcs=Result.PASS)) == "refused, and the check crcs found nothing wrong"
    assert rehearse.disagreement(refused, proofs(crcs=Result.FAIL)) == ""
    assert rehearse.disagreement(refused._replace(check="init"), proofs(crcs=Result.PASS)) == ""
    loaded = Answer(Outcome.LOADED)
    assert rehearse.disagreement(loaded, proofs(crcs=Result.FAIL)) == "the kernel loads it, and the check crcs says: because"
    assert rehearse.disagreement(loaded, proofs(crcs=Result.PASS, release=Result.UNKNOWN)) == ""
    assert rehearse.disagreement(loaded._replace(remark="its signature was not rehearsed"), proofs(crcs=Result.FAIL)) == ""


def test_what_rehearsals_cannot_be_had_for(subject: rehearsal_results.Subject, tmp_path: Path) -> None:
    with pytest.raises(KnetstatdError, match="not both installed"):
        rehearse.rehearsed(tmp_path, places(tmp_path), subject, rehearse.inputs(subject), 10)
    (tmp_path / "usr/bin").mkdir(parents=True)
    for name in ("qemu-system-x86_64", "busybox"):
        (tmp_path / "usr/bin" / name).touch(0o755)
    (tmp_path / "dep.ko").write_bytes(kerneltree.module("dep", machine=183))
    with pytest.raises(KnetstatdError, match="rehearsals are for x86-64"):
        rehearse.carry_out(tmp_path, subject, rehearse.inputs(subject), 10)


def test_the_unit_s_program_takes_only_its_own_order(tmp_path: Path) -> None:
    from knetstatd.core.config import Config
    from knetstatd.verdict.observe import Machine

    machine = Machine(tmp_path, Config())
    with pytest.raises(KnetstatdError, match="this is the program of knetstatd-rehearse@.service"):
        rehearse.unit_program(machine, "6.1:demo", "")
    with pytest.raises(KnetstatdError, match="there is no order"):
        rehearse.unit_program(machine, "6.1:demo", "/x")
    machine.places.order.parent.mkdir(parents=True)
    machine.places.order.write_text(
        '{"kernel": "6.1", "package": "demo", "image": "/i", "modules": [], "arguments": [], "timeout": 9}'
    )
    with pytest.raises(KnetstatdError, match="the order is not about '6.2:demo'"):
        rehearse.unit_program(machine, "6.2:demo", "/x")


# -- with a machine that is a script ---------------------------------------------------------------------------------------

QEMU = "qemu-system-x86_64"
LOADED = machinetree.console(words="demo: hello")
UNSIGNED = machinetree.console(state="absent", code=1, words="Loading of unsigned module is rejected")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path)
    machinetree.rehearsals(tmp_path, LOADED)
    return tmp_path


def of_one(root: Path, *arguments: str, data: bytes = machinetree.GOOD) -> rehearsal_results.Subject:
    """A rehearsal of one module."""
    path = machinetree.write(root / "demo.ko", data)
    image = root / f"boot/vmlinuz-{machinetree.KERNEL}"
    return rehearsal_results.Subject(machinetree.KERNEL, "demo", image, ((path, ()),), arguments)


def ask(root: Path, subject: rehearsal_results.Subject) -> Answer:
    return rehearse.carry_out(root, subject, rehearse.inputs(subject), 20.0)


@pytest.mark.spawns
def test_a_machine_is_asked(root: Path) -> None:
    answer = ask(root, of_one(root, "module.sig_enforce=1"))
    assert (answer.outcome, answer.machine, answer.words) == (Outcome.LOADED, "emulation", ("demo: hello",))
    [asked] = machinetree.ran(root, QEMU)
    assert asked.startswith("-accel tcg")
    assert asked.endswith(" module.sig_enforce=1")


@pytest.mark.spawns
def test_a_machine_that_does_not_start_is_asked_with_more_memory(root: Path) -> None:
    machinetree.write(root / "told/console", "")
    answer = ask(root, of_one(root))
    assert (answer.outcome, answer.reason) == (Outcome.UNDECIDED, "the machine did not start")
    first, second = (int(line.split(" -m ")[1].split()[0]) for line in machinetree.ran(root, QEMU))
    assert first < 1024 <= second


@pytest.mark.spawns
def test_what_acceleration_does_not_answer_is_asked_again_without(root: Path) -> None:
    machinetree.write(root / "dev/kvm", "").chmod(0o666)
    machinetree.tell(root, f"{QEMU} -accel", 'case $2 in kvm) exit ;; esac')
    answer = ask(root, of_one(root))
    assert (answer.outcome, answer.machine) == (Outcome.LOADED, "emulation")
    assert [line.split()[1] for line in machinetree.ran(root, QEMU)] == ["kvm", "tcg,thread=single"]
    (root / "told" / f"{QEMU}--accel").unlink()
    assert ask(root, of_one(root)).machine == "KVM"


@pytest.mark.spawns
def test_files_that_change_meanwhile_were_not_rehearsed(root: Path) -> None:
    machinetree.tell(root, f"{QEMU} -accel", 'echo more >>"$root/demo.ko"')
    answer = ask(root, of_one(root))
    assert (answer.outcome, answer.reason) == (Outcome.UNDECIDED, "the files changed while it ran")


@pytest.mark.spawns
@pytest.mark.parametrize("signed", [True, False])
def test_keys_that_are_in_this_machine_s_firmware(root: Path, signed: bool) -> None:
    """The other machine does not have them: a signed module is asked about without signatures, and that is said."""
    machinetree.write(root / "told/free", LOADED)
    machinetree.write(root / "told/console", UNSIGNED)
    does = 'case $arguments in *sig_enforce*) ;; *) cp "$root/told/free" "$root/told/console" ;; esac'
    machinetree.tell(root, f"{QEMU} -accel", does)
    data = Key().sign(machinetree.GOOD) if signed else machinetree.GOOD
    answer = ask(root, of_one(root, "module.sig_enforce=1", "module_blacklist=x", data=data))
    assert answer.outcome is (Outcome.LOADED if signed else Outcome.REFUSED)
    assert ("its signature was not rehearsed" in answer.remark) is signed
    assert len(machinetree.ran(root, QEMU)) == 1 + signed
    assert machinetree.ran(root, QEMU)[-1].endswith(" module_blacklist=x")


class TestUnit:
    """Root asks a unit without privileges."""

    @pytest.fixture(autouse=True)
    def systemd(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (root / "run/systemd/system").mkdir(parents=True)
        machinetree.write(root / "etc/systemd/system/knetstatd-rehearse@.service", "")
        monkeypatch.setattr("os.geteuid", lambda: 0)

    def rehearsed(self, root: Path, timeout: float = 9.0) -> Answer:
        machine, subject = machinetree.machine(root), of_one(root)
        return rehearse.rehearsed(root, machine.places, subject, rehearse.inputs(subject), timeout)

    def answer(self, root: Path) -> Path:
        """What the unit answers to the order that was left for it."""
        with pytest.raises(KnetstatdError, match="the rehearsal left no usable answer: No such file"):
            self.rehearsed(root)
        machine = machinetree.machine(root)
        machine.places.rehearse_cache.mkdir(parents=True)
        rehearse.unit_program(machine, f"{machinetree.KERNEL}:demo", str(machine.places.rehearse_cache))
        [path] = machine.places.rehearse_cache.iterdir()
        return path

    @pytest.mark.spawns
    def test_its_answer_is_taken(self, root: Path) -> None:
        self.answer(root)
        asked = len(machinetree.ran(root, QEMU))
        assert self.rehearsed(root).outcome is Outcome.LOADED
        assert len(machinetree.ran(root, QEMU)) == asked, "nothing is started with privileges"
        unit = "knetstatd-rehearse@6.1.0\\x2d1\\x2damd64:demo.service"
        assert f"start -- {unit}" in machinetree.ran(root, "systemctl")

    @pytest.mark.spawns
    def test_an_answer_to_another_order(self, root: Path) -> None:
        self.answer(root)
        with pytest.raises(KnetstatdError, match="it is the result of another rehearsal"):
            self.rehearsed(root, timeout=10.0)

    @pytest.mark.spawns
    def test_an_answer_about_other_files(self, root: Path) -> None:
        path = self.answer(root)
        document = json.loads(path.read_text())
        for hashes, why in ((["x", "y"], "the result of another rehearsal"), (None, "an answer about nothing")):
            path.write_text(json.dumps({**document, "hashes": hashes}))
            with pytest.raises(KnetstatdError, match=why):
                self.rehearsed(root)

    @pytest.mark.spawns
    def test_an_answer_that_leads_elsewhere(self, root: Path) -> None:
        path = self.answer(root)
        path.rename(root / "elsewhere")
        path.symlink_to(root / "elsewhere")
        with pytest.raises(KnetstatdError, match="the rehearsal left no usable answer"):
            self.rehearsed(root)

    @pytest.mark.spawns
    def test_it_fails(self, root: Path) -> None:
        machinetree.tell(root, "systemctl show", "echo ActiveState=failed; echo Result=oom-kill; exit")
        with pytest.raises(KnetstatdError, match=r"the unit that rehearses failed \(oom-kill\)"):
            self.rehearsed(root)

    @pytest.mark.spawns
    def test_what_it_cannot_do_is_an_answer_too(self, root: Path) -> None:
        self.answer(root)
        (root / "usr/bin/busybox").write_bytes(b"/lib/ld-linux.so")
        machine = machinetree.machine(root)
        rehearse.unit_program(machine, f"{machinetree.KERNEL}:demo", str(machine.places.rehearse_cache))
        answer = self.rehearsed(root)
        assert (answer.outcome, "is not statically linked" in answer.reason) == (Outcome.UNDECIDED, True)
