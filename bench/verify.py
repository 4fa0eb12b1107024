# SPDX-License-Identifier: GPL-2.0-or-later
"""The proof of one installed module, in a running process and by the command, against modinfo on it; and of a kernel's many
modules, on all processors against one."""

from __future__ import annotations

import json
import shutil
import statistics
from typing import TYPE_CHECKING

from . import box
from .box import Side
from .table import Row, ratio, seconds

if TYPE_CHECKING:
    from tests.container import rig

_LIMIT = 0.05
_TIMES = 25
_COPIES = 400
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
        many = _many(c, kernel, rounds)
    prove = statistics.median(t for sample in found["prove"] for t in json.loads(sample.out))
    peer, command = box.cpu(found["modinfo"]), box.cpu(found["command"])
    beside = f"modinfo {seconds(peer)}"
    return [
        Row("verify one installed module", seconds(prove), beside, ratio(prove, peer), "cpu", seconds(_LIMIT), prove < _LIMIT),
        Row("  knetstatctl verify", seconds(command), beside, ratio(command, peer), "cpu", short=False),
        many,
    ]


def _many(c: rig.Container, kernel: str, rounds: int) -> Row:
    """So many files of one module: each is read, and each has its own line in depmod's tables."""
    file = c.path(c.output("modinfo", "-k", kernel, "-n", "kt_good"))
    modules = [f"kt_copy{number:03}" for number in range(_COPIES)]
    for name in modules:
        shutil.copy(file, file.with_name(file.name.replace("kt_good", name)))
    c.run(["depmod", kernel], check=True)
    c.write("/etc/knetstatd/knetstatd.toml.d/50-many.toml", f"modules = {json.dumps(modules)}\n")
    verify = [*box.CTL, "verify", "--json", "--kernel", kernel]
    sides = {"all": Side(verify), "one": Side(["taskset", "--cpu-list", "0", *verify])}
    found = box.alternate(c, sides, max(rounds, 7))
    assert found["all"][0].out == found["one"][0].out
    assert json.loads(found["all"][0].out)["loads"], found["all"][0].out
    ours, peer = box.wall(found["all"]), box.wall(found["one"])
    what = f"knetstatctl verify, {_COPIES} modules of one kernel, two processors"
    return Row(what, seconds(ours), f"one {seconds(peer)}", ratio(ours, peer), "wall", "1 x", ours < peer)
