# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's start: its command line, a faulty configuration, another daemon. Lack of memory: tests/unit/cli/test_main.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import systems

from knetstatd import __version__
from knetstatd.core.exits import Exit
from knetstatd.daemon import main
from knetstatd.system import locks

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        (["--version"], Exit.OK, f"knetstatd {__version__}\n", ""),
        (["--help"], Exit.OK, f"{main.USAGE}\n", ""),
        (["-h"], Exit.OK, f"{main.USAGE}\n", ""),
        (["--frob"], Exit.USAGE, "", f"{main.USAGE}\n"),
        (["--foreground", "--version"], Exit.USAGE, "", f"{main.USAGE}\n"),
    ],
)
def test_its_command_line(capsys: pytest.CaptureFixture[str], argv: list[str], code: Exit, out: str, err: str) -> None:
    assert main.main(argv) == code
    assert capsys.readouterr() == (out, err)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "run/knetstatd").mkdir(parents=True)
    return systems.make(tmp_path)


def test_a_faulty_configuration_ends_it_and_a_login_says_so(root: Path) -> None:
    (root / "etc/knetstatd/knetstatd.toml").write_text("modules = 5\n")
    assert main.start(root) == Exit.CONFIG
    assert "its configuration is faulty" in (root / "run/knetstatd/motd").read_text()


def test_a_second_one_does_not_start(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locks.locked(root / "run/knetstatd/guard.lock", 0.0):
        assert main.start(root) == Exit.FAILED
    said = capsys.readouterr().err
    assert said.startswith("knetstatd: ")
    assert "another run of knetstatd holds this lock" in said
