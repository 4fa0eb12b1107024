# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a kernel insist on signatures, and whose keys the machine hands to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from keys import Key, signature_list, variable

from knetstatd.boot import bootloader
from knetstatd.machine import signature_policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KERNEL = "6.1.0-1-amd64"
PLAIN = frozenset({"MODULE_SIG", "SECURITY_LOCKDOWN_LSM"})
DEBIAN = PLAIN | {"LOCK_DOWN_IN_EFI_SECURE_BOOT", "INTEGRITY_PLATFORM_KEYRING"}
US, OTHER = Key(), Key("them", 8)


def entry(root: Path, words: str) -> None:
    (root / "boot/grub").mkdir(parents=True, exist_ok=True)
    (root / "boot/grub/grub.cfg").write_text(
        f"menuentry 'a' {{\n\tlinux /boot/vmlinuz-6.9.9-x module.sig_enforce\n}}\n"
        f"menuentry 'a' {{\n\tlinux /boot/vmlinuz-{KERNEL}-dbg module.sig_enforce\n}}\n"
        f"menuentry 'b' {{\n\tlinux\t/boot/vmlinuz-{KERNEL} root=/dev/sda1 {words}\n}}\n"
        f"menuentry 'c (recovery mode)' {{\n\tlinux\t/boot/vmlinuz-{KERNEL} single\n}}\n"
    )


def policy(root: Path, options: frozenset[str] | None = DEBIAN) -> signature_policy.Policy:
    return signature_policy.policy(root, KERNEL, options, signature_policy.firmware(root))


@pytest.mark.parametrize(
    ("words", "enforced"),
    [
        ("", ""),
        ("module.sig_enforce", "module.sig_enforce on its command line"),
        ("module.sig_enforce=1 quiet", "module.sig_enforce on its command line"),
        ("module.sig_enforce=Y", "module.sig_enforce on its command line"),
        ("module.sig_enforce=0", ""),
        ("xmodule.sig_enforce=1", ""),
        ("lockdown=integrity", "lockdown on its command line"),
        ("lockdown=confidentiality", "lockdown on its command line"),
        ("lockdown=none", ""),
        ("lockdown=integrity lockdown=none", "lockdown on its command line"),
        ("lockdown=none lockdown=confidentiality x", "lockdown on its command line"),
    ],
)
def test_the_command_line(tmp_path: Path, words: str, enforced: str) -> None:
    entry(tmp_path, words)
    assert policy(tmp_path).enforced == enforced
    assert policy(tmp_path).doubt == ""


def test_the_configuration(tmp_path: Path) -> None:
    assert policy(tmp_path, frozenset()).signatures is False
    assert policy(tmp_path, None).signatures is None
    assert policy(tmp_path).signatures is True
    assert policy(tmp_path, PLAIN | {"MODULE_SIG_FORCE"}).enforced == "CONFIG_MODULE_SIG_FORCE"
    assert policy(tmp_path, PLAIN | {"LOCK_DOWN_KERNEL_FORCE_INTEGRITY"}).enforced == "its lockdown"
    assert (policy(tmp_path).enrolled, policy(tmp_path, PLAIN).enrolled) == (True, False)
    upstream = frozenset({"MODULE_SIG", "INTEGRITY_PLATFORM_KEYRING"})
    assert not policy(tmp_path, upstream).enrolled, "a kernel that nobody patched asks that keyring about kexec only"
    assert policy(tmp_path, upstream | {"LOCK_DOWN_IN_EFI_SECURE_BOOT"}).enrolled
    entry(tmp_path, "lockdown=integrity")
    assert policy(tmp_path, frozenset({"MODULE_SIG"})).enforced == ""
    assert policy(tmp_path, None).doubt == "lockdown is on, and the kernel's configuration is not there"


def test_secure_boot(tmp_path: Path) -> None:
    variable(tmp_path, "SecureBoot", b"\1")
    assert policy(tmp_path).enforced == "Secure Boot"
    assert policy(tmp_path, PLAIN | {"IMA_ARCH_POLICY"}).enforced == "Secure Boot"
    assert policy(tmp_path, PLAIN).enforced == ""
    assert "configuration is not there" in policy(tmp_path, None).doubt
    # shim was told not to insist; a variable that is kept over a boot was not set by shim.
    variable(tmp_path, "MokSBStateRT", b"\1", attributes=7)
    assert policy(tmp_path).enforced == "Secure Boot"
    variable(tmp_path, "MokSBStateRT", b"\1", attributes=6)
    assert policy(tmp_path).enforced == ""
    variable(tmp_path, "MokSBStateRT", b"\0")
    variable(tmp_path, "SecureBoot", b"\0")
    assert (policy(tmp_path).enforced, policy(tmp_path).doubt) == ("", "")


def test_firmware_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "sys/firmware/efi/efivars").mkdir(parents=True)
    found = signature_policy.firmware(tmp_path)
    assert (found.secure_boot, found.enrolled) == (None, None)
    assert "cannot be read" in policy(tmp_path).doubt
    # A container boots nothing; and where something insists anyway, there is no doubt.
    entry(tmp_path, "module.sig_enforce")
    assert policy(tmp_path).doubt == ""
    (tmp_path / "run/systemd").mkdir(parents=True)
    (tmp_path / "run/systemd/container").write_text("lxc\n")
    assert signature_policy.firmware(tmp_path).secure_boot is False


def test_the_running_kernel_speaks_for_itself_alone(tree: Callable[[dict[str, str]], Path]) -> None:
    root = tree({"proc/sys/kernel/osrelease": "6.9.9-x\n", "sys/module/module/parameters/sig_enforce": "Y\n"})
    assert policy(root).enforced == ""
    tree({"proc/sys/kernel/osrelease": f"{KERNEL}\n"})
    assert "it runs" in policy(root).enforced
    tree({"sys/module/module/parameters/sig_enforce": "N\n"})
    tree({"sys/kernel/security/lockdown": "[none] integrity confidentiality\n"})
    assert policy(root).enforced == ""
    tree({"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"})
    assert "it runs" in policy(root).enforced


def test_enrolled_keys(tmp_path: Path) -> None:
    variable(tmp_path, "SecureBoot", b"\1")
    variable(tmp_path, "MokListRT", signature_list(US.certificate))
    variable(tmp_path, "MokListRT1", signature_list(OTHER.certificate))
    variable(tmp_path, "db", b"damaged")
    variable(tmp_path, "MokNew", signature_list(Key("new", 9).certificate))
    found = signature_policy.firmware(tmp_path)
    assert [str(c.key)[:3] for c in found.enrolled or ()] == ["us ", "the"]
    assert [str(c.key)[:3] for c in found.waiting] == ["new"]


def test_whose_key_signs_here(tree: Callable[[dict[str, str]], Path]) -> None:
    root = tree({})
    assert signature_policy.signing_pair(root) == ("/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub")
    assert signature_policy.firmware(root).own is None
    tree({"var/lib/shim-signed/mok/MOK.priv": "", "var/lib/shim-signed/mok/MOK.der": "nonsense"})
    assert signature_policy.signing_pair(root)[0] == "/var/lib/dkms/mok.key", "dkms asks for these on Ubuntu only"
    for release in ("ID=ubuntu\nID_LIKE=debian\n", 'ID=linuxmint\nID_LIKE="ubuntu debian"\n'):
        tree({"etc/os-release": release})
        assert signature_policy.signing_pair(root)[0].endswith("MOK.priv")
    assert signature_policy.firmware(root).own is None
    tree({"etc/dkms/framework.conf": "mok_signing_key=/k # x\n"})
    assert signature_policy.signing_pair(root) == ("/k", "/var/lib/dkms/mok.pub"), "each by itself, as dkms does"
    tree({"etc/dkms/framework.conf.d/a.conf": "mok_certificate='/c'\n"})
    (root / "c").write_bytes(US.certificate)
    assert signature_policy.signing_pair(root) == ("/k", "/c")
    found = signature_policy.firmware(root)
    assert found.own is not None
    assert (str(found.own.key)[:3], found.own_file) == ("us ", "/c")
    tree({"etc/dkms/framework.conf.d/a.conf": "mok_certificate=/$kernelver.der\n"})
    (root / "6.1.der").write_bytes(OTHER.certificate)
    assert signature_policy.firmware(root).own is None
    of_kernel = signature_policy.firmware(root, "6.1")
    assert of_kernel.own is not None
    assert (str(of_kernel.own.key)[:3], of_kernel.own_file) == ("the", "/6.1.der")


def test_lists_of_modules_on_the_command_line(tmp_path: Path) -> None:
    entry(tmp_path, "module_blacklist=a,b-c modprobe.blacklist=d module_blacklist=e")
    assert policy(tmp_path).blacklist == {"e"}, "the kernel keeps the last"
    entry(tmp_path, "module-blacklist=a,b_c modprobe.blacklist=d-e modprobe.blacklist=f")
    assert policy(tmp_path).blacklist == {"a", "b_c"}
    assert policy(tmp_path).modprobe_blacklist == {"d_e", "f"}
    entry(
        tmp_path,
        "initcall-blacklist=a,b initcall_blacklist=c -- module_blacklist=d modprobe.blacklist=e initcall_blacklist=f x.y=1",
    )
    assert policy(tmp_path).initcalls == {"a", "b", "c"}
    assert policy(tmp_path).blacklist == frozenset()
    assert policy(tmp_path).modprobe_blacklist == {"e"}
    assert policy(tmp_path).told == ("modprobe.blacklist=e", "x.y=1")


@pytest.mark.parametrize(
    ("words", "closed"),
    [
        ("nomodule", "nomodule"), ("nomodule=1", "nomodule=1"), ("nomodule=y", "nomodule=y"), ("nomodule=0", ""),
        ("nomodules", ""), ("sysctl.kernel.modules_disabled=1", "sysctl.kernel.modules_disabled=1"),
        ("sysctl.kernel.modules_disabled=0", ""), ("nomodule=1x", "nomodule=1x"), ("nomodule=2", ""), ("nomodule=01", ""),
        ("sysctl/kernel/modules_disabled=0x1", "sysctl/kernel/modules_disabled=0x1"), ("sysctl.kernel.modules_disabled=2", ""),
        ('"nomodule"', "nomodule"), ('dyndbg="file x nomodule"', ""), ("-- nomodule", ""), ("nomodule=e", "nomodule=e"),
        ("sysctl/kernel//modules_disabled=1", "sysctl/kernel//modules_disabled=1"),
    ],
)  # fmt: skip
def test_a_command_line_after_which_the_kernel_takes_no_module(tmp_path: Path, words: str, closed: str) -> None:
    entry(tmp_path, words)
    assert policy(tmp_path).closed == closed


def test_what_the_running_kernel_was_told_forbids_no_module(tmp_path: Path) -> None:
    """It may be the host's, of a container."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("quiet nomodule module_blacklist=a\n")
    assert (policy(tmp_path).blacklist, policy(tmp_path).closed) == (frozenset("a"), "")


@pytest.mark.parametrize(
    ("line", "on"),
    [
        ("module.sig-enforce=1", True),
        ("module.sig_enforce=1x", True),
        ("module.sig_enforce", True),
        ("module.sig_enforce=on", True),
        ("module.sig_enforce=of", False),
        ("-- module.sig_enforce", False),
        ("module.sig_enforce=1 module.sig_enforce=0", True),
        ("module.sig_enforce=0", False),
    ],
)
def test_what_is_turned_on_stays_on(tmp_path: Path, line: str, on: bool) -> None:
    entry(tmp_path, line)
    assert bool(policy(tmp_path).enforced) is on


class TestCommandLine:
    """bootloader.command_line"""

    def test_the_running_kernels_where_no_entry_names_it(self, tree: Callable[[dict[str, str]], Path]) -> None:
        root = tree({})
        assert bootloader.command_line(root, KERNEL) == ""
        tree({"proc/cmdline": "BOOT_IMAGE=x quiet\n"})
        assert bootloader.command_line(root, KERNEL) == "BOOT_IMAGE=x quiet"

    def test_entries_of_the_specification(self, tree: Callable[[dict[str, str]], Path]) -> None:
        root = tree({
            "boot/loader/entries/m-3.conf": f"linux /m/{KERNEL}/linux\noptions root=x $kernelopts ${{tuned}}end\n",
            "boot/loader/entries/m-2.conf": "linux /m/6.9.9-x/linux\noptions wrong\n",
            "boot/grub2/grubenv": "# GRUB Environment Block\nkernelopts=quiet module.sig_enforce\n####",
        })  # fmt: skip
        assert bootloader.command_line(root, KERNEL) == "root=x quiet module.sig_enforce end"
        before = bootloader.inputs(root)
        tree({"boot/loader/entries/m-4.conf": ""})
        assert set(bootloader.inputs(root)) - set(before) == {root / "boot/loader/entries/m-4.conf"}
