"""What the pages Latency and Overview keep between reruns and shares between sessions, keyed by the trace store's revision.

Only small results are kept: a report that held the table would keep every revision of it in memory.
"""

from __future__ import annotations

import time
from pathlib import Path

import streamlit as st

from latency.percentiles import percentiles, recent, summary, what_if
from latency.percentiles.percentiles import EVERY, Heat, Selection, Trend
from latency.percentiles.recent import Recent
from latency.percentiles.summary import Focus, Pick, View, Whole
from latency.percentiles.table import Rows, StageTable, StageTables
from latency.percentiles.what_if import Prediction, Scenario
from rag.trace_rows import QueryFilter, QueryRow
from rag.types import STAGES
from ui.cached import the_runtime

HOUR_SECONDS = 3600.0
LISTED = 10


@st.cache_resource(max_entries=2, show_spinner=False)
def _tables(path: Path, store: int) -> StageTables:
    del store  # another store of the same path counts its revisions anew
    return StageTables(path)


def tables() -> StageTables:
    traces = the_runtime().traces
    return _tables(traces.path, id(traces))


@st.cache_resource(max_entries=64, show_spinner="Reading stored queries …")
def origins(revision: int, since: float) -> tuple[str, ...]:
    """Who asked since then."""
    table = tables().at(revision, since)
    return tuple(group.value for group in percentiles.groups(table, _everyone(table, since), "origin"))


@st.cache_resource(max_entries=64, show_spinner=False)
def values(revision: int, since: float, option: str) -> tuple[str, ...]:
    """The values that an option had since then, that of most queries first."""
    table = tables().at(revision, since)
    return tuple(group.value for group in percentiles.groups(table, _everyone(table, since), option))


def _everyone(table: StageTable, since: float) -> Rows:
    return percentiles.choose(table, Selection(since=since, origin=EVERY, outcome=EVERY)).rows


@st.cache_resource(max_entries=64, show_spinner=False)
def whole(revision: int, selection: Selection, heat: Heat) -> Whole:
    """Every stage of the queries selected. Raises RagError when the trace file cannot be read."""
    return summary.whole(tables().at(revision, selection.since), selection, heat)


@st.cache_resource(max_entries=64, show_spinner=False)
def focus(revision: int, view: View) -> Focus:
    """The column that is looked at."""
    return summary.focus(tables().at(revision, view.selection.since), view)


@st.cache_resource(max_entries=64, show_spinner=False)
def longest(revision: int, view: View, pick: Pick | None) -> tuple[int, tuple[QueryRow, ...]]:
    """(how many there are, the first of them, longest first)."""
    table = tables().at(revision, view.selection.since)
    rows = summary.listed(table, view, pick)
    return len(rows), tuple(tables().rows(table.ids[rows[:LISTED]].tolist()))


def all_listed(revision: int, view: View, pick: Pick | None) -> list[QueryRow]:
    """All of them, for a download."""
    table = tables().at(revision, view.selection.since)
    return tables().rows(table.ids[summary.listed(table, view, pick)].tolist())


@st.cache_resource(max_entries=4, show_spinner="Looking for causes …")
def last_hour(minute: int) -> Recent:
    """What made the queries of the last hour slow, beside what was usual before it. Looked for once a minute."""
    del minute
    running = the_runtime()
    since = time.time() - HOUR_SECONDS
    where = QueryFilter(since=since, measured=False)
    return recent.findings(running.traces, running.readings, running.baseline(before=since), where)


@st.cache_resource(max_entries=4, show_spinner=False)
def hour_by_stage(revision: int, end: float) -> tuple[tuple[str, Trend], ...]:
    """Each stage minute by minute over the hour before `end` (Unix seconds); stages that did not run are left out."""
    since = end - HOUR_SECONDS
    table = tables().at(revision, since)
    rows = percentiles.choose(table, Selection(since=since)).rows
    found = ((stage, percentiles.trend(table, rows, stage, length=HOUR_SECONDS)) for stage in STAGES)
    return tuple((stage, trend) for stage, trend in found if trend.buckets)


@st.cache_resource(max_entries=64, show_spinner=False)
def predicted(revision: int, selection: Selection, scenario: Scenario) -> Prediction | None:
    """What-if over the queries selected."""
    table = tables().at(revision, selection.since)
    return what_if.predict(table, percentiles.choose(table, selection).rows, scenario)
