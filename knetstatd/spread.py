# SPDX-License-Identifier: GPL-2.0-or-later
"""One question about many modules, asked by a process on each of the processors that we may use."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Answer = TypeVar("Answer")
    # Of these modules on a kernel.
    Question = Callable[[str, Sequence[str]], Sequence[Answer]]

# So many answers take longer than it does to start the processes (some 50 ms; a further proof is 1.4 ms).
_MANY = 100


def ask(kernels: Sequence[str], modules: Sequence[str], question: Question[Answer]) -> list[Answer]:
    """The answers of `question`, which must be fit for pickling, kernel after kernel and module after module.

    Where there are fewer kernels than processors the modules of each are divided: a list of modules must get the same answers,
    in the same order, as its parts.
    """
    processors = len(os.sched_getaffinity(0))
    if processors == 1 or len(kernels) * len(modules) < _MANY:
        return [answer for kernel in kernels for answer in question(kernel, modules)]
    import concurrent.futures
    import multiprocessing

    size = -(-len(modules) // -(-processors // len(kernels)))
    parts = [(kernel, modules[at : at + size]) for kernel in kernels for at in range(0, len(modules), size)]
    # With fork, what the initializer gets is shared and never pickled.
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(min(processors, len(parts)), fork, _share, (question,)) as pool:
        return [answer for answers in pool.map(_answers, parts) for answer in answers]


def _share(question: Question[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C is the parent's to answer
    _SHARED.append(question)


def _answers(part: tuple[str, Sequence[str]]) -> Sequence[Any]:
    return _SHARED[0](*part)


# What a process of the pool was given.
_SHARED: list[Question[Any]] = []
