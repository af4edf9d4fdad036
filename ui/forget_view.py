"""Deleting stored queries from a page: one, or all that a filter finds, each behind a second button."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from access import audit, forget, operations
from rag.errors import RagError
from rag.trace_rows import QueryFilter
from ui import cards, viewer
from ui.cached import the_runtime
from ui.format import code_html, escape, plural

WHAT_GOES = (
    "The question, the answer, its spans and readings, its marks and its cached answer are deleted and cannot be brought back. "
    "What was sent to an OTLP collector or downloaded stays there."
)


def one(query_id: str) -> None:
    """The button on a query's page."""
    with st.popover("Delete …", disabled=not viewer.may(the_runtime(), "operate"), help="For those who may operate."):
        st.caption(WHAT_GOES)
        if st.button("Delete this query", type="primary", key=f"really-forget-{query_id}"):
            _do("delete a stored query", query_id, lambda: [query_id])


def many(where: QueryFilter, matching: int) -> None:
    """The button below a list: everything that its filters leave, on all its pages."""
    allowed = matching > 0 and viewer.may(the_runtime(), "operate")
    with st.popover(f"Delete {plural(matching, 'query', 'queries')} …", disabled=not allowed, help="For those who may operate."):
        st.caption(f"All {plural(matching, 'query', 'queries')} that the filters above leave. {WHAT_GOES}")
        if st.button("Delete them", type="primary", key="really-forget-many"):
            _do("delete stored queries", plural(matching, "query", "queries"), lambda: forget.matching(the_runtime(), where))


def _do(what: str, target: str, ids: Callable[[], list[str]]) -> None:
    running = the_runtime()
    me = viewer.of(running)
    try:
        who = operations.require(me, "operate", what, target)
        with st.spinner("Deleting …"), audit.recorded(me.log, who, me.address, what, target):
            gone = forget.forget(viewer.inside(running), ids())
    except RagError as error:
        st.html(cards.note("critical", f"<strong>{escape(error.message)}</strong>", code_html(error.next_step)))
        return
    said = f"{plural(gone.queries, 'query', 'queries')} deleted."
    st.html(cards.note("warn" if gone.problems else "ok", said, *(f"Still there: {escape(each)}" for each in gone.problems)))
