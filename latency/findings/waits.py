"""Waits: our own queue, a model server's queue, a full KV cache, failed attempts and the pauses between them."""

from __future__ import annotations

from collections.abc import Iterator

from latency.findings import advice
from latency.findings.drafts import WHERE, Draft
from latency.findings.ledger import LLM, POOLS, Ledger, Piece
from latency.findings.words import component, count, doing, named, seconds, sentence, worker
from latency.types import Confidence, Evidence, Series
from rag.types import Stage

KV_FULL_RATIO = 0.95
SOME_QUEUE_SECONDS = 0.01  # a worker that is free takes a text in a fraction of it
SLACK_SECONDS = 0.3  # how far a reading may lie from an interval that is shorter than the time between readings
_FAILED = " failed, so the "  # how the path words that it goes on without a stage
_LATE = ("timeout", "timed out", "time limit", "no answer before", "no complete answer")


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


def given_up(ledger: Ledger) -> Iterator[Draft]:
    """A stage that failed in the end, and was waited for in vain: the query went on without it, or ended there."""
    for name, stage in ledger.stages.items():
        said = _failure(ledger, stage)
        if said is None:
            continue
        usual = ledger.usual(name)
        least = 0.0 if usual is None else usual.seconds
        taken = ledger.take(name, ledger.left(name) - least, *POOLS)
        piece = ledger.pieces(name)[-1]
        text = f"{sentence(doing(name))} took {seconds(stage.seconds)} and came to nothing: {said[:300]}"
        beside = "" if usual is None else f" less the usual {seconds(least)} of one that works"
        yield Draft(
            "retries",
            component(name),
            name,
            f"{WHERE} waited in vain for the {worker(name)}",
            taken,
            taken,
            f"All of the time until it was given up{beside}: {seconds(taken)}.",
            "measured" if usual is None else "derived",
            (Evidence(text, stage.seconds, "s", piece.span_id or "degraded", piece.start, piece.end),),
            advice.after_errors(name, late=any(word in said.lower() for word in _LATE)),
        )


def _failure(ledger: Ledger, stage: Stage) -> str | None:
    """What a stage that came to nothing said; None where it worked, if only in part."""
    error = ledger.case.answer.error
    if error is not None and error.stage == stage.stage and ledger.case.answer.outcome == "failed":
        return error.message
    worked = any(ledger.units(stage.stage, name) is not None for name in ("candidates", "completion_tokens"))
    return stage.degraded if stage.degraded and _FAILED in stage.degraded and not worked else None


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
            if taken > 0:
                place = "its server's queue" if stage.where == "http" else "this process's queue for it"
                text = f"{sentence(doing(name))} waited {seconds(taken)} in {place} ({named(stage)})."
                yield _busy(stage, piece, taken, f"All of the time in the queue: {seconds(taken)}.", text, "measured")


def beside_others(ledger: Ledger) -> Iterator[Draft]:
    """What a stage that had to queue computed beyond the usual: its texts shared the model's batches with those before it."""
    for name, stage in ledger.stages.items():
        usual = ledger.usual(name)
        if usual is None or stage.split.queue < max(SOME_QUEUE_SECONDS, 5 * usual.queue) or name in LLM or stage.cold:
            continue
        taken = sum(ledger.take_excess(name, pool, found) for pool, found in ledger.excess(name).items())
        text = f"{sentence(doing(name))} then computed {seconds(taken)} longer than usual, in batches with the work of others."
        yield _busy(
            stage, ledger.pieces(name)[0], taken, f"Computing beyond the usual beside it: {seconds(taken)}.", text, "derived"
        )


def _busy(stage: Stage, piece: Piece, taken: float, derivation: str, text: str, certain: Confidence) -> Draft:
    ours = stage.where != "http"
    return Draft(
        "client_queue" if ours else "server_queue",
        component(stage.stage),
        stage.stage,
        f"{WHERE} waited for the {worker(stage.stage)}, which was busy with other work",
        taken,
        taken,
        derivation,
        certain,
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
