"""What is usual: robust against queries that had something wrong, the same from cases and from the trace file, quick."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from latency.baseline import PREFILL, build, from_store, near_equal
from latency.findings import find
from latency.types import Baseline, Case, Key
from rag.trace_store import TraceStore
from rag.types import HydeEffect
from tests.latency import cases as c

RERANK = Key("rerank", "BAAI/bge-reranker-v2-m3", "in-process", "cuda:0")
GENERATE = Key("generate", "Qwen/Qwen3-8B-AWQ", "http", None)
SEARCH = Key("search", None, "http", None)


def reranked(amounts: Sequence[int], seconds: Callable[[int], float], seed: int = 3) -> list[Case]:
    random = Random(seed)
    parts = [
        (c.embed(), c.search(), c.rerank(seconds(amount) * random.uniform(0.95, 1.05), amount), c.generate())
        for amount in amounts
    ]
    return [c.make(found, number=number) for number, found in enumerate(parts)]


def test_the_line_of_seconds_over_the_work_load_is_found() -> None:
    usual = build(reranked([10, 20, 30, 50, 80, 15, 25, 60, 40, 70] * 4, lambda amount: 0.05 + 0.004 * amount)).usual[RERANK]
    assert usual.fixed == pytest.approx(0.05, abs=0.015) and usual.per_unit == pytest.approx(0.004, rel=0.08)
    assert usual.expected(100) == pytest.approx(0.45, rel=0.06) and usual.n >= 36


def test_a_work_load_that_never_varies_counts_in_proportion() -> None:
    usual = build(reranked([40] * 20, lambda amount: 0.2)).usual[RERANK]
    assert (
        usual.fixed == 0
        and usual.expected(40) == pytest.approx(0.2, rel=0.05)
        and usual.expected(80) == pytest.approx(0.4, rel=0.05)
    )
    assert usual.expected(None) == usual.compute


@pytest.mark.parametrize("part", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("amounts", [[40], [10, 20, 40, 60, 80]], ids=["always 40", "varied"])
def test_queries_with_something_wrong_do_not_spoil_it(part: float, amounts: list[int]) -> None:
    random = Random(5)
    loads = [random.choice(amounts) for _ in range(60)]
    good = reranked(loads, lambda amount: 0.005 * amount)
    bad = round(part * len(good))
    wrong = [_slower(case, random.uniform(3, 9)) if number < bad else case for number, case in enumerate(good)]
    random.shuffle(wrong)
    usual, clean = build(wrong).usual[RERANK], build(good).usual[RERANK]
    assert usual.expected(40) == pytest.approx(clean.expected(40), rel=0.1)
    assert usual.spread < 0.02 and usual.n >= 36


def _slower(case: Case, times: float) -> Case:
    stage = case.stage("rerank")
    assert stage is not None
    slow = replace(stage, split=replace(stage.split, compute=stage.split.compute * times))
    return replace(
        case, answer=replace(case.answer, stages=tuple(slow if each.stage == "rerank" else each for each in case.answer.stages))
    )


def test_medians_of_the_split_and_of_the_language_model() -> None:
    queries = [c.make((c.embed(), c.search(trip=0.02, trips=2), c.rerank(queue=0.01), c.generate()), number=n) for n in range(9)]
    found = build(queries)
    assert found.usual[SEARCH].network == pytest.approx(0.04) and found.usual[RERANK].queue == pytest.approx(0.01)
    assert found.usual[RERANK].network is None
    assert found.usual[GENERATE].per_second == pytest.approx(100, rel=0.01) and found.usual[GENERATE].ttft == pytest.approx(
        0.151, abs=0.002
    )
    assert found.usual[GENERATE._replace(stage=PREFILL)].expected(1500) == pytest.approx(0.151, abs=0.002)
    assert found.queries == 9 and found.near_equal_questions == 0 and found.rerank_moved == 35


def test_cold_failed_and_measuring_queries_are_left_out() -> None:
    good = [c.healthy(number=number) for number in range(6)]
    cold = c.make(c.replace_part(c.parts(), "rerank", load=9.0, cold=True), number=10)
    failed = replace(good[0], answer=replace(good[0].answer, outcome="failed"))
    measured = [replace(case, answer=replace(case.answer, origin="measure")) for case in good]
    found = build([*good, cold, failed, *measured])
    assert found.queries == 6 and found.usual[RERANK].n == 6
    assert build(measured).queries == 6  # nothing else was asked: then they say what is usual
    assert build([]) == Baseline()


def test_what_hyde_changed_and_how_far_reranking_reaches() -> None:
    queries = [
        c.make(
            c.with_hyde(),
            number=number,
            lowest_kept=10 + number,
            hyde_effect=HydeEffect(number % 4 == 0, 0.8) if number < 16 else None,
        )
        for number in range(20)
    ]
    found = build(queries)
    assert (found.hyde_both, found.hyde_changed) == (16, 4)
    assert found.rerank_moved == pytest.approx(28, abs=0.5)


def test_near_equal_questions_have_the_same_words_and_numbers() -> None:
    asked = ["What does Art. 72 say?", "what does art 72 SAY", "What does Art. 75 say?", "", "", "Say what does Art. 72"]
    assert near_equal(asked) == [1, 5]


# ----------------------------------------------------------------------------------------------------------- trace file


@pytest.fixture
def traces(tmp_path: Path):  # type: ignore[no-untyped-def]
    store = TraceStore(tmp_path / "traces.db")
    yield store
    store.close()


def stored(traces: TraceStore, cases: Sequence[Case]) -> None:
    for case in cases:
        traces.save(case.answer, case.spans)
    assert traces.flush()


def test_the_trace_file_says_the_same_as_the_cases(traces: TraceStore) -> None:
    random = Random(11)
    queries = [
        c.healthy(random, number, found=c.with_hyde(), hyde_effect=HydeEffect(number % 5 == 0, 0.6)) for number in range(1, 31)
    ]
    stored(traces, queries)
    seen, built = from_store(traces), build(queries)
    assert set(seen.usual) == set(built.usual)
    for key, usual in built.usual.items():
        other = seen.usual[key]
        assert other.n == pytest.approx(usual.n, abs=2)
        assert other.expected(40) == pytest.approx(usual.expected(40), rel=0.05), key
        assert (other.compute, other.queue) == pytest.approx((usual.compute, usual.queue), rel=0.05)
    assert seen.usual[GENERATE].per_second == pytest.approx(built.usual[GENERATE].per_second or 0, rel=0.05)
    assert (seen.hyde_both, seen.hyde_changed, seen.rerank_moved, seen.queries) == (30, 6, built.rerank_moved, 30)
    slow = c.make(c.replace_part(c.with_hyde(), "rerank", queue=1.0), readings=c.calm)
    assert [each.code for each in find(slow, seen)] == [each.code for each in find(slow, built)] == ["client_queue", "hyde_cost"]


def test_only_queries_before_a_time_and_only_so_many_count(traces: TraceStore) -> None:
    def at(number: int) -> Case:
        case = c.healthy(number=number)
        return replace(case, answer=replace(case.answer, started_at=f"2026-09-21T13:{number:02d}:00.000+00:00"))

    stored(traces, [at(number) for number in range(1, 21)])
    middle = traces.search()[10].started_at  # newest first
    assert from_store(traces, before=middle).queries == 9
    assert from_store(traces, limit=5).queries == 5
    cold = c.make(c.replace_part(c.parts(), "rerank", load=1.0, cold=True), number=50)
    measured = replace(c.healthy(number=51), answer=replace(c.healthy(number=51).answer, origin="measure"))
    stored(traces, [cold, measured])
    assert from_store(traces).queries == 20


def test_an_empty_file_has_nothing_usual(traces: TraceStore) -> None:
    assert from_store(traces) == Baseline()


def test_rows_are_read_and_not_answers(traces: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 queries only a few answers are unpacked: for how far reranking reaches."""
    stored(traces, [c.healthy(Random(number), number) for number in range(1, 401)])
    read: list[str] = []
    get = traces.get
    monkeypatch.setattr(traces, "get", lambda query_id: (read.append(query_id), get(query_id))[1])
    started = time.perf_counter()
    assert from_store(traces).queries == 400
    assert len(read) == 40 and time.perf_counter() - started < 20


def test_answers_of_a_cache_do_not_count_as_quick_models() -> None:
    cached = [c.make((c.embed(), c.search(), c.rerank(0.0), c.generate()), number=number) for number in range(15)]
    found = build([*cached, *reranked([40] * 10, lambda amount: 0.2)])
    assert found.usual[RERANK].n == 10 and found.usual[RERANK].compute == pytest.approx(0.2, rel=0.05)
