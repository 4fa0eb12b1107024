# SPDX-License-Identifier: GPL-2.0-or-later
"""The units: what they are called, and that the exposure which systemd computes for them stays where it is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from knetstatd.system import units

UNITS = Path(__file__).parents[2] / "units"
# Tenths. hostnamed has 15, resolved 22, chrony 37 (Debian 12, systemd 252); one that installs packages cannot be confined.
EXPOSURE = {
    "knetstatd": 11, "knetstatd-build@": 15, "knetstatd-compile@": 11, "knetstatd-rehearse@": 9, "knetstatd-load@": 31,
    "knetstatd-headers@": 96, "knetstatd-step@": 11, "knetstatd-initrd@": 96,
}  # fmt: skip


def test_an_instance_is_escaped_as_systemd_does() -> None:
    assert units.instance("build", "6.12.115+deb12-amd64") == "knetstatd-build@6.12.115\\x2bdeb12\\x2damd64.service"
    assert units.instance("compile", "6.1.0-9", "kt-good") == "knetstatd-compile@6.1.0\\x2d9:kt\\x2dgood.service"


@pytest.mark.spawns
@pytest.mark.parametrize("name", ["6.12.115+deb12-amd64", "7.3~rc1_x.y"])
def test_systemd_agrees(name: str) -> None:
    if not shutil.which("systemd-escape"):
        pytest.skip("no systemd-escape")
    said = subprocess.run(["systemd-escape", name], capture_output=True, text=True, check=True).stdout.strip()
    assert units.instance("build", name) == f"knetstatd-build@{said}.service"


def test_every_service_has_its_limit() -> None:
    assert {path.stem for path in UNITS.glob("*.service")} == set(EXPOSURE)


@pytest.mark.spawns
@pytest.mark.parametrize("name", EXPOSURE)
def test_exposure(name: str) -> None:
    """The figure is that of systemd 252 and later, --offline; what it cannot see is tried in tests/container/test_units.py."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    argv = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE[name]}"]
    done = subprocess.run([*argv, UNITS / f"{name}.service"], capture_output=True, text=True, check=False)
    assert re.search(r"Overall exposure level", done.stdout), done.stderr
    assert done.returncode == 0, done.stdout.splitlines()[-1]
