# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernel under Secure Boot, as a machine boots it: the firmware checks shim, shim checks GRUB and the kernel.

    machine = secure_boot.Machine("trixie", kernel, tmp_path)
    machine.set("MokList", secure_boot.signature_list(certificate))    # what MokManager leaves when somebody confirms it
    said = machine.boot({"knetstat": data})
    said.rehearsal.insertions, said.variables

The firmware is OVMF, with Microsoft's keys if it is to be on; shim and GRUB are Debian's own, with their signatures.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import select
import struct
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.formats import compression
from knetstatd.rehearsal import vm
from tests.vm import bootloaders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests import kernels

TIMEOUT = 300.0
_OVMF = Path("/usr/share/OVMF")
_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_SHIM = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_SECTORS = 131072
# All that a kernel asks the firmware for about modules, and what says that an enrolment waits.
_ASKED = ("SecureBoot", "MokListRT", "MokListRT1", "MokNew", "MokSBStateRT", "MokIgnoreDB", "db")
_MOUNT = "mount -t efivarfs efivarfs /sys/firmware/efi/efivars\n"
_SHOW = f"""\
for name in {" ".join(_ASKED)}; do
    for file in /sys/firmware/efi/efivars/$name-*; do
        [ -e $file ] && echo "VARIABLE ${{file##*/}} $(busybox base64 $file | busybox tr -d '\\n')"
    done
done
"""
# MokManager's menus: what is on the screen when it waits, and the keys that go on; the first entry says no, or goes back.
_DOWN = "\x1b[B"
_STEPS = (
    ("Press any key", ["\r"]), ("Enroll MOK", [_DOWN, "\r"]), ("View key", [_DOWN, "\r"]), ("Enroll the key", [_DOWN, "\r"]),
)  # fmt: skip
_QUIET, _KEY, _LOST = 1.0, 0.3, 15.0  # seconds: when a screen is complete; between two keys; until a key counts as lost


class Said(NamedTuple):
    """What became of the modules; the firmware's variables as efivarfs has them, by NAME-GUID; what the script printed."""

    rehearsal: vm.Rehearsal
    variables: dict[str, bytes]
    output: str


class Machine:
    """A machine with one kernel. Its variables stay from boot to boot.

    suite: shim's and GRUB's.  on: whether Secure Boot is.
    """

    def __init__(self, suite: str, kernel: kernels.Kernel, directory: Path, *, on: bool = True) -> None:
        packages = bootloaders.packages(suite, "shim-signed", "shim-helpers-amd64-signed", "grub-efi-amd64-signed")
        self.kernel, self.directory = kernel, directory
        self.store = directory / "variables.fd"
        self.store.write_bytes((_OVMF / f"OVMF_VARS_4M{'.ms' if on else ''}.fd").read_bytes())
        self.loaders = {
            "EFI/BOOT/BOOTX64.EFI": packages / "usr/lib/shim/shimx64.efi.signed",
            "EFI/BOOT/mmx64.efi": packages / "usr/lib/shim/mmx64.efi.signed",
            "EFI/BOOT/grubx64.efi": packages / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        }

    def set(self, name: str, value: bytes) -> None:
        """Sets a variable that no system may write: one of shim's, or the firmware's own list of keys, `db`."""
        vendor, attributes = (_DATABASE, 0x27) if name == "db" else (_SHIM, 3)
        self.store.write_bytes(
            bootloaders.with_variables(self.store.read_bytes(), vendor, {name: value}, attributes=attributes)
        )

    def boot(self, modules: dict[str, bytes], arguments: str = "", script: str = "", files: Sequence[Path] = ()) -> Said:
        """Boots the kernel, inserts the modules in this order, and says what became of them.

        script: for busybox's sh, run after that.  files: those of this machine that it needs, programs with their libraries.
        """
        path = next(self.kernel.modules.rglob("efivarfs.ko*"))
        plan = vm.Plan((vm.Module("efivarfs", compression.unpack(path.read_bytes())),
                        *(vm.Module(name.partition(".")[0], data) for name, data in modules.items())))  # fmt: skip
        mark = f"@{secrets.token_hex(8)}"
        init = (
            vm.script(plan, mark).removesuffix("off\n")
            + f"{_MOUNT}export PATH=/bin:/usr/bin\nsection more sh /more\n{_SHOW}off\n"
        )
        initrd = vm.initramfs(vm.static_busybox(Path("/")), plan, mark)
        # Of two files of that name in an initramfs the last one counts.
        more = {"init": init.encode(), "more": script.encode()} | {f"{f}".lstrip("/"): f.read_bytes() for f in files}
        places = sorted({parent for name in more for parent in Path(name).parents})[1:]
        initrd += vm.cpio([*(vm.CpioFile(f"{place}", 0o40755) for place in places),
                           *(vm.CpioFile(name, 0o100755, data) for name, data in more.items())])  # fmt: skip
        words = " ".join([*vm.COMMAND_LINE, arguments])
        menu = f"linux /vmlinuz {words}\ninitrd /initrd\nboot\n"
        contents = {name: path.read_bytes() for name, path in self.loaders.items()} | {
            "EFI/debian/grub.cfg": menu.encode(), "vmlinuz": self.kernel.vmlinuz.read_bytes(), "initrd": initrd,
        }  # fmt: skip
        disk = self.directory / "disk.img"
        disk.write_bytes(b"")
        with disk.open("r+b") as f:
            f.truncate(_SECTORS * 512)
        bootloaders.fill(disk, 0, _SECTORS, contents, self.directory / "tree")
        done = vm.boot(self._command(disk), TIMEOUT)
        answer = vm.interpret(done.output, plan, mark, timed_out=done.timed_out, elapsed=done.seconds, code=done.code)
        shown = re.findall(r"^VARIABLE (\S+) (\S+)$", answer.console, re.MULTILINE)
        output = vm.sections(answer.console, mark).get("more", (None, ""))[1]
        return Said(answer, {name: base64.b64decode(value) for name, value in shown}, output)

    def confirm(self, password: str) -> None:
        """Reboots, and enrols what mokutil(1) asked for, as somebody at the console does."""
        with subprocess.Popen(
            self._command(self.directory / "disk.img"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as machine:  # fmt: skip
            console = _Console(machine)
            try:
                for words, keys in _STEPS:
                    console.until(words)
                    for key in keys:
                        console.press(key)
                console.until("Password")
                console.type(f"{password}\r")
                console.until("Reboot")
                console.type("\r")
                machine.wait(TIMEOUT)
            finally:
                machine.kill()

    def _command(self, disk: Path) -> list[str]:
        return [
            "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "Haswell-noTSX-IBRS", "-m", "512", "-nodefaults",
            # What writes the firmware's variables is the firmware alone (system management mode).
            "-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on",
            "-drive", f"if=pflash,format=raw,readonly=on,file={_OVMF / 'OVMF_CODE_4M.secboot.fd'}",
            "-drive", f"if=pflash,format=raw,file={self.store}",
            "-drive", f"if=none,id=d,file={disk},format=raw", "-device", "virtio-blk-pci,drive=d",
            "-display", "none", "-serial", "stdio", "-no-reboot", "-net", "none",
        ]  # fmt: skip


def in_efivarfs(name: str) -> str:
    """How efivarfs calls one of these variables."""
    owners = {"db": _DATABASE, "SecureBoot": _GLOBAL}
    return f"{name}-{owners.get(name, _SHIM)}"


def signature_list(certificate: bytes) -> bytes:
    """The value of a variable with one certificate: UEFI 2.10, 32.4.1, EFI_SIGNATURE_LIST; without an owner."""
    size = 16 + len(certificate)
    return _X509.bytes_le + struct.pack("<III", 28 + size, 0, size) + bytes(16) + certificate


def with_libraries(program: Path) -> list[Path]:
    """A program of this machine, and the files of its libraries, which ldd(1) names."""
    shown = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [program, *map(Path, re.findall(r"(/\S+) \(0x", shown))]


class _Console:
    """A machine's serial console, with somebody who reads before he types."""

    def __init__(self, machine: subprocess.Popen[bytes]) -> None:
        assert machine.stdin
        assert machine.stdout
        self._in, self._out = machine.stdin, machine.stdout
        self._new = b""  # what came since the last key

    def _read(self, wait: float) -> bool:
        """What comes until nothing does any more; whether anything came in `wait` seconds."""
        before = len(self._new)
        while select.select([self._out], [], [], wait)[0] and (data := os.read(self._out.fileno(), 65536)):
            self._new += data
            wait = _QUIET
        return len(self._new) > before

    def until(self, words: str) -> None:
        """Waits for a screen with these words. Raises TimeoutError."""
        end = time.monotonic() + TIMEOUT
        while words.encode() not in self._new:
            if time.monotonic() > end:
                raise TimeoutError(f"no {words!r} in {self._new[-500:]!r}")
            if not self._read(_QUIET):
                time.sleep(_KEY)

    def press(self, key: str) -> None:
        """Types a key that changes the screen, again if it does not."""
        self._new = b""
        for _ in range(3):
            self.type(key)
            if self._read(_LOST):
                return

    def type(self, keys: str) -> None:
        """Types keys that show nothing."""
        for key in [keys] if keys.startswith("\x1b") else keys:
            self._in.write(key.encode())
            self._in.flush()
            time.sleep(_KEY)
