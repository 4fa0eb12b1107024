# SPDX-License-Identifier: GPL-2.0-or-later
"""`config` and `history`: what is written down, as text and as a document."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import systems

from knetstatd.cli.main import main
from knetstatd.core import config
from knetstatd.core.exits import Exit

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_config_shows_every_setting_and_its_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = os.fspath(systems.make(tmp_path))
    assert main(["config", "--root", root]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" = ")[0] for line in lines] == [setting.name for setting in config.SETTINGS]
    assert 'modules = ["demo"]  # /etc/knetstatd/knetstatd.toml' in lines
    assert "settle_seconds = 3  # default" in lines


def test_a_faulty_configuration_ends_every_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = systems.make(tmp_path, config='modules = 5\nheaders = "maybe"\n')
    for verb in ("config", "status", "check"):
        assert main([verb, "--json", "--root", os.fspath(root)]) == Exit.CONFIG
        said = capsys.readouterr()
        assert "/etc/knetstatd/knetstatd.toml:1: modules is 5" in json.loads(said.out)["error"]["what"]
        assert "/etc/knetstatd/knetstatd.toml:2: headers is 'maybe'" in said.err


def test_history_wants_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--lines", "0"]) == Exit.USAGE
    assert "--lines must be at least 1" in capsys.readouterr().err
