# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving modules to the running kernel, and what it says where it does not take one.

Rule 1: modprobe does it, by the machine's own configuration: what that denies is not forced.
Rule 2: the kernel's words are evidence, and decide the cause; modprobe's are what is left where the kernel says nothing.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from knetstatd.diagnosis import build_log, kernel_messages
from knetstatd.machine import loaded_modules
from knetstatd.core import names
from knetstatd.system import process
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_TIMEOUT = 60.0  # seconds
_MOST_WORDS = 8
_FIX = {
    "denied": "Take it out of module_blacklist= on the kernel's command line, or out of `load` in knetstatd.toml",
    "signature": "knetstatctl verify says which key it is signed with, and which this kernel accepts",
    "exports": "Unload the module that exports the same, or take one of the two out",
}


def load(root: Path, modules: Iterable[tuple[str, str]]) -> None:
    """Loads modules, in this order, each by its file's name and the kernel's.

    Raises BuildError of kind DENIED (by configuration), MISMATCH (the file is not for this kernel) or REFUSED (all else).
    """
    for file, name in modules:
        log = _KernelLog()
        done = process.run(["modprobe", "-b", "--", file], timeout=_TIMEOUT)
        words = log.words(name)
        if loaded_modules.is_live(root / "sys/module" / name):
            continue
        if not done.code:
            raise BuildError(
                Kind.DENIED, f"{name} is denied by modprobe's configuration", "/etc/modprobe.d",
                "Take it out of the blacklist, or out of `load` in knetstatd.toml",
            )  # fmt: skip
        raise _refusal(name, done, words)


def _refusal(name: str, done: process.Finished, words: tuple[str, ...]) -> BuildError:
    lines = build_log.last_lines(done.text, 3)
    if found := kernel_messages.find(words):
        kind = Kind.MISMATCH if found.check in kernel_messages.FOREIGN else Kind.DENIED if found.check == "denied" else Kind.REFUSED
        fix = _FIX.get(found.check, "")
        return BuildError(kind, f"the kernel does not load {name}: {found.reason}", "", fix, (*words, *lines))
    silent = "its init died" if done.code < 0 else "modprobe says nothing"
    said = "its init does not return" if done.timed_out else lines[-1] if lines else silent
    fix = "Tell the module's author what the kernel says" + ("" if words else "; journalctl -k -b may have it")
    return BuildError(Kind.REFUSED, f"the kernel does not load {name}: {said}", "", fix, (*words, *lines))


class _KernelLog:
    """What the kernel says from now on (Documentation/ABI/testing/dev-kmsg); nothing where this process may not read it."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def words(self, name: str) -> tuple[str, ...]:
        """The lines about one module, or about loading as such; the log is closed."""
        if self._fd < 0:
            return ()
        subject = re.compile(rf"\b{re.escape(name).replace('_', '[_-]')}\b")
        found = []
        with open(self._fd, "rb", buffering=0) as log:
            while (record := _record(log.fileno())) is not None:
                if subject.search(record) or kernel_messages.OOPS.search(record) or kernel_messages.find([record]):
                    found.append(names.clean(record))
        return tuple(found[:_MOST_WORDS])


def _record(fd: int) -> str | None:
    """The next record's text, None after the last."""
    while True:
        try:
            data = os.read(fd, 8192)
        except BrokenPipeError:  # overwritten before it was read: there are later ones
            continue
        except OSError:
            return None
        head, _, text = data.decode("utf-8", "replace").partition(";")
        return text.partition("\n")[0] if head else None
