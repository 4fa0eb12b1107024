# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports go one way, from folder to folder; each third-party package has one owner."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest

import knetstatd

PACKAGE = Path(knetstatd.__file__).parent
# A folder imports from the levels before its own; two folders of one level do not import each other.
LINE = (
    {"core"}, {"system"}, {"formats"}, {"boot", "dkms"}, {"machine"}, {"state", "verify", "diagnosis"}, {"verdict"},
    {"rehearsal", "daemon", "repair"}, {"build"}, {"cli"},
)  # fmt: skip
LEVEL = {folder: level for level, folders in enumerate(LINE) for folder in folders}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_vendor" not in path.parts)
OWNERS = {
    "subprocess": "system/process", "systemd": "system/journal", "inotify_simple": "daemon/inotify", "pyudev": "daemon/uevents",
    "sdnotify": "daemon/sd_notify",
}  # fmt: skip


def name_of(path: Path) -> str:
    """A file's place in the package, without its suffix: "core/names"."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(path: Path) -> tuple[set[str], set[str], set[str]]:
    """What a file imports: of the package when it runs, of the package for types alone, and top-level names of others."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node) for branch in ast.walk(tree) if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }  # fmt: skip
    own: set[str] = set()
    types: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(tree):
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


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PACKAGE], ids=name_of)
def test_a_folder_imports_only_from_folders_before_it(path: Path) -> None:
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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_third_party_package_has_one_owner(path: Path) -> None:
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


def test_each_file_has_its_tests_and_no_test_is_left_without_its_file() -> None:
    """tests/unit mirrors the folders: what tests folder/file.py is folder/test_file.py, and nothing else lies there."""
    tests = PACKAGE.parent / "tests/unit"
    files = {name_of(path) for path in FILES if path.parent != PACKAGE and path.name != "__init__.py"}
    there = {path.relative_to(tests).as_posix() for folder in LEVEL for path in (tests / folder).glob("*.py")}
    assert there == {f"{folder}/test_{name}.py" for folder, name in (file.split("/") for file in files)}
    assert {path.name for path in tests.iterdir() if path.is_dir()} - {"__pycache__"} == set(LEVEL)
    assert not [one for one in sorted(there) if not re.search(r"^ *def test_", (tests / one).read_text(), re.M)]
