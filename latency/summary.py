"""All numbers of one look at the stored queries: what the page Latency shows. Pure, and small to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from latency import percentiles
from latency.percentiles import TOTAL, Bin, Chosen, Group, Heat, Selection, StageLine, Trend
from latency.stage_table import Rows, StageTable

LONGEST = 6


@dataclass(frozen=True, slots=True)
class View:
    """What is looked at: which queries, which column, cold or warm, compared by which option (its value in the selection holds
    for everything but the comparison). `length` of the time and `offset` of the reader's zone in seconds."""

    selection: Selection
    column: str = TOTAL
    heat: Heat = "all"
    option: str = "hyde"
    length: float | None = None
    offset: float = 0.0


class Outlier(NamedTuple):
    """What is beyond a column's p99: how many, and the longest as (query id, seconds)."""

    column: str
    p99: float
    n: int
    longest: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """`ids` are those of the rows that summaries name; `first` is when the first of the chosen queries began (Unix seconds)."""

    counts: Chosen
    lines: tuple[StageLine, ...]
    groups: tuple[Group, ...]
    trend: Trend
    bins: tuple[Bin, ...]
    outliers: tuple[Outlier, ...]
    ids: Mapping[int, str]
    first: float | None


class Pick(NamedTuple):
    """A bucket of the trend (`kind` "time": Unix seconds) or a bar of the distribution ("seconds")."""

    kind: str
    least: float
    most: float


def report(table: StageTable, view: View) -> Report:
    """Everything but lists of queries. Raises KeyError for an option or column there is not."""
    counts = percentiles.choose(table, view.selection)
    rows = counts.rows
    compared = rows
    if view.selection.value is not None:
        compared = percentiles.choose(table, replace(view.selection, option=None, value=None)).rows
    lines = percentiles.by_stage(table, rows)
    groups = percentiles.groups(table, compared, view.option, view.column, view.heat)
    return Report(
        counts._replace(rows=rows[:0]),
        lines,
        groups,
        percentiles.trend(table, rows, view.column, view.heat, length=view.length, offset=view.offset),
        percentiles.distribution(table, rows, view.column, view.heat),
        tuple(_outlier(table, each) for each in percentiles.outliers(table, rows, view.heat)),
        _ids(table, lines, groups),
        float(table.started[rows[0]]) if len(rows) else None,
    )


def _outlier(table: StageTable, found: percentiles.Outliers) -> Outlier:
    longest = found.rows[:LONGEST]
    spent = percentiles.timed(table, longest, found.column)[0]
    named = zip(table.ids[longest].tolist(), spent.tolist(), strict=True)
    return Outlier(found.column, found.p99, len(found.rows), tuple(named))


def _ids(table: StageTable, lines: Sequence[StageLine], groups: Sequence[Group]) -> dict[int, str]:
    told = [each for line in lines for each in (line.all, line.warm, line.cold)] + [group.summary for group in groups]
    return {row: table.ids[row] for each in told if each is not None for row in each.rows}


def listed(table: StageTable, view: View, pick: Pick | None = None) -> Rows:
    """Rows that ran the column, longest first: all that are chosen, or those of a bucket or bar."""
    rows = percentiles.choose(table, view.selection).rows
    if pick is not None and pick.kind == "seconds":
        return percentiles.between(table, rows, view.column, view.heat, pick.least, pick.most)
    if pick is not None:
        inside = (table.started[rows] >= pick.least) & (table.started[rows] < pick.most)
        rows = rows[inside]
    return percentiles.slowest(table, rows, view.column, view.heat, len(rows))
