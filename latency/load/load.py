"""The load test: more and more users ask, step by step; what each stage takes, how much comes through, and where the knee is.

Closed loop: each user asks again when answered. Open loop (`open_rate`): each user asks at random moments (a Poisson process,
seeded) whether answered or not, and latency counts from the moment at which a question was due. A client that measures from the
moment at which it got round to sending leaves out exactly the waits that matter (coordinated omission); this one does not.

Bounded in time and count by the limits below, and stoppable at any moment. Knows no page and no settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobs import Event, Job
from latency.load import knee
from latency.load.clients import KINDS, Client, HttpClient, ProcessClient, options_of
from latency.load.plan import MAX_IN_FLIGHT, LoadPlan, bad_input, checked, load_questions, longest_seconds, read_questions
from latency.load.readings import Looks, Source
from latency.load.steps import Heard, Step, Told, step_of
from latency.load.users import StepRun
from rag.errors import Kind, RagError

if TYPE_CHECKING:
    from latency.lab import Lab

__all__ = [
    "LoadPlan",
    "LoadResult",
    "checked",
    "load_questions",
    "longest_seconds",
    "read_questions",
    "rows",
    "where_asked",
    "work",
]

BEAT_SECONDS = 0.2
TELL_SECONDS = 1.0
END_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A load test at its end. `warmup` is None where none was asked for; `stopped` says why it ended early, if it did."""

    plan: Mapping[str, Any]
    steps: tuple[Step, ...]
    knee: knee.Knee
    warmup: Step | None = None
    stopped: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": dict(self.plan),
            "warmup": self.warmup.to_json() if self.warmup else None,
            "steps": [step.to_json() for step in self.steps],
            "knee": self.knee.to_json(),
            "stopped": self.stopped,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LoadResult:
        """The inverse of `to_json`."""
        return cls(
            data["plan"],
            tuple(Step.from_json(each) for each in data["steps"]),
            knee.Knee.from_json(data["knee"]),
            Step.from_json(data["warmup"]) if data["warmup"] else None,
            data["stopped"],
        )


def work(lab: Lab | None, plan: LoadPlan) -> Callable[[Job[LoadResult]], Generator[Event, None, LoadResult]]:
    """What to give to `jobs.submit("experiment", …)`. Asks `plan.api_url`, else the lab; the lab's machines are read beside it
    either way. Raises RagError at once for a plan that cannot be run.

    Yields `load_started`, `warmup_finished`, `step_started`, `progress` (once a second), `step_finished` (a step each). Raises
    RagError when the warm-up finds that nothing is answered.
    """
    plan = checked(plan)
    if plan.api_url is None:
        if lab is None:
            raise bad_input("there is nobody to ask", "Give the address of an API.")
        options_of(lab.default_options(), plan.options)

    def run(job: Job[LoadResult]) -> Generator[Event, None, LoadResult]:
        client = _client(lab, plan)
        try:
            return (yield from _Test(plan, client, lab.sweep if lab is not None else None, job).run())
        finally:
            client.close()

    return run


def _client(lab: Lab | None, plan: LoadPlan) -> Client:
    if plan.api_url is not None:
        connections = max(plan.users) if plan.open_rate is None else MAX_IN_FLIGHT
        return HttpClient(plan.api_url, plan.token, plan.options, plan.timeout_seconds, connections)
    assert lab is not None
    return ProcessClient(lab, plan.options, plan.timeout_seconds)


class _Test:
    """A load test on its way."""

    def __init__(self, plan: LoadPlan, client: Client, source: Source | None, job: Job[LoadResult]) -> None:
        self.plan, self.client, self.source, self.job = plan, client, source, job
        self.steps: list[Step] = []

    def run(self) -> Generator[Event, None, LoadResult]:
        yield {"type": "load_started", "plan": self.plan.to_json()}
        warmup = self.warm_up()
        if warmup is not None:
            yield {"type": "warmup_finished", "step": warmup.to_json()}
        stopped: str | None = None
        for index, users in enumerate(self.plan.users):
            if self.job.cancelled.is_set():
                stopped = "stopped by hand"
                break
            yield {"type": "step_started", "users": users, "step": index + 1, "of": len(self.plan.users)}
            step = yield from self.step(users)
            if step.answered or not self.job.cancelled.is_set():
                self.steps.append(step)
                yield {"type": "step_finished", "step": step.to_json()}
            if self.job.cancelled.is_set():
                stopped = "stopped by hand"
                break
            if not step.answered:
                stopped = f"with {users} users nothing was answered"
                break
        return LoadResult(self.plan.to_json(), tuple(self.steps), knee.find(self.steps), warmup, stopped)

    def warm_up(self) -> Step | None:
        """One request after another; they are kept apart from the steps. Raises RagError when none is answered."""
        heard: list[Heard] = []
        began = time.monotonic()
        for number in range(self.plan.warmup_requests):
            if self.job.cancelled.is_set():
                break
            sent = time.monotonic() - began
            told = self.client.ask(self.plan.questions[number % len(self.plan.questions)], self.job.cancelled)
            heard.append(Heard(sent, sent, time.monotonic() - began, told))
        failed = [each.told for each in heard if each.told.error not in (None, "cancelled")]
        if failed and len(failed) == len(heard):
            raise _not_answered(failed[0], self.plan)
        return step_of(heard, 1, time.monotonic() - began) if heard else None

    def step(self, users: int) -> Generator[Event, None, Step]:
        run = StepRun(self.plan, users, self.client)
        looks = Looks(self.source, time.time())
        try:
            run.start()
            yield from self._watch(run, looks)
        finally:
            run.give_up()
        run.wait(END_SECONDS)
        looks.look()
        return run.step(looks)

    def _watch(self, run: StepRun, looks: Looks) -> Generator[Event, None, None]:
        """Until all users have ended, the test is stopped, or the time for the last requests is over."""
        told = ended = 0.0
        while run.is_running and not self.job.cancelled.wait(BEAT_SECONDS):
            now = run.now()
            if run.is_asking:
                ended = now
            elif now - ended > self.plan.timeout_seconds + END_SECONDS:
                return
            if now - told >= TELL_SECONDS:
                told = now
                looks.look()
                yield {"type": "progress", "users": run.users, **run.progress(), "readings": looks.latest()}


def _not_answered(told: Told, plan: LoadPlan) -> RagError:
    steps: Mapping[str, str] = {
        "authentication": "Give the token of that API.",
        "connection": "Check the address, and that something listens there.",
        "not_found": "Check the path of the address.",
        "bad_input": "Perhaps it does not know the options that are sent: leave them out.",
        "overloaded": "It is too busy now, or its limit is lower than one.",
    }
    kind: Kind = told.error if told.error in KINDS else "internal"  # type: ignore[assignment]
    where = plan.api_url or "this process"
    message = f"the warm-up was not answered by {where}: {told.message or kind}"
    step = steps.get(kind, "Ask one question by hand and see what is wrong.")
    return RagError(message, kind=kind, address=plan.api_url, next_step=step)


def where_asked(plan: Mapping[str, Any]) -> str:
    """`this process`, or the host that was asked: of a stored plan."""
    url = plan.get("api_url")
    return urlsplit(str(url)).netloc if url else "this process"


def rows(steps: Sequence[Step]) -> tuple[list[str], list[list[Any]]]:
    """(heads, rows) of a table of the steps, for a spreadsheet: seconds and counts; unknown is None."""
    stages = list(dict.fromkeys(name for step in steps for name in step.stages))
    heads = ["users", "rate_per_second", "seconds", "asked", "answered", "failed", "unfinished", "throughput_per_second"]
    heads += [f"{name}_{what}" for name in ("total", *stages) for what in ("n", "mean", "p50", "p95", "p99")]
    heads += [f"{name}_queue_{what}" for name in stages for what in ("mean", "p95")]
    kinds = sorted({kind for step in steps for kind in step.errors})
    metrics = sorted({(each.source, each.metric) for step in steps for each in step.readings})
    heads += [f"errors_{kind}" for kind in kinds] + [f"{source} {metric} mean" for source, metric in metrics]
    found: list[list[Any]] = []
    for step in steps:
        row: list[Any] = [step.users, step.rate, step.seconds, step.asked, step.answered, step.failed, step.unfinished]
        row.append(step.throughput)
        for times in (step.total, *(step.stages.get(name) for name in stages)):
            row += [None if times is None else getattr(times, what) for what in ("n", "mean", "p50", "p95", "p99")]
        for times in (step.queues.get(name) for name in stages):
            row += [None if times is None else getattr(times, what) for what in ("mean", "p95")]
        known = {(each.source, each.metric): each.mean for each in step.readings}
        found.append([*row, *(step.errors.get(kind, 0) for kind in kinds), *(known.get(each) for each in metrics)])
    return heads, found
