# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports go one way, from folder to folder; each third-party package has one owner."""

from __future__ import annotations

import ast
import functools
import re
import statistics
from typing import TYPE_CHECKING

import pytest
from sources import FILES, PACKAGE, name_of, nodes

if TYPE_CHECKING:
    from pathlib import Path

# A folder imports from the levels before its own; two folders of one level do not import each other.
LINE = (
    {"core"}, {"system"}, {"formats"}, {"boot", "dkms"}, {"machine"}, {"state", "verify", "diagnosis"}, {"verdict"},
    {"rehearsal", "daemon", "repair"}, {"build"}, {"cli"},
)  # fmt: skip
LEVEL = {folder: level for level, folders in enumerate(LINE) for folder in folders}
OWNERS = {
    "subprocess": "system/process", "systemd": "system/journal", "inotify_simple": "daemon/inotify", "pyudev": "daemon/uevents",
    "sdnotify": "daemon/sd_notify",
}  # fmt: skip
# Texts are for people. These look into one all the same, and decide nothing of ours by it.
TEXTS = {"reason", "fix", "expected", "what", "title", "sentence", "message"}
READS_A_TEXT = {
    "boot/grub_cfg._execute": "a title of GRUB's menu, shown with a mark in place of what is unknown",
    "boot/grub_cfg._number": "GRUB itself finds its default entry by the title",
    "daemon/announce.reject": "the faults of a configuration are lines; the first is shown, the others are counted",
}
STR_METHODS = {name for name in dir(str) if not name.startswith("_")} - {"format", "join", "encode"}


@functools.cache
def imports(path: Path) -> tuple[set[str], set[str], set[str]]:
    """What a file imports: of the package when it runs, of the package for types alone, and top-level names of others."""
    typing_only = {
        id(node)
        for branch in nodes(path)
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    own: set[str] = set()
    types: set[str] = set()
    others: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relative to itself"
            package, _, place = (node.module or "").partition(".")
            if package != "knetstatd":
                others.add(package)
            elif place.startswith("_vendor."):  # what the Debian package brings along is still somebody else's
                others.add(place.removeprefix("_vendor."))
            else:
                whole = "." in place or not place
                found = {place.replace(".", "/")} if whole else {f"{place}/{alias.name}" for alias in node.names}
                (types if id(node) in typing_only else own).update(found - {""})
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return own, types, others


def test_every_file_is_in_a_folder_of_the_line() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {path.parent.name for path in FILES if path.parent != PACKAGE} == set(LEVEL)
    assert {path.parent.parent for path in FILES if path.parent != PACKAGE} == {PACKAGE}, "a folder holds files only"


def test_a_folder_imports_only_from_folders_before_it() -> None:
    for path in (path for path in FILES if path.parent != PACKAGE):
        mine = path.parent.name
        own, types, _ = imports(path)
        for imported in own | types:
            folder = imported.partition("/")[0]
            assert folder == mine or LEVEL[folder] < LEVEL[mine], f"{name_of(path)} imports {imported}"


def test_no_cycles() -> None:
    graph = {name_of(path): imports(path)[0] for path in FILES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"import cycle: {' -> '.join((*way, name))}"
        if name not in done:
            for imported in graph.get(name, ()):
                visit(imported, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_each_third_party_package_has_one_owner() -> None:
    for path in FILES:
        for package in imports(path)[2] & set(OWNERS):
            assert OWNERS[package] == name_of(path), f"{path.name} imports {package}, which {OWNERS[package]}.py owns"


def test_files_and_folders_are_short() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in FILES if path.name != "__init__.py"}
    assert not {name: count for name, count in lines.items() if count > 350}
    assert statistics.median(lines.values()) < 170
    for folder in LEVEL:
        assert len([path for path in (PACKAGE / folder).glob("*.py") if path.name != "__init__.py"]) <= 12, folder


def test_the_architecture_page_has_a_sentence_for_each_file() -> None:
    page = (PACKAGE.parent / "docs/architecture.md").read_text()
    listed = re.findall(r"^- `([a-z]+/[a-z0-9_]+)\.py` .*\.$", page, re.M)
    assert sorted(listed) == sorted(name_of(path) for path in FILES if path.parent != PACKAGE and path.name != "__init__.py")
    [line] = re.findall(r"^ {4}(core < .*)$", page, re.M)
    assert [set(re.findall(r"[a-z]+", level)) for level in line.split(" < ")] == list(LINE)


def test_no_variable_is_called_found() -> None:
    """The word says that something was looked for, not what it is. The field of Check is no variable."""
    for path in FILES:
        classes = [node for node in nodes(path) if isinstance(node, ast.ClassDef)]
        fields = {id(line.target) for node in classes for line in node.body if isinstance(line, ast.AnnAssign)}
        variables = {(node.id, node.lineno) for node in nodes(path) if isinstance(node, ast.Name) and id(node) not in fields}
        variables |= {(node.arg, node.lineno) for node in nodes(path) if isinstance(node, ast.arg)}
        variables |= {(node.name, node.lineno) for node in nodes(path) if isinstance(node, ast.FunctionDef)}
        assert not [line for name, line in variables if name == "found"], name_of(path)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in TEXTS


def reads_a_text(node: ast.AST) -> bool:
    """Whether an expression compares or searches a text for people, or takes a state for one."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        inside = [part for side in sides for part in ast.walk(side)]
        literal = any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in inside)
        of_state = any(isinstance(side, ast.Attribute) and side.attr == "state" for side in sides)
        return any(map(is_text, inside)) or (of_state and literal)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if node.func.attr in STR_METHODS and any(map(is_text, ast.walk(owner))):
            return True
        searches = {"match", "search", "fullmatch", "finditer", "findall", "sub", "split"}
        return node.func.attr in searches and any(map(is_text, node.args))
    return False


def test_decisions_hang_on_values_not_on_sentences() -> None:
    reading = set()
    for path in FILES:
        if any(map(reads_a_text, nodes(path))):
            functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef)]
            reading |= {f"{name_of(path)}.{node.name}" for node in functions if any(map(reads_a_text, ast.walk(node)))}
    assert reading == set(READS_A_TEXT)


@pytest.mark.parametrize(
    ("expression", "reads"),
    [
        ("before.reason == error.what", True), ("'ready' in verdict.state", True), ("verdict.state is State.READY", False),
        ("check.expected.startswith('/')", True), ("re.search('x', answer.fix)", True), ("'; '.join(e.what)", False),
        ("_PATTERN.sub('', check.reason)", True), ("error.what + '.'", False), ("answer.kind == other.kind", False),
    ],
)  # fmt: skip
def test_what_counts_as_reading_a_text(expression: str, reads: bool) -> None:
    assert any(map(reads_a_text, ast.walk(ast.parse(expression)))) == reads


def test_each_file_has_its_tests_and_no_test_is_left_without_its_file() -> None:
    """tests/unit mirrors the folders: what tests folder/file.py is folder/test_file.py, and nothing else lies there."""
    tests = PACKAGE.parent / "tests/unit"
    files = {name_of(path) for path in FILES if path.parent != PACKAGE and path.name != "__init__.py"}
    there = {path.relative_to(tests).as_posix() for folder in LEVEL for path in (tests / folder).glob("*.py")}
    assert there == {f"{folder}/test_{name}.py" for folder, name in (file.split("/") for file in files)}
    assert {path.name for path in tests.iterdir() if path.is_dir()} - {"__pycache__"} == set(LEVEL)
    assert not [one for one in sorted(there) if not re.search(r"^ *def test_", (tests / one).read_text(), re.M)]
