"""Percentiles, shares, groups, trends and distributions of stored queries. Pure functions of a StageTable; nothing is sampled.

A percentile is the nearest rank: pN is the smallest value with at least N % of all values at or below it. So it is always the
time of a query that exists, whose id comes with it. Knows nothing of files or pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from latency.percentiles.options import NOT_RUN, OPTIONS, UNKNOWN
from latency.percentiles.table import PARTS, Codes, Flags, Floats, Rows, StageTable
from rag.quantities import rank
from rag.types import STAGES

Heat = Literal["all", "warm", "cold"]
PERCENTS = (50, 90, 95, 99)
TOTAL = "total"
COLUMNS = (TOTAL, *STAGES)
USUAL = "usual"  # of origins: every one but "measure"
EVERY = "all"
MEASURE = "measure"
DONE = "done"  # of outcomes: the path ran to its end, with or without documents
_DONE = ("answered", "no_documents")


# ----------------------------------------------------------------------------------------------------------- percentiles


class Summary(NamedTuple):
    """`n` durations in seconds. `rows` are the table's rows of p50, p90, p95, p99 and the longest."""

    n: int
    p50: float
    p90: float
    p95: float
    p99: float
    longest: float
    mean: float
    summed: float
    rows: tuple[int, int, int, int, int]


def summary(values: Floats, rows: Rows) -> Summary | None:
    """Of `values` (finite), which belong to those rows of a table; None without any."""
    n = len(values)
    if not n:
        return None
    ranks = [*(rank(percent, n) for percent in PERCENTS), n - 1]
    order = np.argpartition(values, sorted(set(ranks)))
    at = [int(order[each]) for each in ranks]
    p50, p90, p95, p99, longest = (float(values[each]) for each in at)
    found = tuple(int(rows[each]) for each in at)
    summed = float(values.sum())
    return Summary(n, p50, p90, p95, p99, longest, summed / n, summed, found)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- choosing


@dataclass(frozen=True, slots=True)
class Selection:
    """Which queries: `since` <= start < `until` (Unix seconds), an origin (or USUAL, EVERY), an outcome (or DONE, EVERY), and
    those where `option` (a key of OPTIONS) has `value`."""

    since: float = float("-inf")
    until: float = float("inf")
    origin: str = USUAL
    outcome: str = DONE
    option: str | None = None
    value: str | None = None


class Chosen(NamedTuple):
    """Rows of the table that were selected, `n` of `within` that began in the time; why the others were left out."""

    rows: Rows
    n: int
    within: int
    measured: int
    other_origin: int
    other_outcome: int
    other_value: int


def choose(table: StageTable, selection: Selection) -> Chosen:
    """Who is counted, and how many are left out for each reason (the first that applies, in the order of Chosen)."""
    # ascending, so that a time is a slice
    start, end = np.searchsorted(table.started, (selection.since, selection.until))
    at = np.arange(start, end)
    within, origin = len(at), table.origin[at]
    is_measured = origin == table.code(MEASURE)
    if selection.origin == USUAL:
        right = ~is_measured
    else:
        right = np.full(within, True) if selection.origin == EVERY else origin == table.code(selection.origin)
    measured = int((is_measured & ~right).sum())
    other_origin = int((~right).sum()) - measured
    at = at[right]
    ended = _ended(table, at, selection.outcome)
    other_outcome, at = int((~ended).sum()), at[ended]
    fits = np.full(len(at), True)
    if selection.option and selection.value is not None:
        labelled = OPTIONS[selection.option].of(table, at)
        fits = labelled.codes == labelled.find(selection.value)
    return Chosen(at[fits], int(fits.sum()), within, measured, other_origin, other_outcome, int((~fits).sum()))


def _ended(table: StageTable, at: Rows, outcome: str) -> Flags:
    if outcome == EVERY:
        return np.full(len(at), True)
    names = _DONE if outcome == DONE else (outcome,)
    return np.isin(table.outcome[at], [table.code(name) for name in names])


def timed(table: StageTable, rows: Rows, column: str, heat: Heat = "all") -> tuple[Floats, Rows]:
    """Seconds of the total or of a stage, where it ran, and the rows they belong to.

    Cold is a stage's own label; the total is cold where any of its stages was.
    """
    if column == TOTAL:
        values, cold = table.total[rows], table.cold[rows]
    else:
        place = STAGES.index(column)
        values, cold = table.seconds[rows, place], table.stage_cold[rows, place]
    keep = ~np.isnan(values)
    if heat != "all":
        keep &= cold if heat == "cold" else ~cold
    return values[keep], rows[keep]


# ------------------------------------------------------------------------------------------------------------- by stage


class StageLine(NamedTuple):
    """The total (`stage` "total") or one stage: all its runs, the warm and the cold ones apart.

    `share` is its part of the selected queries' summed time; `parts` the mean seconds of its split, where it is known."""

    stage: str
    all: Summary | None
    warm: Summary | None
    cold: Summary | None
    share: float | None
    parts: Mapping[str, float]

    def of(self, heat: Heat) -> Summary | None:
        return {"all": self.all, "warm": self.warm, "cold": self.cold}[heat]


def by_stage(table: StageTable, rows: Rows) -> tuple[StageLine, ...]:
    """The total first, then the stages in their fixed order."""
    together = float(table.total[rows].sum())
    lines = []
    for column in COLUMNS:
        whole, warm, cold = (summary(*timed(table, rows, column, heat)) for heat in ("all", "warm", "cold"))
        share = whole.summed / together if whole is not None and together > 0 else None
        lines.append(StageLine(column, whole, warm, cold, share, _parts(table, rows, column) if whole else {}))
    return tuple(lines)


def _parts(table: StageTable, rows: Rows, column: str) -> dict[str, float]:
    """Mean seconds of each part of a stage's split, over the runs of which it is known."""
    if column == TOTAL:
        return {}
    place = STAGES.index(column)
    found = {}
    for name in PARTS:
        values = table.part(name)[rows, place]
        known = values[~np.isnan(values)]
        if len(known):
            found[name] = float(known.mean())
    return found


def leading(lines: tuple[StageLine, ...]) -> StageLine | None:
    """The stage that took the largest share."""
    stages = [line for line in lines if line.stage != TOTAL and line.share]
    return max(stages, key=lambda line: line.share or 0.0, default=None)


# ------------------------------------------------------------------------------------------------------------- by option


class Group(NamedTuple):
    """Queries that have one value of an option."""

    value: str
    queries: int
    summary: Summary | None


def groups(table: StageTable, rows: Rows, option: str, column: str = TOTAL, heat: Heat = "all") -> tuple[Group, ...]:
    """Every value that occurs, that with most queries first. Raises KeyError for an option there is not."""
    labelled = OPTIONS[option].of(table, rows)
    found = []
    for code in np.unique(labelled.codes):
        mine = rows[labelled.codes == code]
        found.append(Group(labelled.labels[code], len(mine), summary(*timed(table, mine, column, heat))))
    return tuple(sorted(found, key=lambda group: (-group.queries, group.value)))


# -------------------------------------------------------------------------------------------------------------- in time

STEPS = (10, 60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86_400, 7 * 86_400, 30 * 86_400)
MOST_BUCKETS = 72


class Bucket(NamedTuple):
    """The queries that began in [`start`, `start` + step)."""

    start: float
    n: int
    p50: float
    p95: float
    longest: float


class Change(NamedTuple):
    """From `at` on most queries had another value of `option`."""

    at: float
    option: str
    before: str
    after: str


class Trend(NamedTuple):
    """Buckets without a query are left out; `changes` are what may explain a step."""

    step: float
    buckets: tuple[Bucket, ...]
    changes: tuple[Change, ...]


def step_for(length: float) -> float:
    """The shortest step that cuts `length` seconds into at most MOST_BUCKETS."""
    return float(next((step for step in STEPS if length <= step * MOST_BUCKETS), STEPS[-1]))


def trend(
    table: StageTable, rows: Rows, column: str = TOTAL, heat: Heat = "all", *, length: float | None = None, offset: float = 0.0
) -> Trend:
    """Percentiles by time of start. `length` in seconds decides the step (the queries' own span without it); `offset` is that of
    the reader's zone from UTC, so that days begin at midnight there."""
    if not len(rows):
        return Trend(step_for(length or 0.0), (), ())
    span = float(table.started[rows[-1]] - table.started[rows[0]]) if length is None else length
    step = step_for(span)
    values, kept = timed(table, rows, column, heat)
    number = np.floor((table.started[kept] + offset) / step).astype(np.int64)
    order = np.lexsort((values, number))
    values, number = values[order], number[order]
    buckets = []
    for first, last in _runs(number):
        n = last - first
        p50, p95, longest = (float(values[first + each]) for each in (rank(50, n), rank(95, n), n - 1))
        buckets.append(Bucket(float(number[first] * step - offset), n, p50, p95, longest))
    return Trend(step, tuple(buckets), changes(table, rows, step))


def _runs(numbers: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Where each run of equal numbers begins and ends."""
    borders = [*np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1)).tolist(), len(numbers)]
    return list(pairwise(borders))


_MODELS = ("model", "embed_model", "rerank_model")
_MARKED = ("settings", "version", *_MODELS, "embed_device", "rerank_device", "embed_place", "rerank_place")


def changes(table: StageTable, rows: Rows, step: float) -> tuple[Change, ...]:
    """When the value that most queries of a bucket have became another one, for settings, versions, models and where they run.

    Values that alternate within buckets make no change; stages that did not run and values that are not known say nothing.
    """
    found = []
    for name in _MARKED:
        codes, labels = OPTIONS[name].of(table, rows)
        says = np.array([label not in (UNKNOWN, NOT_RUN) for label in labels])[codes]
        found += _changes(name, table.started[rows][says], codes[says], labels, step)
    return tuple(sorted(found))


def _changes(name: str, started: Floats, codes: Codes, labels: tuple[str, ...], step: float) -> list[Change]:
    found, before, began = [], -1, 0
    for first, last in _runs(np.floor(started / step).astype(np.int64)):
        usual = int(np.bincount(codes[first:last]).argmax())
        if before >= 0 and usual != before:
            # it may have begun in the bucket before, where the old value was still the usual one
            since = began + int(np.flatnonzero(codes[began:last] == usual)[0])
            found.append(Change(float(started[since]), name, labels[before], labels[usual]))
        before, began = usual, first
    return found


# --------------------------------------------------------------------------------------------------------- distribution

BINS_PER_DECADE = 10
_SHORTEST = 1e-5


class Bin(NamedTuple):
    """Durations of `least` <= seconds < `most`."""

    least: float
    most: float
    warm: int
    cold: int


def distribution(table: StageTable, rows: Rows, column: str = TOTAL, heat: Heat = "all") -> tuple[Bin, ...]:
    """All durations in bins of equal ratio, ten a decade, from the shortest to the longest; empty ones between are kept.

    Durations under 8 us are in one bin, whose `least` is 0."""
    both = [timed(table, rows, column, each)[0] if heat in ("all", each) else np.empty(0) for each in ("warm", "cold")]
    values = np.concatenate(both)
    if not len(values):
        return ()
    low, high = (np.log10(max(float(value), _SHORTEST)) * BINS_PER_DECADE for value in (values.min(), values.max()))
    # one bin to spare at either end: what is on an edge is decided by the edges, not by logarithms
    edges = 10 ** (np.arange(np.floor(low) - 1, np.floor(high) + 3) / BINS_PER_DECADE)
    edges[0] = 0.0
    warm, cold = (np.bincount(np.searchsorted(edges, each, side="right") - 1, minlength=len(edges) - 1) for each in both)
    used = np.flatnonzero(warm + cold)
    return tuple(Bin(float(edges[k]), float(edges[k + 1]), int(warm[k]), int(cold[k])) for k in range(used[0], used[-1] + 1))


# ------------------------------------------------------------------------------------------------------------- outliers


def slowest(table: StageTable, rows: Rows, column: str = TOTAL, heat: Heat = "all", n: int = 10) -> Rows:
    """Rows of the `n` longest, longest first."""
    values, kept = timed(table, rows, column, heat)
    found: Rows = kept[np.argsort(-values, kind="stable")[:n]]
    return found


class Outliers(NamedTuple):
    """The runs of a stage (or totals) longer than its p99, longest first."""

    column: str
    p99: float
    rows: Rows


def outliers(table: StageTable, rows: Rows, heat: Heat = "all") -> tuple[Outliers, ...]:
    """Per column what is beyond its p99; columns where nothing is are left out (a p99 of fewer than 100 is the longest)."""
    found = []
    for column in COLUMNS:
        values, kept = timed(table, rows, column, heat)
        told = summary(values, kept)
        if told is not None and (beyond := values > told.p99).any():
            order = np.argsort(-values[beyond], kind="stable")
            found.append(Outliers(column, told.p99, kept[beyond][order]))
    return tuple(found)


def between(table: StageTable, rows: Rows, column: str, heat: Heat, least: float, most: float) -> Rows:
    """Rows with `least` <= seconds < `most` in that column, longest first."""
    values, kept = timed(table, rows, column, heat)
    inside = (values >= least) & (values < most)
    found: Rows = kept[inside][np.argsort(-values[inside], kind="stable")]
    return found
