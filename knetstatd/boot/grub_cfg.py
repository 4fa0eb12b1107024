# SPDX-License-Identifier: GPL-2.0-or-later
"""Which entry GRUB starts when nobody touches a key, from the text of grub.cfg and of the files beside it.

Rule 1: the answer is GRUB's. A default that leads nowhere is the first entry, as it is for GRUB.
Rule 2: an answer that hangs on something unknown is Undecided, never a guess.

Source, GRUB 2.06 and 2.12: grub-core/normal/menu.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knetstatd.boot import grub_script
from knetstatd.boot.grub_run import ROOT, Ended, Script
from knetstatd.boot.grub_state import UNKNOWN, MenuEntry, Start, State, Undecided, component, number
from knetstatd.core import names
from knetstatd.core.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# grub_menu_execute_entry opens a context for each; real menus have two.
_DEEPEST = 20


def bls_entry(title: str, identifier: str, image: str, options: str, initrds: Sequence[str]) -> MenuEntry | None:
    """The entry that the command blscfg makes of an entry file: its options are words of a script. None for damaged ones."""
    lines = [f"linux {image} {options}", *([f"initrd {' '.join(initrds)}"] if initrds else [])]
    try:
        return MenuEntry(title, identifier, grub_script.parse("\n".join(lines)))
    except Damaged:
        return None


class Menu:
    """The menu that a grub.cfg makes.

    read: the contents of a file beside grub.cfg, by its name; None if there is none. May raise Undecided.
    platform: "pc" or "efi".  missing: whether an image, as an entry names it, is nowhere on this machine.
    bls: what the command blscfg adds.

    default: the value of $default.  missed: whether it led to no entry, in the last menu that was shown.
    waits: whether a menu waits for a key; what it starts then is what Enter starts.
    """

    def __init__(
        self, read: Callable[[str], bytes | None], platform: str, missing: Callable[[str], bool], bls: Sequence[MenuEntry] = ()
    ) -> None:
        self._script = Script(read, platform, bls)
        self._missing = missing
        # What would be started, were its image there.
        self._failed = Start()
        self.default = ""
        self.waits = False
        self.missed = False

    def next(self) -> Start | None:
        """What is started; None where grub.cfg makes no menu. Raises Undecided."""
        top = self._script.state
        try:
            self._script.source("grub.cfg")
        except Ended:
            return _known(top.start)
        self.default = top.env.get("default", "")
        return (self._show(top, ()) or self._failed) if top.menu else None

    def every(self) -> Iterator[Start]:
        """What each entry starts, in the menu's order. What cannot be known is left out."""
        top = self._script.state
        try:
            self._script.source("grub.cfg")
        except (Ended, Undecided):
            pass
        yield from self._every(top, 0)

    def _every(self, state: State, depth: int) -> Iterator[Start]:
        for entry in list(state.menu) if depth < _DEEPEST else ():
            if self._script.left < 0:  # no use to copy a state for each of ten thousand
                return
            try:
                after = self._script.enter(state.copy(), entry)
                start = _known(after.start)
            except (Undecided, Ended):
                continue
            if start.image:
                yield start
            if entry.is_submenu:
                yield from self._every(after, depth + 1)

    def _show(self, state: State, way: tuple[str, ...]) -> Start | None:
        """menu.c, run_menu and grub_menu_execute_with_fallback. None if all that it tries fail."""
        at, self.missed = _number(state.menu, state.env.get("default"))
        timeout = state.env.get("timeout", "")
        # grub_menu_get_timeout: without one it waits for a key, and what a key starts has no fallback.
        waits = number(timeout)[0] is None
        self.waits = self.waits or waits
        while True:
            if start := self._execute(state, state.menu[at], way):
                return start
            # get_and_remove_first_entry_number
            fallback = state.env.get("fallback", "")
            following, rest = number(fallback)
            if UNKNOWN in fallback or (fallback and UNKNOWN in timeout):
                raise Undecided("falls back to an entry that cannot be known from here")
            if following is None or waits:
                return None
            at, state.env["fallback"] = following, rest.lstrip(" \t\r\n")
            if at >= len(state.menu):
                raise Undecided(f"falls back to an entry {at}, which it does not have")
            _certain(state.menu[: at + 1])

    def _execute(self, state: State, entry: MenuEntry, way: tuple[str, ...]) -> Start | None:
        """menu.c, grub_menu_execute_entry. None if the entry starts nothing."""
        way = (*way, entry.title.replace(UNKNOWN, "?"))
        if len(way) > _DEEPEST:
            raise Undecided("has submenus without end")
        before = {name: state.env.get(name) for name in ("default", "chosen")}
        try:
            after = self._script.enter(state, entry)
        except Ended:
            return _known(self._script.state.start)._replace(way=way)
        start = _known(after.start)._replace(way=way)
        after.start = Start()
        if start.image and not self._missing(start.image):
            return start
        if start.before:
            raise Undecided(f"loads two images, of which {names.show(start.image, 80)} is not there")
        if start.image and state.env.get("fallback") and after.env.get("root") != ROOT:
            raise Undecided(f"starts {names.show(start.image, 80)}, which is not on this disk, or falls back to another entry")
        if not self._failed.image:
            self._failed = start
        below = self._show(after, way) if entry.is_submenu and after.menu else None
        for name, value in before.items():
            state.env.pop(name, None)
            if value is not None:
                state.env[name] = value
        return below


def _known(start: Start) -> Start:
    if UNKNOWN in start.image:
        raise Undecided("starts an image that cannot be known from here")
    return start._replace(arguments=start.arguments.replace(UNKNOWN, ""))


def _number(menu: Sequence[MenuEntry], default: str | None) -> tuple[int, bool]:
    """The entry that $default leads to, 0 if it leads to none; whether it leads to none: menu.c, get_entry_number."""
    if default is None:
        return _certain(menu[:1]), False
    if UNKNOWN in default:
        raise Undecided("has a default that cannot be known from here")
    value, _ = number(default)
    if value is None:
        wanted = component(default)[0]
        for i, entry in enumerate(menu):
            if wanted in (entry.title, entry.id):
                _certain([entry])
                return i, False
            if UNKNOWN in entry.title + entry.id:
                raise Undecided("has a title that cannot be known from here")
        return _certain(menu[:1]), True
    # A number that does not fit is none on i386-pc, and is cut on 64 bits.
    cut = value % (1 << 32)
    if (1 << 32) <= value < (1 << 64) and 0 < cut < len(menu):
        raise Undecided(f"has the default {value}, which is {cut} on some platforms and 0 on others")
    missed = value >= len(menu)
    return _certain(menu[: 1 if missed else value + 1]), missed


def _certain(entries: Sequence[MenuEntry]) -> int:
    """The last one's index. Raises Undecided if one of them may not be there."""
    if any(entry.maybe for entry in entries):
        raise Undecided("may or may not have the entry that is wanted")
    return len(entries) - 1
