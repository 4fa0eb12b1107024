# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's only way to change anything: it asks root, in one line, for one of our steps for one kernel.

Rules:

1. The daemon has a user of its own. Whatever code runs in it can ask for our steps, and for nothing else: the socket of
   knetstatd-step.socket is its only door (mode 0600), and here each word of the line is checked.
2. The line is `KIND KERNEL`, or `KIND KERNEL next` if logind is to delay a shutdown meanwhile; the configuration says how. The
   answer is the exit status of the step's starter. Nothing else is read, and nothing else is answered.
3. The step is a unit of its own. It goes on if this program, or the daemon, ends.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.model import Action
from knetstatd.system import files, process, units

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping, Sequence

    from knetstatd.core.config import Config

# Which kind of builder takes a step: the word after `--step=`, in the name of the unit, and in the line.
KINDS = {
    Action.STAGE: "build",
    Action.PUBLISH: "build",
    Action.MAKE_INITRD: "build",
    Action.REHEARSE: "build",
    Action.LOAD: "load",
    Action.FETCH_HEADERS: "headers",
}
SOCKET = "run/knetstatd-step.socket"  # as in units/knetstatd-step.socket
NEXT = "next"
# Here logind keeps its seats: without logind nobody can be asked to delay a shutdown.
SEATS = "/run/systemd/seats"
_LONGEST = 128  # bytes of a line
_PATIENCE = 10.0  # seconds for the line to come
_FOR_EVER = 10 * 365 * 86400.0  # seconds: a step limits itself


def line(kernel: str, kind: str, *, held: bool) -> bytes:
    """What the daemon says. held: logind is to be asked to delay a shutdown."""
    return f"{kind} {kernel}{f' {NEXT}' if held else ''}\n".encode()


def parse(text: bytes) -> tuple[str, str, bool]:
    """A line's kind, kernel, and whether logind is to be asked. Raises KnetstatdError for any other line."""
    words = text.decode("ascii", "replace").removesuffix("\n").split(" ")
    if not text.endswith(b"\n") or words[0] not in KINDS.values() or words[2:] not in ([], [NEXT]) or len(words) < 2:
        raise KnetstatdError(f"{names.show(text.decode('latin-1'))} is no step of ours")
    return words[0], names.kernel(words[1]), len(words) > 2


def lock_argv(kernel: str, settings: Config, seats: Path) -> list[str]:
    """The command that makes logind delay a shutdown as long as it runs, none if nobody is to be asked."""
    if settings.inhibit == "off" or not seats.is_dir():
        return []
    why = f"--why=Building kernel modules for {kernel}, which the next boot starts"
    ask = ["systemd-inhibit", "--what=shutdown", f"--mode={settings.inhibit}", "--who=knetstatd", why]
    return [*ask, "sleep", f"{settings.inhibit_longest_seconds:g}"]


def serve(connection: socket.socket, settings: Config, root: Path = Path("/")) -> int:
    """Takes one line from a connection, starts the step, and answers its starter's exit status, which it returns.

    Raises KnetstatdError if the line is none of ours, or nothing can be started. root: whose programs start it.
    """
    connection.settimeout(_PATIENCE)
    text = b""
    try:
        while b"\n" not in text and len(text) < _LONGEST and (more := connection.recv(_LONGEST)):
            text += more
    except OSError as e:
        raise KnetstatdError("no line came from the daemon") from e
    kind, kernel, held = parse(text)
    env = process.environment(root=root)
    lock = lock_argv(kernel, settings, files.inside(root, SEATS)) if held else []
    # Beside the step: logind is asked over D-Bus, which any user can keep busy (64 connections that say nothing).
    with _beside(lock, env):
        start = ["systemctl", "start", "--", units.instance(kind, kernel)]
        code = process.run(start, timeout=_FOR_EVER, env=env, limit=4096).code
    with contextlib.suppress(OSError):  # the daemon may have ended meanwhile
        connection.sendall(f"{code}\n".encode())
    return code


@contextlib.contextmanager
def _beside(argv: Sequence[str], env: Mapping[str, str]) -> Iterator[None]:
    """A command that runs as long as a block; none if it is empty or cannot be started."""
    beside = None
    if argv:
        with contextlib.suppress(KnetstatdError):
            beside = process.start(argv, env=env)
    try:
        yield
    finally:
        if beside is not None:
            process.kill_family(beside.pid)
            process.ended(beside)
