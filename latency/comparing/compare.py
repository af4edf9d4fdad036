"""Two queries, or two sets of queries, compared stage by stage: which difference came from where, and is it one. Pure.

Differences are B minus A, in seconds. A single query is a set of one, of which no verdict is possible. Knows nothing of where
the cases come from; `latency.comparing.selection` finds them, `latency.experiments.replay` makes them in turn.

Medians of stages do not add up to the median of the total. So a stage has both: the difference of its medians, which has an
interval and a verdict, and its *contribution*, from the queries in the middle half by total time (whole queries, so that
contributions add up to the difference of their totals, and outliers do not decide). Shares are of contributions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latency.comparing import statistics
from latency.comparing.agreement import Agreement, agreement
from latency.comparing.differences import MachineState, Measure, Other, machine_states, measures, others
from latency.comparing.statistics import Interval, Verdict, verdict
from latency.comparing.words import summary
from latency.types import Case
from rag.errors import RagError
from rag.trace_rows import started_unix
from rag.types import STAGES

PARTS = ("load", "queue", "network", "tokenize", "compute", "other")
BETWEEN = "between stages"
LEAST_SECONDS = 0.001  # below a millisecond nothing matters, whatever its share
LEAST_OF_TOTAL = 0.01  # nor does a stage's change below a hundredth of the total
PAIRED_SHARE = 0.8  # sides are compared in pairs when so many queries of the larger one have a partner
SPLIT_STAGES = 3  # of how many stages the parts are compared
Column = NDArray[np.float64]


class Side(NamedTuple):
    """One side: the queries compared, slowest and fastest left in. `left_out` failed or were cancelled and are not compared."""

    ids: tuple[str, ...]
    median_seconds: float
    p95_seconds: float | None
    cold: int
    left_out: int
    first_unix: float
    last_unix: float
    typical_id: str

    @property
    def n(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Row:
    """A stage, a part of one, or the total. `a_seconds` and `b_seconds` are medians over the side's queries, with 0 for a query
    that skipped the stage; None where all skipped it. `share` of the total difference, None where there is none to share."""

    name: str
    a_seconds: float | None
    b_seconds: float | None
    contribution_seconds: float
    share: float | None
    verdict: Verdict
    a_ran: int
    b_ran: int
    a_cold: int = 0
    b_cold: int = 0
    parts: tuple[Row, ...] = ()

    @property
    def difference_seconds(self) -> float:
        return self.verdict.difference


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found. `stages` holds the largest contribution first. `pairs` is how many pairs were compared, None where
    the sides were compared as sets. `p95` is None with too few queries. `caution` says what the comparison cannot show."""

    a: Side
    b: Side
    pairs: int | None
    summary: str
    caution: str
    total: Row
    stages: tuple[Row, ...]
    measures: tuple[Measure, ...]
    others: tuple[Other, ...]
    machines: tuple[MachineState, ...]
    agreement: Agreement | None
    p95: Interval | None = None

    @property
    def single(self) -> bool:
        return self.a.n == 1 and self.b.n == 1

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in ("pairs", "summary", "caution")}
        data |= {"a": self.a._asdict() | {"n": self.a.n}, "b": self.b._asdict() | {"n": self.b.n}}
        data |= {"total": _row_json(self.total), "stages": [_row_json(row) for row in self.stages]}
        for name in ("measures", "others", "machines"):
            data[name] = [each._asdict() for each in getattr(self, name)]
        data["agreement"] = self.agreement.to_json() if self.agreement else None
        data["p95"] = self.p95._asdict() if self.p95 else None
        return data


def _row_json(row: Row) -> dict[str, Any]:
    return {
        **{key: value for key, value in asdict(replace(row, parts=())).items() if key != "verdict"},
        "difference_seconds": row.difference_seconds,
        "verdict": row.verdict.to_json(),
        "parts": [_row_json(part) for part in row.parts],
    }


def compare(a: Sequence[Case], b: Sequence[Case], *, seed: int = 0) -> Comparison:
    """B against A. Sides that asked the same questions equally often are compared in pairs, each question's first run on A with
    its first on B. Queries that failed or were cancelled count only where a side has no others. Raises RagError bad_input for
    an empty side."""
    sides = [_Runs.of(name, cases) for name, cases in (("A", a), ("B", b))]
    pairs = _pairs(*sides)
    if pairs is not None:
        sides = [side.chosen([pair[index] for pair in pairs]) for index, side in enumerate(sides)]
    table = _Table(sides[0], sides[1], pairs is not None, seed)
    total, stages = table.rows()
    found = Comparison(
        a=sides[0].side,
        b=sides[1].side,
        pairs=None if pairs is None else len(pairs),
        summary="",
        caution=_caution(sides[0], sides[1], pairs is not None),
        total=total,
        stages=stages,
        measures=measures(sides[0].cases, sides[1].cases),
        others=others(sides[0].cases, sides[1].cases),
        machines=machine_states(sides[0].cases, sides[1].cases),
        agreement=agreement(_answered_alike(sides, pairs is not None)),
        p95=statistics.difference(*table.totals, quantile=0.95, in_order=pairs is None, seed=seed),
    )
    return replace(found, summary=summary(found))


# 1) the sides


@dataclass(frozen=True, slots=True)
class _Runs:
    """A side's queries that are compared, in the order of time."""

    cases: tuple[Case, ...]
    left_out: int

    @classmethod
    def of(cls, name: str, cases: Sequence[Case]) -> _Runs:
        if not cases:
            raise RagError(f"side {name} has no query", kind="bad_input", next_step="Choose at least one query for each side.")
        usable = [case for case in cases if case.answer.outcome in ("answered", "no_documents")] or list(cases)
        ordered = sorted(usable, key=lambda case: (started_unix(case.answer), case.answer.id))
        return cls(tuple(ordered), len(cases) - len(usable))

    def chosen(self, places: Sequence[int]) -> _Runs:
        return replace(self, cases=tuple(self.cases[place] for place in places))

    @property
    def side(self) -> Side:
        totals = [case.answer.total_seconds for case in self.cases]
        middle = median(totals)
        started = [started_unix(case.answer) for case in self.cases]
        typical = min(self.cases, key=lambda case: abs(case.answer.total_seconds - middle))
        return Side(
            ids=tuple(case.answer.id for case in self.cases),
            median_seconds=middle,
            p95_seconds=float(np.quantile(totals, 0.95)) if len(totals) > 1 else None,
            cold=sum(case.answer.cold for case in self.cases),
            left_out=self.left_out,
            first_unix=min(started),
            last_unix=max(started),
            typical_id=typical.answer.id,
        )


def _pairs(a: _Runs, b: _Runs) -> list[tuple[int, int]] | None:
    """Places of queries with the same question, the n-th time on A with the n-th on B; None where too few have a partner."""
    places: list[dict[tuple[str, int], int]] = []
    for side in (a, b):
        seen: dict[str, int] = {}
        found: dict[tuple[str, int], int] = {}
        for place, case in enumerate(side.cases):
            question = case.answer.question
            number = seen[question] = seen.get(question, 0) + 1
            if question:
                found[question, number] = place
        places.append(found)
    common = [(place, places[1][key]) for key, place in places[0].items() if key in places[1]]
    enough = len(common) >= PAIRED_SHARE * max(len(a.cases), len(b.cases))
    return sorted(common) if common and enough else None


def _answered_alike(sides: Sequence[_Runs], paired: bool) -> list[tuple[Case, Case]]:
    """The pairs whose results can be compared: the same question, or one query against one."""
    if paired or all(len(side.cases) == 1 for side in sides):
        return list(zip(sides[0].cases, sides[1].cases, strict=True))
    return []


def _caution(a: _Runs, b: _Runs, paired: bool) -> str:
    if len(a.cases) == 1 and len(b.cases) == 1:
        return "One run each proves nothing: the next run of the same query may be as different. Replay runs both in turn."
    if min(len(a.cases), len(b.cases)) < statistics.fewest():
        return f"There are fewer than {statistics.fewest()} queries on a side: no interval can be given."
    if paired:
        return ""
    return (
        "The sides are different sets of queries: other questions and other times can be part of the difference. "
        "Replay asks the same questions on both sides in turn."
    )


# 2) the times


class _Table:
    """Seconds of every stage and part by query: a column a name."""

    def __init__(self, a: _Runs, b: _Runs, paired: bool, seed: int) -> None:
        self.sides, self.paired, self.seed = (a, b), paired, seed
        known = {stage.stage for side in self.sides for case in side.cases for stage in case.answer.stages}
        self.names = [name for name in STAGES if name in known] + sorted(known - set(STAGES))
        self.columns = (_columns(a.cases, self.names), _columns(b.cases, self.names))
        self.middle = self._middle()
        self.apart = self.contribution("total")
        self.longest = max(float(np.median(column["total"])) for column in self.columns)

    @property
    def totals(self) -> tuple[list[float], list[float]]:
        return self.columns[0]["total"].tolist(), self.columns[1]["total"].tolist()

    def _middle(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The queries in the middle half of each side by total; of pairs, by their difference."""
        first, second = (column["total"] for column in self.columns)
        if self.paired:
            same = _middle_half(second - first)
            return same, same
        return _middle_half(first), _middle_half(second)

    def contribution(self, name: str) -> float:
        a, b = (float(column[name][rows].mean()) for column, rows in zip(self.columns, self.middle, strict=True))
        return b - a

    def rows(self) -> tuple[Row, tuple[Row, ...]]:
        total = self.row("total", None)
        shared = self.apart if total.verdict.called or self._single_matters(total) else None
        found = [self.row(name, shared) for name in (*self.names, BETWEEN)]
        found = [row for row in found if row.a_ran or row.b_ran]
        found.sort(key=lambda row: -abs(row.contribution_seconds))
        split = [row.name for row in found[:SPLIT_STAGES] if row.name != BETWEEN and self._matters(row)]
        return replace(total, share=None if shared is None else 1.0), tuple(
            replace(row, parts=self.parts(row.name, shared)) if row.name in split else row for row in found
        )

    def _single_matters(self, total: Row) -> bool:
        return total.verdict.word == "too few" and abs(total.difference_seconds) >= total.verdict.minimum_effect

    def _matters(self, row: Row) -> bool:
        return abs(row.contribution_seconds) >= max(LEAST_SECONDS, LEAST_OF_TOTAL * self.longest, 0.1 * abs(self.apart))

    def row(self, name: str, shared: float | None) -> Row:
        a, b = (column[name] for column in self.columns)
        interval = self.interval(a, b)
        middles = [float(np.median(side)) for side in (a, b)]
        apart = interval.difference if interval else float(np.median(b - a)) if self.paired else middles[1] - middles[0]
        ran = [_ran(side.cases, name) for side in self.sides]
        contribution = self.contribution(name)
        return Row(
            name=name.rpartition(".")[2],
            a_seconds=middles[0] if ran[0] else None,
            b_seconds=middles[1] if ran[1] else None,
            contribution_seconds=contribution,
            share=None if shared is None else contribution / shared,
            verdict=verdict(apart, interval, self.minimum_effect(middles)),
            a_ran=ran[0],
            b_ran=ran[1],
            a_cold=_cold(self.sides[0].cases, name),
            b_cold=_cold(self.sides[1].cases, name),
        )

    def interval(self, a: Column, b: Column) -> Interval | None:
        if self.paired:
            return statistics.paired_difference(a.tolist(), b.tolist(), seed=self.seed)
        return statistics.difference(a.tolist(), b.tolist(), in_order=True, seed=self.seed)

    def minimum_effect(self, middles: Sequence[float]) -> float:
        share = statistics.MINIMUM_SHARE if self.paired else statistics.MINIMUM_SHARE_APART
        return max(LEAST_SECONDS, LEAST_OF_TOTAL * self.longest, share * max(middles))

    def parts(self, stage: str, shared: float | None) -> tuple[Row, ...]:
        found = [self.row(f"{stage}.{part}", shared) for part in PARTS]
        known = [row for row in found if row.a_seconds or row.b_seconds or row.contribution_seconds]
        return tuple(sorted(known, key=lambda row: -abs(row.contribution_seconds)))


def _columns(cases: Sequence[Case], names: Sequence[str]) -> Mapping[str, Column]:
    """By name, one value a query: `total`, each stage (0 where it did not run), `stage.part`, and what no stage accounts for."""
    found = {"total": np.array([case.answer.total_seconds for case in cases])}
    for name in names:
        stages = [case.stage(name) for case in cases]
        found[name] = np.array([stage.seconds if stage else 0.0 for stage in stages])
        for part in PARTS:
            found[f"{name}.{part}"] = np.array([(getattr(stage.split, part) or 0.0) if stage else 0.0 for stage in stages])
    found[BETWEEN] = found["total"] - sum((found[name] for name in names), np.zeros(len(cases)))
    return found


def _middle_half(values: Column) -> NDArray[np.intp]:
    order = np.argsort(values, kind="stable")
    cut = len(values) // 4
    return order[cut : len(values) - cut]


def _ran(cases: Sequence[Case], name: str) -> int:
    """In how many queries the stage (of a part: with that part known) took place."""
    stage, _, part = name.partition(".")
    if stage in ("total", BETWEEN):
        return len(cases)
    found = [known for case in cases if (known := case.stage(stage))]
    if part:
        return sum(getattr(known.split, part) is not None for known in found)
    return sum(bool(known.spans or known.seconds) for known in found)


def _cold(cases: Sequence[Case], name: str) -> int:
    if name in ("total", BETWEEN):
        return sum(case.answer.cold for case in cases) if name == "total" else 0
    return sum(bool((stage := case.stage(name.partition(".")[0])) and stage.cold) for case in cases)
