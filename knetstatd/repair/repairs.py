# SPDX-License-Identifier: GPL-2.0-or-later
"""A repair as data: what is wrong, why it matters, and exactly what would be done."""

from __future__ import annotations

from typing import NamedTuple

from knetstatd.dkms import dkms_tree


class Run(NamedTuple):
    """A program to be started. ours: knetstatctl itself, which takes our lock by itself.

    hold: the file HOLD keeps dkms out of the hooks that it starts, and is deleted afterwards.
    """

    argv: tuple[str, ...]
    ours: bool = False
    hold: bool = False


# dkms's own switch (dkms_autoinstaller). dkms 3.0 does not read /etc/dkms/<module>*.conf in `autoinstall`, so nothing less than
# this keeps one module from failing a hook there.
HOLD = dkms_tree.NO_AUTOINSTALL
HOLD_TEXT = "knetstatctl repair: only while dpkg --configure runs\n"


class Delete(NamedTuple):
    """A file, a link, or a directory with all that is in it. holds: what that is, in words."""

    path: str
    holds: str = ""


class Write(NamedTuple):
    """A new file with its contents."""

    path: str
    text: str


class Prove(NamedTuple):
    """A plain `dkms build` in a private tree, which must come out right; else the files written before are taken back."""

    package: str
    version: str
    kernel: str


class Try(NamedTuple):
    """The same without what is written: if it comes out right, nothing is written, and nothing more is to be done."""

    package: str
    version: str
    kernel: str


class Advise(NamedTuple):
    """What a person has to decide, in words and commands; a repair with one is never carried out."""

    text: str


class Repair(NamedTuple):
    """One thing to repair. kind, subject: what makes it the same one in the next plan.  why: what it does to this machine."""

    kind: str
    subject: str
    what: str
    why: str
    acts: tuple[Run | Delete | Write | Prove | Try | Advise, ...]

    @property
    def is_advice(self) -> bool:
        """Whether a person has to act, and not repair."""
        return any(isinstance(act, Advise) for act in self.acts)
