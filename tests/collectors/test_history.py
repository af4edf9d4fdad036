"""The history: rolled up at once, survives restarts, bounded, and never in the sweep's way."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from collectors import history
from collectors.history import RESOLUTIONS, History, Point, Sample

NOON = 1_795_262_400.0  # divisible by an hour


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(tmp_path: Path, clock: Clock) -> History:
    return History(tmp_path / "history.db", clock)


def fill(kept: History, clock: Clock, seconds: int, every: int = 2) -> None:
    """A ramp: the value is the number of seconds since noon."""
    for second in range(0, seconds, every):
        clock.now = NOON + second
        kept.write([Sample("gpu-box", clock.now, {"cpu.busy_ratio": float(second)})])


def test_a_sample_is_in_every_resolution_at_once(kept: History, clock: Clock) -> None:
    fill(kept, clock, 120)
    clock.now = NOON + 119
    for resolution, count, mean in ((RESOLUTIONS[0], 1, 118.0), (RESOLUTIONS[1], 30, 89.0), (RESOLUTIONS[2], 60, 59.0)):
        points = kept.read("gpu-box", "cpu.busy_ratio", NOON, NOON + 119, points=int(120 / resolution.seconds) + 1)
        assert (points[-1].samples, points[-1].mean) == (count, mean), resolution
    minute = kept.read("gpu-box", "cpu.busy_ratio", NOON, NOON + 119, points=2)
    assert minute == [Point(NOON, 29.0, 0.0, 58.0, 30), Point(NOON + 60, 89.0, 60.0, 118.0, 30)]


def test_the_finest_resolution_that_reaches_back_and_fits_is_taken(kept: History, clock: Clock) -> None:
    names = [
        kept.resolution(clock.now - seconds, clock.now, points).table
        for seconds, points in (
            (600, 300),
            (3600, 300),
            (7200, 300),
            (86_400, 300),
            (6 * 86_400, 300),
            (40 * 86_400, 300),
            (600, 60),
        )
    ]
    assert names == ["fine", "minute", "minute", "ten_minutes", "hour", "hour", "minute"]


def test_gaps_stay_gaps(kept: History, clock: Clock) -> None:
    kept.write([Sample("a", NOON, {"m": 1.0}), Sample("a", NOON + 20, {"m": 3.0})])
    assert [point.at for point in kept.read("a", "m", NOON, NOON + 30)] == [NOON, NOON + 20]
    assert kept.read("a", "unknown", NOON, NOON + 30) == [] and kept.read("b", "m", NOON, NOON + 30) == []
    assert kept.read("a", "m", NOON + 30, NOON) == []


def test_everything_survives_a_restart(tmp_path: Path, clock: Clock) -> None:
    first = History(tmp_path / "history.db", clock)
    first.write([Sample("a", NOON, {"m": 1.0})])
    first.close()
    second = History(tmp_path / "history.db", clock)
    second.write([Sample("a", NOON + 1, {"m": 3.0, "n": 5.0})])
    assert second.read("a", "m", NOON, NOON + 1) == [Point(NOON, 2.0, 1.0, 3.0, 2)]
    assert second.series() == [("a", "m"), ("a", "n")] and second.series("b") == []


def test_a_killed_process_loses_nothing_that_was_written(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from collectors.history import History, Sample\n"
        f"kept = History(Path(sys.argv[1]), lambda: {NOON})\n"
        f"kept.write([Sample('a', {NOON}, {{'m': 4.0}})]); print('written', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "history.db"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert History(path, Clock()).read("a", "m", NOON, NOON + 1) == [Point(NOON, 4.0, 4.0, 4.0, 1)]


def test_old_buckets_go_and_coarser_ones_stay(kept: History, clock: Clock) -> None:
    kept.write([Sample("a", NOON, {"m": 1.0})])
    clock.now = NOON + 3600 * 2
    kept.write([Sample("a", clock.now, {"m": 2.0})])
    rows = {
        item.table: kept._connection.execute(f"SELECT bucket FROM {item.table} ORDER BY 1").fetchall() for item in RESOLUTIONS
    }
    assert rows["fine"] == [(clock.now,)] and rows["minute"] == [(NOON,), (clock.now,)]
    assert [point.mean for point in kept.read("a", "m", NOON, clock.now)] == [1.0, 2.0]


def test_the_file_stays_bounded(tmp_path: Path, clock: Clock) -> None:
    """Three hours at 2 s do not take more than a bit over one: freed pages are used again."""
    kept = History(tmp_path / "history.db", clock)
    sizes = []
    for hour in range(3):
        for second in range(0, 3600, 20):
            clock.now = NOON + 3600 * hour + second
            kept.write([Sample("a", clock.now, {f"m{number}": 1.0 for number in range(40)})])
        sizes.append(kept._connection.execute("SELECT (SELECT page_count FROM pragma_page_count())").fetchone()[0])
    assert sizes[2] < sizes[1] * 1.25


def test_values_are_kept_as_closely_as_a_chart_can_show(kept: History) -> None:
    values = {
        "cpu.busy_ratio": 0.12345,
        "memory.used_bytes": 81_559.0 * 2**20,
        "disk.sda.read_bytes_per_second": 1_234_567.0,
        "disk.sda.wait_seconds": 0.00061,
        "gpu.0.temperature_celsius": 61.5,
        "gpu.0.power_watts": 612.44,
        "load.average_1m": 2.35,
        "engine.running": 2.3456789,
        "service.dimension": 1e18,
    }
    kept.write([Sample("a", NOON, values), Sample("a", NOON + 1, {name: 2 * value for name, value in values.items()})])
    for name, value in values.items():
        (point,) = kept.read("a", name, NOON, NOON + 1)
        assert (point.low, point.mean, point.high) == pytest.approx((value, 1.5 * value, 2 * value), rel=1e-3), name
    (kept_as_it_is,) = kept.read("a", "engine.running", NOON, NOON + 1)
    assert kept_as_it_is.low == 2.3456789


def test_a_file_of_an_older_version_is_gone_on_with(tmp_path: Path, clock: Clock) -> None:
    old = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
    old.execute(
        "CREATE TABLE series (id INTEGER PRIMARY KEY, source TEXT NOT NULL, metric TEXT NOT NULL, UNIQUE (source, metric))"
    )
    old.execute("INSERT INTO series VALUES (1, 'a', 'cpu.busy_ratio')")
    old.close()
    kept = History(tmp_path / "history.db", clock)
    kept._connection.execute("INSERT INTO fine VALUES (?, 1, 2, 0.75, 0.25, 0.5)", (int(NOON),))
    kept.write([Sample("a", NOON, {"cpu.busy_ratio": 0.123456, "memory.used_ratio": 0.5})])
    (point,) = kept.read("a", "cpu.busy_ratio", NOON, NOON + 1)
    assert point == Point(NOON, pytest.approx(0.873456 / 3), 0.123456, 0.5, 3)
    assert kept.read("a", "memory.used_ratio", NOON, NOON + 1)[0].mean == 0.5


def test_nan_is_no_number_and_series_are_bounded(kept: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_SERIES", 2)
    kept.write([Sample("a", NOON, {"x": float("nan"), "y": 1.0, "z": 2.0})])
    assert kept.series() == [("a", "x"), ("a", "y")]
    assert kept.read("a", "x", NOON, NOON + 1) == []


def test_a_locked_file_costs_samples_and_is_said(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "BUSY_SECONDS", 0.05)
    kept = History(tmp_path / "history.db", clock)
    other = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    kept.write([Sample("a", NOON, {"m": 1.0})])
    health = kept.health()
    assert health.dropped == 1 and "locked" in str(health.problem) and health.series == 0
    other.execute("ROLLBACK")
    kept.write([Sample("a", NOON, {"m": 2.0})])
    assert kept.health().problem is None and kept.read("a", "m", NOON, NOON + 1)[0].mean == 2.0


def test_a_full_disk_costs_samples_and_is_said(kept: History) -> None:
    kept.write([Sample("a", NOON, {"m": 1.0})])
    pages = kept._connection.execute("PRAGMA page_count").fetchone()[0]
    kept._connection.execute(f"PRAGMA max_page_count = {pages}")
    kept.write([Sample("a", NOON + 2, {f"m{number}": 1.0 for number in range(2000)})])
    assert kept.health().dropped == 1 and "full" in str(kept.health().problem)
    kept._connection.execute("PRAGMA max_page_count = 1000000")
    kept.write([Sample("a", NOON + 4, {"m": 1.0})])
    assert kept.health().problem is None and len(kept.read("a", "m", NOON, NOON + 5)) == 2


def test_a_damaged_file_is_set_aside(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "history.db"
    path.write_bytes(b"this is no database, and it is long enough to be looked at as one" * 100)
    kept = History(path, clock)
    kept.write([Sample("a", NOON, {"m": 1.0})])
    assert len(kept.read("a", "m", NOON, NOON + 1)) == 1
    assert [item.name.startswith("history.db.damaged-") for item in tmp_path.glob("*damaged*")] == [True]


def test_a_source_can_be_forgotten(kept: History, clock: Clock) -> None:
    kept.write([Sample("a", NOON, {"m": 1.0}), Sample("b", NOON, {"m": 2.0})])
    kept.forget("a")
    assert kept.series() == [("b", "m")] and kept.read("a", "m", NOON, NOON + 1) == []
    kept.write([Sample("a", NOON + 2, {"m": 7.0})])
    assert [point.mean for point in kept.read("a", "m", NOON, NOON + 3)] == [7.0]


def test_after_closing_nothing_breaks(kept: History) -> None:
    kept.close()
    kept.close()
    kept.write([Sample("a", NOON, {"m": 1.0})])
    assert kept.read("a", "m", NOON, NOON + 1) == []
