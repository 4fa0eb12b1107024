# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines for the tests of this folder, all of them marked `container`.

`suite` runs a test once per Debian release; `machine` is a booted container of it; `bookworm` and `trixie` are booted
containers of these. Tests that need another start (not booted, no kernel, another running kernel) call
rig.container() themselves.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import rig

HERE = Path(__file__).parent
PROGRAMS = ("mmdebstrap", "systemd-nspawn", "apt-ftparchive", "nsenter", "setpriv")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.container)


def missing() -> str:
    """What keeps a machine from running these tests."""
    absent = [program for program in PROGRAMS if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if os.geteuid() != 0:
        return "container tests run as root"
    return f"container tests need {', '.join(absent)}" if absent else ""


@pytest.fixture(autouse=True, scope="session")
def _able() -> None:
    """On a developer's machine that cannot, a skip; in CI, where the tests are the point, a failure."""
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(params=rig.SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(suite: str) -> Iterator[rig.Container]:
    with rig.container(suite) as container:
        yield container


@pytest.fixture
def bookworm() -> Iterator[rig.Container]:
    with rig.container("bookworm") as container:
        yield container


@pytest.fixture
def trixie() -> Iterator[rig.Container]:
    with rig.container("trixie") as container:
        yield container


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure shows the journals of the containers that the test still has."""
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        for container in rig.live:
            report.sections.append((f"journal of {container.suite}", container.journal_tail()))  # type: ignore[attr-defined]
    return report
