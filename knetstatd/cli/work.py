# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that change this machine: `build`, `repair`, and the programs of the units that do one step for the daemon."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from knetstatd.cli import render, subjects, terminal, verdicts
from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError, UsageError
from knetstatd.core.exits import Exit
from knetstatd.verdict import judge

if TYPE_CHECKING:
    import argparse


def build(arguments: argparse.Namespace) -> Exit:
    """Builds, proves and publishes, by hand or (--step) for the daemon."""
    from knetstatd.build import run
    from knetstatd.system.journal import Journal
    from knetstatd.system.progress import Progress

    subjects.only_here(arguments, "compiles and installs on the machine that runs")
    if os.geteuid() != 0:
        raise KnetstatdError("building needs root", fix=f"Run: sudo knetstatctl build {arguments.kernel}")
    machine = subjects.machine(arguments)
    packages = machine.packages() if arguments.module is None else (names.package(arguments.module),)
    kernels = subjects.kernels(machine, arguments.kernel)
    if not kernels or not packages:
        raise UsageError(verdicts.summary(machine, arguments.kernel, []))
    journal = Journal(quiet="JOURNAL_STREAM" in os.environ)
    if arguments.step is not None:
        # The builder tells and remembers the outcome. None: somebody builds by hand, and the daemon looks again after that.
        done = run.step_by_step(machine, journal, kernels[0], packages, arguments.step)
        return Exit.IN_PROGRESS if done is None else Exit.OK if done else Exit.FAILED
    run.run_manual(machine, journal, Progress(shown=not arguments.json), kernels, packages, wait=not arguments.no_wait)
    machine.refresh()
    made = subjects.verdicts(machine, kernels, packages)
    if arguments.json:
        terminal.show_document(judge.document(machine, made))
    else:
        print(render.status_text(machine, made, terminal.is_coloured(), width=terminal.width()))
    return Exit.OK if all(v.ready for v in made) else Exit.FAILED


def repair(arguments: argparse.Namespace) -> Exit:
    """Finishes what dkms and dpkg got stuck in."""
    from knetstatd.repair import apply

    subjects.only_here(arguments, "runs dpkg and dkms on the machine that runs")
    machine = subjects.machine(arguments)
    arguments.all |= arguments.kernel == "all"
    kernels = () if arguments.all else subjects.kernels(machine, arguments.kernel)
    code, document = apply.command(arguments, machine, kernels)
    if arguments.json:
        terminal.show_document(document)
    return Exit(code)


def unit_program(arguments: argparse.Namespace) -> Exit:
    """The program of knetstatd-compile@.service or knetstatd-rehearse@.service."""
    from knetstatd.build import compile_unit
    from knetstatd.rehearsal import rehearse

    program = {"compile": compile_unit.unit_program, "trial": rehearse.unit_program}[arguments.verb]
    program(subjects.machine(arguments), arguments.what, os.environ.get("CACHE_DIRECTORY", ""))
    return Exit.OK


def make_initrd(arguments: argparse.Namespace) -> Exit:
    """The program of knetstatd-initrd@.service."""
    from knetstatd.build import initrd
    from knetstatd.core.errors import BuildError

    machine, kernel = subjects.machine(arguments), names.kernel(arguments.what)
    try:
        initrd.make_here(machine.root, kernel, machine.config.publish_timeout_seconds, ())
    except BuildError as e:
        terminal.warn("\n".join((*e.evidence, str(e))))
        return Exit.FAILED
    return Exit.OK


def lend_keys(arguments: argparse.Namespace) -> Exit:
    """What knetstatd-build@.service does first, with all of root's privileges: the unit's program has none of them."""
    from knetstatd.build import sign
    from knetstatd.state import paths
    from knetstatd.system import files

    sign.lend(files.HERE, paths.places(files.HERE), names.kernel(arguments.what))
    return Exit.OK


def step(arguments: argparse.Namespace) -> Exit:
    """The program of knetstatd-step@.service; standard input is the daemon's connection."""
    from knetstatd.core import config
    from knetstatd.daemon import step as door
    from knetstatd.system import files

    with socket.socket(fileno=os.dup(0)) as connection:
        door.serve(connection, config.load(files.HERE))
    return Exit.OK
