"""Runs over a live collection: Milvus Lite, the starter models, a real HTTP language model where one is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_server.interfaces import CacheMode
from gpu_server.model_pool import ModelPool, PooledEmbedder
from gpu_server.starter import StarterEmbedder, StarterReranker
from rag.chat import OpenAIChat
from rag.errors import RagError, StageError
from rag.evaluation.collection import Content, content, find_passages, passage_ids, unknown_sources, with_places
from rag.evaluation.evaluations import Evaluations, Plan, grid, run
from rag.evaluation.items import Items, Names, holds, slug
from rag.evaluation.measure import Retrieval, Retrieved, measure
from rag.evaluation.summary import compare, summary
from rag.evaluation.types import STALE_SECONDS, Judgement, Measured, Question, Setting
from rag.query import Clients, Prompts
from rag.store import Store
from rag.trace import Tracing
from rag.types import Passage, PassageRow
from tests.llm import fakes
from tests.llm.fakes import DONE, FakeServer

PROMPTS = Prompts("{passages}\n{question}", "Write about {question}", timeout=20.0)
TEXTS = {
    ("guide/kernels.md", "First use"): "Kernels are compiled on first use, and so the first rerank after a restart is slow.",
    ("guide/kernels.md", "Later"): "Afterwards the compiled kernels are kept and every rerank is quick.",
    ("guide/warm.md", "At start"): "Warm the reranker up at start, and no question waits for it.",
    ("guide/tunnel.md", "Milvus"): "Searching Milvus through a tunnel adds a round trip to every query.",
    ("guide/mig.md", "Slices"): "A card is cut into slices, each with memory of its own.",
    ("guide/ecc.md", "Errors"): "Corrected memory errors are counted; uncorrected ones end the process.",
}
QUESTIONS = (
    Question("why is the first rerank after a restart slow", (Judgement("guide/kernels.md", "First use", 3), Judgement("warm"))),
    Question("does a tunnel slow Milvus down", (Judgement("guide/tunnel.md"),)),
    Question("how is a card cut into slices", (Judgement("guide/mig.md"),)),
    Question("what happens after memory errors", (Judgement("guide/ecc.md"),)),
    Question("what did the removed document say", (Judgement("guide/gone.md"),)),
)


@pytest.fixture(scope="module")
def embedder() -> PooledEmbedder:
    return ModelPool().add_embedder("starter", StarterEmbedder)


@pytest.fixture(scope="module")
def store(embedder: PooledEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(uri=None, data_dir=tmp_path_factory.mktemp("evaluate"), collection="passages")
    name = opened.use(embedder.info)
    by_source: dict[str, list[PassageRow]] = {}
    for (source, location), text in TEXTS.items():
        rows = by_source.setdefault(source, [])
        key = slug(source)
        rows.append(
            PassageRow(
                hashlib.md5(f"{key}{len(rows)}".encode()).hexdigest(), key, "v1", len(rows), text, key.title(), source, location
            )
        )
    for rows in by_source.values():
        vectors = embedder.embed([row.indexed_text for row in rows]).dense
        opened.write_document(name, rows, vectors, None, "2026-01-01T00:00:00Z")
    opened.flush(name)
    yield opened
    opened.close()


@pytest.fixture
def clients(embedder: PooledEmbedder, store: Store) -> Clients:
    return Clients(embedder, StarterReranker(), None, store, Tracing(), PROMPTS, {"version": "9", "settings": "abc"})


@pytest.fixture
def evaluations(tmp_path: Path) -> Evaluations:
    return Evaluations(tmp_path)


def planned(evaluations: Evaluations, *settings: Setting, questions: Sequence[Question] = QUESTIONS) -> Plan:
    made = evaluations.sets.create("Mine", questions, "a test")
    known = evaluations.sets.get(made.id)
    assert known is not None
    return Plan(known, settings, {"chunk_tokens": 220})


def drained(events: Any) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    seen = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return seen, end.value


# 1) runs


def test_a_run_measures_every_stage_and_keeps_what_it_depends_on(evaluations: Evaluations, clients: Clients) -> None:
    plan = planned(evaluations, Setting(candidates=4, keep=2), Setting(candidates=4, keep=2, rerank=False))
    events, ids = drained(run(evaluations, plan, clients, job_id="job"))
    assert [event["type"] for event in events if event["type"] != "progress"] == [
        "evaluation_started",
        *["run_started", "run_finished"] * 2,
    ]
    first, second = (evaluations.runs.get(each) for each in ids)
    assert first is not None and first.summary is not None and second is not None and second.summary is not None
    assert (first.state, first.measured, first.job_id) == ("finished", 5, "job")
    assert list(first.summary["stages"]) == ["dense", "sparse", "fused", "rerank"]
    assert list(second.summary["stages"]) == ["dense", "sparse", "fused"]
    assert set(first.summary["seconds"]) == {"embed", "search", "rerank"} and first.summary["seconds"]["embed"]["n"] == 5
    assert first.summary["missing_questions"] == 1 and first.summary["missing_judgements"] == 1
    assert first.summary["not_found"] == 1, "only what the collection does not hold is not found"
    assert first.environment["embedder"] == clients.embedder.info.name
    assert first.environment["documents"] == 5 and first.environment["passages"] == 6
    assert (first.environment["settings"], first.environment["chunk_tokens"]) == ("abc", 220)


def test_single_results_say_what_was_found_where(evaluations: Evaluations, clients: Clients) -> None:
    _, ids = drained(run(evaluations, planned(evaluations, Setting(candidates=6, keep=3)), clients, job_id="job"))
    results = evaluations.runs.results(ids[0])
    assert [each.question for each in results] == [each.text for each in QUESTIONS]
    tunnel, gone = results[1], results[4]
    assert (
        tunnel.first["rerank"] == 1 and tunnel.scores["rerank"]["ndcg@10"] == 1.0 and tunnel.scores["rerank"]["hit@keep"] == 1.0
    )
    assert (tunnel.top[0].source, tunnel.top[0].grade, tunnel.missing) == ("guide/tunnel.md", 1, 0)
    assert gone.first["rerank"] is None and gone.missing == 1 and set(gone.scores["rerank"].values()) == {0.0}


def test_a_stopped_run_keeps_what_it_measured(evaluations: Evaluations, clients: Clients) -> None:
    plan = planned(evaluations, Setting(candidates=4), Setting(candidates=3))
    done: list[dict[str, Any]] = []
    events = run(evaluations, plan, clients, job_id="job", cancelled=lambda: len(done) >= 2)
    for event in events:
        done += [event] if event["type"] == "progress" else []
    (only,) = evaluations.runs.list()
    assert (only.state, only.measured) == ("cancelled", 2) and only.summary is not None and only.summary["of"] == 5
    assert len(evaluations.runs.results(only.id)) == 2


def test_a_stage_that_fails_ends_the_run_with_its_name(evaluations: Evaluations, clients: Clients) -> None:
    class Broken(StarterReranker):
        def score(self, *arguments: Any, **named: Any) -> Any:
            raise ConnectionError("the reranker is away")

    plan = planned(evaluations, Setting(candidates=4))
    with pytest.raises(StageError) as caught:
        drained(run(evaluations, plan, replace(clients, reranker=Broken()), job_id="job"))
    assert caught.value.stage == "rerank"
    (only,) = evaluations.runs.list()
    assert only.state == "failed" and only.summary is None and only.error is not None and "the reranker is away" in only.error


def test_a_run_whose_process_ended_is_interrupted(evaluations: Evaluations, clients: Clients, tmp_path: Path) -> None:
    events = run(evaluations, planned(evaluations, Setting(candidates=4)), clients, job_id="job", clock=lambda: 1000.0)
    while next(events)["type"] != "run_started":
        pass
    assert Evaluations(tmp_path, clock=lambda: 1000.0 + STALE_SECONDS - 1).runs.list()[0].state == "running"
    later = Evaluations(tmp_path, clock=lambda: 1000.0 + STALE_SECONDS + 1).runs
    assert later.list()[0].state == "interrupted"
    with pytest.raises(RagError, match="not ended"):
        Evaluations(tmp_path, clock=lambda: 1001.0).runs.delete("job-1")
    later.delete("job-1")
    assert later.list() == ()


def test_nothing_is_answered_from_a_cache(evaluations: Evaluations, clients: Clients) -> None:
    asked: list[CacheMode] = []

    class Listening(StarterReranker):
        def score(self, *arguments: Any, **named: Any) -> Any:
            asked.append(named["caches"])
            return super().score(*arguments, **named)

    class Embedder:
        info = clients.embedder.info

        def embed(self, *arguments: Any, **named: Any) -> Any:
            asked.append(named["caches"])
            return clients.embedder.embed(*arguments, **named)

    listening = replace(clients, embedder=Embedder(), reranker=Listening())  # type: ignore[arg-type]
    drained(run(evaluations, planned(evaluations, Setting(candidates=4)), listening, job_id="job"))
    assert len(asked) == 10 and set(asked) == {"bypass"}


def test_hyde_asks_the_model_and_goes_on_without_it(clients: Clients, store: Store) -> None:
    name = store.use(clients.embedder.info)
    good = fakes.events(fakes.delta(content="<think>hm</think>A tunnel adds a round trip."), fakes.delta(finish="stop")) + DONE
    with FakeServer([good]) as server:
        asked = replace(clients, chat=OpenAIChat(server.address, "tiny", None, timeout=20.0))
        found = Retrieval(asked, name, Setting(candidates=3, hyde=True))("does a tunnel slow Milvus down")
    assert found.degraded is None and found.seconds["hyde"] > 0
    away = replace(clients, chat=OpenAIChat("http://127.0.0.1:9", "tiny", None, timeout=2.0))
    found = Retrieval(away, name, Setting(candidates=3, hyde=True))("does a tunnel slow Milvus down")
    assert found.degraded is not None and found.degraded.startswith("hyde: ")
    assert found.ranked["fused"][0].source == "guide/tunnel.md"


def test_settings_are_a_grid_of_six_at_most() -> None:
    found = grid([20, 40], 30, [True, False], [False])
    assert found[0].words == "20 candidates · keep 20 · rerank · HyDE off"
    assert len(found) == 4 and found[2].keep == 30
    for candidates, rerank, said in (
        ([], [True], "nothing"),
        ([1, 2, 3, 4], [True, False], "8 comb"),
        ([0], [True], "1 to 1,000"),
    ):
        with pytest.raises(RagError, match=said):
            grid(candidates, 8, rerank, [False])


# 2) what stands for what


def at(source: str, location: str | None = None, text: str = "") -> Passage:
    return Passage(f"{source}{location}{text}", text, source, source, location)


def test_documents_are_found_by_the_end_of_their_path_when_it_is_theirs_alone() -> None:
    names = Names(["guide/a/x.md", "guide/b/x.md", "guide/b/y.md", "z#1.md"])
    assert names.of("guide/a/x.md") == "guide/a/x.md"
    assert names.of("b/y") == names.of("y.md") == "guide/b/y.md"
    assert names.of("x.md") is None and names.of("gone") is None
    assert names.place(Judgement("z", "1.md")) == ("z#1.md", None)
    assert Names(None).of("anything") == "anything"


@pytest.mark.parametrize(
    ("location", "text", "wanted", "held"),
    [
        ("Article 7. Windows", "", "article-7-windows", True),
        ("Part I › Article 7", "", "article-7", True),
        ("Part I › Article 7", "", "part-i", True),
        ("Article 1 … Article 3", "Article 2\n\nText of it", "article-2", True),
        ("Article 1 … Article 3", "", "article-3", True),
        ("Article 1", "Article 2", "article-2", False),
        ("Article 71", "", "article-7", False),
        (None, "", "article-7", False),
        ("סדר ההפעלה", "", slug("סדר ההפעלה"), True),
    ],
)
def test_a_place_is_known_by_its_heading_however_the_document_is_cut(location: str, text: str, wanted: str, held: bool) -> None:
    assert holds(at("a.md", location, text), wanted) is held


def test_a_document_counts_once_and_a_judged_place_for_itself() -> None:
    items = Items([Judgement("a.md", "One", 2), Judgement("b.md")], Names(["a.md", "b.md", "c.md"]))
    order = items.ranked([at("a.md", "Two"), at("c.md"), at("a.md", "One"), at("b.md", "x"), at("b.md", "y"), at("a.md", "One")])
    assert order == ["a.md", "c.md", "a.md#one", "b.md"]
    assert [items.grades.get(key, 0) for key in order] == [0, 0, 2, 1]
    assert items.item("a.md#one").location == "One" and items.item("c.md").grade is None


def test_scores_survive_that_a_document_is_cut_anew() -> None:
    question = Question("q", (Judgement("a.md", "One", 2), Judgement("b.md")))

    def scored(*passages: Passage) -> dict[str, Any]:
        ranked = Retrieved({"fused": passages}, {}, None)
        return dict(measure(question, lambda _: ranked, Names(["a.md", "b.md"]), 8).scores)

    whole = scored(at("a.md", "One", "first second"), at("b.md", "x", "all"))
    cut = scored(at("a.md", "One", "first"), at("a.md", "One", "second"), at("b.md", "x", "half"), at("b.md", "x", "rest"))
    assert whole == cut


def test_passage_ids_become_places(store: Store, clients: Clients) -> None:
    name = store.use(clients.embedder.info)
    held = content(store, name, read_only=False)
    row = store.passages(name, slug("guide/kernels.md"))[1]
    strange = "f" * 32
    asked = (Question("q", (Judgement(row["id"], None, 2), Judgement(strange))),)
    assert passage_ids(asked, held.names) == {row["id"], strange}
    found = find_passages(store, name, list(held.documents or ()), {row["id"], strange})
    assert found == {row["id"]: ("guide/kernels.md", "Later")}
    (placed,) = with_places(asked, found)
    assert placed.judgements == (Judgement("guide/kernels.md", "Later", 2), Judgement(strange))
    assert unknown_sources((placed,), held.names) == (strange,)


def test_the_same_content_has_the_same_digest(store: Store, clients: Clients) -> None:
    held = content(store, store.use(clients.embedder.info), read_only=False)
    assert held.documents is not None and held.digest is not None
    turned = Content(dict(reversed(held.documents.items())))
    assert turned.digest == held.digest
    assert Content(dict(list(held.documents.items())[1:])).digest != held.digest
    assert Content(None).digest is None and Content(None).passages is None


# 3) two runs


def result(question: str, value: float, rank: int | None = 1, stage: str = "fused") -> Measured:
    scores = {"ndcg@10": value, "recall@10": value, "recall@100": value, "mrr@10": value, "hit@keep": value}
    return Measured(question, {stage: scores}, {"embed": value}, {stage: rank}, (), None)


def test_two_runs_are_compared_on_the_questions_both_have() -> None:
    a = [result("one", 0.5), result("Two", 1.0), result("only a", 1.0)]
    b = [result("two", 0.25, 4), result("one", 0.75), result("only b", 0.0)]
    found = compare(a, b, "ndcg@10")
    assert [(pair.question, pair.gap, pair.first_b) for pair in found.pairs] == [("Two", -0.75, 4), ("one", 0.25, 1)]
    assert [pair.question for pair in found.better] == ["one"] and [pair.question for pair in found.worse] == ["Two"]
    assert (found.only_a, found.only_b) == (1, 1)
    assert found.difference is not None and found.difference.mean == -0.25 and found.difference.low is None
    assert compare(a, [], "ndcg@10").difference is None


def test_a_summary_leaves_unknown_what_nobody_knows() -> None:
    told = summary([result("one", 0.0, None), result("two", 1.0)], of=3)
    assert told is not None
    assert told["stages"]["fused"]["ndcg@10"] == {"mean": 0.5, "low": None, "high": None, "n": 2}
    assert (told["missing_judgements"], told["not_found"], told["questions"], told["of"]) == (None, 1, 2, 3)
    assert set(told["seconds"]) == {"embed"}
    assert summary([], of=3) is None
