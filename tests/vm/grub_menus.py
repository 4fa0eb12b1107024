# SPDX-License-Identifier: GPL-2.0-or-later
"""Menus for GRUB as grub-mkconfig makes them and as people change them: random, and the same for the same seed.

files = grub_menus.files(seed)          # "boot/grub/grub.cfg", perhaps "boot/grub/grubenv" and "boot/grub/custom.cfg"
"""

from __future__ import annotations

import random
from typing import NamedTuple

INSTALLED = ("6.12.117+deb12-cloud-amd64", "6.1.0-57-cloud-amd64", "6.1.0-9-amd64", "7.3.0-rc2-amd64", "5.10.0-1-amd64")
GONE = "6.5.0-gone-amd64"
_SIGNATURE = b"# GRUB Environment Block\n"
_HEAD = """\
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   {default}
fi
{menuentry_id}
{export}
if [ "${{prev_saved_entry}}" ]; then
  set saved_entry="${{prev_saved_entry}}"
  save_env saved_entry
  set prev_saved_entry=
  save_env prev_saved_entry
  set boot_once=true
fi

function savedefault {{
  if [ -z "${{boot_once}}" ]; then
    saved_entry="${{chosen}}"
    save_env saved_entry
  fi
}}
function load_video {{
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}}

font=unicode
if [ x$feature_default_font_path = xy ] ; then
   font=unicode
fi
if false ; then
  set gfxmode=auto
fi
{timeout}
{fallback}
"""
_ID = 'if [ x"${feature_menuentry_id}" = xy ]; then\n  menuentry_id_option="--id"\nelse\n  menuentry_id_option=""\nfi'
_CUSTOM = """\
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"""
_TITLES = (
    "Debian GNU/Linux", "Advanced options for Debian GNU/Linux", "6.1 LTS", "2nd kernel", "0x1 hexadecimal", "010", "08", "1",
    "Bob's Linux", "A > B", "A >> B", " leading blank", "trailing ", "Débian", 'say "so"', "back\\slash", "$dollar", "a;b",
    "#1",
    "Linux {old}", "0", "-1", "two  blanks", "old", "0x", "Ubuntu, with Linux 5", "x", "ends with >", "*", "9 lives", "1>1",
)  # fmt: skip


_ONE, _TWO = INSTALLED[0], INSTALLED[1]
_LINUX = "linux /boot/vmlinuz"
# Entries before those of the installed kernels: what GRUB does if an image is not where it is said to be.
BY_HAND = {
    "blocks": f"linux boot/vmlinuz-{_TWO}",
    "another directory": f"linux /old/vmlinuz-{_TWO}",
    "another disk": f"set root=hd1,msdos1\n{_LINUX}-{_TWO}",
    "the disk's name": f"linux (hd0,msdos1)/boot/vmlinuz-{_TWO}",
    "no such disk's name": f"linux (hd2)/boot/vmlinuz-{_TWO}",
    "an image twice": f"{_LINUX}-{_TWO}\n{_LINUX}-{_ONE}",
    "an image and none": f"{_LINUX}-{_TWO}\n{_LINUX}-none",
    "none and an image": f"{_LINUX}-none\n{_LINUX}-{_TWO}",
    "an initrd before its image": f"initrd /boot/vmlinuz-{_ONE}\n{_LINUX}-{_TWO}",
    "no such initrd": f"{_LINUX}-{_TWO}\ninitrd boot/vmlinuz-{_ONE}",
    "a failing end": f"{_LINUX}-{_TWO}\nfalse",
    "no such command": f"nothing\n{_LINUX}-{_TWO}",
}


def by_hand(name: str, fallback: str) -> dict[str, bytes]:
    """The files of a machine with one of these menus."""
    entries = "".join(f"menuentry {k} {{\n{_LINUX}-{k}\n}}\n" for k in INSTALLED)
    text = f"set timeout=0\n{fallback}\nmenuentry x {{\n{BY_HAND[name]}\n}}\n{entries}"
    return {"boot/grub/grub.cfg": text.encode()}


class Item(NamedTuple):
    title: str
    id: str | None
    kernel: str
    children: list[Item] | None


def files(seed: int) -> dict[str, bytes]:
    """The files of one machine's /boot/grub."""
    r = random.Random(seed)
    kernels = r.sample(INSTALLED, r.randint(2, 4))
    menu = _menu(r, kernels)
    wanted = [_way(r, menu) for _ in range(4)]
    default = _quoted(r, wanted[0]) if r.random() < 0.6 else '"${saved_entry}"'
    if r.random() < 0.1:
        default = "${saved_entry}"
    script = _HEAD.format(
        default=f"{r.choice(['set ', 'set ', ''])}default={default}",
        menuentry_id=_ID if r.random() < 0.9 else "",
        export="export menuentry_id_option\n" if r.random() < 0.85 else "",
        timeout=_timeout(r),
        fallback=_fallback(r, menu),
    )
    if r.random() < 0.1:
        script += f"set default={_quoted(r, wanted[3])}\n"
    script += "".join(_text(r, item, "") for item in menu)
    found: dict[str, bytes] = {}
    if r.random() < 0.4:
        script += _CUSTOM
        if r.random() < 0.7:
            custom = f"set default={_quoted(r, _way(r, menu))}\n" if r.random() < 0.3 else ""
            custom += "".join(_text(r, item, "") for item in _menu(r, kernels)[:2])
            found["boot/grub/custom.cfg"] = custom.encode()
    if r.random() < 0.15:
        script = script.replace("\n", "\r\n")
    found["boot/grub/grub.cfg"] = script.encode()
    if (block := _environment(r, wanted)) is not None:
        found["boot/grub/grubenv"] = block
    return found


def _menu(r: random.Random, kernels: list[str]) -> list[Item]:
    """The simple entry, the submenu or its entries (GRUB_DISABLE_SUBMENU), and what 40_custom adds before or after."""

    def entries() -> list[Item]:
        return [
            Item(f"Debian GNU/Linux, with Linux {k}{more}", f"gnulinux-{k}-{kind}-1b2c", k, None)
            for k in kernels
            for more, kind in (("", "advanced"), (" (recovery mode)", "recovery"))[: r.randint(1, 2)]
        ]

    def custom() -> Item:
        title = r.choice(_TITLES)
        identifier = r.choice([None, None, "lts", "2", "0x1", "a>b", title, "old", "1st", r.choice(_TITLES)])
        kernel = r.choice([*INSTALLED, *kernels, *kernels, GONE])
        children = [custom() for _ in range(r.randint(1, 3))] if r.random() < 0.2 else None
        return Item(title, identifier, kernel, children)

    menu = [Item("Debian GNU/Linux", "gnulinux-simple-1b2c", kernels[0], None)] if r.random() < 0.8 else []
    if r.random() < 0.75:
        menu.append(Item("Advanced options for Debian GNU/Linux", "gnulinux-advanced-1b2c", "", entries()))
    else:
        menu += entries()
    for _ in range(r.randint(0, 3)):
        menu.insert(r.choice([0, len(menu), len(menu)]), custom())
    return menu


def _way(r: random.Random, menu: list[Item]) -> str:
    """A default as people write it: right, nearly right, or wrong."""
    parts = []
    here: list[Item] | None = menu
    blanks = r.random() < 0.25
    while here:
        i = r.randrange(len(here))
        item = here[i]
        number = r.choice([str(i)] * 5 + [hex(i), f"0{i:o}", f" {i}", f"{i} ", f"{i}x", f"{i} ({item.title})", f"\t{i}"])
        name = r.choice([item.title, item.title, item.id or item.title]).replace(">", r.choice([">>", ">>", ">>", ">"]))
        parts.append(r.choice([number, name, name]))
        if r.random() < 0.15:
            break
        here = item.children
    text = r.choice([" > ", "> ", " >"]).join(parts) if blanks else ">".join(parts)
    if r.random() < 0.15:
        text = r.choice(["7", "99", "-1", "0x", "4294967297", "18446744073709551617", "gone", "", " ", ">", "1>", ">1", "1>>1",
                         "2nd kernel", "08", "0x1g", "6.1 LTS", "1>9",
                         "gone>1", text + ">", text.upper(), "1\t>1"])  # fmt: skip
    return text


def _quoted(r: random.Random, text: str) -> str:
    if "'" not in text and r.random() < 0.3:
        return f"'{text}'"
    if text and r.random() < 0.15:
        return "".join(f"\\{c}" if c in " \t$'\"\\>;{}#*|&<?" else c for c in text)
    return '"' + "".join(f"\\{c}" if c in '$"\\' else c for c in text) + '"'


def _title(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _text(r: random.Random, item: Item, indent: str) -> str:
    command = "menuentry" if item.children is None else "submenu"
    identifier = ""
    if item.id is not None:
        option = r.choice(["$menuentry_id_option ", "$menuentry_id_option ", "$menuentry_id_option ", "--id ", "--id="])
        identifier = f" {option}{_title(item.id)}"
    more = r.choice(["", "", " --class debian --class gnu-linux --class os", " --unrestricted", " --hotkey=d", " --users ''"])
    words = f"{command} {_title(item.title)}{more}{identifier} "
    if item.id is None and r.random() < 0.1:
        words = f"{command} --class debian {_title(item.title)} "
    body = indent + "\t"
    if item.children is not None:
        inside = "".join(_text(r, child, body) for child in item.children)
        if r.random() < 0.1:
            inside = f"{body}set default={r.randrange(3)}\n{inside}"
        return f"{indent}{words}{{\n{inside}{indent}}}\n"
    lines = r.sample(
        ["load_video", "insmod gzio", "if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi", "savedefault",
         f"echo\t'Loading Linux {item.kernel} ...'", "# a comment", "set gfxpayload=keep"],
        r.randint(0, 4),
    )  # fmt: skip
    lines.append(f"linux\t/boot/vmlinuz-{item.kernel} root=UUID=1b2c ro $unset quiet")
    if r.random() < 0.15:
        lines[-1] = f"if loadfont unicode; then true; fi\n{body}{lines[-1]}"
    if r.random() < 0.1:
        return f"{indent}{words}{{ {lines[-1].replace(chr(10), '; ')} }}\n"
    if r.random() < 0.1:
        words = words.replace(" --class", " \\\n --class", 1)
    return f"{indent}{words}{{\n" + "".join(f"{body}{line}\n" for line in lines) + f"{indent}}}\n"


def _timeout(r: random.Random) -> str:
    style = r.choice(["", "", "set timeout_style=hidden\n", "set timeout_style=countdown\n", "set timeout_style=menu\n"])
    return style + r.choice(["set timeout=0"] * 8 + ["set timeout=1", "set timeout=-1", "", "set timeout=x"])


def _fallback(r: random.Random, menu: list[Item]) -> str:
    if r.random() < 0.7:
        return ""
    return f'set fallback="{r.choice(["1", "0 1", " 1", "0x1", "2 1", _way(r, menu).replace(chr(34), "")])}"'


def _environment(r: random.Random, wanted: list[str]) -> bytes | None:
    """An environment block in one of the states that are seen; None where there is none."""
    lines = [f"saved_entry={_escaped(wanted[1])}\n"] if r.random() < 0.8 else []
    lines += [f"next_entry={_escaped(wanted[2])}\n"] if r.random() < 0.25 else []
    lines += [f"prev_saved_entry={_escaped(wanted[3])}\n"] if r.random() < 0.15 else []
    lines += [
        r.choice(["recordfail=1\n", "kernelopts=root=/dev/vda1 ro\n", "# WARNING: do not edit\n", "x=a\\\nb\n", "junk\n"])
    ]
    r.shuffle(lines)
    data = _SIGNATURE + "".join(lines).encode()
    whole = data.ljust(1024, b"#")
    match r.random():
        case x if x < 0.1:
            return None
        case x if x < 0.14:
            return b""
        case x if x < 0.18:
            return bytes(1024)
        case x if x < 0.24:
            return data[: r.randrange(len(data))]
        case x if x < 0.28:
            return whole[len(_SIGNATURE) :]
        case x if x < 0.32:
            return data
        case x if x < 0.35:
            return data.replace(b"\n", b"\r\n")
        case x if x < 0.38:
            return whole.ljust(4096, b"#")
    return whole


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\")
