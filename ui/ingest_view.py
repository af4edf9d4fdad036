"""Ingestions on screen: one as it runs and when it ended, every file of it, those of the past, and the watched folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

import streamlit as st

from jobs import Job, JobsFull
from rag.errors import RagError
from rag.ingest_ledger import FileRow, IngestJob
from rag.ingest_watch import WatchState
from rag.loaders import SUPPORTED
from rag.types import Problem
from ui import cards, exports, figures
from ui.cached import the_runtime
from ui.format import count, escape, number, percent, plural, seconds, time_html, unknown_html

REFRESH_SECONDS = 0.5
TYPES = [suffix.removeprefix(".") for suffix in SUPPORTED]  # for st.file_uploader
TYPES_HELP = (
    "Word, PowerPoint, Excel, EPUB, PDF, HTML, Markdown, CSV, JSON or text; pictures, scans and recordings where an endpoint "
    "for OCR or speech is set."
)
KINDS = ("added", "replaced", "unchanged", "duplicate", "failed", "skipped", "not_done")
STATES: dict[str, tuple[str, str]] = {
    "queued": ("unknown", "waits for its turn"),
    "running": ("ok", "running"),
    "paused": ("warn", "paused"),
    "finished": ("ok", "finished"),
    "failed": ("critical", "failed"),
    "cancelled": ("unknown", "cancelled"),
}
SHARE_HELP = (
    "Tokens per second of this run, divided by the tokens per second that the embedder reached while it computed in this run: "
    "100 % means that it never waited. Below that, the part with the most seconds is what to make faster; reading, embedding and "
    "writing go on beside each other."
)


def url(job_id: str) -> str:
    return f"?view=ingestion&job={escape(job_id)}"


# 1) one ingestion


def show(job_id: str) -> None:
    """Live while it runs here, then what became of it; also one of an earlier process, as the ledger has it."""
    running = the_runtime().jobs.get(job_id)
    if running is not None and not running.done:
        st.fragment(_follow, run_every=REFRESH_SECONDS)(job_id)
        return
    known = the_runtime().library.ingestions.get(job_id)
    if known is None and running is None:
        st.html(cards.note("unknown", "The ingestion of this address is not known: it is too old, or of another data folder."))
        return
    with st.container(border=True, gap="small"):
        if running is not None:
            _ended(running)
        if known is not None:
            if running is None or running.result is None:
                severity = STATES[known.state][0]
                st.html(cards.note(severity, f"<strong>{escape(stored_headline(known))}</strong>"))
            if known.error is not None and (running is None or not (running.result or {}).get("error")):
                st.html(cards.problem_note(problem_of(known.error), "Ingestion"))
            _buttons(known)
        files_table(job_id)


def _follow(job_id: str) -> None:
    job = the_runtime().jobs.get(job_id)
    if job is None or job.done:
        st.rerun()
    known = the_runtime().library.ingestions.get(job_id)
    stopping = job.cancelled.is_set() or (known is not None and known.state in ("paused", "cancelled"))
    events = job.events()
    with st.container(border=True, gap="small"):
        verb = "Ending" if stopping else "Reading" if events else "Waiting for its turn:"
        st.html(f'<p class="rd rd-title">{verb} {escape(job.title)}</p>{progress_html(events, job.elapsed())}')
        act, row = the_runtime().library.ingestions, st.container(horizontal=True, gap="small")
        row.button(
            "Pause",
            key="pause-ingest",
            on_click=_do,
            args=(act.pause, job_id),
            disabled=stopping,
            help="Ends after what is being written. It goes on when you resume it, also after a restart.",
        )
        row.button(
            "Cancel",
            key="cancel-ingest",
            on_click=_do,
            args=(act.cancel, job_id),
            disabled=stopping,
            help="Files already stored stay.",
        )
        _failures(events)


def _do(action: Callable[[str], Any], job_id: str) -> None:
    try:
        action(job_id)
    except (RagError, JobsFull) as error:
        st.session_state["ingest-problem"] = Problem(
            None, getattr(error, "kind", "overloaded"), str(error), None, getattr(error, "next_step", "")
        )


def action_problem() -> None:
    """What the last button could not do."""
    problem = st.session_state.pop("ingest-problem", None)
    if problem is not None:
        st.html(cards.problem_note(problem, "The action"))


def _buttons(job: IngestJob) -> None:
    act, row = the_runtime().library.ingestions, st.container(horizontal=True, gap="small")
    if job.state in ("paused", "failed", "cancelled"):
        row.button(
            "Resume",
            key="resume-ingest",
            type="primary",
            on_click=_do,
            args=(act.resume, job.id),
            help="Goes on with the files that are not stored yet; the others cost no more than reading them once.",
        )
    if job.state == "paused":
        row.button("Give up", key="give-up-ingest", on_click=_do, args=(act.cancel, job.id), help="Files already stored stay.")
    if job.state == "finished" and job.counts.get("failed"):
        row.button(
            f"Try {plural(job.counts['failed'], 'failed file')} again",
            key="retry-ingest",
            on_click=_do,
            args=(act.retry, job.id),
            help="Only the files that failed.",
        )


def progress_html(events: Sequence[Mapping[str, Any]], elapsed: float) -> str:
    """A bar by bytes read, and two lines: files, passages, rate, time left; then how near to the limit."""
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
    return f'{cards.meter(ratio)}<div class="rd rd-soft">{escape(" · ".join(parts))}</div>{speed_html(last)}'


def speed_html(event: Mapping[str, Any]) -> str:
    """`6,230 tokens/s, 87 % of what the embedder can · limited by embedding (…)`; empty before anything is measured."""
    if not event.get("tokens_per_second") or event.get("limited_by") is None:
        return ""
    share = event.get("limit_share")
    can = f"{percent(share)} of what the embedder can" if share is not None else "the embedder's own speed is not known yet"
    parts = ", ".join(f"{name} {seconds(event[f'{name}_seconds'])}" for name in ("reading", "embedding", "writing"))
    text = f"{number(event['tokens_per_second'])} tokens/s, {can} · limited by {event['limited_by']} ({parts})"
    return f'<div class="rd rd-soft" title="{escape(SHARE_HELP)}">{escape(text)}</div>'


def _ended(job: Job[dict[str, Any]]) -> None:
    summary = job.result
    if not summary:
        if job.error is not None:
            text = f"{type(job.error).__name__}: {job.error}"
            problem = Problem(None, "internal", text, getattr(job.error, "address", None), getattr(job.error, "next_step", ""))
            st.html(cards.problem_note(problem, f"Reading {job.title}"))
        return
    outcome = str(summary.get("outcome"))
    severity = {"finished": "ok", "cancelled": "unknown", "paused": "warn"}.get(outcome, "critical")
    if summary.get("failed") and severity == "ok":
        severity = "warn"
    head = f"<strong>{escape(headline(summary, job.title))}</strong>"
    st.html(cards.note(severity, head, *_notes(summary)) + speed_html(summary))
    if summary.get("error"):
        st.html(cards.problem_note(problem_of(summary["error"]), "Ingestion"))


def headline(summary: Mapping[str, Any], title: str) -> str:
    """`3 files read in 1.20 s: 2 added, 1 unchanged; 48 passages, 40.0 passages/s`."""
    words = ", ".join(f"{summary[kind]:,} {kind.replace('_', ' ')}" for kind in KINDS if summary.get(kind))
    verbs = {"finished": "read", "cancelled": "cancelled", "paused": "paused"}
    verb = verbs.get(str(summary.get("outcome")), "not finished")
    head = f"{title}: {verb} in {seconds(summary.get('seconds'))}"
    written = f"{plural(summary.get('passages', 0), 'passage')}"
    rate = f", {number(summary['passages_per_second'])} passages/s" if summary.get("passages") else ""
    return f"{head} · {words or 'no files found'} · {written}{rate}"


def stored_headline(job: IngestJob) -> str:
    """The same of a job that the ledger has; counts and seconds are over all its runs."""
    words = ", ".join(f"{job.counts[kind]:,} {kind}" for kind in KINDS if job.counts.get(kind))
    rate = f", {number(job.passages / job.seconds)} passages/s" if job.passages and job.seconds else ""
    state = STATES[job.state][1]
    return f"{job.label}: {state}, {seconds(job.seconds)} · {words or 'no files done'} · {plural(job.passages, 'passage')}{rate}"


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


# 2) its files

SHOWN_FILES = 100
FILE_HEADS = ("File", "Outcome", "Why it failed", "Next", "Passages", "Notes")
OUTCOME_MARKS = {"failed": "critical", "duplicate": "warn", "unchanged": "unknown"}


def file_cells(row: FileRow) -> list[Any]:
    error = row.error or {}
    notes = " · ".join(row.notes)
    return [row.source, row.outcome, error.get("message") or "", error.get("next_step") or "", row.passages, notes]


def files_csv(rows: Sequence[FileRow]) -> bytes:
    return exports.to_csv([head.lower().replace(" ", "_") for head in FILE_HEADS], map(file_cells, rows))


def files_table(job_id: str) -> None:
    """Every file's outcome, those that failed first, and all of them as CSV."""
    rows = the_runtime().library.ingestions.files(job_id)
    if not rows:
        return
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.html(f'<p class="rd rd-title">{plural(len(rows), "file")}</p>', width="content")
        name = f"ingestion-{job_id[:12]}.csv"
        st.download_button(
            "Files CSV", lambda: files_csv(rows), name, "text/csv", key="files-csv", on_click="ignore", type="tertiary"
        )
    st.html(figures.table(FILE_HEADS, [_file_row(row) for row in rows[:SHOWN_FILES]], numeric=(4,), wrap=(0, 2, 3, 5)))
    if len(rows) > SHOWN_FILES:
        rest = f"{len(rows) - SHOWN_FILES:,} more are in the CSV; those that failed come first."
        st.html(f'<div class="rd rd-soft">{rest}</div>')


def _file_row(row: FileRow) -> list[str]:
    source, outcome, why, step, passages, notes = file_cells(row)
    mark = cards.state_mark(OUTCOME_MARKS.get(outcome, "ok"), outcome)
    return [escape(source), mark, escape(why), escape(step), count(passages), escape(notes)]


# 3) those of the past, and the watched folders


def history(jobs: Sequence[IngestJob], now: datetime, zone: tzinfo) -> str:
    """A table of ingestions, newest first, each a link."""
    return figures.table(
        ["Ingestion", "State", "Begun", "Files", "Failed", "Passages", "Took"],
        [_job_row(job, now, zone) for job in jobs],
        numeric=(3, 4, 5, 6),
        wrap=(0,),
    )


def _job_row(job: IngestJob, now: datetime, zone: tzinfo) -> list[str]:
    begun = datetime.fromtimestamp(job.created_at_unix, UTC)
    files = (
        f"{sum(job.counts.values()):,} of {job.files:,}" if job.files is not None else unknown_html("it has not begun to look")
    )
    return [
        f'<a href="{url(job.id)}" target="_self">{escape(job.label)}</a>',
        cards.state_mark(*STATES[job.state]),
        time_html(begun, now, zone),
        files,
        count(job.counts.get("failed", 0)),
        count(job.passages),
        seconds(job.seconds) if job.seconds else unknown_html("no run of it has ended yet"),
    ]


def watched(states: Sequence[WatchState], every_seconds: float, now: datetime, zone: tzinfo) -> str:
    """A table of the watched folders with their last look and what it brought."""
    rows = []
    for state in states:
        looked = None if state.at_unix is None else datetime.fromtimestamp(state.at_unix, UTC)
        waiting = f"{plural(state.waiting, 'file')} still changing or just come" if state.waiting else ""
        removed = f"{plural(state.removed, 'document')} removed since the start" if state.removed else ""
        job = f'<a href="{url(state.job_id)}" target="_self">last ingestion</a>' if state.job_id else ""
        said = " · ".join(part for part in (waiting, removed, job) if part)
        problem = cards.state_mark("warn", state.problem) if state.problem else ""
        rows.append(
            [
                f'<span class="rd-mono">{escape(state.root)}</span>',
                time_html(looked, now, zone) if looked else unknown_html("not looked at yet"),
                count(state.files) if state.files is not None else unknown_html("it could not be seen, or not yet"),
                f'<span class="rd-wrap">{problem}</span>{" " if problem and said else ""}{said}',
            ]
        )
    title = f'<p class="rd rd-title">Watched folders, looked at every {seconds(every_seconds)}</p>'
    return title + figures.table(["Folder", "Last look", "Files", "What it brought"], rows, numeric=(2,), wrap=(0, 3))
