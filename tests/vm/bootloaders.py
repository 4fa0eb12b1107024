# SPDX-License-Identifier: GPL-2.0-or-later
"""Real boot loaders in a virtual machine: which kernel do they start?

    loader = bootloaders.grub("trixie")
    files = {"boot/grub/grub.cfg": b"…", "boot/vmlinuz-6.1.0-1-amd64": bootloaders.linux("6.1.0-1-amd64")}
    bootloaders.started(loader, files, tmp_path).kernel                                       # "6.1.0-1-amd64"

The kernels are programs of a few bytes that say their name on the serial line and end the machine, so a question takes a
second. The loaders are Debian's own; each disk is a copy of one that is made once, with the question's files added.
"""

from __future__ import annotations

import functools
import os
import re
import select
import shutil
import struct
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from tests import kernels

QEMU = ["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
        "-device", "isa-debug-exit,iobase=0xf4"]  # fmt: skip
# A second where nobody else works; UEFI firmware on a busy machine takes a minute.
TIMEOUT = 300.0
_SILENCE = 20.0
_SECTORS = 16384
_LOADER = uuid.UUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")  # the Boot Loader Interface's variables
_PARTITION = 2048
_MODULES = (
    "biosdisk part_msdos fat normal test echo loadenv linux linux16 search search_fs_uuid minicmd halt reboot true serial "
    "terminal configfile sleep eval"
).split()  # fmt: skip
# Without it, the menu and what goes wrong would be seen on a screen alone.
_EARLY = "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n"

# Ends the machine; `say` says what lies at %rsi.
_SAY = """
	mov $0xf4, %dx
	outb %al, %dx
	hlt
say:	lodsb
	test %al, %al
	jz 3f
	mov %al, %cl
	mov $0x3fd, %dx
2:	inb %dx, %al
	test $0x20, %al
	jz 2b
	mov %cl, %al
	mov $0x3f8, %dx
	outb %al, %dx
	jmp say
3:	ret
name:
"""
# A kernel of the boot protocol that says what follows it and its command line (the kernel's Documentation/arch/x86/boot.rst).
_LINUX = (
    """
	.code32
	.org 0x1f1
	.byte 1
	.org 0x1fe
	.word 0xaa55
	.byte 0xeb, 0x66
	.ascii "HdrS"
	.word 0x020c
	.org 0x210
	.byte 0, 1
	.word 0x8000
	.long 0x100000
	.org 0x224
	.word 0x9800
	.org 0x22c
	.long 0x7fffffff, 0x1000
	.byte 1, 12
	.word 0
	.long 2047
	.org 0x258
	.quad 0x100000
	.long 0x10000
	.org 0x400
	mov 0x228(%esi), %ebx
	call 1f
1:	pop %esi
	add $(name - 1b), %esi
	call say
	mov %ebx, %esi
	call say
"""
    + _SAY
)
_EFI = (
    """
	.code64
	call 1f
1:	pop %rsi
	add $(name - 1b), %rsi
	call say
"""
    + _SAY
)


class Grub(NamedTuple):
    """GRUB for BIOS: its version, and a disk that starts it with the prefix (hd0,msdos1)/boot/grub."""

    version: str
    disk: bytes


class Answer(NamedTuple):
    """kernel: the one that was started, "" for none.  arguments: its command line.  screen: all that was said."""

    kernel: str
    arguments: str
    screen: str


def grub(suite: str) -> Grub:
    """The suite's GRUB, from its packages; the machine's own is not touched."""
    tree = packages(suite, "grub-common", "grub-pc-bin")
    modules = tree / "usr/lib/grub/i386-pc"
    command = _program(suite, tree, "usr/bin/grub-mkimage")
    version = re.findall(r"GRUB\) (\S+)", subprocess.run([*command, "--version"], capture_output=True, text=True).stdout)[0]
    with tempfile.TemporaryDirectory() as name:
        early, image = Path(name) / "early.cfg", Path(name) / "core.img"
        early.write_text(_EARLY)
        args: list[str | Path] = ["-O", "i386-pc", "-d", modules, "-p", "(hd0,msdos1)/boot/grub", "-c", early, "-o", image]
        subprocess.run([*command, *args, *_MODULES], check=True, capture_output=True)
        core = image.read_bytes()
    # boot.img looks for the core image in the sector after it.
    record = bytearray((modules / "boot.img").read_bytes()[:446])
    record += struct.pack("<B3sB3sII", 0x80, bytes(3), 0x0E, bytes(3), _PARTITION, _SECTORS - _PARTITION)
    record += bytes(48) + b"\x55\xaa"
    assert len(record) == 512
    assert len(core) < (_PARTITION - 1) * 512
    return Grub(version, (bytes(record) + core).ljust(_SECTORS * 512, b"\0"))


def linux(name: str) -> bytes:
    """A kernel that says its name."""
    return (_assemble(_LINUX, "--32") + f"\r\nSTARTED {name} ".encode() + b"\0").ljust(4096, b"\0")


@functools.cache
def _assemble(source: str, width: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        text, built, flat = (Path(directory) / f"k.{suffix}" for suffix in ("s", "o", "bin"))
        text.write_text(source)
        subprocess.run(["as", width, text, "-o", built], check=True)
        subprocess.run(["objcopy", "-O", "binary", built, flat], check=True)
        return flat.read_bytes()


def started(loader: Grub, files: dict[str, bytes], directory: Path) -> Answer:
    """What GRUB starts from a disk with these files; a menu that waits gets the Enter key."""
    disk = directory / "disk.img"
    disk.write_bytes(loader.disk)
    fill(disk, _PARTITION * 512, _SECTORS - _PARTITION, files, directory / "tree")
    screen = _run([*QEMU, "-m", "64", "-drive", f"file={disk},format=raw"])
    said = re.search(r"STARTED (\S+) (.*)", screen)
    return Answer(said[1] if said else "", said[2].strip() if said else "", screen)


class SystemdBoot(NamedTuple):
    """systemd-boot: its version and its program, and the firmware that starts it."""

    version: str
    program: bytes
    code: Path
    variables: bytes


def systemd_boot(suite: str) -> SystemdBoot:
    """The suite's systemd-boot, under this machine's OVMF."""
    tree = packages(suite, "systemd-boot-efi")
    program = (tree / "usr/lib/systemd/boot/efi/systemd-bootx64.efi").read_bytes()
    version = re.findall(rb"#### LoaderInfo: systemd-boot (\S+)", program)[0].decode()
    firmware = Path("/usr/share/OVMF")
    return SystemdBoot(version, program, firmware / "OVMF_CODE_4M.fd", (firmware / "OVMF_VARS_4M.fd").read_bytes())


def efi_program(name: str, sections: dict[str, bytes]) -> bytes:
    """An EFI program that says its name and ends the machine, with these sections (those of a unified kernel image)."""
    code = _assemble(_EFI, "--64") + f"\r\nSTARTED {name} ".encode() + b"\0"
    parts = [(".text", code), *sections.items()]
    headers, bodies, raw, at = b"", b"", 0x400, 0x1000
    for section, data in parts:
        flags = 0x60000020 if section == ".text" else 0x40000040
        padded = data.ljust(-(-len(data) // 0x200) * 0x200, b"\0")
        headers += struct.pack("<8sIIIIIIHHI", section.encode(), len(data), at, len(padded), raw, 0, 0, 0, 0, flags)
        bodies += padded
        raw += len(padded)
        at += -(-len(padded) // 0x1000) * 0x1000
    coff = struct.pack("<HHIIIHH", 0x8664, len(parts), 0, 0, 0, 0xF0, 0x22E)
    optional = struct.pack("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII", 0x20B, 0, 0, len(code), 0, 0, 0x1000, 0x1000, 0, 0x1000, 0x200,
                           0, 0, 0, 0, 0, 0, 0, at, 0x400, 0, 10, 0, 0, 0, 0, 0, 0, 16) + bytes(128)  # fmt: skip
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    return (dos + b"PE\0\0" + coff + optional + headers).ljust(0x400, b"\0") + bodies


def chosen(loader: SystemdBoot, files: dict[str, bytes], variables: dict[str, str], directory: Path) -> Answer:
    """What systemd-boot starts from an ESP with these files, and with these variables of the Boot Loader Interface."""
    disk, store = directory / "disk.img", directory / "variables.fd"
    disk.write_bytes(bytes(_SECTORS * 512))
    fill(disk, 0, _SECTORS, files | {"EFI/BOOT/BOOTX64.EFI": loader.program}, directory / "tree")
    values = {name: (text + "\0").encode("utf-16-le") for name, text in variables.items()}
    store.write_bytes(with_variables(loader.variables, _LOADER, values, attributes=7))
    screen = _run([*QEMU, "-m", "256", "-machine", "q35", "-net", "none",
                   "-drive", f"if=pflash,format=raw,readonly=on,file={loader.code}",
                   "-drive", f"if=pflash,format=raw,file={store}",
                   "-drive", f"if=none,id=d,file={disk},format=raw", "-device", "virtio-blk-pci,drive=d"])  # fmt: skip
    said = re.search(r"STARTED (\S+) ", screen)
    return Answer(said[1] if said else "", "", screen)


def with_variables(store: bytes, vendor: uuid.UUID, variables: dict[str, bytes], *, attributes: int) -> bytes:
    """A store of variables with some more: MdePkg's and MdeModulePkg's VariableFormat.h, AUTHENTICATED_VARIABLE_HEADER."""
    (start,) = struct.unpack_from("<H", store, 0x30)
    assert store[start : start + 16] == uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
    at = start + 28
    while store[at : at + 2] == b"\xaa\x55":
        name_size, size = struct.unpack_from("<II", store, at + 36)
        at += -(-(60 + name_size + size) // 4) * 4
    new = b""
    for key, value in variables.items():
        name = (key + "\0").encode("utf-16-le")
        new += struct.pack("<HBBIQ16xIII", 0x55AA, 0x3F, 0, attributes, 0, 0, len(name), len(value))
        new += vendor.bytes_le + name + value
        new = new.ljust(-(-len(new) // 4) * 4, b"\xff")
    return store[:at] + new + store[at + len(new) :]


def _run(command: list[str]) -> str:
    """What the machine says until it ends or waits at a prompt. Raises TimeoutError where it does neither."""
    screen = b""
    answered = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as machine:
        assert machine.stdin
        assert machine.stdout
        end = time.monotonic() + TIMEOUT
        try:
            while time.monotonic() < end:
                if not select.select([machine.stdout], [], [], _SILENCE)[0]:
                    keys = 1  # a key that came before anybody listened
                else:
                    data = os.read(machine.stdout.fileno(), 65536)
                    screen += data
                    # A menu that waits, or a message that does; one that comes back again and again starts nothing.
                    asked = screen.count(b"Press any key") + screen.count(b"Use the ^ and v")
                    if not data or b"grub> " in screen or b"Shell> " in screen or asked > 6:
                        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode("utf-8", "replace"))
                    keys = asked - answered if b"executed automatically" not in screen or b"Press any key" in screen else 0
                    answered += keys
                if keys and screen:
                    machine.stdin.write(b"\r" * keys)
                    machine.stdin.flush()
            raise TimeoutError(f"the machine did not end in {TIMEOUT:.0f} s; it said {screen[-500:]!r}")
        finally:
            machine.kill()


def fill(disk: Path, offset: int, sectors: int, files: dict[str, bytes], tree: Path) -> None:
    """Makes a FAT file system of so many sectors on a disk, with these files. tree: a directory to work in."""
    subprocess.run(["mformat", "-i", f"{disk}@@{offset}", "-T", str(sectors), "-h", "16", "-s", "32", "::"], check=True)

    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    subprocess.run(["mcopy", "-s", "-Q", "-i", f"{disk}@@{offset}", *sorted(tree.iterdir()), "::"], check=True)
    shutil.rmtree(tree)


def packages(suite: str, *names: str) -> Path:
    """A directory with these packages' files, by their versions."""
    show = kernels.apt(suite, "apt-cache", "show", "--no-all-versions", *names)
    version = "-".join(re.findall("^Version: (.+)$", show, re.MULTILINE)).replace("/", "_").replace(":", "_")
    tree = kernels.cache() / "bootloaders" / f"{names[0]}-{version}"
    with kernels.locked("bootloaders"):
        if not (tree / "unpacked").exists():
            kernels.unpack(suite, list(names), tree, "unpacked")
    return tree


def _program(suite: str, tree: Path, name: str) -> list[str | Path]:
    """How to run a program of a suite here: with its own suite's libraries where this machine's are too old."""
    program = tree / name
    if subprocess.run([program, "--version"], capture_output=True).returncode == 0:
        return [program]
    libraries = packages(suite, "libc6", "libdevmapper1.02.1", "liblzma5", "libselinux1", "libudev1", "libpcre2-8-0", "libcap2")
    directory = libraries / "usr/lib/x86_64-linux-gnu"
    return [directory / "ld-linux-x86-64.so.2", "--library-path", directory, program]
