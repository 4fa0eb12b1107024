# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of the four files that the module makes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from knetstatd.formats.knetstat_proc import (
    PROBED,
    TCP_HEADER,
    UDP_HEADER,
    Endpoint,
    Kind,
    MalformedError,
    Socket,
    parse,
    probe,
    table,
)

if TYPE_CHECKING:
    from pathlib import Path

ESTB = (
    "    12      0 127.0.0.1:22            10.0.0.1:40000          ESTB >#   "
    "SO_REUSEADDR=1,SO_REUSEPORT=0,SO_KEEPALIVE=1,TCP_KEEPIDLE=60,SO_RCVTIMEO=1500ms,TCP_NODELAY=1,TCP_DEFER_ACCEPT=0"
)
UDP = "     0    768 0.0.0.0:68              0.0.0.0:*               SO_REUSEADDR=0,SO_REUSEPORT=0,SO_LINGER=3s,SO_BROADCAST=1"


def tcp(*rows: str) -> str:
    return "".join(line + "\n" for line in (TCP_HEADER, *rows))


def udp(*rows: str) -> str:
    return "".join(line + "\n" for line in (UDP_HEADER, *rows))


def test_no_rows() -> None:
    assert parse(tcp(), Kind.TCP6) == []
    assert parse(udp(), Kind.UDP) == []


def test_established() -> None:
    (row,) = parse(tcp(ESTB), Kind.TCP)
    assert row == Socket(
        12, 0, Endpoint("127.0.0.1", 22), Endpoint("10.0.0.1", 40000), "ESTB", ">#",
        {
            "SO_REUSEADDR": 1, "SO_REUSEPORT": 0, "SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 60, "SO_RCVTIMEO": 1500,
            "TCP_NODELAY": 1, "TCP_DEFER_ACCEPT": 0,
        },
    )  # fmt: skip
    assert list(row.options) == sorted(row.options, key=ESTB.index)


def test_udp() -> None:
    (row,) = parse(udp(UDP), Kind.UDP)
    assert (row.state, row.diag, row.send_q, row.foreign) == ("", "", 768, Endpoint("0.0.0.0", 0))
    assert row.options["SO_LINGER"] == 3


@pytest.mark.parametrize("state", ["TIMW", "SYNR", "FNW2"])
def test_bare_row(state: str) -> None:
    (row,) = parse(tcp(f"     0      0 ::1:22                  ::1:40000               {state} "), Kind.TCP6)
    assert (row.state, row.options) == (state, {})


def test_wide_fields() -> None:
    address = "fe80:1111:2222:3333:4444:5555:6666:7777"
    row = f"1234567 -12345 {address}:65535 ::ffff:10.1.2.3:1       LSTN      SO_REUSEADDR=1"
    (socket,) = parse(tcp(row), Kind.TCP6)
    assert (socket.recv_q, socket.send_q) == (1234567, -12345)
    assert socket.local == Endpoint(address, 65535)
    assert socket.foreign == Endpoint("::ffff:10.1.2.3", 1)


def test_the_longest_time() -> None:
    """Of 2^63 jiffies, of which 24 are a second."""
    (row,) = parse(tcp(changed("1500ms", "384307168202282324999ms")), Kind.TCP)
    assert row.options["SO_RCVTIMEO"] == 384307168202282324999


@pytest.mark.parametrize("diag", ["", ">|<", "|<", ">|", ">#"])
def test_diag(diag: str) -> None:
    (row,) = parse(tcp(ESTB.replace(">#  ", f"{diag:4}")), Kind.TCP)
    assert row.diag == diag


def test_a_listener() -> None:
    (row,) = parse(tcp(changed("ESTB >#  ", "LSTN     ").replace("TCP_DEFER", "TCP_FASTOPEN=11,TCP_DEFER")), Kind.TCP)
    assert row.options["TCP_FASTOPEN"] == 11


def test_a_restored_socket() -> None:
    (row,) = parse(tcp(changed("SO_REUSEADDR=1", "SO_REUSEADDR=2")), Kind.TCP)
    assert row.options["SO_REUSEADDR"] == 2


# As lib/vsprintf.c writes them.
@pytest.mark.parametrize(
    "address",
    [
        "::", "::1", "::1:2", "::ffff:0", "::102:304", "::1:0:0", "1::", "1:0:0:2::", "1::2:0:0:3", "1:2:3:4:5:6:7:8",
        "1:2:3:4:0:6:7:8", "fe80::1234", "2001:db8::1", "::ffff:0.0.0.0", "::ffff:127.0.0.1", "::ffff:0:102:304",
        "64:ff9b::102:304", "fe80::5efe:10.0.0.1", "fe80::200:5efe:0.0.0.0", "2001:db8:1:2:0:5efe:192.0.2.1",
        "::5efe:192.0.2.1", "::1:0:5efe:1.2.3.4",
    ],
)  # fmt: skip
def test_an_ipv6_address(address: str) -> None:
    row = UDP.replace(f"{'0.0.0.0:68':23}", f"{f'{address}:68':23}").replace("0.0.0.0:*", ":::*     ")
    assert parse(udp(row), Kind.UDP6)[0].local.address == address


@pytest.mark.parametrize(
    ("address", "kernels"),
    [
        ("0::1", "::1"), ("0:0:0:0:0:0:0:1", "::1"), ("::0001", "::1"), ("1::2:3:4:5:6:7", "1:0:2:3:4:5:6:7"),
        ("1:0:0:2:0:0:0:3", "1:0:0:2::3"), ("::1.2.3.4", "::102:304"), ("::ffff:7f00:1", "::ffff:127.0.0.1"),
        ("fe80::5efe:a00:1", "fe80::5efe:10.0.0.1"), ("fe80::1.2.3.4", "fe80::102:304"), ("1:0:0:2:3:0:0:4", "1::2:3:0:0:4"),
    ],
)  # fmt: skip
def test_an_ipv6_address_that_the_kernel_writes_otherwise(address: str, kernels: str) -> None:
    row = UDP.replace(f"{'0.0.0.0:68':23}", f"{f'{address}:68':23}").replace("0.0.0.0:*", ":::*     ")
    with pytest.raises(MalformedError, match=f"column 15: expected an IPv6 address as {kernels}, found"):
        parse(udp(row), Kind.UDP6)


def test_options_of_older_versions() -> None:
    row = ESTB.partition("SO_")[0] + "SO_KEEPALIVE=0,TCP_NODELAY=0"
    assert parse(tcp(row), Kind.TCP)[0].options == {"SO_KEEPALIVE": 0, "TCP_NODELAY": 0}


def changed(old: str, new: str, row: str = ESTB) -> str:
    assert old in row
    return row.replace(old, new, 1)


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ("", 1, "a queue's length"),
        (changed("    12", "     x"), 1, "a queue's length and a blank"),
        (changed("    12", "   12"), 1, "in 6 columns"),
        (changed("127.0.0.1:22 ", "127.0.0.1 "), 15, "an address and port"),
        (changed("127.0.0.1", "127.0.0.256"), 15, "an IPv4 address"),
        (changed("127.0.0.1", "::1      "), 15, "an IPv4 address"),
        (changed(":22 ", ":70000 "), 15, "a port"),
        (changed(":22 ", ":0 "), 15, "a port"),
        (changed(":22            ", ":22           "), 15, "in 23 columns"),
        (changed("ESTB", "EST "), 63, "a state and a blank"),
        (changed("ESTB", "ESTA"), 63, "a state: ESTB, "),
        (changed(">#  ", "##  "), 68, "a Diag"),
        (changed(">#   SO", ">#  SO"), 68, "a Diag"),
        (ESTB[:70], 68, "a Diag"),
        (ESTB[:72], 73, "an option"),
        (changed("SO_REUSEADDR=1", "SO_REUSEADDR"), 73, "an option"),
        (changed("SO_REUSEADDR=1", "SO_BROADCAST=1"), 73, "an option of tcp"),
        (ESTB + ",SO_KEEPALIVE=0", len(ESTB) + 2, "an option that comes after TCP_DEFER_ACCEPT"),
        (ESTB + ",TCP_DEFER_ACCEPT=0", len(ESTB) + 2, "an option that comes after TCP_DEFER_ACCEPT"),
        (changed("1500ms", "1500"), 134, "SO_RCVTIMEO in ms"),
        (changed("TCP_KEEPIDLE=60", "TCP_KEEPIDLE=60s"), 118, "TCP_KEEPIDLE without a unit"),
        (ESTB + " ", len(ESTB) + 1, "a comma"),
        (ESTB + ",", len(ESTB) + 2, "an option"),
        (changed("ESTB", "CLSW")[:67], 68, "a Diag"),
        (changed("ESTB", "TIMW"), 68, "the end of the row"),
        (changed("ESTB", "CLSW"), 68, "no Diag in CLSW"),
        (changed("TCP_DEFER", "TCP_FASTOPEN=5,TCP_DEFER"), ESTB.index("TCP_DEFER") + 1, "no TCP_FASTOPEN in ESTB"),
        (changed("SO_REUSEADDR=1", "SO_REUSEADDR=3"), 73, "SO_REUSEADDR from 0 to 2"),
        (changed("SO_REUSEADDR=1", "SO_REUSEADDR=-1"), 73, "SO_REUSEADDR from 0 to 2"),
        (changed("SO_REUSEPORT=0", "SO_REUSEPORT=2"), 88, "SO_REUSEPORT from 0 to 1"),
        (changed("SO_KEEPALIVE=1", "SO_KEEPALIVE=2"), 103, "SO_KEEPALIVE from 0 to 1"),
        (changed("TCP_NODELAY=1", "TCP_NODELAY=11"), ESTB.index("TCP_NODELAY") + 1, "TCP_NODELAY from 0 to 1"),
        (changed("    12", "9" * 5000), 1, "a queue's length and a blank"),
        (changed("     0", "    -0"), 8, "a queue's length and a blank"),
        (changed("     0", "    00"), 8, "a queue's length and a blank"),
        (changed(":22 ", f":{'9' * 5000} "), 15, "an address and port"),
        (changed(":22 ", ":022 "), 15, "a port"),
        (changed("TCP_KEEPIDLE=60", f"TCP_KEEPIDLE={'9' * 5000}"), ESTB.index("=60") + 23, "a comma"),
        (changed("SO_REUSEADDR=1", "SO_REUSEADDR=01"), 87, "a comma"),
        (changed("SO_REUSEADDR=1", "SO_REUSEADDR=-0"), 73, "an option"),
    ],
)
def test_malformed_row(row: str, column: int, expected: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(tcp(ESTB, row), Kind.TCP)
    assert (caught.value.line, caught.value.column) == (3, column), str(caught.value)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("tcpstat: line 3, column ")


def test_malformed_udp() -> None:
    with pytest.raises(MalformedError, match="an IPv6 address"):
        parse(udp(UDP), Kind.UDP6)
    with pytest.raises(MalformedError, match="an option of udp"):
        parse(udp(changed("SO_BROADCAST", "TCP_NODELAY", UDP)), Kind.UDP)
    with pytest.raises(MalformedError, match="SO_BROADCAST from 0 to 1"):
        parse(udp(changed("SO_BROADCAST=1", "SO_BROADCAST=2", UDP)), Kind.UDP)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("", 1, 1),
        (UDP_HEADER + "\n", 1, 63),
        (TCP_HEADER, 1, 80),
        (tcp(ESTB)[:-1], 2, len(ESTB) + 1),
    ],
)
def test_malformed_file(text: str, line: int, column: int) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(text, Kind.TCP)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)


def test_long_text_is_cut() -> None:
    with pytest.raises(MalformedError, match="…") as caught:
        parse("x" * 1000, Kind.TCP)
    assert len(str(caught.value)) < 150


def test_probe(tmp_path: Path) -> None:
    directory = tmp_path / "proc/net"
    directory.mkdir(parents=True)
    (directory / "tcpstat").write_text(tcp(ESTB))
    (directory / "tcp6stat").write_text(tcp())
    (directory / "udpstat").write_text(udp(UDP))
    assert probe(tmp_path) == ("/proc/net/udp6stat: No such file or directory",)
    (directory / "udp6stat").write_text(tcp())
    assert probe(tmp_path) == (
        "/proc/net/udp6stat: line 1, column 63: expected the header, found " + repr(TCP_HEADER[:40] + "…"),
    )
    (directory / "udp6stat").write_text(udp())
    assert probe(tmp_path) == ()
    assert [row.local.port for row in table(tmp_path, Kind.UDP)] == [68]
    (directory / "udpstat").write_bytes(udp(UDP).replace("\n", "\r\n").encode())
    with pytest.raises(MalformedError, match="line 1, column 71: expected the header"):
        table(tmp_path, Kind.UDP)


def test_probe_asks_the_machine_not_its_own_network_namespace(tmp_path: Path) -> None:
    places: dict[str, list[str]] = {"proc/net": [], "proc/1/net": ["not a row"]}
    for place, rows in places.items():
        (tmp_path / place).mkdir(parents=True)
        for kind in Kind:
            (tmp_path / place / f"{kind.value}stat").write_text(tcp() if kind.is_tcp else udp())
        (tmp_path / place / "tcp6stat").write_text(tcp(*rows))
    [fault] = probe(tmp_path)
    assert fault.startswith("/proc/1/net/tcp6stat: line 2, column 1: expected a queue's length")
    (tmp_path / "proc/1/net/tcp6stat").unlink()
    assert probe(tmp_path) == ("/proc/1/net/tcp6stat: No such file or directory",)
    shutil.rmtree(tmp_path / "proc/1/net")
    assert probe(tmp_path) == (), "where PID 1 is hidden"


def test_probe_reads_only_the_beginning(tmp_path: Path) -> None:
    directory = tmp_path / "proc/net"
    directory.mkdir(parents=True)
    for kind in Kind:
        (directory / f"{kind.value}stat").write_text(tcp() if kind.is_tcp else udp())
    rows = PROBED // len(ESTB) + 10
    (directory / "tcpstat").write_text(tcp(*[ESTB] * rows, "not a row"))
    assert probe(tmp_path) == ()
    (directory / "tcpstat").write_text(tcp(*[ESTB] * (rows // 2), "not a row", *[ESTB] * rows))
    assert probe(tmp_path)[0].startswith(f"/proc/net/tcpstat: line {rows // 2 + 2}, column 1")
