# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a kernel will insist on signatures when this machine boots it, and whose it will trust.

Rule 1: what is asked of the running kernel (/sys/module, /sys/kernel/security) says nothing of another one. For another it is
        the firmware, the boot loader's command line and the kernel's configuration that tell.
Rule 2: what cannot be read is None here and "unknown" in the check; it is never a yes.

The kernel's rules, read in 5.10 to 7.3: kernel/module/signing.c, security/lockdown, security/integrity (platform_certs,
ima_efi.c), drivers/firmware/efi/libstub/secureboot.c. That Secure Boot locks the kernel down, and that it takes keys of
the firmware for modules, are patches that Debian, Ubuntu and Fedora share; the configuration shows the first one. Which keys
it takes, kernels under real firmware and shim have said (tests/vm/test_secure_boot.py).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot import bootloader
from knetstatd.boot.kernel_parameters import listed, own_parameters, parameters
from knetstatd.core.errors import Damaged, KnetstatdError
from knetstatd.dkms import dkms_framework
from knetstatd.formats import pkcs7
from knetstatd.formats.shell_assignments import assigned
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_VARIABLES = "/sys/firmware/efi/efivars"
_GLOBAL, _DATABASE = "8be4df61-93ca-11d2-aa0d-00e098032b8c", "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
_SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
_LIMIT = 1 << 20  # bytes; the largest variables have some 20 KB
_UBUNTU = ("/var/lib/shim-signed/mok/MOK.priv", "/var/lib/shim-signed/mok/MOK.der")
_DKMS = ("/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub")
OWN_PAIRS = (_UBUNTU, _DKMS)  # those that nobody has configured

# What `policy` wants to know of a kernel's configuration.
OPTIONS = (
    "MODULE_SIG",
    "MODULE_SIG_FORCE",
    "SECURITY_LOCKDOWN_LSM",
    "LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
    "LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY",
    "LOCK_DOWN_IN_EFI_SECURE_BOOT",
    "IMA_ARCH_POLICY",
    "INTEGRITY_PLATFORM_KEYRING",
    "INTEGRITY_MACHINE_KEYRING",
)


class Firmware(NamedTuple):
    """What does not change until the next boot. secure_boot: None if the firmware does not let it be read.

    enrolled: the keys of shim and the firmware that a kernel takes; None as above.  waiting: those that somebody asked to
    enrol, and must confirm before the next kernel starts.
    own: the certificate that modules are signed for on this machine, and its file.  is_pem: whether that is PEM, and not DER.
    without_shim: the keys that shim has, and no kernel takes, for Secure Boot is off.  without_database: those of the
    firmware's own list, if shim tells kernels to leave that out (`mokutil --ignore-db`).
    """

    secure_boot: bool | None = False
    enrolled: tuple[pkcs7.Certificate, ...] | None = ()
    waiting: tuple[pkcs7.Certificate, ...] = ()
    own: pkcs7.Certificate | None = None
    own_file: str = ""
    is_pem: bool = False
    without_shim: tuple[pkcs7.Certificate, ...] = ()
    without_database: tuple[pkcs7.Certificate, ...] = ()


# As kstrtobool() reads it, `e` from 7.2 on.
_TRUE = r"(?:=[1yYtTeE].*|=[oO][nN].*)?"
_ENFORCES = re.compile(rf"module\.sig_enforce{_TRUE}")
# core_param(nomodule, modules_disabled) of kernel/module/main.c, and do_sysctl_args(), which writes before /init starts. As
# proc_dointvec_minmax() reads it: the setting may be 1 alone.
_CLOSED = re.compile(rf"nomodule{_TRUE}|sysctl[./]+kernel[./]+modules_disabled=\s*(0[xX])?0*1(\s.*)?")
_MASKS = re.compile(r"systemd\.mask=systemd-modules-load(\.service)?")


class Policy(NamedTuple):
    """What one kernel does about signatures. signatures: whether it looks at them at all, None if it is unknown.

    enforced: what makes it refuse a module without a good one, "" for nothing.  doubt: what could, and is not known.
    enrolled: whether it takes the firmware's and shim's keys.  blacklist: modules that its command line forbids it.
    told: what its command line tells modules, MODULE.PARAMETER=VALUE.  closed: what its boot entry says, so that it takes no
    module at all; "" for nothing.  initcalls: functions that it is told not to call.  mask: what its boot entry says, so that
    nobody reads modules-load.d; "" for nothing.
    """

    signatures: bool | None
    enforced: str
    doubt: str
    enrolled: bool
    blacklist: frozenset[str]
    modprobe_blacklist: frozenset[str]
    told: tuple[str, ...] = ()
    closed: str = ""
    initcalls: frozenset[str] = frozenset()
    mask: str = ""


def firmware(root: Path, kernel: str = "") -> Firmware:
    """The firmware's part, and what DKMS signs with for a kernel (see signing_pair).

    A container's kernels, and those of a machine that booted without EFI, have no firmware.
    """
    own_file = signing_pair(root, kernel)[1]
    try:
        data = files.read(files.inside(root, own_file), _LIMIT)
        own, is_pem = pkcs7.certificate(data), pkcs7.is_pem(data)
    except (OSError, KnetstatdError, Damaged):
        own, is_pem = None, False
    mine = Firmware(own=own, own_file=own_file, is_pem=is_pem)
    if not _has_firmware(root):
        return mine
    is_on, shims, database = secure_boot(root), _keys(root, "MokListRT", _SHIM), _keys(root, "db", _DATABASE)
    # load_uefi_certs() of platform_certs/load_uefi.c: shim's list is worth nothing if anybody could have written it.
    taken = (shims if is_on else (), () if _variable(root, "MokIgnoreDB", _SHIM) else database)
    return mine._replace(
        secure_boot=is_on,
        enrolled=None if _names(root) is None else (*taken[0], *taken[1]),
        waiting=_keys(root, "MokNew", _SHIM),
        without_shim=() if taken[0] else shims,
        without_database=() if taken[1] else database,
    )


def _has_firmware(root: Path) -> bool:
    return os.path.isdir(files.of_kernel(root, "/sys/firmware/efi")) and not (root / "run/systemd/container").exists()


def secure_boot(root: Path) -> bool | None:
    """Whether the kernels that this machine boots take Secure Boot for on; None if the firmware does not let it be read."""
    if not _has_firmware(root):
        return False
    # `mokutil --disable-validation`: the kernel believes it if the variable was not kept over a boot (attribute 1).
    insecure = _variable(root, "MokSBStateRT", _SHIM)
    if insecure and insecure[4:5] == b"\1" and not insecure[0] & 1:
        return False
    state = _variable(root, "SecureBoot", _GLOBAL)
    return None if state is None and _names(root) is None else bool(state and state[4:5] == b"\1")


def policy(root: Path, kernel: str, options: Collection[str] | None, machine: Firmware) -> Policy:
    """What `kernel` will do. options: of CONFIG_*, the ones set to `y`, None if its configuration is not known."""
    line, entry = bootloader.command_line(root, kernel), bootloader.entry_line(root, kernel) or ""
    every, words, told = parameters(line), own_parameters(line), own_parameters(entry)
    have = options if options is not None else ()
    # Each of them counts: what is locked is not unlocked again (lock_kernel_down()).
    locked = bool({"lockdown=integrity", "lockdown=confidentiality"} & {*words})
    enforced = [
        why
        for holds, why in (
            ("MODULE_SIG_FORCE" in have, "CONFIG_MODULE_SIG_FORCE"),
            (any(map(_ENFORCES.fullmatch, words)), "module.sig_enforce on its command line"),
            (locked and "SECURITY_LOCKDOWN_LSM" in have, "lockdown on its command line"),
            (any(f"LOCK_DOWN_KERNEL_FORCE_{mode}" in have for mode in ("INTEGRITY", "CONFIDENTIALITY")), "its lockdown"),
            (
                bool(machine.secure_boot) and any(o in have for o in ("LOCK_DOWN_IN_EFI_SECURE_BOOT", "IMA_ARCH_POLICY")),
                "Secure Boot",
            ),
            (_is_running(root, kernel) and running_insists(root), "it runs, and refuses others now"),
        )
        if holds
    ]
    doubt = ""
    if machine.secure_boot is None:
        doubt = "whether Secure Boot is on cannot be read from /sys/firmware/efi/efivars"
    elif options is None and (machine.secure_boot or locked):
        doubt = f"{'Secure Boot' if machine.secure_boot else 'lockdown'} is on, and the kernel's configuration is not there"
    return Policy(
        signatures=None if options is None else "MODULE_SIG" in have,
        enforced=enforced[0] if enforced else "",
        doubt="" if enforced else doubt,
        # The platform's keyring is asked about modules by distributors' kernels only, which this option of theirs tells.
        enrolled="INTEGRITY_MACHINE_KEYRING" in have
        or {"INTEGRITY_PLATFORM_KEYRING", "LOCK_DOWN_IN_EFI_SECURE_BOOT"} <= {*have},
        # The kernel keeps the last, and no module of it has a name with -.
        blacklist=frozenset(listed([w for w in words if w.startswith("module_blacklist=")][-1:], "module_blacklist")),
        modprobe_blacklist=frozenset(name.replace("-", "_") for name in listed(every, "modprobe.blacklist")),
        told=tuple(word for word in every if "." in word.partition("=")[0]),
        closed=next(filter(_CLOSED.fullmatch, told), ""),
        initcalls=frozenset(listed(told, "initcall_blacklist")),
        mask=next(filter(_MASKS.fullmatch, parameters(entry)), ""),
    )


def signing_pair(root: Path, kernel: str = "") -> tuple[str, str]:
    """The private key and the certificate that DKMS signs with for a kernel of this machine; they need not exist yet.

    kernel: "" for none, if framework.conf names the same pair for all of them.
    """
    said = dkms_framework.framework(root, kernel)
    if not said.mok_signing_key and _is_ubuntu(root) and all(os.path.exists(files.inside(root, path)) for path in _UBUNTU):
        return _UBUNTU
    return said.mok_signing_key or _DKMS[0], said.mok_certificate or _DKMS[1]


def _is_ubuntu(root: Path) -> bool:
    """Whether dkms takes the distribution for Ubuntu (distro_version())."""
    said = assigned((files.text(files.inside(root, "/etc/os-release"), 1 << 16) or "",))
    return said.scalar("ID") == "ubuntu" or said.scalar("ID_LIKE").startswith("ubuntu")


def running_insists(root: Path) -> bool:
    """Whether the running kernel refuses unsigned modules, in its own words."""
    forced = (files.text(files.of_kernel(root, "/sys/module/module/parameters/sig_enforce"), 16) or "").startswith("Y")
    mode = files.text(files.of_kernel(root, "/sys/kernel/security/lockdown"), 256) or ""
    return forced or "[integrity]" in mode or "[confidentiality]" in mode


def _is_running(root: Path, kernel: str) -> bool:
    return (files.text(files.of_kernel(root, "/proc/sys/kernel/osrelease"), 256) or "").strip() == kernel


def _names(root: Path) -> list[str] | None:
    """The names of the firmware's variables; None if they are not mounted."""
    return files.names(files.of_kernel(root, _VARIABLES)) or None


def _variable(root: Path, name: str, guid: str) -> bytes | None:
    """A variable: four bytes of attributes (little endian), then its value."""
    try:
        data = files.read(files.of_kernel(root, f"{_VARIABLES}/{name}-{guid}"), _LIMIT)
    except (OSError, KnetstatdError):
        return None
    return data if len(data) > 4 else None


def _keys(root: Path, name: str, guid: str) -> tuple[pkcs7.Certificate, ...]:
    """The certificates in a variable, and in those that shim adds if one is too small (name1, name2, …)."""
    certificates: list[pkcs7.Certificate] = []
    variables = (_variable(root, name + suffix, guid) for suffix in ("", *map(str, range(1, 10))))
    for data in itertools.takewhile(lambda data: data is not None, variables):
        with contextlib.suppress(Damaged):
            certificates += pkcs7.certificates((data or b"")[4:])
    return tuple(certificates)
