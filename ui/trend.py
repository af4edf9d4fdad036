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
    scale = _scale(unit, max([top or 0.0, *(point.high for line in lines for point in line.points)]))
    series = [_series(line.name, line.points, scale, index, lambda point: point.mean) for index, line in enumerate(lines)]
    if len(lines) == 1:
        series[0]["areaStyle"] = {"opacity": 0.12}
        if any(point.high > point.mean for point in lines[0].points):
            faint = _series("highest", lines[0].points, scale, 1, lambda point: point.high)
            faint["lineStyle"] = {"width": 1, "opacity": 0.55}
            series.append(faint)
    return {
        "animation": False,
        "grid": {"left": 4, "right": 12, "top": 10, "bottom": 2, "containLabel": True},
        "legend": {"show": False},
        "tooltip": {"trigger": "axis", "confine": True, "valueFormatter": scale.printf},
        "xAxis": {"type": "time", "min": start * 1000, "max": end * 1000, "splitLine": {"show": False}},
        "yAxis": {
            "type": "value",
            "min": 0,
            "splitNumber": 3,
            "axisLabel": {"formatter": f"{{value}} {scale.unit}".rstrip()},
            **({"max": scale.of(top), "interval": scale.of(top) / 2} if top else {}),
        },
        "series": series,
    }


class _Scale(NamedTuple):
    """How values of one chart are drawn: divided, with a unit, with so many digits in the tooltip."""

    divisor: float
    unit: str
    digits: int

    def of(self, value: float) -> float:
        """Four significant digits: what is drawn needs no more, and is sent anew every few seconds."""
        return float(f"{value / self.divisor:.4g}")

    @property
    def printf(self) -> str:
        """For the tooltip."""
        return f"%.{self.digits}f {self.unit.replace('%', '%%')}".rstrip()


_SCALES: Mapping[Unit, tuple[_Scale, ...]] = {
    "ratio": (_Scale(0.01, "%", 1),),
    "bytes": tuple(_Scale(1024.0**power, name, 2) for power, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))),
    "bytes/s": tuple(_Scale(1024.0**power, f"{name}/s", 2) for power, name in enumerate(("B", "KiB", "MiB", "GiB"))),
    "celsius": (_Scale(1, "°C", 0),),
    "watts": (_Scale(1, "W", 0),),
    "mhz": (_Scale(1, "MHz", 0),),
    "seconds": (_Scale(0.001, "ms", 1), _Scale(1, "s", 2)),
    "count": (_Scale(1, "", 2),),
    "per_second": (_Scale(1, "/s", 2),),
}


def _scale(unit: Unit, highest: float) -> _Scale:
    """The largest unit in which the highest value is at least one."""
    return next((scale for scale in reversed(_SCALES[unit]) if highest >= scale.divisor), _SCALES[unit][0])


def _series(name: str, points: Iterable[Point], scale: _Scale, index: int, of: Callable[[Point], float]) -> dict[str, Any]:
    tone = _LINES[index % len(_LINES)]
    points = tuple(points)
    data: list[list[float | None]] = []
    for run in _runs(points, _step(points)):
        data += [[point.at * 1000, scale.of(of(point))] for point in run]
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
