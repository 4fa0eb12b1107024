# SPDX-License-Identifier: GPL-2.0-or-later
"""A command in a test machine: started, watched, ended, and what it said."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO, NamedTuple

HOST_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

# What systemd-nspawn 252 says at its end where /run is not a tmpfs.
NOISE = re.compile(r'^Attempted to remove disk file system under "/run/systemd/nspawn.*\n', re.MULTILINE)


class Result(NamedTuple):
    argv: tuple[str, ...]
    returncode: int
    """128 + N where the command was ended by signal N."""
    stdout: str
    stderr: str
    seconds: float


class CommandError(AssertionError):
    def __init__(self, what: str, result: Result) -> None:
        super().__init__(f"{' '.join(result.argv)}: {what} after {result.seconds:.1f} s")
        self.result = result

    def __str__(self) -> str:
        out, err = (("..." + text[-4000:]) if len(text) > 4000 else text for text in self.result[2:4])
        return f"{super().__str__()}\n--- stdout\n{out}\n--- stderr\n{err}"


class Command:
    """A started command. wait() is to be called; where nobody does, the machine ends it when it ends itself."""

    def __init__(self, argv: Sequence[str], host_argv: Sequence[str], stdin: IO[bytes], kill: Callable[[int], None]) -> None:
        self.argv = tuple(argv)
        self._kill = kill
        self.result: Result | None = None
        self._started = time.monotonic()
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            host_argv, env=HOST_ENVIRONMENT, stdin=stdin, stdout=self._out, stderr=self._err, start_new_session=True
        )

    def running(self) -> bool:
        return self.result is None and self._process.poll() is None

    def wait(self, timeout: float = 120.0) -> Result:
        """Raises CommandError, and ends the command, where it takes longer than `timeout`."""
        if self.result is None:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise CommandError("not ended, killed", self.end()) from None
        return self._finish()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal all of the command's processes. In a machine that is not booted, only with SIGKILL."""
        self._kill(number)

    def end(self) -> Result:
        """Killed, where it still runs."""
        if self.running():
            self._kill(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        return self._finish()

    def output(self) -> str:
        """What it wrote to stdout so far."""
        return self.result.stdout if self.result else _text(self._out)

    def _finish(self) -> Result:
        if self.result is None:
            err = NOISE.sub("", _text(self._err))
            code = self._process.returncode
            self.result = Result(
                self.argv, code if code >= 0 else 128 - code, self.output(), err, time.monotonic() - self._started
            )
            self._out.close()
            self._err.close()
        return self.result


def _text(file: IO[bytes]) -> str:
    """All of it, whatever the position that it shares with the writer."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
