# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB's menu from its script. The samples have the structure that grub-mkconfig gives them, in fewer words."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.formats import grub_cfg
from knetstatd.formats.grub_cfg import Entry

HEAD = """
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
else
   set default="%s"
fi
function remember {
  if [ -z "${once}" ]; then
    saved_entry="${chosen}"
    default=99
  fi
}
"""
MENU = r"""
menuentry 'Debian' --class debian --users '' $menuentry_id_option 'simple' {
        load_video
        if [ x$grub_platform = xxen ]; then insmod xzio; fi
        echo    'Loading Linux 6.12 ...'
        linux   /boot/vmlinuz-6.12.1-amd64 root=UUID=1 ro quiet
        initrd  /boot/initrd.img-6.12.1-amd64
}
submenu 'Other options > here' $menuentry_id_option 'more' {
        menuentry 'Linux 6.12' --id=a { linux /boot/vmlinuz-6.12.1-amd64 }
        menuentry 'Bob'\''s 6.1' --unrestricted --hotkey=b --id b {
                linux16 /boot/vmlinuz-6.1.0-9-amd64 # an old one
        }
        submenu "Deeper" { menuentry 'Xen' { multiboot2 /boot/xen.gz
                module2 /boot/vmlinuz-6.1.0-9-amd64 placeholder
                module2 /boot/initrd.img }
        }
        set default=77
}
menuentry 'Memory test' { linux16 /boot/memtest86+.bin }
"""


def choose(default: str, script: str = HEAD % "0" + MENU, **env: str) -> str:
    env = {"menuentry_id_option": "--id", **env}
    menu = grub_cfg.menu(script, env)
    return grub_cfg.choose(menu, default or env["default"])[0].rpartition("/")[2]


@pytest.mark.parametrize(
    ("default", "image"),
    [
        ("0", "vmlinuz-6.12.1-amd64"),
        ("2", "memtest86+.bin"),
        ("Memory test", "memtest86+.bin"),
        ("simple", "vmlinuz-6.12.1-amd64"),
        ("1", "vmlinuz-6.12.1-amd64"),  # a submenu without a way in it: its first entry
        ("1>1", "vmlinuz-6.1.0-9-amd64"),
        ("more>b", "vmlinuz-6.1.0-9-amd64"),
        ("Other options >> here>Bob's 6.1", "vmlinuz-6.1.0-9-amd64"),
        ("1>2>0", "vmlinuz-6.1.0-9-amd64"),
        ("1>Deeper>Xen", "vmlinuz-6.1.0-9-amd64"),
        ("9", "vmlinuz-6.12.1-amd64"),
        ("1>nothing", "vmlinuz-6.12.1-amd64"),
        ("99999999999999999999999", "vmlinuz-6.12.1-amd64"),
    ],
)
def test_default_is_an_index_a_title_or_an_id_and_a_way_through_submenus(default: str, image: str) -> None:
    assert choose(default) == image


def test_what_does_not_exist_is_said() -> None:
    image, way = grub_cfg.choose([Entry("first", "", "/vmlinuz-1")], "gone\n")
    assert (image, way) == ("/vmlinuz-1", "no entry 'gone\\n', so GRUB takes the first > first")
    assert grub_cfg.choose([Entry("empty", "", children=[])], "0") == ("", "empty > an empty submenu")
    assert grub_cfg.choose([Entry("Firmware", "")], "0") == ("", "Firmware")


def test_next_entry_wins_over_the_default() -> None:
    assert choose("", next_entry="2") == "memtest86+.bin"
    assert choose("") == "vmlinuz-6.12.1-amd64"
    assert choose("", HEAD % "${saved_entry}" + MENU, saved_entry="more>b") == "vmlinuz-6.1.0-9-amd64"


@pytest.mark.parametrize(
    ("condition", "truth"),
    [
        ('[ "$yes" ]', True),
        ('[ "${no}" ]', False),
        ('[ -n "$yes" ]', True),
        ('[ -z "$yes" ]', False),
        ('[ ! -z "$yes" ]', True),
        ('[ "$yes" = "1" ]', True),
        ("[ x$yes == x1 ]", True),
        ('[ "$yes" != 1 ]', False),
        ('test "$yes" = 1', True),
        ('[ "$yes" = 2 -o "$yes" = 1 ]', True),
        ('[ -n "$yes" -a "$yes" = 2 ]', False),
        ('[ "$yes" = 2 -o -f /file ]', None),
        ('[ -n "$no" -a -f /file ]', False),
        ("[ -s $prefix/file ]", None),
        ("[ ! -s $prefix/file ]", None),
        ("[ 1 -lt 2 ]", None),
        ("[ ]", None),
        ('[ "$yes" = 1', True),
        ("loadfont unicode", None),
        ("", None),
    ],
)
def test_conditions(condition: str, truth: bool | None) -> None:
    script = f"""
    set default=before
    if {condition}; then set default=then; menuentry T {{ }}; else set default=else; menuentry E {{ }}; fi
    """
    env = {"yes": "1"}
    titles = [entry.title for entry in grub_cfg.menu(script, env)]
    # Of an unknown condition neither branch sets anything, and the entries of both count.
    assert env["default"] == {True: "then", False: "else", None: "before"}[truth]
    assert titles == {True: ["T"], False: ["E"], None: ["T", "E"]}[truth]


def test_only_one_branch_of_an_elif_chain_runs() -> None:
    script = "if {}; then d=1; elif [ b = b ]; then d=2; elif [ c = c ]; then d=3; else d=4; fi"
    for condition, expected in (("[ a = a ]", "1"), ("[ a = b ]", "2"), ("[ -f x ]", "")):
        env: dict[str, str] = {}
        grub_cfg.menu(script.format(condition), env)
        assert env.get("d", "") == expected
    env = {}
    grub_cfg.menu("if [ a = b ]; then if [ a = a ]; then d=1; fi; elif [ -f x ]; then d=2; else d=3; fi; d=$d-end", env)
    assert env["d"] == "-end"


def test_loops_and_functions_set_nothing() -> None:
    env: dict[str, str] = {}
    script = "for i in 1 2; do set d=1; done; while true; do d=2; done; until x; do d=3; done; function f { d=4; { d=5; }; }"
    assert grub_cfg.menu(script, env) == []
    assert env == {}


def test_nested_braces_and_entries_in_a_branch_that_is_not_taken() -> None:
    script = """
    if [ a = b ]; then menuentry no { linux /no }; submenu no { menuentry no { linux /no } }; fi
    menuentry yes { function f { linux /no; }; { linux /no2; }; if [ -f x ]; then linux /vmlinuz-1; }
    set default=1
    """
    env: dict[str, str] = {}
    assert grub_cfg.menu(script, env) == [Entry("yes", "", "/vmlinuz-1")]
    assert env["default"] == "1"


def test_damage_gives_a_smaller_menu() -> None:
    assert grub_cfg.menu("} fi if [ a = a ]; then }\nmenuentry title argument { linux /k }", {}) == [Entry("title", "", "/k")]


def test_blscfg_puts_the_entry_files_into_the_menu() -> None:
    entries = [Entry("two", "2", "/vmlinuz-2"), Entry("one", "1", "/vmlinuz-1")]
    assert grub_cfg.menu("menuentry a { }\ninsmod blscfg\nblscfg\nmenuentry b { }", {}, entries) == [
        Entry("a", ""), *entries, Entry("b", ""),
    ]  # fmt: skip


def test_quotes_escapes_and_continued_lines() -> None:
    env: dict[str, str] = {}
    grub_cfg.menu('a="x \\"y\\" \\$z $b"; b=\'$a\'; set c=one\\ two\\\nthree d=4 e\nf=$a\\', env)
    assert env == {"a": 'x "y" $z ', "b": "$a", "c": "one twothree", "d": "4", "f": 'x "y" $z '}


def test_the_environment_block() -> None:
    block = "# GRUB Environment Block\nsaved_entry=a>b\nkernelopts=root=x ro\nodd=back\\\\slash\nempty=\n" + "#" * 900
    assert grub_cfg.environment(block) == {
        "saved_entry": "a>b", "kernelopts": "root=x ro", "odd": "back\\slash", "empty": "",
    }  # fmt: skip
    assert grub_cfg.environment("no equals sign\n=x\n\0") == {}


def test_a_variable_that_doubles_itself_stays_small() -> None:
    env: dict[str, str] = {}
    grub_cfg.menu("a=xxxxxxxx\n" + 'a="$a$a"\n' * 200, env)
    assert len(env["a"]) == 1024


def test_a_menu_that_is_nested_without_end() -> None:
    started = time.process_time()
    assert len(grub_cfg.menu("submenu a {\n" * 20000, {})) == 1
    assert time.process_time() - started < 2


PIECES = st.sampled_from(
    ["menuentry", "submenu", "{", "}", "if", "[", "]", ";", "then", "else", "elif", "fi", "function", "linux", "blscfg", "set"]
) | st.sampled_from(["default=1", "'a b'", '"$x"', "\\", "'", '"', "#", ">", "=", "\n", "do", "done", "\0"])


@given(st.lists(PIECES).map(" ".join) | st.text(), st.text())
def test_no_text_raises(script: str, default: str) -> None:
    menu = grub_cfg.menu(script, {}, [Entry("bls", "id", "/vmlinuz-1")])
    image, way = grub_cfg.choose(menu, default)
    assert isinstance(image, str)
    assert "\n" not in way
    grub_cfg.environment(script)
