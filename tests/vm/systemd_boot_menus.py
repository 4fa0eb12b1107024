# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries for systemd-boot as kernel-install makes them and as people change them: random, and the same for the same seed.

menu = systemd_boot_menus.menu(seed)        # .files on the ESP, without images; .images: path -> sections; .variables
"""

from __future__ import annotations

import random
from typing import NamedTuple

RELEASES = ("6.12.117+deb12-cloud-amd64", "6.1.0-57-cloud-amd64", "6.1.0-9-amd64", "7.3.0-rc2-amd64", "6.1.0-57-amd64",
            "5.10.0-1-amd64")  # fmt: skip
_MACHINES = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210")


class Menu(NamedTuple):
    """files: loader.conf, entries, initrds.  images: the sections of each; its path is its name.  variables: EFI's."""

    files: dict[str, bytes]
    images: dict[str, dict[str, bytes]]
    variables: dict[str, str]


def menu(seed: int) -> Menu:
    """One machine's ESP."""
    r = random.Random(seed)
    files: dict[str, bytes] = {}
    images: dict[str, dict[str, bytes]] = {}
    names = []
    counts = r.random() < 0.5
    keyed = r.random() < 0.7
    for release in r.sample(RELEASES, r.randint(1, 5)):
        token = r.choice([*_MACHINES, "debian", "debian", "Debian"])
        counter = r.choice(["", "+3", "+2-1", "+0-3", "+0", "+1-2", "+x"]) if counts else ""
        if r.random() < 0.3:
            name = r.choice([f"{token}-{release}{counter}.efi", f"linux-{release}{counter}.efi"])
            text = "".join(
                f"{key}={r.choice(values)}\n"
                for key, values in (
                    ("ID", ["debian", "arch", '"debian"']), ("VERSION_ID", ["12", "13"]),
                    ("PRETTY_NAME", ["'Debian GNU/Linux'"]),
                    ("IMAGE_ID", ["image"]), ("IMAGE_VERSION", [release, "7"]), ("BUILD_ID", ["rolling"]),
                    ("VERSION", ["12 (x)"]),
                ) if r.random() < (0.3 if key.startswith(("IMAGE", "BUILD")) else 0.8)
            )  # fmt: skip
            sections = {".osrel": text.encode(), ".uname": release.encode(), ".cmdline": b"quiet", ".linux": b"x"}
            if r.random() < 0.1:
                del sections[".osrel"]
            images[f"EFI/Linux/{name}"] = sections
        else:
            name = r.choice(
                [f"{token}-{release}", f"{token}-{release}", release, f"a_{release}", r.choice(["arch", "zz", "linux"])]
            )
            name += f"{counter}.conf"
            image = f"{token}/{release}/linux"
            lines = [f"title {r.choice(['Debian', 'Debian GNU/Linux 12', release])}", f"linux {r.choice(['/', ''])}{image}",
                     "options root=/dev/vda1 ro", f"initrd /{token}/{release}/initrd.img-{release}", "# a comment"]  # fmt: skip
            lines += [f"version {r.choice([release, release, '1', '12~rc1', '6.1_57'])}"] if r.random() < 0.8 else []
            lines += [f"sort-key {r.choice(['debian', 'debian', 'arch', 'Debian'])}"] if keyed and r.random() < 0.85 else []
            lines += [f"machine-id {token}"] if r.random() < 0.6 else []
            lines += [r.choice(["architecture x64", "architecture X64", "architecture aa64"])] if r.random() < 0.15 else []
            lines += (
                [r.choice(["sort-key\tdebian", "sort-key ", "version 99", "  title again", "beep"])] if r.random() < 0.2 else []
            )
            r.shuffle(lines)
            files[f"loader/entries/{name}"] = "\n".join(lines).encode() + b"\n"
            # Without the initrd that it names, systemd-boot does not start an entry.
            files[f"{token}/{release}/initrd.img-{release}"] = b"initrd"
            if r.random() < 0.9:
                images[image] = {}
        names.append(name)
    if not images:
        return menu(seed + 100_000)
    loader = [f"timeout {r.choice(['0', '0', '0', '1', 'menu-hidden'])}", "console-mode keep", "# default nothing", "editor no"]
    if r.random() < 0.75:
        loader.append(f"default{r.choice([' ', '  ', chr(9)])}{_pattern(r, names, saved=True)}")
    r.shuffle(loader)
    if r.random() < 0.95:
        files["loader/loader.conf"] = "\n".join(loader).encode() + b"\n"
    variables = {
        f"LoaderEntry{name}": _pattern(r, names, saved=name == "Default")
        for name, often in (("OneShot", 0.2), ("Default", 0.3), ("LastBooted", 0.5))
        if r.random() < often
    }
    return Menu(files, images, variables)


def _pattern(r: random.Random, names: list[str], *, saved: bool) -> str:
    """A default as people write it: a name, a pattern, something that fits nothing."""
    name = r.choice(names)
    stem = name.rpartition(".")[0]
    bare = stem.partition("+")[0] if "+deb" not in stem else stem
    found = [name, name, bare, stem, bare + ".conf", bare + "*", bare + "*.conf", stem[: len(stem) // 2] + "*",
    "*" + stem[-8:] + "*",
             "debian-*", "*6.1*", "*", "?" + name[1:], f"[{name[0]}x]{name[1:]}", name.upper(), "[a-f0-9]*", "*.efi",
             "*.conf", "gone", "",
             "*[0-9]-cloud*", "*-amd64+*", "\\" + name, "@current", f"{name} "]  # fmt: skip
    return r.choice([*found, "@saved", "@saved", "@Saved"] if saved else found)
