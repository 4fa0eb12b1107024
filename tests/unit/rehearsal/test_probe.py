# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe: what the module says is what the kernel says."""

from __future__ import annotations

import pytest

from knetstatd.formats.knetstat_proc import TCP_HEADER, UDP_HEADER
from knetstatd.rehearsal import probe

OWN = "  sl  local_address rem_address   st\n"
ROW = "     0      0 127.0.0.1:7001          0.0.0.0:*               LSTN      SO_REUSEADDR=1\n"
UDP = "     0      0 0.0.0.0:34979           0.0.0.0:*               SO_REUSEADDR=0\n"
LISTENER = "   0: 0100007F:1B59 00000000:0000 0A\n"
GOOD = {
    "/proc/net/tcp": OWN + LISTENER, "/proc/net/tcpstat": f"{TCP_HEADER}\n{ROW}",
    "/proc/net/tcp6": OWN, "/proc/net/tcp6stat": f"{TCP_HEADER}\n",
    "/proc/net/udp": OWN + "   7: 00000000:88A3 00000000:0000 07\n", "/proc/net/udpstat": f"{UDP_HEADER}\n{UDP}",
    "/proc/net/udp6": OWN, "/proc/net/udp6stat": f"{UDP_HEADER}\n",
}  # fmt: skip


def test_nothing_is_wrong() -> None:
    assert probe.faults(["knetstat"], GOOD) == ()
    assert not probe.asked_nothing(["knetstat"], GOOD)
    assert set(probe.FILES) == set(GOOD)


def test_a_kernel_without_ipv6() -> None:
    assert probe.faults(["knetstat"], {path: text for path, text in GOOD.items() if "6" not in path}) == ()


def test_only_knetstat_has_a_probe() -> None:
    assert probe.program(["dep", "knetstat"]) is not None
    assert probe.program(["dep"]) is None
    assert probe.faults(["dep"], {}) == ()
    assert not probe.asked_nothing(["dep"], {})


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("/proc/net/tcpstat", None, "/proc/net/tcpstat is not there"),
        ("/proc/net/tcpstat", f"{TCP_HEADER}\n", "lacks the socket with port 7001, which /proc/net/tcp has"),
        ("/proc/net/tcpstat", f"{TCP_HEADER}\n{ROW}{ROW}", "has a socket with port 7001, which /proc/net/tcp lacks"),
        ("/proc/net/tcpstat", f"{TCP_HEADER}\n{ROW.replace('LSTN', 'LISN')}", "line 2, column 63: expected a state"),
        ("/proc/net/udpstat", "", "expected the header"),
        ("/proc/net/udp", OWN, "/proc/net/udpstat has a socket with port 34979, which /proc/net/udp lacks"),
    ],
)
def test_what_is_wrong(path: str, text: str | None, fault: str) -> None:
    files = {k: v for k, v in GOOD.items() if k != path} | ({path: text} if text is not None else {})
    [found] = probe.faults(["knetstat"], files)
    assert fault in found


def test_without_a_socket_nothing_was_asked() -> None:
    empty = {path: text.partition("\n")[0] + "\n" for path, text in GOOD.items()}
    assert probe.faults(["knetstat"], empty) == ()
    assert probe.asked_nothing(["knetstat"], empty)
