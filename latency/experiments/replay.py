"""Stored queries asked again with one or more things changed, interleaved, so that a comparison compares only the change.

Every run is an ordinary query with its trace, of origin "measure". Knows nothing of how sets of queries are compared: it gives
`latency.comparing.compare` their ids.

Order. Within a round each query is asked once on every side, and from one round to the next, and from one query to the next, the
order of the sides is turned round: A B, B A, A B, B A. Whatever drifts steadily (a GPU warming up, a filling cache, a neighbour's
load) then weighs on all sides alike, since the mean position in time is the same for each; with A B A B, side B would always be
one step later. An even number of rounds makes it exact for each query by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs import Event, Job
from latency.experiments.experiments import said
from latency.types import Case
from rag.errors import Cancelled, RagError
from rag.types import Answer, Options

if TYPE_CHECKING:
    from latency.lab import Lab, Variant

MAX_RUNS = 2000
LOOK_SECONDS = 0.2  # how soon a cancel reaches a query that runs
BUSY_SECONDS = 30.0  # how long to wait for a place among the queries of users
OPTIONS = tuple(item.name for item in fields(Options))

Work = Callable[[Job["ReplayResult"]], Generator[Event, None, "ReplayResult"]]


@dataclass(frozen=True, slots=True)
class Change:
    """What one side does differently. `options` are fields of `rag.types.Options`, `models` keys of `Lab.variant`; both empty is
    the query as it is stored, with the models in force now. Raises RagError bad_input for an option that is none."""

    options: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.options) - set(OPTIONS))
        if unknown:
            raise RagError(
                f"a query has no option {', '.join(unknown)}", kind="bad_input", next_step=f"Choose of {', '.join(OPTIONS)}."
            )

    @property
    def label(self) -> str:
        """`hyde off, reranker.device cpu`."""
        parts = [f"{name} {_shown(value)}" for name, value in (*self.options.items(), *self.models.items())]
        return ", ".join(parts) or "as stored"

    def to_json(self) -> dict[str, Any]:
        return {"options": dict(self.options), "models": dict(self.models)}


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    return str(value) if not isinstance(value, bool) else "on" if value else "off"


class Run(NamedTuple):
    """One query asked on one side. `round` counts from 0, None is the warm-up. `query_id` is the new query's, None where it never
    began; `error` says why it does not count, None where it does. `degraded` names stages that went without what was asked:
    such a run counts, and does not show what its side was meant to."""

    side: int
    round: int | None
    stored_id: str
    query_id: str | None
    total_seconds: float | None
    outcome: str | None
    cold: bool = False
    degraded: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay measured. `runs` in the order they ran; warm-ups are apart and count for nothing."""

    sides: tuple[Change, ...]
    stored_ids: tuple[str, ...]
    times: int
    runs: tuple[Run, ...]
    warm_ups: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    def good(self, side: int) -> tuple[Run, ...]:
        """The runs of a side that count."""
        return tuple(run for run in self.runs if run.side == side and run.error is None)

    def query_ids(self, side: int) -> tuple[str, ...]:
        """The new queries of a side, what `cases` and `latency.comparing.compare.compare` take."""
        return tuple(run.query_id for run in self.good(side) if run.query_id is not None)

    def median_seconds(self, side: int) -> float | None:
        found = [run.total_seconds for run in self.good(side) if run.total_seconds is not None]
        return median(found) if found else None

    def to_json(self) -> dict[str, Any]:
        sides = [
            {
                "label": side.label,
                **side.to_json(),
                "n": len(self.good(index)),
                "failed": sum(run.side == index and run.error is not None for run in self.runs),
                "cold": sum(run.cold for run in self.good(index)),
                "degraded": sum(run.degraded is not None for run in self.good(index)),
                "median_seconds": self.median_seconds(index),
                "query_ids": list(self.query_ids(index)),
            }
            for index, side in enumerate(self.sides)
        ]
        return {
            "stored_ids": list(self.stored_ids),
            "times": self.times,
            "sides": sides,
            "runs": [run._asdict() for run in self.runs],
            "warm_ups": [run._asdict() for run in self.warm_ups],
            "notes": list(self.notes),
        }


def work(lab: Lab, query_ids: Sequence[str], sides: Sequence[Change], times: int) -> Work:
    """The replay as a job's work: each stored query `times` times on each side, one warm-up of each side before.

    Caches are bypassed unless a side says otherwise. Events: `replay_started {runs, sides, notes}`, `warm_up {run}`,
    `run {run, done, of}`. Ends early, with what there is, when the job is cancelled. Raises RagError: not_found for a query that
    is not stored, bad_input for one whose content was not kept or for too many runs, and the first failure where all runs failed.
    """
    stored = [_stored(lab, query_id) for query_id in dict.fromkeys(query_ids)]
    _check(len(stored), len(sides), times)

    def steps(job: Job[ReplayResult]) -> Generator[Event, None, ReplayResult]:
        with ExitStack() as stack:
            replay = _Replay(lab, job, stored, tuple(sides), times, _variants(lab, sides, stack))
            return (yield from replay.steps())

    return steps


def cases(lab: Lab, query_ids: Sequence[str]) -> list[Case]:
    """Stored queries with their spans and readings, in the given order; one that is gone is left out."""
    readings = lab.readings.get_many(query_ids)
    answers = [(query_id, lab.traces.get(query_id)) for query_id in query_ids]
    return [Case(answer, tuple(lab.traces.spans(key)), readings.get(key)) for key, answer in answers if answer is not None]


def order(sides: int, round_number: int, query_number: int) -> range:
    """The sides in the order they run: forwards and backwards in turn (see the module)."""
    return range(sides) if (round_number + query_number) % 2 == 0 else range(sides - 1, -1, -1)


def _stored(lab: Lab, query_id: str) -> Answer:
    answer = lab.traces.get(query_id)
    if answer is None:
        raise RagError(f"there is no stored query {query_id}", kind="not_found", next_step="The page Queries lists them.")
    if not answer.question.strip():
        raise RagError(
            f"the question of query {query_id} was not kept, so it cannot be asked again",
            kind="bad_input",
            next_step="Replay a query that was stored with its content (traces.capture_content).",
        )
    return answer


def _check(queries: int, sides: int, times: int) -> None:
    if not queries or not sides or times < 1:
        raise RagError("a replay needs a query, a side and a round", kind="bad_input", next_step="Choose at least one of each.")
    if (runs := queries * sides * times) > MAX_RUNS:
        raise RagError(
            f"{queries} queries on {sides} sides {times} times are {runs} runs; at most {MAX_RUNS} are taken",
            kind="bad_input",
            next_step="Choose fewer queries or rounds.",
        )


def _variants(lab: Lab, sides: Sequence[Change], stack: ExitStack) -> list[Variant | None]:
    """The models of each side, all there at once because the sides take turns; equal ones only once."""
    made: dict[str, Variant] = {}
    found: list[Variant | None] = []
    for side in sides:
        key = repr(sorted(side.models.items()))
        if side.models and key not in made:
            made[key] = stack.enter_context(lab.variant(side.models))
        found.append(made.get(key))
    return found


class _Replay:
    """A replay on its way."""

    def __init__(
        self,
        lab: Lab,
        job: Job[ReplayResult],
        stored: Sequence[Answer],
        sides: tuple[Change, ...],
        times: int,
        variants: Sequence[Variant | None],
    ) -> None:
        self.lab, self.job, self.stored, self.sides, self.times, self.variants = lab, job, stored, sides, times, variants
        self.runs: list[Run] = []
        self.warm_ups: list[Run] = []

    def steps(self) -> Generator[Event, None, ReplayResult]:
        notes, of = _notes(self.lab, self.stored, self.sides), len(self.stored) * len(self.sides) * self.times
        yield {"type": "replay_started", "runs": of, "sides": [side.label for side in self.sides], "notes": list(notes)}
        try:
            for side in range(len(self.sides)):
                self.warm_ups.append(self._ask(side, None, self.stored[0]))
                yield {"type": "warm_up", "run": self.warm_ups[-1]._asdict()}
            _all_failed(self.warm_ups)
            for round_number in range(self.times):
                for number, stored in enumerate(self.stored):
                    for side in order(len(self.sides), round_number, number):
                        self.runs.append(self._ask(side, round_number, stored))
                        yield {"type": "run", "run": self.runs[-1]._asdict(), "done": len(self.runs), "of": of}
        except Cancelled:
            pass  # what was measured until now is kept; the job says that it was cancelled
        else:
            _all_failed(self.runs)
        ids = tuple(answer.id for answer in self.stored)
        return ReplayResult(self.sides, ids, self.times, tuple(self.runs), tuple(self.warm_ups), notes)

    def _ask(self, side: int, round_number: int | None, stored: Answer) -> Run:
        """One query to its end. Raises Cancelled when the replay is cancelled meanwhile; a failure is in the Run."""
        options = replace(_own_options(self.lab, stored), **{"caches": "bypass", **self.sides[side].options})
        try:
            job = self._submit(stored.question, options, self.variants[side])
        except Cancelled:
            raise
        except RagError as problem:
            return Run(side, round_number, stored.id, None, None, None, error=said(problem))
        while not job.wait(LOOK_SECONDS):
            if self.job.cancelled.is_set():
                job.cancel()
        self._check_cancelled()
        if job.result is None:
            return Run(side, round_number, stored.id, None, None, None, error=f"the query broke off: {job.error}")
        return _run(side, round_number, stored, job.result)

    def _submit(self, question: str, options: Options, variant: Variant | None) -> Job[Answer]:
        """Ask, waiting for a while where users' queries take every place."""
        patience = time.monotonic() + BUSY_SECONDS
        while True:
            self._check_cancelled()
            try:
                return self.lab.submit_query(question, options, origin="measure", variant=variant)
            except RagError as problem:
                if problem.kind != "overloaded" or time.monotonic() > patience:
                    raise
            self.job.cancelled.wait(0.5)

    def _check_cancelled(self) -> None:
        if self.job.cancelled.is_set():
            raise Cancelled("the replay was cancelled")


def _run(side: int, round_number: int | None, stored: Answer, answer: Answer) -> Run:
    lacking = [f"{stage.stage}: {stage.degraded}" for stage in answer.stages if stage.degraded]
    if answer.outcome == "no_documents" and stored.outcome == "answered":
        lacking.append("search: no passage was found (another embedder has a collection of its own)")
    error = answer.error.message if answer.error else "it was cancelled" if answer.outcome == "cancelled" else None
    told = "; ".join(lacking) or None
    return Run(side, round_number, stored.id, answer.id, answer.total_seconds, answer.outcome, answer.cold, told, error)


def _all_failed(runs: Sequence[Run]) -> None:
    """Raises RagError with the first reason where no run counts."""
    if runs and all(run.error is not None for run in runs):
        raise RagError(
            f"every run failed: {runs[0].error}",
            kind="internal",
            next_step="Ask the query on the page Ask and look at its error.",
        )


def _is_foreign(stored: Answer) -> bool:
    return stored.origin.startswith("otlp:")


def _own_options(lab: Lab, stored: Answer) -> Options:
    """The stored query's options; those in force for a query that another program answered, which knows none of ours."""
    return lab.default_options() if _is_foreign(stored) else stored.options


def _notes(lab: Lab, stored: Sequence[Answer], sides: Sequence[Change]) -> tuple[str, ...]:
    """What keeps a replay from being the stored query over again."""
    notes = []
    foreign = sorted({answer.origin.removeprefix("otlp:") for answer in stored if _is_foreign(answer)})
    if foreign:
        names = ", ".join(foreign)
        notes.append(f"Queries of {names} are asked by their question alone, with this program's path, models and documents.")
    now = lab.clients().fingerprint.get("settings")
    changed = [answer for answer in stored if not _is_foreign(answer) and answer.fingerprint.get("settings") != now]
    if changed:
        count = f"{len(changed)} of {len(stored)} queries were"
        notes.append(f"The settings have changed since {count} stored; “as stored” takes those of now.")
    if any(side.options.get("caches", "bypass") != "bypass" for side in sides):
        notes.append("A side uses caches: after its first run it may be answered from them.")
    return tuple(notes)
