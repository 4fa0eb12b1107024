# SPDX-License-Identifier: GPL-2.0-or-later
"""What a GRUB script works on: its variables and menu, the environment block, numbers, and the truth of `[ … ]`.

Sources, GRUB 2.06 and 2.12: grub-core/normal/{menu,context}.c, kern/misc.c, lib/envblk.c, commands/test.c.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knetstatd.boot.grub_script import Body

# A value that holds it is not known; no script can write it.
UNKNOWN = "\0"
_SIGNATURE = b"# GRUB Environment Block\n"
_VALUE = re.compile(rb"[^\\\n]+|\\.|(\n)", re.DOTALL)
_NUMBER = re.compile(r"[ \t\r\n]*(?:0x([0-9a-fA-F]+)|(0[0-7]+)|(?!0x)([0-9]+))")
_MENU_OPTIONS = {"class": 1, "users": 1, "hotkey": 1, "source": 1, "id": 1, "unrestricted": 0}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "-eq": int.__eq__, "-ne": int.__ne__, "-lt": int.__lt__, "-le": int.__le__, "-gt": int.__gt__, "-ge": int.__ge__,
}  # fmt: skip


class Undecided(Exception):
    """What GRUB starts cannot be known. The text says why and goes on after "GRUB's menu "."""


class MenuEntry(NamedTuple):
    """A menu entry or a submenu. A title or an id that holds UNKNOWN is not known; maybe: whether it is there is not."""

    title: str
    id: str
    body: Body
    is_submenu: bool = False
    arguments: tuple[str, ...] = ()
    maybe: bool = False


class Start(NamedTuple):
    """What was loaded.

    image: its path as the entry writes it, "" for none.  arguments: its command line.  initrds: their paths.
    end: the command that left GRUB instead.  way: the titles that lead to it.  disk: $root, see `searched`; "" for GRUB's own.
    before: the image that stays if this one is not there.
    """

    image: str = ""
    arguments: str = ""
    initrds: tuple[str, ...] = ()
    end: str = ""
    way: tuple[str, ...] = ()
    disk: str = ""
    before: str = ""

    def then(self, args: Sequence[str], disk: str) -> Start:
        """What is loaded after `linux` with these words: i386/linux.c (grub_cmd_linux), which opens the file first."""
        return Start(args[0] if args else "", told(args[1:]), disk=disk, before=self.image or self.before)


def searched(name: str, args: Sequence[str]) -> dict[str, str]:
    """The variable that `search` sets to a disk (search_wrap.c): UNKNOWN, then the file system's ID if it looks for that."""
    if name == "search.fs_uuid":
        return {args[1] if len(args) > 1 else "root": UNKNOWN + args[0]} if args else {}
    variable = next((word[6:] for word in args if word.startswith("--set=")), "root" if {"--set", "-s"} & {*args} else "")
    wanted = args[-1] if {"--fs-uuid", "-u"} & {*args} else ""
    return {variable: UNKNOWN + wanted} if variable else {}


def told(words: Sequence[str]) -> str:
    """The command line that GRUB makes of words: those with a blank are in quotes (lib/cmdline.c)."""
    return " ".join(f'"{word}"' if " " in word else word for word in words)


class State:
    """All that a script can change."""

    def __init__(self, env: dict[str, str], exported: set[str], functions: dict[str, Body]) -> None:
        self.env = env
        self.exported = exported
        self.functions = functions
        self.menu: list[MenuEntry] = []
        self.start = Start()

    def copy(self) -> State:
        other = State(dict(self.env), set(self.exported), dict(self.functions))
        other.menu, other.start = list(self.menu), self.start
        return other

    def inner(self) -> State:
        """A new context: of the variables, those that were exported (context.c, grub_env_new_context)."""
        return State({k: v for k, v in self.env.items() if k in self.exported}, self.exported, self.functions)

    def merge(self, other: State) -> None:
        """Becomes what is so after one of two branches, no matter which."""
        for name in self.env.keys() | other.env.keys():
            if self.env.get(name) != other.env.get(name):
                self.env[name] = UNKNOWN
        self.exported |= other.exported
        self.functions = other.functions | self.functions
        same = 0
        while self.menu[same : same + 1] == other.menu[same : same + 1] != []:
            same += 1
        self.menu[same:] = [entry._replace(maybe=True) for entry in self.menu[same:] + other.menu[same:]]
        if self.start != other.start:
            self.start = Start(UNKNOWN)


def menu_entry(args: Sequence[str], block: Body | None, is_submenu: bool) -> MenuEntry | None:
    """What the command menuentry or submenu adds, None for an error: menuentry.c with arg.c, grub_arg_parse.

    The first word that is no option is the title, and without --id the id too.
    """
    options: dict[str, str] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, value = word[2:].partition("=")
        if word == "--":
            rest += words
        elif word.startswith("--") and name in _MENU_OPTIONS:
            if _MENU_OPTIONS[name] and not equals:
                value = next(words, "-")
            if (not equals and value.startswith("-")) or bool(equals) > _MENU_OPTIONS[name]:
                return None
            options[name] = value
        elif word in ("--help", "--usage"):
            return None
        else:
            rest.append(word)
    if "source" in options and block is None and rest:
        raise Undecided("has an entry whose commands are the value of an option, --source")
    if not rest or block is None or "source" in options:
        return None
    identifier = UNKNOWN if UNKNOWN in "".join(args) else options.get("id", rest[0])
    return MenuEntry(rest[0], identifier, block, is_submenu, tuple(rest))


def number(text: str) -> tuple[int | None, str]:
    """The number that a text begins with, and the rest; None if it begins with none: misc.c, grub_strtoull, base 0.

    Blanks are skipped, 0x leads to base 16, 0 and another octal digit to base 8.
    """
    match = _NUMBER.match(text[:4096])
    if match is None:
        return None, text
    hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return value, text[match.end() :]


def component(path: str) -> tuple[str, str]:
    """The first part of a path through submenus, and the rest: menu.c, menuentry_eq. `>>` stands for a `>` in a title."""
    name, _, rest = path.replace(">>", UNKNOWN).partition(">")
    return name.replace(UNKNOWN, ">"), rest.replace(UNKNOWN, ">>")


def environment(data: bytes) -> dict[str, str]:
    """The variables of an environment block: envblk.c, grub_envblk_open and grub_envblk_iterate.

    None if GRUB takes the block for none. It stops at a line that does not end.
    """
    variables: dict[str, str] = {}
    at = len(_SIGNATURE)
    if len(data) <= at or not data.startswith(_SIGNATURE):
        return variables
    while at < len(data):
        comment = data[at : at + 1] == b"#"
        equals = at if comment else data.find(b"=", at)
        value = []
        for piece in _VALUE.finditer(data, equals + (not comment)) if equals >= 0 else ():
            if piece[1]:
                break
            value.append(piece[0] if piece[0][:1] != b"\\" else piece[0][1:])
        else:
            break
        if not comment:
            variables[_text(data[at:equals])] = _text(b"".join(value))
        at = piece.end()
    return variables


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def both(left: bool | None, right: bool | None) -> bool | None:
    """And, of values that may be unknown."""
    return False if left is False or right is False else None if left is None or right is None else True


def either(left: bool | None, right: bool | None) -> bool | None:
    """Or, of values that may be unknown."""
    return True if left or right else None if left is None or right is None else False


def test(words: Sequence[str], file: Callable[[str, str], bool | None]) -> bool | None:
    """The truth of `[ … ]`: test.c, test_parse. file: the answer to -d, -e, -f or -s of a path."""
    left = list(words[:-1] if words[-1:] == ["]"] else words)
    return _test(left, file, 0)


def _test(words: list[str], file: Callable[[str, str], bool | None], depth: int) -> bool | None:
    """Takes words away as far as the expression goes."""
    so_far: bool | None = False
    current: bool | None = True
    inverted = False
    while words:
        value: bool | None
        match words:
            case [one, "=" | "==" | "!=" | "<" | "<=" | ">" | ">=" as operator, two, *_]:
                value, used = None if UNKNOWN in one + two else _compared(one, operator, two), 3
            case [one, operator, two, *_] if operator in _COMPARE:
                value, used = None if UNKNOWN in one + two else _COMPARE[operator](_signed(one), _signed(two)), 3
            case [_, operator, _, *_] if operator in ("-pgt", "-plt") or operator[:3] in ("-nt", "-ot"):
                value, used = None, 3
            case ["-d" | "-e" | "-f" | "-s" as operator, path, *_]:
                value, used = file(operator, path), 2
            case ["-n" | "-z" as operator, text, *_]:
                value, used = None if UNKNOWN in text else bool(text) is (operator == "-n"), 2
            case [")", *_]:
                del words[0]
                return either(so_far, current)
            case ["(", *_] if depth < 20:
                del words[0]
                value, used = _test(words, file, depth + 1), 0
            case ["!" | "-a" | "-o" as operator, *_]:
                del words[0]
                inverted = inverted is not (operator == "!")
                if operator == "-o":
                    so_far, current = either(so_far, current), True
                continue
            case _:
                value, used = None if UNKNOWN in words[0] or words[0] == "(" else bool(words[0]), 1
        del words[:used]
        if inverted and value is not None:
            value = not value
        inverted = False
        current = both(current, value)
    return either(so_far, current)


def _compared(one: str, operator: str, two: str) -> bool:
    left, right = (text.encode("utf-8", "surrogateescape") for text in (one, two))
    if operator in ("=", "==", "!="):
        return (left == right) is (operator != "!=")
    return (left < right if operator[0] == "<" else left > right) or (operator[1:] == "=" and left == right)


def _signed(text: str) -> int:
    return -(number(text[1:])[0] or 0) if text.startswith("-") else number(text)[0] or 0
