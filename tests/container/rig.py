# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian machines for tests: real systemd, real apt, real dkms, real kernels in /lib/modules.

    with rig.container("bookworm") as c:
        old, new, *_ = c.kernels()
        c.add_fixture("story")
        c.install_kernel(new)                       # apt, with every hook of the distribution
        assert c.vermagic(new, "kt_story").startswith(old.release)

What is not real, and how it is made to look right:

- The kernel that runs is the host's. Inside, uname(2) and /proc/sys/kernel/osrelease answer `running` instead, by
  default the kernel that is already installed (uname.c says how). So `uname -r` in a Makefile, in dkms and in the
  product lead to that kernel's headers in /lib/modules, exactly as on a machine that has booted it.
- Nothing can be loaded. /sys/module is a directory of the test's: empty until set_loaded().
- Packages come from a local repository in /srv/repo; there is no network.
- fsync does nothing (volatile overlay): power cuts are simulated in the VM tests, not here.
"""

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import roots
from .archive import Kernel
from .command import HOST_ENVIRONMENT, Command, CommandError, Result
from .kmods import copy_fixture
from .machine import Machine

__all__ = ["SUITES", "Command", "CommandError", "Container", "Kernel", "Result", "container", "live"]

SUITES = tuple(roots.PICKS)

# Containers that exist now: when a test fails, their journals are shown.
live: list["Container"] = []

SCRIPT = """\
#!/usr/bin/python3 -ISB
import sys

sys.path.append("/usr/lib/python3/dist-packages")
from knetstatd.{module} import main

sys.exit(main())
"""


class Container:
    def __init__(self, root: roots.Root, *, first_kernel: bool) -> None:
        self.suite = root.suite
        self._root = root
        self._machine = Machine(root.layers(first_kernel=first_kernel), {root.repo: "/srv/repo"})

    @property
    def root(self) -> Path:
        """Its file system, on the host. Writes are seen inside at once, also by inotify."""
        return self._machine.root

    @property
    def repository(self) -> Path:
        """On the host: the packages that its apt finds in /srv/repo."""
        return self._root.repo

    @property
    def booted(self) -> bool:
        return self._machine.booted

    # Commands

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = False,
        timeout: float = 120.0,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
    ) -> Result:
        """Run as root, with a small environment of its own and `env`. Raises CommandError where it takes longer than
        `timeout`, and with `check` where it fails. A command ended by signal N has returncode 128 + N."""
        result = self.start(argv, env=env, stdin=stdin).wait(timeout)
        if check and result.returncode:
            raise CommandError(f"exit {result.returncode}", result)
        return result

    def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str | bytes | None = None) -> Command:
        """Start in the background; see Command: running(), output(), kill(), wait()."""
        return self._machine.start(argv, env=env, stdin=stdin)

    def output(self, *argv: str) -> str:
        """stdout, stripped, of a command that must succeed."""
        return self.run(argv, check=True).stdout.strip()

    def path(self, inside: str) -> Path:
        return self.root / inside.lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    # Power

    def boot(self) -> None:
        self._machine.boot()
        if self.path("/etc/rig/release").exists():
            self._machine.control("mount", "--bind", "/etc/rig/release", "/proc/sys/kernel/osrelease")
        # The boot is complete for systemd-nspawn a moment before it is for systemctl.
        self.run(["systemctl", "is-system-running", "--wait"], timeout=60)

    def power_off(self, timeout: float = 60.0) -> None:
        """As `systemctl poweroff` does: units are stopped in order. Fails where that takes longer than `timeout` seconds."""
        self._machine.power_off(timeout)

    def crash(self) -> None:
        """End every process at once. The file system stays as it is."""
        self._machine.crash()

    def reboot(self, running: Kernel | str | None = None) -> None:
        """Power off, and boot, into another kernel where one is given."""
        self.power_off()
        if running is not None:
            self.set_running(running)
        self.boot()

    def set_running(self, kernel: Kernel | str) -> None:
        self.write("/etc/rig/release", f"{kernel.release if isinstance(kernel, Kernel) else kernel}\n")
        self.write("/etc/ld.so.preload", "/usr/local/lib/rig-uname.so\n")

    def set_loaded(self, module: str, srcversion: str | None) -> None:
        """What /sys/module says of `module`; with None it is not loaded. No uevent is sent."""
        directory = self._machine.sys_module / module
        if directory.exists():
            shutil.rmtree(directory)
        if srcversion is not None:
            directory.mkdir()
            (directory / "initstate").write_text("live\n")
            (directory / "srcversion").write_text(f"{srcversion}\n")

    # Kernels

    def kernels(self, series: str = "") -> list[Kernel]:
        """What the local repository has, oldest first; with `series` ("6.12", "7") only of that one."""
        return [kernel for kernel in self._root.kernels() if f"{kernel.release}.".startswith(series and f"{series}.")]

    def install_argv(self, kernel: Kernel, *, image: bool = True, headers: bool = True) -> list[str]:
        argv = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "install"]
        return [*argv, *([kernel.image] if image else []), *([kernel.headers] if headers else [])]

    def install_kernel(self, kernel: Kernel, *, image: bool = True, headers: bool = True, check: bool = True) -> Result:
        return self.run(self.install_argv(kernel, image=image, headers=headers), check=check, timeout=600)

    def package_state(self, package: str) -> str:
        """dpkg's two letters: "ii" installed, "iF" half-configured, "iU" unpacked, "" never heard of."""
        return self.run(["dpkg-query", "-W", "-f=${db:Status-Abbrev}", package]).stdout.strip()

    def module_file(self, kernel: Kernel, module: str) -> Path | None:
        """On the host: the one file of `module` in `kernel`'s tree that dkms installs."""
        found = sorted(self.path(f"/lib/modules/{kernel.release}/updates").rglob(f"{module}.ko*"))
        assert len(found) < 2, found
        return found[0] if found else None

    def vermagic(self, kernel: Kernel, module: str) -> str:
        return self.output("modinfo", "-k", kernel.release, "-F", "vermagic", module)

    # DKMS modules of our own, from tests/fixtures

    def add_fixture(
        self, name: str, *, autoinstall: bool | None = None, files: Mapping[str, str] | None = None, version: str = "1.0"
    ) -> str:
        """Copy to /usr/src (kmods.copy_fixture) and `dkms add`; returns "kt-NAME/VERSION"."""
        target = self.path(f"/usr/src/kt-{name}-{version}")
        copy_fixture(name, target, autoinstall=autoinstall, files=files, version=version)
        self.run(["dkms", "add", f"kt-{name}/{version}"], check=True)
        return f"kt-{name}/{version}"

    # The product

    def install_product(self, checkout: Path, config: str | None = None) -> None:
        """As its package would, from a source tree; the service is not started."""
        packages = self.path("/usr/lib/python3/dist-packages")
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(checkout / "knetstatd", packages / "knetstatd", ignore=ignore, dirs_exist_ok=True)
        spec = importlib.util.find_spec("inotify_simple")
        assert spec is not None, "inotify_simple is not installed beside pytest"
        assert spec.origin is not None
        if spec.submodule_search_locations:
            shutil.copytree(Path(spec.origin).parent, packages / "inotify_simple", ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copy(spec.origin, packages / "inotify_simple.py")
        self.run(["python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages/knetstatd"], check=True)
        self.write("/usr/bin/knetstatctl", SCRIPT.format(module="cli.main"), 0o755)
        self.write("/usr/sbin/knetstatd", SCRIPT.format(module="daemon.main"), 0o755)
        if config is not None:
            self.write("/etc/knetstatd/knetstatd.toml", config)
        self._install_units(checkout / "units")
        shutil.copy(checkout / "units/knetstatd.sysusers", self.path("/usr/lib/sysusers.d/knetstatd.conf"))
        self.run(["systemd-sysusers", "knetstatd.conf"], check=True)

    def _install_units(self, units: Path) -> None:
        for path in sorted(units.glob("*")):
            if path.suffix in (".service", ".socket", ".timer", ".path", ".target", ".slice"):
                shutil.copy(path, self.path("/etc/systemd/system"))
            elif path.suffix == ".catalog":
                shutil.copy(path, self.path("/usr/lib/systemd/catalog"))
                self.run(["journalctl", "--update-catalog"], check=True)
        if self.booted:
            self.run(["systemctl", "daemon-reload"], check=True)

    def start_product(self) -> None:
        """Returns when it has said READY."""
        self.run(["systemctl", "start", "knetstatd.service"], check=True)

    # The journal

    def journal(self, unit: str | None = None, *args: str) -> list[dict[str, str]]:
        """Entries as `journalctl -o json` gives them, of all boots; `args` are journalctl's. A field that is not
        UTF-8 is decoded with replacement characters; one that an entry has more than once is joined by newlines."""
        select = ["-u", unit] if unit else []
        text = self.run(["journalctl", "-q", "-a", "--no-pager", "-o", "json", *select, *args], check=True).stdout
        return [{key: _field(value) for key, value in json.loads(line).items()} for line in text.splitlines()]

    def journal_tail(self, lines: int = 60) -> str:
        """For people; read from the host, so that it works in any state."""
        argv = ["journalctl", "-q", "--no-pager", "-o", "short-precise", "-n", str(lines)]
        argv += ["-D", f"{self.root}/var/log/journal"]
        done = subprocess.run(argv, env=HOST_ENVIRONMENT, capture_output=True, text=True, errors="replace", check=False)
        return done.stdout + done.stderr

    def close(self) -> None:
        self._machine.close()


def _field(value: object) -> str:
    match value:
        case str():
            return value
        case list() if all(isinstance(byte, int) for byte in value):
            return bytes(value).decode(errors="replace")
        case list():
            return "\n".join(map(_field, value))
        case _:
            return ""


@contextlib.contextmanager
def container(suite: str, *, boot: bool = True, first_kernel: bool = True, running: str | None = None) -> Iterator[Container]:
    """A machine of `suite`, gone afterwards. Without `boot` its commands run one by one, with no systemd.

    With `first_kernel` the oldest of kernels() and its headers are installed already, and it is what seems to run;
    `running` names another release."""
    root = roots.root(suite)
    with roots.in_use(root), contextlib.ExitStack() as stack:
        c = Container(root, first_kernel=first_kernel)
        stack.callback(c.close)
        live.append(c)
        stack.callback(live.remove, c)
        if running is None and first_kernel:
            running = root.kernels()[0].release
        if running is not None:
            c.set_running(running)
        try:
            if boot:
                c.boot()
            yield c
        except BaseException:
            print(f"--- journal of {suite}\n{c.journal_tail()}", file=sys.stderr)
            raise
