"""Inspect: what lies near a text or a stored passage, and the near-duplicates of a whole collection."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

import streamlit as st

from jobs import Job
from rag.errors import RagError
from rag.inspect import duplicates, neighbours
from rag.inspect.duplicates import MOST_PASSAGES, Duplicates
from rag.inspect.neighbours import NEAR_DUPLICATE, Neighbour, Neighbours
from rag.types import Event
from ui import cards, inspect_figures
from ui.format import escape, plural, seconds
from ui.inspect_place import Place, go, put, result, submit

MOST_TEXT = 20_000
MOST_URL_TEXT = 1500
SHOWN_GROUPS, SHOWN_MEMBERS = 100, 10
ORDERS: Mapping[str, Callable[[Neighbour], int]] = {
    "both": lambda item: item.passage.ranks.get("fused") or 1_000_000,
    "cosine": lambda item: item.passage.ranks.get("dense") or 1_000_000,
    "words": lambda item: item.passage.ranks.get("sparse") or 1_000_000,
}


def threshold() -> float:
    """The cosine that makes a near-duplicate: the URL's, else NEAR_DUPLICATE."""
    try:
        asked = float(st.query_params.get("near", NEAR_DUPLICATE))
    except ValueError:
        return NEAR_DUPLICATE
    return asked if 0.5 <= asked <= 1 else NEAR_DUPLICATE


def _slider() -> float:
    return float(
        st.slider(
            "Near-duplicate from a cosine of",
            0.5,
            1.0,
            threshold(),
            0.01,
            help="Of the stored vectors. What is near depends on the embedder: look at some pairs before you trust a number.",
        )
    )


# ----------------------------------------------------------------------------------------------------------- neighbours


def show_neighbours(place: Place) -> None:
    """Raises RagError."""
    text = st.session_state.get("inspect-long-text") if "text" not in st.query_params else st.query_params["text"]
    kind = "query" if st.query_params.get("as") == "query" else "passage"
    passage_id = st.query_params.get("passage")
    with st.form("inspect-near", border=True):
        with st.container(key="inspect-typed"):
            typed = st.text_area("Text", text or "", height=110, placeholder="Type or paste a text, in any language")
        as_kind = st.radio(
            "Embed it as",
            ("passage", "query"),
            index=("passage", "query").index(kind),
            format_func={"passage": "a passage, to find its like", "query": "a question, as the path does"}.get,
            horizontal=True,
            help="Some embedders make different vectors of questions and of passages.",
        )
        near = _slider()
        if st.form_submit_button("Find neighbours", type="primary"):
            _ask(typed, as_kind, near)
            st.rerun()
    if passage_id:
        with st.spinner("Searching", show_time=True):
            passage, found = neighbours.of_passage(place.reader, place.runtime.models.embedder, passage_id, threshold=threshold())
        with st.container(border=True, gap="small"):
            st.html('<p class="rd rd-title">Neighbours of this passage</p>')
            st.html(f'<div class="rd">{inspect_figures.passage_cell(passage, place.collection)}</div>')
        _found(place, found)
    elif text:
        with st.spinner("Searching", show_time=True):
            found = neighbours.of_text(
                place.reader,
                place.runtime.models.embedder,
                text,
                kind="query" if kind == "query" else "passage",
                threshold=threshold(),
            )
        _found(place, found)
    else:
        st.html(
            cards.empty(
                "Type a text above to see which passages are nearest to it.",
                "Every passage of a document has a link to its own neighbours.",
            )
        )


def _ask(text: str, kind: str, near: float) -> None:
    """What was typed goes into the URL; a text too long for one stays in the session. Raises RagError for one that is longer than
    any passage."""
    if len(text) > MOST_TEXT:
        said = f"the text has {len(text):,} characters; at most {MOST_TEXT:,} are taken"
        raise RagError(said, kind="bad_input", next_step="Shorten it.")
    fits = len(text) <= MOST_URL_TEXT
    st.session_state["inspect-long-text"] = None if fits else text
    passage = None if text.strip() else st.query_params.get("passage")  # only the cosine was changed
    go(subject="near", text=text if fits and text.strip() else None, passage=passage, near=near, **{"as": kind})


def _found(place: Place, found: Neighbours) -> None:
    for route, reason in (
        ("By vectors nothing was searched", found.no_dense),
        ("By words nothing was searched", found.no_sparse),
    ):
        if reason:
            st.html(cards.note("warn", f"{route}: {escape(reason)}"))
    if not found.items:
        st.html(cards.empty("Nothing was found.", "The collection is empty, or shares no word with this text."))
        return
    near = sum(bool(item.near_duplicate) for item in found.items)
    asked = st.query_params.get("order")
    with st.container(border=True, gap="small"):
        told = f"{plural(near, 'near-duplicate')} (cosine at least {found.threshold:.2f})"
        if found.no_dense or found.metric != "COSINE":
            told = "near-duplicates are not told without cosines"
        st.html(
            f'<p class="rd rd-title">{plural(len(found.items), "neighbour")}, up to {found.limit} by each route</p>'
            f'<div class="rd rd-soft">{told}</div>'
        )
        order = st.segmented_control(
            "Order by",
            list(ORDERS),
            default=asked if asked in ORDERS else "both",
            required=True,
            format_func={"both": "both ranks (RRF)", "cosine": "vectors", "words": "words"}.get,  # type: ignore[arg-type]
            key="inspect-order",
            on_change=lambda: put(order=st.session_state["inspect-order"]),
        )
        items = sorted(found.items, key=ORDERS[order or "both"])
        st.html(inspect_figures.neighbours_table(items, place.collection, found.metric, found.no_dense, found.no_sparse))


# ----------------------------------------------------------------------------------------------------------- duplicates


def show_duplicates(place: Place) -> None:
    """Raises RagError."""
    layout = place.reader.layout
    if layout.dense_field is None or layout.metric != "COSINE":
        reason = "has no dense vectors" if layout.dense_field is None else f"compares vectors by {layout.metric}, not by cosine"
        st.html(cards.empty(f"This collection {reason}: near-duplicates cannot be told.", "Choose another collection."))
        return
    with st.form("inspect-scan", border=True):
        near = _slider()
        st.html(
            f'<div class="rd rd-soft">Compares every stored vector with every other, {MOST_PASSAGES:,} passages at most. It '
            "takes seconds, uses the processor while it runs, and can be stopped.</div>"
        )
        if st.form_submit_button("Look for near-duplicates", type="primary"):
            _scan(place, near)
    job = place.runtime.jobs.get(st.query_params["scan"]) if "scan" in st.query_params else None
    if job is None and "scan" in st.query_params:
        st.html(cards.note("unknown", "The scan of this address is no longer known here: start it again."))
    elif job is not None and job.kind != "duplicates":
        st.html(cards.note("unknown", "The job of this address is no scan for duplicates."))
    elif job is not None:
        found = result(job, "Comparing passages")
        if isinstance(found, Duplicates):
            _groups(place, found)


def _scan(place: Place, near: float) -> None:
    def work(job: Job[Duplicates]) -> Generator[Event, None, Duplicates]:
        return duplicates.scan(place.reader, near, cancelled=job.cancelled.is_set)

    running = next((job for job in place.runtime.jobs.recent("duplicates") if not job.done), None)
    job = running or submit("duplicates", f"near-duplicates of {place.collection}", work)
    if job is not None:
        go(subject="duplicates", near=near, scan=job.id)


def _groups(place: Place, found: Duplicates) -> None:
    if found.compared < found.total:
        st.html(
            cards.note(
                "warn", f"{found.compared:,} of {plural(found.total, 'passage')} were compared: nothing is known of the rest."
            )
        )
    if not found.groups:
        what = f"Of {plural(found.compared, 'passage')} no two have a cosine of {found.threshold:.2f} or more."
        st.html(cards.empty(what, "A lower cosine shows passages that are alike without being copies."))
        return
    shown = found.groups[:SHOWN_GROUPS]
    ids: Sequence[str] = [key for group in shown for key in group.ids[:SHOWN_MEMBERS]]
    with st.container(border=True, gap="small"):
        left = "" if len(found.groups) <= SHOWN_GROUPS else f" The {SHOWN_GROUPS} largest are shown."
        st.html(
            f'<p class="rd rd-title">{plural(found.spare, "passage")} to spare in {plural(len(found.groups), "group")}</p>'
            f'<div class="rd rd-soft">{plural(found.compared, "passage")} compared in {seconds(found.seconds)}; in a group each '
            f"has another with a cosine of {found.threshold:.2f} or more.{left}</div>"
        )
        texts = place.reader.by_ids(ids)
        st.html(inspect_figures.duplicates_html(found, texts, place.collection, SHOWN_GROUPS, SHOWN_MEMBERS))
