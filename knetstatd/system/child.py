# SPDX-License-Identifier: GPL-2.0-or-later
"""Work that a child of this process does, which is a copy of it: the memory that it takes is given back when the child ends."""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from typing import TYPE_CHECKING, Any, NoReturn

from knetstatd.core.errors import ChildLost

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_MEMORY = 12  # how a child ends that has none, like ENOMEM


def in_child(
    work: Callable[[], list[Any]], *, tick: Callable[[], None] = lambda: None, pace: float = 1.0, longest: float = 600.0
) -> list[Any]:
    """The answer of `work`, a list of what JSON knows, computed in a child; what else it changes is lost.

    tick: called every `pace` seconds or oftener meanwhile; what it raises ends the child.  longest: seconds, then the child is
    killed. Raises ChildLost, and RuntimeError if `work` raises.
    """
    reading = writing = -1
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
    except OSError as e:
        for end in (reading, writing):
            if end >= 0:
                os.close(end)
        raise ChildLost(f"no process can be started for it: {e.strerror}") from e
    if pid == 0:
        _work(work, writing)
    os.close(writing)
    text, status = _awaited(pid, reading, tick, pace, time.monotonic() + longest)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 or code == _NO_MEMORY:
        how = f"signal {-code}" if code < 0 else "no memory"
        raise ChildLost(f"the process that was to do it ended with {how}: it had too little memory, or too little time")
    if code:
        raise RuntimeError(f"the child that was to do it ended with {code}")
    answer: list[Any] = json.loads(text)
    return answer


def _work(work: Callable[[], list[Any]], out: int) -> NoReturn:
    """The child's part."""
    try:
        signal.set_wakeup_fd(-1)
        with os.fdopen(out, "w") as file:
            json.dump(work(), file)
        os._exit(0)
    except MemoryError:
        os._exit(_NO_MEMORY)
    except BaseException:
        import traceback  # 0.3 MB in the daemon

        traceback.print_exc()
        os._exit(1)


def _awaited(pid: int, reading: int, tick: Callable[[], None], pace: float, deadline: float) -> tuple[bytes, int]:
    """The parent's part: all that a child writes, and how it ends."""
    parts: list[bytes] = []
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(reading, selectors.EVENT_READ)
            while not parts or parts[-1]:
                if selector.select(pace):
                    parts.append(os.read(reading, 1 << 16))
                elif time.monotonic() >= deadline:
                    os.kill(pid, signal.SIGKILL)
                tick()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(reading)
        _, status = os.waitpid(pid, 0)
    return b"".join(parts), status
