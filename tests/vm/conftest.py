# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels, modules and programs for the virtual machines; each is made once in a run.

To add a kernel, add a line to SERIES.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from knetstatd.rehearsal import vm
from tests import kernels
from tests.container import packages
from tests.vm import zoo
from tests.vm.zoo import SOURCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.vm.upgrade import PackagesOf

SERIES = [
    ("5.10", "bullseye"),
    ("6.1", "bookworm"),
    ("6.12", "bookworm"),
    ("6.12", "trixie"),
    ("7.2", "trixie-backports"),
    ("7.3", "trixie-backports"),
]
# `make test` boots these two, the oldest and the newest; `make test-vm` boots all.
QUICK = (SERIES[0], SERIES[-1])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `booted` runs on a cloud kernel of every series."""
    if "booted" in metafunc.fixturenames:
        metafunc.parametrize(
            "booted",
            [pytest.param(row, id="-".join(row), marks=() if row in QUICK else (pytest.mark.slow,)) for row in SERIES],
            indirect=True,
        )


@pytest.fixture(scope="session")
def booted(request: pytest.FixtureRequest) -> kernels.Kernel:
    series, suite = request.param
    return kernels.fetch(series, "cloud-amd64", suite)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[kernels.Kernel], vm.Module]:
    """knetstat for a kernel."""
    made: dict[str, vm.Module] = {}

    def knetstat(kernel: kernels.Kernel) -> vm.Module:
        if kernel.release not in made:
            built = kernels.make(kernel, SOURCE / "module", tmp_path_factory.mktemp("knetstat"), [])
            assert built.returncode == 0, built.log
            made[kernel.release] = vm.Module("knetstat", (built.directory / "knetstat.ko").read_bytes())
        return made[kernel.release]

    return knetstat


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The zoo."""
    return zoo.compiled(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def packages_of(tmp_path_factory: pytest.TempPathFactory) -> PackagesOf:
    """Our packages for a suite."""
    return functools.cache(lambda suite: packages.build(suite, tmp_path_factory.mktemp(f"packages-{suite}")))
