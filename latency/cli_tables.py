"""A comparison as lines of text, for the commands that compare."""

from __future__ import annotations

from latency.comparing.compare import Comparison, Row
from rag.quantities import seconds


def compared(found: Comparison) -> str:
    """A comparison as its summary and a table of medians by stage; differences are B less A."""
    head = f"{'':18}{'A':>10}{'B':>10}{'B - A':>11}{'share':>8}"
    rows = [_compared_row(row) for row in (*found.stages, found.total)]
    return "\n".join([found.summary, *([found.caution] if found.caution else []), head, *rows])


def _compared_row(row: Row) -> str:
    sign = "-" if row.difference_seconds < 0 else "+"
    difference = f"{sign}{seconds(abs(row.difference_seconds))}"
    share = "" if row.share is None else f"{100 * row.share:.0f} %"
    return f"{row.name[:17]:18}{seconds(row.a_seconds):>10}{seconds(row.b_seconds):>10}{difference:>11}{share:>8}"
