"""Books the time of each stage while a query runs: spans into the trace, intervals for the waterfall, sums by stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from gpu_server.errors import EngineError
from gpu_server.interfaces import ModelInfo, Timing
from rag.errors import Cancelled, Kind, RagError, StageError
from rag.trace import QueryTrace, SpanHandle
from rag.types import STAGES, Event, Interval, Split, Stage

_DEGRADED = {
    "hyde": "the language model failed, so the question alone was searched",
    "rerank": "the reranker failed, so the fused order stands",
}


class SpanNote:
    """What the path learns while a span runs; read when it ends."""

    def __init__(self, handle: SpanHandle) -> None:
        self.handle = handle
        self.timing = Timing()
        self.compute: float | None = None
        self.device: str | None = None
        self.model: str | None = None
        self.where: str | None = None
        self.address: str | None = None
        self.estimated_network: float | None = None
        self.cached = (0, 0)  # of how many results a cache gave how many
        self.facts: dict[str, Any] = {}

    def describe(self, info: ModelInfo) -> None:
        """Which model works here, on what, and where."""
        self.device = None if info.device == "remote" else info.device
        self.model, self.where, self.address = info.name, info.where, info.address
        provider = "openai" if info.where == "http" and info.kind == "llm" else None
        self.handle.set(model=info.name, device=self.device, provider=provider)
        if info.address:
            parts = urlsplit(info.address)
            self.handle.set(address=parts.hostname, port=parts.port)

    def network(self, round_trip: float | None, round_trips: int) -> None:
        """An estimate: round trips times what one took on the open connection; None stays unknown."""
        self.estimated_network = None if round_trip is None else round_trip * round_trips

    def remarks(self) -> str:
        """What the interval's label says beyond what was done."""
        given, total = self.cached
        estimated = self.timing.network_estimated or self.estimated_network is not None
        part = "" if given == total else f"{given} of {total} "
        return (f" ({part}from cache)" if given else "") + (" (network estimated)" if estimated else "")

    def all_facts(self) -> dict[str, Any]:
        """What was learnt, with the attempts where there was more than one."""
        timing = self.timing
        if timing.attempts > 1:
            self.facts |= {"attempts": timing.attempts, "waited_seconds": timing.waited, "errors": list(timing.errors)}
        return {name: value for name, value in self.facts.items() if value is not None}

    def split(self, seconds: float) -> Split:
        timing = self.timing
        known = timing.load + timing.queue + timing.tokenize
        network = timing.network
        if network is None and self.estimated_network is not None:
            network = min(self.estimated_network, max(0.0, seconds - known))
        compute = timing.compute
        if not compute and self.compute is not None:
            compute = max(0.0, self.compute - known - (network or 0.0) - timing.waited)
        other = max(0.0, seconds - known - compute - (network or 0.0))
        return Split(timing.load, timing.queue, timing.tokenize, compute, network, other)


class Recorder:
    """One query's stages. `current` is the stage begun last, for errors that come between spans."""

    def __init__(self, trace: QueryTrace) -> None:
        self.trace = trace
        self.current: str | None = None
        self._stages: dict[str, Stage] = {}
        self._timeline: list[Interval] = []

    def elapsed(self) -> float:
        """Seconds since the query started."""
        return self.trace.elapsed()

    @property
    def timeline(self) -> tuple[Interval, ...]:
        return tuple(sorted(self._timeline, key=lambda interval: interval.start))

    def all(self) -> tuple[Stage, ...]:
        """Every stage in the order it is shown; one that was never reached says so."""
        return tuple(self._stages.get(name) or Stage(name, skipped="not reached") for name in STAGES)

    def models(self) -> dict[str, str]:
        return {stage.stage: stage.model for stage in self._stages.values() if stage.model}

    def started(self, stage: str) -> Event:
        self.current = stage
        return {"type": "stage_started", "stage": stage}

    def finished(self, stage: str) -> Event:
        return {"type": "stage_finished", "stage": self._stages[stage].to_json()}

    def skip(self, stage: str, reason: str, hit: bool | None = None) -> Event:
        cached = hit is not None  # a cache that was asked is not skipped
        self._stages[stage] = Stage(stage, skipped=None if cached else reason, hit=hit, reason=reason if cached else None)
        return self.finished(stage)

    def cache_said(self, hit: bool, reason: str) -> None:
        """What the cache answered, onto its stage, which ran."""
        self._stages["cache"] = replace(self._stages["cache"], hit=hit, reason=reason)

    def not_run(self) -> tuple[str, ...]:
        """Stages of which nothing is known yet."""
        return tuple(name for name in STAGES if name not in self._stages)

    def degrade(self, stage: str, reason: str) -> None:
        """The stage works with less than was asked for; the reason is shown."""
        known = self._stages.get(stage) or Stage(stage)
        self._stages[stage] = replace(known, degraded=f"{known.degraded}; {reason}" if known.degraded else reason)

    def degraded(self, stage: str) -> bool:
        return bool(stage in self._stages and self._stages[stage].degraded)

    @contextmanager
    def span(self, stage: str, label: str, *, can_degrade: bool = False, **attributes: Any) -> Iterator[SpanNote]:
        """Time a piece of a stage. Foreign errors leave as StageError; with `can_degrade` they end the span, not the query."""
        self.current = stage
        handle = self.trace.span(stage, stage, **attributes)
        note = SpanNote(handle)
        failure: RagError | None = None
        try:
            with handle:
                try:
                    yield note
                except Cancelled:
                    raise
                except Exception as problem:
                    failure = stage_error(stage, problem, note.address)
                    raise failure from problem
        except StageError:
            if not can_degrade or failure is None:
                raise
        finally:
            self._book(stage, label, note)
        if failure is not None:
            self.degrade(stage, f"{_DEGRADED[stage]}: {failure.message}")

    def _book(self, stage: str, label: str, note: SpanNote) -> None:
        """Write the split onto the ended span, the interval onto the time axis, and both onto the stage's sum."""
        seconds = note.handle.seconds or 0.0
        split, cold = note.split(seconds), note.timing.cold
        note.handle.timing(
            device=note.device,
            load=split.load,
            queue=split.queue,
            tokenize=split.tokenize,
            compute=split.compute,
            network=split.network,
            cold=cold,
        )
        self._timeline.append(
            Interval(stage, note.handle.start_seconds, seconds, label + note.remarks(), split, cold, note.all_facts())
        )
        known = self._stages.get(stage)
        if known is None:
            self._stages[stage] = Stage(stage, seconds, 1, cold, None, None, note.device, note.model, note.where, split)
            return
        self._stages[stage] = replace(
            known,
            seconds=known.seconds + seconds,
            spans=known.spans + 1,
            cold=known.cold or cold,
            device=note.device or known.device,
            model=note.model or known.model,
            where=note.where or known.where,
            split=_sum(known.split, split),
        )


def _sum(one: Split, two: Split) -> Split:
    network = None if one.network is None and two.network is None else (one.network or 0.0) + (two.network or 0.0)
    return Split(
        one.load + two.load,
        one.queue + two.queue,
        one.tokenize + two.tokenize,
        one.compute + two.compute,
        network,
        one.other + two.other,
    )


def stage_error(stage: str, problem: Exception, address: str | None = None) -> StageError:
    """Any error as the StageError that a query ends with; foreign ones are told apart by their class."""
    if isinstance(problem, StageError):
        return problem
    if isinstance(problem, (RagError, EngineError)):
        return StageError(
            stage, problem.message, kind=problem.kind, address=problem.address or address, next_step=problem.next_step
        )
    kind, next_step = _foreign(problem)
    return StageError(stage, f"{type(problem).__name__}: {str(problem)[:500]}", kind=kind, address=address, next_step=next_step)


def _foreign(problem: Exception) -> tuple[Kind, str]:
    if isinstance(problem, TimeoutError):
        return "timeout", "Look at the waterfall for what took the time, or raise query.deadline_seconds."
    if isinstance(problem, ConnectionError):
        return "connection", "Check that the server runs and that the address is right."
    if isinstance(problem, (FileNotFoundError, ImportError)):
        return "model", "Install what is missing (make dashboard), or choose another model in the settings."
    if isinstance(problem, ValueError):
        return "bad_input", "Change the question or the settings named in the message."
    return "internal", "This is a defect of RAG Deck: the log has the details."
