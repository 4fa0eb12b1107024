# SPDX-License-Identifier: GPL-2.0-or-later
"""The signature: each answer has a module that gets it, beside one that passes in the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import elf
import kerneltree
import pytest
from kerneltree import KERNEL
from keys import Key, signature_list, variable

from knetstatd.core.model import ELSEWHERE, UNPUBLISHED, Result
from knetstatd.formats import pkcs7
from knetstatd.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.core.model import Check, Proof

PASS, FAIL, WARN, UNKNOWN, NA = Result.PASS, Result.FAIL, Result.WARN, Result.UNKNOWN, Result.NOT_APPLICABLE
CONFIG = "CONFIG_MODULE_SIG=y\nCONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y\nCONFIG_INTEGRITY_PLATFORM_KEYRING=y\n"
KERNELS, OURS, STRANGERS = Key("kernel", 1), Key("ours", 2), Key("stranger", 3)
PLAIN = kerneltree.module()


def make(root: Path, config: str = CONFIG) -> None:
    """A kernel whose own modules are signed; our key is DKMS's, and enrolled."""
    tree = kerneltree.make(root, config=config)
    for path in (tree / "kernel").rglob("*.ko"):
        path.write_bytes(KERNELS.sign(path.read_bytes()))
    (root / "var/lib/dkms").mkdir(parents=True)
    (root / "var/lib/dkms/mok.pub").write_bytes(OURS.certificate)
    variable(root, "SecureBoot", b"\1")
    variable(root, "MokListRT", signature_list(OURS.certificate))


def judge(root: Path, data: bytes) -> Proof:
    path = root / "staged.ko"
    path.write_bytes(data)
    return verify.verify(root, KERNEL, path)


def answer(root: Path, data: bytes) -> Check:
    return judge(root, data).checks[-1]


@pytest.fixture
def insisting(tmp_path: Path) -> Path:
    make(tmp_path)
    return tmp_path


@pytest.fixture
def lenient(tmp_path: Path) -> Path:
    make(tmp_path)
    variable(tmp_path, "SecureBoot", b"\0")
    return tmp_path


def test_where_the_kernel_insists(insisting: Path) -> None:
    answers = {
        "enrolled": OURS.sign(PLAIN),
        "the kernel's own": KERNELS.sign(PLAIN),
        "unsigned": PLAIN,
        "unknown": STRANGERS.sign(PLAIN),
        "damaged": elf.sign(PLAIN, b"\x30\x03abc"),
        "altered": elf.sign(PLAIN, OURS.signature(PLAIN + b"x")),
    }
    found = {what: answer(insisting, data) for what, data in answers.items()}
    results = dict.fromkeys(found, FAIL) | {"enrolled": PASS, "the kernel's own": UNKNOWN}
    assert {what: check.result for what, check in found.items()} == results
    # Six answers, no two of them the same.
    assert len({(check.result, check.found, check.reason) for check in found.values()}) == len(found)
    assert "'Loading of unsigned module is rejected'" in found["unsigned"].reason
    assert "Secure Boot" in found["unsigned"].reason
    assert "stranger (03)" in found["unknown"].found
    assert "which is enrolled" in found["enrolled"].found
    assert found["unsigned"].fix == f"Run: knetstatctl build {KERNEL}"


def test_where_nothing_insists(lenient: Path) -> None:
    assert answer(lenient, PLAIN)[:2] == ("signature", NA)
    assert answer(lenient, STRANGERS.sign(PLAIN))[:2] == ("signature", NA)
    assert answer(lenient, OURS.sign(PLAIN)).result is PASS
    # These the kernel refuses all the same.
    assert answer(lenient, elf.sign(PLAIN, b"")).result is FAIL
    assert answer(lenient, elf.sign(PLAIN, OURS.signature(PLAIN + b"x"))).result is FAIL


def test_a_key_that_is_ours_and_not_enrolled(insisting: Path) -> None:
    ours = OURS.sign(PLAIN)
    variable(insisting, "MokListRT", signature_list(STRANGERS.certificate))
    check = answer(insisting, ours)
    assert check[:2] == ("key", FAIL)
    assert check.fix == "Run: mokutil --import /var/lib/dkms/mok.pub, then confirm it on the blue screen at the next boot"
    proof = judge(insisting, ours)
    assert (proof.loads, proof.holds(ELSEWHERE)) == (False, True)  # no new build would help
    variable(insisting, "MokNew", signature_list(OURS.certificate))
    assert "confirm it" in answer(insisting, ours).fix
    # Altered, and the kernel cannot tell: it refuses the key where it insists, and loads the module where it does not.
    altered = elf.sign(PLAIN, OURS.signature(PLAIN + b"x"))
    assert answer(insisting, altered).result is FAIL
    variable(insisting, "SecureBoot", b"\0")
    assert answer(insisting, altered).result is WARN


def test_a_key_that_was_replaced(insisting: Path) -> None:
    """The old key is gone, the new one is enrolled: another build cures it."""
    old = STRANGERS.sign(PLAIN)
    check = answer(insisting, old)
    assert check[:2] == ("signature", FAIL)
    assert check.fix == f"Run: knetstatctl build {KERNEL}"
    assert not judge(insisting, old).holds(ELSEWHERE)
    assert judge(insisting, old).holds(UNPUBLISHED)
    (insisting / "var/lib/dkms/mok.pub").unlink()
    assert answer(insisting, old).name == "key"


def test_a_kernel_that_takes_no_keys_of_the_firmware(tmp_path: Path) -> None:
    make(tmp_path, CONFIG.replace("CONFIG_INTEGRITY_PLATFORM_KEYRING=y\n", ""))
    check = answer(tmp_path, OURS.sign(PLAIN))
    assert check[:2] == ("key", FAIL)
    assert "takes no keys" in check.fix


def test_the_kernels_own_key(insisting: Path) -> None:
    """Of its own files the contents are believed; of others they are compared where its certificate is at hand."""
    tree = insisting / f"usr/lib/modules/{KERNEL}"
    own = verify.verify(insisting, KERNEL, tree / "kernel/lib/my-lib.ko")
    assert (own.checks[-1].result, own.loads) == (PASS, True)
    (tree / "kernel/lib/demo.ko").write_bytes(KERNELS.sign(PLAIN))  # modules.order does not have it
    assert verify.verify(insisting, KERNEL, tree / "kernel/lib/demo.ko").checks[-1].result is UNKNOWN
    whole, altered = KERNELS.sign(PLAIN), elf.sign(PLAIN, KERNELS.signature(PLAIN + b"x"))
    for secure_boot in (b"\1", b"\0"):
        variable(insisting, "SecureBoot", secure_boot)
        for data in (whole, altered):
            check = answer(insisting, data)
            assert (check.name, check.result, "only a rehearsal tells" in check.reason) == ("signature", UNKNOWN, True)
    (insisting / "var/lib/dkms/mok.pub").write_bytes(KERNELS.certificate)
    assert answer(insisting, whole).result is PASS
    assert answer(insisting, altered).result is FAIL


def test_a_kernel_without_signatures(tmp_path: Path) -> None:
    kerneltree.make(tmp_path)
    assert answer(tmp_path, elf.sign(PLAIN, b"x")).result is NA


def test_what_cannot_be_read_is_unknown(insisting: Path) -> None:
    for path in (insisting / "sys/firmware/efi/efivars").iterdir():
        path.unlink()
    assert answer(insisting, PLAIN).result is UNKNOWN
    assert answer(insisting, OURS.sign(PLAIN)).result is UNKNOWN
    assert not judge(insisting, PLAIN).loads
    (insisting / "boot/grub").mkdir()
    (insisting / "boot/grub/grub.cfg").write_text(f"menuentry x {{\nlinux /vmlinuz-{KERNEL} module.sig_enforce\n}}\n")
    assert answer(insisting, PLAIN).result is FAIL
    assert answer(insisting, OURS.sign(PLAIN)).result is UNKNOWN


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    certificate = pkcs7.certificate(OURS.certificate)
    assert verify._intact(tmp_path / "gone")(pkcs7.signature(OURS.signature(b"x")), certificate) is None


def test_a_witness_whose_signature_is_damaged(insisting: Path) -> None:
    for path in (insisting / f"lib/modules/{KERNEL}/kernel").rglob("*.ko"):
        path.write_bytes(elf.sign(path.read_bytes()[: path.read_bytes().find(b"\x30\x82")], b"\x30"))
    assert answer(insisting, KERNELS.sign(PLAIN)).result is FAIL
