# SPDX-License-Identifier: GPL-2.0-or-later
"""Repairs as data: who acts, and what a program is asked for."""

from __future__ import annotations

from pathlib import PurePosixPath

from knetstatd.repair.repairs import HOLD, HOLD_TEXT, Advise, Delete, Prove, Repair, Run, Write

ACTS = (Run(("true",)), Delete("/x"), Write("/x", "y"), Prove("demo", "1.0", "6.1"))


def repair(*acts: Run | Delete | Write | Prove | Advise) -> Repair:
    return Repair("kind", "subject", "what", "why", acts)


def test_one_piece_of_advice_makes_all_of_it_a_persons_work() -> None:
    assert not repair(*ACTS).is_advice
    assert not repair().is_advice
    for place in range(len(ACTS) + 1):
        assert repair(*ACTS[:place], Advise("look at it"), *ACTS[place:]).is_advice


def test_a_program_is_somebody_elses_and_leaves_dkms_alone_unless_it_says_so() -> None:
    assert (Run(("true",)).ours, Run(("true",)).hold) == (False, False)


def test_the_switch_is_dkms_own() -> None:
    """dkms_autoinstaller looks for this file and for no contents; a person who finds it reads whose it is."""
    assert PurePosixPath(HOLD) == PurePosixPath("/etc/dkms/no-autoinstall")
    assert HOLD_TEXT.startswith("knetstatctl repair")
