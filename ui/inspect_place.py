"""What the subjects of the view Inspect share: where they look, the choice of a document, their URL, jobs that are waited for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import streamlit as st

from jobs import Job, JobsFull
from library import Knowledge
from rag.errors import RagError
from rag.inspect.reading import Reader
from rag.types import Event, Options, Problem, StoredDocument
from runtime import Runtime
from ui import cards, viewer
from ui.cached import the_runtime
from ui.format import escape, plural, seconds

MOST_CHOICES = 500
PATIENCE_SECONDS = 1.0
REFRESH_SECONDS = 0.4
JOB_SECONDS = 300.0
# what this view keeps in the URL besides `view` and `collection`
_OWN = ("subject", "document", "at", "page", "passage", "text", "as", "near", "order", "question", "expect", "lost", "scan")

R = TypeVar("R")


class Place(NamedTuple):
    """Where is looked: the process's runtime, what its store holds, and the chosen collection."""

    runtime: Runtime
    known: Knowledge
    reader: Reader

    @property
    def collection(self) -> str:
        return self.reader.name

    def documents(self) -> Sequence[StoredDocument]:
        """The collection's documents by source; none where others filled it. Raises RagError."""
        if not self.reader.layout.ours:
            return ()
        if self.collection == self.known.active:
            return self.known.documents
        return sorted(self.reader.store.documents(self.collection).values(), key=lambda item: item.source)


def go(**params: str | int | float | None) -> None:
    """Change the URL: of this view's own parameters only the given ones stay."""
    for key in (*_OWN, *Options.__dataclass_fields__):
        if key != "collection":
            st.query_params.pop(key, None)
    put(**params)


def put(**params: str | int | float | None) -> None:
    """Set parameters of the URL; None takes one out."""
    for key, value in params.items():
        if value is None:
            st.query_params.pop(key, None)
        else:
            st.query_params[key] = str(value)


def choose_document(label: str, place: Place, chosen: str | None, key: str, on_change: Callable[[str | None], None]) -> None:
    """A searchable choice of a document, of the first MOST_CHOICES that a filter leaves. `on_change` gets its id."""
    documents = {item.document_id: item for item in place.documents()}
    if len(documents) > MOST_CHOICES:
        words = st.text_input(f"Filter {plural(len(documents), 'document')}", key=f"{key}-filter").strip().casefold()
        found = [item for item in documents.values() if words in f"{item.title} {item.source}".casefold()]
        documents = {item.document_id: item for item in found[:MOST_CHOICES]} | _only(documents, chosen)
    names = list(documents)
    st.selectbox(
        label,
        names,
        index=names.index(chosen) if chosen in documents else None,
        format_func=lambda name: f"{documents[name].title} · {documents[name].source}" if name in documents else name,
        placeholder="Type a part of the title or file name",
        key=key,
        on_change=lambda: on_change(st.session_state[key]),
    )


def _only(documents: Mapping[str, StoredDocument], chosen: str | None) -> dict[str, StoredDocument]:
    return {chosen: documents[chosen]} if chosen is not None and chosen in documents else {}


# ----------------------------------------------------------------------------------------------------------------- jobs


def submit(kind: str, title: str, work: Callable[[Job[Any]], Generator[Event, None, Any]]) -> Job[Any] | None:
    """Start work as a job; a RagError of it becomes its result. None, with a note on the page, when no more jobs are taken."""

    def guarded(job: Job[Any]) -> Generator[Event, None, Any]:
        try:
            return (yield from work(job))
        except RagError as error:
            return Problem(None, error.kind, error.message, error.address, error.next_step)

    try:
        return the_runtime().jobs.submit(kind, title[:200], guarded, JOB_SECONDS)
    except JobsFull as full:
        st.html(cards.problem_note(Problem(None, "overloaded", str(full), None, "Wait for one to end."), "Starting"))
        return None


def result(job: Job[R], what: str) -> R | None:
    """The job's result once it is there; until then progress is drawn in its place, and what went wrong when it failed."""
    if not job.wait(PATIENCE_SECONDS):
        st.fragment(_follow, run_every=REFRESH_SECONDS)(job.id, what)
        return None
    if isinstance(job.result, Problem):
        st.html(cards.problem_note(job.result, what))
        return None
    if job.result is None:
        stopped = job.state == "cancelled"
        words = "It was stopped." if stopped else f"{type(job.error).__name__}: {job.error}"
        st.html(cards.problem_note(Problem(None, "internal", words, None, "Start it again; the log says more."), what))
    return job.result


def _follow(job_id: str, what: str) -> None:
    job = the_runtime().jobs.get(job_id)
    if job is None or job.done:
        st.rerun()
    events = job.events()
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">{escape(what)}</p>{progress_html(events, job.elapsed())}')
        st.button("Stop", key="inspect-stop", **viewer.stop(job))


def progress_html(events: Sequence[Mapping[str, Any]], elapsed: float) -> str:
    """A bar where the work says how far it is, else which stage runs; and the time so far."""
    last = events[-1] if events else {}
    if last.get("type") == "progress" and last["total"]:
        said = f"{last['part']} {last['done']:,} of {plural(last['total'], 'passage')}"
        return f'{cards.meter(last["done"] / last["total"])}<div class="rd rd-soft">{said} · {seconds(elapsed)}</div>'
    stage = next((str(event["stage"]) for event in reversed(events) if event["type"] == "stage_started"), None)
    return cards.live_line(elapsed, f"running: {stage}" if stage else "starting")
