# SPDX-License-Identifier: GPL-2.0-or-later
"""Containers to measure in, and the way to have commands timed there."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.container import product, rig, roots
from tests.container.kmods import copy_fixture

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HERE = Path(__file__).parent
INSIDE = "/usr/local/lib/bench"
PYTHON = ("/usr/bin/python3", "-I")
CTL = ("/usr/bin/knetstatctl",)  # as its users start it: its first line has options of its own
# Written by the tests' machine as an overlay that ignores fsync; here the disk's own file system is put over them.
ON_DISK = ("/var", "/usr/lib/modules")


class Sample(NamedTuple):
    """One run of a command."""

    wall: float
    cpu: float
    out: str


class Side(NamedTuple):
    """What to run, and what to run before, untimed."""

    argv: Sequence[str]
    before: Sequence[Sequence[str]] = ()


def note(text: str) -> None:
    """Progress, for who waits."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def box(suite: str, *, boot: bool = False) -> Iterator[rig.Container]:
    """A container with one kernel and its headers, the product not installed. What runs is, but for `boot`, the host's kernel:
    nothing is loaded, and nothing answers in place of uname(2) unless the caller has it so."""
    with contextlib.ExitStack() as stack:
        c = stack.enter_context(rig.container(suite, boot=False))
        disk = Path(tempfile.mkdtemp(prefix="bench-", dir=roots.cache_dir()))
        stack.callback(shutil.rmtree, disk)
        for number, place in enumerate(ON_DISK):
            copy, target = disk / str(number), c.path(place)
            subprocess.run(["cp", "-a", target, copy], check=True)
            subprocess.run(["mount", "--bind", copy, target], check=True)
            stack.callback(roots.unmount, target)
        for name in ("agent.py", "look.py"):
            c.write(f"{INSIDE}/{name}", (HERE / name).read_text())
        if boot:
            c.boot()
            # Before anything is unmounted.
            stack.callback(c.crash)
        else:
            c.path("/etc/ld.so.preload").unlink()
        yield c


def install(c: rig.Container, modules: Sequence[str], **settings: Any) -> None:
    """The product, compiled as its package would be."""
    values = {"modules": list(modules), **settings}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    c.install_product(product.CHECKOUT, text)
    c.run(["python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages/knetstatd"], check=True)


def add_modules(c: rig.Container, count: int) -> list[str]:
    """Registers `count` modules with dkms, each with source, package and file of its own: kt-m00, kt-m01, …"""
    added = []
    for number in range(count):
        name = f"kt-m{number:02}"
        target = c.path(f"/usr/src/{name}-1.0")
        copy_fixture("good", target, autoinstall=False)
        for path in target.iterdir():
            path.write_text(path.read_text().replace("kt-good", name).replace("kt_good", name.replace("-", "_")))
        (target / "kt_good.c").rename(target / f"{name.replace('-', '_')}.c")
        c.run(["dkms", "add", f"{name}/1.0"], check=True)
        added.append(name)
    return added


def alternate(c: rig.Container, sides: Mapping[str, Side], rounds: int, warmup: int = 1) -> dict[str, list[Sample]]:
    """Runs the sides in turn, `rounds` times, in the container; their samples."""
    order = {
        "rounds": rounds,
        "warmup": warmup,
        "sides": {name: {"argv": side.argv, "before": side.before} for name, side in sides.items()},
    }
    done = c.run([*PYTHON, f"{INSIDE}/agent.py"], stdin=json.dumps(order), check=True, timeout=1800)
    found: dict[str, list[Sample]] = {}
    for name, rows in json.loads(done.stdout).items():
        found[name] = [Sample(*row) for row in rows]
    return found


def cpu(samples: Sequence[Sample]) -> float:
    """The median CPU time."""
    return statistics.median(s.cpu for s in samples)


def wall(samples: Sequence[Sample]) -> float:
    """The median wall time."""
    return statistics.median(s.wall for s in samples)
