# SPDX-License-Identifier: GPL-2.0-or-later
"""One throwaway machine: an overlay on cached layers, booted by systemd-nspawn or entered command by command.

A booted machine runs commands as transient units of its own PID 1 (systemd-run), not as processes that a privileged
host pushed into its namespaces: they have the container's capabilities and system calls, a cgroup that can be killed
as a whole, and no environment but the one given. A machine that is not booted gets one systemd-nspawn per command,
with /run and /tmp fresh each time.

Nothing outlives close(): every process is ended, the overlay is unmounted, the directory removed. Should the test run
itself be killed with SIGKILL, its machines end with it, and the next run removes what they left.
"""

import contextlib
import fcntl
import itertools
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from . import roots
from .cgroups import Cgroup
from .command import HOST_ENVIRONMENT, Command
from .overlay import assemble, dismantle

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}
BOOT_TIMEOUT = 90.0

# Runs "$@" and says how it ended as a shell does: 128 + N for signal N. (systemd-run calls death by SIGTERM a success.)
SHELL = '"$@"; exit $?'

_serial = itertools.count(1)


class Machine:
    """`root` is the path of its file system on the host; what is written there is seen inside at once."""

    def __init__(self, layers: Sequence[Path], binds: Mapping[Path, str]) -> None:
        self.name = f"knetstatd-rig-{os.getpid()}-{next(_serial)}"
        self.directory = roots.cache_dir() / "run" / self.name
        self.root = self.directory / "root"
        self.sys_module = self.directory / "sys-module"
        self.booted = False
        self.leader = 0
        binds = {**binds, self.sys_module: "/sys/module"}
        self._binds = [f"--bind-ro={host}:{inside}" for host, inside in binds.items()]
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._commands: list[Command] = []
        self._cgroup = Cgroup(self.name)
        self._alive = _claim(self.directory)
        try:
            self._cgroup.make()
            self.sys_module.mkdir()
            assemble(self.directory, layers)
            (self.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        except BaseException:
            self.close()
            raise

    def boot(self) -> None:
        """Returns when its PID 1 says that the boot is complete."""
        assert not self.booted, "already booted"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, (self.directory / "console").open("ab") as console:
            address = f"{self.name}-{uuid.uuid4().hex}"
            ready.bind(f"\0{address}")
            self._nspawn = subprocess.Popen(
                [*self._cgroup.join("boot"), "systemd-nspawn", *roots.OFFLINE, f"--machine={self.name}", "--console=pipe",
                 "--notify-ready=yes", *self._binds, "-D", self.root, "--boot"],
                env={**HOST_ENVIRONMENT, "NOTIFY_SOCKET": f"@{address}"},
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
            self._wait_ready(ready)
        self.booted = True

    def _wait_ready(self, ready: socket.socket) -> None:
        assert self._nspawn is not None
        ready.settimeout(0.2)
        deadline = time.monotonic() + BOOT_TIMEOUT
        while time.monotonic() < deadline and self._nspawn.poll() is None:
            try:
                message = ready.recv(65536).decode(errors="replace")
            except TimeoutError:
                continue
            if match := re.search(r"^X_NSPAWN_LEADER_PID=(\d+)$", message, re.MULTILINE):
                self.leader = int(match[1])
            if re.search(r"^READY=1$", message, re.MULTILINE):
                self.leader = self.leader or _leader(self._nspawn.pid)
                return
        said = (self.directory / "console").read_text(errors="replace")[-4000:]
        self.crash()
        raise RuntimeError(f"{self.name} did not boot\n{said}")

    def power_off(self, timeout: float = 60.0) -> None:
        """As `systemctl poweroff` does: units are stopped in order."""
        assert self._nspawn is not None, "not booted"
        os.kill(self.leader, signal.SIGRTMIN + 4)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._nspawn.wait(timeout)
        off = self._nspawn.poll() is not None
        self.crash()
        assert off, f"still running {timeout:.0f} s after the request to power off"

    def crash(self) -> None:
        """As a power cut does, but for the disk: all processes end at once, what they wrote stays."""
        self._cgroup.end()
        if self._nspawn is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait()
        self._nspawn, self.booted, self.leader = None, False, 0
        for command in self._commands:
            command.end()
        self._cgroup.clear()
        _forget_name(self.name)

    def close(self) -> None:
        self.crash()
        self._cgroup.remove()
        dismantle(self.directory)
        self._alive.close()

    def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str | bytes | None = None) -> Command:
        full = {**ENVIRONMENT, **(env or {})}
        wrapped = ["/bin/sh", "-c", SHELL, "sh", *argv]
        setenv = [f"--setenv={key}={value}" for key, value in full.items()]
        label = f"rig-{next(_serial)}.service"
        if self.booted:
            host_argv = self.control_argv(
                "systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--service-type=exec", f"--unit={label}",
                # Else bash complains of broken pipes in scripts that count on dying of them.
                "--property=IgnoreSIGPIPE=no", *setenv, "--", *(word.replace("$", "$$") for word in wrapped),
            )  # fmt: skip
        else:
            host_argv = [
                *self._cgroup.join(label), "systemd-nspawn", *roots.OFFLINE, f"--machine={self.name}-{next(_serial)}",
                "--pipe", "--as-pid2", *self._binds, *setenv, "-D", os.fspath(self.root), *wrapped,
            ]  # fmt: skip
        with tempfile.TemporaryFile() as given:
            given.write(stdin.encode() if isinstance(stdin, str) else stdin or b"")
            given.seek(0)
            command = Command(argv, host_argv, given, self._kill_function(label))
        self._commands.append(command)
        return command

    def _kill_function(self, label: str) -> Callable[[int], None]:
        booted = self.booted

        def kill(number: int) -> None:
            if not booted:
                assert number == signal.SIGKILL, "not booted"
                self._cgroup.end(label)
            elif self.booted:
                self.control("systemctl", "kill", f"--signal={number}", "--kill-whom=all", label, check=False)

        return kill

    def control_argv(self, *argv: str) -> list[str]:
        """A client of PID 1, entered from the host: systemctl, systemd-run."""
        return ["nsenter", f"--target={self.leader}", "--all", "--root", "--wd", "--", *argv]

    def control(self, *argv: str, check: bool = True) -> str:
        done = subprocess.run(
            self.control_argv(*argv), env=HOST_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{argv}: exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout


def _forget_name(name: str) -> None:
    with contextlib.suppress(OSError):
        Path("/run/systemd/nspawn/propagate", name).rmdir()


def _leader(nspawn: int) -> int:
    """The container's PID 1 as the host numbers it."""
    for pid in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
        if re.search(r"^NSpid:\s+\d+\s+1$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
            return int(pid)
    raise RuntimeError(f"no PID 1 among the children of {nspawn}")


def _claim(directory: Path) -> IO[str]:
    """Make `directory`, held by the lock that is returned; remove those that a killed test run left."""
    run = directory.parent
    run.mkdir(parents=True, exist_ok=True)
    with roots.lock(run.with_suffix(".lock")):
        for left in run.iterdir():
            with contextlib.suppress(OSError), (left / "alive").open() as alive:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Cgroup(left.name).remove()
                dismantle(left)
                _forget_name(left.name)
        directory.mkdir()
        mine = (directory / "alive").open("w")
        fcntl.flock(mine, fcntl.LOCK_EX)
        return mine
