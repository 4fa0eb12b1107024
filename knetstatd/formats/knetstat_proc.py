# SPDX-License-Identifier: GPL-2.0-or-later
"""What knetstat's four files say, as typed rows.

Rules:

1. Strict: text that the module cannot have written is an error with its line and column, never a guess. That is what makes
   the parser a probe.
2. Lenient in one way: any of the options may be missing, since older versions of the module print fewer. Their order is
   fixed all the same, and a name that is in no version's set is an error.
"""

from __future__ import annotations

import enum
import os
import re
import socket
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Kind(enum.Enum):
    TCP = "tcp"
    TCP6 = "tcp6"
    UDP = "udp"
    UDP6 = "udp6"

    @property
    def path(self) -> str:
        """Relative to the root directory. It is of the network namespace of who reads it."""
        return f"proc/net/{self.value}stat"

    @property
    def is_tcp(self) -> bool:
        return self in (Kind.TCP, Kind.TCP6)

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if self in (Kind.TCP6, Kind.UDP6) else socket.AF_INET


class Endpoint(NamedTuple):
    """An address, and a port that is 0 if the file has an asterisk."""

    address: str
    port: int


class Socket(NamedTuple):
    recv_q: int
    send_q: int
    local: Endpoint
    foreign: Endpoint
    state: str  # one of STATES; empty for UDP
    diag: str  # one of DIAGS
    options: Mapping[str, int]  # in the file's order; times in the unit that UNITS names


STATES = ("ESTB", "SYNS", "SYNR", "FNW1", "FNW2", "TIMW", "CLSD", "CLSW", "LACK", "LSTN", "CLSG", "NONE")
# These may be without Diag and options: the socket is not there yet, or gone but for a placeholder.
BARE_STATES = ("SYNR", "TIMW", "FNW2")
DIAGS = ("", ">|<", "|<", ">|", ">#")
TCP_OPTIONS = (
    "SO_REUSEADDR", "SO_REUSEPORT", "SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPCNT", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT",
    "SO_RCVBUF", "SO_SNDBUF", "SO_RCVTIMEO", "SO_SNDTIMEO", "SO_LINGER", "TCP_NODELAY", "TCP_FASTOPEN", "TCP_DEFER_ACCEPT",
)  # fmt: skip
UDP_OPTIONS = (
    "SO_REUSEADDR", "SO_REUSEPORT", "SO_RCVBUF", "SO_SNDBUF", "SO_RCVTIMEO", "SO_SNDTIMEO", "SO_LINGER", "SO_BROADCAST",
)  # fmt: skip
UNITS = {"SO_RCVTIMEO": "ms", "SO_SNDTIMEO": "ms", "SO_LINGER": "s"}
# Switches, each with its highest value: a socket that is restored (TCP_REPAIR) has SO_REUSEADDR=2.
SWITCHES = {"SO_REUSEADDR": 2, "SO_REUSEPORT": 1, "SO_KEEPALIVE": 1, "TCP_NODELAY": 1, "SO_BROADCAST": 1}

TCP_HEADER = "Recv-Q Send-Q Local Address           Foreign Address         Stat Diag Options"
UDP_HEADER = "Recv-Q Send-Q Local Address           Foreign Address         Options"

PROBED = 1 << 16

_QUEUE_COLUMNS, _ADDRESS_COLUMNS = 6, 23
# Bounded by what the module's types hold: an int, a u16. The longest time is one of 2^63 jiffies, 24 of which are a second.
_QUEUE = re.compile(r"( *)(0|-?[1-9][0-9]{0,9}) ")
_ENDPOINT = re.compile(r"([0-9a-f.:]{1,45}):([0-9]{1,5}|\*)( *) ")
_STATE = re.compile(r"([A-Z0-9]{4}) ")
# Bytes 8 to 11 of an ISATAP address (RFC 5214).
_ISATAP = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")
_OPTION = re.compile(r"([A-Z_]+)=(0|-?[1-9][0-9]{0,20})([a-z]*)")


class MalformedError(KnetstatdError):
    """Text that knetstat cannot have written. `line` and `column` count from 1; `where` is the kind of file."""

    def __init__(self, kind: Kind, line: int, column: int, expected: str, text: str) -> None:
        shown = repr(text if len(text) <= 40 else text[:40] + "…")
        super().__init__(f"line {line}, column {column}: expected {expected}, found {shown}", f"{kind.value}stat")
        self.line = line
        self.column = column


def parse(text: str, kind: Kind) -> list[Socket]:
    """The rows of one file. Raises MalformedError."""
    lines = text.split("\n")
    header = TCP_HEADER if kind.is_tcp else UDP_HEADER
    if lines[0] != header:
        same = next((i for i, (a, b) in enumerate(zip(lines[0], header, strict=False)) if a != b), len(lines[0]))
        raise MalformedError(kind, 1, same + 1, "the header", lines[0])
    if lines[-1] or len(lines) == 1:
        raise MalformedError(kind, len(lines), len(lines[-1]) + 1, "the end of the line", "")
    return [_Line(line, number, kind).row() for number, line in enumerate(lines[1:-1], start=2)]


def table(root: Path, kind: Kind) -> list[Socket]:
    """Raises OSError if the module is not loaded, MalformedError if something else wrote the file."""
    return parse(files.of_kernel(root, kind.path).read_bytes().decode("ascii", "replace"), kind)


def probe(root: Path) -> tuple[str, ...]:
    """What is wrong with a loaded knetstat, a sentence each; nothing when all four files are there and make sense.

    The machine's own sockets are asked, which are those of PID 1: who asks may be in a network namespace without any
    (PrivateNetwork=). A file is read up to PROBED bytes: a hundred thousand sockets are not asked to prove one format.
    """
    faults = []
    # It is there for nobody else where proc(5) is mounted with hidepid=.
    hidden = not os.access(root / "proc/1/net", os.R_OK | os.X_OK)
    for kind in Kind:
        path = kind.path if hidden else kind.path.replace("proc/", "proc/1/", 1)
        try:
            parse(_beginning(root / path), kind)
        except OSError as e:
            faults.append(f"/{path}: {e.strerror}")
        except MalformedError as e:
            faults.append(f"/{path}: {e.what}")
    return tuple(faults)


def compressed(packed: bytes) -> str:
    """An IPv6 address as the kernel writes it (%pI6c).

    inet_ntop() does not: it leaves the end of an ISATAP address in hexadecimal, and writes one that only its last 32 bits
    tell from :: with a dotted end.
    """
    if packed[8:12] in _ISATAP:
        begin = socket.inet_ntop(socket.AF_INET6, packed[:12] + b"\xff\xff\xff\xff")
        return begin.removesuffix("ffff:ffff") + socket.inet_ntop(socket.AF_INET, packed[12:])
    if not any(packed[:12]) and any(packed[12:14]):
        return f"::{int.from_bytes(packed[12:14]):x}:{int.from_bytes(packed[14:]):x}"
    return socket.inet_ntop(socket.AF_INET6, packed)


def _beginning(path: Path) -> str:
    """The whole lines in the first PROBED bytes."""
    with path.open("rb") as file:
        data = file.read(PROBED)
    if len(data) == PROBED:
        data = data[: data.rfind(b"\n") + 1]
    return data.decode("ascii", "replace")


class _Line:
    """A row, and how far it has been read."""

    def __init__(self, text: str, number: int, kind: Kind) -> None:
        self.text, self.number, self.kind = text, number, kind
        self.at = 0

    def wrong(self, expected: str) -> MalformedError:
        return MalformedError(self.kind, self.number, self.at + 1, expected, self.text[self.at :])

    def row(self) -> Socket:
        recv_q, send_q = self.queue(), self.queue()
        local, foreign = self.endpoint(), self.endpoint()
        state = diag = ""
        if self.kind.is_tcp:
            state = self.state()
            if state in BARE_STATES and self.at == len(self.text):
                return Socket(recv_q, send_q, local, foreign, state, diag, {})
            if state == "TIMW":
                raise self.wrong("the end of the row")
            diag = self.diag(state)
        return Socket(recv_q, send_q, local, foreign, state, diag, self.options(state))

    def match(self, pattern: re.Pattern[str], expected: str) -> re.Match[str]:
        match = pattern.match(self.text, self.at)
        if not match:
            raise self.wrong(expected)
        return match

    def queue(self) -> int:
        match = self.match(_QUEUE, "a queue's length and a blank")
        if len(match[1]) != max(0, _QUEUE_COLUMNS - len(match[2])):
            raise self.wrong(f"a queue's length in {_QUEUE_COLUMNS} columns")
        self.at = match.end()
        return int(match[2])

    def endpoint(self) -> Endpoint:
        match = self.match(_ENDPOINT, "an address and port, and a blank")
        try:
            packed = socket.inet_pton(self.kind.family, match[1])
        except OSError:
            raise self.wrong(f"an {'IPv6' if self.kind.family is socket.AF_INET6 else 'IPv4'} address") from None
        if self.kind.family is socket.AF_INET6 and compressed(packed) != match[1]:
            raise self.wrong(f"an IPv6 address as {compressed(packed)}")
        port = 0 if match[2] == "*" else int(match[2])
        if port > 65535 or match[2].startswith("0"):
            raise self.wrong("a port")
        if len(match[3]) != max(0, _ADDRESS_COLUMNS - len(match[1]) - 1 - len(match[2])):
            raise self.wrong(f"an address and port in {_ADDRESS_COLUMNS} columns")
        self.at = match.end()
        return Endpoint(match[1], port)

    def state(self) -> str:
        match = self.match(_STATE, "a state and a blank")
        if match[1] not in STATES:
            raise self.wrong("a state: " + ", ".join(STATES))
        self.at = match.end()
        return match[1]

    def diag(self, state: str) -> str:
        field = self.text[self.at : self.at + 5]
        if len(field) != 5 or field[4] != " " or field.rstrip() not in DIAGS:
            raise self.wrong("a Diag of 4 columns and a blank")
        if field.rstrip() and state != "ESTB":
            raise self.wrong(f"no Diag in {state}")
        self.at += 5
        return field.rstrip()

    def options(self, state: str) -> dict[str, int]:
        known = TCP_OPTIONS if self.kind.is_tcp else UDP_OPTIONS
        options: dict[str, int] = {}
        following = 0  # where in `known` the next name may stand
        while True:
            match = self.match(_OPTION, "an option")
            name, value, unit = match.groups()
            if name not in known:
                raise self.wrong("an option of " + self.kind.value)
            if known.index(name) < following:
                raise self.wrong(f"an option that comes after {next(reversed(options))}")
            if unit != UNITS.get(name, ""):
                raise self.wrong(f"{name} in {UNITS[name]}" if name in UNITS else f"{name} without a unit")
            if name in SWITCHES and not 0 <= int(value) <= SWITCHES[name]:
                raise self.wrong(f"{name} from 0 to {SWITCHES[name]}")
            if name == "TCP_FASTOPEN" and state != "LSTN":
                raise self.wrong(f"no TCP_FASTOPEN in {state}")
            options[name] = int(value)
            following = known.index(name) + 1
            self.at = match.end()
            if self.at == len(self.text):
                return options
            if self.text[self.at] != ",":
                raise self.wrong("a comma")
            self.at += 1
