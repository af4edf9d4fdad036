"""The narrow columns of stored queries and their stages as numpy arrays: one row a query, one column a stage.

Read from the trace file once; when more was committed, only the newest part is read again. Knows nothing of percentiles or
pages, and reads no stored answer.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rag.trace_file import closing, connect, mapped
from rag.trace_rows import ROW_SQL, QueryRow, query_row
from rag.types import STAGES

Floats = npt.NDArray[np.float64]
Narrow = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]

PARTS = ("load", "queue", "tokenize", "compute", "network", "other")
TAIL_SECONDS = 900.0  # queries that began so long before the newest one are read again: they may have ended, or grown, since
_CHUNK = 20_000
_QUERY_NUMBERS = ("started_at_unix", "total_seconds", "ttft_seconds", "tokens_completion", "candidates", "cache_hit")
_QUERY_TEXTS = ("outcome", "origin", "model", "settings", "version", "caches", "hyde")
_STAGE_TEXTS = ("device", "model", "place")


@dataclass(frozen=True, slots=True)
class StageTable:
    """`n` queries, oldest first. Per query [n], per stage [n, 6] in the order of STAGES. NaN is "not known" or "did not run".

    `seconds` is NaN for a stage that was skipped or not reached. `cache_hit` is 1, 0 or NaN. `parts` are the splits in seconds,
    `units` the work load (candidates of rerank, tokens of embed, hyde and generate). Texts are codes into `names`; code 0 is
    None. Shared between threads: the arrays cannot be written.
    """

    ids: npt.NDArray[np.object_]
    started: Floats
    total: Floats
    ttft: Floats
    tokens: Floats
    candidates: Floats
    cache_hit: Floats
    cold: Flags
    outcome: Codes
    origin: Codes
    model: Codes
    settings: Codes
    version: Codes
    caches: Codes
    hyde: Codes
    seconds: Floats
    stage_cold: Flags
    load: Narrow
    queue: Narrow
    tokenize: Narrow
    compute: Narrow
    network: Narrow
    other: Narrow
    units: Narrow
    stage_device: Codes
    stage_model: Codes
    stage_place: Codes
    names: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, name: str) -> Narrow:
        """Seconds of one part of the split, [n, 6]."""
        values: Narrow = getattr(self, name)
        return values

    def code(self, name: str) -> int:
        """The code of a text; -1 when no query has it."""
        return self.names.index(name) if name in self.names else -1

    def take(self, rows: Rows | Flags) -> StageTable:
        """Those queries alone."""
        return StageTable(**{name: _fixed(getattr(self, name)[rows]) for name in _ARRAYS}, names=self.names)

    def with_newer(self, newer: StageTable) -> StageTable:
        """These and then those; `newer.names` begins with the names of this one."""
        joined = {name: _fixed(np.concatenate([getattr(self, name), getattr(newer, name)])) for name in _ARRAYS}
        return StageTable(**joined, names=newer.names)


_ARRAYS = tuple(field.name for field in fields(StageTable) if field.name != "names")


def _fixed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


class StageTables:
    """Reads the trace file at `path`; thread-safe, one a process. What it returns is never changed."""

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._codes = _Codes()
        self._table: StageTable | None = None
        self._since = float("inf")
        self._revision = -1
        self.full_reads = 0

    def at(self, revision: int, since: float = float("-inf")) -> StageTable:
        """Every query that started at `since` (Unix seconds) or later, perhaps older ones too, as of `TraceStore.revision`.

        Raises RagError when the file cannot be read.
        """
        with self._lock, mapped(self._path):
            if self._table is None or since < self._since:
                self._table, self._since = self._read(lambda db: self._whole(db, since)), since
            elif revision != self._revision:
                self._table = self._read(self._newest)
            self._revision = revision
            return self._table

    def rows(self, ids: Sequence[str]) -> list[QueryRow]:
        """Those queries as the run list shows them, in the order given; those that are gone are left out."""
        found: dict[str, QueryRow] = {}
        with mapped(self._path), closing(connect(self._path, reading=True)) as db:
            for start in range(0, len(ids), 500):
                some = ids[start : start + 500]
                marks = ",".join("?" * len(some))
                rows = db.execute(f"SELECT {ROW_SQL} FROM queries WHERE id IN ({marks})", tuple(some))
                found |= {row[0]: query_row(row) for row in rows}
        return [found[key] for key in ids if key in found]

    def _read(self, reader: Callable[[sqlite3.Connection], StageTable]) -> StageTable:
        with closing(connect(self._path, reading=True)) as db:
            db.execute("BEGIN")  # one snapshot for all reads
            return reader(db)

    def _whole(self, db: sqlite3.Connection, since: float) -> StageTable:
        self.full_reads += 1
        self._codes = _Codes()
        return _load(db, since, self._codes)

    def _newest(self, db: sqlite3.Connection) -> StageTable:
        """The table brought up to date; read anew where more was changed than its newest part."""
        table = self._table
        if table is None or not len(table):
            return self._whole(db, self._since)
        oldest = db.execute("SELECT min(started_at_unix) FROM queries").fetchone()[0]
        border = float(table.started[-1]) - TAIL_SECONDS
        # old traces are deleted every day: those go without reading the rest again
        kept = table.take((table.started < border) & (table.started >= (border if oldest is None else oldest)))
        table = kept.with_newer(_load(db, max(border, self._since), self._codes))
        return table if _fingerprint(db, self._since) == _fingerprint_of(table, self._since) else self._whole(db, self._since)


def _fingerprint(db: sqlite3.Connection, since: float) -> tuple[int, int]:
    """How many queries, and the sum of their microseconds: changes when one was deleted, came late or was replaced."""
    # a scan of the table is quicker than a look-up for each entry of the index
    found = db.execute(
        "SELECT count(*), coalesce(sum(CAST(total_seconds * 1e6 AS INTEGER)), 0) FROM queries NOT INDEXED "
        "WHERE started_at_unix >= ?",
        (since,),
    ).fetchone()
    return int(found[0]), int(found[1])


def _fingerprint_of(table: StageTable, since: float) -> tuple[int, int]:
    total = table.total[table.started >= since]
    return len(total), int((total * 1e6).astype(np.int64).sum())


# ------------------------------------------------------------------------------------------------------------- reading


class _Codes(dict[str | None, int]):
    """Text -> code, given out in the order of first use; None is 0."""

    def __init__(self) -> None:
        super().__init__({None: 0})

    def __missing__(self, text: str | None) -> int:
        self[text] = len(self)
        return self[text]

    def of(self, texts: Sequence[Any]) -> Codes:
        return np.fromiter(map(self.__getitem__, texts), np.int32, len(texts))


def _load(db: sqlite3.Connection, since: float, codes: _Codes) -> StageTable:
    """Both tables from `since` on. A missing value of the file becomes NaN or code 0."""
    columns = _queries(db, since, codes)
    n = len(columns["ids"])
    columns |= _stages(db, since, {key: row for row, key in enumerate(columns["ids"])}, n, codes)
    return StageTable(**{name: _fixed(array) for name, array in columns.items()}, names=tuple(codes))


def _queries(db: sqlite3.Connection, since: float, codes: _Codes) -> dict[str, npt.NDArray[Any]]:
    names = ("id", "cold", *_QUERY_NUMBERS, *_QUERY_TEXTS)
    order = "ORDER BY started_at_unix, id"
    rows = db.execute(f"SELECT {', '.join(names)} FROM queries WHERE started_at_unix >= ? {order}", (since,)).fetchall()
    found = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    ids = np.empty(len(rows), object)
    ids[:] = found["id"]
    numbers = {name: np.array(found[name], np.float64) for name in _QUERY_NUMBERS}
    return {
        "ids": ids,
        "started": numbers["started_at_unix"],
        "total": numbers["total_seconds"],
        "ttft": numbers["ttft_seconds"],
        "tokens": numbers["tokens_completion"],
        "candidates": numbers["candidates"],
        "cache_hit": numbers["cache_hit"],
        "cold": np.array(found["cold"], np.bool_),
        **{name: codes.of(found[name]) for name in _QUERY_TEXTS},
    }


def _stages(db: sqlite3.Connection, since: float, row_of: dict[str, int], n: int, codes: _Codes) -> dict[str, npt.NDArray[Any]]:
    shape = (n, len(STAGES))
    column_of = {name: column for column, name in enumerate(STAGES)}
    seconds, cold = np.full(shape, np.nan), np.zeros(shape, np.bool_)
    numbers = {name: np.full(shape, np.nan, np.float32) for name in (*PARTS, "units")}
    texts = {name: np.zeros(shape, np.int32) for name in _STAGE_TEXTS}
    cursor = db.execute(_stage_sql(since), () if since == float("-inf") else (since,))
    while chunk := cursor.fetchmany(_CHUNK):
        keys, stages, taken, colds, *rest = zip(*chunk, strict=True)
        row = np.fromiter(map(row_of.get, keys, repeat(-1)), np.intp, len(keys))
        column = np.fromiter(map(column_of.get, stages, repeat(-1)), np.intp, len(keys))
        known = (row >= 0) & (column >= 0)
        row, column = row[known], column[known]
        seconds[row, column] = np.array(taken, np.float64)[known]
        cold[row, column] = np.array(colds, np.bool_)[known]
        for name, values in zip(numbers, rest, strict=False):
            numbers[name][row, column] = np.array(values, np.float32)[known]
        for name, values in zip(texts, rest[len(numbers) :], strict=True):
            texts[name][row, column] = codes.of(values)[known]
    named = {f"stage_{name}": array for name, array in texts.items()}
    return {"seconds": seconds, "stage_cold": cold, **numbers, **named}


def _stage_sql(since: float) -> str:
    """Stages that ran, of queries from `since` on."""
    numbers, texts = ", ".join((*PARTS, "units")), ", ".join(_STAGE_TEXTS)
    wanted = "" if since == float("-inf") else "AND query_id IN (SELECT id FROM queries WHERE started_at_unix >= ?)"
    return f"SELECT query_id, stage, seconds, cold, {numbers}, {texts} FROM stages WHERE skipped IS NULL {wanted}"
