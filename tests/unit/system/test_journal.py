# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries as journald gets them."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.events import Event
from knetstatd.system.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    """Journald's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "socket"))
        end.setblocking(False)
        yield end


def journal(end: socket.socket, *, quiet: bool = True) -> Journal:
    """One that writes there."""
    return Journal(quiet=quiet, path=end.getsockname())


def received(end: socket.socket) -> dict[str, str]:
    """The next entry. The form in which every value has its length before it; no field may come twice."""
    data, found = end.recv(1 << 20), {}
    while data:
        name, _, rest = data.partition(b"\n")
        size = struct.unpack_from("<Q", rest)[0]
        assert name.decode() not in found
        found[name.decode()] = rest[8 : 8 + size].decode(errors="replace")
        assert rest[8 + size : 9 + size] == b"\n"
        data = rest[9 + size :]
    return found


def test_an_entry(journald: socket.socket) -> None:
    journal(journald).log(Event.READY, "gut: für 6.1", module="demo", kernel="6.1.0", fix="", log=None, attempt=3)
    entry = received(journald)
    assert (
        entry.items()
        >= {
            "MESSAGE": "gut: für 6.1",
            "MESSAGE_ID": Event.READY.message_id,
            "PRIORITY": "5",
            "SYSLOG_IDENTIFIER": "knetstatd",
            "KNETSTATD_EVENT": "ready",
            "KNETSTATD_ATTEMPT": "3",
        }.items()
    )
    carried = {name.removeprefix("KNETSTATD_").lower() for name in entry if name.startswith("KNETSTATD_")}
    assert carried == {"event", "module", "kernel", "attempt", *Event.READY.fields}


def test_nothing_is_forged(journald: socket.socket) -> None:
    printed = "boo\nPRIORITY=0\nMESSAGE\n\x00\udcff<0>x\n"
    journal(journald).log(Event.FAILED, printed, evidence=printed)
    entry = received(journald)
    assert entry["PRIORITY"] == "3"
    assert "\n" not in entry["MESSAGE"]
    assert entry["KNETSTATD_EVIDENCE"] == printed.replace("\udcff", "?")


def test_a_long_field_is_cut(journald: socket.socket) -> None:
    writer = journal(journald)
    writer.log(Event.FAILED, "it failed", evidence="ä" * 1_000_000)
    assert not writer.dropped
    assert received(journald)["KNETSTATD_EVIDENCE"].startswith("ä" * 4000)


def test_a_hung_journald_costs_entries_and_no_time(journald: socket.socket) -> None:
    writer, begin = journal(journald), time.monotonic()
    for _ in range(2000):  # the queue has room for 512 at the most
        writer.log(Event.WAITING, "waiting", evidence="x" * 100)
    assert time.monotonic() - begin < 10
    assert 1400 < writer.dropped < 2000
    for _ in range(2000 - writer.dropped):
        journald.recv(1 << 20)
    before = writer.dropped
    writer.log(Event.READY, "ready")
    assert writer.dropped == before
    assert received(journald)["MESSAGE"] == "ready"


def test_without_journald(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    writer = Journal(path=str(tmp_path / "absent"))
    writer.log(Event.FAILED, "it failed", fix="mend\nit")
    assert writer.dropped == 1
    assert capfd.readouterr().err == "error: it failed\n    mend\n    it\n"


def test_quiet_where_standard_error_is_the_journal(
    journald: socket.socket, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    journal(journald, quiet=False).log(Event.READY, "ready")
    assert capfd.readouterr().err == ""
    assert received(journald)["MESSAGE"] == "ready"
