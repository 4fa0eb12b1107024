# SPDX-License-Identifier: GPL-2.0-or-later
"""What a repair does, in which order, what it takes back, and what it says of itself."""

from __future__ import annotations

import argparse
import json
import os
import signal
from typing import TYPE_CHECKING

import elf
import kerneltree
import machinetree
import pytest
from repairtree import BASE, BUILDABLE, GONE, OTHER, RUNS, K, override, plan, status

from knetstatd.core import config, names
from knetstatd.core.errors import KnetstatdError, UsageError
from knetstatd.core.model import Attempt, Kind
from knetstatd.repair import apply, find, repairs
from knetstatd.state import attempts
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

pytestmark = pytest.mark.spawns  # dpkg-query says whose a file is


@pytest.mark.parametrize("path", ["/etc/passwd", "/var/lib/dkms/../x", "/lib/modules"])
def test_nothing_else_is_ever_deleted(tree: Make, path: str) -> None:
    root = tree({**BASE, "etc/passwd": "", "var/lib/x": ""})
    machine = Machine(root, config.Config(modules=()))
    with pytest.raises(AssertionError):
        apply.carry_out(machine, repairs.Repair("x", "x", "x", "x", (repairs.Delete(path),)), ())


def test_a_link_is_deleted_and_not_what_it_leads_to(tree: Make) -> None:
    root = tree({**BASE, "var/lib/dkms/m/kernel-x": "-> /usr/src/m-1"})
    machine = Machine(root, config.Config(modules=()))
    apply.carry_out(machine, repairs.Repair("x", "x", "x", "x", (repairs.Delete("/var/lib/dkms/m/kernel-x"),)), ())
    assert not os.path.lexists(root / "var/lib/dkms/m/kernel-x")
    assert (root / "usr/src/m-1/dkms.conf").exists()


@pytest.mark.parametrize(
    ("dkms", "end", "raises"),
    [
        ("", None, KnetstatdError),
        ("#!/bin/sh\necho no\nexit 1\n", None, KnetstatdError),
        ("#!/bin/sh\nexec /bin/sleep 30\n", signal.SIGINT, KeyboardInterrupt),
        ("#!/bin/sh\nexec /bin/sleep 30\n", signal.SIGTERM, SystemExit),
        ("#!/bin/sh\nexec /bin/sleep 30\n", signal.SIGHUP, SystemExit),
    ],
    ids=["gone", "fails", "Ctrl-C", "stop", "no terminal"],
)
def test_no_override_stays_that_was_not_proven(
    tree: Make, dkms: str, end: signal.Signals | None, raises: type[BaseException]
) -> None:
    root = tree({**RUNS, **BUILDABLE, "bin/": ""})
    machine, found = override(root)
    assert found is not None
    found = found._replace(acts=found.acts[1:])  # without it a build was wrong
    if dkms:
        tree({"bin/dkms": dkms})
        (root / "bin/dkms").chmod(0o755)

    def tick() -> None:
        assert (root / "etc/dkms/m-1.conf").exists()
        if end is not None:
            os.kill(os.getpid(), end)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in the background has it ignored
    try:
        with pytest.raises(raises) as e:
            apply.carry_out(machine, found, (), tick)
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert ("taken back: no" in str(e.value)) is ("echo" in dkms)
    assert os.listdir(root / "etc/dkms") == []
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


class Typist:
    """A terminal whose user says yes to everything; something happens before each answer."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        self.meanwhile()
        return "y\n"


PACKAGED = {
    f"usr/lib/modules/{GONE}/kernel/fs/a.ko": "packaged",
    f"boot/vmlinuz-{GONE}": "",
    f"var/lib/dpkg/info/linux-image-{GONE}.list": f"/.\n/usr/lib/modules/{GONE}/kernel/fs/a.ko\n",
    "var/lib/dpkg/status": status("base", f"linux-image-{GONE}"),
}


@pytest.mark.parametrize(
    ("meanwhile", "code", "said", "left"),
    [
        ({}, 0, f"delete /lib/modules/{GONE}: done", []),
        (PACKAGED, 0, "not needed any more: it has gone by itself", ["kernel", "updates"]),
        ({f"usr/lib/modules/{GONE}/updates/n.ko": "x"}, 1, "it is not what was shown any more; run repair", ["updates"]),
    ],
    ids=["nothing", "the kernel is installed", "a file more"],
)
def test_what_happens_while_it_asks(
    tree: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    meanwhile: dict[str, str],
    code: int,
    said: str,
    left: list[str],
) -> None:
    """A yes is to what was shown."""
    root = tree({
        **BASE, f"usr/lib/modules/{GONE}/updates/m.ko": "x", "run/": "", "proc/": "", "var/lib/knetstatd/": "", "etc/": "",
    })  # fmt: skip

    def change() -> None:
        for name, text in meanwhile.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    monkeypatch.setattr("sys.stdin", Typist(change))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    machine = Machine(root, config.Config(modules=()))
    machine.refresh()
    arguments = argparse.Namespace(all=True, json=False, yes=False, dry_run=False)
    assert apply.command(arguments, machine, [])[0] == code
    assert said in capsys.readouterr().out
    place = root / f"usr/lib/modules/{GONE}"
    assert (sorted(os.listdir(place)) if place.exists() else []) == left


def test_all_is_shown() -> None:
    acts = (
        repairs.Run(("dpkg", "--configure", "linux-image"), hold=True),
        repairs.Delete("/var/lib/dkms/x", "what was built"),
        repairs.Write("/etc/dkms/m.conf", "a\nb\n"),
        repairs.Prove("m", "1", K),
    )
    text = "\n".join(apply.lines(repairs.Repair("x", "x", "what", "why\x1b", acts), 1))
    assert text.startswith("1. what\n   because why?\n")
    hold = "dpkg --configure linux-image  (meanwhile /etc/dkms/no-autoinstall keeps"
    for words in (hold, "delete  /var/lib/dkms/x  (what was built)", "| a\n", "| b\n", f"m/1 -k {K}"):
        assert words in text
    assert all(names.clean(line) == line for line in text.splitlines())


def repair(*acts: repairs.Run | repairs.Delete | repairs.Write | repairs.Prove, kind: str = "x") -> repairs.Repair:
    return repairs.Repair(kind, "m", "what", "why", acts)


@pytest.fixture
def root(tree: Make) -> Path:
    """A machine with programs."""
    made = tree({**RUNS, **BUILDABLE, "ran/": "", "told/": "", "etc/": ""})
    for name in ("usr/bin/dpkg", "usr/sbin/depmod", "usr/sbin/dkms"):
        machinetree.program(made / name, made, "")
    return made


def machine(root: Path) -> Machine:
    made = Machine(root, config.Config(modules=()))
    made.refresh()
    return made


def test_programs_run_with_the_switch_where_that_is_asked_for(root: Path) -> None:
    switch = root / repairs.HOLD[1:]
    for hold in (True, False):
        does = f'ls "{switch}" >"$root/there" 2>&1; echo "$DEBIAN_FRONTEND" >"$root/frontend"'
        machinetree.tell(root, "dpkg --configure", does)
        apply.carry_out(machine(root), repair(repairs.Run(("dpkg", "--configure", "linux-image"), hold=hold)), ())
        assert ("No such file" not in (root / "there").read_text()) is hold
        assert not switch.exists()
    assert machinetree.ran(root, "dpkg") == ["--configure linux-image"] * 2
    assert (root / "frontend").read_text() == "noninteractive\n"


def test_the_administrators_own_switch_stays(root: Path) -> None:
    switch = machinetree.write(root / repairs.HOLD[1:], "mine")
    apply.carry_out(machine(root), repair(repairs.Run(("dpkg", "--configure", "x"), hold=True)), ())
    assert switch.read_text() == "mine"


def test_a_program_that_fails_ends_the_repair(root: Path) -> None:
    machinetree.tell(root, "dpkg --configure", "echo 'broken hook'; exit 1")
    acts = (repairs.Run(("dpkg", "--configure", "x"), hold=True), repairs.Run(("depmod", K)))
    with pytest.raises(KnetstatdError, match="ended with 1:\n  broken hook"):
        apply.carry_out(machine(root), repair(*acts), ())
    assert not (root / repairs.HOLD[1:]).exists()
    assert machinetree.ran(root, "depmod") == []


def test_knetstatctl_is_started_as_it_was_itself(root: Path) -> None:
    machinetree.program(root / "usr/bin/ours", root, "")
    apply.carry_out(machine(root), repair(repairs.Run(("knetstatctl", "build", K), ours=True)), ("ours", "-x"))
    assert machinetree.ran(root, "ours") == [f"-x build {K}"]


@pytest.mark.parametrize("plain", [OTHER, K])
@pytest.mark.parametrize("release", [OTHER, K])
def test_an_override_stays_if_it_is_needed_and_helps(root: Path, plain: str, release: str) -> None:
    """A plain build is tried, with it and without it; and then the failures without it are forgotten."""
    made, planned = override(root)
    assert planned is not None
    for name, is_for in (("without", plain), ("with", release)):
        machinetree.write(root / f"{name}.ko", elf.module("m", vermagic=f"{is_for} SMP "))
    place = f"$9/m/1/{OTHER}/x86_64/module"
    which = f'name=without; [ -e "$root/etc/dkms/m-1.conf" ] && name=with; cp "$root/$name.ko" "{place}/m.ko"'
    machinetree.tell(root, "dkms build", f'mkdir -p "{place}"; {which}')
    attempts.save(root, made.places, K, "m", "1", "mark", Attempt(Kind.WRONG_KERNEL, 1))
    if plain == K and release == K:
        with pytest.raises(KnetstatdError, match=f"it was taken back: m.ko is for {K}, not {OTHER}"):
            apply.carry_out(made, planned, ())
    else:
        apply.carry_out(made, planned, ())
    made.refresh()
    left = plain == K and release == OTHER
    assert (root / "etc/dkms/m-1.conf").exists() is left
    assert len(machinetree.ran(root, "dkms")) == (1 if plain == OTHER else 2)
    assert all(line.startswith(f"build -m m -v 1 -k {OTHER} --dkmstree ") for line in machinetree.ran(root, "dkms"))
    if plain == OTHER:
        assert find.outcome(made, "m") == ""
        assert override(root)[1] is None, "and it is not tried again"
    else:
        assert made.places.attempt(K, "m").exists() is not left


class TestCommand:
    @pytest.fixture(autouse=True)
    def as_root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)

    @pytest.fixture
    def root(self, tree: Make) -> Path:
        """Two things to repair."""
        return tree({
            **BASE, f"var/lib/dkms/m/1/{K}/x86_64/log/make.log": "", f"usr/lib/modules/{GONE}/": "", "run/": "", "proc/": "",
            "var/lib/knetstatd/": "",
        })  # fmt: skip

    def command(self, root: Path, *kernels: str, **chosen: bool) -> tuple[int, dict[str, str]]:
        """The exit status, and how each repair ended."""
        arguments = argparse.Namespace(**{"all": True, "json": True, "yes": False, "dry_run": False, **chosen})
        code, document = apply.command(arguments, machine(root), kernels)
        json.dumps(document)
        return code, {row["kind"]: row["outcome"] for row in document["repairs"]}

    def test_all_is_done(self, root: Path) -> None:
        assert self.command(root, yes=True) == (0, {"stuck": "done", "orphan": "done"})
        assert plan(root) == {}
        assert self.command(root, yes=True) == (0, {})

    def test_only_what_concerns_a_kernel(self, root: Path) -> None:
        assert self.command(root, K, all=False, yes=True) == (0, {"stuck": "done"})
        assert (root / f"usr/lib/modules/{GONE}").exists()
        with pytest.raises(UsageError, match="no kernel to boot next"):
            self.command(root, all=False)

    @pytest.mark.parametrize("chosen", [{}, {"dry_run": True, "yes": True}])
    def test_nothing_is_done(self, root: Path, chosen: dict[str, bool]) -> None:
        assert self.command(root, **chosen) == (1, {"stuck": "to do", "orphan": "to do"})
        assert list(plan(root)) == ["stuck", "orphan"]

    def test_who_may_not(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(KnetstatdError, match="repairing needs root"):
            self.command(root, yes=True)

    def test_while_packages_change_nothing_is_even_planned(self, root: Path) -> None:
        lock = root / "var/lib/dpkg/lock-frontend"
        lock.symlink_to(lock)  # whether it is held cannot be known: that counts as held
        with pytest.raises(KnetstatdError, match="what is half done now may be whole in a moment"):
            self.command(root, yes=True)

    @pytest.mark.parametrize(
        ("does", "why"),
        [("exit 0", "it was done, and the fault is still there"), ("echo no; exit 1", f"depmod {K}: ended with 1:\n  no")],
    )
    def test_what_helps_nothing_has_failed(self, root: Path, does: str, why: str) -> None:
        """The others are done all the same."""
        machinetree.write(root / f"usr/lib/modules/{K}/updates/n.ko", "x")
        (root / "ran").mkdir()
        machinetree.program(root / "usr/sbin/depmod", root, does)
        code, ended = self.command(root, yes=True)
        assert code == 1
        assert ended["depmod"] == f"failed: {why}"
        assert ended["stuck"] == ended["orphan"] == "done"

    @pytest.mark.parametrize(
        ("does", "ends", "outcome"),
        [
            ('cp "$root/made/demo.ko" "{tree}/updates/dkms"', 0, "done"),
            ('cp "$root/made/demo.ko" "{tree}/updates/dkms"', 1, "done"),  # its status is that of the whole kernel
            ('cp "$root/kept.json" "{kept}"', 1, "failed: it has failed for good: its source does not compile"),
            ('echo no', 1, "failed: knetstatctl build {kernel} --module=demo: ended with 1:\n  no"),
            ('rm "$root/var/lib/dkms/demo/1.0/source"; echo no', 1,
             "failed: knetstatctl build {kernel} --module=demo: ended with 1:\n  no"),
        ],
        ids=["built", "the kernel is half-configured", "for good", "for now", "its package is gone"],
    )  # fmt: skip
    def test_a_build_is_done_if_the_module_is_there(self, tmp_path: Path, does: str, ends: int, outcome: str) -> None:
        tree, kernel = machinetree.make(tmp_path), machinetree.KERNEL
        kerneltree.add(tree, "updates/dkms/demo.ko", machinetree.GOOD).unlink()
        made = machinetree.machine(tmp_path)
        kept = made.places.attempt(kernel, "demo")
        attempt = Attempt(Kind.COMPILE, 1, reason="its source does not compile", fix="Mend it")
        attempts.save(tmp_path, made.places, kernel, "demo", "1.0", machinetree.look(made).fingerprint, attempt)
        kept.rename(tmp_path / "kept.json")
        words = does.format(tree=tree, kept=kept)
        machinetree.program(tmp_path / "usr/bin/ours", tmp_path, f"{words}; exit {ends}")
        arguments = argparse.Namespace(all=True, json=True, yes=True, dry_run=False)
        code, document = apply.command(arguments, made, (), ("ours",))
        row = next(row for row in document["repairs"] if row["kind"] == "build")
        assert row["outcome"] == outcome.format(kernel=kernel)
        assert code == (outcome != "done")
        if "for good" in outcome:  # nor is it nothing to repair when it is asked for again
            made.refresh()
            code, document = apply.command(arguments, made, (), ("ours",))
            (row,) = document["repairs"]
            assert (code, row["outcome"], row["acts"]) == (1, "to do", [{"act": "advise", "text": "Mend it"}])
            assert len(machinetree.ran(tmp_path, "ours")) == 1
