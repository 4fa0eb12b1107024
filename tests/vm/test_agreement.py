# SPDX-License-Identifier: GPL-2.0-or-later
"""What the analysis says of a module, the kernel says too: real modules, whole and wrong in one way each, on real kernels.

    pytest tests/vm/test_agreement.py -k '6.1'        # one kernel's rows
    pytest tests/vm/test_agreement.py -s              # prints the table

Of each kernel come its own signed modules; what is wrong with the others was done to them here. One boot asks about all of
them: a program in the machine inserts one after the other. Where the module's own init says no, the loader has said yes:
that is "init" in the table, and the analysis claims nothing about it.
"""

from __future__ import annotations

import functools
import re
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from knetstatd.core.model import Result
from knetstatd.formats import compression, elf, module_file
from knetstatd.machine import host as host_
from knetstatd.machine import signature_policy
from knetstatd.rehearsal import vm
from knetstatd.verify import install_checks, target_kernel, verify
from tests import kernels
from tests.vm import modules
from tests.vm.conftest import QUICK, SERIES

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm

VICTIM, RENAMED, FORBIDDEN = "tcp_westwood", "tcp_westwooz", "tcp_veno"
# One that other modules use, and one of what it exports.
EXPORTER, EXPORTED = "udp_tunnel", b"setup_udp_tunnel_sock"
BOOTS = {
    "plain": f"module_blacklist={FORBIDDEN}",
    "sig_enforce": "module.sig_enforce=1",
    "lockdown": "lockdown=integrity",
}
# insmod's words for what the init of the one that is there twice answers (7.3 turns the first into the second); every other
# complaint is the loader's.
INIT = ("File exists", "Device or resource busy")

ASK = r"""#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir /tmp/ask && cd /tmp/ask && $bb tail -c +@SIZE@ /program | $bb cpio -id 2>/dev/null
for f in *.ko; do
    echo "== $f"
    $bb insmod $f 2>&1 && echo "inserted"
    $bb dmesg -c
    echo "--"
    [ -e "$f.keep" ] || for m in $($bb lsmod | $bb cut -d' ' -f1); do $bb rmmod $m 2>/dev/null; done
    $bb dmesg -c >/dev/null
done
"""


class Row(NamedTuple):
    """One question: what was done to a module, and whose it was."""

    what: str
    data: bytes
    boots: tuple[str, ...] = ("plain",)
    keep: bool = False  # it stays for the next one
    shipped: str = ""  # its name in the kernel's own directory, where it is judged
    unknown: bool = False  # the analysis cannot tell, and the kernel says no


class Answer(NamedTuple):
    loads: bool
    said: str


@functools.cache
def kernel(series: str, suite: str) -> kernels.Kernel:
    return kernels.fetch(series, "cloud-amd64", suite)


@functools.cache
def own(series: str, suite: str, name: str) -> bytes:
    """A module that came with a kernel, unpacked, signature and all."""
    (path,) = kernel(series, suite).modules.glob(f"kernel/net/ipv4/{name}.ko*")
    return compression.unpack(path.read_bytes())


def bare(data: bytes) -> bytes:
    """Without its signature."""
    at = len(data) - 28 - 12
    assert data.endswith(b"~Module signature appended~\n")
    return data[: at - int.from_bytes(data[at + 8 : at + 12], "big")]


def signed(data: bytes, directory: Path, signature: bytes | None = None) -> bytes:
    """Signed with a key that no kernel knows, or with these bytes for a signature."""
    if signature is None:
        key, crt, plain, out = (directory / name for name in ("key.pem", "key.crt", "plain", "p7"))
        quiet = {"check": True, "capture_output": True}
        if not key.exists():
            new = ["req", "-new", "-x509", "-nodes", "-subj", "/CN=unknown", "-newkey", "rsa:2048"]
            subprocess.run(["openssl", *new, "-keyout", key, "-out", crt], **quiet)  # type: ignore[call-overload]
        plain.write_bytes(data)
        sign = ["cms", "-sign", "-binary", "-noattr", "-nocerts", "-md", "sha256", "-signer", crt, "-inkey", key]
        subprocess.run(["openssl", *sign, "-in", plain, "-outform", "DER", "-out", out], **quiet)  # type: ignore[call-overload]
        signature = out.read_bytes()
    trailer = bytes([0, 0, 2, 0, 0, 0, 0, 0]) + len(signature).to_bytes(4, "big")
    return data + signature + trailer + b"~Module signature appended~\n"


def put(data: bytes, at: int, new: bytes) -> bytes:
    assert at >= 0
    return data[:at] + new + data[at + len(new) :]


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert old in data
    return data.replace(old, new)


def resized(data: bytes) -> bytes:
    """A struct module that is 64 bytes shorter."""
    file = elf.Elf(elf.Source(-1, 0, data), len(data))
    (number,) = (i for i, s in enumerate(file.sections) if file.name(s) == b".gnu.linkonce.this_module")
    start = int.from_bytes(data[40:48], "little") + 64 * number + 32
    return put(data, start, (file.sections[number].size - 64).to_bytes(8, "little"))


def unreadable(data: bytes) -> bytes:
    """Type information (BTF) without its magic number."""
    file = elf.Elf(elf.Source(-1, 0, data), len(data))
    (section,) = (section for section in file.sections if file.name(section) == b".BTF")
    return put(data, section.offset, b"XX")


def renamed(data: bytes) -> bytes:
    """EXPORTER as another module."""
    old, new = EXPORTER.encode(), EXPORTER.encode()[:-1] + b"x"
    data = replaced(data, b"\0name=" + old + b"\0", b"\0name=" + new + b"\0")
    return replaced(data, old + bytes(20), new + bytes(20))


def exporting(k: kernels.Kernel, data: bytes) -> bytes:
    """EXPORTED under a name of as many letters that is the kernel's own."""
    symbols = [line.split("\t") for line in (k.headers / "Module.symvers").read_text().splitlines()]
    own = next(name for _, name, owner, *_ in symbols if owner == "vmlinux" and len(name) == len(EXPORTED))
    return replaced(data, EXPORTED, own.encode())


def rows(series: str, suite: str, others: list[tuple[str, str]], tmp_path: Path) -> list[Row]:
    """The questions for one kernel."""
    everywhere = tuple(BOOTS)
    whole = own(series, suite, VICTIM)
    plain, exporter = bare(whole), bare(own(series, suite, EXPORTER))
    release = kernel(series, suite).release.encode()
    found = [
        *(
            Row("as it is", own(series, suite, name), everywhere, shipped=name)
            for name in (VICTIM, "tcp_bbr", "tcp_vegas", "tcp_htcp")
        ),
        Row("changed after it was signed", replaced(whole, b"TCP Westwood", b"TCP Westwooe"), everywhere, unknown=True),
        Row("unsigned", plain, everywhere),
        Row("signed, unknown key", signed(plain, tmp_path), everywhere),
        Row("signature is garbage", signed(plain, tmp_path, b"\x30\x82garbage" * 9), everywhere),
        Row("signature is empty", signed(plain, tmp_path, b""), everywhere),
        Row("forbidden on the command line", own(series, suite, FORBIDDEN), shipped=FORBIDDEN),
        Row("truncated", plain[:5000]),
        Row("truncated, by a little", plain[:-200]),
        Row("text", b"not a module\n" * 99),
        Row("for another machine", put(plain, 18, b"\xb7")),
        Row("a symbol that nobody has", put(plain, plain.rfind(b"\0tcp_register_congestion_control\0"), b"\0tcp_X")),
        Row("not GPL", replaced(plain, b"\0license=GPL\0", b"\0license=XYZ\0")),
        Row("exports what it alone does", exporter),
        Row("exports what the kernel does", exporting(kernel(series, suite), exporter)),
        Row("exports what another module does", renamed(exporter)),
        Row("SMP missing", replaced(plain, b" SMP ", b" UMP ")),
        Row("another release", replaced(plain, b"vermagic=" + release, b"vermagic=9" + release[1:])),
        Row("no vermagic", replaced(plain, b"\0vermagic=", b"\0vermagiX=")),
    ]  # fmt: skip
    if b"modversions" in plain:
        layout, last = plain.find(b"module_layout\0"), plain.find(b"tcp_register_congestion_control\0")
        found += [
            Row("another checksum for module_layout", put(plain, layout - 8, bytes([plain[layout - 8] ^ 1]))),
            Row("another checksum for a function", put(plain, last - 8, bytes([plain[last - 8] ^ 1]))),
            Row("a checksum is missing", put(plain, last, b"tcp_X")),
        ]
    if series not in ("5.10", "6.1"):  # those do not compare it: what follows is left to luck
        found += [Row("another struct module", resized(plain))]
    for other in others:
        if other != (series, suite):
            found += [Row(f"of {kernel(*other).release}", bare(own(*other, name))) for name in (VICTIM, "tcp_bbr", "tcp_htcp")]
    if b"\0.BTF\0" in plain:
        found += [Row("type information damaged", unreadable(plain))]
    first = Row("as it is, and stays", whole, keep=True, shipped=VICTIM)
    return [*found, first, Row("its init fails: there is one", replaced(plain, VICTIM.encode(), RENAMED.encode()))]


def ask(k: kernels.Kernel, questions: list[Row], boot: str) -> list[Answer]:
    """What the kernel says."""
    entries = []
    for i, row in enumerate(questions):
        entries.append(vm.CpioFile(f"{i:03}.ko", stat.S_IFREG | 0o644, row.data))
        entries += [vm.CpioFile(f"{i:03}.ko.keep", stat.S_IFREG | 0o644)] * row.keep
    script = ASK.replace("@SIZE@", f"{len(ASK) - len('@SIZE@') + 4 + 1:04}").encode()
    program = vm.Program(script + vm.cpio(entries))
    for _ in range(3):
        outcome = vm.rehearse(k.vmlinuz, vm.Plan((), program), memory=512, timeout=300, arguments=[BOOTS[boot]])
        # Emulated processors sometimes stumble over a kernel that patches its own code while it boots; no module was asked for.
        if "== 000.ko" in outcome.output or outcome.ending is not vm.Ending.PANIC:
            break
    parts = re.findall(r"^== (\d+)\.ko\n(.*?)^--$", outcome.output, re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _ in parts] == list(range(len(questions))), outcome.console[-4000:]
    answers = []
    for _, said in parts:
        first = vm.message(said.splitlines()[0])
        answers.append(Answer(first in ("inserted", *INIT), "" if first == "inserted" else said.strip()))
    return answers


def root_of(k: kernels.Kernel, tmp_path: Path, boot: str, *, headers: bool = True) -> Path:
    """A machine with this kernel, as far as `verify` looks at it, and a boot loader that gives it this command line.

    headers: whether it has those; else it has the boot image, which says the same.
    """
    root = tmp_path / f"root-{boot}-{headers}"
    tree = root / "lib/modules" / k.release
    shutil.copytree(k.modules / "kernel/net/ipv4", tree / "kernel/net/ipv4")
    names = sorted(p.relative_to(tree).as_posix().partition(".ko")[0] for p in (tree / "kernel").rglob("*.ko*"))
    (tree / "modules.order").write_text("".join(f"{name}.ko\n" for name in names))
    modules.add_kmod(root)
    (root / "boot/grub").mkdir(parents=True)
    (root / "boot/grub/grub.cfg").write_text(
        f"menuentry 'x' {{\n\tlinux /boot/vmlinuz-{k.release} root=/dev/sda1 ro {BOOTS[boot]}\n}}\n"
    )
    if not headers:
        shutil.copyfile(k.vmlinuz, root / "boot" / f"vmlinuz-{k.release}")
        shutil.copyfile(_of_headers(k, ".config"), root / "boot" / f"config-{k.release}")
        subprocess.run(["depmod", "-b", root, k.release], check=True, capture_output=True)
        return root
    build = root / "usr/src" / f"linux-headers-{k.release}"
    (build / "include/generated").mkdir(parents=True)
    for name in ("Module.symvers", ".config", "include/generated/utsrelease.h"):
        shutil.copyfile(_of_headers(k, name), build / name)
    (tree / "build").symlink_to(f"/usr/src/linux-headers-{k.release}")
    return root


def _of_headers(k: kernels.Kernel, name: str) -> Path:
    return k.headers / name if (k.headers / name).exists() else next(k.tree.rglob(name))


def judge(k: kernels.Kernel, questions: list[Row], root: Path) -> list[Answer]:
    """What the analysis says."""
    facts, host = target_kernel.facts(root, k.release), host_.facts(root)
    assert facts.witness is not None
    assert (facts.symvers is None) == (root / "boot" / f"vmlinuz-{k.release}").exists()
    policy = signature_policy.policy(root, k.release, facts.options, host.firmware)
    answers = []
    for row in questions:
        path = root / "staged.ko"
        path.write_bytes(row.data)
        if row.shipped:
            [path] = (root / "lib/modules" / k.release).glob(f"kernel/net/ipv4/{row.shipped}.ko*")
        proof = verify.verify(root, k.release, path, facts=facts, host=host)
        placed = []
        if proof.checks[0].result is Result.PASS:
            placed = [install_checks.configuration(module_file.from_path(path).name, path, host.rules, policy)]
        proof = proof._replace(checks=(*proof.checks, *placed))
        # What another machine's kernel refuses in relocations is not known.
        foreign = any(c.name == "machine" and c.result is Result.FAIL for c in proof.checks)
        unknown = [c for c in proof.checks if c.result is Result.UNKNOWN and not (foreign and c.name == "form")]
        assert [c.name for c in unknown] == ["signature"] * row.unknown, (row.what, unknown)
        worst = proof.worst
        said = "" if proof.loads or worst is None else f"{worst.name}: {worst.reason or worst.found}"
        answers.append(Answer(proof.loads, said))
    return answers


def compare(series: str, suite: str, others: list[tuple[str, str]], boots: tuple[str, ...], tmp_path: Path) -> int:
    """Asks both, and returns how often; fails where they disagree."""
    k = kernel(series, suite)
    every = rows(series, suite, others, tmp_path)
    disagree, count, both = [], 0, set()
    for boot in boots:
        questions = [row for row in every if boot in row.boots]
        theirs = ask(k, questions, boot)
        ours = judge(k, questions, root_of(k, tmp_path, boot))
        by_image = judge(k, questions, root_of(k, tmp_path, boot, headers=False))
        assert by_image == ours, "the boot image says what the headers say"
        for row, kernels_answer, our_answer in zip(questions, theirs, ours, strict=True):
            print(f"{k.release:28} {boot:12} {row.what:36} {our_answer.loads!s:6} {kernels_answer.loads!s:6} "
                  f"{our_answer.said[:90]} | {kernels_answer.said[-160:]!r}")  # fmt: skip
            count += 1
            both.add(our_answer.loads)
            if our_answer.loads != kernels_answer.loads:
                disagree.append((boot, row.what, our_answer, kernels_answer))
    assert disagree == []
    assert both == {True, False}
    return count


@pytest.mark.parametrize(("series", "suite"), QUICK, ids=[row[0] for row in QUICK])
def test_the_oldest_and_the_newest(series: str, suite: str, tmp_path: Path) -> None:
    assert compare(series, suite, list(QUICK), ("plain", "sig_enforce"), tmp_path) > 30


@pytest.mark.slow
@pytest.mark.parametrize(("series", "suite"), SERIES, ids=["-".join(row) for row in SERIES])
def test_every_kernel_about_the_modules_of_all(series: str, suite: str, tmp_path: Path) -> None:
    """With six kernels some 270 pairs."""
    assert compare(series, suite, list(SERIES), tuple(BOOTS), tmp_path) > 45
