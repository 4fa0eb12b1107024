# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU and a static busybox for a container: the host's own, with the libraries that they need, in a directory of their own.

The container's root has neither, so that most of its tests see a machine without rehearsals. What is put there starts with the
host's loader and C library, so it runs in every suite.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from .rig import Container

PROGRAM = Path("/usr/bin/qemu-system-x86_64")
FIRMWARE = [
    Path("/usr/share/seabios/bios-256k.bin"),
    *(Path("/usr/share/qemu") / name for name in ("linuxboot.bin", "linuxboot_dma.bin", "kvmvapic.bin")),
]
# Loaded by name, from where QEMU is told; 10.x has it built in.
EMULATOR = Path("/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so")
HOME = "/opt/qemu"


def install(c: Container) -> None:
    """As installing qemu-system-x86 and busybox-static would, as far as a rehearsal can see."""
    home = c.path(HOME)
    (home / "lib").mkdir(parents=True)
    (home / "share").mkdir()
    (home / "modules").mkdir()
    shutil.copy(PROGRAM, home)
    if EMULATOR.exists():
        shutil.copy(EMULATOR, home / "modules")
    listed = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
    libraries = [Path(found) for found in re.findall(r"(/\S+\.so\S*)", listed)]
    for path in libraries:
        shutil.copy(path, home / "lib" / path.name)
    for path in FIRMWARE:
        shutil.copy(path, home / "share")
    loader = next(path.name for path in libraries if path.name.startswith("ld-linux"))
    start = f'exec {HOME}/lib/{loader} --library-path {HOME}/lib {HOME}/{PROGRAM.name} -L {HOME}/share "$@"\n'
    c.write(os.fspath(PROGRAM), f"#!/bin/sh\nexport QEMU_MODULE_DIR={HOME}/modules\n{start}", 0o755)
    (busybox,) = {Path(name).resolve() for name in ("/usr/bin/busybox", "/bin/busybox") if Path(name).exists()}
    shutil.copy(busybox, c.path("/usr/bin/busybox"))


def remove(c: Container) -> None:
    """As removing the packages would."""
    c.path(os.fspath(PROGRAM)).unlink()
