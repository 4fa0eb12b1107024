# SPDX-License-Identifier: GPL-2.0-or-later
"""A package is staged when its modules are made and proven; else there is a cause, and nothing is staged."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import elf
import kerneltree
import machinetree
import pytest
from machinetree import KERNEL, MADE

from knetstatd.build import stage
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind, Retry
from knetstatd.diagnosis import uname_traps
from knetstatd.state import paths, staged

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from knetstatd.core.model import Proof

pytestmark = pytest.mark.spawns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path)
    return tmp_path


def stage_it(root: Path, timeout: float = 20.0) -> staged.Staged:
    machine = machinetree.machine(root)

    def prove(path: Path, others: Sequence[Path]) -> Proof:
        return machine.prove_file(machine.look(KERNEL), path, others)

    return stage.stage(machinetree.job(root, timeout=timeout), prove)


def refused(root: Path, timeout: float = 20.0) -> BuildError:
    with pytest.raises(BuildError) as e:
        stage_it(root, timeout)
    assert os.listdir(root / f"var/lib/knetstatd/stage/{KERNEL}") == [], "nothing is left of it"
    return e.value


def test_what_is_proven_is_there_under_its_name(root: Path) -> None:
    places = paths.places(root)
    (places.stages / KERNEL / ".demo.killed").mkdir(parents=True)
    artefact = stage_it(root)
    assert artefact == staged.find(places, KERNEL, "demo", "1.0", machinetree.job(root).fingerprint)
    assert [path.name for path in artefact.modules] == ["demo.ko"]
    assert os.listdir(places.stages / KERNEL) == ["demo"]
    assert staged.find(places, KERNEL, "demo", "1.0", "another source") is None
    for where, _, there in os.walk(places.stages):
        for path in (where, *(os.path.join(where, name) for name in there)):
            assert os.stat(path).st_mode & 0o4, "the daemon, which is not root, looks at it"


def test_the_modules_are_on_the_disk_before_they_have_their_name(root: Path, synced: list[str]) -> None:
    stage_it(root)
    [path] = [path for path in synced if path.endswith("/module/demo.ko")]
    assert f"stage/{KERNEL}/.demo." in path


def test_a_disk_without_room_is_told_before_anything_is_made(root: Path) -> None:
    place = root / "var/lib/knetstatd/stage" / KERNEL
    place.parent.mkdir(parents=True)
    place.symlink_to("/proc/sys/kernel")  # a file system that never has a free block
    with pytest.raises(BuildError, match=r"only 0 MiB of .* are free, 64 MiB are wanted\. ") as e:
        stage_it(root)
    assert e.value.kind == Kind.DISK
    assert machinetree.ran(root, "dkms") == []


def fail(root: Path, log: str, code: int = 10) -> None:
    machinetree.write(root / "log", log)
    does = f'd=$9/demo/1.0/build; mkdir -p "$d"; cp "$root/log" "$d/make.log"; echo said; exit {code}'
    machinetree.tell(root, "dkms build", does)


def test_a_failed_build_has_a_cause_and_a_log(root: Path) -> None:
    fail(root, "demo.c:1:2: error: expected ';'\n")
    error = refused(root)
    assert (error.kind, error.what) == (Kind.COMPILE, "demo.c line 1: expected ';'")
    assert error.where == os.fspath(root / f"var/lib/knetstatd/kernels/{KERNEL}/demo.log")
    kept = root / f"var/lib/knetstatd/kernels/{KERNEL}/demo.log"
    assert kept.stat().st_mode & 0o777 == 0o640
    log = kept.read_text()
    assert log == f"# dkms build demo/1.0 -k {KERNEL}\nsaid\n\n# make.log\ndemo.c:1:2: error: expected ';'\n"


def test_the_cause_is_looked_up_below_the_root(root: Path) -> None:
    """The cure names the package that brings these headers."""
    kerneltree.offer(root, f"linux-headers-{KERNEL}")
    fail(root, "include/generated/autoconf.h or include/config/auto.conf are missing\n")
    assert refused(root).fix == f"Run: apt install --reinstall linux-headers-{KERNEL}"


def test_a_package_that_is_built_after_one_that_is_not_there(root: Path) -> None:
    """Its build misses what the other makes. That heals when the other is there, so it is no final failure."""
    fail(root, 'ERROR: modpost: "zl_answer" [/x/ll.ko] undefined!\n')
    machine = machinetree.machine(root)

    def prove(path: Path, others: Sequence[Path]) -> Proof:
        return machine.prove_file(machine.look(KERNEL), path, others)

    for lacking, kind in (((), Kind.SYMBOL), (("zfslike", "spl"), Kind.PACKAGES)):
        with pytest.raises(BuildError) as e:
            stage.stage(machinetree.job(root)._replace(lacking=lacking), prove)
        assert e.value.kind == kind
    assert "built after the DKMS module zfslike spl, which this kernel does not have yet" in e.value.what
    assert "zl_answer" in e.value.evidence[-1]


def test_a_failure_under_an_override_of_ours_names_it_first(root: Path) -> None:
    fail(root, "demo.c:1:2: error: expected ';'\n")
    machinetree.write(root / "etc/dkms/demo-1.0.conf", "# the administrator's\n")
    assert refused(root).what == "demo.c line 1: expected ';'"
    for name in ("demo-0.9.conf", "demo-1.0.conf", "demo.conf"):
        machinetree.write(root / "etc/dkms" / name, f"{uname_traps.HEAD}\n")
        path = "/etc/dkms/demo.conf" if name == "demo.conf" else "/etc/dkms/demo-1.0.conf"
        error = refused(root)
        if name == "demo-0.9.conf":
            assert error.what == "demo.c line 1: expected ';'", "dkms does not read it"
            continue
        assert error.what == f"it is built under {path}, which `knetstatctl repair` wrote: demo.c line 1: expected ';'"
        assert error.fix.startswith(f"Delete {path} and build it again; else: ")
        assert (error.kind, error.evidence) == (Kind.COMPILE, ("demo.c:1:2: error: expected ';'",))


def test_a_build_that_does_not_end_or_is_killed(root: Path) -> None:
    machinetree.tell(root, "dkms build", "sleep 30")
    error = refused(root, timeout=0.3)
    assert (error.kind, "raise compile_timeout_seconds" in error.fix) == (Kind.TIMEOUT, True)
    machinetree.tell(root, "dkms build", "kill -9 $$")
    error = refused(root)
    assert (error.kind, error.what) == (Kind.INTERRUPTED, "dkms was killed by signal 9")


@pytest.mark.parametrize("then", ["sleep 30", "exit 10", ""], ids=["at-work", "failed", "built"])
def test_what_is_removed_while_it_compiles_is_not_waited_for(root: Path, then: str) -> None:
    """Whatever came of the compilation, that is the cause."""
    machinetree.tell(root, "dkms build", f'rm -r "$root/var/lib/dkms/demo"; {then}')
    begin = time.monotonic()
    error = refused(root)
    assert (error.kind, error.fix) == (Kind.REMOVED, "dkms add demo/1.0")
    assert time.monotonic() - begin < 5


def test_a_unit_that_compiles_what_is_removed_is_killed(root: Path) -> None:
    machinetree.outcome(root)
    machinetree.tell(root, "systemctl start", 'rm -r "$root/var/lib/dkms/demo"; sleep 30')
    begin = time.monotonic()
    assert refused(root).kind == Kind.REMOVED
    assert time.monotonic() - begin < 5
    unit = "knetstatd-compile@*.service"
    ended = [f"kill --signal=KILL -- {unit}", f"stop -- {unit}", f"reset-failed -- {unit}"]
    assert machinetree.ran(root, "systemctl")[-3:] == ended


def test_what_is_compiled_and_will_not_load_is_not_staged(root: Path) -> None:
    other = kerneltree.module("demo", undefined=["printk", "gone"])
    machinetree.write(root / MADE / "demo.ko", other)
    error = refused(root)
    assert (error.kind, "Unknown symbol gone" in error.what) == (Kind.NOT_LOADABLE, True)
    assert error.where.endswith("/demo.log")


@pytest.mark.parametrize("asks", [False, True])
def test_what_is_compiled_for_another_kernel_is_not_staged(root: Path, asks: bool) -> None:
    """Also if this kernel would load it, because the checksums are the same."""
    crcs = {name: kerneltree.CRCS[name] for name in ("module_layout", "printk")}
    magic = "6.0.0 SMP preempt mod_unload modversions "
    machinetree.write(root / MADE / "demo.ko", elf.module("demo", vermagic=magic, undefined=["printk"], crcs=crcs))
    if asks:
        makefile = "KVER ?= $(shell uname -r)\nall:\n\tmake -C /lib/modules/$(KVER)/build\n"
        machinetree.write(root / "usr/src/demo-1.0/Makefile", makefile)
    error = refused(root)
    assert (error.kind, error.what) == (Kind.WRONG_KERNEL, f"demo.ko was compiled for another kernel: 6.0.0, not {KERNEL}")
    asked = "Makefile line 1 asks for the running kernel; set KVER in dkms.conf's MAKE"
    assert error.fix.startswith(asked if asks else "No line of its build files is known to ask for the running kernel; ")
    assert error.evidence == (("Makefile:1: KVER ?= $(shell uname -r)",) if asks else ())


def test_what_post_build_refuses_is_not_staged(root: Path) -> None:
    """dkms 3.2 ends there, its log where it builds, and the module made; 3.0 goes on, and says only what the script says."""
    log = "\nRunning the post_build script\n# command: cd /x && /x/post.sh\nno firmware\n\n# exit code: 7\n"
    machinetree.write(root / "log", log)
    writes = 'd=$9/demo/1.0/build; mkdir -p "$d"; cp "$root/log" "$d/make.log"'
    machinetree.tell(root, "dkms build", writes)
    error = refused(root)
    assert (error.kind, error.what) == (Kind.CONF, "POST_BUILD of dkms.conf failed: no firmware")
    assert error.fix == "Correct the script that POST_BUILD names in dkms.conf"
    machinetree.tell(
        root, "dkms build", 'printf "Running the pre_build script:\\nerror\\nRunning the post_build script:\\nerror\\n"'
    )
    stage_it(root)


def test_what_cannot_be_proven_is_not_called_unloadable(root: Path) -> None:
    """The kernel's image is damaged. That is tried again: no change of source, headers or compiler is to be waited for."""
    path = kerneltree.image(root)
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    error = refused(root)
    assert (error.kind, Kind(error.kind).retry) == (Kind.UNPROVEN, Retry.BACKOFF)
    assert "was compiled, and whether it loads is not known: The kernel's image" in error.what
    assert error.fix == f"Reinstall the package of {KERNEL}'s image"


def test_a_module_that_names_no_kernel_is_of_none(root: Path) -> None:
    machinetree.write(root / MADE / "demo.ko", elf.module("demo", vermagic="", undefined=["printk"], crcs={}))
    assert refused(root).kind == Kind.NOT_LOADABLE


def test_a_directory_of_the_running_kernel_is_called_that(root: Path) -> None:
    """Where a build fails for it; the line that asks is named whatever the directory is."""
    running = os.uname().release
    log = "make[1]: *** /usr/src/linux-headers-{}: No such file or directory.  Stop.\n"
    fail(root, log.format(running))
    error = refused(root)
    assert (error.kind, error.what) == (Kind.WRONG_KERNEL, f"it compiles for the running kernel, {running}, not {KERNEL}")
    fail(root, log.format("5.9"))
    assert "takes /usr/src/linux-headers-5.9 for" in refused(root).what
    machinetree.write(root / "usr/src/demo-1.0/Makefile", 'K := $(shell python3 -c "print(platform.release())")\n')
    error = refused(root)
    assert (error.kind, error.evidence[0]) == (
        Kind.KERNEL_DIR,
        'Makefile:1: K := $(shell python3 -c "print(platform.release())")',
    )
    assert error.fix == "Makefile line 1 asks for the running kernel; set K in dkms.conf's MAKE"
    assert "5.9" in error.evidence[1]


def test_modules_that_come_together_are_proven_together(root: Path) -> None:
    crcs = {name: kerneltree.CRCS[name] for name in ("module_layout", "printk")} | {"fn": 7}
    machinetree.write(root / MADE / "demo.ko", kerneltree.module("demo", undefined=["printk", "fn"], crcs=crcs))
    machinetree.write(root / MADE / "gives.ko", kerneltree.module("gives", exports={"fn": (7, "", "")}))
    assert len(stage_it(root).modules) == 2


def test_a_second_module_that_is_wrong_is_seen(root: Path) -> None:
    machinetree.write(root / MADE / "second.ko", "no module")
    error = refused(root)
    assert (error.kind, "second.ko" in error.what) == (Kind.NOT_LOADABLE, True)
