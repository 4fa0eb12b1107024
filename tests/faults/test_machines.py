# SPDX-License-Identifier: GPL-2.0-or-later
"""What only a machine of its own can show: modules that do not load, another kernel, another time, too little memory.

One disk is booted again and again; each boot leaves it as the next one finds it.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.events import Event
from tests.container import product, rig
from tests.vm import disk, upgrade

if TYPE_CHECKING:
    from tests.container.rig import Container

pytestmark = [pytest.mark.vm, pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(7200)]

# What the module does when it is loaded.
INITS = {
    "works": 'pr_info("in\\n");',
    "fails": "return -EIO;",
    "hangs": "for (;;)\n\t\tmsleep(1000);",
    "oops": "BUG();",
    "panics": 'panic("by kt_panics");',
}
SURVIVED = ("works", "fails", "hangs", "oops")
SOURCE = """\
#include <linux/delay.h>
#include <linux/module.h>
static int __init kt_init(void)
{{
	{init}
	return 0;
}}
static void __exit kt_exit(void)
{{
}}
module_init(kt_init);
module_exit(kt_exit);
MODULE_LICENSE("GPL");
"""
CONF = """\
PACKAGE_NAME="kt-{name}"
PACKAGE_VERSION="1.0"
BUILT_MODULE_NAME[0]="kt_{name}"
DEST_MODULE_LOCATION[0]="/updates"
MAKE[0]="make -C ${{kernel_source_dir}} M=${{dkms_tree}}/kt-{name}/1.0/build modules"
CLEAN="true"
"""
# Prints what must be as it was, and the verdict of each module for a kernel.
FUNCTIONS = """\
verdict() { knetstatctl check --quiet $1; echo "check $1: $?"; knetstatctl explain --json $1 | tr -d '\\n'; echo; }
until_check() { for i in $(seq 100); do knetstatctl check --quiet $2; [ $? -eq $1 ] && break; sleep 3; done; }
until_ready() { for i in $(seq 100); do knetstatctl explain --json $1 | grep -q '"state": "ready"' && return; sleep 3; done; }
said() { journalctl -q --no-pager -b -o cat -u knetstatd | grep -F -e "$1"; }
until_said() { for i in $(seq 200); do said "$1" && return; sleep 2; done; }
until_live() { for i in $(seq 200); do [ "$(cat /sys/module/$1/initstate 2>/dev/null)" = live ] && return; sleep 2; done; }
whole() {
    echo "kernel: $(uname -r)"; echo "daemon: $(systemctl is-active knetstatd)"; echo "audit: $(dpkg --audit | wc -l)"
    apt-get -q check >/dev/null 2>&1; echo "apt: $?"
    echo "source: $(cd /usr/src; md5sum -c --quiet /usr/local/lib/source.md5 && echo whole)"
    echo "registered: $(dkms status | cut -d, -f1 | cut -d: -f1 | sort -u | tr '\\n' ' ')"
    for i in $(seq 120); do left="$(find /var/lib/knetstatd -name '.*')"; [ -z "$left" ] && break; sleep 1; done
    echo "left:" $left
    echo "json: $(find /var/lib/knetstatd /run/knetstatd -name '*.json' -exec python3 -m json.tool {} /dev/null \\; 2>&1)"
    for m in works fails hangs oops; do echo "kt_$m: $(cat /sys/module/kt_$m/initstate 2>/dev/null)"; done
}
"""


def register(c: Container) -> None:
    for name, init in INITS.items():
        source = f"/usr/src/kt-{name}-1.0"
        c.path(source).mkdir()
        c.write(f"{source}/kt_{name}.c", SOURCE.format(init=init))
        c.write(f"{source}/Makefile", f"obj-m := kt_{name}.o\n")
        c.write(f"{source}/dkms.conf", CONF.format(name=name))
        c.run(["dkms", "add", f"kt-{name}/1.0"], check=True)
    c.run(["sh", "-ec", "cd /usr/src; md5sum kt-*/* >/usr/local/lib/source.md5"], check=True)


@pytest.fixture(scope="module", params=rig.SUITES)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> upgrade.Machine:
    """Two kernels; the newer one has every module, the older none."""
    with rig.container(request.param, boot=False, first_kernel=False) as c:
        disk.prepare(c)
        old, new = c.kernels("6.1")[:2] if request.param == "bookworm" else (c.kernels("6.12")[-1], c.kernels("7")[0])
        c.set_running(new)
        for kernel in (old, new):
            c.install_kernel(kernel)
        register(c)
        product.install(c, ["kt-works"], load=["kt-works"])
        for name in INITS:
            c.run(["dkms", "install", f"kt-{name}/1.0", "-k", new.release], check=True, timeout=300)
        c.run(["systemctl", "enable", "knetstatd"], check=True)
        # What hangs in the kernel is waited for when the machine goes down.
        c.write("/etc/systemd/system.conf.d/rig.conf", "[Manager]\nDefaultTimeoutStopSec=20\n")
        return upgrade.Machine(disk.make(c, tmp_path_factory.mktemp("machine")), (old, new))


def guard(*names: str, **settings: object) -> str:
    """The configuration of the next moments, written in the machine."""
    packages = [f"kt-{name}" for name in names]
    values = {"modules": packages, "load": packages, "settle_seconds": 1, **settings}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    return f"cat >/etc/knetstatd/knetstatd.toml <<'E'\n{text}E\nsystemctl reload-or-restart knetstatd\n"


def started(machine: upgrade.Machine, number: int, script: str, arguments: str = "") -> disk.Said:
    # A machine that the kernel has brought down, or with something that hangs in it, goes down with its file system mounted.
    assert subprocess.run(["e2fsck", "-p", machine.image], capture_output=True, check=False).returncode in (0, 1)
    kernel = disk.kernel(machine.image, machine.kernels[number].release)
    said = disk.boot(machine.image, kernel, f"{FUNCTIONS}\n{script}\n", timeout=1500, arguments=arguments)
    print(said.output, flush=True)
    return said


def boot(machine: upgrade.Machine, number: int, script: str, arguments: str = "") -> str:
    said = started(machine, number, f"{script}\nwhole", arguments)
    assert said.code == 0, said.console[-4000:]
    found = dict(re.findall(r"^([a-z]+): ?(.*)$", said.output, re.MULTILINE))
    must = {"daemon": "active", "audit": "0", "apt": "0", "source": "whole", "left": "", "json": "",
            "registered": "".join(f"kt-{name}/1.0 " for name in sorted(INITS)),
            "kernel": machine.kernels[number].release}  # fmt: skip
    assert {key: found.get(key) for key in must} == must
    return said.output


def verdicts(text: str, what: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The status of `check`, and each module's verdict, where the script said `verdict`; the last time."""
    code, line = re.findall(rf"^check {re.escape(what)}: (\d+)\n(.*)$", text, re.MULTILINE)[-1]
    return int(code), {v["package"]: v for v in json.loads(line)["verdicts"]}


def test_modules_whose_init_fails_or_hangs_or_dies(machine: upgrade.Machine) -> None:
    """Each is red with the kernel's word for it, though every analysis is green; the one that works is not disturbed."""
    words = {"kt-fails": "Input/output error", "kt-hangs": "its init does not return", "kt-oops": "does not load kt_oops"}
    said = "\n".join(f"until_said 'the kernel does not load {name.replace('-', '_')}'" for name in words)
    script = guard(*SURVIVED) + said + "\nuntil_live kt_works\nuntil_check 1 running\nverdict running\n"
    text = boot(machine, 1, script + guard("works"))
    code, found = verdicts(text, "running")
    assert code == 1
    assert found["kt-works"]["state"] == "ready"
    for name, reason in words.items():
        assert not found[name]["ready"], found[name]
        assert reason in found[name]["reason"]
    assert "\nkt_works: live\nkt_fails: \nkt_hangs: coming\n" in text


def test_a_module_that_this_kernel_refuses(machine: upgrade.Machine) -> None:
    """It insists on a signature by a key that it trusts. Not green there; green again without that."""
    text = boot(machine, 1, guard("works") + "until_check 1 running\nverdict running", "module.sig_enforce=1")
    code, found = verdicts(text, "running")
    assert code == 1
    assert not found["kt-works"]["ready"]
    assert re.search(r"sign|key", found["kt-works"]["reason"]), found
    assert "\nkt_works: \n" in text
    text = boot(machine, 1, "until_check 0 running\nuntil_live kt_works\nverdict running")
    assert verdicts(text, "running")[0] == 0
    assert "\nkt_works: live\n" in text


def test_a_module_whose_loading_brings_the_machine_down(machine: upgrade.Machine) -> None:
    """It is not loaded at every boot for ever: after the second time it is red, and left out."""
    begin = guard("works", "panics")
    for _ in range(2):
        said = started(machine, 1, f"{begin}\nsleep 600")
        assert said.code is None
        assert "Kernel panic - not syncing: by kt_panics" in said.console, said.console[-4000:]
    text = boot(machine, 1, f"{begin}\nuntil_live kt_works\nuntil_check 1 running\nverdict running\n{guard('works')}")
    code, found = verdicts(text, "running")
    assert code == 1
    assert not found["kt-panics"]["ready"]
    assert found["kt-works"]["state"] == "ready"
    assert "interrupted" in found["kt-panics"]["reason"], found


def test_a_full_disk_does_not_keep_a_module_out(machine: upgrade.Machine) -> None:
    """Nothing can be kept, and loading needs nothing to be kept; nor is a builder started again and again."""
    fill = "until_check 0 running; systemctl stop knetstatd; dd if=/dev/zero of=/fill bs=1M; sync"
    assert "No space left on device" in started(machine, 1, guard("works") + fill).output
    builders = "journalctl -q -b -o cat | grep -c 'knetstatd-load@.*\\.service: '"
    text = boot(machine, 1, f'until_live kt_works; verdict running; sleep 20; df /\necho "builders: $({builders})"; rm /fill')
    assert "\nkt_works: live\n" in text
    assert " 100% " in text
    assert int(re.findall(r"^builders: (\d+)$", text, re.MULTILINE)[0]) < 9


def test_an_older_kernel_and_too_little_memory(machine: upgrade.Machine) -> None:
    """Booted into a kernel that has no module: first nothing can be compiled, memory being short, and that is said; then it
    is built and loaded, and the other kernel keeps its own."""
    unit = "/etc/systemd/system/knetstatd-compile@.service.d/little.conf"
    lines = "[Service]\\nMemoryHigh=infinity\\nMemoryMax=12M\\nMemorySwapMax=0\\n"
    old, new = machine.kernels
    script = (
        "systemctl stop knetstatd; while pgrep -f 'knetstatctl build' >/dev/null; do sleep 1; done\n"
        "rm -rf /lib/modules/$(uname -r)/updates; depmod; rmmod kt_works 2>/dev/null\n"
        f"mkdir -p {unit.rpartition('/')[0]}; printf '{lines}' >{unit}; systemctl daemon-reload\n"
        f"{guard('works', retry_first_seconds=2, retry_longest_seconds=4)}until_said 'ran out of memory'; verdict running\n"
        f"echo; echo again\nrm {unit}; systemctl daemon-reload\n{guard('works')}"
        "knetstatctl build running; until_check 0 running; until_live kt_works; verdict running\n"
        f"verdict {new.release}; modinfo -k {old.release} -F vermagic kt_works; modinfo -k {new.release} -F vermagic kt_works\n"
    )
    text = boot(machine, 0, script)
    before, _, after = text.partition("\nagain\n")
    code, found = verdicts(before, "running")
    assert code in (1, 75)
    assert not found["kt-works"]["ready"]
    assert "memory" in f"{found['kt-works']['reason']} {found['kt-works'].get('last_failure')}"
    assert verdicts(after, "running")[0] == 0
    assert verdicts(after, new.release)[0] == 0
    assert f"\n{old.release} SMP" in after
    assert f"\n{new.release} SMP" in after
    assert "\nkt_works: live\n" in after


def test_headers_that_are_wrong_about_the_running_kernel(machine: upgrade.Machine) -> None:
    """Its image is the witness: the headers are named, and nothing is built with them in vain. With good ones it is green."""
    script = (
        f"{guard('works')}until_check 0 running; until_live kt_works\n"
        "table=/usr/src/linux-headers-$(uname -r)/Module.symvers; cp $table /root\n"
        "sed -i 's/^0x[0-9a-f]*\\t_printk\\t/0x12345678\\t_printk\\t/' $table; grep -c ^0x12345678 $table\n"
        "systemctl restart knetstatd; until_said 'of another build'; until_check 1 running; verdict running\n"
        "echo built:; said 'for ' | grep -e 'compiled and verified'\n"
        "echo; echo again\ncp /root/Module.symvers $table; systemctl reload knetstatd\n"
        "until_live kt_works; until_check 0 running; verdict running\n"
    )
    before, _, after = boot(machine, 0, script).partition("\nagain\n")
    code, found = verdicts(before, "running")
    assert code == 1
    assert found["kt-works"]["state"] == "blocked"
    assert "The headers are of another build of this kernel" in found["kt-works"]["reason"]
    assert "_printk" in found["kt-works"]["reason"]
    assert before.rpartition("\nbuilt:\n")[2].count("compiled and verified") == 1, "when it was not there yet"
    assert verdicts(after, "running")[0] == 0
    assert "\nkt_works: live\n" in after


def test_the_clock_goes_forward_and_back(machine: upgrade.Machine) -> None:
    """Ten years on, twenty back, to before the source; each time with a build and a loading after it, which begin at once."""
    script = guard("works") + "until_check 0 running; release=$(uname -r)\n"
    for number, by in enumerate(("+10 years", "-20 years")):
        script += (
            f"date -s '{by}'; rm -r /lib/modules/$release/updates; depmod; rmmod kt_works\n"
            "until_check 75 running; until_check 0 running; until_live kt_works; until_ready running\n"
            f'verdict running; echo "build {number}: $(date +%Y)"; modinfo -F vermagic kt_works\n'
        )
    failures = " ".join(f"MESSAGE_ID={event.message_id}" for event in (Event.FAILED, Event.GAVE_UP))
    script += f'echo "failures: $(journalctl -q --no-pager -b -o cat {failures} | wc -l)"\n'
    text = boot(machine, 0, script)
    for said in re.split(r"^build \d: ", text, flags=re.MULTILINE)[:2]:
        code, found = verdicts(said, "running")
        assert (code, found["kt-works"]["state"]) == (0, "ready")
        assert re.search(r'"name": "origin",\s+"result": "pass"', said)
    assert "\nfailures: 0\n" in text
    assert text.count(f"\n{machine.kernels[0].release} SMP") == 2
    years = [int(year) for year in re.findall(r"^build \d: (\d+)$", text, re.MULTILINE)]
    assert years[0] - years[1] in (19, 20, 21)
    assert "\nkt_works: live\n" in text


BOMB = """\
mkdir /usr/src/kt-bomb-1.0; cd /usr/src/kt-bomb-1.0
printf 'all:\\n\\tbomb() { bomb | bomb & }; bomb; sleep 1000\\n' >Makefile
sed 's/kt.works/kt-bomb/; /^MAKE/ s/=.*/="make all"/' /usr/src/kt-works-1.0/dkms.conf >dkms.conf
dkms add kt-bomb/1.0; cd /
"""


def test_a_build_that_starts_processes_without_end(machine: upgrade.Machine) -> None:
    """As many as its unit may have, until its time is over; all else goes on. No container: its limit may be its host's."""
    script = (
        f"{BOMB}{guard('works', 'bomb', compile_timeout_seconds=60)}"
        "until_live kt_works; until_said 'did not end within 60 s'\n"
        "for i in $(seq 60); do pgrep -f 'sleep 1000' >/dev/null || break; sleep 1; done\n"
        "echo \"left over: $(pgrep -f 'sleep 1000' | wc -l)\"; verdict running\n"
        "dkms remove kt-bomb/1.0 --all; rm -r /usr/src/kt-bomb-1.0\n"
    )
    text = boot(machine, 1, script)
    _, found = verdicts(text, "running")
    assert (found["kt-works"]["state"], found["kt-bomb"]["state"]) == ("ready", "failed")
    assert "did not end within 60 s" in found["kt-bomb"]["reason"]
    assert "\nleft over: 0\n" in text
    assert "\nkt_works: live\n" in text
