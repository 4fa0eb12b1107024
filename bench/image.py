# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel's boot image says, read for the first time, against the program that unpacks it; and read again."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from knetstatd.formats import compression
from tests import kernels

from .table import Row, ratio, seconds

# One of each kind that Debian has: xz, lz4, zstd. By the kernel, the seconds that it may take.
_IMAGES = {("5.10", "amd64"): 1.0, ("6.1", "cloud-amd64"): 0.3, ("6.12", "cloud-amd64"): 0.3, ("7.3", "cloud-amd64"): 0.3}
_PROGRAMS = {"xz": ["xz", "-dc"], "lz4": ["lz4", "-dc"], "zstd": ["zstd", "-dc"]}
_READ = """
import json, resource, sys, time
from pathlib import Path
from knetstatd.verify import image_readings
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
times = []
for _ in range(2):
    image_readings._last.clear()
    begin = time.process_time()
    image_readings.read(Path(sys.argv[1]), [Path(sys.argv[2])])
    times.append(time.process_time() - begin)
print(json.dumps([*times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def run(_suite: str, rounds: int) -> list[Row]:
    """The rows of `image`."""
    rows = []
    for (series, flavour), limit in _IMAGES.items():
        image = kernels.fetch(series, flavour).vmlinuz
        data = image.read_bytes()
        start = ((data[0x1F1] or 4) + 1) * 512 + int.from_bytes(data[0x248:0x24C], "little")
        payload = data[start : start + int.from_bytes(data[0x24C:0x250], "little") - 4]
        kind = compression.kind(payload)
        found: dict[str, list[float]] = {"first": [], "again": [], "memory": [], "peer": []}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as kept:
                done = subprocess.run([sys.executable, "-c", _READ, image, kept], check=True, capture_output=True)
            for name, value in zip(found, [*json.loads(done.stdout), _unpacked(_PROGRAMS[kind], payload)], strict=True):
                found[name].append(value)
        ours, again, memory, peer = map(statistics.median, found.values())
        what = f"read what a boot image says, {series} {flavour} ({kind})"
        rows += [
            Row(what, seconds(ours), f"{' '.join(_PROGRAMS[kind])} {seconds(peer)}", ratio(ours, peer), "cpu", seconds(limit), ours < limit),
            Row("  the same again", seconds(again), "", "-", "cpu", short=False),
            Row("  memory beyond before", f"{memory / 1024:.0f} MiB", "", "-", "rss", short=False),
        ]  # fmt: skip
    return rows


def _unpacked(program: list[str], payload: bytes) -> float:
    """Seconds of CPU time that a program takes to unpack."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Path("/dev/null").open("wb") as nowhere:
        subprocess.run(program, input=payload, stdout=nowhere, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
