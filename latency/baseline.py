"""What is usual here: how long each stage takes with its model at its place, from queries that went well.

From warm, answered queries; those with something wrong are left out stage by stage (the slowest two fifths at most), so that a
bad hour does not become the norm. Knows no causes. `from_store` reads rows, not answers, except for a few whose passages tell how
far reranking reaches.

Besides the stages there is `generate.prefill`: seconds to the first token of the answer by tokens of the prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency.types import Baseline, Case, Key, Usual
from rag.trace_file import connect, mapped
from rag.trace_store import TraceStore
from rag.types import Answer, Stage

Floats = NDArray[np.float64]
DROPPED_RATIO = 0.4  # of a stage's rows at most
SPREADS = 5.0  # median absolute deviations from what the work load explains: beyond, something was wrong
LEAST_SPREAD_RATIO = 0.05  # of the median: rows that agree more closely than clocks do are not told apart
VARIED_RATIO = 1.3  # between the 90th and the 10th percentile of the work load: below, no slope can be seen
RANKS_FROM = 40  # answers whose passages are read by `from_store`
PREFILL = "generate.prefill"  # the key's stage for the time to the first token
# stage -> the fact that its work load is (as `StageRow.units` has it)
WORK_LOADS: Mapping[str, str] = {
    "embed": "tokens",
    "search": "limit",
    "rerank": "candidates",
    "hyde": "completion_tokens",
    "generate": "completion_tokens",
}


@dataclass(frozen=True, slots=True)
class _Row:
    """One stage of one query; seconds. `units` is its work load."""

    key: Key
    seconds: float
    compute: float
    units: float | None = None
    network: float | None = None
    queue: float = 0.0
    other: float = 0.0
    ttft: float | None = None
    per_second: float | None = None


@dataclass(frozen=True, slots=True)
class _Query:
    """What is wanted of a query beside its stages."""

    question: str
    hyde_changed: bool | None


def build(cases: Iterable[Case]) -> Baseline:
    """The baseline of these cases: of the warm, answered ones that were not asked to measure (of those, where there are no
    others). Pure."""
    good = [case.answer for case in cases if case.answer.outcome == "answered" and not case.answer.cold]
    answers = [answer for answer in good if answer.origin != "measure"] or good
    ranks = [rank for answer in answers if (rank := lowest_kept_rank(answer)) is not None]
    rows = [row for answer in answers for row in _rows_of(answer)]
    queries = [_Query(answer.question, answer.hyde_effect.changed_top if answer.hyde_effect else None) for answer in answers]
    return _baseline(rows, queries, ranks)


def from_store(traces: TraceStore, *, before: float | None = None, limit: int = 500) -> Baseline:
    """The baseline of the last `limit` warm, answered, unmeasured queries (that started before that Unix time).

    Raises RagError where the file cannot be read.
    """
    with mapped(traces.path), closing(connect(traces.path, reading=True)) as db:
        found = db.execute(_QUERIES, (before, before, limit)).fetchall()
        by_id = {row[0]: row for row in found}
        marks = ",".join("?" * len(by_id))
        stages = db.execute(f"{_STAGES} WHERE query_id IN ({marks}) AND skipped IS NULL AND seconds > 0", list(by_id)).fetchall()
    rows = [row for values in stages for row in _rows_of_columns(values, by_id[values[0]])]
    queries = [_Query(question, None if changed is None else bool(changed)) for _, question, _, _, _, changed, _ in found]
    reranked = [row[0] for row in found if row[6] is not None][:RANKS_FROM]
    answers = (traces.get(query_id) for query_id in reranked)
    ranks = [rank for answer in answers if answer is not None and (rank := lowest_kept_rank(answer)) is not None]
    return _baseline(rows, queries, ranks)


_QUERIES = """SELECT id, question, ttft_seconds, tokens_prompt, tokens_completion, hyde_changed, rerank_seconds FROM queries
    WHERE outcome = 'answered' AND cold = 0 AND origin != 'measure' AND (? IS NULL OR started_at_unix < ?)
    ORDER BY started_at_unix DESC LIMIT ?"""
_STAGES = "SELECT query_id, stage, model, place, device, seconds, compute, units, network, queue, other FROM stages"


def _baseline(rows: Iterable[_Row], queries: Sequence[_Query], ranks: Sequence[int]) -> Baseline:
    by_key: dict[Key, list[_Row]] = {}
    for row in rows:
        if row.compute > 0 or row.key.stage not in ("embed", "rerank"):  # else a cache answered, or nobody did
            by_key.setdefault(row.key, []).append(row)
    known = [query.hyde_changed for query in queries if query.hyde_changed is not None]
    return Baseline(
        usual={key: _usual(group) for key, group in by_key.items()},
        hyde_both=len(known),
        hyde_changed=sum(known),
        rerank_moved=float(np.percentile(ranks, 95)) if ranks else None,
        near_equal_questions=len(near_equal([query.question for query in queries])),
        queries=len(queries),
    )


# -------------------------------------------------------------------------------------------------------------- rows


def _rows_of(answer: Answer) -> Iterable[_Row]:
    for stage in answer.stages:
        gave_up = stage.stage in ("hyde", "rerank") and stage.degraded is not None  # what failed is not usual
        if stage.skipped is None and stage.seconds > 0 and not gave_up:
            yield from _with_prefill(_row_of(answer, stage), _sum(answer, stage.stage, "prompt_tokens") or answer.tokens.prompt)


def _row_of(answer: Answer, stage: Stage) -> _Row:
    split, name = stage.split, stage.stage
    units = _sum(answer, name, WORK_LOADS[name]) if name in WORK_LOADS else None
    ttft, decode = _sum(answer, name, "ttft_seconds"), _sum(answer, name, "decode_seconds")
    if name == "generate" and ttft is None:
        ttft = answer.ttft_seconds
    return _Row(
        Key.of(stage), stage.seconds, split.compute, units, split.network, split.queue, split.other, ttft, _rate(units, decode)
    )


def _sum(answer: Answer, stage: str, name: str) -> float | None:
    found = [value for each in answer.timeline if each.stage == stage and (value := fact(each.facts, name)) is not None]
    return sum(found) if found else None


def _rows_of_columns(values: Sequence[object], query: Sequence[object]) -> Iterable[_Row]:
    _, stage, model, place, device, *numbers = values
    seconds, compute, units, network, queue, other = (None if each is None else float(str(each)) for each in numbers)
    key = Key(str(stage), *(None if each is None else str(each) for each in (model, place, device)))
    first, prompt = query[2], query[3]
    ttft = float(str(first)) if stage == "generate" and first is not None else None
    decode = None if ttft is None or seconds is None else seconds - ttft
    row = _Row(key, seconds or 0.0, compute or 0.0, units, network, queue or 0.0, other or 0.0, ttft, _rate(units, decode))
    return _with_prefill(row, None if prompt is None else float(str(prompt)))


def _with_prefill(row: _Row, prompt: float | None) -> Iterable[_Row]:
    """The row, and for an answer whose prompt's length is known the row of its first token."""
    yield row
    if row.key.stage == "generate" and row.ttft is not None and prompt:
        yield _Row(row.key._replace(stage=PREFILL), row.ttft, row.ttft, float(prompt))


def _rate(tokens: float | None, decode: float | None) -> float | None:
    """Tokens a second after the first one."""
    return None if tokens is None or tokens < 2 or decode is None or decode <= 0 else (tokens - 1) / decode


def fact(facts: Mapping[str, Any], name: str) -> float | None:
    """A number of 0 or more among an interval's facts, which other programs may have written; None for anything else."""
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def lowest_kept_rank(answer: Answer) -> int | None:
    """The lowest rank before reranking among the kept passages; None where nothing was reranked or a rank is unknown."""
    kept = [passage for passage in answer.passages if passage.kept and "rerank" in passage.ranks]
    ranks = [passage.ranks.get("fused") for passage in kept]
    known = [rank for rank in ranks if rank is not None]
    return max(known) if known and len(known) == len(ranks) and len(answer.passages) > len(kept) else None


# ---------------------------------------------------------------------------------------------------------- statistics


def _usual(rows: Sequence[_Row]) -> Usual:
    compute = np.array([row.compute for row in rows], dtype=np.float64)
    units = _units(rows)
    fixed, slope, kept = _fit(units, compute)
    good = [row for row, keep in zip(rows, kept, strict=True) if keep]
    left = np.abs(compute - fixed - slope * units)[kept]
    networks = [row.network for row in good if row.network is not None]
    return Usual(
        n=len(good),
        seconds=_median([row.seconds for row in good]),
        compute=_median([row.compute for row in good]),
        fixed=fixed,
        per_unit=slope,
        spread=float(np.median(left)),
        network=_median(networks) if networks else None,
        queue=_median([row.queue for row in good]),
        other=_median([row.other for row in good]),
        ttft=_median(found) if (found := [row.ttft for row in good if row.ttft is not None]) else None,
        per_second=_median(rates) if (rates := [row.per_second for row in good if row.per_second is not None]) else None,
    )


def _units(rows: Sequence[_Row]) -> Floats:
    """The work loads; all 0 (no slope) where too few rows know theirs, and the median for a row that does not."""
    known = [row.units for row in rows if row.units is not None]
    if 2 * len(known) < len(rows):
        return np.zeros(len(rows))
    middle = _median(known)
    return np.array([middle if row.units is None else row.units for row in rows], dtype=np.float64)


def _fit(units: Floats, seconds: Floats) -> tuple[float, float, NDArray[np.bool_]]:
    """(fixed, seconds a unit, which rows were kept): a robust line, fitted anew until no row lies far above it."""
    kept = np.ones(len(seconds), dtype=np.bool_)
    least = max(1, int(np.ceil(len(seconds) * (1 - DROPPED_RATIO))))
    fixed, slope = _line(units, seconds)
    for _ in range(10):
        over = seconds - fixed - slope * units
        spread = max(float(np.median(np.abs(over[kept]))), LEAST_SPREAD_RATIO * float(np.median(seconds[kept])), 1e-6)
        wanted = over <= SPREADS * spread
        if wanted.sum() < least:
            wanted = over <= np.sort(over)[least - 1]
        if (wanted == kept).all():
            break
        kept = wanted
        fixed, slope = _line(units[kept], seconds[kept])
    return fixed, slope, kept


def _line(units: Floats, seconds: Floats) -> tuple[float, float]:
    """(fixed, slope), both 0 or more, by repeated medians (Siegel 1982), which half of the rows being wrong does not move.

    Where the work hardly varies no slope can be seen: then the time is taken to be in proportion to it.
    """
    middle, typical = float(np.median(units)), float(np.median(seconds))
    if middle <= 0:
        return typical, 0.0
    low, high = np.percentile(units, [10, 90])
    if high < VARIED_RATIO * max(low, 1e-9) or len(np.unique(units)) < 3:
        return 0.0, typical / middle
    run = units[None, :] - units[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.where(run != 0, (seconds[None, :] - seconds[:, None]) / run, np.nan)
    slope = float(np.median(np.nanmedian(slopes, axis=1)))
    slope = min(max(0.0, slope), typical / middle)
    return max(0.0, float(np.median(seconds - slope * units))), slope


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


# ----------------------------------------------------------------------------------------------------------- questions


def near_equal(questions: Sequence[str]) -> list[int]:
    """Indexes of the questions that repeat an earlier one: the same words, whatever their order, case and punctuation."""
    seen: set[tuple[str, ...]] = set()
    found = []
    for index, question in enumerate(questions):
        words = tuple(sorted(set(re.findall(r"\w+", question.casefold()))))
        if words and words in seen:
            found.append(index)
        seen.add(words)
    return found
