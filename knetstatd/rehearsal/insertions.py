# SPDX-License-Identifier: GPL-2.0-or-later
"""In which form the throwaway machine's kernel gets a module: as this machine's kmod would give it to that kernel.

A compressed file goes in as it is if kmod leaves it to the kernel to unpack it, and unpacked if not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knetstatd.machine import kmod
from knetstatd.rehearsal import vm
from knetstatd.verify import compression_check, target_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from knetstatd.formats import module_file


def modules(
    root: Path, kernel: str, unpacked: Mapping[Path, tuple[module_file.Module, bytes]], packed: Mapping[Path, bytes]
) -> tuple[vm.Module, ...]:
    """The modules in their order. unpacked: each, and its contents.  packed: the compressed ones as they lie on the disk."""
    facts, tools = target_kernel.facts(root, kernel), kmod.installed(root)
    made = []
    for path, (module, data) in unpacked.items():
        stored = packed.get(path, b"")
        by_kernel = compression_check.left_to_kernel(stored[:8], facts, tools)
        made.append(vm.Module(module.name, stored if by_kernel else data, packed=by_kernel))
    return tuple(made)
