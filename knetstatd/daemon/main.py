# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatd's start: the command line, the configuration, the lock that makes it the only one; then the loop."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from knetstatd.system import guard

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

USAGE = """\
Usage: knetstatd [--foreground | --version]

Watches for kernels being installed, builds and proves the guarded modules for them before the reboot.
It runs in the foreground; its configuration is /etc/knetstatd/knetstatd.toml; see knetstatd(8)."""


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    return guard.guarded("knetstatd", lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(words: Sequence[str]) -> int:
    from knetstatd import __version__
    from knetstatd.core.exits import Exit
    from knetstatd.system import files

    match list(words):
        case [] | ["--foreground"]:
            return start(files.HERE)
        case ["--version"]:
            print(f"knetstatd {__version__}")
        case ["--help" | "-h"]:
            print(USAGE)
        case _:
            print(USAGE, file=sys.stderr)
            return Exit.USAGE
    return Exit.OK


def start(root: Path) -> int:
    """Runs the daemon until a signal ends it; returns the exit status.

    A faulty configuration ends it at once: it does not guard modules that nobody has named.
    """
    from knetstatd.core import config
    from knetstatd.core.errors import KnetstatdError
    from knetstatd.core.events import Event
    from knetstatd.core.exits import Exit
    from knetstatd.daemon import announce, loop
    from knetstatd.state import paths
    from knetstatd.system import locks
    from knetstatd.system.journal import Journal

    journal = Journal()
    try:
        settings = config.load(root)
    except KnetstatdError as e:
        journal.log(Event.CONFIG_REJECTED, "the configuration is faulty; knetstatd does not start", evidence=str(e))
        announce.not_started(paths.places(root))
        return e.exit_code
    try:
        lock = locks.hold(paths.places(root).daemon_lock)
    except KnetstatdError as e:
        print(f"knetstatd: {e}", file=sys.stderr)
        return e.exit_code
    try:
        daemon = loop.Daemon(root, settings, journal)
        daemon.open()
        daemon.loop()
        daemon.close()
    finally:
        os.close(lock)
    return Exit.OK
