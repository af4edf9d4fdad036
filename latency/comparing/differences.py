"""What else differed between two sides than their times: options, settings, models, devices, cold starts, the machines. Pure.

Says what differed, not whether it mattered. Side A and side B are queries with what is known of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from statistics import median
from typing import Any, NamedTuple

from latency.types import Case, QueryReadings
from rag.trace_rows import units
from rag.types import STAGES, Answer, Options

LEAST_SHARE = 0.1  # in sets, a tenth of the queries must differ before it is told
MOST_VALUES = 3
UNKNOWN = "not recorded"
NONE = "none"


class Other(NamedTuple):
    """Something that differed. `kind` groups: query, options, settings, models, versions, device, place, cold, outcome, stage.

    `a` and `b` are what the sides had, with counts where a side had several. `share` of the queries that would have to change
    for the sides to be alike.
    """

    kind: str
    name: str
    a: str
    b: str
    share: float


class MachineState(NamedTuple):
    """A metric of a machine or service while the queries ran: the median over queries of its mean over the query.

    `notable`: far enough apart to be looked at. `n_a`, `n_b`: how many queries have readings of it.
    """

    source: str
    metric: str
    a: float | None
    b: float | None
    n_a: int
    n_b: int
    notable: bool


Named = tuple[str, str]


def others(a: Sequence[Case], b: Sequence[Case]) -> tuple[Other, ...]:
    """Everything of which the sides had different values, what differs most first within its kind.

    What is known of one side only (the device of a stage that the other skipped) is left out: nothing follows from it.
    """
    found = [_other(kind, name, *sides) for (kind, name), sides in _gathered(a, b).items() if all(sides)]
    told = [each for each in found if each.share > 0 and each.share >= LEAST_SHARE]
    return tuple(sorted(told, key=lambda each: (_KINDS.index(each.kind), -each.share, each.name)))


_KINDS = ("outcome", "query", "cold", "options", "settings", "versions", "models", "device", "place", "stage", "machine")


def _gathered(a: Sequence[Case], b: Sequence[Case]) -> dict[Named, tuple[Counter[str], Counter[str]]]:
    """How often each side had each value of each thing."""
    found: dict[Named, tuple[Counter[str], Counter[str]]] = {}
    for side, cases in enumerate((a, b)):
        for case in cases:
            for kind, name, value in _values(case):
                found.setdefault((kind, name), (Counter(), Counter()))[side][value] += 1
    return found


def _other(kind: str, name: str, a: Counter[str], b: Counter[str]) -> Other:
    apart = sum(abs(a[value] / a.total() - b[value] / b.total()) for value in {*a, *b}) / 2
    return Other(kind, name, _told(a), _told(b), apart)


def _told(counts: Counter[str]) -> str:
    """`cpu`, or `cuda:0 28, cpu 2` for a side with several."""
    if len(counts) == 1:
        return next(iter(counts))
    common = counts.most_common(MOST_VALUES)
    rest = len(counts) - len(common)
    parts = [f"{value} {number:,}" for value, number in common]
    return ", ".join([*parts, f"{rest} others {counts.total() - sum(n for _, n in common):,}"] if rest else parts)


def _values(case: Case) -> Iterator[tuple[str, str, str]]:
    """(kind, name, value) of a query."""
    answer = case.answer
    yield "outcome", "outcome", answer.outcome.replace("_", " ")
    yield "query", "question", _line(answer.question) or UNKNOWN
    yield "query", "origin", answer.origin
    for option in fields(Options):
        yield "options", option.name.replace("_", " "), _said(getattr(answer.options, option.name))
    models = answer.fingerprint.get("models")
    for name, value in answer.fingerprint.items():
        if name != "models":
            yield ("versions" if "version" in name else "settings"), name, _said(value)
    yield from _stages(case, models if isinstance(models, dict) else {})
    yield from _machine(case.readings)


def _stages(case: Case, models: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for stage in case.answer.stages:
        name = stage.stage
        if stage.stage == "cache":
            yield "stage", "answer cache", _said(stage.hit)
            continue
        yield "stage", f"{name} ran", "yes" if stage.skipped is None else f"no: {_line(stage.skipped)}"
        if stage.skipped is not None:
            continue
        yield "cold", f"{name} cold", _said(stage.cold)
        yield "stage", f"{name} degraded", _line(stage.degraded) if stage.degraded else NONE
        for kind, value in (("models", stage.model or models.get(name)), ("device", stage.device), ("place", stage.where)):
            if value is not None:
                yield kind, f"{name} {_WORDS[kind]}", _line(str(value))
        facts = [item.facts for item in case.intervals(name)]
        for fact in _FACTS:
            known = [item[fact] for item in facts if fact in item]
            if known:
                yield "stage", f"{name} {fact.replace('_', ' ')}", _said(_together(known))


_WORDS = {"models": "model", "device": "device", "place": "place"}
# Facts of a stage's spans that are the same for every query of a kind; those that vary with the question are measures
_FACTS = ("cached", "loaded", "attempts")


def _together(values: Sequence[Any]) -> Any:
    if all(isinstance(value, bool) for value in values):
        return all(values)
    return max(values) if all(isinstance(value, int | float) for value in values) else values[0]


def _machine(readings: QueryReadings | None) -> Iterator[tuple[str, str, str]]:
    if readings is None:
        return
    for source in sorted({fact.source for fact in readings.facts}):
        for name in sorted({fact.name for fact in readings.facts if fact.source == source}):
            values = {_line(fact.value) for fact in readings.facts if (fact.source, fact.name) == (source, name)}
            yield "machine", f"{source} {name}", ", ".join(sorted(values))
    foreign = sorted({f"{use.name}{_place(use.gpu)}" for use in readings.uses if not use.ours})
    yield "machine", "other processes", _line(", ".join(foreign)) or NONE


def _place(gpu: int | None) -> str:
    return "" if gpu is None else f" on GPU {gpu}"


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "default" if value is None else _line(str(value))


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else f"{line[:119]}…"


# ------------------------------------------------------------------------------------------------------------- measures


class Measure(NamedTuple):
    """Something else that was measured: tokens, first token, work loads. Medians over the queries that have it."""

    name: str
    unit: str
    a: float | None
    b: float | None
    n_a: int
    n_b: int

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a


_MEASURES: tuple[tuple[str, str, Callable[[Answer], float | None]], ...] = (
    ("first token after the question", "s", lambda answer: answer.first_token_seconds),
    ("first token after the request to the model", "s", lambda answer: answer.ttft_seconds),
    ("answer tokens a second", "tokens/s", lambda answer: answer.tokens.per_second),
    ("answer tokens", "tokens", lambda answer: answer.tokens.completion),
    ("prompt tokens", "tokens", lambda answer: answer.tokens.prompt),
    ("hypothesis tokens", "tokens", lambda answer: units(answer, "hyde")),
    ("tokens embedded", "tokens", lambda answer: units(answer, "embed")),
    ("candidates reranked", "passages", lambda answer: units(answer, "rerank")),
    ("passages found", "passages", lambda answer: len(answer.passages) or None),
    ("passages kept", "passages", lambda answer: sum(passage.kept for passage in answer.passages) or None),
)
# facts of the spans in which a language model's server tells where its time went
_SERVER = ("server_queue_seconds", "server_prefill_seconds", "server_decode_seconds", "waited_seconds")


def measures(a: Sequence[Case], b: Sequence[Case]) -> tuple[Measure, ...]:
    """What either side has of them, whether it differs or not."""
    found = [_measure(name, unit, [[of(case.answer) for case in side] for side in (a, b)]) for name, unit, of in _MEASURES]
    for stage in STAGES:
        for fact in _SERVER:
            label = f"{stage}: {fact.removesuffix('_seconds').replace('_', ' ')}"
            found.append(_measure(label, "s", [[_fact(case, stage, fact) for case in side] for side in (a, b)]))
    return tuple(each for each in found if each.n_a or each.n_b)


def _measure(name: str, unit: str, sides: Sequence[Sequence[float | None]]) -> Measure:
    first, second = ([value for value in side if value is not None] for side in sides)
    middles = [float(median(values)) if values else None for values in (first, second)]
    return Measure(name, unit, middles[0], middles[1], len(first), len(second))


def _fact(case: Case, stage: str, fact: str) -> float | None:
    known = [float(item.facts[fact]) for item in case.intervals(stage) if item.facts.get(fact) is not None]
    return sum(known) if known else None


# ------------------------------------------------------------------------------------------------------------- machines

# last part of a metric's name -> how far apart two values are notable: a gap, or a share of the larger one
_NOTABLE: dict[str, Callable[[float, float], bool]] = {
    "utilization_ratio": lambda a, b: abs(a - b) >= 0.10,
    "memory_bandwidth_ratio": lambda a, b: abs(a - b) >= 0.10,
    "memory_used_ratio": lambda a, b: abs(a - b) >= 0.05,
    "used_ratio": lambda a, b: abs(a - b) >= 0.05,
    "busy_ratio": lambda a, b: abs(a - b) >= 0.10,
    "iowait_ratio": lambda a, b: abs(a - b) >= 0.05,
    "some_10s_ratio": lambda a, b: abs(a - b) >= 0.05,
    "kv_cache_used_ratio": lambda a, b: abs(a - b) >= 0.10,
    "cpu_ratio": lambda a, b: abs(a - b) >= 0.50,
    "sm_clock_mhz": lambda a, b: _apart(a, b) >= 0.05,
    "memory_clock_mhz": lambda a, b: _apart(a, b) >= 0.05,
    "power_watts": lambda a, b: _apart(a, b) >= 0.15,
    "temperature_celsius": lambda a, b: abs(a - b) >= 8.0,
    "waiting": lambda a, b: abs(a - b) >= 0.5,
    "running": lambda a, b: abs(a - b) >= 0.5,
    "slowed": lambda a, b: abs(a - b) >= 0.10,
    "average_1m": lambda a, b: abs(a - b) >= 1.0,
}


def _apart(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b), 1e-9)


def machine_states(a: Sequence[Case], b: Sequence[Case]) -> tuple[MachineState, ...]:
    """Metrics that tell of load and speed, on both sides; notable ones first. Empty where no readings were kept."""
    sides = [_means(cases) for cases in (a, b)]
    found = [
        _state(source, metric, *(side.get((source, metric), []) for side in sides)) for source, metric in {*sides[0], *sides[1]}
    ]
    return tuple(sorted(found, key=lambda each: (not each.notable, each.source != "local", each.source, each.metric)))


def _means(cases: Sequence[Case]) -> dict[Named, list[float]]:
    found: dict[Named, list[float]] = {}
    for case in cases:
        for series in case.readings.series if case.readings else ():
            value = series.mean(0.0, case.answer.total_seconds)
            if value is not None and series.metric.rpartition(".")[2] in _NOTABLE:
                found.setdefault((series.source, series.metric), []).append(value)
    return found


def _state(source: str, metric: str, a: list[float], b: list[float]) -> MachineState:
    first, second = (median(values) if values else None for values in (a, b))
    far = _NOTABLE[metric.rpartition(".")[2]]
    notable = first is not None and second is not None and far(first, second)
    return MachineState(source, metric, first, second, len(a), len(b), notable)
