"""Foreign spans of one query to an Answer with stages. Pure: the same spans give the same answer, however they arrived."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from latency.otlp.content import answer_text, documents, question_text
from latency.otlp.kinds import SERVER, first, model_of, stages_of
from latency.otlp.timeline import first_token, stage, timeline, tokens
from latency.otlp.wire import SERVICE
from rag.otlp import SpanRecord, iso_utc
from rag.types import STAGES, Answer, Options, Passage, Problem

ORIGIN = "otlp:"


def answer_id(trace_id: str, root: SpanRecord) -> str:
    """32 hex digits that sort by time, the same for the same trace and root (layout of UUIDv7, its random part a hash)."""
    digest = hashlib.blake2b(f"{trace_id}{root.span_id}".encode(), digest_size=10).digest()
    stamp = root.start_unix_ns // 1_000_000 & (1 << 48) - 1
    low = int.from_bytes(digest, "big")
    return f"{stamp << 80 | 7 << 76 | (low >> 64 & 0xFFF) << 64 | 2 << 62 | low & (1 << 62) - 1:032x}"


def queries(spans: Sequence[SpanRecord]) -> list[tuple[SpanRecord, list[SpanRecord]]]:
    """The queries of one trace: (root, its spans). Roots that are structure make a query each; stages without a common root are
    one query together. What holds no stage is left out."""
    known = {span.span_id: span for span in spans}
    stages = stages_of(spans)
    groups: dict[str, list[SpanRecord]] = {}
    for span in spans:
        groups.setdefault(_root(span, known).span_id, []).append(span)
    loose = [span for key, group in groups.items() if key in stages for span in group]
    whole_queries = [(known[key], group) for key, group in groups.items() if key not in stages]
    if loose:
        whole_queries.append((min(loose, key=lambda span: span.start_unix_ns), loose))
    return [(root, group) for root, group in whole_queries if any(stages.get(each.span_id) in STAGES for each in group)]


def _root(span: SpanRecord, known: Mapping[str, SpanRecord]) -> SpanRecord:
    seen = {span.span_id}
    while span.parent_id is not None and span.parent_id in known and span.parent_id not in seen:
        span = known[span.parent_id]
        seen.add(span.span_id)
    return span


def to_answer(root: SpanRecord, spans: Sequence[SpanRecord]) -> Answer:
    """The query that these spans tell of."""
    stages = stages_of(spans)
    begin = min(span.start_unix_ns for span in spans)
    end = max(span.end_unix_ns for span in spans if stages.get(span.span_id) != SERVER)
    items = timeline(spans, stages, begin)
    passages = _passages(spans, stages)
    by_stage = {name: [span for span in spans if stages.get(span.span_id) == name] for name in STAGES}
    answering = by_stage["generate"]
    ttft, first_seen = first_token(items)
    failed = _failure(root, spans, stages)
    text = answer_text(root, answering)
    return Answer(
        id=answer_id(root.trace_id, root),
        question=question_text(root, spans),
        started_at=iso_utc(begin),
        outcome="failed" if failed else "no_documents" if _found_none(by_stage, passages) and not text else "answered",
        error=failed,
        answer=text,
        passages=passages,
        stages=tuple(stage(name, by_stage[name], [item for item in items if item.stage == name]) for name in STAGES),
        timeline=items,
        total_seconds=(end - begin) / 1e9,
        ttft_seconds=ttft,
        first_token_seconds=first_seen,
        tokens=tokens(items),
        options=_options(by_stage, passages),
        fingerprint=_fingerprint(root, by_stage),
        origin=f"{ORIGIN}{root.attributes.get(SERVICE, 'unknown')}",
    )


# ---------------------------------------------------------------------------------------------------------- what came of it


def _passages(spans: Sequence[SpanRecord], stages: Mapping[str, str]) -> tuple[Passage, ...]:
    """Passages in the order of the last reranking, else of the last search; those that were reranked out come after."""
    in_order = sorted(spans, key=lambda span: span.end_unix_ns)
    searched = [documents(span, "retrieval.documents") for span in in_order if stages.get(span.span_id) == "search"]
    reranked = [documents(span, "reranker.output_documents") for span in in_order if stages.get(span.span_id) == "rerank"]
    found = next((items for items in reversed(searched) if items), [])
    kept = next((items for items in reversed(reranked) if items), [])
    ranks = {item.id: rank for rank, item in enumerate(found, 1)}
    if not kept:
        return tuple(_routed(item, True, "fused", rank) for rank, item in enumerate(found, 1))
    first_part = [
        _routed(item, True, "rerank", rank).with_route("fused", ranks.get(item.id), None) for rank, item in enumerate(kept, 1)
    ]
    names = {item.id for item in kept}
    rest = [_routed(item, False, "fused", ranks[item.id]) for item in found if item.id not in names]
    return (*first_part, *rest)


def _routed(item: Passage, kept: bool, route: str, rank: int) -> Passage:
    return item._replace(kept=kept, scores={}).with_route(route, rank, item.scores.get(""))


def _found_none(by_stage: Mapping[str, Sequence[SpanRecord]], passages: Sequence[Passage]) -> bool:
    return bool(by_stage["search"]) and not passages and not by_stage["rerank"] and not by_stage["generate"]


def _failure(root: SpanRecord, spans: Sequence[SpanRecord], stages: Mapping[str, str]) -> Problem | None:
    """Why the query failed: its root says that it did; the first failed stage says where."""
    if root.status != "ERROR":
        return None
    broken = [span for span in spans if span.status == "ERROR" and stages.get(span.span_id) in STAGES]
    where = min(broken, key=lambda span: span.start_unix_ns, default=root)
    said = [
        str(event.attributes.get("exception.message", "")) for event in (*where.events, *root.events) if event.name == "exception"
    ]
    message = where.status_message or next((text for text in said if text), "") or "its span has the status ERROR"
    address = first(where.attributes, "server.address")
    kind = str(first(where.attributes, "error.type") or "")
    return Problem(
        stages.get(where.span_id),
        "timeout" if "timeout" in kind.lower() else "internal",
        message[:1000],
        None if address is None else str(address),
        f"Look at the log of {root.attributes.get(SERVICE, 'the program')}.",
    )


def _options(by_stage: Mapping[str, Sequence[SpanRecord]], passages: Sequence[Passage]) -> Options:
    """What the spans show of the options; a foreign program's other settings are not known."""
    kept = sum(passage.kept for passage in passages)
    return Options(
        hyde="on" if by_stage["hyde"] else "off",
        candidates=len(passages) or 1,
        keep=kept or 1,
        rerank=bool(by_stage["rerank"]),
        model=next((model for span in by_stage["generate"] if (model := model_of("generate", span.attributes))), None),
    )


def _fingerprint(root: SpanRecord, by_stage: Mapping[str, Sequence[SpanRecord]]) -> dict[str, Any]:
    models = {
        name: model
        for name, spans in by_stage.items()
        if (model := next((found for span in spans if (found := model_of(name, span.attributes))), None))
    }
    version = root.attributes.get("service.version")
    return {"version": None if version is None else str(version), "settings": None, "models": models, "trace_id": root.trace_id}
