# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports go one way, and each third-party package has one owner."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import knetstatd

PACKAGE = Path(knetstatd.__file__).parent
OWNERS = {"subprocess": "run", "inotify_simple": "watch", "pyudev": "uevents", "sdnotify": "notify", "systemd": "journal"}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """The package's own modules that a file imports, and the top-level names of the others; type-only imports left out."""
    own, others = set(), set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node) for branch in ast.walk(tree) if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level and not module.startswith("_vendor."):
                own |= {module} if module else {alias.name for alias in node.names}
            else:  # what the Debian package brings along is still somebody else's
                others.add(module.removeprefix("_vendor.").split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return own - {"__version__"}, others


def test_every_module_is_in_one_layer_and_imports_only_from_below() -> None:
    rank = {}
    for number, line in enumerate(re.split(r"^\d\. \w+ +", knetstatd.__doc__ or "", flags=re.M)[1:]):
        for name in re.findall(r"\w+", line):
            assert name not in rank, f"{name} is in two layers"
            rank[name] = number
    modules = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    assert set(rank) == set(modules), "knetstatd/__init__.py names every module, and no other"
    for name, path in modules.items():
        for imported in imports(path)[0]:
            assert rank[imported] <= rank[name], f"{name} (layer {rank[name] + 1}) imports {imported}"


def test_no_cycles() -> None:
    graph = {path.stem: imports(path)[0] for path in PACKAGE.glob("*.py")}
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
    for path in PACKAGE.glob("*.py"):
        for package in imports(path)[1] & set(OWNERS):
            assert OWNERS[package] == path.stem, f"{path.name} imports {package}, which {OWNERS[package]}.py owns"


def test_modules_tell_short_stories() -> None:
    for path in PACKAGE.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path
