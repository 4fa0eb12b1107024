# SPDX-License-Identifier: GPL-2.0-or-later
"""`explain` on a tree: the verdict with its grounds, the last failure, the line that reads the running kernel, and the cure."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import systems
from kerneltree import KERNEL
from systems import NEWER

from knetstatd.cli.main import main
from knetstatd.core.config import Config
from knetstatd.core.model import Attempt, Kind
from knetstatd.repair import find
from knetstatd.state import attempts
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = systems.make(tmp_path)
    systems.write(made / "usr/src/demo-1.0/Makefile", "KDIR := /lib/modules/$(shell uname -r)/build\n")
    with open(made / "usr/src/demo-1.0/dkms.conf", "a") as conf:
        conf.write('MAKE[0]="make -C . all"\n')
    return made


def text(root: Path, capsys: pytest.CaptureFixture[str], kernel: str) -> str:
    capsys.readouterr()
    assert main(["explain", kernel, "--root", os.fspath(root)]) == 0
    return capsys.readouterr().out


def document(root: Path, capsys: pytest.CaptureFixture[str], kernel: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["explain", kernel, "--json", "--root", os.fspath(root)]) == 0
    [row] = json.loads(capsys.readouterr().out)["verdicts"]
    return dict(row)


def remember(root: Path, kernel: str, attempt: Attempt) -> None:
    """Keeps a failure as the builder does."""
    machine = Machine(root, Config(modules=("demo",)), running="")
    machine.refresh()
    seen = machine.observe(machine.look(kernel), "demo")
    attempts.save(root, machine.places, kernel, "demo", "1.0", seen.fingerprint, attempt)


def test_a_good_module_and_each_of_its_checks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = text(root, capsys, KERNEL)
    assert shown.startswith(f"demo 1.0 for {KERNEL} (next): ready\n")
    assert "    pass            crcs: " in shown
    assert "Last failure" not in shown
    row = document(root, capsys, KERNEL)
    assert (row["state"], row["last_failure"]) == ("ready", None)


def test_the_last_failure_with_its_lines(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/somewhere/else")  # systemd says it of this machine
    lines = ("demo.c:3: error", "make: 2")
    remember(root, NEWER, Attempt(Kind.COMPILE, 1, reason="demo.c line 3: 'x' undeclared", evidence=lines, log="/l.log"))
    shown = text(root, capsys, NEWER)
    assert f"demo 1.0 for {NEWER}: failed\n  Reason:  demo.c line 3: 'x' undeclared\n" in shown
    assert "  Last failure (compile, attempt 1, " in shown
    assert "    | demo.c:3: error\n    | make: 2\n" in shown
    assert "  Log:     /l.log\n" in shown
    row = document(root, capsys, NEWER)
    assert row["last_failure"]["kind"] == "compile"
    assert row["last_failure"]["retry"] == "never"
    assert row["last_failure"]["evidence"] == ["demo.c:3: error", "make: 2"]


def tried(root: Path, wrong: str) -> None:
    """A plain build by dkms, as `repair` remembers it."""
    machine = Machine(root, Config(modules=("demo",)), running="")
    machine.refresh()
    systems.write(machine.places.plain("demo"), json.dumps({"mark": find.trial(machine, "demo")[1], "wrong": wrong}))


def test_the_trap_and_the_cure(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = text(root, capsys, NEWER)
    assert "  Wrong-kernel trap: Makefile line 1 reads the running kernel and sets KDIR, " in shown
    assert "    | KDIR := /lib/modules/$(shell uname -r)/build\n" in shown
    assert "`knetstatctl repair` tries it\n" in shown
    assert "Cure for good" not in shown, "dkms may build for the right kernel all the same"
    tried(root, "")
    assert "Cure for good" not in text(root, capsys, NEWER)
    assert "`knetstatctl repair` tries it" not in text(root, capsys, NEWER)
    assert document(root, capsys, NEWER)["override"] is None
    tried(root, "demo.ko is for another kernel")
    assert "  Cure for good: `knetstatctl repair` writes /etc/dkms/demo-1.0.conf" in text(root, capsys, NEWER)
    row = document(root, capsys, NEWER)
    assert row["running_kernel_reads"][0]["variable"] == "KDIR"
    assert row["override"]["path"] == "/etc/dkms/demo-1.0.conf"


def test_whether_the_override_is_there_is_asked_of_that_root(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systems.write(root / "etc/dkms/demo-1.0.conf", "# nothing\n")
    tried(root, "demo.ko is for another kernel")
    assert "  Cure for good: put this into /etc/dkms/demo-1.0.conf:\n" in text(root, capsys, NEWER)


def test_a_source_whose_makefile_is_a_link_out_of_it(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In another root it would lead to a file of this machine."""
    secret = systems.write(tmp_path / "elsewhere/Makefile", "KDIR := /lib/modules/$(shell uname -r)/secret\n")
    (root / "usr/src/demo-1.0/Makefile").unlink()
    (root / "usr/src/demo-1.0/Makefile").symlink_to(secret)
    assert "secret" not in text(root, capsys, NEWER)


def test_no_kernel_and_no_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--root", os.fspath(tmp_path)]) == 2
    assert "no kernel to boot next was found. Name one: knetstatctl explain KERNEL" in capsys.readouterr().err
    assert (
        text(systems.make(tmp_path, config="modules = []\n"), capsys, "next")
        == "no module is guarded; set `modules` in /etc/knetstatd/knetstatd.toml\n"
    )
