# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that come and go in the running kernel: the owner of pyudev."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

import pyudev

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_LOAD = {4: 0x20, 2: 0x28, 1: 0x30}  # BPF_LD | BPF_ABS | BPF_W, BPF_H, BPF_B (linux/bpf_common.h)
_JUMP_EQUAL, _RETURN = 0x15, 0x06  # BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K


class Uevents:
    """The kernel's own announcements of modules (source `kernel`: it needs no udevd and works in a private network).

    Raises OSError if netlink cannot be used; the daemon then relies on its other sources.
    """

    def __init__(self) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        self._monitor.start()
        # Not filter_by: libudev lets through whatever udevd did not send, and it fails now and then with a stale errno
        # (pyudev issue 548). Without a filter other devices' events wake us for nothing, and no harm is done.
        with contextlib.suppress(OSError):
            only_beginning_with(self.fileno(), b"add@/module/", b"remove@/module/")

    def close(self) -> None:
        """Gives the socket back: libudev closes it with its last reference."""
        del self._monitor

    def fileno(self) -> int:
        """For the selector."""
        return int(self._monitor.fileno())

    def read(self) -> set[str] | None:
        """The names of the modules that were added or removed since the last call; None: some events were lost."""
        moved = set()
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                if device.subsystem == "module":
                    moved.add(str(device.sys_name))
        except OSError:
            # ENOBUFS: the queue overflowed. The socket stays usable, what it held is gone.
            return None
        return moved


def only_beginning_with(fd: int, *prefixes: bytes) -> None:
    """Makes the kernel drop the datagrams to a socket that begin with none of `prefixes`, before they wake anybody (bpf(4))."""
    code = []
    for prefix in prefixes:
        parts, at = [], 0
        while left := len(prefix) - at:
            size = next(size for size in _LOAD if size <= left)
            parts.append((at, size))
            at += size
        for number, (at, size) in enumerate(parts, 1):
            wanted = int.from_bytes(prefix[at : at + size], "big")
            # If it differs: over the rest of this prefix, to the next.
            code += [(_LOAD[size], 0, 0, at), (_JUMP_EQUAL, 0, 2 * (len(parts) - number) + 1, wanted)]
        code.append((_RETURN, 0, 0, 0xFFFFFFFF))
    code.append((_RETURN, 0, 0, 0))
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    taken = socket.socket(fileno=fd)
    try:
        taken.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(program)))
    finally:
        taken.detach()
