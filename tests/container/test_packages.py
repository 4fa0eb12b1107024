# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian packages, through their life: on what apt has installed, with nothing of the checkout in the machine."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from . import packages, product, rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .rig import Container, Result

pytestmark = pytest.mark.container

NEWER = "1.0.0+1"


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., packages.Packages]:
    """build(suite, newer=""): made once, in the first test that wants it."""

    @functools.cache
    def once(suite: str, newer: str = "") -> packages.Packages:
        return packages.build(suite, tmp_path_factory.mktemp(f"packages-{suite}"), newer)

    return once


def apt(c: Container, *words: str) -> Result:
    """apt-get as a script would call it, with all its words; fails where it fails."""
    return c.run(["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", *words], check=True, timeout=300)


def install(c: Container, built: packages.Packages, *words: str) -> Result:
    """apt install ./knetstatd_*.deb ./knetstat-dkms_*.deb"""
    there = []
    for deb in built.debs():
        shutil.copy(deb, c.path(f"/root/{deb.name}"))
        there.append(f"/root/{deb.name}")
    return apt(c, "install", *words, *there)


def show(c: Container, unit: str, field: str) -> str:
    """A property of a unit."""
    return c.output("systemctl", "show", "--value", f"--property={field}", unit)


def active(c: Container, unit: str = "knetstatd.service") -> bool:
    return show(c, unit, "ActiveState") in ("active", "activating")


def modules(c: Container) -> list[Path]:
    """knetstat's files in the kernels' trees."""
    return sorted(c.path("/lib/modules").glob("*/updates/**/knetstat.ko*"))


def left(c: Container) -> list[str]:
    """Every path with our name in it, and every one of the kernels' modules that dkms has put there."""
    tops = [c.path(top) for top in ("/etc", "/usr", "/var", "/run", "/lib", "/boot", "/opt", "/srv")]
    listed = subprocess.run(
        ["find", *tops, "-xdev", "-path", "*/var/log/*", "-prune", "-o",
         "(", "-name", "*knetstat*", "-o", "-path", "*/updates/*", ")", "-print"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return [line.removeprefix(f"{c.root}") for line in listed.stdout.splitlines()]


@pytest.fixture
def installed(suite: str, build: Callable[..., packages.Packages]) -> Iterator[Container]:
    """A machine of which nothing was known before, after that one command."""
    built = build(suite)
    with rig.container(suite) as c:
        install(c, built)
        yield c


def test_lintian_has_nothing_to_say(suite: str, build: Callable[..., packages.Packages]) -> None:
    built = build(suite)
    assert re.findall(r"^[EW]: .*", built.lintian, re.MULTILINE) == []
    files = _listed(["tar", "-tf", next(built.directory.glob("*.tar.*"))])
    assert f"knetstatd-{packages.version()}/vendor/inotify_simple.py" in files, "the source package is complete"


def test_one_command_and_a_kernel_that_comes_later(installed: Container) -> None:
    """What debian/tests checks on a whole machine, in this one; it asks for nothing but what apt has installed."""
    c = installed
    assert show(c, "knetstatd.service", "FragmentPath").endswith("/lib/systemd/system/knetstatd.service")
    assert c.output("systemctl", "is-enabled", "knetstatd.service") == "enabled"
    assert c.output("dpkg", "-S", "/usr/bin/knetstatd").startswith("knetstatd: ")
    assert c.path("/usr/bin/knetstatd").read_text().startswith("#!/usr/bin/python3 -ISB\n"), "nobody's environment but its own"
    # The module for the kernel that runs, registered a moment ago.
    product.wait("knetstat for the running kernel", lambda: modules(c))
    shutil.copy(packages.CHECKOUT / "debian/tests/kernel-update", c.path("/root/kernel-update"))
    c.run(["/root/kernel-update"], check=True, timeout=500)
    new = c.kernels()[-1]
    product.right_module(c, new, "knetstat")
    story = product.story(c, new.release)
    assert "published" in story, "not the distribution's hook: knetstat has no AUTOINSTALL"
    assert "config-loaded" in product.kinds(c), "dpkg's trigger makes the daemon look again"
    assert "man:knetstatd(8)" in c.output("journalctl", "-x", "-u", "knetstatd", "-q", "-n", "1"), "the catalog is there"


def test_needrestart_leaves_builds_alone(installed: Container) -> None:
    """Its configuration, read as it reads it: which units it never restarts."""
    script = """
        our %nrconf; do "/etc/needrestart/conf.d/knetstatd.conf" // die; my $set = $nrconf{override_rc};
        for my $unit (@ARGV) { print map { $unit =~ /$_/ ? "$unit $set->{$_}\\n" : () } keys %$set }
    """
    units = [p.name for p in installed.path("/lib/systemd/system").glob("knetstatd*.service")]
    units = [name.replace("@.", r"@6.1.0\x2d9\x2damd64.") for name in units]
    said = installed.output("perl", "-e", script, *units).splitlines()
    assert sorted(said) == sorted(f"{name} 0" for name in units if "@" in name)
    assert len(said) == len(units) - 1


def test_a_build_survives_an_upgrade(suite: str, build: Callable[..., packages.Packages]) -> None:
    old, new = build(suite), build(suite, NEWER)
    with rig.container(suite) as c:
        c.write("/etc/knetstatd/knetstatd.toml.d/50-test.toml", 'modules = ["kt-slow"]\nsettle_seconds = 1\n')
        # A module whose compilation ends when the test says so.
        makefile = (packages.CHECKOUT / "tests/fixtures/slow/Makefile").read_text()
        wait = "until [ -e /etc/rig/go-on ]; do sleep 0.2; done"
        c.add_fixture("slow", autoinstall=False, files={"Makefile": makefile.replace('sleep "$$(cat delay)"', wait)})
        install(c, old)
        running = c.output("uname", "-r")
        unit = f"knetstatd-build@{c.output('systemd-escape', running)}.service"
        listed = ("systemctl", "list-units", "--plain", "--no-legend", "knetstatd-compile@*")
        compiling = product.wait("it compiles", lambda: c.output(*listed)).split()[0]
        product.wait("its program runs", lambda: show(c, compiling, "MainPID") != "0")
        before = {u: show(c, u, "MainPID") for u in (unit, compiling, "knetstatd.service")}
        assert "0" not in before.values(), before
        install(c, new)
        after = {u: show(c, u, "MainPID") for u in before}
        assert c.output("dpkg-query", "-W", "-f", "${Version}", "knetstatd") == NEWER
        assert after[unit] == before[unit]
        assert after[compiling] == before[compiling]
        assert after["knetstatd.service"] not in ("0", before["knetstatd.service"]), "the new daemon has taken over"
        c.write("/etc/rig/go-on", "")
        product.wait_ready(c, running)
        assert product.kinds(c).count("stage-started") == product.kinds(c).count("published") == 1
        assert "knetstat/1.0.0: added" in c.output("dkms", "status"), "not guarded here, and not touched"


def test_an_upgrade_keeps_what_was_built(suite: str, build: Callable[..., packages.Packages], installed: Container) -> None:
    """Another package of the same module: no kernel is without it for a moment."""
    c = installed
    [module] = product.wait("knetstat for the running kernel", lambda: modules(c))
    product.wait("published", lambda: "published" in product.kinds(c, "knetstat"))
    inode = module.stat().st_ino
    install(c, build(suite, NEWER))
    assert c.output("dpkg-query", "-W", "-f", "${Version}", "knetstat-dkms") == NEWER
    assert module.stat().st_ino == inode
    assert re.search(r"^knetstat/1.0.0, .*: installed$", c.output("dkms", "status"), re.MULTILINE)


def test_remove_reinstall_purge(suite: str, build: Callable[..., packages.Packages], installed: Container) -> None:
    c = installed
    product.wait("knetstat for the running kernel", lambda: modules(c))
    config = c.path("/etc/knetstatd/knetstatd.toml")
    config.write_text(config.read_text() + "settle_seconds = 1\n")

    apt(c, "remove", "knetstatd", "knetstat-dkms")
    assert not active(c)
    assert config.exists()
    assert modules(c) == []
    assert not c.path("/var/lib/dkms/knetstat").exists()
    assert not c.path("/usr/src/knetstat-1.0.0").exists()
    assert c.run(["systemctl", "is-system-running"]).stdout.strip() == "running", "no failed unit is left"

    install(c, build(suite))
    assert active(c)
    assert "settle_seconds = 1\n" in config.read_text(), "the administrator's configuration"
    product.wait("knetstat for the running kernel", lambda: modules(c))
    # A tree that dkms cannot read any more.
    c.path("/usr/src/knetstat-1.0.0/dkms.conf").unlink()

    apt(c, "purge", "knetstatd", "knetstat-dkms")
    for deb in c.path("/root").glob("*.deb"):
        deb.unlink()
    assert left(c) == []
    assert c.output("systemctl", "list-units", "--all", "--plain", "--no-legend", "knetstat*") == ""
    assert "knetstat" not in c.output("dkms", "status")
    assert c.run(["systemctl", "is-system-running"]).stdout.strip() == "running"


def test_a_chroot_without_systemd(suite: str, build: Callable[..., packages.Packages]) -> None:
    """As an image builder does: nothing is started, nothing is built, nothing fails; then the image is booted."""
    with rig.container(suite, boot=False) as c:
        said = install(c, build(suite))
        assert "rror" not in said.stdout + said.stderr
        assert c.output("dkms", "status") == "knetstat/1.0.0: added", "registered, not built"
        c.boot()
        assert active(c)
        product.wait("knetstat for the running kernel", lambda: modules(c))
    with rig.container(suite, boot=False) as c:
        install(c, build(suite))
        apt(c, "purge", "knetstatd", "knetstat-dkms")
        for deb in c.path("/root").glob("*.deb"):
            deb.unlink()
        assert left(c) == []


def test_make_install_puts_the_same_files_there(suite: str, build: Callable[..., packages.Packages], tmp_path: Path) -> None:
    """For other distributions, and `make uninstall` takes them away again; a changed configuration stays."""
    shipped = set()
    for deb in build(suite).debs():
        for name in _listed(["dpkg-deb", "--fsys-tarfile", deb], ["tar", "-t"]):
            shipped.add(name.removeprefix(".").removesuffix(".gz"))
    own = re.compile(r"/$|^/usr/share/doc/|\.dist-info/|/_vendor/")
    shipped = {_common(name) for name in shipped if not own.search(name)}
    with packages.building(suite) as machine:
        shutil.move(packages.source_tree(tmp_path), machine.root / "src")
        packages.run(machine, "make -C /src install DESTDIR=/there PREFIX=/usr")
        there = machine.root / "there"
        found = {_common(f"/{p.relative_to(there)}") for p in there.rglob("*") if not p.is_dir()}
        assert found == shipped
        # Over an earlier one, with a configuration that was changed.
        config = there / "etc/knetstatd/knetstatd.toml"
        config.write_text("settle_seconds = 1\n")
        packages.run(machine, "make -C /src install DESTDIR=/there PREFIX=/usr")
        packages.run(machine, "make -C /src uninstall DESTDIR=/there PREFIX=/usr")
        assert [p for p in there.rglob("*") if not p.is_dir()] == [config]
        shutil.copytree(machine.root / "src", tmp_path / "src")
    with rig.container(suite) as c:
        # The manuals are made already: there is no scdoc here. What pip would bring is where pip would put it.
        shutil.copytree(tmp_path / "src", c.path("/root/src"))
        [python] = c.path("/usr/local/lib").glob("python3*/dist-packages")
        shutil.copy(tmp_path / "src/vendor/inotify_simple.py", python)
        for command in readme("make install"):
            c.run(["sh", "-c", f"cd /root/src && {command}"], check=True)
        assert active(c)
        product.wait("knetstat for the running kernel", lambda: modules(c))
        product.wait("its publication has ended", lambda: c.run(["knetstatctl", "check", "--quiet"]).returncode != 75)
        for command in readme("systemctl disable"):
            c.run(["sh", "-c", f"cd /root/src && {command}"], check=True)
        assert modules(c) == []
        assert {name for name in left(c) if not name.startswith(("/var/lib/knetstatd", "/var/cache", "/run/"))} == set()


def readme(first: str) -> list[str]:
    """The block of commands in README.md that begins with `first`."""
    [block] = re.findall(rf"^    {first}.*\n(?:    .*\n)*", (packages.CHECKOUT / "README.md").read_text(), re.MULTILINE)
    return [line.strip() for line in block.splitlines()]


def _common(name: str) -> str:
    """Debian keeps two kinds of files elsewhere."""
    return re.sub(r"^/lib/", "/usr/lib/", name).replace("/zsh/vendor-completions/", "/zsh/site-functions/")


def _listed(*pipeline: list[str | Path]) -> list[str]:
    """The lines that the last of these commands prints."""
    data = b""
    for argv in pipeline:
        data = subprocess.run(argv, input=data, capture_output=True, check=True).stdout
    return data.decode().splitlines()
