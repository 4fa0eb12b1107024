# SPDX-License-Identifier: GPL-2.0-or-later
"""A DKMS package with a module of 88 MB, as large as the largest driver known, and two that need it.

56 MB of it pack like code, and 32 MB are relocations with their places: both is what makes such a driver slow to read.
"""

import random

from .rig import Container, Kernel

PACKAGE = "kt-huge"
_NOISE, _TABLE = 56 << 20, 1 << 20  # bytes; pointers, each with a relocation
_SIX_BITS = bytes(value & 63 for value in range(256))
_NAMES = ("kt_huge", "kt_leaf", "kt_twig")
_HUGE = f"""\
#include <linux/module.h>
asm(".pushsection .rodata\\n"
    "kt_noise: .incbin \\"" NOISE "\\"\\n"
    ".popsection\\n"
    ".pushsection .data\\n"
    "kt_table: .rept {_TABLE}\\n .quad kt_noise + 8\\n .endr\\n"
    ".popsection");
int kt_huge(void) {{ return 1; }}
EXPORT_SYMBOL(kt_huge);
MODULE_LICENSE("GPL");
"""
_OTHER = """\
#include <linux/module.h>
int kt_huge(void);
static int __init start(void) { return kt_huge() - 1; }
module_init(start);
MODULE_LICENSE("GPL");
"""
_CONF = """\
PACKAGE_NAME="kt-huge"
PACKAGE_VERSION="1.0"
MAKE[0]="make -C ${kernel_source_dir} M=${dkms_tree}/kt-huge/1.0/build modules"
CLEAN="true"
"""


def install(c: Container, kernel: Kernel) -> str:
    """Makes the package, and has plain dkms install it; returns the large module's file, as the container sees it."""
    source = "/usr/src/kt-huge-1.0"
    c.write(f"{source}/kt_huge.c", _HUGE)
    for name in _NAMES[1:]:
        c.write(f"{source}/{name}.c", _OTHER)
    c.path(f"{source}/noise.bin").write_bytes(random.Random(1).randbytes(_NOISE).translate(_SIX_BITS))
    objects = " ".join(f"{name}.o" for name in _NAMES)
    c.write(f"{source}/Makefile", f"obj-m := {objects}\nccflags-y := -DNOISE='\"$(src)/noise.bin\"'\n")
    modules = "".join(
        f'BUILT_MODULE_NAME[{n}]="{name}"\nDEST_MODULE_LOCATION[{n}]="/updates/dkms"\n' for n, name in enumerate(_NAMES)
    )
    c.write(f"{source}/dkms.conf", _CONF + modules)
    c.run(["dkms", "add", "kt-huge/1.0"], check=True)
    c.run(["dkms", "install", "kt-huge/1.0", "-k", kernel.release], check=True, timeout=1800)
    file = c.module_file(kernel, _NAMES[0])
    assert file is not None
    return f"/{file.relative_to(c.root)}"
