# SPDX-License-Identifier: GPL-2.0-or-later
"""The progress that a long command shows."""

from __future__ import annotations

import sys
import time


class Progress:
    """Phase and elapsed time: one line that is rewritten on a terminal, plain lines elsewhere, nothing for the daemon."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._tty = shown and sys.stderr.isatty()
        self._phase = ""
        self._begin = time.monotonic()
        self._drawn = 0.0

    def phase(self, text: str) -> None:
        """A new phase begins."""
        if text == self._phase:
            return
        self.end()
        self._phase, self._begin = text, time.monotonic()
        if self._shown and not self._tty:
            print(f"{text} ...", file=sys.stderr, flush=True)
        self.tick()

    def tick(self) -> None:
        """Redraws the line, at most five times a second."""
        if self._tty and self._phase and time.monotonic() - self._drawn > 0.2:
            self._drawn = time.monotonic()
            print(f"\r\x1b[K{self._phase} ... {self._drawn - self._begin:.1f} s", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The phase is over."""
        if self._tty and self._phase:
            print(f"\r\x1b[K{self._phase}: {time.monotonic() - self._begin:.1f} s", file=sys.stderr, flush=True)
        self._phase = ""
