# SPDX-License-Identifier: GPL-2.0-or-later
"""Follows a GRUB script to the menu that it makes, and an entry to the image that it loads.

Rule 1: the script is followed as GRUB follows it. Nothing of this machine is changed, and no program is started.
Rule 2: what cannot be known from here (another disk's file, a command's answer) is UNKNOWN, and spreads. Both branches of
        an `if` that hangs on it are followed; what differs after them is unknown.
Rule 3: what cannot be followed is Undecided. So is a script too large or too deep.

Sources, GRUB 2.06 and 2.12: grub-core/script/execute.c, normal/context.c, commands/{menuentry,test,loadenv,configfile}.c,
kern/{corecmd,env,misc}.c, lib/{arg,envblk}.c.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from knetstatd.boot import grub_script, grub_state
from knetstatd.boot.grub_script import Body, Command, For, Function, If, Statement, Word
from knetstatd.boot.grub_state import UNKNOWN, MenuEntry, Start, State, Undecided, component, environment, number, test
from knetstatd.core.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# $prefix, the directory that holds grub.cfg; what GRUB calls its disk is unknown.
PREFIX = UNKNOWN + "prefix"
# $root before a script sets it: the same disk.
ROOT = UNKNOWN + "root"
# Commands, words of unknown ones, pieces of 64 bytes that are read or expanded, and of 16 variables that an entry begins with:
# for a menu and all of its entries. Real ones need a few hundred, and 20 for each kernel more.
_MOST_WORK, _DEEPEST, _LONGEST = 50_000, 40, 1 << 16
_FEATURES = (
    "chainloader_bpb", "ntldr", "platform_search_hint", "default_font_path", "all_video_module", "menuentry_id",
    "menuentry_options", "200_final", "nativedisk_cmd", "timeout_style",
)  # fmt: skip
# Commands that set no variable, though one of their words may be a variable's name.
_HARMLESS = frozenset(
    "echo insmod rmmod loadfont terminal_input terminal_output terminal serial sleep background_image background_color "
    "play clear password password_pbkdf2 cryptomount save_env list_env keystatus cmostest loopback devicetree".split()
)
_PATTERN, _BLANKS = re.compile(r"[*?]"), re.compile(r"[ \t\n\r]+")  # the first may stand for a file's name (module regexp)
# The variable that a word of an unknown command may name: all of it, or what follows its last = or colon.
_NAMED = re.compile(r"(?:.*[=:])?([A-Za-z_]\w*)", re.ASCII | re.DOTALL)
_OTHER_LOADERS = frozenset("chainloader multiboot multiboot2 xen_hypervisor kfreebsd knetbsd kopenbsd ntldr freedos".split())


class Ended(Exception):
    """GRUB was left, or boots what is loaded."""


class _Left(Exception):
    """A `return`, `break` or `continue` on its way out, of so many loops; a `return` with the function's status."""

    def __init__(self, command: str, loops: int, status: bool | None = True) -> None:
        super().__init__()
        self.command, self.loops, self.status = command, loops, status


class Script:
    """Runs scripts on `state`.

    read: the contents of a file below $prefix by its relative name, None if there is none; may raise Undecided.
    bls: what the command blscfg adds to the menu.  left: how much more is followed; below 0, nothing.
    """

    def __init__(self, read: Callable[[str], bytes | None], platform: str, bls: Sequence[MenuEntry] = ()) -> None:
        self._file_contents, self._bls = read, bls
        self.left = _MOST_WORK
        self._depth = 0
        self._scope: tuple[str, ...] = ()
        # What runs: "script", "entry" or "function"; and in how many loops of it.
        self._inside, self._loops = "script", 0
        env = {f"feature_{name}": "y" for name in _FEATURES} | {"grub_platform": platform, "prefix": PREFIX, "root": ROOT}
        env |= {"config_directory": PREFIX, "config_file": PREFIX + "/grub.cfg"}
        env |= dict.fromkeys(("grub_cpu", "cmdpath", "shim_lock", "lockdown", "check_signatures", "lang"), UNKNOWN)
        self.state = State(env, {*env, "pager", "color_normal", "color_highlight"}, {})

    def _spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise Undecided("runs too many commands")

    def _read(self, name: str) -> bytes | None:
        data = self._file_contents(name)
        self._spend(len(data or b"") >> 6)
        return data

    def source(self, name: str) -> bool | None:
        """Runs a file below $prefix: configfile.c, grub_cmd_source. One that is not there is no error."""
        data = self._read(name)
        return True if data is None else self.evaluate(data.decode("utf-8", "surrogateescape"), name)

    def evaluate(self, text: str, name: str) -> bool | None:
        """Runs the text of a script; its last status."""
        try:
            return self._run(grub_script.parse(text))
        except Damaged as error:
            raise Undecided(f"cannot be read: {name} {error}") from None

    def enter(self, state: State, entry: MenuEntry) -> State:
        """Runs an entry's own commands on `state`, or on a new context for a submenu, which is returned."""
        self._spend(len(state.env) >> 4)
        rest = component(state.env.get("default", ""))[1]
        inner = state.inner() if entry.is_submenu else state
        if entry.is_submenu and number(state.env.get("timeout", ""))[0] is not None:
            inner.env["timeout"] = "0"
        name = entry.id.replace(">", ">>")
        inner.env["chosen"] = f"{state.env['chosen']}>{name}" if "chosen" in state.env else name
        inner.exported.add("chosen")
        inner.env.pop("default", None)
        if rest:
            inner.env["default"] = rest
        self.state, self._scope, self._depth = inner, entry.arguments, 0
        self._inside, self._loops = "entry", 0
        self._run(entry.body)
        return inner

    def _run(self, body: Body) -> bool | None:
        """Runs statements; the last one's status: True for success, None if it cannot be known."""
        status: bool | None = True
        self._depth += 1
        for statement in body:
            self._spend(1 if self._depth <= _DEEPEST else _MOST_WORK)
            status = self._statement(statement)
            self.state.env["?"] = {True: "0", False: "1", None: UNKNOWN}[status]
        self._depth -= 1
        return status

    def _statement(self, statement: Statement) -> bool | None:
        match statement:
            case Command(words, block):
                return self._command(self._expand(words), block)
            case If(condition, then, other):
                status = self._run(condition)
                return self._either(then, other) if status is None else self._run(then if status else other)
            case Function(name, body):
                self.state.functions[name] = body
                return True
            case For(name, words, body):
                return self._for(name, self._expand(words), body)
        raise Undecided("holds a loop whose end cannot be known from here")

    def _either(self, then: Body, other: Body) -> bool | None:
        mine, theirs, depth = self.state, self.state.copy(), self._depth
        status = []
        try:
            for state, body in ((mine, then), (theirs, other)):
                self.state = state
                status.append(self._run(body))
        except (_Left, Ended):
            raise Undecided("hangs on something that cannot be known from here") from None
        self.state, self._depth = mine, depth
        mine.merge(theirs)
        return status[0] if status[0] is status[1] else None

    def _for(self, name: str, values: Sequence[str], body: Body) -> bool | None:
        status: bool | None = True
        depth, loops = self._depth, self._loops
        for value in values:
            if UNKNOWN in value:
                raise Undecided("holds a loop over something that cannot be known from here")
            self.state.env[name] = value
            self._loops = loops + 1
            try:
                status = self._run(body)
            except _Left as left:
                self._depth = depth
                left.loops -= 1
                if left.command == "return" or left.loops:
                    raise
                if left.command == "break":
                    break
            finally:
                self._loops = loops
        return status

    # -- words ------------------------------------------------------------------------------------------------------------

    def _expand(self, words: Sequence[Word]) -> list[str]:
        """execute.c, grub_script_arglist_to_argv: a word of nothing but unset variables is no word, unless it is quoted."""
        arguments: list[str] = []
        for word in words:
            new: list[str | None] = [None]
            for part in word:
                pieces = self._pieces(part)
                if pieces:
                    new[-1] = (new[-1] or "") + pieces[0]
                    new += pieces[1:]
            arguments += [text for text in new if text is not None]
        size = sum(map(len, arguments))
        if size > _LONGEST:
            raise Undecided("makes a variable grow without end")
        self._spend((size >> 6) + (len(arguments) >> 2))
        return arguments

    def _pieces(self, part: grub_script.Part) -> list[str]:
        if not part.variable:
            return [UNKNOWN if part.translated else part.text if part.quoted else _PATTERN.sub(UNKNOWN, part.text)]
        name = part.text
        if name in ("@", "*"):
            values = list(self._scope) if name == "@" or not part.quoted else [" ".join(self._scope)]
        elif name == "#":
            values = [str(len(self._scope))]
        elif name.isdigit():
            values = list(self._scope[int(name[:4]) - 1 : int(name[:4])]) if name.strip("0") else []
        else:
            values = [self.state.env.get(name, "")]
        if part.quoted:
            return values
        # argv.c, grub_script_argv_split_append
        return [_PATTERN.sub(UNKNOWN, text) for value in values for text in _BLANKS.split(value) if text]

    # -- commands ---------------------------------------------------------------------------------------------------------

    def _command(self, words: list[str], block: Body | None) -> bool | None:
        """execute.c, grub_script_execute_cmdline: a command, else a function, else an assignment."""
        if not words:
            return True
        if words[0] == "!":
            status = self._command(words[1:], block)
            return None if status is None else not status
        name, args = words[0], words[1:]
        env = self.state.env
        if UNKNOWN in name.partition("=")[0]:
            raise Undecided("runs a command whose name cannot be known from here")
        match name:
            case "menuentry" | "submenu":
                if (entry := grub_state.menu_entry(args, block, name == "submenu")) is None:
                    return False
                self.state.menu.append(entry)
            case "[" | "test":
                return test(args, self._file)
            case "true" | "false":
                return name == "true"
            case "set":
                variable, equals, value = args[0].partition("=") if args else ("", "=", "")
                if equals and args:
                    env[variable] = value
                return bool(equals)
            case "unset":
                env.pop(args[0] if args else "", None)
            case "export":
                self.state.exported.update(args)
            case "load_env":
                return self._load_env(args)
            case "source" | ".":
                if len(args) != 1:
                    return False
                if not args[0].startswith(PREFIX + "/"):
                    raise Undecided("reads a file that may lie on another disk")
                return self.source(args[0].removeprefix(PREFIX + "/"))
            case "configfile" | "legacy_configfile" | "syslinux_configfile" | "normal" | "extract_entries_configfile":
                raise Undecided("is replaced by another file's")
            case "eval":
                return self.evaluate(" ".join(args), "eval")
            case "return" | "break" | "continue":
                return self._leave(name, args)
            case "shift" | "setparams":
                by = int(args[0][:9]) if args and re.fullmatch("[0-9]+", args[0]) else 1
                self._scope = tuple(args) if name == "setparams" else self._scope[by:]
            case "linux" | "linux16" | "linuxefi":
                self.state.start = self.state.start.then(args, (env.get("root") or "none").replace(ROOT, ""))
            case "initrd" | "initrd16" | "initrdefi":
                self.state.start = self.state.start._replace(initrds=tuple(args))
            case "module" | "module2" | "xen_module" if args and args[0].rpartition("/")[2].startswith("vmlinu"):
                self.state.start = Start().then(args, (env.get("root") or "none").replace(ROOT, ""))
            case "halt" | "reboot" | "exit" | "poweroff" | "normal_exit" | "boot":
                if name != "boot" or not self.state.start.image:
                    self.state.start = Start(end=name)
                raise Ended
            case "fwsetup" if not args:
                self.state.start = Start(end=name)
                raise Ended
            case "blscfg":
                self.state.menu += self._bls
            case _ if name in _OTHER_LOADERS:
                self.state.start = Start(args[0] if args else "")
            case _ if name in self.state.functions:
                return self._call(name, args)
            case _ if name in _HARMLESS:
                return None
            case _:
                return self._other(name, args)
        return True

    def _file(self, operator: str, path: str) -> bool | None:
        """What test.c says of a file; None if it may lie on another disk."""
        if not path.startswith(PREFIX + "/"):
            return None
        data = self._read(path.removeprefix(PREFIX + "/"))
        return None if operator == "-d" else data is not None and (operator != "-s" or data != b"")

    def _load_env(self, args: list[str]) -> bool | None:
        """loadenv.c, grub_cmd_load_env: a list of names admits no others."""
        name, wanted, words = PREFIX + "/grubenv", [], iter(args)
        for word in words:
            if word in ("-f", "--file"):
                name = next(words, "")
            elif word.startswith("--file="):
                name = word[7:]
            elif not word.startswith("-"):
                wanted.append(word)
        if not name.startswith(PREFIX + "/"):
            raise Undecided("loads variables from a file that may lie on another disk")
        data = self._read(name.removeprefix(PREFIX + "/"))
        variables = environment(data or b"")
        self.state.env.update({name: value for name, value in variables.items() if not wanted or name in wanted})
        return None if data is None else True

    def _other(self, name: str, args: list[str]) -> bool | None:
        """An assignment, or a command that is not known here: it may set each variable that its words name."""
        variable, equals, value = name.partition("=")
        if equals:
            self.state.env[variable] = value
            return True
        self._spend(len(args))
        self.state.env.update((named[1], UNKNOWN) for named in map(_NAMED.fullmatch, args) if named)
        self.state.env.update(grub_state.searched(name, args) if name.startswith("search") else {})
        return None

    def _call(self, name: str, args: list[str]) -> bool | None:
        outside = self._scope, self._depth, self._inside, self._loops
        self._scope, self._inside, self._loops = tuple(args), "function", 0
        try:
            return self._run(self.state.functions[name])
        except _Left as left:
            return left.status
        finally:
            self._scope, self._depth, self._inside, self._loops = outside

    def _leave(self, name: str, args: list[str]) -> bool | None:
        """execute.c, grub_script_break and grub_script_return: where there is nothing to leave, the script goes on."""
        if UNKNOWN in "".join(args):
            raise Undecided("hangs on something that cannot be known from here")
        if len(args) > 1 or not re.fullmatch("[0-9]{1,9}", args[0] if args else "1"):
            return False
        given = int(args[0]) if args else 1
        if name == "return":
            if self._inside == "entry":  # GRUB itself is confused: it never forgets that it left
                raise Undecided("has an entry that returns, as functions do")
            if self._inside == "script":
                return False
            last = self.state.env.get("?", "0")
            raise _Left(name, 0, given == 0 if args else None if last == UNKNOWN else last == "0")
        if given and self._loops:
            raise _Left(name, min(given, self._loops))
        return given > 0
