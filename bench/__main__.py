# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m bench`: measures the budgets and prints them; exit status 1 when one is missed."""

from __future__ import annotations

import argparse
import sys

from . import box, build, huge, idle, image, observe, rehearse, sockets, status, table, transaction, verify

MEASUREMENTS = {
    "observe": observe.run,
    "idle": idle.run,
    "build": build.run,
    "verify": verify.run,
    "huge": huge.run,
    "image": image.run,
    "status": status.run,
    "transaction": transaction.run,
    "rehearse": rehearse.run,
    "sockets": sockets.run,
}


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the budgets, in containers and virtual machines, as root."
    )
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each comparison (default: 5)")
    parser.add_argument("--suite", default="bookworm", help="the Debian release to measure in (default: bookworm)")
    parser.add_argument("--markdown", action="store_true", help="print the judged rows as Markdown")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only or MEASUREMENTS:
        box.note(f"measuring: {name}")
        measured = MEASUREMENTS[name](arguments.suite, arguments.rounds)
        for row in measured:
            box.note("  ".join(row.cells))  # the table comes at the end, if nothing fails before
        rows += measured
    print(table.markdown(rows) if arguments.markdown else table.text(rows))
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
