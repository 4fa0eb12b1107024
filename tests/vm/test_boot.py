# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kernel takes knetstat, refuses what it must, and the engine says which of the two it was and why.

pytest tests/vm/test_boot.py -k '7.3 and loads'
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from knetstatd.rehearsal.vm import Ending, Module, Plan, Program, rehearse
from tests import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.vm

TCP_HEADER = "Recv-Q Send-Q Local Address           Foreign Address         Stat Diag Options\n"
UDP_HEADER = "Recv-Q Send-Q Local Address           Foreign Address         Options\n"
TIMEOUT = 180.0  # the machine may be shared


def test_loads(booted: kernels.Kernel, build: Callable[[kernels.Kernel], Module]) -> None:
    files = ("/proc/net/tcpstat", "/proc/net/tcp6stat", "/proc/net/udpstat", "/proc/net/udp6stat", "/proc/net/nonestat")
    outcome = rehearse(booted.vmlinuz, Plan((build(booted),), None, files), timeout=TIMEOUT)
    assert outcome.ending is Ending.LOADED, outcome.console
    assert outcome.files == dict(zip(files, (TCP_HEADER, TCP_HEADER, UDP_HEADER, UDP_HEADER), strict=False))
    # On a busy host the kernel may complain of its clocks.
    assert not [line for line in outcome.log if re.search("knetstat|WARNING|BUG|Call Trace", line)], outcome.log


@pytest.mark.slow
@pytest.mark.parametrize(("series", "suite"), [("5.10", "bullseye"), ("7.3", "trixie-backports")])
@pytest.mark.parametrize("flavour", ["amd64", "rt-amd64"])
def test_loads_on_other_flavours(series: str, suite: str, flavour: str, build: Callable[[kernels.Kernel], Module]) -> None:
    kernel = kernels.fetch(series, flavour, suite)
    outcome = rehearse(kernel.vmlinuz, Plan((build(kernel),), None, ("/proc/net/tcpstat",)), timeout=TIMEOUT, memory=512)
    assert outcome.ending is Ending.LOADED, outcome.console
    assert outcome.files == {"/proc/net/tcpstat": TCP_HEADER}


def test_signature_enforced(booted: kernels.Kernel, build: Callable[[kernels.Kernel], Module]) -> None:
    outcome = rehearse(booted.vmlinuz, Plan((build(booted),)), timeout=TIMEOUT, arguments=["module.sig_enforce=1"])
    assert outcome.ending is Ending.REFUSED, outcome.console
    assert outcome.insertions[0].message == "Key was rejected by service"
    assert "Loading of unsigned module is rejected" in outcome.words


def test_release_differs(build: Callable[[kernels.Kernel], Module]) -> None:
    """The failure that this project exists for, word for word: 7.x has no MODVERSIONS."""
    old, new = kernels.fetch("7.2"), kernels.fetch("7.3")
    outcome = rehearse(new.vmlinuz, Plan((build(old),)), timeout=TIMEOUT)
    assert outcome.ending is Ending.REFUSED, outcome.console
    assert outcome.insertions[0].message == "invalid module format"
    assert any(
        line.startswith(f"knetstat: version magic '{old.release} ") and f" should be '{new.release} " in line
        for line in outcome.words
    ), outcome.words


def test_truncated(build: Callable[[kernels.Kernel], Module]) -> None:
    kernel = kernels.fetch("6.1")
    module = build(kernel)
    outcome = rehearse(kernel.vmlinuz, Plan((module._replace(data=module.data[:5000]),)), timeout=TIMEOUT)
    assert outcome.ending is Ending.REFUSED, outcome.console
    assert outcome.insertions[0].message == "invalid module format"


def test_panic() -> None:
    crash = Program(b"#!/bin/sh\necho before\necho 1 >/proc/sys/kernel/sysrq\necho c >/proc/sysrq-trigger\n")
    outcome = rehearse(kernels.fetch("6.1").vmlinuz, Plan((), crash), timeout=TIMEOUT)
    assert outcome.ending is Ending.PANIC
    assert any("sysrq triggered crash" in line for line in outcome.words), outcome.words
    assert outcome.elapsed < TIMEOUT


def test_hang() -> None:
    outcome = rehearse(
        kernels.fetch("6.1").vmlinuz, Plan((), Program(b"#!/bin/sh\necho before\n/bin/busybox sleep 1000\n")), timeout=40
    )
    assert outcome.ending is Ending.HANG
    assert outcome.output == "before\n"


def test_program_fails() -> None:
    outcome = rehearse(
        kernels.fetch("6.1").vmlinuz, Plan((), Program(b'#!/bin/sh\necho "$2"\nexit 3\n', ("a", "b c"))), timeout=TIMEOUT
    )
    assert (outcome.ending, outcome.code, outcome.output) == (Ending.FAILED, 3, "b c\n")
