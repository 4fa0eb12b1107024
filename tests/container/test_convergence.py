# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages that are odd in one way each: none is called ready without its own module, none is built for ever, and none keeps
the others from being looked after."""

from __future__ import annotations

import functools
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from . import product

if TYPE_CHECKING:
    from .rig import Container, Kernel

pytestmark = pytest.mark.container

SOURCE = """\
#include <linux/module.h>
static int __init {name}_init(void)
{{
	pr_info("of {package}\\n");
	return 0;
}}
static void __exit {name}_exit(void)
{{
}}
module_init({name}_init);
module_exit({name}_exit);
MODULE_LICENSE("GPL");
"""
CONF = """\
PACKAGE_NAME="{package}"
PACKAGE_VERSION="1.0"
MAKE[0]="make -C ${{kernel_source_dir}} M=${{dkms_tree}}/${{PACKAGE_NAME}}/${{PACKAGE_VERSION}}/build modules"
CLEAN="true"
"""


def register(c: Container, package: str, *modules: str, more: str = "", files: dict[str, str] | None = None) -> None:
    """A package that makes these modules. more: lines of its dkms.conf.  files: others of its source."""
    source = f"/usr/src/{package}-1.0"
    c.path(source).mkdir()
    for name in modules:
        c.write(f"{source}/{name}.c", SOURCE.format(name=name, package=package))
    c.write(f"{source}/Makefile", "".join(f"obj-m += {name}.o\n" for name in modules))
    lines = "".join(
        f'BUILT_MODULE_NAME[{i}]="{name}"\nDEST_MODULE_LOCATION[{i}]="/updates"\n' for i, name in enumerate(modules)
    )
    c.write(f"{source}/dkms.conf", CONF.format(package=package) + lines + more)
    for name, text in (files or {}).items():
        c.write(f"{source}/{name}", text, 0o755)
    c.run(["dkms", "add", f"{package}/1.0"], check=True)


def settled(c: Container, kernel: Kernel, count: int) -> dict[str, dict[str, Any]]:
    """The daemon's verdicts for a kernel when nothing is being done any more."""

    def found() -> list[dict[str, Any]] | None:
        outcome = json.loads(c.output("cat", "/run/knetstatd/status.json"))["verdicts"]
        verdicts = [verdict for verdict in outcome if verdict["kernel"] == kernel.release]
        done = len(verdicts) == count and not any(v["in_progress"] for v in verdicts)
        return verdicts if done and c.run(["pgrep", "-f", "[k]netstatctl build"]).returncode else None

    verdicts: list[dict[str, Any]] = product.wait("nothing is in progress", found, 600)
    return {verdict["package"]: verdict for verdict in verdicts}


@pytest.mark.timeout(2400)  # seven packages for two kernels: with a load of 27, the builds alone took 285 and 221 s
def test_odd_packages(machine: Container) -> None:
    c = machine
    old, new = c.kernels()[:2]
    # Its module's name is one of the kernel's own; so is the other's, of one that is built in.
    register(c, "kt-shadow", "dummy")
    register(c, "kt-builtin", "tcp_cubic")
    # Obsolete: the kernel's own is right.
    register(c, "kt-obsolete", "veth", more='OBSOLETE_BY="5.0"\n')
    # The file has another name than the module.
    register(c, "kt-named", "kt_inner", more='DEST_MODULE_NAME[0]="kt_outer"\n')
    c.write("/etc/modprobe.d/kt.conf", "install kt_outer /bin/false\n")
    # Two that make the same module.
    register(c, "kt-one", "kt_same")
    register(c, "kt-two", "kt_same")
    # One of two modules is taken away as soon as it is installed.
    away = "#!/bin/sh\nrm -f /lib/modules/*/updates/dkms/kt_b.ko*\n"
    register(c, "kt-pair", "kt_a", "kt_b", more='POST_INSTALL="away.sh"\n', files={"away.sh": away})
    register(c, "kt-plain", "kt_plain")
    product.start(c, ["*"], retry_first_seconds=600)

    for kernel in (old, new):
        if kernel is new:
            c.install_kernel(new)
        found = settled(c, kernel, 8)
        states = {module: verdict["state"] for module, verdict in found.items()}
        assert states == {
            "kt-shadow": "ready", "kt-builtin": "blocked", "kt-obsolete": "ready", "kt-named": "blocked", "kt-one": "ready",
            "kt-two": "blocked", "kt-pair": "failed", "kt-plain": "ready",
        }  # fmt: skip
        assert "/updates/dkms/" in c.output("modinfo", "-k", kernel.release, "-n", "dummy")
        assert "/kernel/" in c.output("modinfo", "-k", kernel.release, "-n", "veth")
        assert "built in" in found["kt-builtin"]["reason"]
        assert "install /bin/false" in c.run(["modprobe", "-S", kernel.release, "-n", "-v", "kt_outer"]).stdout
        assert found["kt-two"]["reason"].startswith("kt-one/1.0 makes a module of this name too")
        assert "kt_b.ko: The module is not installed" in found["kt-pair"]["reason"]
        assert product.check(c) == 1
        for module in found:
            kinds = product.kinds(c, module, kernel=kernel.release)
            assert kinds.count("stage-started") <= 1, (module, kinds)
            assert kinds.count("published") == (module not in ("kt-obsolete", "kt-two", "kt-pair")), (module, kinds)
    time.sleep(5)
    assert product.kinds(c, kernel=new.release).count("stage-started") == 6, "nothing is done again"

    # What is in the way goes.
    c.path("/etc/modprobe.d/kt.conf").unlink()
    c.run(["dkms", "remove", "kt-one/1.0", "--all"], check=True)
    c.write("/usr/src/kt-pair-1.0/away.sh", "#!/bin/sh\n", 0o755)
    for module in ("kt-named", "kt-two", "kt-pair"):
        product.wait(f"{module} is ready", lambda m=module: settled(c, new, 8)[m]["state"] == "ready", 600)  # type: ignore[misc]
    left = settled(c, new, 8)["kt-one"]
    assert (left["ready"], "its source is in /usr/src/kt-one-1.0" in left["reason"]) == (False, True), "the file is kt-two's"
    c.run(["rm", "-r", "/usr/src/kt-one-1.0"], check=True)
    assert "kt-one" not in settled(c, new, 7)


def test_what_our_services_cannot_see(machine: Container) -> None:
    """A source in somebody's home, headers in root's: told of that one, and the others are looked after."""
    c = machine
    old, new = c.kernels()[:2]
    register(c, "kt-plain", "kt_plain")
    register(c, "kt-home", "kt_home")
    c.run(["mkdir", "/home/dev"], check=True)
    c.run(["mv", "/usr/src/kt-home-1.0", "/home/dev"], check=True)
    c.run(["ln", "-s", "/home/dev/kt-home-1.0", "/usr/src"], check=True)
    product.start(c, ["*"])
    found = settled(c, old, 2)
    assert found["kt-plain"]["state"] == "ready"
    assert (found["kt-home"]["ready"], found["kt-home"]["state"]) == (False, "source-broken")
    assert "/home/dev/kt-home-1.0, where knetstatd's services may not look" in found["kt-home"]["reason"]
    c.install_kernel(new)
    assert settled(c, new, 2)["kt-plain"]["state"] == "ready"
    build = f"/lib/modules/{new.release}/build"
    c.run(["sh", "-ec", f"cp -a $(readlink -f {build}) /root/linux; ln -sfn /root/linux {build}"], check=True)
    c.run(["rm", "-r", f"/lib/modules/{new.release}/updates"], check=True)
    c.run(["depmod", new.release], check=True)
    product.wait("that is told", lambda: settled(c, new, 2)["kt-plain"]["state"] == "headers-missing")
    assert "/root/linux, where knetstatd's services may not look" in settled(c, new, 2)["kt-plain"]["reason"]
    assert c.output("systemctl", "show", "--property=NRestarts", "--value", "knetstatd") == "0"


def test_a_hook_that_changes_what_was_installed(bookworm: Container) -> None:
    """What is more than a signature is another file: it is built once, and not again and again."""
    c = bookworm
    for name, change in (("bare", "--strip-debug"), ("more", "--add-section .site=/etc/hostname")):
        hook = f"#!/bin/sh\nobjcopy {change} /lib/modules/$kernelver/updates/dkms/kt_{name}.ko\n"
        register(c, f"kt-{name}", f"kt_{name}", more='POST_INSTALL="hook.sh"\n', files={"hook.sh": hook})
        # A build ID would stay what it was.
        conf = c.path(f"/usr/src/kt-{name}-1.0/dkms.conf")
        conf.write_text(conf.read_text().replace("build modules", "build modules LDFLAGS_MODULE=--build-id=none"))
    product.start(c, ["*"], retry_first_seconds=1, retry_longest_seconds=2)
    product.wait("given up", lambda: "gave-up" in product.kinds(c, "kt-more"))
    time.sleep(6)
    found = {verdict["package"]: verdict for verdict in product.verdicts(c)}
    assert product.kinds(c, "kt-more").count("publish-started") == 1
    assert "POST_INSTALL in dkms.conf, or a hook of this machine, has changed it" in found["kt-more"]["reason"]
    assert "another kernel" not in "\n".join(e["MESSAGE"] for e in product.events(c, "kt-more"))
    # dkms strips debug information itself: what is left to take off is the signature, which this kernel does not ask for.
    assert product.kinds(c, "kt-bare").count("publish-started") == 1
    assert found["kt-bare"]["state"] == "ready"


def test_a_package_that_is_built_after_another(machine: Container) -> None:
    """dkms 3.2 does not build it before; whichever is guarded first, both are ready."""
    c = machine
    old, new = c.kernels()[:2]
    register(c, "kt-after", "kt_after", more='BUILD_DEPENDS[0]="kt-before"\n')
    register(c, "kt-before", "kt_before")
    product.start(c, ["kt-after", "kt-before"], retry_first_seconds=1, retry_longest_seconds=2)
    for kernel in (old, new):
        if kernel is new:
            c.install_kernel(new)
        product.wait("both are ready", functools.partial(_all_ready, c, kernel), 120)
        for module in ("kt_after", "kt_before"):
            product.right_module(c, kernel, module)
    assert c.output("sh", "-c", "ls -d /var/lib/dkms/*/*/source | wc -l") == "2"


def _all_ready(c: Container, kernel: Kernel) -> bool:
    return {verdict["state"] for verdict in settled(c, kernel, 2).values()} == {"ready"}


def test_a_source_that_is_not_for_everybody(bookworm: Container) -> None:
    """Copied with umask 077: what compiles has no privileges. That is told, and so is the cure, which works."""
    c = bookworm
    old = c.kernels()[0]
    register(c, "kt-plain", "kt_plain")
    c.run(["chmod", "-R", "go-rwx", "/usr/src/kt-plain-1.0"], check=True)
    product.start(c, ["kt-plain"])
    found = settled(c, old, 1)["kt-plain"]
    assert (found["ready"], found["state"]) == (False, "source-broken")
    assert "chmod -R a+rX /usr/src/kt-plain-1.0" in found["reason"]
    assert "Nothing to repair" in c.run(["knetstatctl", "repair", "--dry-run"]).stdout
    c.run(["chmod", "-R", "a+rX", "/usr/src/kt-plain-1.0"], check=True)
    product.wait("it is built", lambda: settled(c, old, 1)["kt-plain"]["state"] == "ready")


def test_a_package_that_is_removed_while_it_compiles(machine: Container) -> None:
    """The compilation ends, wherever it is: before it has its copy of the source, or in the middle of make. If the package
    comes back, it is built."""
    c = machine
    old = c.kernels()[0]
    c.add_fixture("slow", autoinstall=False, files={"delay": "600\n"})
    product.start(c, ["kt-slow"])

    def times(kind: str) -> int:
        return product.kinds(c, "kt-slow", old.release).count(kind)

    for count, program in ((1, ""), (2, "sleep 1")):
        product.wait("it compiles", lambda n=count: times("stage-started") == n)  # type: ignore[misc]
        if program:
            product.wait(f"{program} runs", lambda p=program: c.run(["pgrep", "-fx", p]).returncode == 0)  # type: ignore[misc]
        c.run(["dkms", "remove", "kt-slow/1.0", "--all"], check=True)
        removed = time.time()
        product.wait("that is told", lambda n=count: times("package-gone") == n)  # type: ignore[misc]
        last = [e for e in product.events(c, "kt-slow", old.release) if e["KNETSTATD_EVENT"] == "package-gone"][-1]
        assert int(last["__REALTIME_TIMESTAMP"]) / 1e6 - removed < 5
        assert last["KNETSTATD_REASON"] == "it was removed from DKMS while it was compiled"
        assert c.run(["pgrep", "-f", "[k]netstatctl compile|[s]leep 1$"]).returncode, "it has ended"
        assert settled(c, old, 1)["kt-slow"]["state"] == "source-missing"
        assert c.output("dkms", "status", "kt-slow") == ""
        assert c.module_file(old, "kt_slow") is None
        if program:
            c.write("/usr/src/kt-slow-1.0/delay", "0\n")
        c.run(["dkms", "add", "kt-slow/1.0"], check=True)
    product.wait_ready(c)
    assert {kind: times(kind) for kind in ("staged", "published", "failed", "gave-up")} == {
        "staged": 1, "published": 1, "failed": 0, "gave-up": 0,
    }  # fmt: skip
    assert c.run(["systemctl", "is-system-running"]).stdout.strip() == "running", "no failed unit is left"


def test_a_package_that_is_removed_after_it_was_built(trixie: Container) -> None:
    """dkms deletes the module, runs depmod, and forgets the package seconds later: nothing is built for it meanwhile."""
    c = trixie
    c.add_fixture("slow", autoinstall=False, files={"delay": "0\n"})
    product.start(c, ["kt-slow"])
    for _ in range(3):
        product.wait_ready(c)
        before = len(product.events(c, "kt-slow"))
        c.run(["dkms", "remove", "kt-slow/1.0", "--all"], check=True)
        product.wait("that is told", lambda: "source-missing" in kinds_after(c, before))  # noqa: B023
        # That it was ready may be told late.
        assert [kind for kind in kinds_after(c, before) if kind not in ("ready", "waiting")] == [
            "package-gone",
            "source-missing",
        ]
        c.run(["dkms", "add", "kt-slow/1.0"], check=True)


def kinds_after(c: Container, before: int) -> list[str]:
    """The kinds of the package's events but for the first ones."""
    return [e["KNETSTATD_EVENT"] for e in product.events(c, "kt-slow")[before:]]
