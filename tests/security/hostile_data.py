"""What a dashboard has stored, or is sent, when everybody else is hostile: experiments, question sets and their runs, spans."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from latency.components.rows import Row
from latency.experiments.experiments import Experiment, ExperimentStore
from latency.experiments.replay import Change, ReplayResult
from latency.experiments.replay import Run as ReplayRun
from rag.evaluation.evaluations import Evaluations
from rag.evaluation.summary import TIMED, summary
from rag.evaluation.types import METRICS, STAGES, Item, Judgement, Measured, Question, Run, Setting
from tests.security.payloads import CONTROLS, LONG, NAME, PAYLOAD

FAILED, COMPONENTS, REPLAY, EVALUATED = "5" * 32, "6" * 32, "7" * 32, "8" * 32
EXPERIMENTS = (FAILED, COMPONENTS, REPLAY)
SPANS = {"a" * 32: PAYLOAD, "b" * 32: CONTROLS + PAYLOAD, "c" * 32: LONG}  # by trace id


def experiments(data: Path) -> None:
    """One that failed, component tests and a replay, whose servers answered with hostile texts."""
    at = time.time() - 60
    rows = [
        Row("reranker.20", PAYLOAD[:300], (0.1, 0.2), PAYLOAD, {PAYLOAD[:80]: PAYLOAD}, "failed", PAYLOAD).to_json(),
        Row("llm", LONG[:3000], (0.1,), LONG[:3000], {"model": LONG[:3000]}, "slow", CONTROLS + PAYLOAD).to_json(),
    ]
    runs = (
        ReplayRun(0, 0, "x" * 32, None, 1.0, "failed", degraded=PAYLOAD, error=PAYLOAD),
        ReplayRun(1, 0, LONG[:500], None, 1.0, "failed", error=LONG[:3000]),
    )
    sides = (Change({"model": PAYLOAD}), Change({"collection": LONG[:3000]}, {"llm.model": PAYLOAD}))
    replay = ReplayResult(sides, ("x" * 32,), 1, runs, (), (PAYLOAD, LONG[:3000])).to_json()
    store = ExperimentStore(data / "experiments.db")
    for made in (
        Experiment(FAILED, "components", PAYLOAD[:200], at, 1.0, "failed", {}, None, {"host": PAYLOAD}, PAYLOAD),
        Experiment(COMPONENTS, "components", LONG[:200], at, 1.0, "done", {}, {"rows": rows, "summary": PAYLOAD}, {"gpu": LONG}),
        Experiment(REPLAY, "replay", CONTROLS + PAYLOAD[:150], at, 1.0, "done", {PAYLOAD[:50]: PAYLOAD}, replay, {}),
    ):
        store.save(made)
    store.close()


def evaluations(data: Path) -> None:
    """A set, and a run of it over documents with hostile names."""
    kept = Evaluations(data)
    questions = [Question(PAYLOAD, (Judgement(NAME, PAYLOAD, 1),)), Question(LONG[:2000], (Judgement(NAME, None, 1),))]
    made = kept.sets.create(f"set {NAME}", questions, "made by hand")
    scores = {stage: dict.fromkeys(METRICS, 0.5) for stage in STAGES}
    top = (Item(PAYLOAD, PAYLOAD, 1), Item(LONG[:2000], LONG[:2000], None))
    results = [
        Measured(each.text, scores, dict.fromkeys(TIMED, 0.1), dict.fromkeys(STAGES, 1), top, 1, PAYLOAD) for each in questions
    ]
    told = summary(results, len(questions))
    run = Run(
        EVALUATED, made.id, 1, f"set {NAME}", time.time() - 50, Setting(), "", "finished",
        environment={"embedder": PAYLOAD, PAYLOAD[:60]: LONG[:2000]}, summary=told, seconds=1.0,
    )  # fmt: skip
    kept.runs.save(run, results)


def spans() -> dict[str, Any]:
    """OTLP in JSON of three RAG programs whose every text is hostile: services, names, keys, values, events, statuses."""
    return {"resourceSpans": [_resource(trace, text) for trace, text in SPANS.items()]}


def _resource(trace: str, text: str) -> dict[str, Any]:
    found = {f"{place}.0.document.{part}": text for place in ("retrieval.documents", "reranker.output_documents") for part in ("id", "content")}  # fmt: skip
    chain = {"openinference.span.kind": "CHAIN", "input.value": text, "output.value": text, text: text}
    model = {"openinference.span.kind": "LLM", "llm.model_name": text, "gen_ai.request.model": text, "llm.system": text}
    spans = [
        _span(trace, 1, None, text, 0, 3, chain),
        _span(trace, 2, 1, text, 0, 1, {"openinference.span.kind": "RETRIEVER", **found}),
        _span(trace, 3, 1, text, 1, 2, {"openinference.span.kind": "RERANKER", "reranker.model_name": text, **found}),
        _span(trace, 4, 1, text, 2, 3, model),
        _span(trace, 5, 4, text, 2, 3, {text: text}),
    ]
    return {"resource": {"attributes": _pairs({"service.name": text})}, "scopeSpans": [{"scope": {"name": text}, "spans": spans}]}


def _span(
    trace: str, key: int, parent: int | None, name: str, start: int, end: int, attributes: dict[str, str]
) -> dict[str, Any]:
    second = 1_000_000_000
    base = (int(time.time()) - 10) * second
    return {
        "traceId": trace,
        "spanId": f"{key:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "name": name,
        "startTimeUnixNano": str(base + start * second),
        "endTimeUnixNano": str(base + end * second),
        "attributes": _pairs(attributes),
        "events": [{"name": name, "timeUnixNano": str(base + start * second), "attributes": _pairs(attributes)}],
        "status": {"code": 2 if key == 4 else 0, "message": name},
    }


def _pairs(values: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in values.items()]
