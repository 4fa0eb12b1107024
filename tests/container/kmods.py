# SPDX-License-Identifier: GPL-2.0-or-later
"""The DKMS modules of tests/fixtures, and variants of them.

good       packaged well
story      compiled for the kernel that runs: its Makefile asks `uname -r`, through a variable that dkms.conf does not set
root       a type of file system: what is to be mounted as kt_root needs it
nocompile  an error in the C source
undef      a symbol that no kernel exports: modpost fails
slow       sleeps before it compiles, for as long as its file "delay" says (seconds)
noisy      prints as many megabytes as its file "megabytes" says, with all that may upset a log; then its file "outcome"
           ("true" or "false") decides

Package kt-NAME, module kt_NAME, version 1.0. Those that can be built need no device to load.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

FIXTURES = Path(__file__).parent.parent / "fixtures"


def copy_fixture(
    name: str,
    target: Path,
    *,
    autoinstall: bool | None = None,
    files: Mapping[str, str] | None = None,
    version: str = "1.0",
) -> Path:
    """The source tree of fixture `name` at `target`, in a container or not. `autoinstall` adds or takes away that line
    of dkms.conf; `files` adds or replaces files."""
    shutil.copytree(FIXTURES / name, target)
    conf = target / "dkms.conf"
    text = re.sub(r"^PACKAGE_VERSION=.*$", f'PACKAGE_VERSION="{version}"', conf.read_text(), flags=re.MULTILINE)
    if autoinstall is not None:
        text = re.sub(r"^AUTOINSTALL=.*\n", "", text, flags=re.MULTILINE) + 'AUTOINSTALL="yes"\n' * autoinstall
    conf.write_text(text)
    for path, content in (files or {}).items():
        (target / path).write_text(content)
    return target
