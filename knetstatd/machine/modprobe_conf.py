# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine's configuration says about modules: what keeps one from loading, and what loads one at boot.

Rule 1: files of the same name: the directory that comes first has it, and all of them are read in the order of their names
        (modprobe.d(5), modules-load.d(5), sysctl.d(5)). A link to /dev/null is an empty file.
Rule 2: nothing raises, and nothing is executed: an `install` command is shown, not run.

`modprobe --showconfig` would merge the files for us, but knows no other root than its own, and takes 5 ms each time.
"""

from __future__ import annotations

import fnmatch
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.system import files

if TYPE_CHECKING:
    from pathlib import Path

_PROBE = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d")
_LOAD = ("/etc/modules-load.d", "/run/modules-load.d", "/usr/local/lib/modules-load.d", "/usr/lib/modules-load.d")
_SYSCTL = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
_MASK = "/etc/systemd/system/systemd-modules-load.service"  # a link to /dev/null, or empty: systemctl(1), mask
_CREDENTIAL = tuple(f"{place}/credstore/sysctl.extra" for place in ("/etc", "/run", "/usr/local/lib", "/usr/lib"))
_CLOSING = "kernel/modules_disabled"
_ONE = re.compile(r"\s*(0[xX])?0*1(?!\S)")  # proc_dointvec_minmax(): it may be 1 alone, and what follows a blank is not read
_LIMIT = 1 << 20


class Line(NamedTuple):
    """A line that names a module. where: its file and number."""

    module: str
    text: str
    where: str


class Rules(NamedTuple):
    """The lines that matter, in the order in which modprobe reads them; names with `_` for `-`.

    closed: lines of sysctl.d after which the kernel takes no module any more; they name none. systemd-sysctl(8) runs after
    systemd-modules-load(8).  mask: the file that keeps that from reading modules-load.d, "" for none.
    """

    blacklist: tuple[Line, ...] = ()
    install: tuple[Line, ...] = ()
    alias: tuple[Line, ...] = ()
    load: tuple[Line, ...] = ()
    softdep: tuple[Line, ...] = ()
    weakdep: tuple[Line, ...] = ()
    options: tuple[Line, ...] = ()
    closed: tuple[Line, ...] = ()
    mask: str = ""


def find(lines: tuple[Line, ...], module: str) -> Line | None:
    """The first line for a module."""
    return next((line for line in lines if line.module == module), None)


def command(rules: Rules, module: str) -> Line | None:
    """The first `install` line for a module: its name may be a pattern (libkmod-module.c)."""
    return next((line for line in rules.install if fnmatch.fnmatchcase(module, line.module)), None)


def redirect(rules: Rules, module: str) -> Line | None:
    """The alias that leads modprobe to another module when it is asked for this one; `text` is the other's name."""
    return next((a for a in rules.alias if fnmatch.fnmatchcase(module, a.module) and names.canonical(a.text) != module), None)


def rules(root: Path) -> Rules:
    """The rules of the machine under `root`."""
    lines: dict[str, list[Line]] = {kind: [] for kind in ("blacklist", "install", "alias", "softdep", "weakdep", "options")}
    for where, text in _lines(root, _PROBE, (".conf", ".alias")):
        command, _, rest = text.replace("\t", " ").partition(" ")
        module, _, more = rest.strip().partition(" ")
        if command in lines and module:
            lines[command].append(Line(pattern(module), names.clean(more.strip()), where))
    load = [Line(names.canonical(text.split()[0]), "", where) for where, text in _lines(root, _LOAD, (".conf",))]
    # Debian's old file, which systemd-modules-load finds through a link in /usr/lib/modules-load.d or /etc/modules-load.d.
    load += [Line(names.canonical(text.split()[0]), "", where) for where, text in _file(root, "/etc/modules")]
    here = files.inside(root, os.path.dirname(_MASK)) / os.path.basename(_MASK)
    mask = _MASK if os.path.lexists(here) and not files.text(files.inside(root, _MASK), 1) else ""
    return Rules(load=tuple(load), closed=_closed(root), mask=mask, **{kind: tuple(chosen) for kind, chosen in lines.items()})


def _closed(root: Path) -> tuple[Line, ...]:
    """The lines that set kernel.modules_disabled: systemd-sysctl's parse_file() and apply_all().

    Of lines with the same key the last one holds; a key that is a pattern leaves alone what has a line of its own, and one
    without a value is there for nothing else.
    """
    lines = _lines(root, _SYSCTL, (".conf",))
    lines += next(filter(None, (_file(root, path) for path in _CREDENTIAL)), [])  # systemd.exec(5), LoadCredential=
    settings: dict[str, tuple[str, Line]] = {}
    for where, text in lines:
        key, _, value = text.partition("=")
        if "=" in text or text.startswith("-"):
            settings[_key(key.removeprefix("-").strip())] = value, Line("", names.clean(text), where)
    return tuple(
        line
        for key, (value, line) in settings.items()
        if _ONE.match(value) and (key == _CLOSING or (_CLOSING not in settings and _is_closing(key)))
    )


def _key(text: str) -> str:
    """A setting's path below /proc/sys. If the first of its separators is a dot, then dots are the separators."""
    separator = re.search(r"[./]", text)
    path = text.translate(str.maketrans("./", "/.")) if separator and separator[0] == "." else text
    return os.path.normpath(f"/{path}").lstrip("/")


def _is_closing(pattern: str) -> bool:
    """Whether glob(7) leads from a pattern to what closes the kernel; a set that Python does not know may hold anything."""
    wanted, parts = _CLOSING.split("/"), re.sub(r"\[\[.*|\\.*", "*", pattern.replace("[^", "[!")).split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, wanted, parts))


def pattern(text: str) -> str:
    """A module's name as the kernel writes it; what is between brackets is no name."""
    return "".join(part if part.startswith("[") else names.canonical(part) for part in re.split(r"(\[[^\]]*\])", text))


def _lines(root: Path, directories: tuple[str, ...], endings: tuple[str, ...]) -> list[tuple[str, str]]:
    chosen: dict[str, str] = {}
    for directory in directories:
        for name in files.names(files.inside(root, directory)):
            if name.endswith(endings) and not name.startswith("."):
                chosen.setdefault(name, f"{directory}/{name}")
    joined = directories is _PROBE
    return [line for name in sorted(chosen) for line in _file(root, chosen[name], joined=joined)]


def _file(root: Path, path: str, *, joined: bool = False) -> list[tuple[str, str]]:
    """Each line that says something, with its place. joined: a backslash at the end joins the next one to it, as kmod does."""
    lines, begun = [], ""
    for number, line in enumerate((files.text(files.inside(root, path), _LIMIT) or "").split("\n"), start=1):
        if joined and line.endswith("\\"):
            begun += line[:-1]
            continue
        text, begun = (begun + line).strip(), ""
        if text and not text.startswith(("#", ";")):
            lines.append((f"{names.clean(path)} line {number}", text))
    return lines
