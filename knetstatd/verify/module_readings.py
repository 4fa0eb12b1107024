# SPDX-License-Identifier: GPL-2.0-or-later
"""All that is asked of a module file, read at once, and kept for as long as it is the same file.

Rule 1: what is kept is a pure function of the file and of our code; files.Identity tells a file from another.
Rule 2: a large module takes seconds to unpack, so that its reading is kept in a file, too, for other commands: for this boot
        alone, since after a power cut the same identity may have other contents. A reading that somebody else may have
        written is not believed.
Rule 3: losing those files changes no answer.
Rule 4: whether two files are the same module, their contents decide: what is left once it is unpacked and its signature is
        taken off. Nothing in the file stands for the file: a build ID stays what it was whatever happened to the code.
"""

from __future__ import annotations

import contextlib
import filecmp
import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core.errors import Damaged, ModuleFileError
from knetstatd.formats import compression, elf, form, module_file, pkcs7, relocations
from knetstatd.formats.elf import Machine
from knetstatd.formats.module_file import Module
from knetstatd.formats.symvers import Export
from knetstatd.system import documents, files, spool
from knetstatd.system.documents import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from knetstatd.formats.module_file import Opened

LARGE = 256 << 10  # bytes, as the file lies there: smaller ones take less time to read than to look up
_MOST = 64  # readings in memory
_LIMIT = 16 << 20  # bytes of a reading's file
# Linux tells two times of a file apart if a tick is between them, some file systems only if a second is.
_TICK, _SECOND = 0.05, 2.0


class Reading(NamedTuple):
    """What one reading of a module file says.

    module: what the file says, with its form; None if it is no module, and then fault says why.  digest: see files.Digest.
    signed: the algorithm that its signature names, and the digest of its contents by it, in hex; empty if there is none.
    """

    module: Module | None
    fault: str
    digest: files.Digest
    signed: tuple[str, str] = ("", "")

    def contents_by(self, algorithm: str) -> bytes | None:
        """The digest of the contents by an algorithm (hashlib's name), None if it was not asked for when the file was read."""
        known = {"sha256": self.digest.contents, self.signed[0]: self.signed[1]}
        return bytes.fromhex(known[algorithm]) if algorithm in known else None


_known: dict[tuple[str, files.Identity], Reading | ModuleFileError] = {}


def read(path: Path, kept: Sequence[Path] = ()) -> Reading:
    """The reading of a module file. Raises ModuleFileError if it cannot be read, or unpacked.

    kept: our directories with readings of large files; the last is the one that this process writes to.
    """
    identity = files.identity(path)
    if identity is None:
        return _read(path)
    key = os.fspath(path), identity
    if key not in _known:
        reading: Reading | ModuleFileError | None = _load(path, identity, kept) or _twin(path, identity)
        if reading is None:
            settled = settle(identity)
            try:
                reading = _read(path)
            except ModuleFileError as e:
                if type(e.__cause__) is not Damaged:  # nothing is known of the file
                    raise
                reading = e.with_traceback(None)
            if not settled or identity != files.identity(path):
                return _answer(reading)
            _save(path, identity, reading, kept)
        while len(_known) >= _MOST:
            del _known[next(iter(_known))]
        _known[key] = reading
    return _answer(_known[key])


def _answer(reading: Reading | ModuleFileError) -> Reading:
    if isinstance(reading, ModuleFileError):
        raise reading
    return reading


def module(path: Path, kept: Sequence[Path] = ()) -> Module:
    """The module in a file, with its form. Raises ModuleFileError."""
    reading = read(path, kept)
    if reading.module is None:
        raise ModuleFileError(reading.fault, os.fspath(path))
    return reading.module


def exports(paths: Iterable[Path], kept: Sequence[Path] = ()) -> dict[str, Mapping[str, Export]]:
    """What modules export, by module. One that cannot be read exports nothing: it will not load either."""
    by_module: dict[str, Mapping[str, Export]] = {}
    for path in paths:
        with contextlib.suppress(ModuleFileError):
            one = read(path, kept).module or module_file.from_path(path)  # with a form that is wrong it exports all the same
            by_module[one.name] = one.exports
    return by_module


def digest(path: Path) -> files.Digest:
    """The digests of a module file. Raises ModuleFileError if it cannot be read."""
    return read(path).digest


def has_contents(path: Path, known: files.Digest) -> bool:
    """Whether a file has those contents; no if it cannot be read."""
    try:
        return digest(path).contents == known.contents
    except ModuleFileError:
        return False


def are_same(one: Path, other: Path) -> bool:
    """Whether two files have the same contents; no if one cannot be read."""
    mine, others = files.identity(one), files.identity(other)
    if mine is None or others is None:
        return False
    return mine == others or _compared(os.fspath(one), mine, os.fspath(other), others)


@functools.lru_cache(maxsize=64)  # several checks of one proof ask the same
def _compared(one: str, mine: files.Identity, other: str, others: files.Identity) -> bool:
    try:
        if mine.size == others.size and are_equal(Path(one), Path(other)):
            return True
        return digest(Path(one)).contents == digest(Path(other)).contents
    except (OSError, ModuleFileError):
        return False


def settle(identity: files.Identity) -> bool:
    """Whether who writes the file from now on changes its identity; for a large file a tick is waited for."""
    tick = _TICK if identity.ctime_ns % 10**9 else _SECOND
    age = time.time() - identity.ctime_ns / 1e9
    if identity.size >= LARGE and 0 <= age < tick < 1:
        time.sleep(tick)
        return True
    return age >= tick


def _twin(path: Path, identity: files.Identity) -> Reading | None:
    """The reading of a file with the same name and the same bytes: of what dkms keeps, and of what it has installed."""
    for (other, its), reading in _known.items() if identity.size >= LARGE else ():
        may_be = its.size == identity.size and Path(other).name == path.name and files.identity(Path(other)) == its
        if may_be and isinstance(reading, Reading):
            with contextlib.suppress(OSError):
                if settle(identity) and are_equal(path, Path(other)) and files.identity(path) == identity:
                    return reading if files.identity(Path(other)) == its else None
    return None


def are_equal(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes. Raises OSError."""
    filecmp.clear_cache()  # it remembers files by their size and mtime, which may be set back
    return filecmp.cmp(one, other, shallow=False)


def _read(path: Path) -> Reading:
    with module_file.opened(path) as opened:
        return _reading(opened, path.name)


def _reading(opened: Opened, name: str) -> Reading:
    import hashlib

    fault, read_module = "", None
    try:
        read_module = module_file.read(opened, name, formed=True)
    except Damaged as e:
        fault = str(e)
    algorithm = _algorithm(read_module)
    contents = [hashlib.new(kind) for kind in ("sha256", algorithm) if kind]
    os.lseek(opened.fd, 0, os.SEEK_SET)
    with open(opened.fd, "rb", closefd=False) as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest()
    if not algorithm and opened.is_plain:
        return Reading(read_module, fault, files.Digest(whole, whole))
    for part in opened.parts():
        for digest in contents:
            digest.update(part)
    return Reading(
        read_module,
        fault,
        files.Digest(whole, contents[0].hexdigest()),
        (algorithm, contents[1].hexdigest() if algorithm else ""),
    )


def _algorithm(read_module: Module | None) -> str:
    """The digest that a module's signature names, if it is not SHA-256."""
    with contextlib.suppress(Damaged):
        if read_module is not None and read_module.signature is not None:
            named = pkcs7.signature(read_module.signature).digest
            return named if named != "sha256" else ""
    return ""


# -- kept for other commands ----------------------------------------------------------------------------------------------


_readings = documents.Readings(_LIMIT, compression, elf, form, module_file, pkcs7, relocations, spool)


def _save(path: Path, identity: files.Identity, reading: Reading | ModuleFileError, kept: Sequence[Path]) -> None:
    if identity.size < LARGE or isinstance(reading, ModuleFileError):
        return
    document = {
        "fault": reading.fault, "file": reading.digest.file, "contents": reading.digest.contents,
        "signed": list(reading.signed), "module": None if reading.module is None else _to_json(reading.module),
    }  # fmt: skip
    _readings.save(kept, path, identity, document)


def _load(path: Path, identity: files.Identity, kept: Sequence[Path]) -> Reading | None:
    return _readings.load(kept, path, identity, _from_json) if identity.size >= LARGE else None


def _to_json(read_module: Module) -> dict[str, Any]:
    """A module by the names of its fields."""
    signature = None if read_module.signature is None else read_module.signature.hex()
    return {**read_module._asdict(), "signature": signature}


def _from_json(document: Node) -> Reading:
    """What was saved. Raises Malformed, ValueError."""
    node = document.get("module")
    read_module = None if node.value is None else Module(**{name: take(node, name) for name, take in _FIELDS.items()})
    algorithm, signed = document.texts("signed")
    digest = files.Digest(document.text("file"), document.text("contents"))
    return Reading(read_module, document.text("fault"), digest, (algorithm, signed))


def _maybe(take: Callable[[Node, str], Any]) -> Callable[[Node, str], Any]:
    """For what may be missing."""
    return lambda node, name: None if node.get(name).value is None else take(node, name)


def _numbers(node: Node, name: str) -> dict[str, int]:
    table = node.get(name)
    return {key: table.integer(key) for key in table.keys()}


def _machine(node: Node, name: str) -> Machine:
    number, bits, little = node.items(name)
    return Machine(number.as_integer(), bits.as_integer(), little.as_flag())


def _exports(node: Node, name: str) -> dict[str, Export]:
    table, exports = node.get(name), {}
    for symbol in table.keys():
        crc, owner, gpl_only, namespace = table.items(symbol)
        exports[symbol] = Export(crc.as_integer(), owner.as_text(), gpl_only.as_flag(), namespace.as_text())
    return exports


_FIELDS: dict[str, Callable[[Node, str], Any]] = {
    **dict.fromkeys(("name", "vermagic", "license", "srcversion", "version", "compiler", "build_id"), Node.text),
    **dict.fromkeys(("depends", "import_ns", "undefined", "weak", "common", "aliases"), Node.texts),
    "intree": Node.flag, "btf": _maybe(Node.flag), "form": _maybe(Node.text), "struct_size": Node.integer,
    "crcs": _maybe(_numbers), "ext_crcs": _maybe(_numbers), "hooks": _numbers, "parameters": Node.table,
    "exports": _exports, "machine": _machine,
    "signature": _maybe(lambda node, name: bytes.fromhex(node.text(name))),
}  # fmt: skip
