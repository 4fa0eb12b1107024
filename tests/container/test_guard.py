# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel arrives: the module is built for it and proven, without help, and nobody is disturbed."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest

from . import product

if TYPE_CHECKING:
    from .rig import Container

pytestmark = pytest.mark.container


def ordered(story: list[str], wanted: list[str]) -> bool:
    """Whether `wanted` occurs in `story` in this order, other things in between."""
    rest = iter(story)
    return all(kind in rest for kind in wanted)


@pytest.mark.parametrize("autoinstall", [False, True], ids=["ours", "hook"])
def test_a_kernel_is_installed_and_the_module_is_ready_before_the_reboot(machine: Container, autoinstall: bool) -> None:
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=autoinstall)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    apt = c.start(c.install_argv(new))
    codes = product.codes_during(c, apt)
    done = apt.wait()
    assert done.returncode == 0, done.stderr
    # 0 is for the old kernel, until the new one is the next; then the truth about the new one.
    assert codes in ([0, 75, 0], [75, 0]), codes
    assert c.package_state(new.image) == "ii"
    assert c.package_state(new.headers) == "ii"
    product.right_module(c, new, "kt_good")
    assert product.verdict(c)["kernel"] == new.release
    assert product.verdict(c)["proof"] == "analysed"
    story = product.story(c, new.release)
    ours = ["kernel-seen", "stage-started", "staged", "publish-started", "published", "ready"]
    assert ordered(story, ["kernel-seen", "ready"] if autoinstall else ours), story
    if autoinstall:
        assert "publish-started" not in story, "what the distribution's hook built well is left alone"
    assert story.count("ready") == 1
    assert product.check(c, old.release) == 0


def test_nothing_shared_is_touched_before_the_package_manager_is_done(machine: Container) -> None:
    """Watched from outside: what is in dkms's tree and in the kernel's updates, and when."""
    c = machine
    _, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    # A package whose configuration takes its time keeps the transaction open after the kernel is there.
    slow = "#!/bin/sh\nfor i in $(seq 300); do [ -e /run/go-on ] || sleep 0.2; done\n"
    c.write("/etc/kernel/postinst.d/zzz-slow", slow, 0o755)
    apt = c.start(c.install_argv(new))
    tree, updates = c.path(f"/var/lib/dkms/kt-good/1.0/{new.release}"), c.path(f"/lib/modules/{new.release}/updates")
    staged_meanwhile = False
    while apt.running():
        if tree.exists() or list(updates.rglob("*.ko*")):
            assert not apt.running(), "the shared trees were touched while apt ran"
        if not staged_meanwhile and "staged" in product.kinds(c, kernel=new.release):
            staged_meanwhile = True
            time.sleep(1)
            c.write("/run/go-on", "")
    assert apt.wait().returncode == 0
    assert staged_meanwhile, "compiling need not wait for apt"
    product.wait_ready(c, new.release)
    assert tree.exists()
    assert list(updates.rglob("*.ko*"))


def test_the_story(machine: Container) -> None:
    """The hook builds for the wrong kernel, plain dkms says installed; the guard finds it, cures it and names the line."""
    c = machine
    _, new = c.kernels()[:2]
    old = c.output("uname", "-r")
    c.add_fixture("story")
    c.install_kernel(new)
    assert f"kt-story/1.0, {new.release}, x86_64: installed" in c.output("dkms", "status")
    assert c.vermagic(new, "kt_story").split()[0] == old, "plain dkms: installed, and built for the wrong kernel"
    product.start(c, ["kt-story"])
    product.wait_ready(c, new.release)
    product.right_module(c, new, "kt_story")
    story = product.story(c, new.release)
    assert ordered(story, ["wrong-module", "stage-started", "staged", "publish-started", "published", "ready"]), story
    explained = c.output("knetstatctl", "explain", new.release)
    assert "Makefile line 4 reads the running kernel and sets KSRC, which dkms.conf does not set" in explained
    assert "KSRC ?= /lib/modules/$(shell uname -r)/build" in explained


def test_the_story_while_the_daemon_runs(machine: Container) -> None:
    c = machine
    _, new = c.kernels()[:2]
    c.add_fixture("story")
    product.start(c, ["kt-story"])
    product.wait_ready(c)
    done = c.install_kernel(new)
    assert done.returncode == 0
    product.wait_ready(c, new.release)
    product.right_module(c, new, "kt_story")
    assert c.package_state(new.image) == "ii"


def test_a_module_that_cannot_compile(machine: Container) -> None:
    """One loud entry with the compiler's line; nothing more until something changes; then it heals."""
    c = machine
    old = c.kernels()[0]
    c.add_fixture("nocompile", autoinstall=False)
    product.start(c, ["kt-nocompile"])
    product.wait("it gives up", lambda: "gave-up" in product.kinds(c, "kt-nocompile"))
    assert product.check(c, old.release) == 1
    [loud] = [e for e in product.events(c, "kt-nocompile") if e["KNETSTATD_EVENT"] == "gave-up"]
    assert loud["PRIORITY"] == "3"
    assert "kt_nocompile.c" in loud["KNETSTATD_EVIDENCE"]
    assert "error:" in loud["KNETSTATD_EVIDENCE"]
    assert loud["KNETSTATD_FIX"]
    found = product.verdict(c, old.release)
    assert found["ready"] is False
    assert "kt_nocompile.c line" in found["reason"]
    assert found["fix"]
    assert found["log"]
    assert "error:" in c.path(found["log"]).read_text()
    attempts = product.kinds(c, "kt-nocompile").count("stage-started")
    c.run(["systemctl", "kill", "-s", "HUP", "knetstatd"], check=True)  # everything is looked at again
    product.wait("the reload", lambda: "config-loaded" in product.kinds(c))
    c.run(["systemctl", "restart", "knetstatd"], check=True)
    product.wait("it says so again", lambda: product.kinds(c, "kt-nocompile").count("gave-up") == 2)
    assert product.kinds(c, "kt-nocompile").count("stage-started") == attempts == 1
    # The source changes: another attempt, and it is good.
    source = c.path("/usr/src/kt-nocompile-1.0/kt_nocompile.c")
    source.write_text(c.path("/usr/src/kt-nocompile-1.0/kt_nocompile.c").read_text())
    good = (product.CHECKOUT / "tests/fixtures/good/kt_good.c").read_text().replace("kt_good", "kt_nocompile")
    source.write_text(good)
    c.run(["systemctl", "reload", "knetstatd"], check=True)
    product.wait_ready(c, old.release)


def test_the_source_and_the_compiler_change(machine: Container) -> None:
    """Nothing else moves: no kernel, nothing in dkms, no reload."""
    c = machine
    kernel = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    c.write("/usr/src/kt-good-1.0/deep/er/own.h", "/* a */\n")
    product.start(c, ["kt-good"])
    product.wait_ready(c)

    def built() -> int:
        return product.kinds(c, "kt-good").count("published")

    def failed() -> int:
        return product.kinds(c, "kt-good").count("gave-up")

    assert built() == 1
    # Each file alone, also one in a directory below.
    c.write("/usr/src/kt-good-1.0/deep/er/own.h", "/* b */\n")
    product.wait("it is built again", lambda: built() == 2)
    product.wait_ready(c)
    good = c.path("/usr/src/kt-good-1.0/kt_good.c").read_text()
    c.write("/usr/src/kt-good-1.0/kt_good.c", "int x y;\n")
    product.wait("it does not compile", lambda: failed() == 1)
    c.write("/usr/src/kt-good-1.0/kt_good.c", good)
    product.wait_ready(c)
    assert built() == 2, "the installed module is of that source"

    # A failure that may be the compiler's is tried again when a package has brought another one.
    c.write("/usr/src/kt-good-1.0/kt_good.c", "int x y;\n")
    product.wait("it does not compile", lambda: failed() == 2)
    attempts = product.kinds(c, "kt-good").count("stage-started")
    config = c.path(f"/usr/src/linux-headers-{kernel.release}/.config").read_text()
    gcc = config.partition('CONFIG_CC_VERSION_TEXT="')[2].split()[0]
    c.write("/srv/p/DEBIAN/control", "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n")
    c.write("/srv/p/DEBIAN/postinst", f"#!/bin/sh\ntouch /usr/bin/{gcc}\n", 0o755)
    c.run(["dpkg-deb", "--build", "/srv/p", "/srv/p.deb"], check=True)
    c.run(["dpkg", "--install", "/srv/p.deb"], check=True)
    product.wait("it is tried again", lambda: product.kinds(c, "kt-good").count("stage-started") == attempts + 1)


def test_an_undefined_symbol_is_named(machine: Container) -> None:
    c = machine
    c.add_fixture("undef", autoinstall=False)
    product.install(c, ["kt-undef"])
    done = c.run(["knetstatctl", "build", "running"])
    assert done.returncode == 1
    found = product.verdict(c, "running")
    assert "the kernel does not export the symbol" in found["reason"]
    assert not list(c.path("/var/lib/dkms/kt-undef/1.0").glob("[0-9]*")), "nothing was published"


def test_noise_forges_nothing(machine: Container) -> None:
    """Megabytes of output, control characters, lines that look like journal fields: a quiet journal, a kept log."""
    c = machine
    c.add_fixture("noisy", autoinstall=False, files={"outcome": "false\n"})
    product.start(c, ["kt-noisy"])
    product.wait("it gives up", lambda: "gave-up" in product.kinds(c, "kt-noisy"))
    entries = c.journal("knetstatd.service")
    ours = [e for e in entries if "KNETSTATD_EVENT" in e]
    assert all(e["MESSAGE"].isprintable() for e in ours)
    assert all(line.isprintable() for e in ours for line in e.get("KNETSTATD_EVIDENCE", "").splitlines())
    assert len(entries) < 40
    log = c.path(product.verdict(c, "running")["log"])
    assert 1000 < log.stat().st_size < 2 << 20


def test_the_headers_go_and_come_back_of_another_build(machine: Container) -> None:
    """The kernel's image proves what is there. Headers that contradict it are red: nothing good can be built with them."""
    c = machine
    kernel = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    loose = c.output("modinfo", "-k", kernel.release, "-n", "kt_good").strip()
    c.run(["apt-get", "-q", "-y", "purge", kernel.headers], check=True, timeout=300)
    found = {check["name"]: check for check in proof(c)}
    assert found["symbols"]["found"] == f"all exported, by /boot/vmlinuz-{kernel.release}"
    assert "headers" not in found
    assert product.check(c, "running") == 0
    assert c.run(["knetstatctl", "verify", loose, "--kernel", kernel.release]).returncode == 0
    product.wait("the daemon has looked", lambda: product.verdict(c, "running")["state"] == "ready")
    c.install_kernel(kernel, image=False)
    version = next(c.path("/usr/src").glob(f"linux-headers-{kernel.release}/include/generated/utsversion.h"))
    version.write_text(re.sub(r"Debian [0-9.]+-[0-9]+", "Debian 1.2-3", version.read_text()))
    found = {check["name"]: check for check in proof(c)}
    assert (found["headers"]["result"], "Debian 1.2-3" in found["headers"]["found"]) == ("warn", True)
    assert product.check(c, "running") == 0
    table = c.path(f"/usr/src/linux-headers-{kernel.release}/Module.symvers")
    other = re.sub(r"^0x[0-9a-f]{8}\tseq_printf\t", "0x12345678\tseq_printf\t", table.read_text(), flags=re.MULTILINE)
    table.write_text(other)
    product.wait("red", lambda: product.check(c, "running") == 1)
    [headers] = [check for check in proof(c) if check["name"] == "headers"]
    assert headers["result"] == "fail"
    assert "Debian 1.2-3" in headers["found"]
    assert kernel.headers in headers["fix"]


def proof(c: Container) -> list[dict[str, str]]:
    """The checks of the guarded module on the running kernel."""
    checks: list[dict[str, str]] = json.loads(c.run(["knetstatctl", "verify", "--json", "-k", "running"]).stdout)["checks"]
    return checks


def test_image_before_headers_and_headers_later(machine: Container) -> None:
    c = machine
    _, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    c.install_kernel(new, headers=False)
    product.wait("red", lambda: product.check(c, new.release) == 1)
    found = product.verdict(c, new.release)
    assert found["state"] == "headers-missing"
    assert found["fix"].startswith(f"Run: apt install {new.headers}")
    product.wait("it is said", lambda: "headers-missing" in product.kinds(c, kernel=new.release), 20)
    [said] = [e for e in product.events(c, kernel=new.release) if e["KNETSTATD_EVENT"] == "headers-missing"]
    assert new.headers in said["KNETSTATD_FIX"]
    c.install_kernel(new, image=False)
    product.wait_ready(c, new.release)
    product.right_module(c, new, "kt_good")


def test_headers_before_image(machine: Container) -> None:
    c = machine
    _, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    c.install_kernel(new, image=False)
    if not c.package_state(new.image):  # Debian 13's headers bring their image with them
        status = c.output("knetstatctl", "status")
        assert f"{new.release}  not guarded (headers or an orphan)" in status
        assert not c.path(f"/var/lib/dkms/kt-good/1.0/{new.release}").exists()
    c.install_kernel(new, headers=False)
    product.wait_ready(c, new.release)


def test_headers_are_fetched_where_the_configuration_says_so(machine: Container) -> None:
    c = machine
    _, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"], headers="install")
    product.wait_ready(c)
    c.install_kernel(new, headers=False)
    product.wait_ready(c, new.release)
    assert "headers-installed" in product.kinds(c, kernel=new.release)
    assert c.package_state(new.headers) == "ii"


def test_the_kernel_is_purged_during_the_build(machine: Container) -> None:
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("slow", autoinstall=False, files={"delay": "8\n"})
    product.start(c, ["kt-slow"])
    product.wait_ready(c, timeout=120)
    c.install_kernel(new)
    product.wait("the build runs", lambda: "stage-started" in product.kinds(c, kernel=new.release))
    c.run(["apt-get", "-q", "-y", "purge", new.image, new.headers], check=True, timeout=120)
    product.wait("it is seen", lambda: "kernel-removed" in product.kinds(c, kernel=new.release))
    product.wait("the builder ended", lambda: not c.run(["pgrep", "-f", "[k]netstatctl (build|compile)"]).stdout)
    product.wait("nothing is left", lambda: not _left_of(c, new.release))
    assert product.check(c) == 0
    assert product.verdict(c)["kernel"] == old.release


def _left_of(c: Container, release: str) -> list[str]:
    places = ("/var/lib/knetstatd", "/var/lib/dkms", "/lib/modules")
    return [str(p) for place in places for p in c.path(place).rglob(f"*{release}*")]


def test_hostile_names_run_nothing(machine: Container) -> None:
    c = machine
    for name in ("6.1.0-$(touch x)", "6.1.0-$(touch${IFS}$HOME)", "..6", "-rf", "new\nline"):
        c.path(f"/lib/modules/{name.replace('/', '')}/kernel").mkdir(parents=True)
        c.write(f"/boot/vmlinuz-{name}", "x")
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"], kernels="all")
    product.wait_ready(c, "running")
    refused = [e for e in product.events(c) if e["KNETSTATD_EVENT"] == "name-refused"]
    assert len(refused) == 5
    assert all(e["MESSAGE"].isprintable() for e in refused)
    assert not list(c.root.glob("x")) + list(c.path("/root").glob("x")) + list(c.path("/var/lib/knetstatd").rglob("x"))
    done = c.run(["knetstatctl", "build", "6.1.0-$(touch x)"])
    assert done.returncode == 2
    assert "is not a kernel release" in done.stderr
    assert not list(c.root.glob("x"))


SECOND = """
BUILT_MODULE_NAME[1]="kt_second"
BUILT_MODULE_LOCATION[1]="."
DEST_MODULE_LOCATION[1]="/updates"
"""


def test_modules_of_one_package_that_need_each_other(machine: Container) -> None:
    """The one uses what the other exports; neither is installed when the first is proven."""
    c = machine
    kernel = c.kernels()[0]
    source = c.path("/usr/src/kt-good-1.0")
    c.add_fixture("good", autoinstall=False)
    for path, text in (
        ("dkms.conf", SECOND),
        ("Makefile", "\nobj-m += kt_second.o\n"),
        ("kt_good.c", "\nint kt_shared(void);\nint kt_shared(void)\n{\n\treturn 0;\n}\nEXPORT_SYMBOL(kt_shared);\n"),
    ):
        (source / path).write_text((source / path).read_text() + text)
    code = "int kt_shared(void);\nstatic int __init kt_init(void)\n{\n\treturn kt_shared();\n}\nmodule_init(kt_init);\n"
    (source / "kt_second.c").write_text(f'#include <linux/module.h>\n{code}MODULE_LICENSE("GPL");\nMODULE_DESCRIPTION("x");\n')
    product.install(c, ["kt-good"])
    done = c.run(["knetstatctl", "build", kernel.release])
    assert done.returncode == 0, done.stdout + done.stderr
    listed = c.output("modprobe", "-S", kernel.release, "--show-depends", "kt_second")
    assert [line.split("/")[-1].partition(".")[0] for line in listed.splitlines()] == ["kt_good", "kt_second"]


def test_a_removed_module_is_red_within_seconds(machine: Container) -> None:
    """Also where the directory itself was made again since the watches were set."""
    c = machine
    kernel = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"], resync_seconds=86400)

    def shown() -> bool:
        verdict: bool = json.loads(c.output("cat", "/run/knetstatd/status.json"))["ready"]
        return verdict

    for gone in ("kt_good.ko*", "kt_good.ko*", "", "kt_good.ko*"):
        product.wait("it is green", shown)
        time.sleep(2 * product.SETTLE + 1)
        assert shown()
        c.run(["sh", "-c", f"rm -r /lib/modules/{kernel.release}/updates/dkms/{gone}"], check=True)
        product.wait("it is red", lambda: not shown(), 10)


def test_a_package_that_leaves_dkms_with_its_last_kernel_stays_red(machine: Container) -> None:
    """dkms's own hook drops a package when the last kernel that has it is removed (3.0); here somebody else does it, too."""
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    c.add_fixture("nocompile", autoinstall=False)
    c.install_kernel(new)
    c.run(["dkms", "install", "kt-good/1.0", "-k", old.release], check=True)
    c.set_running(new)
    c.reboot(new)
    product.start(c, ["*"])
    product.wait("the failure is final", lambda: "gave-up" in product.kinds(c, "kt-nocompile", new.release))
    c.run(["systemctl", "stop", "knetstatd"], check=True)
    c.run(["dkms", "remove", "kt-nocompile/1.0", "--all"], check=True)
    c.run(["apt-get", "-q", "-y", "purge", old.image, old.headers], check=True, timeout=300)
    assert "kt-nocompile" not in c.output("dkms", "status")
    assert product.check(c) == 1
    [red] = [v for v in product.verdicts(c) if v["package"] == "kt-nocompile"]
    assert (red["state"], red["fix"]) == ("source-missing", "dkms add kt-nocompile/1.0")
    c.start_product()
    said = product.wait("it is said", lambda: [e for e in product.events(c) if e["KNETSTATD_EVENT"] == "package-gone"])
    assert [e["KNETSTATD_PACKAGE"] for e in said] == ["kt-nocompile"]
    c.run(["systemctl", "restart", "knetstatd"], check=True)
    shown = c.run(["knetstatctl", "repair", "--all", "--dry-run"])
    assert (shown.returncode, "dkms add kt-nocompile/1.0" in shown.stdout) == (1, True)
    c.run(["knetstatctl", "repair", "--all", "--yes"], timeout=300)
    assert "kt-nocompile" in c.output("dkms", "status")
    c.run(["dkms", "remove", "kt-good/1.0", "--all"], check=True)
    product.wait("it is red while its source is there", lambda: product.check(c) == 1 and "kt-good" in status(c))
    c.run(["rm", "-r", "/usr/src/kt-good-1.0"], check=True)
    product.wait("it is forgotten", lambda: "kt-good" not in status(c))
    # A compilation that was begun while dkms was at it ends with the same event.
    said = [e for e in product.events(c) if e["KNETSTATD_EVENT"] == "package-gone"]
    assert {e["KNETSTATD_PACKAGE"] for e in said} == {"kt-nocompile", "kt-good"}


def status(c: Container) -> set[str]:
    shown: list[str] = json.loads(c.output("cat", "/run/knetstatd/status.json"))["packages"]
    return set(shown)
