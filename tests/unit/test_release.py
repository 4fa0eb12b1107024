# SPDX-License-Identifier: GPL-2.0-or-later
"""One version, wherever it is written."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import knetstatd

ROOT = Path(__file__).parents[2]


def test_versions_agree() -> None:
    """The package's may go on ("1.0.0+1"): it can be made anew of the same program."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    dkms = re.search(r'^PACKAGE_VERSION="(.*)"$', (ROOT / "module/dkms.conf").read_text(), re.MULTILINE)
    module = re.search(r'^MODULE_VERSION\("(.*)"\);$', (ROOT / "module/knetstat.c").read_text(), re.MULTILINE)
    package = re.match(r"knetstatd \((.+?)(?:[-+~].*)?\) ", (ROOT / "debian/changelog").read_text())
    assert dkms is not None
    assert module is not None
    assert package is not None
    assert knetstatd.__version__ == project == dkms[1] == module[1] == package[1]
