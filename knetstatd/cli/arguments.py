# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be said to knetstatctl: its verbs and their options. The manual page and the completions are held against it."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING

from knetstatd import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The programs of knetstatd-compile@, -rehearse@, -initrd@ and -build@.service, with the unit's instance; not for people.
_PROGRAMS = ("compile", "trial", "initrd", "keys")
_STEP = "step"  # the program of knetstatd-step@.service


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for: `verb`, `root` (None: this machine), and the verb's options. Ends with 2 if it is wrong."""
    return parser(*words[:1]).parse_args(words)


@functools.cache
def parser(first: str = "") -> argparse.ArgumentParser:
    """The command line. first: its first word; a unit's program is known only if that is what is asked for.

    If it is a verb, the others are left out: to make all of them takes longer than to read the configuration.
    """
    top = argparse.ArgumentParser(prog="knetstatctl", description="Will the kernel modules still load after the reboot?")
    top.add_argument("--version", action="version", version=f"knetstatctl {__version__}")
    _add_root(top, None)
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for name, (text, more, add) in _VERBS.items():
        if first not in _VERBS or first == name:
            sentence = text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")
            made = verbs.add_parser(name, help=text, description=f"{sentence} {more}".rstrip())
            made.add_argument("--json", action="store_true", help="print JSON")
            _add_root(made, argparse.SUPPRESS)  # without it a --root before the verb is not forgotten
            add(made)
    if first in _PROGRAMS:
        verbs.add_parser(first).add_argument("what", metavar="INSTANCE")
    if first == _STEP:
        verbs.add_parser(first)
    return top


def _add_root(to: argparse.ArgumentParser, default: str | None) -> None:
    to.add_argument("--root", metavar="DIR", default=default, help="ask the system below DIR, which does not run")


def _check(to: argparse.ArgumentParser) -> None:
    to.add_argument("kernel", nargs="?", default="next", metavar="KERNEL", help="a release, next (default), running or all")
    to.add_argument("--quiet", "-q", action="store_true", help="say nothing")


def _verify(to: argparse.ArgumentParser) -> None:
    to.add_argument("file", nargs="?", metavar="FILE.ko", help="a module file (default: the guarded, installed ones)")
    to.add_argument("--kernel", "-k", default="next", metavar="KERNEL", help="a release, next (default) or running")


def _build(to: argparse.ArgumentParser) -> None:
    to.add_argument("kernel", metavar="KERNEL", help="a release, next, running or all")
    to.add_argument("--module", metavar="NAME", help="only this one")
    to.add_argument("--step", choices=["build", "load", "headers"], help="only such steps, and without waiting")
    to.add_argument("--no-wait", action="store_true", help="do not wait for package managers or other runs")


def _rehearse(to: argparse.ArgumentParser) -> None:
    to.add_argument("kernel", nargs="?", default="next", metavar="KERNEL", help="a release, next (default) or running")
    to.add_argument("--module", metavar="NAME", help="only this one")
    to.add_argument("--file", metavar="FILE.ko", help="this file instead of the installed modules")


def _explain(to: argparse.ArgumentParser) -> None:
    to.add_argument("kernel", nargs="?", default="next", metavar="KERNEL", help="a release, next (default) or running")


def _repair(to: argparse.ArgumentParser) -> None:
    to.add_argument("kernel", nargs="?", default="next", metavar="KERNEL", help="a release, next (default), running or all")
    to.add_argument("--all", action="store_true", help="the same as all")
    to.add_argument("--yes", "-y", action="store_true", help="do not ask")
    to.add_argument("--dry-run", "-n", action="store_true", help="only show it")


def _resign(to: argparse.ArgumentParser) -> None:
    to.add_argument("kernel", nargs="?", default="next", metavar="KERNEL", help="a release, next (default), running or all")


def _history(to: argparse.ArgumentParser) -> None:
    to.add_argument("--kernel", "-k", metavar="KERNEL", help="only this kernel")
    to.add_argument("--module", metavar="NAME", help="only this module")
    to.add_argument("--lines", "-n", type=int, default=50, metavar="N", help="at most N entries (default: 50)")


def _sockets(to: argparse.ArgumentParser) -> None:
    to.add_argument("kinds", nargs="*", metavar="FILE", help="of tcp, tcp6, udp, udp6 (default: all)")
    to.add_argument("--state", metavar="STATE", help="only these, separated by commas: ESTB, LSTN, ...")
    to.add_argument("--option", action="append", default=[], metavar="NAME[=VALUE]", help="only with this option (value)")


def _nothing(to: argparse.ArgumentParser) -> None:
    """A verb without options of its own."""


# For each verb: what it does, what else is to be said, and what adds its options.
_VERBS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "status": ("show every guarded module on every kernel", "", _nothing),
    "check": ("is it safe to reboot?", "Exit status: 0 yes, 1 no, 3 unknown, 75 in progress.", _check),
    "verify": ("will this module file load on that kernel?", "", _verify),
    "build": ("build, prove and publish the guarded modules for a kernel", "", _build),
    "rehearse": (
        "start the kernel in a throwaway machine: does it take the modules? exit status 0 yes, 1 no, 3 unknown", "", _rehearse,
    ),
    "explain": ("why is it as it is, and what to do", "", _explain),
    "repair": ("finish what dkms and dpkg got stuck in; shows it and asks first", "", _repair),
    "resign": ("sign the installed modules again, after a change of the key", "", _resign),
    "history": ("what happened, newest last, from the journal", "", _history),
    "sockets": ("knetstat's files: every socket with its options", "", _sockets),
    "config": ("show the configuration in force, and where each value comes from", "", _nothing),
}  # fmt: skip
