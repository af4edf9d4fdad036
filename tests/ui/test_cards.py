from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bs4 import BeautifulSoup

from models import ModelStatus
from rag.types import Answer, Options, Passage, Problem, Split, Stage, Tokens
from ui import ask_form, cards, exports, ingest_view, live

EVIL = '"><script>alert(1)</script>'
ANSWER = Answer(
    "f" * 32,
    "q",
    "2026-11-21T05:00:00Z",
    "answered",
    stages=(
        Stage("cache", hit=False, reason="miss"),
        Stage("hyde", 3.31, 1),
        Stage("search", 0.31, 1, split=Split(network=0.28)),
        Stage("generate", 5.9, 1, cold=True),
    ),
    passages=(Passage("p1", "=cmd()", "s", EVIL, kept=True, ranks={"dense": 1}),),
    total_seconds=9.76,
    ttft_seconds=0.41,
    tokens=Tokens(812, 96, 46.1),
)


def text(html: str) -> str:
    return BeautifulSoup(html, "html.parser").text


def test_outcome_line_says_it_all() -> None:
    line = text(cards.outcome_line(ANSWER))
    for part in (
        "9.76 s",
        "Answered",
        "cold: generate",
        "hyde 3.31 s",
        "search 310 ms (net 280 ms)",
        "5.90 s (TTFT 410 ms, 46.1 tok/s)",
    ):
        assert part in line
    assert "cache" not in line.replace("cold: generate", "")


def test_failure_names_stage_address_and_next_step() -> None:
    failed = replace(ANSWER, outcome="failed", error=Problem("search", "timeout", EVIL, "http://milvus:19530", "Start Milvus."))
    assert failed.error is not None
    note = BeautifulSoup(cards.problem_note(failed.error), "html.parser")
    assert not note.select("script")
    for part in ("failed in search", "http://milvus:19530", "timeout", "Next: Start Milvus."):
        assert part in note.text
    assert "Failed in search" in text(cards.outcome_line(failed))


def test_the_title_names_the_longest_stage() -> None:
    assert cards.waterfall_title(ANSWER) == "Generate took 60 % of the time"
    cold = replace(ANSWER, stages=(Stage("embed", 9.0, 1, split=Split(load=8.0)),))
    assert cards.waterfall_title(cold) == "Embed took 92 % of the time, most of it loading the model"
    assert cards.waterfall_title(replace(ANSWER, stages=())) == "Where the time went"


def test_passage_cards_have_the_anchor_that_citations_link_to() -> None:
    page = BeautifulSoup(cards.passage_cards(ANSWER.passages, {1}), "html.parser")
    assert page.select_one("details#passage-1") and "cited" in page.text and not page.select("script")


def test_degraded_stages_are_told() -> None:
    assert cards.degraded_note(ANSWER.stages) == ""
    assert "rerank: reranker is down" in text(cards.degraded_note((Stage("rerank", degraded="reranker is down"),)))


def test_exports_hold_everything_and_no_formulas() -> None:
    assert json.loads(exports.answer_json(ANSWER))["id"] == "f" * 32
    stages = exports.stages_csv(ANSWER).decode("utf-8-sig").splitlines()
    assert len(stages) == 5 and stages[0].endswith("load,queue,tokenize,compute,network,other")
    assert ",'=cmd()" in exports.passages_csv(ANSWER).decode("utf-8-sig")


def test_options_survive_the_url() -> None:
    base = Options()
    chosen = Options(hyde="on", candidates=20, keep=3, rerank=False, caches="bypass", model="m/x")
    assert ask_form.from_url(ask_form.to_url(chosen, base), base) == chosen
    assert ask_form.to_url(base, base) == {}


@pytest.mark.parametrize(
    "given", [{"hyde": "x"}, {"candidates": "0"}, {"keep": "9" * 30}, {"rerank": "maybe"}, {"candidates": "²"}]
)
def test_nonsense_in_the_url_is_ignored(given: dict[str, str]) -> None:
    assert ask_form.from_url(given, Options()) == Options()


def test_live_reads_the_event_log() -> None:
    events = [
        {"type": "stage_started", "stage": "generate", "at": 1.0},
        {"type": "passages", "passages": [{"id": "p", "text": "t", "source": "s", "title": "T", "newer": 1}], "at": 1.0},
        {"type": "token", "text": "a ", "at": 1.1},
        {"type": "token", "text": "b", "at": 1.2},
    ]
    assert live.answer_text(events) == "a b"
    assert [passage.title for passage in live.passages_of(events)] == ["T"]
    assert live.doing(events) == "running: generate" and live.doing([]) == "running"


def test_ingest_progress_and_summary() -> None:
    progress = {"type": "progress", "files_done": 1, "files": 4, "passages": 8, "bytes_done": 25, "bytes": 100}
    progress |= {"passages_per_second": 40.0, "seconds_left": None}
    line = text(ingest_view.progress_html([progress], 1.0))
    assert "1 of 4 files · 8 passages · 40.0 passages/s · time left not known yet" in line
    assert "0 files" in text(ingest_view.progress_html([], 1.0))
    summary = {
        "outcome": "finished",
        "seconds": 1.2,
        "added": 2,
        "unchanged": 1,
        "failed": 0,
        "passages": 48,
        "passages_per_second": 40.0,
    }
    assert (
        ingest_view.headline(summary, "3 files")
        == "3 files: read in 1.20 s · 2 added, 1 unchanged · 48 passages, 40.0 passages/s"
    )


@pytest.mark.parametrize(
    ("place", "named"), [("http://10.0.0.7:8100", "Reaching the embedder"), ("10.0.0.9:19530", "Opening the store")]
)
def test_a_store_without_its_embedder_blames_the_embedder(place: str, named: str) -> None:
    embedder = ModelStatus("embedder", "bge", "failed", where="http", address="http://10.0.0.7:8100")
    note = cards.store_note(Problem("search", "connection", "refused", place, "Start it."), (embedder,), "Opening the store")
    assert f"<strong>{named} failed</strong>" in note and place in note
