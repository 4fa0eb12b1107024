# SPDX-License-Identifier: GPL-2.0-or-later
"""Power cuts: a machine that is about to do something, kept as it is, and let go and killed as often as one likes.

    armed = cuts.arm(image, kernel, cuts.scripts(...))      boots once, up to where the work begins; keeps memory and disk
    process = armed.restored(overlay, console)
    ...
    process.kill()
    said = cuts.boot(overlay, kernel, console, timeout)

What a cut loses is the guest's page cache, and what its disk had in its own cache: of the image (qcow2) the tables since the
guest's last flush. What the guest has flushed stays: the host is not cut.
"""

from __future__ import annotations

import socket
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.vm import disk

if TYPE_CHECKING:
    from pathlib import Path

ARMED, DONE = "== armed ==", "== done =="
_ARM, _CHECK = "cut=arm", "cut=check"
# The machine is kept within this time after it says that it is armed.
_PAUSE = 10
# It is kept while it stands still (emulated processors write behind the back of a migration), and must not remember that.
_GOES_ON = ["-global", "migration.store-global-state=off"]


class Armed(NamedTuple):
    """image: the disk.  state: the memory of a machine that is about to begin.  kernel: the one that it runs."""

    image: Path
    state: Path
    kernel: disk.Files

    def restored(self, overlay: Path, console: Path) -> subprocess.Popen[bytes]:
        """The machine goes on from where it was kept, writing to a new overlay."""
        overlay.unlink(missing_ok=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.image, "-F", "raw", overlay], check=True)
        incoming = ["-incoming", f"exec:cat {self.state}"]
        return _start(overlay, "qcow2", self.kernel, _ARM, console, incoming)


def scripts(before: str, work: str, check: str) -> str:
    """What the machine runs: up to where it is kept, from there on, and after a cut."""
    return (
        f"if grep -q {_CHECK} /proc/cmdline; then\n{check}\nelse\n{before}\nsync; echo '{ARMED}'; sleep {_PAUSE}\n"
        f"{work}\necho '{DONE}'; sleep 3600\nfi\n"
    )


def arm(image: Path, kernel: disk.Files, script: str) -> Armed:
    """Boots the disk up to where `script` says that it is armed, and keeps the machine as it is then."""
    disk.put(image, "/usr/local/lib/driver", script)
    state, console, monitor = image.with_name("state"), image.with_name("console"), image.with_name("monitor")
    process = _start(image, "raw", kernel, _ARM, console, ["-monitor", f"unix:{monitor},server,nowait", *_GOES_ON])
    try:
        assert wait(process, console, ARMED, 400) is not None, console.read_text(errors="replace")[-4000:]
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(monitor))
            s.sendall(f'stop\nmigrate "exec:cat >{state}"\nquit\n'.encode())
            process.wait(120)
    finally:
        process.kill()
        process.wait()
    assert state.stat().st_size
    return Armed(image, state, kernel)


def wait(process: subprocess.Popen[bytes], console: Path, words: str, timeout: float) -> float | None:
    """The seconds until the console has `words`, None where the machine ends, or the time, before."""
    begin = time.monotonic()
    while time.monotonic() - begin < timeout:
        if words.encode() in console.read_bytes():
            return time.monotonic() - begin
        if process.poll() is not None:
            return None
        time.sleep(0.05)
    return None


def boot(overlay: Path, kernel: disk.Files, console: Path, timeout: float) -> disk.Said:
    """Boots after a cut, and returns what the check said."""
    process = _start(overlay, "qcow2", kernel, _CHECK, console, [])
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return disk.said(console.read_text(errors="replace"))


def _start(image: Path, form: str, kernel: disk.Files, phase: str, console: Path, more: list[str]) -> subprocess.Popen[bytes]:
    """One processor: two such machines run side by side where there are two."""
    with console.open("wb") as out:
        return subprocess.Popen(
            [
                "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "Haswell-noTSX-IBRS", "-M", "pc", "-smp", "1",
                "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
                "-drive", f"file={image},format={form},if=virtio,cache=writeback", "-device", "virtio-rng-pci",
                "-kernel", kernel.vmlinuz, "-initrd", kernel.initrd, *more, "-append",
                f"root=/dev/vda rw console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off {phase}",
            ],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
