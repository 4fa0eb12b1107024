# SPDX-License-Identifier: GPL-2.0-or-later
"""The classes of failure, and whether trying again can help."""

from __future__ import annotations

import enum


class Retry(enum.StrEnum):
    """What a failure's class says about trying again with the same source, headers and compiler."""

    NEVER = "never"
    BACKOFF = "backoff"
    TWICE = "twice"
    AFTER_TRANSACTION = "after the package transaction"


class Kind(enum.StrEnum):
    """The classes of failure, as they are named in the journal and in JSON."""

    COMPILE = "compile"
    API = "kernel-api"
    SYMBOL = "undefined-symbol"
    WRONG_KERNEL = "wrong-kernel"
    NOT_LOADABLE = "not-loadable"
    UNPROVEN = "unproven"
    EXCLUDED = "excluded"
    CONF = "dkms-conf"
    NO_MODULE = "no-module"
    HEADERS = "headers"
    KERNEL_DIR = "kernel-directory"
    COMPILER = "compiler"
    TOOLS = "kernel-tools"
    REFUSED = "kernel-refused"
    MISMATCH = "kernel-mismatch"
    DENIED = "denied"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    DISK = "disk"
    READ_ONLY = "read-only"
    INTERRUPTED = "interrupted"
    FOREIGN_DKMS = "foreign-dkms"
    DKMS_TREE = "dkms-tree"
    SIGNING = "signing"
    PUBLISH = "publish"
    PACKAGES = "packages"
    INITRD = "initrd"
    REHEARSAL = "rehearsal"
    DURING_TRANSACTION = "during-transaction"
    REMOVED = "removed"

    @property
    def retry(self) -> Retry:
        """Whether trying again can help."""
        return _RETRY.get(self, Retry.NEVER)


_RETRY = {
    **dict.fromkeys((Kind.TIMEOUT, Kind.MEMORY, Kind.INITRD), Retry.TWICE),
    **dict.fromkeys((Kind.DURING_TRANSACTION, Kind.REMOVED), Retry.AFTER_TRANSACTION),
    **dict.fromkeys((
        Kind.DISK, Kind.READ_ONLY, Kind.INTERRUPTED, Kind.MISMATCH, Kind.FOREIGN_DKMS, Kind.SIGNING, Kind.PUBLISH,
        Kind.PACKAGES, Kind.REHEARSAL, Kind.UNPROVEN,
    ), Retry.BACKOFF),
}  # fmt: skip
