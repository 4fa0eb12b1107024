# SPDX-License-Identifier: GPL-2.0-or-later
"""The story that this project grew from, played in virtual machines: without it, then with it. `make demo` runs it.

A Debian 13 runs a 7.2 kernel, apt installs 7.3, the machine is rebooted. These kernels have no MODVERSIONS: a module that was
compiled for another release is refused. The module is packaged as in the story: its Makefile reads `uname -r`. What is told is
said by the machines; the demonstration fails where they say anything else.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.container import packages
from tests.vm import disk, upgrade

SUITE, KERNELS = "trixie", (("7", 0), ("7", 1))

SHOW = """\
export NO_COLOR=1 PAGER=cat SYSTEMD_PAGER=cat
listen
show() { echo; echo "# $*"; sh -c "$*" 2>&1; }
"""
BEFORE_ALONE = """\
show uname -r
show head -n 2 /proc/net/tcpstat
echo; echo '# apt-get install {image} {headers}'; install {image} {headers}
show 'dkms status 2>/dev/null'
show modinfo -k {new} -F vermagic knetstat
"""
AFTER_ALONE = """\
show uname -r
show modprobe knetstat
show 'journalctl -b -k -o cat -g knetstat | tail -n 1'
show head -n 2 /proc/net/tcpstat
show 'dkms status 2>/dev/null'
"""
BEFORE = """\
until_said '{old} (next, running): ready (' >/dev/null
show uname -r
show head -n 2 /proc/net/tcpstat
echo; echo '# apt-get install {image} {headers}'; install {image} {headers}
show 'knetstatctl check; echo "exit status $?"'
until_said '{new} (next): ready (' >/dev/null
show 'knetstatctl check; echo "exit status $?"'
show modinfo -k {new} -F vermagic knetstat
show journalctl -b -o cat -u knetstatd
"""
AFTER = """\
until_said '{new} (next, running): ready (' >/dev/null
show uname -r
show head -n 2 /proc/net/tcpstat
show knetstatctl status
show journalctl -b -o cat -u knetstatd
"""
SHOWN = r"\nRecv-Q Send-Q Local Address .*\n +0 +0 127\.0\.0\.1:4321 .* SO_REUSEADDR=0,.*,SO_KEEPALIVE=1,"


class Act(NamedTuple):
    """One boot: which of KERNELS, what is told before, what runs, and what the machine must say, as regular expressions."""

    kernel: int
    outcome: str
    script: str
    expected: tuple[str, ...]


ALONE = (
    Act(
        0,
        "DKMS alone. The machine runs {old} with knetstat; apt installs {new}.",
        BEFORE_ALONE,
        (SHOWN, "\nknetstat/.*, {new}, .*: installed\n", r"vermagic knetstat\n{old} "),
    ),
    Act(
        1,
        "DKMS said installed, apt was content. The machine is rebooted into {new}.",
        AFTER_ALONE,
        (
            "could not insert 'knetstat': Exec format error\n",
            "knetstat: version magic '{old} .*' should be '{new} ",
            "\nhead: .*/proc/net/tcpstat.* No such file",
            "\nknetstat/.*, {new}, .*: installed\n",
        ),
    ),
)
GUARDED = (
    Act(
        0,
        "The same machine with knetstatd. It runs {old} with knetstat; apt installs {new}.",
        BEFORE,
        (SHOWN, r"\nexit status 75\n[^~]*\nexit status 0\n", r"vermagic knetstat\n{new} ", r"{new} \(next\): ready \("),
    ),
    Act(
        1,
        "The verdict was red, and is green: it is safe to reboot. The machine is rebooted into {new}; nothing is typed.",
        AFTER,
        (SHOWN, r"{new} \(next, running\): ready \("),
    ),
)


def play(machine: upgrade.Machine, acts: tuple[Act, ...]) -> bool:
    """Tells and boots one after the other, and shows what the machine says; False where it is not what was expected."""
    old, new = machine.kernels
    names = {"old": old.release, "new": new.release, "image": new.image, "headers": new.headers}
    for act in acts:
        tell(act.outcome.format(**names))
        began = time.monotonic()
        said = machine.boot(act.kernel, SHOW + act.script, names, show=sys.stdout)
        print(f"\n(power off after {time.monotonic() - began:.0f} s)")
        patterns = [re.sub(r"\{(\w+)\}", lambda found: re.escape(names[found[1]]), pattern) for pattern in act.expected]
        if missing := [pattern for pattern in patterns if not re.search(pattern, said.output)]:
            tell(f"The story did not come true. Not seen: {missing}")
            print(said.console[-2000:])
            return False
    return True


def tell(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def main() -> int:
    began = time.monotonic()
    tell(f"Making two machines and our packages. KVM: {'yes' if disk.kvm() else 'no; the machines are emulated'}.")
    with tempfile.TemporaryDirectory(prefix="knetstatd-demo-") as directory:
        debs = packages.build(SUITE, Path(directory) / "debs")
        for acts, ours in ((ALONE, None), (GUARDED, debs)):
            machine = upgrade.machine(SUITE, KERNELS, Path(directory) / ("guarded" if ours else "alone"), story=True, debs=ours)
            if not play(machine, acts):
                return 1
            machine.image.unlink()
    tell(f"That is all. It took {(time.monotonic() - began) / 60:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
