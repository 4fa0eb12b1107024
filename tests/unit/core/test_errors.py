# SPDX-License-Identifier: GPL-2.0-or-later
"""The family of errors: what each says, and the exit code that it makes of the program."""

from __future__ import annotations

import pickle

import pytest

from knetstatd.core import errors
from knetstatd.core.errors import (
    BuildError,
    ConfigError,
    KernelFileError,
    KnetstatdError,
    ModuleFileError,
    NameRefused,
    UnknownError,
    UsageError,
)
from knetstatd.core.exits import Exit


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KnetstatdError("it is not there"), "it is not there"),
        (KnetstatdError("it is not there", "/x"), "/x: it is not there"),
        (KnetstatdError("it is not there", fix="Run: make"), "it is not there. Run: make"),
        (KnetstatdError("it is not there", "/x", "Run: make"), "/x: it is not there. Run: make"),
        (BuildError("disk", "no space", "/var"), "/var: no space"),
    ],
)
def test_what_where_and_what_to_do(error: KnetstatdError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (KnetstatdError, 1), (NameRefused, 2), (UsageError, 2), (ConfigError, 78), (ModuleFileError, 1), (KernelFileError, 1),
        (BuildError, 1), (UnknownError, 3),
    ],
)  # fmt: skip
def test_exit_codes(kind: type[KnetstatdError], code: int) -> None:
    assert kind.exit_code == code


def test_every_error_is_of_the_family() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not Exit]
    kinds = [kind for kind in kinds if not issubclass(kind, errors.Damaged)]
    assert KnetstatdError in kinds
    assert all(issubclass(kind, KnetstatdError) for kind in kinds)


def test_a_build_error_keeps_its_class_and_evidence() -> None:
    error = BuildError("compile", "make failed", evidence=("x.c:1: error",))
    assert (error.kind, error.what, error.where, error.fix, error.evidence) == (
        "compile", "make failed", "", "", ("x.c:1: error",),
    )  # fmt: skip


def test_an_error_survives_a_copy() -> None:
    copy = pickle.loads(pickle.dumps(KnetstatdError("what", "where", "fix")))
    assert (copy.what, copy.where, copy.fix) == ("what", "where", "fix")
