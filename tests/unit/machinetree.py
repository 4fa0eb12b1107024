# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a machine for tests of what acts: a kernel with headers, a package in DKMS, and programs.

The programs do to the tree what the real ones do to a machine.

Each program writes its arguments into `ran/NAME`, a line for each run. `tell` makes it do something else.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from typing import TYPE_CHECKING

import elf
import kerneltree
from kerneltree import KERNEL as KERNEL
from keys import Key

from knetstatd.build.compile import Job
from knetstatd.build.steps import Builder
from knetstatd.core.config import Config
from knetstatd.machine import kernels
from knetstatd.state import paths
from knetstatd.system.journal import Journal
from knetstatd.system.progress import Progress
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from knetstatd.core.model import Proof
    from knetstatd.verdict.observe import Seen

ARCH = os.uname().machine
GOOD = kerneltree.module("demo", build_id="aaaa")
CONF = 'PACKAGE_NAME="demo"\nPACKAGE_VERSION="{}"\nBUILT_MODULE_NAME[0]="demo"\nDEST_MODULE_LOCATION[0]="/updates"\n'
# What a program does that runs until the progress was shown, once more than for its beginning (see Ticks).
WAIT = 'echo; for n in $(seq 200); do [ -e "$root/ticked" ] && break; sleep 0.01; done'
MADE = "made"  # what `dkms build` makes

_BEGIN = """#!/bin/sh
root={root}
name=${{0##*/}} arguments="$*" PATH="$PATH:/usr/bin:/bin"
echo "$arguments" >>"$root/ran/$name"
if [ -e "$root/told/$name-$1" ]; then . "$root/told/$name-$1"; fi
"""
_DKMS = """
action=$1; shift
while [ $# -gt 0 ]; do
    case $1 in
    -m) package=$2; shift ;;
    -v) version=$2; shift ;;
    -k) kernel=$2; shift ;;
    --dkmstree) tree=$2; shift ;;
    --archive=*) archive=${1#*=} ;;
    esac
    shift
done
shared=$root/var/lib/dkms
case $action in
build)
    place=$tree/$package/$version/$kernel/ARCH
    mkdir -p "$place/log" "$place/module"
    cp "$root"/made/*.ko* "$place/module" && echo "made for $(uname -r)" >"$place/log/make.log"
    ;;
mktarball)
    tar -cf "$archive" -C "$tree" "$package"
    ;;
ldtarball)
    tar -xf "$archive" -C "$shared" --exclude=source
    ;;
install)
    cd "$root/lib/modules/$kernel" || exit
    mkdir -p updates/dkms
    for module in "$shared/$package/$version/$kernel/ARCH/module"/*; do
        file=updates/dkms/${module##*/}
        cp "$module" "$file"
        grep -q "^$file:" modules.dep || { echo "$file:"; cat modules.dep; } >new && mv new modules.dep
    done
    { printf '\\260\\007\\364\\127'; tr '\\n' '\\0' <modules.dep; } >modules.dep.bin
    ln -sfn "$version/$kernel/ARCH" "$shared/$package/kernel-$kernel-ARCH"
    ;;
esac
""".replace("ARCH", ARCH)
_SIGN_FILE = """
cat "$root/signature" >>"$4"
"""
_OPENSSL = """
while [ $# -gt 0 ]; do
    case $1 in -keyout | -out) cp "$root/certificate" "$2" ;; esac
    shift
done
"""
_MODPROBE = """
mkdir -p "$root/sys/module/$3" && echo live >"$root/sys/module/$3/initstate"
"""
_SYSTEMCTL = """
case $1 in show) echo ActiveState=inactive; echo Result=success ;; esac
"""
# What starts another program with less than it has itself.
_STARTER = """
while [ "${1#/}" = "$1" ]; do
    case $1 in chrt | ionice) break ;; esac
    shift
done
exec "$@"
"""
# A throwaway machine: its console says `told/console`, with the run's own word in place of MARK.
_QEMU = """
initrd=${arguments#*-initrd } initrd=${initrd%% *}
mark=$(grep -aom1 '@[0-9a-f]\\{16\\}' "$initrd" | head -n1)
[ -e "$root/told/console" ] && sed "s/MARK/$mark/" "$root/told/console"
"""
# Those that pack, from where the PATH of the machine does not lead.
_PACK = """
exec "/usr/bin/$name" "$@"
"""
_PROGRAMS = {
    "usr/bin/xz": _PACK, "usr/bin/gzip": _PACK, "usr/bin/zstd": _PACK,
    "usr/sbin/dkms": _DKMS, "usr/bin/openssl": _OPENSSL, "usr/sbin/modprobe": _MODPROBE, "usr/bin/systemctl": _SYSTEMCTL,
    "usr/sbin/depmod": "", "usr/bin/setpriv": _STARTER, "usr/bin/chrt": _STARTER, "usr/bin/ionice": _STARTER,
}  # fmt: skip


def make(root: Path, *, signed: bool = False, module: bytes = GOOD) -> Path:
    """A machine with a kernel that can be built for, and the package `demo`, not built yet. Returns the kernel's tree.

    signed: the kernel has module signatures.  module: what a build makes.
    """
    tree = kerneltree.make(root, config="CONFIG_MODULE_SIG=y\n" if signed else "")
    headers = root / f"usr/src/linux-headers-{KERNEL}"
    write(headers / "Makefile", "")
    write(headers / ".config", 'CONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_HASH="sha512"\n' if signed else "")
    write(root / f"boot/vmlinuz-{KERNEL}", "image")
    register(root, "1.0")
    for directory in ("ran", "told", MADE, "run", "proc", "dev", "sys/module"):
        (root / directory).mkdir(parents=True)
    write(root / MADE / "demo.ko", module)
    write(root / "signature", elf.sign(b"", Key().signature(module)))
    write(root / "certificate", Key().certificate)
    for name, text in _PROGRAMS.items():
        program(root / name, root, text)
    program(headers / "scripts/sign-file", root, _SIGN_FILE)
    return tree


def register(root: Path, version: str) -> None:
    """A version of the package, as `dkms add` leaves it."""
    (root / f"var/lib/dkms/demo/{version}").mkdir(parents=True)
    (root / f"var/lib/dkms/demo/{version}/source").symlink_to(f"/usr/src/demo-{version}")
    source = root / f"usr/src/demo-{version}"
    for path, text in ((source / "dkms.conf", CONF.format(version)), (source / "demo.c", "")):
        os.utime(write(path, text), (1e9, 1e9))


def write(path: Path, data: bytes | str) -> Path:
    """Writes a file, and makes the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def program(path: Path, root: Path, text: str) -> None:
    """A program that writes down how it was called, and then does `text`."""
    write(path, _BEGIN.format(root=root) + text).chmod(0o755)


def tell(root: Path, run: str, text: str) -> None:
    """Makes a program do `text`, a piece of shell, before all else it does. run: the program's name and its first argument."""
    write(root / "told" / run.replace(" ", "-"), text + "\n")


def without_room(root: Path) -> None:
    """Makes it so that no attempt can be kept: nobody can make a file there, not even root."""
    (root / "var/lib/knetstatd/kernels").symlink_to("/proc/sys/kernel")


def ran(root: Path, name: str) -> list[str]:
    """The arguments of each run of a program."""
    path = root / "ran" / name
    return path.read_text().splitlines() if path.exists() else []


def job(root: Path, *, timeout: float = 20.0) -> Job:
    """To build `demo` for the kernel."""
    source = root / "usr/src/demo-1.0"
    return Job(root, paths.places(root), KERNEL, "demo", "1.0", source, (), kernels.fingerprint(root, source, None), timeout)


def machine(root: Path, *, running: str = KERNEL, **settings: object) -> Machine:
    """That machine as the program sees it, where `running` runs."""
    config = Config()._replace(modules=("demo",), load=(), rehearse="never", settle_seconds=0.0)
    made = Machine(root, config._replace(**settings))  # type: ignore[arg-type]
    made.running = running
    for place in (made.places.state, made.places.runtime, made.places.builders):
        place.mkdir(parents=True, exist_ok=True)
    made.refresh()
    return made


def look(made: Machine, kernel: str = KERNEL) -> Seen:
    """The package as it is now, for who holds our lock."""
    made.refresh()
    return made.observe(made.look(kernel), "demo", own=True)


def prove(root: Path) -> tuple[Proof, ...]:
    """What `verify` says of what is installed."""
    made = machine(root)
    return made.prove_all(made.look(KERNEL), "demo")


class Ticks(Progress):
    """A progress that shows nothing. That it would show that time passes is to be seen in a file, `ticked`."""

    def __init__(self, root: Path) -> None:
        super().__init__(shown=False)
        self.ticked, self._begun = root / "ticked", False

    def phase(self, text: str) -> None:
        self.ticked.unlink(missing_ok=True)
        self._begun = False
        super().phase(text)

    def tick(self) -> None:
        if self._begun:
            self.ticked.touch()
        self._begun = True


class Told:
    """A journald of the test's own: what was said, an entry for each."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(os.fspath(directory / "journal"))
        self.journal = Journal(quiet=True, path=self._socket.getsockname())

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def entries(self) -> list[dict[str, str]]:
        """The fields of each new entry, KNETSTATD_* without that."""
        return list(self._entries())

    def _entries(self) -> Iterator[dict[str, str]]:
        while True:
            try:
                data = self._socket.recv(1 << 20)
            except BlockingIOError:
                return
            fields = {}
            while data:
                name, _, data = data.partition(b"\n")
                [size] = struct.unpack("<Q", data[:8])
                fields[name.decode().removeprefix("KNETSTATD_").lower()] = data[8 : 8 + size].decode()
                data = data[9 + size :]
            yield fields


def builder(made: Machine, journal: Journal | None = None) -> Builder:
    """A builder for that machine; nobody else's lock is in its way."""
    return Builder(made, journal or Journal(quiet=True, path="/nonexistent"), Progress(shown=False), 0)


def rehearsals(root: Path, console: str = "") -> None:
    """What a rehearsal needs. console: what its machine says, MARK for the word of this run."""
    program(root / "usr/bin/qemu-system-x86_64", root, _QEMU)
    program(root / "usr/bin/busybox", root, "")
    write(root / f"boot/vmlinuz-{KERNEL}", "image")
    write(root / "told/console", console)


def console(*, state: str = "live", insmod: str = "", code: int = 0, words: str = "") -> str:
    """What the machine says that inserts one module. state: what it is then.  insmod, words: what that and the kernel say."""
    return (
        "MARK up 1.00\nMARK begin insert-0\n" + insmod + f"\nMARK end insert-0 {code}\n"
        f"MARK begin words-0\n{words}\nMARK end words-0 0\nMARK state-0 {state}\nMARK begin log\n\nMARK end log 0\nMARK off\n"
    )


def outcome(root: Path, **fields: object) -> Path:
    """What the unit that compiles has left in its directory. fields: in place of what belongs there. Returns the directory."""
    place = root / "var/cache/private/knetstatd-compile/result"
    document: dict[str, object] = {
        "of": [KERNEL, "demo", "1.0"], "arch": ARCH, "modules": ["demo.ko"], "more": [], "code": 0, "timed_out": False,
        "taken": 0, "output": "", "log": "made in the unit\n",
    }  # fmt: skip
    write(place / "outcome.json", json.dumps(document | fields))
    write(place / "demo.ko", GOOD)
    for unit in ("run/systemd/system", "usr/lib/systemd/system"):
        (root / unit).mkdir(parents=True, exist_ok=True)
    write(root / "usr/lib/systemd/system/knetstatd-compile@.service", "")
    return place


def link(root: Path, name: str) -> None:
    """Makes a program of this machine one of the system's under `root`."""
    there = shutil.which(name)
    assert there, name
    place = root / "usr/bin" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(os.path.realpath(there))
