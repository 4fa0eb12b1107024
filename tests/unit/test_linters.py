# SPDX-License-Identifier: GPL-2.0-or-later
"""The linters are tests: a missing tool is a skip on a developer's machine and a failure in CI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.spawns
ROOT = Path(__file__).parents[2]
SPDX = re.compile(r"SPDX-License-Identifier: (GPL-2\.0-only|GPL-2\.0-or-later)")
NO_COMMENTS = {".json", ".txt", ".symvers", ""}


def tool(name: str) -> str:
    """A linter's path, from the virtual environment or the system."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


def tracked() -> list[Path]:
    """The project's files."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def check(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    check(tool("ruff"), "check", "--no-cache", ".")


def test_mypy() -> None:
    check(tool("mypy"), "--no-error-summary")


def test_spelling() -> None:
    check(tool("codespell"), *(os.fspath(p) for p in tracked() if p.suffix in {".py", ".md", ".toml", ".c", ".h"}))


def test_every_file_names_its_licence() -> None:
    for path in tracked():
        if path.suffix in NO_COMMENTS and path.name not in {"Makefile", "Kbuild", "run"}:
            continue
        head = path.read_text(errors="replace")[:300]
        assert SPDX.search(head), f"{path} has no SPDX line at its top"


def test_shell_scripts() -> None:
    starts = (b"#!/bin/sh", b"#!/bin/bash")
    own = [p for p in tracked() if "corpus" not in p.parts]  # what parsers are tried with may look like anything
    scripts = [p for p in own if p.suffix in {".sh", ".bash"} or p.read_bytes()[:20].startswith(starts)]
    assert scripts
    check(tool("shellcheck"), *map(os.fspath, scripts))
