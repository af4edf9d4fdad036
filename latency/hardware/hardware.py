"""CPU against GPU: embed and rerank by device and precision, over so many texts and so many clients at once.

Each place (a device with a precision in this process, or the servers in the settings) is built by the lab, warmed, measured
cell by cell and let go of. What cannot be had is a row with the reason instead of numbers. Knows no torch and no prices.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from gpu_server.errors import EngineError
from gpu_server.interfaces import Embedder, ModelInfo, RerankCandidate, Reranker, Timing
from jobs import Event, Job
from latency.hardware.types import COMPONENTS, HTTP, PRECISIONS, Cell, HardwarePlan, HardwareResult, Place, Row
from latency.load.plan import LoadPlan, bad_input
from latency.load.readings import Looks
from latency.load.steps import Told
from latency.load.users import StepRun
from rag.errors import RagError
from rag.trace_store import TraceStore

if TYPE_CHECKING:
    from latency.lab import Lab

__all__ = ["COMPONENTS", "PRECISIONS", "HardwarePlan", "HardwareResult", "checked", "longest_seconds", "rows_of", "work"]

MAX_TEXTS = 200
MAX_CLIENTS = 32
MAX_SIZES = 8
MAX_SECONDS_PER_CELL = 30.0
MAX_SECONDS = 3600.0
CELL_LIMIT_SECONDS = 30.0  # what a cell may take by its forecast
CALL_LIMIT_SECONDS = 60.0
BEAT_SECONDS = 0.05
QUESTION = "Which part of the path is slow, and what would make it fast?"

SAMPLE = (
    "A query is embedded first, then the store is searched by vector and by words, and the passages that both routes found are "
    "put in one order. A cross-encoder reads the question together with each of these passages and gives every pair a score. "
    "This is the dearest step of retrieval, because the model reads every pair from the beginning, while the vectors of the "
    "passages were made once, when the documents came in. On a processor it takes time in proportion to the number of passages "
    "and to their length; on a graphics card the pairs of one question fit into a few batches, and the time hardly grows before "
    "the card is full. Several users at once wait for the same card or the same cores, one behind the other."
)


# 1) the plan


def checked(plan: HardwarePlan) -> HardwarePlan:
    """The plan, if it can be run. Raises RagError that names the wrong value and its limit."""
    if not plan.components or not (plan.http or (plan.devices and plan.precisions)):
        raise bad_input("there is nothing to measure", "Choose embed or rerank, and a device or the servers.")
    if unknown := [each for each in plan.precisions if each not in PRECISIONS]:
        raise bad_input(f"the precision {unknown[0]!r} is not known", f"Known are {', '.join(PRECISIONS)}.")
    lists = (("candidates", plan.candidates, MAX_TEXTS), ("clients", plan.clients, MAX_CLIENTS))
    for name, values, most in lists:
        if not values or len(values) > MAX_SIZES or min(values) < 1 or max(values) > most:
            raise bad_input(
                f"{name} are {', '.join(map(str, values)) or 'none'}", f"Give 1 to {MAX_SIZES} numbers of 1 to {most}."
            )
        if list(values) != sorted(set(values)):
            raise bad_input(f"{name} do not rise", "Give each number once, smallest first.")
    within = (
        ("seconds_per_cell", plan.seconds_per_cell, 0.05, MAX_SECONDS_PER_CELL),
        ("calls_per_cell", plan.calls_per_cell, 1, 10_000),
        ("seconds", plan.seconds, 1, MAX_SECONDS),
    )
    for name, value, low, high in within:
        if not low <= value <= high:
            raise bad_input(f"{name} is {value:g}", f"It is {low:g} to {high:g}.")
    return plan


def places(plan: HardwarePlan) -> tuple[Place, ...]:
    """Everywhere that is to be measured, a model after the other."""
    found: list[Place] = []
    for component in plan.components:
        pairs = itertools.product(plan.devices, plan.precisions)
        found += [Place(component, "in-process", device, precision) for device, precision in pairs]
        found += [Place(component, HTTP)] if plan.http else []
    return tuple(found)


def longest_seconds(plan: HardwarePlan) -> float:
    """About the most it takes, where everything can be had."""
    cells = sum(len(plan.sizes(place.component)) * len(plan.clients) for place in places(plan))
    return min(plan.seconds, cells * (plan.seconds_per_cell + 0.1))


def passages(traces: TraceStore, most: int = MAX_TEXTS) -> tuple[tuple[str, ...], str]:
    """(texts, a sentence on where they are from): passages of the last stored queries, else one that is part of the program."""
    found: dict[str, None] = {}
    for row in traces.search(limit=40):
        answer = traces.get(row.id)
        found |= dict.fromkeys(passage.text for passage in (answer.passages if answer else ()) if passage.text.strip())
        if len(found) >= most:
            break
    texts = tuple(found)[:most]
    if not texts:
        return (SAMPLE,), f"One sample passage of {len(SAMPLE)} characters: no stored query holds passages."
    median = sorted(len(text) for text in texts)[len(texts) // 2]
    return texts, f"{len(texts)} passages of the last stored queries, {median:,} characters in the median."


# 2) one place: a model as the load test's users ask it


class ModelClient:
    """Calls a model as `clients` do; each call has texts of its own, so that nothing is shared between calls."""

    def __init__(self, place: Place, model: Embedder | Reranker, texts: Sequence[str], size: int) -> None:
        self._place, self._model, self._size = place, model, size
        self._texts = [texts[index % len(texts)] for index in range(size)]
        self._number = itertools.count(1)

    def ask(self, question: str, stop: threading.Event) -> Told:
        if stop.is_set():
            return Told(error="cancelled")
        try:
            timing = self._call(f"{question} ({next(self._number)})")
        except (EngineError, RagError) as problem:
            return Told(error=problem.kind, message=problem.message)
        except TimeoutError as problem:
            return Told(error="timeout", message=str(problem))
        return Told({"compute": timing.tokenize + timing.compute}, {"compute": timing.queue}, cold=timing.cold)

    def _call(self, question: str) -> Timing:
        deadline = time.monotonic() + CALL_LIMIT_SECONDS
        if self._place.component == "embed":
            embedder: Embedder = self._model  # type: ignore[assignment]
            texts = [question] if self._size == 1 else [f"{question} {text}" for text in self._texts]
            kind: Literal["query", "passage"] = "query" if self._size == 1 else "passage"
            return embedder.embed(texts, kind, deadline=deadline, caches="bypass").timing
        reranker: Reranker = self._model  # type: ignore[assignment]
        return reranker.score(
            question, [RerankCandidate(text) for text in self._texts], deadline=deadline, caches="bypass"
        ).timing

    def close(self) -> None:
        """The lab lets go of the model."""


class NotHere(Exception):
    """A place that cannot be measured, and why."""


def unfit(place: Place, info: ModelInfo) -> str | None:
    """Why a model that loaded is not what was asked for; None when it is."""
    if place.where == HTTP:
        return None
    if place.precision and info.precision != place.precision:
        return f"asked for {place.precision}, and {info.name} runs in {info.precision}"
    if place.device and info.device.split(":")[0] != place.device.split(":")[0]:
        return f"asked for {place.device}, and {info.name} runs on {info.device}"
    return None


# 3) the comparison


def work(lab: Lab, plan: HardwarePlan) -> Callable[[Job[HardwareResult]], Generator[Event, None, HardwareResult]]:
    """What to give to `jobs.submit("experiment", …)`. Raises RagError at once for a plan that cannot be run.

    Yields `hardware_started` (plan, how many cells), `place_started`, `cell` (one measured or skipped) and `place_finished` (a
    Row).
    """
    plan = checked(plan)

    def run(job: Job[HardwareResult]) -> Generator[Event, None, HardwareResult]:
        texts, about = passages(lab.traces)
        everywhere = places(plan)
        cells = sum(len(plan.sizes(place.component)) * len(plan.clients) for place in everywhere)
        yield {"type": "hardware_started", "plan": plan.to_json(), "places": len(everywhere), "cells": cells, "texts": about}
        comparison = _Comparison(lab, plan, job, texts)
        rows: list[Row] = []
        for index, place in enumerate(everywhere):
            if job.cancelled.is_set():
                break
            yield {"type": "place_started", "place": place._asdict(), "name": place.name, "number": index + 1}
            row = yield from comparison.row(place)
            rows.append(row)
            yield {"type": "place_finished", "row": row.to_json()}
        stopped = "stopped by hand" if job.cancelled.is_set() else comparison.stopped
        return HardwareResult(plan.to_json(), tuple(rows), about, stopped)

    return run


class _Comparison:
    """A comparison on its way."""

    def __init__(self, lab: Lab, plan: HardwarePlan, job: Job[HardwareResult], texts: Sequence[str]) -> None:
        self.lab, self.plan, self.job, self.texts = lab, plan, job, texts
        self.stopped: str | None = None
        self._end = time.monotonic() + plan.seconds

    def row(self, place: Place) -> Generator[Event, None, Row]:
        row = Row(place)
        with ExitStack() as stack:
            try:
                if time.monotonic() > self._end:
                    raise NotHere(self._over())
                began = time.monotonic()
                variant = stack.enter_context(self.lab.variant(place.changes()))
                model = _model(place, variant.clients.embedder, variant.clients.reranker)
                row = self._warmed(row, model, began)
            except (RagError, EngineError, NotHere) as problem:
                return replace(row, skipped=getattr(problem, "message", None) or str(problem))
            cells: list[Cell] = []
            for size in self.plan.sizes(place.component):
                for clients in self.plan.clients:
                    if self.job.cancelled.is_set():
                        break
                    cell = self._cell(place, model, size, clients, cells)
                    cells.append(cell)
                    yield {"type": "cell", "place": place._asdict(), **_told(cell)}
        return replace(row, cells=tuple(cells))

    def _warmed(self, row: Row, model: Embedder | Reranker, began: float) -> Row:
        """Two calls, of which none counts. Raises RagError, NotHere for a model that fails or is not what was asked for."""
        client = ModelClient(row.place, model, self.texts, self.plan.sizes(row.place.component)[0])
        for _ in range(2):
            told = client.ask(QUESTION, self.job.cancelled)
            if told.error is not None:
                raise NotHere("stopped" if told.error == "cancelled" else told.message or told.error)
        info = model.info
        if reason := unfit(row.place, info):
            raise NotHere(reason)
        load = time.monotonic() - began if row.place.where != HTTP else None
        return replace(
            row, model=info.name, device=info.device, precision=info.precision, address=info.address, load_seconds=load
        )

    def _over(self) -> str:
        self.stopped = f"the comparison's time limit of {self.plan.seconds:g} s passed"
        return self.stopped

    def _cell(self, place: Place, model: Embedder | Reranker, size: int, clients: int, before: Sequence[Cell]) -> Cell:
        if time.monotonic() > self._end:
            return Cell(size, clients, skipped=self._over())
        expected = forecast(size, clients, before)
        if expected is not None and expected > CELL_LIMIT_SECONDS:
            return Cell(
                size, clients, skipped=f"a call of each client would take about {expected:.0f} s: over {CELL_LIMIT_SECONDS:g} s"
            )
        client = ModelClient(place, model, self.texts, size)
        calls = max(self.plan.calls_per_cell, 2 * clients)
        shape = LoadPlan((clients,), (QUESTION,), self.plan.seconds_per_cell, calls, timeout_seconds=CALL_LIMIT_SECONDS)
        run = StepRun(shape, clients, client)
        try:
            run.start()
            while run.is_running and not self.job.cancelled.wait(BEAT_SECONDS):
                continue
        finally:
            run.give_up()
        run.wait(CALL_LIMIT_SECONDS)
        step = run.step(Looks(None, 0.0))
        return Cell(size, clients, step) if step.asked else Cell(size, clients, skipped="stopped")


def forecast(size: int, clients: int, before: Sequence[Cell]) -> float | None:
    """Seconds until each of the clients has had an answer, from the last cell of one client: as if nothing ran side by side."""
    alone = [(cell.size, cell.step.total.p50) for cell in before if cell.clients == 1 and cell.step and cell.step.total]
    return alone[-1][1] * size / alone[-1][0] * clients if alone else None


def _model(place: Place, embedder: Embedder, reranker: Reranker | None) -> Embedder | Reranker:
    if place.component == "embed":
        return embedder
    if reranker is None:
        raise NotHere("the reranker is switched off (reranker.enabled)")
    if reranker.uses_route_scores:
        raise NotHere("the starter reranker is arithmetic on the routes' scores, no model: a device changes nothing")
    return reranker


def _told(cell: Cell) -> dict[str, Any]:
    total = cell.step.total if cell.step else None
    return {
        "size": cell.size,
        "clients": cell.clients,
        "p50": total.p50 if total else None,
        "per_second": cell.step.throughput if cell.step else None,
        "skipped": cell.skipped,
    }


def rows_of(result: HardwareResult) -> tuple[list[str], list[list[Any]]]:
    """(heads, rows) of all cells, for a spreadsheet; unknown is None."""
    heads = ["component", "place", "model", "device", "precision", "texts", "clients", "n", "p50_seconds", "p95_seconds"]
    heads += ["mean_seconds", "queue_mean_seconds", "calls_per_second", "texts_per_second", "errors", "skipped"]
    found: list[list[Any]] = []
    for row in result.rows:
        who = [row.place.component, row.place.name, row.model, row.device, row.precision]
        if row.skipped:
            found.append([*who, *[None] * 10, row.skipped])
        for cell in row.cells:
            step, total = cell.step, cell.step.total if cell.step else None
            numbers: list[Any] = [total.n, total.p50, total.p95, total.mean] if total else [None] * 4
            queue = step.queues.get("compute") if step else None
            rate = step.throughput if step and step.answered else None
            rates = [rate, None if rate is None else rate * cell.size, step.failed if step else None]
            found.append([*who, cell.size, cell.clients, *numbers, queue.mean if queue else None, *rates, cell.skipped])
    return heads, found
