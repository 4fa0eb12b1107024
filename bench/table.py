# SPDX-License-Identifier: GPL-2.0-or-later
"""What is printed: one row per budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEADER = ("measurement", "ours", "peer or limit", "ratio", "by", "budget", "")


class Row(NamedTuple):
    """One measurement. met: None where it is shown only for comparison.  short: it belongs into docs/figures.md."""

    what: str
    ours: str
    peer: str
    ratio: str
    by: str
    budget: str = ""
    met: bool | None = None
    short: bool = True

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        verdict = "" if self.met is None else "met" if self.met else "MISSED"
        return (self.what, self.ours, self.peer, self.ratio, self.by, self.budget, verdict)


def seconds(value: float) -> str:
    """A time with three significant digits."""
    if value >= 0.9995:
        return f"{value:#.3g} s".replace(". s", " s")
    return f"{value * 1e3:#.3g} ms".replace(". ms", " ms") if value >= 0.0009995 else f"{value * 1e6:.0f} us"


def ratio(ours: float, peer: float) -> str:
    """How many times the peer's, or which part of it."""
    if not peer or not ours:
        return "-"
    return f"1/{peer / ours:.0f}" if ours * 10 < peer else f"{ours / peer:.2f}"


def text(rows: Iterable[Row]) -> str:
    """A table for a terminal."""
    lines = [HEADER, *(row.cells for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def markdown(rows: Sequence[Row]) -> str:
    """The judged rows, for docs/figures.md."""
    lines: list[Sequence[str]] = [HEADER[:6], ["---"] * 6, *(row.cells[:6] for row in rows if row.short)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
