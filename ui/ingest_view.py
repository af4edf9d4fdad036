"""An ingestion as it runs and when it ended: progress, rate, time left, and every file that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from jobs import Job
from rag.loaders import SUPPORTED
from rag.types import Problem
from ui import cards, figures
from ui.cached import the_runtime
from ui.format import count, escape, number, plural, seconds

REFRESH_SECONDS = 0.5
TYPES = [suffix.removeprefix(".") for suffix in SUPPORTED]  # for st.file_uploader
TYPES_HELP = "Word, PowerPoint, Excel, EPUB, PDF with text in it, HTML, Markdown, CSV, JSON or text."


def show(job: Job[dict[str, Any]]) -> None:
    """Live while it runs, then its summary."""
    if job.done:
        _ended(job)
    else:
        st.fragment(_follow, run_every=REFRESH_SECONDS)(job.id)


def _follow(job_id: str) -> None:
    job = the_runtime().jobs.get(job_id)
    if job is None or job.done:
        st.rerun()
    events = job.events()
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">Reading {escape(job.title)}</p>{progress_html(events, job.elapsed())}')
        stopping = job.cancelled.is_set()
        st.button("Cancel", key="cancel-ingest", on_click=job.cancel, disabled=stopping, help="Files already stored stay.")
        _failures(events)


def progress_html(events: Sequence[Mapping[str, Any]], elapsed: float) -> str:
    """A bar by bytes read, and one line: files, passages, rate, time left."""
    last = next((event for event in reversed(events) if event["type"] == "progress"), None)
    done = sum(event["type"] == "file_finished" for event in events)
    if last is None:
        return f'{cards.meter(0)}<div class="rd rd-soft">{plural(done, "file")} · {seconds(elapsed)}</div>'
    ratio = last["bytes_done"] / last["bytes"] if last.get("bytes") else 0.0
    parts = [
        f"{count(max(done, last['files_done']))} of {plural(last['files'], 'file')}",
        plural(last["passages"], "passage"),
        f"{number(last.get('passages_per_second'))} passages/s",
        f"{seconds(last.get('seconds_left'))} left" if last.get("seconds_left") is not None else "time left not known yet",
    ]
    return f'{cards.meter(ratio)}<div class="rd rd-soft">{escape(" · ".join(parts))}</div>'


def _ended(job: Job[dict[str, Any]]) -> None:
    summary = job.result
    if summary is None:
        text = f"{type(job.error).__name__}: {job.error}" if job.error else "It ended without a summary."
        problem = Problem(None, "internal", text, getattr(job.error, "address", None), getattr(job.error, "next_step", ""))
        st.html(cards.problem_note(problem, f"Reading {job.title}"))
        return
    severity = {"finished": "ok", "cancelled": "unknown"}.get(str(summary.get("outcome")), "critical")
    if summary.get("failed") and severity == "ok":
        severity = "warn"
    st.html(cards.note(severity, f"<strong>{escape(headline(summary, job.title))}</strong>", *_notes(summary)))
    if summary.get("error"):
        st.html(cards.problem_note(problem_of(summary["error"]), "Ingestion"))
    _failures(job.events())


def headline(summary: Mapping[str, Any], title: str) -> str:
    """`3 files read in 1.20 s: 2 added, 1 unchanged; 48 passages, 40.0 passages/s`."""
    kinds = ("added", "replaced", "unchanged", "failed", "skipped", "not_done")
    words = ", ".join(f"{summary[kind]:,} {kind.replace('_', ' ')}" for kind in kinds if summary.get(kind))
    verb = {"finished": "read", "cancelled": "cancelled"}.get(str(summary.get("outcome")), "not finished")
    head = f"{title}: {verb} in {seconds(summary.get('seconds'))}"
    written = f"{plural(summary.get('passages', 0), 'passage')}"
    rate = f", {number(summary['passages_per_second'])} passages/s" if summary.get("passages") else ""
    return f"{head} · {words or 'no files found'} · {written}{rate}"


def _notes(summary: Mapping[str, Any]) -> list[str]:
    notes = []
    if summary.get("truncated"):
        notes.append(f"{plural(summary['truncated'], 'passage')} longer than the embedder takes, cut for the vector.")
    for item in summary.get("skipped_reasons", ()):
        notes.append(" · ".join(f"{key} {value}" for key, value in item.items() if value))
    return [escape(text) for text in notes]


def problem_of(data: Mapping[str, Any]) -> Problem:
    return Problem(
        data.get("stage"), str(data.get("kind")), str(data.get("message")), data.get("address"), data.get("next_step") or ""
    )


def _failures(events: Sequence[Mapping[str, Any]]) -> None:
    failed = [event for event in events if event["type"] == "file_finished" and event["outcome"] == "failed"]
    if failed:
        rows = [[escape(event["source"]), *_why(event.get("error") or {})] for event in failed]
        st.html(figures.table(["File that failed", "Why", "Next"], rows, wrap=(0, 1, 2)))


def _why(error: Mapping[str, Any]) -> tuple[str, str]:
    return escape(error.get("message") or "not known"), escape(error.get("next_step") or "")
