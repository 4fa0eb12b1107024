# SPDX-License-Identifier: GPL-2.0-or-later
"""`knetstatctl status` against `dkms status`, with the start of the interpreter beside it: two kernels, one or ten modules;
and alone where there is much to tell."""

from __future__ import annotations

from . import box
from .box import Side
from .observe import fill
from .table import Row, ratio, seconds

_LIMIT = 0.5
# The time that somebody who typed it waits without noticing.
_KERNELS, _MODULES, _SECONDS = 20, 40, 1.0


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `status`."""
    rows = []
    for count in (1, 10):
        with box.box(suite) as c:
            fill(c, 2, count)
            sides = {
                "ours": Side([*box.CTL, "status"]),
                "dkms": Side(["/usr/sbin/dkms", "status"]),
                "python": Side([*box.PYTHON, "-c", "pass"]),
            }
            found = box.alternate(c, sides, max(rounds, 7))
            assert all(sample.out.count(": installed\n") == 2 * count for sample in found["dkms"]), found["dkms"][0].out
            assert all("Safe to reboot if" in sample.out for sample in found["ours"]), found["ours"][0].out
        ours, dkms, python = (box.cpu(found[name]) for name in sides)
        what = f"knetstatctl status, 2 kernels, {count} module{'s' * (count > 1)}"
        rows += [
            Row(what, seconds(ours), f"dkms status {seconds(dkms)}", ratio(ours, dkms), "cpu", f"{_LIMIT:g} x", ours < _LIMIT * dkms),
            Row("  the same", seconds(ours), f"python3 -c pass {seconds(python)}", ratio(ours, python), "cpu", short=False),
        ]  # fmt: skip
    return [*rows, _many(suite, rounds)]


def _many(suite: str, rounds: int) -> Row:
    with box.box(suite) as c:
        fill(c, _KERNELS, _MODULES)
        found = box.alternate(c, {"ours": Side([*box.CTL, "status"])}, max(rounds, 7))["ours"]
        assert all("Safe to reboot if" in sample.out for sample in found), found[0].out
        ours = box.wall(found)
    what = f"knetstatctl status, {_KERNELS} kernels, {_MODULES} modules"
    return Row(what, seconds(ours), "", "-", "wall", f"{_SECONDS:g} s", ours < _SECONDS)
