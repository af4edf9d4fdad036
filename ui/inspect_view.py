"""The view Inspect of the page Knowledge: a document's passages, what is near a text, what a question finds at each stage.

Chooses collection and subject; each subject is a file of its own. Everything chosen is in the URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st

from library import Knowledge
from rag.cache.milvus_index import BASE as QUESTIONS
from rag.errors import RagError
from rag.inspect.reading import Reader, base_name
from rag.types import Problem
from ui import cards, inspect_document, inspect_figures, inspect_near, inspect_question
from ui.cached import the_runtime
from ui.format import count, plain_markdown
from ui.inspect_place import Place, go

SUBJECTS: Mapping[str, tuple[str, Callable[[Place], None]]] = {
    "document": ("A document's passages", inspect_document.show),
    "near": ("Neighbours of a text", inspect_near.show_neighbours),
    "duplicates": ("Near-duplicates", inspect_near.show_duplicates),
    "question": ("A question by stage", inspect_question.show),
}


def show(known: Knowledge | None = None) -> None:
    """Draw the view; `known` spares reading the store once more where the page has done so."""
    runtime = the_runtime()
    known = known or runtime.knowledge()
    st.html(inspect_figures.STYLE)
    if known.problem is not None:
        st.html(cards.problem_note(known.problem, "Reading the passage store"))
        return
    name = _collection(known)
    if name is None:
        st.html(cards.empty("The store holds no collection to look into.", "Add documents first."))
        return
    subject = _subject()
    try:
        with st.spinner("Reading the collection", show_time=True):
            reader = Reader(runtime.store, name)
        SUBJECTS[subject][1](Place(runtime, known, reader))
    except RagError as error:
        problem = Problem("search", error.kind, error.message, error.address, error.next_step)
        st.html(cards.problem_note(problem, "Looking into the store"))


def _collection(known: Knowledge) -> str | None:
    """The collection's full name: the URL's, else the one in use. Collections that are not ours are read only by a mapping."""
    ours = [item for item in known.collections if item.embedder and base_name(item.name) != QUESTIONS]
    foreign = [item for item in known.collections if item.read_only]
    rows = {item.name: item for item in (foreign if known.read_only else ours)}
    asked = st.query_params.get("collection")
    if asked and asked not in rows:
        st.html(cards.note("warn", "The collection of this address is not in the store, or cannot be looked into."))
    name = asked if asked in rows else known.active if known.active in rows else next(iter(rows), None)
    if len(rows) < 2 or name is None:
        return name

    def label(key: str) -> str:
        return f"{key} · {count(rows[key].entities)} passages{' · in use' if rows[key].active else ''}"

    return st.selectbox(
        "Collection",
        list(rows),
        index=list(rows).index(name),
        format_func=label,
        key="inspect-collection",
        on_change=lambda: go(collection=st.session_state["inspect-collection"], subject=_asked()),
    )


def _asked() -> str:
    """The subject that the URL asks for, also by what it names."""
    given = st.query_params
    if given.get("subject") in SUBJECTS:
        return str(given["subject"])
    if "question" in given:
        return "question"
    return "near" if "text" in given or "passage" in given else "document"


def _subject() -> str:
    chosen = st.segmented_control(
        "Look at",
        list(SUBJECTS),
        default=_asked(),
        required=True,
        format_func=lambda key: plain_markdown(SUBJECTS[key][0]),
        key="inspect-subject",
        label_visibility="collapsed",
        on_change=lambda: go(subject=st.session_state["inspect-subject"]),
    )
    return chosen or "document"
