"""Stored queries of a stretch of time as cases, and what made them slow: findings of the last hour. Knows no pages."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple, Protocol

from latency.findings import find_many
from latency.types import Baseline, Case, Finding, QueryReadings
from rag.otlp import SpanRecord
from rag.trace_file import connect, mapped
from rag.trace_rows import QueryFilter, to_answer, unpack
from rag.trace_store import TraceStore

MOST = 1000
_CHUNK = 500


class Readings(Protocol):
    """What is wanted of a ReadingStore."""

    def get_many(self, query_ids: list[str]) -> dict[str, QueryReadings]: ...


class Recent(NamedTuple):
    """`looked_at` of `queries` queries (the slowest, where there are more than MOST), which took `seconds` together, and what was
    found in them."""

    findings: tuple[Finding, ...]
    looked_at: int
    queries: int
    seconds: float


def findings(traces: TraceStore, readings: Readings | None, baseline: Baseline, where: QueryFilter) -> Recent:
    """What made the queries that match slow, causes ranked. Raises RagError when the trace file cannot be read."""
    rows = traces.search(where, "total_seconds", limit=MOST)
    queries = len(rows) if len(rows) < MOST else traces.count(where)
    found = cases(traces, readings, [row.id for row in rows])
    return Recent(find_many(found, baseline), len(found), queries, sum(row.total_seconds for row in rows))


def cases(traces: TraceStore, readings: Readings | None, ids: list[str]) -> list[Case]:
    """Stored queries with their spans and readings, in the order of `ids`; those that are gone are left out.

    The texts of passages, which no finding reads, stay in the file: so an hour is read at once instead of query by query.
    """
    bodies: dict[str, bytes] = {}
    spans: dict[str, bytes] = {}
    with mapped(traces.path), closing(connect(traces.path, reading=True)) as db:
        for start in range(0, len(ids), _CHUNK):
            some = ids[start : start + _CHUNK]
            marks = ",".join("?" * len(some))
            bodies |= dict(db.execute(f"SELECT query_id, body FROM answers WHERE query_id IN ({marks})", some))
            spans |= dict(db.execute(f"SELECT query_id, body FROM spans WHERE query_id IN ({marks})", some))
    seen = readings.get_many(ids) if readings is not None else {}
    known = [each for each in ids if each in bodies]
    return [Case(to_answer(unpack(bodies[each]), {}), _spans(spans.get(each)), seen.get(each)) for each in known]


def _spans(body: bytes | None) -> tuple[SpanRecord, ...]:
    return tuple(SpanRecord.from_json(span) for span in unpack(body)) if body else ()
