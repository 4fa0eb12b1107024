# SPDX-License-Identifier: GPL-2.0-or-later
"""The zoo on a kernel that watches itself: KASAN, lockdep, kmemleak. `make test-sanitizers`; see debug-kernel.sh.

KNETSTATD_CHURN=30 .venv/bin/python -m pytest tests/vm/test_sanitizers.py -k churn
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests import kernels
from tests.vm import zoo

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.rehearsal.vm import Module, Rehearsal

SERIES = "7.3"
FILES = [zoo.SOURCE / "module/knetstat.c", zoo.SOURCE / "module/compat.h"]
# compat.h exists for what these forbid.
IGNORED = "LINUX_VERSION_CODE,CONSTANT_COMPARISON"
CHURN = os.environ.get("KNETSTATD_CHURN", "600")

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(4000)]


@pytest.fixture(scope="module")
def home() -> Path:
    return kernels.sanitized(SERIES)


def watched(home: Path, module: Module, program: bytes, *arguments: str) -> Rehearsal:
    outcome = zoo.run(home / "bzImage", [module], program, *arguments, memory=1536, timeout=3600)
    # A kernel that looks for no leaks finds none.
    assert "kmemleak: " in outcome.output, outcome.console[-4000:]
    return outcome


@pytest.mark.parametrize(
    "arguments", [(), ("crowd", "2000"), ("unload",), ("churn", CHURN), ("reload", "120")], ids=lambda a: "-".join(a) or "zoo"
)
def test_nothing_is_found(arguments: tuple[str, ...], home: Path, tmp_path: Path, program: bytes) -> None:
    module = zoo.module(tmp_path, make=lambda source, into: kernels.make_here(home / "build", source, into, []))
    outcome = watched(home, module, program, *arguments)
    print(outcome.output[-500:])
    zoo.assert_fine(outcome)
    assert "kmemleak: 0 unreferenced objects" in outcome.output


# What must be found: the changes, and the words.
FIRST = "\tint i;\n\n\tfor (i = 0; i < ARRAY_SIZE(knetstat_files)"
LOSE = FIRST.replace("\tfor", "\tif (!kmalloc(40, GFP_KERNEL))\n\t\treturn -ENOMEM;\n\tfor")
ROW = "\tp = put_queue(p, recv);"
FREED = f"\tvoid *gone = kmalloc(64, GFP_ATOMIC);\n\n\tkfree(gone);\n\trecv += *(volatile char *)gone;\n{ROW}"
UNLOCK = "\tspin_unlock_bh(&slot->lock);"
MUTANTS = {
    "leak": ([(FIRST, LOSE)], "kmemleak: unreferenced object"),
    "bounds": ([("return names[state];", "return names[state + 14];")], "BUG: KASAN: global-out-of-bounds"),
    "freed": ([(ROW, FREED)], "BUG: KASAN: slab-use-after-free"),
    "sleep": ([(UNLOCK, f"\tmight_sleep();\n{UNLOCK}")], "BUG: sleeping function called from invalid context"),
    "softirq": (
        [("spin_lock_bh(lock)", "spin_lock(lock)"), ("spin_unlock_bh(lock)", "spin_unlock(lock)")], "inconsistent lock state"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(name: str, home: Path, tmp_path: Path, program: bytes) -> None:
    changes, words = MUTANTS[name]
    module = zoo.module(tmp_path, *changes, make=lambda source, into: kernels.make_here(home / "build", source, into, []))
    outcome = watched(home, module, program, "churn", "20")
    assert any(words in line for line in (*zoo.complaints(outcome), *outcome.output.splitlines())), outcome.console[-4000:]


def checkpatch(home: Path, file: Path) -> str:
    script = home / f"linux-source-{SERIES}/scripts/checkpatch.pl"
    done = subprocess.run(
        [script, "--no-tree", "--strict", f"--ignore={IGNORED}", "--file", file],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=home,
    )  # fmt: skip
    return done.stdout


def test_checkpatch(home: Path, tmp_path: Path) -> None:
    """The kernel's own style, by its own script."""
    for file in FILES:
        assert "has no obvious style problems" in checkpatch(home, file), checkpatch(home, file)
    bad = tmp_path / "bad.c"
    bad.write_text(FILES[0].read_text().replace("\tp[4] = ' ';", "    p[4]=' ';"))
    assert "WARNING: please, no spaces at the start of a line" in checkpatch(home, bad)


def sparse(home: Path, source: Path, into: Path) -> list[str]:
    """What sparse says; Debian's does not know one keyword that 7.x uses, nor that strlen() of a literal is a constant."""
    checker = "sparse -D__typeof_unqual__=__typeof__ '-D__builtin_strlen(s)=(sizeof(s)-1)'"
    built = kernels.make_here(home / "build", source, into, ["C=2", "W=1", f"CHECK={checker}"])
    assert built.returncode == 0, built.log
    assert "CHECK " in built.log
    return [line for line in built.log.splitlines() if "warning:" in line or "error:" in line]


def test_sparse(home: Path, tmp_path: Path) -> None:
    """Here, since Debian's 7.x headers lack what C=2 needs."""
    source = zoo.SOURCE / "module"
    assert sparse(home, source, tmp_path / "good") == []
    shutil.copytree(source, tmp_path / "source")
    text = (source / "knetstat.c").read_text()
    (tmp_path / "source/knetstat.c").write_text(text.replace("static int udp_show(", "int undeclared;\n\nstatic int udp_show("))
    assert any("'undeclared' was not declared" in line for line in sparse(home, tmp_path / "source", tmp_path / "bad"))
