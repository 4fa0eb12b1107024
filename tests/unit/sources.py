# SPDX-License-Identifier: GPL-2.0-or-later
"""The package's own files, parsed once for all tests that look into them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import knetstatd

PACKAGE = Path(knetstatd.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_vendor" not in path.parts)


def name_of(path: Path) -> str:
    """A file's place in the package, without its suffix: "core/names"."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Everything in a file, in the order of ast.walk."""
    return tuple(ast.walk(ast.parse(path.read_text())))
