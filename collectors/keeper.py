"""Takes the numbers of all readings and brings them, a few seconds' worth at once, into the history and before the rules.

Each of history, alerts and notifier may be missing. Knows no reading: numbers come as observations.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from collectors.alerts import Alert, Alerts, Gone, Observation
from collectors.derived import gone, kept, watched
from collectors.history import History, Sample
from collectors.notify import Notifier

log = logging.getLogger(__name__)

MAX_WAITING = 20_000  # observations: a disk that stands still must not fill the memory
PRUNE_SECONDS = 86_400.0
REMEMBERED_SECONDS = 7 * 86_400.0


class Known(Protocol):
    """What is known of a source now, to tell a metric that is gone from one that cannot be read."""

    def known(self) -> dict[str, float]: ...

    def is_readable(self, metric: str) -> bool: ...


class Keeper:
    """Thread-safe."""

    def __init__(
        self,
        history: History | None,
        alerts: Alerts | None,
        notifier: Notifier | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._history, self._alerts, self._notifier, self._clock = history, alerts, notifier, clock
        self._lock = threading.Lock()
        self._waiting: deque[Observation] = deque(maxlen=MAX_WAITING)
        self._pruned_at: float | None = None

    def take(self, observation: Observation) -> None:
        """Keep it until the next `flush`."""
        if self._history is not None or self._alerts is not None:
            with self._lock:
                self._waiting.append(observation)

    def flush(self, sources: dict[str, tuple[str, Known]], complete: bool) -> None:
        """Write and judge what came since the last time. `sources` are all that are watched, by name, each with its kind;
        `complete` False when more may turn up (a Prometheus server that has not answered yet)."""
        with self._lock:
            observations = list(self._waiting)
            self._waiting.clear()
        if self._history is not None and observations:
            self._history.write([Sample(each.source, each.at, kept(each.metrics)) for each in observations])
        if self._alerts is not None:
            self._judge(self._alerts, observations, sources, complete)

    def most_gpus(self, source: str) -> int | None:
        """The most GPUs that a machine had in the last days, from the history; None when it is not known."""
        if self._history is None:
            return None
        try:
            points = self._history.read(source, "gpus.count", self._clock() - REMEMBERED_SECONDS, points=200)
        except sqlite3.Error as error:
            log.warning("the history could not be read: %s", error)
            return None
        return max((int(point.high) for point in points), default=None)

    def _judge(
        self, alerts: Alerts, observations: Iterable[Observation], sources: dict[str, tuple[str, Known]], complete: bool
    ) -> None:
        seen = [Observation(each.source, each.kind, each.at, watched(each.metrics), each.details) for each in observations]
        try:
            ended = self._gone(alerts.active(), sources)
            events = alerts.evaluate(seen, sources if complete else None, ended)
            self._prune(alerts)
        except sqlite3.Error as error:
            log.warning("alerts could not be kept: %s", error)
            return
        if self._notifier is not None and events:
            self._notifier.send(events)

    @staticmethod
    def _gone(active: list[Alert], sources: dict[str, tuple[str, Known]]) -> list[Gone]:
        found: list[Gone] = []
        for name in dict.fromkeys(alert.source for alert in active):
            if name in sources:
                _, source = sources[name]
                found += gone([each for each in active if each.source == name], source.known(), source.is_readable)
        return found

    def _prune(self, alerts: Alerts) -> None:
        now = self._clock()
        if self._pruned_at is None or now - self._pruned_at >= PRUNE_SECONDS:
            self._pruned_at = now
            alerts.prune()
