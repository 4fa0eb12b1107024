# SPDX-License-Identifier: GPL-2.0-or-later
"""dkms.conf's expressions mean what bash makes of them, and cost no more than a limit."""

from __future__ import annotations

import subprocess
import time

import pytest

from knetstatd.core import names
from knetstatd.system import kernel_pattern

KERNELS = ("6.1.0-9-amd64", "6.12.117+deb12-cloud-amd64", "5.10.0-46-rt-amd64", "7.3")
PATTERNS = (
    "^6.1", "^6\\.1\\.", "^(5|6)\\.",
    "amd64$", "^[56]\\.[0-9]+\\.", "cloud|rt", "^(5\\.1[0-9]|6\\..*)-amd64$", "[^0-9]deb",
    "",
    "^[[:digit:]]+\\.[[:digit:]]{2}",
    "(a|b|6)+", "^.{5}$", "\\<rt\\>", "6\\.1\\+", "x*", "(6", "6)", "[", "*", "a{2,1}", "^6(.1)?",
    "$", "()", "\\d", "(1)\\1", "^7.3$|^x",
)  # fmt: skip


@pytest.mark.spawns
@pytest.mark.parametrize("pattern", PATTERNS)
def test_bash_says_the_same(pattern: str) -> None:
    for kernel in KERNELS:
        done = subprocess.run(["bash", "-c", "[[ $2 =~ $1 ]]", "bash", pattern, kernel], capture_output=True, check=False)
        assert kernel_pattern.matches(pattern, kernel) == {0: True, 1: False}.get(done.returncode), kernel


@pytest.mark.spawns
@pytest.mark.parametrize(
    "pattern",
    [
        "(a|aa)*(a|aa)*(a|aa)*(a|aa)*(a|aa)*$", "^(([0-9a-z.+-])+)+$x", "(.*)*(.*)*(.*)*(.*)*\\1\\2\\3x",
        "((((x{1,200}){1,200}){1,200}){1,200})",
        "(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)\\9\\8\\7\\6x", "." * 65000 + "(x+x+)+y", "(" * 30000,
    ],
)  # fmt: skip
def test_a_hostile_expression_is_bounded(pattern: str) -> None:
    kernel = "6." + "1" * 60 + "a"
    assert names.is_kernel(kernel)
    begin = time.monotonic()
    kernel_pattern.matches(pattern, kernel, 0.1)
    assert time.monotonic() - begin < 3 * kernel_pattern._SECONDS
    begin = time.monotonic()
    kernel_pattern.matches(pattern, kernel, 0.1)
    assert time.monotonic() - begin < 0.1, "asked once"


def test_a_simple_expression_starts_no_program() -> None:
    """The test would fail if it did: it is not marked."""
    assert kernel_pattern.matches("^6\\.(1|12)\\..*amd64$", "6.1.0-9-amd64")
    assert kernel_pattern.matches("^5\\.", "6.1.0-9-amd64") is False
