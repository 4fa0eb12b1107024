# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs: output up to a limit, time limits, families that are killed to the last."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import process

pytestmark = pytest.mark.spawns
HERE = Path(__file__).parents[3]


def test_status_and_output_in_order() -> None:
    done = process.run(["/bin/sh", "-c", "echo one; echo two >&2; exit 3"], timeout=10)
    assert (done.code, done.text, done.timed_out, done.truncated) == (3, "one\ntwo\n", False, 0)


def test_input_is_empty_or_what_is_given() -> None:
    assert process.run(["/bin/cat"], timeout=10).output == b""
    data = os.urandom(300_000)
    assert process.run(["/bin/cat"], timeout=10, stdin=data).output == data
    assert process.run(["/bin/true"], timeout=10, stdin=data).code == 0


def test_the_environment_is_made_from_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAKEFLAGS", "evil")
    done = process.run(["/usr/bin/env"], timeout=10, env=process.environment(tmp_path, ["/first"], {"KEY": "value"}))
    lines = set(done.text.split())
    assert f"TMPDIR={tmp_path}" in lines
    assert "KEY=value" in lines
    assert "LC_ALL=C" in lines
    assert f"PATH=/first:{process.PATH}" in lines
    assert "MAKEFLAGS" not in done.text


def test_long_output_keeps_both_ends() -> None:
    done = process.run(["/bin/sh", "-c", "echo begin; yes | head -c 5000000; echo end"], timeout=30, limit=2000)
    assert done.output.startswith(b"begin\n")
    assert done.output.endswith(b"end\n")
    assert done.truncated > 4_000_000
    assert len(done.output) < 2100


def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(KnetstatdError, match=r"/no/such/program: cannot be started"):
        process.run(["/no/such/program"], timeout=1)


def test_a_signal_is_a_negative_status() -> None:
    assert process.run(["/bin/sh", "-c", "kill -9 $$"], timeout=10).code == -9


def test_the_tick_comes_while_it_runs() -> None:
    ticks: list[float] = []
    process.run(["/bin/sleep", "0.7"], timeout=10, tick=lambda: ticks.append(time.monotonic()))
    assert len(ticks) >= 2


def test_a_timeout_kills_the_whole_family_also_one_that_fled() -> None:
    """A grandchild in a session of its own, whose parent has gone, deaf to SIGTERM: it dies all the same."""
    nap = f"98.{os.getpid():07}"
    script = textwrap.dedent("""
        import sys; sys.path.insert(0, sys.argv[1])
        from knetstatd.system import process
        process.adopt_orphans()
        done = process.run(["/bin/sh", "-c", "trap '' TERM; (setsid sleep NAP &); sleep NAP"], timeout=1)
        assert done.timed_out and done.code == -9, done
    """).replace("NAP", nap)
    subprocess.run([sys.executable, "-c", script, os.fspath(HERE)], check=True, timeout=30)
    left = subprocess.run(["pgrep", "-f", f"sleep {nap}"], capture_output=True, check=False)
    assert left.stdout == b""


def test_a_child_that_keeps_the_output_open_is_not_waited_for() -> None:
    begin = time.monotonic()
    done = process.run(["/bin/sh", "-c", "sleep 5 & echo done"], timeout=20)
    assert done.text == "done\n"
    assert time.monotonic() - begin < 4


def test_only_named_descriptors_are_inherited(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        assert f"/{fd}\n" not in process.run(["/bin/sh", "-c", "ls -d /proc/self/fd/*"], timeout=10).text
        assert f"/{fd}\n" in process.run(["/bin/sh", "-c", "ls -d /proc/self/fd/*"], timeout=10, keep=[fd]).text
    finally:
        os.close(fd)


def test_errors_apart_from_the_output() -> None:
    errors = os.memfd_create("errors")
    try:
        done = process.run(["/bin/sh", "-c", "echo one; echo two >&2; echo three"], timeout=10, errors=errors)
        assert done.output == b"one\nthree\n"
        assert os.pread(errors, 100, 0) == b"two\n"
    finally:
        os.close(errors)
