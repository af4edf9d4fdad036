"""Foreign spans to queries with stages: what counts for which stage, once, and what stays unknown."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.otlp import stages as otlp_stages
from latency.otlp.kinds import SERVER, kind_of
from latency.otlp.timeline import with_server_spans
from rag.otlp import SpanRecord
from rag.types import STAGES, Answer, Stage
from tests.latency.spans import openinference, span, vllm


def only(spans: list[SpanRecord]) -> Answer:
    ((root, group),) = otlp_stages.queries(spans)
    return otlp_stages.to_answer(root, group)


def stage(answer: Answer, name: str) -> Stage:
    return next(each for each in answer.stages if each.stage == name)


def test_every_stage_has_its_time_once() -> None:
    answer = only(openinference())
    seconds = {each.stage: pytest.approx(each.seconds) for each in answer.stages if each.skipped is None}
    assert seconds == {"hyde": 0.5, "embed": 0.2, "search": 0.3, "rerank": 0.4, "generate": 1.5}
    assert answer.total_seconds == pytest.approx(3.0)
    assert sum(each.seconds for each in answer.stages) == pytest.approx(2.9)
    assert stage(answer, "cache").skipped == "the program sent no span of it"


def test_what_was_asked_found_and_answered() -> None:
    answer = only(openinference())
    assert (answer.question, answer.answer, answer.outcome) == ("Why is it slow?", "Because of the tunnel.", "answered")
    assert [(item.id, item.kept, dict(item.ranks)) for item in answer.passages] == [
        ("c", True, {"rerank": 1, "fused": 3}),
        ("a", True, {"rerank": 2, "fused": 1}),
        ("b", False, {"fused": 2}),
        ("d", False, {"fused": 4}),
    ]
    assert (answer.passages[0].source, answer.passages[0].location, answer.passages[0].text) == ("c.md", "p. 1", "text of c")
    assert answer.origin == "otlp:shop-rag"
    assert answer.options.hyde == "on" and answer.options.rerank


def test_tokens_and_the_first_of_them() -> None:
    answer = only(openinference())
    assert (answer.tokens.prompt, answer.tokens.completion) == (800, 101)
    assert answer.ttft_seconds == pytest.approx(0.5) and answer.first_token_seconds == pytest.approx(1.9)
    assert answer.tokens.per_second == pytest.approx(100.0)
    (generate,) = (item for item in answer.timeline if item.stage == "generate")
    assert generate.facts["max_tokens"] == 512  # said by the SDK's span inside
    assert generate.facts["decode_seconds"] == pytest.approx(1.0)


def test_the_order_of_arrival_does_not_matter() -> None:
    spans = openinference()
    wanted = only(spans)
    for seed in range(5):
        shuffled = spans[:]
        random.Random(seed).shuffle(shuffled)
        assert only(shuffled) == wanted


def test_vllms_span_tells_what_happened_inside_generate() -> None:
    answer = only([*openinference(), vllm(8, 7, 1.45, 2.85)])
    (generate,) = (item for item in answer.timeline if item.stage == "generate")
    assert {key: generate.facts[key] for key in generate.facts if key.startswith("server_")} == {
        "server_queue_seconds": 0.2,
        "server_prefill_seconds": 0.15,
        "server_decode_seconds": 0.9,
    }
    assert stage(answer, "generate").seconds == pytest.approx(1.5)


def test_the_same_for_a_query_of_our_own() -> None:
    own = only(openinference())
    joined = with_server_spans(own, [vllm(99, 98, 1.5, 2.8)])
    facts = {item.stage: item.facts for item in joined.timeline}
    assert facts["generate"]["server_queue_seconds"] == 0.2 and "server_queue_seconds" not in facts["hyde"]


def test_genai_spans_side_by_side_count_once() -> None:
    spans = [
        span(1, None, "invoke_agent", 0, 2, {"gen_ai.operation.name": "invoke_agent"}),
        span(2, 1, "retrieval a", 0.0, 1.0, {"gen_ai.operation.name": "retrieval", "gen_ai.request.top_k": 10}),
        span(3, 1, "retrieval b", 0.2, 1.2, {"gen_ai.operation.name": "retrieval", "gen_ai.request.top_k": 10}),
        span(4, 1, "chat qwen", 1.2, 2.0, {"gen_ai.operation.name": "chat", "gen_ai.response.time_to_first_chunk": 0.3}),
    ]
    answer = only(spans)
    assert stage(answer, "search").seconds == pytest.approx(1.2) and stage(answer, "search").spans == 2
    assert answer.ttft_seconds == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("attributes", "name", "expected"),
    [
        ({"llm.request.type": "chat"}, "openai.chat", "llm"),
        ({"llm.request.type": "embedding"}, "openai.embeddings", "embed"),
        ({"db.system": "milvus"}, "milvus.search", "search"),
        ({"db.system.name": "qdrant", "db.operation.name": "query"}, "qdrant", "search"),
        ({"db.system": "milvus"}, "milvus.insert", None),
        ({"db.system": "postgresql"}, "SELECT", None),
        ({"langfuse.observation.type": "retriever"}, "find", "search"),
        ({"openinference.span.kind": "TOOL"}, "search the web", None),
        ({"gen_ai.operation.name": "execute_tool"}, "rerank", None),
        ({"gen_ai.latency.e2e": 1.0, "gen_ai.operation.name": "chat"}, "llm_request", SERVER),
        ({}, "rerank", None),
        ({"openinference.span.kind": 7}, "odd", None),
    ],
)
def test_kinds(attributes: dict[str, object], name: str, expected: str | None) -> None:
    assert kind_of(span(1, None, name, 0, 1, attributes)) == expected


def test_without_a_common_root_stages_are_one_query() -> None:
    spans = [replace(each, parent_id=None) for each in openinference()[1:4] if each.span_id != f"{4:016x}"]
    answer = only(spans)
    assert {each.stage for each in answer.stages if each.skipped is None} == {"generate", "search"}


def test_two_chains_in_one_trace_are_two_queries() -> None:
    second = [
        span(21, None, "chain", 5, 6, {"openinference.span.kind": "CHAIN", "input.value": "again"}),
        span(22, 21, "search", 5, 5.5, {"openinference.span.kind": "RETRIEVER"}),
    ]
    found = [otlp_stages.to_answer(*each) for each in otlp_stages.queries([*openinference(), *second])]
    assert sorted(each.question for each in found) == ["Why is it slow?", "again"]
    assert len({each.id for each in found}) == 2


def test_what_holds_no_stage_is_no_query() -> None:
    assert otlp_stages.queries([span(1, None, "GET /", 0, 1), span(2, 1, "SELECT", 0, 1, {"db.system": "postgresql"})]) == []


def test_a_failed_query_says_where_and_why() -> None:
    spans = [
        span(1, None, "chain", 0, 1, {"openinference.span.kind": "CHAIN"}, status="ERROR"),
        span(2, 1, "search", 0, 1, {"openinference.span.kind": "RETRIEVER", "server.address": "milvus.internal", "error.type": "TimeoutError"},
             status="ERROR", events=(("exception", 1.0, {"exception.message": "deadline exceeded"}),)),
    ]  # fmt: skip
    answer = only(spans)
    assert answer.outcome == "failed" and answer.error is not None
    assert (answer.error.stage, answer.error.kind, answer.error.message, answer.error.address) == (
        "search",
        "timeout",
        "deadline exceeded",
        "milvus.internal",
    )


def test_a_search_that_finds_nothing_is_no_failure() -> None:
    spans = [
        span(1, None, "chain", 0, 1, {"openinference.span.kind": "CHAIN"}),
        span(2, 1, "s", 0, 1, {"openinference.span.kind": "RETRIEVER"}),
    ]
    assert only(spans).outcome == "no_documents"


def test_our_own_spans_keep_their_split() -> None:
    own = {
        "ragdeck.stage": "rerank",
        "ragdeck.load_seconds": 0.5,
        "ragdeck.compute_seconds": 0.2,
        "ragdeck.cold": True,
        "ragdeck.device": "cuda",
    }
    answer = only([span(1, None, "rag.query", 0, 1, {"ragdeck.stage": "query"}), span(2, 1, "rerank", 0, 0.8, own)])
    rerank = stage(answer, "rerank")
    assert (rerank.split.load, rerank.split.compute, rerank.cold, rerank.device) == (0.5, 0.2, True, "cuda")
    assert rerank.split.other == pytest.approx(0.1)


def test_ids_sort_by_time_and_stay_the_same() -> None:
    first, second = span(1, None, "a", 0, 1), span(2, None, "b", 1, 2)
    assert otlp_stages.answer_id(first.trace_id, first) == otlp_stages.answer_id(first.trace_id, first)
    assert otlp_stages.answer_id(first.trace_id, first) < otlp_stages.answer_id(second.trace_id, second)
    assert len(otlp_stages.answer_id(first.trace_id, first)) == 32


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain words", "plain words"),
        (json.dumps({"messages": [{"role": "user", "content": "from a message"}]}), "from a message"),
        (json.dumps([{"role": "user", "parts": [{"type": "text", "content": "in parts"}]}]), "in parts"),
        ("{broken json", "{broken json"),
        (json.dumps({"other": 1}), ""),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_questions_in_all_shapes(value: str, text: str) -> None:
    spans = [
        span(1, None, "chain", 0, 1, {"openinference.span.kind": "CHAIN", "input.value": value}),
        span(2, 1, "s", 0, 1, {"openinference.span.kind": "RETRIEVER"}),
    ]
    assert only(spans).question == text


VALUES = st.one_of(st.text(max_size=30), st.integers(), st.floats(allow_nan=True), st.booleans(), st.tuples(st.text(max_size=5)))
KEYS = st.sampled_from(
    ["openinference.span.kind", "gen_ai.operation.name", "llm.token_count.prompt", "gen_ai.usage.output_tokens", "input.value",
     "retrieval.documents.0.document.id", "reranker.output_documents.9.document.score", "gen_ai.latency.time_in_queue", "ragdeck.stage",
     "ragdeck.load_seconds", "gen_ai.response.time_to_first_chunk", "langfuse.observation.completion_start_time", "reranker.top_k"]
)  # fmt: skip
KINDS = st.sampled_from(["LLM", "RETRIEVER", "EMBEDDING", "RERANKER", "CHAIN", "x"])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.floats(0, 5), st.floats(0, 5), st.dictionaries(KEYS, VALUES, max_size=5), KINDS),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_comes_makes_answers_that_add_up(rows: list[tuple[int, float, float, dict[str, object], str]]) -> None:
    spans = [
        span(number + 1, parent, "s", start, start + length, {"openinference.span.kind": kind, **attributes})
        for number, (parent, start, length, attributes, kind) in enumerate(rows)
    ]
    for root, group in otlp_stages.queries(spans):
        answer = otlp_stages.to_answer(root, group)
        assert json.dumps(answer.to_json(), default=str)
        assert [each.stage for each in answer.stages] == list(STAGES)
        assert all(-1e-6 <= each.seconds <= answer.total_seconds + 1e-6 for each in answer.stages)
        assert Answer.from_json(answer.to_json()).id == answer.id
