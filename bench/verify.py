# SPDX-License-Identifier: GPL-2.0-or-later
"""The proof of one installed module, in a running process and by the command, against modinfo on it."""

from __future__ import annotations

import json
import statistics

from . import box
from .box import Side
from .table import Row, ratio, seconds

_LIMIT = 0.05
_TIMES = 25
# Each with a new Machine: nothing is remembered from one to the next.
_PROVE = f"""
import json, time
from pathlib import Path
from knetstatd.core import config
from knetstatd.verdict.observe import Machine
found = []
for _ in range({_TIMES}):
    machine = Machine(Path("/"), config.load(Path("/")))
    machine.refresh()
    begin = time.process_time()
    [proof] = machine.prove_installed(machine.look(machine.kernels.kernels[0]), "kt-good")
    found.append(time.process_time() - begin)
    assert proof.loads, proof
print(json.dumps(found))
"""


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `verify`."""
    with box.box(suite) as c:
        kernel = c.kernels()[0].release
        box.install(c, ["kt-good"])
        c.add_fixture("good", autoinstall=False)
        c.run(["dkms", "install", "kt-good/1.0", "-k", kernel], check=True)
        sides = {
            "prove": Side([*box.PYTHON, "-c", _PROVE]),
            "command": Side([*box.CTL, "verify", "--kernel", kernel]),
            "modinfo": Side(["modinfo", "-k", kernel, "kt_good"]),
            "python": Side([*box.PYTHON, "-c", "pass"]),
        }
        found = box.alternate(c, sides, max(rounds, 7))
    prove = statistics.median(t for sample in found["prove"] for t in json.loads(sample.out))
    peer, command = box.cpu(found["modinfo"]), box.cpu(found["command"])
    beside = f"modinfo {seconds(peer)}"
    return [
        Row("verify one installed module", seconds(prove), beside, ratio(prove, peer), "cpu", seconds(_LIMIT), prove < _LIMIT),
        Row("  knetstatctl verify", seconds(command), beside, ratio(command, peer), "cpu", short=False),
    ]
