# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel the boot loader will start, read from its files.

Rule 1: the answer is the loader's, not ours. It may name a kernel that has no module tree; that is said
        (`has_modules`), never quietly replaced by a kernel that has one.
Rule 2: where the loader cannot be understood, the newest installed kernel is taken, and `detail` says why.
Rule 3: nothing raises. A file that cannot be read is not there.

Sources: grub.py for GRUB; the UAPI Group's Boot Loader Specification (UAPI.1: entry files, sorting, boot counting);
systemd-boot(7), loader.conf(5) and systemd's Boot Loader Interface (the EFI variables).
"""

from __future__ import annotations

import fnmatch
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from knetstatd.formats import grub_cfg

_LOADER_GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_ESP = ("efi", "boot/efi", "boot")
_IMAGE = re.compile(r"(?:vmlinu[xz]|kernel|linux|[Ii]mage|bzImage)-(.+?)(?:\.efi)?(?:\.signed)?", re.DOTALL)
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_COUNTER = re.compile(r"\+([0-9]{1,6})(?:-[0-9]{1,6})?$")


class Next(NamedTuple):
    """The kernel that the next boot starts.

    source: what decided, e.g. "grub saved entry".  detail: the entry's title, and what was odd; may be empty.
    has_modules: whether the kernel is one of those installed; if not, the machine boots into a kernel without modules.
    """

    release: str
    source: str
    detail: str = ""
    has_modules: bool = True


def next_kernel(root: Path, installed: Sequence[str]) -> Next | None:
    """The kernel that the machine under `root` will boot next; None where no kernel is known at all.

    installed: the releases that have a module tree, in any order. Raises nothing: what cannot be read is not there.
    """
    newest = max(installed, key=names.version_key, default="")
    uses_systemd_boot = _efi_variable(root, "LoaderInfo").startswith("systemd-boot")
    loaders = (_systemd_boot, _grub) if uses_systemd_boot else (_grub, _systemd_boot)
    for loader in loaders:
        if (found := loader(root)) is None:
            continue
        image, source, detail = found
        release = _release(root, image, installed)
        if release and release in installed:
            return Next(release, source, detail)
        if release:
            return Next(release, source, f"{detail}; it has no modules in /lib/modules", has_modules=False)
        what = f"starts {names.show(image, 80)}, whose release is unknown" if image else "starts no Linux"
        return Next(newest, "newest installed", f"the {source} ({detail}) {what}") if newest else None
    return Next(newest, "newest installed") if newest else None


def command_lines(root: Path, kernel: str) -> list[str]:
    """The kernel command lines that the boot loaders' entries give to `kernel`; none where none of them can be read."""
    entries: list[tuple[str, str]] = []
    menu = _grub_menu(root)
    if menu is not None:
        from knetstatd.formats import grub_cfg

        entries += [(entry.image, entry.arguments) for entry in grub_cfg.flat(menu[0])]
    for place in ("boot", *_ESP[:2]):
        entries += [(entry.image, entry.options) for entry in _bls(root, f"/{place}/loader/entries")]
    return [arguments for image, arguments in entries if arguments and _release(root, image, [kernel]) == kernel]


def command_line(root: Path, kernel: str) -> str:
    """What `kernel` will be told when the boot loader starts it; where no entry names it, what the running one was told.

    The first entry of a kernel is the usual one, its recovery entry comes later. GRUB's variables are those that it saved.
    """
    found = command_lines(root, kernel)
    if not found:
        return (files.text(files.of_kernel(root, "/proc/cmdline"), 65536) or "").strip()
    saved: dict[str, str] = {}
    for directory in ("boot/grub", "boot/grub2"):
        block = files.text(files.inside(root, f"/{directory}/grubenv"), 4096) or ""
        saved |= dict(line.partition("=")[::2] for line in block.splitlines() if not line.startswith("#"))
    return _VARIABLE.sub(lambda match: saved.get(match[1], ""), found[0])


def inputs(root: Path) -> tuple[Path, ...]:
    """The files, and the directories of files, on which command lines depend; also those that do not exist."""
    grub = [files.inside(root, f"/boot/{name}/{file}") for name in ("grub", "grub2") for file in ("grub.cfg", "grubenv")]
    entries = [files.inside(root, f"/{d}/loader/entries") for d in ("boot", *_ESP)]
    return (*grub, *entries, *(place / name for place in entries for name in files.names(place)))


def _release(root: Path, image: str, installed: Sequence[str], depth: int = 0) -> str:
    """The kernel release that a boot image's path stands for; "" where it stands for none."""
    directory, _, name = image.rpartition("/")
    match = _IMAGE.fullmatch(name)
    candidate = match[1] if match else name.removesuffix(".efi")
    # Gentoo writes kernel-genkernel-ARCH-K, kernel-install writes MACHINE-K.efi; boot counting adds +N-M.
    for stem in (candidate, _COUNTER.sub("", candidate)):
        for release in sorted(installed, key=len, reverse=True):
            if stem == release or stem.endswith("-" + release):
                return release
    if match and names.is_kernel(candidate):
        return candidate
    # Arch: vmlinuz-linux is the kernel whose tree says `linux` in pkgbase.
    for release in installed if match else ():
        if (files.text(files.inside(root, f"/lib/modules/{release}/pkgbase"), 256) or "").strip() == candidate:
            return release
    # kernel-install's layout: /MACHINE/K/linux.
    if not match and names.is_kernel(parent := directory.rpartition("/")[2]):
        return parent
    # /vmlinuz or /boot/vmlinuz, a symbolic link to the image.
    for place in (root, files.inside(root, "/boot")):
        try:
            target = os.readlink(place / (image.partition(")")[2] if image.startswith("(") else image).lstrip("/"))
        except (OSError, ValueError):
            continue
        if depth < 4 and (release := _release(root, target, installed, depth + 1)):
            return release
    return ""


def _grub(root: Path) -> tuple[str, str, str] | None:
    """GRUB's choice as (image, source, detail); None where there is no GRUB menu."""
    found = _grub_menu(root)
    if found is None:
        return None
    from knetstatd.formats import grub_cfg

    menu, env, saved, script = found
    default = env.get("default") or "0"
    source = "grub default entry"
    for name, text in (("saved_entry", "grub saved entry"), ("next_entry", "grub next entry")):
        if saved.get(name) == default and name in script:
            source = text
    image, detail = grub_cfg.choose(menu, default)
    return image, source, detail


def _grub_menu(root: Path) -> tuple[list[grub_cfg.Entry], dict[str, str], dict[str, str], str] | None:
    """GRUB's menu, its variables, those that were saved, and the script; None where there is no menu."""
    from knetstatd.formats import grub_cfg  # large, and not every machine has GRUB

    for directory in ("/boot/grub", "/boot/grub2"):
        script = files.text(files.inside(root, f"{directory}/grub.cfg"), 4 << 20)
        if script is None:
            continue
        saved = grub_cfg.environment(files.text(files.inside(root, f"{directory}/grubenv"), 4096) or "")
        platform = "efi" if os.path.isdir(files.of_kernel(root, "/sys/firmware/efi")) else "pc"
        env = {"grub_platform": platform, "feature_menuentry_id": "y", "menuentry_id_option": "--id"} | saved
        # GRUB orders the entries by file name alone.
        bls = sorted(_bls(root, "/boot/loader/entries"), key=lambda e: names.version_key(e.id), reverse=True)
        menu = grub_cfg.menu(script, env, [grub_cfg.Entry(e.title, e.id, e.image, None, e.options) for e in bls])
        if menu:
            return menu, env, saved, script
    return None


class _BootEntry(NamedTuple):
    """An entry of the Boot Loader Specification. `id` is the file's name without .conf and without boot counting."""

    id: str
    title: str
    image: str
    version: str
    sort_key: str
    machine: str
    options: str
    bad: bool


def _bls(root: Path, directory: str) -> list[_BootEntry]:
    """The entry files of a directory, unsorted."""
    entries = []
    for name in files.names(files.inside(root, directory)):
        text = files.text(files.inside(root, f"{directory}/{name}"), 65536) if name.endswith(".conf") else None
        if text is None:
            continue
        fields: dict[str, str] = {}
        for line in text.splitlines():
            key, _, value = line.strip().replace("\t", " ").partition(" ")
            fields.setdefault(key, value.strip())
        image = fields.get("linux") or fields.get("uki") or fields.get("efi") or ""
        entries.append(_boot_entry(name.removesuffix(".conf"), image, fields))
    return entries


def _boot_entry(stem: str, image: str, fields: dict[str, str]) -> _BootEntry:
    count = _COUNTER.search(stem)
    return _BootEntry(
        stem[: count.start()] if count else stem,
        fields.get("title", ""),
        image,
        fields.get("version", "")[:256],
        fields.get("sort-key", ""),
        fields.get("machine-id", ""),
        fields.get("options", ""),
        count is not None and int(count[1]) == 0,
    )


def _sorted(entries: list[_BootEntry]) -> list[_BootEntry]:
    """The entries as the specification orders a menu: first the one to boot."""
    entries = sorted(entries, key=lambda e: names.version_key(e.id), reverse=True)
    keyed = sorted((e for e in entries if e.sort_key), key=lambda e: names.version_key(e.version), reverse=True)
    keyed.sort(key=lambda e: (e.sort_key, e.machine))
    return sorted([*keyed, *(e for e in entries if not e.sort_key)], key=lambda e: e.bad)


def _systemd_boot(root: Path) -> tuple[str, str, str] | None:
    """systemd-boot's choice as (image, source, detail); None where it has no entries."""
    esp = next((f"/{d}" for d in _ESP if os.path.exists(files.inside(root, f"/{d}/loader/loader.conf"))), "")
    esp = esp or next((f"/{d}" for d in _ESP if files.names(files.inside(root, f"/{d}/loader/entries"))), "/boot")
    found: dict[str, _BootEntry] = {}
    for place in (esp, "/boot"):
        images = [name for name in files.names(files.inside(root, f"{place}/EFI/Linux")) if name.endswith(".efi")]
        unified = [_boot_entry(name.removesuffix(".efi"), f"/EFI/Linux/{name}", {}) for name in images]
        for entry in _bls(root, f"{place}/loader/entries") + unified:
            found.setdefault(entry.id, entry)
    if not found:
        return None
    entries = _sorted(list(found.values()))
    settings = dict(
        line.replace("\t", " ").partition(" ")[::2]
        for line in (files.text(files.inside(root, f"{esp}/loader/loader.conf"), 65536) or "").splitlines()
    )
    default = settings.get("default", "").strip()
    if default == "@saved":
        default = _efi_variable(root, "LoaderEntryLastBooted")
    for pattern, source in (
        (_efi_variable(root, "LoaderEntryOneShot"), "systemd-boot one-shot entry"),
        (_efi_variable(root, "LoaderEntryDefault"), "systemd-boot default entry"),
        (default, "systemd-boot default entry"),
    ):
        wanted = pattern.lower().removesuffix(".conf").removesuffix(".efi")
        for entry in entries:
            if wanted and fnmatch.fnmatchcase(entry.id.lower(), wanted):
                return entry.image, source, names.clean(entry.title or entry.id, 120)
    entry = entries[0]
    return entry.image, "systemd-boot first entry", names.clean(entry.title or entry.id, 120)


def _efi_variable(root: Path, name: str) -> str:
    """A variable of the Boot Loader Interface: four bytes of attributes, then UTF-16 with a NUL. "" where unset."""
    try:
        data = files.read(files.of_kernel(root, f"/sys/firmware/efi/efivars/{name}-{_LOADER_GUID}"), 4096)
    except (OSError, KnetstatdError):
        return ""
    return data[4:].decode("utf-16-le", "replace").partition("\0")[0]


def parameter(word: str) -> str:
    """A word of the command line as the kernel compares it: in a name `-` is `_` (kernel/params.c, parameq())."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_") + equals + value
