"""Builders of synthetic cases: answers with stages, timeline, facts and spans as the path leaves them, and readings beside them.

`healthy()` is a warm query of a common deployment: models on a GPU in this process, Milvus and vLLM behind HTTP, 1.5 s. Tests change
one thing of it: `replace_part(parts(), "rerank", queue=0.8)`. Nothing here is random unless a `Random` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from latency.baseline import build
from latency.types import LOCAL, Baseline, Case, Fact, QueryReadings, Series, Use
from rag.otlp import SpanRecord
from rag.types import STAGES, Answer, Interval, Options, Passage, Split, Stage, Tokens

STARTED = 1_789_997_600.0  # Unix seconds
HERTZ = 20
EDGE = 0.25  # seconds of readings before and after
GIB = 2**30


@dataclass(frozen=True)
class Part:
    """One interval to be: its split in seconds, and who worked where."""

    stage: str
    compute: float = 0.0
    load: float = 0.0
    queue: float = 0.0
    tokenize: float = 0.0
    network: float | None = None
    other: float = 0.0
    model: str | None = None
    where: str | None = "in-process"
    device: str | None = "cuda:0"
    cold: bool = False
    label: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.compute + self.load + self.queue + self.tokenize + (self.network or 0.0) + self.other

    @property
    def split(self) -> Split:
        return Split(self.load, self.queue, self.tokenize, self.compute, self.network, self.other)


def embed(compute: float = 0.02, tokens: int = 14, **changes: Any) -> Part:
    facts = {"texts": 1, "tokens": tokens, "truncated": 0, "cached": 0} | changes.pop("facts", {})
    part = Part("embed", compute, model="BAAI/bge-m3", tokenize=0.001, other=0.001, label="embed the question", facts=facts)
    return replace(part, **changes)


def search(compute: float = 0.03, trip: float = 0.001, trips: int = 1, limit: int = 40, **changes: Any) -> Part:
    facts = {"limit": limit, "round_trips": trips, "round_trip_seconds": trip, "loaded": True, "unflushed_rows": 0}
    part = Part("search", compute, network=trip * trips, other=0.002, where="http", device=None, label="dense and sparse, fused")
    return replace(part, **({"facts": facts | changes.pop("facts", {})} | changes))


def rerank(compute: float = 0.2, candidates: int = 40, **changes: Any) -> Part:
    facts = {"candidates": candidates, "tokens": candidates * 200, "truncated": 0, "cached": 0} | changes.pop("facts", {})
    part = Part("rerank", compute, model="BAAI/bge-reranker-v2-m3", tokenize=0.004, other=0.002, label="score the candidates")
    return replace(part, **({"facts": facts} | changes))


def generate(ttft: float = 0.15, tokens: int = 100, rate: float = 100.0, prompt: int = 1500, **changes: Any) -> Part:
    """`ttft` is the engine's own time to the first token: queue, waits and network come on top."""
    part = Part("generate", model="Qwen/Qwen3-8B-AWQ", where="http", device=None, network=0.001, label="stream the answer")
    part = replace(part, **{"other": 0.002, **{key: value for key, value in changes.items() if key != "facts"}})
    decode = (tokens - 1) / rate
    part = part if "compute" in changes else replace(part, compute=ttft + decode)
    first = part.seconds - decode - 0.002
    facts = {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "max_tokens": 512,
        "ttft_seconds": first,
        "decode_seconds": decode,
    }
    return replace(part, facts=facts | changes.get("facts", {}))


def hyde(ttft: float = 0.1, tokens: int = 60, rate: float = 100.0, **changes: Any) -> Part:
    return replace(generate(ttft, tokens, rate, 90, **changes), stage="hyde", label="write a hypothetical answer")


def parts() -> tuple[Part, ...]:
    return (embed(), search(), rerank(), generate())


def with_hyde(written: float = 0.6) -> tuple[Part, ...]:
    """HyDE on auto: a search, the hypothesis, its embedding, a second search."""
    hypothesis = hyde(rate=59 / max(0.01, written - 0.1))
    return (embed(), search(), hypothesis, embed(0.03, 60, label="embed the hypothesis"), search(), rerank(), generate())


def replace_part(found: Iterable[Part], stage: str, **changes: Any) -> tuple[Part, ...]:
    """The first part of that stage with other seconds or names; `facts` are added to its own."""
    result = list(found)
    index = next(number for number, part in enumerate(result) if part.stage == stage)
    facts = {**result[index].facts, **changes.pop("facts", {})}
    result[index] = replace(result[index], facts=facts, **changes)
    return tuple(result)


def make(
    found: Sequence[Part],
    *,
    number: int = 1,
    readings: Callable[[Answer], QueryReadings] | None = None,
    lowest_kept: int = 35,
    gap: float = 0.001,
    **changes: Any,
) -> Case:
    """The parts one after the other as a Case. `lowest_kept` is the lowest fused rank among the kept passages."""
    at, timeline = 0.0, []
    for part in found:
        label = part.label or part.stage
        timeline.append(Interval(part.stage, at, part.seconds, label, part.split, part.cold, dict(part.facts)))
        at += part.seconds + gap
    written = next((part for part in found if part.stage == "generate"), None)
    options = changes.pop("options", Options(hyde="on" if any(part.stage == "hyde" for part in found) else "off"))
    first = None if written is None else written.facts.get("ttft_seconds")
    answer = Answer(
        id=f"{number:032x}",
        question=changes.pop("question", f"Why is the pump of line {number} slow?"),
        started_at="2026-09-21T13:33:20.000+00:00",
        outcome="answered",
        answer="Because.",
        passages=passages(options.candidates, options.keep, lowest_kept),
        stages=tuple(_stage(name, [part for part in found if part.stage == name]) for name in STAGES),
        timeline=tuple(timeline),
        total_seconds=at,
        ttft_seconds=first,
        tokens=Tokens(
            *(None, None) if written is None else (written.facts.get("prompt_tokens"), written.facts.get("completion_tokens"))
        ),
        options=options,
    )
    answer = replace(answer, **changes)
    return Case(answer, tuple(_spans(answer)), readings(answer) if readings else None)


def passages(candidates: int, keep: int, lowest_kept: int) -> tuple[Passage, ...]:
    kept_ranks = [*range(1, keep), max(keep, min(lowest_kept, candidates))]
    rest = [rank for rank in range(1, candidates + 1) if rank not in kept_ranks]
    return tuple(
        Passage(f"p{rank}", "", "guide.md", "Guide", kept=rank in kept_ranks, ranks={"fused": rank, "rerank": place})
        for place, rank in enumerate([*kept_ranks, *rest], 1)
    )


def _stage(name: str, found: list[Part]) -> Stage:
    if name == "cache":
        return Stage("cache", hit=False, reason="no semantic cache is set up")
    if not found:
        return Stage(name, skipped="switched off")
    networks = [part.network for part in found if part.network is not None]
    names = ("load", "queue", "tokenize", "compute")
    split = Split(
        *(sum(getattr(part, each) for part in found) for each in names),
        sum(networks) if networks else None,
        sum(part.other for part in found),
    )
    last = found[-1]
    cold = any(part.cold for part in found)
    seconds = sum(part.seconds for part in found)
    return Stage(name, seconds, len(found), cold, None, None, last.device, last.model, last.where, split)


def _spans(answer: Answer) -> Iterable[SpanRecord]:
    for number, item in enumerate(answer.timeline):
        start = int((STARTED + item.start) * 1e9)
        end = start + int(item.seconds * 1e9)
        yield SpanRecord(
            answer.id, f"{number + 1:016x}", None, item.stage, "CLIENT", start, end, "OK", {"ragdeck.stage": item.stage}
        )


# --------------------------------------------------------------------------------------------------------------- healthy


def jittered(found: Iterable[Part], random: Random, ratio: float = 0.2) -> tuple[Part, ...]:
    """Each part's seconds up or down by at most `ratio`, with the facts that speak of them."""
    result = []
    for part in found:
        by = 1 + random.uniform(-ratio, ratio)
        seconds = {name: getattr(part, name) * by for name in ("compute", "queue", "tokenize", "other")}
        network = None if part.network is None else part.network * by
        scaled = {name: value * by for name, value in part.facts.items() if name in ("ttft_seconds", "decode_seconds")}
        result.append(replace(part, **seconds, network=network, facts={**part.facts, **scaled}))
    return tuple(result)


def healthy(random: Random | None = None, number: int = 1, **changes: Any) -> Case:
    found = changes.pop("found", None) or parts()
    return make(jittered(found, random) if random else found, number=number, readings=changes.pop("readings", calm), **changes)


def usual(count: int = 40, seed: int = 7, **changes: Any) -> Baseline:
    """The baseline of healthy queries."""
    random = Random(seed)
    return build([healthy(random, 1000 + number, **changes) for number in range(count)])


# -------------------------------------------------------------------------------------------------------------- readings

CALM: Mapping[str, float] = {
    "cpu.busy_ratio": 0.2,
    "cpu.iowait_ratio": 0.01,
    "cpu.cores": 8.0,
    "process.cpu_ratio": 0.6,
    "pressure.io.some_10s_ratio": 0.0,
    "disk.nvme0n1.busy_ratio": 0.03,
    "gpu.0.utilization_ratio": 0.6,
    "gpu.0.memory_used_bytes": 19.0 * GIB,
    "gpu.0.memory_total_bytes": 24.0 * GIB,
    "gpu.0.memory_used_ratio": 0.79,
    "gpu.0.temperature_celsius": 55.0,
    "gpu.0.power_watts": 60.0,
    "gpu.0.sm_clock_mhz": 2040.0,
    "gpu.0.sm_clock_max_mhz": 2040.0,
}


def calm(answer: Answer) -> QueryReadings:
    """A quiet machine with one L4: vLLM and our models on it, both ours."""
    return readings_of(answer, {})


def readings_of(
    answer: Answer,
    values: Mapping[str, float | Callable[[float], float]],
    *,
    facts: Iterable[Fact] = (),
    uses: Iterable[Use] = (),
    source: str = LOCAL,
    engine: Mapping[str, float | Callable[[float], float]] | None = None,
) -> QueryReadings:
    """Calm readings with some metrics changed (`engine` those of a vLLM at its address), facts and other processes added."""
    times = tuple(index / HERTZ - EDGE for index in range(int((answer.total_seconds + 2 * EDGE) * HERTZ) + 1))

    def series(where: str, name: str, value: float | Callable[[float], float]) -> Series:
        return Series(where, name, times, tuple(value(time) if callable(value) else value for time in times))

    found = [series(LOCAL, name, value) for name, value in {**CALM, **(values if source == LOCAL else {})}.items()]
    found += [series(source, name, value) for name, value in values.items() if source != LOCAL]
    found += [series("vllm", f"engine.{name}", value) for name, value in (engine or {}).items()]
    own = (
        Use(LOCAL, 100, "python", cpu_ratio=0.6, ours=True),
        Use(LOCAL, 100, "python", gpu=0, memory_bytes=3 * GIB, ours=True),
        Use(LOCAL, 200, "vllm", "docker vllm", gpu=0, memory_bytes=12 * GIB, ours=True),
    )
    always = Fact(LOCAL, "gpu.0.persistence_enabled", "on", times[0], times[-1])
    kept = tuple(facts)
    first = () if any(fact.name == always.name for fact in kept) else (always,)
    return QueryReadings(answer.id, STARTED, answer.total_seconds, tuple(found), (*first, *kept), (*own, *uses))


def during(answer: Answer, stage: str) -> tuple[float, float]:
    """From when to when a stage ran."""
    found = [item for item in answer.timeline if item.stage == stage]
    return found[0].start, found[-1].start + found[-1].seconds


def within(window: tuple[float, float], inside: float, outside: float) -> Callable[[float], float]:
    return lambda time: inside if window[0] <= time <= window[1] else outside
