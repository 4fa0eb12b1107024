# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged modules by the thousand, and what a kernel says of each.

    files = mutants.modules(kernel, tmp_path)
    some = mutants.mutants(files, seed=1, count=200)
    for mutant, answer in zip(some, mutants.ask(kernel, files, some, tmp_path)): ...

A mutant is a whole module and what was changed in it. They travel as changes, so that thousands fit into one machine. The
init of that machine (mutants.c) asks for one after the other; where the kernel dies of one, the next machine begins behind it.
"""

from __future__ import annotations

import enum
import os
import random
import re
import select
import shutil
import socket
import stat
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.formats import elf
from knetstatd.rehearsal import vm
from tests import kernels
from tests.vm.zoo import SOURCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HERE = Path(__file__).parent
SOURCES = {"knetstat": SOURCE / "module", "kt_good": SOURCE / "tests/fixtures/good", "kt_rich": HERE / "rich"}
WITH_BTF = "kt_rich"
QUIET = 10.0  # seconds without a line, after which the kernel hangs; a mutant takes some milliseconds
BOOT = 240.0  # seconds until the first line
MEMORY = 384  # MB
ARGUMENTS = ("initcall_debug", "no_timer_check", "tsc=reliable")


Changes = list[tuple[int, bytes]]


class Mutant(NamedTuple):
    """kind: of the damage.  name: of the whole module.  size: of the file.  changes: offsets and bytes."""

    kind: str
    name: str
    size: int
    changes: tuple[tuple[int, bytes], ...]

    def made(self, whole: bytes) -> bytes:
        data = bytearray(whole[: self.size].ljust(self.size, b"\0"))
        for at, new in self.changes:
            data[at : at + len(new)] = new
        return bytes(data)


class Said(enum.Enum):
    """What became of a mutant."""

    LOADS = "loads"
    REFUSED = "refused"  # by the loader
    INIT = "init refuses"  # the loader took it, its init function returned an error
    DIED_LOADING = "dies while it is loaded"
    DIED_INIT = "dies in its init function"
    DIED_LATER = "dies when it is taken out, or after"
    HANGS = "hangs"


class Answer(NamedTuple):
    """errno: of finit_module(2), 0 where it loads or the kernel died.  words: the kernel's last, where it died."""

    said: Said
    errno: int = 0
    words: str = ""


def modules(kernel: kernels.Kernel, into: Path) -> dict[str, bytes]:
    """Three modules for a kernel, as DKMS leaves them: without what a debugger wants.

    Type information (BTF), which is made by newer kernels' headers, stays in one: of a loose file with it nothing can be said
    if the kernel insists on it.
    """
    made = {}
    for name, source in SOURCES.items():
        work = into / name
        shutil.copytree(source, work / "source")
        if not (work / "source/Kbuild").exists():
            (work / "source/Kbuild").write_text(f"obj-m := {name}.o\n")
        (work / "source/Makefile").write_text("all:\n\t$(MAKE) -C $(KDIR) M=$(CURDIR) modules\n")
        built = kernels.make(kernel, work / "source", work / "build", [])
        assert built.returncode == 0, built.log
        plain = [] if name == WITH_BTF else ["-R", ".BTF", "-R", ".BTF.base"]
        subprocess.run(["strip", "-g", *plain, work / "build" / f"{name}.ko"], check=True)
        made[name] = (work / "build" / f"{name}.ko").read_bytes()
    return made


class _Whole:
    """A module, and where its parts are."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data
        self.end = data.rfind(b"~Module signature appended~\n")
        self.elf = elf.Elf(elf.Source(-1, 0, data), len(data))
        (self.table,) = struct.unpack_from("<Q", data, 40)
        self.sections = {self.elf.name(section): section for section in self.elf.sections}
        self.rows = len(self.elf.sections)
        self.rela = [row for row, section in enumerate(self.elf.sections) if section.kind == elf.RELA]

    def inside(self, dice: random.Random, *names: bytes) -> int:
        """The offset of some byte in one of these sections."""
        section = self.sections[dice.choice([name for name in names if name in self.sections and self.sections[name].size])]
        return section.offset + dice.randrange(section.size)


def _flip(dice: random.Random, data: bytes, at: int) -> tuple[int, bytes]:
    match dice.randrange(4):
        case 0 | 1:
            new = data[at] ^ (1 << dice.randrange(8))
        case 2:
            new = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
        case _:
            new = dice.randrange(256)
    return at, bytes([new if new != data[at] else new ^ 1])


def _bit(dice: random.Random, whole: _Whole) -> Changes:
    at = dice.randrange(len(whole.data))
    return [(at, bytes([whole.data[at] ^ (1 << dice.randrange(8))]))]


def _bytes(dice: random.Random, whole: _Whole) -> Changes:
    at = dice.randrange(len(whole.data) - 8)
    return [(at, dice.randbytes(dice.randint(1, 8)))]


def _sector(dice: random.Random, whole: _Whole) -> Changes:
    size = dice.choice((512, 512, 4096))
    at = dice.randrange((len(whole.data) + size - 1) // size) * size
    return [(at, dice.choice((b"\0", b"\xff")) * min(size, len(whole.data) - at))]


def _header(dice: random.Random, whole: _Whole) -> Changes:
    return [_flip(dice, whole.data, dice.randrange(64))]


# Offset and struct's letter of each member of Elf64_Shdr, Elf64_Rela and Elf64_Sym (elf(5)).
_SHDR = ((0, "I"), (4, "I"), (8, "Q"), (16, "Q"), (24, "Q"), (32, "Q"), (40, "I"), (44, "I"), (48, "Q"), (56, "Q"))
_RELA = ((0, "Q"), (8, "I"), (12, "I"), (16, "q"))
_SYM = ((0, "I"), (4, "B"), (6, "H"), (8, "Q"))


def _member(dice: random.Random, whole: _Whole, start: int, members: Sequence[tuple[int, str]], rows: int) -> Changes:
    """Another value in one member of a row."""
    at, form = dice.choice(members)
    size, at = struct.calcsize(form), start + at
    old = int.from_bytes(whole.data[at : at + size], "little")
    bits = 8 * size
    new = dice.choice((
        old ^ (1 << dice.randrange(bits)), old ^ (1 << dice.randrange(min(bits, 12))), 0, dice.randrange(rows + 2),
        old + dice.choice((-8, -4, -1, 1, 4, 8)), dice.getrandbits(bits), (1 << bits) - 1, 1 << dice.randrange(bits),
    ))  # fmt: skip
    new %= 1 << bits
    return [(at, (new if new != old else old ^ 1).to_bytes(size, "little"))]


def _section(dice: random.Random, whole: _Whole) -> Changes:
    return _member(dice, whole, whole.table + 64 * dice.randrange(whole.rows), _SHDR, whole.rows)


def _flags(dice: random.Random, whole: _Whole) -> Changes:
    """WRITE, ALLOC or EXEC the other way round."""
    at = whole.table + 64 * dice.randrange(whole.rows) + 8
    return [(at, bytes([whole.data[at] ^ dice.choice((1, 2, 4))]))]


def _kind(dice: random.Random, whole: _Whole) -> Changes:
    at = whole.table + 64 * dice.randrange(whole.rows) + 4
    return [(at, dice.choice([n for n in (0, 1, 2, 3, 4, 7, 8, 9, 11) if n != whole.data[at]]).to_bytes(4, "little"))]


def _relocation(dice: random.Random, whole: _Whole) -> Changes:
    section = whole.elf.sections[dice.choice(whole.rela)]
    return _member(dice, whole, section.offset + 24 * dice.randrange(section.size // 24), _RELA, 500)


def _target(dice: random.Random, whole: _Whole) -> Changes:
    """Something in the place that a relocation is to fill."""
    rela = whole.elf.sections[dice.choice(whole.rela)]
    (at,) = struct.unpack_from("<Q", whole.data, rela.offset + 24 * dice.randrange(rela.size // 24))
    at += whole.elf.sections[rela.info].offset + dice.randrange(4)
    return [(at, bytes([whole.data[at] ^ (1 << dice.randrange(8))]))]


def _symbol(dice: random.Random, whole: _Whole) -> Changes:
    section = whole.sections[b".symtab"]
    return _member(dice, whole, section.offset + 24 * dice.randrange(section.size // 24), _SYM, whole.rows)


def _in(*names: bytes) -> Callable[[random.Random, _Whole], Changes]:
    return lambda dice, whole: [_flip(dice, whole.data, whole.inside(dice, *names))]


# How often each kind of damage is done; a kind that a module has no place for is left out there.
KINDS: dict[str, tuple[int, Callable[[random.Random, _Whole], Changes]]] = {
    "bit": (14, _bit),
    "bytes": (8, _bytes),
    "sector": (12, _sector),
    "ELF header": (5, _header),
    "section header": (14, _section),
    "section flags": (5, _flags),
    "section type": (5, _kind),
    "relocation": (12, _relocation),
    "relocation target": (4, _target),
    "symbol": (7, _symbol),
    "names": (5, _in(b".strtab", b".shstrtab")),
    "modinfo": (5, _in(b".modinfo")),
    "versions": (5, _in(b"__versions", b"__version_ext_crcs", b"__version_ext_names")),
    "struct module": (3, _in(b".gnu.linkonce.this_module")),
    "tables": (4, _in(b"__ksymtab", b"__ksymtab_gpl", b"__kcrctab", b"__kcrctab_gpl", b"__ksymtab_strings", b"__param",
                      b"__kflagstab")),
}  # fmt: skip


def mutants(files: dict[str, bytes], seed: int, count: int, signature: bytes = b"") -> list[Mutant]:
    """`count` of them, the same for the same files and seed. signature: appended to some, with its trailer, and damaged."""
    dice = random.Random(seed)
    wholes = [_Whole(name, data) for name, data in files.items()]
    weights = [weight for weight, _ in KINDS.values()]
    found: list[Mutant] = []
    while len(found) < count:
        whole, size = dice.choice(wholes), 0
        way = dice.randrange(100)
        if way < 3:
            size = dice.randrange(len(whole.data))
            found.append(Mutant("truncation", whole.name, size, ()))
        elif way < 8 and signature:
            at = dice.randrange(len(signature))
            changed = _flip(dice, signature, at)
            damaged = signature[:at] + changed[1] + signature[at + 1 :]
            found.append(Mutant("signature", whole.name, len(whole.data) + len(damaged), ((len(whole.data), damaged),)))
        else:
            kind = dice.choices(list(KINDS), weights)[0]
            try:
                changes = KINDS[kind][1](dice, whole)
            except IndexError:  # it has no such section
                continue
            found.append(Mutant(kind, whole.name, len(whole.data), tuple(changes)))
    return found


def program(directory: Path) -> bytes:
    """The init of the machine."""
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", "-std=gnu11", "-O2", *warnings, "-static", "-o", directory / "init", HERE / "mutants.c"], check=True)
    return (directory / "init").read_bytes()


def packed(files: dict[str, bytes], some: Iterable[Mutant]) -> bytes:
    """What mutants.c reads."""
    names, some = list(files), list(some)
    out = [struct.pack("=I", len(files))]
    for data in files.values():
        out += [struct.pack("=I", len(data)), data]
    out.append(struct.pack("=I", len(some)))
    for mutant in some:
        out.append(struct.pack("=III", names.index(mutant.name), mutant.size, len(mutant.changes)))
        for at, new in mutant.changes:
            out += [struct.pack("=II", at, len(new)), new]
    return b"".join(out)


def ask(
    kernel: kernels.Kernel,
    files: dict[str, bytes],
    some: Sequence[Mutant],
    directory: Path,
    tell: Callable[[str], None] = print,
) -> list[Answer]:
    """What the kernel says of each. As many machines are started as it takes."""
    regular = stat.S_IFREG | 0o644
    initrd = directory / "initrd"
    initrd.write_bytes(vm.cpio([
        vm.CpioFile("init", regular | 0o111, program(directory)),
        vm.CpioFile("mutants", regular, packed(files, some)),
        vm.CpioFile("dev", stat.S_IFDIR | 0o755),
        vm.CpioFile("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
    ]))  # fmt: skip
    argv = vm.command(kernel.vmlinuz, initrd, kvm=False, memory=MEMORY, arguments=ARGUMENTS)
    argv[argv.index("-smp") + 1] = "1"
    sandbox = argv.index("-sandbox")  # it forbids the programs that the copy goes through
    argv = ["nice", *argv[:sandbox], *argv[sandbox + 2 :]]
    copy = _copied(argv, directory)
    argv += ["-incoming", f"exec:cat {copy}"]
    answers: list[Answer] = []
    machines = 0
    while len(answers) < len(some):
        machines += 1
        before = len(answers)
        console, hangs = _run(argv, before)
        answers += _read(console, before, hangs=hangs)
        assert len(answers) > before, console[-4000:]
        if machines % 20 == 0:
            tell(f"{kernel.release}: {len(answers)} of {len(some)} after {machines} machines")
    return answers


def _copied(argv: Sequence[str], directory: Path) -> Path:
    """A machine that has booted and waits for a number, as a file."""
    copy, monitor = directory / "machine", directory / "monitor"
    for _ in range(3):
        # Emulated processors sometimes stumble over a kernel that patches its own code while it boots.
        with _started([*argv, "-monitor", f"unix:{monitor},server=on,wait=off"]) as machine:
            console = _console(machine, lambda text: b"ready" in text, BOOT)
            if b"ready" in console:
                with socket.socket(socket.AF_UNIX) as talk:
                    talk.connect(os.fspath(monitor))
                    talk.sendall(f'migrate "exec:cat > {copy}"\nquit\n'.encode())
                    machine.wait(120)
                return copy
            machine.kill()
    raise AssertionError(console[-4000:])


def _started(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _console(
    machine: subprocess.Popen[bytes], enough: Callable[[bytes], bool], quiet: float, first: int | None = None
) -> bytes:
    """What the machine says until it ends, says enough, or nothing for `quiet` seconds. first: the number that it waits for."""
    assert machine.stdout is not None
    assert machine.stdin is not None
    console, last = b"", time.monotonic()
    while not enough(console[-4096:]) and time.monotonic() < last + quiet:
        if first is not None and b"\n> " not in console:  # it may not listen yet
            machine.stdin.write(f"from {first}.\n".encode())
            machine.stdin.flush()
        ready, _, _ = select.select([machine.stdout], [], [], 0.2)
        if ready:
            data = os.read(machine.stdout.fileno(), 1 << 16)
            if not data:
                break
            console, last = console + data, time.monotonic()
    return console


def _run(argv: Sequence[str], first: int) -> tuple[str, bool]:
    """One machine, from mutant `first` on: its console, and whether it went silent."""
    with _started(argv) as machine:
        console = _console(machine, lambda _: False, QUIET, first)
        try:
            machine.wait(0.5)
            hangs = False
        except subprocess.TimeoutExpired:
            machine.kill()
            hangs = True
    return console.decode("utf-8", "replace").replace("\r\n", "\n"), hangs


_LINE = re.compile(
    r"^(?:> (?P<begin>\d+)|< (?P<end>\d+) (?P<errno>\d+) (?P<init>[01])|- (?P<out>\d+)|stuck (?P<stuck>\d+))$", re.M
)
_IN_INIT = re.compile(r"do_one_initcall|do_init_module")


def _read(console: str, first: int, *, hangs: bool) -> list[Answer]:
    """The answers in one machine's console, in order from `first` on."""
    found: list[Answer] = []
    begun: int | None = None
    ended, at = False, 0
    for line in _LINE.finditer(console):
        at = line.end()
        if line["begin"]:
            begun, ended = int(line["begin"]), False
            assert begun == first + len(found)
        elif line["end"]:
            number, called = int(line["errno"]), line["init"] == "1"
            said = Said.LOADS if not number else Said.INIT if called else Said.REFUSED
            found.append(Answer(said, number))
            ended = True
        elif line["out"]:
            begun = None
        else:
            return found
    if begun is None:
        return found
    words = "\n".join(console[at:].strip().splitlines()[:60])
    if ended:
        found[-1] = Answer(Said.DIED_LATER, found[-1].errno, words) if found[-1].said is not Said.REFUSED else found[-1]
    elif hangs and "Call Trace" not in words:
        found.append(Answer(Said.HANGS, words=words))
    else:
        said = Said.DIED_INIT if _IN_INIT.search(words) else Said.DIED_LOADING
        found.append(Answer(said, words=words))
    return found
