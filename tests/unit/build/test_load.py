# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes of a kernel's refusal; real refusals by real kernels are in tests/vm and tests/faults."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from knetstatd.build import load as loading
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind
from knetstatd.diagnosis import kernel_messages
from knetstatd.state import load_history, paths
from knetstatd.system import process

if TYPE_CHECKING:
    from pathlib import Path


def finished(code: int, output: str, *, timed_out: bool = False) -> process.Finished:
    return process.Finished(code, output.encode(), 0, 0.1, timed_out)


class Kmsg:
    """/dev/kmsg: one record for each read; what was there before is not told."""

    def __init__(self, records: list[bytes]) -> None:
        self.records = records
        self.said = 0

    def read(self, fd: int, size: int) -> bytes:
        if self.said == len(self.records):
            raise BlockingIOError
        self.said += 1
        if self.records[self.said - 1] == b"overwritten":
            raise BrokenPipeError
        return self.records[self.said - 1]


def loaded(
    root: Path, monkeypatch: pytest.MonkeyPatch, done: process.Finished, records: list[bytes], *, live: bool = False
) -> None:
    """Asks for kt_new, and for one more, where modprobe and the kernel say this."""
    for name in ("kt_new", "kt_next"):
        place = root / "sys/module" / name
        place.mkdir(parents=True)
        (place / "initstate").write_text("live\n" if live else "coming\n")
    real = os.open
    monkeypatch.setattr("knetstatd.build.load.os.open", lambda path, flags: real(os.devnull, os.O_RDONLY))
    monkeypatch.setattr("knetstatd.build.load.os.lseek", lambda *_: 0)
    monkeypatch.setattr("knetstatd.build.load.os.read", Kmsg(records).read)
    monkeypatch.setattr(process, "run", lambda argv, timeout: done)
    loading.load(root, [("kt_new", "kt_new"), ("kt_next", "kt_next")])


def test_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(tmp_path, monkeypatch, finished(0, ""), [], live=True)


FAILED = finished(1, "modprobe: ERROR: could not insert 'kt_new': Exec format error\n")
MAGIC = b"3,9,1,-;kt_new: version magic '6.1.0-1 SMP mod_unload ' should be '6.1.0-2 SMP mod_unload '\n"


@pytest.mark.parametrize(
    ("done", "records", "kind", "reason", "evidence"),
    [
        (FAILED, [b"6,8,1,-;kt: other\n", b"overwritten", MAGIC], Kind.MISMATCH, "it was built for 6.1.0-1", "magic"),
        (FAILED, [b"3,9,1,-;kt_new: Unknown symbol gone (err -2)\n A=x\n"], Kind.MISMATCH, "no symbol gone", "(err -2)"),
        (FAILED, [b"5,9,1,-;Loading of unsigned module is rejected\n"], Kind.REFUSED, "its signature is none", "unsigned"),
        (FAILED, [b"6,9,1,-;Module kt_new is blacklisted\n"], Kind.DENIED, "module_blacklist=", "blacklisted"),
        (FAILED, [b"6,9,1,-;kt-new: no device here\n"], Kind.REFUSED, "Exec format error", "no device here"),
        (FAILED, [], Kind.REFUSED, "Exec format error", "Exec format error"),
        (finished(-9, ""), [b"4,9,1,-;BUG: kernel NULL pointer\n"], Kind.REFUSED, "its init died", "BUG"),
        (finished(-9, "", timed_out=True), [], Kind.REFUSED, "its init does not return", ""),
        (finished(1, ""), [], Kind.REFUSED, "modprobe says nothing", ""),
        (finished(0, ""), [], Kind.DENIED, "modprobe's configuration", ""),
    ],
)  # fmt: skip
def test_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    done: process.Finished,
    records: list[bytes],
    kind: Kind,
    reason: str,
    evidence: str,
) -> None:
    with pytest.raises(BuildError) as error:
        loaded(tmp_path, monkeypatch, done, records)
    assert (error.value.kind, reason in error.value.what) == (kind, True), error.value.what
    assert evidence in "\n".join(error.value.evidence)
    assert "other" not in "\n".join(error.value.evidence)
    assert kind is Kind.MISMATCH or error.value.fix


def test_a_log_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr("knetstatd.build.load.os.open", denied)
    monkeypatch.setattr(process, "run", lambda argv, timeout: FAILED)
    with pytest.raises(BuildError, match="Exec format error"):
        loading.load(tmp_path, [("kt_new", "kt_new")])


def test_what_is_no_refusal() -> None:
    assert kernel_messages.find(["kt_new: loading out-of-tree module taints kernel.", ""]) is None


def test_one_refusal_is_remembered_in_a_boot(tmp_path: Path) -> None:
    places = paths.places(tmp_path)
    places.runtime.mkdir(parents=True)
    first, second = tmp_path / "first.ko", tmp_path / "second.ko"
    first.touch()
    second.touch()
    assert not load_history.refused(places, "m", [first])
    assert load_history.refuse(places, "m", [first])
    assert load_history.refused(places, "m", [first])
    assert not load_history.refused(places, "m", [second])
    assert not load_history.refuse(places, "m", [second]), "it was built again once already"
    first.write_text("another file")
    assert not load_history.refused(places, "m", [first])
    load_history.forget(places, "m")
    assert load_history.refuse(places, "m", [second])
    (tmp_path / "in the way").touch()
    assert not load_history.refuse(paths.places(tmp_path / "in the way"), "m", [second]), "what cannot be remembered is not tried for ever"
