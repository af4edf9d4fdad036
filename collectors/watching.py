"""What all watched things share: their clocks, where their readings go, and the memory of one part. Knows no machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

from collectors.alerts import Observation
from collectors.retry import Doors
from collectors.scheduler import Scheduler
from collectors.views import Part, Problem

T = TypeVar("T")

STALE_ROUNDS = 3
STALE_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a watch is given. `clock` is Unix seconds, for what is shown and kept; `monotonic` counts ages and waits. `report`
    takes the numbers of a reading, `changed` is called after each change of what a view shows."""

    scheduler: Scheduler
    report: Callable[[Observation], None]
    changed: Callable[[], None]
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    random: Random = field(default_factory=Random)
    doors: Doors = field(default_factory=Doors)


@dataclass(slots=True)
class Memory(Generic[T]):
    """The last reading of a part and how the last tries went. `read_at` is of the monotonic clock."""

    value: T | None = None
    at: float | None = None
    read_at: float | None = None
    seconds: float | None = None
    problem: Problem | None = None
    failures: int = 0
    absent: bool = False

    def good(self, value: T, at: float, read_at: float, seconds: float) -> None:
        self.value, self.at, self.read_at, self.seconds = value, at, read_at, seconds
        self.problem, self.failures = None, 0

    def bad(self, problem: Problem) -> None:
        self.problem = problem
        self.failures += 1

    def age(self, now: float) -> float | None:
        return None if self.read_at is None else max(0.0, now - self.read_at)

    def view(self, now: float, every: float) -> Part[T]:
        """The part at `now` (monotonic), when it should be read every so many seconds."""
        age = self.age(now)
        stale = age is not None and age > STALE_ROUNDS * every + STALE_MARGIN_SECONDS and not self.absent
        return Part(self.value, self.at, age, self.seconds, self.problem, stale, self.absent)
