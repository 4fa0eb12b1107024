# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of a module where it is installed: is it the right file, and will anything come between it and the kernel?

Rule: no new build of the module changes what `winner` and `modprobe` answer (model.ELSEWHERE): they have a fix of
their own. `origin` warns: such a module loads, but it is not what DKMS has registered. `contents` decides: of a file that was
changed after it was built no other check can say what a kernel would do with it.
"""

from __future__ import annotations

import os
import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from knetstatd.boot import kernel_parameters
from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.model import Check, Result
from knetstatd.formats import elf, module_file
from knetstatd.machine import host, initramfs, modprobe_conf
from knetstatd.machine.module_needs import Needs, Sure
from knetstatd.system import files
from knetstatd.verify import module_readings
from knetstatd.verify.module_readings import are_same

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from knetstatd.formats.modules_dep import Tables
    from knetstatd.machine.host import Origin, Rival
    from knetstatd.machine.modprobe_conf import Line, Rules
    from knetstatd.machine.signature_policy import Policy
    from knetstatd.verify.target_kernel import Target

_WEAK = "/weak-updates/"
_UNTOLD = "Take it off the command line (/etc/default/grub)"


def winner(tables: Tables, module: str, file: Path, origin: Origin | None) -> Check:
    """Which of the files of this name modprobe takes, and whether that is the right one."""
    if tables.builtin(module):
        why = "This kernel has one of that name built in, so that modprobe loads nothing"
        return Check("winner", Result.FAIL, os.fspath(file), "built in", why, "Do without the module, or without that kernel")
    if origin is not None and (rival := _rival(file, origin)) is not None and rival.guarded:
        # Were it built again, that package would be the one whose file is not installed, and so on for ever.
        why = f"{rival.package} makes a module of this name too, and the installed file is its: only one of the two can have it"
        fix = f"Remove the package that is not wanted, or run: dkms remove {rival.package} --all; delete its source in /usr/src"
        return Check("winner", Result.FAIL, os.fspath(origin.copy or ""), os.fspath(file), why, fix)
    added = [path for path in tables.added(module) if not _is_same(path, file)]
    shipped = [path for path in tables.shipped(module) if not _is_same(path, file)]
    if not added:
        hidden = f", before {names.clean(os.fspath(shipped[0]))}" if shipped else ""
        return Check("winner", Result.PASS, found=f"{file}{hidden}")
    loser = min(added)
    remove = f"Remove the one that is not wanted (dpkg -S or rpm -qf says whose it is), then run: depmod {tables.tree.name}"
    if tables.tree / "kernel" in file.parents:
        if _changed(loser) > _changed(tables.tree / "modules.dep"):
            why, fix = "depmod has not run since this file was installed", f"Run: depmod {tables.tree.name}"
            return Check("depmod", Result.FAIL, os.fspath(loser), os.fspath(file), why, fix)
        why = "depmod prefers the kernel's own module: see `search` and `override` in /etc/depmod.d"
        return Check("winner", Result.FAIL, os.fspath(loser), os.fspath(file), why, "Put `updates` before `built-in` there")
    if origin is not None and origin.copy is not None and not are_same(file, origin.copy):
        right = next((path for path in added if are_same(path, origin.copy)), None)
        if right is not None:
            why = "Another file of the same name is taken in the place of the one that DKMS installed"
            return Check("winner", Result.FAIL, os.fspath(right), os.fspath(file), why, remove)
    why = f"There is another file of the same name, which is not taken: {names.clean(os.fspath(loser))}"
    return Check("winner", Result.WARN, "one file", os.fspath(file), why, remove)


def origin(file: Path, known: Origin | None, kernel: str) -> Check:
    """Whether the file is what DKMS built of the source that is registered now."""
    if known is None or not known.installed or _WEAK in os.fspath(file):
        return Check("origin", Result.NOT_APPLICABLE, reason="It was not DKMS that installed it for this kernel")
    fix = f"Run: knetstatctl build {kernel}"
    if known.installed != known.registered:
        reason = "It is of another version than the one that is registered with DKMS"
        return Check("origin", Result.WARN, known.registered, known.installed, reason, fix)
    if known.copy is None:
        return Check("origin", Result.UNKNOWN, known.registered, "", "DKMS's own copy of it is gone", fix)
    if not are_same(file, known.copy):
        reason = "The installed file is not the one that DKMS built"
        if known.digest is not None and module_readings.has_contents(file, known.digest):
            reason = "DKMS's own copy of it is damaged"
        if (rival := _rival(file, known)) is not None:
            reason = f"The installed file is of {rival.package}, which makes a module of this name too"
            fix = fix if not rival.guarded else ""
        return Check("origin", Result.WARN, os.fspath(known.copy), os.fspath(file), reason, fix)
    if known.changed > host.written(known.copy):
        reason = "The source was changed after it was compiled"
        return Check("origin", Result.WARN, f"{known.registered}, as the source is now", "compiled before", reason, fix)
    return Check("origin", Result.PASS, known.registered, "the file that DKMS built")


def contents(file: Path, known: Origin | None, kernel: str, *, shipped: bool = False) -> Check:
    """Whether the file is, byte for byte, the one that dkms or we built: unpacked, and with its signature taken off.

    shipped: it is the kernel's own.
    """
    if known is not None and not known.registered and not shipped and _WEAK not in os.fspath(file):
        reason = "DKMS does not know the package, so that there is nothing to compare the file with"
        return Check("contents", Result.UNKNOWN, "the file that was built", os.fspath(file), reason)
    if known is None or not known.installed or _WEAK in os.fspath(file) or _rival(file, known) is not None:
        return Check("contents", Result.NOT_APPLICABLE, reason="There is nothing of DKMS's to compare it with")
    fix = f"Run: knetstatctl build {kernel}"
    if known.copy is None:
        reason = "DKMS's own copy of it is gone, so that there is nothing to compare it with"
        return Check("contents", Result.UNKNOWN, "the file that was built", os.fspath(file), reason, fix)
    if known.digest is not None:
        if module_readings.has_contents(file, known.digest):
            return Check("contents", Result.PASS, found="as they were published")
        both = " DKMS's copy is too." if are_same(file, known.copy) else ""
        reason = f"The file is damaged, or somebody has changed it: its contents are not what was published.{both}"
        return Check("contents", Result.FAIL, f"SHA-256 {known.digest.contents[:16]}", os.fspath(file), reason, fix)
    if are_same(file, known.copy):
        return Check("contents", Result.PASS, found="as in DKMS's copy")
    reason = "The file is damaged, or somebody has changed it: its contents are not those of DKMS's copy"
    return Check("contents", Result.FAIL, os.fspath(known.copy), os.fspath(file), reason, fix)


def _rival(file: Path, known: Origin) -> Rival | None:
    """The other package whose file the installed one is."""
    if not known.rivals or (known.copy is not None and are_same(file, known.copy)):
        return None
    return next((rival for rival in known.rivals if are_same(file, rival.copy)), None)


def is_replaced(tables: Tables, module: str, file: Path, known: Origin) -> bool:
    """Whether a file is the kernel's own, in whose place DKMS is to install another, which is nowhere."""
    if known.left or tables.added(module) or file not in tables.shipped(module):
        return False
    return known.copy is None or not are_same(file, known.copy)


# An `install` command that gives the module to the kernel after all.
_LOADS = re.compile(r"\b(?:modprobe\b.*\s(?:-i|--ignore-install)\b|insmod\s+\S)")


def _initcall(file: Path) -> str:
    """The name by which the kernel knows a module's init function, "" if it has none, or cannot be read."""
    try:
        with module_file.opened(file) as opened:
            return elf.Symbols(elf.Elf(opened.source, opened.end)).called("init_module")
    except KnetstatdError:
        return ""  # other checks say so


def refused(name: str, file: Path, policy: Policy) -> Check | None:
    """Why the kernel takes a module from nobody, None for no reason. name: the kernel's for it.  file: where it lies."""
    if name in policy.blacklist:
        return Check(
            "modprobe", Result.FAIL, "nothing against it", f"module_blacklist={name} on its command line",
            f"The kernel refuses it: 'Module {name} is blacklisted'", _UNTOLD,
        )  # fmt: skip
    if policy.initcalls and (called := _initcall(file)) in policy.initcalls:
        return Check(
            "modprobe", Result.FAIL, "nothing against it", f"initcall_blacklist={called} on its command line",
            "The kernel does not call its init function: 'Operation not permitted'", _UNTOLD,
        )  # fmt: skip
    return None


def kept_out(module: str, rules: Rules, *, inserted: bool = False) -> Check | None:
    """What keeps modprobe from loading a module, even if another one needs it; None for nothing.

    module: its file's name.  inserted: modprobe inserts it itself, whatever its `install` line says (see module_needs).
    """
    if (install := modprobe_conf.command(rules, module)) is None or inserted:
        return None
    said, text = f"{install.where}: install {install.text}", install.text.partition("#")[0]
    if _LOADS.search(text):
        return Check("modprobe", Result.WARN, "nothing against it", said, "Whether that command loads it is not known here")
    if "modprobe" in text or "insmod" in text:
        reason = "Whether that command loads it is not known here: it calls neither insmod nor modprobe --ignore-install"
        return Check("modprobe", Result.UNKNOWN, "nothing against it", said, reason, "Remove that line")
    reason = "modprobe runs that command and loads nothing"
    return Check("modprobe", Result.FAIL, "nothing against it", said, reason, "Remove that line")


# Of the types of parameters, those whose values are numbers: the smallest and the largest (kernel/params.c).
_NUMBERS = {
    "byte": (0, 0xFF), "short": (-(1 << 15), (1 << 15) - 1), "ushort": (0, 0xFFFF), "int": (-(1 << 31), (1 << 31) - 1),
    "uint": (0, (1 << 32) - 1), "hexint": (0, (1 << 32) - 1), "long": (-(1 << 63), (1 << 63) - 1), "ulong": (0, (1 << 64) - 1),
    "ullong": (0, (1 << 64) - 1),
}  # fmt: skip
_NUMBER = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]{1,32})|0([0-7]{1,32})|([0-9]|[1-9][0-9]{1,32}))")
_TRUTH = re.compile(r"[yY1nN0]|[oO][nNfF]")
# By which other letters kstrtobool() goes (true and false; enable and disable): since when for sure, and until when not.
_MORE_TRUTH = (("tTfF", "6.1", "5.11"), ("eEdD", "7.2", "6.13"))


def is_taken(kind: str, value: str | None, kernel: str) -> bool | None:
    """Whether a kernel takes a value for a parameter of a type, as lib/kstrtox.c reads it; None if that is not known.

    value: None for none.  Values of other types are taken. tests/vm/test_parameters.py asks the kernels.
    """
    of, _, each = kind.partition("array of ")
    if each and not of and value is not None:
        answers = [is_taken(each, part, kernel) for part in value.split(",")]
        return False if False in answers else None if None in answers else True
    if value is None:  # only a bool may have none (parse_one())
        return not (each or kind in ("charp", "invbool", *_NUMBERS))
    if kind in ("bool", "invbool", "bint"):
        return True if _TRUTH.match(value) else _is_word_of_truth(value[:1], kernel)
    if kind not in _NUMBERS:
        return True
    match, (smallest, largest) = _NUMBER.fullmatch(value), _NUMBERS[kind]
    if match is None or (match[1] == "-" and not smallest):
        return False
    number = int(match[2], 16) if match[2] else int(match[3], 8) if match[3] else int(match[4])
    return smallest <= (-number if match[1] == "-" else number) <= largest


def _is_word_of_truth(letter: str, kernel: str) -> bool | None:
    for letters, since, until in _MORE_TRUTH:
        if letter and letter in letters:
            release = names.version_key(kernel)
            return True if release >= names.version_key(since) else False if release < names.version_key(until) else None
    return False


def _words(line: Line) -> list[str]:
    return kernel_parameters.parameters(line.text)


def _options(module: str, rules: Rules, policy: Policy, parameters: Mapping[str, str], kernel: str) -> Check | None:
    """A value that modprobe hands to the module, and that the kernel refuses it for, or may; None for none."""
    told = [(line.where, word) for line in rules.options if line.module == module for word in _words(line)]
    told += [("its command line", word.partition(".")[2]) for word in policy.told if word.startswith(f"{module}.")]
    for where, word in told:
        name, equals, value = word.partition("=")
        taken = is_taken(parameters.get(name, ""), value if equals else None, kernel)
        if taken is None:
            reason = f"Whether this kernel takes '{names.clean(value, 100)}' for a bool is not known here"
            return Check(
                "modprobe", Result.UNKNOWN, "0 or 1", f"{where}: {names.clean(word, 100)}", reason, "Write 0 or 1 there"
            )
        if not taken:
            said = f"{where}: {names.clean(word, 100)}"
            reason = f"The kernel refuses it: '`{names.clean(value, 100)}' invalid for parameter `{names.clean(name, 100)}''"
            return Check("modprobe", Result.FAIL, f"a value of type {parameters[name]}", said, reason, "Correct it there")
    return None


def loaded_before(root: Path, facts: Target, rules: Rules, policy: Policy, module: str, file: Path) -> Sure | None:
    """How sure it is that a module is loaded before sysctl.d closes the kernel; None if nothing loads it before, or closes it.

    What modules-load.d names brings along what it needs. What an initrd holds, that may load; and it may close the kernel.
    """
    if not rules.closed:
        return None
    needs = Needs(root, facts.tables, rules, module)
    surest = Sure.POSSIBLE if initramfs.has_sysctl(root) else Sure.CERTAIN
    lines = () if policy.mask or rules.mask else rules.load
    ways = [min(way, surest) for line in lines if (way := needs.sure(line.module))]
    if initramfs.wanted(root, facts.kernel, facts.tables, rules, module, file, lambda _: False):
        ways.append(Sure.POSSIBLE)
    return max(ways, default=None)


def configuration(
    module: str,
    file: Path,
    rules: Rules,
    policy: Policy,
    inner: str = "",
    parameters: Mapping[str, str] = MappingProxyType({}),
    *,
    inserted: bool = False,
    kernel: str = "",
    before: Sure | None = None,
) -> Check:
    """Whether modprobe, asked for the module, gives it to the kernel, and the kernel takes it from there.

    file: where it lies.  inner: the kernel's name for it, if that is another.  inserted: as for `kept_out`.  parameters: the
    module's, each with its type, on the kernel of that release.  before: see `loaded_before`.
    """

    def fail(line: str, reason: str, fix: str) -> Check:
        return Check("modprobe", Result.FAIL, "nothing against it", line, reason, fix)

    if policy.closed:
        return fail(
            f"{policy.closed} on its command line",
            "The kernel takes no module at all",
            _UNTOLD,
        )
    if rules.closed and before is not Sure.CERTAIN:
        line, fix = rules.closed[0], "Remove that line"
        if modprobe_conf.find(rules.load, module) is None:
            fix += f", or: echo {module} >/etc/modules-load.d/{module}.conf"
        more = "whether this one is loaded before is not known" if before else "nothing loads this one before"
        check = fail(f"{line.where}: {line.text}", f"The kernel takes no module once that is set, and {more}", fix)
        return check._replace(result=Result.UNKNOWN) if before else check
    if (against := refused(inner or module, file, policy)) is not None:
        return against
    if (alias := modprobe_conf.redirect(rules, module)) is not None:
        return fail(
            f"{alias.where}: alias {names.clean(alias.module)} {alias.text}",
            f"modprobe loads {alias.text} in its place",
            "Remove that line",
        )
    if (against := kept_out(module, rules, inserted=inserted)) is not None:
        return against
    if (wrong := _options(module, rules, policy, parameters, kernel)) is not None:
        return wrong
    wanted = modprobe_conf.find(rules.load, module)
    if wanted is not None and (mask := policy.mask or rules.mask):
        return fail(mask, f"{wanted.where} wants it loaded at boot, which this prevents", "Remove one of the two")
    blacklisted = modprobe_conf.find(rules.blacklist, module)
    denied = f"{blacklisted.where}: blacklist" if blacklisted else "modprobe.blacklist= on its command line"
    if blacklisted is None and module not in policy.modprobe_blacklist:
        return Check("modprobe", Result.PASS, found="nothing against it")
    if wanted is not None:
        return fail(denied, f"{wanted.where} wants it loaded at boot, which this prevents", "Remove one of the two lines")
    reason = "Neither udev nor the daemon loads it; `modprobe` by its name does"
    fix = "Remove that line if it is to be loaded at boot"
    return Check("modprobe", Result.WARN, "nothing against it", denied, reason, fix)


def boot(name: str, module: module_file.Module, rules: Rules) -> Check:
    """What will load it, by its file's name or one of its aliases, when the kernel boots."""
    if (line := modprobe_conf.find(rules.load, name)) is not None:
        return Check("boot", Result.PASS, found=f"loaded at boot: {line.where}")
    if module.aliases:
        return Check("boot", Result.PASS, found=f"loaded when it is asked for: {names.clean(module.aliases[0], 80)}")
    reason = "Nothing loads it by itself but knetstatd, if its configuration names it in `load`; see modules-load.d(5)"
    return Check("boot", Result.NOT_APPLICABLE, reason=reason)


def _is_same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _changed(path: Path) -> int:
    seen = files.identity(path)
    return seen.ctime_ns if seen else 0
