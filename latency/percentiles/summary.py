"""All numbers of one look at the stored queries: what the page Latency shows. Pure, and small to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from latency.percentiles import percentiles
from latency.percentiles.percentiles import TOTAL, Bin, Chosen, Group, Heat, Selection, StageLine, Summary, Trend
from latency.percentiles.table import Rows, StageTable

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


class Whole(NamedTuple):
    """What does not depend on the column that is looked at. `ids` are those of the rows that summaries name."""

    counts: Chosen
    lines: tuple[StageLine, ...]
    outliers: tuple[Outlier, ...]
    ids: Mapping[int, str]


class Focus(NamedTuple):
    """One column: by option, in time, and how its durations are spread."""

    groups: tuple[Group, ...]
    trend: Trend
    bins: tuple[Bin, ...]
    ids: Mapping[int, str]


class Pick(NamedTuple):
    """A bucket of the trend (`kind` "time": Unix seconds) or a bar of the distribution ("seconds")."""

    kind: str
    least: float
    most: float


def whole(table: StageTable, selection: Selection, heat: Heat = "all") -> Whole:
    """Every stage, and what is beyond its p99."""
    counts = percentiles.choose(table, selection)
    lines = percentiles.by_stage(table, counts.rows)
    beyond = tuple(_outlier(table, each) for each in percentiles.outliers(table, counts.rows, heat))
    told = (each for line in lines for each in (line.all, line.warm, line.cold))
    # rows mean nothing without the table, and are large; their number stays
    return Whole(counts._replace(rows=counts.rows[:0]), lines, beyond, _ids(table, told))


def focus(table: StageTable, view: View) -> Focus:
    """The column of a view. Raises KeyError for an option there is not."""
    rows = compared = percentiles.choose(table, view.selection).rows
    if view.selection.value is not None:
        compared = percentiles.choose(table, replace(view.selection, option=None, value=None)).rows
    groups = percentiles.groups(table, compared, view.option, view.column, view.heat)
    return Focus(
        groups,
        percentiles.trend(table, rows, view.column, view.heat, length=view.length, offset=view.offset),
        percentiles.distribution(table, rows, view.column, view.heat),
        _ids(table, (group.summary for group in groups)),
    )


def _outlier(table: StageTable, found: percentiles.Outliers) -> Outlier:
    longest = found.rows[:LONGEST]
    spent = percentiles.timed(table, longest, found.column)[0]
    named = zip(table.ids[longest].tolist(), spent.tolist(), strict=True)
    return Outlier(found.column, found.p99, len(found.rows), tuple(named))


def _ids(table: StageTable, told: Iterable[Summary | None]) -> dict[int, str]:
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
