# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine's file system: cached layers below, what the machine writes above, gone with it.

What it writes is kept in memory where there is enough of it: unpacking a kernel is twice as fast as on a busy disk, and
forgetting it takes no time. Else it is kept on disk. Where the file system can carry no overlay, the layers are copied.
"""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import roots

# A machine with two kernels, their headers and some builds has written about 0.4 GiB.
MEMORY_WANTED = 4 << 30


def assemble(directory: Path, layers: Sequence[Path]) -> Path:
    """Make `directory`/root out of `layers`, topmost first, and return it."""
    root, above = directory / "root", directory / "above"
    root.mkdir(mode=0o755)
    above.mkdir()
    if _memory_available() >= MEMORY_WANTED:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", above], check=True)
    (above / "upper").mkdir(mode=0o755)
    (above / "work").mkdir()
    try:
        roots.mount_overlay(root, layers, above / "upper", above / "work")
    except RuntimeError:
        with tempfile.TemporaryDirectory(dir=directory) as merged:
            _copy(root, layers, Path(merged))
    return root


def dismantle(directory: Path) -> None:
    """All of `directory`, in whatever state it is."""
    for path in (directory / "root", directory / "above"):
        if os.path.ismount(path):
            roots.unmount(path)
    roots.remove(directory)


def _memory_available() -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def _copy(root: Path, layers: Sequence[Path], merged: Path) -> None:
    """A layer may hide files of those below it, so what is copied is an overlay that is only read."""
    root.rmdir()
    with contextlib.ExitStack() as stack:
        source = layers[0]
        if len(layers) > 1:
            source = merged
            options = "lowerdir=" + ":".join(map(os.fspath, layers))
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
            stack.callback(roots.unmount, merged)
        subprocess.run(["cp", "-a", "--reflink=auto", source, root], check=True)
