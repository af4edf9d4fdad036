"""What holds for all cases: nothing in healthy ones, no second explained twice, sums within the total."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.baseline import build
from latency.findings import find, find_many
from latency.types import LOCAL, Baseline, Fact, Use
from tests.latency import cases as c
from tests.latency.test_findings import FOUND, PAIRS, USUAL

CALM_USUAL = build([c.healthy(None, number) for number in range(20)])  # a baseline without any noise in it


@pytest.mark.parametrize("usual", [USUAL, CALM_USUAL, Baseline()], ids=["noisy", "calm", "none"])
def test_in_200_healthy_queries_nothing_stands_out(usual: Baseline) -> None:
    found = {number: find(c.healthy(Random(number), number), usual) for number in range(200)}
    assert {number: each for number, each in found.items() if each} == {}


def test_healthy_queries_with_hyde_that_helps_have_no_finding() -> None:
    usual = replace(c.usual(found=c.with_hyde()), hyde_both=50, hyde_changed=30)
    assert [find(c.healthy(Random(number), number, found=c.with_hyde()), usual) for number in range(50)] == [()] * 50


@given(st.integers(0, 10**6), st.sampled_from(["starter", "hyde", "plain"]))
@settings(max_examples=60, deadline=None)
def test_quick_queries_have_no_finding_however_they_waver(seed: int, kind: str) -> None:
    """The starter models answer in less than a tenth of a second."""
    quick = (
        c.embed(0.012, device="cpu"),
        c.search(0.008, trip=0.0, where="in-process", network=None),
        c.rerank(0.0006, device="cpu"),
        c.Part("generate", 0.004, device="cpu"),
    )
    random = Random(seed)
    query = c.make(c.jittered(quick, random, 0.9), readings=c.calm) if kind == "starter" else c.healthy(random)
    assert find(query, USUAL) == ()


seconds = st.floats(0, 3)


@st.composite
def troubled(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """Any mixture of causes, with readings that blame several machines at once."""
    rerank = c.rerank(
        draw(seconds), draw(st.integers(1, 600)), load=draw(seconds) if draw(st.booleans()) else 0.0, queue=draw(seconds)
    )
    rerank = replace(rerank, cold=draw(st.booleans()), device=draw(st.sampled_from(["cpu", "cuda:0"])))
    search = c.search(
        draw(seconds),
        trip=draw(st.floats(0, 0.4)),
        trips=draw(st.integers(1, 4)),
        load=draw(seconds),
        facts={"unflushed_rows": 5000},
    )
    facts = {
        "attempts": draw(st.integers(1, 3)),
        "waited_seconds": draw(seconds),
        "errors": ["503"],
        "server_queue_seconds": draw(seconds),
    }
    written = c.generate(
        draw(seconds), draw(st.integers(2, 600)), draw(st.floats(20, 200)), draw(st.integers(100, 12_000)), facts=facts
    )
    hyde = (c.hyde(draw(seconds)), c.embed(draw(seconds)), c.search(draw(seconds))) if draw(st.booleans()) else ()
    query = c.make((c.embed(draw(seconds)), search, *hyde, rerank, written))
    reason = Fact(LOCAL, "gpu.0.throttle_reasons", "hw_slowdown", 0.0, query.answer.total_seconds)
    values = {
        "cpu.busy_ratio": draw(st.floats(0.5, 1)),
        "gpu.0.memory_used_ratio": 0.99,
        "disk.nvme0n1.busy_ratio": draw(st.floats(0.5, 1)),
    }
    readings = c.readings_of(
        query.answer, values, facts=[reason], uses=[Use(LOCAL, 5, "other", gpu=0, memory_bytes=1)], engine={"waiting": 2.0}
    )
    return replace(query, readings=readings if draw(st.booleans()) else None)


@given(troubled(), st.sampled_from([USUAL, Baseline(), replace(USUAL, hyde_both=40, hyde_changed=2)]))
@settings(max_examples=150, deadline=None)
def test_no_second_is_saved_twice(query, usual: Baseline) -> None:  # type: ignore[no-untyped-def]
    found = find(query, usual)
    total = query.answer.total_seconds
    assert sum(each.saving_seconds or 0.0 for each in found) <= total * 1.05
    assert all(0 < (each.saving_seconds or 0.0) <= each.cost_seconds + 1e-9 <= total * 1.001 for each in found)
    assert all(each.evidence and each.change and each.derivation for each in found)
    assert len({(each.code, each.key) for each in found}) == len(found)
    assert find(query, usual) == found


def test_stages_side_by_side_cannot_save_more_than_the_query_took() -> None:
    """A program that reranks and embeds at once and tells us by OTLP."""
    query = FOUND["client_queue"][0]
    answer = replace(query.answer, total_seconds=0.9)
    found = find(replace(query, answer=answer), USUAL)
    assert found and sum(each.saving_seconds or 0 for each in found) <= 0.9


# ------------------------------------------------------------------------------------------------------------------ sets


def of(code: str, number: int):  # type: ignore[no-untyped-def]
    query = FOUND[code][0]
    return replace(query, answer=replace(query.answer, id=f"{number:032x}", question=f"Question number {number}?"))


def test_a_cause_in_many_queries_is_one_finding_with_their_sum() -> None:
    loads = [of("model_loaded", number) for number in range(12)]
    worst = loads[5].answer
    loads[5] = replace(loads[5], answer=replace(worst, total_seconds=worst.total_seconds + 1))
    queries = [*loads, *(c.healthy(Random(number), 100 + number) for number in range(72))]
    found = find_many(queries, USUAL)
    assert [each.code for each in found] == ["model_loaded"]
    total = sum(query.answer.total_seconds for query in queries)
    assert found[0].cost_seconds == pytest.approx(12 * 1.84, rel=0.02) and found[0].share == pytest.approx(
        found[0].cost_seconds / total, rel=0.02
    )
    assert found[0].title.startswith("The reranker was loaded inside 12 of 84 queries: 22")
    assert len(found[0].query_ids) == 12 and found[0].query_ids[0] == loads[5].answer.id


def test_what_is_small_in_each_query_and_measured_in_all_counts_together() -> None:
    parts = (c.embed(), c.search(trip=0.045, trips=2), c.rerank(0.1), c.generate(tokens=60))
    queries = [c.make(parts, number=number, readings=c.calm) for number in range(30)]
    assert find(queries[0], USUAL) == ()
    found = find_many(queries, USUAL)
    assert [each.code for each in found] == ["network_store"] and "30 of 30 queries" in found[0].title


def test_healthy_queries_together_have_no_finding() -> None:
    queries = [c.healthy(Random(number), number) for number in range(60)]
    assert find_many(queries, USUAL) == () and find_many(queries, Baseline()) == () and find_many([], USUAL) == ()


def test_a_server_that_loads_its_model_in_each_request_builds_it_anew() -> None:
    slow = c.replace_part(c.parts(), "rerank", load=1.8, cold=True, where="http", device=None, network=0.01)
    found = find_many([c.make(slow, number=number, readings=c.calm) for number in range(8)], Baseline())
    assert found[0].code == "remote_model_per_request" and found[0].confidence == "measured"
    assert "8 of 8 queries" in found[0].title and "handler" in found[0].change
    one_in_four = [c.make(slow if number % 4 == 0 else c.parts(), number=number, readings=c.calm) for number in range(16)]
    assert find_many(one_in_four, Baseline())[0].code in ("model_loaded", "remote_model_per_request")
    mixed = [
        c.make(c.replace_part(slow, "rerank", load=1.8 if number % 4 == 0 else 0.0), number=number, readings=c.calm)
        for number in range(16)
    ]
    assert find_many(mixed, Baseline())[0].code == "model_loaded"


def test_a_remote_model_that_takes_the_same_time_for_any_work_is_suspected() -> None:
    def parts(candidates: int):  # type: ignore[no-untyped-def]
        slow = c.rerank(
            1.9 + 0.0005 * candidates, candidates, where="http", device=None, network=0.01, label="score (network estimated)"
        )
        return c.replace_part((c.embed(), c.search(), slow, c.generate()), "rerank")

    queries = [
        c.make(parts(candidates), number=number, readings=c.calm)
        for number, candidates in enumerate((10, 20, 40, 60, 30, 15, 50, 25))
    ]
    found = find_many(queries, Baseline())
    assert found[0].code == "remote_model_per_request" and found[0].confidence == "suspected"
    assert found[0].saving_seconds == pytest.approx(8 * 1.9, rel=0.1)


def test_questions_that_were_asked_before_show_what_a_cache_would_save() -> None:
    asked = ["Why is the pump slow?", "why is the PUMP slow", "What does Art. 72 say?", "What does Art. 75 say?"] * 5
    queries = [c.make(c.parts(), number=number, readings=c.calm, question=question) for number, question in enumerate(asked)]
    found = find_many(queries, USUAL)
    assert [each.code for each in found] == ["cache_misses"]
    assert found[0].title.startswith("17 of 20 queries")  # three questions are new, 72 and 75 are two of them
    assert found[0].saving_seconds == pytest.approx(17 * (queries[0].answer.total_seconds - 0.05), rel=0.02)
    measured = [replace(query, answer=replace(query.answer, origin="measure")) for query in queries]
    assert find_many(measured, USUAL) == ()


def test_savings_of_a_set_stay_within_its_time() -> None:
    codes = [*FOUND, *FOUND]
    queries = [of(code, number) for number, code in enumerate(codes)]
    queries += [c.make(found, number=500 + number, readings=c.calm) for number, (_, _, found) in enumerate(PAIRS)]
    found = find_many(queries, USUAL)
    total = sum(query.answer.total_seconds for query in queries)
    assert len(found) > 15 and sum(each.saving_seconds or 0 for each in found) <= 1.05 * total
    assert found == find_many(queries, USUAL)
