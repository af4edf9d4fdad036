"""Knowledge: the collections of the store, the documents of the active one, and how documents come in and go.

`?view=` chooses the view (`VIEWS`), `?job=` opens an ingestion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from access import uploads, wiring
from jobs import JobsFull
from library import Knowledge
from rag.errors import RagError
from rag.types import Problem, StoredDocument
from ui import cards, figures, ingest_view, inspect_view, store_view
from ui.cached import the_runtime, zone
from ui.format import count, escape, plain_markdown, plural, unknown_html

runtime = the_runtime()


def collections_card(known: Knowledge) -> None:
    rows = []
    for item in known.collections:
        about = [
            "in use" if item.active else "",
            "read-only: filled by somebody else" if item.read_only else "",
            "" if item.flushed else "rows not flushed yet",
        ]
        rows.append(
            [
                f"<strong>{escape(item.name)}</strong>" if item.active else escape(item.name),
                count(item.entities) if item.entities is not None else unknown_html("the store did not say"),
                escape(item.embedder) if item.embedder else unknown_html("its name carries no embedder: it is not ours"),
                count(item.dimension) if item.dimension else unknown_html("the store did not say"),
                f'<span class="rd-soft">{escape(" · ".join(text for text in about if text))}</span>',
            ]
        )
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">Collections at <span class="rd-mono">{escape(known.address)}</span></p>')
        st.html(figures.table(["Collection", "Passages", "Embedder", "Dimension", ""], rows, numeric=(1, 3), wrap=(0, 2, 4)))


def submit(paths: list[Path], label: str) -> None:
    try:
        job = runtime.submit_ingest(paths, label=label)
    except (RagError, JobsFull) as error:
        problem = Problem(None, getattr(error, "kind", "overloaded"), str(error), None, getattr(error, "next_step", ""))
        st.html(cards.problem_note(problem, "Ingestion"))
        return
    st.query_params["job"] = job.id


def add_card() -> None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Add documents</p>')
        with st.form("add", border=False, clear_on_submit=True):
            files = st.file_uploader(
                "Files",
                ingest_view.TYPES,
                accept_multiple_files=True,
                help=f"{ingest_view.TYPES_HELP} A file of the same name replaces its earlier version.",
            )
            sent = st.form_submit_button("Add to the collection", type="primary")
        if sent and not files:
            st.html(cards.note("warn", "No file is chosen."))
        if sent and files:
            take(files)


def take(files: Sequence[UploadedFile]) -> None:
    """Keep and read in what was uploaded, once all of it is known to be what it says."""
    try:
        uploads.check([(file.name, file.getvalue()) for file in files], wiring.upload_bounds(runtime.settings))
        paths = [runtime.save_upload(file.name, file.getvalue()) for file in files]
    except RagError as error:
        st.html(cards.problem_note(Problem(None, error.kind, error.message, error.address, error.next_step), "Upload"))
        return
    submit(paths, plural(len(paths), "uploaded file"))


@st.dialog("Remove this document?")
def confirm(document: StoredDocument) -> None:
    st.markdown(
        f"**{plain_markdown(document.title)}** ({plain_markdown(document.source)}) and its "
        f"{plural(document.passages, 'passage')} leave the collection. The file itself stays where it is."
    )
    if st.button("Remove", type="primary", key="really"):
        try:
            removed = runtime.remove_document(document.document_id)
        except RagError as error:
            st.html(cards.problem_note(Problem(None, error.kind, error.message, error.address, error.next_step), "Removing"))
            return
        st.session_state["removed"] = f"{document.title}: {plural(removed, 'passage')} removed."
        st.rerun()


def documents_card(known: Knowledge) -> None:
    documents = known.documents
    passages = sum(item.passages for item in documents)
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">{plural(len(documents), "document")}, {plural(passages, "passage")}</p>')
        if not documents:
            st.html(cards.empty("The collection holds no documents.", "Choose files above and add them."))
            return
        frame = pd.DataFrame(
            [(item.title, item.source, item.language or "", item.passages, item.ingested_at) for item in documents],
            columns=["Title", "Source", "Language", "Passages", "Added"],
        )
        frame["Added"] = pd.to_datetime(frame["Added"], utc=True, errors="coerce").dt.tz_convert(str(zone()))
        event = st.dataframe(
            frame,
            hide_index=True,
            height=min(560, 35 * (len(frame) + 1) + 2),
            key="documents",
            on_select="rerun",
            selection_mode="single-row",
            column_config={"Added": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm:ss")},
            alt="Documents of the active collection",
        )
        rows = [row for row in event.selection.rows if row < len(documents)]
        chosen = documents[rows[0]] if rows else None
        label = f"Remove {plain_markdown(chosen.title)}" if chosen else "Remove"
        if st.button(label, disabled=chosen is None, help="Mark a document in the list first; you are asked again.") and chosen:
            confirm(chosen)


def job_card() -> None:
    """The ingestion of the address, else the one that runs."""
    ingest_view.action_problem()
    running = next((job.id for job in runtime.jobs.recent("ingest") if not job.done), None)
    job_id = st.query_params.get("job") or running
    if job_id is not None:
        ingest_view.show(job_id)


def ledger_note() -> None:
    problem = runtime.library.ingestions.problem
    if problem is not None:
        text = "Documents are read in all the same, but what is unfinished will not go on after a restart."
        st.html(cards.problem_note(problem, "Keeping the list of ingestions") + cards.note("warn", text))


def documents_view(known: Knowledge) -> None:
    if not known.read_only:
        add_card()
    job_card()
    collections_card(known)
    if not known.read_only:
        documents_card(known)


def ingestion_view(known: Knowledge) -> None:
    now, settings = datetime.now(UTC), runtime.settings.ingest
    job_card()
    with st.container(border=True, gap="small"):
        if runtime.library.watched:
            st.html(ingest_view.watched(runtime.library.watched, settings.watch_seconds, now, zone()))
        else:
            st.html(cards.empty("No folder is watched.", "Name folders in ingest.watch of dashboard.toml and start again."))
    jobs = runtime.library.ingestions.all()
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">{plural(len(jobs), "ingestion")}, newest first</p>')
        if jobs:
            st.html(ingest_view.history(jobs, now, zone()))
        else:
            st.html(cards.empty("Nothing was read in yet.", "Add files in the view Documents."))


VIEWS: dict[str, Callable[[Knowledge], None]] = {
    "documents": documents_view,
    "ingestion": ingestion_view,
    "inspect": inspect_view.show,
    "store": lambda known: store_view.show(),
}


def chosen_view() -> str:
    """The view of the address; kept there by hand, since a bound widget writes its labels."""
    asked = st.query_params.get("view", "")
    view = st.segmented_control(
        "View",
        tuple(VIEWS),
        default=asked if asked in VIEWS else next(iter(VIEWS)),
        required=True,
        key="knowledge-view",
        format_func=str.capitalize,
        label_visibility="collapsed",
    )
    if view != asked:
        st.query_params["view"] = view
    return view


st.title("Knowledge")
view = chosen_view()
known = runtime.knowledge()
if known.problem is not None:
    st.html(cards.store_note(known.problem, runtime.status().models, "Reading the passage store"))
    st.stop()
if "removed" in st.session_state:
    st.html(cards.note("ok", escape(st.session_state.pop("removed"))))
if known.read_only:
    st.html(cards.note("unknown", "This collection was filled by somebody else and is searched read-only (milvus.mapping)."))
ledger_note()
VIEWS[view](known)
