# SPDX-License-Identifier: GPL-2.0-or-later
"""Observe and plan where there is nothing to do, against `dkms status`, on a machine with 50 kernels and 10 modules.

One kernel is real, its ten modules are built and installed by dkms. The other 49 are copies of it: every file that names
the release has it replaced by another of the same length, in modules too. Modules of the kernel that are too large to be
read for comparison are hard links.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import struct
from typing import TYPE_CHECKING

import zstandard

from knetstatd.formats import compression, module_file

from . import box
from .box import Side
from .table import Row, ratio, seconds

if TYPE_CHECKING:
    from pathlib import Path

    from tests.container.rig import Container

KERNELS, MODULES = 50, 10
_LIMIT = 50
_SMALL = 24 << 10


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `observe`."""
    with box.box(suite) as c:
        fill(c, KERNELS, MODULES)
        looks = max(3, rounds)
        sides = {
            "cold": Side([*box.PYTHON, f"{box.INSIDE}/look.py", "1"]),
            "steady": Side([*box.PYTHON, f"{box.INSIDE}/look.py", str(looks + 1)]),
            "dkms": Side(["/usr/sbin/dkms", "status"]),
        }
        found = box.alternate(c, sides, min(rounds, 3))
        count = found["dkms"][0].out.count(": installed\n")
        assert count == KERNELS * MODULES, f"dkms status knows {count}"
        for sample in found["cold"] + found["steady"]:
            verdicts = json.loads(sample.out)["verdicts"]
            assert verdicts == {"ready": KERNELS * MODULES}, verdicts
    peer = box.cpu(found["dkms"])
    steady = statistics.median(cpu for s in found["steady"] for _, cpu in json.loads(s.out)["looks"][1:])
    rows = []
    for what, ours in (("first look, fresh process", box.cpu(found["cold"])), ("steady state", steady)):
        rows.append(
            Row(f"observe and plan, {KERNELS} x {MODULES}, {what}", seconds(ours), f"dkms status {seconds(peer)}",
                ratio(ours, peer), "cpu", f"1/{_LIMIT}", ours * _LIMIT <= peer)
        )  # fmt: skip
    return rows


def _others(kernel: str) -> list[str]:
    """Releases as long as `kernel`: 6.1.0-55-cloud-amd64 gives 6.1.0-00-cloud-amd64 and so on."""
    made = [re.sub(r"\d\d(?=(\+deb\d+)?-cloud)", f"{number:02}", kernel) for number in range(100)]
    assert len(set(made)) == 100, kernel
    return [release for release in made if release != kernel]


def fill(c: Container, kernels: int, modules: int) -> None:
    """The product, guarding so many modules on so many kernels, all built. The first one runs."""
    kernel = c.kernels()[0].release
    box.install(c, ["*"], kernels="all")
    names = box.add_modules(c, modules)
    for name in names:
        c.run(["dkms", "install", f"{name}/1.0", "-k", kernel], check=True)
    for number in range(1, kernels):
        _clone(c, kernel, number, names)
    c.set_running(kernel)  # what is read of boot images is kept for this boot


def _clone(c: Container, kernel: str, number: int, modules: list[str]) -> None:
    """Another kernel that looks like the first, and its modules, installed as dkms leaves them."""
    release = _others(kernel)[number - 1]
    old, new = kernel.encode(), release.encode()
    assert len(old) == len(new)
    _copy(c.path(f"/lib/modules/{kernel}"), c.path(f"/lib/modules/{release}"), old, new)
    _copy(c.path(f"/usr/src/linux-headers-{kernel}"), c.path(f"/usr/src/linux-headers-{release}"), old, new)
    for path in list(c.path("/boot").glob(f"*-{kernel}")):
        copy = path.with_name(path.name.replace(kernel, release))
        if path.name.startswith("initrd"):
            copy.write_bytes(zstandard.compress(compression.unpack(path.read_bytes()).replace(old, new), 1))
        elif path.name.startswith("vmlinuz"):
            copy.write_bytes(_image(path.read_bytes(), old, new))
        else:
            os.link(path, copy)
    for name in modules:
        tree = c.path(f"/var/lib/dkms/{name}")
        _copy(tree / "1.0" / kernel, tree / "1.0" / release, old, new)
        mark = next(tree.glob(f"kernel-{kernel}-*"))
        (tree / mark.name.replace(kernel, release)).symlink_to(os.readlink(mark).replace(kernel, release))


def _image(data: bytes, old: bytes, new: bytes) -> bytes:
    """A boot image under another release (Linux's Documentation/arch/x86/boot.rst)."""
    start, length = struct.unpack_from("<II", data, 0x248)
    start += (data[0x1F1] + 1) * 512
    stream = compression.Stream(compression.kind(data[start:]), data[start : start + length - 4])
    kernel = b"".join(stream).replace(old, new)
    packed = zstandard.compress(kernel, 1) + struct.pack("<I", len(kernel))
    head = bytearray(data[:start].replace(old, new))
    struct.pack_into("<I", head, 0x24C, len(packed))
    struct.pack_into("<I", head, 0x1F4, (len(packed) + start) // 16)
    return bytes(head) + packed + bytes(1 << 16)


def _copy(source: Path, target: Path, old: bytes, new: bytes) -> None:
    for where, directories, files in os.walk(source):
        here = target / os.path.relpath(where, source)
        here.mkdir(exist_ok=True)
        for name in [*files, *(d for d in directories if os.path.islink(os.path.join(where, d)))]:
            path = os.path.join(where, name)
            if os.path.islink(path):
                (here / name).symlink_to(os.readlink(path).replace(os.fsdecode(old), os.fsdecode(new)))
            elif ".ko" in name and os.path.getsize(path) > _SMALL and "/updates/" not in path:
                os.link(path, here / name)
            else:
                with open(path, "rb") as f:
                    data = f.read()
                # A signature holds for one release only. What is not signed is taken where no kernel insists on it.
                unsigned = module_file.unsigned(data) if name.endswith(".ko") else data
                (here / name).write_bytes(unsigned.replace(old, new))
                shutil.copystat(path, here / name)
