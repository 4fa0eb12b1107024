# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens to a module that is installed already, with the real dkms and dpkg: its file is damaged, its package is
upgraded, its source is touched, the disk on which it is compiled has become too small."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from . import kmods, product, rig

if TYPE_CHECKING:
    from pathlib import Path

    from .rig import Container, Kernel

pytestmark = pytest.mark.container

GO_ON = "/etc/rig/go-on"


def held(name: str = "slow") -> dict[str, str]:
    """The Makefile of a fixture that compiles when the test says so."""
    makefile = (kmods.FIXTURES / name / "Makefile").read_text()
    return {"Makefile": makefile.replace('sleep "$$(cat delay)"', f"until [ -e {GO_ON} ]; do sleep 0.1; done")}


def in_kernels(c: Container, module: str) -> list[Path]:
    """Every file of a module in the kernels' trees."""
    return sorted(c.path("/lib/modules").glob(f"*/**/{module}.ko*"))


def originals(c: Container, package: str) -> list[Path]:
    """What dkms keeps as original modules of a package."""
    return sorted(path for path in c.path(f"/var/lib/dkms/{package}/original_module").rglob("*") if not path.is_dir())


def count(c: Container, kind: str) -> int:
    return product.kinds(c).count(kind)


def test_a_damaged_file_never_comes_back(machine: Container) -> None:
    """dkms 3.2 takes what it does not know for an original, and `dkms remove` puts originals back. Debian's 3.0 does neither;
    what lies there waits for the next dkms."""
    c = machine
    kernel = c.kernels()[0]
    c.write(GO_ON, "")
    c.add_fixture("slow", autoinstall=False, files=held())
    product.start(c, ["kt-slow"])
    product.wait_ready(c)
    [file] = in_kernels(c, "kt_slow")
    # A new version of the source is compiled, and meanwhile the file is lost.
    c.path(GO_ON).unlink()
    with c.path("/usr/src/kt-slow-1.0/kt_slow.c").open("a") as source:
        source.write("/* newer */\n")
    product.wait("it compiles", lambda: count(c, "stage-started") == 2)
    garbage = os.urandom(3000)
    file.write_bytes(garbage)
    c.write(GO_ON, "")
    product.wait("it is published", lambda: count(c, "published") == 2)
    product.wait_ready(c)
    product.right_module(c, kernel, "kt_slow")
    assert originals(c, "kt-slow") == []
    # Garbage that was kept before knetstatd was there: by this dkms, or by another one.
    c.run(["systemctl", "stop", "knetstatd"], check=True)
    file.write_bytes(garbage)
    c.run(["dkms", "install", "--force", "kt-slow/1.0", "-k", kernel.release], check=True)
    if c.suite == "bookworm":
        assert originals(c, "kt-slow") == []
        kept = c.path(f"/var/lib/dkms/kt-slow/original_module/{kernel.release}/x86_64/{file.name}")
        kept.parent.mkdir(parents=True)
        kept.write_bytes(garbage)
    assert garbage in [path.read_bytes() for path in originals(c, "kt-slow")]
    said = c.run(["knetstatctl", "repair", "--json", "--yes", kernel.release])
    assert [(row["kind"], row["outcome"]) for row in json.loads(said.stdout)["repairs"]] == [("original", "done")], said.stdout
    assert originals(c, "kt-slow") == []
    product.right_module(c, kernel, "kt_slow")
    c.run(["dkms", "remove", "kt-slow/1.0", "--all"], check=True)
    assert in_kernels(c, "kt_slow") == []


def package(c: Container, version: str) -> str:
    """A Debian package of kt-good as dh_dkms makes them; returns where it lies."""
    tree = c.path(f"/srv/kt-good-{version}")
    kmods.copy_fixture("good", tree / f"usr/src/kt-good-{version}", autoinstall=False, version=version)
    scripts = {
        "control": f"Package: kt-good-dkms\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n",
        "prerm": f"#!/bin/sh\nset -e\ndkms remove -m kt-good -v {version} --all\n",
        "postinst": f'#!/bin/sh\nset -e\n[ "$1" != configure ] || /usr/lib/dkms/common.postinst kt-good {version} "" "" "$2"\n',
    }
    for name, text in scripts.items():
        c.write(f"/srv/kt-good-{version}/DEBIAN/{name}", text, 0o644 if name == "control" else 0o755)
    c.run(["dpkg-deb", "--root-owner-group", "--build", f"/srv/kt-good-{version}", f"/srv/{version}.deb"], check=True)
    shutil.rmtree(tree)
    return f"/srv/{version}.deb"


def upgrade(c: Container, version: str) -> None:
    c.run(["dpkg", "--install", package(c, version)], check=True, timeout=300)


def has(c: Container, kernel: Kernel, version: str) -> bool:
    """Whether dkms says that it has installed that version, and modprobe knows the module."""
    link = c.path(f"/var/lib/dkms/kt-good/kernel-{kernel.release}-x86_64")
    installed = link.is_symlink() and str(link.readlink()).startswith(f"{version}/")
    return installed and c.run(["modinfo", "-k", kernel.release, "-n", "kt_good"]).returncode == 0


def remembered(c: Container) -> dict[str, Any]:
    """What the daemon remembers of kt-good."""
    path = c.path("/var/lib/knetstatd/guard/packages.json")
    rows = json.loads(path.read_text())["packages"] if path.exists() else []
    return next((row for row in rows if row["name"] == "kt-good"), {})


def test_an_upgrade_gives_every_kernel_what_it_had(suite: str) -> None:
    with rig.container(suite, boot=False) as c:
        kernels = c.kernels()[:3]
        oldest, middle, newest = kernels
        argv = c.install_argv(middle)
        c.run([*argv, newest.image, newest.headers], check=True, timeout=600)
        c.set_running(newest)
        c.boot()
        upgrade(c, "1.0")
        for kernel in kernels:
            c.run(["dkms", "install", "kt-good/1.0", "-k", kernel.release], check=True)
        product.start(c, ["kt-good"])
        product.wait_ready(c)
        everywhere = sorted(kernel.release for kernel in kernels)
        product.wait("it has seen who has it", lambda: sorted(remembered(c).get("kernels", ())) == everywhere)

        upgrade(c, "1.1")
        product.wait("all have it again", lambda: all(has(c, kernel, "1.1") for kernel in kernels))
        for kernel in kernels:
            product.right_module(c, kernel, "kt_good")
        made = {kernel: file.stat().st_mtime for kernel in kernels if (file := c.module_file(kernel, "kt_good")) is not None}
        assert min(made, key=made.__getitem__) == newest, "the one that the next boot starts comes first"
        product.wait("nothing is owed", lambda: remembered(c)["owed"] == [])

        c.run(["dkms", "remove", "kt-good/1.1", "-k", middle.release], check=True)
        left = sorted({oldest.release, newest.release})
        product.wait("it has seen who has it", lambda: sorted(remembered(c)["kernels"]) == left)
        upgrade(c, "1.2")
        product.wait("the others have it", lambda: has(c, oldest, "1.2") and has(c, newest, "1.2"))
        product.wait("nothing is owed", lambda: remembered(c)["owed"] == [])
        time.sleep(2 * product.SETTLE)
        assert c.module_file(middle, "kt_good") is None
        assert not has(c, middle, "1.2")


def test_contents_decide_whether_a_source_was_changed(machine: Container) -> None:
    c = machine
    kernel = c.kernels()[0].release
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    kept = c.path(f"/var/lib/knetstatd/sources/{kernel}/kt-good.json")
    before = product.verdict(c), json.loads(kept.read_text())
    c.run(["find", "/usr/src/kt-good-1.0", "-exec", "touch", "{}", "+"], check=True)
    product.wait("it has looked", lambda: json.loads(kept.read_text())["mark"] != before[1]["mark"])
    time.sleep(2 * product.SETTLE)
    assert product.verdict(c) == before[0]
    assert (count(c, "stage-started"), count(c, "published")) == (1, 1)
    source = c.path("/usr/src/kt-good-1.0/kt_good.c")
    source.write_text(source.read_text().replace("packaged well", "packaged Well"))
    product.wait("it is built again", lambda: count(c, "published") == 2)
    product.wait_ready(c)
    assert c.output("modinfo", "-k", kernel, "-F", "description", "kt_good") == "Test module: packaged Well"


def test_a_small_disk_is_said_before_a_build_begins(machine: Container) -> None:
    c = machine
    kernel = c.kernels()[0].release
    place = "/var/cache/private"
    c.add_fixture("good", autoinstall=False)
    source = c.path("/usr/src/kt-good-1.0")
    fill = "$(shell dd if=/dev/zero of=$(M)/fill bs=1M count=160 2>/dev/null; sleep 1.5)"
    (source / "Makefile").write_text(f"{fill}\n{(source / 'Makefile').read_text()}")
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    units = ["journalctl", "-q", "-o", "cat", "-u", "knetstatd-compile@*"]
    compiled = c.output(*units)
    c.run(["mount", "-t", "tmpfs", "-o", "size=200M,mode=700", "tmpfs", place], check=True)
    with (source / "kt_good.c").open("a") as text:
        text.write("/* newer */\n")
    failed = c.path(f"/var/lib/knetstatd/kernels/{kernel}/kt-good.json")

    def attempt_for(kind: str) -> dict[str, Any] | None:
        kept: dict[str, Any] = json.loads(failed.read_text()) if failed.exists() else {}
        return kept if kept.get("kind") == kind else None

    attempt = product.wait("it fails", lambda: attempt_for("disk"))
    free, wanted = map(int, re.findall(r"(\d+) MiB", attempt["reason"])[:2])
    said = f"only {free} MiB of {place} are free, {wanted} MiB are wanted: the last build of kt-good took "
    assert attempt["reason"].startswith(said)
    assert 190 <= free <= 200 < 160 * 5 // 4 + 50 <= wanted < 300
    assert c.output(*units) == compiled, "nothing was compiled"

    def told() -> dict[str, Any]:
        """The daemon's own word: nspawn's boot id is not the one that units see, and a pause is over with the boot."""
        made: dict[str, Any]
        [made] = json.loads(c.output("cat", "/run/knetstatd/status.json"))["verdicts"]
        return made

    product.wait("the daemon says it", lambda: told()["reason"].startswith(said))
    assert (told()["state"], told()["fix"]) == ("ready-outdated", f"df -h -i {place}")
    c.run(["umount", place], check=True)
    c.run(["knetstatctl", "build", kernel], check=True, timeout=300)
    assert product.check(c) == 0


def own_package(c: Container, version: str, *, preinst: str = "", broken: bool = False) -> str:
    """knetstat-dkms with a module of that version, of debian's own scripts. broken: its module does not compile."""
    tree = f"/srv/knetstat-{version}"
    source = c.path(f"{tree}/usr/src/knetstat-{version}")
    shutil.copytree(product.CHECKOUT / "module", source, ignore=shutil.ignore_patterns(".*", "*.o", "*.ko"))
    conf = (source / "dkms.conf").read_text()
    (source / "dkms.conf").write_text(re.sub("^PACKAGE_VERSION=.*", f'PACKAGE_VERSION="{version}"', conf, flags=re.MULTILINE))
    if broken:
        (source / "knetstat.c").write_text("int x y;\n")
    scripts = {name: (product.CHECKOUT / f"debian/knetstat-dkms.{name}").read_text() for name in ("prerm", "postinst")}
    scripts |= {"preinst": preinst} if preinst else {}
    for name, text in scripts.items():
        text = text.replace("#MODULE_VERSION#", version).replace("#DEBHELPER#", "")
        c.write(f"{tree}/DEBIAN/{name}", text, 0o755)
    control = f"Package: knetstat-dkms\nVersion: {version}-1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    c.write(f"{tree}/DEBIAN/control", control)
    c.run(["dpkg-deb", "--root-owner-group", "--build", tree, f"{tree}.deb"], check=True)
    shutil.rmtree(c.path(tree))
    return f"{tree}.deb"


def test_our_own_module_stays_until_the_newer_one_is_proven(machine: Container) -> None:
    c = machine
    kernel = c.kernels()[0]
    tree = c.path("/var/lib/dkms/knetstat")

    def installed(version: str) -> bool:
        link = tree / f"kernel-{kernel.release}-x86_64"
        return (
            link.is_symlink()
            and str(link.readlink()).startswith(f"{version}/")
            and c.module_file(kernel, "knetstat") is not None
        )

    def says(version: str) -> bool:
        return f"knetstat/{version}, {kernel.release}, x86_64: installed" in c.output("dkms", "status")

    def dpkg(*words: str, code: int = 0) -> None:
        done = c.run(["dpkg", *words], timeout=300)
        assert done.returncode == code, done.stdout + done.stderr

    dpkg("--install", own_package(c, "1.0.0"))
    product.start(c, ["knetstat"])
    product.wait_ready(c)
    [file] = in_kernels(c, "knetstat")
    inode = file.stat().st_ino
    # An upgrade that fails before anything is unpacked.
    dpkg("--install", own_package(c, "1.0.1", preinst="#!/bin/sh\nexit 1\n"), code=1)
    assert (c.package_state("knetstat-dkms"), says("1.0.0"), file.stat().st_ino) == ("ii", True, inode)
    # A newer version that does not compile: what there was stays, and DKMS knows it well.
    dpkg("--install", own_package(c, "1.1.0", broken=True))
    product.wait("it is given up", lambda: product.kinds(c, "knetstat", kernel.release).count("gave-up") == 1)
    assert not c.path("/usr/src/knetstat-1.0.0").exists()
    assert (says("1.0.0"), file.stat().st_ino) == (True, inode)
    assert (product.verdict(c)["version"], product.verdict(c)["state"]) == ("1.1.0", "ready-outdated")
    # One that does.
    made = own_package(c, "1.2.0")
    command = c.start(["dpkg", "--install", made])
    while not installed("1.2.0"):
        assert file.exists()
        time.sleep(0.05)
    assert command.wait().returncode == 0
    product.wait_ready(c)
    assert product.verdict(c)["version"] == "1.2.0"
    assert not (tree / "1.1.0").exists(), "no kernel has it"
    # An older one, and back.
    dpkg("--install", own_package(c, "1.0.0"))
    product.wait("the older one", lambda: installed("1.0.0"))
    assert sorted(path.name for path in tree.iterdir() if path.name[0].isdigit()) == ["1.0.0"]
    product.wait_ready(c)
    dpkg("--install", made)
    product.wait("the newer one", lambda: installed("1.2.0"))
    dpkg("--purge", "knetstat-dkms")
    assert (in_kernels(c, "knetstat"), tree.exists(), list(c.path("/usr/src").glob("knetstat-*"))) == ([], False, [])
