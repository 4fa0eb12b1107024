# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatd.machine.loaded_modules, on a tree that looks like a running machine's"""

from __future__ import annotations

import os
import shutil
import struct
import threading
from typing import TYPE_CHECKING

import kerneltree
import pytest
from machinetree import write

from knetstatd.core.config import Config
from knetstatd.core.events import Event
from knetstatd.core.model import Attempt, Kind, Loaded, Observation, Proof, Why
from knetstatd.daemon.announce import Teller
from knetstatd.formats.knetstat_proc import TCP_HEADER, UDP_HEADER
from knetstatd.machine.loaded_modules import Live
from knetstatd.system.journal import Journal
from knetstatd.verdict import judge
from knetstatd.verdict.observe import Machine, Seen

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"tcpstat": TCP_HEADER, "tcp6stat": TCP_HEADER, "udpstat": UDP_HEADER, "udp6stat": UDP_HEADER}


class Heard(Journal):
    """A journal that only remembers."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.entries: list[tuple[Event, str]] = []

    def log(self, event: Event, message: str, **fields: object) -> None:
        self.entries.append((event, message))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/modules").touch()
    for name, header in FILES.items():
        (tmp_path / "proc/net" / name).write_text(header + "\n")
    return tmp_path


def load(root: Path, name: str, srcversion: str = "ABC", state: str = "live") -> None:
    place = root / "sys/module" / name
    place.mkdir(parents=True)
    if srcversion:
        (place / "srcversion").write_text(f"{srcversion}\n")
    (place / "initstate").write_text(f"{state}\n")


def boots(root: Path) -> None:
    """A kernel that can be booted, for which dkms has built and installed knetstat."""
    tree, kernel = kerneltree.make(root), kerneltree.KERNEL
    module = kerneltree.module("knetstat", info={"srcversion": "ABC"})
    kerneltree.add(tree, "updates/dkms/knetstat.ko", module)
    write(root / f"boot/vmlinuz-{kernel}", "image")
    conf = 'PACKAGE_NAME="knetstat"\nPACKAGE_VERSION="1"\nBUILT_MODULE_NAME[0]="knetstat"\nDEST_MODULE_LOCATION[0]="/updates"\n'
    os.utime(write(root / "usr/src/knetstat-1/dkms.conf", conf), (1e9, 1e9))
    write(root / f"var/lib/dkms/knetstat/1/{kernel}/x86_64/module/knetstat.ko", module)
    (root / "var/lib/dkms/knetstat/1/source").symlink_to("/usr/src/knetstat-1")
    (root / f"var/lib/dkms/knetstat/kernel-{kernel}-x86_64").symlink_to(f"1/{kernel}/x86_64")


def unload(root: Path, name: str) -> None:
    # As on sysfs, the next one does not get the same inode.
    (root / "sys/module" / name).rename(root / f"gone-{len(list(root.iterdir()))}")


def installed(root: Path, *modules: str) -> tuple[tuple[str, Proof], ...]:
    return tuple((name, Proof(f"{root}/{name}.ko", (), "ABC")) for name in modules)


def test_loaded_and_works(root: Path) -> None:
    load(root, "knetstat")
    assert Live(root).look(installed(root, "knetstat"), wanted=True) == (Loaded.CURRENT, "")


def test_not_loaded(root: Path) -> None:
    assert Live(root).look(installed(root, "knetstat"), wanted=True) == (Loaded.NO, "")
    assert Live(root).look(installed(root, "knetstat"), wanted=False) == (Loaded.NOT_HERE, "")


def test_what_is_not_installed_is_not_loaded(root: Path) -> None:
    assert Live(root).look((), wanted=True) == (Loaded.NO, "")
    assert Live(root).look((), wanted=False) == (Loaded.NOT_HERE, "")


@pytest.mark.parametrize("change", ["container", "no modules"])
def test_a_kernel_that_cannot_load(root: Path, change: str) -> None:
    if change == "container":
        (root / "run/systemd").mkdir(parents=True)
        (root / "run/systemd/container").touch()
    else:
        (root / "proc/modules").unlink()
    assert Live(root).look(installed(root, "knetstat"), wanted=True) == (Loaded.NOT_HERE, "")


def test_another_copy_is_loaded(root: Path) -> None:
    """That is what must be told: its cure is the same, and the files of another copy prove nothing of this one."""
    load(root, "knetstat", "OLD")
    (root / "proc/net/tcpstat").unlink()
    assert Live(root).look(installed(root, "knetstat"), wanted=True) == (Loaded.OUTDATED, "knetstat")


def test_which_of_several_are_outdated(root: Path) -> None:
    """Named so that `modprobe -r` can take them out: those of the package that use one go before it."""
    for name, srcversion in (("base", "ABC"), ("mid", "OLD"), ("top", "ABC"), ("other", "OLD")):
        load(root, name, srcversion)
    for name, users in (("base", ("mid", "top")), ("mid", ("somebody_elses", "top"))):
        for user in users:
            (root / "sys/module" / name / "holders" / user).mkdir(parents=True)
    of = installed(root, "base", "mid", "other", "top")
    assert Live(root).look(of, wanted=True) == (Loaded.OUTDATED, "top mid other")
    (root / "sys/module/base/srcversion").write_text("OLD\n")
    assert Live(root).look(of, wanted=True) == (Loaded.OUTDATED, "top mid base other")


@pytest.mark.parametrize(
    ("outdated", "cure"),
    [
        ("kt_user", "modprobe -r kt_user && modprobe kt_user"),
        ("kt_base", "modprobe -r kt_user kt_base && modprobe -a kt_user kt_base"),
    ],
)
def test_the_cure_names_the_outdated_one(root: Path, outdated: str, cure: str) -> None:
    tree = kerneltree.make(root)
    conf = 'PACKAGE_NAME="kt"\nPACKAGE_VERSION="1.0"\n'
    for number, name in enumerate(("kt_base", "kt_user")):
        conf += f'BUILT_MODULE_NAME[{number}]="{name}"\nDEST_MODULE_LOCATION[{number}]="/updates"\n'
        kerneltree.add(tree, f"updates/{name}.ko", kerneltree.module(name, info={"srcversion": "ABC"}))
        load(root, name, "OLD" if name == outdated else "ABC")
    (root / "sys/module/kt_base/holders/kt_user").mkdir(parents=True)
    (root / "boot" / f"vmlinuz-{kerneltree.KERNEL}").write_text("image")
    (root / "usr/src/kt-1.0").mkdir()
    (root / "usr/src/kt-1.0/dkms.conf").write_text(conf)
    (root / "var/lib/dkms/kt/1.0").mkdir(parents=True)
    (root / "var/lib/dkms/kt/1.0/source").symlink_to("/usr/src/kt-1.0")
    machine = Machine(root, Config(modules=("kt",), load=("kt",)))
    machine.running = kerneltree.KERNEL
    machine.refresh()
    seen = machine.observe(machine.look(kerneltree.KERNEL), "kt")
    verdict = judge.verdict(machine, seen, machine.plan(seen, 1000.0))
    assert (verdict.ready, verdict.state) == (True, "loaded-outdated")
    assert verdict.fix == cure


@pytest.mark.parametrize(("loaded", "file"), [("", "ABC"), ("ABC", "")])
def test_only_one_of_both_tells_of_its_source(root: Path, loaded: str, file: str) -> None:
    load(root, "kt", loaded)
    assert Live(root).look((("kt", Proof("/kt.ko", (), file)),), wanted=True)[0] is Loaded.OUTDATED


@pytest.mark.parametrize(
    ("loaded", "file", "answer"),
    [
        ("aaaa", "aaaa", Loaded.CURRENT),
        ("bbbb", "aaaa", Loaded.OUTDATED),
        ("bbbb", "", Loaded.CURRENT),
        ("", "aaaa", Loaded.CURRENT),
    ],
)
def test_without_a_source_the_builds_are_compared(root: Path, loaded: str, file: str, answer: Loaded) -> None:
    """Most modules have no MODULE_VERSION, and with it no srcversion; what nobody tells is no difference."""
    load(root, "kt", "")
    if loaded:
        notes = root / "sys/module/kt/notes"
        notes.mkdir()
        head = struct.pack("<3I4s", 4, len(loaded) // 2, 3, b"GNU")
        (notes / ".note.gnu.build-id").write_bytes(head + bytes.fromhex(loaded))
    assert Live(root).look((("kt", Proof("/kt.ko", (), build_id=file)),), wanted=True)[0] is answer


def test_the_probe_fails(root: Path) -> None:
    load(root, "knetstat")
    (root / "proc/net/tcpstat").write_text(UDP_HEADER + "\n")
    (root / "proc/net/udp6stat").unlink()
    answer, faults = Live(root).look(installed(root, "knetstat"), wanted=False)
    assert answer is Loaded.FAULTY
    assert faults.startswith("/proc/net/tcpstat: line 1, column 63: expected the header, found ")
    assert faults.endswith("; /proc/net/udp6stat: No such file or directory")


def test_the_probe_sees_the_machines_sockets(root: Path) -> None:
    """The daemon is in a network namespace of its own, where there are none."""
    load(root, "knetstat")
    shutil.copytree(root / "proc/net", root / "proc/1/net")
    assert Live(root).look(installed(root, "knetstat"), wanted=True) == (Loaded.CURRENT, "")
    (root / "proc/1/net/udpstat").write_text(UDP_HEADER + "\nnonsense\n")
    answer, faults = Live(root).look(installed(root, "knetstat"), wanted=True)
    assert answer is Loaded.FAULTY
    assert faults.startswith("/proc/1/net/udpstat: line 2, column 1: ")


def test_only_knetstat_has_a_probe(root: Path) -> None:
    for name in FILES:
        (root / "proc/net" / name).unlink()
    load(root, "other")
    assert Live(root).look(installed(root, "other"), wanted=True) == (Loaded.CURRENT, "")


def test_probed_once_for_each_loading(root: Path) -> None:
    live, files = Live(root), installed(root, "knetstat")
    load(root, "knetstat")
    assert live.look(files, wanted=True) == (Loaded.CURRENT, "")
    (root / "proc/net/tcpstat").unlink()
    assert live.look(files, wanted=True) == (Loaded.CURRENT, ""), "not asked again"
    unload(root, "knetstat")
    assert live.look(files, wanted=True) == (Loaded.NO, "")
    load(root, "knetstat")
    assert live.look(files, wanted=True)[0] is Loaded.FAULTY
    (root / "proc/net/tcpstat").write_text(TCP_HEADER + "\n")
    assert live.look(files, wanted=True) == (Loaded.CURRENT, ""), "a fault is not kept"


@pytest.mark.parametrize("state", ["coming", "going"])
def test_a_module_that_is_not_live_is_not_probed(root: Path, state: str) -> None:
    load(root, "knetstat", state=state)
    (root / "proc/net/tcpstat").unlink()
    assert Live(root).look(installed(root, "knetstat"), wanted=True) == (Loaded.NO, "")


def test_a_module_that_goes_during_the_probe_is_not_faulty(root: Path) -> None:
    load(root, "knetstat")
    path = root / "proc/net/tcpstat"
    path.unlink()
    os.mkfifo(path)

    def go() -> None:
        with path.open("w") as file:
            unload(root, "knetstat")
            file.write("half a line")

    thread = threading.Thread(target=go)
    thread.start()
    assert Live(root).look(installed(root, "knetstat"), wanted=True) == (Loaded.CURRENT, "")
    thread.join()


def test_from_the_probe_to_the_journal(root: Path) -> None:
    """A machine that has booted into its kernel with the module, which is in, and one of whose files is another's."""
    boots(root)
    load(root, "knetstat")
    (root / "proc/net/udpstat").write_text("mine\n")
    machine = Machine(root, Config())
    machine.running = kerneltree.KERNEL
    machine.refresh()
    seen = machine.observe(machine.look(kerneltree.KERNEL), "knetstat")
    step = machine.plan(seen, 1000.0)
    verdict = judge.verdict(machine, seen, step)
    fault = "/proc/net/udpstat: line 1, column 1: expected the header, found 'mine'"
    cure = "modprobe -r knetstat && modprobe knetstat"
    # The file is good, the next boot will load it, and it will not work then either.
    assert (step.why, verdict.ready, verdict.progress, verdict.state) == (Why.FAULTY, False, False, "loaded-faulty")
    assert (verdict.reason, verdict.fix) == (f"the running kernel has it loaded, and it does not work: {fault}", cure)
    heard = Heard()
    teller = Teller(heard)
    for _ in range(2):
        teller.verdict(verdict, seen, step)
    [(event, message)] = heard.entries
    assert (event, event.priority) == (Event.FAULTY, 3)
    assert message == f"knetstat 1 for {kerneltree.KERNEL} (next, running): {verdict.state}: {verdict.reason}"


def test_a_module_whose_init_hangs_or_has_died_is_not_loaded(root: Path) -> None:
    load(root, "kt", state="coming")
    proof = Proof("", (), srcversion="ABC")
    assert Live(root).look((("kt", proof),), wanted=True)[0] is Loaded.NO
    unload(root, "kt")
    load(root, "kt")
    assert Live(root).look((("kt", proof),), wanted=True)[0] is Loaded.CURRENT


def test_a_failure_is_told_by_the_teller_only_where_it_was_found(root: Path) -> None:
    """Whatever the clock says: the builder tells of those that happen while the daemon runs."""
    machine = Machine(root, Config())

    def outcome(*attempts: Attempt | None) -> list[str]:
        teller = Teller(heard := Heard())
        for attempt in attempts:
            seen = Seen(Observation("kt", kerneltree.KERNEL, attempt=attempt))
            step = machine.plan(seen, 1000.0)
            teller.verdict(judge.verdict(machine, seen, step), seen, step)
        return [message.rpartition(": ")[2] for _, message in heard.entries]

    for when in (0.0, 4e9):  # before the daemon started, and after, by a clock that was set
        failed = Attempt(Kind.COMPILE, 1, reason="line 3", when=when)
        again = failed._replace(times=2, reason="line 4")
        assert outcome(failed, failed) == ["line 3"]
        assert outcome(None, failed) == []
        assert outcome(failed, None, again, failed) == ["line 3", "line 3"]


@pytest.mark.parametrize(("kind", "ready", "state"), [(Kind.REFUSED, False, "failed"), (Kind.DENIED, True, "ready-not-loaded")])
def test_what_the_running_kernel_has_refused_is_not_ready(root: Path, kind: Kind, ready: bool, state: str) -> None:
    """Whatever the analysis says. What only modprobe's configuration keeps out is good."""
    boots(root)
    machine = Machine(root, Config(load=("knetstat",)))
    machine.running = kerneltree.KERNEL
    machine.refresh()
    seen = machine.observe(machine.look(kerneltree.KERNEL), "knetstat")
    assert judge.verdict(machine, seen, machine.plan(seen, 1000.0)).ready
    seen = seen._replace(observation=seen.observation._replace(attempt=Attempt(kind, 1, reason="its init fails", loading=True)))
    verdict = judge.verdict(machine, seen, machine.plan(seen, 1000.0))
    assert (verdict.ready, verdict.state, verdict.reason) == (ready, state, "its init fails")
