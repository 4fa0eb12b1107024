# SPDX-License-Identifier: GPL-2.0-or-later
"""Which failures are final, and which are tried again."""

from __future__ import annotations

from knetstatd.core.kinds import Kind, Retry


def test_whether_trying_again_can_help() -> None:
    """What the source decides is final; what the machine decides is not."""
    never = {kind for kind in Kind if kind.retry is Retry.NEVER}
    assert {Kind.COMPILE, Kind.API, Kind.SYMBOL, Kind.CONF, Kind.HEADERS, Kind.REFUSED, Kind.DENIED} <= never
    assert {kind for kind in Kind if kind.retry is Retry.TWICE} == {Kind.TIMEOUT, Kind.MEMORY, Kind.INITRD}
    assert {kind for kind in Kind if kind.retry is Retry.AFTER_TRANSACTION} == {Kind.DURING_TRANSACTION, Kind.REMOVED}
    assert {Kind.DISK, Kind.READ_ONLY, Kind.INTERRUPTED, Kind.FOREIGN_DKMS} <= {k for k in Kind if k.retry is Retry.BACKOFF}
