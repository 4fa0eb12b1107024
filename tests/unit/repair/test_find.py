# SPDX-License-Identifier: GPL-2.0-or-later
"""What may be deleted, and what is shown before it is; that repairs repair is shown in the containers."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import kerneltree
import machinetree
import pytest
from machinetree import write
from repairtree import BASE, BUILDABLE, CONF, GONE, HEADERS, OTHER, RUNS, K, override, plan, status

from knetstatd.core import config
from knetstatd.diagnosis import uname_traps
from knetstatd.dkms import dkms_tree
from knetstatd.repair import apply, find, repairs
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

pytestmark = pytest.mark.spawns  # dpkg-query says whose a file is


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
    assert found["stuck"].acts == (repairs.Delete(f"/var/lib/dkms/m/1/{K}/x86_64"),)
    assert [act.path for act in found["dead-kernel"].acts if isinstance(act, repairs.Delete)] == [
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
    assert plan(root)["source"].acts == (repairs.Run(("apt-get", "install", "--reinstall", "-y", "gone-dkms")),)


def test_a_source_that_our_services_do_not_see_is_not_gone(tree: Make) -> None:
    root = tree({**BASE, "home/dev/h-1/dkms.conf": CONF, "var/lib/dkms/h/1/source": "-> /home/dev/h-1"})
    assert dkms_tree.registered(root).packages["h"].highest.broken
    assert plan(root) == {}


def test_an_unlisted_module(tree: Make) -> None:
    names = ("m.ko", "m.ko.bak", "link.ko")
    root = tree({**BASE, **{f"usr/lib/modules/{K}/updates/dkms/{name}": "" for name in names[:2]}})
    (root / f"usr/lib/modules/{K}/updates/dkms/{names[2]}").symlink_to("nowhere")
    assert plan(root)["depmod"].acts == (repairs.Run(("depmod", K)),)
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
        (
            {
                f"usr/lib/modules/{GONE}/modules.dep": "",
                "proc/self/mountinfo": f"22 21 8:1 /x ROOT/usr/lib/modules/{GONE} rw - ext4 /dev/sda1 rw\n",
            },
            False,
        ),
        (
            {
                f"usr/lib/modules/{GONE}/build": "-> /x",
                "var/lib/dpkg/status": status("base", "h"),
                "var/lib/dpkg/info/h.list": f"/.\n/lib/modules/{GONE}/build\n",
            },
            False,
        ),
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


def test_a_switch_that_a_killed_repair_left(tree: Make) -> None:
    root = tree({**BASE, "etc/dkms/no-autoinstall": repairs.HOLD_TEXT})
    apply.carry_out(Machine(root, config.Config(modules=())), plan(root)["hold"], ())
    assert not (root / "etc/dkms/no-autoinstall").exists()
    assert plan(tree({"etc/dkms/no-autoinstall": ""})) == {}, "one of the administrator's"


def test_an_override_is_offered_if_a_plain_build_can_be_tried(tree: Make) -> None:
    """For a kernel that does not run: for the running one every build is right."""
    root = tree({**RUNS, **{f"usr/src/h/{name}": text for name, text in HEADERS.items()}})
    assert override(root)[1] is None
    tree(BUILDABLE)
    machine, found = override(root)
    assert found is not None
    assert [type(act) for act in found.acts] == [repairs.Try, repairs.Write, repairs.Prove]
    assert found.acts[0] == repairs.Try("m", "1", OTHER)
    assert found.acts[2] == repairs.Prove("m", "1", OTHER)
    mark = find.trial(machine, "m")[1]
    for wrong, offered in (("", False), ("it is for 6.1", True)):
        write(machine.places.plain("m"), json.dumps({"mark": mark, "wrong": wrong}))
        assert find.outcome(machine, "m") == wrong
        assert (override(root)[1] is not None) is offered
    write(machine.places.plain("m"), json.dumps({"mark": mark, "wrong": ""}))
    write(root / "usr/src/m-1/Makefile", (root / "usr/src/m-1/Makefile").read_text() + "# another\n")
    assert find.outcome(machine, "m") is None, "it was another source"
    assert override(root)[1] is not None
    for damaged in ("", "[]", "{}", json.dumps({"mark": find.trial(machine, "m")[1]})):
        write(machine.places.plain("m"), damaged)
        assert find.outcome(machine, "m") is None


def test_an_override_of_ours_for_another_version_goes(tree: Make) -> None:
    ours = f"{uname_traps.HEAD}\nMAKE[0]='make x'\n"
    names = ("m.conf", "m-0.9.conf", "m-1.conf", "gone-2.conf")
    root = tree({**BASE, **{f"etc/dkms/{name}": ours for name in names}, "etc/dkms/m-0.8.conf": "# somebody's\n"})
    machine = Machine(root, config.Config(modules=("m",)))
    machine.refresh()
    stale = [found for found in find.plan(machine, None) if found.kind == "stale-override"]
    assert [found.subject for found in stale] == [f"/etc/dkms/{name}" for name in ("gone-2.conf", "m-0.9.conf", "m.conf")]
    for found in stale:
        apply.carry_out(machine, found, ())
    assert sorted(os.listdir(root / "etc/dkms")) == ["m-0.8.conf", "m-1.conf"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One whose package can be built, and is not."""
    machinetree.make(tmp_path)
    return machinetree.machine(tmp_path)


def planned(machine: Machine, kernel: str | None = None) -> dict[str, repairs.Repair]:
    machine.refresh()
    return {repair.kind: repair for repair in find.plan(machine, kernel)}


def test_what_a_build_would_cure_is_built(machine: Machine) -> None:
    build = planned(machine)["build"]
    run = repairs.Run(("knetstatctl", "build", machinetree.KERNEL, "--module=demo"), ours=True)
    assert (build.why, build.acts) == ("there is none", (run,))
    assert "build" not in planned(machine, "6.2")
    tree = machine.root / f"usr/lib/modules/{machinetree.KERNEL}"
    path = kerneltree.add(tree, "updates/dkms/demo.ko", b"torn")
    assert planned(machine)["build"].why.startswith("the installed one is wrong: ")
    path.write_bytes(machinetree.GOOD)
    assert "build" not in planned(machine)


def half_configured(machine: Machine, state: str = "half-configured") -> str:
    """The kernel's package, left like that. Returns its name."""
    package = f"linux-image-{machinetree.KERNEL}"
    machinetree.write(machine.root / "var/lib/dpkg/status", f"Package: {package}\nStatus: install ok {state}\n\n")
    return package


def test_a_package_is_configured_when_the_modules_are_good(machine: Machine) -> None:
    package = half_configured(machine)
    assert "configure" not in planned(machine), "its hook may be what fails"
    kerneltree.add(machine.root / f"usr/lib/modules/{machinetree.KERNEL}", "updates/dkms/demo.ko", machinetree.GOOD)
    assert planned(machine)["configure"].acts == (repairs.Run(("dpkg", "--configure", package)),)
    half_configured(machine, "half-installed")
    assert "configure" not in planned(machine), "that needs the package itself"


@pytest.mark.parametrize(
    ("kernel", "newer", "hook", "culprit"),
    [
        (machinetree.KERNEL, True, True, True),
        (machinetree.KERNEL, False, True, False),
        (machinetree.KERNEL, True, False, False),
        ("6.2", True, True, False),
    ],
    ids=["its hook fails", "its source was changed since", "no hook builds it", "another kernel's"],
)
def test_a_module_that_fails_the_hook_is_kept_out_of_it(
    machine: Machine, kernel: str, newer: bool, hook: bool, culprit: bool
) -> None:
    log = f"DKMS make.log for bad-1 for kernel {kernel} (x86_64)\nb.c:1:2: error: expected ';'\n"
    root = machine.root
    package = half_configured(machine)
    kerneltree.add(root / f"usr/lib/modules/{machinetree.KERNEL}", "updates/dkms/demo.ko", machinetree.GOOD)
    conf = CONF.replace('"m"', '"bad"') + 'AUTOINSTALL="yes"\n'
    source = machinetree.write(root / "usr/src/bad-1/dkms.conf", conf)
    (root / "var/lib/dkms/bad/1").mkdir(parents=True)
    (root / "var/lib/dkms/bad/1/source").symlink_to("/usr/src/bad-1")
    os.utime(machinetree.write(root / "var/lib/dkms/bad/1/build/make.log", log), (2e9, 2e9))
    os.utime(source, (1e9, 1e9) if newer else (3e9, 3e9))
    if hook:
        machinetree.program(root / "etc/kernel/postinst.d/dkms", root, "")
    repair = planned(machine)["configure"]
    assert repair.acts[-1] == repairs.Run(("dpkg", "--configure", package), hold=culprit)
    assert len(repair.acts) == 1 + culprit
    if culprit:
        write = repair.acts[0]
        assert isinstance(write, repairs.Write)
        assert write.path == f"/etc/dkms/bad-1-{machinetree.KERNEL}.conf"
        assert 'AUTOINSTALL=""' in write.text
        assert "its hook builds bad 1, and that fails: b.c line 1: expected ';'" in repair.why


def test_what_dkms_keeps_as_an_original_and_is_none(tree: Make) -> None:
    """It survives the removal of the package, and what was put back lies where modprobe takes it."""
    place = f"var/lib/dkms/gone/original_module/{K}/x86_64"
    root = tree({
        **BASE, f"{place}/gone.ko.xz": "garbage", f"{place}/gone.ko.xz.origin": f"/lib/modules/{K}/updates/dkms/gone.ko.xz\n",
        f"usr/lib/modules/{K}/updates/dkms/left.ko": "garbage", f"usr/lib/modules/{K}/updates/dkms/m.ko": "garbage",
    })  # fmt: skip
    machinetree.program(root / "usr/sbin/depmod", root, "")
    (root / "ran").mkdir()
    machine = Machine(root, config.Config(modules=()))
    machine.refresh()
    kept, put_back = (one for one in find.plan(machine, K) if one.kind == "original")
    assert kept.acts == (repairs.Delete(f"/{place}/gone.ko.xz"), repairs.Delete(f"/{place}/gone.ko.xz.origin"))
    left = f"/lib/modules/{K}/updates/dkms/left.ko"
    assert put_back.acts == (repairs.Delete(left), repairs.Run(("depmod", K))), "what a package makes, a build cures"
    for one in (kept, put_back):
        apply.carry_out(machine, one, ())
    assert "original" not in plan(root)
    assert sorted(os.listdir(root / "var/lib/dkms")) == ["m"]
    assert "original" not in plan(root, OTHER)
