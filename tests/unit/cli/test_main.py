# SPDX-License-Identifier: GPL-2.0-or-later
"""Both programs meet a full disk, a lack of memory and what may not be read, with one line and a status; never a traceback."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import systems
from kerneltree import KERNEL
from test_texts import verbs

import knetstatd
from knetstatd import __version__
from knetstatd.cli.main import main
from knetstatd.core.exits import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOBODY = 65534
PROGRAMS = ["knetstatd.cli.main", "knetstatd.daemon.main"]


def run(module: str, *argv: str, memory: int = 0, output: str = "") -> subprocess.CompletedProcess[str]:
    """One of the programs. memory: the most that it may have, in KiB, as `ulimit -v` has it.  output: the file that it gets."""

    def limit() -> None:
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory << 10, memory << 10))

    code = f"import sys; sys.path[:0] = {sys.path!r}; from {module} import main; sys.exit(main())"
    with open(output or os.devnull, "w") as out:
        return subprocess.run(
            [sys.executable, "-ISB", "-c", code, *argv],
            stdin=subprocess.DEVNULL, stdout=out if output else subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=limit, check=False,
        )  # fmt: skip


@pytest.mark.spawns
@pytest.mark.parametrize("argv", [["status"], ["check", "--json"], ["config"], ["--help"], ["--version"]], ids=" ".join)
def test_an_output_that_is_full(argv: list[str]) -> None:
    done = run("knetstatd.cli.main", *argv, output="/dev/full")
    assert (done.returncode, done.stderr) == (
        Exit.UNKNOWN, "knetstatctl: its output cannot be written: No space left on device.\n",
    )  # fmt: skip


@pytest.mark.spawns
def test_the_daemons_output_that_is_full() -> None:
    done = run("knetstatd.daemon.main", "--help", output="/dev/full")
    assert (done.returncode, done.stderr) == (
        Exit.UNKNOWN, "knetstatd: its output cannot be written: No space left on device.\n",
    )  # fmt: skip


@pytest.mark.spawns
@pytest.mark.parametrize("module", PROGRAMS)
@pytest.mark.parametrize("memory", [20000, 24000, 30000])
def test_too_little_memory(module: str, memory: int) -> None:
    """Python itself needs 15 MB of address space; how far it comes with some more differs from machine to machine."""
    done = run(module, *(["check"] if "cli" in module else []), memory=memory)
    assert done.returncode == Exit.UNKNOWN, done.stderr
    assert done.stderr.count("\n") == 1
    assert "memory" in done.stderr.lower()
    assert "Traceback" not in done.stderr


@pytest.mark.spawns
def test_a_reader_that_has_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    code = f"import sys; sys.path[:0] = {sys.path!r}; from knetstatd.cli.main import main; sys.exit(main(['config']))"
    done = subprocess.run([sys.executable, "-ISB", "-c", code], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.spawns
def test_the_program_ends_with_its_output_written_and_does_not_tidy_up() -> None:
    code = f"import atexit, sys; sys.path[:0] = {sys.path!r}; from knetstatd.cli.main import main; sys.argv[1:] = ['--version']"
    code += "; atexit.register(print, 'tidied up'); sys.stderr.write('not a line'); main()"
    done = subprocess.run([sys.executable, "-ISB", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (Exit.OK, f"knetstatctl {__version__}\n", "not a line")


def test_every_verb_has_its_function() -> None:
    """`--root` of a place that does not exist ends each of them before it does anything, with the error for that."""
    for verb in verbs():
        argv = [verb, "--root", "/nonexistent", *(["next"] if verb == "build" else [])]
        assert main(argv) == Exit.USAGE, verb


def test_an_error_is_a_line_and_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "6.1.0-nothere", "--json"]) == Exit.USAGE
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["schema"] == 1
    assert document["error"]["what"] == "there is no kernel 6.1.0-nothere in /lib/modules"
    assert said.err.startswith("knetstatctl: there is no kernel 6.1.0-nothere")


# -- what may not be read ---------------------------------------------------------------------------------------------------


@pytest.fixture
def open_root() -> Iterator[Path]:
    """A system in a directory that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield systems.make(Path(name))


def as_nobody(argv: Sequence[str]) -> tuple[int, str]:
    """How knetstatctl ends, and what it prints, for a user without privileges."""
    with tempfile.TemporaryFile("w+") as out:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setresgid(NOBODY, NOBODY, NOBODY)
                    os.setresuid(NOBODY, NOBODY, 0)
                code = main(argv)
                sys.stderr.flush()
            finally:
                if os.getresuid()[2] == 0:
                    os.setresuid(0, 0, 0)  # coverage writes what ran
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        return os.waitstatus_to_exitcode(status), out.read()


def test_everybody_may_read_what_there_is(open_root: Path) -> None:
    assert as_nobody(["--root", os.fspath(open_root), "check"])[0] == Exit.OK


@pytest.mark.parametrize(
    "place",
    [
        f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko", f"usr/lib/modules/{KERNEL}/updates/dkms",
        f"usr/lib/modules/{KERNEL}/modules.dep", f"usr/lib/modules/{KERNEL}", "usr/lib/modules", "var/lib/dkms",
        "var/lib/dkms/demo",
        "boot", "boot/grub", "boot/grub/grub.cfg",
    ],
)  # fmt: skip
def test_what_may_not_be_read_is_unknown_and_never_critical(open_root: Path, place: str) -> None:
    """As a build under `umask 077` leaves it."""
    root = os.fspath(open_root)
    (open_root / place).chmod(0o600 if (open_root / place).is_file() else 0o700)
    if os.geteuid() != 0:
        (open_root / place).chmod(0)
    code, said = as_nobody(["--root", root, "check"])
    assert code == Exit.UNKNOWN, said
    assert "CRITICAL" not in said
    assert "Traceback" not in said
    assert as_nobody(["--root", root, "verify", "--kernel", "next"])[0] == Exit.UNKNOWN
    assert main(["--root", root, "check", "-q"]) == (Exit.OK if os.geteuid() == 0 else Exit.UNKNOWN)
    (open_root / place).chmod(0o755)


def test_a_module_file_that_may_not_be_read(open_root: Path) -> None:
    file = systems.write(open_root / "x.ko", "")
    file.chmod(0o600 if os.geteuid() == 0 else 0)
    code, said = as_nobody(["--root", os.fspath(open_root), "verify", os.fspath(file)])
    assert code == Exit.UNKNOWN
    assert f"{file}: it is not known whether it loads on {KERNEL}" in said


def test_the_package_has_no_other_entry() -> None:
    """Both entry points are those that pyproject.toml and the Makefile name."""
    checkout = Path(knetstatd.__file__).parents[1]
    for module in PROGRAMS:
        assert f"{module}:main" in (checkout / "pyproject.toml").read_text()
        assert f"script,{module.removeprefix('knetstatd.')})" in (checkout / "Makefile").read_text()
