# SPDX-License-Identifier: GPL-2.0-or-later
"""What there is on a machine: its kernels, its packages, who is at work, and what DKMS knows of each module.

Rule 1: nothing is remembered but answers that are pure functions of files, together with the identities of those files;
        when one of them changes, the answer is computed again.
Rule 2: `root` is where the machine's files are; only the running kernel, the clock and our own locks are not below it.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.boot import bootloader
from knetstatd.core import names
from knetstatd.core.model import (
    KernelState,
    Limits,
    Proof,
)
from knetstatd.dkms import dkms_conf, dkms_framework, dkms_tree
from knetstatd.machine import busy, dpkg_status, host, kernels, loaded_modules, modprobe_conf, paths, signature_policy
from knetstatd.machine.loaded_modules import Live
from knetstatd.state import digests, guarded, next_boot, rehearsal_results, sources
from knetstatd.state import paths as places
from knetstatd.system import files
from knetstatd.system.once import once, one_look
from knetstatd.verify.proof_cache import Look, Proofs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from knetstatd.core.config import Config
    from knetstatd.verify.proof_cache import InChild


BUILDERS = "builders"


class Survey:
    """One machine's kernels and guarded modules, as they were at the last `refresh`."""

    def __init__(self, root: Path, config: Config, in_child: InChild | None = None, *, running: str | None = None) -> None:
        """in_child: see proof_cache.  running: its kernel's release, None: ours, "": it does not run, nobody works on it."""
        self.root = root
        self.config = config
        self.running = kernels.running() if running is None else running
        self.places = places.places(root, runs=bool(self.running))
        self.kernels = kernels.Directories((), ())
        self.next, self.next_why, self.next_basis, self._closed = "", "", bootloader.Basis.UNKNOWN, ""
        self._registered: dict[str, dkms_tree.Package] = {}
        self.missing = guarded.Missing({}, {})
        self._files: dict[tuple[str, str], list[tuple[dkms_tree.Package, dkms_tree.Version, Path]]] = {}
        self._refused: list[tuple[str, str]] = []
        self._states: dict[str, KernelState] = {}
        self._transaction = self._foreign = ""
        self._removing = False
        self._unfinished: tuple[object, tuple[dpkg_status.Unfinished, ...]] = ((), ())
        self._proofs = Proofs(root, in_child)
        self._live = Live(root)
        self._confs: dict[tuple[str, str], dkms_conf.Conf] = {}
        self._host: host.Host | None = None
        self.sources = sources.Sources(self.places, in_child)
        self._arguments: dict[str, tuple[str, ...]] = {}
        self.no_rehearsal = ""

    @property
    def limits(self) -> Limits:
        """The configuration's part in the planner's decisions."""
        c = self.config
        return Limits(
            c.settle_seconds, c.retry_first_seconds, c.retry_longest_seconds,
            install_headers=c.headers == "install", reload=c.unloaded == "reload", make_initrds=c.initrd == "update",
        )  # fmt: skip

    # -- the machine ------------------------------------------------------------------------------------------------------

    @one_look()
    def refresh(self) -> str:
        """Reads which kernels there are, which is next, and what DKMS knows; returns the same as `refresh_locks`."""
        self.kernels = kernels.directories(self.root)
        self._states = {k: kernels.state(self.root, k) for k in self.kernels.kernels}
        # A boot loader starts an image that is cut off all the same.
        bootable = [k for k, is_ in self._states.items() if is_ is KernelState.BOOTABLE or kernels.is_torn(self.root, k)]
        # One whose directory is left alone may be next all the same: then none of the others is.
        alone = [name for name, _ in self.kernels.refused if names.is_kernel(name) and kernels.image(self.root, name)]
        next_kernel = bootloader.next_kernel(self.root, [*bootable, *alone])
        if self.running:
            next_kernel, self._closed = next_boot.settled(self.root, self.places, next_kernel)
        self.next = "" if next_kernel.release in alone else next_kernel.release
        self.next_why, self.next_basis = next_kernel.why, next_kernel.basis
        if next_kernel.release != self.next:
            self.next_why = f"it is {next_kernel.release}, whose directory in /lib/modules is left alone"
            self.next_basis = bootloader.Basis.UNKNOWN
        tree = dkms_tree.registered(self.root)
        self._registered = tree.packages
        self.missing = guarded.missing(self.root, self.places, tree.packages)
        self._files = dkms_tree.installed(tree.packages.values())
        reason = "not a DKMS module name or version; a name like this could be run as a command by dkms"
        self._refused = [*self.kernels.refused, *((path, reason) for path in tree.refused)]
        self._proofs.keep_only(self._states)
        self._host = None
        self._facts()
        self.sources.ages = {}
        self._arguments = {}
        self.no_rehearsal = rehearsal_results.missing(self.root)
        return self.refresh_locks()

    def refresh_locks(self) -> str:
        """Begins to observe anew: who is at work on packages (returned, "" for nobody) and in DKMS."""
        self._confs = {}
        if self.running:
            self._transaction = busy.package(self.root) or ""
            other = busy.foreign_dkms(self.root, os.getpid())
            self._foreign, self._removing = (other.shown, other.removes) if other else ("", False)
        mark = tuple(files.identity(files.inside(self.root, f"/var/lib/dpkg/{name}")) for name in ("status", "updates"))
        if self._unfinished[0] != mark:
            self._unfinished = (mark, dpkg_status.unfinished(self.root))
        return self._transaction

    def unfinished(self, kernel: str) -> tuple[dpkg_status.Unfinished, ...]:
        """The packages of a kernel that were left half-way; none while a transaction is still at work on them."""
        return () if self._transaction else dpkg_status.of_kernel(self._unfinished[1], kernel)

    def refused(self) -> list[tuple[str, str]]:
        """Names that are left alone, each with the reason."""
        return self._refused

    def state_of(self, kernel: str) -> KernelState:
        """What the directory of `kernel` is."""
        return self._states.get(kernel, KernelState.NOT_A_KERNEL)

    def packages(self) -> tuple[str, ...]:
        """The guarded DKMS packages, `*` replaced by all that are registered, or should be (see state/guarded)."""
        every = sorted({*self._registered, *self.missing.names})
        return tuple(dict.fromkeys(one for name in self.config.modules for one in (every if name == "*" else (name,))))

    @property
    def unguarded(self) -> tuple[str, str]:
        """Why no package is guarded, if none is, and what to do about it."""
        if "*" not in self.config.modules:
            return "no module is guarded", "set `modules` in /etc/knetstatd/knetstatd.toml"
        tree = dkms_framework.framework(self.root).dkms_tree
        return (
            f"* matches nothing: no package is registered in {names.clean(tree)}",
            "install a -dkms package, or run: dkms add DIRECTORY",
        )

    def registered(self) -> frozenset[str]:
        """The DKMS packages that are registered, guarded or not."""
        return frozenset(self._registered)

    def package(self, name: str) -> dkms_tree.Package | None:
        """A registered DKMS package, None if there is none of that name."""
        return self._registered.get(name)

    def wanted(self) -> set[str]:
        """The guarded kernels: `next` and `running`, and what the configuration adds."""
        bootable = [k for k in self.kernels.kernels if self._states[k] is KernelState.BOOTABLE]
        match self.config.kernels:
            case "all":
                return set(bootable)
            case int(count):
                more = bootable[-count:]
            case _:
                more = []
        return {*more, *(k for k in (self.next, self.running) if k in self._states)}

    def module_names(self) -> set[str]:
        """The names of all modules that the guarded packages make for the running kernel, as that kernel calls them."""
        return {names.canonical(made) for name in self.packages() for made in self.made(self.running, name)}

    def watched(self) -> Iterable[tuple[str, Path]]:
        """The directories to watch, each with a label: see paths.watched; "state", our own; BUILDERS, with a builder's lock."""
        if self.places.builders.is_dir():
            yield BUILDERS, self.places.builders
        modules = self.packages()
        known = [one for name, one in {**self.missing.sources, **self._registered}.items() if name in modules]
        sources = dict.fromkeys(one.wanted(kernel).source for one in known for kernel in ("", *self.kernels.kernels))
        yield from paths.watched(self.root, self.kernels.kernels, modules, sources, self.wanted())
        yield from (("state", path) for path in self.places.watched())

    def insists(self, kernel: str) -> str:
        """Why a kernel takes no unsigned module, or may take none; "" if it takes them."""
        from knetstatd.verify import target_kernel

        rules = signature_policy.policy(self.root, kernel, target_kernel.options(self.root, kernel), self._facts().firmware)
        return rules.enforced or rules.doubt

    def _facts(self) -> host.Host:
        """The machine's, as they were at the last `refresh`."""
        if self._host is None:
            own = (self.places.initrds, self.places.readings) if self.running else (None, ())
            self._host = host.facts(self.root, own[0], readings=own[1])
        return self._host

    # -- proofs -----------------------------------------------------------------------------------------------------------

    def look(self, kernel: str, modules: Sequence[str] | None = None) -> Look:
        """A new look at a kernel, to be shared by all modules (None: the guarded ones) that are observed on it now."""
        facts = host.of_kernel(self.root, self._facts(), kernel)
        look = Look(self.root, kernel, facts, self.packages() if modules is None else modules)
        if kernel == (self.next or self.running):
            look.closed = look.closed or self._closed
        return look

    def prove_file(self, look: Look, path: Path, others: Sequence[Path] = ()) -> Proof:
        """What `verify` says of a module file for a kernel. others: the modules that come with it, and may export to it."""
        return self._proofs.file(look, path, others)

    def prove_installed(self, look: Look, *modules: str) -> tuple[Proof, ...]:
        """What `verify` says of the modules that modprobe would load, for those of the packages' that are installed."""
        return tuple(proof for _, proof in self._installed(look, *modules))

    def prove_all(self, look: Look, package: str) -> tuple[Proof, ...]:
        """The same for every module that a package makes: what is not installed fails."""
        return tuple(proof for _, proof in self._proofs.installed(look, self._named(look, package)))

    def _installed(self, look: Look, *modules: str) -> tuple[tuple[str, Proof], ...]:
        return tuple((n, proof) for n, proof in self._proofs.installed(look, self._named(look, *modules)) if proof.is_installed)

    def _named(self, look: Look, *modules: str) -> dict[str, host.Origin | None]:
        """The modules that packages make for a kernel, with what DKMS knows of each."""
        return {
            names.canonical(name): self._origin(look.kernel, package, name)
            for package in modules
            for name in self.made(look.kernel, package)
        }

    @once
    def _origin(self, kernel: str, package: str, name: str) -> host.Origin:
        """What DKMS knows of an installed module of a package."""
        known = self._registered.get(package)
        if known is None:
            source = self.missing.sources.get(package)
            return host.Origin(left=source is None or self._conf(source, kernel).excludes(kernel))
        wanted = known.wanted(kernel)
        changed = self.sources.age(wanted.source).changed
        rivals = tuple(
            host.Rival(f"{other.name}/{its.version}", files.followed(self.root, path), other.name in self.packages())
            for other, its, path in self._files.get((kernel, names.canonical(name)), ())
            if other.name != known.name
        )
        if (installed := known.installed(kernel)) is None:
            return host.Origin(wanted.version, "", None, changed, rivals, self._conf(known, kernel).excludes(kernel))
        version, build = installed
        copy = host.copy_of(self.root, name, build.directory / "module", build.files)
        kept = digests.of(self.places, kernel, package, copy)
        is_of = self.sources.is_of(kernel, known, copy) if copy is not None and version == wanted else None
        if is_of is not None:  # contents that are known decide: what is copied over a source may be older than the modules
            changed = 0.0 if is_of else math.inf
        return host.Origin(wanted.version, version.version, copy, changed, rivals, digest=kept)

    def guarded(self) -> dict[str, guarded.Guarded] | None:
        """What to remember of the guarded packages; None while somebody is at work on packages or in DKMS."""
        at_work = self._transaction or self._foreign
        if at_work:
            return None
        return guarded.now(self.root, self.places, self.packages(), self._registered, self.missing, self.kernels.kernels)

    def made(self, kernel: str, package: str) -> tuple[str, ...]:
        """The names of the modules that a package makes for a kernel: dkms.conf says, or what was built."""
        if (known := self._registered.get(package) or self.missing.sources.get(package)) is None:
            return (package,)
        conf = self._conf(known, kernel)
        if conf.knows("BUILT_MODULE_NAME") and conf.knows("DEST_MODULE_NAME") and conf.modules:
            return tuple(made.dest_name for made in conf.modules)
        built = known.wanted(kernel).build(kernel)
        return tuple(map(names.module_of, built.files)) if built is not None and built.files else (package,)

    def _conf(self, package: dkms_tree.Package, kernel: str) -> dkms_conf.Conf:
        """A package's dkms.conf for a kernel, read once for each `refresh_locks`."""
        key = (package.name, kernel)
        if key not in self._confs:
            self._confs[key] = dkms_tree.conf(self.root, package.name, package.wanted(kernel), kernel, os.uname().machine)
        return self._confs[key]

    # -- what is built after what ---------------------------------------------------------------------------------------

    def _needed(self, kernel: str, package: str) -> tuple[str, ...]:
        """The packages that a package is built after (BUILD_DEPENDS)."""
        known = self._registered.get(package)
        return () if known is None else self._conf(known, kernel).build_depends

    def lacking(self, kernel: str, package: str) -> tuple[str, ...]:
        """Of the packages that a package is built after, those that DKMS has not installed for a kernel."""
        needed = ((name, self._registered.get(name)) for name in self._needed(kernel, package))
        return tuple(name for name, known in needed if known is None or known.installed(kernel) is None)

    def built_before(self, kernel: str, package: str) -> tuple[Path, ...]:
        """DKMS's files of the modules of those packages, and of those that they are built after: they are loaded first."""
        names_, paths = list(self._needed(kernel, package)), []
        for name in names_:  # grows while it is gone through
            known = self._registered.get(name)
            if known is not None and (installed := known.installed(kernel)) is not None:
                build = installed[1]
                paths += [files.followed(self.root, build.directory / "module" / file) for file in build.files]
            names_ += [more for more in self._needed(kernel, name) if more not in (*names_, package)]
        return tuple(paths)

    def in_order(self, kernel: str, packages: Sequence[str]) -> tuple[str, ...]:
        """The packages, each after those that it is built after; a circle stays in the order that was given."""
        ordered: dict[str, None] = {}

        def add(package: str, above: tuple[str, ...]) -> None:
            for needed in self._needed(kernel, package):
                if needed in packages and needed not in (*above, package):
                    add(needed, (*above, package))
            ordered[package] = None

        for package in packages:
            add(package, ())
        return tuple(ordered)

    def fingerprint(self, kernel: str, package: str, source: Path, headers: Path | None) -> str:
        """What decides a build of a package for a kernel: see kernels.fingerprint. Also the builds that it is made after."""
        mark = kernels.fingerprint(self.root, source, headers)
        for name in self._needed(kernel, package):
            known = self._registered.get(name)
            installed = known.installed(kernel) if known is not None else None
            identity = files.identity(installed[1].directory) if installed else None
            mark += f"; {name} {f'{installed[0].version} {identity.ctime_ns}' if installed and identity else 'none'}"
        return mark

    def rehearsal(self, kernel: str, package: str, installed: Iterable[tuple[str, Proof]]) -> rehearsal_results.Subject | None:
        """What a rehearsal of the installed modules would be about; None if there is nothing to start, or to insert."""
        installed = tuple(installed)
        used = [Path(proof.path) for name, proof in installed if self._is_used(package, name, proof)]
        proofs = (proof for _, proof in installed)
        return rehearsal_results.subject_of(self.root, kernel, package, proofs, self.arguments(kernel), used)

    def _is_used(self, package: str, name: str, proof: Proof) -> bool:
        """Whether this machine has a module loaded, or loads it at boot."""
        if {package, "*"} & set(self.config.load) or loaded_modules.is_live(self.root / "sys/module" / (proof.module or name)):
            return True
        return self._host is not None and modprobe_conf.find(self._host.rules.load, name) is not None

    def arguments(self, kernel: str) -> tuple[str, ...]:
        """What decides about modules on the command line that a kernel will get, read once for each `refresh`."""
        if kernel not in self._arguments:
            self._arguments[kernel] = rehearsal_results.arguments(self.root, kernel)
        return self._arguments[kernel]
