# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernels there are, and whether modules can be compiled for them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import kerneltree
import pytest

from knetstatd.core.model import Headers, KernelState
from knetstatd.machine import kernels
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

K = "6.1.0-9-cloud-amd64"
HEADERS = {
    f"usr/src/linux-headers-{K}/Makefile": "include /usr/src/linux-headers-6.1.0-9-common/Makefile\n",
    "usr/src/linux-headers-6.1.0-9-common/Makefile": "",
    f"usr/src/linux-headers-{K}/.config": 'CONFIG_CC_VERSION_TEXT="gcc-12 (Debian 12.2.0) 12.2.0"\n',
    f"usr/src/linux-headers-{K}/Module.symvers": "",
    f"usr/src/linux-headers-{K}/scripts": "-> ../../lib/linux-kbuild-6.1/scripts",
    "usr/lib/linux-kbuild-6.1/scripts/": "",
    f"usr/src/linux-headers-{K}/include/generated/utsrelease.h": f'#define UTS_RELEASE "{K}"\n',
    f"usr/lib/modules/{K}/build": f"-> /usr/src/linux-headers-{K}",
    "lib": "-> usr/lib",
}


def test_directories_are_kernels_in_order_or_refused_with_a_reason(tree: Make) -> None:
    hostile = ("6.1.0-$(touch x)", "new\nline", "..x", "-rf", "6" * 65, "6.1..2")
    root = tree({"lib": "-> usr/lib", **{f"usr/lib/modules/{n}/": "" for n in ("6.1.0-10", "6.1.0-9", "6.12.1", *hostile)}})
    (root / "usr/lib/modules" / os.fsdecode(b"6.1\xff")).mkdir()
    (root / "usr/lib/modules/6.5").symlink_to("6.12.1")
    (root / "usr/lib/modules/README").write_text("a file is nothing")
    found = kernels.directories(root)
    assert found.kernels == ("6.1.0-9", "6.1.0-10", "6.12.1")
    assert {name for name, _ in found.refused} == {*hostile, os.fsdecode(b"6.1\xff"), "6.5"}
    assert not (root / "x").exists()


def test_no_modules_directory_is_no_kernel(tmp_path: Path) -> None:
    assert kernels.directories(tmp_path) == kernels.Directories((), ())


@pytest.mark.parametrize(
    ("entries", "state"),
    [
        ({f"lib/modules/{K}/build/": ""}, KernelState.NOT_A_KERNEL),
        ({f"lib/modules/{K}/updates/": ""}, KernelState.NOT_A_KERNEL),
        ({f"lib/modules/{K}/modules.builtin": ""}, KernelState.NO_IMAGE),
        ({f"lib/modules/{K}/kernel/": "", f"boot/vmlinuz-{K}": "x"}, KernelState.BOOTABLE),
        ({f"lib/modules/{K}/modules.builtin": "", f"lib/modules/{K}/vmlinuz": "x"}, KernelState.BOOTABLE),
        ({f"lib/modules/{K}/kernel/": "", f"boot/vmlinuz-{K}": "-> nowhere"}, KernelState.NO_IMAGE),
        ({f"lib/modules/{K}/kernel/": "", f"boot/vmlinuz-{K}": ""}, KernelState.NO_IMAGE),
        ({f"lib/modules/{K}/kernel/": "", f"boot/vmlinuz-{K}": "", f"lib/modules/{K}/vmlinuz": "x"}, KernelState.BOOTABLE),
        ({f"lib/modules/{K}/kernel/": "", f"boot/vmlinuz-{K}/": ""}, KernelState.NO_IMAGE),
        ({}, KernelState.NOT_A_KERNEL),
    ],
)
def test_what_a_directory_is(tree: Make, entries: dict[str, str], state: KernelState) -> None:
    assert kernels.state(tree(entries), K) is state


def test_complete_headers(tree: Make) -> None:
    found = kernels.headers(tree(HEADERS), K)
    assert (found.state, found.reason) == (Headers.COMPLETE, "")
    assert found.path
    assert found.path.name == f"linux-headers-{K}"


@pytest.mark.parametrize(
    "missing",
    [
        f"usr/src/linux-headers-{K}/.config",
        f"usr/src/linux-headers-{K}/Makefile",
        f"usr/src/linux-headers-{K}/Module.symvers",
        f"usr/src/linux-headers-{K}/include/generated/utsrelease.h",
        "usr/lib/linux-kbuild-6.1/scripts/",
        "usr/src/linux-headers-6.1.0-9-common/Makefile",
    ],
)
def test_incomplete_headers_say_what_is_missing(tree: Make, missing: str) -> None:
    found = kernels.headers(tree({k: v for k, v in HEADERS.items() if k != missing}), K)
    assert found.state is Headers.PARTIAL
    assert found.reason


@pytest.mark.spawns
def test_how_they_are_made_whole_again(tree: Make) -> None:
    packages = f"linux-headers-{K} linux-headers-6.1.0-9-common linux-kbuild-6.1"
    root = tree(HEADERS)
    kerneltree.offer(root, *packages.split())
    assert kernels.headers_reinstall(root, K) == f"Run: apt install --reinstall {packages}"
    assert kernels.headers_reinstall(root, K, "objtool") == "Run: apt install --reinstall linux-kbuild-6.1"
    kerneltree.offer(root, "linux-kbuild-6.1", "another")
    assert kernels.headers_reinstall(root, K) == "Run: apt install --reinstall linux-kbuild-6.1"
    kerneltree.offer(root, "another")
    own = f"Complete the headers of {K}, or its build tree: no archive of apt's has them"
    assert kernels.headers_reinstall(root, K) == own
    (root / kerneltree.LIST).unlink()
    assert kernels.headers_reinstall(root, K).endswith("to learn which package brings them, run: apt update")
    tree({"var/lib/dpkg/info/linux-kbuild-6.1.list": ""})
    assert kernels.headers_reinstall(root, K) == "Run: apt install --reinstall linux-kbuild-6.1"
    kerneltree.offer(root, "another")
    assert kernels.headers_reinstall(root, K) == own, "no archive has it any more"


def test_headers_that_our_services_do_not_see(tree: Make) -> None:
    root = tree({"root/linux/Makefile": "", f"lib/modules/{K}/build": "-> /root/linux"})
    found = kernels.headers(root, K)
    assert found.state is Headers.MISSING
    assert "root/linux, where knetstatd's services may not look" in found.reason


def test_headers_of_another_kernel_are_not_headers(tree: Make) -> None:
    other = {f"usr/src/linux-headers-{K}/include/generated/utsrelease.h": '#define UTS_RELEASE "6.1.0-8"\n'}
    assert "'6.1.0-8'" in kernels.headers(tree({**HEADERS, **other}), K).reason
    root = tree({f"usr/src/linux-headers-{K}/include/generated/utsrelease.h": "x"})
    assert "no release" in kernels.headers(root, K).reason


def test_no_headers(tree: Make) -> None:
    root = tree({f"lib/modules/{K}/kernel/": ""})
    assert kernels.headers(root, K).state is Headers.MISSING
    (root / f"lib/modules/{K}/build").symlink_to("/usr/src/gone")
    assert "leads to nothing" in kernels.headers(root, K).reason


PVE, XANMOD, LIQUORIX = "6.8.12-4-pve", "6.12.8-x64v3-xanmod1", "6.12.9-1-liquorix-amd64"


@pytest.mark.spawns
@pytest.mark.parametrize(
    ("kernel", "there", "named", "later"),
    [
        (K, "linux-headers-{} linux-headers-cloud-amd64 linux-headers-amd64", "linux-headers-{}", "linux-headers-cloud-amd64"),
        (K, "linux-headers-{} linux-headers-amd64", "linux-headers-{}", ""),
        (K, "linux-headers-cloud-amd64 linux-headers-{}-x x-linux-headers-{}", "", ""),
        ("6.1.0-9-rt-amd64", "linux-headers-{} linux-headers-rt-amd64", "linux-headers-{}", "linux-headers-rt-amd64"),
        ("6.12.1+deb13-amd64", "linux-headers-{} linux-headers-amd64", "linux-headers-{}", "linux-headers-amd64"),
        ("6.8.0-40-generic", "linux-headers-{} linux-headers-generic", "linux-headers-{}", "linux-headers-generic"),
        (
            PVE,
            "proxmox-headers-{} proxmox-headers-6.8 proxmox-default-headers",
            "proxmox-headers-{}",
            "proxmox-default-headers",
        ),
        (PVE, "proxmox-headers-{} proxmox-headers-6.8 pve-headers", "proxmox-headers-{}", "proxmox-headers-6.8"),
        ("5.15.158-2-pve", "pve-headers-{} pve-headers", "pve-headers-{}", "pve-headers"),
        (PVE, "linux-headers-{} linux-headers-pve", "", ""),
        (XANMOD, "linux-headers-{} linux-xanmod-x64v3 linux-headers-xanmod1", "linux-headers-{}", "linux-xanmod-x64v3"),
        (LIQUORIX, "linux-headers-{} linux-headers-liquorix-amd64", "linux-headers-{}", "linux-headers-liquorix-amd64"),
        ("6.1.99", "linux-headers-amd64", "", ""),
    ],
)
def test_the_fix_for_missing_headers_names_packages_that_there_are(
    tree: Make, kernel: str, there: str, named: str, later: str
) -> None:
    root, link = tree({}), f"/lib/modules/{kernel}/build"
    kerneltree.offer(root, *there.format(kernel, kernel).split())
    fix = f"Run: apt install {named.format(kernel)}" + (f"; {later} brings them with every later kernel" if later else "")
    own = f"Make {link} lead to the headers of {kernel}, or to its build tree: no archive of apt's has them"
    assert kernels.headers_fix(root, kernel) == (fix if named else own)
    assert kernels.headers_package(root, kernel) == named.format(kernel)


def test_headers_elsewhere_than_on_debian(tree: Make) -> None:
    assert kernels.headers_package(tree({}), K) == f"kernel-devel-{K}"


@pytest.mark.spawns
def test_headers_that_no_package_brings(tree: Make) -> None:
    root = tree({"etc/debian_version": "12"})
    unknown = f"Make /lib/modules/{K}/build lead to the headers of {K}; to learn which package brings them, run: apt update"
    assert kernels.headers_fix(root, K) == unknown
    assert kernels.headers_package(root, K) == f"linux-headers-{K}", "apt may know better"
    kerneltree.offer(root, "another")
    tree({f"var/lib/dpkg/info/linux-image-{K}.list": ""})
    own = f"Install linux-headers-{K} from where linux-image-{K} came: no archive of apt's has it; "
    assert kernels.headers_fix(root, K).startswith(own)
    tree({"home/me/my linux/Makefile": "", f"lib/modules/{K}/build": "-> /home/me/my linux"})
    usual = f"/usr/src/linux-headers-{K}"
    move = f"Run: cp -a '/home/me/my linux' {usual} && ln -sfn {usual} /lib/modules/{K}/build"
    assert kernels.headers_fix(root, K) == move
    kerneltree.offer(root, f"linux-headers-{K}")
    assert kernels.headers_fix(root, K) == f"Run: apt install linux-headers-{K}"


def test_other_distributions_headers(tree: Make) -> None:
    fedora = kernels.headers_fix(tree({}), "6.5.6-300.fc39.x86_64")
    assert fedora.startswith("Run: dnf install kernel-devel-6.5.6-300.fc39.x86_64")


def test_the_compiler_is_the_one_of_the_configuration(tree: Make) -> None:
    root = tree({**HEADERS, "usr/bin/gcc-12": "x"})
    path = kernels.headers(root, K).path
    assert path
    assert kernels.compiler(root, path) == ("gcc-12", root / "usr/bin/gcc-12")
    (root / "usr/bin/gcc-12").unlink()
    assert kernels.compiler(root, path) == ("gcc-12", None)
    (root / "usr/bin/gcc").write_text("y")
    assert kernels.compiler(root, path) == ("gcc-12", root / "usr/bin/gcc")


def test_the_fingerprint_changes_with_source_headers_and_compiler(tree: Make) -> None:
    root = tree({**HEADERS, "usr/bin/gcc-12": "x", "usr/src/m-1/m.c": "int x;", "usr/src/m-1/Makefile": ""})
    source, headers = root / "usr/src/m-1", kernels.headers(root, K).path

    def mark() -> str:
        return kernels.fingerprint(root, source, headers)

    seen = [mark()]
    assert mark() == seen[0]
    settings = ("m.conf", "m-1.conf", "framework.conf", "framework.conf.d/a.conf", "dkms.conf.d/b.conf")
    told = [root / "etc/dkms" / name for name in settings]
    for path in (source / "m.c", root / f"usr/src/linux-headers-{K}/Module.symvers", root / "usr/bin/gcc-12", *told, *told):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, b"something else" + bytes(len(seen)))
        seen.append(mark())
    for path in (*told[1:], root / "usr/sbin/dkms"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink() if path.exists() else path.touch()
        seen.append(mark())
    (source / "new.c").touch()
    seen.append(mark())
    seen.append(kernels.fingerprint(root, source, None))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("text", "counts"), [
    ('# Not for this kernel.\n\nAUTOINSTALL=""\n', False), ("AUTOINSTALL=yes", False), ("AUTOINSTALL=\nMAKE[0]=make\n", True),
    ("AUTOINSTALL= MAKE=make\n", True), ("POST_BUILD=x", True),
])  # fmt: skip
def test_an_override_that_is_for_the_hook_alone_changes_no_build(tree: Make, text: str, counts: bool) -> None:
    """Else who keeps a failed package out of dkms's hook would have it compiled once more."""
    root = tree({"usr/src/m-1/m.c": "int x;"})
    source = root / "usr/src/m-1"
    before = kernels.fingerprint(root, source, None)
    (root / "etc/dkms").mkdir(parents=True, exist_ok=True)
    (root / "etc/dkms/m-1-6.1.conf").write_text(text)
    assert (kernels.fingerprint(root, source, None) != before) is counts


def test_a_boot_image_that_is_cut_off(tmp_path: Path) -> None:
    """Its header says how long it is: 2 sectors, and 16 times 100 bytes."""
    path = tmp_path / f"boot/vmlinuz-{K}"
    path.parent.mkdir()
    head = bytes(0x1F1) + b"\1" + bytes(2) + (100).to_bytes(4, "little") + bytes(10) + b"HdrS"
    whole = head + bytes(1024 + 1600 - len(head))
    for data, there in ((whole, True), (whole + b"signature", True), (whole[:-1], False), (head, False)):
        path.write_bytes(data)
        assert (kernels.image(tmp_path, K) == path) is there
        assert kernels.is_torn(tmp_path, K) is not there
    path.unlink()
    assert not kernels.is_torn(tmp_path, K)
