# SPDX-License-Identifier: GPL-2.0-or-later
"""The signature: each answer has a module that gets it, beside one that passes in the same place."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import elf
import kerneltree
import pytest
from kerneltree import KERNEL
from keys import GUIDS, Key, signature_list, variable

from knetstatd.core.model import ELSEWHERE, UNPUBLISHED, Result
from knetstatd.formats import module_file, pkcs7
from knetstatd.machine.signature_policy import Firmware, Policy
from knetstatd.verify import signature_check, target_kernel, verify

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.core.model import Check, Proof
    from knetstatd.verify.target_kernel import Target

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
    assert answer(lenient, OURS.sign(PLAIN)).result is NA, "enrolled, and with Secure Boot off no kernel takes it"
    variable(lenient, "db", signature_list(OURS.certificate))
    assert answer(lenient, OURS.sign(PLAIN)).result is PASS
    # These the kernel refuses all the same.
    assert answer(lenient, elf.sign(PLAIN, b"")).result is FAIL
    assert answer(lenient, elf.sign(PLAIN, OURS.signature(PLAIN + b"x"))).result is FAIL


class TestWholeAnswers:
    """What was expected, what was found, the kernel's own words, and the cure; the firmware and the policy are given."""

    TRUSTED, BUILD = "a signature by a key that the kernel trusts", f"Run: knetstatctl build {KERNEL}"
    INSISTS = Policy(True, "Secure Boot is on", "", True, frozenset(), frozenset())
    LENIENT = INSISTS._replace(enforced="")
    DOUBTS = LENIENT._replace(doubt="nobody knows")
    MINE = pkcs7.certificate(OURS.certificate)
    BLUE = 'choose "Enroll MOK" on the blue screen (MokManager)'

    @pytest.fixture
    def facts(self, tmp_path: Path) -> Target:
        make(tmp_path)
        return target_kernel.facts(tmp_path, KERNEL)

    def ask(self, facts: Target, data: bytes, rules: Policy, machine: Firmware, genuine: bool | None = None) -> Check:
        module = module_file.parse(data, "demo.ko")
        return signature_check.check(module, facts, rules, machine, lambda signature, certificate: genuine)

    def says(self, check: Check, result: Result, expected: str, found: str, *reason: str, fix: str = "") -> None:
        assert check == (check.name, result, expected, found, check.reason, fix)
        assert check.name in ("signature", "key")
        assert bool(check.reason) == bool(reason)
        for words in reason:
            assert words in check.reason
        assert (check.name == "key") == ("unavailable key" in check.reason and fix != self.BUILD)

    def test_none(self, facts: Target) -> None:
        machine = Firmware()
        off = self.INSISTS._replace(signatures=False)
        self.says(self.ask(facts, PLAIN, off, machine), NA, "", "", "does not look at signatures")
        assert self.ask(facts, PLAIN, off._replace(signatures=None), machine).result is FAIL
        words = ("The kernel insists (Secure Boot is on)", "'Loading of unsigned module is rejected'")
        self.says(self.ask(facts, PLAIN, self.INSISTS, machine), FAIL, self.TRUSTED, "unsigned", *words, fix=self.BUILD)
        self.says(self.ask(facts, PLAIN, self.DOUBTS, machine), UNKNOWN, self.TRUSTED, "unsigned", "and nobody knows")
        self.says(self.ask(facts, PLAIN, self.LENIENT, machine), NA, "", "unsigned", "and taints")

    def test_damaged(self, facts: Target) -> None:
        found = self.ask(facts, elf.sign(PLAIN, b"\x30"), self.LENIENT, Firmware())
        self.says(found, FAIL, self.TRUSTED, "damaged", "refuses such a module even if", fix=self.BUILD)

    def test_the_kernels_own(self, facts: Target) -> None:
        found = "signed by kernel (01), as the kernel's own modules are"
        for genuine in (True, None):
            check = self.ask(facts, KERNELS.sign(PLAIN), self.INSISTS, Firmware(), genuine)
            self.says(check, UNKNOWN, self.TRUSTED, found, "only a rehearsal tells", fix=self.BUILD)
        own = Firmware(own=pkcs7.certificate(KERNELS.certificate))
        self.says(self.ask(facts, KERNELS.sign(PLAIN), self.INSISTS, own, True), PASS, self.TRUSTED, found)
        assert self.ask(facts, KERNELS.sign(PLAIN), self.INSISTS, own, None).result is UNKNOWN
        assert self.ask(facts, KERNELS.sign(PLAIN), self.INSISTS, own, False).result is FAIL

    def test_enrolled(self, facts: Target) -> None:
        for machine in (Firmware(enrolled=(self.MINE,)), Firmware(enrolled=(self.MINE,), own=self.MINE)):
            for genuine in (True, None):
                check = self.ask(facts, OURS.sign(PLAIN), self.INSISTS, machine, genuine)
                self.says(check, PASS, self.TRUSTED, "signed by ours (02), which is enrolled")
            altered = "signed by ours (02), then changed"
            check = self.ask(facts, OURS.sign(PLAIN), self.LENIENT, machine, False)
            self.says(check, FAIL, "the contents as signed", altered, "'Key was rejected by service'", fix=self.BUILD)

    def test_altered_and_not_trusted(self, facts: Target) -> None:
        machine, altered = Firmware(own=self.MINE), "signed by ours (02), then changed"
        check = self.ask(facts, OURS.sign(PLAIN), self.INSISTS, machine, False)
        self.says(check, FAIL, "the contents as signed", altered, "'Key was rejected by service'", fix=self.BUILD)
        assert check.reason.startswith("The contents are not what was signed")
        check = self.ask(facts, OURS.sign(PLAIN), self.LENIENT, machine, False)
        assert check.reason.startswith("The contents are not what was signed")
        self.says(check, check.result, "the contents as signed", altered, "does not know the key", fix=self.BUILD)

    def test_not_enrolled(self, facts: Target) -> None:
        data, who = OURS.sign(PLAIN), "signed by ours (02)"
        check = self.ask(facts, data, self.DOUBTS, Firmware())
        self.says(check, UNKNOWN, self.TRUSTED, who, "not the kernel's own, and nobody knows")
        self.says(self.ask(facts, data, self.LENIENT, Firmware()), NA, "", who, "does not know this key")
        check = self.ask(facts, data, self.INSISTS, Firmware(enrolled=None))
        self.says(check, UNKNOWN, self.TRUSTED, who, "/sys/firmware/efi/efivars")
        insists = "and the kernel insists (Secure Boot is on): 'Loading of module with unavailable key is rejected'"
        on, mine = Firmware(True), (self.MINE,)
        steps = f"asks for a password; then reboot, and {self.BLUE}"
        off = "Turn Secure Boot on, in the firmware's setup or by mokutil --enable-validation"
        off += ", or take away what makes the kernel insist: Secure Boot is on"
        no_shim = "no kernel takes shim's keys while Secure Boot is off"
        cures = {
            on: ("The key is not enrolled", f"Run: mokutil --import CERTIFICATE.der # {steps}"),
            on._replace(own=self.MINE, own_file="/m"): ("The key is not enrolled", f"Run: mokutil --import /m # {steps}"),
            on._replace(own=self.MINE, own_file="/a b", is_pem=True): (
                "The key is not enrolled",
                f"Run: openssl x509 -in '/a b' -outform DER -out '/a b.der' && mokutil --import '/a b.der' # {steps}",
            ),
            on._replace(waiting=mine): ("The key's enrolment is requested (mokutil --list-new)", f"Reboot, and {self.BLUE}"),
            on._replace(without_database=mine): (
                "The key is in the firmware's list, which shim tells kernels to leave out",
                "Run: mokutil --use-db # asks for a password; then reboot, and confirm it on the blue screen (MokManager)",
            ),
            Firmware(waiting=mine): (f"The key is not enrolled, and {no_shim}", off),
            Firmware(without_shim=mine): (f"The key is enrolled, but {no_shim}", off),
        }  # fmt: skip
        for machine, (state, cure) in cures.items():
            check = self.ask(facts, data, self.INSISTS, machine, True)
            self.says(check, FAIL, self.TRUSTED, who, f"{state}, {insists}", fix=cure)
        closed = self.INSISTS._replace(enrolled=False)
        check = self.ask(facts, data, closed, Firmware(enrolled=mine, waiting=mine))
        cure = "Only its own distributor can sign for this kernel"
        self.says(check, FAIL, self.TRUSTED, who, f"This kernel takes no keys from the firmware, {insists}", fix=cure)

    def test_another_build_is_signed_with_an_enrolled_key(self, facts: Target) -> None:
        machine = Firmware(enrolled=(self.MINE,), own=self.MINE)
        check, who = self.ask(facts, STRANGERS.sign(PLAIN), self.INSISTS, machine), "signed by stranger (03)"
        self.says(check, FAIL, f"signed by ours ({OURS.skid.hex(':')})", who, "unavailable key", fix=self.BUILD)
        closed = self.INSISTS._replace(enrolled=False)
        assert self.ask(facts, STRANGERS.sign(PLAIN), closed, machine).name == "key", "no build would help there"


def test_a_key_that_is_ours_and_not_enrolled(insisting: Path) -> None:
    ours = OURS.sign(PLAIN)
    variable(insisting, "MokListRT", signature_list(STRANGERS.certificate))
    check = answer(insisting, ours)
    assert check[:2] == ("key", FAIL)
    assert check.reason.startswith("The key is not enrolled, and the kernel insists (Secure Boot)")
    assert check.fix.startswith("Run: mokutil --import /var/lib/dkms/mok.pub # asks for a password; then reboot, and choose")
    proof = judge(insisting, ours)
    assert (proof.loads, proof.holds(ELSEWHERE)) == (False, True)  # no new build would help
    variable(insisting, "MokNew", signature_list(OURS.certificate))
    assert answer(insisting, ours).reason.startswith("The key's enrolment is requested (mokutil --list-new), and the kernel")
    assert answer(insisting, ours).fix.startswith('Reboot, and choose "Enroll MOK"')
    # Altered, and the kernel cannot tell: it refuses the key where it insists, and loads the module where it does not.
    altered = elf.sign(PLAIN, OURS.signature(PLAIN + b"x"))
    assert answer(insisting, altered).result is FAIL
    variable(insisting, "SecureBoot", b"\0")
    assert answer(insisting, altered).result is FAIL


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
    assert "takes no keys" in check.reason


def test_a_certificate_in_the_form_that_mokutil_does_not_import(insisting: Path) -> None:
    (insisting / "etc/dkms").mkdir(parents=True)
    (insisting / "etc/dkms/framework.conf").write_text("mok_signing_key=/etc/keys/mok.key\nmok_certificate=/etc/keys/mok.pem\n")
    (insisting / "etc/keys").mkdir()
    body = base64.encodebytes(OURS.certificate).decode()
    (insisting / "etc/keys/mok.pem").write_text(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
    variable(insisting, "MokListRT", signature_list(STRANGERS.certificate))
    convert = "openssl x509 -in /etc/keys/mok.pem -outform DER -out /etc/keys/mok.pem.der"
    assert f"Run: {convert} && mokutil --import /etc/keys/mok.pem.der # " in answer(insisting, OURS.sign(PLAIN)).fix


def test_keys_that_are_enrolled_and_that_no_kernel_takes(insisting: Path) -> None:
    """As kernels 5.10 to 6.12 said, see tests/vm/test_secure_boot.py."""
    ours, theirs = OURS.sign(PLAIN), STRANGERS.sign(PLAIN)
    variable(insisting, "db", signature_list(STRANGERS.certificate))
    assert [answer(insisting, data).result for data in (ours, theirs)] == [PASS, PASS]
    variable(insisting, "MokIgnoreDB", b"\1")
    assert [answer(insisting, data).result for data in (ours, theirs)] == [PASS, FAIL]
    (insisting / "boot/grub").mkdir(parents=True)
    (insisting / "boot/grub/grub.cfg").write_text(f"menuentry x {{\nlinux /vmlinuz-{KERNEL} module.sig_enforce\n}}\n")
    (insisting / "sys/firmware/efi/efivars" / f"MokIgnoreDB-{GUIDS['MokIgnoreDB']}").unlink()
    variable(insisting, "SecureBoot", b"\0")
    assert [answer(insisting, data).result for data in (ours, theirs)] == [FAIL, PASS]
    assert answer(insisting, ours).fix.startswith("Turn Secure Boot on")


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
    assert verify._intact(tmp_path / "gone", ())(pkcs7.signature(OURS.signature(b"x")), certificate) is None


def test_a_witness_whose_signature_is_damaged(insisting: Path) -> None:
    for path in (insisting / f"lib/modules/{KERNEL}/kernel").rglob("*.ko"):
        path.write_bytes(elf.sign(path.read_bytes()[: path.read_bytes().find(b"\x30\x82")], b"\x30"))
    assert answer(insisting, KERNELS.sign(PLAIN)).result is FAIL
