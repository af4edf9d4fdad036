"""Queries: every stored query that matches the filters. The filters are in the URL, so that a list can be shared."""

from __future__ import annotations

import streamlit as st

from rag.errors import RagError
from rag.trace_rows import QueryFilter
from ui import cards, exports, forget_view, query_list
from ui.cached import now, query_page, the_runtime, zone
from ui.format import code_html, escape, plural
from ui.links import page

runtime = the_runtime()
RANGES = {"1 h": 3600, "24 h": 86400, "7 days": 7 * 86400, "30 days": 30 * 86400, "all": 0}
OUTCOMES = ("any", "answered", "no_documents", "failed", "cancelled")
SIZES = (50, 100, 500, 2000)


def to_first_page() -> None:
    st.session_state["page"] = 1


def turn(by: int) -> None:
    st.session_state["page"] = st.session_state.get("page", 1) + by


def filters() -> QueryFilter:
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    text = row.text_input(
        "Question contains", key="text", bind="query-params", width=200, help="Or a whole query id.", on_change=to_first_page
    )
    span = row.selectbox(
        "Asked within", tuple(RANGES), index=4, key="range", bind="query-params", width=100, on_change=to_first_page
    )
    outcome = row.selectbox(
        "Outcome",
        OUTCOMES,
        key="outcome",
        bind="query-params",
        width=140,
        format_func=lambda name: name.replace("_", " "),
        on_change=to_first_page,
    )
    slow = row.number_input(
        "Slower than, s",
        0.0,
        value=None,
        step=0.5,
        key="slow",
        bind="query-params",
        width=120,
        help="Total time in seconds.",
        on_change=to_first_page,
    )
    cold = row.toggle(
        "Cold only",
        key="cold",
        bind="query-params",
        help="A model was loaded or ran for the first time.",
        on_change=to_first_page,
    )
    asker = row.selectbox(
        "Asked by",
        tuple(query_list.ASKERS),
        key="by",
        bind="query-params",
        width=190,
        help="Other programs: queries that came as OTLP spans.",
        on_change=to_first_page,
    )
    row.selectbox("Sort", tuple(query_list.SORTS), key="sort", bind="query-params", width=170, on_change=to_first_page)
    row.selectbox("Rows", SIZES, index=1, key="rows", bind="query-params", width=90, on_change=to_first_page)
    length = RANGES.get(span or "all", 0)
    # whole minutes: the same page serves every rerun of a minute
    since = now().timestamp() // 60 * 60 - length if length else None
    return QueryFilter(
        text=(text or "").strip() or None,
        since=since,
        cold=True if cold else None,
        outcome=None if outcome in (None, "any") else outcome,
        slower_than=slow or None,
        **query_list.ASKERS.get(asker or "anybody", {}),
    )


def pager(matching: int, total: int, number: int, size: int) -> None:
    pages = query_list.page_count(matching, size)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        line = query_list.page_line(matching, total, number, size)
        st.html(f'<div class="rd rd-soft">{line} · times in {escape(zone())}</div>', width="content")
        if pages > 1:
            st.button("Previous", on_click=turn, args=(-1,), disabled=number <= 1, type="tertiary")
            st.html(f'<div class="rd rd-soft">page {number:,} of {pages:,}</div>', width="content")
            st.button("Next", on_click=turn, args=(1,), disabled=number >= pages, type="tertiary")
        st.download_button(
            "Download CSV",
            lambda: exports.queries_csv(runtime.traces.search(where, sort, descending)),
            "queries.csv",
            "text/csv",
            on_click="ignore",
            type="tertiary",
            help="Every query that matches, on all pages, with all columns.",
        )


st.title("Queries")
try:
    where = filters()
    size = int(st.session_state.get("rows") or 100)
    sort, descending = query_list.SORTS.get(st.session_state.get("sort", ""), ("started_at", True))
    number = max(1, int(st.session_state.setdefault("page", 1)))
    revision = runtime.traces.revision
    matching, total, rows = query_page(revision, where, sort, descending, size, (number - 1) * size)
    if matching and not rows:  # the list has become shorter than the page that was open
        number = st.session_state["page"] = query_list.page_count(matching, size)
        matching, total, rows = query_page(revision, where, sort, descending, size, (number - 1) * size)
except RagError as error:
    st.html(cards.note("critical", f"<strong>{escape(error.message)}</strong>", code_html(error.next_step)))
    st.stop()

if not total:
    st.html(cards.empty("Nothing has been asked yet.", "Ask a question; it is stored with its times and shown here."))
    st.page_link(page("ask"), label="Ask a question")
    st.stop()
pager(matching, total, number, size)
if rows:
    st.html(query_list.rows_html(rows, now(), zone()))
else:
    st.html(cards.empty(f"None of {plural(total, 'query', 'queries')} matches.", "Widen the time, or clear the filters above."))
forget_view.many(where, matching)
