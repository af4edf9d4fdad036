"""What if HyDE ran less often, the cache hit more, the reranker were faster: predicted percentiles from measured queries.

An estimate, not a measurement: each stored query is taken as it was, with the seconds of what is changed replaced. It assumes
that the other stages take as long as they took. Replay measures the same; `check` compares. Pure; knows no files or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from latency.percentiles.table import Flags, Floats, Rows, StageTable
from rag.errors import RagError
from rag.quantities import rank
from rag.types import STAGES

SEED = 20_261_121
DRAWS = 4000
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
    """A percentile in seconds; `low` to `high` is where it lies in 95 % of resamples of as many queries."""

    value: float
    low: float
    high: float


class Prediction(NamedTuple):
    """Of `n` stored queries: as they were, and as they would have been. `assumptions` are sentences, for the reader."""

    n: int
    before_p50: Estimate
    before_p95: Estimate
    before_mean: float
    p50: Estimate
    p95: Estimate
    mean: float
    assumptions: tuple[str, ...]


class _Mixture(NamedTuple):
    """Durations, ascending, and the probability of each or a shorter one."""

    seconds: Floats
    reached: Floats

    def quantile(self, share: float) -> float:
        """The shortest duration that at least `share` of all reach."""
        # the subtraction keeps rounding of the sum from passing over the query that is exactly there
        at = int(np.searchsorted(self.reached, share - 1e-9))
        return float(self.seconds[min(at, len(self.seconds) - 1)])

    def mean(self) -> float:
        return float(self.seconds @ np.diff(self.reached, prepend=0.0))


def predict(table: StageTable, rows: Rows, scenario: Scenario, *, seed: int = SEED) -> Prediction | None:
    """None without queries. The values are exact for the mixture of changed and unchanged queries; `seed` is the intervals'."""
    if not len(rows):
        return None
    told: list[str] = []
    before = _mixture(table.total[rows], np.ones(len(rows)))
    after = before if scenario.changes_nothing else _changed(table, rows, scenario, told)
    was, would = (_estimates(each, len(rows), seed) for each in (before, after))
    return Prediction(len(rows), *was, before.mean(), *would, after.mean(), tuple(told))


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
    saved: Floats = np.nan_to_num(network)
    return saved


def _decode(table: StageTable, rows: Rows, took: Floats, scenario: Scenario, told: list[str]) -> Floats:
    """Decoding is what generate took beyond the first token: (tokens - 1) / rate."""
    if scenario.tokens_per_second is None:
        return np.zeros(len(rows))
    decode, further = took - table.ttft[rows], table.tokens[rows] - 1
    known = ~np.isnan(decode) & (decode >= 0) & (further > 0)
    told.append(
        f"After the first token, answers are written at {scenario.tokens_per_second:g} tokens/s; tokens and times are known of "
        f"{int(known.sum()):,} of {int((~np.isnan(took)).sum()):,} answers, the others stay. First tokens come as late as before."
    )
    return np.where(known, further / scenario.tokens_per_second - decode, 0.0)


# ------------------------------------------------------------------------------------------------------------ intervals


def _mixture(seconds: Floats, weights: Floats) -> _Mixture:
    order = np.argsort(seconds, kind="stable")
    return _Mixture(seconds[order], (weights[order] / weights.sum()).cumsum())


def _estimates(mixture: _Mixture, n: int, seed: int) -> tuple[Estimate, Estimate]:
    """p50 and p95. The interval is the bootstrap's (resamples of `n`), without resampling: the rank-k value of n draws is the
    mixture's quantile at the k-th of n uniform order statistics, which is distributed as Beta(k, n - k + 1)."""
    rng = np.random.default_rng(seed)
    found = []
    for percent in (50, 95):
        k = rank(percent, n) + 1
        low, high = np.percentile(rng.beta(k, n - k + 1, DRAWS), (2.5, 97.5))
        found.append(Estimate(*(mixture.quantile(share) for share in (percent / 100, low, high))))
    return found[0], found[1]


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


def check(predicted: Prediction, measured: Sequence[float], *, seed: int = SEED) -> Check:
    """Was the prediction right? `measured` are total seconds. Raises RagError without any."""
    if not measured:
        raise RagError("there is nothing measured to check against", kind="bad_input", next_step="Replay some queries first.")
    totals = np.asarray(measured, np.float64)
    p50, p95 = _estimates(_mixture(totals, np.ones(len(totals))), len(totals), seed)
    pairs = ((predicted.p50, p50), (predicted.p95, p95))
    errors = [None if found.value == 0 else (said.value - found.value) / found.value for said, found in pairs]
    holds = all(said.low <= found.high and found.low <= said.high for said, found in pairs)
    return Check(len(totals), p50, p95, errors[0], errors[1], holds)
