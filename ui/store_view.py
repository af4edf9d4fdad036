"""Store care on the page Knowledge: collections with their size and state, re-embedding, backup, and when to move to a server."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import streamlit as st

import runtime as process
from access import operations
from gpu_server.errors import EngineError
from jobs import Job, JobsFull
from rag.errors import RagError
from rag.store_care import data_files, handle, sizes
from rag.store_care.backup import Backup, backup
from rag.store_care.reembed import Reembedded, reembed, sources
from rag.store_care.sizes import CollectionCare, Outgrown
from rag.types import Problem
from settings import VERSION
from ui import cards, figures, viewer
from ui.cached import now, the_runtime, zone
from ui.format import bytes_text, count, escape, number, plain_markdown, plural, seconds, time_html, unknown_html

KIND = "store"
REFRESH_SECONDS = 0.5
HEADS = ("Collection", "Rows", "On disk", "In memory", "Index", "Not flushed", "Last write", "Dimension", "Schema", "")
DOWNLOAD_BYTES = 256 * 1024 * 1024  # a download goes through the dashboard's memory
LAST_SEARCHES = 50


def show() -> None:
    """The whole view. Its state lies in the address: `collection`, `storejob`."""
    running = the_runtime()
    try:
        active = running.library.collection()
        known = sizes.look(running.store, active)
    except RagError as error:
        st.html(_problem(error, "Reading the passage store"))
        return
    _said()
    warned = sizes.outgrown(known, embedded=running.store.embedded, searches=_searches(running))
    if warned is not None:
        st.html(outgrown_html(warned))
    _job(running)
    with st.container(border=True, gap="small"):
        where = escape(running.store.address)
        st.html(f'<p class="rd rd-title">{plural(len(known), "collection")} at <span class="rd-mono">{where}</span></p>')
        st.html(table_html(known))
        _one(running, known, active)
    _reembed_card(running, known, active)
    _backup_card(running)


# 1) what is there


def table_html(known: Sequence[CollectionCare]) -> str:
    """A row a collection; its name is the link to what can be done with it."""
    return figures.table(HEADS, [_row(item) for item in known], numeric=(1, 2, 5, 7, 8), wrap=(0, 9))


def _row(item: CollectionCare) -> list[str]:
    def told(text: str | None, field: str) -> str:
        return escape(text) if text is not None else unknown_html(item.unknown.get(field, "the store did not say"))

    link = f'<a href="/knowledge?view=store&collection={quote(item.name, safe="")}" target="_self">{escape(item.name)}</a>'
    written = datetime.fromtimestamp(item.last_write_unix, UTC) if item.last_write_unix is not None else None
    return [
        f"<strong>{link}</strong>" if item.active else link,
        told(None if item.rows is None else count(item.rows), "rows"),
        told(None if item.size_bytes is None else bytes_text(item.size_bytes), "size_bytes"),
        loaded_html(item),
        told(item.index, "index"),
        count(item.unflushed_rows),
        time_html(written, now(), zone()) if written else told(None, "last_write_unix"),
        told(None if item.dimension is None else count(item.dimension), "dimension"),
        told(None if item.schema_version is None else str(item.schema_version), "schema_version"),
        f'<span class="rd-soft">{escape(about(item))}</span>',
    ]


def loaded_html(item: CollectionCare) -> str:
    """A mark: loaded, loading with how far, or not loaded."""
    if item.load_state == "loading" and item.loaded_ratio is not None:
        return cards.state_mark("warn", f"loading {100 * item.loaded_ratio:.0f} %")
    severity = {"loaded": "ok", "loading": "warn"}.get(item.load_state, "unknown")
    hover = "The next search loads it, and waits for that." if item.load_state == "not loaded" else ""
    return cards.state_mark(severity, item.load_state, hover)


def about(item: CollectionCare) -> str:
    """What it is for, in words."""
    parts = [
        "in use" if item.active else "",
        "cached questions" if item.holds_questions else "",
        "read-only: filled by somebody else" if item.read_only else "" if item.ours else "not of our layout",
        f"being filled from {item.filling_from}: not finished" if item.filling_from else "",
        f"replaced by {item.replaced_by}" if item.replaced_by else "",
    ]
    return " · ".join(part for part in parts if part)


def outgrown_html(found: Outgrown) -> str:
    """The warning with its next step."""
    move = "python -m rag move --to http://HOST:19530"
    step = f"<strong>Next:</strong> <code>{move}</code> carries every collection to a Milvus server."
    return cards.note(found.severity, "<strong>Milvus Lite is outgrown</strong>", escape(found.why), step)


def _searches(running: process.Runtime) -> list[float]:
    rows = running.traces.search(limit=LAST_SEARCHES)
    return [row.search_seconds for row in rows if row.search_seconds is not None and not row.cold]


def _one(running: process.Runtime, known: Sequence[CollectionCare], active: str) -> None:
    """What can be done with one collection."""
    names = [item.name for item in known]
    if not names:
        return
    asked = st.query_params.get("collection", active)
    chosen = st.selectbox("Collection", names, index=names.index(asked) if asked in names else 0, key=f"store-pick-{asked}")
    if chosen != asked and chosen is not None:
        st.query_params["collection"] = chosen
    item = known[names.index(chosen)] if chosen in names else known[0]
    busy = _running(running) is not None
    with st.container(horizontal=True):
        loaded = item.load_state == "loaded"
        if st.button("Load", disabled=loaded, help="Into memory, so that the first search does not wait."):
            _do(lambda: handle.load(running.store, item.name), f"{item.name} is loaded.")
        if st.button("Release", disabled=not loaded or busy, help="Out of memory; the next search of it loads it again."):
            _do(lambda: handle.release(running.store, item.name), f"{item.name} is released.")
        if st.button("Flush", disabled=item.read_only, help="Seals rows just written, which are searched slowly until then."):
            _do(lambda: running.store.flush(item.name), f"{item.name} is flushed.")
        kept = item.active or running.store.mapping is not None or busy
        why = "The collection in use, and those of a read-only store, are not dropped here." if not busy else "A job is running."
        with st.popover("Drop", disabled=kept, help=why if kept else None):
            _confirm_drop(item, active)


def _confirm_drop(item: CollectionCare, active: str) -> None:
    rows = plural(item.rows, "row") if item.rows is not None else "all rows"
    st.markdown(f"**{plain_markdown(item.name)}** and its {rows} are deleted. Only a backup brings them back.")
    typed = st.text_input("Type its name to confirm", key=f"drop-typed-{item.name}", autocomplete="off")
    if st.button("Drop it", type="primary", key="really-drop"):
        if typed == item.name:
            _do(lambda: handle.drop(the_runtime().store, item.name, active=active), f"{item.name} is dropped.")
        else:
            st.html(cards.note("warn", "That is not its name: nothing was deleted."))


def _do(action: Callable[[], None], done: str) -> None:
    """Do it, say so on the next run; a problem is shown where it happened."""
    try:
        running = the_runtime()
        operations.require(viewer.of(running), "operate", "change a collection")
        with st.spinner("One moment"):
            action()
    except RagError as error:
        st.html(_problem(error, "This"))
        return
    st.session_state["store-said"] = done
    st.rerun()


def _said() -> None:
    if "store-said" in st.session_state:
        st.html(cards.note("ok", escape(st.session_state.pop("store-said"))))


# 2) re-embedding


def _reembed_card(running: process.Runtime, known: Sequence[CollectionCare], active: str) -> None:
    if running.store.mapping is not None:
        return
    try:
        others = sources(running.store, running.models.embedder)
    except (RagError, EngineError) as error:
        st.html(_problem(error, "Looking for passages to embed again"))
        return
    rows = {item.name: item.rows or 0 for item in known}
    begun = {item.filling_from: item.name for item in known if item.filling_from}
    offers = [*others, *([active] if rows.get(active) else [])]
    busy = _running(running) is not None
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Embed again</p>')
        if not offers:
            st.html(cards.empty("There are no passages to embed again.", "Add documents first."))
            return
        if others and not rows.get(active):
            st.html(cards.note("warn", escape(_waiting(others, rows, running.models.embedder.info.name))))
        source = st.selectbox(
            "Texts of", offers, format_func=lambda name: f"{name} ({plural(rows.get(name, 0), 'passage')})", key="reembed-source"
        )
        st.html(
            '<div class="rd rd-soft">A new collection is filled from the stored texts by the embedder in force, beside the one '
            "that queries use. It is put into use when it is whole; the old one stays until it is dropped.</div>"
        )
        word = "Go on" if source in begun else "Embed again"
        if st.button(f"{word}: {plural(rows.get(str(source), 0), 'passage')}", disabled=busy, type="primary") and source:
            _submit(f"embedding {source} again", lambda job: _reembedding(job, running, source))


def _waiting(others: Sequence[str], rows: Mapping[str, int], embedder: str) -> str:
    most = max(others, key=lambda name: rows.get(name, 0))
    return (
        f"The collection of the embedder in force ({embedder}) is empty, and {plural(rows.get(most, 0), 'passage')} lie in "
        f"{most}: embed them again, or go back to the embedder before (models.embedder)."
    )


def _reembedding(job: Job[Any], running: process.Runtime, source: str) -> Generator[dict[str, Any], None, Reembedded]:
    return (yield from reembed(running.store, running.models.embedder, source, cancelled=job.cancelled.is_set))


# 3) backup


def _backup_card(running: process.Runtime) -> None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Backup</p>')
        chosen = st.pills(
            "What goes into the file",
            ["collections", *data_files.PARTS],
            selection_mode="multi",
            default=["collections", "databases", "settings"],
            key="backup-parts",
            help="Databases: stored queries, readings, experiments, history, caches. Settings: what was changed on pages.",
        )
        st.html(
            '<div class="rd rd-soft">It holds documents, questions and answers in plain form; passwords and keys are not in it. '
            "To put it back, stop the dashboard and run <code>python -m rag restore FILE</code>.</div>"
        )
        if st.button("Back up now", disabled=not chosen or _running(running) is not None):
            _submit("backup", lambda job: _backing_up(job, running, list(chosen)))
        _kept(running.settings.data_dir / "backups")


def _backing_up(job: Job[Any], running: process.Runtime, chosen: list[str]) -> Generator[dict[str, Any], None, Backup]:
    path = running.settings.data_dir / "backups" / f"ragdeck-{datetime.now(UTC):%Y%m%d-%H%M%S}.zip"
    store = running.store if "collections" in chosen else None
    parts = [part for part in chosen if part != "collections"]
    data_dir = running.settings.data_dir
    return (yield from backup(path, store=store, data_dir=data_dir, parts=parts, version=VERSION, cancelled=job.cancelled.is_set))


def _kept(folder: Path) -> None:
    """The backups that are there, newest first, each to download."""
    files = sorted(folder.glob("ragdeck-*.zip"), reverse=True) if folder.is_dir() else []
    if not files:
        st.html(cards.empty("There is no backup yet.", f"Backups are written to {folder}."))
        return
    rows = []
    for path in files:
        found = path.stat()
        made = time_html(datetime.fromtimestamp(found.st_mtime, UTC), now(), zone())
        rows.append([f'<span class="rd-mono">{escape(path)}</span>', bytes_text(found.st_size), made])
    st.html(figures.table(["File", "Size", "Made"], rows, numeric=(1,), wrap=(0,)))
    newest = files[0]
    if newest.stat().st_size <= DOWNLOAD_BYTES:
        st.download_button("Download the newest", newest.read_bytes, newest.name, "application/zip", on_click="ignore")
    else:
        st.html(f'<div class="rd rd-soft">Larger than {bytes_text(DOWNLOAD_BYTES)}: copy the file, for instance with scp.</div>')


# 4) jobs


def _submit(title: str, work: Callable[[Job[Any]], Generator[dict[str, Any], None, Any]]) -> None:
    try:
        job: Job[Any] = the_runtime().jobs.submit(KIND, title[:200], work)
    except JobsFull as error:
        st.html(cards.problem_note(Problem(None, "overloaded", str(error), None, "Wait for one to end."), "Starting it"))
        return
    st.query_params["storejob"] = job.id
    st.rerun()


def _running(running: process.Runtime) -> Job[Any] | None:
    return next((job for job in running.jobs.recent(KIND) if not job.done), None)


def _job(running: process.Runtime) -> None:
    """The job of the address, else the one that runs."""
    asked = st.query_params.get("storejob")
    job = (running.jobs.get(asked) if asked else None) or _running(running)
    if job is None:
        if asked:
            st.html(cards.note("unknown", "This job is no longer known: the dashboard was restarted. A re-embedding can go on."))
        return
    if job.done:
        st.html(ended_html(job))
    else:
        st.fragment(_follow, run_every=REFRESH_SECONDS)(job.id)


def _follow(job_id: str) -> None:
    job = the_runtime().jobs.get(job_id)
    if job is None or job.done:
        st.rerun()
    with st.container(border=True, gap="small"):
        st.html(progress_html(job.title, job.events()))
        st.button("Stop", key="stop-store", **viewer.stop(job))


def progress_html(title: str, events: Sequence[Mapping[str, Any]]) -> str:
    """A bar and one line: what is being done, how far, how fast, how long still."""
    last = events[-1] if events else None
    head = f'<p class="rd rd-title">{escape(title[:1].upper() + title[1:])}</p>'
    if last is None:
        return f'{head}{cards.meter(0)}<div class="rd rd-soft">starting</div>'
    left = last["seconds_left"]
    unit = "" if last["doing"] in ("checking", "copying files") else " passages/s"
    parts = [
        last["doing"],
        f"{count(last['done'])} of {count(last['total'])}",
        f"{number(last['rows_per_second'])}{unit}" if unit and last["rows_per_second"] else "",
        f"{seconds(left)} left" if left is not None else "",
    ]
    ratio = last["done"] / last["total"] if last["total"] else 1.0
    line = " · ".join(part for part in parts if part)
    return f'{head}{cards.meter(ratio)}<div class="rd rd-soft">{escape(line)}</div>'


def ended_html(job: Job[Any]) -> str:
    """What came of it."""
    found = job.result
    if isinstance(found, Reembedded):
        text = (
            f"{found.collection} is in use with {plural(found.rows, 'passage')}: {count(found.embedded)} embedded in "
            f"{seconds(job.elapsed())}, {count(found.copied)} copied with their vectors."
        )
        kept = "" if found.dropped or found.source == found.collection else f"{found.source} is kept until you drop it."
        return cards.note("ok", escape(text), escape(kept))
    if isinstance(found, Backup):
        rows = sum(found.collections.values())
        what = f"{plural(rows, 'row')} of {plural(len(found.collections), 'collection')}, {plural(len(found.files), 'file')}"
        text = f"{found.path}: {bytes_text(found.size_bytes)}, {what}, in {seconds(job.elapsed())}."
        return cards.note("ok", escape(text))
    if job.state == "cancelled":
        return cards.note("unknown", escape(f"Stopped: {getattr(job.error, 'message', None) or job.title}."))
    return _problem(job.error or RuntimeError("it ended without a result"), job.title)


def _problem(error: Exception, what: str) -> str:
    kind = getattr(error, "kind", "internal")
    text = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    return cards.problem_note(
        Problem(None, kind, re.sub(r"\.$", "", text), getattr(error, "address", None), getattr(error, "next_step", "")), what
    )
