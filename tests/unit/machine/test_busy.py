# SPDX-License-Identifier: GPL-2.0-or-later
"""Package transactions, with real locks of a real process, and foreign dkms runs, in small /proc trees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.machine import busy
from knetstatd.machine.busy import Dkms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]

LOCKS = (
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/lock",
    "usr/lib/sysimage/rpm/.rpm.lock",
    "var/lib/rpm/.rpm.lock",
)
DPKG = "/var/lib/dpkg/lock-frontend"


@contextlib.contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[int]:
    """Another process that holds the file's lock; gives its pid."""
    ready, done = os.pipe()
    pid = os.fork()
    if not pid:
        with open(path, "r+b") as f:
            fcntl.lockf(f, how)
            os.write(done, b"x")
            signal.pause()
        os._exit(0)
    try:
        os.read(ready, 1)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(done)


def status(pid: int, name: str = "apt-get\n") -> dict[str, str]:
    return {f"proc/{pid}/comm": name}


@pytest.mark.parametrize("lock", LOCKS)
def test_the_holder_is_named(tree: Tree, lock: str) -> None:
    root = tree(dict.fromkeys(LOCKS, ""))
    assert busy.package(root) is None
    with locked(root / lock) as pid:
        assert busy.package(root) == f"process {pid} holds /{lock}"
        tree(status(pid))
        assert busy.package(root) == f"apt-get (pid {pid}) holds /{lock}"
        tree(status(pid, "x\n\x1b[31m" + "y" * 50))
        assert busy.package(root) == f"x??[31m{'y' * 22}... (pid {pid}) holds /{lock}"
    assert busy.package(root) is None


def test_asking_takes_nothing_and_gives_nothing_up(tree: Tree) -> None:
    root = tree({DPKG: ""})
    with locked(root / DPKG[1:]) as pid:
        for _ in range(3):
            assert busy.package(root) == f"process {pid} holds {DPKG}"
    # The same, while this process itself could lock it: nobody else sees a lock of ours.
    assert busy.package(root) is None
    with open(root / DPKG[1:], "r+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_reader_is_no_transaction(tree: Tree) -> None:
    root = tree({"var/lib/rpm/.rpm.lock": ""})
    with locked(root / "var/lib/rpm/.rpm.lock", fcntl.LOCK_SH):
        assert busy.package(root) is None


def test_without_a_package_manager(tree: Tree) -> None:
    assert busy.package(tree({"var/lib/dpkg": "a file", "var/lib/rpm/": ""})) is None


def test_an_open_file_description_s_lock_has_no_process(tree: Tree) -> None:
    root = tree({DPKG: ""})
    with open(root / DPKG[1:], "r+b") as f:
        fcntl.fcntl(f, 37, busy._FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLK
        assert busy.package(root) == f"another process holds {DPKG}"


class TestThoseWhoMayNotOpenTheFile:
    """As an ordinary user: the answer comes from /proc/locks, whose lines are the kernel's."""

    @pytest.fixture(autouse=True)
    def unprivileged(self, open_to_all: None) -> Iterator[None]:
        if os.geteuid() == 0:
            os.seteuid(65534)
        yield
        os.seteuid(os.getuid())

    @staticmethod
    def make(tree: Tree, locks: str, mode: int = 0o600) -> Path:
        os.seteuid(os.getuid())
        root = tree({DPKG: "", "proc/7/comm": "dpkg\n"})
        path = root / DPKG[1:]
        info = path.stat()
        device = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}"
        path.parent.chmod(0o700 if not mode else 0o755)
        path.chmod(0 if os.getuid() else mode)
        if locks:
            tree({"proc/locks": locks.format(file=f"{device}:{info.st_ino}", inode=info.st_ino)})
        os.seteuid(65534 if os.getuid() == 0 else os.getuid())
        return root

    def test_the_holder(self, tree: Tree) -> None:
        root = self.make(
            tree,
            "1: FLOCK  ADVISORY  WRITE 3 {file} 0 EOF\n2: POSIX  ADVISORY  READ 4 {file} 0 EOF\n"
            "3: POSIX  ADVISORY  WRITE 5 08:02:{inode} 0 EOF\n4: POSIX  ADVISORY  WRITE 6 {file}1 0 EOF\n"
            "5: POSIX  ADVISORY  WRITE 7 {file} 0 EOF\n5: -> POSIX  ADVISORY  WRITE 8 {file} 0 EOF\n",
        )
        assert busy.package(root) == f"dpkg (pid 7) holds {DPKG}"

    def test_a_lock_of_another_namespace(self, tree: Tree) -> None:
        root = self.make(tree, "1: OFDLCK ADVISORY  WRITE -1 {file} 0 EOF\n")
        assert busy.package(root) == f"another process holds {DPKG}"

    def test_a_holder_behind_a_flood_of_locks(self, tree: Tree) -> None:
        """Anybody can take a million locks. Who may not open the file does not install anything; root asks the file itself."""
        root = self.make(
            tree, "1: POSIX  ADVISORY  WRITE 5 08:02:7 0 EOF\n" * 40_000 + "5: POSIX  ADVISORY  WRITE 7 {file} 0 EOF\n"
        )
        assert busy.package(root) is None

    def test_nobody(self, tree: Tree) -> None:
        assert busy.package(self.make(tree, "1: -> POSIX  ADVISORY  WRITE 8 {file} 0 EOF\nnonsense\n")) is None

    def test_what_cannot_be_known_counts_as_held(self, tree: Tree) -> None:
        root = self.make(tree, "")
        assert (busy.package(root) or "").startswith(f"it cannot be known whether {DPKG} is held: /proc/locks: No such")

    @pytest.mark.skipif(os.getuid() != 0, reason="needs a directory of somebody else's")
    def test_a_hidden_directory(self, tree: Tree) -> None:
        root = self.make(tree, "1: x\n", 0)
        assert (busy.package(root) or "").startswith(f"it cannot be known whether {DPKG} is held: [Errno 13]")


def process(pid: int, command: str, parent: int = 1, name: str = "", mounts: str = "") -> dict[str, str]:
    """A process's files. The name is by default what the kernel makes of a script's: its first 15 bytes."""
    words = command.split(" ")
    script = next((w for w in words if w.rpartition("/")[2] not in ("sh", "bash", "dash") and not w.startswith("-")), words[0])
    files = {
        f"proc/{pid}/comm": (name or script.rpartition("/")[2][:15]) + "\n",
        f"proc/{pid}/cmdline": "\0".join(words) + "\0",
        f"proc/{pid}/stat": f"{pid} (a) S 9 ) S {parent} {pid} {pid} 0 -1\n",
    }
    return files | ({f"proc/{pid}/mountinfo": mounts} if mounts else {})


@pytest.mark.parametrize(
    "command",
    [
        "/bin/bash /usr/sbin/dkms autoinstall --kernelver 6.1.0-9-amd64",
        "/bin/bash /usr/sbin/dkms build knetstat/1.0 -k 6.1.0-9-amd64",
        "/usr/sbin/dkms install -m x -v 1",
        "bash -x /usr/sbin/dkms add x/1",
        "dkms remove x/1 --all",
        "dkms -m status uninstall -v 1",
        "dkms --kernelver=6.1 unbuild x/1",
        "dkms match --templatekernel 6.1",
        "dkms ldtarball --archive=x",
        "dkms build x/1 --dkmstree /var/lib/dkms/",
        "dkms install x/1 --dkmstree /tmp/private",
        "dkms kernel_postinst -k 6.1",
        "/bin/sh /usr/lib/dkms/dkms_autoinstaller start 6.1.0-9-amd64",
        "/bin/sh /etc/kernel/postinst.d/dkms 6.1.0-9-amd64 /boot/vmlinuz-6.1.0-9-amd64",
        "/bin/sh /usr/lib/dkms/common.postinst knetstat 1.0",
        "/usr/bin/bash /usr/lib/kernel/install.d/40-dkms.install add 6.1",
    ],
)
def test_a_dkms_that_changes_things(tree: Tree, command: str) -> None:
    root = tree(process(12, command) | process(1, "/sbin/init"))
    found = busy.foreign_dkms(root, None)
    assert found is not None
    assert found.shown.endswith(f"{command.split()[-1]} (pid 12)")
    assert not found.shown.startswith(("/", "bash"))


@pytest.mark.parametrize(
    "command",
    [
        "/bin/bash /usr/sbin/dkms status",
        "/bin/bash /usr/sbin/dkms status -m build",
        "dkms --version build",
        "dkms -V",
        "dkms",
        "dkms mktarball x/1",
        "dkms -m build",
        "dkms build x/1 --dkmstree /tmp/private -k 6.1",
        "dkms add --dkmstree=/tmp/private x",
        "/bin/sh /usr/lib/dkms/dkms_autoinstaller stop",
        "/bin/sh /usr/lib/dkms/dkms_autoinstaller",
        "bash -c dkms build",
        "bash",
        "vim /usr/sbin/dkms",
        "/usr/bin/python3 dkms build",
    ],
)
def test_a_dkms_that_changes_nothing_here(tree: Tree, command: str) -> None:
    root = tree(process(12, command, name="dkms"))
    assert busy.foreign_dkms(root, None) is None


def test_other_names_are_not_looked_into(tree: Tree) -> None:
    root = tree(process(12, "dkms build x/1", name="make") | {"proc/net/comm": "dkms\n", "proc/²/comm": "dkms\n"})
    assert busy.foreign_dkms(root, None) is None
    assert busy.foreign_dkms(root / "nowhere", None) is None


def test_zombies_kernel_threads_and_the_vanished(tree: Tree) -> None:
    root = tree({
        "proc/5/comm": "dkms\n", "proc/5/cmdline": "",
        "proc/6/comm": "dkms\n",
        "proc/7/": "",
        "proc/8/comm/": "",
    })  # fmt: skip
    assert busy.foreign_dkms(root, None) is None


@pytest.mark.parametrize(
    ("uids", "counts"),
    [("0\t0\t0\t0", True), ("{owner}\t0\t0\t0", True), ("4711\t4711\t4711\t4711", False), ("4711\t0\t0\t0", False), ("", True)],
)
def test_only_who_could_change_the_trees_is_in_the_way(tree: Tree, uids: str, counts: bool) -> None:
    """Any user can start a script called dkms, and a set-user-ID program by a link of that name. What is unknown counts."""
    root = tree(process(12, "/bin/bash /home/mallory/dkms install x/1") | {"var/lib/dkms/": ""})
    os.chown(root / "var/lib/dkms", 815 if os.geteuid() == 0 else -1, -1)
    owner = (root / "var/lib/dkms").stat().st_uid
    tree({"proc/12/status": f"Name:\tdkms\nUid:\t{uids.format(owner=owner)}\n"} if uids else {})
    assert bool(busy.foreign_dkms(root, None)) is counts


def test_what_our_builder_started_does_not_count(tree: Tree) -> None:
    root = tree(process(10, "/usr/bin/python3 knetstatctl") | process(11, "make", 10) | process(12, "dkms build x/1", 11))
    assert busy.foreign_dkms(root, 10) is None
    assert busy.foreign_dkms(root, 12) is None
    assert busy.foreign_dkms(root, None) == Dkms("dkms build x/1 (pid 12)", False)
    assert busy.foreign_dkms(root, 99) == Dkms("dkms build x/1 (pid 12)", False)
    tree({"proc/11/stat": "nonsense"})
    assert busy.foreign_dkms(root, 10) == Dkms("dkms build x/1 (pid 12)", False)
    tree({"proc/12/stat": "12 (dkms) S 12 0"})  # a parent of itself
    assert busy.foreign_dkms(root, 10) == Dkms("dkms build x/1 (pid 12)", False)


OURS = "20 1 254:1 / / rw - ext4 /dev/vda1 rw\n21 20 254:2 / /usr/src rw - ext4 /dev/vda2 rw\nshort line\n"


@pytest.mark.parametrize(
    ("theirs", "foreign"),
    [
        (OURS, True),
        # A sandboxed unit: the same tree, mounted once more.
        (OURS + "30 20 254:1 /var/lib/dkms /var/lib/dkms rw - ext4 /dev/vda1 rw\n", True),
        # Containers: an overlay, a directory of the same disk, a chroot (no mount leads to it).
        ("40 1 0:50 / / rw - overlay overlay rw\n", False),
        ("40 1 254:1 /var/lib/machines/d / rw - ext4 /dev/vda1 rw\n", False),
        ("41 40 0:6 / /dev rw - devtmpfs dev rw\n", False),
        # A test rig: overlays on both trees of the same root.
        (OURS + "31 20 0:51 / /usr/lib/modules rw - overlay o rw\n32 20 0:52 / /var/lib/dkms rw - overlay o rw\n", False),
        # A container with the machine's modules in it.
        ("40 1 0:50 / / rw - overlay overlay rw\n41 40 254:1 /usr/lib/modules /usr/lib/modules rw - ext4 x rw\n", True),
        # The last of several mounts on one place is what is seen.
        ("40 1 254:1 / / rw - ext4 x rw\n41 40 0:50 / / rw - overlay x rw\n", False),
    ],
)
def test_a_dkms_on_other_trees_is_not_in_the_way(tree: Tree, theirs: str, foreign: bool) -> None:
    root = tree(
        {"lib": "-> usr/lib", "usr/lib/modules/": "", "proc/self/mountinfo": OURS}
        | process(12, "dkms install x/1", mounts=theirs)
    )
    assert (busy.foreign_dkms(root, None) is not None) is foreign


@pytest.mark.parametrize(
    ("command", "removes"),
    [
        ("/bin/bash /usr/sbin/dkms remove x/1 --all", True),
        ("dkms -m x -v 1 -k 6.1 uninstall", True),
        ("dkms unbuild x/1", True),
        ("dkms kernel_prerm -k 6.1", True),
        ("/bin/sh /etc/kernel/prerm.d/dkms 6.1.0-9-amd64", True),
        ("dkms install -m remove", False),
        ("dkms autoinstall -k 6.1", False),
        ("/bin/sh /etc/kernel/postinst.d/dkms 6.1.0-9-amd64", False),
        ("/bin/sh /usr/lib/dkms/common.postinst remove 1.0", False),
    ],
)
def test_a_dkms_that_removes(tree: Tree, command: str, removes: bool) -> None:
    found = busy.foreign_dkms(tree(process(12, command)), None)
    assert found is not None
    assert found.removes is removes


def test_of_several_the_one_that_removes_counts(tree: Tree) -> None:
    root = tree(process(12, "dkms build x/1") | process(13, "dkms remove y/1") | process(14, "dkms build z/1"))
    assert busy.foreign_dkms(root, None) == Dkms("dkms remove y/1 (pid 13)", True)


def test_trees_that_cannot_be_compared_count_as_the_same(tree: Tree) -> None:
    root = tree({"proc/self/mountinfo": "41 40 0:6 / /dev rw - x x rw\n"} | process(12, "dkms install x/1", mounts=OURS))
    assert busy.foreign_dkms(root, None)  # this process is in a chroot itself
    tree({"proc/12/mountinfo": OURS, "proc/self/mountinfo": OURS})
    (root / "proc/12/mountinfo").unlink()
    assert busy.foreign_dkms(root, None)


def test_a_command_line_is_fit_for_a_log(tree: Tree) -> None:
    root = tree(process(12, "dkms build x\n\x1b[2J" + "y" * 500))
    found = busy.foreign_dkms(root, None)
    assert found is not None
    assert found.shown.isprintable()
    assert len(found.shown) < 140


@given(st.sampled_from([b"dkms\0", b"/bin/sh\0dkms\0install\0", b"dkms\0build\0", b""]), st.binary(), st.binary())
def test_no_bytes_raise(tmp_path: Path, start: bytes, command: bytes, data: bytes) -> None:
    for name, content in (
        ("proc/12/comm", b"dkms\n"), ("proc/12/cmdline", start + command), ("proc/12/stat", data),
        ("proc/12/mountinfo", data), ("proc/self/mountinfo", b"1 1 0:1 / / " + data),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = busy.foreign_dkms(tmp_path, 10)
    assert found is None or found.shown.isprintable()


@pytest.mark.spawns
def test_a_real_script_that_is_called_dkms(tmp_path: Path) -> None:
    """The kernel's own /proc: name, command line, parent and mounts of a running shell script."""
    script = tmp_path / "dkms"
    script.write_text("#!/bin/bash\nread line\n")
    script.chmod(0o755)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/self").symlink_to("/proc/self")
    with subprocess.Popen([script, "build", "x/1"], stdin=subprocess.PIPE) as run:
        # Only these two of the machine's processes: somebody may really run dkms just now.
        for pid in (run.pid, os.getpid()):
            (tmp_path / f"proc/{pid}").symlink_to(f"/proc/{pid}")
        deadline = time.monotonic() + 10
        while not (found := busy.foreign_dkms(tmp_path, None)) and time.monotonic() < deadline:
            time.sleep(0.01)
        ours = busy.foreign_dkms(tmp_path, os.getpid())
    assert found == Dkms(f"dkms build x/1 (pid {run.pid})", False)
    assert ours is None


def test_five_hundred_processes_are_cheap(tree: Tree) -> None:
    root = tree({f"proc/{pid}/comm": "bash\n" if pid % 5 else "worker\n" for pid in range(1, 501)})
    started = time.process_time()
    assert busy.foreign_dkms(root, None) is None
    assert time.process_time() - started < 0.1
