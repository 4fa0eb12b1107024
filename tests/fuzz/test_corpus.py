# SPDX-License-Identifier: GPL-2.0-or-later
"""The corpora of `make fuzz`, replayed: each input through its target, within a bound of time and memory. Needs no atheris."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

import knetstatd
from tests.fuzz.targets import PARSERS, TARGETS, WITHOUT

CORPUS = Path(__file__).parent / "corpus"
PACKAGE = Path(knetstatd.__file__).parent
# Of one input: seconds of the processor, and bytes of memory beyond what the tests have themselves.
SECONDS, MEMORY = 5.0, 256 << 20
# A corpus stays small.
FILES, BYTES = 60, 400_000


def modules() -> set[str]:
    """What reads what others wrote, and what we wrote ourselves."""
    places = [path for folder in PARSERS for path in (PACKAGE / folder).glob("*.py") if path.name != "__init__.py"]
    return {f"{path.parent.name}.{path.stem}" for path in places} | {"system.documents"}


def test_every_parser_has_a_target_or_a_reason_to_have_none() -> None:
    assert TARGETS.keys() | WITHOUT.keys() >= modules()
    assert not TARGETS.keys() & WITHOUT.keys()
    for name in (*TARGETS, *WITHOUT):
        assert (PACKAGE / name.replace(".", "/")).with_suffix(".py").is_file(), f"{name} is no module"


def test_every_target_has_a_small_corpus_and_no_corpus_is_left_without_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
    for name in TARGETS:
        sizes = [path.stat().st_size for path in (CORPUS / name).iterdir()]
        assert 1 < len(sizes) <= FILES, name
        assert sum(sizes) <= BYTES, name


def _memory() -> tuple[int, int]:
    """The memory of this process, and the most that it had since that was last reset; bytes (proc_pid_status(5))."""
    status = Path("/proc/self/status").read_text()
    now, most = (int(re.findall(rf"^{key}:\s+(\d+) kB$", status, re.M)[0]) << 10 for key in ("VmRSS", "VmHWM"))
    return now, most


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_keeps_the_targets_promises(name: str) -> None:
    for path in sorted((CORPUS / name).iterdir()):
        data = path.read_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # resets the most (proc_pid_clear_refs(5))
        before, _ = _memory()
        start = time.process_time()
        TARGETS[name](data)
        assert time.process_time() - start < SECONDS, path
        assert _memory()[1] - before < MEMORY, path
