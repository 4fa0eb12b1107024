# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in a unit's place, as the unit would: tries what it may and what it must not, and prints one line of JSON.

Arguments: a kernel, and another one.
"""

import json
import os
import socket
import sys
from collections.abc import Callable


def can(act: Callable[[], object]) -> bool:
    """Whether it works here."""
    try:
        act()
    except OSError:
        return False
    return True


def write(directory: str) -> bool:
    """Whether a file can be made there."""
    path = f"{directory}/probe-{os.getpid()}"

    def act() -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.unlink(path)

    return can(act)


def capabilities() -> int:
    """Those in effect, and those that could come back."""
    with open("/proc/self/status") as f:
        found = dict(line.split(":\t") for line in f)
    return int(found["CapEff"], 16) | int(found["CapBnd"], 16)


def netlink() -> None:
    """Joins the kernel's uevents."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as s:
        s.bind((0, 1))


def manager() -> None:
    """Connects to systemd, as systemctl does for root."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("/run/systemd/private")


def door() -> None:
    """Connects to the socket that asks for steps."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("/run/knetstatd-step.socket")


kernel, other = sys.argv[1:]
print(
    "PROBE",
    json.dumps(
        {
            "root": os.geteuid() == 0,
            "capabilities": capabilities() != 0,
            "this kernel": write(f"/usr/lib/modules/{kernel}"),
            "other kernel": write(f"/usr/lib/modules/{other}"),
            "dkms": write("/var/lib/dkms"),
            "state": write("/var/lib/knetstatd"),
            "guard": write("/var/lib/knetstatd/guard"),
            "run": write("/run/knetstatd"),
            "builders": write("/run/knetstatd-build"),
            "lock": write("/run/lock") or write("/dev/shm"),
            "door": can(door),
            "system": write("/usr/bin") or write("/etc") or write("/boot") or write("/root"),
            "key": can(lambda: os.close(os.open("/var/lib/dkms/mok.key", os.O_RDONLY))),
            "network": can(lambda: socket.socket(socket.AF_INET).close()),
            "uevents": can(netlink),
            "systemd": can(manager),
        }
    ),
    flush=True,
)
