# SPDX-License-Identifier: GPL-2.0-or-later
"""Names that come from outside, and the order of versions.

Rule 1: a name that fails its check reaches no program, no path and no unit; it is shown with `show` and left alone.
        dkms evaluates a kernel's name as shell code, so this check is the only guard.
Rule 2: the first character of a kernel name is a digit: no option can be injected, and dkms lists no other.
Rule 3: `..` is in no name, so no path leaves its directory.
"""

from __future__ import annotations

import re

from knetstatd.core.errors import NameRefused

# uname's release field is 65 bytes with its NUL (linux/utsname.h, __NEW_UTS_LEN).
_KERNEL = re.compile(r"[0-9][A-Za-z0-9._+~-]{0,63}")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")
# How a module file, or a table of a kernel's, may be compressed, by its name; and how a module file's name ends (kmod).
SUFFIXES = ("", ".xz", ".zst", ".gz")
KO = r"\.ko(?:\.xz|\.zst|\.gz)?"
_MODULE_FILE = re.compile(rf"(.+){KO}", re.DOTALL)


def is_kernel(name: str) -> bool:
    """Whether `name` may be treated as a kernel release."""
    return _KERNEL.fullmatch(name) is not None and ".." not in name


def is_package(name: str) -> bool:
    """Whether `name` may be treated as a DKMS package's name or version."""
    return _PACKAGE.fullmatch(name) is not None and ".." not in name


def kernel(name: str) -> str:
    """`name`, or NameRefused."""
    if not is_kernel(name):
        raise NameRefused(
            f"{show(name)} is not a kernel release",
            fix="A release starts with a digit and has only letters, digits and . _ + ~ - (at most 64); see `ls /lib/modules`",
        )
    return name


def package(name: str) -> str:
    """`name` as the name or version of a DKMS package, or NameRefused."""
    if not is_package(name):
        raise NameRefused(
            f"{show(name)} is not a DKMS module name or version",
            fix="It starts with a letter or digit and has only letters, digits and . _ + ~ -; see `dkms status`",
        )
    return name


def canonical(module_name: str) -> str:
    """A kernel module's name as the kernel writes it: `-` is `_` (kmod does the same)."""
    return module_name.replace("-", "_")


def module_of(filename: str) -> str:
    """The module of which this is the file's name, "" if it is no module file's: `a-b` for `a-b.ko.xz`."""
    match = _MODULE_FILE.fullmatch(filename)
    return match[1] if match else ""


def show(text: str, limit: int = 200) -> str:
    """`text` fit for a log line: quoted, one line, printable, at most `limit` characters."""
    quoted = ascii(text)
    return quoted if len(quoted) <= limit else quoted[: limit - 3] + "..."


def clean(text: str, limit: int = 400) -> str:
    """One line of a program's output, fit for a log: control characters become `?`, long lines are cut."""
    line = text.rstrip()
    if not line.isprintable():
        line = "".join(c if c.isprintable() else ("\N{SPACE}" if c == "\t" else "?") for c in line)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _order(char: str) -> int:
    if char == "~":
        return -1
    return ord(char) if char.isalpha() else ord(char) + 256


def version_key(version: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """A sort key that orders releases as dpkg orders versions (deb-version(7)): `~` before the end, digits by value."""
    key = []
    for text, digits in re.findall(r"([^0-9]*)([0-9]*)", version):
        # The 0 ends the run: `~` sorts before it, every other character after it.
        key.append(((*(_order(char) for char in text), 0), int(digits or 0)))
    return tuple(key)
