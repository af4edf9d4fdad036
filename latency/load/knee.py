"""Where more users stop bringing more answers, what fills up there, and how many users to let in. Pure.

The knee is where the two asymptotes of throughput meet: the line on which it grows with the users, and the level that it does
not leave any more (asymptotic bounds of operational analysis: Denning and Buzen 1978, "The Operational Analysis of Queueing
Network Models", ACM Computing Surveys 10(3); Lazowska et al. 1984, "Quantitative System Performance", chapter 5). Throughput
counts as level where doubling the users brings less than a quarter more. No curve is fitted: a test has a handful of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from latency.load.steps import Reading, Step
from rag.quantities import seconds

METHOD = (
    "Asymptotic bounds (Denning and Buzen 1978): the users at which throughput, growing as it did before, would reach its "
    "highest level. Level means that doubling the users brings less than 25 % more."
)
FLAT = math.log2(1.25)
OPEN_LOAD = 0.75  # of the capacity, where users do not wait: an M/M/1 queue is three service times long there
BUSY_RATIO = 0.85
FEW = 20
LEAST_SHARE = 0.005

REST = "outside the stages"
OWN = "waiting in the test's own client"


class Growth(NamedTuple):
    """What a stage added to the mean latency from the calm step to the loaded one: seconds, how much of it was waiting in the
    stage's own queue (None where no queue is told), and its share of all that was added."""

    stage: str
    seconds: float
    queue: float | None
    share: float


@dataclass(frozen=True, slots=True)
class Knee:
    """`users` None: none found, and `text` says up to how many users (or why nothing can be said). `capacity` is the highest
    throughput, answers a second. `recommended` users at once (`recommended_rate` questions a second where users do not wait).

    `calm` and `loaded` are the steps (by users) that `growth` compares, biggest part first; `saturated` says what was full.
    """

    users: float | None
    text: str
    capacity: float | None
    recommended: int | None
    recommended_rate: float | None = None
    calm: int | None = None
    loaded: int | None = None
    growth: tuple[Growth, ...] = ()
    saturated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    method: str = METHOD

    def to_json(self) -> dict[str, Any]:
        plain = ("users", "text", "capacity", "recommended", "recommended_rate", "calm", "loaded", "method")
        data: dict[str, Any] = {name: getattr(self, name) for name in plain}
        return {
            **data,
            "growth": [each._asdict() for each in self.growth],
            "saturated": list(self.saturated),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Knee:
        """The inverse of `to_json`."""
        return cls(
            **{
                **data,
                "growth": tuple(Growth(**each) for each in data["growth"]),
                "saturated": tuple(data["saturated"]),
                "notes": tuple(data["notes"]),
            }
        )


def find(steps: Sequence[Step]) -> Knee:
    """The knee of steps in any order; steps without an answer count only as what they refused."""
    steps = sorted(steps, key=lambda step: step.users)
    good = [step for step in steps if step.answered and step.throughput > 0]
    notes = _notes(steps)
    if len(good) < 2:
        text = "No step was answered." if not good else "One step alone has no knee: test with several numbers of users."
        capacity = good[0].throughput if good else None
        return Knee(None, text, capacity, None, notes=notes)
    capacity = max(step.throughput for step in good)
    users = _knee(good)
    calm, loaded = good[0], good[-1]
    growth = explain(calm, loaded)
    return Knee(
        users=users,
        text=_sentence(users, good, capacity),
        capacity=capacity,
        recommended=_recommended(users, good),
        recommended_rate=OPEN_LOAD * capacity if users is not None and loaded.rate is not None else None,
        calm=calm.users,
        loaded=loaded.users,
        growth=growth,
        saturated=_saturated(calm, loaded) if users is not None else (),
        notes=notes,
    )


def _knee(steps: Sequence[Step]) -> float | None:
    """Where the line through the last step that still grew reaches the level: the first step after which throughput is level to
    the end tells which that is. Lines start at no users and no throughput."""
    last = steps[-1].users
    for index, step in enumerate(steps[:-1]):
        level = max(each.throughput for each in steps[index:])
        if math.log(level / step.throughput) < FLAT * math.log(last / step.users):
            growing = steps[max(0, index - 1)]
            lines = (each.users * level / each.throughput for each in (growing, step))
            return min(*lines, float(last))
    return None


def _sentence(users: float | None, steps: Sequence[Step], capacity: float) -> str:
    last = steps[-1]
    if users is None:
        return f"No knee up to {last.users} users: throughput still grew at {capacity:.3g} answers/s."
    if users <= steps[0].users:
        return f"The knee is at or below {_users(users)}: {capacity:.3g} answers/s were reached with the smallest step."
    rise = f", from {_p50(steps[0])} to {_p50(last)} (median) at {last.users}" if steps[0].total and last.total else ""
    level = f"throughput stays near {capacity:.3g} answers/s and latency grows"
    return f"The knee is at about {_users(users)}: from there on {level}{rise}."


def _users(users: float) -> str:
    shown = f"{users:.2g}" if users < 10 else f"{users:.0f}"
    return f"{shown} user" if shown == "1" else f"{shown} users"


def _p50(step: Step) -> str:
    return seconds(step.total.p50 if step.total else None)


def _recommended(users: float | None, steps: Sequence[Step]) -> int | None:
    """The knee's whole users, and never more than the most that were served without an error; None where none was."""
    clean = [step.users for step in steps if not step.failed and not step.unfinished]
    wanted = steps[-1].users if users is None else max(1, int(users + 0.05))
    first_bad = min((step.users for step in steps if step.failed or step.unfinished), default=math.inf)
    if wanted < first_bad:
        return wanted
    return max((each for each in clean if each < first_bad), default=None)


def explain(calm: Step, loaded: Step) -> tuple[Growth, ...]:
    """Which stage's time grew from one step to the other, by means: they add up where percentiles do not.

    A stage that only some requests ran counts with its mean over all of them.
    """
    if calm.total is None or loaded.total is None:
        return ()
    added = loaded.total.mean - calm.total.mean
    if added <= 0:
        return ()
    parts = [(name, _mean(loaded, "stages", name) - _mean(calm, "stages", name)) for name in {**calm.stages, **loaded.stages}]
    own = (loaded.waited.mean if loaded.waited else 0.0) - (calm.waited.mean if calm.waited else 0.0)
    rest = added - own - sum(seconds for _, seconds in parts)
    found = [Growth(name, seconds, _queue_growth(calm, loaded, name), seconds / added) for name, seconds in parts]
    found += [Growth(name, seconds, None, seconds / added) for name, seconds in ((OWN, own), (REST, rest)) if seconds > 0]
    return tuple(sorted((each for each in found if each.share >= LEAST_SHARE), key=lambda each: -each.seconds))


def _mean(step: Step, kind: str, stage: str) -> float:
    times = getattr(step, kind).get(stage)
    return times.mean * times.n / step.answered if times is not None and step.answered else 0.0


def _queue_growth(calm: Step, loaded: Step, stage: str) -> float | None:
    if stage not in loaded.queues and stage not in calm.queues:
        return None
    return _mean(loaded, "queues", stage) - _mean(calm, "queues", stage)


def _saturated(calm: Step, loaded: Step) -> tuple[str, ...]:
    """Sentences on what was full in the loaded step, from the readings."""
    found = [
        f"{word} of {each.source} was {each.mean * 100:.0f} % busy on average (n {each.n})"
        for metric, word in (("cpu.busy_ratio", "The processor"), ("gpu.utilization_ratio", "A GPU"))
        for each in loaded.reading(metric)
        if each.mean >= BUSY_RATIO
    ]
    found += [
        f"The KV cache of {each.source} was {each.highest * 100:.0f} % full (n {each.n})"
        for each in loaded.reading("engine.kv_cache_used_ratio")
        if each.highest >= 0.9
    ]
    before = {(each.source, each.metric): each.mean for each in calm.readings}
    found += [
        _waiting(each, earlier)
        for each in loaded.reading("engine.waiting")
        if each.mean >= max(1.0, 2 * (earlier := before.get((each.source, each.metric), 0.0)))
    ]
    found += [_process(each) for each in loaded.reading("process.cpu_ratio") if each.mean >= 0.9]
    return tuple(found)


def _waiting(reading: Reading, before: float) -> str:
    waited = f"{reading.mean:.3g} requests waited inside {reading.source} on average (n {reading.n})"
    return f"{waited}, {before:.3g} in the calm step"


def _process(reading: Reading) -> str:
    return f"RAG Deck's own process kept {reading.mean:.2g} cores busy on average (n {reading.n})"


def _notes(steps: Sequence[Step]) -> tuple[str, ...]:
    notes: list[str] = []
    refused = [step for step in steps if step.errors.get("overloaded")]
    if refused:
        count = sum(step.errors["overloaded"] for step in refused)
        notes.append(
            f"From {refused[0].users} users on {count:,} requests were refused as too many at once: throughput there is that of "
            "the limit (query.max_running in RAG Deck), and latency that of the requests let in."
        )
    few = [step for step in steps if 0 < step.answered < FEW]
    if few:
        names = ", ".join(f"{step.users} users n {step.answered}" for step in few)
        notes.append(f"Few answers in a step ({names}): take the numbers as a first look, and test longer.")
    if any(step.unfinished for step in steps):
        notes.append("Some requests had not ended when their step was given up; they are in no percentile.")
    if any(step.cold for step in steps):
        notes.append("Some requests in the steps were cold (a model loaded or ran for the first time): warm up with more.")
    return tuple(notes)
