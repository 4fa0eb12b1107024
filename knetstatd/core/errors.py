# SPDX-License-Identifier: GPL-2.0-or-later
"""The one family of errors. Each says what happened, where, and what to do; programming errors are not in it."""

from __future__ import annotations

from knetstatd.core.exits import Exit


class KnetstatdError(Exception):
    """Something outside the program is not as it must be.

    what: one sentence, without a full stop.  where: the file, name or value concerned.
    fix: what the reader can do, a command if there is one; may be empty.
    """

    exit_code = Exit.FAILED

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        stop = "" if text.endswith("?") else "."
        return f"{text}{stop} {self.fix}" if self.fix else text


class NameRefused(KnetstatdError):
    """A kernel, module or version name that must not reach a program, a path or a log (see names)."""

    exit_code = Exit.USAGE


class UsageError(KnetstatdError):
    """A command line that asks for something that does not exist or makes no sense."""

    exit_code = Exit.USAGE


class ConfigError(KnetstatdError):
    """A configuration file that cannot be used; every fault found is one line of `what`."""

    exit_code = Exit.CONFIG


class UnknownError(KnetstatdError):
    """What was asked cannot be known here: it may not be read, or there is nothing that could be judged."""

    exit_code = Exit.UNKNOWN


class ModuleFileError(KnetstatdError):
    """A .ko that cannot be read as a kernel module: not there, truncated, not ELF, damaged compression."""


class KernelFileError(KnetstatdError):
    """A file that describes a kernel (Module.symvers, modules.dep, utsrelease.h) is missing or does not parse."""


class ImageFault(KernelFileError):
    """A kernel's boot image is damaged, or of another build than its modules: of no module is known whether it loads there."""


class BuildError(KnetstatdError):
    """Staging or publishing failed; `kind` is the class that decides whether a retry can help (see diagnose)."""

    def __init__(self, kind: str, what: str, where: str = "", fix: str = "", evidence: tuple[str, ...] = ()) -> None:
        super().__init__(what, where, fix)
        self.kind = kind
        self.evidence = evidence


class ShuttingDown(KnetstatdError):
    """The machine is being stopped, and begins nothing new. That is nobody's failure: it is done after the next boot."""


class Damaged(Exception):
    """The bytes of a file are not what its format asks for. The text goes on after the file's name: "ends too early"."""


class Unfamiliar(Damaged):
    """The bytes of a file are of a kind that is not known here: nothing is known of the file, and nothing stands against it."""


class LibraryMissing(Unfamiliar):
    """A file cannot be unpacked because a library is not installed. package: Debian's."""

    def __init__(self, kind: str, package: str) -> None:
        super().__init__(f"is compressed with {kind}, and {package} is not installed")
        self.package = package


class ChildLost(KnetstatdError):
    """A child did not come to its end: it was killed, had no memory, or took too long. Nothing is known of its work."""
