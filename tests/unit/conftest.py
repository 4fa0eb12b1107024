# SPDX-License-Identifier: GPL-2.0-or-later
"""What every unit test gets: trees made of small files; no child and no descriptor may outlive a test."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# No test is judged by its time: a busy machine is no fault of the code's. Its fixtures are trees that each example writes anew.
settings.register_profile("unit", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("thorough", settings.get_profile("unit"), max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unit"))


_LONGEST = ("test_mypy", "test_every_observation_has_an_answer_and_every_rule_holds", "test_no_verdict_contradicts_itself")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first, so that no worker waits for one in the end; then all that parse our sources, together."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    parsing = {item for item in items if hasattr(getattr(item, "module", None), "nodes")}
    items.sort(key=lambda item: (places.get(item.name, len(places)), item not in parsing))


def pytest_configure(config: pytest.Config) -> None:
    """Trees lie in memory if programs can be started from there, and only unit tests run: 100,000 files and directories are
    written and deleted, which is no test of a disk. PYTEST_DEBUG_TEMPROOT=/tmp puts them on that."""
    memory, here = Path("/dev/shm"), Path(__file__).parent
    if all(Path(word.partition("::")[0]).resolve().is_relative_to(here) for word in config.args) and memory.is_dir():
        there = os.statvfs(memory)
        if os.access(memory, os.W_OK) and not there.f_flag & os.ST_NOEXEC and there.f_bavail * there.f_frsize > 1 << 30:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", os.fspath(memory))


def pytest_collection_finish() -> None:
    """Thousands of collected tests are no garbage, and need not be looked through time and again."""
    gc.collect()
    gc.freeze()


_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LIBC = ctypes.CDLL(None)


def _children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as f:
        return {int(word) for word in f.read().split()}


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that goes with the test, unless that fails. pytest's stay, and among thousands each costs more to make."""
    failed = request.session.testsfailed
    path = Path(tempfile.mkdtemp(prefix=f"{request.function.__name__[:30]}-", dir=tmp_path_factory.getbasetemp()))
    yield path
    if request.session.testsfailed == failed:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def open_to_all(tmp_path: Path) -> None:
    """Lets every user look into the test's directory. pytest's own above it are closed; /tmp is open, and is left as it is."""
    for directory in (tmp_path, *tmp_path.parents):
        if (mode := directory.stat().st_mode) & 0o55 != 0o55:
            directory.chmod(mode | 0o55)


@pytest.fixture(scope="session")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current directory of tests that have none of their own. It is empty, and stays so."""
    return tmp_path_factory.mktemp("nowhere")


def _refuse(*args: object, **more: object) -> None:
    raise AssertionError("a unit test that starts programs is marked `spawns`")


@pytest.fixture(autouse=True)
def settled(request: pytest.FixtureRequest, nowhere: Path) -> Iterator[None]:
    """Fails a test that leaves a child or a descriptor behind, or starts a program without the marker `spawns`.

    What a fault of ours writes or deletes by a relative path is not the project's. Asks for no fixture that it can do without:
    each costs more than all that is done here, in 3,000 tests.
    """
    start = subprocess.Popen.__init__
    if not request.node.get_closest_marker("spawns"):
        subprocess.Popen.__init__ = _refuse  # type: ignore[method-assign]
    children, descriptors = _children(), set(os.listdir("/proc/self/fd"))
    with contextlib.chdir(request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else nowhere):
        yield
    subprocess.Popen.__init__ = start  # type: ignore[method-assign]
    # What runs under process.adopt_orphans in one test must not take in what the programs of the next one leave (prctl(2)).
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert not _children() - children, "the test left a child behind"
    assert not set(os.listdir("/proc/self/fd")) - descriptors, "the test left a descriptor open"
    assert not os.listdir(nowhere), "the test wrote into the current directory"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The path of each file and directory that is synced, as the operating system knows it then."""
    paths: list[str] = []
    fsync = os.fsync

    def sync(fd: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    return paths


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Makes a tree below a root: {path: content}; a path that ends in / is a directory, `-> target` a symlink."""

    def make(entries: dict[str, str]) -> Path:
        for name, content in entries.items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir(exist_ok=True)
            elif content.startswith("-> "):
                path.symlink_to(content[3:])
            else:
                path.write_text(content)
        return tmp_path

    return make
