"""Every `st.cache_*` of the pages, and the way they reach the runtime."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

import runtime
from collectors.history import Point
from rag.trace_rows import QueryFilter, QueryRow
from ui import trend, viewer


@st.cache_resource(show_spinner=False, validate=lambda running: not running.stopped)
def _running() -> runtime.Runtime:
    return runtime.started()


class _TheRuntime:
    """The process's runtime and with it the model pool; a stopped one is replaced. As this page's viewer may use it."""

    def __call__(self) -> runtime.Runtime:
        return viewer.guarded(_running())

    def clear(self) -> None:
        _running.clear()


the_runtime = _TheRuntime()


@st.cache_resource(max_entries=64, show_spinner=False)
def query_page(
    revision: int, where: QueryFilter, sort: str, descending: bool, limit: int, offset: int
) -> tuple[int, int, tuple[QueryRow, ...]]:
    """(how many match, how many there are, one page of them). Shared between sessions; the rows are frozen.

    `revision` is only part of the key: a new query makes every page new.
    """
    del revision
    traces = the_runtime().traces
    total = traces.count()
    matching = total if where == QueryFilter() else traces.count(where)
    return matching, total, tuple(traces.search(where, sort, descending, limit, offset))


@st.cache_resource(max_entries=8192, show_spinner=False)
def kept_points(source: str, metric: str, start: float, end: float) -> tuple[Point, ...]:
    """A series of the history, thinned for a chart. Shared between sessions: `trend.Range.window` gives all of them the same
    times for as long as a chart is worth drawing anew. Raises sqlite3.Error."""
    return trend.thinned(the_runtime().history.read(source, metric, start, end, trend.MAX_POINTS))


def zone() -> tzinfo:
    """The browser's time zone; UTC where it does not say."""
    try:
        name = st.context.timezone
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def now() -> datetime:
    return datetime.now(UTC)
