"""Trends and distribution of query times as options of ECharts. Pure; times are Unix seconds, shown in the browser's zone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from latency.percentiles.percentiles import Bin, Change, Summary, Trend
from ui.format import seconds
from ui.style import STAGE_COLOURS

_PLAIN = ("#4d82b3", "#8fb4d6")
_COUNT = {"color": "#8d949d", "opacity": 0.28}
_GRID = {"left": 4, "right": 14, "bottom": 2, "containLabel": True}


def tone(column: str, dark: bool) -> str:
    """The colour of a stage; the total has the neutral one of other trends."""
    return STAGE_COLOURS.get(column, _PLAIN)[dark]


def trend_options(trend: Trend, column: str, start: float, end: float, dark: bool) -> dict[str, Any]:
    """p50 and p95 as lines with gaps where nothing was asked, counts as pale bars behind, changes as numbered lines."""
    scale, unit = _unit(max((bucket.p95 for bucket in trend.buckets), default=0.0))
    middle = trend.step / 2
    colour = tone(column, dark)
    p50, p95 = (_line(trend, name, middle, scale, unit, colour) for name in ("p50", "p95"))
    p50["lineStyle"], p50["itemStyle"] = {"width": 1.5, "opacity": 0.55}, {"opacity": 0.55}
    p95["markLine"] = _marks(trend.changes, start, end)
    counts = {
        "type": "bar",
        "name": "queries",
        "yAxisIndex": 1,
        "data": [[(bucket.start + middle) * 1000, bucket.n] for bucket in trend.buckets],
        "itemStyle": _COUNT,
        "barWidth": bucket_width((bucket.start for bucket in trend.buckets), trend.step, end - start),
        "selectedMode": "single",
        "select": {"itemStyle": {"color": colour, "opacity": 0.6}},
        "tooltip": {"valueFormatter": "%d"},
    }
    most = max((bucket.n for bucket in trend.buckets), default=1)
    return {
        "animation": False,
        "grid": {**_GRID, "top": 42},
        "legend": {"show": True, "top": 0, "right": 0, "itemHeight": 8, "itemWidth": 16, "textStyle": {"fontSize": 11}},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {"type": "time", "min": start * 1000, "max": end * 1000, "splitLine": {"show": False}},
        "yAxis": [
            {"type": "value", "min": 0, "splitNumber": 3, "axisLabel": {"formatter": f"{{value}} {unit}"}},
            # bars of counts in the lower third, out of the lines' way
            {"type": "value", "min": 0, "max": most * 3, "show": False},
        ],
        "series": [counts, p50, p95],
    }


def bucket_width(starts: Iterable[float], step: float, span: float) -> str:
    """A bar as wide as its bucket: ECharts takes shares of the least distance of two bars, or of the axis where there is one."""
    band = min((after - before for before, after in pairwise(sorted(set(starts)))), default=span)
    return f"{86 * step / max(band, step):.3g}%"


def stages_options(found: Sequence[tuple[str, Trend]], start: float, end: float, dark: bool) -> dict[str, Any]:
    """p50 of each stage on top of one another, a bar a bucket; where nothing was asked there is none."""
    sums: dict[float, float] = {}
    for _, trend in found:
        for bucket in trend.buckets:
            sums[bucket.start] = sums.get(bucket.start, 0.0) + bucket.p50
    scale, unit = _unit(max(sums.values(), default=0.0))
    step = found[0][1].step if found else 1.0
    starts = sorted(sums)
    told = {stage: {bucket.start: _short(bucket.p50 / scale) for bucket in trend.buckets} for stage, trend in found}
    series = [
        {
            "type": "bar",
            "name": stage,
            "stack": "p50",
            "color": tone(stage, dark),
            "barWidth": bucket_width(starts, step, end - start),
            # the same times in each: ECharts puts the n-th on the n-th, whatever their times
            "data": [[(at + step / 2) * 1000, told[stage].get(at)] for at in starts],
            "tooltip": {"valueFormatter": f"%.{1 if unit == 'ms' else 2}f {unit}"},
        }
        for stage in told
    ]
    return {
        "animation": False,
        "grid": {**_GRID, "top": 30},
        "legend": {"show": True, "top": 0, "right": 0, "itemHeight": 8, "itemWidth": 8, "textStyle": {"fontSize": 11}},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {"type": "time", "min": start * 1000, "max": end * 1000, "splitLine": {"show": False}},
        "yAxis": {"type": "value", "min": 0, "splitNumber": 3, "axisLabel": {"formatter": f"{{value}} {unit}"}},
        "series": series,
    }


def _line(trend: Trend, name: str, middle: float, scale: float, unit: str, colour: str) -> dict[str, Any]:
    data: list[list[float | None]] = []
    for index, bucket in enumerate(trend.buckets):
        if index and bucket.start - trend.buckets[index - 1].start > trend.step * 1.5:
            data.append([(bucket.start - middle) * 1000, None])  # nothing was asked in between: no line
        data.append([(bucket.start + middle) * 1000, _short(getattr(bucket, name) / scale)])
    return {
        "type": "line",
        "name": name,
        "data": data,
        "color": colour,
        "lineStyle": {"width": 2},
        "showSymbol": True,
        "symbolSize": 4,
        "tooltip": {"valueFormatter": f"%.{1 if unit == 'ms' else 2}f {unit}"},
    }


def _marks(changes: Sequence[Change], start: float, end: float) -> dict[str, Any]:
    data = [
        {"xAxis": change.at * 1000, "name": str(position), "label": {"formatter": str(position)}}
        for position, change in enumerate(changes, 1)
        if start <= change.at <= end
    ]
    look = {"color": "#8d949d", "type": "dotted", "width": 1.5}
    return {"symbol": "none", "silent": True, "lineStyle": look, "label": {"position": "end", "color": "#8d949d"}, "data": data}


def distribution_options(bins: Sequence[Bin], column: str, told: Summary, dark: bool) -> dict[str, Any]:
    """Bars of queries by duration on a logarithmic axis, cold ones hatched; p50, p95 and p99 as lines."""
    colour = tone(column, dark)
    warm, cold = (_bars(name, [getattr(each, name) for each in bins], colour) for name in ("warm", "cold"))
    cold["itemStyle"] = {
        "color": colour,
        "decal": {"symbol": "rect", "dashArrayX": [1, 0], "dashArrayY": [2, 3], "rotation": 0.8},
    }
    warm["markLine"] = {
        "symbol": "none",
        "silent": True,
        "lineStyle": {"color": "#8d949d", "type": "dotted", "width": 1.5},
        "data": [
            {"xAxis": _place(bins, value), "label": {"formatter": name, "distance": above, "color": "#8d949d"}}
            for name, value, above in (("p50", told.p50, 3), ("p95", told.p95, 3), ("p99", told.p99, 15))  # close neighbours
        ],
    }
    return {
        "animation": False,
        "grid": {**_GRID, "left": 16, "top": 38},  # the first label is wider than its bar
        "legend": {"show": False},
        "aria": {"enabled": True, "decal": {"show": False}},
        "tooltip": {"trigger": "axis", "confine": True, "axisPointer": {"type": "shadow"}, "valueFormatter": "%d"},
        "xAxis": {"type": "category", "data": [bin_words(each) for each in bins], "axisTick": {"show": False}},
        "yAxis": {"type": "value", "min": 0, "splitNumber": 3, "minInterval": 1},
        "series": [warm, cold],
    }


def _bars(name: str, counts: Sequence[int], colour: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "stack": "runs",
        "data": list(counts),
        "color": colour,
        "barCategoryGap": "12%",
        "selectedMode": "single",
        "select": {"itemStyle": {"borderColor": "#8d949d", "borderWidth": 2}},
    }


def _place(bins: Sequence[Bin], value: float) -> int:
    return next((index for index, each in enumerate(bins) if value < each.most), len(bins) - 1)


def bin_words(each: Bin) -> str:
    """`1.00–1.26 s`, `794 ms–1.00 s`."""
    least, most = seconds(each.least), seconds(each.most)
    same = least.rpartition(" ")[2] == most.rpartition(" ")[2]
    return f"{least.rpartition(' ')[0] if same else least}–{most}"


def _unit(highest: float) -> tuple[float, str]:
    return (1.0, "s") if highest >= 1 else (0.001, "ms")


def _short(value: float) -> float:
    return float(f"{value:.4g}")


TREND_CSV = ("start_unix", "step_seconds", "n", "p50_seconds", "p95_seconds", "longest_seconds")
DISTRIBUTION_CSV = ("least_seconds", "below_seconds", "warm", "cold")


def trend_rows(trend: Trend) -> list[list[float]]:
    return [[bucket.start, trend.step, bucket.n, bucket.p50, bucket.p95, bucket.longest] for bucket in trend.buckets]
