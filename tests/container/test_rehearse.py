# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon rehearses the next kernel by itself, in its sandbox; what the kernel says is the verdict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from . import product, qemu, rig
from .kmods import FIXTURES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rig import Container

pytestmark = pytest.mark.container

# The machine is shared, and there is no KVM.
PATIENCE = 300.0
GOOD = (FIXTURES / "good/kt_good.c").read_text()
CACHE = "/var/cache/private/knetstatd-rehearse"


def status(c: Container) -> dict[str, Any]:
    """The daemon's own verdict."""
    [found] = json.loads(c.output("cat", "/run/knetstatd/status.json"))["verdicts"]
    return dict(found)


def settled(c: Container, proof: str, state: str) -> dict[str, Any]:
    """Waits for a verdict of the daemon."""

    def there() -> dict[str, Any] | None:
        found = status(c)
        return found if (found["proof"], found["state"]) == (proof, state) else None

    found: dict[str, Any] = product.wait(f"{proof}, {state}", there, PATIENCE)
    return found


def rehearsals(c: Container) -> list[str]:
    return [kind for kind in product.kinds(c, "kt-good") if "rehears" in kind or kind in ("ready", "disagreement")]


@pytest.fixture
def c(suite: str) -> Iterator[Container]:
    with rig.container(suite) as made:
        qemu.install(made)
        yield made


def test_the_daemon_asks_the_kernel_once(c: Container) -> None:
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"], retry_first_seconds=1)
    verdict = settled(c, "rehearsed", "ready")
    assert verdict["ready"] is True
    [check] = [check for check in verdict["checks"] if check["name"] == "rehearsal"]
    assert check["result"] == "pass"
    assert check["file"].endswith(f"vmlinuz-{c.kernels()[0].release}")
    product.wait("the daemon says ready", lambda: rehearsals(c)[-1:] == ["ready"])
    assert rehearsals(c) == ["rehearsal-started", "rehearsed", "ready"]
    assert product.check(c) == 0
    # Somebody without privileges ran the machine.
    assert c.path(CACHE).stat().st_uid != 0
    assert c.path(f"{CACHE}/answer.json").stat().st_uid == c.path(CACHE).stat().st_uid

    # The same image, touched: no other machine is started for it.
    kept = c.path(f"/var/lib/knetstatd/rehearsals/{c.kernels()[0].release}/kt-good.json")
    before = kept.read_text()
    c.run(["touch", check["file"]], check=True)
    product.wait("the answer is about the touched file", lambda: kept.read_text() != before)
    settled(c, "rehearsed", "ready")
    assert rehearsals(c).count("rehearsal-started") == 1

    # Without the answer the verdict is what the analysis says, until the kernel was asked again.
    c.run(["systemctl", "stop", "knetstatd"], check=True)
    kept.unlink()
    assert product.verdict(c)["proof"] == "analysed"
    assert product.check(c) == 0
    c.start_product()
    settled(c, "rehearsed", "ready")
    assert kept.exists()


def test_a_module_that_brings_the_kernel_down_is_not_ready(bookworm: Container) -> None:
    """The analysis finds nothing: it loads, and then it is all over."""
    c = bookworm
    qemu.install(c)
    source = GOOD.replace("if (!proc_create", "BUG();\n\tif (!proc_create")
    assert source != GOOD
    c.add_fixture("good", autoinstall=False, files={"kt_good.c": source})
    product.start(c, ["kt-good"], load=["kt-good"])
    verdict = settled(c, "rehearsed", "rehearsal-failed")
    assert verdict["ready"] is False
    assert verdict["reason"] == "the kernel gives up while it loads kt_good"
    assert {check["result"] for check in verdict["checks"] if check["name"] != "rehearsal"} <= {"pass", "not-applicable"}
    assert product.check(c) == 1
    [failed] = [e for e in product.events(c, "kt-good") if e["KNETSTATD_EVENT"] == "rehearsal-failed"]
    assert failed["PRIORITY"] == "3"
    assert "kt_good_init" in failed["KNETSTATD_EVIDENCE"]
    assert "disagreement" not in rehearsals(c), "what an init function does is no matter of the analysis"
    text = c.run(["knetstatctl", "explain"]).stdout
    assert "fail            rehearsal: panic, emulation" in text
    assert "[kt_good]" in text

    # By hand the answer is the same, and it is asked for anew.
    done = c.run(["knetstatctl", "rehearse", "--json"], timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    [found] = json.loads(done.stdout)["rehearsals"]
    assert (found["package"], found["outcome"], found["check"]) == ("kt-good", "panic", "panic")
    assert rehearsals(c).count("rehearsal-started") == 2

    assert product.kinds(c, "kt-good").count("stage-started") == 1, "the same source is not built again"

    # Source that was corrected is built, rehearsed, and good.
    c.write("/usr/src/kt-good-1.0/kt_good.c", GOOD)
    done = c.run(["knetstatctl", "build", "next"], timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    settled(c, "rehearsed", "ready")


def test_an_answer_that_is_none_makes_nothing_red(bookworm: Container) -> None:
    """What is called an image is none: the machine does not start, which is said once, and the analysis stands."""
    c = bookworm
    qemu.install(c)
    c.add_fixture("good", autoinstall=False)
    image = c.path(f"/boot/vmlinuz-{c.kernels()[0].release}")
    image.write_text("nothing that starts\n")
    product.start(c, ["kt-good"], retry_first_seconds=1, retry_longest_seconds=2)
    settled(c, "analysed", "ready")
    product.wait("it is tried again", lambda: rehearsals(c).count("rehearsal-started") >= 3)
    assert status(c)["ready"] is True
    assert rehearsals(c).count("not-rehearsed") == 1
    assert "rehearsal-failed" not in rehearsals(c)
    done = c.run(["knetstatctl", "rehearse"])
    assert done.returncode == 3
    assert "the machine did not start" in done.stdout

    # Where one is required, that is not enough.
    c.write("/etc/knetstatd/knetstatd.toml.d/50.toml", 'rehearse = "require"\n')
    c.run(["systemctl", "reload", "knetstatd"], check=True)
    settled(c, "analysed", "not-rehearsed")
    # Between two attempts it says why; when one is due, that the kernel will be asked.
    found = product.wait("it says why", lambda: (v := status(c)) and "the machine did not start" in v["reason"] and v)
    assert (found["state"], found["ready"]) == ("not-rehearsed", False)
    assert product.check(c) in (1, 75)


def test_without_qemu(bookworm: Container) -> None:
    c = bookworm
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    verdict = settled(c, "analysed", "ready")
    [check] = [check for check in verdict["checks"] if check["name"] == "rehearsal"]
    assert (check["result"], check["fix"]) == ("not-applicable", "Run: apt install qemu-system-x86 busybox-static")
    assert "rehearsal: none: qemu-system-x86 and busybox-static are not both installed" in c.output("knetstatctl", "explain")
    done = c.run(["knetstatctl", "rehearse"])
    assert done.returncode == 3
    assert "Run: apt install qemu-system-x86 busybox-static" in done.stdout
    c.write("/etc/knetstatd/knetstatd.toml.d/50.toml", 'rehearse = "require"\n')
    c.run(["systemctl", "reload", "knetstatd"], check=True)
    found = settled(c, "analysed", "not-rehearsed")
    assert (found["ready"], found["fix"]) == (False, "Run: apt install qemu-system-x86 busybox-static")
    assert product.check(c) == 1


def machine_of(c: Container, *argv: str) -> dict[str, str]:
    """Rehearses by hand; who runs the machine and how, as proc(5) has it, field 41 of stat being the policy."""
    process = c.start(["knetstatctl", "rehearse", *argv])

    def there() -> dict[str, str] | None:
        done = c.run(["sh", "-c", 'p=$(pgrep -o -f "[-]no-reboot -sandbox") && cat /proc/$p/status /proc/$p/stat'])
        found = dict(line.partition(":\t")[::2] for line in done.stdout.splitlines())
        if done.returncode or not found.get("Name", "").startswith(("ld-linux", "qemu")):
            return None  # not there yet, or still one of the programs that start it
        return {**found, "policy": done.stdout.splitlines()[-1].rpartition(")")[2].split()[38]}

    found: dict[str, str] = product.wait("the machine runs", there, PATIENCE)
    done = process.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    return {**found, "said": done.stdout}


def test_nobody_runs_the_machine_when_there_is_time(c: Container) -> None:
    """A file that root alone may read, an image that root alone may read; in the unit, and where there is none."""
    c.add_fixture("good", autoinstall=False)
    kernel = c.kernels()[0]
    c.run(["dkms", "install", "kt-good/1.0", "-k", kernel.release], check=True)
    product.install(c, ["kt-good"])
    path = c.module_file(kernel, "kt_good")
    assert path is not None
    file = c.path("/root/elsewhere.ko")
    file.write_bytes(path.read_bytes())
    file.chmod(0o600)

    def judge(found: dict[str, str]) -> int:
        assert found["said"].startswith(f"/root/elsewhere.ko on {kernel.release}: loaded  (emulation, ")
        assert found["policy"] == "5", "SCHED_IDLE"
        assert {int(found[kind], 16) for kind in ("CapEff", "CapPrm", "CapAmb")} == {0}
        assert found["NoNewPrivs"] == "1"
        [user] = {int(word) for word in found["Uid"].split()}
        return user

    manual = (kernel.release, "--file", "/root/elsewhere.ko")
    assert judge(machine_of(c, *manual)) not in (0, 65534), "systemd has made a user for it"
    assert not c.path("/run/knetstatd/rehearsal.ko").exists()
    c.path(c.output("systemctl", "show", "--property=FragmentPath", "--value", "knetstatd-rehearse@x.service")).unlink()
    image = c.path(f"/boot/vmlinuz-{kernel.release}")
    image.chmod(0o600)
    assert judge(machine_of(c, *manual)) == 65534
    assert not list(c.path("/tmp").glob("knetstatd-rehearse-*"))


def test_by_hand_as_anybody(bookworm: Container) -> None:
    """As a user without privileges: the answer, but it is not kept."""
    c = bookworm
    qemu.install(c)
    c.add_fixture("good", autoinstall=False)
    release = c.kernels()[0].release
    c.run(["dkms", "install", "kt-good/1.0", "-k", release], check=True)
    product.install(c, ["kt-good"])
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "knetstatctl", "rehearse", "--json"]
    done = c.run(nobody, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = json.loads(done.stdout)["rehearsals"]
    assert found["outcome"] == "loaded"
    assert not c.path("/var/lib/knetstatd/rehearsals").exists()
    for argv, words in (
        (["--module", "kt-none"], f"no guarded module is installed for {release}"),
        (["--file", "/etc/passwd"], "not an ELF file"),
        (["--file", "/no/such.ko"], "does not exist"),
    ):
        done = c.run(["knetstatctl", "rehearse", *argv])
        assert (done.returncode, words in done.stderr) == (1, True), done
