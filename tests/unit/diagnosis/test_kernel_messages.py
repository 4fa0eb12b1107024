# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel's words mean; that kernels use them is shown by tests/vm/test_agreement.py."""

from __future__ import annotations

import pytest

from knetstatd.diagnosis import kernel_messages


@pytest.mark.parametrize(
    ("line", "check", "reason"),
    [
        ("m: disagrees about version of symbol printk", "crcs", "the symbol printk has another checksum there"),
        ("m: no symbol version for module_layout", "crcs", "the module has no checksum for the symbol module_layout"),
        ("m: version magic '6.1 SMP ' should be '6.1 SMP preempt '", "vermagic", "its version magic is 'SMP ', and must be"),
        ("m: version magic '6.1 SMP ' should be '6.2 SMP '", "release", "it was built for 6.1, and this is 6.2"),
        ("m: Unknown symbol gone (err -2)", "symbols", "that kernel has no symbol gone for it"),
        ("m: exports duplicate symbol x (owned by y)", "exports", "it exports x, which the kernel has already"),
        ("Module m is blacklisted", "denied", "module_blacklist= on the kernel's command line denies it"),
        ("Lockdown: insmod: unsigned module loading is restricted", "signature", "its signature is none"),
        ("failed to validate module [m] BTF: -22", "btf", "its type information (BTF) is damaged"),
        ("module m: .gnu.linkonce.this_module section size must match", "struct-module", "its struct module has another size"),
    ],
)
def test_refusals(line: str, check: str, reason: str) -> None:
    refusal = kernel_messages.find(["m: hello", line])
    assert refusal is not None
    assert refusal.check == check
    assert refusal.reason.startswith(reason.replace("'SMP '", "'SMP'"))


def test_what_is_for_another_kernel_and_what_is_not() -> None:
    assert {"crcs", "vermagic", "release", "struct-module", "symbols", "btf"} == kernel_messages.FOREIGN


def test_what_is_no_refusal() -> None:
    assert kernel_messages.find(["m: loading out-of-tree module taints kernel.", ""]) is None


def test_the_most_telling_line_decides() -> None:
    """Whatever their order: the kernel adds what follows from the first."""
    lines = ["m: Unknown symbol x (err -22)", "m: disagrees about version of symbol x"]
    for said in (lines, lines[::-1]):
        refusal = kernel_messages.find(said)
        assert refusal is not None
        assert refusal.check == "crcs"
