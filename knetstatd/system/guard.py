# SPDX-License-Identifier: GPL-2.0-or-later
"""The outermost door of both programs: when the machine denies them memory, a file or their output, they say so in one line.

Nothing is imported here but what Python has loaded anyway: a program that gets no memory fails while it imports.
"""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

_UNKNOWN = 3  # Exit.UNKNOWN, whose module may be the one that cannot be imported; a test holds the two together
_NO_READER, _INTERRUPTED = 141, 130  # 128 + SIGPIPE, 128 + SIGINT: what a shell says of a program that they end


def guarded(program: str, work: Callable[[], int]) -> int:
    """The exit status of `work`, with its output written; 3, and one line on standard error, if the machine denies that.

    Errors of ours (KnetstatdError) are for `work` to tell, and programming errors are not caught.
    """
    try:
        try:
            code = work()
        except SystemExit as e:  # argparse, and a stop while something is taken back
            code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk, or a reader that has gone, is met here, not while Python ends
        return code
    except BrokenPipeError:
        _silence(sys.stdout)
        return _NO_READER
    except KeyboardInterrupt:
        return _INTERRUPTED
    except MemoryError:
        return _say(program, "there is not enough memory. Free some, or raise its limit (ulimit -v, MemoryMax=).")
    # No memory for a shared library is an ImportError; none to parse or load a file, either of the others (met at 20 MB).
    except (ImportError, SyntaxError, SystemError) as e:
        return _say(program, f"it cannot load its own code: {e}. Free memory, or reinstall the package.")
    except OSError as e:
        place = os.fsdecode(e.filename) if isinstance(e.filename, str | bytes) else "its output cannot be written"
        return _say(program, f"{place}: {e.strerror or e}.")


def leave(code: int) -> NoReturn:
    """Ends the program, whose work is done: Python would take a tenth of a command's time to take its memory apart."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)


def _say(program: str, text: str) -> int:
    _silence(sys.stdout)
    try:
        print(f"{program}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)
    return _UNKNOWN


def _silence(stream: IO[str] | None) -> None:
    """Sends to nowhere what a stream could not write: else Python tries again while it ends, and ends with 120."""
    if stream is None:
        return
    try:
        full = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, full)
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # nothing is left to write with
