# SPDX-License-Identifier: GPL-2.0-or-later
"""The one door through which programs are started.

Rules: argv lists, never a shell; standard input is empty; the environment is built from nothing; output is captured up to
a limit and never inherited; every program has a time limit, and when it is over the program's whole family is killed,
also what put itself into a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from knetstatd.core.errors import KnetstatdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import FrameType

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_TICK = 0.2
# How long a killed program may take to be gone.
_DYING = 10.0


class Finished(NamedTuple):
    """How a program ended. code: its exit status, -N when signal N killed it.  output: stdout and stderr, in order.

    truncated: how many bytes of output were dropped.  seconds: wall time.
    """

    code: int
    output: bytes
    truncated: int
    seconds: float
    timed_out: bool

    @property
    def text(self) -> str:
        """The output, undecodable bytes replaced."""
        return self.output.decode("utf-8", "replace")


def search_path(root: Path) -> str:
    """Where the programs of the system under `root` lie. None of another system is started in the place of a missing one."""
    return ":".join(os.fspath(root / directory.lstrip("/")) for directory in PATH.split(":"))


def which(root: Path, program: str) -> str | None:
    """The file of a program of the system under `root`, None if it has none."""
    return shutil.which(program, path=search_path(root))


def environment(
    temporary: Path | None = None,
    path: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
    *,
    root: Path = Path("/"),
) -> dict[str, str]:
    """An environment made from nothing: the PATH of the system under `root` (with `path` in front), the C locale, no home, a
    directory for temporary files."""
    made = {"PATH": ":".join((*path, search_path(root))), "LC_ALL": "C", "HOME": "/nonexistent", "TERM": "dumb", **(more or {})}
    if temporary is not None:
        made["TMPDIR"] = os.fspath(temporary)
    return made


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent died, so that `run` can find and kill them (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def give_back_memory() -> None:
    """Returns to the system what the C library keeps of freed memory: half a megabyte after start-up (malloc_trim(3))."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def parents() -> dict[int, int]:
    """Each live process's parent, from /proc."""
    parent_of = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as f:
                    parent_of[int(name)] = int(f.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    return parent_of


def family(pid: int) -> set[int]:
    """`pid`, all processes below it, and those whose parents died and that `adopt_orphans` made ours."""
    above = parents()
    members = {pid} | {child for child, parent in above.items() if parent == os.getpid() and child not in _mine}
    while more := {child for child, parent in above.items() if parent in members} - members:
        members |= more
    return members


def kill_family(pid: int) -> None:
    """Kills `pid` and all that it left behind; a few rounds, since a process may fork between the look and the signal."""
    for _ in range(20):
        others = family(pid) - {pid}
        for member in (pid, *others):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        for member in others:  # adopted ones are ours to reap; of the others waitpid knows nothing
            with contextlib.suppress(ChildProcessError):
                os.waitpid(member, os.WNOHANG)
        if not others:
            return
        time.sleep(0.01)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within it a service manager's stop and Ctrl-C do nothing to this process.

    By a handler, not by SIG_IGN, which programs inherit: dkms ends its own children with SIGTERM, and waits for them.
    """
    with _handled(_ignored, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        yield


@contextlib.contextmanager
def unwound() -> Iterator[None]:
    """Within it a stop, or a terminal that goes away, ends this process as Ctrl-C does: what it has begun it can take back."""
    with _handled(_end, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _ignored(number: int, frame: FrameType | None) -> None:
    pass


def kill_orphans() -> None:
    """Kills what programs left behind that ended long ago: dkms forgets a `sleep` (needs `adopt_orphans`)."""
    left = family(os.getpid()) - {os.getpid(), *_mine}
    for member in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


# Children that somebody waits for; every other child of this process was adopted.
_mine: set[int] = set()

Process = subprocess.Popen[bytes]


def start(argv: Sequence[str], *, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a program that outlives the call (the daemon's builder), in its own session, its output inherited.

    The caller owns the process: waits for it, and closes nothing else.
    """
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=dict(env), start_new_session=True)
    except OSError as e:
        raise KnetstatdError(f"cannot be started: {e.strerror}", argv[0], "Reinstall the package that brings it") from e
    _mine.add(process.pid)
    return process


def ended(process: Process) -> int:
    """Takes the exit status of a program that `start` started and that has ended."""
    _mine.discard(process.pid)
    return process.wait()


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    limit: int = 1 << 20,
    keep: Iterable[int] = (),
    tick: Callable[[], None] | None = None,
    pace: float = _TICK,
    errors: int | None = None,
) -> Finished:
    """Runs a program to its end and returns how it ended; a non-zero status is not an error here.

    timeout: seconds, then the family is killed.  limit: bytes of output kept, first half from the start, the rest from the
    end.  keep: file descriptors that the program inherits.  tick: called every `pace` seconds or oftener while it runs.
    errors: a descriptor that gets standard error; None: the output has it. Raises KnetstatdError if it cannot be started.
    """
    begin = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors is None else errors,
            env=dict(environment() if env is None else env),
            cwd=cwd,
            pass_fds=tuple(keep),
            start_new_session=True,
        )
    except OSError as e:
        hint = "Install the package that brings it" if isinstance(e, FileNotFoundError) else ""
        raise KnetstatdError(f"cannot be started: {e.strerror}", argv[0], hint) from e
    _mine.add(process.pid)
    assert process.stdout is not None
    try:
        output, timed_out = _Output(limit), False
        deadline = begin + timeout
        with selectors.DefaultSelector() as selector, process.stdout:
            os.set_blocking(process.stdout.fileno(), False)
            selector.register(process.stdout, selectors.EVENT_READ)
            if process.stdin is not None:
                os.set_blocking(process.stdin.fileno(), False)
                selector.register(process.stdin, selectors.EVENT_WRITE)
            while process.poll() is None and not timed_out:
                _pump(selector, process, output, stdin or b"", pace)
                if tick is not None:
                    tick()
                timed_out = time.monotonic() >= deadline
            if timed_out:
                kill_family(process.pid)
                with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel, and does not come back (modprobe)
                    process.wait(_DYING)
            # What a surviving child still holds open is not waited for: what is there now is read, no more.
            while chunk := _read(process.stdout):
                output.add(chunk)
        code = -signal.SIGKILL if process.returncode is None else process.returncode
        return Finished(code, output.data(), output.dropped, time.monotonic() - begin, timed_out)
    except BaseException:
        kill_family(process.pid)
        process.wait()
        raise
    finally:
        _mine.discard(process.pid)
        if process.stdin is not None:
            process.stdin.close()


def _read(stream: IO[bytes]) -> bytes:
    try:
        return os.read(stream.fileno(), 1 << 16)
    except BlockingIOError:
        return b""


def _pump(
    selector: selectors.BaseSelector, process: subprocess.Popen[bytes], output: _Output, stdin: bytes, seconds: float
) -> None:
    """One wait for the program: takes its output, feeds its input."""
    for key, _ in selector.select(seconds):
        if key.fileobj is process.stdout:
            chunk = _read(process.stdout)
            if not chunk:
                selector.unregister(process.stdout)
            output.add(chunk)
        elif process.stdin is not None:
            try:
                output.fed += os.write(process.stdin.fileno(), stdin[output.fed : output.fed + 65536])
            except BrokenPipeError:
                output.fed = len(stdin)
            if output.fed >= len(stdin):
                selector.unregister(process.stdin)
                process.stdin.close()
    if not selector.get_map():
        time.sleep(min(seconds, 0.01))


class _Output:
    """Output up to a limit: the first half from the beginning, the second the newest."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.dropped = 0
        self.fed = 0

    def add(self, chunk: bytes) -> None:
        room = self._half - len(self._head)
        self._head += chunk[: max(room, 0)]
        self._tail += chunk[max(room, 0) :]
        if (over := len(self._tail) - self._half) > 0:
            del self._tail[:over]
            self.dropped += over

    def data(self) -> bytes:
        if not self.dropped:
            return bytes(self._head + self._tail)
        return bytes(self._head) + f"\n[{self.dropped} bytes left out]\n".encode() + bytes(self._tail)


def self_argv() -> list[str]:
    """The command line that runs this installation's knetstatctl, whichever way this process was started."""
    package = os.fspath(Path(__file__).parents[2])
    code = f"import sys; sys.path[:] = {[package, *sys.path]!r}; from knetstatd.cli.main import main; sys.exit(main())"
    return [sys.executable, "-I", "-S", "-B", "-c", code]
