"""Trend charts and sparklines on the page: series of the history, read through the cache. Knows the runtime's history only."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import streamlit as st

from ui import cards, trend
from ui.cached import kept_points, the_runtime
from ui.format import escape
from ui.trend import RANGES, Line, Range, Unit

MAX_LINES = 16


class Chart(NamedTuple):
    """One chart: a pattern of metrics (`gpu.*.power_watts`), a line each. `top` is where its axis ends, if anywhere."""

    name: str
    pattern: str
    unit: Unit
    top: float | None = None


MACHINE = (
    Chart("GPU busy", "gpu.*.utilization_ratio", "ratio", 1.0),
    Chart("VRAM used", "gpu.*.memory_used_bytes", "bytes"),
    Chart("GPU heat", "gpu.*.temperature_celsius", "celsius"),
    Chart("GPU power", "gpu.*.power_watts", "watts"),
    Chart("CPU busy", "cpu.busy_ratio", "ratio", 1.0),
    Chart("CPU waits for disks", "cpu.iowait_ratio", "ratio"),
    Chart("Memory used", "memory.used_bytes", "bytes"),
    Chart("Load per core, 15 min", "load.per_core_15m", "count"),
    Chart("Disks busy", "disk.*.busy_ratio", "ratio"),
    Chart("Read from disks", "disk.*.read_bytes_per_second", "bytes/s"),
    Chart("Written to disks", "disk.*.written_bytes_per_second", "bytes/s"),
    Chart("Received", "interface.*.received_bytes_per_second", "bytes/s"),
    Chart("Sent", "interface.*.sent_bytes_per_second", "bytes/s"),
    Chart("Disk space used", "filesystem.*.used_ratio", "ratio", 1.0),
    Chart("Something waits (PSI)", "pressure.*.some_10s_ratio", "ratio"),
)
SERVICE = (
    Chart("Works in", "service.functional_seconds", "seconds"),
    Chart("Answers in", "service.liveness_seconds", "seconds"),
    Chart("Up", "service.up", "ratio", 1.0),
    Chart("First token", "service.ttft_seconds", "seconds"),
    Chart("Requests running", "engine.running", "count"),
    Chart("Requests waiting", "engine.waiting", "count"),
    Chart("KV cache used", "engine.kv_cache_used_ratio", "ratio", 1.0),
    Chart("Generated tokens", "engine.generation_tokens_per_second", "per_second"),
    Chart("First token p95, by the server", "engine.ttft_p95_seconds", "seconds"),
    Chart("Each further token p95", "engine.per_token_p95_seconds", "seconds"),
)


def range_of(key: str = "range") -> str:
    """The choice of how far to look back; kept in the URL."""
    chosen = st.segmented_control(
        "Look back", tuple(RANGES), default="1 h", required=True, key=key, bind="query-params", label_visibility="collapsed"
    )
    return chosen or "1 h"


def grid(source: str, charts: Sequence[Chart], span: Range) -> None:
    """All charts of which something is known, two side by side."""
    try:
        metrics = [metric for _, metric in the_runtime().history.series(source)]
        window = span.window(time.time())
        drawn = [(chart, lines) for chart in charts if (lines := _lines(source, metrics, chart, window))]
    except sqlite3.Error as problem:
        st.html(cards.note("critical", "<strong>The history cannot be read.</strong>", escape(problem)))
        return
    if not drawn:
        st.html(cards.empty("Nothing was kept in this time yet.", "History is written from the start of the dashboard on."))
    for index in range(0, len(drawn), 2):
        for column, (chart, lines) in zip(st.columns(2, gap="medium"), drawn[index : index + 2], strict=False):
            with column:
                draw(chart, lines, window, key=f"trend-{chart.pattern}")


def _lines(source: str, metrics: Sequence[str], chart: Chart, window: tuple[float, float]) -> list[Line]:
    found = [metric for metric in metrics if fnmatchcase(metric, chart.pattern)][:MAX_LINES]
    several = "*" in chart.pattern
    lines = [Line(label(metric) if several else chart.name, kept_points(source, metric, *window)) for metric in found]
    return [line for line in lines if line.points]


def label(metric: str) -> str:
    """What a line is called: the GPU, disk or mount, else the metric."""
    kind, _, rest = metric.partition(".")
    middle, _, field = rest.rpartition(".")
    return f"{kind.upper()} {middle}" if kind == "gpu" else middle or field


def draw(chart: Chart, lines: Sequence[Line], window: tuple[float, float], key: str) -> None:
    """The title with the last and the highest value, and the chart."""
    st.html(trend.headline(chart.name, lines, chart.unit))
    st.echarts_chart(
        trend.options(lines, *window, chart.unit, chart.top),
        height=150,
        key=key,
        alt=f"{chart.name} over time",
    )


def spark(source: str, metric: str, what: str, unit: Unit = "ratio", top: float | None = 1.0) -> str:
    """The last half hour of a series as a small picture; an empty one when the history cannot be read."""
    window = trend.SPARK.window(time.time())
    try:
        points = kept_points(source, metric, *window)
    except sqlite3.Error:
        points = ()
    return trend.spark(points, *window, what, unit, top)
