"""Inspect: the passages of one document, in pages of PAGE."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from gpu_server.errors import EngineError
from gpu_server.interfaces import Embedder
from rag.inspect.reading import StoredPassage
from rag.types import StoredDocument
from ui import cards, inspect_figures
from ui.cached import now, zone
from ui.format import escape, parse_time, plural, time_html
from ui.inspect_figures import Measured
from ui.inspect_place import Place, choose_document, go, put
from ui.query_list import page_count

PAGE = 50


def show(place: Place) -> None:
    """Raises RagError where the store cannot be read."""
    if not place.reader.layout.ours:
        st.html(
            cards.empty(
                "This collection was filled by somebody else: which passages make a document is not known.",
                "Look for neighbours of a text, or follow a question through the stages.",
            )
        )
        return
    chosen = st.query_params.get("document")
    choose_document("Document", place, chosen, "inspect-document", lambda name: go(document=name))
    if chosen is None:
        if not place.documents():
            st.html(cards.empty("The collection holds no documents.", "Add some in the view Documents."))
        else:
            st.html(
                cards.empty("Choose a document above.", "Its passages, what is embedded of them and what they share show here.")
            )
        return
    document = place.reader.document(chosen)
    if document is None:
        st.html(cards.note("warn", "The document of this address is not in this collection.", "Choose another above."))
        return
    _document(place, document)


def _document(place: Place, document: StoredDocument) -> None:
    about = [
        escape(document.source),
        escape(document.language) if document.language else "",
        plural(document.passages, "passage"),
    ]
    added = f"added {time_html(parse_time(document.ingested_at), now(), zone())}"
    with st.container(border=True, gap="small"):
        st.html(
            f'<p class="rd rd-title rd-plain" dir="auto">{escape(document.title)}</p>'
            f'<div class="rd rd-soft">{" · ".join(text for text in [*about, added] if text)}</div>'
        )
        first = (_page(place, document) - 1) * PAGE
        page = place.reader.passages(document, max(0, first - 1), PAGE + min(first, 1))
        before = page[0] if first and page else None
        shown = page[1:] if before else page
        measured, max_tokens, no_tokens = measure(place.runtime.models.embedder, shown)
        limit = place.runtime.settings.ingest.chunk_tokens
        if columns := inspect_figures.lengths(measured, limit):
            st.html(columns)
        if no_tokens:
            st.html(cards.note("warn", f"Tokens are not known: {escape(no_tokens)}"))
    if not shown:
        st.html(cards.empty("No passages are stored on this page.", "The document may have been replaced a moment ago: reload."))
        return
    at = st.query_params.get("at")
    st.html(inspect_figures.stored_passages(measured, before, place.collection, max_tokens, no_tokens, at))


def _page(place: Place, document: StoredDocument) -> int:
    """The page that the URL asks for, by number or by a passage on it; with its controls."""
    pages = page_count(document.passages, PAGE)
    asked = st.query_params.get("page", "")
    number = int(asked[:9]) if asked.isascii() and asked.isdigit() else 1
    at = st.query_params.get("at")
    if at and not asked and (passage := place.reader.by_ids([at]).get(at)) is not None:
        number = (passage.position or 0) // PAGE + 1
    number = max(1, min(number, pages))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if pages > 1:
            first = (number - 1) * PAGE + 1
            span = f"passages {first:,}–{min(document.passages, first + PAGE - 1):,} of {document.passages:,}"
            st.html(f'<div class="rd rd-soft">{span}</div>', width="content")
            st.button("Previous", on_click=lambda: put(page=number - 1), disabled=number <= 1, type="tertiary")
            st.button("Next", on_click=lambda: put(page=number + 1), disabled=number >= pages, type="tertiary")
        st.download_button(
            "Download JSONL",
            lambda: inspect_figures.jsonl(place.reader.every_passage(document)),
            f"passages-{document.document_id[:12]}.jsonl",
            "application/jsonl",
            on_click="ignore",
            type="tertiary",
            help="Every passage of the document, one a line, with the text that is embedded.",
        )
    return number


def measure(embedder: Embedder, passages: Sequence[StoredPassage]) -> tuple[list[Measured], int | None, str]:
    """The passages with their tokens, what the embedder reads of a text at most, and why tokens are unknown (or nothing)."""
    try:
        most = embedder.info.max_tokens
        counted = [Measured(item, embedder.count_tokens(item.text), embedder.count_tokens(item.indexed)) for item in passages]
    except (EngineError, OSError) as problem:
        reason = f"the embedder failed: {getattr(problem, 'message', None) or problem}"
        return [Measured(item, None, None) for item in passages], None, reason
    return counted, most, ""
