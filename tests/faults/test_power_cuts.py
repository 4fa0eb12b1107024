# SPDX-License-Identifier: GPL-2.0-or-later
"""The power is cut at random instants of an upgrade. After the next boot everything is whole, or is made whole.

`make faults`; CUTS= says how often, SEED= repeats a run. Each cut starts from the same kept machine (see cuts).
"""

from __future__ import annotations

import concurrent.futures
import os
import random
import re
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from tests.container import product, rig
from tests.faults import cuts
from tests.vm import disk, upgrade

if TYPE_CHECKING:
    from pathlib import Path

    from tests.container.rig import Container

pytestmark = [pytest.mark.vm, pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(7200)]

CUTS = int(os.environ.get("CUTS") or 30)
SEED = int(os.environ.get("SEED") or random.randrange(1 << 30))
# Half on each release; two in three while we build and publish, with both packages there, the others while apt installs one.
WHILE_WE_BUILD = max(1, CUTS // 3)
WHILE_APT_WORKS = max(1, CUTS // 2 - WHILE_WE_BUILD)
# The kernel that runs, and the one that comes: series as rig.Container.kernels takes them, and which of that series.
KERNELS = {"bookworm": (("6.1", 0), ("6.1", 1)), "trixie": (("6.12", 0), ("7", 0))}
TIMEOUT = 900.0

# The daemon is enabled, and comes with the boot; only where the machine is being armed it waits for a word.
HELD_BACK = "[Service]\nExecCondition=/bin/sh -c '! grep -q cut=arm /proc/cmdline || test -e /run/go'\n"
START = "touch /run/go; systemctl start knetstatd"
# We have begun to publish: dkms knows the build.
PUBLISHING = "== publishing =="
PUBLISH = f"for i in $(seq 900); do [ -e /var/lib/dkms/knetstat/*/{{0}} ] && break; sleep 0.3; done; echo '{PUBLISHING}'"
# Until it is published and the run has ended; asking the command again and again would take the emulated processor from it.
READY = (
    "for i in $(seq 300); do ls /lib/modules/{0}/updates/dkms/knetstat.ko* >/dev/null 2>&1 && "
    "[ ! -e /var/lib/knetstatd/kernels/{0}/knetstat.json ] && break; sleep 1; done"
)

# What the machine is asked after the cut. "first" is before anything could be mended.
CHECK = """\
knetstatctl check --quiet {new}; echo "first: $?"
echo "first vermagic: $(modinfo -k {new} -F vermagic knetstat 2>/dev/null)"
echo "first audit: $(dpkg --audit | grep -c linux-)"
{cure}
{ready}
for i in $(seq 100); do knetstatctl check --quiet {new}; code=$?; [ $code -eq 0 ] && break; sleep 3; done
echo "check: $code"
[ $code -eq 0 ] || {{ knetstatctl status; knetstatctl explain {new}; journalctl -b -o cat -u knetstatd --no-pager | tail -20; }}
echo "kernel: $(uname -r)"
echo "vermagic: $(modinfo -k {new} -F vermagic knetstat)"
knetstatctl verify --kernel {new} >/tmp/verify 2>&1; echo "verify: $?"
modprobe -S {new} --show-depends knetstat >/dev/null; echo "modprobe: $?"
if [ "$(uname -r)" = {new} ]; then for i in $(seq 60); do [ -e /proc/net/tcpstat ] && break; sleep 1; done; fi
echo "header: $(head -n 1 /proc/net/tcpstat | cut -c 1-6)"
echo "dkms: $(dkms status 2>/dev/null | sort | tr '\\n' ';')"
echo "source: $(cd /usr/src/knetstat-* && md5sum -c --quiet /usr/local/lib/source.md5 && echo whole)"
echo "torn: $(find /lib/modules /var/lib/dkms /var/lib/knetstatd -size 0 -name '*.ko*' -o -size 0 -name '*.json')"
echo "json: $(find /var/lib/knetstatd /run/knetstatd -name '*.json' -exec python3 -m json.tool {{}} /dev/null \\; 2>&1)"
for i in $(seq 10); do left="$(find /var/lib/knetstatd -name '.*')"; [ -z "$left" ] && break; sleep 1; done
echo "left:" $left
echo "audit: $(dpkg --audit | wc -l)"
echo "packages: $(dpkg-query -W -f '${{db:Status-Abbrev}}' {image} {headers})"
apt-get -q check >/dev/null 2>&1; echo "apt: $?"
echo "daemon: $(systemctl is-active knetstatd)"
echo "failed: $(systemctl --failed --no-legend --plain)"
"""
# What an administrator does who finds that apt was cut, in the order in which our own command says it.
CURE = """\
knetstatctl repair --yes {new} >/tmp/repair 2>&1; echo "repair: $?"
[ -z "$(dpkg --audit)" ] || {{ dpkg --configure -a >/tmp/configure 2>&1; echo "configure: $?"; }}
apt-get -q -y -f install >/tmp/fix 2>&1; echo "fix: $?"
case "$(dpkg-query -W -f '${{db:Status-Abbrev}}' {image})" in
"ii ") ;;
*) apt-get -q -y -o Dpkg::Use-Pty=0 --reinstall install {image} >/tmp/again 2>&1; echo "again: $?" ;;
esac
"""


def register(c: Container) -> None:
    """The bundled module in DKMS."""
    source = f"/usr/src/knetstat-{upgrade.version()}"
    shutil.copytree(product.CHECKOUT / "module", c.path(source))
    c.run(["dkms", "add", f"knetstat/{upgrade.version()}"], check=True)
    c.run(["sh", "-ec", f"cd {source}; md5sum * >/usr/local/lib/source.md5"], check=True)


def machine(suite: str, directory: Path, *, image: bool) -> tuple[upgrade.Machine, dict[str, str]]:
    """A disk with a kernel that has the module, and another that has it not: its headers are there, with `image` it is, too."""
    with rig.container(suite, boot=False, first_kernel=False) as c:
        disk.prepare(c)
        # As dpkg is: it syncs what it unpacks.
        c.path("/etc/dpkg/dpkg.cfg.d/rig").write_text("path-exclude=/usr/share/doc/*\n")
        old, new = (c.kernels(series)[number] for series, number in KERNELS[suite])
        c.set_running(old)
        c.install_kernel(old)
        c.install_kernel(new, image=image)
        register(c)
        product.install(c, ["knetstat"], load=["knetstat"])
        c.run(["knetstatctl", "build", old.release], check=True, timeout=300)
        c.run(["systemctl", "enable", "knetstatd"], check=True)
        c.write("/etc/systemd/system/knetstatd.service.d/cut.conf", HELD_BACK)
        disk.keep_repository(c)
        up = upgrade.Machine(disk.make(c, directory), (old, new))
    return up, {"new": new.release, "image": new.image, "headers": new.headers, "ready": READY.format(new.release),
                "work": f"{PUBLISH}\n{READY}".format(new.release)}  # fmt: skip


def wrong(said: disk.Said, new: str, *, booted: bool) -> str:
    """What is not as it must be after a cut, "" where nothing is."""
    if said.code != 0:
        return f"the check did not end: {said.code}\n{said.console[-3000:]}"
    found = {key: value.strip() for key, value in re.findall(r"^([a-z ]+):(.*)$", said.output, re.MULTILINE)}
    must = {
        "check": "0", "verify": "0", "modprobe": "0", "torn": "", "json": "", "left": "", "audit": "0", "packages": "ii ii",
        "apt": "0", "daemon": "active", "failed": "", "source": "whole", "header": "Recv-Q",
    }  # fmt: skip
    bad = [f"{key} is {found.get(key)!r}, not {value!r}" for key, value in must.items() if found.get(key) != value]
    if not found.get("vermagic", "").startswith(f"{new} "):
        bad.append(f"vermagic is {found.get('vermagic')!r}")
    if found.get("first") == "0" and not found.get("first vermagic", "").startswith(f"{new} "):
        bad.append("green before there was a module")
    if f"{new}, x86_64: installed" not in found.get("dkms", ""):
        bad.append(f"dkms says {found.get('dkms')!r}")
    if booted and found.get("kernel") != new:
        bad.append(f"it runs {found.get('kernel')!r}")
    return "; ".join(bad) + f"\n{said.output}" if bad else ""


def cut_and_boot(armed: cuts.Armed, kernel: disk.Files, after: float, number: int, new: str) -> str:
    """One cut; what is wrong after the next boot. Its story is left beside the disk."""
    overlay, console = armed.image.with_name(f"overlay-{number}"), armed.image.with_name(f"console-{number}")
    begin = time.monotonic()
    process = armed.restored(overlay, console)
    try:
        time.sleep(after)
        early = process.poll() is not None
    finally:
        process.kill()
        process.wait()
    over = cuts.DONE.encode() in console.read_bytes()
    said = cuts.boot(overlay, kernel, console, TIMEOUT)
    overlay.unlink()
    bad = wrong(said, new, booted=kernel.release == new) or ("the machine ended by itself" if early else "")
    first = re.search(r"first: (\d+)", said.output)
    audit = re.search(r"first audit: (\d+)", said.output)
    print(
        f"cut {number} after {after:.1f} s{' (all was done)' if over else ''}: first {first and first[1]}, "
        f"dpkg's complaints {audit and audit[1]}, {'WRONG' if bad else 'whole'}, {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    return f"cut {number} after {after:.1f} s: {bad}" if bad else ""


def spread(chance: random.Random, begin: float, end: float, times: int) -> list[float]:
    """Instants, one in each of as many equal parts: as random as any, and no part is left out."""
    return [begin + (end - begin) * (n + chance.random()) / times for n in range(times)]


def cut(armed: cuts.Armed, kernel: disk.Files, times: int, new: str) -> None:
    """Many cuts: half of them while we publish, with a little before and after, the others at any time before that."""
    console = armed.image.with_name("console-whole")
    process = armed.restored(armed.image.with_name("overlay-whole"), console)
    try:
        first = cuts.wait(process, console, PUBLISHING, TIMEOUT)
        last = cuts.wait(process, console, cuts.DONE, TIMEOUT)
    finally:
        process.kill()
        process.wait()
    assert first is not None, console.read_text(errors="replace")[-3000:]
    assert last is not None, console.read_text(errors="replace")[-3000:]
    print(f"seed {SEED}; uncut, we publish after {first:.1f} s for {last:.1f} s", flush=True)
    chance = random.Random(SEED)
    margin = first * 0.05
    instants = spread(chance, 0, first, times - times // 2)
    instants += spread(chance, first - margin, first + last + margin, times // 2)
    with concurrent.futures.ThreadPoolExecutor(min(4, max(1, (os.cpu_count() or 1)))) as pool:
        jobs = [pool.submit(cut_and_boot, armed, kernel, after, n, new) for n, after in enumerate(instants, 1)]
        bad = [text for job in jobs if (text := job.result())]
    assert not bad, f"seed {SEED}, {len(bad)} of {times}\n" + "\n\n".join(bad)


def test_the_power_is_cut_while_the_module_is_built_and_published(suite: str, tmp_path: Path) -> None:
    """The next boot is into the new kernel: the module is there, or is made there and loaded."""
    up, names = machine(suite, tmp_path, image=True)
    old, new = up.kernels
    script = cuts.scripts(":", f"{START}\n{names['work']}", CHECK.format(cure=":", **names))
    armed = cuts.arm(up.image, disk.kernel(up.image, old.release), script)
    cut(armed, disk.kernel(up.image, new.release), WHILE_WE_BUILD, new.release)


def test_the_power_is_cut_while_apt_installs_the_kernel(suite: str, tmp_path: Path) -> None:
    """The next boot is into the old kernel, as the boot loader has it until the package is configured; then it is finished."""
    up, names = machine(suite, tmp_path, image=False)
    old, new = up.kernels
    before = f"{START}\n{READY.format(old.release)}"
    install = f"DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 install {names['image']} >/tmp/apt.log 2>&1"
    script = cuts.scripts(before, f"{install}\n{names['work']}", CHECK.format(cure=CURE.format(**names), **names))
    kernel = disk.kernel(up.image, old.release)
    cut(cuts.arm(up.image, kernel, script), kernel, WHILE_APT_WORKS, new.release)
