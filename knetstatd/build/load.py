# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving modules to the running kernel, and what the kernel says if it does not take one.

Rule 1: modprobe does it, by the machine's own configuration: what that denies is not forced.
Rule 2: the kernel's words are evidence, and decide the cause. modprobe's words count only if the kernel says nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind
from knetstatd.diagnosis import build_log, kernel_messages
from knetstatd.machine import loaded_modules
from knetstatd.system import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_TIMEOUT = 60.0  # seconds
_MOST_WORDS = 8
_FIX = {
    "denied": "Take it out of module_blacklist= on the kernel's command line, or out of `load` in knetstatd.toml",
    "signature": "knetstatctl verify says which key it is signed with, and which this kernel accepts",
    "exports": "Unload the module that exports the same, or take one of the two out",
}


def load(root: Path, modules: Iterable[tuple[str, str]], timeout: float = _TIMEOUT) -> None:
    """Loads modules, in this order, each by its file's name and the kernel's. timeout: seconds for each.

    Raises BuildError of kind DENIED (by configuration), MISMATCH (the file is not for this kernel) or REFUSED (all else).
    """
    for file, name in modules:
        with _kernel_log(root) as log:
            done = process.run(["modprobe", "-b", "--", file], timeout=timeout, env=process.environment(root=root))
            words = _words(log, name)
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
    if refusal := kernel_messages.find(words):
        denied, foreign = refusal.check == "denied", refusal.check in kernel_messages.FOREIGN
        kind = Kind.MISMATCH if foreign else Kind.DENIED if denied else Kind.REFUSED
        fix = _FIX.get(refusal.check, "")
        return BuildError(kind, f"the kernel does not load {name}: {refusal.reason}", fix=fix, evidence=(*words, *lines))
    silent = "its init died" if done.code < 0 else "modprobe says nothing"
    reason = "its init does not return" if done.timed_out else lines[-1] if lines else silent
    fix = "Tell the module's author what the kernel says" + ("" if words else "; journalctl -k -b may have it")
    return BuildError(Kind.REFUSED, f"the kernel does not load {name}: {reason}", fix=fix, evidence=(*words, *lines))


@contextlib.contextmanager
def _kernel_log(root: Path) -> Iterator[int]:
    """A descriptor that gives what the kernel says from now on (Documentation/ABI/testing/dev-kmsg); -1 if we may not read."""
    try:
        fd = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield -1
        return
    try:
        with contextlib.suppress(OSError):
            os.lseek(fd, 0, os.SEEK_END)
        yield fd
    finally:
        os.close(fd)


def _words(log: int, name: str) -> tuple[str, ...]:
    """The lines in the kernel's log about one module, or about loading as such."""
    if log < 0:
        return ()
    subject = re.compile(rf"\b{re.escape(name).replace('_', '[_-]')}\b")
    told = [
        names.clean(text) for text in messages(lambda: os.read(log, 8192))
        if subject.search(text) or kernel_messages.OOPS.search(text) or kernel_messages.find([text])
    ]  # fmt: skip
    return tuple(told[:_MOST_WORDS])


def messages(read: Callable[[], bytes]) -> Iterator[str]:
    """The texts of the records that `read` answers one after the other, until it has no more."""
    while True:
        try:
            data = read()
        except BrokenPipeError:  # overwritten before it was read: there are later ones
            continue
        except OSError:
            return
        if not data:
            return
        for line in data.decode(errors="replace").splitlines():
            if not line.startswith(" "):  # of a record, the lines after the first are its dictionary
                yield line.partition(";")[2]
