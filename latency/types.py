"""What the investigation works with: readings of a query's time window, cases, baselines, findings. Frozen; imports no I/O.

Times are seconds and, inside a window, count from the query's start by our own clock. Unknown is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from rag.otlp import SpanRecord
from rag.types import Answer, Interval, Stage

LOCAL = "local"  # the source of readings of the machine that the query ran on

Confidence = Literal["measured", "derived", "suspected"]
"""measured: the cost is a number that was measured inside the query. derived: measured against what is usual, or by a stated
formula. suspected: the pattern fits, but nothing measured proves it."""


class Series(NamedTuple):
    """One metric of one source in a query's window. `times` ascend, `values` belong to them; names as in
    `collectors.readings.metrics` (`gpu.0.utilization_ratio`, `cpu.busy_ratio`, `engine.waiting`, `process.cpu_ratio`)."""

    source: str
    metric: str
    times: tuple[float, ...]
    values: tuple[float | None, ...]

    def within(self, start: float, end: float) -> tuple[float, ...]:
        """The known values of start <= time <= end."""
        return tuple(v for t, v in zip(self.times, self.values, strict=True) if v is not None and start <= t <= end)

    def mean(self, start: float = float("-inf"), end: float = float("inf")) -> float | None:
        """Mean of the known values there; None without any."""
        found = self.within(start, end)
        return sum(found) / len(found) if found else None


class Fact(NamedTuple):
    """Something that is no number: `gpu.0.throttle_reasons` = "sw_thermal_slowdown", `gpu.0.name`, `gpu.0.persistence_enabled`.

    `start` and `end` are the first and last time it was seen so."""

    source: str
    name: str
    value: str
    start: float
    end: float


class Use(NamedTuple):
    """A process beside the query: on a GPU (`gpu` its index) or, with `gpu` None, on the processors or the disk.

    `ours`: it is this process (or a model server of ours that the query asked). `cpu_ratio` is of one core: 2.0 is two."""

    source: str
    pid: int
    name: str
    owner: str | None = None
    gpu: int | None = None
    memory_bytes: int | None = None
    cpu_ratio: float | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class QueryReadings:
    """What was read of machines and services while a query ran, from shortly before its start to shortly after its end.

    `started_at_unix` is the query's start by our clock; `seconds` its length. `notes` say what could not be read, and why.
    """

    query_id: str
    started_at_unix: float
    seconds: float
    series: tuple[Series, ...] = ()
    facts: tuple[Fact, ...] = ()
    uses: tuple[Use, ...] = ()
    notes: tuple[str, ...] = ()

    def get(self, source: str, metric: str) -> Series | None:
        return next((each for each in self.series if each.source == source and each.metric == metric), None)

    def named(self, metric: str) -> tuple[Series, ...]:
        """That metric of every source that has it."""
        return tuple(each for each in self.series if each.metric == metric)

    def gpus(self, source: str = LOCAL) -> tuple[int, ...]:
        """Indexes of the GPUs that the source has."""
        names = {each.metric for each in self.series if each.source == source}
        names |= {each.name for each in self.facts if each.source == source}
        parts = (name.split(".") for name in names)
        return tuple(sorted({int(part[1]) for part in parts if part[0] == "gpu" and len(part) > 2 and part[1].isdigit()}))

    def to_json(self) -> dict[str, Any]:
        return {
            "query_id": self.query_id,
            "started_at_unix": self.started_at_unix,
            "seconds": self.seconds,
            "series": [each._asdict() for each in self.series],
            "facts": [each._asdict() for each in self.facts],
            "uses": [each._asdict() for each in self.uses],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QueryReadings:
        """The inverse of `to_json`; keys of a newer version are ignored."""

        def each(kind: Any, items: Any) -> tuple[Any, ...]:
            return tuple(kind(**{key: _tuple(value) for key, value in item.items() if key in kind._fields}) for item in items)

        return cls(
            data["query_id"],
            data["started_at_unix"],
            data["seconds"],
            each(Series, data.get("series", ())),
            each(Fact, data.get("facts", ())),
            each(Use, data.get("uses", ())),
            tuple(data.get("notes", ())),
        )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known of one query: what findings are a function of, together with a Baseline."""

    answer: Answer
    spans: tuple[SpanRecord, ...] = ()
    readings: QueryReadings | None = None

    def stage(self, name: str) -> Stage | None:
        """The stage if it ran, None when it was skipped or not reached."""
        found = next((each for each in self.answer.stages if each.stage == name), None)
        return None if found is None or found.skipped is not None else found

    def intervals(self, name: str) -> tuple[Interval, ...]:
        return tuple(each for each in self.answer.timeline if each.stage == name)


class Usual(NamedTuple):
    """What a stage usually takes with one model at one place, from `n` warm queries that had nothing wrong.

    Compute seconds for a work load of `units` (candidates of rerank, tokens of embed and generate) are about
    `fixed + per_unit * units` (least absolute deviations); `spread` is the median absolute deviation from that. The medians are
    of each split's seconds. `ttft` and `per_second` belong to generate and hyde alone.
    """

    n: int
    seconds: float
    compute: float
    fixed: float = 0.0
    per_unit: float = 0.0
    spread: float = 0.0
    network: float | None = None
    queue: float = 0.0
    other: float = 0.0
    ttft: float | None = None
    per_second: float | None = None

    def expected(self, units: float | None) -> float:
        """Compute seconds to be expected for so much work; the median where the work is not known."""
        return self.compute if units is None else max(0.0, self.fixed + self.per_unit * units)


class Key(NamedTuple):
    """What makes stages comparable: `where` is "in-process" or "http"."""

    stage: str
    model: str | None
    where: str | None
    device: str | None

    @classmethod
    def of(cls, stage: Stage) -> Key:
        return cls(stage.stage, stage.model, stage.where, stage.device)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is usual here. `hyde_both` queries were searched with and without the hypothesis, `hyde_changed` of them got other
    top 5 passages. `rerank_moved` is the usual lowest fused rank among the kept passages (p95), None when unknown."""

    usual: Mapping[Key, Usual] = field(default_factory=dict)
    hyde_both: int = 0
    hyde_changed: int = 0
    rerank_moved: float | None = None
    near_equal_questions: int = 0
    queries: int = 0

    def of(self, stage: Stage | None) -> Usual | None:
        return None if stage is None else self.usual.get(Key.of(stage))


class Evidence(NamedTuple):
    """One fact that speaks for a finding. `text` is a full sentence with its number and unit; `value` the number by itself.

    `source` is a span id, or `source/metric` of a reading, or what else it was taken from; `start` and `end` its time."""

    text: str
    value: float | None = None
    unit: str = ""
    source: str = ""
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause of slowness. `code` is stable (docs/contracts.md lists them); `title` a sentence with the cost in it.

    `cost_seconds` is what the cause took of this query (of all queries in a set: their sum); `saving_seconds` what is expected
    to be saved when it is removed, None when that cannot be said, and `derivation` how that follows. `share` is the saving's
    part of the total. `query_ids`: where it was found, slowest first. `key` tells several of one code apart (a stage, a machine).
    """

    code: str
    title: str
    stage: str | None
    cost_seconds: float
    saving_seconds: float | None
    derivation: str
    confidence: Confidence
    evidence: tuple[Evidence, ...]
    change: str
    share: float | None = None
    key: str = ""
    query_ids: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "evidence": [each._asdict() for each in self.evidence], "query_ids": list(self.query_ids)}
