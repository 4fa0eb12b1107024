# SPDX-License-Identifier: GPL-2.0-or-later
"""What all kernels of a machine share: equal as long as nothing changes that an answer depends on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from keys import variable

from knetstatd.machine import host, signature_policy
from knetstatd.machine.host import Origin, Rival

if TYPE_CHECKING:
    from collections.abc import Callable

    Tree = Callable[[dict[str, str]], Path]


def test_the_same_machine_is_the_same_value(tree: Tree) -> None:
    root = tree({"boot/grub/grub.cfg": "", "etc/modprobe.d/a.conf": "blacklist a\n"})
    assert host.facts(root) == host.facts(root)
    assert host.facts(root, root / "here") != host.facts(root)


@pytest.mark.parametrize("change", [
    {"boot/grub/grub.cfg": "menuentry x {}\n"}, {"boot/grub/grubenv": "saved_entry=1\n"},
    {"etc/modprobe.d/b.conf": "blacklist b\n"},
    {"etc/modules-load.d/x.conf": "m\n"}, {"sys/module/module/parameters/sig_enforce": "Y\n"},
    {"etc/dkms/framework.conf": "mok_signing_key=/k\nmok_certificate=/c\n"},
])  # fmt: skip
def test_another_machine_is_another_value(tree: Tree, change: dict[str, str]) -> None:
    root = tree({"boot/grub/x": "", "etc/modprobe.d/a.conf": "blacklist a\n"})
    before = host.facts(root)
    tree(change)
    assert host.facts(root) != before


def test_a_kernel_may_have_a_certificate_of_its_own(tree: Tree) -> None:
    conf = "mok_signing_key=/k\nmok_certificate={}\n"
    root = tree({"etc/dkms/framework.conf": conf.format("/c")})
    machine = host.facts(root)
    assert host.of_kernel(root, machine, "6.1.0-9-amd64") is machine
    tree({"etc/dkms/framework.conf": conf.format("/keys/$kernelver.der")})
    own = host.of_kernel(root, machine, "6.1.0-9-amd64")
    assert own.firmware.own_file == signature_policy.signing_pair(root, "6.1.0-9-amd64")[1] != machine.firmware.own_file
    assert own._replace(firmware=machine.firmware) == machine


def test_secure_boot_is_in_it(tree: Tree) -> None:
    root = tree({"etc/x": ""})
    before = host.facts(root)
    variable(root, "SecureBoot", b"\1")
    assert before.firmware.secure_boot is False
    assert host.facts(root).firmware.secure_boot is True
    assert not host.facts(root).insists, "the running kernel's own word is another thing"


@pytest.mark.parametrize(
    ("module", "built", "copy"),
    [
        ("my-mod", ["my_mod.ko"], "my_mod.ko"),
        ("my_mod", ["other.ko.xz", "my-mod.ko.xz"], "my-mod.ko.xz"),
        ("my", ["my-mod.ko", "my.txt", "my.ko.old"], None),
        ("my", [], None),
    ],
)
def test_dkms_s_copy_of_a_module(module: str, built: list[str], copy: str | None) -> None:
    assert host.copy_of(Path("/"), module, Path("/d"), built) == (Path("/d") / copy if copy else None)


def test_the_files_that_an_installed_one_is_compared_with() -> None:
    rivals = (Rival("a/1", Path("/a"), True), Rival("b/1", Path("/b"), False))
    assert Origin("1", "1", Path("/mine"), rivals=rivals).copies == (Path("/mine"), Path("/a"), Path("/b"))
    assert Origin("1", rivals=rivals).copies == (Path("/a"), Path("/b"))
