# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own answer: boot it in a throwaway machine, insert the modules there, and bring back what it says.

Rules:

1. Everything but `boot` and `rehearse` is pure: the initramfs, the command line and the reading of the console are values
   made from values, and need no privilege.
2. The machine has no disk, no network and no way back but its console. Its memory and its time are bounded.
3. What comes back on the console is marked with a word made for this one run, so that no program and no kernel message in
   the machine can be taken for the init's own lines.
4. A hang, a panic and a machine that never started are outcomes, not errors. An error is: there is no QEMU, no busybox.
5. A machine that is slow is not taken for one that hangs: how long its boot took is the measure.
6. A restricted machine gets what knetstatd-rehearse@.service gives it: no privileges, and what time is left.
"""

from __future__ import annotations

import enum
import os
import re
import secrets
import shlex
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core.errors import KnetstatdError
from knetstatd.rehearsal import finit
from knetstatd.state import rehearsal_results
from knetstatd.system import process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Two to four seconds is what a Debian kernel takes by emulation alone; a loaded machine may take ten times that.
TIMEOUT = 60.0
MEMORY = 256  # MB: a cloud kernel and its initramfs need about half
# How many times its boot's time a machine gets until what it does is called a hang.
PATIENCE = 2.0
# By these names a busybox that is a shell of its own runs them without starting itself again; another one finds links.
APPLETS = (
    "cat", "dmesg", "httpd", "insmod", "ip", "mount", "nc", "reboot", "sh", "sleep", "stty", "sync", "tftp", "usleep",
)  # fmt: skip
CONSOLE_LIMIT = 32 << 20
NOBODY = 65534  # the user and the group that own nothing (Debian Policy 9.2.2; /proc/sys/kernel/overflowuid)

# console: where the results go; loglevel=1 keeps the kernel's messages off it (they are read from its log), but for those of
# a panic, which speaks at any level; panic=-1 with QEMU's -no-reboot makes a panic the machine's end; mitigations=off saves
# a third of the boot under emulation; no_timer_check, as KVM guests set it: on a busy host an emulated timer may be late.
COMMAND_LINE = (
    "console=ttyS0", "quiet", "loglevel=1", "panic=-1", "oops=panic", "mitigations=off", "no_timer_check", "rdinit=/init",
)  # fmt: skip


class Ending(enum.Enum):
    """How the machine ended."""

    LOADED = "loaded"  # every module was inserted, and the program, if any, ended with 0
    REFUSED = "refused"  # the kernel refused a module
    FAILED = "failed"  # a module was inserted and is not live, or the program ended with another status
    PANIC = "panic"  # the kernel gave up
    RESET = "reset"  # the machine ended without a word while the init was at work
    HANG = "hang"  # the time limit passed, and the machine had been quick enough before
    SLOW = "slow"  # the time limit passed, and nothing can be said
    NO_BOOT = "no-boot"  # the machine ended without reaching the init


class Module(NamedTuple):
    """A module to insert: the kernel's name of it, its file, and parameters. packed: the kernel unpacks it, as under kmod."""

    name: str
    data: bytes
    parameters: tuple[str, ...] = ()
    packed: bool = False


class Program(NamedTuple):
    """A statically linked program, or a script for busybox's sh, that is run after the modules are in."""

    data: bytes
    arguments: tuple[str, ...] = ()


class Plan(NamedTuple):
    """What happens in the machine: the modules in this order, whatever becomes of each; if all of them are live, the
    program; then the files whose contents are wanted."""

    modules: tuple[Module, ...]
    program: Program | None = None
    files: tuple[str, ...] = ()


class Insertion(NamedTuple):
    """What became of one module."""

    module: str
    loaded: bool  # /sys/module calls it live
    message: str  # insmod's, if it failed
    words: tuple[str, ...]  # the kernel's log while it went in
    ended: bool  # insmod came back

    @property
    def error(self) -> int:
        """The errno of the insertion; 0 if there is none, or insmod does not name it."""
        return finit.number(self.message)


class Rehearsal(NamedTuple):
    """What the machine said."""

    ending: Ending
    insertions: tuple[Insertion, ...]
    words: tuple[str, ...]  # the kernel's log while the modules went in; after a panic, and if it died, its last lines
    log: tuple[str, ...]  # the kernel's log after that
    code: int | None  # the program's exit status
    output: str  # what the program wrote
    files: Mapping[str, str]  # the files asked for that were there
    elapsed: float
    booted: float | None  # seconds until the init spoke, None if it never did
    console: str  # all of it, for the one who has to find out


class CpioFile(NamedTuple):
    """A file for the initramfs; `device` is (major, minor) of a character device."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Sequence[CpioFile]) -> bytes:
    """An archive in the kernel's "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()

    def pad() -> None:
        out.extend(bytes(-len(out) % 4))

    for number, entry in enumerate([*entries, CpioFile("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        pad()
        out.extend(entry.data)
        pad()
    return bytes(out)


def initramfs(busybox: bytes, plan: Plan, mark: str) -> bytes:
    """The throwaway machine's whole file system."""
    directory, executable = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    entries = [CpioFile(path, directory) for path in ("bin", "dev", "proc", "sys", "tmp", "modules")]
    entries += [
        CpioFile("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        CpioFile("bin/busybox", executable, busybox),
        *(CpioFile(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in APPLETS),
        CpioFile("bin/finit", executable, finit.program()),
        CpioFile("init", executable, script(plan, mark).encode()),
    ]
    entries += [CpioFile(f"modules/{i}.ko", stat.S_IFREG | 0o644, module.data) for i, module in enumerate(plan.modules)]
    if plan.program:
        entries.append(CpioFile("program", executable, plan.program.data))
    return cpio(entries)


def script(plan: Plan, mark: str) -> str:
    """The init. A section is `MARK begin NAME`, its lines, and `MARK end NAME STATUS`."""
    lines = [
        "#!/bin/busybox sh",
        "export PATH=/bin",
        "mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev",
        "stty -F /dev/console -opost 2>/dev/null",
        # The newline: a program's last line may lack its own.
        f'begin() {{ echo "{mark} begin $1"; }}',
        f'end() {{ echo; echo "{mark} end $1 $2"; }}',
        f'off() {{ section log dmesg -c; echo "{mark} off"; sync; reboot -f; sleep 60; }}',
        'section() { begin "$1"; n=$1; shift; "$@" 2>&1; end "$n" $?; }',
        # insert PROGRAM NUMBER NAME PARAMETER...: how it ended says insmod, whether it is there says /sys/module.
        "insert() {",
        '    by=$1 i=$2 m=$3; shift 3; [ $by = insmod ] || set -- "$*"',
        '    section insert-$i $by /modules/$i.ko "$@"; section words-$i dmesg -c',
        '    state=absent; { read -r state </sys/module/"$m"/initstate; } 2>/dev/null',
        f'    echo "{mark} state-$i $state"; [ "$state" = live ] || fine=',
        "}",
        f'read -r up rest </proc/uptime; echo "{mark} up $up"',
        "fine=yes; dmesg -c >/dev/null",
    ]
    lines += [
        f"insert {'finit' if module.packed else 'insmod'} {i} {shlex.join([sys_name(module.name), *module.parameters])}"
        for i, module in enumerate(plan.modules)
    ]
    if plan.program:
        lines.append(f'[ "$fine" ] && section program /program {shlex.join(plan.program.arguments)}')
    lines += [f"[ -e {shlex.quote(f)} ] && section file-{i} cat {shlex.quote(f)}" for i, f in enumerate(plan.files)]
    return "\n".join([*lines, "off", ""])


def sys_name(module: str) -> str:
    """The name that a module has in /sys/module."""
    return module.replace("-", "_")


def command(
    image: Path, initrd: Path, *, kvm: bool, root: Path = Path("/"), memory: int = MEMORY, arguments: Sequence[str] = ()
) -> list[str]:
    """QEMU's argv. root: where QEMU is.  arguments: for the kernel's command line, e.g. module.sig_enforce=1."""
    # Both emulated processors in one thread: in two, a kernel that patches its own code (a static key, a module's) now and then
    # dies of the breakpoint it patches with, one boot in forty of a 7.3, which says nothing of the module. It is no slower.
    emulated = ["-accel", "tcg,thread=single", "-cpu", "Haswell-noTSX-IBRS"]
    accelerator = ["-accel", "kvm", "-cpu", "host"] if kvm else emulated
    return [
        os.fspath(root / rehearsal_results.QEMU), *accelerator, "-M", "pc", "-smp", "2", "-m", f"{memory}",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny",
        "-kernel", os.fspath(image), "-initrd", os.fspath(initrd), "-append", " ".join([*COMMAND_LINE, *arguments]),
    ]  # fmt: skip


def unprivileged(argv: Sequence[str], *, drop: bool, idle: bool) -> list[str]:
    """What starts a program as nobody (drop: its starter is root) and at idle priority (idle: its starter is not there)."""
    who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    return [
        *(["setpriv", *who] if drop else []), *(["chrt", "--idle", "0", "ionice", "--class", "idle"] if idle else []), *argv,
    ]  # fmt: skip


def interpret(console: bytes, plan: Plan, mark: str, *, timed_out: bool, elapsed: float, code: int = 0) -> Rehearsal:
    """What the console of a machine that ran `plan` says. code: QEMU's exit status."""
    text = console.decode("utf-8", "replace").replace("\r\n", "\n")
    text = re.sub(rf"^({mark} .*?)(\[ *\d+\.\d+\])", r"\1\n\2", text, flags=re.MULTILINE)  # a panic speaks into any line
    parts = sections(text, mark)
    insertions = [_insertion(module, i, parts, text, mark) for i, module in enumerate(plan.modules) if f"insert-{i}" in parts]
    words = [line for insertion in insertions for line in insertion.words]
    status, output = parts.get("program", (None, ""))
    panic, off = "Kernel panic - not syncing" in text, f"\n{mark} off\n" in text
    if panic or not off:
        words = [line for line in kernel_lines(text[text.rfind("\n" + mark) :]) if not line.startswith(mark)][-200:]
    up = re.search(rf"^{mark} up ([0-9]+\.[0-9]+)$", text, re.MULTILINE)
    booted = float(up[1]) if up else None

    if booted is None or (code and not timed_out):
        ending = Ending.SLOW if timed_out else Ending.NO_BOOT
    elif panic:
        ending = Ending.PANIC
    elif timed_out:
        ending = Ending.HANG if elapsed - booted >= PATIENCE * booted else Ending.SLOW
    elif not off:
        ending = Ending.RESET
    elif any(insertion.message for insertion in insertions):
        ending = Ending.REFUSED
    elif not all(insertion.loaded for insertion in insertions) or (plan.program and status != 0):
        ending = Ending.FAILED
    else:
        ending = Ending.LOADED
    return Rehearsal(
        ending, tuple(insertions), tuple(words), tuple(kernel_lines(parts.get("log", (None, ""))[1])), status, output,
        {path: parts[f"file-{i}"][1] for i, path in enumerate(plan.files) if f"file-{i}" in parts}, elapsed, booted, text,
    )  # fmt: skip


def _insertion(module: Module, i: int, parts: Mapping[str, tuple[int | None, str]], text: str, mark: str) -> Insertion:
    code, said = parts[f"insert-{i}"]
    words = kernel_lines(parts.get(f"words-{i}", (None, ""))[1])
    why = message(said) or (finit.words(code) if module.packed else f"insmod ended with status {code}") if code else ""
    return Insertion(module.name, f"\n{mark} state-{i} live\n" in text, why, tuple(words), code is not None)


def sections(text: str, mark: str) -> dict[str, tuple[int | None, str]]:
    """Each section's exit status and text; the status is None if the machine ended inside of it."""
    parts: dict[str, tuple[int | None, str]] = {}
    for name in re.findall(rf"^{mark} begin (\S+)$", text, re.MULTILINE):
        body = text.partition(f"{mark} begin {name}\n")[2]
        inside, ended, rest = body.partition(f"\n{mark} end {name} ")
        code = re.match(r"([0-9]+)\n", rest) if ended else None  # none if the machine ended in this line
        parts[name] = (int(code[1]), inside) if code else (None, body)
    return parts


def message(said: str) -> str:
    """insmod's reason, without its own name and the file's: those exist in the machine only."""
    return re.sub(r"^insmod: can't insert '[^']*': ", "", said.strip())


def kernel_lines(log: str) -> list[str]:
    """The kernel's messages without their times."""
    return [re.sub(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ", "", line) for line in log.splitlines() if line.strip()]


def static_busybox(root: Path) -> bytes:
    """Raises KnetstatdError if there is none, or one that needs a loader."""
    fix = "Install busybox-static"
    for path in (root / name for name in rehearsal_results.BUSYBOX):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if b"/ld-linux" in data[:4096] or b"/ld-musl" in data[:4096]:
            raise KnetstatdError("is not statically linked", os.fspath(path), fix)
        return data
    raise KnetstatdError("there is no busybox for the rehearsal's machine", os.fspath(root / rehearsal_results.BUSYBOX[0]), fix)


def boot(
    argv: list[str], timeout: float, tick: Callable[[], None] | None = None, *, root: Path = Path("/")
) -> process.Finished:
    """The one place that starts the machine; its console is the program's output. root: where its starters are."""
    return process.run(argv, timeout=timeout, env=process.environment(root=root), limit=CONSOLE_LIMIT, tick=tick)


def rehearse(
    image: Path,
    plan: Plan,
    *,
    root: Path = Path("/"),
    memory: int = MEMORY,
    timeout: float = TIMEOUT,
    arguments: Sequence[str] = (),
    kvm: bool = False,
    restricted: bool = False,
    tick: Callable[[], None] | None = None,
) -> Rehearsal:
    """Boots `image`, carries out `plan` and says how it went.

    root: where QEMU and busybox are.  arguments: more for the kernel's command line.  kvm: only if asked for: a virtual
    machine's own /dev/kvm may be there and hang, and emulation answers in seconds and the same everywhere.  restricted: as
    rule 6 has it.  tick: called meanwhile.  Raises KnetstatdError if QEMU or busybox is missing, or no file can be
    written. Leaves nothing behind.
    """
    mark = f"@{secrets.token_hex(8)}"
    drop = restricted and os.geteuid() == 0
    busybox = static_busybox(root)
    try:
        # What root's TMPDIR names nobody else may be able to reach.
        with tempfile.TemporaryDirectory(prefix="knetstatd-rehearse-", dir="/tmp" if drop else None) as directory:
            initrd = Path(directory, "initrd")
            initrd.write_bytes(initramfs(busybox, plan, mark))
            if drop:  # nobody reads them, and nobody else; an image itself may be root's alone
                image = shutil.copyfile(image, Path(directory, "image"))
                for path, mode in ((image, 0o640), (initrd, 0o640), (directory, 0o750)):
                    os.chown(path, -1, NOBODY)
                    os.chmod(path, mode)
            argv = command(image, initrd, kvm=kvm, root=root, memory=memory, arguments=arguments)
            if restricted:
                argv = unprivileged(argv, drop=drop, idle=os.sched_getscheduler(0) != os.SCHED_IDLE)
            finished = boot(argv, timeout, tick, root=root)
    except OSError as e:
        raise KnetstatdError(f"the machine's files cannot be made: {e.strerror}", str(e.filename or "")) from e
    return interpret(finished.output, plan, mark, timed_out=finished.timed_out, elapsed=finished.seconds, code=finished.code)
