"""The history of a fleet: how large 90 days of it are, and how long its charts take to read.

    python -m benchmarks.bench_history [--machines 50] [--gpus 8] [--days 7]

A week of synthetic machines (32 cores, four file systems, units, containers, `--gpus` H100 each) is put into a file as the sweep
would: the metrics that are kept of real records, in buckets of all four resolutions, the machines of each in another order,
each row with its first sample and then grown, which splits pages.
Only the hourly buckets live longer than a week: their size is extrapolated to 90 days. Values are random: real ones repeat.
Then every chart of the page Machine is read and drawn for every range, on a file just opened and again.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.figures import percentile
from collectors import derived
from collectors.history import RESOLUTIONS, History, Resolution, scale_of
from collectors.readings import (
    Container,
    Containers,
    Cpu,
    Disk,
    Filesystem,
    Filesystems,
    Gpu,
    Gpus,
    Host,
    Interface,
    Load,
    Memory,
    Pressure,
    Unit,
    Units,
)
from ui import trend
from ui.charts import MACHINE, MAX_LINES, Chart

NOW = 1_795_262_400.0  # divisible by an hour
DAY = 86_400
SLOW_SECONDS = 30
GIB = 2**30

Row = tuple[int, int, int, float, float | None, float | None]


def readings(gpus: int) -> tuple[list[str], list[str]]:
    """The kept metrics of a machine: those read every 2 s, those read every 30 s."""
    pressures = tuple(Pressure(name, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1) for name in ("cpu", "memory", "io"))
    disks = tuple(Disk(name, 1.0, 1.0, 1.0, 1.0, 0.1, 0.01, 0.1) for name in ("nvme0n1", "nvme1n1"))
    interfaces = tuple(Interface(name, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0) for name in ("ens4", "ib0"))
    memory = Memory(GIB, GIB, GIB, GIB, 0.5, GIB, GIB, GIB, GIB, 0.1)
    host = Host(1.0, 2.0, Cpu(32, 0.1, 0.1, 0.1, 0.1, 0.0), None, Load(1, 1, 1), memory, pressures, disks, interfaces, None)
    gpu = Gpu(0, utilization_ratio=0.5, memory_bandwidth_ratio=0.5, memory_used_bytes=GIB, temperature_celsius=50.0)
    cards = tuple(Gpu(**{name: getattr(gpu, name) for name in gpu.__slots__} | FAST | {"index": index}) for index in range(gpus))
    mounts = tuple(Filesystem(name, name, "ext4", GIB, GIB, GIB, 0.5, 9, 1, 0.1) for name in ("/", "/boot", "/data", "/models"))
    units = tuple(Unit(f"u{index}.service", active="active", memory_bytes=GIB, restarts=0) for index in range(3))
    boxes = tuple(Container(f"c{index}", "1f", state="running", memory_bytes=GIB, restarts=0) for index in range(6))
    fast = [derived.numbers(host), derived.collection(False, 1.0, 0.1), *([derived.numbers(Gpus(cards))] if gpus else [])]
    slow = [derived.numbers(reading) for reading in (Filesystems(mounts), Units(units), Containers(boxes))]
    return [name for found in fast for name in derived.kept(found.metrics)], [
        name for found in slow for name in derived.kept(found.metrics)
    ]


FAST = {"power_watts": 400.0, "sm_clock_mhz": 1980.0, "slowed": False}


class Fleet:
    """Machines and their series in a file, by number, as `History` numbers them: a machine's lie side by side."""

    def __init__(self, history: History, machines: int, gpus: int) -> None:
        fast, slow = readings(gpus)
        self.machines = [f"machine-{index:02}" for index in range(machines)]
        self.series = len(fast) + len(slow)
        self._connection = history._connection
        self._numbers: list[tuple[list[tuple[int, float]], list[tuple[int, float]]]] = []
        for index, name in enumerate(self.machines):
            start = index * self.series + 1
            rows = [(start + place, name, metric, scale_of(metric)) for place, metric in enumerate([*fast, *slow])]
            self._connection.executemany("INSERT INTO series VALUES (?, ?, ?, ?)", rows)
            spreads = [_spread(metric) * scale_of(metric) for metric in [*fast, *slow]]
            numbered = list(zip(range(start, start + self.series), spreads, strict=True))
            self._numbers.append((numbered[: len(fast)], numbered[len(fast) :]))
        self._random = random.Random(7)

    def fill(self, resolution: Resolution, seconds: int) -> int:
        """Buckets of the last `seconds`; returns how many rows."""
        rows, step, table = 0, resolution.seconds, resolution.table
        grow = f"UPDATE {table} SET count = ?, total = ?, low = ?, high = ? WHERE bucket = ? AND series = ?"
        for bucket in range(int(NOW - seconds) // step * step, int(NOW), step):
            made = list(self._bucket(bucket, step))
            rows += len(made)
            self._connection.execute("BEGIN")
            first = [(row[0], row[1], float(round(row[3] / row[2]))) for row in made]
            self._connection.executemany(f"INSERT INTO {table} VALUES (?, ?, 1, ?, NULL, NULL)", first)
            grown = [(*row[2:], row[0], row[1]) for row in made if row[2] > 1]
            self._connection.executemany(grow, grown)
            self._connection.execute("COMMIT")
        return rows

    def _bucket(self, bucket: int, step: int) -> Iterator[Row]:
        draw = self._random
        order = draw.sample(range(len(self._numbers)), len(self._numbers))
        for index in order:
            for number, spread in self._numbers[index][0]:
                yield _row(draw, bucket, number, spread, max(1, step // 2))
        for index in order if bucket % SLOW_SECONDS < step else ():  # these come later, between those
            for number, spread in self._numbers[index][1]:
                yield _row(draw, bucket, number, spread, max(1, step // SLOW_SECONDS))


def _spread(metric: str) -> float:
    """The highest value of a series: each is anything below it, which compresses worse than what machines do."""
    return next((highest for ending, highest in HIGHEST if metric.endswith(ending)), 1.0)


HIGHEST = (
    ("_ratio", 1.0),
    ("_bytes_per_second", 1e9),
    ("_bytes", 80 * GIB),
    ("_celsius", 90.0),
    ("_watts", 700.0),
    ("_mhz", 2000.0),
    ("_seconds", 0.1),
    ("average_1m", 64.0),
    ("per_core_15m", 2.0),
)


def _row(draw: random.Random, bucket: int, number: int, spread: float, count: int) -> Row:
    """As `History` has it: whole steps, and no extremes of a single sample."""
    mean = draw.random() * spread
    if count == 1:
        return bucket, number, 1, float(round(mean)), None, None
    low, high = float(round(mean * draw.random())), float(round(mean + (spread - mean) * draw.random()))
    return bucket, number, count, float(round(mean * count)), low, high


def charts(path: Path, machines: Sequence[str], rounds: int) -> dict[str, Any]:
    """Milliseconds of every chart of the page Machine in every range: reading its lines, thinning, making the chart's options.
    The first time on a file just opened, the others with what SQLite kept."""
    first: list[tuple[float, str]] = []
    again: list[float] = []
    for turn in range(rounds):
        history = History(path, lambda: NOW)
        machine = machines[(turn * 7 + 3) % len(machines)]
        metrics = [metric for _, metric in history.series(machine)]
        for name, span in trend.RANGES.items():
            for chart in MACHINE:
                first.append((_chart(history, machine, metrics, chart, span), f"{chart.name}, {name}"))
                again.append(_chart(history, machine, metrics, chart, span))
        history.close()
    return {
        "charts": len(first),
        "first_p95_ms": round(percentile([ms for ms, _ in first], 0.95), 1),
        "first_slowest_ms": round(max(first)[0], 1),
        "slowest_chart": max(first)[1],
        "again_p95_ms": round(percentile(again, 0.95), 1),
    }


def _chart(history: History, machine: str, metrics: Sequence[str], chart: Chart, span: trend.Range) -> float:
    started = time.perf_counter()
    window = span.window(NOW - 1)
    found = [metric for metric in metrics if fnmatchcase(metric, chart.pattern)][:MAX_LINES]
    lines = [trend.Line(metric, trend.thinned(history.read(machine, metric, *window, trend.MAX_POINTS))) for metric in found]
    trend.options([line for line in lines if line.points], *window, chart.unit, chart.top)
    return 1000 * (time.perf_counter() - started)


def measured(folder: Path, machines: int, gpus: int, days: int) -> dict[str, Any]:
    path = folder / f"history-{gpus}.db"
    history = History(path, lambda: NOW)
    fleet = Fleet(history, machines, gpus)
    rows, sizes, seconds = {}, {}, {}
    before = 0
    for resolution in RESOLUTIONS:
        started = time.perf_counter()
        rows[resolution.table] = fleet.fill(resolution, min(resolution.keep_seconds, days * DAY))
        seconds[resolution.table] = round(time.perf_counter() - started, 1)
        history._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        sizes[resolution.table] = path.stat().st_size - before
        before = path.stat().st_size
    history.close()
    factors = {item.table: item.keep_seconds / min(item.keep_seconds, days * DAY) for item in RESOLUTIONS}
    extrapolated = sum(sizes[table] * factor for table, factor in factors.items())
    return {
        "series_per_machine": fleet.series,
        "rows": rows,
        "bytes_per_row": {table: round(sizes[table] / rows[table], 1) for table in rows},
        "generated_mb": round(before / 1e6, 1),
        "extrapolated_90_days_mb": round(extrapolated / 1e6, 1),
        "mb_for_50_machines": round(extrapolated / 1e6 * 50 / machines, 1),
        "filled_in_seconds": seconds,
        **charts(path, fleet.machines, 3),
    }


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=50)
    parser.add_argument("--gpus", type=int, nargs="*", default=[0, 8], help="GPUs of each machine; several fleets one by one")
    parser.add_argument("--days", type=int, default=7)
    given = parser.parse_args(None if arguments is None else list(arguments))
    fleets: dict[str, Any] = {}
    for gpus in given.gpus:
        with tempfile.TemporaryDirectory() as folder:
            fleets[f"{gpus}_gpus"] = found = measured(Path(folder), given.machines, gpus, given.days)
        size, charts = f"90 days {found['extrapolated_90_days_mb']} MB", f"charts p95 {found['first_p95_ms']} ms"
        print(f"{given.machines} machines of {gpus} GPUs, {found['series_per_machine']} series each: {size}, {charts}")
    print(json.dumps({"benchmark": "history", "machines": given.machines, "days": given.days, "fleets": fleets}))


if __name__ == "__main__":
    main()
