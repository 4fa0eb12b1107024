# SPDX-License-Identifier: GPL-2.0-or-later
"""The rig does what its tests will take for granted, and plain dkms does what the product is there for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import archive, rig, roots
from .archive import Entry, Pick

DKMS = {"bookworm": "dkms-3.0.10", "trixie": "dkms-3.2.2"}
TIMEOUT_OF_AN_INSTALL = 25.0

# Pure parts


def test_picks_of_a_series_are_its_newest() -> None:
    available = ["6.1.0-9-x", "6.1.0-10-x", "6.10.0-1-x", "6.1.0-8-x", "6.1.0-10-x"]
    assert archive.pick_releases(available, Pick("6.1", 2)) == ["6.1.0-9-x", "6.1.0-10-x"]
    assert archive.pick_releases(available, Pick("6.9", 2)) == []


def test_picks_of_a_major_number_are_of_different_series() -> None:
    available = ["7.9.12+d-x", "7.9.9+d-x", "7.10.2+d-x", "7.10.2+d.1-x", "7.2.1+d-x", "7.11-x"]
    assert archive.pick_releases(available, Pick("7", 2)) == ["7.9.12+d-x", "7.10.2+d.1-x"]


def test_mirrors_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://commented.example/debian bookworm main\ndeb [arch=amd64] http://vendor.example/apt stable main\n".replace(
            "stable", "vendor"
        )
    )
    assert archive.host_mirrors(tmp_path) == (None, None)
    (tmp_path / "sources.list.d/debian.sources").write_text(
        "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\n contrib\n\n# next\nTypes: deb\nEnabled: no\nURIs: http://off.example\nSuites: sid\n"
        "Components: main\n\nTypes: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n"
    )
    assert archive.host_mirrors(tmp_path) == ("http://mirror.example/debian", "http://mirror.example/security")


def test_one_line_sources() -> None:
    text = "deb-src http://a.example s main\n deb [signed-by=/k] http://a.example trixie main contrib # why\n"
    assert list(archive.parse_list(text)) == [Entry("http://a.example", "trixie", ("main", "contrib"))]


# A booted machine


def test_boots_with_systemd(machine: rig.Container) -> None:
    assert machine.output("systemctl", "is-system-running") == "running"
    assert machine.output("cat", "/proc/1/comm") == "systemd"
    assert machine.output("dkms", "--version") == DKMS[machine.suite]
    assert machine.output("sh", "-c", '. /etc/os-release; echo "$VERSION_CODENAME"') == machine.suite


def test_the_first_kernel_seems_to_run(machine: rig.Container) -> None:
    first, second, *_ = machine.kernels()
    answers = {
        machine.output("uname", "-r"),
        machine.output("env", "-i", "/bin/uname", "-r"),
        machine.output("python3", "-I", "-c", "import os; print(os.uname().release)"),
        machine.output("cat", "/proc/sys/kernel/osrelease"),
        machine.output("systemd-run", "--pipe", "--wait", "-q", "-p", "ProtectSystem=strict", "uname", "-r"),
    }
    assert answers == {first.release}
    assert machine.path(f"/lib/modules/{first.release}/modules.builtin").exists()
    assert machine.output("test", "-e", f"/lib/modules/{first.release}/build/Makefile") == ""
    machine.reboot(running=second)
    assert machine.output("uname", "-r") == machine.output("cat", "/proc/sys/kernel/osrelease") == second.release
    assert len(machine.output("journalctl", "--list-boots", "-q").splitlines()) == 2


def test_commands(bookworm: rig.Container) -> None:
    script = 'cat; echo "$1 $HOME ${X} %n"; echo err >&2; exit 7'
    result = bookworm.run(["sh", "-c", script, "sh", "$y '"], stdin="in ", env={"X": "$HOME\n"})
    assert result[1:4] == (7, "in $y ' /root $HOME\n %n\n", "err\n")
    assert bookworm.run(["sh", "-c", "kill -TERM $$"]).returncode == 128 + signal.SIGTERM
    assert bookworm.run(["no-such-program"]).returncode == 127
    assert len(bookworm.run(["head", "-c", "5000000", "/dev/zero"]).stdout) == 5_000_000
    assert bookworm.run(["sh", "-c", "yes | head -n 1"]).stderr == ""
    with pytest.raises(rig.CommandError, match="exit 3"):
        bookworm.run(["sh", "-c", "exit 3"], check=True)


@pytest.mark.parametrize("boot", [True, False])
def test_a_command_that_takes_too_long_is_gone_with_all_its_children(boot: bool) -> None:
    mark = f"86{os.getpid()}"
    with rig.container("bookworm", boot=boot) as c:
        started = time.monotonic()
        with pytest.raises(rig.CommandError, match="killed"):
            c.run(["sh", "-c", f"setsid sleep {mark} & sleep {mark}"], timeout=1.5)
        assert time.monotonic() - started < 10
        assert not _processes(f"sleep {mark}")


def test_background_commands(bookworm: rig.Container) -> None:
    command = bookworm.start(["sh", "-c", "echo begun; sleep 600"])
    deadline = time.monotonic() + 30
    while command.output() != "begun\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert command.running()
    command.kill()
    assert command.wait(30).returncode != 0


def test_nothing_can_be_loaded_and_sys_module_is_the_tests(bookworm: rig.Container) -> None:
    assert (
        bookworm.run(["python3", "-c", "import ctypes; exit(ctypes.CDLL(None).syscall(175, b'', 0, b'') != -1)"]).returncode
        == 0
    )
    assert bookworm.output("ls", "/sys/module") == ""
    bookworm.set_loaded("kt_good", "ABCDEF")
    assert bookworm.output("cat", "/sys/module/kt_good/srcversion") == "ABCDEF"
    bookworm.set_loaded("kt_good", None)
    assert bookworm.output("ls", "/sys/module") == ""


def test_no_network_but_a_repository(machine: rig.Container) -> None:
    assert machine.output("sh", "-c", "ls /sys/class/net") == "lo"
    assert len(machine.kernels()) >= 2
    for kernel in machine.kernels():
        machine.run(["apt-get", "-s", "install", kernel.image, kernel.headers], check=True)
    assert machine.kernels("no.such") == []


def test_the_journal_is_read(bookworm: rig.Container) -> None:
    script = "from systemd import journal; journal.send('täst\\nline 2', KNETSTATD_X=b'\\xff\\x00', PRIORITY=3)"
    bookworm.run(["systemd-run", "--wait", "--unit=said", "python3", "-c", script], check=True)
    (entry,) = (e for e in bookworm.journal("said") if "KNETSTATD_X" in e)
    assert entry["MESSAGE"] == "täst\nline 2"
    assert entry["KNETSTATD_X"] == "\ufffd\0"
    assert entry["PRIORITY"] == "3"
    assert "line 2" in bookworm.journal_tail()


def test_inotify_inside_sees_what_the_host_writes(bookworm: rig.Container) -> None:
    watch = bookworm.start(["python3", "-c", _WATCH])
    while "watching" not in watch.output():
        assert watch.running()
        time.sleep(0.05)
    bookworm.write("/lib/modules/seen", "")
    assert watch.wait(20).stdout == "watching\nseen\n"


_WATCH = """
import ctypes, os, select
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
assert libc.inotify_add_watch(fd, b"/lib/modules", 0x100) > 0
print("watching", flush=True)
assert select.select([fd], [], [], 15)[0]
print(os.read(fd, 4096)[16:].rstrip(b"\\0").decode())
"""


def test_the_product_is_installed_and_started(machine: rig.Container, tmp_path: Path) -> None:
    package = tmp_path / "knetstatd"
    for folder in (package, package / "cli", package / "daemon"):
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    (package / "cli/main.py").write_text("import inotify_simple\ndef main(): print(inotify_simple.__name__)\n")
    (package / "daemon/main.py").write_text(
        "import sdnotify, signal, pyudev, systemd.journal\n"
        "def main():\n    sdnotify.SystemdNotifier().notify('READY=1')\n    signal.pause()\n"
    )
    (tmp_path / "units").mkdir()
    (tmp_path / "units/knetstatd.service").write_text("[Service]\nType=notify\nExecStart=knetstatd\n")
    (tmp_path / "units/knetstatd.sysusers").write_text("u knetstatd -\n")
    machine.install_product(tmp_path, "x = 1\n")
    assert machine.output("knetstatctl") == "inotify_simple"
    machine.start_product()
    assert machine.output("systemctl", "is-active", "knetstatd") == "active"
    assert machine.path("/etc/knetstatd/knetstatd.toml").read_text() == "x = 1\n"


# Not booted, and the end


def test_without_a_boot(suite: str) -> None:
    with rig.container(suite, boot=False, first_kernel=False) as c:
        assert c.run(["sh", "-c", "uname -r; exit 5"])[1:4] == (5, f"{os.uname().release}\n", "")
        assert list(c.path("/lib/modules").glob("*")) == []


@pytest.mark.parametrize("first_kernel", [True, False])
def test_where_no_overlay_can_be_mounted(monkeypatch: pytest.MonkeyPatch, first_kernel: bool) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(roots, "mount_overlay", refuse)
    with rig.container("bookworm", first_kernel=first_kernel) as c:
        assert c.output("dkms", "--version") == DKMS["bookworm"]
        assert len(list(c.path("/lib/modules").glob("*"))) == first_kernel
        assert not c.root.is_mount()


def test_nothing_is_left() -> None:
    def fail() -> None:
        with rig.container("bookworm") as c:
            there.append(c.root)
            c.start(["sh", "-c", "setsid sleep 864 & sleep 864"])
            c.crash()
            c.boot()
            raise ZeroDivisionError

    there: list[Path] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    (root,) = there
    assert not root.parent.exists()
    assert str(root.parent) not in Path("/proc/self/mountinfo").read_text()
    assert not _processes("sleep 864")
    assert not rig.live


def test_a_killed_test_run_takes_its_machines_along(tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom container import rig\n"
        "with rig.container('bookworm') as c:\n"
        "    command = c.start(['sleep', '8647'])\n"
        "    print(c.root.parent.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    name = done.stdout.strip()
    deadline = time.monotonic() + 20
    while _processes("sleep 8647") or _processes(name):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with rig.container("bookworm", boot=False):
        assert not (roots.cache_dir() / "run" / name).exists()


def _processes(words: str) -> list[str]:
    """Command lines that have `words` in them, zombies aside."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line:
            lines.append(line)
    return lines
