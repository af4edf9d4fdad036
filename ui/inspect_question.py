"""Inspect: what a question finds at each stage, as far as the rerank."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

import streamlit as st

from gpu_server.errors import EngineError
from jobs import Job
from rag.errors import RagError
from rag.inspect import stages, terms
from rag.inspect.stages import Fate, StageRun, document_key
from rag.options import checked
from rag.query import Control
from rag.types import Event, Options, Passage, Problem
from ui import ask_form, cards, inspect_figures
from ui.experiment_live import is_dark
from ui.format import code_html, escape, plural
from ui.inspect_place import Place, choose_document, go, put, result, submit

SHOWN = 100
TOP = 10
SHOWS: Mapping[str, tuple[str, Callable[[StageRun], Sequence[Passage]]]] = {
    "all": ("all passages", lambda run: run.passages),
    "kept": ("kept", lambda run: [item for item in run.passages if item.kept]),
    "dense": (f"in the dense top {TOP}, not kept", lambda run: run.lost_from("dense", TOP)),
    "sparse": (f"in the BM25 top {TOP}, not kept", lambda run: run.lost_from("sparse", TOP)),
    "fused": (f"in the fused top {TOP}, not kept", lambda run: run.lost_from("fused", TOP)),
    "fusion": ("cut by fusion", lambda run: _of_fate(run, "cut by fusion")),
    "rerank": ("cut by rerank", lambda run: _of_fate(run, "cut by rerank")),
    "one": (
        "found by one route only",
        lambda run: [item for item in run.passages if not (item.ranks.get("dense") and item.ranks.get("sparse"))],
    ),
}


def show(place: Place) -> None:
    """Raises RagError."""
    question = st.query_params.get("question", "")
    base = replace(place.runtime.default_options(), hyde="off", collection=None)
    given = {key: value for key, value in st.query_params.items() if key != "collection"}
    options = ask_form.from_url(given, base)
    _form(place, question, options, base)
    if not question.strip():
        st.html(
            cards.empty(
                "Ask a question above to see what each stage makes of it.",
                "The path runs as far as the rerank, without caches; no answer is written and nothing is stored.",
            )
        )
        return
    options = checked(options, question, place.runtime.settings.query.max_question_chars)
    if not _can_be_asked(place):
        return
    job = _job(place, question, stages.options_for(place.reader, options, place.known.active))
    run = result(job, "Following the question") if job is not None else None
    if isinstance(run, StageRun):
        _run(place, run)


def _form(place: Place, question: str, options: Options, base: Options) -> None:
    """Raises RagError for a question that is too long; it stays in its field."""
    has_model = place.runtime.chat is not None
    with st.form("inspect-question", border=True):
        with st.container(key="inspect-typed"):
            typed = st.text_area("Question", question, height=80, placeholder="Ask about your documents, in any language")
        with st.container(horizontal=True, vertical_alignment="bottom"):
            candidates = st.number_input("Candidates", 1, 1000, options.candidates, 10, width=150)
            keep = st.number_input("Passages kept", 1, 100, options.keep, 1, width=150)
            rerank = st.toggle("Rerank", options.rerank)
            hyde = st.toggle(
                "HyDE",
                options.hyde != "off" and has_model,
                disabled=not has_model,
                help="Search with a hypothetical answer too. It costs one generation."
                if has_model
                else "No language model is configured.",
            )
        if st.form_submit_button("Follow it", type="primary"):
            chosen = replace(base, candidates=int(candidates), keep=int(keep), rerank=rerank, hyde="on" if hyde else "off")
            if typed.strip():
                checked(chosen, typed, place.runtime.settings.query.max_question_chars)  # before it gets into the URL
            st.session_state.pop("inspect-run", None)
            go(
                **{
                    "subject": "question",
                    "question": typed,
                    **ask_form.to_url(chosen, base),
                    "expect": st.query_params.get("expect"),
                }
            )
            st.rerun()


def _can_be_asked(place: Place) -> bool:
    """Whether the embedder in use has filled this collection; a note says what to do otherwise."""
    try:
        info = place.runtime.models.embedder.info
    except EngineError as problem:
        raise RagError(problem.message, kind=problem.kind, address=problem.address, next_step=problem.next_step) from problem
    if place.reader.filled_by(info):
        return True
    st.html(
        cards.note(
            "warn",
            f"<strong>Another embedder filled this collection</strong>; questions are embedded by {escape(info.name)} now.",
            "Choose a collection of this embedder, or set models.embedder to the other one and start again.",
        )
    )
    return False


def _job(place: Place, question: str, options: Options) -> Job[StageRun] | None:
    """The run of this very question and options in this session, started where there is none yet."""
    wanted = (place.collection, question, options)
    known, job_id = st.session_state.get("inspect-run", (None, ""))
    job = place.runtime.jobs.get(job_id) if known == wanted else None
    if job is not None:
        return job
    clients = place.runtime.clients()

    def work(job: Job[StageRun]) -> Generator[Event, None, StageRun]:
        return stages.run(question, options, clients, Control(job.cancelled, job.deadline))

    job = submit("inspect", question, work)
    if job is not None:
        st.session_state["inspect-run"] = (wanted, job.id)
    return job


def _run(place: Place, run: StageRun) -> None:
    for stage, reason in run.notes:
        if not (stage == "hyde" and run.options.hyde == "off"):
            st.html(cards.note("warn" if stage != "hyde" else "unknown", f"<strong>{escape(stage)}</strong>: {escape(reason)}"))
    if run.hyde_text:
        with st.expander("The hypothesis that was searched with"):
            st.html(f'<div class="rd rd-ptext" dir="auto">{escape(run.hyde_text)}</div>')
    if not run.passages:
        st.html(cards.empty("No route found a passage.", "The collection is empty: add documents in the view Documents."))
        return
    expected = _expected(place, run)
    kept, cut = sum(item.kept for item in run.passages), sum(run.fate(item) == "cut by fusion" for item in run.passages)
    with st.container(border=True, gap="small"):
        st.html(
            f'<p class="rd rd-title">{kept} of {plural(len(run.passages), "passage")} kept; {cut} cut off by the fusion</p>'
            f'<div class="rd rd-soft">{run.search.limit} candidates a route, {run.options.keep} to keep. Rank by stage, first on '
            "top: kept passages in colour, the expected document dashed.</div>"
        )
        st.echarts_chart(
            inspect_figures.rank_chart(run, expected, is_dark()),
            height=340,
            key="inspect-ranks",
            alt="Rank of each passage by stage",
        )
    _table(place, run, expected)


def _expected(place: Place, run: StageRun) -> str | None:
    """The document that should be found, chosen or by link, and where it drops out."""
    expected = st.query_params.get("expect")
    if place.reader.layout.ours:
        choose_document("Expected document", place, expected, "inspect-expect", lambda name: put(expect=name))
    else:
        sources = sorted({document_key(item) for item in run.passages} | ({expected} if expected else set()))
        st.selectbox(
            "Expected source",
            sources,
            index=sources.index(expected) if expected else None,
            key="inspect-expect",
            on_change=lambda: put(expect=st.session_state["inspect-expect"]),
        )
    if expected is None:
        return None
    if place.reader.layout.ours and place.reader.document(expected) is None:
        st.html(cards.note("warn", "The expected document is not in this collection.", "Choose another, or add it."))
        return expected
    try:
        found = stages.expect(run, expected, place.reader.store)
    except RagError as error:
        st.html(
            cards.problem_note(Problem("search", error.kind, error.message, error.address, error.next_step), "Looking deeper")
        )
        return expected
    more = f"<strong>Next:</strong> {code_html(found.next_step)}" if found.next_step else ""
    count = plural(len(found.passages), "passage") if found.fate != "not found" else ""
    told = f"<strong>The expected document was {found.fate}.</strong> {escape(found.reason)}"
    st.html(cards.note("ok" if found.fate == "kept" else "warn", told, f"{count} of it came up." if count else "", more))
    return expected


def _of_fate(run: StageRun, fate: Fate) -> list[Passage]:
    return [item for item in run.passages if run.fate(item) == fate]


def _table(place: Place, run: StageRun, expected: str | None) -> None:
    found = {key: (name, choose(run)) for key, (name, choose) in SHOWS.items()}
    if expected:
        found["expected"] = "of the expected document", [item for item in run.passages if document_key(item) == expected]
    asked = st.query_params.get("lost", "all")
    with st.container(border=True, gap="small"):
        chosen = st.selectbox(
            "Show",
            list(found),
            index=list(found).index(asked) if asked in found else 0,
            format_func=lambda key: f"{found[key][0]} ({len(found[key][1])})",
            key="inspect-lost",
            on_change=lambda: put(lost=st.session_state["inspect-lost"]),
        )
        words = terms.question_words(run.question)
        _rows(place, run, found[chosen or "all"][1], words, expected)


def _rows(place: Place, run: StageRun, passages: Sequence[Passage], words: Sequence[str], expected: str | None) -> None:
    if not passages:
        st.html(cards.empty("No passage is of this kind.", "That is good news where it is about losses."))
        return
    if len(passages) > SHOWN:
        st.html(
            f'<div class="rd rd-soft">The first {SHOWN} of {len(passages):,} are shown; choose a kind above to see others.</div>'
        )
    said = ", ".join(words)
    st.html(
        f'<div class="rd rd-soft rd-plain" dir="auto">Words of the question that count: {escape(said)}. '
        "Arrows: places won (↑) or lost (↓) since the stage before; small: the score there.</div>"
    )
    st.html(inspect_figures.stage_table(run, passages[:SHOWN], words, place.collection, expected))
