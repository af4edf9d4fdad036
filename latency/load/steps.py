"""What one step of a load test found, as frozen records and their JSON. Pure: asks nothing, reads no clock.

Times are seconds. Latency counts from the moment at which a request was meant to be sent, so that a request that had to wait
for our own client counts its waiting (no coordinated omission). Percentiles are of answered requests alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rag.types import STAGES

SLOWEST = 3


class Told(NamedTuple):
    """What came back for one question. `error` is a kind of `rag.errors.Kind`, None for an answer. `stages` and `queues` are
    seconds by stage, empty where the answerer says nothing of its stages."""

    stages: Mapping[str, float] = {}
    queues: Mapping[str, float] = {}
    error: str | None = None
    message: str = ""
    cold: bool = False
    query_id: str | None = None


class Heard(NamedTuple):
    """One request on the step's clock: when it was meant to be sent, when it was, and when it had ended."""

    intended: float
    sent: float
    ended: float
    told: Told

    @property
    def seconds(self) -> float:
        return self.ended - self.intended

    def share_within(self, start: float, end: float) -> float:
        """The part of its time with the answerer that lies between the two."""
        length = self.ended - self.sent
        if length <= 0:
            return float(start <= self.ended <= end)
        return max(0.0, min(self.ended, end) - max(self.sent, start)) / length


class Times(NamedTuple):
    """A distribution in seconds; percentiles interpolate linearly between the closest ranks."""

    n: int
    mean: float
    p50: float
    p95: float
    p99: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Times | None:
        """None without a value."""
        found = np.fromiter(values, dtype=np.float64)
        if not found.size:
            return None
        p50, p95, p99 = (float(each) for each in np.percentile(found, (50, 95, 99)))
        return cls(int(found.size), float(found.mean()), p50, p95, p99, float(found.max()))

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Times | None:
        return None if data is None else cls(**{name: data[name] for name in cls._fields})


class Reading(NamedTuple):
    """A machine's or service's metric while a step ran: mean and highest of `n` readings, named as in `collectors.readings`."""

    source: str
    metric: str
    mean: float
    highest: float
    n: int


class Slow(NamedTuple):
    """A request that can be looked at in the traces of the answerer."""

    query_id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """`users` asked at once; with `rate` (questions a second, all users together) they did not wait for answers.

    `asked` counts what was sent, `answered` what was answered, `errors` the rest by kind; `examples` has a message of each kind.
    `throughput` is answers a second (see there), `seconds` how long all users asked. `waited` is what requests waited in our own
    client before they were sent (with a rate alone).
    `unfinished` had not ended when the test gave up on them, and are in none of the numbers but `asked`.
    """

    users: int
    seconds: float
    asked: int
    answered: int
    throughput: float
    total: Times | None
    stages: Mapping[str, Times] = field(default_factory=dict)
    queues: Mapping[str, Times] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    rate: float | None = None
    waited: Times | None = None
    cold: int = 0
    unfinished: int = 0
    readings: tuple[Reading, ...] = ()
    slowest: tuple[Slow, ...] = ()

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def reading(self, metric: str) -> tuple[Reading, ...]:
        """That metric of every source, highest mean first; `gpu.utilization_ratio` finds `gpu.0.utilization_ratio`."""
        kind, _, name = metric.partition(".")
        fitting = (each for each in self.readings if each.metric.startswith(f"{kind}.") and each.metric.endswith(f".{name}"))
        return tuple(sorted(fitting, key=lambda each: -each.mean))

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {name: getattr(self, name) for name in ("users", "rate", "seconds", "asked", "answered")}
        data |= {"throughput": self.throughput, "cold": self.cold, "unfinished": self.unfinished}
        data |= {"errors": dict(self.errors), "examples": dict(self.examples)}
        data |= {name: None if (value := getattr(self, name)) is None else value._asdict() for name in ("total", "waited")}
        data |= {name: {key: value._asdict() for key, value in getattr(self, name).items()} for name in ("stages", "queues")}
        data |= {name: [each._asdict() for each in getattr(self, name)] for name in ("readings", "slowest")}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Step:
        """The inverse of `to_json`."""
        plain = ("users", "rate", "seconds", "asked", "answered", "throughput", "cold", "unfinished", "errors", "examples")
        return cls(
            **{name: data[name] for name in plain},
            total=Times.from_json(data["total"]),
            waited=Times.from_json(data["waited"]),
            stages=_distributions(data["stages"]),
            queues=_distributions(data["queues"]),
            readings=tuple(Reading(**each) for each in data["readings"]),
            slowest=tuple(Slow(**each) for each in data["slowest"]),
        )


def _distributions(data: Mapping[str, Mapping[str, Any]]) -> dict[str, Times]:
    return {name: found for name, each in data.items() if (found := Times.from_json(each)) is not None}


def step_of(
    heard: Sequence[Heard],
    users: int,
    window: float,
    *,
    rate: float | None = None,
    unfinished: int = 0,
    readings: tuple[Reading, ...] = (),
) -> Step:
    """The step that these requests make; `window` is how long all users asked, in seconds. What was cancelled is unfinished."""
    kept = [each for each in heard if each.told.error != "cancelled"]
    unfinished += len(heard) - len(kept)
    good = [each for each in kept if each.told.error is None]
    bad = [each.told for each in kept if each.told.error is not None]
    return Step(
        users=users,
        rate=rate,
        seconds=window,
        asked=len(kept) + unfinished,
        answered=len(good),
        throughput=throughput(kept, users, window, waits=rate is None),
        total=Times.of(each.seconds for each in good),
        stages=_by_stage(each.told.stages for each in good),
        queues=_by_stage(each.told.queues for each in good),
        errors=dict(Counter(str(each.error) for each in bad)),
        examples={str(each.error): each.message[:300] for each in reversed(bad)},
        waited=Times.of(each.sent - each.intended for each in good) if rate is not None else None,
        cold=sum(each.told.cold for each in good),
        unfinished=unfinished,
        readings=readings,
        slowest=_slowest(good),
    )


def throughput(heard: Sequence[Heard], users: int, window: float, *, waits: bool) -> float:
    """Answers a second. Where users wait for answers: from when each had its first one until the first had no more to ask; a
    request that lies across one of these borders counts with the share of its time inside, so that neither the start with
    empty queues nor the end with fewer users shows. Without such a time between (steps shorter than a few answers), and where
    users do not wait: all answers over the time until the last one.
    """
    good = [each for each in heard if each.told.error is None]
    if not good:
        return 0.0
    if waits:
        first = sorted(heard, key=lambda each: each.sent)[:users]
        start = max(each.ended for each in first)
        if len(heard) > len(first) and start < window:
            return sum(each.share_within(start, window) for each in good) / (window - start)
    length = max(window, *(each.ended for each in good))
    return len(good) / length if length > 0 else 0.0


def _by_stage(each: Iterable[Mapping[str, float]]) -> dict[str, Times]:
    """Distributions by stage, in the order of the stages. A stage that a request did not run is not in its distribution."""
    values: dict[str, list[float]] = {}
    for known in each:
        for stage, seconds in known.items():
            values.setdefault(stage, []).append(seconds)
    order = [*(name for name in STAGES if name in values), *sorted(values.keys() - set(STAGES))]
    return {name: found for name in order if (found := Times.of(values[name])) is not None}


def _slowest(good: Sequence[Heard]) -> tuple[Slow, ...]:
    known = [Slow(each.told.query_id, each.seconds) for each in good if each.told.query_id is not None]
    return tuple(sorted(known, key=lambda each: -each.seconds)[:SLOWEST])
