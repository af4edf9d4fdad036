"""What was measured on purpose, kept: component tests, load tests, replays, CPU against GPU, each with the environment it ran in.

A file of its own (SQLite, WAL), opened anew for each call, so that the dashboard and commands can share it. Knows nothing of what
an experiment does; `run` makes one of a piece of work. An experiment whose process died shows as `interrupted`.
"""

from __future__ import annotations

import logging
import os
import platform
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from jobs import Event, Job, Jobs, JobsFull, Work
from latency.experiments.environment import environment
from rag import trace_file
from rag.errors import RagError
from rag.sqlite_file import turn_to_wal, version_of
from rag.trace_rows import pack, unpack

__all__ = ["KINDS", "Experiment", "ExperimentStore", "Kind", "State", "environment", "run", "said"]

log = logging.getLogger(__name__)

Kind = Literal["components", "load", "replay", "hardware"]
State = Literal["running", "finished", "failed", "cancelled", "interrupted"]
KINDS: tuple[Kind, ...] = get_args(Kind)
R = TypeVar("R")

APPLICATION_ID = 0x52414758  # "RAGX"
VERSION = 1
NAME_CHARS = 200
WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment. `id` is its job's; `seconds` how long it ran, None while it runs or where nobody knows.

    `parameters`, `result` and `environment` are JSON's types. `result` is what there was until it was cancelled, None where there
    is none. `error` is a sentence or two, None where nothing went wrong.
    """

    id: str
    kind: Kind
    name: str
    started_at_unix: float
    seconds: float | None = None
    state: State = "running"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# 1) the file


class ExperimentStore:
    """Experiments in the file at `path`, made where it is not there. Thread-safe; several processes may use one file.

    Every method raises RagError, with what to do, for a file that is locked, damaged, read-only, on a full disk or somebody
    else's. A result that could not be written stays in memory, is shown, and is written with the next one.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._owner = _owner()
        self._lock = threading.Lock()
        self._unsaved: dict[str, Experiment] = {}
        with self._open():
            pass

    def save(self, experiment: Experiment) -> None:
        """Write it; one with the same id is replaced but for its name, which `rename` may have changed meanwhile."""
        with self._lock:
            waiting = {**self._unsaved, experiment.id: experiment}
            try:
                with self._open() as db:
                    db.execute("BEGIN IMMEDIATE")
                    for each in waiting.values():
                        db.execute(_UPSERT, _row(each, self._owner))
                    db.execute("COMMIT")
            except RagError:
                if experiment.state != "running":
                    self._unsaved = waiting
                raise
            self._unsaved = {}

    def get(self, experiment_id: str) -> Experiment | None:
        with self._lock, self._open() as db:
            if experiment_id in self._unsaved:
                return self._unsaved[experiment_id]
            row = db.execute(f"SELECT {_COLUMNS}, result FROM experiments WHERE id = ?", (experiment_id,)).fetchone()
        return self._experiment(row) if row else None

    def list(self, kind: Kind | None = None, limit: int = 100, *, results: bool = True) -> tuple[Experiment, ...]:
        """Newest first. `results` False leaves them out, for a list that shows none."""
        result = "result" if results else "NULL"
        where, values = ("WHERE kind = ?", [kind]) if kind else ("", [])
        sql = f"SELECT {_COLUMNS}, {result} FROM experiments {where} ORDER BY started_at_unix DESC, id LIMIT ?"
        with self._lock, self._open() as db:
            rows = db.execute(sql, [*values, limit]).fetchall()
        found = [self._experiment(row) for row in rows]
        return tuple(self._unsaved.get(each.id, each) for each in found)

    def rename(self, experiment_id: str, name: str) -> None:
        """Raises RagError bad_input for a name that is none, not_found."""
        name = " ".join(name.split())
        if not name or len(name) > NAME_CHARS:
            raise RagError(
                f"an experiment's name has 1 to {NAME_CHARS} characters", kind="bad_input", next_step="Choose another name."
            )
        with self._lock, self._open() as db:
            known = self._unsaved.get(experiment_id)
            if known is not None:
                self._unsaved[experiment_id] = replace(known, name=name)
            changed = db.execute("UPDATE experiments SET name = ? WHERE id = ?", (name, experiment_id)).rowcount
        if not changed:
            raise _missing(experiment_id)

    def delete(self, experiment_id: str) -> None:
        """Raises RagError not_found, bad_input for one that is running."""
        found = self.get(experiment_id)
        if found is None:
            raise _missing(experiment_id)
        if found.state == "running":
            raise RagError(
                "an experiment that is running cannot be deleted", kind="bad_input", next_step="Stop it, or wait for its end."
            )
        with self._lock, self._open() as db:
            self._unsaved.pop(experiment_id, None)
            db.execute("DELETE FROM experiments WHERE id = ?", (experiment_id,))

    def close(self) -> None:
        """Try once more to write what could not be written; nothing is left open."""
        for experiment in list(self._unsaved.values())[:1]:
            try:
                self.save(experiment)
            except RagError as problem:
                log.error("%d experiments are lost: %s", len(self._unsaved), problem.message)

    def _experiment(self, row: Sequence[Any]) -> Experiment:
        values = dict(zip((*_COLUMN_NAMES, "result"), row, strict=True))
        owner, body = values.pop("owner"), unpack(values.pop("body"))
        result = values.pop("result")
        if values["state"] == "running" and owner != self._owner and not _is_alive(owner):
            values |= {"state": "interrupted"}
            body |= {"error": body.get("error") or "The process that ran it ended before it did."}
        return Experiment(**values, **body, result=None if result is None else unpack(result))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with trace_file.closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)) as db:
                _prepare(db, self.path)
                yield db
        except (sqlite3.Error, OSError) as error:
            meant = trace_file.problem(error, self.path)
            message = meant.message.replace("The trace file", "The file of experiments")
            raise RagError(message, kind=meant.kind, address=meant.address, next_step=meant.next_step) from error


_COLUMN_NAMES = ("id", "kind", "name", "started_at_unix", "seconds", "state", "owner", "body")
_COLUMNS = ", ".join(_COLUMN_NAMES)
_BODY = ("parameters", "environment", "error")
_UPSERT = f"""INSERT INTO experiments ({_COLUMNS}, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET seconds = excluded.seconds, state = excluded.state, owner = excluded.owner,
    body = excluded.body, result = excluded.result"""


def _row(experiment: Experiment, owner: str) -> tuple[Any, ...]:
    body = pack({name: getattr(experiment, name) for name in _BODY})
    result = None if experiment.result is None else pack(experiment.result)
    narrow = [getattr(experiment, name) for name in _COLUMN_NAMES[:6]]
    return (*narrow, owner, body, result)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    if version_of(db, path, APPLICATION_ID, VERSION) == VERSION:
        return
    turn_to_wal(db, WAIT_SECONDS)
    db.executescript(
        f"""BEGIN IMMEDIATE;
        CREATE TABLE IF NOT EXISTS experiments (
            id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, started_at_unix REAL NOT NULL, seconds REAL,
            state TEXT NOT NULL, owner TEXT NOT NULL, body BLOB NOT NULL, result BLOB) WITHOUT ROWID;
        CREATE INDEX IF NOT EXISTS experiments_started ON experiments (started_at_unix);
        PRAGMA application_id = {APPLICATION_ID};
        PRAGMA user_version = {VERSION};
        COMMIT;"""
    )


def _missing(experiment_id: str) -> RagError:
    return RagError(f"there is no experiment {experiment_id}", kind="not_found", next_step="The page Experiments lists them.")


def _owner() -> str:
    """This process, so that another one can tell whether it still runs: a process id alone comes again after a restart."""
    return f"{platform.node()}/{os.getpid()}/{_started(os.getpid())}"


def _is_alive(owner: str) -> bool:
    node, pid, started = owner.rsplit("/", 2)
    return node == platform.node() and started != "gone" and _started(int(pid)) == started


def _started(pid: int) -> str:
    """The boot and the clock tick in which the process was started (proc(5), field 22 of stat); `gone` where there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "gone"
    return f"{boot}.{stat.rpartition(')')[2].split()[19]}"


# 2) an experiment as a job


def run(
    jobs: Jobs,
    store: ExperimentStore,
    *,
    kind: Kind,
    name: str,
    parameters: Mapping[str, Any],
    work: Work[R],
    environment: Mapping[str, Any],
) -> Job[R]:
    """Start `work` as a job of kind "experiment" that is stored at its start and at its end; the job's id is the experiment's.

    What the work returns has `to_json()`, or is a mapping. The log ends with `experiment_finished {state, stored}`. Raises
    RagError: `overloaded` while another experiment runs here (each would measure the other), and as `ExperimentStore` does.
    """
    begun: Future[None] = Future()

    def recorded(job: Job[R]) -> Generator[Event, None, R]:
        started = Experiment(job.id, kind, name[:NAME_CHARS], time.time(), parameters=parameters, environment=environment)
        try:
            store.save(started)
        except Exception as problem:
            begun.set_exception(problem)
            raise
        begun.set_result(None)
        return (yield from _recorded(job, store, started, work))

    try:
        job = jobs.submit("experiment", name[:NAME_CHARS], recorded)
    except JobsFull as full:
        step = "Wait for its end, or stop it: two experiments at once would measure each other."
        raise RagError(f"an experiment cannot start now: {full}", kind="overloaded", next_step=step) from None
    begun.result()
    return job


def _recorded(job: Job[R], store: ExperimentStore, started: Experiment, work: Work[R]) -> Generator[Event, None, R]:
    def ended(state: State, **values: Any) -> Event:
        experiment = replace(started, state=state, seconds=job.elapsed(), **values)
        try:
            store.save(experiment)
        except RagError as problem:
            log.error("experiment %s could not be stored yet: %s", job.id, problem.message)
            return {"type": "experiment_finished", "state": state, "stored": False, "reason": problem.message}
        return {"type": "experiment_finished", "state": state, "stored": True}

    try:
        result = yield from work(job)
    except Exception as problem:
        yield ended("cancelled" if job.cancelled.is_set() else "failed", error=said(problem))
        raise
    yield ended("cancelled" if job.cancelled.is_set() else "finished", result=_plain(result))
    return result


def _plain(result: Any) -> Mapping[str, Any]:
    to_json: Callable[[], Mapping[str, Any]] | None = getattr(result, "to_json", None)
    return to_json() if to_json is not None else dict(result)


def said(problem: BaseException) -> str:
    """An error for people: what happened and what to do, where the error says so."""
    message = getattr(problem, "message", None)
    if message is None:
        return f"{type(problem).__name__}: {problem}"
    step = getattr(problem, "next_step", "")
    return f"{message.rstrip('.')}. {step}".strip()
