"""The whole path with real parts: starter models, Milvus Lite, real traces. With a language model: test_query_llm.py."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from gpu_server.interfaces import Delta, ModelInfo, RerankCandidate, Scores, Timing
from gpu_server.model_pool import ModelPool
from gpu_server.starter import StarterEmbedder, StarterReranker
from rag.query import Clients, Control, Finished, Prompts, answer
from rag.store import Store
from rag.trace import Tracing
from rag.types import STAGES, Answer, Options, PassageRow

DEFAULTS = Options()
TEXTS = {
    "rerank": "The first rerank after a restart is slow because kernels are compiled on first use. Warm it up at start.",
    "tunnel": "Searching Milvus through an SSH tunnel adds a round trip of one to two seconds to every query.",
    "memory": "An idle GPU full of weights is the normal case. Utilisation of memory is bandwidth and not occupancy.",
    "article": "Article 72 limits maintenance windows to four hours on Tuesdays.",
    "hebrew": "המודל נטען פעם אחת בלבד. הזיכרון של המאיץ נשאר תפוס.",
}


@pytest.fixture(scope="module")
def models():
    pool = ModelPool()
    return pool.add_embedder("starter", StarterEmbedder), pool.add_reranker("starter", StarterReranker, uses_route_scores=True)


@pytest.fixture(scope="module")
def clients(models, tmp_path_factory):
    embedder, reranker = models
    store = Store(uri=None, data_dir=tmp_path_factory.mktemp("path"), collection="passages")
    fill(store, embedder)
    yield Clients(embedder, reranker, None, store, Tracing(), Prompts("{passages}{question}", "{question}"), {"version": "test"})
    store.close()


def fill(store: Store, embedder) -> None:
    name = store.use(embedder.info)
    rows = [PassageRow(key, key, "v", 0, text, f"About {key}", f"{key}.md", "Intro", "en") for key, text in TEXTS.items()]
    vectors = embedder.embed([row.indexed_text for row in rows]).dense
    for index, row in enumerate(rows):
        store.write_document(name, [row], vectors[index : index + 1], None, "2026-01-01T00:00:00Z")
    store.flush(name)


def run(
    question: str, clients: Clients, options: Options = DEFAULTS, control: Control | None = None
) -> tuple[list[dict], Finished]:
    steps, events = answer(question, options, clients, control), []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, end.value


def stages(found: Answer) -> dict[str, object]:
    return {stage.stage: stage for stage in found.stages}


def test_a_question_is_answered_from_the_documents_and_cites_them(clients):
    events, done = run("Why is the first rerank after a restart slow?", clients)
    found = done.answer
    assert found.outcome == "answered"
    assert "compiled on first use" in found.answer
    assert found.passages[0].id == "rerank"
    assert found.citations[0].source == "rerank.md"
    assert "".join(event["text"] for event in events if event["type"] == "token").strip() == found.answer


def test_every_stage_is_there_in_order_and_its_split_adds_up(clients):
    _, done = run("Why is Milvus slow through a tunnel?", clients)
    found = done.answer
    assert tuple(stage.stage for stage in found.stages) == STAGES
    for stage in found.stages:
        split = stage.split
        total = split.load + split.queue + split.tokenize + split.compute + (split.network or 0) + split.other
        assert total == pytest.approx(stage.seconds, abs=1e-9)
    assert sum(stage.seconds for stage in found.stages) <= found.total_seconds
    for interval in found.timeline:
        assert 0 <= interval.start <= interval.start + interval.seconds <= found.total_seconds


def test_the_order_of_events_follows_the_order_of_work(clients):
    events, _ = run("Why is Milvus slow?", clients)
    order = [(event["type"], event["stage"] if isinstance(event.get("stage"), str) else None) for event in events]
    assert order.index(("stage_started", "embed")) < order.index(("stage_started", "search"))
    assert order.index(("stage_started", "search")) < order.index(("stage_started", "rerank"))
    kinds = [kind for kind, _ in order]
    assert kinds.index("passages") < kinds.index("token")


def test_skipped_stages_say_why_and_only_the_cache_has_hit(clients):
    _, done = run("Why?", clients, Options(rerank=False))
    data = done.answer.to_json()
    by_name = {stage["stage"]: stage for stage in data["stages"]}
    assert by_name["hyde"]["skipped"] == "no language model is configured"
    assert by_name["rerank"]["skipped"] == "switched off"
    assert by_name["cache"]["hit"] is False
    assert all("hit" not in stage for name, stage in by_name.items() if name != "cache")


def test_only_the_first_query_is_cold(tmp_path):
    pool = ModelPool()
    embedder, reranker = (
        pool.add_embedder("starter", StarterEmbedder),
        pool.add_reranker("starter", StarterReranker, uses_route_scores=True),
    )
    store = Store(uri=None, data_dir=tmp_path, collection="passages")
    try:
        clients = Clients(embedder, reranker, None, store, Tracing(), Prompts("", ""))
        first, second = (run("Why is it slow?", clients)[1].answer for _ in range(2))
        assert first.cold
        assert stages(first)["embed"].split.load > 0
        assert not second.cold
        assert stages(second)["embed"].split.load == 0
        assert first.outcome == "no_documents"
    finally:
        store.close()


def test_an_empty_collection_gives_a_polite_answer_and_no_error(models, tmp_path):
    embedder, reranker = models
    store = Store(uri=None, data_dir=tmp_path, collection="passages")
    try:
        _, done = run("Is anybody there?", Clients(embedder, reranker, None, store, Tracing(), Prompts("", "")))
        assert done.answer.outcome == "no_documents"
        assert done.answer.error is None
        assert "No relevant documents" in done.answer.answer
        assert stages(done.answer)["generate"].skipped
    finally:
        store.close()


def test_candidates_and_keep_are_obeyed_and_ranks_are_whole(clients):
    _, done = run("memory of the GPU", clients, Options(candidates=3, keep=2))
    found = done.answer
    assert len(found.passages) == 3
    assert [passage.kept for passage in found.passages] == [True, True, False]
    assert [passage.ranks["rerank"] for passage in found.passages] == [1, 2, 3]
    assert sorted(passage.ranks["fused"] for passage in found.passages) == [1, 2, 3]


class FailingReranker:
    """Named a fake: a reranker whose server is gone."""

    info = replace(StarterReranker().info, name="failing fake", address="http://127.0.0.1:9")
    uses_route_scores = False

    def score(self, query, candidates, *, deadline=None, caches="use"):
        raise ConnectionError("refused")


class ReversingReranker:
    """Named a fake: predictable arithmetic, the last candidate is best."""

    info = replace(StarterReranker().info, name="reversing fake")
    uses_route_scores = False

    def score(self, query: str, candidates: list[RerankCandidate], *, deadline=None, caches="use") -> Scores:
        return Scores(np.arange(len(candidates), dtype=np.float32), Timing(compute=0.0))


def test_a_reranker_that_fails_degrades_and_the_fused_order_stands(clients):
    _, done = run("Why is the first rerank slow?", replace(clients, reranker=FailingReranker()))
    found = done.answer
    assert found.outcome == "answered"
    assert "fused order stands" in stages(found)["rerank"].degraded
    assert [passage.ranks["fused"] for passage in found.passages] == list(range(1, len(found.passages) + 1))
    assert all(passage.ranks["rerank"] is None for passage in found.passages)
    assert any(span.status == "ERROR" for span in done.spans)


def test_the_reranker_decides_the_order(clients):
    _, done = run("Why is the first rerank slow?", replace(clients, reranker=ReversingReranker()))
    fused = [passage.ranks["fused"] for passage in done.answer.passages]
    assert fused == sorted(fused, reverse=True)


class SayingChat:
    """Named a fake: a language model that says what it was given."""

    info = ModelInfo("saying fake", "llm", "saying", "cpu", "fp32")

    def __init__(self, *pieces: str) -> None:
        self._pieces = pieces

    def stream(self, request):
        yield from (Delta(text=piece) for piece in self._pieces)
        yield Delta(prompt_tokens=10, completion_tokens=len(self._pieces), finish_reason="stop", timing=Timing(compute=0.001))


def test_reasoning_that_only_closes_is_taken_out_of_the_answer_and_said(clients):
    chat = SayingChat("let me ", "think</thi", "nk>\n\nWarm it ", "up [1].")
    _, done = run("Why is the first rerank slow?", replace(clients, chat=chat), Options(hyde="off"))
    assert done.answer.answer == "Warm it up [1]."
    assert "reasoning parser" in stages(done.answer)["generate"].degraded


class BreakingChat(SayingChat):
    """Named a fake: breaks off in the middle."""

    def stream(self, request):
        yield Delta(text="half a hypo")
        raise ConnectionError("gone")


def test_a_hypothesis_that_broke_off_is_not_searched_with(clients):
    _, done = run("Why is it slow?", replace(clients, chat=BreakingChat()), Options(hyde="on"))
    assert done.answer.hyde_text is None
    assert "the question alone was searched" in stages(done.answer)["hyde"].degraded
    assert stages(done.answer)["embed"].spans == 1
    assert done.answer.error.stage == "generate"


def test_blanks_are_no_first_token(clients):
    _, done = run(
        "Why is it slow?", replace(clients, chat=SayingChat("<think>hm</think>", "\n\n", "Yes [1].")), Options(hyde="off")
    )
    assert done.answer.answer == "Yes [1]."
    assert done.answer.ttft_seconds > 0


def test_the_load_of_an_in_process_language_model_is_booked_where_it_happens(clients):
    def load() -> SayingChat:
        time.sleep(0.2)
        return SayingChat("Yes [1].")

    chat = ModelPool().add_chat_model("slow to load", load)
    cold, warm = (run("Why is it slow?", replace(clients, chat=chat), Options(hyde="off"))[1].answer for _ in range(2))
    assert stages(cold)["generate"].split.load >= 0.2
    assert stages(cold)["generate"].cold
    assert stages(warm)["generate"].split.load == 0
    assert not stages(warm)["generate"].cold


def test_a_store_that_is_away_fails_the_query_with_stage_address_and_next_step(clients, tmp_path):
    away = Store(uri="http://127.0.0.1:9", data_dir=tmp_path, collection="x", timeout=1.0)
    _, done = run("Why?", replace(clients, store=away))
    error = done.answer.error
    assert done.answer.outcome == "failed"
    assert (error.stage, error.address) == ("search", "http://127.0.0.1:9")
    assert error.next_step
    assert stages(done.answer)["embed"].spans == 1, "what was done before stays in the trace"
    assert stages(done.answer)["generate"].skipped == "not reached"


def test_asking_a_collection_that_is_not_there_makes_none(clients):
    before = {info.name for info in clients.store.collections(None)}
    _, done = run("Why?", clients, Options(collection="typo"))
    assert done.answer.error.kind == "not_found"
    assert "typo" in done.answer.error.message
    assert {info.name for info in clients.store.collections(None)} == before


def test_a_cancelled_query_ends_as_cancelled(clients):
    token = threading.Event()
    token.set()
    _, done = run("Why?", clients, control=Control(token))
    assert done.answer.outcome == "cancelled"


def test_a_deadline_in_the_past_is_a_timeout(clients):
    _, done = run("Why?", clients, control=Control(deadline=0.0))
    assert done.answer.outcome == "failed"
    assert done.answer.error.kind == "timeout"


@pytest.mark.parametrize(
    "question", ["???", "🙂" * 50, "a" * 20_000, "'; DROP TABLE --", "\x00\x01", "זיכרון המאיץ", '{"a": [1]}']
)
def test_odd_questions_are_answered(clients, question):
    _, done = run(question, clients)
    assert done.answer.outcome == "answered", done.answer.error


def test_a_question_longer_than_the_embedder_takes_says_so(clients):
    _, done = run("memory " * 600, clients)
    assert "was cut" in stages(done.answer)["embed"].degraded


def test_the_answer_survives_json(clients):
    _, done = run("Why is it slow?", clients)
    assert Answer.from_json(json.loads(json.dumps(done.answer.to_json()))).to_json() == json.loads(
        json.dumps(done.answer.to_json())
    )


def test_spans_carry_stage_split_and_device(clients):
    _, done = run("Why is it slow?", clients)
    by_stage = {span.stage: span for span in done.spans if span.parent_id}
    assert {"embed", "search", "rerank", "generate"} <= set(by_stage)
    assert by_stage["embed"].attributes["ragdeck.device"] == "cpu"
    assert by_stage["embed"].attributes["ragdeck.cold"] is False
    assert by_stage["search"].attributes["gen_ai.request.top_k"] == 40
    assert done.spans[0].name == "rag.query"
    assert done.answer.id == done.spans[0].trace_id


def test_queries_side_by_side_do_not_mix(clients):
    found: dict[int, Answer] = {}
    keys = list(TEXTS)

    def ask(number: int) -> None:
        found[number] = run(TEXTS[keys[number % 4]][:60], clients)[1].answer

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({answer.id for answer in found.values()}) == 12
    assert all(found[number].passages[0].id == keys[number % 4] for number in range(12))
