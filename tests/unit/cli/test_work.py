# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that act ask first for what they need; what they do is shown in the containers."""

from __future__ import annotations

import os

import pytest

from knetstatd.cli.main import main
from knetstatd.core.exits import Exit


def test_a_build_of_nothing_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("building needs root")
    assert main(["build", "6.1.0-nothere"]) == Exit.USAGE
    assert "there is no kernel 6.1.0-nothere" in capsys.readouterr().err
    assert main(["build", "next", "--module", "$(reboot)"]) == Exit.USAGE
    assert "is not a DKMS module name" in capsys.readouterr().err


def test_a_unit_of_a_strange_name_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "../../etc"]) == Exit.USAGE
    assert "'../../etc' is not a kernel release" in capsys.readouterr().err
    assert main(["trial", "../../etc:demo"]) == Exit.FAILED
    assert "this is the program of knetstatd-rehearse@.service" in capsys.readouterr().err
