# SPDX-License-Identifier: GPL-2.0-or-later
"""A module in its place, with the real dkms, depmod, modprobe and update-initramfs: each check fails for what they really do,
and passes when that is undone or cured by the fix it named."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from knetstatd.formats import elf, module_file

from . import product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rig import Container

pytestmark = pytest.mark.container

PLACES = ("updates", "extra", "weak-updates", "built-in")
SOURCE = "/usr/src/kt-good-1.0/kt_good.c"


@pytest.fixture(scope="module")
def c() -> Iterator[Container]:
    """A machine with one good module."""
    from . import rig

    with rig.container("bookworm") as made:
        made.add_fixture("good", autoinstall=False)
        product.install(made, ["kt-good"])
        made.run(["knetstatctl", "build", "running"], check=True)
        yield made


def kernel(c: Container) -> str:
    return c.kernels()[0].release


def check(c: Container, name: str) -> dict[str, str]:
    """One check of the installed module, and that the verdict goes with it."""
    found = json.loads(c.run(["knetstatctl", "verify", "--json", "-k", kernel(c)]).stdout)
    assert found["loads"] == all(each["result"] != "fail" for each in found["checks"]), found
    checks: dict[str, dict[str, str]] = {each["name"]: each for each in found["checks"]}
    return checks[name]


def do(c: Container, fix: str) -> None:
    """What a check says is to be done."""
    assert fix.startswith("Run: "), fix
    c.run(fix.removeprefix("Run: ").split(), check=True)


def shown(c: Container, *arguments: str) -> str:
    """What modprobe would do."""
    return c.run(["modprobe", "-S", kernel(c), "-n", "-v", *arguments, "kt_good"]).stdout.strip()


def test_it_is_as_dkms_built_it(c: Container) -> None:
    for name in ("winner", "origin", "modprobe", "compiler", "initrd"):
        assert check(c, name)["result"] == "pass", check(c, name)
    assert product.verdict(c)["state"] == "ready"
    # Signed by the key that dkms made; nothing on this machine makes a kernel insist.
    assert "DKMS module signing key" in check(c, "signature")["found"]
    assert check(c, "signature")["result"] == "not-applicable"


def test_a_source_that_was_changed(c: Container) -> None:
    path = c.path(SOURCE)
    path.write_text(path.read_text() + "\n/* changed */\n")
    assert check(c, "origin")["result"] == "warn"
    assert "source was changed" in check(c, "origin")["reason"]
    assert "source was changed" in product.verdict(c)["reason"]
    do(c, check(c, "origin")["fix"])
    assert check(c, "origin")["result"] == "pass"
    assert product.verdict(c)["state"] == "ready"


def test_another_file_than_the_one_that_dkms_built(c: Container) -> None:
    installed = c.path(c.output("modinfo", "-k", kernel(c), "-n", "kt_good"))
    data = installed.read_bytes()
    # Without its signature it is the same; with one bit of its text changed, it is not.
    plain = module_file.unsigned(data)
    installed.write_bytes(plain)
    assert [check(c, name)["result"] for name in ("origin", "contents")] == ["pass", "pass"]
    assert check(c, "signature")["found"] == "unsigned"
    file = elf.Elf(elf.Source(-1, 0, plain), len(plain))
    at = next(section.offset for section in file.sections if file.name(section) == b".text")
    installed.write_bytes(plain[:at] + bytes([plain[at] ^ 1]) + plain[at + 1 :])
    assert [check(c, name)["result"] for name in ("origin", "contents")] == ["warn", "fail"]
    assert "damaged" in check(c, "contents")["reason"]
    assert "Diff" in c.output("dkms", "status", "kt-good")
    do(c, check(c, "contents")["fix"])
    assert [check(c, name)["result"] for name in ("origin", "contents")] == ["pass", "pass"]


@pytest.mark.parametrize(
    ("line", "result", "does"),
    [
        ("install kt_good /bin/false", "fail", "install /bin/false"),
        ("install kt-good /sbin/modprobe --ignore-install kt_good", "warn", "install /sbin/modprobe --ignore-install kt_good"),
        ("alias kt_good off", "fail", ""),
        ("alias kt_* loop", "fail", ""),
        ("blacklist kt-good", "warn", "insmod"),
        ("blacklist kt_other", "pass", "insmod"),
    ],
)
def test_modprobes_configuration(c: Container, line: str, result: str, does: str) -> None:
    c.write("/etc/modprobe.d/00-test.conf", f"{line}\n")
    try:
        assert check(c, "modprobe")["result"] == result
        if does:
            assert shown(c).startswith(does)
        else:
            assert "kt_good" not in shown(c)
        if line.startswith("blacklist"):
            assert ("insmod" in shown(c, "-b")) == (result == "pass")
    finally:
        c.path("/etc/modprobe.d/00-test.conf").unlink()


def test_which_file_depmod_takes(c: Container) -> None:
    release = kernel(c)
    installed = c.output("modinfo", "-k", release, "-n", "kt_good")
    other = f"/lib/modules/{release}/extra/kt_good.ko"
    c.run(["mkdir", "-p", f"/lib/modules/{release}/extra"], check=True)
    data = c.path(installed).read_bytes()
    note = data.find(b"GNU\0", data.find(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0"))
    c.path(other).write_bytes(data[: note + 4] + bytes(20) + data[note + 24 :])
    c.run(["depmod", release], check=True)
    try:
        assert c.output("modinfo", "-k", release, "-n", "kt_good") == installed
        assert (check(c, "winner")["result"], other[5:] in check(c, "winner")["reason"]) == ("warn", True)
        c.write("/etc/depmod.d/00-test.conf", "search extra updates built-in\n")
        c.run(["depmod", release], check=True)
        assert c.output("modinfo", "-k", release, "-n", "kt_good") == other
        assert check(c, "winner")["result"] == "fail"
        assert product.verdict(c)["state"] == "blocked"
        assert "Another file of the same name" in product.verdict(c)["reason"]
        assert product.check(c) == 1
    finally:
        c.run(["rm", "-rf", "/etc/depmod.d/00-test.conf", f"/lib/modules/{release}/extra"], check=True)
        c.run(["depmod", release], check=True)
    assert check(c, "winner")["result"] == "pass"
    assert product.check(c) == 0


@pytest.mark.parametrize("compression", ["zstd", "gzip", "xz"])
def test_a_stale_copy_in_the_initrd(c: Container, compression: str) -> None:
    release, path = kernel(c), c.path(SOURCE)
    modules = c.path("/etc/initramfs-tools/modules")
    before = modules.read_text() if modules.exists() else ""
    c.write("/etc/initramfs-tools/modules", "kt_good\n")
    c.write("/etc/initramfs-tools/conf.d/zz-test", f"COMPRESS={compression}\n")
    try:
        c.run(["update-initramfs", "-c", "-k", release], check=True)
        assert "kt_good.ko" in c.output("lsinitramfs", f"/boot/initrd.img-{release}")
        assert check(c, "initrd")["found"] == "the same copy in it"
        path.write_text(
            path.read_text().replace(
                "static", f"static int {compression}_count = 7; int *{compression}_at = &{compression}_count;\nstatic", 1
            )
        )
        c.run(["knetstatctl", "build", release])
        assert check(c, "origin")["result"] == "pass"
        found = check(c, "initrd")
        assert (found["result"], found["fix"]) == ("fail", f"Run: update-initramfs -u -k {release}")
        assert product.verdict(c)["state"] == "blocked"
        do(c, found["fix"])
        assert check(c, "initrd")["result"] == "pass"
        assert product.verdict(c)["state"] == "ready"
    finally:
        modules.write_text(before)
        c.path("/etc/initramfs-tools/conf.d/zz-test").unlink()
        c.run(["update-initramfs", "-u", "-k", release], check=True)
    assert check(c, "initrd")["found"] == "no copy in it"


def test_a_new_version(c: Container) -> None:
    c.run(["cp", "-r", "/usr/src/kt-good-1.0", "/usr/src/kt-good-2.0"], check=True)
    conf = c.path("/usr/src/kt-good-2.0/dkms.conf")
    conf.write_text(conf.read_text().replace('"1.0"', '"2.0"'))
    c.run(["dkms", "add", "kt-good/2.0"], check=True)
    found = check(c, "origin")
    assert (found["result"], found["expected"], found["found"]) == ("warn", "2.0", "1.0")
    do(c, found["fix"])
    assert (check(c, "origin")["result"], check(c, "origin")["expected"]) == ("pass", "2.0")
    assert "kt-good/2.0" in c.output("dkms", "status", "-k", kernel(c))


def installed_file(c: Container) -> str:
    return c.output("modinfo", "-k", kernel(c), "-n", "kt_good")


def test_what_loads_it_at_boot(c: Container) -> None:
    """As systemd-modules-load reads its directories; modules cannot be loaded here, and it says which it tried."""
    tried = ["env", "SYSTEMD_LOG_LEVEL=debug", "/usr/lib/systemd/systemd-modules-load"]
    assert check(c, "boot")["result"] == "not-applicable"
    assert "Module 'kt_good'" not in c.run(tried).stderr
    c.write("/etc/modules-load.d/00-test.conf", "# ours\nkt-good\n")
    try:
        assert check(c, "boot")["found"] == "loaded at boot: /etc/modules-load.d/00-test.conf line 2"
        assert "kt_good" in c.run(tried).stderr.replace("kt-good", "kt_good")
        c.write("/etc/modprobe.d/00-test.conf", "blacklist kt_good\n")
        assert check(c, "modprobe")["result"] == "fail", "it is to be loaded at boot, and will not be"
        c.path("/etc/modprobe.d/00-test.conf").unlink()
        assert check(c, "modprobe")["result"] == "pass"
    finally:
        c.path("/etc/modules-load.d/00-test.conf").unlink()


def test_depmod_has_not_run(c: Container) -> None:
    release = kernel(c)
    file = c.path(installed_file(c))
    away = c.path("/root/away.ko")
    file.rename(away)
    try:
        found = check(c, "depmod")
        assert (found["result"], found["found"], "is gone" in found["reason"]) == ("fail", "no such file", True)
        assert c.run(["modinfo", "-k", release, "-F", "vermagic", "kt_good"]).returncode != 0
        c.run(["depmod", release], check=True)
        away.rename(file)
        found = check(c, "depmod")
        assert (found["result"], found["fix"]) == ("fail", f"Run: depmod {release}")
        assert "modules.dep lacks it" in found["reason"]
        assert c.run(["modprobe", "-S", release, "-n", "kt_good"]).returncode != 0
        do(c, found["fix"])
        assert check(c, "depmod")["result"] == "pass"
        assert c.run(["modprobe", "-S", release, "-n", "kt_good"]).returncode == 0
    finally:
        if away.exists():
            away.rename(file)
        c.run(["depmod", release], check=True)


@pytest.mark.parametrize("order", [PLACES[i:] + PLACES[:i] for i in range(len(PLACES))], ids=PLACES)
def test_the_place_that_depmod_prefers(c: Container, order: tuple[str, ...]) -> None:
    """A file in every place that distributions use, each another build: whichever modprobe takes is the one that is judged."""
    release = kernel(c)
    tree = c.path(f"/lib/modules/{release}")
    data = c.path(installed_file(c)).read_bytes()
    note = data.find(b"GNU\0", data.find(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0"))
    places = {"extra": tree / "extra", "weak-updates": tree / "weak-updates", "built-in": tree / "kernel/drivers/net"}
    for number, place in enumerate(places.values()):
        place.mkdir(exist_ok=True)
        (place / "kt_good.ko").write_bytes(data[: note + 4] + bytes([number]) * 20 + data[note + 24 :])
    listed = tree / "modules.order"
    before = listed.read_text()
    listed.write_text(f"{before}kernel/drivers/net/kt_good.ko\n")
    c.write("/etc/depmod.d/00-test.conf", f"search {' '.join(order)}\n")
    try:
        c.run(["depmod", release], check=True)
        taken = installed_file(c)
        under = {"updates": "updates/dkms", "built-in": "kernel/drivers/net"}.get(order[0], order[0])
        assert taken == f"/lib/modules/{release}/{under}/kt_good.ko"
        found = check(c, "winner")
        assert found["file"].endswith(taken)
        assert found["result"] == ("warn" if order[0] == "updates" else "fail"), found
        assert product.check(c) == (0 if order[0] == "updates" else 1)
        if order[0] == "built-in":
            assert found["fix"] == "Put `updates` before `built-in` there"
    finally:
        for directory in places.values():
            (directory / "kt_good.ko").unlink()
        c.path("/etc/depmod.d/00-test.conf").unlink()
        listed.write_text(before)
        c.run(["depmod", release], check=True)
    assert check(c, "winner")["result"] == "pass"


def test_another_package_that_makes_the_same_module(c: Container) -> None:
    """dkms lets the second one overwrite the file of the first, and calls both installed."""
    release = kernel(c)
    c.run(["cp", "-r", "/usr/src/kt-good-1.0", "/usr/src/kt-other-1.0"], check=True)
    conf, source = c.path("/usr/src/kt-other-1.0/dkms.conf"), c.path("/usr/src/kt-other-1.0/kt_good.c")
    conf.write_text(conf.read_text().replace("kt-good", "kt-other").replace('VERSION="2.0"', 'VERSION="1.0"'))
    more = "int kt_other_count = 7;\nint *kt_other_at = &kt_other_count;\nstatic"
    source.write_text(source.read_text().replace("static", more, 1))
    install = ["dkms", "install", "--force", "kt-other/1.0", "-k", release]
    c.run(install, check=True)
    found = check(c, "origin")
    assert (found["result"], found["fix"]) == ("warn", f"Run: knetstatctl build {release}")
    assert found["reason"] == "The installed file is of kt-other/1.0, which makes a module of this name too"

    # The one that is guarded gets its file back.
    do(c, found["fix"])
    assert check(c, "origin")["result"] == "pass"
    assert c.output("dkms", "status", "kt-other").count("Diff") == 1

    # Where both are, neither takes it from the other for ever.
    c.run(install, check=True)
    c.write("/etc/knetstatd/knetstatd.toml.d/50-all.toml", 'modules = ["*"]\n')
    before = len(product.kinds(c))
    c.start_product()
    ours, other = product.verdicts(c)
    assert (ours["package"], ours["state"], other["package"], other["state"]) == ("kt-good", "blocked", "kt-other", "ready")
    assert ours["reason"].startswith("kt-other/1.0 makes a module of this name too")
    assert "dkms remove kt-other/1.0 --all; delete its source" in ours["fix"]
    time.sleep(5)
    assert "stage-started" not in product.kinds(c)[before:]
    c.run(["dkms", "remove", "kt-other/1.0", "--all"], check=True)
    c.run(["rm", "-r", "/usr/src/kt-other-1.0"], check=True)
    product.wait_ready(c)
    [ours] = product.verdicts(c)
    assert (ours["package"], ours["state"]) == ("kt-good", "ready")
    assert product.kinds(c)[before:].count("stage-started") == 1
