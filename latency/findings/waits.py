"""Waits: our own queue, a model server's queue, a full KV cache, failed attempts and the pauses between them."""

from __future__ import annotations

from collections.abc import Iterator

from latency.findings import advice
from latency.findings.drafts import WHERE, Draft
from latency.findings.ledger import LLM, Ledger, Piece
from latency.findings.words import component, count, doing, named, seconds, sentence, worker
from latency.types import Evidence, Series
from rag.types import Stage

KV_FULL_RATIO = 0.95
SLACK_SECONDS = 0.3  # how far a reading may lie from an interval that is shorter than the time between readings
_LATE = ("timeout", "timed out", "time limit", "no answer before")


def retries(ledger: Ledger) -> Iterator[Draft]:
    """Attempts that failed before one worked: hidden in the stage's time."""
    for name, stage in ledger.stages.items():
        for piece in ledger.pieces(name):
            attempts, waited = piece.fact("attempts") or 1, piece.fact("waited_seconds") or 0.0
            if attempts <= 1 or waited <= 0:
                continue
            taken = piece.take(waited, ("other", "prefill", "compute", "network", "decode"))
            yield Draft(
                "retries",
                component(name),
                name,
                f"The {worker(name)} answered only after failed attempts in {WHERE}",
                taken,
                taken,
                f"All of the time lost on failed attempts and the pauses after them: {seconds(taken)}.",
                "measured",
                tuple(_attempts(stage, piece, int(attempts), taken)),
                advice.after_errors(name, late=_was_late(piece)),
            )


def _attempts(stage: Stage, piece: Piece, attempts: int, waited: float) -> Iterator[Evidence]:
    text = f"The {named(stage)} took {count(attempts, 'attempt')}; {seconds(waited)} passed before the last one began."
    yield Evidence(text, waited, "s", piece.span_id or "waited_seconds", piece.start, piece.end)
    for error in list(dict.fromkeys(_errors(piece)))[:3]:
        yield Evidence(f"A failed attempt said: {error}", None, "", piece.span_id or "errors", piece.start, piece.end)


def _errors(piece: Piece) -> list[str]:
    said = piece.facts.get("errors")
    return [str(error)[:300] for error in said] if isinstance(said, (list, tuple)) else []


def _was_late(piece: Piece) -> bool:
    return any(word in error.lower() for error in _errors(piece) for word in _LATE)


def own_queue(ledger: Ledger) -> Iterator[Draft]:
    """Waiting for a model's worker: ours in the process, the server's where it reports its queue."""
    for name, stage in ledger.stages.items():
        if name in LLM and stage.where == "http":
            continue
        for piece in ledger.pieces(name):
            taken = piece.take(piece.left("queue"), ("queue",))
            if taken <= 0:
                continue
            ours = stage.where != "http"
            place = "this process's queue for it" if ours else "its server's queue"
            text = f"{sentence(doing(name))} waited {seconds(taken)} in {place} ({named(stage)})."
            yield Draft(
                "client_queue" if ours else "server_queue",
                component(name),
                name,
                f"{WHERE} waited for the {worker(name)}, which was busy with other work",
                taken,
                taken,
                f"All of the time in the queue: {seconds(taken)}.",
                "measured",
                (Evidence(text, taken, "s", piece.span_id or "split.queue", piece.start, piece.end),),
                advice.OUR_QUEUE if ours else advice.SERVER_QUEUE,
            )


def llm_queue(ledger: Ledger) -> Iterator[Draft]:
    """Waiting in the language model server's own queue: by its word, else by its metrics and a first token later than usual."""
    for name in LLM:
        stage = ledger.stages.get(name)
        if stage is None or stage.where != "http":
            continue
        for piece in ledger.pieces(name):
            told = (piece.fact("server_queue_seconds") or 0.0) or piece.left("queue")
            waited = told or _late_with_queue(ledger, name, piece)
            taken = piece.take(waited, ("queue", "prefill", "compute", "other"))
            if taken > 0:
                yield _queued(ledger, stage, piece, taken, measured=told > 0)


def _late_with_queue(ledger: Ledger, name: str, piece: Piece) -> float:
    """The first token's delay beyond the usual, where requests were waiting at the server meanwhile."""
    late = ledger.excess(name).get("prefill", 0.0)
    waiting = _highest(engine(ledger, "waiting"), piece.start, piece.end - piece.left("decode"))
    return late if waiting else 0.0


def _queued(ledger: Ledger, stage: Stage, piece: Piece, taken: float, *, measured: bool) -> Draft:
    usage = _highest(engine(ledger, "kv_cache_used_ratio"), piece.start, piece.end)
    preempted = sum(sum(series.within(piece.start, piece.end)) for series in engine(ledger, "preemptions"))
    full = (usage is not None and usage >= KV_FULL_RATIO) or preempted > 0
    return Draft(
        "kv_cache_full" if full else "llm_queue",
        component(stage.stage),
        stage.stage,
        f"The language model's KV cache was full, and {WHERE} had to wait"
        if full
        else f"{WHERE} waited in the language model's queue",
        taken,
        taken,
        f"All of the time in the server's queue: {seconds(taken)}." if measured else _lateness(ledger, stage, taken),
        "measured" if measured else "derived",
        tuple(_queue_evidence(ledger, stage, piece, taken, usage, preempted, measured)),
        advice.KV_CACHE if full else advice.LLM_QUEUE,
    )


def _lateness(ledger: Ledger, stage: Stage, taken: float) -> str:
    expected = ledger.expected_prefill(stage.stage) or 0.0
    return (
        f"First token {seconds(taken)} later than the {seconds(expected)} that are usual for this prompt, while requests waited."
    )


def _queue_evidence(
    ledger: Ledger, stage: Stage, piece: Piece, taken: float, usage: float | None, preempted: float, measured: bool
) -> Iterator[Evidence]:
    if measured:
        text = f"The server of the {named(stage)} kept the request {seconds(taken)} in its queue before it began."
        yield Evidence(text, taken, "s", piece.span_id or "server_queue_seconds", piece.start, piece.start + taken)
    for series in engine(ledger, "waiting"):
        waiting = _highest((series,), piece.start, piece.end)
        if waiting:
            text = f"{series.source} reported up to {count(waiting, 'request')} waiting during {doing(stage.stage)}."
            yield Evidence(text, waiting, "requests", f"{series.source}/{series.metric}", piece.start, piece.end)
    if usage is not None and usage >= KV_FULL_RATIO:
        text = f"The KV cache was used to {usage * 100:.0f} %, so that no further request could start."
        yield Evidence(text, usage, "ratio", "engine.kv_cache_used_ratio", piece.start, piece.end)
    if preempted > 0:
        text = f"The engine preempted {count(preempted, 'request')} meanwhile; they have to start over."
        yield Evidence(text, preempted, "requests", "engine.preemptions", piece.start, piece.end)


def engine(ledger: Ledger, field: str) -> tuple[Series, ...]:
    """That metric of every engine: `engine.waiting`, `engine.NAME.waiting`."""
    series = () if ledger.readings is None else ledger.readings.series
    return tuple(each for each in series if each.metric.startswith("engine.") and each.metric.endswith(f".{field}"))


def _highest(found: tuple[Series, ...], start: float, end: float) -> float | None:
    values = [value for series in found for value in near(series, start, end)]
    return max(values) if values else None


def near(series: Series, start: float, end: float, slack: float = SLACK_SECONDS) -> tuple[float, ...]:
    """The values within an interval; where it is shorter than the time between two readings, those just beside it."""
    return series.within(start, end) or series.within(start - slack, end + slack)
