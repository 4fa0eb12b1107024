# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command line is about: the root, its kernels and packages, and the verdicts on them.

Rule: a root other than / does not run. Nothing of the running kernel, no lock and no process of this machine is asked for it,
and nothing below it is written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.core import config, names
from knetstatd.core.errors import UnknownError, UsageError
from knetstatd.dkms import dkms_tree
from knetstatd.state import attempts
from knetstatd.system import files
from knetstatd.system.once import one_look
from knetstatd.verdict import judge
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from knetstatd.verdict.observe import Seen


def root(arguments: argparse.Namespace) -> Path:
    """The directory of --root, every link in its own path followed; / if there is none. Raises UsageError."""
    given = arguments.root
    if given is None:
        return files.HERE

    def unusable(what: str, fix: str) -> UsageError:
        return UsageError(f"--root {names.show(given, 200)}: {what}", fix=fix)

    if not given.startswith("/") or "\0" in given:
        raise unusable("it is not an absolute path", f"Give the whole path: --root {names.clean(os.path.abspath(given))}")
    if not os.path.lexists(given):
        raise unusable("it does not exist", "Unpack or mount the system there first")
    if not os.path.isdir(given):
        raise unusable("it is not a directory", "Unpack or mount the image, and name the directory that holds its /usr")
    if not os.access(given, os.R_OK | os.X_OK):
        raise unusable("this user may not read it", "Run this as root")
    return Path(os.path.realpath(given))


def only_here(arguments: argparse.Namespace, what: str) -> None:
    """Raises UsageError if a verb that acts, or asks this machine, is to do so for another root."""
    if root(arguments) != files.HERE:
        inside = f"systemd-nspawn -D {arguments.root}, or chroot {arguments.root}"
        text = f"{arguments.verb} --root cannot be done yet: it {what}"
        raise UsageError(text, fix=f"Enter that root ({inside}) and run there: knetstatctl {arguments.verb}")


def machine(arguments: argparse.Namespace) -> Machine:
    """The machine that is asked, looked at now. Raises UnknownError if this user may not see kernels or packages."""
    place = root(arguments)
    tree = dkms_tree.tree(place)
    kernels = (files.inside(place, directory) for directory in ("/lib/modules", "/boot"))
    packages = (tree / name for name in files.names(tree) if os.path.isdir(tree / name))  # dkms's signing key lies there, too
    _must_be_readable(*kernels, tree, *packages)
    made = Machine(place, config.load(place), running=None if place == files.HERE else "")
    made.refresh()
    return made


def _must_be_readable(*paths: Path) -> None:
    """What may not be read is unknown: else a package would be called absent, or another kernel the next one."""
    for path in paths:
        needed = os.R_OK | (os.X_OK if os.path.isdir(path) else 0)
        if os.path.exists(path) and not os.access(path, needed):
            raise UnknownError("this user may not read it", os.fspath(path), "Run this as root")


def kernels(machine: Machine, word: str) -> tuple[str, ...]:
    """The kernels that a word on the command line means; none if no kernel is next, or guarded. Raises UsageError."""
    there = ", ".join(machine.kernels.kernels) or "none"
    match word:
        case "next":
            menus = [f"/boot/{directory}{name}" for directory in ("grub", "grub2") for name in ("", "/grub.cfg")]
            _must_be_readable(*(files.inside(machine.root, menu) for menu in menus))
            return (machine.next,) if machine.next else ()
        case "running":
            if not machine.running:
                raise UsageError("no kernel runs in another root", fix=f"Name next, or one of: {there}")
            return (machine.running,)
        case "all":
            return guarded(machine)
    names.kernel(word)
    if word not in machine.kernels.kernels:
        raise UsageError(f"there is no kernel {word} in /lib/modules", fix=f"There are: {there}")
    return (word,)


def one_kernel(machine: Machine, word: str, usage: str) -> str:
    """The same for a verb that takes one kernel. usage: how to name one. Raises UsageError."""
    chosen = kernels(machine, word)
    if not chosen:
        raise UsageError("no kernel to boot next was found", fix=f"Name one: {usage}")
    return chosen[0]


def guarded(machine: Machine) -> tuple[str, ...]:
    """The guarded kernels, oldest first."""
    return tuple(k for k in machine.kernels.kernels if k in machine.wanted())


def looks(machine: Machine, kernels: Sequence[str], packages: Sequence[str]) -> list[tuple[Seen, judge.Verdict]]:
    """What is seen of each package on each kernel, and what it means."""
    with one_look():
        seen = [one for kernel in kernels for one in machine.observe_all(kernel, packages)[1]]
    return [(one, judge.verdict(machine, one, machine.plan(one, attempts.now()))) for one in seen]


def verdicts(machine: Machine, kernels: Sequence[str], packages: Sequence[str] | None = None) -> list[judge.Verdict]:
    """The verdicts alone. packages: the guarded ones if it is None."""
    return [verdict for _, verdict in looks(machine, kernels, machine.packages() if packages is None else packages)]
