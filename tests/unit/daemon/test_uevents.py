# SPDX-License-Identifier: GPL-2.0-or-later
"""What of the kernel's announcements wakes the daemon."""

from __future__ import annotations

import os
import socket

import pytest

from knetstatd.daemon import uevents


def test_only_what_begins_so_is_received() -> None:
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, kernels:
        uevents.only_beginning_with(ours.fileno(), b"add@/module/", b"remove@/module/")
        ours.setblocking(False)
        for other in (b"add@/devices/virtual/net/veth1\0", b"add@/module", b"remove@/modules/", b"change@/module/x", b""):
            kernels.send(other)
        for text in (b"add@/module/knetstat\0ACTION=add\0", b"remove@/module/x\0"):
            kernels.send(text)
            assert ours.recv(100) == text
        with pytest.raises(BlockingIOError):
            ours.recv(100)


def test_other_devices_are_not_heard_of() -> None:
    source = uevents.Uevents()
    try:
        with open("/sys/class/mem/null/uevent", "w") as f:
            f.write("change")
    except OSError as e:
        pytest.skip(f"cannot make the kernel announce a device: {e}")
    with socket.socket(fileno=os.dup(source.fileno())) as received, pytest.raises(BlockingIOError):
        received.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    assert source.read() == set()
