# SPDX-License-Identifier: GPL-2.0-or-later
"""What may be deleted, and what is shown before it is; that repairs repair is shown in the containers."""

from __future__ import annotations

import argparse
import os
import signal
from typing import TYPE_CHECKING

import pytest

from knetstatd.core import config, names
from knetstatd.core.errors import KnetstatdError
from knetstatd.machine import dkms_tree
from knetstatd.repair import apply, find
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

pytestmark = pytest.mark.spawns  # dpkg-query says whose a file is


def status(*packages: str) -> str:
    """dpkg's status of packages that are installed."""
    fields = "Status: install ok installed\nMaintainer: m\nArchitecture: all\nVersion: 1\nDescription: d\n"
    return "\n".join(f"Package: {name}\n{fields}" for name in packages)


K, GONE = "6.1.0-9-amd64", "6.1.0-8-amd64"
CONF = 'PACKAGE_NAME="m"\nPACKAGE_VERSION="1"\nBUILT_MODULE_NAME[0]="m"\nDEST_MODULE_LOCATION[0]="/updates"\n'
BASE = {
    "lib": "-> usr/lib",
    f"usr/lib/modules/{K}/modules.builtin": "",
    f"usr/lib/modules/{K}/modules.dep": "kernel/a.ko:\n",
    f"boot/vmlinuz-{K}": "",
    "usr/src/m-1/dkms.conf": CONF,
    "var/lib/dkms/m/1/source": "-> /usr/src/m-1",
    "proc/self/mountinfo": "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
    "var/lib/dpkg/status": status("base"),
    "var/lib/dpkg/info/base.list": "/.\n/bin/sh\n",
}


def plan(root: Path, kernel: str | None = None, guarded: tuple[str, ...] = ()) -> dict[str, find.Repair]:
    machine = Machine(root, config.Config(modules=guarded))
    machine.refresh()
    return {found.kind: found for found in find.plan(machine, kernel)}


def test_nothing_is_wrong(tree: Make) -> None:
    assert plan(tree(BASE)) == {}


def test_what_dkms_does_not_get_rid_of(tree: Make) -> None:
    root = tree({
        **BASE,
        f"var/lib/dkms/m/1/{K}/x86_64/log/make.log": "",
        f"var/lib/dkms/m/1/{K}/.tmp_x86_64_a/": "",
        f"var/lib/dkms/m/1/{GONE}/x86_64/module/m.ko": "",
        f"var/lib/dkms/m/kernel-{GONE}-x86_64": f"-> 1/{GONE}/x86_64",
        "var/lib/dkms/gone/1/source": "-> /usr/src/gone-1",
    })  # fmt: skip
    found = plan(root)
    assert list(found) == ["source", "dead-kernel", "stuck", "leftover"]
    assert found["stuck"].acts == (find.Delete(f"/var/lib/dkms/m/1/{K}/x86_64"),)
    assert [act.path for act in found["dead-kernel"].acts if isinstance(act, find.Delete)] == [
        f"/var/lib/dkms/m/1/{GONE}", f"/var/lib/dkms/m/kernel-{GONE}-x86_64",
    ]  # fmt: skip
    assert list(plan(root, K)) == ["source", "stuck", "leftover"]
    machine = Machine(root, config.Config(modules=()))
    machine.refresh()
    for one in found.values():
        apply.carry_out(machine, one, ())
    assert plan(root) == {}
    assert sorted(os.listdir(root / "var/lib/dkms")) == ["m"]
    assert sorted(os.listdir(root / "var/lib/dkms/m")) == ["1"]
    assert (root / "usr/src/m-1/dkms.conf").exists()


def test_a_source_of_a_package(tree: Make) -> None:
    root = tree({
        **BASE,
        "var/lib/dkms/gone/1/source": "-> /usr/src/gone-1",
        "var/lib/dpkg/info/gone-dkms.list": "/.\n/usr/src/gone-1/dkms.conf\n",
        "var/lib/dpkg/status": status("base", "gone-dkms"),
    })  # fmt: skip
    assert plan(root)["source"].acts == (find.Run(("apt-get", "install", "--reinstall", "-y", "gone-dkms")),)


def test_a_source_that_our_services_do_not_see_is_not_gone(tree: Make) -> None:
    root = tree({**BASE, "home/dev/h-1/dkms.conf": CONF, "var/lib/dkms/h/1/source": "-> /home/dev/h-1"})
    assert dkms_tree.registered(root).packages["h"].highest.broken
    assert plan(root) == {}


def test_an_unlisted_module(tree: Make) -> None:
    names = ("m.ko", "m.ko.bak", "link.ko")
    root = tree({**BASE, **{f"usr/lib/modules/{K}/updates/dkms/{name}": "" for name in names[:2]}})
    (root / f"usr/lib/modules/{K}/updates/dkms/{names[2]}").symlink_to("nowhere")
    assert plan(root)["depmod"].acts == (find.Run(("depmod", K)),)
    (root / f"usr/lib/modules/{K}/modules.dep").write_text("updates/dkms/m.ko:\n")
    assert plan(root) == {}


@pytest.mark.parametrize(
    ("more", "orphan"),
    [
        ({f"usr/lib/modules/{GONE}/updates/dkms/m.ko": "", f"usr/lib/modules/{GONE}/modules.dep": ""}, True),
        ({f"usr/lib/modules/{GONE}/": ""}, True),
        ({f"usr/lib/modules/{GONE}/kernel/a.ko": ""}, False),
        ({f"usr/lib/modules/{GONE}/extra/a.ko": ""}, False),
        ({f"usr/lib/modules/{GONE}/modules.builtin": "", f"usr/lib/modules/{GONE}/modules.dep": ""}, False),
        ({f"usr/lib/modules/{GONE}/README": ""}, False),
        ({f"usr/lib/modules/{GONE}/modules.dep": "",
          "proc/self/mountinfo": f"22 21 8:1 /x ROOT/usr/lib/modules/{GONE} rw - ext4 /dev/sda1 rw\n"}, False),
        ({f"usr/lib/modules/{GONE}/build": "-> /x", "var/lib/dpkg/status": status("base", "h"),
          "var/lib/dpkg/info/h.list": f"/.\n/lib/modules/{GONE}/build\n"}, False),
        ({f"usr/lib/modules/{GONE}/": "", "var/lib/dpkg/status": status("base", "lost")}, False),
        ({f"usr/lib/modules/{GONE}/modules.dep": "", f"boot/vmlinuz-{GONE}": "", f"usr/lib/modules/{GONE}/kernel/": ""}, False),
    ],
)
def test_orphans(tree: Make, more: dict[str, str], orphan: bool) -> None:
    root = tree({**BASE, **more})
    mounts = root / "proc/self/mountinfo"
    mounts.write_text(mounts.read_text().replace("ROOT", str(root)))
    found = plan(root)
    assert ("orphan" in found) is orphan
    if orphan:
        assert found["orphan"].acts[0][0] == f"/lib/modules/{GONE}"
        machine = Machine(root, config.Config(modules=()))
        apply.carry_out(machine, found["orphan"], ())
        assert os.listdir(root / "usr/lib/modules") == [K]


def test_without_a_package_manager_nothing_is_an_orphan(tree: Make) -> None:
    root = tree({**BASE, f"usr/lib/modules/{GONE}/": ""})
    (root / "var/lib/dpkg/status").unlink()
    assert plan(root) == {}


@pytest.mark.parametrize(("says", "orphan"), [("is not owned by any package", True), ("kernel-core", False), ("", False)])
def test_rpm_is_asked(tree: Make, says: str, orphan: bool) -> None:
    root = tree({
        **BASE, f"usr/lib/modules/{GONE}/modules.dep": "",
        "bin/rpm": f'#!/bin/sh\n[ "$1" = -qf ] && shift\nfor f; do echo "file $f {says}"; done\nexit 1\n',
    })  # fmt: skip
    (root / "bin/rpm").chmod(0o755)
    (root / "var/lib/dpkg/status").unlink()
    assert ("orphan" in plan(root)) is orphan


@pytest.mark.parametrize("path", ["/etc/passwd", "/var/lib/dkms/../x", "/lib/modules"])
def test_nothing_else_is_ever_deleted(tree: Make, path: str) -> None:
    root = tree({**BASE, "etc/passwd": "", "var/lib/x": ""})
    machine = Machine(root, config.Config(modules=()))
    with pytest.raises(AssertionError):
        apply.carry_out(machine, find.Repair("x", "x", "x", "x", (find.Delete(path),)), ())


def test_a_link_is_deleted_and_not_what_it_leads_to(tree: Make) -> None:
    root = tree({**BASE, "var/lib/dkms/m/kernel-x": "-> /usr/src/m-1"})
    machine = Machine(root, config.Config(modules=()))
    apply.carry_out(machine, find.Repair("x", "x", "x", "x", (find.Delete("/var/lib/dkms/m/kernel-x"),)), ())
    assert not os.path.lexists(root / "var/lib/dkms/m/kernel-x")
    assert (root / "usr/src/m-1/dkms.conf").exists()


def test_a_switch_that_a_killed_repair_left(tree: Make) -> None:
    root = tree({**BASE, "etc/dkms/no-autoinstall": find.HOLD_TEXT})
    apply.carry_out(Machine(root, config.Config(modules=())), plan(root)["hold"], ())
    assert not (root / "etc/dkms/no-autoinstall").exists()
    assert plan(tree({"etc/dkms/no-autoinstall": ""})) == {}, "one of the administrator's"


UNAME = "all:\n\t$(MAKE) -C /lib/modules/$(shell uname -r)/build M=$(CURDIR) modules\nobj-m := m.o\n"
HEADERS = {
    "Makefile": "", ".config": "", "Module.symvers": "", "scripts/": "",
    "include/generated/utsrelease.h": f'#define UTS_RELEASE "{K}"\n',
}  # fmt: skip
RUNS = {
    **BASE, "usr/src/m-1/dkms.conf": f"{CONF}MAKE[0]=\"make\"\n", "usr/src/m-1/Makefile": UNAME, "run/": "", "proc/": "",
    "var/lib/knetstatd/": "", "etc/dkms/": "", f"usr/lib/modules/{K}/build": "-> ../../../src/h",
}  # fmt: skip


def override(root: Path) -> tuple[Machine, find.Repair | None]:
    """The override for a module that compiles for the kernel that runs, where K does."""
    machine = Machine(root, config.Config(modules=("m",)))
    machine.running = K
    machine.refresh()
    return machine, next((found for found in find.plan(machine, None) if found.kind == "override"), None)


def test_no_override_that_nothing_can_prove(tree: Make) -> None:
    """The running kernel's headers are better than none."""
    root = tree(RUNS)
    assert override(root)[1] is None
    tree({f"usr/src/h/{name}": text for name, text in HEADERS.items()})
    _, found = override(root)
    assert found is not None
    assert [type(act) for act in found.acts] == [find.Write, find.Prove]
    assert found.acts[1] == find.Prove("m", "1", K)


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
    root = tree({**RUNS, **{f"usr/src/h/{name}": text for name, text in HEADERS.items()}, "bin/": ""})
    machine, found = override(root)
    assert found is not None
    if dkms:
        tree({"bin/dkms": dkms})
        (root / "bin/dkms").chmod(0o755)

    def tick() -> None:
        assert (root / "etc/dkms/m.conf").exists()
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
        find.Run(("dpkg", "--configure", "linux-image"), hold=True),
        find.Delete("/var/lib/dkms/x", "what was built"),
        find.Write("/etc/dkms/m.conf", "a\nb\n"),
        find.Prove("m", "1", K),
    )
    text = "\n".join(apply.lines(find.Repair("x", "x", "what", "why\x1b", acts), 1))
    assert text.startswith("1. what\n   because why?\n")
    hold = "dpkg --configure linux-image  (meanwhile /etc/dkms/no-autoinstall keeps"
    for words in (hold, "delete  /var/lib/dkms/x  (what was built)", "| a\n", "| b\n", f"m/1 -k {K}"):
        assert words in text
    assert all(names.clean(line) == line for line in text.splitlines())
