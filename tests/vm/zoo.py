# SPDX-License-Identifier: GPL-2.0-or-later
"""The zoo of zoo.c: compiled here, run in a throwaway machine, and what it and the kernel say of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.formats import compression
from knetstatd.rehearsal.vm import Ending, Module, Plan, Program, Rehearsal, rehearse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests import kernels

SOURCE = Path(__file__).parents[2]
# What a kernel, and one that watches itself, says where something is wrong.
BAD = re.compile(r"WARNING|BUG|Oops|KASAN|UBSAN|lockdep|possible|stall|blocked for|leak|buggy|suspicious|unregister_netdevice")


def compiled(directory: Path) -> bytes:
    """The program, statically linked."""
    sources = sorted(Path(__file__).parent.glob("zoo*.c"))
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        ["gcc", "-std=gnu11", "-O2", *warnings, "-static", "-pthread", "-o", directory / "zoo", *sources], check=True
    )
    return (directory / "zoo").read_bytes()


def sock_diag(kernel: kernels.Kernel) -> list[Module]:
    """The kernel's own modules for sock_diag(7), in the order in which they need each other."""
    found = [(name, next(kernel.modules.rglob(f"{name}.ko*"))) for name in ("inet_diag", "tcp_diag", "udp_diag")]
    return [Module(name, compression.unpack(path.read_bytes())) for name, path in found]


def run(image: Path, modules: Iterable[Module], program: bytes, *arguments: str, memory: int, timeout: float) -> Rehearsal:
    """The program takes the first of the modules out and puts it in again."""
    return rehearse(image, Plan(tuple(modules), Program(program, arguments)), memory=memory, timeout=timeout)


def complaints(outcome: Rehearsal) -> list[str]:
    """The lines of the kernel's log that must not be there."""
    return [line for line in (*outcome.words, *outcome.log) if BAD.search(line)]


def assert_fine(outcome: Rehearsal) -> None:
    said = [line for line in outcome.output.splitlines() if line.startswith(("FAIL", "DIE"))]
    assert outcome.ending is Ending.LOADED, (said, outcome.words[-40:], outcome.log[-40:], outcome.console[-4000:])
    assert complaints(outcome) == []


def module(directory: Path, *changes: tuple[str, str], make: Callable[[Path, Path], kernels.Built]) -> Module:
    """knetstat, changed. make: compiles the sources in its first argument in its second, as kernels.make."""
    shutil.copytree(SOURCE / "module", directory / "source")
    text = (directory / "source/knetstat.c").read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (directory / "source/knetstat.c").write_text(text)
    built = make(directory / "source", directory / "build")
    assert built.returncode == 0, built.log
    return Module("knetstat", (directory / "build/knetstat.ko").read_bytes())
