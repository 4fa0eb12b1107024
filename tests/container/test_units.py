# SPDX-License-Identifier: GPL-2.0-or-later
"""The units as systemd runs them: what each can and cannot do, and what restarts, reloads, hangs and shutdowns do to them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.system import units

from . import product

if TYPE_CHECKING:
    from .rig import Container, Kernel

pytestmark = pytest.mark.container

PROBE = (Path(__file__).parent / "probe.py").read_text()
TAKEOVER = (Path(__file__).parent / "takeover.py").read_text()
# What is true in each unit; everything else that the probe tries is not. In a container no unit has capabilities to load with.
MAY: dict[str, set[str]] = {
    "knetstatd.service": {"guard", "run", "uevents", "door"},
    "build": {"root", "state", "builders", "this kernel", "dkms", "key", "systemd", "lock"},
    "compile": {"lock"},
    "load": {"root", "state", "builders", "lock"},
}


@pytest.mark.parametrize("kind", MAY)
def test_what_each_unit_can_and_cannot_do(machine: Container, kind: str) -> None:
    """A score can hide a hole; a program run in the unit's place cannot."""
    c = machine
    kernel = c.kernels()[0].release
    product.install(c, ["kt-good"])
    c.path("/usr/lib/modules/1.2.3-other").mkdir()
    for name in ("mok.key", "mok.pub"):
        c.write(f"/var/lib/dkms/{name}", "a key\n", 0o600)
    c.path("/var/lib/knetstatd").mkdir(exist_ok=True)
    c.run(["systemctl", "start", "knetstatd-step.socket"], check=True)
    c.write("/usr/local/lib/probe.py", PROBE)
    argument = [kernel, "kt-good"] if kind == "compile" else [kernel]
    unit = kind if "." in kind else units.instance(kind, *argument)
    template = kind if "." in kind else f"knetstatd-{kind}@.service"
    run = f"ExecStart=\nExecStart=/usr/bin/python3 -I /usr/local/lib/probe.py {kernel} 1.2.3-other\n"
    c.write(f"/etc/systemd/system/{template}.d/probe.conf", f"[Service]\nType=oneshot\n{run}")
    c.run(["systemctl", "daemon-reload"], check=True)
    c.run(["systemctl", "start", "--", unit], check=True)
    [said] = [e["MESSAGE"] for e in c.journal(unit) if e["MESSAGE"].startswith("PROBE ")]
    found = json.loads(said.removeprefix("PROBE "))
    assert {name for name, true in found.items() if true} == MAY[kind]


def test_whatever_code_runs_in_the_daemon_root_does_our_steps_and_nothing_else(machine: Container) -> None:
    """Before the daemon had a user of its own it was root without capabilities, and D-Bus obeys root."""
    c = machine
    product.install(c, ["kt-good"])
    c.write("/etc/systemd/system/foreign.service", "[Service]\nType=oneshot\nExecStart=/bin/touch /etc/proof-0\n")
    c.write("/usr/local/lib/takeover.py", TAKEOVER)
    run = "[Service]\nType=oneshot\nExecStart=\nExecStart=/usr/bin/python3 -I /usr/local/lib/takeover.py\n"
    c.write("/etc/systemd/system/knetstatd.service.d/probe.conf", run)
    c.run(["systemctl", "daemon-reload"], check=True)
    c.run(["systemctl", "start", "knetstatd.service"], check=True, timeout=300)
    said = [e["MESSAGE"] for e in c.journal("knetstatd.service")]
    tried = [line for line in said if line.startswith(("TRIED", "DOOR"))]
    assert len(tried) == 13, said
    assert not [line for line in tried if line.split()[2] == "0" and line.startswith("TRIED")], tried
    assert not [line for line in said if line.startswith("MADE")], "who reads the daemon's files meets files"
    assert c.run(["sh", "-c", "ls /etc/proof-*"]).stdout == ""
    assert c.output("systemctl", "show", "-P", "ActiveEnterTimestampMonotonic", "foreign.service") == "0"
    assert "PROOF" not in c.output("systemctl", "show-environment")
    assert c.output("systemctl", "is-active", "systemd-journald.service") == "active"
    assert not said[-1].endswith(" 0"), "the daemon is not root"
    forged = [e for e in c.journal() if e.get("MESSAGE") == "proof"]
    assert {e["_SYSTEMD_UNIT"] for e in forged} <= {"knetstatd.service"}
    assert "0" not in {e["_UID"] for e in forged}
    assert "proof" not in c.run(["knetstatctl", "history"]).stdout


def test_the_daemon_sees_the_machines_sockets(machine: Container) -> None:
    """By way of PID 1: in its own network namespace there are none, and a probe there would ask nothing."""
    c = machine
    product.start(c, ["kt-good"])
    listener = "import socket, time; s = socket.create_server(('0.0.0.0', 7009)); time.sleep(600)"
    running = c.start(["python3", "-c", listener])
    product.wait("it listens", lambda: f":{7009:04X} " in c.output("cat", "/proc/net/tcp"), 20)
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "cat"]
    inside = ["nsenter", f"--target={show(c, 'MainPID')}", "--mount", "--net", *bare]
    assert f":{7009:04X} " in c.output(*inside, "/proc/1/net/tcp")
    assert len(c.output(*inside, "/proc/net/tcp").splitlines()) == 1
    running.kill()


def test_a_build_can_run_what_it_makes(machine: Container) -> None:
    """Also where systemd's own directory for it would not let it: of systemd 257 its private directories are noexec."""
    c = machine
    product.install(c, ["kt-good"])
    c.run(["mkdir", "-p", "/var/cache/private"], check=True)
    c.run(["mount", "-t", "tmpfs", "-o", "noexec,mode=700", "tmpfs", "/var/cache/private"], check=True)
    c.write("/usr/local/lib/make-and-run", MAKE_AND_RUN, 0o755)
    run = "[Service]\nExecStart=\nExecStart=/usr/local/lib/make-and-run\n"
    c.write("/etc/systemd/system/knetstatd-compile@.service.d/probe.conf", run)
    c.run(["systemctl", "daemon-reload"], check=True)
    unit = units.instance("compile", c.kernels()[0].release)
    c.run(["systemctl", "start", "--", unit], check=True)
    assert "it ran" in [e["MESSAGE"] for e in c.journal(unit)]


MAKE_AND_RUN = """\
#!/bin/sh
printf '#!/bin/sh\\necho it ran\\n' >$CACHE_DIRECTORY/made
chmod 755 $CACHE_DIRECTORY/made
PATH=$CACHE_DIRECTORY:$PATH made
"""


DELAY = "/usr/share/kt-slow/delay"  # see tests/fixtures/slow/Makefile


def slow(c: Container, delay: int, **settings: object) -> Kernel:
    """The product at work on the second kernel, which is the next; each compilation takes `delay` seconds."""
    new = c.kernels()[1]
    c.add_fixture("slow", autoinstall=False, files={"delay": "0\n"})
    product.start(c, ["kt-slow"], **settings)
    product.wait_ready(c)
    c.write(DELAY, f"{delay}\n")
    c.install_kernel(new)
    product.wait("it has begun", lambda: "stage-started" in product.kinds(c, kernel=new.release))
    product.wait("the compilation runs", lambda: bool(running(c, "knetstatd-compile@*")))
    return new


def running(c: Container, unit: str) -> str:
    """A line for each unit of that name in which a program runs."""
    return c.output("systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating", unit)


def test_a_build_survives_the_daemons_restart_and_its_death(machine: Container) -> None:
    c = machine
    new = slow(c, 8)
    c.run(["systemctl", "restart", "knetstatd"], check=True)
    assert product.check(c, new.release) == 75
    c.run(["systemctl", "kill", "--signal=KILL", "knetstatd"], check=True)
    c.run(["systemctl", "start", "knetstatd"], check=True)
    product.wait_ready(c, new.release)
    product.right_module(c, new, "kt_slow")
    assert product.kinds(c, kernel=new.release).count("stage-started") == 1


def test_a_shutdown_waits_for_a_build_for_the_next_kernel(machine: Container) -> None:
    c = machine
    new = slow(c, 8)
    c.power_off(timeout=120)
    built = c.module_file(new, "kt_slow")
    assert built is not None, "published before the machine went down"
    c.boot()
    c.start_product()
    product.wait_ready(c, new.release)
    product.right_module(c, new, "kt_slow")
    assert product.kinds(c, kernel=new.release).count("stage-started") == 1, "nothing was built a second time"


def test_a_shutdown_before_the_compilation_begins_is_no_failure(machine: Container) -> None:
    """Its start waits for another unit, as it may for a mount, and is cancelled."""
    c = machine
    c.write("/etc/systemd/system/hold.service", "[Service]\nType=oneshot\nExecStart=sleep 30\n")
    drop_in = "/etc/systemd/system/knetstatd-compile@.service.d/hold.conf"
    new = c.kernels()[1]
    c.add_fixture("slow", autoinstall=False, files={"delay": "0\n"})
    product.start(c, ["kt-slow"])
    product.wait_ready(c)
    c.write(drop_in, "[Unit]\nRequires=hold.service\nAfter=hold.service\n")
    c.run(["systemctl", "daemon-reload"], check=True)
    c.install_kernel(new)
    product.wait("it has begun", lambda: "stage-started" in product.kinds(c, kernel=new.release))
    product.wait("its start waits", lambda: bool(running(c, "hold.service")))
    c.power_off(timeout=60)
    assert c.module_file(new, "kt_slow") is None, "it was not compiled"
    assert not c.path(f"/var/lib/knetstatd/kernels/{new.release}/kt-slow.json").exists(), "no attempt is kept"
    c.path(drop_in).unlink()
    c.boot()
    c.start_product()
    product.wait_ready(c, new.release)
    assert "failed" not in product.kinds(c, kernel=new.release)


def test_a_shutdown_does_not_wait_for_ever(bookworm: Container) -> None:
    c = bookworm
    for kind in ("build", "compile"):
        c.write(f"/etc/systemd/system/knetstatd-{kind}@.service.d/cap.conf", "[Service]\nTimeoutStopSec=4s\n")
    c.run(["systemctl", "daemon-reload"], check=True)
    new = slow(c, 600)
    begin = time.monotonic()
    c.power_off(timeout=60)
    assert 3 < time.monotonic() - begin < 50
    assert c.module_file(new, "kt_slow") is None
    c.write(DELAY, "0\n")
    c.boot()
    c.start_product()
    product.wait_ready(c, new.release)


def inhibitors(c: Container) -> str:
    return c.output("systemd-inhibit", "--list", "--no-pager", "--no-legend")


def test_logind_is_asked_to_delay_a_shutdown_while_it_builds_for_the_next_kernel(machine: Container) -> None:
    c = machine
    new = slow(c, 6)
    held = product.wait("it is held", lambda: [line for line in inhibitors(c).splitlines() if line.startswith("knetstatd ")])
    assert len(held) == 1
    assert " shutdown " in held[0]
    assert new.release in held[0]
    assert held[0].rstrip().endswith("delay")
    product.wait_ready(c, new.release)
    product.wait("it is let go", lambda: "knetstatd " not in inhibitors(c), 10)


def test_a_block_is_withdrawn_when_its_time_is_over(trixie: Container) -> None:
    """There systemd refuses every shutdown while a block is held, root's too; a build that hangs must not keep a machine up."""
    c = trixie
    new = slow(c, 40, inhibit="block", inhibit_longest_seconds=20)  # a busy machine needs seconds from the request to the build
    product.wait("it is held", lambda: "knetstatd " in inhibitors(c))
    assert c.run(["systemctl", "poweroff"]).returncode != 0
    product.wait("it is withdrawn", lambda: "knetstatd " not in inhibitors(c), 40)
    assert product.check(c, new.release) == 75, "the build goes on"
    product.wait_ready(c, new.release)
    assert "degraded" not in product.kinds(c)


def test_the_daemon_sleeps_while_a_build_goes_on(machine: Container) -> None:
    """Also while one goes on that it did not ask for itself, as after its restart; and it hears the end of either."""
    c = machine
    new = slow(c, 600)
    for asked in ("by itself", "by the daemon before"):
        c.write(f"/usr/lib/modules/{new.release}/touched", asked)  # a look in the midst of the build
        product.wait(f"it sleeps for 8 s, asked {asked}", lambda: is_asleep(c), 120)
        assert product.check(c, new.release) == 75, "the build goes on"
        c.run(["systemctl", "restart", "knetstatd"], check=True)
    c.write(DELAY, "0\n")
    product.wait_ready(c, new.release, 120)
    product.wait("the daemon says it, a moment later", lambda: "ready for" in show(c, "StatusText"), 10)


def is_asleep(c: Container) -> bool:
    """Whether it does nothing for eight seconds. A busy machine looks late: so this is asked again."""
    before = spent(c)
    time.sleep(8)
    ticks, turns = (now - then for now, then in zip(spent(c), before, strict=True))
    return ticks < 10 and turns < 4


def spent(c: Container) -> tuple[int, int]:
    """The CPU time of the daemon and its children, in clock ticks, and how often it went to sleep."""
    pid = show(c, "MainPID")
    fields = c.output("cat", f"/proc/{pid}/stat").rpartition(")")[2].split()
    switches = c.output("grep", "^voluntary", f"/proc/{pid}/status").split()[1]
    return sum(map(int, fields[11:15])), int(switches)


def test_a_logind_that_does_not_answer_holds_nothing_up(trixie: Container) -> None:
    """Any user can keep D-Bus busy."""
    c = trixie
    c.write("/usr/local/bin/systemd-inhibit", "#!/bin/sh\nsleep 600\n", 0o755)
    new = slow(c, 1)
    product.wait_ready(c, new.release)
    assert "degraded" not in product.kinds(c)


def show(c: Container, name: str) -> str:
    return c.output("systemctl", "show", "-P", name, "knetstatd.service")


def test_a_hung_loop_is_killed_and_comes_back(machine: Container) -> None:
    c = machine
    limits = "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\nRestartSec=1s\n"
    c.write("/etc/systemd/system/knetstatd.service.d/watchdog.conf", limits)
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    time.sleep(5)
    assert show(c, "NRestarts") == "0", "a healthy loop feeds it"
    kernel = c.kernels()[0].release
    c.run(["systemctl", "kill", "--signal=STOP", "knetstatd"], check=True)
    c.run(["dkms", "unbuild", "kt-good/1.0", "-k", kernel], check=True)
    product.wait("it is started again", lambda: show(c, "NRestarts") != "0" and show(c, "ActiveState") == "active")
    product.wait_ready(c)
    product.wait("the daemon says it, a moment later", lambda: "ready for" in show(c, "StatusText"))


def test_a_faulty_configuration_at_the_start(machine: Container) -> None:
    c = machine
    product.install(c, ["kt-good"])
    c.write("/etc/knetstatd/knetstatd.toml", 'kernels = "newest"\n')
    assert c.run(["systemctl", "start", "knetstatd"]).returncode != 0
    time.sleep(2)
    assert show(c, "ExecMainStatus") == "78"
    assert show(c, "ActiveState") == "failed"
    assert show(c, "NRestarts") == "0"
    [said] = [e for e in product.events(c) if e["KNETSTATD_EVENT"] == "config-rejected"]
    assert said["PRIORITY"] == "3"
    for word in ("/etc/knetstatd/knetstatd.toml:1", "kernels", "'newest'", '"next+running", "all", or a number'):
        assert word in said["KNETSTATD_EVIDENCE"]


def test_a_faulty_configuration_at_a_reload(machine: Container) -> None:
    c = machine
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    c.write("/etc/knetstatd/knetstatd.toml.d/50.toml", "settle_second = 1\n")
    assert c.run(["systemctl", "reload", "knetstatd"]).returncode != 0
    product.wait("it is said", lambda: "config-rejected" in product.kinds(c), 10)
    assert show(c, "ActiveState") == "active"
    assert product.kinds(c).count("started") == 1
    [said] = [e for e in product.events(c) if e["KNETSTATD_EVENT"] == "config-rejected"]
    fault = "/etc/knetstatd/knetstatd.toml.d/50.toml:1: 'settle_second' is not a setting; did you mean settle_seconds?"
    assert fault in said["MESSAGE"]
    old = "an old configuration is in force, the new one is faulty"
    product.wait("the status line says it", lambda: show(c, "StatusText").startswith(f"{old}: {fault}"), 10)
    assert f"{old}: {fault}" in c.output("cat", "/run/knetstatd/motd")
    c.path("/etc/knetstatd/knetstatd.toml.d/50.toml").unlink()
    c.run(["systemctl", "reload", "knetstatd"], check=True)
    product.wait("it is taken", lambda: "config-loaded" in product.kinds(c), 10)
    product.wait("nothing is said any more", lambda: old not in show(c, "StatusText"), 10)
    assert c.run(["test", "-e", "/run/knetstatd/motd"]).returncode == 1


def test_a_configuration_that_not_everybody_may_read(machine: Container) -> None:
    """root's commands could read it, the daemon could not: both refuse it in the same words."""
    c = machine
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    for mode in (0o000, 0o600, 0o640):
        c.path("/etc/knetstatd/knetstatd.toml").chmod(mode)
        assert c.run(["systemctl", "reload", "knetstatd"]).returncode != 0
        done = c.run(["knetstatctl", "config"])
        assert (done.returncode, "run chmod a+r /etc/knetstatd/knetstatd.toml" in done.stderr) == (78, True)
        said = [e["MESSAGE"] for e in product.events(c) if e["KNETSTATD_EVENT"] == "config-rejected"]
        assert "/etc/knetstatd/knetstatd.toml: cannot be read by everybody" in said[-1]


FILL = """\
#!/bin/sh
# What a compilation may leave behind, and fill: everywhere it tries.
for d in /dev/shm /run/lock /tmp /var/tmp "$CACHE_DIRECTORY" /var/lib /var/log /run; do echo x >$d/kt-mark 2>/dev/null; done
mkdir -p $CACHE_DIRECTORY/left/closed && touch $CACHE_DIRECTORY/left/closed/file && chmod 555 $CACHE_DIRECTORY/left/closed
mkdir $CACHE_DIRECTORY/result && touch $CACHE_DIRECTORY/result/file && chmod 0 $CACHE_DIRECTORY/result
fallocate -l 100M $CACHE_DIRECTORY/big && echo 'fallocate is possible'
dd if=/dev/zero of=/dev/shm/big bs=1M count=500 2>&1 | grep -q 'No space' && echo 'shm is full'
chmod 500 $CACHE_DIRECTORY
"""


def test_a_compilation_is_confined_in_space_and_place(machine: Container) -> None:
    """And what a hostile one leaves is in nobody's way."""
    c = machine
    c.add_fixture("good", autoinstall=False)
    product.install(c, ["kt-good"])
    kernel = c.kernels()[0].release
    unit = units.instance("compile", kernel)
    c.write("/usr/local/lib/fill", FILL, 0o755)
    override = "/etc/systemd/system/knetstatd-compile@.service.d/probe.conf"
    c.write(override, "[Service]\nExecStart=\nExecStart=/usr/local/lib/fill\n")
    c.run(["systemctl", "daemon-reload"], check=True)
    c.run(["systemctl", "start", "--", unit], check=True)
    said = [e["MESSAGE"] for e in c.journal(unit)]
    assert "shm is full" in said
    assert "fallocate is possible" not in said
    everywhere = ["find", "/run", "/dev/shm", "/tmp", "/var", "-name", "kt-mark"]
    assert c.run(everywhere).stdout.split() == []
    assert c.output("ls", "-A", "/var/cache/private/knetstatd-compile").split() == ["result"]
    c.path(override).unlink()
    c.run(["systemctl", "daemon-reload"], check=True)
    c.run(["knetstatctl", "build", kernel], check=True, timeout=300)
    assert c.run(everywhere).stdout.split() == []
    left = c.output("ls", "-A", "/var/cache/private/knetstatd-compile").split()
    assert left == ["result"]


def test_a_compilation_that_fills_the_disk_is_ended_before_it_harms_others(machine: Container) -> None:
    c = machine
    fill = "for i in 1 2 3 4 5 6 7 8 9; do dd if=/dev/zero of=$(M)/fill$$i bs=1M count=200 2>/dev/null; done"
    c.add_fixture("good", autoinstall=False)
    makefile = c.path("/usr/src/kt-good-1.0/Makefile")
    makefile.write_text(f"$(shell {fill})\n{makefile.read_text()}")
    product.install(c, ["kt-good"])
    c.run(["mkdir", "-p", "/var/cache/private"], check=True)
    c.run(["mount", "-t", "tmpfs", "-o", "size=1G,mode=700", "tmpfs", "/var/cache/private"], check=True)
    watching = c.start(["sh", "-c", "while sleep 0.02; do stat -f -c %a /var/cache/private; done"])
    kernel = c.kernels()[0].release
    assert c.run(["knetstatctl", "build", kernel], timeout=300).returncode == 1
    free = min(map(int, watching.output().split())) * 4096
    watching.kill()
    assert free > 64 << 20, "others had room all the time"
    attempt = json.loads(c.path(f"/var/lib/knetstatd/kernels/{kernel}/kt-good.json").read_text())
    assert (attempt["kind"], "must stay free for others" in attempt["reason"]) == ("disk", True)
    assert int(c.output("du", "-sm", "/var/cache/private").split()[0]) < 5, "and it is taken back"
    assert c.run(["systemctl", "--failed", "--quiet"]).stdout == "", "told elsewhere"


def test_what_a_killed_compilation_took_is_taken_back(machine: Container) -> None:
    """Whoever killed it: its builder is gone, too, and no other one comes."""
    c = machine
    c.add_fixture("good", autoinstall=False)
    makefile = c.path("/usr/src/kt-good-1.0/Makefile")
    fill = "mkdir $(M)/closed; dd if=/dev/zero of=$(M)/closed/fill bs=1M count=200; chmod 555 $(M)/closed; sleep 600"
    makefile.write_text(f"$(shell {fill})\n{makefile.read_text()}")
    product.install(c, ["kt-good"])
    kernel = c.kernels()[0].release
    unit = units.instance("compile", kernel)
    building = c.start(["knetstatctl", "build", kernel])
    taken = ["du", "-sm", "/var/cache/private/knetstatd-compile"]
    product.wait("it has taken room", lambda: int((c.run(taken).stdout or "0").split()[0]) >= 200)
    building.kill()
    assert c.run(["systemctl", "is-active", "--", unit]).stdout.strip() == "activating", "a builder's death ends no compilation"
    c.run(["systemctl", "kill", "--signal=KILL", "--", unit], check=True)
    product.wait("it has ended", lambda: c.run(["systemctl", "is-failed", "--", unit]).returncode == 0, 30)
    assert int(c.output(*taken).split()[0]) < 5


def test_a_source_with_directories_that_cannot_be_written(machine: Container) -> None:
    c = machine
    c.add_fixture("good", autoinstall=False)
    source = c.path("/usr/src/kt-good-1.0")
    (source / "docs/deep").mkdir(parents=True)
    (source / "docs/deep/readme").write_text("x\n")
    (source / "docs/deep").chmod(0o555)
    (source / "docs").chmod(0o555)
    product.install(c, ["kt-good"])
    kernel = c.kernels()[0]
    for _ in range(2):
        c.run(["knetstatctl", "build", kernel.release], check=True, timeout=300)
        product.right_module(c, kernel, "kt_good")
        c.run(["dkms", "remove", "kt-good/1.0", "--all"], check=True)
        c.run(["dkms", "add", "kt-good/1.0"], check=True)
    assert c.output("ls", "-A", "/var/cache/private/knetstatd-compile").split() == ["result"]


def test_a_build_by_hand_makes_files_as_dkms_does(bookworm: Container) -> None:
    c = bookworm
    c.add_fixture("good", autoinstall=False)
    product.install(c, ["kt-good"])
    kernel = c.kernels()[0]
    c.run(["sh", "-c", f"umask 077; exec knetstatctl build {kernel.release}"], check=True, timeout=300)
    built = c.module_file(kernel, "kt_good")
    assert built is not None
    assert built.stat().st_mode & 0o777 == 0o644
    places = [f"/lib/modules/{kernel.release}/", "/var/lib/dkms/", "/run/knetstatd-build/"]
    closed = c.output("find", *places, "!", "-perm", "-004", "-print")
    assert set(closed.split()) <= {"/run/knetstatd-build/builder.lock", "/var/lib/dkms/mok.key"}
    assert c.run(["setpriv", "--reuid=4711", "--clear-groups", "knetstatctl", "check"]).returncode == 0


def test_an_initrd_that_only_root_may_read_is_read_by_a_step(machine: Container) -> None:
    c = machine
    c.add_fixture("good", autoinstall=False)
    initrd = f"/boot/initrd.img-{c.kernels()[0].release}"
    c.run(["chmod", "600", initrd], check=True)
    product.start(c, ["kt-good"])
    product.wait("the daemon knows", lambda: "ready for" in show(c, "StatusText"))
    c.run(["sh", "-c", f"cp {initrd} {initrd}.new && chmod 600 {initrd}.new && mv {initrd}.new {initrd}"], check=True)
    time.sleep(2 * product.SETTLE + 1)
    product.wait("and knows of another one", lambda: "ready for" in show(c, "StatusText"))
    shown = json.loads(c.output("cat", "/run/knetstatd/status.json"))["verdicts"][0]["checks"]
    assert [check["result"] for check in shown if check["name"] == "initrd"] == ["pass"]
    assert product.kinds(c).count("stage-started") == 1


STUB = "search.fs_uuid {} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
ONE, TWO = (f"{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}" for digit in "12")


def test_an_esp_that_only_root_may_see_is_seen_by_a_step(bookworm: Container) -> None:
    """Debian mounts it so. GRUB's grub.cfg in it leads to this system's menu, or to another's.

    In trixie's container a unit sees /sys/firmware of a host that may know no EFI, and then no ESP counts.
    """
    c = bookworm
    kernel = c.kernels()[0].release
    c.add_fixture("good", autoinstall=False)
    c.write("/etc/fstab", f"UUID={ONE} / ext4 errors=remount-ro 0 1\n")
    c.write(
        "/boot/grub/grub.cfg",
        f"menuentry 'Debian' {{\n\tlinux /boot/vmlinuz-{kernel} root=UUID={ONE} ro\n\tinitrd /boot/initrd.img-{kernel}\n}}\n",
    )
    c.write("/boot/efi/EFI/debian/grub.cfg", STUB.format(ONE))
    c.run(["chmod", "700", "/boot/efi"], check=True)
    product.start(c, ["kt-good"])

    def status() -> dict[str, str]:
        document: dict[str, str] = json.loads(c.output("cat", "/run/knetstatd/status.json"))
        return document

    product.wait("the daemon knows", lambda: "ready for" in show(c, "StatusText"))
    assert status()["next"] == kernel
    c.write("/boot/efi/EFI/debian/grub.cfg", STUB.format(TWO))
    c.run(["touch", "/boot/grub/grub.cfg"], check=True)  # which everybody sees, as update-grub's is
    product.wait("and knows of another one", lambda: not status()["next"], 30)
    assert "another menu" in status()["next_why"]
    assert "another menu" in c.output("cat", "/run/knetstatd/motd")
