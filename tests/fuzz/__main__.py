# SPDX-License-Identifier: GPL-2.0-or-later
"""`make fuzz`: gives each target of targets.py bytes that atheris (libFuzzer) makes of its corpus, by what they reach.

    make fuzz                           a minute for each target
    make fuzz FUZZ=formats.elf SECONDS=3600
    make fuzz FUZZ=formats.elf KEEP=1   what was reached besides is added to tests/fuzz/corpus, as few small files as will do

What is found lies in build/fuzz/NAME: new inputs in `corpus`, so that a later run goes on from there, and an input that breaks
a promise, takes five seconds or a gigabyte as `crash-…`, `timeout-…` or `oom-…`. The fault is the product's: cure it, with a
unit test, and put the input into tests/fuzz/corpus/NAME, which `make test` replays.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
WORK = ROOT / "build/fuzz"
# Of libFuzzer: seconds for one input, megabytes for the process, bytes of an input.
LIMITS = ["-timeout=5", "-rss_limit_mb=1024", "-max_len=8192"]
KEPT = 50
HASH = re.compile("[0-9a-f]{12}")  # how a file is called that `keep` has put into a corpus


def words(name: str) -> list[str]:
    """The words in a module's source, which its input may have: what no comparison of bytes shows to the fuzzer."""
    tree = ast.parse((ROOT / "knetstatd" / name.replace(".", "/")).with_suffix(".py").read_text())
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [value.encode() if isinstance(value, str) else value for value in values if isinstance(value, str | bytes)]
    return sorted({part.decode("latin-1") for text in texts for part in [text, *text.split()] if 1 < len(part) <= 32})


def fuzz(name: str, arguments: list[str]) -> int:
    """One run of libFuzzer, which ends its process, so it has one of its own. The exit status."""
    command = [sys.executable, "-m", "tests.fuzz", "--one", name, *LIMITS, f"-artifact_prefix={WORK / name}/", *arguments]
    log = WORK / name / "log"
    with log.open("wb") as output:
        code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        print(log.read_text(errors="replace")[-3000:])
    return code


def run(name: str, seconds: int) -> bool:
    """Fuzzes one target, and says what came of it."""
    work = WORK / name
    (work / "corpus").mkdir(parents=True, exist_ok=True)
    dictionary = work / "words"
    lines = ("".join(f"\\x{ord(c):02x}" for c in word) for word in words(name))
    dictionary.write_text("".join(f'"{line}"\n' for line in lines))
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-dict={dictionary}", "-print_final_stats=1"]
    code = fuzz(name, [*options, str(work / "corpus"), str(CORPUS / name)])
    done = re.findall(r"^stat::number_of_executed_units: (\d+)", (work / "log").read_text(errors="replace"), re.M)
    print(f"{name}: {' '.join(done) or '?'} inputs, {'no fault' if code == 0 else f'A FAULT, see {work}'}", flush=True)
    return code == 0


def keep(name: str) -> None:
    """Makes the corpus anew: of all that is known, as few small files as reach the same."""
    work = WORK / name
    merged = work / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    if fuzz(name, ["-set_cover_merge=1", str(merged), str(CORPUS / name), str(work / "corpus")]):
        return
    by_size = sorted(merged.iterdir(), key=lambda path: path.stat().st_size)
    chosen = by_size[:: -(-len(by_size) // KEPT) or 1]
    for path in (CORPUS / name).iterdir():
        if HASH.fullmatch(path.name):  # what has a name of its own was put there by somebody
            path.unlink()
    for path in chosen:
        shutil.copyfile(path, CORPUS / name / path.name[:12])
    print(f"{name}: {len(chosen)} files, {sum(path.stat().st_size for path in chosen)} bytes")


def one(name: str, arguments: list[str]) -> None:
    """What runs in the process of its own: the fuzzer, with its eyes in our code."""
    import atheris

    again = WORK / name / "again"  # when libFuzzer merges, it starts itself by the name that it was called by
    again.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz --one {name} "$@"\n')
    again.chmod(0o755)
    with atheris.instrument_imports(include=["knetstatd"]):
        from tests.fuzz import targets
    atheris.Setup([str(again), *arguments], targets.TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3:])
    from tests.fuzz import targets

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes the parsers.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="make the corpus of tests/fuzz/corpus anew")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of targets; all without one")
    options = parser.parse_args()
    if unknown := set(options.names) - targets.TARGETS.keys():
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(targets.TARGETS)}")
    names = options.names or list(targets.TARGETS)
    good = [run(name, options.seconds) for name in names if options.seconds]
    for name in names if options.keep else ():
        keep(name)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
