"""Queries made up for tests of comparisons and reports, with plausible times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from latency.types import LOCAL, Case, Fact, QueryReadings, Series, Use
from rag.types import Answer, Citation, Interval, Options, Passage, Split, Stage, Tokens

START = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)
USUAL: Mapping[str, float] = {"hyde": 3.0, "embed": 0.02, "search": 0.3, "rerank": 0.2, "generate": 6.0}


def passage(name: str, place: int, kept: bool) -> Passage:
    return Passage(name, f"text of {name}", f"{name}.md", f"Title {name}", kept=kept, ranks={"fused": place, "rerank": place})


def passages(names: str, keep: int = 3) -> tuple[Passage, ...]:
    return tuple(passage(name, place, place <= keep) for place, name in enumerate(names, 1))


def query(
    number: int = 0,
    seconds: Mapping[str, float] | None = None,
    *,
    question: str = "Why is it slow?",
    cold: Sequence[str] = (),
    device: str = "cuda:0",
    splits: Mapping[str, Split] | None = None,
    readings: QueryReadings | None = None,
    **changes: object,
) -> Case:
    """A query whose stages took `seconds` (those of `USUAL` where it says nothing; 0 is "skipped")."""
    taken = {**USUAL, **(seconds or {})}
    stages, timeline, at = [Stage("cache", hit=False, reason="no semantic cache")], [], 0.0
    for name, spent in taken.items():
        if spent == 0:
            stages.append(Stage(name, skipped=f"{name} is off"))
            continue
        split = (splits or {}).get(name, Split(compute=spent))
        place = "http" if split.network else "in-process"
        stages.append(
            Stage(
                name,
                spent,
                1,
                name in cold,
                device=None if name == "search" else device,
                model=f"model-{name}",
                where=place,
                split=split,
            )
        )
        timeline.append(Interval(name, at, spent, "a span", split, name in cold))
        at += spent
    answer = Answer(
        id=f"{number:032x}",
        question=question,
        started_at=(START + timedelta(seconds=20 * number)).isoformat(),
        outcome="answered",
        answer="Because of HyDE [1].",
        citations=(Citation(1, "a", "a.md", "Title a"),),
        passages=passages("abcdef"),
        stages=tuple(stages),
        timeline=tuple(timeline),
        total_seconds=at + 0.01,
        ttft_seconds=0.4,
        first_token_seconds=at - 5.0,
        tokens=Tokens(900, 250, 46.0),
        options=Options(hyde="on" if taken["hyde"] else "off"),
        fingerprint={"version": "0.1.0", "settings": "abc123"},
    )
    return Case(replace(answer, **changes), (), readings)  # type: ignore[arg-type]


def noisy(start: int, count: int, step: int = 2, seed: int = 0, **seconds: float) -> list[Case]:
    """Queries with a tenth of noise on every stage, asked in turn with another side's."""
    random = np.random.default_rng([seed, start])
    taken = {**USUAL, **seconds}
    return [
        query(start + step * n, {name: value * float(np.exp(random.normal(0, 0.08))) for name, value in taken.items()})
        for n in range(count)
    ]


def gpu(utilization: float, clock: float, throttle: str = "none", others: Sequence[str] = ()) -> QueryReadings:
    times = (0.0, 2.0, 4.0, 8.0)
    return QueryReadings(
        "x",
        START.timestamp(),
        9.5,
        (
            Series(LOCAL, "gpu.0.utilization_ratio", times, (utilization,) * 4),
            Series(LOCAL, "gpu.0.sm_clock_mhz", times, (clock,) * 4),
            Series(LOCAL, "cpu.busy_ratio", times, (0.2, 0.21, None, 0.2)),
        ),
        (Fact(LOCAL, "gpu.0.throttle_reasons", throttle, 0.0, 9.0),),
        tuple(Use(LOCAL, 7, name, gpu=0, memory_bytes=2**30) for name in others),
    )
