"""Readings -> series, facts and uses of one window, small enough to be kept for every query. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latency.readings.remote import Look
from latency.readings.sampler import LocalReadings
from latency.types import LOCAL, Fact, Series, Use

MAX_POINTS = 600  # of one series
MAX_WINDOW_POINTS = 24_000
MAX_FACTS = 200
MAX_USES = 50

Points = Sequence[tuple[float, float | None]]


def thinned(points: Points, most: int = MAX_POINTS) -> Points:
    """At most about `most` points: of neighbours the lowest and the highest are kept, in their order, so that no peak is lost."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    found: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        some = points[start : start + size]
        known = [point for point in some if point[1] is not None]
        if not known:
            found.append(some[0])
            continue
        low, high = min(known, key=_value), max(known, key=_value)
        found += [low] if low is high else [low, high] if low[0] < high[0] else [high, low]
    return found


def local_series(local: LocalReadings, zero: float) -> list[Series]:
    """`zero` is the query's start by the sampler's clock."""
    return [
        Series(LOCAL, metric, tuple(time - zero for time in group.times), values)
        for group in local.groups
        for metric, values in group.values.items()
    ]


def remote_series(looks: Mapping[str, Sequence[Look]], zero: float) -> list[Series]:
    """`zero` is the query's start in Unix seconds."""
    found: list[Series] = []
    for source, known in looks.items():
        for metric in dict.fromkeys(name for look in known for name in look.values):
            points = [(look.at - zero, look.values[metric]) for look in known if metric in look.values]
            found.append(Series(source, metric, tuple(time for time, _ in points), tuple(value for _, value in points)))
    return found


def bounded(series: Iterable[Series]) -> tuple[tuple[Series, ...], str | None]:
    """In the order of their names, thinned and rounded (1 ms, five digits); and a sentence when more had to go than that."""
    ordered = sorted(series, key=lambda each: (each.source != LOCAL, each.source, _natural(each.metric)))
    points = sum(min(MAX_POINTS, len(each.times)) for each in ordered)
    if points <= MAX_WINDOW_POINTS:
        return tuple(_rounded(each, MAX_POINTS) for each in ordered), None
    most = max(20, MAX_POINTS * MAX_WINDOW_POINTS // points)
    kept = [_rounded(each, most) for each in ordered[: 2 * MAX_WINDOW_POINTS // most]]
    missing = len(ordered) - len(kept)
    said = f"Much was read in this window: each series was thinned to {most} points with its peaks"
    return tuple(kept), f"{said}, and {missing} series were left out." if missing else f"{said}."


def facts(local: LocalReadings, looks: Mapping[str, Sequence[Look]], zero: float, zero_unix: float, end: float) -> list[Fact]:
    """Facts of this machine for the whole window, its throttle reasons and those of others while they were seen."""
    found = [Fact(LOCAL, name, value, 0.0, round(end, 3)) for name, value in local.facts.items()]
    found += [
        Fact(LOCAL, f"gpu.{each.gpu}.throttle_reasons", each.reason, round(each.start - zero, 3), round(each.end - zero, 3))
        for each in local.throttled
    ]
    for source, known in looks.items():
        found += _merged(source, known, zero_unix)
    return found[:MAX_FACTS]


def uses(local: LocalReadings, looks: Mapping[str, Sequence[Look]], our_pid: int, ours: Iterable[int] = ()) -> list[Use]:
    """Each process once, with the most memory and processor it was seen with; on this machine `ours` are pids beside our own."""
    known = {our_pid, *ours}
    seen = [
        Use(LOCAL, each.pid, each.name, each.owner, each.gpu, each.memory_bytes, ours=each.pid in known)
        for look in local.seen
        for each in look.gpu_uses or ()
    ]
    seen += [
        Use(LOCAL, each.pid, each.name, cpu_ratio=round(each.cpu_ratio, 3), ours=each.pid in known)
        for look in local.seen
        for each in look.busy or ()
    ]
    seen += [use for each in looks.values() for look in each for use in look.uses]
    found: dict[tuple[str, int, int | None], Use] = {}
    for use in seen:
        key = (use.source, use.pid, use.gpu)
        old = found.get(key, use)
        found[key] = use._replace(
            memory_bytes=_most(old.memory_bytes, use.memory_bytes), cpu_ratio=_most(old.cpu_ratio, use.cpu_ratio)
        )
    return sorted(found.values(), key=lambda use: (-(use.memory_bytes or 0), -(use.cpu_ratio or 0.0)))[:MAX_USES]


def _merged(source: str, looks: Sequence[Look], zero_unix: float) -> list[Fact]:
    """One fact for each stretch of looks at the same part that all say so."""
    said: dict[tuple[str, str, str], Fact] = {}
    found: list[Fact] = []
    for look in looks:
        at = round(look.at - zero_unix, 3)
        now = {(look.part, name, value) for name, value in look.facts}
        found += [said.pop(key) for key in list(said) if key[0] == look.part and key not in now]
        for key in now:
            old = said.get(key)
            said[key] = Fact(source, key[1], key[2], at, at) if old is None else old._replace(end=at)
    return sorted([*found, *said.values()], key=lambda fact: (fact.name, fact.start))


def _most(one: float | None, other: float | None) -> Any:
    return other if one is None else one if other is None else max(one, other)


def _rounded(series: Series, most: int) -> Series:
    """Five significant digits, but all of a counter, of which only differences matter."""
    points = thinned(tuple(zip(series.times, series.values, strict=True)), most)
    shape = ".17g" if series.metric.endswith("_total") else ".5g"
    return series._replace(
        times=tuple([round(time, 3) for time, _ in points]),
        values=tuple([None if value is None else _shortened(value, shape) for _, value in points]),
    )


def _shortened(value: float, shape: str) -> float | None:
    """Whole numbers lose their point, which is shorter; what is no finite number is unknown."""
    if not math.isfinite(value):
        return None
    rounded = float(format(value, shape))
    return int(rounded) if rounded.is_integer() else rounded


def _value(point: tuple[float, float | None]) -> float:
    return point[1] or 0.0


def _natural(metric: str) -> list[tuple[int, str]]:
    """GPU 10 after GPU 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in metric.split(".")]
