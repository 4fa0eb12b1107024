# SPDX-License-Identifier: GPL-2.0-or-later
"""What a GRUB script does: variables, words, functions, branches, menu entries, files beside it."""

from __future__ import annotations

import time

import pytest

from knetstatd.boot.grub_run import PREFIX, Ended, Script
from knetstatd.boot.grub_state import UNKNOWN, MenuEntry, Start, State, Undecided


def nothing(name: str) -> None:
    pass


def run(text: str, files: dict[str, bytes] | None = None, **env: str) -> State:
    script = Script((files or {}).get, "pc")
    script.state.env |= env
    script.evaluate(text, "x")
    return script.state


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # corecmd.c, grub_core_cmd_set takes its first word; execute.c takes an unknown command with = for an assignment.
        ("set d=a b", "a"), ("d=a", "a"), ("d='a b'", "a b"), ('set d="$x"', "1> 2"), ("set d=$x", "1>"), ("d=$x", "1>"),
        ("set d=${x}${none}", "1>"), ("set d=a$x", "a1>"), ("set d", None), ("set d=a; unset d", None), ("set d=a=b", "a=b"),
        # execute.c, grub_script_arglist_to_argv: words of nothing vanish, quoted ones stay.
        ("set $none d=a", "a"), ('set "$none" d=a', None), ("$none set d=a", "a"), ("set d='*'", "*"), ("set d=*", UNKNOWN),
        ('set d=$"Hello"', UNKNOWN), ("if true; then d=a; else d=b; fi", "a"), ("if false; then d=a; fi", None),
        ("if ! false; then d=a; fi", "a"), ("if [ x$x = 'x1> 2' ]; then d=a; else d=b; fi", "b"),
        ("true; if [ $? = 0 ]; then d=a; fi", "a"),
        ("if nonsense; then d=a; else d=a; fi", "a"), ("if nonsense; then d=a; else d=b; fi", UNKNOWN),
        ("if nonsense; then d=a; fi", UNKNOWN),
        ("d=a; if nonsense; then d=a; fi", "a"), ("if [ $prefix = /boot/grub ]; then d=a; fi", UNKNOWN),
        ("search --set=d -f /x", UNKNOWN),
        ("search --set d -f /x", UNKNOWN), ("d=a; echo d", "a"), ("d=a; regexp --set=1:d b c", UNKNOWN),
        ("for i in 1 2 3; do d=$d$i; done", "123"),
        ("for i in 1 2 3; do if [ $i = 2 ]; then break; fi; d=$d$i; done", "1"),
        ("for i in 1 2 3; do if [ $i = 2 ]; then continue; fi; d=$d$i; done", "13"),
        # execute.c, grub_script_break: so many loops, no more than there are; in a function none of its caller's.
        ("for i in 1 2; do for j in a b; do d=$d$i$j; break 2; done; done", "1a"),
        ("for i in 1 2; do for j in a b; do d=$d$i$j; continue 2; done; d=x; done", "1a2a"),
        ("for i in 1 2; do for j in a b; do d=$d$i$j; break 9; done; done", "1a"),
        ("for i in 1 2; do for j in a b; do d=$d$i$j; break; done; done", "1a2a"),
        ("for i in 1 2; do break 0; break x; break 1 1; d=$d$i; done", "12"), ("break; continue; d=a", "a"),
        ("function f { break; d=a; }; f; d=${d}b", "ab"), ("function f { continue; }; for i in 1 2; do f; d=$d$i; done", "12"),
        # grub_script_return: an error outside of a function.
        ("return; d=a", "a"), ("if return; then d=a; else d=b; fi", "b"), ("for i in 1 2; do return; d=$d$i; done", "12"),
        ("function f { false; return; }; if f; then d=a; else d=b; fi", "b"),
        ("function f { true; return; }; if f; then d=a; else d=b; fi", "a"),
        ("function f { nonsense; return; }; d=a; if f; then d=b; fi", UNKNOWN),
        ("function f { return x; d=a; }; f", "a"), ("function f { for i in 1 2; do return; done; d=a; }; d=b; f", "b"),
        ("function f { return; }; f; return; d=a", "a"), ("for i in $none; do d=a; done", None),
        ("function f { d=$1$2$3$#; }; f a b", "ab2"), ("function f { d=a; return; d=b; }; f", "a"),
        ("function f { shift; d=$1; }; f a b", "b"),
        ("function f { setparams x y; d=$2; }; f a b", "y"), ("function f { d=a$@; }; f b c", "ab"),
        ('function f { d="$*"; }; f b c', "b c"),
        ("function f { return 1; }; if f; then d=a; else d=b; fi", "b"), ("function set { d=b; }; set d=a", "a"),
        ("eval d=a", "a"), ("if menuentry; then d=a; else d=b; fi", "b"), ("if source; then d=a; else d=b; fi", "b"),
        ("function f { d=1; }; function f { d=2; }; f", "2"), ("if [ -s $prefix/there ]; then d=a; fi", "a"),
        ("if [ -f $prefix/gone ]; then d=a; fi", None),
        ("if [ -f /there ]; then d=a; fi", UNKNOWN), ("source $prefix/there", "sourced"), (". ${config_directory}/there",
        "sourced"),
        ("source $prefix/gone; d=a", "a"), ("load_env", "saved"), ("load_env e; if [ -z $d ]; then d=$e; fi", "other"),
        ("load_env -f $prefix/gone", None),
        ("load_env --skip-sig --file=$prefix/grubenv", "saved"), ("load_env --file=$prefix/gone", None), ("$none; d=a", "a"),
        ("load_env --file $prefix/grubenv d", "saved"), ("if [ $grub_platform = pc ]; then d=$feature_menuentry_id; fi", "y"),
    ],
)  # fmt: skip
def test_variables(text: str, value: str | None) -> None:
    block = b"# GRUB Environment Block\nd=saved\ne=other\n##"
    assert run(text, {"there": b"d=sourced\n", "grubenv": block}, x="1> 2").env.get("d") == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("while true; do a=b; done", "loop"), ("for i in *; do a=b; done", "loop"), ("source /boot/x", "another disk"),
        ("load_env -f /x", "another disk"),
        ("configfile /x", "another file"), ("menuentry x { }", "syntax error"), ("search --set=x -f /x; $x", "a command"),
        ("function f { f; }; f", "too many"),
        ("d=a; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do d=$d$d; done", "grow"),
        ("source $prefix/self", "too many"),
        ("if x; then reboot; fi", "cannot be known"), ("function f { if x; then return; fi; d=a; }; f", "cannot be known"),
        ("function f { if x; then f; f; fi; }; f", "too many"), ("for i in 1; do break $prefix; done", "hangs on"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed(text: str, why: str) -> None:
    start = time.process_time()
    with pytest.raises(Undecided, match=why):
        run(text, {"self": b"source $prefix/self\n"})
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("words", "title", "identifier"),
    [
        # menuentry.c and arg.c, grub_arg_parse.
        ("'T' --class a --id x", "T", "x"), ("--id=x 'T'", "T", "x"), ("T", "T", "T"),
        ("--class a --hotkey=h --users '' T --unrestricted", "T", "T"),
        ("T $menuentry_id_option x", "T", "T"), ("-T", "-T", "-T"), ("T --id x --id y", "T", "y"), ("T --id= ", "T", ""),
        ("-- --id", "--id", "--id"),
        ("--unknown T", "--unknown", "--unknown"), ("T $u", "T", UNKNOWN), ("'' x", "", ""),
    ],
)  # fmt: skip
def test_menu_entries(words: str, title: str, identifier: str) -> None:
    (entry,) = run(f"search --set=u -f /x; submenu {words} {{ a; }}").menu
    assert (entry.title, entry.id, entry.is_submenu, entry.maybe) == (title, identifier, True, False)


def test_an_entry_whose_commands_are_a_word() -> None:
    with pytest.raises(Undecided, match="--source"):
        run("menuentry T --source 'linux /v'")


@pytest.mark.parametrize("words", ["", "--id x", "T --id", "T --id -x", "T --source=x", "T --unrestricted=x", "--help T"])
def test_what_makes_no_entry(words: str) -> None:
    assert run(f"menuentry {words} {{ a; }}").menu == []


def test_entries_of_a_branch_that_may_not_be_taken_are_marked() -> None:
    menu = run("menuentry A { a; }; if x; then menuentry B { a; }; fi; menuentry C { a; }").menu
    assert [(entry.title, entry.maybe) for entry in menu] == [("A", False), ("B", True), ("C", False)]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("linux /v a b; initrd /i /j", Start("/v", "a b", ("/i", "/j"))),
        ("linux /v; linux16 /w x", Start("/w", "x", before="/v")),
        ("chainloader /x.efi", Start("/x.efi")),
        ("multiboot2 /xen.gz; module2 /boot/vmlinuz-1 p ro; module2 /initrd", Start("/boot/vmlinuz-1", "p ro")),
        ("if x; then insmod y; fi; linux /v", Start("/v")), ("if x; then linux /v; else linux /w; fi", Start(UNKNOWN)),
        ("echo linux /v", Start()), ("function f { linux $1; }; f /v", Start("/v")), ("fwsetup --is-supported", Start()),
    ],
)  # fmt: skip
def test_what_is_loaded(text: str, start: Start) -> None:
    assert run(text).start == start


@pytest.mark.parametrize(
    ("text", "end"), [("halt", "halt"), ("linux /v; reboot", "reboot"), ("fwsetup", "fwsetup"), ("boot", "boot")]
)
def test_what_ends_grub(text: str, end: str) -> None:
    script = Script(nothing, "efi")
    with pytest.raises(Ended):
        script.evaluate(text, "x")
    assert script.state.start == Start(end=end)


def test_a_submenu_sees_what_was_exported() -> None:
    # menu.c, grub_menu_execute_entry; context.c, grub_env_new_context.
    script = Script(nothing, "pc")
    script.evaluate("a=1; b=2; export b; default='x>y > z'; timeout=5; submenu 'S>T' --id s x y { c=$a$b$2; }", "x")
    inner = script.enter(script.state, script.state.menu[0])
    found = {name: inner.env.get(name) for name in ("a", "b", "c", "default", "timeout", "chosen", "prefix")}
    assert found == {"a": None, "b": "2", "c": "2x", "default": "y > z", "timeout": "0", "chosen": "s", "prefix": PREFIX}
    again = script.enter(inner, MenuEntry("U", "u>v", ()))
    assert (again is inner, again.env["chosen"], again.env["default"]) == (True, "s>u>>v", " z")
