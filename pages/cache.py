"""Cache: what the semantic cache brought, every kept answer, a tester, its calibration, and good answers as training data."""

from __future__ import annotations

import streamlit as st

from rag.cache.tally import Tally
from rag.errors import RagError
from rag.semantic_cache import SemanticCache
from rag.types import Problem
from ui import cache_cached, cache_calibration, cache_figures, cache_tester, cache_view, cards
from ui.cached import now, the_runtime, zone
from ui.format import escape

RANGES = {"24 h": 86_400, "7 d": 7 * 86_400, "30 d": 30 * 86_400, "all": 0}
VIEWS = ("Entries", "Misses", "Tester", "Calibration", "Export")

runtime = the_runtime()


def chosen_time() -> float | None:
    """Unix seconds since when queries count; None: all of them."""
    span = st.segmented_control(
        "Asked within",
        tuple(RANGES),
        default="30 d",
        required=True,
        key="range",
        bind="query-params",
        label_visibility="collapsed",
    )
    length = RANGES[span or "30 d"]
    # whole minutes: the same figures serve every rerun of a minute
    return now().timestamp() // 60 * 60 - length if length else None


def tally_since(since: float | None) -> Tally | None:
    """None, with a note, when stored queries cannot be read."""
    try:
        return cache_cached.tally_since(runtime.traces.revision, runtime.traces.path, since)
    except RagError as error:
        problem = Problem(None, error.kind, error.message, error.address, error.next_step)
        st.html(cards.problem_note(problem, "Reading the stored queries"))
        return None


def thresholds_cell(cache: SemanticCache) -> str:
    name = cache_tester.identity(runtime.models.embedder)
    if name is None:
        return cache_figures.limits(None, "the embedder does not say who it is", cache.limits.semantic)
    found = cache.thresholds(name)
    return cache_figures.limits(found, _source(cache, name, found is not None), cache.limits.semantic)


def _source(cache: SemanticCache, name: str, known: bool) -> str:
    """Where the thresholds come from, as HTML."""
    if not known:
        return "none for this embedder: open the view Calibration; until then only equal questions hit"
    if cache.limits.dense is not None or cache.limits.agreement is not None:
        return "from the settings (cache.dense, cache.agreement)"
    try:
        at = cache.book.calibrated_at_unix(name)
    except RagError as error:
        return escape(error.message)
    return "came with RAG Deck" if at is None else f"calibrated here {cache_figures.when(at, now(), zone(), '')}"


def head(cache: SemanticCache) -> Tally | None:
    found = tally_since(chosen_time())
    status = cache.status()
    if status.problem:
        step = "Queries go on without kept answers, and it is tried again every few seconds."
        st.html(cards.note("critical", f"<strong>{escape(status.problem)}</strong>", step))
    if found is not None:
        with st.container(border=True):
            st.html(cache_figures.head(status, found, thresholds_cell(cache), now(), zone()))
    return found


def misses(cache: SemanticCache, found: Tally | None) -> None:
    left, right = st.columns(2, gap="medium")
    with left, st.container(border=True, gap="small"):
        if found is not None and found.reasons_of:
            st.html(cache_figures.reasons(found))
        else:
            st.html(cards.empty("No query has missed in this time.", "Ask a question, or choose a longer time above."))
    with right, st.container(border=True, gap="small"):
        st.html(cache_figures.since_start(cache.status().counted))


def views(cache: SemanticCache, found: Tally | None) -> None:
    usual = "Tester" if "asked" in st.query_params else "Calibration" if "job" in st.query_params else "Entries"
    view = st.segmented_control(
        "View", VIEWS, default=usual, required=True, key="view", bind="query-params", label_visibility="collapsed"
    )
    if view == "Misses":
        misses(cache, found)
    elif view == "Tester":
        cache_tester.tester(cache, runtime.models.embedder)
        cache_tester.pairs_card(cache)
    elif view == "Calibration":
        cache_calibration.calibration(cache, runtime.models.embedder)
    elif view == "Export":
        cache_calibration.export(cache)
    else:
        cache_view.entries(cache)


st.title("Cache")
if runtime.cache is None:
    st.html(
        cards.empty(
            f"No answer is kept: {runtime.cache_off}.",
            "Change that in dashboard.toml or the environment and start RAG Deck again; every query is answered anew meanwhile.",
        )
    )
    st.stop()
cache_view.said()
if "entry" in st.query_params:
    ever = tally_since(None)
    cache_view.entry(runtime.cache, st.query_params["entry"], ever.recent_hits if ever else ())
else:
    views(runtime.cache, head(runtime.cache))
