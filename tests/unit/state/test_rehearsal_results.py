# SPDX-License-Identifier: GPL-2.0-or-later
"""Kept answers: void when a file or the command line changes, kept where only an identity did, damaged files are none."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import kerneltree
import pytest
from kerneltree import KERNEL
from keys import variable

from knetstatd.core.config import Config
from knetstatd.core.model import Answer, Artefact, Check, Outcome, Proof, Rehearsed, Result
from knetstatd.rehearsal import rehearse
from knetstatd.state import paths as places
from knetstatd.state import rehearsal_results
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]

SAID = Answer(Outcome.REFUSED, "crcs", "refused", "build it", ("a", "b"), "", "emulation", 2.5, 7.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with one kernel, a module on it that needs another, and all that a rehearsal takes."""
    tree = kerneltree.make(tmp_path)
    kerneltree.add(tree, "updates/dkms/knetstat.ko", kerneltree.module("knetstat"), "kernel/lib/my-lib.ko")
    (tmp_path / "boot" / f"vmlinuz-{KERNEL}").write_bytes(b"image")
    (tree / "modules.builtin").touch()
    (tmp_path / "usr/bin").mkdir()
    for name in ("qemu-system-x86_64", "busybox"):
        (tmp_path / "usr/bin" / name).touch(0o755)
    source = tmp_path / "var/lib/dkms/knetstat/1/source"
    source.mkdir(parents=True)
    (source / "dkms.conf").write_text("PACKAGE_NAME=knetstat\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME=knetstat\nMAKE=make\n")
    return tmp_path


def machine(root: Path, rehearse: str = "auto") -> Machine:
    made = Machine(root, Config(rehearse=rehearse))
    made.refresh()
    return made


def about(root: Path) -> rehearsal_results.Subject:
    made = machine(root)
    found = made.rehearsal(KERNEL, "knetstat", made._proofs.installed(made.look(KERNEL), {"knetstat": None}))
    assert found is not None
    return found


def keep(root: Path, answer: Answer = SAID) -> rehearsal_results.Subject:
    subject = about(root)
    found = rehearse.inputs(subject)
    rehearsal_results.save(places.places(root), subject, found.inputs, found.hashes, answer)
    return subject


def rehearsed(root: Path, rehearse: str = "auto") -> tuple[Rehearsed, Answer | None]:
    made = machine(root, rehearse)
    seen = made.observe(made.look(KERNEL), "knetstat")
    assert seen.observation.installed is Artefact.GOOD
    return seen.observation.rehearsed, seen.answer


def test_what_a_rehearsal_is_about(root: Path) -> None:
    tree = root / "usr/lib/modules" / KERNEL
    subject = about(root)
    assert subject.image == root / "boot" / f"vmlinuz-{KERNEL}"
    assert subject.files == (tree / "kernel/lib/my-lib.ko", tree / "updates/dkms/knetstat.ko")
    assert rehearsal_results.subject_of(root, KERNEL, "m", [Proof("", ())], ()) is None
    assert rehearsal_results.subject_of(root, "6.9.9", "m", [Proof("/x", ())], ()) is None


def test_kept_and_read_back(root: Path) -> None:
    subject = keep(root)
    assert rehearsal_results.load(places.places(root), subject) == SAID
    assert rehearsed(root) == (Rehearsed.BAD, SAID)
    keep(root, SAID._replace(outcome=Outcome.DECLINED))
    assert rehearsed(root)[0] is Rehearsed.GOOD


def test_all_of_an_answer_is_kept(root: Path) -> None:
    whole = Answer(Outcome.DECLINED, "init", "why", "how", ("w",), "left open", "KVM", 1.5, 9.0)
    assert rehearsal_results.load(places.places(root), keep(root, whole)) == whole


def test_the_check_of_a_verdict(root: Path) -> None:
    subject, expected = about(root), "the kernel loads it, and it works"

    def check(answer: Answer | None, unable: str = "") -> Check:
        [(file, made)] = rehearsal_results.checks(subject, answer, unable)
        assert file == str(root / "boot" / f"vmlinuz-{KERNEL}")
        return made

    assert rehearsal_results.checks(None, SAID, "") == ()
    assert check(None) == Check("rehearsal", Result.NOT_APPLICABLE, expected, "none yet")
    assert check(None, "no qemu") == Check(
        "rehearsal", Result.NOT_APPLICABLE, expected, "none: no qemu", fix="Run: apt install qemu-system-x86 busybox-static"
    )
    found = "refused, emulation, 2.5 s"
    assert check(SAID, "no qemu") == Check("rehearsal", Result.FAIL, expected, found, "refused", "build it")
    good = SAID._replace(outcome=Outcome.LOADED, remark="not unloaded", reason="", fix="")
    assert check(good) == Check("rehearsal", Result.PASS, expected, "loaded, emulation, 2.5 s; not unloaded")
    assert check(good._replace(outcome=Outcome.DECLINED)).result is Result.PASS
    assert check(good._replace(outcome=Outcome.HANG)).result is Result.FAIL


def test_why_none_can_be_had(root: Path) -> None:
    assert rehearsal_results.missing(root) == ""
    for program in ("qemu-system-x86_64", "busybox"):
        (root / "usr/bin" / program).chmod(0o644)
        assert rehearsal_results.missing(root), program
        (root / "usr/bin" / program).chmod(0o755)
    (root / "usr/bin/busybox").unlink()
    (root / "bin").mkdir()
    (root / "bin/busybox").touch(0o755)
    assert rehearsal_results.missing(root) == "", "Debian 12 has it in /bin"


@pytest.mark.parametrize("path", [f"boot/vmlinuz-{KERNEL}", f"usr/lib/modules/{KERNEL}/updates/dkms/knetstat.ko",
                                  f"usr/lib/modules/{KERNEL}/kernel/lib/my-lib.ko"])  # fmt: skip
def test_void_when_a_file_changes(root: Path, path: str) -> None:
    keep(root)
    data = (root / path).read_bytes()
    (root / path).unlink()
    (root / path).write_bytes(data + bytes(16))
    assert rehearsed(root) == (Rehearsed.DUE, None)
    assert rehearsal_results.same(places.places(root), about(root), rehearse.inputs(about(root)).hashes) is None


def test_a_file_that_was_only_touched_needs_no_machine(root: Path) -> None:
    subject = keep(root)
    os.utime(subject.image)
    assert rehearsed(root) == (Rehearsed.DUE, None)
    found = rehearse.inputs(subject)
    assert rehearsal_results.same(places.places(root), subject, found.hashes) == SAID
    rehearsal_results.save(places.places(root), subject, found.inputs, found.hashes, SAID)
    assert rehearsed(root) == (Rehearsed.BAD, SAID)


def test_void_when_another_file_is_needed(root: Path) -> None:
    keep(root)
    kerneltree.add(root / "usr/lib/modules" / KERNEL, "updates/my-lib.ko", kerneltree.module("my_lib"))
    dep = root / "usr/lib/modules" / KERNEL / "modules.dep"
    tables = dep.read_text().replace("knetstat.ko: kernel/lib/my-lib.ko", "knetstat.ko: updates/my-lib.ko")
    kerneltree.tables(dep.parent, *tables.splitlines())
    assert rehearsed(root) == (Rehearsed.DUE, None)


@pytest.mark.parametrize(
    ("line", "secure_boot", "arguments"),
    [
        ("root=/dev/vda quiet", None, ()),
        ("quiet module.sig_enforce=1 lockdown=integrity x.lockdown=1", None, ("module.sig_enforce=1", "lockdown=integrity")),
        ("module.sig_enforce module_blacklist=a,b modprobe.blacklist=c", b"\1", ("module.sig_enforce", "module_blacklist=a,b")),
        ("quiet", b"\1", ("module.sig_enforce=1",)),
        ("quiet", b"\0", ()),
    ],
)
def test_the_command_line(root: Path, line: str, secure_boot: bytes | None, arguments: tuple[str, ...]) -> None:
    subject = keep(root)
    (root / "boot/grub").mkdir()
    (root / "boot/grub/grub.cfg").write_text(f"menuentry a {{\n linux /boot/vmlinuz-{KERNEL} {line}\n}}\n")
    if secure_boot is not None:
        variable = root / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        variable.parent.mkdir(parents=True)
        variable.write_bytes(b"\x16\0\0\0" + secure_boot)
    assert about(root).arguments == arguments
    assert (rehearsal_results.load(places.places(root), about(root)) is None) == bool(arguments)
    assert subject.arguments == ()


@pytest.mark.parametrize(("attributes", "arguments"), [(6, ()), (7, ("module.sig_enforce=1",))])
def test_where_shim_s_validation_is_off_the_kernel_does_not_insist(
    root: Path, attributes: int, arguments: tuple[str, ...]
) -> None:
    """`mokutil --disable-validation`; the kernel believes no variable that is kept over a boot."""
    variable(root, "SecureBoot", b"\1")
    variable(root, "MokSBStateRT", b"\1", attributes=attributes)
    assert about(root).arguments == arguments


def test_without_a_boot_loader_the_running_kernel_s_command_line_counts(root: Path) -> None:
    (root / "proc").mkdir()
    (root / "proc/cmdline").write_text("quiet lockdown=integrity\n")
    assert about(root).arguments == ("lockdown=integrity",)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"schema": 1}', "\x00" * 50, "[" * 99999])
def test_a_damaged_file_is_no_answer(root: Path, damage: str) -> None:
    keep(root)
    places.places(root).rehearsal(KERNEL, "knetstat").write_text(damage)
    assert rehearsed(root) == (Rehearsed.DUE, None)


@pytest.mark.parametrize(("key", "value"), [
    ("outcome", "no such"), ("words", 5), ("seconds", "x"), ("when", None), ("seconds", True), ("fix", "\ud800"),
])  # fmt: skip
def test_a_wrong_value_is_no_answer(root: Path, key: str, value: object) -> None:
    keep(root)
    path = places.places(root).rehearsal(KERNEL, "knetstat")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "answer": {**document["answer"], key: value}}))
    assert rehearsed(root) == (Rehearsed.DUE, None)


@pytest.mark.parametrize(
    ("mode", "qemu", "found"),
    [
        ("auto", True, Rehearsed.DUE),
        ("auto", False, Rehearsed.NOT_DUE),
        ("require", True, Rehearsed.DUE),
        ("require", False, Rehearsed.IMPOSSIBLE),
        ("never", True, Rehearsed.NOT_DUE),
        ("never", False, Rehearsed.NOT_DUE),
    ],
)
def test_whether_one_is_due(root: Path, mode: str, qemu: bool, found: Rehearsed) -> None:
    if not qemu:
        (root / "usr/bin/busybox").unlink()
        assert rehearsal_results.missing(root)
    assert rehearsed(root, mode) == (found, None)


def test_only_the_next_kernel_is_due(root: Path) -> None:
    kerneltree.make(root, "6.9.0-1-amd64")
    (root / "boot/vmlinuz-6.9.0-1-amd64").touch()
    (root / "usr/lib/modules/6.9.0-1-amd64/modules.builtin").touch()
    assert rehearsed(root) == (Rehearsed.NOT_DUE, None)
    keep(root)
    assert rehearsed(root) == (Rehearsed.BAD, SAID), "what was asked by hand counts all the same"
    os.utime(root / "boot" / f"vmlinuz-{KERNEL}")
    assert rehearsed(root) == (Rehearsed.NOT_DUE, None), "until it is void"
