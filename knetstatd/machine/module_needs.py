# SPDX-License-Identifier: GPL-2.0-or-later
"""By which names a module gets into an initrd: its own, its aliases, and those of the modules that bring it along.

A name brings along the modules that it needs (modules.dep), and the soft dependencies of it and of each of those: `softdep` in
modprobe.d and in the modules themselves, of which the first line for a module counts; `weakdep` too from kmod 33 on.

Sources: libkmod-module.c, __kmod_module_get_probe_list(); dracut-install.c, install_dependent_modules(), which initramfs-tools
calls from 0.146 on; hook-functions of 0.142, manual_add_modules(). Each was asked, with real initrds.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.machine import modprobe_conf
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from knetstatd.formats.modules_dep import Tables
    from knetstatd.machine.modprobe_conf import Rules

_DEEPEST = 100  # soft dependencies of soft dependencies; a chain of three is rare
_LIMIT = 4 << 20  # bytes; modules.alias has 1.2 MB for 4,200 modules


class Sure(enum.IntEnum):
    """How sure it is that a new initrd holds a module."""

    POSSIBLE = 1
    LIKELY = 2
    CERTAIN = 3


class Soft(NamedTuple):
    """One module's soft dependencies. module: may be a pattern.  where: who says so.  weak: modprobe itself loads none."""

    module: str
    others: tuple[str, ...]
    where: str
    weak: bool


@once
def _soft(root: Path, tables: Tables, rules: Rules) -> tuple[Soft, ...]:
    """All soft dependencies, those of modprobe's configuration first."""
    # Without it this kmod knows no weak dependencies.
    weak = files.followed(root, tables.tree / "modules.weakdep").exists()
    told = [(line.module, line.text, line.where, False) for line in rules.softdep]
    told += [(line.module, f"pre: {line.text}", line.where, True) for line in rules.weakdep if weak]
    told += [(*said, False) for said in _table(root, tables, "softdep", "")]
    told += [(*said, True) for said in _table(root, tables, "weakdep", "pre: ") if weak]
    return tuple(Soft(name, others, where, is_weak) for name, text, where, is_weak in told if (others := _softdep(text)))


def _table(root: Path, tables: Tables, kind: str, before: str) -> Iterator[tuple[str, str, str]]:
    for line in _text(root, tables.tree / f"modules.{kind}").splitlines():
        word, _, rest = line.partition(" ")
        name, _, others = rest.partition(" ")
        if word == kind:
            yield modprobe_conf.pattern(name), before + others, "the module itself"


@once
def _text(root: Path, path: Path) -> str:
    return files.text(files.followed(root, path), _LIMIT) or ""


class Needs:
    """What leads to one module of a kernel."""

    def __init__(self, root: Path, tables: Tables, rules: Rules, module: str) -> None:
        self._tables, self._module = tables, module
        self.soft = _soft(root, tables, rules)
        self._aliases = [line.module for line in rules.alias if names.canonical(line.text) == module]
        text = _text(root, tables.tree / "modules.alias")
        own = re.findall(rf"(?m)^alias (\S+) {re.escape(module)}$", text) if f" {module}\n" in text else []
        self._aliases += map(modprobe_conf.pattern, own)

    def sure(self, name: str) -> Sure | None:
        """How sure it is that whoever copies or loads `name` has the module too; None if nothing says so."""
        return self._sure(names.canonical(name), set())

    def _sure(self, name: str, seen: set[str], depth: int = 0) -> Sure | None:
        if name == self._module:
            return Sure.CERTAIN
        if depth > _DEEPEST:
            return Sure.POSSIBLE
        if name in seen:
            return None
        seen.add(name)
        entry = self._tables.entry(name)
        if entry is None and any(fnmatch.fnmatchcase(name, alias) for alias in self._aliases):
            return Sure.LIKELY  # with kmod 30, not if the module is blacklisted
        needed = [names.canonical(names.module_of(path.name)) for path in entry.needed] if entry is not None else []
        if self._module in needed:
            return Sure.CERTAIN
        answers = []
        for one in (name, *needed):
            lines = [line for line in self.soft if fnmatch.fnmatchcase(one, line.module)]
            answers += [self._sure(names.canonical(other), seen, depth + 1) for line in lines[:1] for other in line.others]
        best = max((answer for answer in answers if answer), default=None)
        # Of what is inside the kernel, kmod follows the soft dependencies, and dracut-install does not.
        return min(best, Sure.LIKELY) if best and entry is None else best


def ignores_install(root: Path, tables: Tables, rules: Rules, module: str) -> bool:
    """Whether modprobe inserts a module itself although there is an `install` line: it does if it has soft dependencies.

    Of those that are nowhere kmod knows nothing (__kmod_module_get_probe_list(), ignorecmd).
    """
    if modprobe_conf.command(rules, module) is None:
        return False
    needs = Needs(root, tables, rules, module)
    lines = [soft for soft in needs.soft if not soft.weak and fnmatch.fnmatchcase(module, soft.module)]
    others = (names.canonical(other) for line in lines[:1] for other in line.others)
    return any(tables.entry(other) is not None or tables.builtin(other) for other in others)


def _softdep(text: str) -> tuple[str, ...]:
    """The modules of a softdep line, those to load before and after alike."""
    others: list[str] = []
    counts = False
    for word in text.split():
        if word in ("pre:", "post:"):
            counts = True
        elif counts:
            others.append(word)
    return tuple(others)
