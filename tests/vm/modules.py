# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that load, or fail in one named way each, and machines (file trees) on which they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from knetstatd.machine import kernels as installed
from knetstatd.machine import kmod
from tests import kernels

HERE = Path("/")
SOURCE = """\
// SPDX-License-Identifier: GPL-2.0-only
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/module.h>
#include <net/udp_tunnel.h>
{more}
static int __init kt_init(void)
{{
	{body}
	return 0;
}}

static void __exit kt_exit(void)
{{
}}

module_init(kt_init);
module_exit(kt_exit);
MODULE_DESCRIPTION("Test module: {name}");
MODULE_LICENSE("GPL");
"""
# What each does in its init function, and what it declares for that.
BODIES = {
    "kt_fine": ('pr_info("fine\\n");', ""),
    "kt_einval": ("return -EINVAL;", ""),
    "kt_nodev": ("return -ENODEV;", ""),
    "kt_noent": ("return -ENOENT;", ""),
    "kt_hang": ("msleep(3600 * 1000);", ""),
    "kt_bug": ("BUG();", ""),
    # The keyboard controller's reset line: the machine begins anew, and says nothing.
    "kt_reset": ("outb(0xfe, 0x64);\n\tmsleep(60 * 1000);", ""),
    # In a module of the kernel, udp_tunnel.
    "kt_tunnel": ('pr_info("%ps\\n", setup_udp_tunnel_sock);', ""),
    "kt_undef": ("kt_no_such_symbol();", "extern void kt_no_such_symbol(void);"),
}


def build(kernel: kernels.Kernel, into: Path) -> dict[str, bytes]:
    """All of `BODIES` for a kernel, by name."""
    source = into / "source"
    source.mkdir(parents=True)
    (source / "Kbuild").write_text("".join(f"obj-m += {name}.o\n" for name in BODIES))
    (source / "Makefile").write_text("all:\n\t$(MAKE) -C $(KDIR) M=$(CURDIR) KBUILD_MODPOST_WARN=1 modules\n")
    for name, (body, more) in BODIES.items():
        (source / f"{name}.c").write_text(SOURCE.format(name=name, body=body, more=more))
    made = kernels.make(kernel, source, into / "build", [])
    assert made.returncode == 0, made.log
    return {name: (into / "build" / f"{name}.ko").read_bytes() for name in BODIES}


def machine(kernel: kernels.Kernel, root: Path, modules: dict[str, bytes]) -> Path:
    """A root directory with that kernel, and these files (with their suffixes) in its updates/dkms; depmod has run."""
    tree = root / "usr/lib/modules" / kernel.release
    tree.parent.mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "boot").mkdir()
    own = _own(kernel, root.parent)
    shutil.copytree(own / "modules", tree, copy_function=os.link, symlinks=True)
    os.link(own / "vmlinuz", root / "boot" / f"vmlinuz-{kernel.release}")
    headers = root / "usr/src" / kernel.headers.name
    for name in ("Module.symvers", "Makefile", ".config", "include/generated/utsrelease.h"):
        (headers / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kernel.headers / name, headers / name)
    (headers / "scripts").mkdir()
    (tree / "build").symlink_to(f"/usr/src/{kernel.headers.name}")
    (tree / "updates/dkms").mkdir(parents=True)
    for name, data in modules.items():
        (tree / "updates/dkms" / name).write_bytes(data)
    subprocess.run(["depmod", "-b", root, kernel.release], check=True, capture_output=True)
    assert installed.image(root, kernel.release), "the machine has no boot image"
    return root


def _own(kernel: kernels.Kernel, directory: Path) -> Path:
    """A copy that no other test process makes links to: a link changes the file's ctime, and so its identity."""
    own = directory / f"own-{kernel.release}"
    if not own.exists():
        away = shutil.ignore_patterns("build", "source", "vmlinuz")
        shutil.copytree(kernel.modules, own / "modules", ignore=away, symlinks=True)
        shutil.copy2(kernel.vmlinuz, own / "vmlinuz")
    return own


def add_kmod(root: Path) -> None:
    """Gives a root this machine's own kmod, as far as its files tell what it unpacks."""
    for place in kmod.inputs(HERE):
        (root / place.relative_to(HERE)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, root / place.relative_to(HERE))
    for name in ("libz.so.1", "liblzma.so.5", "libzstd.so.1"):
        if any((directory / name).exists() for directory in Path("/usr/lib").glob("*-linux-*")):
            (root / "usr/lib").mkdir(parents=True, exist_ok=True)
            (root / "usr/lib" / name).touch()
