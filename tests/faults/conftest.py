# SPDX-License-Identifier: GPL-2.0-or-later
"""The machines of tests/container, for the fault suite."""

from tests.container.conftest import _able, bookworm, machine, pytest_runtest_makereport, suite, trixie

__all__ = ["_able", "bookworm", "machine", "pytest_runtest_makereport", "suite", "trixie"]
