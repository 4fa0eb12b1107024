# SPDX-License-Identifier: GPL-2.0-or-later
"""`make mutants`: which small faults in the code that decides and acts would no unit test notice?

mutmut (pyproject.toml, `[tool.mutmut]`) makes the mutants and asks the tests. It keeps each answer in mutants/, so that an
interrupted run goes on. This program runs it, leaves out what says nothing, and prints a score for each folder:

    score = killed / (all mutants - refused by mypy - wording - equivalent)

With `--every N` it asks about one in N of those that no earlier run has asked about, by their names, and scores what was asked.

mypy refuses a mutant whose types do not fit; test_linters.py would. Wording is a mutant that changes only the letters of a text
with a blank in it: no decision hangs on one. Equivalent mutants stand in equivalent-mutants.txt, each with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
WORK = ROOT / "mutants"
EQUIVALENT = ROOT / "tests/equivalent-mutants.txt"
ENOUGH = 85.0
# mutmut's exit codes: a test failed, pytest failed; out of time (five ways) or of memory; mypy; what was interrupted.
KILLED = {1, 3, 24, 36, 152, 255, -24, -9, -11}
REFUSED = 37
SKIPPED = 34
NOT_ASKED = {None, 2, SKIPPED}
PROSE = re.compile(r'"(?:[^"\\]|\\.)* (?:[^"\\]|\\.)*"')


class Mutant(NamedTuple):
    function: str  # knetstatd.verify.verify.verify_file, knetstatd.system.locks.Lock.take
    before: str  # the lines that it changes, as they are
    after: str
    code: int | None

    @property
    def folder(self) -> str:
        return "/".join(self.function.split(".")[:2])

    @property
    def wording(self) -> bool:
        return PROSE.sub("", self.before) == PROSE.sub("", self.after)

    def __str__(self) -> str:
        lines = [f"- {line}" for line in self.before.splitlines()] + [f"+ {line}" for line in self.after.splitlines()]
        return "\n".join([self.function, *lines])


def difference(before: list[str], after: list[str]) -> tuple[str, str]:
    """The lines that differ, without what they have in common before and behind, and without their indentation."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    changed = before[start : len(before) - end], after[start : len(after) - end]
    first, second = ("\n".join(line.strip() for line in lines) for lines in changed)
    return first, second


def all_mutants() -> list[Mutant]:
    """What mutmut made, and what became of it."""
    mutants = []
    for meta in sorted(WORK.glob("knetstatd/*/*.py.meta")):
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        lines = meta.with_suffix("").read_text().splitlines()
        spans = json.loads(meta.with_suffix(".spans").read_text())["spans"]

        def source(name: str, lines: list[str] = lines, spans: dict[str, tuple[int, int]] = spans) -> list[str]:
            start, end = spans[name]
            return [line.replace(name, "") for line in lines[start - 1 : end]]

        for key, code in codes.items():
            module, _, mangled = key.rpartition(".")
            original = mangled.rpartition("__mutmut_")[0]
            function = f"{module}.{original.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')}"
            mutants.append(Mutant(function, *difference(source(original + "__mutmut_orig"), source(mangled)), code))
    return mutants


def equivalents() -> set[tuple[str, str, str]]:
    """Function, lines before, lines after: found again wherever the function moves. Each block ends with its reason."""
    listed = set()
    for block in re.split(r"\n\s*\n", EQUIVALENT.read_text()):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        before = "\n".join(line[2:] for line in lines if line.startswith("- "))
        after = "\n".join(line[2:] for line in lines if line.startswith("+ "))
        if len(lines) < 3 or lines[-1][:2] in ("- ", "+ "):
            raise SystemExit(f"{EQUIVALENT}: {lines[0]} has no reason")
        listed.add((lines[0], before, after))
    return listed


# A mutant of what deletes may delete anything, and a mutant of what kills may kill anyone. So they have processes of their own,
# a /tmp of their own (in which the project is to be seen, if it lies there), and write nowhere else but into WORK.
_CONFINED = """
set -e
mount --make-rprivate /
mount --bind "$WORK" "$WORK"
for place in "$ROOT" "$PREFIX"; do
    case $place in /tmp/*) mkdir -p "$OWN$place" && mount --rbind "$place" "$OWN$place" ;; esac
done
mkdir -p "$OWN/tmp" && mount --rbind "$OWN/tmp" /tmp
findmnt -rno TARGET,VFS-OPTIONS | while read -r place options; do
    case $place in
    "$WORK" | /tmp | /proc | /proc/* | /dev | /dev/* | "$OWN"/*) ;;
    *) mount -o "remount,bind,$options,ro" "$place" ;;
    esac
done
cd "$PWD"
"$@"
exit $?  # no exec: process 1 is deaf to signals, and gets the orphans
"""


def confined(argv: list[str], cwd: Path, **more: str) -> bool:
    """Runs a program that may write into WORK and a /tmp of its own; whether it was content. more: of its environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    apart = ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _CONFINED, "sh"]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as own:
        places = {"ROOT": os.fspath(ROOT), "WORK": os.fspath(WORK), "PREFIX": sys.prefix, "OWN": own}
        environment = os.environ | places | {"PATH": path, "TMPDIR": "/tmp"} | more
        return subprocess.run([*apart, *argv], cwd=cwd, env=environment, check=False).returncode == 0


def run(every: int) -> None:
    """Asks the tests about all mutants that have survived, since tests may have been added, and about one in `every` others."""
    if every > 1 and not any(WORK.glob("knetstatd/*/*.py.meta")):
        confined(["mutmut", "run", "knetstatd.core.planner.*"], ROOT)  # which makes all mutants
    shutil.rmtree(WORK / "tests", ignore_errors=True)
    (WORK / "mutmut-stats.json").unlink(missing_ok=True)  # which tests reach which function
    for meta in WORK.glob("knetstatd/*/*.py.meta"):
        content = json.loads(meta.read_text())
        codes = content["exit_code_by_key"]
        content["exit_code_by_key"] = {
            key: code
            if code in KILLED | {REFUSED}
            else SKIPPED
            if code in NOT_ASKED and zlib.crc32(key.encode()) % every
            else None
            for key, code in codes.items()
        }
        meta.write_text(json.dumps(content))
    WORK.mkdir(exist_ok=True)
    if not confined(["mutmut", "run"], ROOT):
        raise SystemExit("mutmut has failed")


# Which functions our modules call when they are imported.
_AT_IMPORT = """
import importlib, pathlib
for path in pathlib.Path("knetstatd").rglob("*.py"):
    if not path.stem.startswith("__"):
        importlib.import_module(".".join(path.with_suffix("").parts))
from mutmut.state import state
print(*state()._stats)
"""


def ask_anew() -> None:
    """Asks again, each in a new process, about the mutants of such functions: mutmut comes too late for them."""
    stats = os.environ | {"MUTANT_UNDER_TEST": "stats"}
    asked = subprocess.run([sys.executable, "-c", _AT_IMPORT], cwd=WORK, env=stats, check=True, capture_output=True, text=True)
    called = set(asked.stdout.split())
    for meta in WORK.glob("knetstatd/*/*.py.meta"):
        content = json.loads(meta.read_text())
        for key, code in content["exit_code_by_key"].items():
            if code not in KILLED | {REFUSED, SKIPPED} and key.rpartition("__mutmut_")[0] in called:
                tests = [sys.executable, "-m", "pytest", "-xqp", "no:cacheprovider", f"tests/unit/{meta.parent.name}"]
                content["exit_code_by_key"][key] = 0 if confined(tests, WORK, MUTANT_UNDER_TEST=key) else 1
        meta.write_text(json.dumps(content))


def report(mutants: list[Mutant], listed: set[tuple[str, str, str]], *, sampled: bool) -> int:
    """Prints survivors and scores; 0 if all were asked, each listed one exists and survives, and every folder has ENOUGH.

    sampled: not all need have been asked.
    """
    counts: dict[str, Counter[str]] = {}
    survivors, unused = [], set(listed)
    for mutant in mutants:
        kind = "survived"
        if mutant.code == REFUSED:
            kind = "refused"
        elif mutant.wording:
            kind = "wording"
        elif mutant.code in NOT_ASKED:
            kind = "not asked"
        elif mutant.code in KILLED:
            kind = "killed"
        elif mutant[:3] in listed:
            kind = "equivalent"
            unused.discard(mutant[:3])
        else:
            survivors.append(mutant)
        counts.setdefault(mutant.folder, Counter())[kind] += 1
    print(*survivors, sep="\n\n", end="\n\n")
    for function, before, after in sorted(() if sampled else unused):
        print(f"{EQUIVALENT.name}: {function}: no such mutant survives; remove it:\n- {before}\n+ {after}\n")
    kinds = ["refused", "wording", "equivalent", "not asked", "killed", "survived"]
    print(f"{'folder':20} {'mutants':>10}", *(f"{kind:>10}" for kind in kinds), f"{'score':>8}")
    enough = sampled or not unused
    for folder, count in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        asked = count["killed"] + count["survived"]
        score = 100 * count["killed"] / asked if asked else 100.0
        enough = enough and score >= ENOUGH and (sampled or not count["not asked"])
        print(f"{folder:20} {count.total():10}", *(f"{count[kind]:10}" for kind in kinds), f"{score:6.1f} %")
    return 0 if enough else 1


def main() -> int:
    """Asks, unless only the report is wanted."""
    arguments = argparse.ArgumentParser(prog="make mutants ARGS=", description=__doc__.partition("\n")[0])
    arguments.add_argument("--report", action="store_true", help="ask nothing")
    arguments.add_argument("--every", type=int, default=1, metavar="N", help="ask about one in N, and score these")
    options = arguments.parse_args()
    if not options.report:
        run(options.every)
        ask_anew()
    return report(all_mutants(), equivalents(), sampled=options.every > 1)


if __name__ == "__main__":
    raise SystemExit(main())
