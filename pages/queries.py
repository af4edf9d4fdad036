"""Queries: every stored query that matches the filters. The filters are in the URL, so that a list can be shared."""

from __future__ import annotations

import streamlit as st

from rag.errors import RagError
from rag.trace_rows import QueryFilter
from ui import cards, exports
from ui.cached import now, query_table, the_runtime, zone
from ui.format import escape, plural, seconds
from ui.links import page

runtime = the_runtime()
RANGES = {"1 h": 3600, "24 h": 86400, "7 days": 7 * 86400, "30 days": 30 * 86400, "all": 0}
OUTCOMES = ("any", "answered", "no_documents", "failed", "cancelled")
SECONDS = ("total", "cache", "hyde", "embed", "search", "rerank", "generate", "ttft")
HEADS = {"total": "Total s", "ttft": "TTFT s"}


def filters() -> QueryFilter:
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    text = row.text_input("Question contains", key="text", bind="query-params", width=260, help="Or a whole query id.")
    span = row.selectbox("Asked within", tuple(RANGES), index=4, key="range", bind="query-params", width=130)
    outcome = row.selectbox(
        "Outcome", OUTCOMES, key="outcome", bind="query-params", width=150, format_func=lambda name: name.replace("_", " ")
    )
    slow = row.number_input(
        "Slower than, s", 0.0, value=None, step=0.5, key="slow", bind="query-params", width=150, help="Total time in seconds."
    )
    cold = row.toggle("Cold only", key="cold", bind="query-params", help="A model was loaded or ran for the first time.")
    length = RANGES.get(span or "all", 0)
    # whole minutes: the same table serves every rerun of a minute
    since = now().timestamp() // 60 * 60 - length if length else None
    return QueryFilter(
        text=(text or "").strip() or None,
        since=since,
        cold=True if cold else None,
        outcome=None if outcome in (None, "any") else outcome,
        slower_than=slow or None,
    )


def columns() -> dict[str, object]:
    config = st.column_config
    found: dict[str, object] = {
        "link": config.LinkColumn(
            "Open", display_text="open", width=56, help="Opens in a new tab; mark the row to open it here."
        ),
        "started": config.DatetimeColumn("Asked", format="YYYY-MM-DD HH:mm:ss", width=150),
        "question": config.TextColumn("Question", width=340),
        "outcome": config.TextColumn("Outcome", width="small"),
        "cold": config.CheckboxColumn("Cold", width=56),
        "model": config.TextColumn("Model", width="medium"),
    }
    for name in SECONDS:
        found[name] = config.NumberColumn(HEADS.get(name, f"{name} s"), format="%.3f", width=82)
    return found


st.title("Queries")
try:
    where = filters()
    total = runtime.traces.count()
    table = query_table(runtime.traces.revision, where, str(zone()))
except RagError as error:
    st.html(cards.note("critical", f"<strong>{escape(error.message)}</strong>", escape(error.next_step)))
    st.stop()

if not total:
    st.html(cards.empty("Nothing has been asked yet.", "Ask a question; it is stored with its times and shown here."))
    st.page_link(page("ask"), label="Ask a question")
    st.stop()
if table.empty:
    st.html(cards.empty(f"None of {plural(total, 'query', 'queries')} matches.", "Widen the time, or clear the filters above."))
    st.stop()

matching = f"{plural(len(table), 'query', 'queries')}" if len(table) == total else f"{len(table):,} of {total:,} queries"
slowest = seconds(float(table["total"].max()))
with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
    st.html(f'<div class="rd rd-soft">{matching} · slowest {slowest} · times in {escape(zone())}</div>', width="content")
    st.download_button(
        "Download CSV",
        lambda: exports.queries_csv(runtime.traces.search(where)),
        "queries.csv",
        "text/csv",
        on_click="ignore",
        type="tertiary",
        help="Every query of this list, all columns.",
    )
event = st.dataframe(
    table,
    height=min(640, 35 * (len(table) + 1) + 2),
    hide_index=True,
    column_config=columns(),
    key="list",
    on_select="rerun",
    selection_mode="single-row",
    placeholder="–",
    alt="Stored queries",
)
if event.selection.rows:
    chosen = str(table["link"].iloc[event.selection.rows[0]])
    st.switch_page(page("query"), query_params={"id": chosen.removeprefix("query?id=")})
