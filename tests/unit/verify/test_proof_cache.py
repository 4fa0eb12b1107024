# SPDX-License-Identifier: GPL-2.0-or-later
"""Proofs of files that come together, and for how long they stand."""

from __future__ import annotations

import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any

import kerneltree
import pytest
from kerneltree import KERNEL
from keys import variable

from knetstatd.core.errors import ChildLost
from knetstatd.core.model import ELSEWHERE, UNPUBLISHED, Result
from knetstatd.machine.host import Host, Origin
from knetstatd.machine.modprobe_conf import Rules
from knetstatd.machine.signature_policy import Firmware
from knetstatd.rehearsal.vm import CpioFile, cpio
from knetstatd.system.child import in_child
from knetstatd.verify import initrd_digests, proof_cache
from knetstatd.verify.proof_cache import Look, Proofs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_modules_of_one_package_may_need_each_other(tmp_path: Path) -> None:
    kerneltree.make(tmp_path)
    for name, text in (("Makefile", ""), (".config", ""), ("scripts", "")):
        (tmp_path / f"usr/src/linux-headers-{KERNEL}/{name}").write_text(text)
    crcs = {name: kerneltree.CRCS[name] for name in ("module_layout", "printk")} | {"fn": 7}
    needs, gives = tmp_path / "needs.ko", tmp_path / "gives.ko"
    needs.write_bytes(kerneltree.module("needs", undefined=["printk", "fn"], crcs=crcs))
    gives.write_bytes(kerneltree.module("gives", exports={"fn": (7, "", "")}))
    proofs = Proofs(tmp_path)

    def failed(*others: Path) -> list[str]:
        proof = proofs.file(Look(tmp_path, KERNEL), needs, others)
        return [check.name for check in proof.checks if check.result in ("fail", "unknown")]

    assert failed() == ["symbols"]
    assert failed(needs, gives) == []
    assert failed() == ["symbols"], "an answer with others is none without them"
    gives.write_bytes(kerneltree.module("gives"))
    assert failed(needs, gives) == ["symbols"], "another file, another answer"


def test_a_proof_falls_with_a_file_that_is_inserted_before(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    kerneltree.add(tree, "updates/other.ko", kerneltree.module("other"))
    kerneltree.add(tree, "updates/demo.ko", kerneltree.module(), "updates/other.ko")
    proofs = Proofs(tmp_path)
    [(_, proof)] = proofs.installed(Look(tmp_path, KERNEL), {"demo": None})
    assert proof.loads
    (tree / "updates/other.ko").write_bytes(b"")
    [(_, proof)] = proofs.installed(Look(tmp_path, KERNEL), {"demo": None})
    assert not proof.loads


def test_a_proof_comes_whole_out_of_another_process(tmp_path: Path) -> None:
    """Whatever carries it knows JSON only."""
    tree = kerneltree.make(tmp_path)
    kerneltree.add(tree, "updates/other.ko", kerneltree.module("other"))
    kerneltree.add(tree, "updates/demo.ko", kerneltree.module(build_id="0102"), "updates/other.ko")

    def carried(work: Callable[[], list[Any]]) -> list[Any]:
        made: list[Any] = json.loads(json.dumps(work(), sort_keys=True))
        return made

    [(_, here)] = Proofs(tmp_path).installed(Look(tmp_path, KERNEL), {"demo": None})
    [(_, there)] = Proofs(tmp_path, carried).installed(Look(tmp_path, KERNEL), {"demo": None})
    assert here.needed
    assert here == there
    assert [type(check.result) for check in there.checks] == [type(check.result) for check in here.checks]


def test_a_proof_that_could_not_be_made(tmp_path: Path) -> None:
    """Nothing is known: it is no failure, it is not good for anything, and it is not kept."""
    tree = kerneltree.make(tmp_path)
    kerneltree.add(tree, "updates/demo.ko", kerneltree.module())
    lost = [True]

    def in_child(work: Callable[[], list[Any]]) -> list[Any]:
        if lost:
            raise ChildLost("it was killed")
        return json.loads(json.dumps(work()))  # type: ignore[no-any-return]

    proofs, look = Proofs(tmp_path, in_child), Look(tmp_path, KERNEL)
    [(_, proof)] = proofs.installed(look, {"demo": None})
    loose = proofs.file(look, tree / "updates/demo.ko")
    for one in (proof, loose):
        assert [(check.name, check.result) for check in one.checks] == [("proof", Result.UNKNOWN)]
        assert not one.fails
        assert not one.loads
        assert not one.holds(UNPUBLISHED, linked=True)
        assert not one.holds(ELSEWHERE)
    assert look.closed, "root is to read it"
    lost.clear()
    assert proofs.installed(look, {"demo": None})[0][1].loads
    assert proofs.file(look, tree / "updates/demo.ko").holds(UNPUBLISHED)


@pytest.mark.parametrize("what", ["replaced", "deleted"])
def test_a_file_that_changes_while_it_is_proven(tmp_path: Path, what: str) -> None:
    """The proof is of the file that was there before, and does not stand for the one that is there now."""
    tree = kerneltree.make(tmp_path)
    paths = [kerneltree.add(tree, "updates/demo.ko", kerneltree.module()), tmp_path / "staged.ko"]
    paths[1].write_bytes(kerneltree.module())

    def meanwhile(work: Callable[[], list[Any]]) -> list[Any]:
        answer: list[Any] = json.loads(json.dumps(work()))
        for path in paths:
            path.unlink()
            if what == "replaced":
                time.sleep(0.02)  # longer than a tick of the clock that files have
                path.write_bytes(b"no module")
        paths.clear()
        return answer

    staged, proofs = paths[1], Proofs(tmp_path, meanwhile)
    proofs.installed(Look(tmp_path, KERNEL), {"demo": None})
    [(_, proof)] = proofs.installed(Look(tmp_path, KERNEL), {"demo": None})
    assert not proof.loads
    staged.write_bytes(kerneltree.module())
    paths += [staged]
    assert proofs.file(Look(tmp_path, KERNEL), staged).holds(UNPUBLISHED)
    assert not proofs.file(Look(tmp_path, KERNEL), staged).holds(UNPUBLISHED)


@pytest.mark.skipif(os.getuid() != 0, reason="root becomes another user, and reads what that one may not")
@pytest.mark.usefixtures("open_to_all")
def test_an_initrd_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root is to read it, once for each version of ours."""
    kerneltree.make(tmp_path)
    disk, kept = tmp_path / f"boot/initrd.img-{KERNEL}", tmp_path / "kept"
    disk.write_bytes(cpio([CpioFile("init", stat.S_IFREG | 0o755, b"x")]))
    disk.chmod(0)

    def is_closed() -> bool:
        def work() -> list[bool]:
            os.setuid(65534)
            return [bool(Look(tmp_path, KERNEL, Host(Firmware(), Rules(), kept)).closed)]

        return in_child(work) == [True]

    assert is_closed()
    initrd_digests.modules((disk,), KERNEL, (), kept)
    assert not is_closed()
    monkeypatch.setattr(proof_cache, "__version__", "0.9")
    assert is_closed()


class Elsewhere:
    """Does the work where it is, gives the answer as JSON brings it back, and counts."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, work: Callable[[], list[Any]]) -> list[Any]:
        answer: list[Any] = json.loads(json.dumps(work()))
        self.asked.append(len(answer))
        return answer


class TestWhatIsAskedAgain:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        tree = kerneltree.make(tmp_path)
        kerneltree.add(tree, "updates/other.ko", kerneltree.module("other"))
        kerneltree.add(tree, "updates/demo.ko", kerneltree.module(), "updates/other.ko")
        return tree

    def test_a_file(self, tmp_path: Path, tree: Path) -> None:
        elsewhere, file = Elsewhere(), tmp_path / "staged.ko"
        file.write_bytes(kerneltree.module(info={"srcversion": "ABC"}, build_id="aaaa"))
        proofs = Proofs(tmp_path, elsewhere)
        first = proofs.file(Look(tmp_path, KERNEL), file)
        assert (first.loads, first.path, first.srcversion, first.build_id) == (True, str(file), "ABC", "aaaa")
        assert first == Proofs(tmp_path).file(Look(tmp_path, KERNEL), file), "the same, wherever it is asked"
        assert proofs.file(Look(tmp_path, KERNEL), file) == first
        proofs.keep_only([KERNEL])
        proofs.file(Look(tmp_path, KERNEL), file)
        assert elsewhere.asked == [1]
        proofs.keep_only(["6.9.0-other"])
        proofs.file(Look(tmp_path, KERNEL), file)
        assert elsewhere.asked == [1, 1]

    @pytest.mark.parametrize("changed", ["the file", "the kernel", "the machine"])
    def test_a_file_when_something_changed(self, tmp_path: Path, tree: Path, changed: str) -> None:
        elsewhere, file = Elsewhere(), tmp_path / "staged.ko"
        file.write_bytes(kerneltree.module())
        proofs = Proofs(tmp_path, elsewhere)
        assert proofs.file(Look(tmp_path, KERNEL), file).loads
        if changed == "the file":
            file.write_bytes(kerneltree.module(license="X", undefined=["gone"]))
        elif changed == "the kernel":
            (tmp_path / f"usr/src/linux-headers-{KERNEL}/Module.symvers").unlink()
        else:
            (tmp_path / "etc/modprobe.d").mkdir(parents=True)
            (tmp_path / "etc/modprobe.d/x.conf").write_text("blacklist demo\n")
        proof = proofs.file(Look(tmp_path, KERNEL), file)
        assert (elsewhere.asked, proof.loads) == ([1, 1], changed == "the machine")

    def test_another_entry_of_the_kernel_is_chosen(self, tmp_path: Path, tree: Path) -> None:
        entries = tmp_path / "boot/loader/entries"
        entries.mkdir(parents=True)
        (tmp_path / f"boot/vmlinuz-{KERNEL}").write_text("image")
        for name, options in (("a", "ro module_blacklist=demo"), ("b", "ro")):
            (entries / f"{name}.conf").write_text(f"version {KERNEL}\nlinux /vmlinuz-{KERNEL}\noptions {options}\n")
        proofs = Proofs(tmp_path)
        for name, loads in (("a", False), ("b", True), ("a", False)):
            (entries.parent / "loader.conf").write_text(f"default {name}.conf\n")
            [(_, proof)] = proofs.installed(Look(tmp_path, KERNEL), {"demo": None})
            assert proof.loads is loads

    def test_another_image_of_the_kernel_is_started(self, tmp_path: Path, tree: Path) -> None:
        copy, entry = tmp_path / f"efi/machine/{KERNEL}/linux", tmp_path / "efi/loader/entries/a.conf"
        for path in (copy, entry):
            path.parent.mkdir(parents=True)
        entry.write_text(f"version {KERNEL}\nlinux /machine/{KERNEL}/linux\n")
        (tmp_path / f"usr/src/linux-headers-{KERNEL}/Module.symvers").unlink()
        crcs = (kerneltree.CRCS | {"printk": 9}, kerneltree.CRCS)
        built = [kerneltree.image(tmp_path, crcs=one).read_bytes() for one in crcs]
        (tmp_path / f"boot/vmlinuz-{KERNEL}").write_bytes(b"some image")
        proofs = Proofs(tmp_path)
        for data, loads in zip(built, (False, True), strict=True):
            (tmp_path / "new").write_bytes(data)
            (tmp_path / "new").rename(copy)
            [(_, proof)] = proofs.installed(Look(tmp_path, KERNEL), {"demo": None})
            assert proof.loads is loads

    def test_a_file_for_another_kernel_is_another_question(self, tmp_path: Path, tree: Path) -> None:
        kerneltree.make(tmp_path, "6.2.0-1-amd64", modversions=False)
        file, proofs = tmp_path / "staged.ko", Proofs(tmp_path)
        file.write_bytes(kerneltree.module())
        assert [proofs.file(Look(tmp_path, kernel), file).loads for kernel in (KERNEL, "6.2.0-1-amd64")] == [True, False]

    def test_installed_modules(self, tmp_path: Path, tree: Path) -> None:
        elsewhere, copy = Elsewhere(), tmp_path / "copy.ko"
        copy.write_bytes(kerneltree.module())
        proofs, demo = Proofs(tmp_path, elsewhere), Origin("1", "1", copy)

        def ask(**modules: Origin | None) -> list[str]:
            return [module for module, proof in proofs.installed(Look(tmp_path, KERNEL), modules) if proof.loads]

        assert ask(demo=demo, other=None) == ["demo", "other"]
        assert ask(other=None, demo=demo) == ["other", "demo"]
        assert elsewhere.asked == [2]
        assert ask(demo=demo._replace(registered="2"), other=None) == ["demo", "other"]
        assert elsewhere.asked == [2, 1], "only the one of which DKMS knows something else"
        copy.unlink()
        copy.write_bytes(kerneltree.module())
        ask(demo=demo._replace(registered="2"), other=None)
        assert elsewhere.asked == [2, 1, 1], "nor does it stand when DKMS's copy changes"
        assert ask(demo=demo, absent=None) == ["demo"]
        assert ask(absent=None) == []
        assert elsewhere.asked == [2, 1, 1, 2, 1], "what is nowhere may be there next time"
        proofs.keep_only([])
        ask(other=None)
        assert elsewhere.asked[5:] == [1]

    def test_a_look_is_of_one_moment(self, tmp_path: Path, tree: Path) -> None:
        """Both questions are answered by what the look has read already, of the kernel and of the machine."""
        file = tmp_path / "staged.ko"
        file.write_bytes(kerneltree.module())
        look, late = Look(tmp_path, KERNEL), Look(tmp_path, KERNEL)
        assert look.facts.witness
        for own in (tree / "kernel").rglob("*.ko"):
            own.unlink()
        (tmp_path / "etc/modprobe.d").mkdir(parents=True)
        (tmp_path / "etc/modprobe.d/x.conf").write_text("install demo /bin/false\n")
        assert Proofs(tmp_path).file(look, file).loads
        assert not Proofs(tmp_path).file(late, file).loads
        assert Proofs(tmp_path).installed(look, {"demo": None})[0][1].loads

    def test_the_machine_and_what_dkms_knows_are_those_of_the_look(self, tmp_path: Path) -> None:
        options = "CONFIG_MODULE_SIG=y\nCONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y\n"
        tree, file = kerneltree.make(tmp_path, config=options), tmp_path / "copy.ko"
        file.write_bytes(kerneltree.module())
        kerneltree.add(tree, "updates/demo.ko", kerneltree.module())
        look = Look(tmp_path, KERNEL)
        variable(tmp_path, "SecureBoot", b"\1")
        assert Proofs(tmp_path).file(look, file).loads
        assert not Proofs(tmp_path).file(Look(tmp_path, KERNEL), file).loads
        [(_, proof)] = Proofs(tmp_path).installed(look, {"demo": Origin("1", "1", file)})
        assert {check.name: check.result for check in proof.checks}["origin"] is Result.PASS

    def test_a_kernel_is_looked_at_once(self, tmp_path: Path, tree: Path) -> None:
        look = Look(tmp_path, KERNEL, together=["demo"])
        assert look.facts is look.facts
        assert (look.root, look.kernel, look.together, look.facts.kernel) == (tmp_path, KERNEL, ["demo"], KERNEL)
        assert Look(tmp_path, KERNEL, look.host).host is look.host
        assert (look.host, look.inputs) == (Look(tmp_path, KERNEL).host, Look(tmp_path, KERNEL).inputs)
