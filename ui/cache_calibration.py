"""The views Calibration and Export of the page Cache: a calibration as a job, its curve, and good answers as training data."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import streamlit as st

from gpu_server.errors import EngineError
from gpu_server.interfaces import Embedder
from jobs import Job, JobsFull
from rag.cache.calibrate import PAIRS, Pair, read_pairs
from rag.cache.calibration_run import CalibrationRun, calibrating
from rag.cache.export import Preview, chat_lines, chosen, embedder_lines, preview, to_bytes
from rag.cache.types import CachedAnswer
from rag.errors import Cancelled, RagError
from rag.semantic_cache import SemanticCache
from rag.types import Problem
from ui import cache_verdicts, cards, viewer
from ui.cache_view import attempt, say
from ui.cached import the_runtime
from ui.format import escape, plural, seconds, shortened

KIND = "calibration"
REFRESH_SECONDS = 0.5
PREVIEW_CHARACTERS = 1500


# 1) the calibration


def calibration(cache: SemanticCache, embedder: Embedder) -> None:
    """The form, the job that runs or ran, and its result; nothing is in force until the second click."""
    jobs = the_runtime().jobs
    running = next((job for job in jobs.recent(KIND) if not job.done), None)
    job = running or (jobs.get(st.query_params["job"]) if "job" in st.query_params else None)
    _form(cache, embedder, running)
    if job is None and "job" in st.query_params:
        st.html(
            cards.note("unknown", "That calibration is no longer known here: RAG Deck was started again since. Start another.")
        )
    if job is not None and not job.done:
        st.fragment(_follow, run_every=REFRESH_SECONDS)(job.id)
    elif job is not None:
        _ended(cache, job)


def _form(cache: SemanticCache, embedder: Embedder, running: Job[Any] | None) -> None:
    judged = attempt(cache.book.pairs, "Reading the judged pairs") or ()
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">From when on do two questions count as one?</p>')
        st.html(
            '<div class="rd rd-soft">Thresholds are chosen on half of the labelled pairs and measured on the other half. '
            "What is found here is only shown; it takes force by a second click.</div>"
        )
        with st.form("calibrate", border=False), st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            bound = st.number_input(
                "Near misses that may hit, %",
                0.0,
                50.0,
                1.0,
                0.1,
                width=220,
                help="At most this share, on the half they are chosen on.",
            )
            own = st.toggle(
                f"With {plural(len(judged), 'judged pair')}", value=True, disabled=not judged, help="Beside those shipped."
            )
            sent = st.form_submit_button("Calibrate", type="primary", disabled=running is not None)
    if sent:
        _start(embedder, judged if own else (), bound / 100)


def _start(embedder: Embedder, judged: Sequence[Pair], bound: float) -> None:
    pairs = attempt(lambda: read_pairs(PAIRS), "Reading the shipped pairs")
    if pairs is None:
        return
    try:
        job = the_runtime().jobs.submit(KIND, "Calibration of the cache", _work((*pairs, *judged), embedder, bound))
    except JobsFull as full:
        st.html(cards.note("critical", escape(full)))
        return
    st.query_params["job"] = job.id
    st.rerun()


def _work(pairs: Sequence[Pair], embedder: Embedder, bound: float) -> Any:
    def work(job: Job[CalibrationRun]) -> Generator[dict[str, Any], None, CalibrationRun]:
        steps = calibrating(pairs, embedder, false_hits=bound)
        while True:
            if job.cancelled.is_set():
                raise Cancelled("the calibration was stopped")
            try:
                yield next(steps)
            except StopIteration as end:
                found: CalibrationRun = end.value
                return found

    return work


def _follow(job_id: str) -> None:
    job = the_runtime().jobs.get(job_id)
    if job is None or job.done:
        st.rerun()
    last = next((event for event in reversed(job.events()) if event.get("type") == "progress"), {"done": 0, "texts": 1})
    with st.container(border=True, gap="small"):
        stopping = job.cancelled.is_set()
        words = "stopping" if stopping else f"{last['done']:,} of {plural(last['texts'], 'question')} embedded"
        st.html(cards.live_line(job.elapsed(), words) + cards.meter(last["done"] / max(1, last["texts"]), "embed"))
        st.button("Stop", key="stop-calibration", **viewer.stop(job))


def _ended(cache: SemanticCache, job: Job[Any]) -> None:
    run = job.result
    if job.state == "cancelled":
        st.html(cards.note("unknown", "The calibration was stopped; nothing has changed."))
    elif isinstance(run, CalibrationRun):
        _result(cache, run, job.elapsed())
    else:
        error = job.error
        known = isinstance(error, RagError | EngineError)
        problem = Problem(
            None,
            getattr(error, "kind", "internal"),
            str(error) if known else f"{type(error).__name__}: {error}",
            getattr(error, "address", None),
            getattr(error, "next_step", ""),
        )
        st.html(cards.problem_note(problem, "The calibration"))


def _result(cache: SemanticCache, run: CalibrationRun, took: float) -> None:
    found = run.calibration
    limits = found.thresholds
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">Found in {seconds(took)}: {escape(cache_verdicts.curve_words(limits))}</p>')
        st.html(f'<div class="rd rd-soft">for the embedder <span class="rd-mono">{escape(limits.embedder)}</span></div>')
        for remark in found.remarks:
            st.html(cards.note("warn", escape(remark)))
        _put_in_force(cache, run)
        options = cache_verdicts.curve_options(run.curve, st.context.theme.type == "dark")
        st.html(
            '<div class="rd rd-soft">Precision against recall on unseen pairs, one point a cosine, at the agreement chosen.</div>'
        )
        st.echarts_chart(options, height=260, key="curve", alt="Precision with its interval against recall")
        with st.expander("The curve as a table"):
            st.html(cache_verdicts.curve_table(run.curve, limits.dense))
        st.html(cache_verdicts.calibration(found))


def _put_in_force(cache: SemanticCache, run: CalibrationRun) -> None:
    limits = run.calibration.thresholds
    now = cache.thresholds(limits.embedder)
    if now == limits:
        st.html(cards.note("ok", "These thresholds are in force."))
        return
    current = f"cosine {now.dense:.2f}, agreement {now.agreement:.2f}" if now else "none: only equal questions hit"
    st.html(f'<div class="rd rd-soft">In force now: {current}.</div>')
    if cache.limits.dense is not None or cache.limits.agreement is not None:
        st.html(
            cards.note("warn", "The settings cache.dense or cache.agreement win over what is calibrated: unset them to use this.")
        )
    if st.button("Put these thresholds in force", key="in-force", type="primary", help="For the next look-up of this embedder."):

        def keep() -> bool:
            cache.book.set_thresholds(limits)
            return True

        if attempt(keep, "Keeping the thresholds"):
            say("ok", f"In force: cosine {limits.dense:.2f}, agreement {limits.agreement:.2f}.")


# 2) the export


def export(cache: SemanticCache) -> None:
    """Good answers, or all, as chat lines and as embedder lines, with one line of each to look at."""
    which = st.segmented_control(
        "Export", ("Good answers", "All answers"), default="Good answers", required=True, key="export", bind="query-params"
    )
    good_only = which != "All answers"

    def wanted() -> Iterator[CachedAnswer]:
        return chosen(lambda limit, offset: cache.entries(limit, offset, "created"), good_only=good_only)

    with st.spinner("Reading the kept answers …", show_time=True):
        found = attempt(lambda: preview(wanted()), "Reading the kept answers")
    if found is None:
        return
    if not found.entries:
        title = "No answer is marked good yet." if good_only else "No answer is kept yet."
        st.html(cards.empty(title, "Open a kept answer and mark it good." if good_only else "Ask a question first."))
        return
    name = "good" if good_only else "all"
    _file("Chat", f"{name}-chat.jsonl", found.chat, found.first_chat, _CHAT, lambda: to_bytes(chat_lines(wanted())))
    _file(
        "Embedder",
        f"{name}-embedder.jsonl",
        found.embedder,
        found.first_embedder,
        _left_out(found),
        lambda: to_bytes(embedder_lines(wanted())),
    )


_CHAT = "messages: the prompt as it was sent, with its passages, and the answer as it stands now."


def _left_out(found: Preview) -> str:
    left = found.entries - found.embedder
    words = "query, pos (passages that the answer cites), neg (hard negatives: ranked by the search, and not kept)."
    return f"{words} {plural(left, 'answer')} without a positive or a negative left out." if left else words


def _file(title: str, name: str, lines: int, first: str | None, about: str, make: Any) -> None:
    with st.container(border=True, gap="small"):
        st.html(
            f'<p class="rd rd-title">{escape(title)}: {plural(lines, "line")}</p><div class="rd rd-soft">{escape(about)}</div>'
        )
        if first is None:
            st.html(cards.empty("There is nothing to download.", "Answers need ranked passages that were not kept."))
            return
        st.code(shortened(first, PREVIEW_CHARACTERS), language=None, wrap_lines=True, height=180)
        st.download_button("Download", make, name, "application/jsonl", key=f"download-{name}", on_click="ignore")
