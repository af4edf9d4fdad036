"""Deletes stored queries, with everything that was kept because of them: answers, spans, readings, marks, cached answers.

Works on the files and stores that it is given. Knows no routes and no pages. Log files and what was exported or sent to an OTLP
collector are out of its reach.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rag.cache.types import CacheAway
from rag.errors import RagError
from rag.evaluation.evaluations import FILE, Evaluations
from rag.trace_file import mapped, open_file
from rag.trace_rows import QueryFilter
from rag.trace_store import TraceStore

CHUNK = 200
CACHE_PAGE = 500


class Forgetting(Protocol):
    """What of the runtime has anything of a query."""

    traces: TraceStore
    settings: Any

    @property
    def readings(self) -> Any: ...
    @property
    def cache(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many went. `problems` are what could not be deleted, one sentence each: then it is still there."""

    queries: int
    readings: int
    marks: int
    cached: int
    problems: tuple[str, ...] = ()


def matching(runtime: Forgetting, where: QueryFilter) -> list[str]:
    """The ids of the stored queries that match; all of them for the empty filter. Raises RagError."""
    runtime.traces.flush()
    return [row.id for row in runtime.traces.search(where)]


def forget(runtime: Forgetting, ids: Sequence[str]) -> Forgotten:
    """Delete these queries. Raises RagError where the stored queries themselves cannot be deleted."""
    wanted = list(dict.fromkeys(ids))
    runtime.traces.flush()
    problems: list[str] = []
    cached = _tried(problems, "cached answers", lambda: _cached(runtime.cache, set(wanted)))
    marks = _tried(problems, "marks", lambda: _marks(runtime.settings.data_dir, wanted))
    readings = _tried(problems, "readings", lambda: runtime.readings.delete(wanted))
    return Forgotten(_traces(runtime.traces, wanted), readings, marks, cached, tuple(problems))


def _tried(problems: list[str], what: str, work: Callable[[], int]) -> int:
    try:
        return work()
    except (RagError, CacheAway, sqlite3.Error, OSError) as problem:
        problems.append(f"{what}: {problem}")
        return 0


def _traces(store: TraceStore, ids: Sequence[str]) -> int:
    """In small transactions. Texts of passages stay: they are the collection's, other queries share them, and retention
    (`TraceStore.delete_before`) removes those that no query used for long."""
    deleted = 0
    with mapped(store.path), closing(open_file(store.path, wait_seconds=5.0)) as db:
        db.execute("PRAGMA busy_timeout = 5000")
        db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only unlinked
        for some in _chunks(ids):
            marks = ",".join("?" * len(some))
            db.execute("BEGIN IMMEDIATE")
            for table in ("answers", "spans", "stages"):
                db.execute(f"DELETE FROM {table} WHERE query_id IN ({marks})", some)
            deleted += db.execute(f"DELETE FROM queries WHERE id IN ({marks})", some).rowcount
            db.execute("COMMIT")
        db.execute("PRAGMA incremental_vacuum").fetchall()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return deleted


def _marks(data_dir: Path, ids: Sequence[str]) -> int:
    if not (data_dir / FILE).exists():
        return 0
    evaluations = Evaluations(data_dir)
    known = [query_id for query_id in ids if evaluations.marks.get(query_id) is not None]
    for query_id in known:
        evaluations.marks.remove(query_id)
    return len(known)


def _cached(cache: Any, ids: set[str]) -> int:
    """Cached answers that were made by one of these queries."""
    if cache is None:
        return 0
    keys: list[str] = []
    offset = 0
    while page := cache.entries(CACHE_PAGE, offset):
        keys += [entry.id for entry in page if entry.query_id in ids]
        offset += len(page)
    return sum(bool(cache.delete(key)) for key in keys)


def _chunks(ids: Sequence[str]) -> Iterable[list[str]]:
    return (list(ids[start : start + CHUNK]) for start in range(0, len(ids), CHUNK))
