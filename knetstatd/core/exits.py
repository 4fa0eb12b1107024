# SPDX-License-Identifier: GPL-2.0-or-later
"""How our programs end: every exit status, once. knetstatctl(1), "EXIT STATUS", says the same to users."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """The exit statuses of knetstatctl and knetstatd. Monitoring systems read 0 to 3; 75 and 78 are those of sysexits(3).

    UNKNOWN: there is nothing to judge, or something that decides cannot be read.
    IN_PROGRESS: something is under way that will change the answer, or another run is at work (EX_TEMPFAIL).
    CONFIG: the configuration is faulty (EX_CONFIG).
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    UNKNOWN = 3
    IN_PROGRESS = 75
    CONFIG = 78
