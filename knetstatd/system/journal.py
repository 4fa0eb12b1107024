# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing to the journal and reading from it: the owner of systemd.journal.

Rule 1: one entry is one event; what a program printed is inside a field, so it can forge no entry and no priority.
Rule 2: writing never blocks and never fails: a hung journald costs entries (they are counted), not the guard.
Rule 3: everybody may write to the journal, also our names and numbers. Read back is only what journald itself says is root's,
        or the daemon's (systemd.journal-fields(7): no sender can set a field that begins with `_`).
Rule 4: where standard error is not the journal, the same sentence goes there, as a plain line.

sd_journal_send(3) waits, for good, for a journald that has hung. So entries are written as systemd's "Native Journal Protocol"
describes, to a socket that does not wait; systemd.journal reads them back, and is loaded only if somebody does that.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core import names
from knetstatd.core.events import Event

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterator

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "knetstatd"
UNIT = "knetstatd.service"
USER = "knetstatd"
# `journalctl -u knetstatd` also shows entries of root's processes that carry this field (journalctl(1), -u).
_FOR_UNIT = {"OBJECT_SYSTEMD_UNIT": UNIT}
# A datagram has room for 208 KiB (socket(7), net.core.wmem_default); an entry has under 20 fields.
_LONGEST = 8192


class HistoryEntry(NamedTuple):
    """One of our entries, read back. fields: KNETSTATD_* without the prefix, in lower case."""

    time: datetime.datetime
    event: Event
    message: str
    fields: dict[str, str]


class Journal:
    """Where events go. quiet: nothing on standard error (the caller shows its own progress).  path: journald's socket."""

    def __init__(self, *, quiet: bool = False, path: str = SOCKET) -> None:
        self.dropped = 0
        self._path = path
        self._quiet = quiet or "JOURNAL_STREAM" in os.environ

    def log(self, event: Event, message: str, **fields: object) -> None:
        """Says `message`, one sentence, with fields (package, kernel, …); one that is None or "" is left out.

        Those that the event always carries are sent empty instead: for one that is missing, journalctl -x prints its name.
        A field's lines are kept as lines of that one field; the message itself is one line.
        """
        line = names.clean(message, 2000)
        more = {f"KNETSTATD_{key.upper()}": "" for key in event.fields}
        more |= {f"KNETSTATD_{key.upper()}": str(value) for key, value in fields.items() if value not in (None, "")}
        entry = {
            "MESSAGE": line,
            "MESSAGE_ID": event.message_id,
            "PRIORITY": str(event.priority),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "DOCUMENTATION": "man:knetstatd(8)",
            "CODE_FUNC": event.name,
            "KNETSTATD_EVENT": event.name.lower().replace("_", "-"),
            **_FOR_UNIT,
            **more,
        }
        self.dropped += not self._send(b"".join(_field(name, value) for name, value in entry.items()))
        if not self._quiet:
            _stderr(event.priority, line, more)

    def _send(self, entry: bytes) -> bool:
        """Whether journald took the entry; its queue may be full, or nobody there to take it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
            try:
                out.sendto(entry, self._path)
            except OSError:
                return False
        return True


def _field(name: str, value: str) -> bytes:
    """One field as journald takes it: its length before its value, so that a line in it cannot pass for another field."""
    data = value.encode("utf-8", "replace")[:_LONGEST]
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def _stderr(priority: int, line: str, fields: dict[str, str]) -> None:
    label = {3: "error: ", 4: "warning: "}.get(priority, "")
    text = f"{label}{line}\n"
    for name in ("KNETSTATD_EVIDENCE", "KNETSTATD_FIX"):
        for extra in fields.get(name, "").splitlines():
            text += f"    {names.clean(extra)}\n"
    try:
        os.write(sys.stderr.fileno(), text.encode("utf-8", "replace"))
    except (OSError, ValueError, AttributeError):
        pass  # a closed standard error is no reason to stop guarding


def _daemons_user() -> int | None:
    """The user that the daemon runs as, None if this machine has none of that name."""
    import pwd  # only to read

    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return None


def history(limit: int, package: str | None = None, kernel: str | None = None) -> Iterator[HistoryEntry]:
    """Our entries, newest first, at most `limit`; nothing if there is no journal that this user may read."""
    from systemd import journal

    by_id = {event.message_id: event for event in Event}
    with journal.Reader() as reader:
        reader.add_match(_UID="0")
        if (user := _daemons_user()) is not None:
            reader.add_disjunction()
            reader.add_match(_UID=str(user), _SYSTEMD_UNIT=UNIT)
        reader.add_conjunction()
        reader.add_match(SYSLOG_IDENTIFIER=IDENTIFIER)
        for key, value in (("KNETSTATD_PACKAGE", package), ("KNETSTATD_KERNEL", kernel)):
            if value is not None:
                reader.add_match(**{key: value})
        reader.seek_tail()
        while limit > 0:
            entry: dict[str, Any] = reader.get_previous()
            if not entry:
                return
            event = by_id.get(getattr(entry.get("MESSAGE_ID"), "hex", ""))
            if event is None:
                continue
            own = {k[len("KNETSTATD_") :].lower(): str(v) for k, v in entry.items() if k.startswith("KNETSTATD_")}
            yield HistoryEntry(entry["__REALTIME_TIMESTAMP"], event, str(entry.get("MESSAGE", "")), own)
            limit -= 1
