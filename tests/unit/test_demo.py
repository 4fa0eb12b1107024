# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration, as far as it can be looked at without a machine: `make demo` plays it."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.vm import demo, upgrade


@pytest.mark.spawns
@pytest.mark.parametrize("act", [*demo.ALONE, *demo.GUARDED], ids=lambda act: act.outcome[:20])
def test_every_act_can_be_played(act: demo.Act) -> None:
    subprocess.run(["sh", "-n"], input=upgrade.FUNCTIONS + demo.SHOW + act.script, text=True, check=True)
    for text in (act.outcome, act.script, *act.expected):
        assert set(re.findall(r"\{(\w+)\}", text)) <= {"old", "new", "image", "headers"}
    assert act.expected
    for pattern in act.expected:
        re.compile(re.sub(r"\{\w+\}", "6", pattern))
