"""Marks, question sets and runs of one data folder, and running a set: one setting after the other over the live collection.

Knows nothing of jobs and pages: `run` is a generator of events that whoever drives it may follow, and stop by a token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from gpu_server.errors import EngineError
from rag.errors import RagError
from rag.evaluation.collection import content
from rag.evaluation.database import Database
from rag.evaluation.items import Names
from rag.evaluation.marks import Marks
from rag.evaluation.measure import Retrieval, measure
from rag.evaluation.runs import Runs
from rag.evaluation.sets import QuestionSets
from rag.evaluation.summary import summary
from rag.evaluation.types import Measured, QuestionSet, Run, Setting, State
from rag.query import Clients
from rag.types import Event

FILE = "evaluations.db"
MAX_SETTINGS = 6
BEAT_SECONDS = 10.0


class Evaluations:
    """What the file `evaluations.db` of a data folder keeps. Opens nothing yet."""

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.time) -> None:
        database = Database(data_dir / FILE)
        self.marks = Marks(database, clock)
        self.sets = QuestionSets(database, clock)
        self.runs = Runs(database, clock)


@dataclass(frozen=True, slots=True)
class Plan:
    """A set to be measured with some settings. `about` is what the caller knows of the environment: chunk settings, versions.
    `collection` is its base name, None the one in force."""

    questions: QuestionSet
    settings: tuple[Setting, ...]
    about: Mapping[str, Any]
    collection: str | None = None


def grid(candidates: Sequence[int], keep: int, rerank: Sequence[bool], hyde: Sequence[bool]) -> tuple[Setting, ...]:
    """Every combination, in the order given. Raises RagError bad_input for none, for more than 6, for numbers that cannot be."""
    found = tuple(dict.fromkeys(Setting(*each) for each in product(candidates, (keep,), rerank, hyde)))
    if not found:
        raise RagError("nothing is chosen to be measured", kind="bad_input", next_step="Choose at least one of each option.")
    if len(found) > MAX_SETTINGS:
        message = f"{len(found)} combinations are chosen; at most {MAX_SETTINGS} run in turn"
        raise RagError(message, kind="bad_input", next_step="Choose fewer options.")
    if wrong := [each for each in found if not 1 <= each.candidates <= 1000 or not 1 <= each.keep <= 100]:
        message = f"{wrong[0].words}: candidates are 1 to 1,000 and keep 1 to 100"
        raise RagError(message, kind="bad_input", next_step="Choose other numbers.")
    return tuple(replace(each, keep=min(each.keep, each.candidates)) for each in found)


def run(
    evaluations: Evaluations,
    plan: Plan,
    clients: Clients,
    *,
    job_id: str,
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, tuple[str, ...]]:
    """Measure the plan's settings in turn; returns the ids of the runs. What was measured before a failure or a stop is kept.

    Events: `evaluation_started {settings, questions}`, `run_started {run, number}`, `progress {run, done}`,
    `run_finished {run, state}`. Raises RagError when the collection cannot be opened, and StageError when a stage fails.
    """
    ids: list[str] = []
    yield {"type": "evaluation_started", "settings": len(plan.settings), "questions": len(plan.questions.questions)}
    collection, names, environment = _surroundings(plan, clients)
    for number, setting in enumerate(plan.settings, 1):
        if cancelled():
            break
        info = plan.questions.info
        now = clock()
        one = Run(
            f"{job_id}-{number}", info.id, info.version, info.name, now, setting, job_id, "running", now, environment=environment
        )
        evaluations.runs.save(one)
        ids.append(one.id)
        yield {"type": "run_started", "run": one.id, "number": number, "setting": setting.words}
        yield from _one(evaluations, one, plan, Retrieval(clients, collection, setting), names, cancelled, monotonic)
    return tuple(ids)


def _one(
    evaluations: Evaluations,
    one: Run,
    plan: Plan,
    retrieval: Retrieval,
    names: Names,
    cancelled: Callable[[], bool],
    monotonic: Callable[[], float],
) -> Generator[Event, None, None]:
    questions = plan.questions.questions
    results: list[Measured] = []
    started = beat = monotonic()

    def ended(state: State, error: str | None = None) -> Event:
        told = summary(results, len(questions))
        seconds = monotonic() - started
        evaluations.runs.save(replace(one, state=state, seconds=seconds, summary=told, error=error), results)
        return {"type": "run_finished", "run": one.id, "state": state}

    try:
        for done, question in enumerate(questions, 1):
            if cancelled():
                break
            results.append(measure(question, retrieval, names, one.setting.keep))
            if monotonic() - beat > BEAT_SECONDS:
                evaluations.runs.beat(one.id)
                beat = monotonic()
            yield {"type": "progress", "run": one.id, "done": done}
    except Exception as problem:
        step = getattr(problem, "next_step", "")
        yield ended("failed", f"{getattr(problem, 'message', None) or f'{type(problem).__name__}: {problem}'} {step}".strip())
        raise
    except GeneratorExit:
        ended("cancelled")
        raise
    yield ended("cancelled" if len(results) < len(questions) else "finished")


def _surroundings(plan: Plan, clients: Clients) -> tuple[str, Names, dict[str, Any]]:
    """(the collection, opened; its documents' names; what the numbers depend on)."""
    try:
        embedder = clients.embedder.info
        reranker = clients.reranker.info if clients.reranker is not None else None
    except EngineError as problem:
        raise RagError(problem.message, kind=problem.kind, address=problem.address, next_step=problem.next_step) from problem
    store = clients.store
    name = store.use(embedder, plan.collection, create=plan.collection is None)
    held = content(store, name, read_only=store.mapping is not None)
    hyde = any(setting.hyde for setting in plan.settings)
    environment = {
        "embedder": embedder.name,
        "embedder_identity": embedder.identity,
        "reranker": reranker.name if reranker else None,
        "reranker_identity": reranker.identity if reranker else None,
        "hyde_model": (clients.prompts.hyde_model or clients.chat.info.name) if hyde and clients.chat else None,
        "collection": name,
        "content": held.digest,
        "documents": None if held.documents is None else len(held.documents),
        "passages": held.passages,
        **clients.fingerprint,
        **plan.about,
    }
    return name, held.names, environment
