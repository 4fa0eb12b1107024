# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged modules: what a kernel's loader refuses the analysis never calls good, and as an installed file it calls none good.

    pytest tests/vm/test_mutants.py -k '7.3 and few' -s     # with a table, and every red that the kernel would have loaded
    pytest tests/vm/test_mutants.py -m slow -s              # 5,000 mutants on each of four kernels: an hour and a half

Damaged code that a kernel takes, and dies of or not, cannot be told from good code without what was built to compare it with.
So it is counted here, and nothing is asked of the analysis of a loose file; of an installed one all is asked.
"""

from __future__ import annotations

import collections
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.model import Proof, Result
from knetstatd.machine import host
from knetstatd.machine.host import Origin
from knetstatd.verify import install_checks, module_readings, target_kernel, verify
from tests import kernels
from tests.vm import mutants
from tests.vm.conftest import QUICK
from tests.vm.mutants import Said
from tests.vm.test_agreement import root_of, signed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.vm.mutants import Answer, Mutant

pytestmark = pytest.mark.vm

SEED, FEW, MANY = 15, 200, 5000
ALL = (("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("7.3", "trixie-backports"))


class Judge:
    """The analysis, asked about mutants of some modules for one kernel."""

    def __init__(self, kernel: kernels.Kernel, files: Mapping[str, bytes], directory: Path) -> None:
        self._root, self._release = root_of(kernel, directory, "plain"), kernel.release
        self._facts, self._host = target_kernel.facts(self._root, kernel.release), host.facts(self._root)
        self._place = self._root / "mutant.ko"
        self._origins = {}
        for name, data in files.items():
            copy = self._root / f"{name}.ko"
            copy.write_bytes(data)
            known = Origin("1.0", "1.0", copy)
            self._origins[name] = (known, known._replace(digest=module_readings.digest(copy)))
            assert self.loose(data).holds(linked=True), self.loose(data).worst
            assert self.is_installed(name)

    def loose(self, data: bytes) -> Proof:
        """What it says of a file that lies somewhere."""
        self._place.write_bytes(data)
        return verify.verify(self._root, self._release, self._place, facts=self._facts, host=self._host)

    def is_installed(self, name: str) -> bool:
        """Whether the last one asked about is, byte for byte, what was built; by DKMS's copy and by the digest alike."""
        both = {install_checks.contents(self._place, known, self._release).result for known in self._origins[name]}
        assert len(both) == 1
        return both == {Result.PASS}


def compare(series: str, suite: str, count: int, directory: Path) -> None:
    kernel = kernels.fetch(series, "cloud-amd64", suite)
    files = mutants.modules(kernel, directory / "modules")
    signature = signed(b"", directory)
    some = mutants.mutants(files, SEED, count, signature)
    answers = mutants.ask(kernel, files, some, directory)
    judge = Judge(kernel, files, directory)
    table: collections.Counter[tuple[str, str]] = collections.Counter()
    greens: list[tuple[Mutant, Answer]] = []
    installed: list[tuple[Mutant, Answer]] = []
    reds: collections.Counter[tuple[str, str]] = collections.Counter()
    for mutant, answer in zip(some, answers, strict=True):
        proof = judge.loose(mutant.made(files[mutant.name]))
        colour = "green" if proof.loads else "red" if proof.fails else "unknown"
        table[answer.said.value, colour] += 1
        if proof.loads and answer.said is Said.REFUSED:
            greens.append((mutant, answer))
        if proof.loads and judge.is_installed(mutant.name) and answer.said is not Said.LOADS:
            installed.append((mutant, answer))
        if proof.fails and answer.said is Said.LOADS and proof.worst is not None:
            reds[proof.worst.name, proof.worst.reason[:90]] += 1
    print(f"\n{kernel.release}: {count} mutants of {', '.join(files)}, seed {SEED}")
    for (said, colour), number in sorted(table.items()):
        print(f"{number:6} {colour:7} {said}")
    for (check, reason), number in reds.most_common():
        print(f"{number:6} red, and the kernel loads it: {check}: {reason}")
    assert greens == []
    assert installed == []
    # The question was one: some load, more are refused than not, and of those that load not all are called damaged.
    assert table["loads", "green"] > count / 10
    assert table["refused", "red"] > count / 10


@pytest.mark.parametrize(("series", "suite"), QUICK, ids=[row[0] for row in QUICK])
def test_a_few(series: str, suite: str, tmp_path: Path) -> None:
    compare(series, suite, FEW, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("series", "suite"), ALL, ids=[row[0] for row in ALL])
def test_many(series: str, suite: str, tmp_path: Path) -> None:
    """`make test-vm` runs it."""
    compare(series, suite, MANY, tmp_path)


def test_the_same_seed_makes_the_same_mutants() -> None:
    kernel = kernels.fetch(*QUICK[1][:1], "cloud-amd64", QUICK[1][1])
    with tempfile.TemporaryDirectory() as directory:
        files = mutants.modules(kernel, Path(directory))
    one, other, third = (mutants.mutants(files, seed, 300, b"signature" * 9) for seed in (1, 1, 2))
    assert one == other != third
    assert {mutant.kind for mutant in one} >= {"bit", "sector", "section header", "relocation", "signature", "truncation"}
    for mutant in one:
        assert mutant.made(files[mutant.name]) != files[mutant.name], mutant
