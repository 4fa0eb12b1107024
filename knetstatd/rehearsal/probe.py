# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a module works in the rehearsal's machine: what is done there, and what must then be found.

knetstat: sockets of all four kinds are opened, and its four files must have a row for each of those that the kernel's own files
have. Other modules have no probe: for them, loaded and live is all that is asked.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from knetstatd.formats import knetstat_proc
from knetstatd.formats.knetstat_proc import Kind, MalformedError
from knetstatd.rehearsal.vm import Program

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MODULE = "knetstat"
# With what busybox has: a server and a client for TCP, and for UDP a client that goes on asking a server which is not there.
# Nothing is started only to wait: each program costs as much as a hundredth of the machine's whole boot. What does not come up
# within two seconds is missing in the kernel's own files too.
_PROGRAM = b"""#!/bin/busybox sh
# there STATE FILE: a socket is in that state (hexadecimal; include/net/tcp_states.h).
there() { while read -r slot local remote state rest; do [ "$state" = "$1" ] && return; done <"$2"; false; }
await() { n=0; until there "$@" || [ $n -ge 100 ]; do n=$((n + 1)); usleep 20000; done; }
ip link set lo up
httpd -p 127.0.0.1:7001
sleep 600 | nc 127.0.0.1 7001 &
tftp -g -l /tmp/4 -r . 127.0.0.1 7003 &
clients=$!
if [ -e /proc/net/tcp6 ]; then
    httpd -p '[::1]:7002'
    tftp -g -l /tmp/6 -r . ::1 7004 &
    clients="$clients $!"
    await 07 /proc/net/udp6
fi
await 07 /proc/net/udp
await 01 /proc/net/tcp
# So that none of them gives up while the files are read.
kill -STOP $clients
exit 0
"""
# Next to each other, so that nothing happens in between.
FILES = tuple(path for kind in Kind for path in (f"/proc/net/{kind.value}", f"/{kind.path}"))


def program(modules: Iterable[str]) -> Program | None:
    """What to run in the machine when these modules are in."""
    return Program(_PROGRAM) if _MODULE in set(modules) else None


def faults(modules: Iterable[str], files: Mapping[str, str]) -> tuple[str, ...]:
    """What is wrong with the modules, a sentence each. files: those of `FILES` that the machine had."""
    return tuple(fault for kind in Kind for fault in _knetstat(kind, files)) if _MODULE in set(modules) else ()


def asked_nothing(modules: Iterable[str], files: Mapping[str, str]) -> bool:
    """Whether the probe had nothing to compare, since no socket could be opened in the machine."""
    own = (files.get(f"/proc/net/{kind.value}", "") for kind in Kind)
    return _MODULE in set(modules) and not any(text.count("\n") > 1 for text in own)


def _knetstat(kind: Kind, files: Mapping[str, str]) -> Iterable[str]:
    own, path = files.get(f"/proc/net/{kind.value}"), f"/{kind.path}"
    if own is None and path not in files:
        return  # a kernel without that protocol
    if path not in files:
        yield f"{path} is not there"
        return
    try:
        rows = Counter((row.local.port, row.foreign.port) for row in knetstat_proc.parse(files[path], kind))
    except MalformedError as e:
        yield f"{path}: {e.what}"
        return
    wanted = Counter(_ports(line) for line in (own or "").splitlines()[1:] if line.strip())
    if missing := wanted - rows:
        yield f"{path} lacks the socket with port {next(iter(missing))[0]}, which /proc/net/{kind.value} has"
    elif surplus := rows - wanted:
        yield f"{path} has a socket with port {next(iter(surplus))[0]}, which /proc/net/{kind.value} lacks"


def _ports(line: str) -> tuple[int, int]:
    """The local and the foreign port of a row of the kernel's own file (Documentation/networking/proc_net_tcp.rst)."""
    local, foreign = line.split()[1:3]
    return int(local.rpartition(":")[2], 16), int(foreign.rpartition(":")[2], 16)
