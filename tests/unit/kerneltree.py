# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the tree of a kernel for tests: its own modules, depmod's tables, headers, configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import elf
import images

from knetstatd.core import names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KERNEL = "6.1.0-1-amd64"
CRCS = {"module_layout": 0x11111111, "printk": 0x22222222, "gpl_thing": 0x33333333, "lib_fn": 0x44444444, "spaced": 0x5555}
# name: owner, kind, namespace
EXPORTS = {
    "module_layout": ("vmlinux", "EXPORT_SYMBOL", ""),
    "printk": ("vmlinux", "EXPORT_SYMBOL", ""),
    "gpl_thing": ("vmlinux", "EXPORT_SYMBOL_GPL", ""),
    "lib_fn": ("lib/my-lib", "EXPORT_SYMBOL", ""),
    "spaced": ("vmlinux", "EXPORT_SYMBOL", "SPACE"),
}
COMPILER = 'CONFIG_CC_VERSION_TEXT="gcc-12 (Debian 12.2.0-14) 12.2.0"\n'
UTS_RELEASE = '#define UTS_RELEASE "{}"\n'


def symvers(crcs: Mapping[str, int] = CRCS, exports: Mapping[str, tuple[str, str, str]] = EXPORTS) -> str:
    """The text of a Module.symvers; 0 for a checksum that is not given."""
    rows = (f"0x{crcs.get(name, 0):08x}\t{name}\t{where}\t{kind}\t{ns}" for name, (where, kind, ns) in exports.items())
    return "\n".join(rows) + "\n"


def module(name: str = "demo", **more: Any) -> bytes:
    """A module that loads on the kernel that `make` makes; `more` as in elf.module."""
    crcs = {name: CRCS[name] for name in ("module_layout", "printk")}
    return elf.module(name, **({"undefined": ["printk"], "crcs": crcs} | more))


def make(
    root: Path, kernel: str = KERNEL, *, modversions: bool = True, config: str = "", headers: bool = True, depmod: bool = True
) -> Path:
    """A kernel under `root` as Debian lays it out, with /lib a symlink to usr/lib. Returns its directory."""
    magic = f"{kernel} SMP preempt mod_unload " + ("modversions " if modversions else "")
    if not (root / "lib").exists():
        (root / "usr/lib").mkdir(parents=True)
        (root / "lib").symlink_to("usr/lib")
        (root / "boot").mkdir()
    tree = root / "usr/lib/modules" / kernel
    crcs = CRCS if modversions else None
    own = {"intree": "Y", "retpoline": "Y"}
    for path, size in (("fs/big.ko", 500), ("lib/my-lib.ko", 0)):
        (tree / "kernel" / path).parent.mkdir(parents=True)
        padding = [elf.Sec("padding", bytes(size))]
        made = elf.module(path[4:-3], vermagic=magic, crcs=crcs, undefined=["printk"], info=own, more=padding)
        (tree / "kernel" / path).write_bytes(made)
    (tree / "modules.order").write_text("kernel/fs/big.ko\nkernel/lib/my-lib.ko\n")
    if depmod:
        tables(tree, "kernel/fs/big.ko: kernel/lib/my-lib.ko", "kernel/lib/my-lib.ko:")
    options = "CONFIG_MODVERSIONS=y\n" if modversions else ""
    options += "".join(f"CONFIG_RD_{kind}=y\n" for kind in ("GZIP", "BZIP2", "LZMA", "XZ", "LZO", "LZ4", "ZSTD"))
    (root / "boot" / f"config-{kernel}").write_text(f"#\n{COMPILER}{options}{config}")
    if headers:
        build = root / "usr/src" / f"linux-headers-{kernel}"
        (build / "include/generated").mkdir(parents=True)
        (build / "include/generated/utsrelease.h").write_text(UTS_RELEASE.format(kernel))
        (build / "Module.symvers").write_text(symvers(CRCS if modversions else {}))
        (tree / "build").symlink_to(f"/usr/src/linux-headers-{kernel}")
    return tree


def image(root: Path, kernel: str = KERNEL, *, crcs: Mapping[str, int] = CRCS, modversions: bool = True, **more: Any) -> Path:
    """The boot image of the kernel that `make` makes, and its module that exports a symbol, with depmod's table of that.

    `more` as in images.text.
    """
    rows = {name: (crcs[name], kind, space) for name, (where, kind, space) in EXPORTS.items() if where == "vmlinux"}
    said = {"flags": "SMP preempt mod_unload " + ("modversions " if modversions else ""), "kernel": kernel} | more
    path = root / "boot" / f"vmlinuz-{kernel}"
    path.write_bytes(
        images.bzimage(images.vmlinux(rows, crcs=modversions, flagged=not modversions, rodata=images.text(**said)))
    )
    tree = root / "usr/lib/modules" / kernel
    own = {"lib_fn": (CRCS["lib_fn"] if modversions else 0, "", "")}
    made = elf.module(
        "my-lib", vermagic=f"{kernel} {said['flags']}", crcs=CRCS if modversions else None, undefined=["printk"],
        info={"intree": "Y", "retpoline": "Y"}, exports=own,
    )  # fmt: skip
    (tree / "kernel/lib/my-lib.ko").write_bytes(made)
    aliases = [
        (name, names.canonical(where.rpartition("/")[2])) for name, (where, _, _) in EXPORTS.items() if where != "vmlinux"
    ]
    text = "".join(f"alias symbol:{name} {module}\n" for name, module in aliases)
    (tree / "modules.symbols").write_text(f"# Aliases for symbols, used by symbol_request().\n{text}")
    return path


def kmod(root: Path, names: bytes = b"lzma_code ZSTD_isError") -> None:
    """A kmod of which the names in it tell what it does, and the libraries that it may want; Debian 12's, if not said."""
    for place, data in (("bin/kmod", names), ("lib/liblzma.so.5", b""), ("lib/libzstd.so.1", b""), ("lib/libz.so.1", b"")):
        (root / "usr" / place).parent.mkdir(parents=True, exist_ok=True)
        (root / "usr" / place).write_bytes(data)


def tables(tree: Path, *lines: str) -> None:
    """modules.dep with these lines, and a modules.dep.bin that names the same files (real ones are a trie of such lines)."""
    text = "".join(f"{line}\n" for line in lines)
    (tree / "modules.dep").write_text(text)
    (tree / "modules.dep.bin").write_bytes(b"\xb0\x07\xf4\x57" + text.encode().replace(b"\n", b"\0"))


def add(tree: Path, name: str, data: bytes, needed: str = "") -> Path:
    """Installs an added module at `name` below `tree`, as depmod would list it, in front of the others."""
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    tables(tree, f"{name}: {needed}".rstrip(), *(tree / "modules.dep").read_text().splitlines())
    return path


def offer(root: Path, *packages: str) -> None:
    """A Debian whose apt has an archive with these packages."""
    for name, text in (("etc/debian_version", "12\n"), (LIST, "".join(f"Package: {p}\nVersion: 1\n\n" for p in packages))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


LIST = "var/lib/apt/lists/deb_dists_bookworm_main_binary-amd64_Packages"
