# SPDX-License-Identifier: GPL-2.0-or-later
"""Every exit status: said once in the code, and told in the manual."""

from __future__ import annotations

import re
from pathlib import Path

from knetstatd.core import errors
from knetstatd.core.exits import Exit


def test_the_manual_has_every_exit_status_and_no_other() -> None:
    manual = (Path(__file__).parents[3] / "man/knetstatctl.1.scd").read_text().split("# EXIT STATUS")[1].split("\n# ")[0]
    assert [int(number) for number in re.findall(r"^\*(\d+)\*$", manual, flags=re.M)] == [int(status) for status in Exit]


def test_no_exit_status_is_written_as_a_number_elsewhere() -> None:
    """75 and 78 mean nothing else; 0 to 3 are too common to be looked for."""
    sources = (path for path in Path(errors.__file__).parents[1].rglob("*.py") if path.name != "exits.py")
    assert not [path for path in sources if re.search(r"(return|=|\(0,) ?(75|78)\b", path.read_text())]
