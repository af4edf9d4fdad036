"""Results of single questions -> what a run tells: means by stage and metric with intervals, times, what was wrong. And two runs
beside each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rag.evaluation import statistics
from rag.evaluation.readers import folded
from rag.evaluation.statistics import Difference
from rag.evaluation.types import METRICS, STAGES, Measured

TIMED = ("embed", "hyde", "search", "rerank")
MAX_REASONS = 5


def summary(results: Sequence[Measured], of: int) -> dict[str, Any] | None:
    """What `Run.summary` holds; None when nothing was measured. `of` is how many questions the set has.

    `{questions, of, stages: {stage: {metric: {mean, low, high, n}}}, seconds: {stage: {mean, p50, n}}, not_found,
    missing_judgements, missing_questions, degraded, degraded_reasons}`; intervals are null with fewer than 5 questions,
    `missing_…` where the collection's documents cannot be listed.
    """
    if not results:
        return None
    stages = [stage for stage in STAGES if stage in results[0].scores]
    cells = [(stage, metric) for stage in stages for metric in METRICS]
    found = statistics.means([[each.scores[stage][metric] for each in results] for stage, metric in cells])
    table: dict[str, dict[str, Any]] = {stage: {} for stage in stages}
    for (stage, metric), mean in zip(cells, found, strict=True):
        table[stage][metric] = mean._asdict()
    missing = [each.missing for each in results if each.missing is not None]
    reasons = dict.fromkeys(each.degraded for each in results if each.degraded)
    return {
        "questions": len(results),
        "of": of,
        "stages": table,
        "seconds": {stage: told for stage in TIMED if (told := _times(results, stage))},
        "not_found": sum(each.first[each.last_stage] is None for each in results),
        "missing_judgements": sum(missing) if len(missing) == len(results) else None,
        "missing_questions": sum(count > 0 for count in missing) if len(missing) == len(results) else None,
        "degraded": sum(each.degraded is not None for each in results),
        "degraded_reasons": list(reasons)[:MAX_REASONS],
    }


def _times(results: Sequence[Measured], stage: str) -> dict[str, Any] | None:
    spent = [each.seconds[stage] for each in results if stage in each.seconds]
    return {"mean": fmean(spent), "p50": statistics.median(spent), "n": len(spent)} if spent else None


@dataclass(frozen=True, slots=True)
class Pair:
    """One question in two runs: its values of the metric, and the rank of its first relevant item in each."""

    question: str
    a: float
    b: float
    first_a: int | None
    first_b: int | None

    @property
    def gap(self) -> float:
        return self.b - self.a


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run B against run A on the questions both measured; `only_a` and `only_b` count the others. `pairs` is worst first."""

    metric: str
    stage_a: str
    stage_b: str
    difference: Difference | None
    pairs: tuple[Pair, ...]
    only_a: int
    only_b: int

    @property
    def better(self) -> tuple[Pair, ...]:
        """Biggest gain first."""
        return tuple(pair for pair in reversed(self.pairs) if pair.gap > 1e-9)

    @property
    def worse(self) -> tuple[Pair, ...]:
        """Biggest loss first."""
        return tuple(pair for pair in self.pairs if pair.gap < -1e-9)


def compare(a: Sequence[Measured], b: Sequence[Measured], metric: str, stage: str | None = None) -> Comparison:
    """The metric at one stage of both runs, or (None) at the last stage that each has."""
    first, second = ({folded(each.question): each for each in side} for side in (a, b))
    stages = [stage or (side[0].last_stage if side else "fused") for side in (a, b)]
    pairs = tuple(
        Pair(
            one.question,
            one.scores[stages[0]][metric],
            other.scores[stages[1]][metric],
            one.first[stages[0]],
            other.first[stages[1]],
        )
        for key, one in first.items()
        if (other := second.get(key)) is not None and stages[0] in one.scores and stages[1] in other.scores
    )
    told = statistics.paired([pair.a for pair in pairs], [pair.b for pair in pairs]) if pairs else None
    return Comparison(
        metric,
        stages[0],
        stages[1],
        told,
        tuple(sorted(pairs, key=lambda pair: pair.gap)),
        only_a=len(first.keys() - second.keys()),
        only_b=len(second.keys() - first.keys()),
    )
