# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatctl repair on states that were made for real: dkms 3.0.10 and 3.2.2, apt, dpkg, a hook that fails."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from . import product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rig import Container, Kernel


def repairs(c: Container, *argv: str, code: int | None = None) -> list[dict[str, Any]]:
    """What `repair --json` says."""
    done = c.run(["knetstatctl", "repair", "--json", *argv], timeout=300)
    assert done.returncode == code or code is None, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["repairs"]
    return found


def only(c: Container, kind: str, *argv: str) -> dict[str, Any]:
    """The one repair of a kind that a dry run shows; it changes nothing."""
    [found] = [r for r in repairs(c, "--dry-run", *argv, code=1) if r["kind"] == kind]
    return found


def repaired(c: Container, *argv: str) -> list[str]:
    """Repairs all; the kinds of what was done."""
    rows = repairs(c, "--yes", *argv, code=0)
    assert all(r["outcome"] == "done" for r in rows), rows
    assert repairs(c, *argv, code=0) == []
    return [r["kind"] for r in rows]


def autoinstall(c: Container, kernel: Kernel) -> int:
    """What a kernel's hook does, and whether it fails."""
    return c.run(["dkms", "autoinstall", "-k", kernel.release], timeout=120).returncode


def dkms_says(c: Container, module: str, kernel: Kernel) -> str:
    return c.run(["dkms", "status", f"{module}/1.0", "-k", kernel.release]).stdout


@contextlib.contextmanager
def full(c: Container, path: str, size: str) -> Iterator[None]:
    c.run(["mkdir", "-p", path], check=True)
    c.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield
    finally:
        c.run(["umount", path], check=True)


def test_the_stuck_states_of_dkms(machine: Container) -> None:
    """A to E: each made, seen to be one that dkms does not get out of, repaired, and dkms and modprobe asked afterwards."""
    c = machine
    kernel = c.kernels()[0]
    c.add_fixture("good", autoinstall=True)
    product.install(c, ["kt-good"])
    assert repaired(c) == ["build"]
    argv = ["dkms", "install", "kt-good/1.0", "-k", kernel.release]

    def healthy() -> None:
        product.right_module(c, kernel, "kt_good")
        assert f"kt-good/1.0, {kernel.release}, x86_64: installed" in dkms_says(c, "kt-good", kernel)
        assert "Diff" not in dkms_says(c, "kt-good", kernel)
        assert product.check(c, "running") == 0
        assert autoinstall(c, kernel) == 0

    healthy()
    # A: the installed file is gone, junk, or torn; dkms has nothing to do.
    file = c.output("modinfo", "-k", kernel.release, "-n", "kt_good")
    for damage in (f"rm {file}", f"head -c 20000 /dev/urandom >{file}", f"truncate -s $(( $(stat -c %s {file}) / 2 )) {file}"):
        c.run(["sh", "-ec", damage], check=True)
        assert "installed" in dkms_says(c, "kt-good", kernel)
        assert product.check(c, "running") == 1
        assert repaired(c) == ["build"]
        healthy()
    # B: another module's source is gone.
    c.add_fixture("slow", autoinstall=True, files={"delay": "0\n"})
    shutil.rmtree(c.path("/usr/src/kt-slow-1.0"))
    said = c.run(["dkms", "build", "kt-slow/1.0", "-k", kernel.release])
    assert said.returncode == 4
    found = only(c, "source")
    assert found["acts"] == [{"act": "delete", "path": "/var/lib/dkms/kt-slow/1.0",
                              "holds": "dkms's entry; modules in /lib/modules stay"}]  # fmt: skip
    assert c.path("/var/lib/dkms/kt-slow/1.0").exists(), "a dry run changes nothing"
    assert repaired(c) == ["source"]
    assert not c.path("/var/lib/dkms/kt-slow").exists()
    healthy()
    # C: a directory without a module in it; of the guarded module, and of one that is not guarded.
    c.add_fixture("noisy", autoinstall=True, files={"megabytes": "0\n"})
    for module in ("kt-good", "kt-noisy"):
        c.run(["dkms", "uninstall", f"{module}/1.0", "-k", kernel.release])
        c.run(["dkms", "unbuild", f"{module}/1.0", "-k", kernel.release])
        c.run(["mkdir", "-p", f"/var/lib/dkms/{module}/1.0/{kernel.release}/x86_64/log"], check=True)
        assert c.run(["dkms", "build", f"{module}/1.0", "-k", kernel.release, "--force"]).returncode == 3
    assert autoinstall(c, kernel) != 0
    assert repaired(c) == ["stuck", "stuck", "build"]
    healthy()
    assert "installed" in dkms_says(c, "kt-noisy", kernel)
    # D: killed in the middle of a build.
    c.add_fixture("undef", autoinstall=False)
    c.run(["dkms", "uninstall", "kt-good/1.0", "-k", kernel.release], check=True)
    c.run(["dkms", "unbuild", "kt-good/1.0", "-k", kernel.release], check=True)
    running = c.start(argv)
    product.wait("it compiles", lambda: c.run(["pgrep", "-x", "make"]).returncode == 0)
    running.kill()
    running.wait()
    assert repaired(c)[-1] == "build"
    healthy()
    # E: the disk was full.
    c.run(["dkms", "uninstall", "kt-good/1.0", "-k", kernel.release], check=True)
    c.run(["dkms", "unbuild", "kt-good/1.0", "-k", kernel.release], check=True)
    with full(c, "/var/lib/dkms/kt-good/1.0/build", "64k"):
        assert c.run(argv).returncode != 0
    assert repaired(c)[-1] == "build"
    healthy()


def test_leftovers(machine: Container) -> None:
    """What dead kernels, killed runs and a depmod that never ran leave behind."""
    c = machine
    _, second = c.kernels()[:2]
    c.add_fixture("good", autoinstall=True)
    product.install(c, ["kt-good"])
    c.install_kernel(second)
    assert repaired(c, "--all") == ["build"], "for the kernel that runs; the hook has built the other"
    # depmod was killed: the file is there, and modprobe does not know it.
    c.add_fixture("noisy", autoinstall=False, files={"megabytes": "0\n"})
    c.run(["dkms", "install", "kt-noisy/1.0", "-k", second.release, "--no-depmod"], check=True)
    assert c.run(["modprobe", "-S", second.release, "--show-depends", "kt_noisy"]).returncode != 0
    assert repaired(c, second.release) == ["depmod"]
    assert c.run(["modprobe", "-S", second.release, "--show-depends", "kt_noisy"]).returncode == 0
    # A kernel is gone, dkms's tree and its directory in /lib/modules still have it.
    c.write("/etc/dkms/no-autoinstall", "")
    script = "find /etc/kernel /usr/share/kernel /usr/lib/kernel -name '*dkms*' -type f -exec chmod -x {} + || :"
    c.run(["sh", "-ec", script], check=True)
    names = [p for p in (second.image, second.headers) if c.package_state(p)]
    names += c.output("sh", "-c", f"dpkg-query -W -f '${{Package}}\\n' 'linux-*-{second.release}'").split()
    c.run(["apt-get", "-q", "-y", "purge", *sorted(set(names))], check=True, timeout=300)
    place = c.path(f"/lib/modules/{second.release}")
    assert (place / "updates/dkms").is_dir()
    found = {r["kind"]: r for r in repairs(c, "--all", "--dry-run", code=1)}
    assert list(found) == ["orphan"]
    assert "kt_good" in json.dumps(found["orphan"]["acts"])
    # One file in it is a package's: then it is nobody's to delete.
    owner = c.path("/var/lib/dpkg/info/base-files.list")
    files = owner.read_text()
    owner.write_text(f"{files}/usr/lib/modules/{second.release}/updates\n")
    assert repairs(c, "--all", "--dry-run", code=0) == []
    owner.write_text(files)
    assert repaired(c, "--all") == ["orphan", "dead-kernel", "dead-kernel"]
    assert not place.exists()
    assert second.release not in c.output("dkms", "status")
    assert not list(c.path("/var/lib/dkms").rglob(f"*{second.release}*"))
    assert product.check(c, "running") == 0


def test_a_source_that_a_package_owns_is_brought_back(bookworm: Container) -> None:
    c = bookworm
    kernel = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    c.run(["dkms", "remove", "kt-good/1.0", "--all"])
    script = """
        mkdir -p /root/p/DEBIAN /root/p/usr/src /root/repo
        printf 'Package: kt-good-dkms\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: x <x@example.org>\\nDescription: x\\n' \
            >/root/p/DEBIAN/control
        mv /usr/src/kt-good-1.0 /root/p/usr/src/
        dpkg-deb -b /root/p /root/repo/kt-good-dkms_1.0_all.deb
        cd /root/repo
        dpkg-scanpackages . >Packages || { cat /root/p/DEBIAN/control; echo "Filename: ./kt-good-dkms_1.0_all.deb"
            echo "Size: $(stat -c %s kt-good-dkms_1.0_all.deb)"
            echo "SHA256: $(sha256sum kt-good-dkms_1.0_all.deb | cut -d' ' -f1)"; } >Packages
        echo 'deb [trusted=yes] file:/root/repo ./' >/etc/apt/sources.list.d/kt.list
        apt-get -q update
        apt-get -q -y install kt-good-dkms
        dkms add kt-good/1.0
    """
    c.run(["sh", "-ec", script], check=True)
    product.install(c, ["kt-good"])
    shutil.rmtree(c.path("/usr/src/kt-good-1.0"))
    assert product.verdict(c, "running")["why"] == "source-broken"
    assert only(c, "source")["acts"][0]["argv"] == ["apt-get", "install", "--reinstall", "-y", "kt-good-dkms"]
    assert repaired(c) == ["source", "build"]
    product.right_module(c, kernel, "kt_good")


def test_who_keeps_a_kernel_half_configured_is_named(machine: Container) -> None:
    """A guarded package that fails in dkms's hook: only a person can say which way out is right."""
    c = machine
    _, second = c.kernels()[:2]
    c.add_fixture("nocompile")
    product.install(c, ["kt-nocompile"])
    assert c.install_kernel(second, check=False).returncode == 100
    assert c.run(["knetstatctl", "build", second.release], timeout=300).returncode == 1
    done = c.run(["knetstatctl", "repair", second.release, "--yes"], timeout=300)
    assert done.returncode == 1
    assert "Nothing to repair." not in done.stdout
    assert "kt-nocompile is in the way" in done.stdout
    [decide] = [line for line in done.stdout.splitlines() if "AUTOINSTALL" in line]
    c.run(["sh", "-c", decide.partition(": ")[2].partition(" && ")[0]], check=True)
    rows = repairs(c, "--yes", second.release, code=1)
    assert [(row["kind"], row["outcome"]) for row in rows] == [("configure", "done"), ("build", "to do")]
    assert c.package_state(second.image) == c.package_state(second.headers) == "ii"
    assert c.path(f"/boot/initrd.img-{second.release}").exists()


def test_a_half_configured_kernel_is_finished(machine: Container) -> None:
    """A module of somebody else's does not compile, and its failure leaves the kernel without an initrd and apt broken."""
    c = machine
    _, second = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    c.add_fixture("nocompile")
    product.install(c, ["kt-good"])
    assert c.install_kernel(second, check=False).returncode == 100
    assert c.package_state(second.image) in ("iF", "iU")
    # It is said, whether the module is good or not yet.
    said = c.run(["knetstatctl", "explain", second.release]).stdout
    assert f"besides, {second.headers} is" in said or f"{second.image} is" in said
    assert [r["kind"] for r in repairs(c, second.release, "--dry-run", code=1)] == ["build"], "not before the module is good"
    assert c.run(["knetstatctl", "build", second.release], timeout=300).returncode == 1
    verdict = product.verdict(c, second.release)
    assert (verdict["ready"], verdict["state"]) == (False, "kernel-half-configured")
    assert "half-configured" in verdict["reason"] or "unpacked" in verdict["reason"]
    assert verdict["fix"] == f"knetstatctl repair {second.release}"
    assert product.check(c, second.release) == 1
    # Shown in full, and not done without a yes.
    done = c.run(["knetstatctl", "repair", second.release])
    assert done.returncode == 1
    assert "   run     dpkg --configure " in done.stdout
    assert 'AUTOINSTALL=""' in done.stdout
    assert "kt_nocompile.c line " in done.stdout, "the module that fails the hook is named, with its cause"
    assert "Nothing was done: --yes does it without asking." in done.stdout
    assert c.package_state(second.image) in ("iF", "iU")
    # Not while somebody else has dpkg open.
    holder = c.start(["python3", "-c", HOLD])
    product.wait("the lock is held", lambda: "held" in holder.output())
    done = c.run(["knetstatctl", "repair", second.release, "--yes"])
    assert done.returncode == 1
    assert "holds /var/lib/dpkg/lock-frontend" in done.stderr
    assert c.package_state(second.image) in ("iF", "iU")
    holder.kill()
    holder.wait()
    assert repaired(c, second.release) == ["configure"]
    assert c.package_state(second.image) == c.package_state(second.headers) == "ii"
    assert c.path(f"/boot/initrd.img-{second.release}").exists()
    assert c.run(["dpkg", "--audit"]).stdout == ""
    assert not c.path("/etc/dkms/no-autoinstall").exists()
    # dkms 3.0 does not read the override in its hook: there only what does not start that hook works again.
    again = second.headers if c.suite != "bookworm" else "linux-base"
    c.run(["apt-get", "-q", "-y", "install", "--reinstall", again], check=c.suite != "bookworm", timeout=300)
    assert c.run(["apt-get", "-q", "-y", "install"]).returncode == 0
    assert product.check(c, second.release) == 0
    product.right_module(c, second, "kt_good")


HOLD = """
import fcntl, time
f = open("/var/lib/dpkg/lock-frontend", "w")
fcntl.lockf(f, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_the_running_kernels_trap_is_cured_for_good(machine: Container) -> None:
    """After the override a plain dkms, without us, builds for the kernel that it is asked for."""
    c = machine
    first, second = c.kernels()[:2]
    c.add_fixture("story")
    product.install(c, ["kt-story"])
    c.install_kernel(second)
    assert c.vermagic(second, "kt_story").split()[0] == first.release
    text = c.output("knetstatctl", "explain", second.release)
    assert "Makefile line 4 reads the running kernel and sets KSRC, which dkms.conf does not set" in text
    assert "`knetstatctl repair` tries it" in text
    found = only(c, "override", second.release)
    assert [act["act"] for act in found["acts"]] == ["try", "write", "prove"]
    assert repaired(c, second.release) == ["override", "build"]
    product.right_module(c, second, "kt_story")
    conf = c.path("/etc/dkms/kt-story-1.0.conf").read_text()
    assert 'MAKE[0]+=" KSRC=/lib/modules/${kernelver}/build"' in conf
    c.run(["dkms", "uninstall", "kt-story/1.0", "-k", second.release], check=True)
    c.run(["dkms", "unbuild", "kt-story/1.0", "-k", second.release], check=True)
    c.run(["dkms", "install", "kt-story/1.0", "-k", second.release], check=True)
    product.right_module(c, second, "kt_story")
    assert "Cure for good" not in c.output("knetstatctl", "explain", second.release)


RECIPE = "obj-m := kt_story.o\nall:\n\t$(MAKE) -C /lib/modules/`uname -r`/build M=$(CURDIR) modules\nclean:\n\ttrue\n"


def test_a_trap_without_a_variable_is_cured_through_the_kernels_directory(machine: Container) -> None:
    c = machine
    first, second = c.kernels()[:2]
    c.add_fixture("story", autoinstall=False, files={"Makefile": RECIPE})
    c.install_kernel(second)
    product.install(c, ["kt-story"])
    c.run(["dkms", "build", "kt-story/1.0", "-k", second.release], check=True)
    made = f"/var/lib/dkms/kt-story/1.0/{second.release}/x86_64/module/kt_story.ko"
    found = c.output("sh", "-c", f"modinfo -F vermagic {made}*")
    assert found.split()[0] == first.release
    assert repaired(c, second.release) == ["override", "build"]
    c.run(["dkms", "uninstall", "kt-story/1.0", "-k", second.release], check=True)
    c.run(["dkms", "unbuild", "kt-story/1.0", "-k", second.release], check=True)
    c.run(["dkms", "install", "kt-story/1.0", "-k", second.release], check=True)
    product.right_module(c, second, "kt_story")


def test_an_override_that_does_not_help_is_taken_back(bookworm: Container) -> None:
    """The proof is a build: here a script that the Makefile calls has a kernel of its own."""
    c = bookworm
    first, second = c.kernels()[:2]
    makefile = (
        "KSRC ?= /lib/modules/$(shell uname -r)/build\nobj-m := kt_story.o\nall:\n\tsh build.sh\n"
        "clean:\n\ttrue\n"
    )  # fmt: skip
    build = f"cd $(dirname $0)\nmake -C /usr/src/linux-headers-{first.release} M=$PWD modules\n"
    c.add_fixture("story", files={"Makefile": makefile, "build.sh": build})
    c.install_kernel(second, image=False)
    product.install(c, ["kt-story"])
    rows = {r["kind"]: r for r in repairs(c, "--yes", code=1)}
    assert "it was taken back" in rows["override"]["outcome"]
    assert not c.path("/etc/dkms/kt-story-1.0.conf").exists()


def test_it_asks(bookworm: Container) -> None:
    c = bookworm
    kernel = c.kernels()[0]
    c.add_fixture("noisy", autoinstall=False, files={"megabytes": "0\n"})
    product.install(c, [])
    place = f"/var/lib/dkms/kt-noisy/1.0/{kernel.release}/x86_64"
    c.run(["mkdir", "-p", f"{place}/log"], check=True)
    # script(1) gives it a terminal.
    argv = ["script", "-qec", "knetstatctl repair --all", "/dev/null"]
    for answer, code in (("n\n", 1), ("\x04", 1), ("y\n", 0)):
        done = c.run(argv, stdin=answer)
        assert f"delete  {place}" in done.stdout
        assert "Do it? [y/N]" in done.stdout
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout
        assert c.path(place).exists() is (code == 1)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["repair", "6.1.0-nothere"], 2, "there is no kernel 6.1.0-nothere"),
        (["repair", "--all"], 0, "Nothing to repair."),
        (["repair", "running", "--yes"], 0, "Nothing to repair."),
    ],
)
def test_nothing_to_repair(suite: str, argv: list[str], code: int, words: str) -> None:
    from . import rig

    with rig.container(suite, boot=False) as c:
        c.add_fixture("good", autoinstall=False)
        product.install(c, [])
        done = c.run(["knetstatctl", *argv])
        assert done.returncode == code, done
        assert words in done.stdout + done.stderr
