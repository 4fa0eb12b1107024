# SPDX-License-Identifier: GPL-2.0-or-later
"""After an upgrade every kernel that had a package is owed it; what somebody takes off one kernel is not brought back."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest
import systems
from kerneltree import KERNEL
from machinetree import write
from systems import NEWER

from knetstatd.core import config
from knetstatd.core.model import Action
from knetstatd.daemon import owed
from knetstatd.daemon.announce import Teller
from knetstatd.state import guarded
from knetstatd.system.journal import Journal
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.spawns  # dpkg-query says whose a file is
MARK = f"var/lib/dkms/demo/kernel-{KERNEL}-x86_64"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return systems.make(tmp_path, NEWER)


def remembered(root: Path, running: str = "") -> dict[str, list[str]] | None:
    """What a new daemon remembers, and says that it owes. running: a kernel, for who is at work to be asked."""
    machine = Machine(root, config.load(root), running=running)
    machine.refresh()
    return owed.remember(machine, Teller(Journal(quiet=True, path="/nonexistent")))


def test_an_upgrade_takes_nothing_from_any_kernel(root: Path) -> None:
    assert remembered(root) == {}
    systems.upgrade(root)
    for _ in range(2):
        assert remembered(root) == {KERNEL: ["demo"]}, "as long as it has not got it"
    systems.upgrade(root)
    assert remembered(root) == {KERNEL: ["demo"]}, "another upgrade before it has got it"
    write(root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko", "built")
    (root / MARK).symlink_to(f"1.0/{KERNEL}/x86_64")
    assert remembered(root) == {}


def test_a_new_version_is_owed_too(root: Path) -> None:
    assert remembered(root) == {}
    write(root / "usr/src/demo-2.0/dkms.conf", (root / "usr/src/demo-1.0/dkms.conf").read_text().replace("1.0", "2.0"))
    (root / "var/lib/dkms/demo/2.0").mkdir()
    time.sleep(0.02)  # it is registered later than the other one was installed, by the clock of file systems too
    (root / "var/lib/dkms/demo/2.0/source").symlink_to("/usr/src/demo-2.0")
    assert remembered(root) == {KERNEL: ["demo"]}


def test_what_is_between_two_halves_of_an_upgrade_is_not_forgotten(root: Path) -> None:
    assert remembered(root) == {}
    shutil.rmtree(root / "var/lib/dkms/demo")
    assert remembered(root) == {}, "dkms does not know it at the moment"
    systems.upgrade(root)
    assert remembered(root) == {KERNEL: ["demo"]}


def test_what_somebody_takes_off_a_kernel_stays_off(root: Path) -> None:
    assert remembered(root) == {}
    (root / MARK).unlink()
    assert remembered(root) == {}
    systems.upgrade(root)
    assert remembered(root) == {}, "it had none when that came"


def test_while_a_dkms_is_at_work_it_is_to_be_asked_again(root: Path) -> None:
    """Its last file changes before it ends, and no event tells of the end."""
    assert remembered(root) == {}
    systems.upgrade(root)
    assert remembered(root) == {KERNEL: ["demo"]}
    pid = 1 << 23  # more than there can be: it is not we
    write(root / f"proc/{pid}/comm", "dkms\n")
    write(root / f"proc/{pid}/cmdline", "dkms\0remove\0x/1\0-k\0K\0")
    write(root / f"proc/{pid}/stat", f"{pid} (dkms) S 1 0")
    assert remembered(root, "6.1.0-9-amd64") is None
    shutil.rmtree(root / f"proc/{pid}")
    assert remembered(root, "6.1.0-9-amd64") == {KERNEL: ["demo"]}


def test_a_kernel_that_is_gone_is_owed_nothing(root: Path) -> None:
    assert remembered(root) == {}
    systems.upgrade(root)
    shutil.rmtree(root / f"usr/lib/modules/{KERNEL}")
    assert remembered(root) == {}


def test_the_steps_for_it(root: Path) -> None:
    remembered(root)
    systems.upgrade(root)
    (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").unlink()
    machine = Machine(root, config.load(root), running="")
    machine.refresh()
    teller = Teller(Journal(quiet=True, path="/nonexistent"))
    [(_, step)] = owed.steps(machine, teller, KERNEL, ["demo"], 0.0, 4e9)
    assert step.action is Action.STAGE
    assert list(owed.steps(machine, teller, KERNEL, [], 0.0, 4e9)) == []


def test_what_is_kept_is_read_back(root: Path) -> None:
    remembered(root)
    systems.upgrade(root)
    remembered(root)
    machine = Machine(root, config.load(root), running="")
    [one] = guarded.load(machine.places).values()
    assert (one.kernels, one.owed) == ((), (KERNEL,))
