# SPDX-License-Identifier: GPL-2.0-or-later
"""What there is on a machine: kernels, packages, who is at work, what is watched, and proofs that are kept."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import guardedtree
import kerneltree
import pytest
from guardedtree import register_another
from kerneltree import CRCS, KERNEL
from machinetree import write

from knetstatd.core.config import Config
from knetstatd.core.model import KernelState, Limits
from knetstatd.system import child
from knetstatd.verdict.survey import Survey

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/knetstatd")
    guardedtree.make(tmp_path)
    return tmp_path


@pytest.fixture
def survey(root: Path) -> Survey:
    made = Survey(root, Config(modules=("demo",), load=()))
    made.refresh()
    return made


@pytest.mark.parametrize(
    "conf",
    [
        'if [ "${kernelver%%.*}" = 6 ]; then\nBUILT_MODULE_NAME[0]="demo-six"\nelse\nBUILT_MODULE_NAME[0]="demo"\nfi\n',
        'case "$kernelver" in\n6.*) BUILT_MODULE_NAME[0]="demo-six" ;;\n*) BUILT_MODULE_NAME[0]="demo" ;;\nesac\n',
    ],
)
def test_what_comes_and_goes_is_what_is_made_for_the_running_kernel(root: Path, survey: Survey, conf: str) -> None:
    survey.running = KERNEL
    assert survey.module_names() == {"demo"}
    built = root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module"
    (built / "demo.ko").rename(built / "demo-six.ko")
    head, tail = 'PACKAGE_NAME="demo"\nPACKAGE_VERSION="1.0"\n', 'DEST_MODULE_LOCATION[0]="/updates"\n'
    write(root / "usr/src/demo-1.0/dkms.conf", head + conf + tail)
    survey.refresh()
    assert survey.module_names() == {"demo_six"}


@pytest.mark.parametrize(
    ("wanted", "guarded"),
    [("next+running", {"2", "1"}), (1, {"2", "1", "4"}), (2, {"2", "1", "4", "3"}), ("all", {"1", "2", "3", "4"})],
)
def test_which_kernels_are_guarded(tmp_path: Path, wanted: str | int, guarded: set[str]) -> None:
    """The next one and the running one, and the newest N; what has no image is not one of those."""
    releases = {number: f"6.1.0-{number}-amd64" for number in "12345"}
    for number, release in releases.items():
        kerneltree.make(tmp_path, release)
        if number != "5":
            write(tmp_path / f"boot/vmlinuz-{release}", b"image")
    write(tmp_path / "boot/grub/grub.cfg", f"menuentry x {{\nlinux /vmlinuz-{releases['2']}\n}}\n")
    survey = Survey(tmp_path, Config(kernels=wanted))
    survey.running = releases["1"]
    survey.refresh()
    assert survey.wanted() == {releases[number] for number in guarded}


def test_what_the_configuration_decides(tmp_path: Path) -> None:
    plain = Survey(tmp_path, Config(settle_seconds=1.0, retry_first_seconds=2.0, retry_longest_seconds=3.0)).limits
    assert plain == Limits(1.0, 2.0, 3.0, install_headers=False, reload=True)
    assert Survey(tmp_path, Config(headers="install")).limits.install_headers
    assert not Survey(tmp_path, Config(unloaded="leave")).limits.reload
    assert not plain.make_initrds
    assert Survey(tmp_path, Config(initrd="update")).limits.make_initrds


def test_packages(root: Path) -> None:
    register_another(root, "other")
    for modules, packages in (
        (("*",), ("demo", "other")), (("other", "*"), ("other", "demo")), (("absent",), ("absent",)),
        (("*", "demo"), ("demo", "other")),
    ):  # fmt: skip
        survey = Survey(root, Config(modules=modules))
        survey.refresh()
        assert survey.packages() == packages
        assert survey.registered() == {"demo", "other"}


def test_kernels(root: Path, survey: Survey) -> None:
    assert (survey.next, survey.state_of(KERNEL)) == (KERNEL, KernelState.BOOTABLE)
    assert (survey.next_why != "", survey.state_of("6.9.9-none")) == (True, KernelState.NOT_A_KERNEL)
    (root / f"boot/vmlinuz-{KERNEL}").unlink()
    survey.refresh()
    assert (survey.next, survey.next_why, survey.state_of(KERNEL)) == ("", "no kernel was found", KernelState.NO_IMAGE)


def test_modules_whose_names_only_dkms_knows(root: Path, survey: Survey) -> None:
    """What the source computes is read off what was built."""
    survey.running = KERNEL
    conf, built = root / "usr/src/demo-1.0/dkms.conf", root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module"
    plain = conf.read_text()
    (built / "demo.ko").rename(built / "other-name.ko")
    for unknown in ('BUILT_MODULE_NAME[0]="$(cat x)"\n', 'DEST_MODULE_NAME[0]="$(cat x)"\n'):
        conf.write_text(plain + unknown)
        survey.refresh()
        assert survey.module_names() == {"other_name"}
    shutil.rmtree(built)
    survey.refresh()
    assert survey.module_names() == {"demo"}, "the package's name, if nothing was built"


def test_what_is_built_after_what(root: Path, survey: Survey) -> None:
    """BUILD_DEPENDS, one element with several names or several; a circle, and names of nobody, change nothing."""
    for name, needs in (("a", "d nobody"), ("b", ""), ("c", "b"), ("d", "c b")):
        register_another(root, name)
        with open(root / f"usr/src/{name}-1.0/dkms.conf", "a") as conf:
            conf.writelines(f'BUILD_DEPENDS[{n}]="{need}"\n' for n, need in enumerate(needs.split(" ", 1)) if need)
    survey.refresh()
    assert survey.in_order(KERNEL, ["a", "b", "c", "d"]) == ("b", "c", "d", "a")
    assert survey.in_order(KERNEL, ["a", "d"]) == ("d", "a")
    assert survey.in_order(KERNEL, ["demo", "x"]) == ("demo", "x")
    with open(root / "usr/src/b-1.0/dkms.conf", "a") as conf:
        conf.write('BUILD_DEPENDS="a"\n')
    survey.refresh_locks()
    assert sorted(survey.in_order(KERNEL, ["a", "b", "c", "d"])) == ["a", "b", "c", "d"]


def test_a_build_depends_on_the_builds_that_it_is_made_after(root: Path, survey: Survey) -> None:
    source, build = root / "usr/src/demo-1.0", root / f"var/lib/dkms/other/1.0/{KERNEL}/x86_64"
    with open(source / "dkms.conf", "a") as conf:
        conf.write('BUILD_DEPENDS="other"\n')
    register_another(root, "other")
    shutil.rmtree(root / f"var/lib/dkms/other/1.0/{KERNEL}", ignore_errors=True)
    (mark := root / f"var/lib/dkms/other/kernel-{KERNEL}-x86_64").unlink(missing_ok=True)
    seen = []

    def look() -> tuple[str, ...]:
        survey.refresh()
        seen.append(survey.fingerprint(KERNEL, "demo", source, None))
        return survey.lacking(KERNEL, "demo")

    assert look() == ("other",)
    write(build / "module/other.ko", "")
    assert look() == ("other",), "it is built, and not installed"
    assert seen[0] == seen[1]
    mark.symlink_to(f"1.0/{KERNEL}/x86_64")
    assert look() == ()
    shutil.rmtree(build)
    write(build / "module/other.ko", "")
    assert look() == (), "built anew"
    assert len(set(seen[1:])) == 3
    assert survey.lacking("6.2", "demo") == ("other",)
    assert survey.built_before(KERNEL, "demo") == (build / "module/other.ko",)
    assert survey.built_before("6.2", "demo") == ()
    with open(root / "usr/src/other-1.0/dkms.conf", "a") as conf:
        conf.write('BUILD_DEPENDS="demo other nobody"\n')
    survey.refresh()
    assert survey.built_before(KERNEL, "demo") == (build / "module/other.ko",), "a circle"


def test_names_that_are_left_alone(root: Path, survey: Survey) -> None:
    assert survey.refused() == []
    (root / "usr/lib/modules/6.1 x").mkdir()
    (root / "var/lib/dkms/-x").mkdir()
    survey.refresh()
    refused = survey.refused()
    assert [(name in shown, bool(reason)) for name, (shown, reason) in zip(("6.1 x", "dkms/-x"), refused, strict=True)] == [
        (True, True), (True, True),
    ]  # fmt: skip


def test_who_is_at_work_on_packages(root: Path, survey: Survey) -> None:
    write(root / "var/lib/dpkg/status", f"Package: linux-image-{KERNEL}\nStatus: install ok half-configured\n\n")
    assert survey.refresh_locks() == ""
    [left] = survey.unfinished(KERNEL)
    assert (left.name, survey.unfinished("6.9.9-none")) == (f"linux-image-{KERNEL}", ())
    write(root / "var/lib/dpkg/status", f"Package: linux-image-{KERNEL}\nStatus: install ok installed\n\n\n")
    survey.refresh_locks()
    assert survey.unfinished(KERNEL) == ()
    write(root / "var/lib/dpkg/status", f"Package: linux-image-{KERNEL}\nStatus: install ok half-configured\n\n\n\n")
    (root / "var/lib/dpkg/lock-frontend").symlink_to("lock-frontend")  # whether it is held cannot be known
    assert survey.refresh_locks()
    assert survey.unfinished(KERNEL) == (), "a transaction is at work on it"


def test_what_is_watched(root: Path, survey: Survey) -> None:
    watched = list(survey.watched())
    for one in (
        ("modules", root / "usr/lib/modules"), ("dkms", root / "var/lib/dkms/demo"),
        ("source", root / "usr/src/demo-1.0"), (f"kernel:{KERNEL}", root / "usr/lib/modules" / KERNEL),
    ):  # fmt: skip
        assert one in watched
    survey.config = survey.config._replace(modules=("absent",))
    assert not [label for label, _ in survey.watched() if label == "source"]


def test_proofs(root: Path, survey: Survey) -> None:
    """For a publication every module must be there; for a look those that are."""
    look, file = survey.look(KERNEL), root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko"
    assert look.together == ("demo",)
    assert list(survey.look(KERNEL, ["x"]).together) == ["x"]
    assert [proof.path for proof in survey.prove_installed(look, "demo")] == [str(file)]
    assert survey.prove_file(look, file).loads
    gives, uses = root / "gives.ko", root / "uses.ko"
    gives.write_bytes(kerneltree.module("gives", exports={"fn": (7, "", "")}))
    uses.write_bytes(kerneltree.module("uses", undefined=["fn"], crcs={**CRCS, "fn": 7}))
    assert [survey.prove_file(look, uses, others).loads for others in ((), (gives,))] == [False, True]
    file.unlink()
    kerneltree.tables(root / "usr/lib/modules" / KERNEL, "kernel/lib/my-lib.ko:")
    survey.refresh()
    look = survey.look(KERNEL)
    assert survey.prove_installed(look, "demo") == ()
    assert [proof.loads for proof in survey.prove_all(look, "demo")] == [False]


@pytest.mark.parametrize("menu", [f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL}\n}}\n", ""])
def test_a_boot_image_that_is_empty(root: Path, survey: Survey, menu: str) -> None:
    """It is next all the same, and not ready: not the older kernel, which is."""
    older = "5.9.0-1-amd64"
    kerneltree.make(root, older)
    write(root / f"boot/vmlinuz-{older}", b"image")
    if menu:
        write(root / "boot/grub/grub.cfg", menu)
    survey.refresh()
    assert (survey.next, survey.state_of(KERNEL)) == (KERNEL, KernelState.BOOTABLE)
    (root / f"boot/vmlinuz-{KERNEL}").write_bytes(b"")
    survey.refresh()
    assert (survey.next, survey.state_of(KERNEL)) == (KERNEL, KernelState.NO_IMAGE)


@pytest.mark.parametrize("by", ["", "loaded now", "loaded by the daemon", "modules-load.d"])
def test_a_rehearsal_knows_what_this_machine_loads(root: Path, survey: Survey, by: str) -> None:
    write(root / "sys/module/demo/initstate", "live\n" if by == "loaded now" else "coming\n")
    if by == "modules-load.d":
        write(root / "etc/modules-load.d/x.conf", "demo\n")
    if by == "loaded by the daemon":
        survey.config = survey.config._replace(load=("demo",))
    survey.refresh()
    [(_, proof)] = installed = survey._installed(survey.look(KERNEL), "demo")
    subject = survey.rehearsal(KERNEL, "demo", installed)
    assert subject is not None
    assert subject.used == ((root / proof.path,) if by else ())


@pytest.mark.skipif(os.getuid() != 0, reason="root becomes another user, and sees what that one may not")
@pytest.mark.usefixtures("open_to_all")
def test_which_kernel_is_next_root_knows(root: Path) -> None:
    """Who may not look into the ESP goes by root's answer, and asks for one if there is none."""
    write(root / "boot/grub/grub.cfg", f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL}\n}}\n")
    write(root / "boot/efi/EFI/debian/grub.cfg", "menuentry of another system\n")
    (root / "boot/efi").chmod(0o700)

    def look() -> list[str]:
        survey = Survey(root, Config(modules=("demo",), load=()), running=KERNEL)
        survey.refresh()
        return [survey.next, survey.next_why, survey.look(KERNEL).closed, survey.look("5.9.0-1-amd64").closed]

    def by_nobody() -> list[str]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, 0)
        try:
            return look()
        finally:
            os.setresuid(0, 0, 0)  # coverage writes what ran

    own, _, closed, other = child.in_child(by_nobody)
    assert (own, closed.startswith(f"{root}/boot/efi "), other) == (KERNEL, True, "")
    assert look()[::2] == ["", ""]
    answer, why, closed, _ = child.in_child(by_nobody)
    assert (answer, "another menu" in why, closed) == ("", True, "")
