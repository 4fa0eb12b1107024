# SPDX-License-Identifier: GPL-2.0-or-later
"""Proofs that are kept for as long as the files that they were made from are the same.

Rule 1: what is kept is a pure function of files, beside the identities of those files. It is never the ground of a verdict
        without a look at them.
Rule 2: the reading and comparing itself is imported only where it is done, and a process that lives long has it done apart,
        in a child that ends: symbol tables and initrds take memory that Python does not give back.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd import __version__
from knetstatd.boot import bootloader
from knetstatd.core.errors import ChildLost
from knetstatd.core.model import UNMADE, Check, Proof, Result
from knetstatd.machine import host, initramfs, kernels, kmod, paths
from knetstatd.system import documents, files
from knetstatd.system.once import one_look

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from knetstatd.machine.host import Host, Origin
    from knetstatd.verify.target_kernel import Target

    # Does some work elsewhere and gives its answer, a list of what JSON knows.
    InChild = Callable[[Callable[[], list[Any]]], list[Any]]


class Look:
    """One kernel, looked at once for all modules: what they share is read once, and what only some need, when they do.

    together: the modules that are proven with the first of them that is observed.
    closed: what root is to read and to keep for the next look, since it could not be read here: an initrd that this user may
    not read, or module files that a child was lost over; "" for nothing.
    """

    @one_look()
    def __init__(self, root: Path, kernel: str, machine: Host | None = None, together: Sequence[str] = ()) -> None:
        self.root = root
        self.kernel = kernel
        self.host = machine or host.facts(root, kernel=kernel)
        self.headers = kernels.headers(root, kernel)
        # What every proof for this kernel depends on, besides the module's own file.
        image = kernels.started_image(root, kernel)
        inputs = (*paths.inputs(root, kernel), *initramfs.inputs(root, kernel), *kmod.inputs(root), *filter(None, [image]))
        closed = _closed(root, kernel, self.host.initrds)
        self.inputs = (*map(files.identity, inputs), closed, bootloader.command_line(root, kernel))
        self.closed = str(closed) if closed and not closed[-1] else ""
        self.together = together
        self._facts: Target | None = None

    @property
    def facts(self) -> Target:
        """The kernel's facts for `verify`; large, and needed only where something changed."""
        from knetstatd.verify import target_kernel

        if self._facts is None:
            self._facts = target_kernel.facts(self.root, self.kernel, self.host.readings)
        return self._facts


# The machine; what DKMS knows and the identity of DKMS's own copy, or those of the modules that are loaded before.
_Rest = tuple[object, ...]


class _Kept(NamedTuple):
    """A proof, and the identities of the files that it was made from, its own first. rest: what it depends on besides."""

    inputs: tuple[object, ...]
    files: tuple[files.Identity | None, ...]
    rest: _Rest
    proof: Proof


class Proofs:
    """What `verify` says of module files, computed again only when a file that it depends on has changed."""

    def __init__(self, root: Path, in_child: InChild | None = None) -> None:
        self._root = root
        self._in_child = in_child
        self._kept: dict[tuple[str, str], _Kept] = {}

    def keep_only(self, kernels: Container[str]) -> None:
        """Forgets the proofs for other kernels."""
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] in kernels}

    def file(self, look: Look, path: Path, others: Sequence[Path] = ()) -> Proof:
        """The proof of a module file, wherever it lies, for the kernel of `look`. others: those that are loaded before it."""
        key = (look.kernel, os.fspath(path))
        rest = (look.host, *map(files.identity, others))
        known = self._known(key, look, rest)
        if known is None or known.proof.path != key[1]:
            since = time.time_ns()
            try:
                [proof] = self._done(lambda: [self._verify(look, path, others)])
            except ChildLost as e:
                return _unmade(look, path, e)
            self._keep(key, look, rest, proof, since)
            return proof
        return known.proof

    def installed(self, look: Look, modules: Mapping[str, Origin | None]) -> tuple[tuple[str, Proof], ...]:
        """The proofs of the files that modprobe would take for the modules.

        modules: with what DKMS knows of each.
        """
        rests: dict[str, _Rest] = {
            module: (look.host, origin, *(map(files.identity, origin.copies) if origin is not None else ()))
            for module, origin in modules.items()
        }
        kept = {module: self._known((look.kernel, module), look, rest) for module, rest in rests.items()}
        known = {module: one.proof for module, one in kept.items() if one is not None}
        if new := [module for module in modules if module not in known]:
            since = time.time_ns()
            try:
                proofs = self._done(lambda: self._prove(look, new, modules))
            except ChildLost as e:  # whether they are installed is not known, either
                proofs = [_unmade(look, files.inside(look.root, f"/lib/modules/{look.kernel}/modules.dep"), e)] * len(new)
            for module, proof in zip(new, proofs, strict=True):
                known[module] = proof
                if proof.path and not _is_unmade(proof):
                    self._keep((look.kernel, module), look, rests[module], proof, since)
        return tuple((module, known[module]) for module in modules)

    def _verify(self, look: Look, path: Path, others: Sequence[Path]) -> Proof:
        from knetstatd.verify import verify

        return verify.verify(self._root, look.kernel, path, others=others, facts=look.facts, host=look.host)

    def _prove(self, look: Look, modules: Sequence[str], origins: Mapping[str, Origin | None]) -> list[Proof]:
        from knetstatd.verify import verify

        return verify.prove(self._root, look.kernel, modules, look.facts, look.host, origins)

    def _done(self, work: Callable[[], list[Proof]]) -> list[Proof]:
        """The answer of `work`, from elsewhere if that is wanted."""
        if self._in_child is None:
            return work()
        return list(map(_from_json, self._in_child(lambda: list(map(_to_json, work())))))

    def _keep(self, key: tuple[str, str], look: Look, rest: _Rest, proof: Proof, since: int) -> None:
        """Keeps a proof, unless a file of it was replaced or deleted while it was made, since that time in nanoseconds."""
        identities, now = _identities(proof), time.time_ns()
        there = [identity for identity in identities if identity is not None]
        gone = len(there) < len(identities) and not proof.fails
        if gone or any(since <= identity.ctime_ns <= now for identity in there):
            self._kept.pop(key, None)
        else:
            self._kept[key] = _Kept(look.inputs, identities, rest, proof)

    def _known(self, key: tuple[str, str], look: Look, rest: _Rest) -> _Kept | None:
        """A proof that still stands: every file that it was made from is the same."""
        known = self._kept.get(key)
        if known is None or known.inputs != look.inputs or known.rest != rest:
            return None
        return known if known.files == _identities(known.proof) else None


def _unmade(look: Look, path: Path, error: ChildLost) -> Proof:
    """A proof that says that there is none. It is not kept: the next look tries again."""
    look.closed = look.closed or f"modules {hash(look.inputs)}"
    reason = f"Nothing is known of it: {error.what}"
    return Proof(os.fspath(path), (Check(UNMADE, Result.UNKNOWN, reason=reason, fix="Run as root: knetstatctl check"),))


def _is_unmade(proof: Proof) -> bool:
    return any(check.name == UNMADE for check in proof.checks)


def _identities(proof: Proof) -> tuple[files.Identity | None, ...]:
    """Of the file that was checked, and of those that modprobe inserts before it."""
    return tuple(files.identity(Path(path)) for path in (proof.path, *proof.needed))


def _to_json(proof: Proof) -> dict[str, Any]:
    """A proof by the names of its fields, on its way out of a child."""
    return {**proof._asdict(), "checks": [check._asdict() for check in proof.checks]}


def _from_json(document: dict[str, Any]) -> Proof:
    """What `_to_json` made, when JSON has made strings of words and lists of tuples."""
    checks = tuple(Check(**{**check, "result": Result(check["result"])}) for check in document["checks"])
    return Proof(**{**document, "checks": checks, "needed": tuple(document["needed"])})


def _closed(root: Path, kernel: str, directory: Path | None) -> tuple[object, ...]:
    """What the answer about an initrd that this user may not read hangs on: it, and our file; () if the user may read it.

    The last is whether our file has the answer (see initrd_digests, which is not imported for this).
    """
    disks = initramfs.initrds(root, kernel).paths
    if directory is None or all(os.access(path, os.R_OK) or not os.path.exists(path) for path in disks):
        return ()
    place, mine = directory / f"{kernel}.json", tuple(map(files.identity, disks))
    document = documents.read(place)
    kept = document.get("identity").value if document is not None and "identity" in document else None
    known = isinstance(kept, list) and kept[:-1] == [[__version__], *([*(identity or ())] for identity in mine)]
    return mine, files.identity(place), known
