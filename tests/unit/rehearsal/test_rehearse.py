# SPDX-License-Identifier: GPL-2.0-or-later
"""How a machine is asked, and in which unit; tests/vm/test_trial_real.py asks real kernels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import kerneltree
import machinetree
import pytest
from keys import Key

from knetstatd.core.errors import KnetstatdError
from knetstatd.core.model import Answer, Outcome
from knetstatd.formats import module_file
from knetstatd.rehearsal import rehearse
from knetstatd.state import rehearsal_results
from knetstatd.state.paths import places

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def subject(tmp_path: Path) -> rehearsal_results.Subject:
    for name in ("dep", "demo"):
        (tmp_path / f"{name}.ko").write_bytes(kerneltree.module(name))
    (tmp_path / "image").write_bytes(b"image")
    return rehearsal_results.Subject("6.1", "demo", tmp_path / "image", ((tmp_path / "demo.ko", (tmp_path / "dep.ko",)),))


def test_files_are_read_once_in_the_order_of_insertion(subject: rehearsal_results.Subject) -> None:
    found = rehearse.inputs(subject)
    assert [module.name for module, _ in found.modules.values()] == ["dep", "demo"]
    assert len(found.hashes) == len(found.inputs) == 3
    assert all(isinstance(module, module_file.Module) for module, _ in found.modules.values())


def test_a_file_that_cannot_be_read(subject: rehearsal_results.Subject) -> None:
    subject.image.unlink()
    with pytest.raises(KnetstatdError, match="cannot be read: No such file"):
        rehearse.inputs(subject)


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
        '{"kernel": "6.1", "package": "demo", "image": "/i", "modules": [], "arguments": [], "used": [], "timeout": 9}'
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
    machinetree.tell(root, f"{QEMU} -accel", "case $2 in kvm) exit ;; esac")
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


@pytest.mark.spawns
def test_who_answered_invalid_argument_is_asked(root: Path) -> None:
    """A second machine tells whether it was the init function."""
    machinetree.write(root / "told/debug", machinetree.console(
        state="absent", code=22, insmod="insmod: can't insert '/modules/0.ko': Invalid argument",
        words="initcall demo_init+0x0/0x1000 [demo] returned -22 after 3 usecs",
    ))  # fmt: skip
    machinetree.write(root / "told/console", machinetree.console(
        state="absent", code=22, insmod="insmod: can't insert '/modules/0.ko': Invalid argument",
    ))  # fmt: skip
    does = 'case $arguments in *initcall_debug*) cp "$root/told/debug" "$root/told/console" ;; esac'
    machinetree.tell(root, f"{QEMU} -accel", does)
    answer = ask(root, of_one(root))
    assert answer.outcome is Outcome.DECLINED, answer
    assert [line.endswith(" initcall_debug") for line in machinetree.ran(root, QEMU)] == [False, True]
