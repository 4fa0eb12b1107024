# SPDX-License-Identifier: GPL-2.0-or-later
"""What DKMS takes for the original of a module, to be put back when its own goes: is it one?

`dkms install` (3.0 not on Debian, later ones anywhere) moves whatever file of the module's name it finds in a kernel's tree to
PACKAGE/original_module/KERNEL/ARCH, unless its mark says that it has installed one itself; `dkms remove` puts it back. With
--force it takes the mark away first, and then what it does not recognise as its own file for an original: one that is damaged.

Rule: an original is a whole module of that kernel that DKMS itself did not make. What cannot be read here is left alone.

Sources: do_install() and do_uninstall() in dkms 3.0.10 and 3.2.2.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import Damaged, LibraryMissing, ModuleFileError
from knetstatd.dkms import dkms_framework, dkms_tree
from knetstatd.formats import module_file
from knetstatd.system import files
from knetstatd.verify.module_readings import are_same

if TYPE_CHECKING:
    from collections.abc import Iterator

ORIGINALS = "original_module"
_OWN = "/updates/dkms/"  # where dkms installs on Debian and nobody else does


class Unfit(NamedTuple):
    """A file that is kept as an original and is none. paths: it and what dkms keeps beside it.  reason: a clause.

    worthless: it is damaged, or DKMS itself made it. Else somebody put it there, and it may load, by its checksums.
    """

    kernel: str
    paths: tuple[Path, ...]
    reason: str
    worthless: bool


def unfit(root: Path) -> Iterator[Unfit]:
    """All of them on a machine."""
    tree = dkms_tree.tree(root)
    for package in files.names(tree):
        for kernel in files.names(tree / package / ORIGINALS) if names.is_package(package) else ():
            yield from of_package(root, package, kernel) if names.is_kernel(kernel) else ()


def of_package(root: Path, package: str, kernel: str) -> Iterator[Unfit]:
    """Those of one package and kernel."""
    base = dkms_tree.tree(root) / package / ORIGINALS / kernel
    for where, below, here in os.walk(base):
        below.sort()
        for name in sorted(here):
            path = Path(where) / name
            if not names.module_of(name):
                continue
            reason, damaged = _judged(path, kernel)
            own = "" if damaged else _own(root, package, kernel, path)
            if reason or own:
                beside = path.with_name(f"{name}.origin")
                paths = (path, *((beside,) if os.path.lexists(beside) else ()))
                yield Unfit(kernel, paths, reason or own, damaged or bool(own))


def remove(one: Unfit) -> None:
    """Deletes such a file, and the directories that become empty. Raises OSError."""
    for path in one.paths:
        path.unlink()
    parent = one.paths[0].parent
    with contextlib.suppress(OSError):
        while ORIGINALS in parent.parts:
            parent.rmdir()
            parent = parent.parent


def _own(root: Path, package: str, kernel: str, path: Path) -> str:
    """Why it is DKMS's own, a clause; "" if it is not."""
    lines = (files.text(path.with_name(f"{path.name}.origin"), 4096) or "").splitlines()
    if lines and lines[0].startswith(f"{dkms_framework.framework(root).install_tree}/{kernel}{_OWN}"):
        return "DKMS itself had installed it"
    known = dkms_tree.package(root, package)
    builds = [build for version in known.versions for build in version.builds] if known is not None else []
    copies = (build.directory / "module" / name for build in builds if build.kernel == kernel for name in build.files)
    return "DKMS itself had built it" if any(are_same(path, copy) for copy in copies) else ""


def fault(path: Path, kernel: str) -> str:
    """Why a file is no whole module of a kernel, a clause; "" if it is one, or it cannot be read here."""
    return _judged(path, kernel)[0]


def _judged(path: Path, kernel: str) -> tuple[str, bool]:
    """The same, and whether it is damaged."""
    if path.is_symlink():  # weak-modules(8) makes such
        return "", False
    try:
        module = module_file.from_path(path, formed=True)
    except ModuleFileError as e:
        damaged = isinstance(e.__cause__, Damaged) and not isinstance(e.__cause__, LibraryMissing)
        return f"it {e.what}" if damaged else "", damaged
    if module.form:
        return f"its form is damaged: {module.form}", True
    release = (module.vermagic.split() or [""])[0]
    if release != kernel:
        return f"it is for the kernel {names.show(release)}" if release else "it does not say for which kernel it is", False
    return "", False
