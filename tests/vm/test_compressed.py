# SPDX-License-Identifier: GPL-2.0-or-later
"""What the analysis says of a compressed module, modprobe and the kernel say too: every form, on kernels that unpack modules
themselves and on kernels that do not, with the kmod of Debian 12 and of Debian 13.

    pytest tests/vm/test_compressed.py -s              # prints the table

One boot asks about all forms of one module: kmod inserts one after the other, as modprobe would.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from knetstatd.diagnosis import kernel_messages
from knetstatd.machine import host as host_
from knetstatd.rehearsal import vm
from knetstatd.verify import target_kernel, verify
from tests import kernels
from tests.vm import test_agreement

pytestmark = pytest.mark.vm

VICTIM = "tcp_westwood"
# A kernel's series, the suite that it comes from, and the suite that kmod comes from.
MACHINES = {
    "12": ("6.1", "bookworm", "bookworm"), "13": ("6.12", "trixie", "trixie"),
    "13-backports": ("7.3", "trixie-backports", "trixie"),
    "12, newer kernel": ("6.12", "trixie", "bookworm"), "13, kernel of 12": ("6.1", "bookworm", "trixie"),
}  # fmt: skip
ASK = r"""#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir /tmp/ask && cd /tmp/ask && $bb tail -c +@SIZE@ /program | $bb cpio -id 2>/dev/null
$bb mount -t sysfs sysfs sys && $bb mount -t proc proc proc
for f in forms/*; do
    echo "== $f"
    $bb chroot . /usr/bin/insmod /$f 2>&1 && echo inserted
    $bb dmesg -c
    echo "--"
    $bb rmmod tcp_westwood 2>/dev/null
    $bb dmesg -c >/dev/null
done
"""


def xz(data: bytes, *options: str) -> bytes:
    return subprocess.run(["xz", "-zc", *options], input=data, stdout=subprocess.PIPE, check=True).stdout


def zstd(data: bytes, directory: Path, *options: str, sized: bool = True) -> bytes:
    """Of a file, whose size its header then tells, or of a pipe."""
    (directory / "plain").write_bytes(data)
    where: list[str | Path] = [directory / "plain"] if sized else []
    return subprocess.run(
        ["zstd", "-qcf", *options, *where], input=None if sized else data, stdout=subprocess.PIPE, check=True
    ).stdout


def gz(data: bytes, flags: int = 0, fields: bytes = b"") -> bytes:
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(data) + packer.flush()
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(5) + b"\xff" + fields
    if flags & 2:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


def flipped(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def forms(data: bytes, directory: Path) -> dict[str, bytes]:
    """A module in every form, by what was done to it."""
    half = len(data) // 2
    crc32, frame = xz(data, "--check=crc32"), zstd(data, directory)
    skippable = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"hello"
    mine = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    return {
        "plain": data,
        "plain, cut off": data[:half],
        "xz crc32": crc32,
        "xz as ours": lzma.compress(data, check=lzma.CHECK_CRC32, filters=mine),
        "xz by default (crc64)": xz(data),
        "xz sha256": xz(data, "--check=sha256"),
        "xz without check": xz(data, "--check=none"),
        "xz of Python": lzma.compress(data),
        "xz -9e": xz(data, "-9e", "--check=crc32"),
        "xz, dictionary of 96 MiB": xz(data, "--check=crc32", "--lzma2=dict=96MiB"),
        "xz, many blocks": xz(data, "--check=crc32", "--block-size=4096"),
        "xz, threads": xz(data, "--check=crc32", "-T2"),
        "xz, x86": xz(data, "--check=crc32", "--x86", "--lzma2"),
        "xz, x86, crc64": xz(data, "--x86", "--lzma2"),
        "xz, arm": xz(data, "--check=crc32", "--arm", "--lzma2"),
        "xz, delta": xz(data, "--check=crc32", "--delta=dist=4", "--lzma2"),
        "xz, x86 from an offset": xz(data, "--check=crc32", "--x86=start=4096", "--lzma2"),
        "xz, three filters": xz(data, "--check=crc32", "--x86", "--delta=dist=1", "--lzma2"),
        "xz, two streams": xz(data[:half], "--check=crc32") + xz(data[half:], "--check=crc32"),
        "xz, an empty stream behind": crc32 + xz(b"", "--check=crc32"),
        "xz, an empty stream before": xz(b"", "--check=crc32") + crc32,
        "xz, padded by 4": crc32 + bytes(4),
        "xz, padded by 4096": crc32 + bytes(4096),
        "xz, padded by 3": crc32 + bytes(3),
        "xz, two streams with padding": xz(data[:half], "--check=crc32") + bytes(8) + xz(data[half:], "--check=crc32"),
        "xz, something behind": crc32 + b"something",
        "xz, cut off": crc32[: len(crc32) // 2],
        "xz, the last byte is missing": crc32[:-1],
        "xz, the footer is missing": crc32[:-12],
        "xz, a bit of the data": flipped(crc32, len(crc32) // 2),
        "xz, a bit of the check": flipped(crc32, -30),
        "xz, a bit of the index": flipped(crc32, -15),
        "xz, a bit of the footer": flipped(crc32, -5),
        "xz, nothing": xz(b"", "--check=crc32"),
        "lzma": xz(data, "--format=lzma"),
        "zstd": frame,
        "zstd -1, no checksum": zstd(data, directory, "-1", "--no-check"),
        "zstd -19": zstd(data, directory, "-19"),
        "zstd --ultra -22 --long=27": zstd(data, directory, "--ultra", "-22", "--long=27"),
        "zstd from a pipe, window of 1 GiB": zstd(data, directory, "--long=30", sized=False),
        "zstd from a pipe": zstd(data, directory, sized=False),
        "zstd, two frames": zstd(data[:half], directory) + zstd(data[half:], directory),
        "zstd, two frames from pipes": zstd(data[:half], directory, sized=False) + zstd(data[half:], directory, sized=False),
        "zstd, an empty frame behind": frame + zstd(b"", directory),
        "zstd, a skippable frame before": skippable + frame,
        "zstd, a skippable frame behind": frame + skippable,
        "zstd, something behind": frame + b"something",
        "zstd, cut off": frame[: len(frame) // 2],
        "zstd, the checksum is missing": frame[:-4],
        "zstd, a bit of the data": flipped(frame, len(frame) // 2),
        "zstd, a bit of the checksum": flipped(frame, -2),
        "gzip": gzip.compress(data),
        "gzip with a name": gz(data, 8, b"tcp_westwood.ko\0"),
        "gzip with a comment": gz(data, 16, b"comment\0"),
        "gzip with an extra field": gz(data, 4, b"\x04\0abcd"),
        "gzip with a header checksum": gz(data, 2),
        "gzip, two members": gzip.compress(data[:half]) + gzip.compress(data[half:]),
        "gzip, something behind": gzip.compress(data) + b"something",
        "gzip, cut off": gzip.compress(data)[:half // 4],
    }  # fmt: skip


def kmod_of(suite: str) -> dict[str, bytes]:
    """A suite's kmod, and every library that it needs or may open, by their places."""
    root = kernels.buildroot(suite)
    said = subprocess.run(["chroot", root, "ldd", "/usr/bin/kmod"], capture_output=True, text=True, check=True).stdout
    places = {"/usr/bin/kmod", *re.findall(r"(/\S+) \(0x", said)}
    places |= {f"/usr/lib/x86_64-linux-gnu/{name}" for name in ("liblzma.so.5", "libzstd.so.1", "libkmod.so.2")}
    found = {}
    for place in sorted(places):
        path = Path(os.path.realpath(root / place.lstrip("/")))
        found[place] = path.read_bytes()
    return found


def ask(k: kernels.Kernel, every: dict[str, bytes], kmod: dict[str, bytes]) -> dict[str, str]:
    """What kmod and the kernel say, "" for a module that is in."""
    tree = dict.fromkeys(("forms", "sys", "proc", "dev"))
    for place in kmod:
        tree |= dict.fromkeys(os.fspath(parent) for parent in [*Path(place.lstrip("/")).parents][-2::-1])
    entries = [vm.CpioFile(place, stat.S_IFDIR | 0o755) for place in tree]
    entries += [vm.CpioFile(place.lstrip("/"), stat.S_IFREG | 0o755, data) for place, data in kmod.items()]
    entries.append(vm.CpioFile("usr/bin/insmod", stat.S_IFLNK | 0o777, b"kmod"))
    entries += [vm.CpioFile(f"forms/{i:03}", stat.S_IFREG | 0o644, data) for i, data in enumerate(every.values())]
    script = ASK.replace("@SIZE@", f"{len(ASK) - len('@SIZE@') + 4 + 1:04}").encode()
    outcome = vm.rehearse(k.vmlinuz, vm.Plan((), vm.Program(script + vm.cpio(entries))), memory=768, timeout=600)
    parts = re.findall(r"^== forms/(\d+)\n(.*?)^--$", outcome.output, re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _ in parts] == list(range(len(every))), outcome.console[-4000:]
    said = [said.strip() for _, said in parts]
    refusals = ("" if words.splitlines()[:1] == ["inserted"] else words or "?" for words in said)
    return dict(zip(every, refusals, strict=True))


@pytest.mark.parametrize("machine", MACHINES)
def test_every_form(machine: str, tmp_path: Path) -> None:
    series, suite, kmods = MACHINES[machine]
    k = test_agreement.kernel(series, suite)
    every = forms(test_agreement.own(series, suite, VICTIM), tmp_path)
    kmod = kmod_of(kmods)
    root = test_agreement.root_of(k, tmp_path, "plain")
    for place, data in kmod.items():
        path = root / place.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    shutil.rmtree(root / "usr/lib/modules", ignore_errors=True)
    facts, host = target_kernel.facts(root, k.release), host_.facts(root)
    theirs = ask(k, every, kmod)
    greens, reds, good = [], [], 0
    for what, data in every.items():
        (path := root / "form.ko").write_bytes(data)
        proof = verify.verify(root, k.release, path, facts=facts, host=host)
        wrong = proof.first(frozenset({"signature"}))
        ours = "" if proof.holds(frozenset({"signature"})) or wrong is None else f"{wrong.name}: {wrong.reason or wrong.found}"
        print(f"{machine:18} {what:36} {'red' if ours else 'green':6} {ours[:100]} | {theirs[what][-110:]!r}")
        good += not ours
        if theirs[what] and not ours:
            greens.append((what, theirs[what]))
        if ours and not theirs[what]:
            reds.append(what)
    assert greens == [], "wrong greens"
    # What follows the module, and is thrown away or not, and what is cut off behind it; no packer makes such.
    assert set(reds) <= WRONG_REDS, reds
    assert good >= 3


WRONG_REDS = {
    "xz, an empty stream behind", "xz, something behind", "xz, padded by 3", "zstd, an empty frame behind",
    "zstd, something behind", "zstd, a skippable frame behind", "zstd, the checksum is missing",
}  # fmt: skip


@pytest.mark.parametrize("machine", ["13", "13-backports"])
def test_a_rehearsal_has_the_kernel_unpack_it(machine: str) -> None:
    series, suite, _ = MACHINES[machine]
    k = test_agreement.kernel(series, suite)
    data = test_agreement.own(series, suite, VICTIM)

    def rehearsed(packed: bytes) -> vm.Rehearsal:
        return vm.rehearse(k.vmlinuz, vm.Plan((vm.Module(VICTIM, packed, packed=True),)))

    assert rehearsed(xz(data, "--check=crc32")).ending is vm.Ending.LOADED
    refused = rehearsed(xz(data))
    assert (refused.ending, refused.insertions[0].message) == (vm.Ending.REFUSED, "Invalid argument")
    said = kernel_messages.find(refused.words)
    assert said is not None
    assert said.check == "compression"
    # What the loader itself says comes through with the words of busybox's insmod.
    assert rehearsed(xz(data[:5000], "--check=crc32")).insertions[0].message == "invalid module format"
