# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files a kernel's initrd is made of, and which modules this machine's own configuration puts into a new one.

Rule 1: the boot entry decides which files they are. Only if no entry can be read, the usual place does.
Rule 2: nothing is run. A hook in shell is read for what it says in plain words; a line that depends on a condition counts as
        likely, and a name in a hook that adds what a variable says as possible.

Sources: initramfs-tools 0.142 and 0.148, mkinitramfs(8), hook-functions, initramfs-tools(7); dracut.conf(5).
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot import bootloader
from knetstatd.core import names
from knetstatd.formats.shell_assignments import assigned
from knetstatd.machine import paths, root_drivers
from knetstatd.machine.module_needs import Needs, Sure
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from knetstatd.formats.modules_dep import Tables
    from knetstatd.machine.modprobe_conf import Rules

_ETC, _SHARE = "/etc/initramfs-tools", "/usr/share/initramfs-tools"
_HOOKS = (f"{_SHARE}/hooks", f"{_ETC}/hooks")
_LISTS = (f"{_ETC}/modules", f"{_SHARE}/modules.d")
_DRACUT = ("/usr/lib/dracut/dracut.conf.d", "/etc/dracut.conf", "/etc/dracut.conf.d")
_MAKERS = ("/usr/sbin/mkinitramfs", "/usr/bin/dracut", "/usr/sbin/dracut")
_SETTINGS = (f"{_SHARE}/conf.d", f"{_ETC}/conf.d", f"{_SHARE}/conf-hooks.d")
_FUNCTIONS = f"{_SHARE}/hook-functions"
_MOST = re.compile(r'modules="\$modules ([^"=]*)"')  # auto_add_modules()
_SCRIPT = re.compile(r"[A-Za-z0-9._-]+")  # run-parts(8); set_initlist() in hook-functions
_ADDS = re.compile(r"^(.*?)\b(manual_add_modules|force_load|copy_modules_dir)[ \t]+([^;&|)\n]*)", re.MULTILINE)
_LIMIT = 1 << 18


class Wanted(NamedTuple):
    """Why a new initrd would hold a module. where: the file that says so, or what the machine needs it for.

    configured: nothing has to be said to who makes it; if not, the machine needs a module that no new initrd would hold.
    """

    where: str
    sure: Sure
    configured: bool = True


class Files(NamedTuple):
    """The files of a kernel's initrd. named: whether a boot entry names them; without one there may be none.

    hidden: those about which nothing may be known here.
    """

    paths: tuple[Path, ...]
    named: bool
    hidden: tuple[Path, ...] = ()


@once
def initrds(root: Path, kernel: str) -> Files:
    """What the boot entry of `kernel` loads, whether it is there or not; else what lies in the usual place."""
    entry = bootloader.initrds(root, kernel)
    if entry is None:
        usual = paths.initrd(root, kernel)
        return Files((usual,) if usual else (), named=False)
    return Files(entry, named=True, hidden=tuple(path for path in entry if _there(path) is None))


def _there(path: Path) -> bool | None:
    """Whether a file is there; None if that may not be known."""
    try:
        os.stat(path)
    except PermissionError:
        return None
    except (OSError, ValueError):
        return False
    return True


def is_made_here(root: Path) -> bool:
    """Whether this machine makes initrds, so that a kernel without one lacks it."""
    return any(files.inside(root, maker).exists() for maker in _MAKERS)


def has_sysctl(root: Path) -> bool:
    """Whether an initrd that is made here sets what sysctl.d says: one of dracut's does (its module systemd-sysctl)."""
    return is_made_here(root) and not files.inside(root, _MAKERS[0]).exists()


def inputs(root: Path, kernel: str) -> tuple[Path, ...]:
    """The files on which the answers depend; also those that do not exist."""
    configured = (files.inside(root, place) for place in (*_LISTS, *_HOOKS, *_DRACUT, *_SETTINGS, _FUNCTIONS, "/etc/fstab"))
    read = (*_lists(root), *_scripts(root), *_settings(root), *_dracut_files(root))
    return (*initrds(root, kernel).paths, *configured, *read)


def commands(root: Path, kernel: str) -> list[list[str]]:
    """The programs that make a kernel's initrd anew on this distribution."""
    place = next((path for path in reversed(initrds(root, kernel).paths)), None)
    if not files.inside(root, "/usr/sbin/update-initramfs").exists():
        name = f"/{place.relative_to(root)}" if place else f"/boot/initramfs-{kernel}.img"
        return [["dracut", "--force", name, kernel]]
    # -u refuses if there is none.
    usual = files.inside(root, f"/boot/initrd.img-{kernel}")
    made = [["update-initramfs", "-u" if usual.exists() else "-c", "-k", kernel]]
    # A boot loader's own copy is made by a hook of that, if there is one (kernel-install(8)).
    outside = place is not None and place.parent != usual.parent
    if outside and not files.names(files.inside(root, "/etc/initramfs/post-update.d")):
        made.append(["kernel-install", "add", kernel, f"/boot/vmlinuz-{kernel}"])
    return made


def fix(root: Path, kernel: str, add: str = "") -> str:
    """The same as a sentence. add: a module that is to be listed first."""
    listed = [f"echo {shlex.quote(add)} >>{_LISTS[0]}"] if add else []
    return f"Run: {' && '.join([*listed, *map(' '.join, commands(root, kernel))])}"


def wanted(
    root: Path, kernel: str, tables: Tables, rules: Rules, module: str, file: Path, holds: Callable[[str], bool]
) -> Wanted | None:
    """Why a new initrd of `kernel` would hold a module, by the surest reason; None if nothing says so.

    file: its file.  holds: whether the initrd that there is has a module.
    """
    needs = Needs(root, tables, rules, module)
    reasons = [*_named(root, kernel), *_of_module(root, module, _below(tables.tree, file))]
    # What the initrd has, a new one would have too.
    reasons += [(line.module, Wanted(line.where, Sure.CERTAIN)) for line in needs.soft if holds(line.module)]
    best: Wanted | None = None
    for name, why in reasons:
        if sure := needs.sure(name):
            where = why.where if name == module else f"{why.where}, for {name} which brings it along"
            if best is None or min(why.sure, sure) > best.sure:
                best = why._replace(where=where, sure=min(why.sure, sure))
    return best


def _below(tree: Path, file: Path) -> str:
    return os.fspath(file.relative_to(tree)) if tree in file.parents else ""


@once
def _named(root: Path, kernel: str) -> tuple[tuple[str, Wanted], ...]:
    """Modules that a new initrd holds by their names, each with why."""
    return tuple(_by_name(root, kernel))


def _by_name(root: Path, kernel: str) -> Iterator[tuple[str, Wanted]]:
    yield from _listed(root)
    for hook in (_hook(root, path) for path in _scripts(root)):
        for command, words, sure in hook.adds:
            for word in {"copy_modules_dir": (), "force_load": words[:1]}.get(command, words):
                yield names.canonical(word), Wanted(hook.where, sure)
    for key, words, _ in _dracut(root):
        yield from ((names.canonical(word), Wanted(f"{key} in dracut.conf", Sure.CERTAIN)) for word in words)
    chosen = _chosen(root)
    if chosen not in ("list", "dep"):
        yield from ((name, Wanted(f"MODULES={chosen}", Sure.LIKELY)) for name in _most(root))
    for name, why in root_drivers.needed(root, kernel):
        yield names.canonical(name), Wanted(why, Sure.CERTAIN, configured=chosen in ("", "dep"))


def _of_module(root: Path, module: str, place: str) -> Iterator[tuple[str, Wanted]]:
    """Why it may hold the module that is asked for, whose file lies at `place` in the tree, whatever names are given."""
    for hook in (_hook(root, path) for path in _scripts(root)):
        for command, words, sure in hook.adds:
            below = command == "copy_modules_dir" and words and place.startswith(f"{words[0].strip('/')}/")
            if below and not any(word in place for word in words[1:]):
                yield module, Wanted(hook.where, sure)
        if hook.vague and re.search(rf"(?<![\w-]){re.escape(module).replace('_', '[-_]')}(?![\w-])", hook.text):
            yield module, Wanted(hook.where, Sure.POSSIBLE)
    for key, _, is_dynamic in _dracut(root):
        if is_dynamic:
            yield module, Wanted(f"{key} in dracut.conf", Sure.POSSIBLE)


@once
def _chosen(root: Path) -> str:
    """MODULES= of initramfs-tools' configuration: which modules an initrd has that nobody named; "" without mkinitramfs."""
    if not files.inside(root, _MAKERS[0]).exists():
        return ""
    return assigned(tuple(files.text(path, _LIMIT) or "" for path in _settings(root))).scalar("MODULES", "most")


@once
def _settings(root: Path) -> list[Path]:
    """The files of that configuration, in the order in which mkinitramfs reads them; one in /etc masks one of its name."""
    shared, own, hooks = (files.inside(root, place) for place in _SETTINGS)
    masks = files.names(own)
    return [
        files.inside(root, f"{_ETC}/initramfs.conf"), *(shared / name for name in files.names(shared) if name not in masks),
        *(own / name for name in masks), *(hooks / name for name in files.names(hooks)),
    ]  # fmt: skip


@once
def _lists(root: Path) -> list[Path]:
    """The lists of modules; with no mkinitramfs nobody reads them."""
    if not files.inside(root, _MAKERS[0]).exists():
        return []
    directory = files.inside(root, _LISTS[1])
    return [files.inside(root, _LISTS[0]), *(directory / name for name in files.names(directory))]


@once
def _listed(root: Path) -> tuple[tuple[str, Wanted], ...]:
    """The modules in these lists."""
    lines = [(path, line) for path in _lists(root) for line in (files.text(path, _LIMIT) or "").splitlines()]
    listed = [(path, line.split()[0]) for path, line in lines if line.strip() and not line.startswith("#")]
    return tuple((names.canonical(word), Wanted(_shown(root, path), Sure.CERTAIN)) for path, word in listed)


@once
def _most(root: Path) -> tuple[str, ...]:
    """The modules that mkinitramfs itself names for an initrd that fits most machines."""
    functions = files.text(files.inside(root, _FUNCTIONS), _LIMIT) or ""
    return tuple(names.canonical(word) for words in _MOST.findall(functions) for word in words.split())


@once
def _scripts(root: Path) -> list[Path]:
    """The hooks that mkinitramfs runs. One in /etc takes the place of one of the same name."""
    if not files.inside(root, _MAKERS[0]).exists():
        return []
    by_name: dict[str, Path] = {}
    for place in _HOOKS:
        directory = files.inside(root, place)
        for name in files.names(directory):
            if _SCRIPT.fullmatch(name) and os.access(path := directory / name, os.X_OK) and path.is_file():
                by_name[name] = path
    return list(by_name.values())


class _Hook(NamedTuple):
    """One of those scripts. where: its path, shown.  adds: command, words, and how sure.  vague: it adds more."""

    where: str
    text: str
    adds: tuple[tuple[str, tuple[str, ...], Sure], ...]
    vague: bool


@once
def _hook(root: Path, path: Path) -> _Hook:
    text = re.sub(r"\\\n", " ", files.text(path, _LIMIT) or "")
    text = re.sub(r"(?m)(?:^|(?<=\s))#.*$", "", text)
    adds, vague = [], ".ko" in text or "add_modules_from_file" in text
    for before, command, rest in _ADDS.findall(text):
        vague = vague or "$" in rest
        words = tuple(word.strip("\"'") for word in rest.split())
        adds.append((command, words, Sure.LIKELY if before else Sure.CERTAIN))
    return _Hook(_shown(root, path), text, tuple(adds), vague)


@once
def _dracut(root: Path) -> tuple[tuple[str, tuple[str, ...], bool], ...]:
    """What dracut's configuration adds: each setting, its modules, and whether a shell may add others."""
    if not any(files.inside(root, maker).exists() for maker in _MAKERS[1:]):
        return ()
    said = assigned(tuple(files.text(path, _LIMIT) or "" for path in _dracut_files(root)))
    settings = ("add_drivers", "force_drivers", "drivers")
    return tuple((key, tuple(said.scalar(key).split()), key in said.dynamic) for key in settings)


def _dracut_files(root: Path) -> Iterator[Path]:
    """The files of that configuration, in the order in which dracut reads them."""
    for place in _DRACUT:
        path = files.inside(root, place)
        yield from (path / name for name in files.names(path) if name.endswith(".conf")) if path.is_dir() else (path,)


def _shown(root: Path, path: Path) -> str:
    return names.clean(files.below(root, path), 120)
