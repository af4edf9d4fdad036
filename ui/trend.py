"""Points of the history -> sparklines (HTML) and trend charts (options of ECharts, which keeps its node while it ticks). Pure.

Buckets that are missing stay gaps. Times are Unix seconds; the charts show them in the browser's zone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from collectors.history import Point
from ui.format import UNKNOWN, bytes_text, escape, number, percent, plural, seconds, unknown_html

Unit = Literal["ratio", "bytes", "bytes/s", "celsius", "watts", "mhz", "seconds", "count", "per_second"]


class Range(NamedTuple):
    """A span to look back over, and how often its chart is worth drawing anew; both in seconds."""

    seconds: float
    refresh: float

    def window(self, now: float) -> tuple[float, float]:
        """(start, end) to look at: they move on only once a `refresh`."""
        end = now // self.refresh * self.refresh + self.refresh
        return end - self.seconds, end


RANGES: Mapping[str, Range] = {
    "10 min": Range(600, 4),
    "1 h": Range(3600, 15),
    "24 h": Range(86_400, 60),
    "7 d": Range(7 * 86_400, 300),
    "90 d": Range(90 * 86_400, 600),
}
MAX_POINTS = 300
SPARK = Range(1800, 20)
DAY = RANGES["24 h"]

# One hue: the colours of stages and severities mean something else.
_LINES = ("#4d82b3", "#8fb4d6", "#35597c", "#6f9a9d", "#a9b7c6", "#5b6f86", "#7aa0c9", "#94a3ad")


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a chart."""

    name: str
    points: tuple[Point, ...]


def text_of(value: float | None, unit: Unit) -> str:
    """A value as people read it."""
    writers: dict[Unit, Callable[[float | None], str]] = {
        "ratio": percent,
        "bytes": bytes_text,
        "seconds": seconds,
        "bytes/s": lambda rate: UNKNOWN if rate is None else f"{bytes_text(rate)}/s",
        "celsius": lambda heat: number(heat, "°C"),
        "watts": lambda power: number(power, "W"),
        "mhz": lambda clock: number(clock, "MHz"),
        "per_second": lambda rate: number(rate, "/s"),
    }
    return writers.get(unit, number)(value)


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> tuple[Point, ...]:
    """At most about `most` points: neighbours are joined, with their mean by samples and their extremes kept."""
    size = -(-len(points) // most)
    if size <= 1:
        return tuple(points)
    return tuple(_joined(points[index : index + size]) for index in range(0, len(points), size))


def _joined(points: Sequence[Point]) -> Point:
    samples = sum(point.samples for point in points)
    mean = sum(point.mean * point.samples for point in points) / samples
    return Point(points[0].at, mean, min(point.low for point in points), max(point.high for point in points), samples)


# ----------------------------------------------------------------------------------------------------------- sparklines


def spark(points: Sequence[Point], start: float, end: float, what: str, unit: Unit, top: float | None = None) -> str:
    """A small filled line of the time from `start` to `end`. `top` is the value at its upper edge, else the highest one."""
    if not points or end <= start:
        return f'<span class="rd-spark" title="{escape(f"{what}: nothing was kept in this time yet")}"></span>'
    highest = max(point.high for point in points)
    scale = max(top or highest, 1e-9)
    told = f"{what}, last {_span(end - start)}: {text_of(points[-1].mean, unit)} now, highest {text_of(highest, unit)}"
    outline: list[str] = []
    for run in _runs(points, _step(points)):
        places = [((point.at - start) / (end - start) * 100, 100 - point.mean / scale * 92) for point in run]
        line = [f"{_clamped(x):.1f}% {_clamped(y):.1f}%" for x, y in places]
        width = _clamped(places[-1][0]) + (2.0 if len(run) == 1 else 0.0)
        outline += [f"{_clamped(places[0][0]):.1f}% 100%", *line, f"{width:.1f}% {line[-1].split()[1]}", f"{width:.1f}% 100%"]
    return f'<span class="rd-spark" title="{escape(told)}"><i style="clip-path:polygon({",".join(outline)})"></i></span>'


def _clamped(value: float) -> float:
    return min(100.0, max(0.0, value))


def _span(length: float) -> str:
    return (
        f"{length / 60:.0f} min"
        if length < 7200
        else f"{length / 3600:.0f} h"
        if length < 2 * 86_400
        else f"{length / 86400:.0f} d"
    )


def _step(points: Sequence[Point]) -> float:
    """The distance of neighbours where nothing is missing."""
    return min((after.at - before.at for before, after in pairwise(points)), default=0.0)


def _runs(points: Sequence[Point], step: float) -> list[list[Point]]:
    """The points without gaps between them."""
    runs: list[list[Point]] = []
    for point in points:
        if runs and point.at - runs[-1][-1].at <= 1.5 * step:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


# --------------------------------------------------------------------------------------------------------------- charts


def headline(name: str, lines: Sequence[Line], unit: Unit) -> str:
    """The title of a chart: what it is, the last value and the highest, or that nothing is known."""
    known = [line for line in lines if line.points]
    if not known:
        return f'<p class="rd rd-title">{escape(name)} {unknown_html("nothing was kept in this time")}</p>'
    highest = max(point.high for line in known for point in line.points)
    last = text_of(known[0].points[-1].mean, unit) if len(lines) == 1 else plural(len(known), "line")
    return (
        f'<p class="rd rd-title">{escape(name)} <span class="rd-soft rd-plainweight">{escape(last)} · '
        f"highest {escape(text_of(highest, unit))}</span></p>"
    )


def options(lines: Sequence[Line], start: float, end: float, unit: Unit, top: float | None = None) -> dict[str, Any]:
    """What ECharts draws: means as lines; of a single line also the highest of each bucket, which a mean hides."""
    series = [_series(line.name, line.points, unit, index, lambda point: point.mean) for index, line in enumerate(lines)]
    if len(lines) == 1:
        series[0]["areaStyle"] = {"opacity": 0.12}
        if any(point.high > point.mean for point in lines[0].points):
            faint = _series("highest", lines[0].points, unit, 1, lambda point: point.high)
            faint["lineStyle"] = {"width": 1, "opacity": 0.55}
            series.append(faint)
    return {
        "animation": False,
        "grid": {"left": 4, "right": 12, "top": 10, "bottom": 2, "containLabel": True},
        "legend": {"show": False},
        "tooltip": {"trigger": "axis", "confine": True, "valueFormatter": _FORMATS[unit][1]},
        "xAxis": {"type": "time", "min": start * 1000, "max": end * 1000, "splitLine": {"show": False}},
        "yAxis": {
            "type": "value",
            "min": 0,
            "splitNumber": 3,
            "axisLabel": {"formatter": "{value}" + _FORMATS[unit][2]},
            **({"max": _scaled(top, unit), "interval": _scaled(top, unit) / 2} if top else {}),
        },
        "series": series,
    }


# unit -> (divisor, printf format of the tooltip, suffix of the axis)
_FORMATS: Mapping[Unit, tuple[float, str, str]] = {
    "ratio": (0.01, "%.1f %%", " %"),
    "bytes": (2**30, "%.2f GiB", " GiB"),
    "bytes/s": (2**20, "%.2f MiB/s", " MiB/s"),
    "celsius": (1, "%.0f °C", " °C"),
    "watts": (1, "%.0f W", " W"),
    "mhz": (1, "%.0f MHz", " MHz"),
    "seconds": (0.001, "%.1f ms", " ms"),
    "count": (1, "%.2f", ""),
    "per_second": (1, "%.2f /s", " /s"),
}


def _scaled(value: float, unit: Unit) -> float:
    """Four significant digits: what is drawn needs no more, and is sent anew every few seconds."""
    return float(f"{value / _FORMATS[unit][0]:.4g}")


def _series(name: str, points: Iterable[Point], unit: Unit, index: int, of: Callable[[Point], float]) -> dict[str, Any]:
    tone = _LINES[index % len(_LINES)]
    points = tuple(points)
    data: list[list[float | None]] = []
    for run in _runs(points, _step(points)):
        data += [[point.at * 1000, _scaled(of(point), unit)] for point in run]
        data.append([run[-1].at * 1000 + 1, None])  # a gap is no line
    return {
        "type": "line",
        "name": name,
        "data": data[:-1],
        "showSymbol": len(points) == 1,
        "symbolSize": 4,
        "color": tone,
        "lineStyle": {"width": 1.5},
        "emphasis": {"focus": "series"} if index or len(points) > 1 else {},
    }
