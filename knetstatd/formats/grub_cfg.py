# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB's menu and its default, from the text of grub.cfg and grubenv.

Rule 1: nothing is executed. grub.cfg is a script; what decides the menu is evaluated here (assignments, `[` tests,
        menu entries, submenus, blscfg). What is inside a function sets nothing.
Rule 2: a branch whose condition cannot be known (a file test, a command's answer) sets nothing; its entries count.
Rule 3: no text raises. Damaged text gives a smaller menu.

Sources: GRUB manual ("Writing full configuration files directly", "default", "The GRUB environment block") and
grub-core/normal/menu.c for how the default is found.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Possessive, so that hostile bytes cannot make the match backtrack.
_TOKEN = re.compile(r"#[^\n]*|\n|;|(?:'[^']*+'|\"(?:\\.|[^\"\\])*+\"|\\.|[^\s;'\"\\])++|.", re.DOTALL)
_PART = re.compile(r"'([^']*+)'|\"((?:\\.|[^\"\\])*+)\"|((?:\\.|[^'\"\\])++)|.", re.DOTALL)
_VARIABLE = re.compile(r"\\(.)|\$(?:\{(\w+)\}|(\w+))", re.DOTALL)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
# More than any real menu; what is nested deeper ends the reading.
_DEEPEST = 64


class Entry(NamedTuple):
    """A menu entry, or a submenu (`children` is not None). arguments: the kernel's command line."""

    title: str
    id: str
    image: str = ""
    children: list[Entry] | None = None
    arguments: str = ""


def environment(text: str) -> dict[str, str]:
    """The environment block: `name=value` lines; a backslash takes the next character as it is."""
    lines = re.findall(r"^([^#=\n][^=\n]*)=((?:\\.|[^\\\n])*+)", text, re.DOTALL | re.MULTILINE)
    return {name: re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL) for name, value in lines}


def choose(entries: Sequence[Entry], default: str) -> tuple[str, str]:
    """The image that `default` leads to, and the way there in words.

    As GRUB finds it: an index, an id or a title, then `>` and the same for the submenu; what does not exist is the
    first entry. The image is "" where the entry starts none.
    """
    way: list[str] = []
    while entries:
        # A single > leads into a submenu; a doubled one belongs to the title.
        wanted, _, default = re.sub(r"(?<!>)>(?!>)", "\0", default, count=1).partition("\0")
        wanted = wanted.replace(">>", ">")
        entry = entries[0]
        if re.fullmatch(r"[0-9]{1,6}", wanted):
            fits = entries[int(wanted) : int(wanted) + 1]
        else:
            fits = [e for e in entries if wanted in (e.title, e.id)] if wanted else entries
        if fits:
            entry = fits[0]
        else:
            way.append(f"no entry {names.show(wanted, 80)}, so GRUB takes the first")
        way.append(names.clean(entry.title, 120))
        if entry.children is None:
            return entry.image, " > ".join(way)
        entries = entry.children
    return "", " > ".join([*way, "an empty submenu"])


def flat(entries: Sequence[Entry]) -> Iterator[Entry]:
    """All entries that start something, those of the submenus too."""
    for entry in entries:
        yield from [entry] if entry.children is None else flat(entry.children)


def _commands(script: str) -> Iterator[list[str]]:
    """The script's commands, their words still quoted. `{` ends a command; `}`, then, else and do are commands."""
    words: list[str] = []
    for token in _TOKEN.findall(script):
        if token in ("\n", ";", "}") or (token in ("then", "else", "do") and not words):
            if words:
                yield words
            words = []
            if token not in ("\n", ";"):
                yield [token]
        elif token == "{":
            yield [*words, token]
            words = []
        elif not token.isspace() and not token.startswith("#"):
            words.append(token)
    if words:
        yield words


def _expand(word: str, env: dict[str, str]) -> str:
    """One word without its quotes, with its variables; cut, so that a variable that doubles itself stays small."""

    def variable(match: re.Match[str]) -> str:
        return (match[1] if match[1] != "\n" else "") if match[1] else env.get(match[2] or match[3], "")

    return "".join(
        part[1] if part[1] is not None else _VARIABLE.sub(variable, part[2] or part[3] or "")
        for part in _PART.finditer(word[:8192])
    )[:1024]


def menu(script: str, env: dict[str, str], bls: Sequence[Entry] = ()) -> list[Entry]:
    """The menu that grub.cfg makes.

    env: the variables, first those of grubenv and GRUB's own; gets what the script sets outside menu entries.
    bls: the Boot Loader Specification's entries, put where the command blscfg stands.
    """
    top: list[Entry] = []
    menus = [top]
    blocks: list[_Block] = []
    for raw in _commands(script):
        if len(blocks) > _DEEPEST:
            break
        command = raw[0]
        inner = blocks[-1] if blocks else _Block("")
        conditions = [block.taken for block in blocks if block.kind == "if"]
        kinds = [block.kind for block in blocks]
        if command in ("if", "while", "until", "for"):
            taken = _test(raw[1:], env) if command == "if" else None
            blocks.append(_Block("if", taken, taken))
        elif command in ("elif", "else") and inner.kind == "if":
            taken = _test(raw[1:], env) if command == "elif" else True
            before = None if inner.seen is None else not inner.seen
            blocks[-1] = _Block("if", _all([before, taken]), _any([inner.seen, taken]))
        elif command in ("fi", "done") and inner.kind == "if":
            blocks.pop()
        elif command == "}":
            _close(blocks, menus)
        elif "skip" in kinds or False in conditions:
            if raw[-1] == "{":
                blocks.append(_Block("skip"))
        elif "entry" in kinds:
            if raw[-1] == "{":
                blocks.append(_Block("skip"))
            elif not menus[-1][-1].image and (image := _image([_expand(word, env) for word in raw[:2]])):
                arguments = " ".join(_expand(word, env) for word in raw[2:])
                menus[-1][-1] = menus[-1][-1]._replace(image=image, arguments=arguments)
        elif raw[-1] == "{":
            kind = {"menuentry": "entry", "submenu": "menu"}.get(command, "skip")
            if kind != "skip":
                menus[-1].append(_entry([_expand(word, env) for word in raw[1:-1]]))
            if kind == "menu":
                children: list[Entry] = []
                menus[-1][-1] = menus[-1][-1]._replace(children=children)
                menus.append(children)
            blocks.append(_Block(kind))
        elif command == "blscfg":
            menus[-1] += bls
        elif "menu" not in kinds and None not in conditions:
            _assign(raw, env)
    return top


class _Block(NamedTuple):
    """What is open: an entry's, a submenu's ("menu") or another ("skip") brace, or an `if`.

    taken: whether this branch of the `if` runs.  seen: whether any branch so far did.  None: cannot be known.
    """

    kind: str
    taken: bool | None = True
    seen: bool | None = True


def _close(blocks: list[_Block], menus: list[list[Entry]]) -> None:
    """A `}`: closes the innermost brace and each `if` that was left open in it."""
    while blocks:
        kind = blocks.pop().kind
        if kind == "menu":
            menus.pop()
        if kind != "if":
            return


def _assign(raw: list[str], env: dict[str, str]) -> None:
    for word in raw[1:] if raw[0] == "set" else raw[:1]:
        if match := _ASSIGNMENT.fullmatch(word):
            env[match[1]] = _expand(match[2], env)


def _image(words: list[str]) -> str:
    """The path of the image that a command in an entry starts, "" for other commands."""
    match words:
        case ["linux" | "linux16" | "linuxefi" | "kernel" | "chainloader", path]:
            return path
        case ["module" | "module2", path] if path.rpartition("/")[2].startswith("vmlinu"):  # Xen's kernel
            return path
    return ""


def _entry(words: list[str]) -> Entry:
    title, identifier, option = "", "", ""
    for word in words:
        if option:
            identifier = word if option == "--id" else identifier
            option = ""
        elif word in ("--id", "--class", "--users", "--hotkey", "--source"):
            option = word
        elif word.startswith("--"):
            identifier = word[5:] if word.startswith("--id=") else identifier
        elif not title:
            title = word
    return Entry(title, identifier)


def _any(values: list[bool | None]) -> bool | None:
    return True if True in values else None if None in values else False


def _all(values: list[bool | None]) -> bool | None:
    return False if False in values else None if None in values else True


def _test(raw: list[str], env: dict[str, str]) -> bool | None:
    """The truth of `[ … ]`, None where it cannot be known (files, other commands)."""
    if not raw or raw[0] not in ("[", "test"):
        return None
    words = [_expand(word, env) for word in raw[1:]]
    if raw[0] == "[":
        words = words[: words.index("]")] if "]" in words else words
    choices: list[list[list[str]]] = [[[]]]
    for word in words:
        if word == "-o":
            choices.append([[]])
        elif word == "-a":
            choices[-1].append([])
        else:
            choices[-1][-1].append(word)
    return _any([_all([_atom(atom) for atom in choice]) for choice in choices])


def _atom(words: list[str]) -> bool | None:
    match words:
        case ["!", *rest]:
            found = _atom(rest)
            return None if found is None else not found
        case [text]:
            return bool(text)
        case ["-n" | "-z" as test, text]:
            return bool(text) is (test == "-n")
        case [left, "=" | "==", right]:
            return left == right
        case [left, "!=", right]:
            return left != right
    return None
