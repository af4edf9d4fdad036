"""What trend charts are drawn from, as a file: every point of every series in the span that is looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase

import streamlit as st

from collectors.history import Point
from ui.cached import the_runtime
from ui.charts import Chart
from ui.exports import to_csv
from ui.trend import Range

HEADS = ("at", "source", "metric", "mean", "low", "high", "samples")


def button(source: str, charts: Sequence[Chart], span: Range) -> None:
    """Download the series of the charts as they are when it is pressed."""
    st.download_button(
        "Download CSV",
        lambda: recorded(source, charts, span),
        f"{source}-history.csv",
        "text/csv",
        on_click="ignore",
        type="tertiary",
        key="history-csv",
        help="All points of these charts, with lowest and highest of each; times in UTC.",
    )


def recorded(source: str, charts: Sequence[Chart], span: Range) -> bytes:
    """The file for a span that ends now."""
    history = the_runtime().history
    window = span.window(time.time())
    names = [metric for _, metric in history.series(source) if any(fnmatchcase(metric, chart.pattern) for chart in charts)]
    return csv(source, names, lambda metric: history.read(source, metric, *window))


def csv(source: str, metrics: Iterable[str], points: Callable[[str], Iterable[Point]]) -> bytes:
    """A row a point; buckets without a sample are absent."""
    rows = (
        [datetime.fromtimestamp(point.at, UTC).isoformat(), source, metric, point.mean, point.low, point.high, point.samples]
        for metric in metrics
        for point in points(metric)
    )
    return to_csv(HEADS, rows)
