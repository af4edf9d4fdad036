"""Overview: whether everything is all right, in one screen: what needs somebody, services, machines, the last queries."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from collectors.alerts import Alert
from collectors.views import Snapshot
from rag.errors import RagError
from rag.trace_rows import QueryFilter, QueryRow
from ui import cards, charts, latency_cached, latency_charts, latency_view, machines_view, overview_view, services_view
from ui.cached import now, query_page, the_runtime, zone
from ui.format import code_html, escape
from ui.gauges import Tones, card_title
from ui.links import page

REFRESH_SECONDS = 2.0
LAST_QUERIES = 6
MOST_TOTALS = 2000
CAUSES, CAUSES_SECONDS = 3, 60.0

runtime = the_runtime()


def asked() -> tuple[tuple[QueryRow, ...], overview_view.Hour]:
    """The last queries, and what the last hour came to."""
    revision = runtime.traces.revision
    # whole minutes: the same rows serve every refresh of a minute
    hour = QueryFilter(since=now().timestamp() // 60 * 60 - 3600, measured=False)
    last = query_page(revision, QueryFilter(), "started_at", True, LAST_QUERIES, 0)[2]
    return last, overview_view.hour_of(query_page(revision, hour, "started_at", True, MOST_TOTALS, 0)[2])


def live() -> None:
    snapshot, active = runtime.sweep.snapshot(), runtime.alerts.active()
    found = overview_view.things(snapshot, active)
    try:
        rows, hour = asked()
        problem = None
    except RagError as error:
        rows, hour, problem = (), overview_view.Hour(), error
    st.html(overview_view.head(found, snapshot, rows[0] if rows else None, hour))
    left, right = st.columns([19, 8], gap="small")
    with left:
        watched(snapshot, active)
        last_queries(rows, problem)
    with right, st.container(border=True, gap="small", key="needs"):
        st.html(card_title("Needs you"))
        acknowledged = sum(alert.acknowledged_at is not None for alert in active)
        st.html(overview_view.needs(found, acknowledged, now(), zone()))


def watched(snapshot: Snapshot, active: Sequence[Alert]) -> None:
    left, right = st.columns([7, 12], gap="small")
    with left, st.container(border=True, gap="small"):
        st.html(card_title(services_view.title(snapshot.services) if snapshot.services else "Services"))
        if snapshot.services:
            st.html(overview_view.services(snapshot.services))
        else:
            st.html(cards.empty("No service is watched yet.", "Name them in dashboard.toml: [[services]] with name, kind, url."))
    with right, st.container(border=True, gap="small"):
        st.html(card_title(machines_view.title(snapshot.machines)) + machines_view.sources_note(snapshot.sources))
        st.html(overview_view.machines(snapshot.machines, active, Tones(runtime.alerts.rules), charts.spark))


def last_queries(rows: Sequence[QueryRow], problem: RagError | None) -> None:
    with st.container(border=True, gap="small"):
        st.html(card_title("Last queries"))
        if problem is not None:
            st.html(cards.note("critical", f"<strong>{escape(problem.message)}</strong>", code_html(problem.next_step)))
        elif rows:
            st.html(overview_view.queries(rows, now(), zone()))
        else:
            st.html(cards.empty("Nothing has been asked yet.", "Ask a question: its times and its slowest stage show up here."))


def causes() -> None:
    """The last hour by stage, and why its queries took so long: the first three causes."""
    end = now().timestamp() // 60 * 60 + 60
    try:
        found = latency_cached.last_hour(int(now().timestamp() // 60))
        by_stage = latency_cached.hour_by_stage(runtime.traces.revision, end)
    except RagError:
        return  # the last queries say what is wrong with the trace file
    if not found.looked_at:
        return
    with st.container(border=True, gap="small"):
        st.html(card_title(latency_view.findings_title(found)))
        lines = [overview_view.cause(number, finding) for number, finding in enumerate(found.findings[:CAUSES], 1)]
        if lines:
            st.html(f'<div class="rd">{"".join(lines)}</div>')
        if by_stage:
            st.html('<div class="rd rd-soft">p50 of each stage, minute by minute</div>')
            dark = st.context.theme.type == "dark"
            options = latency_charts.stages_options(by_stage, end - latency_cached.HOUR_SECONDS, end, dark)
            st.echarts_chart(options, height=170, key="hour", alt="p50 of each stage, minute by minute, over the last hour")
        st.page_link(page("latency"), label="Evidence, and what to change" if lines else "Percentiles by stage")


st.title("Overview")
for notice in runtime.deployment.problems:
    st.html(cards.note("warn", escape(notice)))
st.fragment(live, run_every=REFRESH_SECONDS)()
st.fragment(causes, run_every=CAUSES_SECONDS)()
with st.container(horizontal=True, gap="small"):
    st.page_link(page("ask"), label="Ask")
    st.page_link(page("queries"), label="All queries")
    st.page_link(page("machines"), label="All machines")
    st.page_link(page("services"), label="All services")
    st.page_link(page("alerts"), label="All alerts")
