# SPDX-License-Identifier: GPL-2.0-or-later
"""Root does our steps for the daemon, and nothing else, whatever the daemon says."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.core import names
from knetstatd.core.config import Config
from knetstatd.core.errors import KnetstatdError
from knetstatd.daemon import step

if TYPE_CHECKING:
    from pathlib import Path

KERNEL = "6.12.1+deb13-amd64"


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", ["build", "load", "headers"])
def test_a_step_is_understood(kind: str, held: bool) -> None:
    assert step.parse(step.line(KERNEL, kind, held=held)) == (kind, KERNEL, held)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\n", b"build\n", b"build 6.1", b"build 6.1 now\n", b"build 6.1 next next\n", b"compile 6.1\n", b"step 6.1\n",
        b"build 6.1\nbuild 6.2\n", b"build ../6.1\n", b"build 6.1/../..\n", b"build -f\n", b"build  6.1\n", b" build 6.1\n",
        b"build $(id)\n", b"build 6.1;id\n", b"build 6.1\0\n", b"BUILD 6.1\n", "build 6.1\u00e9\n".encode(),
        b"build " + b"6" * 65 + b"\n",
        b"ssh 6.1\n", b"build 6.1\r\n", b"build\t6.1\n",
    ],
)  # fmt: skip
def test_nothing_else_is(text: bytes) -> None:
    with pytest.raises(KnetstatdError):
        step.parse(text)


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_a_kind_and_a_kernel(text: bytes) -> None:
    try:
        kind, kernel, _ = step.parse(text)
    except KnetstatdError:
        return
    assert kind in step.KINDS.values()
    assert names.is_kernel(kernel)


def test_the_configuration_says_how_logind_is_asked(tmp_path: Path) -> None:
    unit = "knetstatd-build@6.12.1\\x2bdeb13\\x2damd64.service"
    start = ["systemctl", "start", "--", unit]
    first, asked = step.commands("build", KERNEL, Config(), held=True, seats=tmp_path)
    assert first == ["systemctl", "start", "--no-block", "--", unit], "logind may never answer: the step does not wait for it"
    assert asked[:5] == ["timeout", "300", "systemd-inhibit", "--what=shutdown", "--mode=delay"]
    assert asked[-4:] == start
    assert "--mode=block" in step.commands("build", KERNEL, Config(inhibit="block"), held=True, seats=tmp_path)[1]
    off, usual = Config(inhibit="off"), Config()
    for settings, held, seats in ((off, True, tmp_path), (usual, False, tmp_path), (usual, True, tmp_path / "x")):
        assert step.commands("build", KERNEL, settings, held=held, seats=seats) == [start]


@pytest.mark.spawns
@pytest.mark.parametrize("held", [False, True])
def test_the_answer_is_the_starters_status(tmp_path: Path, held: bool) -> None:
    programs = tmp_path / "usr/bin"
    programs.mkdir(parents=True)
    (tmp_path / "run/systemd/seats").mkdir(parents=True)
    for name, code in (("systemctl", 3), ("timeout", 4)):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/ran\nexit {code}\n')
        (programs / name).chmod(0o755)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for part in (b"lo", b"ad 6.1.0-1-am", b"d64 next\n" if held else b"d64\n"):
            ours.sendall(part)
        serving = threading.Thread(target=step.serve, args=(theirs, Config(), tmp_path))
        serving.start()
        assert ours.recv(16) == (b"4\n" if held else b"3\n")
        serving.join()
    unit = "-- knetstatd-load@6.1.0\\x2d1\\x2damd64.service\n"
    first, *more = (tmp_path / "ran").read_text().splitlines(keepends=True)
    assert first == f"systemctl start {'--no-block ' if held else ''}{unit}"
    assert [line.split()[:3] for line in more] == ([["timeout", "300", "systemd-inhibit"]] if held else [])


def test_who_says_nothing_gets_nothing() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(KnetstatdError):
            step.serve(theirs, Config())
