# SPDX-License-Identifier: GPL-2.0-or-later
"""Which entry GRUB starts: menu.c's rules. What real GRUBs start is asked in tests/vm/test_bootloaders.py."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.boot.grub_cfg import Menu, bls_entry
from knetstatd.boot.grub_state import MenuEntry, Start, Undecided

HEAD = """
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="%s"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
if [ "${prev_saved_entry}" ]; then
  set saved_entry="${prev_saved_entry}"
fi
set timeout=5
"""
MENU = """
menuentry 'Debian' --class debian $menuentry_id_option 'simple' { linux /a root=x; initrd /i }
submenu 'Advanced options' $menuentry_id_option 'advanced' {
  menuentry 'Linux 6.12' $menuentry_id_option 'new' { linux /b; }
  menuentry 'Linux 6.1' $menuentry_id_option 'old' { linux /c; }
  submenu 'Deeper > still' { menuentry 'x' { linux /d; }
    menuentry 'y' { linux /e; }
  }
}
menuentry '6.1 LTS' --id lts { linux /f; }
menuentry 'Bob'\\''s' { linux /g; }
"""
GENERATED = HEAD % "%s" + MENU.replace("%", "%%")
BLOCK = "# GRUB Environment Block\n"


def menu(script: str, block: str | None = None, gone: str = "", bls: list[MenuEntry] | None = None) -> Menu:
    files = {"grub.cfg": script.encode(), "custom.cfg": b"menuentry custom { linux /custom; }"}
    if block is not None:
        files["grubenv"] = block.encode()
    return Menu(files.get, "pc", lambda image: image[1:] in gone.split(), bls or [])


def image(script: str, block: str | None = None, gone: str = "") -> str:
    start = menu(script, block, gone).next()
    assert start
    return start.image[1:]


@pytest.mark.parametrize(
    ("default", "started"),
    [
        # get_entry_number: the number that it begins with, after blanks; only then a title or an id.
        ("0", "a"), ("2", "f"), (" 2", "f"), ("2nd kernel", "f"), ("2 (LTS)", "f"), ("0x2", "f"), ("02", "f"), ("0x", "a"),
        ("-1", "a"),
        ("99", "a"), ("99999999999999999999999", "a"), ("6.1 LTS", "a"), ("lts", "f"), ("Bob's", "g"), ("bob's", "a"), ("",
        "a"),
        ("gone", "a"), (" lts", "a"), ("lts ", "a"), ("simple", "a"), ("3\t", "g"),
        # grub_menu_execute_entry: what follows the first lone > is the submenu's default.
        ("1", "b"), ("1>1", "c"), ("1> 1", "c"), ("1 > 1", "c"), ("1 >1", "c"), ("1>0x1", "c"), ("1>2>1", "e"), ("1>9", "b"),
        ("1>", "b"),
        ("1>2", "d"), ("advanced>old", "c"), ("Advanced options>Linux 6.1", "c"), ("Advanced options > Linux 6.1", "a"),
        ("advanced> old", "b"), ("1>Deeper >> still>y", "e"), ("1>Deeper > still>y", "b"), ("0>1", "a"), ("1>>1", "b"),
        ("gone>1", "a"),
        (">1", "a"), ("1>gone>1", "b"),
    ],
)  # fmt: skip
def test_default(default: str, started: str) -> None:
    assert image(GENERATED % default) == started
    # The same, saved.
    assert image(GENERATED % "${saved_entry}", f"{BLOCK}saved_entry={default}\n####") == started
    assert image(GENERATED % "0", f"{BLOCK}saved_entry=3\nnext_entry={default or '0'}\n##") == started


@pytest.mark.parametrize(
    ("block", "started"),
    [
        (None, "a"), ("", "a"), ("\0" * 1024, "a"), (BLOCK, "a"), ("saved_entry=2\n", "a"), (f"{BLOCK}saved_entry=2", "a"),
        (f"{BLOCK}saved_entry=2\n", "f"), (f"{BLOCK}saved_entry=2\nprev_saved_entry=3\n", "a"),
        (f"{BLOCK}next_entry=\nsaved_entry=2\n", "f"),
        (f"{BLOCK}next_entry=3\nsaved_entry=2\n", "g"), (f"{BLOCK}saved_entry=2\r\n", "f"), (f"{BLOCK}saved_entry=lts\r\n",
        "a"),
        (f"{BLOCK}# a comment\nsaved_entry=lts\n", "f"), (f"{BLOCK}saved_entry=1\nsaved_entry=2\n", "f"),
    ],
)  # fmt: skip
def test_the_environment_block_s_states(block: str | None, started: str) -> None:
    # default is set before prev_saved_entry is looked at, so that one counts for the boot after (00_header).
    if block and "prev" in block:
        started = "f"
    assert image(GENERATED % "${saved_entry}", block) == started


def test_disabled_submenus_and_lost_ids() -> None:
    flat = "menuentry A --id a { linux /a; }\nmenuentry B --id b { linux /b; }\n"
    assert image("default='Advanced options>b'\n" + flat) == "a"
    assert image("default=b\n" + flat) == "b"
    # Where it is not exported, entries in submenus have no ids: only exported variables are seen there.
    assert image((GENERATED % "advanced>old").replace("export menuentry_id_option", "")) == "b"
    assert image((GENERATED % "advanced>Linux 6.1").replace("export menuentry_id_option", "")) == "c"


def test_a_submenu_s_own_default() -> None:
    script = "set default='0>1'\nset timeout=0\nsubmenu S {{ {} menuentry A {{ linux /a; }}\nmenuentry B {{ linux /b; }}\n}}"
    assert image(script.format("")) == "b"
    assert image(script.format("set default=0;")) == "a"


@pytest.mark.parametrize(
    ("head", "started"),
    [
        # get_and_remove_first_entry_number: numbers, blanks between them; and only where nobody touched a key.
        ("fallback=1", "b"), ("fallback='2 1'", "b"), ("fallback=' 0x1'", "b"), ("fallback=B", "gone"), ("fallback='1>0'", "b"),
        ("fallback=2", "gone"), ("fallback=0", "gone"), ("", "gone"), ("fallback=1; timeout=-1", "gone"),
        ("fallback=1; unset timeout", "gone"),
        ("fallback=3", "c"), ("default='3>1'; fallback='0 1'", "b"), ("default='3>1'", "gone"),
    ],
)  # fmt: skip
def test_fallback(head: str, started: str) -> None:
    entries = "menuentry A { linux /gone; }\nmenuentry B { linux /b; }\nmenuentry C { linux /gone; }\n"
    entries += "submenu S { menuentry D { linux /c; }\nmenuentry E { linux /gone; }\n}\n"
    assert image(f"timeout=0\n{head}\n{entries}", gone="gone") == started


def test_a_fallback_that_cannot_be_known() -> None:
    entry = "menuentry A {{ {} linux /gone; }}\nmenuentry B {{ linux /b; }}\n"
    script = "timeout=0\nfallback={}\n" + entry
    with pytest.raises(Undecided, match="not on this disk, or falls back"):
        image(script.format(1, "search --set=root -f /gone;"), gone="gone")
    with pytest.raises(Undecided, match="does not have"):
        image(script.format(7, ""), gone="gone")
    with pytest.raises(Undecided, match="cannot be known"):
        image("search --set=fallback x\n" + script.format("$fallback", ""), gone="gone")


@pytest.mark.parametrize("timeout", ["0", "5", "-1", "", "x", "10s"])
@pytest.mark.parametrize("style", ["menu", "hidden", "countdown", "x", ""])
def test_timeouts_change_nothing_but_who_waits(timeout: str, style: str) -> None:
    made = menu((GENERATED % "1>1").replace("timeout=5", f"timeout={timeout}\nset timeout_style={style}"))
    start = made.next()
    assert start
    assert (start.image, made.waits) == ("/c", timeout in ("-1", "", "x"))


def test_custom_cfg_beside_it() -> None:
    source = "if [ -f ${config_directory}/custom.cfg ]; then source ${config_directory}/custom.cfg; fi\n"
    assert image("default=custom\n" + MENU + source) == "custom"
    assert image("default=4\n" + MENU + source) == "custom"
    assert image("default=4\n" + MENU + source.replace("custom.cfg", "none.cfg")) == "a"


UNCERTAIN = """
menuentry A { linux /a; }
if fwsetup --is-supported; then menuentry F --id f { fwsetup; }; fi
menuentry C { linux /c; }
"""


@pytest.mark.parametrize(
    ("default", "started"),
    [("0", "a"), ("A", "a"), ("C", "c"), ("gone", "a"), ("9", "a"), ("1", None), ("2", None), ("f", None)],
)
def test_an_entry_that_may_not_be_there(default: str, started: str | None) -> None:
    script = f"default={default}\n{UNCERTAIN}"
    if started:
        assert image(script) == started
    else:
        with pytest.raises(Undecided, match="may or may not have"):
            image(script)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("search --set=default x\nmenuentry A { linux /a; }", "a default that cannot be known"),
        ("if cmostest 1; then default=1; else default=0; fi\nmenuentry A { linux /a; }", "a default that cannot be known"),
        ("search --set=t x\ndefault=B\nmenuentry $t { linux /a; }\nmenuentry B { linux /b; }", "a title that cannot be known"),
        ("menuentry A { search --set=i x; linux $i; }", "an image that cannot be known"),
        ("menuentry A { configfile /x; }", "another file"), ("menuentry A { }", "syntax error"), ("menuentry A {\n",
        "syntax error"),
        ("default=4294967297\nmenuentry A { linux /a; }\nmenuentry B { linux /b; }", "on some platforms"), ("\0", "NUL"),
        ("submenu A { " * 30 + "linux /a" + "\n}" * 30, "levels deep"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided(script: str, why: str) -> None:
    with pytest.raises(Undecided, match=why):
        menu(script).next()


def test_what_starts_no_linux() -> None:
    assert menu("").next() is None
    assert menu("set default=0\nset timeout=5\n").next() is None
    assert menu("menuentry A { fwsetup; }").next() == Start(end="fwsetup", way=("A",))
    assert menu("menuentry A { echo; }").next() == Start(way=("A",))
    assert menu("submenu A { echo; }").next() == Start(way=("A",))
    assert menu("halt").next() == Start(end="halt")


def test_an_entry_may_boot_by_itself() -> None:
    assert menu("menuentry A { linux /a; boot; linux /b; }").next() == Start("/a", way=("A",))


def test_the_way_is_told() -> None:
    made = menu(GENERATED % "1>gone")
    start = made.next()
    assert start
    assert (start.way, made.default, made.missed) == (("Advanced options", "Linux 6.12"), "1>gone", True)
    first = menu(GENERATED % "0").next()
    assert first == Start("/a", "root=x", ("/i",), "", ("Debian",))


def test_every_entry() -> None:
    assert [start.image for start in menu(GENERATED % "0").every()] == ["/a", "/b", "/c", "/d", "/e", "/f", "/g"]
    assert next(menu("menuentry A { search --set=i x; linux $i; }\n" + MENU).every()).image == "/a"


def test_entry_files_of_blscfg() -> None:
    entry = bls_entry("Fedora 42", "abc-6", "/vmlinuz-6", "$kernelopts ro", ["/i", "/j"])
    assert entry
    made = menu("default=abc-6\nkernelopts='a b'\nmenuentry A { linux /a; }\nblscfg\n", bls=[entry])
    assert made.next() == Start("/vmlinuz-6", "a b ro", ("/i", "/j"), "", ("Fedora 42",))
    assert bls_entry("x", "y", "/v", "'", []) is None


@pytest.mark.parametrize(
    ("script", "image"),
    [
        ("return\nbreak\nmenuentry A { linux /a; }\n", "/a"), ("menuentry A { break; linux /a; }\n", "/a"),
        ("function f { return; }\nmenuentry A { f; linux /a; }\n", "/a"),
        ("menuentry A { for i in 1; do break; done; linux /a; }\n", "/a"),
    ],
)  # fmt: skip
def test_what_leaves_nothing_changes_nothing(script: str, image: str) -> None:
    start = menu(script).next()
    assert start is not None
    assert start.image == image


def test_an_entry_that_returns_is_undecided() -> None:
    script = "default={}\nmenuentry A {{ return; linux /a; }}\nmenuentry B {{ break; linux /b; }}\n"
    with pytest.raises(Undecided, match="has an entry that returns"):
        menu(script.format(0)).next()
    assert [start.image for start in menu(script.format(0)).every()] == ["/b"]
    assert menu(script.format(1)).next() == Start("/b", way=("B",))


@pytest.mark.parametrize(
    "script",
    [
        "menuentry A { linux /a; }\n" * 2_000,
        "a=b\n" * 10_000,
        "{" * 333_333,
        "if a; " * 3333,
        "function f { submenu A { f; }; submenu B { f; }; }\nf\n",
        "function f { " + "a; " * 600 + "}\n" + "menuentry A { f; linux /a; }\n" * 5_000,
        "function f { " + "a; " * 600 + "}\nfallback='" + "0 " * 10_000 + "'\ntimeout=5\nmenuentry A { f; linux /a; }\n",
        f"a='{'b ' * 10_000}'\n" + "c $a\n" * 7_000,
        "source $prefix/custom.cfg\n" * 3_000,
    ],
    ids=range(9),
)
def test_hostile_menus_end_quickly(script: str) -> None:
    files = {"grub.cfg": script.encode(), "custom.cfg": b"# comment\n" * 30_000}
    start = time.process_time()
    try:
        Menu(files.get, "efi", lambda _: True).next()
    except Undecided:
        pass
    list(Menu(files.get, "efi", lambda _: False).every())
    assert time.process_time() - start < 4


def test_variables_that_each_entry_begins_with_are_work() -> None:
    many = "".join(f"a{i}=b\n" for i in range(1_000))
    entries = "menuentry A { linux /a; }\n" * 2_000
    assert len(list(menu(entries).every())) == 2_000
    assert 500 < len(list(menu(many + entries).every())) < 1_000


def test_words_of_an_unknown_command_are_work() -> None:
    with pytest.raises(Undecided, match="too many commands"):
        menu(f"a='{'b ' * 1_000}'\n" + "c $a\n" * 50).next()
    assert menu(f"a='{'b ' * 1_000}'\n" + "c $a\n" * 20).next() is None


@given(st.binary(max_size=200), st.binary(max_size=80))
def test_no_bytes_raise_anything_else(script: bytes, block: bytes) -> None:
    start = b"load_env\nset default=$d\nmenuentry x { linux /a; }\n"
    files = {"grub.cfg": start + script, "grubenv": BLOCK.encode() + b"d=" + block}
    try:
        Menu(files.get, "efi", lambda _: False).next()
    except Undecided as error:
        assert "\n" not in str(error)
    list(Menu(files.get, "efi", lambda _: False).every())
