# SPDX-License-Identifier: GPL-2.0-or-later
"""`knetstatctl sockets`, on files that look like the module's: python3 -m pytest tests/unit/cli/test_sockets.py"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from knetstatd.cli import arguments as commandline
from knetstatd.cli import sockets
from knetstatd.core.errors import KnetstatdError, UsageError
from knetstatd.formats.knetstat_proc import TCP_HEADER, UDP_HEADER

if TYPE_CHECKING:
    from pathlib import Path

LISTENER = "     3      0 0.0.0.0:22              0.0.0.0:*               LSTN      SO_REUSEADDR=1,SO_KEEPALIVE=0,TCP_NODELAY=0"
ESTB = "     0      7 127.0.0.1:22            127.0.0.1:40000         ESTB >#   SO_KEEPALIVE=1,SO_RCVTIMEO=1500ms,TCP_NODELAY=1"
TIMW = "     0      0 ::1:8080                ::1:40001               TIMW "
UDP = "     0    768 0.0.0.0:68              0.0.0.0:*               SO_REUSEADDR=0,SO_LINGER=3s,SO_BROADCAST=1"

FILES = {"tcp": [TCP_HEADER, LISTENER, ESTB], "tcp6": [TCP_HEADER, TIMW], "udp": [UDP_HEADER, UDP], "udp6": [UDP_HEADER]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "proc/net"
    directory.mkdir(parents=True)
    for name, rows in FILES.items():
        (directory / f"{name}stat").write_text("".join(f"{row}\n" for row in rows))
    return tmp_path


def select(root: Path, *words: str) -> list[tuple[str, int, int]]:
    """The file and the ports of the sockets that a command line asks for."""
    rows = sockets.select(root, commandline.parser().parse_args(["sockets", *words]))
    return [(kind.value, row.local.port, row.foreign.port) for kind, row in rows]


ALL = [("tcp", 22, 0), ("tcp", 22, 40000), ("tcp6", 8080, 40001), ("udp", 68, 0)]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], ALL),
        (["udp6"], []),
        (["udp", "tcp", "udp"], [ALL[3], ALL[0], ALL[1]]),
        (["--state", "lstn"], [ALL[0]]),
        (["--state", "TIMW,ESTB"], [ALL[1], ALL[2]]),
        (["udp", "--state", "LSTN"], []),
        (["--option", "so_keepalive"], [ALL[0], ALL[1]]),
        (["--option", "SO_KEEPALIVE=1"], [ALL[1]]),
        (["--option", "SO_KEEPALIVE=-1"], []),
        (["--option", "SO_RCVTIMEO=1500"], [ALL[1]]),
        (["--option", "SO_RCVTIMEO=1500ms"], [ALL[1]]),
        (["--option", "SO_LINGER=3s"], [ALL[3]]),
        (["--option", "SO_REUSEADDR", "--option", "TCP_NODELAY=0"], [ALL[0]]),
        (["tcp", "--state", "ESTB", "--option", "SO_REUSEADDR"], []),
    ],
)
def test_select(root: Path, words: list[str], found: list[tuple[str, int, int]]) -> None:
    assert select(root, *words) == found


def test_text(root: Path) -> None:
    asked = commandline.parser().parse_args(["sockets"])
    assert sockets.text(sockets.select(root, asked), coloured=False) == TABLE
    nothing = commandline.parser().parse_args(["sockets", "udp6"])
    assert sockets.text(sockets.select(root, nothing), coloured=False).splitlines() == [
        "FILE  RECV-Q  SEND-Q  LOCAL  FOREIGN  STATE  DIAG  OPTIONS"
    ]


TABLE = """\
FILE  RECV-Q  SEND-Q  LOCAL         FOREIGN          STATE  DIAG  OPTIONS
tcp   3       0       0.0.0.0:22    0.0.0.0:*        LSTN         SO_REUSEADDR=1,SO_KEEPALIVE=0,TCP_NODELAY=0
tcp   0       7       127.0.0.1:22  127.0.0.1:40000  ESTB   >#    SO_KEEPALIVE=1,SO_RCVTIMEO=1500ms,TCP_NODELAY=1
tcp6  0       0       [::1]:8080    [::1]:40001      TIMW
udp   0       768     0.0.0.0:68    0.0.0.0:*                     SO_REUSEADDR=0,SO_LINGER=3s,SO_BROADCAST=1"""


def test_json(root: Path) -> None:
    asked = commandline.parser().parse_args(["sockets", "tcp", "--state", "ESTB", "--json"])
    document: dict[str, Any] = json.loads(json.dumps(sockets.document(sockets.select(root, asked))))
    assert document == {
        "sockets": [
            {
                "file": "tcp",
                "recv_q": 0,
                "send_q": 7,
                "local": {"address": "127.0.0.1", "port": 22},
                "foreign": {"address": "127.0.0.1", "port": 40000},
                "state": "ESTB",
                "diag": ">#",
                "options": {"SO_KEEPALIVE": 1, "SO_RCVTIMEO": 1500, "TCP_NODELAY": 1},
            }
        ],
    }


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("SO_REUSEADDR=--5", "'SO_REUSEADDR=--5': the value must be a number"),
        ("SO_REUSEADDR=٣", "the value must be a number"),
        ("SO_REUSEADDR=²", "the value must be a number"),
        ("SO_REUSEADDR=", "the value must be a number"),
        ("SO_REUSEADDR=1s", "the value must be a number"),
        (f"SO_REUSEADDR={'9' * 5000}", "the value must be a number"),
        ("SO_FROB=1", "there is no option 'SO_FROB'"),
    ],
)
def test_an_option_that_is_not_one(root: Path, option: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        select(root, "--option", option)


def test_what_is_not_there(root: Path) -> None:
    with pytest.raises(UsageError, match="there is no file 'tcp5'"):
        select(root, "tcp", "tcp5")
    with pytest.raises(UsageError, match="there is no state 'OPEN'"):
        select(root, "--state", "estb,open")
    (root / "proc/net/udp6stat").unlink()
    with pytest.raises(KnetstatdError, match="cannot be read: No such file or directory") as caught:
        select(root)
    assert (caught.value.where, caught.value.fix) == ("/proc/net/udp6stat", "A system that does not run has no sockets")
