# SPDX-License-Identifier: GPL-2.0-or-later
"""Each step of the plan, carried out on a machine of small files: what it does, what it tells, and what is remembered of it.

With real kernels: tests/container and tests/faults.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from typing import TYPE_CHECKING

import kerneltree
import machinetree
import pytest
from machinetree import GOOD, KERNEL

from knetstatd.core.model import Action, Answer, Artefact, Kind, Outcome, Rehearsed
from knetstatd.rehearsal import rehearse
from knetstatd.rehearsal.vm import CpioFile, cpio
from knetstatd.state import attempts, load_history, rehearsal_results

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from knetstatd.build.steps import Builder
    from knetstatd.core.model import Attempt
    from knetstatd.verdict.observe import Seen

pytestmark = pytest.mark.spawns
INSTALLED = f"lib/modules/{KERNEL}/updates/dkms/demo.ko"


class Bench:
    """A builder at work on a machine, and what it tells."""

    def __init__(self, root: Path, told: machinetree.Told, **settings: object) -> None:
        self.root = root
        self._told = told
        self.builder: Builder = machinetree.builder(machinetree.machine(root, **settings), told.journal)  # type: ignore[arg-type]
        self.builder.progress = machinetree.Ticks(root)

    @property
    def kept(self) -> Path:
        """Where an attempt is remembered."""
        return self.builder.machine.places.attempt(KERNEL, "demo")

    def seen(self) -> Seen:
        return machinetree.look(self.builder.machine)

    def attempt(self) -> Attempt | None:
        return self.seen().observation.attempt

    @property
    def shown_at_work(self) -> bool:
        """Whether the time that a step takes was shown, not only its beginning."""
        return (self.root / "ticked").exists()

    def due(self) -> Action:
        return self.builder.machine.plan(self.seen(), attempts.now()).action

    def step(self, action: Action) -> bool:
        return self.builder.step(self.seen(), action)

    def told(self) -> list[str]:
        """The events since the last time."""
        return [entry["event"] for entry in self.entries()]

    def entries(self) -> list[dict[str, str]]:
        """What the journal has of them."""
        return self._told.entries()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[machinetree.Told]:
    with machinetree.Told(tmp_path) as told:
        yield told


@pytest.fixture
def bench(tmp_path: Path, told: machinetree.Told) -> Bench:
    machinetree.make(tmp_path)
    return Bench(tmp_path, told)


class TestBuilding:
    def test_from_nothing_to_a_module_that_is_good(self, bench: Bench) -> None:
        assert bench.seen().observation.installed is Artefact.NONE
        assert bench.step(Action.STAGE)
        assert bench.told() == ["stage-started", "staged"]
        assert bench.seen().observation.staged is Artefact.GOOD
        assert not os.path.lexists(bench.root / INSTALLED), "nothing in the system has changed"
        assert bench.step(Action.PUBLISH)
        assert bench.told() == ["publish-started", "published"]
        assert (bench.seen().observation.installed, bench.seen().observation.staged) == (Artefact.GOOD, Artefact.NONE)
        assert not (bench.root / "var/lib/knetstatd/stage").exists()
        assert [line.partition(" ")[0] for line in machinetree.ran(bench.root, "dkms")] == [
            "build", "mktarball", "ldtarball", "install",
        ]  # fmt: skip

    @pytest.mark.parametrize(("action", "program"), [(Action.STAGE, "build"), (Action.PUBLISH, "install")])
    def test_that_it_began_is_remembered_before_it_does(self, bench: Bench, action: Action, program: str) -> None:
        """Were the machine to go down now, it would not build at every boot for ever."""
        if action is Action.PUBLISH:
            assert bench.step(Action.STAGE)
        machinetree.tell(bench.root, f"dkms {program}", f'cp "{bench.kept}" "$root/kept"')
        assert bench.step(action)
        assert json.loads((bench.root / "kept").read_text())["kind"] == Kind.INTERRUPTED
        assert not bench.kept.exists(), "and forgotten when it has succeeded"

    def test_a_success_forgets_the_failures_before_it(self, bench: Bench) -> None:
        machinetree.tell(bench.root, "dkms build", "echo 'No space left on device'; exit 10")
        assert not bench.step(Action.STAGE)
        attempt = bench.attempt()
        assert attempt is not None
        assert attempt.kind is Kind.DISK
        (bench.root / "told/dkms-build").unlink()
        assert bench.step(Action.STAGE)
        assert bench.attempt() is None

    def test_what_a_stop_of_the_machine_keeps_from_beginning_is_no_failure(self, bench: Bench) -> None:
        machinetree.outcome(bench.root)
        machinetree.tell(bench.root, "systemctl start", "echo 'Job for it canceled.'; exit 1")
        stopping = "echo SystemState=stopping; echo ActiveState=inactive; exit"
        machinetree.tell(bench.root, "systemctl show", stopping)
        assert not bench.step(Action.STAGE)
        assert (bench.told(), bench.attempt(), bench.kept.exists()) == (["stage-started"], None, False)
        machinetree.tell(bench.root, "systemctl show", stopping.replace("stopping", "running"))
        assert not bench.step(Action.STAGE)
        before = bench.attempt()
        assert before is not None
        assert (bench.told(), before.kind, before.times) == (["stage-started", "failed"], Kind.PUBLISH, 1)
        assert "cannot be started: Job for it canceled." in before.reason
        machinetree.tell(bench.root, "systemctl show", stopping)
        assert not bench.step(Action.STAGE)
        assert (bench.told(), bench.attempt()) == (["stage-started"], before), "what was remembered before stands again"

    def test_a_build_that_fails(self, bench: Bench) -> None:
        machinetree.tell(bench.root, "dkms build", "echo broken; exit 10")
        assert not bench.step(Action.STAGE)
        assert bench.told() == ["stage-started", "gave-up"]
        attempt = bench.attempt()
        assert attempt is not None
        log = bench.root / f"var/lib/knetstatd/kernels/{KERNEL}/demo.log"
        assert (attempt.kind, attempt.log) == (Kind.COMPILE, os.fspath(log))

    def test_a_disk_that_fills_up_is_no_fault_of_the_package(self, bench: Bench) -> None:
        machinetree.tell(bench.root, "dkms build", "ln -s /dev/full fingerprint")
        assert not bench.step(Action.STAGE)
        attempt = bench.attempt()
        assert attempt is not None
        assert (attempt.kind, attempt.reason) == (Kind.DISK, "No space left on device")

    def test_a_disk_without_room_for_the_attempt(self, bench: Bench) -> None:
        machinetree.without_room(bench.root)
        assert not bench.step(Action.STAGE)
        assert bench.builder.failures.forgetful
        assert machinetree.ran(bench.root, "dkms") == [], "what cannot be remembered is not begun"

    def test_a_log_of_a_failure_goes_with_the_publication(self, bench: Bench) -> None:
        log = machinetree.write(bench.root / f"var/lib/knetstatd/kernels/{KERNEL}/demo.log", "from before")
        assert bench.step(Action.STAGE)
        assert log.exists()
        assert bench.step(Action.PUBLISH)
        assert not log.exists()

    @pytest.mark.parametrize(("setting", "made", "events"), [
        ("update", GOOD, ["initrd-made"]), ("update", b"nonsense", ["initrd-failed"]), ("update", None, ["initrd-failed"]),
        ("report", GOOD, []),
    ])  # fmt: skip
    def test_an_initrd_that_is_to_hold_it(
        self, tmp_path: Path, told: machinetree.Told, setting: str, made: bytes | None, events: list[str]
    ) -> None:
        machinetree.make(tmp_path)
        bench, place = Bench(tmp_path, told, initrd=setting), f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko"
        init = CpioFile("init", stat.S_IFREG | 0o755, b"#!")
        machinetree.write(tmp_path / f"boot/initrd.img-{KERNEL}", cpio([init]))
        machinetree.write(tmp_path / "etc/initramfs-tools/modules", "demo\n")
        machinetree.write(tmp_path / "fresh", cpio([init, CpioFile(place, stat.S_IFREG | 0o644, made or b"")]))
        machinetree.program(tmp_path / "usr/sbin/mkinitramfs", tmp_path, "")
        make = (
            f'{machinetree.WAIT}; cp "$root/fresh" "$root/boot/initrd.img-{KERNEL}"'
            if made is not None
            else "echo no space; exit 1"
        )
        machinetree.program(tmp_path / "usr/sbin/update-initramfs", tmp_path, make)
        assert bench.step(Action.STAGE)
        assert bench.step(Action.PUBLISH)
        assert bench.told()[4:] == []
        due = Action.MAKE_INITRD if events else Action.GIVE_UP
        assert bench.due() is due
        assert not events or bench.step(due) is (events == ["initrd-made"])
        entries = bench.entries()
        assert [entry["event"] for entry in entries] == events
        if events == ["initrd-failed"]:
            attempt = bench.attempt()
            assert attempt is not None
            # What cannot be read is not made again.
            due = Action.WAIT if made is None else Action.GIVE_UP
            assert (attempt.kind, attempt.reason, bench.due()) == (Kind.INITRD, entries[0]["reason"], due)
            assert entries[0]["fix"] == f"Run: update-initramfs -u -k {KERNEL}"
        if made is None:
            assert (entries[0]["reason"], entries[0]["evidence"]) == ("update-initramfs ended with 1", "no space")
        elif events == ["initrd-failed"]:
            assert "made anew, and is still wrong: What the initrd holds is not known" in entries[0]["reason"]
        ran = machinetree.ran(tmp_path, "update-initramfs") if events else []
        assert not ran or made is None or bench.shown_at_work
        assert ran == [f"-u -k {KERNEL}"] * len(events)
        good = Artefact.GOOD if events == ["initrd-made"] else Artefact.DENIED
        assert bench.seen().observation.installed is good

    def test_an_initrd_that_is_right_is_left_alone(self, tmp_path: Path, told: machinetree.Told) -> None:
        machinetree.make(tmp_path)
        bench = Bench(tmp_path, told, initrd="update")
        machinetree.write(tmp_path / f"boot/initrd.img-{KERNEL}", cpio([CpioFile("init", stat.S_IFREG | 0o755, b"#!")]))
        assert bench.step(Action.STAGE)
        assert bench.step(Action.PUBLISH)
        assert bench.due() not in (Action.MAKE_INITRD, Action.GIVE_UP)

    def test_a_publication_that_leaves_nothing(self, bench: Bench) -> None:
        assert bench.step(Action.STAGE)
        machinetree.tell(bench.root, "dkms install", "exit 0")
        assert not bench.step(Action.PUBLISH)
        attempt = bench.attempt()
        assert attempt is not None
        assert attempt.kind is Kind.PUBLISH
        assert bench.seen().observation.staged is Artefact.GOOD, "the next attempt need not compile"


class TestRehearsing:
    @pytest.fixture
    def bench(self, tmp_path: Path, told: machinetree.Told) -> Bench:
        """A machine where a module is installed, and rehearsals can be had."""
        kerneltree.add(machinetree.make(tmp_path), "updates/dkms/demo.ko", GOOD)
        machinetree.rehearsals(tmp_path)
        return Bench(tmp_path, told, running="another", rehearse="auto")

    def answered(self, bench: Bench, outcome: Outcome) -> None:
        """What the kernel has said of the same files before, of which one was copied since."""
        seen = bench.seen()
        assert seen.subject is not None
        inputs = rehearse.inputs(seen.subject)
        answer = Answer(outcome, "init", "its init fails", "tell the author", ("words",))
        rehearsal_results.save(bench.builder.machine.places, seen.subject, inputs.inputs, inputs.hashes, answer)
        (bench.root / INSTALLED).write_bytes(GOOD)

    def test_what_a_kernel_takes(self, bench: Bench) -> None:
        self.answered(bench, Outcome.LOADED)
        assert bench.seen().observation.rehearsed is Rehearsed.DUE
        assert bench.step(Action.REHEARSE)
        assert bench.seen().observation.rehearsed is Rehearsed.GOOD
        assert machinetree.ran(bench.root, "qemu-system-x86_64") == [], "the same files are not asked about again"

    def test_what_a_kernel_refuses_is_not_built_again(self, bench: Bench) -> None:
        self.answered(bench, Outcome.REFUSED)
        assert not bench.step(Action.REHEARSE)
        attempt = bench.attempt()
        assert attempt is not None
        assert (attempt.kind, attempt.times, attempt.reason) == (Kind.REFUSED, 1, "its init fails")
        assert (attempt.fix, attempt.evidence) == ("tell the author", ("words",))
        seen = bench.seen()
        assert seen.observation.rehearsed is Rehearsed.BAD
        assert bench.builder.machine.plan(seen, attempts.now()).action is Action.GIVE_UP

    def test_a_machine_that_cannot_rehearse(self, bench: Bench) -> None:
        seen = bench.seen()
        (bench.root / "usr/bin/busybox").unlink()
        assert not bench.builder.step(seen, Action.REHEARSE)
        kept = json.loads(bench.kept.read_text())
        assert (kept["kind"], "not both installed" in kept["reason"]) == (Kind.REHEARSAL, True)
        assert kept["fix"] == "Run: apt install qemu-system-x86 busybox-static"
        assert bench.told() == ["rehearsal-started", "not-rehearsed"]

    def test_a_kernel_is_asked(self, bench: Bench) -> None:
        machinetree.rehearsals(bench.root, machinetree.console(words="demo: hello\ndemo: again"))
        machinetree.tell(bench.root, "qemu-system-x86_64 -accel", machinetree.WAIT)
        assert bench.step(Action.REHEARSE)
        assert bench.shown_at_work
        started, rehearsed = bench.entries()
        assert (started["event"], rehearsed["event"]) == ("rehearsal-started", "rehearsed")
        assert started["message"] == f"demo 1.0 for {KERNEL}: asking the kernel, in a throwaway machine"
        assert rehearsed["evidence"] == "demo: hello\ndemo: again"
        seen = bench.seen()
        assert seen.observation.rehearsed is Rehearsed.GOOD
        assert seen.answer is not None
        took = f"the kernel takes it ({seen.answer.machine}, {seen.answer.seconds:.1f} s)"
        remark = f"; {seen.answer.remark}" if seen.answer.remark else ""
        assert rehearsed["message"] == f"demo 1.0 for {KERNEL}: {took}{remark}"
        assert rehearsed["duration_usec"] == str(int(seen.answer.seconds * 1e6))

    def test_a_kernel_links_what_declines_to_start(self, bench: Bench) -> None:
        answer = Answer(Outcome.DECLINED, remark="its device is not here", machine="KVM", seconds=2.5)
        bench.builder._tell(bench.seen(), answer)
        [entry] = bench.entries()
        assert entry["message"] == f"demo 1.0 for {KERNEL}: the kernel links it (KVM, 2.5 s); its device is not here"
        assert entry["duration_usec"] == "2500000"

    def test_a_kernel_refuses(self, bench: Bench) -> None:
        says = machinetree.console(state="absent", insmod="insmod: can't insert '/modules/0.ko': Input/output error", code=1)
        machinetree.rehearsals(bench.root, says)
        assert not bench.step(Action.REHEARSE)
        _, failed = bench.entries()
        seen = bench.seen()
        assert seen.observation.rehearsed is Rehearsed.BAD
        said = seen.answer
        assert said is not None
        assert failed["event"] == "rehearsal-failed"
        assert (failed["reason"], failed["fix"]) == (said.reason, said.fix)
        assert failed.get("evidence", "") == "\n".join(said.words)
        assert failed["duration_usec"] == str(int(said.seconds * 1e6))
        assert failed["message"].startswith(f"demo 1.0 for {KERNEL}: in the rehearsal, {said.reason} ({said.machine}, ")
        attempt = bench.attempt()
        assert attempt is not None
        assert attempt.kind is Kind.REFUSED

    def test_a_kernel_that_says_otherwise_than_the_analysis(self, bench: Bench) -> None:
        says = machinetree.console(state="absent", code=1, words="demo: disagrees about version of symbol printk")
        machinetree.rehearsals(bench.root, says)
        assert not bench.step(Action.REHEARSE)
        *events, disagreement = bench.entries()
        assert [event["event"] for event in events] == ["rehearsal-started", "rehearsal-failed"]
        assert disagreement["event"] == "disagreement"
        assert disagreement["message"].endswith(f"disagree: {disagreement['reason']}")
        assert "disagrees about version of symbol printk" in disagreement["evidence"]

    def test_an_answer_that_is_none(self, bench: Bench) -> None:
        """QEMU ends at once."""
        machinetree.rehearsals(bench.root, "no accelerator\n")
        assert not bench.step(Action.REHEARSE)
        attempt = bench.attempt()
        assert attempt is not None
        assert (attempt.kind, "it was not rehearsed" in attempt.reason) == (Kind.REHEARSAL, True)
        assert attempt.evidence == ("no accelerator",)
        assert bench.told() == ["rehearsal-started", "not-rehearsed"]

    def test_asked_anew_it_is_not_answered_from_before(self, bench: Bench) -> None:
        """By hand the kernel is asked although it has said something of the same files."""
        self.answered(bench, Outcome.LOADED)
        machinetree.rehearsals(bench.root, machinetree.console(words="demo: hello"))
        seen = bench.seen()
        assert seen.subject is not None
        answer = bench.builder.rehearse(seen, seen.subject, fresh=True)
        assert (answer.outcome.good, answer.words) == (True, ("demo: hello",))
        assert bench.told() == ["rehearsal-started", "rehearsed"]


class TestLoading:
    @pytest.fixture
    def bench(self, tmp_path: Path, told: machinetree.Told) -> Bench:
        kerneltree.add(machinetree.make(tmp_path), "updates/dkms/demo.ko", GOOD)
        machinetree.write(tmp_path / "proc/modules", "")
        return Bench(tmp_path, told, load=("demo",))

    def refuse(self, bench: Bench, words: str) -> None:
        """Makes the kernel refuse the module with these words."""
        machinetree.write(bench.root / "dev/kmsg", "")
        machinetree.tell(bench.root, "modprobe -b", f'echo "3,9,1,-;demo: {words}" >>"$root/dev/kmsg"; echo no; exit 1')

    def test_what_is_loaded_is_told_and_counted(self, bench: Bench) -> None:
        for times, said in ((1, "loaded"), (2, "loaded again: somebody had unloaded it")):
            assert bench.step(Action.LOAD)
            shutil.rmtree(bench.root / "sys/module/demo")
            assert [(entry["event"], entry["message"]) for entry in bench.entries()] == [
                ("loaded", f"demo 1.0 for {KERNEL}: {said}")
            ]
            assert len(load_history.known(bench.builder.machine.places, "demo")) == times
        assert not bench.kept.exists()

    def test_a_file_may_have_another_name_than_its_module(self, bench: Bench) -> None:
        """modprobe knows the file, the kernel the module."""
        (bench.root / INSTALLED).write_bytes(kerneltree.module("other"))
        machinetree.tell(bench.root, "modprobe -b", "set -- -b -- other")
        assert bench.step(Action.LOAD)
        assert machinetree.ran(bench.root, "modprobe") == ["-b -- demo"]

    def test_it_needs_no_room(self, bench: Bench) -> None:
        machinetree.without_room(bench.root)
        assert bench.step(Action.LOAD)
        assert bench.told() == ["loaded"]
        assert not bench.builder.failures.forgetful

    def test_what_the_running_kernel_calls_another_kernels_is_wrong_once(self, bench: Bench) -> None:
        """The file is called wrong, so that it is built again; the next one that is refused is not, and that is final."""
        self.refuse(bench, "disagrees about version of symbol printk")
        assert bench.seen().observation.installed is Artefact.GOOD
        assert not bench.step(Action.LOAD)
        attempt = bench.attempt()
        assert attempt is not None
        assert (attempt.kind, attempt.loading) == (Kind.MISMATCH, True)
        assert bench.seen().observation.installed is Artefact.BAD
        (bench.root / INSTALLED).write_bytes(GOOD)
        assert bench.seen().observation.installed is Artefact.GOOD
        assert not bench.step(Action.LOAD)
        attempt = bench.attempt()
        assert attempt is not None
        assert attempt.kind is Kind.REFUSED
        assert bench.seen().observation.installed is Artefact.GOOD, "it is not built for ever"
        assert bench.told() == ["failed", "gave-up"]

    def test_what_it_refuses_otherwise_is_not_wrong(self, bench: Bench) -> None:
        self.refuse(bench, "no device here")
        assert not bench.step(Action.LOAD)
        attempt = bench.attempt()
        assert attempt is not None
        assert (attempt.kind, attempt.evidence) == (Kind.REFUSED, ("demo: no device here", "no"))
        assert bench.seen().observation.installed is Artefact.GOOD

    def test_a_failure_that_cannot_be_kept_is_told_to_who_would_start_the_next(self, bench: Bench) -> None:
        self.refuse(bench, "no device here")
        assert not bench.step(Action.LOAD)
        assert not bench.builder.failures.forgetful
        bench.kept.unlink()
        bench.kept.parent.rmdir()
        bench.kept.parent.parent.rmdir()
        machinetree.without_room(bench.root)
        assert not bench.step(Action.LOAD)
        assert bench.builder.failures.forgetful


class TestHeaders:
    @pytest.fixture
    def bench(self, tmp_path: Path, told: machinetree.Told) -> Bench:
        """Debian, without the headers."""
        machinetree.make(tmp_path)
        kerneltree.offer(tmp_path, f"linux-headers-{KERNEL}")
        (tmp_path / f"usr/src/linux-headers-{KERNEL}").rename(tmp_path / "headers")
        installs = f'cp -r "$root/headers" "$root/usr/src/linux-headers-{KERNEL}"\n'
        installs += 'echo "$DEBIAN_FRONTEND $NEEDRESTART_SUSPEND" >"$root/frontend"\n'
        machinetree.program(tmp_path / "usr/bin/apt-get", tmp_path, installs)
        return Bench(tmp_path, told, headers="install")

    def test_they_are_installed(self, bench: Bench) -> None:
        machinetree.tell(bench.root, "apt-get install", machinetree.WAIT)
        assert bench.step(Action.FETCH_HEADERS)
        assert bench.shown_at_work
        [entry] = bench.entries()
        assert (entry["event"], entry["headers"]) == ("headers-installed", f"linux-headers-{KERNEL}")
        assert machinetree.ran(bench.root, "apt-get") == [f"install -y linux-headers-{KERNEL}"]
        assert (bench.root / "frontend").read_text() == "noninteractive 1\n"

    def test_another_distribution_has_another_program(self, bench: Bench) -> None:
        (bench.root / "etc/debian_version").unlink()
        (bench.root / "usr/bin/apt-get").rename(bench.root / "usr/bin/dnf")
        assert bench.step(Action.FETCH_HEADERS)
        assert machinetree.ran(bench.root, "dnf") == [f"install -y kernel-devel-{KERNEL}"]

    def test_they_cannot_be_installed(self, bench: Bench) -> None:
        machinetree.tell(bench.root, "apt-get install", "for n in 1 2 3 4 5; do echo line $n; done; exit 100")
        assert not bench.step(Action.FETCH_HEADERS)
        attempt = bench.attempt()
        assert attempt is not None
        assert (attempt.kind, attempt.fix) == (Kind.PACKAGES, f"Run: apt install linux-headers-{KERNEL}")
        assert attempt.evidence == ("line 2", "line 3", "line 4", "line 5")

    def test_no_package_is_asked_for_that_there_is_not(self, bench: Bench) -> None:
        kerneltree.offer(bench.root, "linux-headers-amd64")
        assert not bench.step(Action.FETCH_HEADERS)
        attempt = bench.attempt()
        assert attempt is not None
        assert (attempt.kind, attempt.reason) == (
            Kind.PACKAGES,
            "the headers cannot be installed: no archive of apt's has them",
        )
        assert attempt.fix.startswith(f"Make /lib/modules/{KERNEL}/build lead to the headers of {KERNEL}")
        assert machinetree.ran(bench.root, "apt-get") == []
