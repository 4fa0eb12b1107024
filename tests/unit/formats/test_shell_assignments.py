# SPDX-License-Identifier: GPL-2.0-or-later
"""What a shell file assigns, read without a shell, and bash's own answers for the same text."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from pathlib import Path

import pytest

from knetstatd.formats import shell_assignments


def values(text: str, given: dict[str, str] | None = None) -> tuple[dict[str, dict[int, str]], set[str]]:
    shell = shell_assignments.Shell(given or {})
    shell.run(text)
    return shell.values, shell.dynamic


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=plain", "plain"),
        ("A='single $x `y` \\'", "single $x `y` \\"),
        ('A="a \\" \\$ \\` \\\\ \\n b"', 'a " $ ` \\ \\n b'),
        ("A=a\\ b\\'c", "a b'c"),
        ("A=a\\\nb", "ab"),
        ('A="a\\\nb"', "ab"),
        ("A=x$", "x$"),
        ('A="x$ y"', "x$ y"),
        ("A=x#y # comment", "x#y"),
        ("A=1 B=2", "1"),
        ("B=1; A=$B${B}2", "112"),
        ("B=(x y); A=${B[1]}$B", "yx"),
        ("A=$nothing-", "-"),
        ("A=1\nA=2 command", "1"),
        ("A=1\r", "1\r"),
        ("declare -x A=7", "7"),
        ("A=1; A+=2", "12"),
        ("A+=2", "2"),
        ("A[0]=2", "2"),
        ("\\\nA=1 > /dev/null", None),
        ("A=1 &", None),
        ("A=1 && echo", "1"),
        ("! A=1", "1"),
        ("A=", ""),
        ("export A", None),
    ],
)
def test_words(text: str, value: str | None) -> None:
    found, dynamic = values(text)
    assert found.get("A", {}).get(0) == value
    assert "*" not in dynamic


@pytest.mark.parametrize(
    "text",
    [
        "A=$(x)", "A=`x`", "A=`x", "A=$(x", "A=${B:-x}", "A=${B", "A=$'x'", "A=$1", "A=$?", "A=${#B}", "A='open", 'A="open',
        "A[$i]=1", "A[x]=1", "A[99999]=1", "A=(a*)", "A=($B)", "A=({1,2})", "A=([5000]=x)", "A=(1 2) && A=3",
        "printf -v A x", "unset A",
        "A=~/x", "A=x:~", 'A=$"x"', "export A=$B B=2", "export A={a,b}", "A=(\"$B\"$C\"\")", "A=(`x`)", "A=(x); A+=($B); A=1",
        "[ x ] && A[1]=2; A=1", "A=1 $B", "declare -i A=1+1", "A=1 eval B=2",
        "A=1 & A=2 &", "x | A=2", f"A={'x' * 5000}", "A=(" + "x " * 1001 + ")", f"A={'x' * 4000}; A+={'x' * 4000}",
        "A=" + '"$(echo ")" \\) \')\')"', "for A in x; do y; done", "A=$(", "select A in x; do y; done",
    ],
)  # fmt: skip
def test_dynamic_words(text: str) -> None:
    _, dynamic = values(text)
    assert dynamic & {"A", "*"}


def test_a_substitution_hides_its_text() -> None:
    found, dynamic = values('A="$(echo "x)" $(y "B=2") \')\' )"; C=3; D=`E=1`; F=${A//\\}/x}; G=1')
    assert dynamic == {"A", "D", "F"}
    assert (found["C"], found["G"]) == ({0: "3"}, {0: "1"})


def test_arrays() -> None:
    assert values("A=(a 'b c' # comment\n \"d\" [7]=e f)")[0]["A"] == {0: "a", 1: "b c", 2: "d", 7: "e", 8: "f"}
    assert values("A=(a b); A=(c); A+=(d); A[5]=e; A+=(f)")[0]["A"] == {0: "c", 1: "d", 5: "e", 6: "f"}
    assert values("A=(a; b") == ({"A": {0: "a", 1: "b"}}, {"*"})
    assert values("A=()")[0]["A"] == {}


def test_a_variable_that_doubles_itself_stays_small() -> None:
    found, dynamic = values("A=xxxxxxxx\n" + "A=$A$A\n" * 100)
    assert len(found["A"][0]) <= 4096
    assert "A" in dynamic


@pytest.mark.parametrize("text", ["if ", "A=(", "A=$A", 'A="$(', "A=x ", "x() { ", "A=`", "case x in "])
def test_no_text_takes_long(text: str) -> None:
    started = time.process_time()
    values(text * 5000)
    assert time.process_time() - started < 2


PIECES = [
    "x", "yy", " ", "$A", "${B}", "$C", "${B[1]}", "\\ ", "\\$", '\\"', "\\n", "'s q'",
    "'$A'", '"d $A q"', '"\\$B"', '"\'"', "-", "1.0",
    "#", "=", "$", "~", "*", "{a,b}", '"  "', "$(echo z)", "`echo z`", "${A:-q}", "$'t'", "$[1]", "!", "\t", "[0]", "+",
]  # fmt: skip
STATEMENTS = [
    "{n}={v}", "{n}={v}", "{n}={v}", "{n}[1]={v}", "{n}+={v}", "{n}=({v} {v} [3]={v})", "{n}+=({v})", "export {n}={v} B={v}",
    "if true; then {n}={v}; fi", "true && {n}={v}", "# {v}", "f() {{ {n}={v}; }}", "{n}={v} true", "unset {n}",
    "case x in a) {n}=1;; (x) {n}={v};; esac", "echo {v} > /dev/null",
]  # fmt: skip
PRINT = r"""
for file; do (
    . "$file" > /dev/null
    printf 'file=%s\0' "$file"
    for name in A B C D; do
        eval "indexes=\${!$name[@]}"
        for i in $indexes; do eval "printf '%s[%s]=%s\0' \$name \$i \"\${$name[$i]}\""; done
    done
) done
"""


@pytest.mark.spawns
def test_bash_agrees_with_whatever_is_called_known(tmp_path: Path) -> None:
    """Random scripts from a fixed seed: each variable that we claim to know has the value that bash gives it."""
    chance = random.Random(20)
    scripts = {}
    for number in range(150):
        lines = []
        for _ in range(chance.randint(1, 6)):
            parts = ["".join(chance.choices(PIECES, k=chance.randint(0, 4))) for _ in range(3)]
            first, *rest = chance.choice(STATEMENTS).format(n=chance.choice("ABCD"), v="\0").split("\0")
            lines.append(first + "".join(map("".join, zip(parts, rest, strict=False))) + chance.choice("\n;"))
        scripts[os.fspath(tmp_path / f"{number}.sh")] = "".join(lines)
    for name, text in scripts.items():
        Path(name).write_text(text)
    cwd = tmp_path / "empty"
    cwd.mkdir()
    run = subprocess.run(
        ["bash", "-c", PRINT, "bash", *scripts], capture_output=True, cwd=cwd, env={"PATH": "/usr/bin:/bin"}, check=False
    )
    wrong = set(
        re.findall(rf"({re.escape(os.fspath(tmp_path))}/\d+\.sh): line \d+: (?:syntax|unexpected)", run.stderr.decode())
    )
    compared = 0
    for answer in run.stdout.decode().split("file=")[1:]:
        name, *items = answer.rstrip("\0").split("\0")
        theirs = dict(item.split("=", 1) for item in items)
        found, dynamic = values(scripts[name])
        for variable in "ABCD" if "*" not in dynamic and name not in wrong else "":
            if variable not in dynamic:
                ours = {f"{variable}[{i}]": value for i, value in found.get(variable, {}).items() if value}
                assert ours == {k: v for k, v in theirs.items() if k.startswith(variable) and v}, scripts[name]
                compared += 1
    assert compared > 200


def test_files_one_after_the_other() -> None:
    said = shell_assignments.assigned(("A=1 B=$X", "A=2; C=`date`"), (("X", "x"),))
    assert (said.scalar("A"), said.scalar("B"), said.scalar("D", "none"), set(said.dynamic)) == ("2", "x", "none", {"C"})
    assert shell_assignments.assigned(("B=$X",), (), ("X",)).scalar("B") == "${X}"
