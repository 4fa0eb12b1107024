# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the states that dkms and dpkg get stuck in and that no build cures, and what would be done about each, as data.

Rules:

1. `plan` only reads. It answers what is wrong, why it matters and exactly what would be done: programs, files, contents.
2. A new `plan` says whether a repair has helped: one that is still in it has failed.
3. A repair deletes only below dkms's tree, and below /lib/modules what no package brought. If no package manager can be
   asked, it deletes nothing there.
4. Half-configured packages have rules of their own (half_configured).

Sources: dkms(8); dkms 3.0.10 and 3.2.2, each state made and repaired by tests/container/test_repair.py; dpkg(1).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.model import Action, Artefact, Headers, KernelState, Why
from knetstatd.diagnosis import uname_traps
from knetstatd.dkms import dkms_tree
from knetstatd.machine import dpkg_status, kernels
from knetstatd.repair import half_configured
from knetstatd.repair.repairs import HOLD, HOLD_TEXT, Advise, Delete, Prove, Repair, Run, Try, Write
from knetstatd.state import attempts
from knetstatd.system import documents, files, process
from knetstatd.verdict import judge
from knetstatd.verify import originals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from knetstatd.verdict.observe import Machine


def plan(machine: Machine, kernel: str | None) -> tuple[Repair, ...]:
    """All that can be repaired, in the order in which it is to be done. kernel: only what concerns it; None for everything."""
    return (
        *_held(machine),
        *_sources(machine),
        *_unregistered(machine),
        *_tree(machine, kernel),
        *_originals(machine, kernel),
        *_stale_overrides(machine),
        *_overrides(machine),
        *_tables(machine, kernel),
        *_builds(machine, kernel),
        *half_configured.find(machine, kernel),
        *_orphans(machine, kernel),
    )


def _held(machine: Machine) -> Iterator[Repair]:
    """A run of ours was killed before it could take its switch back."""
    if files.text(machine.root / HOLD[1:], 4096) == HOLD_TEXT:
        yield Repair("hold", HOLD, "let dkms build in hooks again", "a repair was killed", (Delete(HOLD, "ours"),))


def _registered(machine: Machine) -> Iterator[tuple[dkms_tree.Package, dkms_tree.Version]]:
    for package in dkms_tree.registered(machine.root).packages.values():
        for version in package.versions:
            yield package, version


def _sources(machine: Machine) -> Iterator[Repair]:
    """Registered versions without a source. One of them stops `dkms autoinstall` for all modules (3.0.10, exit code 4)."""
    for package, version in _registered(machine):
        if not version.broken or os.path.isfile(version.source / "dkms.conf"):  # there, but not for our services
            continue
        title = f"{package.name}/{version.version}"
        source = f"/usr/src/{package.name}-{version.version}/dkms.conf"
        why = f"{version.broken}; with some versions of dkms, one such entry keeps a kernel's hook from building any module"
        owner = dpkg_status.owners(machine.root, [source]).get(source, "")
        if owner:
            acts: tuple[Run | Delete, ...] = (Run(("apt-get", "install", "--reinstall", "-y", owner)),)
            yield Repair("source", title, f"bring back the source of {title}, which package {owner} owns", why, acts)
            continue
        tree = f"{files.below(machine.root, dkms_tree.tree(machine.root))}/{package.name}"
        marks = [f"{tree}/kernel-{b.kernel}-{b.arch}" for b in version.builds if b.installed]
        acts = (*map(Delete, marks), Delete(f"{tree}/{version.version}", "dkms's entry; modules in /lib/modules stay"))
        yield Repair("source", title, f"take {title} out of dkms: its source is gone, and no package brings it", why, acts)


def _unregistered(machine: Machine) -> Iterator[Repair]:
    """Guarded packages that are not in dkms's tree: its hook drops them with the last kernel that has a build of them."""
    for name in machine.packages():
        why = "dkms does not know it, so no kernel gets its modules"
        if (package := machine.missing.sources.get(name)) is not None and not package.highest.broken:
            title = f"{name}/{package.highest.version}"
            yield Repair("register", title, f"register {title} with dkms again", why, (Run(("dkms", "add", title)),))
        elif (orphan := machine.missing.orphans.get(name)) is not None:
            acts = (Run(("apt-get", "install", "--reinstall", "-y", orphan.owner)),)
            yield Repair("register", name, f"bring back {name}, which package {orphan.owner} owns", why, acts)


def _tree(machine: Machine, kernel: str | None) -> Iterator[Repair]:
    """Directories in dkms's tree that dkms itself never gets past or rid of."""
    there = set(machine.kernels.kernels)
    for package, version in _registered(machine):
        title = f"{package.name}/{version.version}"
        tree = f"{files.below(machine.root, dkms_tree.tree(machine.root))}/{package.name}"
        dead: set[str] = set()
        for build in version.builds:
            place = f"{tree}/{version.version}/{build.kernel}"
            if kernel not in (None, build.kernel) or version.broken or place in dead:
                continue
            if there and build.kernel not in there and not os.path.lexists(machine.root / "lib/modules" / build.kernel):
                dead.add(place)
                mine = [b for b in version.builds if b.kernel == build.kernel and b.installed]
                marks = [f"{tree}/kernel-{b.kernel}-{b.arch}" for b in mine]
                original = f"{tree}/original_module/{build.kernel}"
                marks += [original] if os.path.isdir(machine.root / original[1:]) else []
                acts = [Delete(place, "what was built"), *map(Delete, marks)]
                what = f"delete what dkms keeps of {title} for {build.kernel}"
                yield Repair("dead-kernel", place, what, f"there is no /lib/modules/{build.kernel}", tuple(acts))
            elif build.stuck:
                what = f"delete the half-made build of {title} for {build.kernel}"
                why = "dkms takes it for a build, finds no module in it, and refuses every other, also with --force"
                yield Repair("stuck", place, what, why, (Delete(f"{place}/{build.arch}"),))
        for path in version.leftovers:
            if kernel in (None, path.parent.name):
                shown = files.below(machine.root, path)
                yield Repair("leftover", shown, "delete what a killed dkms left", "nothing uses it", (Delete(shown),))


def _originals(machine: Machine, kernel: str | None) -> Iterator[Repair]:
    """What is kept as an original, or was put back as one, and is no whole module of that kernel."""
    for one in originals.unfit(machine.root):
        if kernel in (None, one.kernel):
            shown = [files.below(machine.root, path) for path in one.paths]
            what = f"delete {names.clean(shown[0])}, which dkms keeps as an original module of {one.kernel}"
            why = f"{one.reason}; `dkms remove` would put it into /lib/modules"
            yield Repair("original", shown[0], what, why, tuple(map(Delete, shown)))
    for release in machine.kernels.kernels:
        place = files.inside(machine.root, f"/lib/modules/{release}") / "updates/dkms"
        theirs = {names.canonical(module) for name in machine.registered() for module in machine.made(release, name)}
        for name in files.names(place) if kernel in (None, release) else ():
            module, path = names.module_of(name), f"/lib/modules/{release}/updates/dkms/{name}"
            reason = originals.fault(place / name, release) if module and names.canonical(module) not in theirs else ""
            if reason and not _owned(machine.root, [path]):
                what, why = f"delete {names.clean(path)}", f"{reason}, and it is of no package that dkms knows"
                yield Repair("original", path, what, why, (Delete(path), Run(("depmod", release))))


def cure(machine: Machine, package: str) -> tuple[tuple[uname_traps.RunningKernelRead, ...], uname_traps.Override | None]:
    """The lines of a guarded module that decide for the running kernel in a build by dkms, and the override that cures them."""
    known = dkms_tree.package(machine.root, package)
    if known is None or known.highest.broken:
        return (), None
    conf = dkms_tree.conf(machine.root, package, known.highest)
    passed = {name for make in conf.make for name, _ in make.variables}
    lines = uname_traps.active(conf, uname_traps.reads(known.highest.source, passed))
    return lines, uname_traps.override(package, known.highest.version, conf, lines, known.highest.source) if lines else None


def trial(machine: Machine, package: str) -> tuple[str, str]:
    """A kernel that does not run, to try a plain build of a package for; and what a trial is remembered by. "" for none."""
    known = dkms_tree.package(machine.root, package)
    usable = [k for k in machine.kernels.kernels if kernels.headers(machine.root, k).state is Headers.COMPLETE]
    other = next((k for k in reversed(usable) if k != machine.running), "")
    if known is None or not other:
        return "", ""
    headers = kernels.headers(machine.root, other).path
    return other, machine.fingerprint(other, package, known.highest.source, headers)


def outcome(machine: Machine, package: str) -> str | None:
    """What was wrong with a plain build of a package, "" if nothing was; None if none was tried with what there is now."""
    document = documents.read(machine.places.plain(package))
    try:
        known = document is not None and document.text("mark") == trial(machine, package)[1]
        return document.text("wrong") if document is not None and known else None
    except documents.Malformed:
        return None


def _stale_overrides(machine: Machine) -> Iterator[Repair]:
    """Overrides of ours for a version that is not there any more, or, as they once were, for whatever version comes."""
    current = {f"{package.name}-{package.highest.version}.conf" for package, _ in _registered(machine)}
    for name in files.names(files.inside(machine.root, "/etc/dkms")):
        path = f"/etc/dkms/{name}"
        if name.endswith(".conf") and name not in current and uname_traps.is_ours(machine.root, path):
            what, acts = f"delete {path}, which repair wrote for another version", (Delete(path, "ours"),)
            why = "a version that it was not made for may be compiled wrongly, or not at all, because of it"
            yield Repair("stale-override", path, what, why, acts)


def _overrides(machine: Machine) -> Iterator[Repair]:
    """Guarded modules that any dkms but ours compiles for the kernel that runs; that it does is tried before."""
    for package in machine.packages():
        if not names.is_package(package):
            continue
        lines, override = cure(machine, package)
        known = dkms_tree.package(machine.root, package)
        if override is None or known is None or os.path.lexists(machine.root / override.path[1:]):
            continue
        other, _ = trial(machine, package)
        if not other or outcome(machine, package) == "":
            continue  # nothing could prove it, or a plain build is right
        version = known.highest.version
        acts = (Try(package, version, other), Write(override.path, override.text), Prove(package, version, other))
        why = f"{lines[0].file} line {lines[0].line} asks for the running kernel: a kernel's hook may build for the wrong one"
        yield Repair("override", package, f"let dkms build {package} for the kernel that it is asked for", why, acts)


def _tables(machine: Machine, kernel: str | None) -> Iterator[Repair]:
    """Kernels whose modprobe does not find a module that dkms has put there: depmod never ran to its end."""
    for release in machine.kernels.kernels:
        if kernel not in (None, release) or machine.state_of(release) is not KernelState.BOOTABLE:
            continue
        tree = files.inside(machine.root, f"/lib/modules/{release}")
        table = files.text(tree / "modules.dep", 32 << 20)
        missing = [] if table is None else [
            name for name in _files(tree / "updates", tree)
            if (module := names.module_of(os.path.basename(name))) and os.path.isfile(tree / name)
            and f"/{module}.ko" not in table
        ]  # fmt: skip
        if missing:
            why = f"modprobe does not find {', '.join(missing[:3])}: depmod was never run to its end after it was put there"
            yield Repair("depmod", release, f"list the modules of {release} again", why, (Run(("depmod", release)),))


def _files(directory: Path, base: Path) -> list[str]:
    """All files below a directory, relative to `base`."""
    paths = (os.path.join(where, name) for where, _, names_ in os.walk(directory) for name in sorted(names_))
    return [os.path.relpath(path, base) for path in paths]


def _guarded(machine: Machine, kernel: str | None) -> list[str]:
    wanted = machine.wanted() if kernel is None else {kernel}
    return [k for k in machine.kernels.kernels if k in wanted and machine.state_of(k) is KernelState.BOOTABLE]


def _builds(machine: Machine, kernel: str | None) -> Iterator[Repair]:
    """Guarded modules that are missing or wrong. What can be built is: whatever the tree looks like, a build cures it."""
    for release in _guarded(machine, kernel):
        for seen in half_configured.seen(machine, release):
            o = seen.observation
            step = machine.plan(seen, attempts.now())
            subject, what = f"{o.package} {release}", f"build {o.package} for {release}"
            if step.action in (Action.STAGE, Action.PUBLISH) or step.why is Why.BACKOFF:
                worst = next((proof.worst for _, proof in seen.installed if proof.worst is not None), None)
                why = "there is none" if o.installed is Artefact.NONE else "the installed one is wrong"
                why += f": {worst.reason or worst.found}" if worst is not None and o.installed is not Artefact.NONE else ""
                act = Run(("knetstatctl", "build", release, f"--module={o.package}"), ours=True)
                yield Repair("build", subject, what, why, (act,))
            elif step.why in (Why.FAILED, Why.REHEARSAL):
                verdict = judge.verdict(machine, seen, step)
                advice = Advise(judge.command(verdict.fix) or f"knetstatctl explain {release}")
                yield Repair("build", subject, what, f"it has failed for good: {verdict.reason}", (advice,))


def is_built(machine: Machine, repair: Repair) -> bool:
    """Whether the module that a repair of `_builds` is about is there now: the machine alone may be in its way."""
    package, release = repair.subject.split(" ")
    seen = machine.observe(machine.look(release), package, own=True)
    return seen.observation.installed in (Artefact.GOOD, Artefact.DENIED)


def _orphans(machine: Machine, kernel: str | None) -> Iterator[Repair]:
    """Directories in /lib/modules that are no kernel's, and of which no package knows a single file."""
    base = files.inside(machine.root, "/lib/modules")
    for release in machine.kernels.kernels:
        if kernel not in (None, release) or release == machine.running or machine.state_of(release) is KernelState.BOOTABLE:
            continue
        if kernels.is_torn(machine.root, release):
            continue
        tree = base / release
        inside = _files(tree, tree)
        foreign = [name for name in inside if name in _KERNELS_OWN or (".ko" in name and not name.startswith("updates/"))]
        if foreign or _mounted(machine.root, tree) or (inside and not any(map(_is_known, inside))):
            continue  # a kernel that somebody made by hand, whose image is elsewhere, or something else of somebody's
        below = [os.path.relpath(os.path.join(where, name), tree) for where, dirs, _ in os.walk(tree) for name in dirs]
        if _owned(machine.root, [f"/lib/modules/{release}", *(f"/lib/modules/{release}/{name}" for name in inside + below)]):
            continue
        shown = ", ".join(inside[:4]) + (f", and {len(inside) - 4} more" if len(inside) > 4 else "")
        holds = f"{len(inside)} files of no package" + (f": {shown}" if inside else "")
        why = "it holds no kernel, and no package knows anything in it"
        yield Repair("orphan", release, f"delete /lib/modules/{release}", why, (Delete(f"/lib/modules/{release}", holds),))


# What a kernel brings, and depmod does not make.
_KERNELS_OWN = ("modules.builtin", "modules.order", "vmlinuz", "build/Makefile", "config", "System.map")


def _is_known(name: str) -> bool:
    """Whether depmod or dkms may have left a file of that name."""
    return name.startswith(("modules.", "updates/", "build", "source"))


def _mounted(root: Path, tree: Path) -> bool:
    """Whether something is mounted on a directory or below it, or that cannot be known."""
    table = files.text(root / "proc/self/mountinfo", 4 << 20)
    places = [line.split(" ")[4] for line in table.splitlines() if line.count(" ") > 4] if table is not None else [str(tree)]
    return any(place == str(tree) or place.startswith(f"{tree}/") for place in places)


def _owned(root: Path, paths: Sequence[str]) -> bool:
    """Whether a package brought one of the paths, or that cannot be known."""
    if dpkg_status.has_dpkg(root):
        try:
            return bool(dpkg_status.owners(root, paths))
        except KnetstatdError:
            return True
    if process.which(root, "rpm") is None:
        return True
    for begin in range(0, len(paths), 500):
        part = paths[begin : begin + 500]
        lines = process.run(["rpm", "-qf", *part], timeout=60, env=process.environment(root=root)).text.splitlines()
        if len(lines) != len(part) or not all(line.endswith("is not owned by any package") for line in lines):
            return True
    return False
