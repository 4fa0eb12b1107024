# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstat compiles for every kernel that it is for, and no compiler or checker has a word to say.

pytest tests/vm/test_build_matrix.py -k '6.12 and rt'
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

import knetstatd
from tests import kernels
from tests.vm.conftest import SERIES
from tests.vm.zoo import SOURCE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm


def complaints(log: str) -> list[str]:
    bad = re.compile(r"\b(warning|error)\b:|undefined!|\bC=2 specified", re.IGNORECASE)
    return [line for line in log.splitlines() if bad.search(line)]


@pytest.mark.parametrize("flavour", kernels.FLAVOURS)
@pytest.mark.parametrize(("series", "suite"), SERIES)
def test_builds(series: str, suite: str, flavour: str, tmp_path: Path) -> None:
    kernel = kernels.fetch(series, flavour, suite, boot=False)
    built = kernels.make(kernel, SOURCE / "module", tmp_path / "build", ["W=1"])
    assert built.returncode == 0, built.log
    assert complaints(built.log) == []
    module = (tmp_path / "build/knetstat.ko").read_bytes()
    assert f"\0vermagic={kernel.release} ".encode() in module
    assert f"\0version={knetstatd.__version__}\0".encode() in module


# Debian's 7.x headers lack the script that asks sparse for its version, and C=2 does nothing there.
@pytest.mark.parametrize(("series", "suite"), [row for row in SERIES if not row[0].startswith("7.")])
def test_sparse(series: str, suite: str, tmp_path: Path) -> None:
    built = kernels.make(kernels.fetch(series, suite=suite, boot=False), SOURCE / "module", tmp_path / "build", ["C=2"])
    assert built.returncode == 0, built.log
    assert "CHECK " in built.log
    assert complaints(built.log) == []


def test_a_warning_is_found(tmp_path: Path) -> None:
    """The two tests above can fail."""
    kernel = kernels.fetch("6.12", boot=False)
    source = tmp_path / "source"
    source.mkdir()
    (source / "Makefile").write_text((SOURCE / "module/Makefile").read_text())
    (source / "Kbuild").write_text("obj-m := bad.o\n")
    (source / "bad.c").write_text(
        '#include <linux/module.h>\nint *global;\nint init_module(void) { int unused; return 0; }\nMODULE_LICENSE("GPL");\n'
    )
    built = kernels.make(kernel, source, tmp_path / "build", ["W=1", "C=2"])
    assert any("unused variable" in line for line in complaints(built.log))
    assert any("'global' was not declared" in line for line in complaints(built.log))


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "For which kernel?"),
        (["KVER=5.10.0-none"], "holds no configured kernel headers"),
        (["KDIR={headers}", "KVER=5.10.0-none"], "is not for kernel 5.10.0-none"),
    ],
)
def test_the_makefile_never_guesses(arguments: list[str], answer: str, tmp_path: Path) -> None:
    kernel = kernels.fetch("6.1", boot=False)
    command = ["make", "-C", f"{SOURCE / 'module'}", *(a.format(headers=kernel.headers) for a in arguments)]
    done = kernels.enter(kernels.buildroot("bookworm"), [kernel.tree, SOURCE], command, 60)
    assert done.returncode != 0
    assert answer in done.stdout


@pytest.mark.parametrize("name", ["KDIR", "KERNELDIR"])
def test_the_makefile_takes_a_directory(name: str, tmp_path: Path) -> None:
    kernel = kernels.fetch("6.1", boot=False)
    copy = tmp_path / "build"
    shutil.copytree(SOURCE / "module", copy)
    command = ["make", "-C", f"{copy}", f"{name}={kernel.headers}", f"KVER={kernel.release}"]
    done = kernels.enter(kernels.buildroot("bookworm"), [kernel.tree, copy], command, 300)
    assert done.returncode == 0, done.stdout
    assert (copy / "knetstat.ko").exists()
