# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatctl repair: shows what is stuck and exactly what would be done, asks, does it one by one, looks again after each.

Rules:

1. Nothing is done while a package transaction is open or a foreign dkms runs, and nothing without our lock.
2. A question may stand for hours. A plan made under the lock says what is done, and only if it is what was shown.
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError, UsageError
from knetstatd.core.model import Result
from knetstatd.diagnosis import build_log, uname_traps
from knetstatd.dkms import dkms_tree
from knetstatd.machine import busy
from knetstatd.repair import find, repairs
from knetstatd.state import attempts
from knetstatd.system import files, locks, process
from knetstatd.verdict import judge

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from knetstatd.verdict.observe import Machine


class How(enum.Enum):
    """How a repair ended."""

    DONE = "done"
    GONE = "not needed any more: it has gone by itself"
    RIGHT = "not needed: a plain dkms build comes out right"
    DECLINED = "declined"
    TO_DO = "to do"
    FAILED = "failed"

    @property
    def good(self) -> bool:
        """Whether nothing is left to repair."""
        return self in (How.DONE, How.GONE, How.RIGHT)


class Ending(NamedTuple):
    """One repair and how it ended. reason: why it failed."""

    repair: repairs.Repair
    how: How
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.how.value}: {self.reason}" if self.reason else self.how.value


_VERBS = {"Run": "run", "Delete": "delete", "Write": "write", "Prove": "prove", "Try": "try", "Advise": "advise"}


def lines(repair: repairs.Repair, number: int = 0) -> list[str]:
    """What a person reads before saying yes: all of it, word for word."""
    text = [f"{number}. {repair.what}" if number else repair.what, f"   because {names.clean(repair.why, 1000)}"]
    for act in repair.acts:
        match act:
            case repairs.Run():
                hold = f"  (meanwhile {repairs.HOLD} keeps dkms out of the hooks)" if act.hold else ""
                text.append(f"   run     {' '.join(act.argv)}{hold}")
            case repairs.Delete():
                text.append(f"   delete  {act.path}" + (f"  ({names.clean(act.holds)})" if act.holds else ""))
            case repairs.Write():
                text.append(f"   write   {act.path}")
                text += [f"           | {line}" for line in act.text.splitlines()]
            case repairs.Advise():
                text.append(f"   you     {act.text}")
            case repairs.Try():
                build = f"a plain dkms build {act.package}/{act.version} -k {act.kernel} in a private tree"
                text.append(f"   try     {build}; nothing is written if it is right")
            case repairs.Prove():
                text.append(f"   prove   by a plain dkms build {act.package}/{act.version} -k {act.kernel} in a private tree")
    return text


def command(
    arguments: argparse.Namespace, machine: Machine, kernels: Sequence[str], ours: Sequence[str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Runs the verb; returns the exit status and the JSON document. Text is printed unless JSON is asked for.

    kernels: the one that was named, none for all.  ours: how to start knetstatctl; this installation's own if it is None.
    """
    if not kernels and not arguments.all:
        raise UsageError("no kernel to boot next was found", fix="Name one, or: knetstatctl repair --all")
    kernel = kernels[0] if kernels else None
    if working := _working(machine):
        raise KnetstatdError(f"{working}: what is half done now may be whole in a moment", fix="Try again when it has ended")
    shown = not arguments.json
    first = find.plan(machine, kernel)
    done: dict[_Key, Ending] = {}
    if shown:
        print("\n".join(line for number, one in enumerate(first, 1) for line in lines(one, number)) or "Nothing to repair.")
    if first and not arguments.dry_run:
        _all(arguments, machine, kernel, first, done, shown, process.self_argv() if ours is None else ours)
    left = find.plan(machine, kernel) if done else first
    endings = [*done.values(), *(Ending(repair, How.TO_DO) for repair in left if _key(repair) not in done)]
    failed = not all(ending.how.good for ending in endings)
    return int(failed), {"schema": judge.SCHEMA, "repairs": [_json(ending) for ending in endings]}


_Key = tuple[str, str]


def _key(repair: repairs.Repair) -> _Key:
    """What makes a repair the same one in the next plan."""
    return repair.kind, repair.subject


def _json(ending: Ending) -> dict[str, Any]:
    acts = [{"act": _VERBS[type(act).__name__], **act._asdict()} for act in ending.repair.acts]
    return {**ending.repair._asdict(), "acts": acts, "outcome": str(ending)}


def _all(
    arguments: argparse.Namespace,
    machine: Machine,
    kernel: str | None,
    first: Sequence[repairs.Repair],
    done: dict[_Key, Ending],
    shown: bool,
    ours: Sequence[str],
) -> None:
    """Each repair once, in the plan's order; the plan is made anew after each, so a later one may change or fall away."""
    asks = sys.stdin.isatty() and shown
    if not arguments.yes and not asks:
        if shown:
            print("\nNothing was done: --yes does it without asking.")
        return
    if os.geteuid() != 0:
        raise KnetstatdError("repairing needs root", fix="Run: sudo knetstatctl repair")
    while todo := [one for one in find.plan(machine, kernel) if _key(one) not in done and not one.is_advice]:
        repair = todo[0]
        if arguments.yes and shown and repair not in first:
            print("\n" + "\n".join(lines(repair)))  # what an earlier one has made possible
        if not arguments.yes:
            print("\n" + "\n".join(lines(repair)))
            if not _agreed():
                done[_key(repair)] = Ending(repair, How.DECLINED)
                continue
        done[_key(repair)] = ending = _one(machine, kernel, repair, ours)
        if shown:
            print(f"{repair.what}: {ending}")


def _agreed() -> bool:
    try:
        return input("Do it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _one(machine: Machine, kernel: str | None, repair: repairs.Repair, argv: Sequence[str]) -> Ending:
    """Does one repair and looks whether it is gone."""

    def now() -> repairs.Repair | None:
        machine.refresh()
        return next((planned for planned in find.plan(machine, kernel) if _key(planned) == _key(repair)), None)

    def failed(reason: str) -> Ending:
        return Ending(repair, How.FAILED, reason)

    ours = any(isinstance(act, repairs.Run) and act.ours for act in repair.acts)
    try:
        if ours:
            carry_out(machine, repair, argv)
        else:
            with locks.locked(machine.places.build_lock, 3600.0):
                if working := _working(machine):
                    return failed(f"{working}; try again when it has ended")
                planned = now()
                if planned is None:
                    return Ending(repair, How.GONE)
                if planned.acts != repair.acts:
                    return failed("it is not what was shown any more; run repair again")
                carry_out(machine, repair, ())
    except KnetstatdError as e:
        left = now() if ours else repair
        if left is None and find.is_built(machine, repair):  # its status is that of the whole kernel
            return Ending(repair, How.DONE)
        return failed(left.why if left is not None and left.is_advice else str(e))
    if now():
        return failed("it was done, and the fault is still there")
    return Ending(repair, How.RIGHT if repair.kind == "override" and find.outcome(machine, repair.subject) == "" else How.DONE)


def _working(machine: Machine) -> str:
    """Who is at work on packages or in DKMS, "" for nobody."""
    other = busy.foreign_dkms(machine.root, os.getpid())
    return busy.package(machine.root) or (other.shown if other else "")


_HOUR = 3600.0


def carry_out(machine: Machine, repair: repairs.Repair, ours: Sequence[str], tick: Callable[[], None] | None = None) -> None:
    """Does one repair, under our lock or none. ours: how to start knetstatctl.

    Raises KnetstatdError with what a program said; takes back what it wrote if a proof fails.
    """
    written: list[Path] = []
    for act in repair.acts:
        match act:
            case repairs.Run():
                argv = [*ours, *act.argv[1:]] if act.ours else list(act.argv)
                more = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
                with _holding(machine.root) if act.hold else contextlib.nullcontext():
                    done = process.run(argv, timeout=_HOUR, env=process.environment(more=more, root=machine.root), tick=tick)
                if done.code:
                    said = "\n  ".join(build_log.last_lines(done.text, 8))
                    raise KnetstatdError(f"ended with {done.code}:\n  {said}", " ".join(act.argv))
            case repairs.Delete():
                _delete(machine.root, act.path)
            case repairs.Write():
                path = machine.root / act.path[1:]
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write(path, act.text.encode())
                written.append(path)
            case repairs.Try():
                with process.unwound():
                    wrong = _prove(machine, act, tick)
                _remember(machine, act.package, wrong)
                if not wrong:
                    return
            case repairs.Prove():
                try:
                    with process.unwound():
                        wrong = _prove(machine, act, tick)
                    if wrong:
                        raise KnetstatdError(f"a build with it is wrong, so it was taken back: {wrong}", os.fspath(written[0]))
                except BaseException:  # also what cannot be proven, because dkms is gone or somebody ends this
                    for path in written:
                        path.unlink()
                    raise
    if repair.kind == "override":
        for kernel in machine.kernels.kernels:
            attempts.forget(machine.places, kernel, repair.subject)


@contextlib.contextmanager
def _holding(root: Path) -> Iterator[None]:
    """Keeps dkms out of hooks; a switch that the administrator has set stays."""
    path = root / repairs.HOLD[1:]
    mine = not path.exists()
    if mine:
        files.write(path, repairs.HOLD_TEXT.encode())
    try:
        yield
    finally:
        if mine:
            path.unlink(missing_ok=True)


def _delete(root: Path, path: str) -> None:
    place, tree = root / path[1:], dkms_tree.tree(root)
    if path == repairs.HOLD:
        place.unlink()
        return
    if uname_traps.is_ours(root, path) and path.startswith("/etc/dkms/") and path.count("/") == 3:
        files.inside(root, path).unlink()
        return
    if not path.startswith((f"{files.below(root, tree)}/", "/lib/modules/")) or ".." in path.split("/"):
        raise AssertionError(path)
    if path.startswith("/lib/modules/"):
        place = files.inside(root, "/lib/modules") / path.removeprefix("/lib/modules/")
    try:
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    except OSError as e:
        raise KnetstatdError(f"cannot be deleted: {e.strerror}", path) from e
    parent = place.parent
    while parent.parent != tree and tree in parent.parent.parents:
        with contextlib.suppress(OSError):  # of a version or module that is gone, the empty directories go as well
            parent.rmdir()
        parent = parent.parent
    with contextlib.suppress(OSError):
        parent.rmdir() if parent.parent == tree else None


def _remember(machine: Machine, package: str, wrong: str) -> None:
    """Keeps how a plain build came out: the same is not tried again."""
    place = machine.places.plain(package)
    place.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(place, {"mark": find.trial(machine, package)[1], "wrong": wrong})


def _prove(machine: Machine, act: repairs.Prove | repairs.Try, tick: Callable[[], None] | None) -> str:
    """What is wrong with a plain build for a kernel, "" if nothing is."""
    with tempfile.TemporaryDirectory(prefix="knetstatd-repair-") as work:
        entry = Path(work) / "tree" / act.package / act.version
        entry.mkdir(parents=True)
        (entry / "source").symlink_to(os.path.realpath(dkms_tree.tree(machine.root) / act.package / act.version / "source"))
        argv = ["dkms", "build", "-m", act.package, "-v", act.version, "-k", act.kernel, "--dkmstree", f"{work}/tree"]
        env = process.environment(more={"sign_file": "/nonexistent"}, root=machine.root)
        done = process.run(argv, timeout=_HOUR, env=env, tick=tick)
        made = sorted(entry.glob(f"{act.kernel}/*/module/*.ko*"))
        if not made:
            return " ".join(build_log.last_lines(done.text, 2)) or "it made no module"
        for path in made:
            for check in machine.prove_file(machine.look(act.kernel), path).checks:
                if check.name == "release" and check.result is not Result.PASS:
                    return f"{path.name} is for {check.found}, not {act.kernel}"
    return ""
