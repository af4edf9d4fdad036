"""Alerts: rules applied to each sweep's metrics; raised, worse, better, acknowledged, resolved, with times, kept in SQLite.

Knows no collector and no page: it is given `Observation`s and says what changed. A metric that is missing this time changes
nothing (a machine that cannot be read has an alert of its own); what is `Gone` for good, and a source that is watched no more,
have their alerts ended, with the reason.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from collectors.rules import ORDER, Level, Rule

log = logging.getLogger(__name__)

Change = Literal["raised", "worse", "better", "resolved"]
KEEP_SECONDS = 90 * 86_400.0
BACK = "back to normal"
UNWATCHED = "watched no more"
RULE_OFF = "its rule is off"


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of one source at one time (Unix seconds). `details` says more of a metric in words (a fault's text)."""

    source: str
    kind: str
    at: float
    metrics: Mapping[str, float]
    details: Mapping[str, str] = field(default_factory=dict)


class Gone(NamedTuple):
    """A metric of a source that is no more: its alerts end for this reason, with the last value they had."""

    source: str
    metric: str
    reason: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert from raising to resolution; times are Unix seconds. `value` is the last, `worst` the worst seen; `ended` says why
    it is over (`back to normal`, `no longer measured`), None while it is not."""

    id: int
    rule: str
    title: str
    source: str
    metric: str
    level: Level
    value: float
    worst: float
    raised_at: float
    detail: str
    next_step: str
    unit: str
    acknowledged_at: float | None = None
    resolved_at: float | None = None
    ended: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to an alert in one evaluation."""

    change: Change
    alert: Alert


class Window:
    """The mean of a metric over the last seconds; None until half of them are covered."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()
        self._first = 0.0

    def add(self, at: float, value: float) -> float | None:
        """Take a value in; the mean if enough is covered. A gap longer than the window starts anew."""
        if self._seconds <= 0:
            return value
        if self._values and at - self._values[-1][0] > self._seconds:
            self._values.clear()
        if not self._values:
            self._first = at
        self._values.append((at, value))
        while self._values[0][0] < at - self._seconds:
            self._values.popleft()
        covered = at - max(self._first, at - self._seconds)
        return sum(value for _, value in self._values) / len(self._values) if covered >= self._seconds / 2 else None


@dataclass(slots=True)
class _Track:
    """One rule on one metric of one source: its window, the level in force and the level that is waiting for its time."""

    window: Window
    level: Level = "ok"
    waiting: Level = "ok"
    since: float = 0.0
    seen: float = 0.0


class Alerts:
    """The alerts of all sources, active and past, in one file. Thread-safe. `clock` gives Unix seconds."""

    def __init__(self, path: Path, rules: tuple[Rule, ...], clock: Callable[[], float] = time.time) -> None:
        """Opens or makes the file; alerts that were active stay so. Raises sqlite3.Error."""
        self._clock = clock
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        _prepare(self._connection)
        self._rules = rules
        self._tracks: dict[tuple[str, str, str], _Track] = {}
        self._active = {(alert.rule, alert.source, alert.metric): alert for alert in self._select("resolved_at IS NULL")}
        self.problem: str | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self._rules

    def use(self, rules: tuple[Rule, ...]) -> None:
        """Put other rules in force: waiting starts anew, alerts of rules that are off end with the next sweep."""
        with self._lock:
            self._rules = rules
            self._tracks.clear()

    def evaluate(
        self, observations: Iterable[Observation], watched: Iterable[str] | None = None, gone: Iterable[Gone] = ()
    ) -> list[Event]:
        """Apply the rules. `watched` are the sources that still exist; alerts of others, and on what is `gone`, are ended.
        Returns what changed."""
        with self._lock:
            events = [event for observation in observations for event in self._observe(observation)]
            events += self._gone(gone)
            events += self._orphans(set(watched) if watched is not None else None)
            self._keep(events)
            return events

    def _observe(self, observation: Observation) -> Iterable[Event]:
        for rule in self._rules:
            for metric, value in observation.metrics.items():
                if rule.matches(observation.kind, metric):
                    yield from self._apply(rule, observation, metric, value)

    def _apply(self, rule: Rule, observation: Observation, metric: str, value: float) -> Iterable[Event]:
        key = (rule.id, observation.source, metric)
        track = self._tracks.get(key)
        if track is None:
            active = self._active.get(key)
            track = self._tracks[key] = _Track(Window(rule.window_seconds), active.level if active else "ok")
        mean = track.window.add(observation.at, value)
        if mean is None:
            return
        level = rule.level(mean, track.level)
        if level != track.waiting:
            track.waiting, track.since = level, observation.at
        patience = rule.for_seconds if ORDER.index(level) > ORDER.index(track.level) else 0.0
        if level != track.level and observation.at - track.since >= patience:
            track.level = level
            yield self._changed(rule, observation, metric, mean, level)
        elif key in self._active:
            self._active[key] = _with_value(self._active[key], mean, rule.above)

    def _changed(self, rule: Rule, seen: Observation, metric: str, value: float, level: Level) -> Event:
        key = (rule.id, seen.source, metric)
        active = self._active.get(key)
        if active is None:
            detail = seen.details.get(metric, "")
            alert = Alert(
                0, rule.id, rule.title, seen.source, metric, level, value, value, seen.at, detail, rule.next_step, rule.unit
            )
            self._active[key] = self._insert(alert)
            return Event("raised", self._active[key])
        active = _with_value(active, value, rule.above)
        if level == "ok":
            del self._active[key]
            return Event("resolved", replace(active, resolved_at=seen.at, ended=BACK))
        change: Change = "worse" if ORDER.index(level) > ORDER.index(active.level) else "better"
        # an alert that got worse is news again, whoever has seen the milder one
        acknowledged = active.acknowledged_at if change == "better" else None
        self._active[key] = replace(active, level=level, acknowledged_at=acknowledged)
        return Event(change, self._active[key])

    def _gone(self, gone: Iterable[Gone]) -> list[Event]:
        reasons = {(each.source, each.metric): each.reason for each in gone}
        keys = [key for key in self._active if key[1:] in reasons]
        return [self._end(key, reasons[key[1:]]) for key in keys]

    def _orphans(self, watched: set[str] | None) -> list[Event]:
        """Alerts of sources that are watched no more, and of rules that are off."""
        enabled = {rule.id for rule in self._rules if rule.enabled}
        off = [key for key in self._active if key[0] not in enabled]
        left = [key for key in self._active if watched is not None and key[1] not in watched and key[0] in enabled]
        return [self._end(key, RULE_OFF) for key in off] + [self._end(key, UNWATCHED) for key in left]

    def _end(self, key: tuple[str, str, str], reason: str) -> Event:
        """Without its track: should the metric come back, it is judged anew."""
        self._tracks.pop(key, None)
        return Event("resolved", replace(self._active.pop(key), resolved_at=self._clock(), ended=reason))

    def _keep(self, events: Iterable[Event]) -> None:
        try:
            for event in events:
                self._connection.execute(_UPDATE, _values(event.alert))
            self.problem = None
        except sqlite3.Error as problem:
            self.problem = f"{type(problem).__name__}: {problem}"
            log.warning("alerts could not be written: %s", self.problem)

    def _insert(self, alert: Alert) -> Alert:
        """The alert with its number; a file that cannot be written gives it a passing one: it is shown, and lost at the end."""
        try:
            cursor = self._connection.execute(_INSERT, _values(alert))
            return replace(alert, id=int(cursor.lastrowid or 0))
        except sqlite3.Error as problem:
            self.problem = f"{type(problem).__name__}: {problem}"
            return replace(alert, id=-1 - len(self._active))

    def active(self) -> list[Alert]:
        """Alerts in force, the worst first, then the newest."""
        with self._lock:
            return sorted(self._active.values(), key=lambda alert: (-ORDER.index(alert.level), -alert.raised_at))

    def past(self, limit: int = 200) -> list[Alert]:
        """Resolved alerts, the latest first. Raises sqlite3.Error."""
        with self._lock:
            return self._select("resolved_at IS NOT NULL ORDER BY resolved_at DESC LIMIT ?", limit)

    def acknowledge(self, number: int) -> Alert | None:
        """Mark an active alert as seen; None when it is not active (any more)."""
        with self._lock:
            for key, alert in self._active.items():
                if alert.id == number:
                    self._active[key] = replace(alert, acknowledged_at=alert.acknowledged_at or self._clock())
                    self._connection.execute(_UPDATE, _values(self._active[key]))
                    return self._active[key]
        return None

    def prune(self) -> None:
        """Delete resolved alerts older than 90 days."""
        with self._lock:
            self._connection.execute("DELETE FROM alerts WHERE resolved_at < ?", (self._clock() - KEEP_SECONDS,))

    def close(self) -> None:
        """Write the last values of active alerts and close the file."""
        with self._lock:
            self._keep([Event("better", alert) for alert in self._active.values()])
            self._connection.close()

    def _select(self, where: str, *arguments: Any) -> list[Alert]:
        rows = self._connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM alerts WHERE {where}", arguments).fetchall()
        return [Alert(*row) for row in rows]


def _with_value(alert: Alert, value: float, above: bool) -> Alert:
    worst = max(alert.worst, value) if above else min(alert.worst, value)
    return replace(alert, value=value, worst=worst)


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the table, or add the column that files of older versions lack."""
    connection.execute(_SCHEMA)
    if "ended" not in {row[1] for row in connection.execute("PRAGMA table_info(alerts)")}:
        connection.execute("ALTER TABLE alerts ADD COLUMN ended TEXT")


_COLUMNS = tuple(Alert.__dataclass_fields__)
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS alerts (id INTEGER PRIMARY KEY, rule TEXT, title TEXT, source TEXT, metric TEXT, level TEXT,"
    " value REAL, worst REAL, raised_at REAL, detail TEXT, next_step TEXT, unit TEXT, acknowledged_at REAL, resolved_at REAL,"
    " ended TEXT)"
)
_INSERT = f"INSERT INTO alerts ({', '.join(_COLUMNS)}) VALUES (NULL{', :' + ', :'.join(_COLUMNS[1:])})"
_UPDATE = f"UPDATE alerts SET {', '.join(f'{name} = :{name}' for name in _COLUMNS[1:])} WHERE id = :id"


def _values(alert: Alert) -> dict[str, Any]:
    return {name: getattr(alert, name) for name in _COLUMNS}
