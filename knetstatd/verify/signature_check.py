# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the signature: will this kernel, booted on this machine, take the module for one that it may load?

Rule 1: as for checks: pure, and the kernel's own rules (module_sig_check(), mod_verify_sig(), pkcs7_validate_trust()).
Rule 2: unsigned, damaged, altered, by a key that is not trusted, and by one that is, are five answers.
Rule 3: keys are compared, never names. Of a key of the kernel's distributor no certificate is at hand, so that it is the
        right key can be told, and that the contents are unchanged only a rehearsal tells: of the kernel's own files it is
        taken for granted, of others it is unknown. The kernel refuses changed contents by a key that it knows even if it
        insists on no signature ('Key was rejected by service').
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.core.errors import Damaged
from knetstatd.core.model import Check, Result
from knetstatd.formats import pkcs7
from knetstatd.verify.loader_checks import rebuild

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from knetstatd.formats.module_file import Module
    from knetstatd.formats.pkcs7 import Certificate, Key, Signature
    from knetstatd.machine.signature_policy import Firmware, Policy
    from knetstatd.verify.target_kernel import Target

_SCREEN = "on the blue screen (MokManager)"
_CONFIRM = f"asks for a password; then reboot, and confirm it {_SCREEN}"


def check(
    module: Module,
    facts: Target,
    rules: Policy,
    machine: Firmware,
    intact: Callable[[Signature, Certificate], bool | None],
    *,
    shipped: bool = False,
) -> Check:
    """Whether the kernel will take the signature, or the lack of one. Named "key" if only the machine's keys are against it.

    intact: whether the contents are what was signed, by a certificate.  shipped: it is a file of the kernel's own.
    """
    expected = "a signature by a key that the kernel trusts"
    if rules.signatures is False:
        return Check("signature", Result.NOT_APPLICABLE, reason="This kernel does not look at signatures")
    if module.signature is None:
        return _unsigned(facts, rules, expected)
    try:
        signed = pkcs7.signature(module.signature)
    except Damaged as e:
        reason = f"{e}; the kernel refuses such a module even if it insists on no signature"
        return Check("signature", Result.FAIL, expected, "damaged", reason, rebuild(facts))
    signer = f"signed by {names.clean(str(signed.key), 200)}"
    own = _known(signed.key, (machine.own,) if machine.own else ())
    enrolled = _known(signed.key, machine.enrolled or ()) if rules.enrolled else None
    certificate = enrolled or own
    kernels = _is_kernels(signed.key, facts)
    genuine = intact(signed, certificate) if certificate is not None else None
    if genuine is False:
        return _altered(facts, rules, signer, trusted=kernels or enrolled is not None)
    as_kernels = f"{signer}, as the kernel's own modules are"
    if kernels and not shipped and not genuine:
        reason = "The key is the kernel's; whether the contents are what was signed only a rehearsal tells"
        return Check("signature", Result.UNKNOWN, expected, as_kernels, reason, rebuild(facts))
    if kernels:
        return Check("signature", Result.PASS, expected, as_kernels)
    if enrolled is not None:
        return Check("signature", Result.PASS, expected, f"{signer}, which is enrolled")
    if rules.doubt:
        return Check("signature", Result.UNKNOWN, expected, signer, f"The key is not the kernel's own, and {rules.doubt}")
    if not rules.enforced:
        reason = "The kernel does not know this key; nothing makes it insist, so the module loads, and taints"
        return Check("signature", Result.NOT_APPLICABLE, "", signer, reason)
    insists = f"the kernel insists ({rules.enforced}): 'Loading of module with unavailable key is rejected'"
    if machine.enrolled is None:
        why = "The keys that are enrolled cannot be read from /sys/firmware/efi/efivars"
        return Check("signature", Result.UNKNOWN, expected, signer, why)
    if rules.enrolled and machine.own is not None and own is None and _known(machine.own.key, machine.enrolled):
        reason = f"The key is not the one that is enrolled, and {insists}"
        return Check("signature", Result.FAIL, f"signed by {machine.own.key}", signer, reason, rebuild(facts))
    state, step = _enrolment(signed.key, rules, machine)
    return Check("key", Result.FAIL, expected, signer, f"{state}, and {insists}", step)


def _unsigned(facts: Target, rules: Policy, expected: str) -> Check:
    if rules.enforced:
        reason = f"The kernel insists ({rules.enforced}): 'Loading of unsigned module is rejected'"
        return Check("signature", Result.FAIL, expected, "unsigned", reason, rebuild(facts))
    if rules.doubt:
        return Check("signature", Result.UNKNOWN, expected, "unsigned", f"It is not signed, and {rules.doubt}")
    reason = "Nothing makes the kernel insist on a signature: the module loads, and taints"
    return Check("signature", Result.NOT_APPLICABLE, "", "unsigned", reason)


def _altered(facts: Target, rules: Policy, signer: str, *, trusted: bool) -> Check:
    reason = "The contents are not what was signed"
    if not trusted and not rules.enforced:
        reason += "; a kernel that does not know the key cannot tell, and would load what is left of the module"
    else:
        reason += ": 'Key was rejected by service'"
    return Check("signature", Result.FAIL, "the contents as signed", f"{signer}, then changed", reason, rebuild(facts))


def _known(key: Key, certificates: Iterable[Certificate]) -> Certificate | None:
    return next((c for c in certificates if c.key.is_same(key)), None)


def _is_kernels(key: Key, facts: Target) -> bool:
    """Whether it is the key of the kernel's own modules: whoever built it built that key into it."""
    try:
        return bool(facts.signature) and pkcs7.signature(facts.signature).key.is_same(key)
    except Damaged:
        return False


def _enrolment(key: Key, rules: Policy, machine: Firmware) -> tuple[str, str]:
    """How far the enrolment of a key is that the kernel does not take, and the next step."""
    if not rules.enrolled:
        return "This kernel takes no keys from the firmware", "Only its own distributor can sign for this kernel"
    if _known(key, machine.without_database):
        return "The key is in the firmware's list, which shim tells kernels to leave out", f"Run: mokutil --use-db # {_CONFIRM}"
    if not machine.secure_boot:
        is_so = "is enrolled, but" if _known(key, machine.without_shim) else "is not enrolled, and"
        state = f"The key {is_so} no kernel takes shim's keys while Secure Boot is off"
        on = "Turn Secure Boot on, in the firmware's setup or by mokutil --enable-validation"
        return state, f"{on}, or take away what makes the kernel insist: {rules.enforced}"
    if _known(key, machine.waiting):
        return "The key's enrolment is requested (mokutil --list-new)", f'Reboot, and choose "Enroll MOK" {_SCREEN}'
    how = f'asks for a password; then reboot, and choose "Enroll MOK" {_SCREEN}'
    if machine.own is None or not machine.own.key.is_same(key):
        return "The key is not enrolled", f"Run: mokutil --import CERTIFICATE.der # {how}"
    file = der = shlex.quote(machine.own_file)
    convert = ""
    if machine.is_pem:
        der = shlex.quote(f"{machine.own_file}.der")
        convert = f"openssl x509 -in {file} -outform DER -out {der} && "
    return "The key is not enrolled", f"Run: {convert}mokutil --import {der} # {how}"
