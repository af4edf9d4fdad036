"""What was measured, kept in SQLite and rolled up: 2 s for an hour, 1 min for a day, 10 min for a week, 1 h for 90 days.

Every sample goes into the bucket of each resolution at once, as count, sum, lowest and highest, so that nothing has to be rolled
up later and a restart loses nothing that was committed. Rows lie by time, not by series: the samples of one sweep share a few
pages, and reading one series is one seek a bucket. Values are kept as whole numbers of a step that no chart could show (0.01 %,
64 KiB, 10 µs; `SCALES`): SQLite writes those in a third of the bytes of a float.
Knows nothing of machines: a series is a source and the name of a metric.
A disk that is full or a file that is locked costs samples, never the sweep: they are counted and `health` says why.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

MAX_SERIES = 20_000
BUSY_SECONDS = 5.0
MAX_POINTS = 2_000


class Resolution(NamedTuple):
    """One table: buckets of `seconds`, kept for `keep_seconds`."""

    table: str
    seconds: int
    keep_seconds: int


RESOLUTIONS = (
    Resolution("fine", 2, 3600),
    Resolution("minute", 60, 86_400),
    Resolution("ten_minutes", 600, 7 * 86_400),
    Resolution("hour", 3600, 90 * 86_400),
)


# How many steps there are to one, by the ending of a metric's name; the first that fits counts. Others are kept as they are.
SCALES: tuple[tuple[str, float], ...] = (
    ("_ratio", 1e4),
    ("_bytes_per_second", 1 / 16),
    ("_per_second", 1e2),
    ("_bytes", 1 / 65_536),
    ("_seconds", 1e5),
    ("_celsius", 10.0),
    ("_watts", 10.0),
    ("_mhz", 1.0),
    ("_1m", 1e2),
    ("_15m", 1e3),
)


def scale_of(metric: str) -> float:
    """Steps to one of a new series; 1.0 keeps values that are whole and those that are not."""
    return next((scale for ending, scale in SCALES if metric.endswith(ending)), 1.0)


class Sample(NamedTuple):
    """The metrics of one source (a machine, a service) at one time (Unix seconds)."""

    source: str
    at: float
    metrics: Mapping[str, float]


class Point(NamedTuple):
    """A bucket of a series: it starts at `at` (Unix seconds), and has `samples` of them."""

    at: float
    mean: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class HistoryHealth:
    """`dropped` samples could not be written since the start; `problem` is why the last write failed, None when it went well."""

    series: int
    bytes: int | None
    dropped: int = 0
    problem: str | None = None


class History:
    """The history of all sources in one file. Thread-safe. `clock` gives Unix seconds."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Opens or makes the file. Raises sqlite3.Error when it cannot be; a damaged one is set aside and named in the log."""
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self._closed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = _open(path)
        rows = self._connection.execute("SELECT id, source, metric, scale FROM series").fetchall()
        self._ids: dict[tuple[str, str], int] = {(source, metric): number for number, source, metric, _ in rows}
        self._scales: dict[int, float] = {number: scale for number, _, _, scale in rows}
        self._health = HistoryHealth(len(self._ids), None)
        self._pruned = 0.0

    def write(self, samples: Iterable[Sample]) -> None:
        """Add samples to all resolutions and forget what is too old, in one transaction. Never raises for the disk's sake."""
        samples = list(samples)
        with self._lock:
            if self._closed:
                return
            known = dict(self._ids)
            try:
                with self._transaction() as connection:
                    rows = list(self._rows(connection, samples))
                    for resolution in RESOLUTIONS:
                        connection.executemany(_UPSERT[resolution.table], _bucketed(rows, resolution.seconds))
                    self._prune(connection)
            except sqlite3.Error as problem:
                self._ids = known  # series made in a transaction that was taken back do not exist
                self._failed(len(samples), problem)
                return
            self._health = replace(self._health, series=len(self._ids), problem=None)

    def _rows(self, connection: sqlite3.Connection, samples: Iterable[Sample]) -> Iterable[tuple[int, float, float]]:
        for sample in samples:
            for metric, value in sample.metrics.items():
                number = self._series(connection, sample.source, metric)
                if number is not None and isfinite(value):  # NaN is no number to average
                    scale = self._scales[number]
                    yield number, sample.at, value if scale == 1.0 else float(round(value * scale))

    def _series(self, connection: sqlite3.Connection, source: str, metric: str) -> int | None:
        number = self._ids.get((source, metric))
        if number is None and len(self._ids) < MAX_SERIES:
            scale = scale_of(metric)
            cursor = connection.execute("INSERT INTO series (source, metric, scale) VALUES (?, ?, ?)", (source, metric, scale))
            number = self._ids[source, metric] = int(cursor.lastrowid or 0)
            self._scales[number] = scale
        return number

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Drop buckets past their time, once a minute."""
        now = self._clock()
        if now - self._pruned < 60:
            return
        for resolution in RESOLUTIONS:
            connection.execute(f"DELETE FROM {resolution.table} WHERE bucket < ?", (int(now - resolution.keep_seconds),))
        self._pruned = now

    def _failed(self, samples: int, problem: sqlite3.Error) -> None:
        text = f"{type(problem).__name__}: {problem}"
        if self._health.problem != text:
            log.warning("machine history could not be written to %s: %s", self._path, text)
        self._health = replace(self._health, dropped=self._health.dropped + samples, problem=text)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def series(self, source: str | None = None) -> list[tuple[str, str]]:
        """(source, metric) of everything ever kept, or of one source, sorted."""
        with self._lock:
            return sorted(key for key in self._ids if source in (None, key[0]))

    def read(self, source: str, metric: str, start: float, end: float | None = None, points: int = 300) -> list[Point]:
        """The series between two times (Unix seconds; `end` None is now), oldest first, in the finest resolution that still
        reaches back to `start` and gives at most about `points`. Buckets without samples are absent: they are gaps.

        Raises sqlite3.Error when the file cannot be read.
        """
        end = self._clock() if end is None else end
        with self._lock:
            number = self._ids.get((source, metric))
            if number is None or end < start or self._closed:
                return []
            resolution = self.resolution(start, end, points)
            step = resolution.seconds
            first = max(int(start // step) * step, int(end // step) * step - MAX_POINTS * step)
            rows = self._connection.execute(_READ[resolution.table], (first, step, int(end), number)).fetchall()
            scale = self._scales[number]
        return [
            Point(bucket, total / count / scale, low / scale, high / scale, count) for bucket, count, total, low, high in rows
        ]

    def resolution(self, start: float, end: float, points: int = 300) -> Resolution:
        """Which resolution `read` takes for a span."""
        now = self._clock()
        reaching = [item for item in RESOLUTIONS if start >= now - item.keep_seconds] or [RESOLUTIONS[-1]]
        return next((item for item in reaching if (end - start) / item.seconds <= points), reaching[-1])

    def forget(self, source: str) -> None:
        """Delete everything of a source that is watched no more. Raises sqlite3.Error."""
        with self._lock, self._transaction() as connection:
            numbers = [number for (name, _), number in self._ids.items() if name == source]
            marks = ",".join("?" * len(numbers))
            for resolution in RESOLUTIONS:
                connection.execute(f"DELETE FROM {resolution.table} WHERE series IN ({marks})", numbers)
            connection.execute("DELETE FROM series WHERE source = ?", (source,))
            self._ids = {key: number for key, number in self._ids.items() if key[0] != source}

    def health(self) -> HistoryHealth:
        with self._lock:
            size = self._path.stat().st_size if self._path.exists() else None
            return replace(self._health, bytes=size, series=len(self._ids))

    def close(self) -> None:
        """Close the file. Once; later writes are dropped without a word, for the process is ending."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._connection.close()


_SCHEMA = """
CREATE TABLE IF NOT EXISTS series (id INTEGER PRIMARY KEY, source TEXT NOT NULL, metric TEXT NOT NULL,
 scale REAL NOT NULL DEFAULT 1, UNIQUE (source, metric));
""" + "".join(
    f"CREATE TABLE IF NOT EXISTS {item.table} (bucket INTEGER, series INTEGER, count INTEGER, total REAL, low REAL, high REAL,"
    " PRIMARY KEY (bucket, series)) WITHOUT ROWID;\n"
    for item in RESOLUTIONS
)
# `low` and `high` are NULL where there is one sample, which `total` is
_UPSERT = {
    item.table: f"INSERT INTO {item.table} VALUES (?, ?, 1, ?, NULL, NULL) ON CONFLICT (bucket, series) DO UPDATE SET"
    " count = count + 1, total = total + excluded.total, low = min(coalesce(low, total), excluded.total),"
    " high = max(coalesce(high, total), excluded.total)"
    for item in RESOLUTIONS
}
_READ = {
    item.table: "WITH RECURSIVE wanted(bucket) AS (SELECT ?1 UNION ALL SELECT bucket + ?2 FROM wanted WHERE bucket + ?2 <= ?3) "
    "SELECT b.bucket, b.count, b.total, coalesce(b.low, b.total), coalesce(b.high, b.total) "
    f"FROM wanted CROSS JOIN {item.table} AS b "
    "ON b.bucket = wanted.bucket AND b.series = ?4 ORDER BY b.bucket"
    for item in RESOLUTIONS
}


def _bucketed(rows: Iterable[tuple[int, float, float]], seconds: int) -> Iterable[tuple[int, int, float]]:
    return ((int(at // seconds) * seconds, number, value) for number, at, value in rows)


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError as problem:
        if isinstance(problem, sqlite3.OperationalError) or not path.exists():  # locked, no rights, disk full: not its content
            raise
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
        path.rename(aside)
        log.error("%s is damaged (%s) and was set aside as %s; a new history begins", path, problem, aside.name)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 16000000")
        connection.executescript(_SCHEMA)
        if "scale" not in {row[1] for row in connection.execute("PRAGMA table_info(series)")}:  # a file of an older version
            connection.execute("ALTER TABLE series ADD COLUMN scale REAL NOT NULL DEFAULT 1")
    except sqlite3.Error:
        connection.close()
        raise
    return connection
