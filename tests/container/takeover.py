# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the daemon's place: asks root for all that could be had without a password, and says what came of it, a line each.

TRIED: a command and its status.  DOOR: a line to the socket that asks for steps, and the answer.  MADE: a file that is none.
"""

import os
import socket
import subprocess

BUS = ["busctl", "--system", "call"]
MANAGER = [*BUS, "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
LOGIND = [*BUS, "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"]
TOUCH = ["ExecStart", "a(sasb)", "1", "/bin/touch", "2", "/bin/touch", "/etc/proof-2", "false"]
COMMANDS = (
    ["systemd-run", "--quiet", "--wait", "touch", "/etc/proof-1"],
    [*MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", "proof.service", "fail", "1", *TOUCH, "0"],
    [*MANAGER, "StartUnit", "ss", "foreign.service", "replace"],
    [*LOGIND, "Reboot", "b", "false"],
    ["systemctl", "--no-ask-password", "start", "foreign.service"],
    ["systemctl", "--no-ask-password", "stop", "systemd-journald.service"],
    ["systemctl", "--no-ask-password", "set-environment", "PROOF=1"],
    ["systemctl", "--no-ask-password", "kill", "dbus.service"],
)
LINES = (
    b"foreign 6.1\n", b"build ../../x\n", b"build $(touch /etc/proof-3)\n", b"build 6.1 next; touch /etc/proof-4\n",
    b"build 6.1\nload 6.1\n",
)  # fmt: skip
DATAGRAMS = (
    ("/run/systemd/notify", b"MAINPID=1\nSTATUS=proof"),
    ("/run/systemd/journal/socket", b"MESSAGE=proof\nSYSLOG_IDENTIFIER=knetstatd\n_UID=0\nUNIT=init.scope\n"),
)

for argv in COMMANDS:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    print("TRIED", argv[0], done.returncode, " ".join((done.stdout + done.stderr).split())[:200], flush=True)
for line in LINES:
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.settimeout(20)
            s.connect("/run/knetstatd-step.socket")
            s.sendall(line)
            print("DOOR", line, s.recv(100), flush=True)
        except OSError as e:
            print("DOOR", line, e, flush=True)
for path, text in DATAGRAMS:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        try:
            s.sendto(text, path)
        except OSError as e:
            print("SOCKET", path, e, flush=True)
for path in ("/run/knetstatd/motd", "/run/knetstatd/status.json"):
    for make in (os.mkfifo, lambda place: os.symlink("/etc/shadow", place), lambda place: os.link("/proc/self/comm", place)):
        try:
            make(path)
        except OSError:
            continue
        print("MADE", path, flush=True)
        os.unlink(path)
print("DONE", os.geteuid(), flush=True)
