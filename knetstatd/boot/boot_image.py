# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel's boot image says of itself: which kernel it is, and whether it was written to its end.

Sources: Linux's Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"; UAPI.5 for unified kernel images.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from knetstatd.boot import systemd_boot
from knetstatd.boot.grub_state import Undecided
from knetstatd.core import names, roots

if TYPE_CHECKING:
    from pathlib import Path


def is_whole(path: Path) -> bool:
    """Whether a file is a boot image that was written to its end, as far as that can be told.

    x86's header has its length (Documentation/arch/x86/boot.rst, setup_sects and syssize); of others that they are not empty.
    """
    try:
        with roots.regular(path) as f:
            head, size = f.read(0x206), os.fstat(f.fileno()).st_size
    except PermissionError:
        return os.path.isfile(path) and os.path.getsize(path) > 0
    except (OSError, ValueError):
        return False
    if head[0x202:] != b"HdrS":
        return size > 0
    return size >= 512 * ((head[0x1F1] or 4) + 1) + 16 * int.from_bytes(head[0x1F4:0x1F8], "little")


def release(path: Path) -> str:
    """The release that an image itself names: its header, else what ukify wrote into it; "" if it names none.

    Linux's Documentation/arch/x86/boot.rst: HdrS at 0x202, and at 0x20e where the version stands, less 0x200.
    """
    try:
        with roots.regular(path) as f:
            data = f.read(0x10300)
        at = int.from_bytes(data[0x20E:0x210], "little") + 0x200
        text = data[at : at + 128] if data[0x202:0x206] == b"HdrS" else b""
        if not text:
            text = systemd_boot.pe_sections(path).get(".uname", b"")
    except (OSError, ValueError, Undecided):
        return ""
    said = re.split(rb"[\0\s]", text, maxsplit=1)[0].decode("ascii", "replace")
    return said if names.is_kernel(said) else ""
