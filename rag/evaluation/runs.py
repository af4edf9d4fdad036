"""Runs and their results in the file of evaluations. Knows nothing of how a question is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from rag.errors import RagError
from rag.evaluation.database import Database
from rag.evaluation.types import STALE_SECONDS, Measured, Run, Setting
from rag.trace_rows import pack, unpack


class Runs:
    """Every method raises RagError as `Database.open` does."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    def save(self, run: Run, results: Sequence[Measured] | None = None) -> None:
        """Write the run, and its single results where they are given; what was there of it is replaced."""
        body = pack({"setting": asdict(run.setting), **{name: getattr(run, name) for name in _BODY}})
        values = (*(getattr(run, name) for name in _NARROW), body)
        with self._database.change() as db:
            db.execute(f"INSERT OR REPLACE INTO runs ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)
            if results is not None:
                packed = pack([each.to_json() for each in results])
                db.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (run.id, packed))

    def beat(self, run_id: str) -> None:
        """Say that it still runs."""
        with self._database.open() as db:
            db.execute("UPDATE runs SET beat_at_unix = ? WHERE id = ?", (self._clock(), run_id))

    def get(self, run_id: str) -> Run | None:
        with self._database.open() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM runs WHERE id = ?", (run_id,)).fetchone()
        return self._run(row) if row else None

    def results(self, run_id: str) -> tuple[Measured, ...]:
        """The questions that were measured, in the set's order; empty while it runs."""
        with self._database.open() as db:
            row = db.execute("SELECT body FROM results WHERE run_id = ?", (run_id,)).fetchone()
        return tuple(Measured.from_json(each) for each in unpack(row[0])) if row else ()

    def list(self, set_id: str | None = None, limit: int = 200) -> tuple[Run, ...]:
        """Newest first."""
        where, values = (" WHERE set_id = ?", [set_id]) if set_id is not None else ("", [])
        sql = f"SELECT {_COLUMNS} FROM runs{where} ORDER BY started_at_unix DESC, id DESC LIMIT ?"
        with self._database.open() as db:
            return tuple(self._run(row) for row in db.execute(sql, [*values, limit]))

    def delete(self, run_id: str) -> None:
        """Raises RagError bad_input for one that runs."""
        known = self.get(run_id)
        if known is not None and known.state == "running":
            raise RagError(
                "a run that has not ended cannot be deleted", kind="bad_input", next_step="Stop it, or wait for its end."
            )
        with self._database.change() as db:
            db.execute("DELETE FROM results WHERE run_id = ?", (run_id,))
            db.execute("DELETE FROM runs WHERE id = ?", (run_id,))

    def _run(self, row: tuple[Any, ...]) -> Run:
        values = dict(zip((*_NARROW, "body"), row, strict=True))
        body = unpack(values.pop("body"))
        run = Run(**values, **{**body, "setting": Setting(**body["setting"])})
        if run.state == "running" and run.beat_at_unix < self._clock() - STALE_SECONDS:
            return replace(run, state="interrupted", error="The process that ran it ended before it did.")
        return run


_NARROW = ("id", "set_id", "set_version", "set_name", "job_id", "started_at_unix", "beat_at_unix", "seconds", "state")
_BODY = ("environment", "summary", "error")
_COLUMNS = ", ".join((*_NARROW, "body"))
