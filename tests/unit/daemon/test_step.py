# SPDX-License-Identifier: GPL-2.0-or-later
"""Root does our steps for the daemon, and nothing else, whatever the daemon says."""

from __future__ import annotations

import socket
import threading
import time
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
    asked = step.lock_argv(KERNEL, Config(), tmp_path)
    assert asked[:3] == ["systemd-inhibit", "--what=shutdown", "--mode=delay"]
    assert asked[-2:] == ["sleep", "300"]
    assert "--mode=block" in step.lock_argv(KERNEL, Config(inhibit="block"), tmp_path)
    assert step.lock_argv(KERNEL, Config(inhibit="off"), tmp_path) == []
    assert step.lock_argv(KERNEL, Config(), tmp_path / "no-logind") == []


@pytest.mark.spawns
@pytest.mark.parametrize("logind", ["nobody asks it", "none", "answers", "does not answer"])
def test_the_answer_is_the_starters_status(tmp_path: Path, logind: str) -> None:
    programs = tmp_path / "usr/bin"
    programs.mkdir(parents=True)
    (tmp_path / "run/systemd/seats").mkdir(parents=True)
    scripts = {"systemctl": f'until [ -e {tmp_path}/go ]; do :; done\necho "$@" >{tmp_path}/ran\nexit 3'}
    if logind != "none":
        scripts["systemd-inhibit"] = f"echo $$ >{tmp_path}/asked; {'exit 1' if logind == 'answers' else 'exec /bin/sleep 600'}"
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for part in (b"lo", b"ad 6.1.0-1-am", b"d64\n" if logind == "nobody asks it" else b"d64 next\n"):
            ours.sendall(part)
        serving = threading.Thread(target=step.serve, args=(theirs, Config(), tmp_path))
        serving.start()
        asked = logind in ("answers", "does not answer")
        while asked and not (tmp_path / "asked").exists():
            time.sleep(0.01)
        (tmp_path / "go").touch()
        assert ours.recv(16) == b"3\n"
        serving.join()
    assert (tmp_path / "ran").read_text() == "start -- knetstatd-load@6.1.0\\x2d1\\x2damd64.service\n"
    assert (tmp_path / "asked").exists() is asked


def test_who_says_nothing_gets_nothing() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(KnetstatdError):
            step.serve(theirs, Config())
