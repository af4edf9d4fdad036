"""A query's seconds as pools that causes take from: what one finding has taken, no other can explain again.

Each interval of the timeline is a `Piece` with a pool for each part of its split. For a language model that streamed, the
computing is told apart into `prefill` (up to the first token) and `decode`. `Ledger.excess` is what a stage computed beyond what
is usual for its work load and beyond noise: only that may be explained by readings. Knows no causes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latency.baseline import PREFILL, WORK_LOADS, fact
from latency.types import Baseline, Case, Key, Usual
from rag.types import Interval, Split, Stage

LEAST_SECONDS = 0.1  # below it nobody feels a difference
LEAST_SHARE = 0.05  # of the query's total
LEAST_SURPRISE_SECONDS = 0.2  # what is only slower than usual, without a reading that says why, has to stand out more
ENOUGH = 5  # warm queries until something counts as usual
NOISE_RATIO = 0.25  # runs of the same work differ by as much
NOISE_SPREADS = 4.0  # median absolute deviations
LLM = ("hyde", "generate")
WORK = ("compute", "prefill", "decode")
POOLS = ("load", "queue", "tokenize", "network", *WORK, "other")


@dataclass(slots=True)
class Piece:
    """One interval of a stage: its time on the query's axis, its facts, its seconds by pool, the span it came from."""

    stage: str
    start: float
    end: float
    facts: Mapping[str, Any]
    cold: bool = False
    label: str = ""
    span_id: str = ""
    number: int = 0
    pools: dict[str, float] = field(default_factory=dict)

    def fact(self, name: str) -> float | None:
        return fact(self.facts, name)

    @property
    def for_hyde(self) -> bool:
        """It ran only because of HyDE: the hypothesis itself, its embedding, and the second search."""
        return self.stage == "hyde" or self.number > 0 and self.stage in ("embed", "search")

    def take(self, seconds: float, pools: Iterable[str]) -> float:
        """Take up to so many seconds from the pools, in their order; returns what there was."""
        wanted = max(0.0, seconds)
        taken = 0.0
        for name in pools:
            part = min(self.pools.get(name, 0.0), wanted - taken)
            if part > 0:
                self.pools[name] -= part
                taken += part
        return taken

    def left(self, *pools: str) -> float:
        return sum(self.pools.get(name, 0.0) for name in pools or POOLS)


class Ledger:
    """The seconds of one case, and what is usual for it."""

    def __init__(self, case: Case, baseline: Baseline) -> None:
        self.case, self.baseline = case, baseline
        self.total = case.answer.total_seconds
        self.readings = case.readings
        self.stages = {each.stage: each for each in case.answer.stages if each.skipped is None and each.seconds > 0}
        servers = _server_facts(case)
        self._pieces = {name: _pieces(case, stage, servers) for name, stage in self.stages.items()}
        self._units: dict[tuple[str, str], float | None] = {}  # facts stay as they are, seconds are taken
        self._fit_into_total()

    def pieces(self, stage: str) -> Sequence[Piece]:
        return self._pieces.get(stage, ())

    def all(self) -> Iterable[Piece]:
        return (piece for pieces in self._pieces.values() for piece in pieces)

    def left(self, stage: str, *pools: str) -> float:
        return sum(piece.left(*pools) for piece in self.pieces(stage))

    def take(self, stage: str, seconds: float, *pools: str) -> float:
        """Take up to so many seconds from a stage, from each of its pieces its part."""
        there = self.left(stage, *pools)
        share = min(1.0, max(0.0, seconds) / there) if there > 0 else 0.0
        return sum(piece.take(piece.left(*pools) * share, pools or POOLS) for piece in self.pieces(stage))

    def units(self, stage: str, name: str) -> float | None:
        """A fact of the stage, summed over its pieces; None where none has it."""
        if (stage, name) not in self._units:
            found = [value for piece in self.pieces(stage) if (value := piece.fact(name)) is not None]
            self._units[stage, name] = sum(found) if found else None
        return self._units[stage, name]

    def work_load(self, stage: str) -> float | None:
        """What the baseline's `expected` is a function of."""
        name = WORK_LOADS.get(stage)
        return None if name is None else self.units(stage, name)

    def usual(self, stage: str) -> Usual | None:
        """What is usual for the stage with its model at its place; None where too few queries say so."""
        found = self.baseline.of(self.stages.get(stage))
        return found if found is not None and found.n >= ENOUGH else None

    def usual_prefill(self, stage: str) -> Usual | None:
        if stage != "generate" or stage not in self.stages:
            return None
        found = self.baseline.usual.get(Key.of(self.stages[stage])._replace(stage=PREFILL))
        return found if found is not None and found.n >= ENOUGH else None

    def excess(self, stage: str) -> Mapping[str, float]:
        """Seconds of the pools that are left beyond what is usual; empty where nothing is known or it may be noise."""
        usual = self.usual(stage)
        if usual is None or stage not in self.stages:
            return {}
        parts, expected = self._over(stage, usual)
        together = sum(parts.values())
        if together <= max(LEAST_SECONDS / 2, NOISE_RATIO * expected, NOISE_SPREADS * usual.spread):
            return {}
        return {name: seconds for name, seconds in parts.items() if seconds > 0}

    def _over(self, stage: str, usual: Usual) -> tuple[dict[str, float], float]:
        """(seconds beyond the usual by pool, seconds that are usual)."""
        prefill, tokens = self.expected_prefill(stage), self.units(stage, "completion_tokens")
        other = max(0.0, self.left(stage, "other") - usual.other)
        if prefill is not None and usual.per_second and tokens and self.left(stage, "decode", "prefill"):
            decode = max(0.0, tokens - 1) / usual.per_second
            parts = {
                "prefill": max(0.0, self.left(stage, "prefill") - prefill),
                "decode": max(0.0, self.left(stage, "decode") - decode),
                "other": other,
            }
            return parts, prefill + decode + usual.other
        expected = usual.expected(self.work_load(stage))
        return {"work": max(0.0, self.left(stage, *WORK) - expected), "other": other}, expected + usual.other

    def expected_prefill(self, stage: str) -> float | None:
        """Seconds to the first token that are usual for this prompt; where its length plays no part, the usual ones."""
        usual, by_prompt = self.usual(stage), self.usual_prefill(stage)
        prompt = self.units(stage, "prompt_tokens")
        if by_prompt is not None and prompt is not None:
            return by_prompt.expected(prompt)
        return None if usual is None else usual.ttft

    def take_excess(self, stage: str, pool: str, seconds: float) -> float:
        """Take from a pool as `excess` names it."""
        return self.take(stage, seconds, *(WORK if pool == "work" else (pool,)))

    def _fit_into_total(self) -> None:
        """Stages that ran side by side take no more together than the query did: each counts in proportion."""
        together = sum(piece.left() for piece in self.all())
        if together <= self.total * 1.001 or together <= 0:
            return
        for piece in self.all():
            piece.pools = {name: value * self.total / together for name, value in piece.pools.items()}


def _pieces(case: Case, stage: Stage, servers: Mapping[str, Mapping[str, float]]) -> list[Piece]:
    """The stage's intervals in their order; where the timeline has none, one piece that starts with the query."""
    intervals = sorted(case.intervals(stage.stage), key=lambda each: each.start)
    if not intervals:
        intervals = [Interval(stage.stage, 0.0, stage.seconds, "", stage.split, stage.cold)]
    spans = sorted((span for span in case.spans if span.stage == stage.stage), key=lambda span: span.start_unix_ns)
    ids = [span.span_id for span in spans] if len(spans) == len(intervals) else [""] * len(intervals)
    return [
        Piece(
            stage.stage,
            each.start,
            each.start + each.seconds,
            {**servers.get(span_id, {}), **each.facts},
            each.cold,
            each.label,
            span_id,
            number,
            _pools(each, case, stage.stage),
        )
        for number, (each, span_id) in enumerate(zip(intervals, ids, strict=True))
    ]


# vLLM's names (docs, "OpenTelemetry"): attributes of its server span -> our facts
_VLLM = {
    "gen_ai.latency.time_in_queue": "server_queue_seconds",
    "gen_ai.latency.time_in_model_prefill": "server_prefill_seconds",
    "gen_ai.latency.time_in_model_decode": "server_decode_seconds",
}


def _server_facts(case: Case) -> dict[str, dict[str, float]]:
    """What the spans of vLLM's server say, by the span of ours that they belong to."""
    found: dict[str, dict[str, float]] = {}
    for span in case.spans:
        known = {ours: value for theirs, ours in _VLLM.items() if (value := fact(span.attributes, theirs)) is not None}
        if known and span.parent_id:
            found[span.parent_id] = known
    return found


def _pools(interval: Interval, case: Case, stage: str) -> dict[str, float]:
    split: Split = interval.split
    values = {name: getattr(split, name) for name in ("load", "queue", "tokenize", "network", "compute", "other")}
    pools = {name: max(0.0, value) if value is not None and math.isfinite(value) else 0.0 for name, value in values.items()}
    known = sum(pools.values())
    if known < interval.seconds:
        pools["other"] += interval.seconds - known
    elif known > interval.seconds:
        pools = {name: value * interval.seconds / known for name, value in pools.items()}
    decode = _decode_seconds(interval, case) if stage in LLM else None
    if decode is not None:
        compute = pools.pop("compute")
        pools["decode"] = min(decode, compute)
        pools["prefill"] = compute - pools["decode"]
    return pools


def _decode_seconds(interval: Interval, case: Case) -> float | None:
    decode, answer = fact(interval.facts, "decode_seconds"), case.answer
    if decode is None and interval.stage == "generate" and answer.ttft_seconds is not None:
        decode = max(0.0, interval.seconds - answer.ttft_seconds)
    return decode
