"""The times of foreign spans: intervals by stage, what they say of their work, tokens. Pure.

A span's time counts for its stage less what spans of other stages inside it took (a retriever that embeds the question first); a
span inside one of its own stage (an SDK's inside a framework's) counts once. What ran side by side counts once too: a stage's
seconds are the length of the union. Time that no span explains as loading, queueing or network counts as computing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from latency.otlp.kinds import SERVER, first, model_of, number, whole
from rag.otlp import SpanRecord
from rag.types import Answer, Interval, Split, Stage, Tokens

_PROMPT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_COMPLETION = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")

Piece = tuple[int, int]  # start and end, Unix nanoseconds


def ancestors(spans: Sequence[SpanRecord]) -> dict[str, frozenset[str]]:
    """Each span's id to the ids of the spans it is inside of."""
    parents = {span.span_id: span.parent_id for span in spans}
    found: dict[str, frozenset[str]] = {}
    for key in parents:
        above: list[str] = []
        at = parents[key]
        while at is not None and at in parents and at != key and at not in above:
            above.append(at)
            at = parents[at]
        found[key] = frozenset(above)
    return found


def timeline(spans: Sequence[SpanRecord], stages: Mapping[str, str], begin: int) -> tuple[Interval, ...]:
    """The intervals of every stage by their start; `begin` is the query's, Unix nanoseconds."""
    above = ancestors(spans)
    staged = [span for span in spans if span.span_id in stages]
    found: list[Interval] = []
    for span in staged:
        stage = stages[span.span_id]
        if stage == SERVER or any(stages.get(key) == stage for key in above[span.span_id]):
            continue
        inner = [each for each in staged if span.span_id in above[each.span_id]]
        others = [(each.start_unix_ns, each.end_unix_ns) for each in inner if stages[each.span_id] not in (stage, SERVER)]
        facts = _facts(stage, [*(each for each in inner if stages[each.span_id] == stage), span])
        facts |= _server_facts([each for each in inner if stages[each.span_id] == SERVER])
        for index, (start, end) in enumerate(_less((span.start_unix_ns, span.end_unix_ns), others)):
            seconds = (end - start) / 1e9
            split, cold = (Split(compute=seconds), False) if index else _split(span, seconds)
            found.append(Interval(stage, (start - begin) / 1e9, seconds, span.name, split, cold, {} if index else facts))
    return tuple(sorted(found, key=lambda item: item.start))


def _less(whole_piece: Piece, others: Sequence[Piece]) -> list[Piece]:
    """What is left of a piece of time without the others; one empty piece where nothing is."""
    left, position = [], whole_piece[0]
    for start, end in sorted(others):
        if start > position:
            left.append((position, min(start, whole_piece[1])))
        position = max(position, end)
    if position < whole_piece[1]:
        left.append((position, whole_piece[1]))
    return [piece for piece in left if piece[1] > piece[0]] or [(whole_piece[0], whole_piece[0])]


def _union_seconds(items: Sequence[Interval]) -> float:
    total, reached = 0.0, 0.0
    for item in sorted(items, key=lambda each: each.start):
        end = item.start + item.seconds
        total += max(0.0, end - max(item.start, reached))
        reached = max(reached, end)
    return total


def _split(span: SpanRecord, seconds: float) -> tuple[Split, bool]:
    told = span.attributes
    load, queue, tokenize = (number(told, f"ragdeck.{name}_seconds") or 0.0 for name in ("load", "queue", "tokenize"))
    network = number(told, "ragdeck.network_seconds")
    known = number(told, "ragdeck.compute_seconds")
    rest = max(0.0, seconds - load - queue - tokenize - (network or 0.0))
    compute = rest if known is None else min(rest, known)
    return Split(load, queue, tokenize, compute, network, max(0.0, rest - compute)), bool(told.get("ragdeck.cold", False))


def stage(name: str, spans: Sequence[SpanRecord], items: Sequence[Interval]) -> Stage:
    """A stage of which these spans tell, and these intervals were made."""
    if not spans:
        return Stage(name, skipped="the program sent no span of it")
    told = {key: value for span in spans for key, value in span.attributes.items()}
    device = first(told, "ragdeck.device")
    found = Stage(
        stage=name,
        seconds=_union_seconds(items),
        spans=len(items),
        cold=any(item.cold for item in items),
        device=None if device is None else str(device),
        model=model_of(name, told),
        where="http" if first(told, "server.address", "net.peer.name", "url.full") else None,
        split=_sum([item.split for item in items]),
    )
    return replace(found, hit=bool(told.get("ragdeck.cache_hit")), reason="as the program says") if name == "cache" else found


def _sum(splits: Sequence[Split]) -> Split:
    networks = [split.network for split in splits if split.network is not None]
    return Split(
        sum(split.load for split in splits),
        sum(split.queue for split in splits),
        sum(split.tokenize for split in splits),
        sum(split.compute for split in splits),
        sum(networks) if networks else None,
        sum(split.other for split in splits),
    )


def _facts(stage: str, spans: Sequence[SpanRecord]) -> dict[str, Any]:
    """What a span, and those of the same stage inside it, say of its work; the outermost is last and counts."""
    told = {key: value for span in spans for key, value in span.attributes.items()}
    outer = spans[-1]
    facts: dict[str, Any] = {}
    if stage == "embed":
        facts = {"tokens": whole(told, "gen_ai.usage.input_tokens", "llm.token_count.prompt", "llm.token_count.total")}
    elif stage == "search":
        facts = {
            "limit": whole(told, "gen_ai.request.top_k", "retrieval.top_k", "db.vector.query.top_k")
            or _count(outer, "retrieval.documents")
        }
    elif stage == "rerank":
        facts = {"candidates": _count(outer, "reranker.input_documents"), "top_k": whole(told, "reranker.top_k")}
    elif stage in ("hyde", "generate"):
        ttft = next((value for span in reversed(spans) if (value := _ttft(span)) is not None), None)
        facts = {
            "prompt_tokens": _tokens(spans, *_PROMPT),
            "completion_tokens": _tokens(spans, *_COMPLETION),
            "max_tokens": whole(told, "gen_ai.request.max_tokens", "llm.request.max_tokens"),
            "ttft_seconds": ttft,
            "decode_seconds": None if ttft is None else max(0.0, outer.seconds - ttft),
        }
    return {name: value for name, value in facts.items() if value is not None}


_SERVER_FACTS = {
    "server_queue_seconds": "gen_ai.latency.time_in_queue",
    "server_prefill_seconds": "gen_ai.latency.time_in_model_prefill",
    "server_decode_seconds": "gen_ai.latency.time_in_model_decode",
}


def _server_facts(spans: Sequence[SpanRecord]) -> dict[str, float]:
    """vLLM's own split of a request, from its span in the same trace."""
    found: dict[str, float] = {}
    for span in spans:
        for name, key in _SERVER_FACTS.items():
            value = number(span.attributes, key)
            if value is not None and value >= 0:
                found[name] = found.get(name, 0.0) + value
    return found


def with_server_spans(answer: Answer, servers: Sequence[SpanRecord]) -> Answer:
    """A query of our own with what a model server told of it: each server span belongs to the stage that it ran inside."""
    began = datetime.fromisoformat(answer.started_at).timestamp()
    items = []
    for item in answer.timeline:
        middles = [((span.start_unix_ns + span.end_unix_ns) / 2e9 - began, span) for span in servers]
        inside = [span for middle, span in middles if item.start <= middle <= item.start + item.seconds]
        facts = _server_facts(inside) if item.stage in ("hyde", "generate") else {}
        items.append(replace(item, facts={**item.facts, **facts}))
    return replace(answer, timeline=tuple(items))


def first_token(items: Sequence[Interval]) -> tuple[float | None, float | None]:
    """(seconds from the request to the last answer's first token, the same from the query's start)."""
    last = next((item for item in reversed(items) if item.stage == "generate" and item.facts), None)
    ttft = None if last is None else last.facts.get("ttft_seconds")
    return (None, None) if last is None or ttft is None else (ttft, last.start + ttft)


def tokens(items: Sequence[Interval]) -> Tokens:
    """Of all the language model's answers; the rate only where there is one."""
    facts = [item.facts for item in items if item.stage == "generate" and item.facts]
    prompt, completion = ([each[name] for each in facts if name in each] for name in ("prompt_tokens", "completion_tokens"))
    written, seconds = sum(completion), facts[0].get("decode_seconds") if len(facts) == 1 else None
    rate = (written - 1) / seconds if seconds and written > 1 else None
    return Tokens(sum(prompt) if prompt else None, written if completion else None, rate)


def _count(span: SpanRecord, prefix: str) -> int | None:
    numbers = {key.removeprefix(f"{prefix}.").split(".", 1)[0] for key in span.attributes if key.startswith(f"{prefix}.")}
    return len(numbers) or None


def _tokens(spans: Sequence[SpanRecord], *names: str) -> int | None:
    """What the outermost span says, which is last; else the sum of what those inside say."""
    told = [value for span in spans if (value := whole(span.attributes, *names)) is not None]
    outer = whole(spans[-1].attributes, *names)
    return outer if outer is not None else sum(told) if told else None


def _ttft(span: SpanRecord) -> float | None:
    """Seconds from the request to its first token, by attribute, by Langfuse's time, or by an event."""
    told = number(
        span.attributes, "gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token", "llm.time_to_first_token"
    )
    if told is not None and 0 <= told <= span.seconds:
        return told
    when = span.attributes.get("langfuse.observation.completion_start_time")
    if isinstance(when, str):
        try:
            seconds = datetime.fromisoformat(when).timestamp() - span.start_unix_ns / 1e9
        except ValueError:
            seconds = -1.0
        if 0 <= seconds <= span.seconds:
            return seconds
    first_event = next((event for event in span.events if "first" in event.name.lower() and "token" in event.name.lower()), None)
    return None if first_event is None else max(0.0, (first_event.unix_ns - span.start_unix_ns) / 1e9)
