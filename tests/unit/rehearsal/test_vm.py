# SPDX-License-Identifier: GPL-2.0-or-later
"""The pure parts of knetstatd.rehearse; tests/vm/test_boot.py has the machine. python3 -m pytest tests/unit/test_rehearse.py"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.errors import KnetstatdError
from knetstatd.rehearsal.vm import (
    CpioFile,
    Ending,
    Insertion,
    Module,
    Plan,
    Program,
    Rehearsal,
    command,
    cpio,
    initramfs,
    interpret,
    script,
    static_busybox,
    unprivileged,
)

if TYPE_CHECKING:
    from pathlib import Path

MARK = "@0123456789abcdef"
PLAN = Plan((Module("dep", b"1"), Module("knet-stat", b"22", ("a=b c",))), Program(b"333", ("x y",)), ("/proc/a", "/proc/b"))


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """A reader of the format, written apart from the writer."""
    files: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        assert at % 4 == 0
        field = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + field[11] - 1].decode()
        data = at + 110 + field[11] + -(110 + field[11]) % 4
        at = data + field[6] + -field[6] % 4
        if name == "TRAILER!!!":
            return files
        files[name] = (field[1], archive[data : data + field[6]])


def test_cpio() -> None:
    entries = [
        CpioFile("a", stat.S_IFREG | 0o644, b"12345"),
        CpioFile("dir", stat.S_IFDIR | 0o755),
        CpioFile("e", stat.S_IFREG),
    ]
    assert unpack(cpio(entries)) == {e.path: (e.mode, e.data) for e in entries}


def test_initramfs() -> None:
    files = unpack(initramfs(b"busybox", PLAN, MARK))
    assert files["modules/0.ko"][1] == b"1"
    assert files["modules/1.ko"][1] == b"22"
    assert files["program"] == (stat.S_IFREG | 0o755, b"333")
    assert files["init"][0] == stat.S_IFREG | 0o755
    assert stat.S_ISCHR(files["dev/console"][0])
    assert "program" not in unpack(initramfs(b"busybox", Plan(()), MARK))


def test_script_quotes() -> None:
    text = script(PLAN, MARK)
    assert "\ninsert insmod 1 knet_stat 'a=b c'\n" in text
    packed = script(Plan((Module("knet-stat", b"22", ("a=b c", "d=e"), packed=True),)), MARK)
    assert "\ninsert finit 0 knet_stat 'a=b c' d=e\n" in packed
    assert "/program 'x y'" in text


def test_command(tmp_path: Path) -> None:
    argv = command(tmp_path / "vmlinuz", tmp_path / "initrd", kvm=False, memory=300, arguments=["module.sig_enforce=1"])
    assert "tcg,thread=single" in argv
    assert argv[argv.index("-m") + 1] == "300"
    assert argv[argv.index("-append") + 1].endswith(" rdinit=/init module.sig_enforce=1")
    assert "no_timer_check" in argv[argv.index("-append") + 1].split(), "else it dies now and then on a busy host"
    assert "-nodefaults" in argv
    assert "kvm" in command(tmp_path, tmp_path, kvm=True)


def test_unprivileged() -> None:
    """As root: nobody, and idle. In the unit, which is both: as it is."""
    who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    how = ["chrt", "--idle", "0", "ionice", "--class", "idle"]
    assert unprivileged(["qemu"], drop=True, idle=True) == [*who, *how, "qemu"]
    assert unprivileged(["qemu"], drop=False, idle=True) == [*how, "qemu"]
    assert unprivileged(["qemu"], drop=False, idle=False) == ["qemu"]


def section(name: str, text: str, code: int) -> str:
    return f"{MARK} begin {name}\n{text}\n{MARK} end {name} {code}\n"


def interpreted(console: str, plan: Plan = PLAN, *, timed_out: bool = False) -> Rehearsal:
    return interpret(("SeaBIOS\n" + console).replace("\n", "\r\n").encode(), plan, MARK, timed_out=timed_out, elapsed=1.5)


UP = f"{MARK} up 0.40\n"


def inserted(number: int, words: str, refusal: str = "", state: str = "live") -> str:
    return (
        section(f"insert-{number}", refusal, int(bool(refusal))) + section(f"words-{number}", words, 0)
        + f"{MARK} state-{number} {state}\n"
    )  # fmt: skip


INSERTED = UP + inserted(0, "[    1.000000] dep: hello\n") + inserted(1, "[    1.2][  T42] knet_stat: hello\n\n")
END = section("log", "<4>[    3.141592] later\n", 0) + f"{MARK} off\n"


def test_loaded() -> None:
    answer = interpreted(INSERTED + section("program", "fine", 0) + section("file-1", "text\n", 0) + END)
    assert answer.ending is Ending.LOADED
    assert answer.insertions == (
        Insertion("dep", True, "", ("dep: hello",), True), Insertion("knet-stat", True, "", ("knet_stat: hello",), True)
    )  # fmt: skip
    assert answer.booted == 0.4
    assert answer.words == ("dep: hello", "knet_stat: hello")
    assert answer.log == ("later",)
    assert (answer.code, answer.output, answer.files, answer.elapsed) == (0, "fine", {"/proc/b": "text\n"}, 1.5)


def test_refused() -> None:
    refusal = "insmod: can't insert '/modules/0.ko': invalid module format\n"
    answer = interpreted(UP + inserted(0, "[ 1.0] dep: version magic\n", refusal, "absent") + inserted(1, "") + END)
    assert answer.ending is Ending.REFUSED
    assert answer.insertions == (
        Insertion("dep", False, "invalid module format", ("dep: version magic",), True),
        Insertion("knet-stat", True, "", (), True),
    )
    assert answer.words == ("dep: version magic",)


def test_refused_without_a_word() -> None:
    answer = interpreted(UP + section("insert-0", "", 5) + f"{MARK} state-0 absent\n" + END)
    assert (answer.insertions[0].message, answer.insertions[0].error) == ("insmod ended with status 5", 0)


def test_program_failed() -> None:
    answer = interpreted(INSERTED + section("program", "no\n", 3) + END)
    assert (answer.ending, answer.code, answer.output) == (Ending.FAILED, 3, "no\n")


@pytest.mark.parametrize(("code", "words"), [
    (8, "invalid module format"), (22, "Invalid argument"), (129, "Key was rejected by service"), (0, ""),
])  # fmt: skip
def test_a_module_that_the_kernel_unpacks(code: int, words: str) -> None:
    plan = Plan((Module("dep", b"1", packed=True),))
    said = UP + section("insert-0", "", code) + section("words-0", "", 0) + f"{MARK} state-0 absent\n" + END
    answer = interpret(said.encode(), plan, MARK, timed_out=False, elapsed=5)
    assert answer.insertions[0].message == words
    assert answer.insertions[0].error == code


def test_inserted_but_not_there() -> None:
    """insmod ended well, and yet /sys/module does not call it live."""
    answer = interpreted(UP + inserted(0, "", state="coming") + inserted(1, "") + END)
    assert answer.ending is Ending.FAILED
    assert [i.loaded for i in answer.insertions] == [False, True]


def test_panic() -> None:
    answer = interpreted(
        f"{UP}{MARK} begin insert-0\n[    2.0] Oops: 0000\n[    2.1] Kernel panic - not syncing: Fatal exception\n"
    )
    assert answer.ending is Ending.PANIC
    assert answer.words == ("Oops: 0000", "Kernel panic - not syncing: Fatal exception")
    assert [(i.module, i.loaded, i.ended) for i in answer.insertions] == [("dep", False, False)]


PANIC = "[    2.1] Kernel panic - not syncing: Fatal\n"


@pytest.mark.parametrize(
    ("rest", "ending"),
    [(f" insert-0 {PANIC}", Ending.PANIC), (f" inse{PANIC}", Ending.PANIC), (" insert-0 ", Ending.RESET)],
)
def test_the_machine_ends_in_the_init_s_own_line(rest: str, ending: Ending) -> None:
    answer = interpreted(f"{UP}{MARK} begin insert-0\n\n{MARK} end{rest}")
    assert answer.ending is ending
    assert [(i.module, i.loaded, i.ended) for i in answer.insertions] == [("dep", False, False)]
    assert "".join(answer.words) == rest.partition("] ")[2].strip()


def test_hang() -> None:
    answer = interpreted(INSERTED + f"{MARK} begin program\nbefore\n", timed_out=True)
    assert (answer.ending, answer.code, answer.output) == (Ending.HANG, None, "before\n")


def test_a_slow_machine_is_not_one_that_hangs() -> None:
    """Its boot took 1 of its 1.5 seconds: what it would have said nobody knows."""
    slow = INSERTED.replace("up 0.40", "up 1.00")
    assert interpreted(slow, timed_out=True).ending is Ending.SLOW
    assert interpreted("", timed_out=True).ending is Ending.SLOW


def test_no_boot() -> None:
    assert interpreted("").ending is Ending.NO_BOOT
    assert interpreted("[    0.1] Kernel panic - not syncing: System is deadlocked on memory\n").ending is Ending.NO_BOOT
    assert interpret(INSERTED.encode(), PLAN, MARK, timed_out=False, elapsed=1, code=-9).ending is Ending.NO_BOOT


@pytest.mark.parametrize("console", [INSERTED, INSERTED + f"{MARK}x off\n"])
def test_reset(console: str) -> None:
    assert interpreted(console).ending is Ending.RESET


def test_the_mark_cannot_be_guessed() -> None:
    forged = "@ffffffffffffffff end program 0\n"
    assert interpreted(INSERTED + section("program", forged, 1) + END).output == forged


def test_busybox(tmp_path: Path) -> None:
    with pytest.raises(KnetstatdError, match="Install busybox-static"):
        static_busybox(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"\x7fELF/lib64/ld-linux-x86-64.so.2")
    with pytest.raises(KnetstatdError, match="not statically linked"):
        static_busybox(tmp_path)
    (tmp_path / "bin/busybox").write_bytes(b"\x7fELF")
    assert static_busybox(tmp_path) == b"\x7fELF"
