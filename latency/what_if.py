"""What if HyDE ran less often, the cache hit more, the reranker were faster: predicted percentiles from measured queries.

An estimate, not a measurement: each stored query is taken as it was, with the seconds of what is changed replaced. It assumes
that the other stages take as long as they took. Replay measures the same; `check` compares. Pure; knows no files or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latency.percentiles import rank
from latency.stage_table import Flags, Floats, Rows, StageTable
from rag.errors import RagError
from rag.types import STAGES

SEED = 20_261_121
RESAMPLES = 400
_MOST_POINTS = 2000
HYDE, SEARCH, RERANK, GENERATE = (STAGES.index(name) for name in ("hyde", "search", "rerank", "generate"))


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is changed; None (and 0 of `hyde_skip_ratio`) leaves it as it was. Ratios are 0 to 1, times seconds.

    `hit_ratio` is of all queries, answered from the semantic cache in `hit_seconds`. `rerank_seconds` is what each reranking
    takes instead, `rerank_scale` a factor on what it took. `near_store` takes the network's part off the search.
    """

    hyde_skip_ratio: float = 0.0
    hit_ratio: float | None = None
    hit_seconds: float = 0.05
    rerank_seconds: float | None = None
    rerank_scale: float | None = None
    near_store: bool = False
    tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        for name in ("hyde_skip_ratio", "hit_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise RagError(f"{name} is {value}", kind="bad_input", next_step="Choose 0 to 1.")
        for name in ("hit_seconds", "rerank_seconds", "rerank_scale"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise RagError(f"{name} is {value}", kind="bad_input", next_step="Choose a number from 0 on.")
        if self.tokens_per_second is not None and not 0 < self.tokens_per_second < float("inf"):
            raise RagError(f"tokens_per_second is {self.tokens_per_second}", kind="bad_input", next_step="Choose more than 0.")

    @property
    def changes_nothing(self) -> bool:
        return self == Scenario(hit_seconds=self.hit_seconds)


class Estimate(NamedTuple):
    """A percentile or mean in seconds; `low` to `high` is where it lies in 95 % of resamples of as many queries."""

    value: float
    low: float
    high: float


class Prediction(NamedTuple):
    """Of `n` stored queries: as they were, and as they would have been. `assumptions` are sentences, for the reader."""

    n: int
    before_p50: Estimate
    before_p95: Estimate
    before_mean: Estimate
    p50: Estimate
    p95: Estimate
    mean: Estimate
    assumptions: tuple[str, ...]


class _Mixture(NamedTuple):
    """Durations, ascending, each with its probability; a point may stand for neighbours (the longest of them)."""

    seconds: Floats
    weights: Floats


def predict(
    table: StageTable, rows: Rows, scenario: Scenario, *, seed: int = SEED, resamples: int = RESAMPLES
) -> Prediction | None:
    """None without queries. The value is exact for the mixture of changed and unchanged queries; only its interval is drawn."""
    if not len(rows):
        return None
    before = _mixture(table.total[rows], np.ones(len(rows)))
    told: list[str] = []
    after = _changed(table, rows, scenario, told)
    was = _estimates(before, len(rows), seed, resamples)
    would = was if scenario.changes_nothing else _estimates(after, len(rows), seed + 1, resamples)
    return Prediction(len(rows), *was, *would, tuple(told))


# ------------------------------------------------------------------------------------------------------------ changing


def _changed(table: StageTable, rows: Rows, scenario: Scenario, told: list[str]) -> _Mixture:
    """The total of each query after the change. Fills `told` with what was assumed for it, and of how many it is known."""
    if scenario.hit_ratio is not None:
        hit = table.cache_hit[rows] == 1
        rows = rows[~hit]
        told.append(
            f"{scenario.hit_ratio:.0%} of all queries are answered from the semantic cache in "
            f"{scenario.hit_seconds * 1000:.0f} ms, whichever they are; the others are like the {len(rows):,} that were not."
        )
    total = table.total[rows].copy()
    seconds = table.seconds[rows]
    total += _rerank(seconds[:, RERANK], scenario, told)
    total -= _network(table, rows, scenario, told)
    total += _decode(table, rows, seconds[:, GENERATE], scenario, told)
    total = np.maximum(total, 0.0)
    skipped, ran = _without_hyde(total, seconds[:, HYDE], scenario, told)
    share = np.where(ran, scenario.hyde_skip_ratio, 0.0)
    points, weights = np.concatenate([total, skipped[ran]]), np.concatenate([1 - share, share[ran]])
    if scenario.hit_ratio is not None:
        n = max(1, len(rows))
        hits = scenario.hit_ratio if len(rows) else 1.0
        points = np.append(points, scenario.hit_seconds)
        weights = np.append(weights * (1 - hits) / n, hits)
    return _mixture(points, weights)


def _without_hyde(total: Floats, hyde: Floats, scenario: Scenario, told: list[str]) -> tuple[Floats, Flags]:
    ran = ~np.isnan(hyde)
    if scenario.hyde_skip_ratio:
        told.append(
            f"HyDE is skipped for {scenario.hyde_skip_ratio:.0%} of the {int(ran.sum()):,} queries that ran it, whichever they "
            "are; the second embedding and search it needs are not taken off."
        )
    return np.maximum(total - np.nan_to_num(hyde), 0.0), ran


def _rerank(took: Floats, scenario: Scenario, told: list[str]) -> Floats:
    ran = ~np.isnan(took)
    if scenario.rerank_seconds is not None:
        told.append(f"Each of the {int(ran.sum()):,} rerankings takes {scenario.rerank_seconds * 1000:.0f} ms.")
        return np.where(ran, scenario.rerank_seconds - np.nan_to_num(took), 0.0)
    if scenario.rerank_scale is not None:
        told.append(f"Each of the {int(ran.sum()):,} rerankings takes {scenario.rerank_scale:g} times as long.")
        return np.where(ran, (scenario.rerank_scale - 1) * np.nan_to_num(took), 0.0)
    return np.zeros(len(took))


def _network(table: StageTable, rows: Rows, scenario: Scenario, told: list[str]) -> Floats:
    network = table.network[rows, SEARCH].astype(np.float64)
    if not scenario.near_store:
        return np.zeros(len(rows))
    known = int((~np.isnan(network)).sum())
    ran = int((~np.isnan(table.seconds[rows, SEARCH])).sum())
    told.append(f"The network's part of the search is 0; it was measured in {known:,} of {ran:,} searches, the others stay.")
    return np.nan_to_num(network)


def _decode(table: StageTable, rows: Rows, took: Floats, scenario: Scenario, told: list[str]) -> Floats:
    """Decoding is what generate took beyond the first token: (tokens - 1) / rate."""
    if scenario.tokens_per_second is None:
        return np.zeros(len(rows))
    decode, further = took - table.ttft[rows], table.tokens[rows] - 1
    known = ~np.isnan(decode) & (decode >= 0) & (further > 0)
    told.append(
        f"After the first token, answers are written at {scenario.tokens_per_second:g} tokens/s: {int(known.sum()):,} of "
        f"{int((~np.isnan(took)).sum()):,} answers have known tokens and times, the others stay. First tokens are as late as they were."
    )
    return np.where(known, further / scenario.tokens_per_second - decode, 0.0)


# ----------------------------------------------------------------------------------------------------------- resampling


def _mixture(seconds: Floats, weights: Floats) -> _Mixture:
    order = np.argsort(seconds, kind="stable")
    seconds, weights = seconds[order], weights[order] / weights.sum()
    keep = weights > 0
    return _Mixture(seconds[keep], weights[keep])


def _estimates(mixture: _Mixture, n: int, seed: int, resamples: int) -> tuple[Estimate, Estimate, Estimate]:
    """p50, p95 and mean of the mixture; the intervals from resamples of `n` draws, with at most 2,000 points of like weight."""
    values = [_quantile(mixture, 50), _quantile(mixture, 95), float(mixture.seconds @ mixture.weights)]
    coarse, means = _coarse(mixture)
    # float32 sums of weights may pass 1 by an ulp, which multinomial refuses
    drawn = np.random.default_rng(seed).multinomial(n, coarse.weights / coarse.weights.sum(), size=resamples)
    reached = drawn.cumsum(axis=1)
    found = [
        coarse.seconds[(reached > rank(50, n)).argmax(axis=1)],
        coarse.seconds[(reached > rank(95, n)).argmax(axis=1)],
        drawn @ means / n,
    ]
    p50, p95, mean = (_estimate(value, draws) for value, draws in zip(values, found, strict=True))
    return p50, p95, mean


def _estimate(value: float, draws: Floats) -> Estimate:
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def _quantile(mixture: _Mixture, percent: int) -> float:
    # the subtraction keeps rounding of the sum from passing over the query that is exactly at the percentile
    at = int(np.searchsorted(mixture.weights.cumsum(), percent / 100 - 1e-9))
    return float(mixture.seconds[min(at, len(mixture.seconds) - 1)])


def _coarse(mixture: _Mixture) -> tuple[_Mixture, Floats]:
    """Neighbours joined where there are more than 2,000 points, and the mean seconds of each point."""
    if len(mixture.seconds) <= _MOST_POINTS:
        return mixture, mixture.seconds
    number: npt.NDArray[np.int64] = np.minimum(mixture.weights.cumsum() * _MOST_POINTS, _MOST_POINTS - 1).astype(np.int64)
    first = np.flatnonzero(np.diff(number, prepend=-1))
    weights = np.add.reduceat(mixture.weights, first)
    means = np.add.reduceat(mixture.weights * mixture.seconds, first) / weights
    longest = mixture.seconds[np.append(first[1:], len(number)) - 1]
    return _Mixture(longest, weights), means


# -------------------------------------------------------------------------------------------------------------- checking


class Check(NamedTuple):
    """A prediction beside what replay measured. Ratios are (predicted - measured) / measured; `holds`: both percentiles'
    intervals overlap those of the `n` measured totals."""

    n: int
    p50: Estimate
    p95: Estimate
    p50_error_ratio: float | None
    p95_error_ratio: float | None
    holds: bool


def check(predicted: Prediction, measured: Sequence[float], *, seed: int = SEED, resamples: int = RESAMPLES) -> Check:
    """Was the prediction right? `measured` are total seconds. Raises RagError without any."""
    if not measured:
        raise RagError("there is nothing measured to check against", kind="bad_input", next_step="Replay some queries first.")
    totals = np.asarray(measured, np.float64)
    p50, p95, _ = _estimates(_mixture(totals, np.ones(len(totals))), len(totals), seed + 2, resamples)
    pairs = ((predicted.p50, p50), (predicted.p95, p95))
    errors = [None if found.value == 0 else (said.value - found.value) / found.value for said, found in pairs]
    holds = all(said.low <= found.high and found.low <= said.high for said, found in pairs)
    return Check(len(totals), p50, p95, errors[0], errors[1], holds)
