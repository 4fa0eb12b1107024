# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiling in a unit without privileges: what the unit's program does, and what the builder takes of what it left.

Rules:

1. If systemd manages the machine, root compiles nothing itself: the unit's user is nobody else's, and may write in one
   directory.
2. What comes out of the unit was made by a stranger: it is copied, each file of it opened below the unit's own directory
   without following a link, a regular file of the unit's user, of a bounded size. It is looked at only after that.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knetstatd.build import room
from knetstatd.build.compile import LOG_LIMIT, Compiled, Job, compile_here, show_kernel
from knetstatd.core import names
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import Kind
from knetstatd.state import staged
from knetstatd.state.paths import OUTCOME, RESULT
from knetstatd.system import documents, files, process, units

if TYPE_CHECKING:
    from collections.abc import Callable

    from knetstatd.verdict.observe import Machine

TEMPLATE = "compile"
_ORDER = "order.json"
_MAX_MODULE, _MAX_MODULES = 512 << 20, 256
_MORE, _MAX_MORE = "more.", 64 << 20  # how the other files of a build are called in the result, and bytes of one
_MAX_TAKEN = 4 << 30  # a stranger's word: it asks for no more room than that
_MEMORY_FIX = "Give the machine more memory, or raise MemoryMax= with: systemctl edit knetstatd-compile@.service"


def compile_package(job: Job, work: Path, tick: Callable[[], None] | None = None) -> Compiled:
    """Compiles in `work`, an empty directory, with as few privileges as this machine can give; tick is called meanwhile.

    Raises BuildError if the unit that compiles ended by something else than its own work.
    """
    if units.available(job.root, TEMPLATE):
        return _in_unit(job, work, tick)
    return compile_here(job, work, tick)


# -- the unit's side ------------------------------------------------------------------------------------------------------


def unit_program(machine: Machine, what: str, cache: str) -> None:
    """The program of the unit. what: the kernel.  cache: the directory in which it may write, emptied first.

    Compiles there, and leaves the result there and nothing else.  Raises KnetstatdError if that cannot be done.
    """
    process.adopt_orphans()
    kernel, place = names.kernel(what), machine.places.compilation / _ORDER
    if not cache:
        raise KnetstatdError("this is the program of knetstatd-compile@.service", fix=f"Run: knetstatctl build {kernel}")
    order = documents.read(place)
    if order is None or order.text("kernel") != kernel:
        raise KnetstatdError(f"there is no order to compile for {kernel}", os.fspath(place), f"Run: knetstatctl build {kernel}")
    package = names.package(order.text("package"))
    seen = machine.observe(machine.look(kernel), package, own=True)
    version = seen.observation.version
    if seen.source is None:
        error = {"kind": Kind.CONF, "what": seen.source_reason or f"{package} has no source", "fix": seen.source_fix}
        _put(_emptied(Path(cache)), {"of": [kernel, package, version], "error": error})
        return
    timeout = machine.config.compile_timeout_seconds
    job = Job(machine.root, machine.places, kernel, package, version, seen.source, seen.passed, seen.fingerprint, timeout)
    with process.undisturbed():  # the machine's stop waits for it, as for the builder that waits for this
        _serve(job, Path(cache))


def _emptied(cache: Path) -> Path:
    """Empties the cache; returns a new directory in it. What cannot be removed is in nobody's way: see `_put`."""
    cache.chmod(0o755)  # a build before may have taken its own rights
    for name in files.names(cache):
        room.clear(cache / name)
    return Path(tempfile.mkdtemp(dir=cache))


def _put(result: Path, document: dict[str, Any]) -> None:
    """Leaves a result, in the place of one of before, whatever is in that."""
    (result / OUTCOME).write_text(json.dumps(document))
    result.chmod(0o755)
    place = result.with_name(RESULT)
    if not room.clear(place):
        place.rename(tempfile.mkdtemp(dir=result.parent))
    result.rename(place)


def _serve(job: Job, cache: Path) -> None:
    result = _emptied(cache)
    work = Path(tempfile.mkdtemp(dir=cache))
    work.chmod(0o755)
    try:
        compiled = compile_here(job, work, None)
    except BuildError as e:
        process.kill_orphans()
        room.clear(work)
        error = {"kind": e.kind, "what": e.what, "fix": e.fix}
        _put(result, {"of": [job.kernel, job.package, job.version], "error": error})
        return
    modules = () if compiled.staged is None else compiled.staged.modules
    more = () if compiled.staged is None else compiled.staged.more
    for path in modules:
        shutil.copyfile(path, result / path.name, follow_symlinks=False)
    for number, (_, path) in enumerate(more):
        shutil.copyfile(path, result / f"{_MORE}{number}", follow_symlinks=False)
    document = {
        "of": [job.kernel, job.package, job.version],
        "arch": modules[0].parent.parent.name if modules else "",
        "modules": [path.name for path in modules],
        "more": [name for name, _ in more],
        "code": compiled.code,
        "timed_out": compiled.timed_out,
        "output": compiled.output,
        "log": compiled.log,
        "taken": compiled.taken,
    }
    process.kill_orphans()
    room.clear(work)
    _put(result, document)


# -- the builder's side ---------------------------------------------------------------------------------------------------


def _in_unit(job: Job, work: Path, tick: Callable[[], None] | None) -> Compiled:
    unit = units.instance(TEMPLATE, job.kernel)
    units.kill_all(job.root, TEMPLATE)  # of a builder that was killed: we hold the lock, and all of them share one cache
    space = room.Room((job.places.compile_cache.parent,))
    _order(job)

    def look() -> None:
        space.check()
        if tick is not None:
            tick()

    # The unit's program keeps to its time and room itself, and says so; this is for a build that has stopped that program.
    try:
        result = units.complete(job.root, unit, job.timeout + 60, look)
    except BuildError:
        units.kill_all(job.root, TEMPLATE)
        raise
    if result == "oom-kill":
        raise BuildError(Kind.MEMORY, "the compilation was killed for want of memory", unit, _MEMORY_FIX)
    if result == "timeout":
        return Compiled(None, -9, True, "", "")
    if result == "success":
        return _adopt(job, work)
    raise BuildError(
        Kind.INTERRUPTED, f"the unit that compiles failed ({result or 'no result'})", unit, f"Run: journalctl -u '{unit}'"
    )


def _order(job: Job) -> None:
    """Says what the unit is to do, and what it is to see. Everybody may read it: the unit's user is nobody in particular."""
    place = job.places.compilation
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o755)
    show_kernel(job, place)
    files.write_json(place / _ORDER, {"kernel": job.kernel, "package": job.package}, durable=False)


def _is_below(name: str) -> bool:
    """Whether a path stays below the directory that it begins in, and is neither a module's nor the log's."""
    plain = all(part not in ("", ".", "..") and names.clean(part) == part for part in name.split("/"))
    return plain and len(name) < 256 and name != "log/make.log" and not names.module_of(os.path.basename(name))


def _adopt(job: Job, work: Path) -> Compiled:
    """Copies what the unit left into `work`, as a dkms tree. Raises BuildError if it is not what was asked for."""
    cache = job.places.compile_cache
    try:
        with units.directory(cache / RESULT) as result:
            owner = os.fstat(result).st_uid
            document = documents.parse(units.left(result, OUTCOME, owner, 8 * LOG_LIMIT))
            subject = document.texts("of")
            if "error" in document and subject[:2] == (job.kernel, job.package):
                error = document.get("error")
                what, fix = (names.clean(error.text(name)) for name in ("what", "fix"))
                raise BuildError(error.word("kind", Kind), what, fix=fix)
            arch, listed = document.text("arch"), document.texts("modules")
            if subject != (job.kernel, job.package, job.version):
                raise KnetstatdError("it is the result of another run")
            if len(listed) > _MAX_MODULES or not all(names.is_package(name) for name in (arch or "x", *listed)):
                raise KnetstatdError("its names are not names of modules")
            more = document.texts("more")
            if len(more) > staged.MOST or not all(map(_is_below, more)):
                raise KnetstatdError("its names are not names of files")
            code, log, output = document.integer("code"), document.text("log"), document.text("output")
            timed_out, taken = document.flag("timed_out"), document.integer("taken")
            built = work / "tree" / job.package / job.version / job.kernel / arch
            (built / "module").mkdir(parents=True)
            (built / "log").mkdir()
            for name in listed:
                (built / "module" / name).write_bytes(units.left(result, name, owner, _MAX_MODULE))
            for number, name in enumerate(more):
                (built / name).parent.mkdir(parents=True, exist_ok=True)
                (built / name).write_bytes(units.left(result, f"{_MORE}{number}", owner, _MAX_MORE))
            (built / "log" / "make.log").write_text(log)
            artefact = staged.built(work / "tree", job.kernel, job.package, job.version)
            return Compiled(artefact, code, timed_out, output, log, min(max(taken, 0), _MAX_TAKEN))
    except BuildError:
        raise
    except (OSError, KnetstatdError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise BuildError(Kind.INTERRUPTED, f"the compilation left no usable result: {reason}", os.fspath(cache)) from e
