"""vLLM's queue, prefill and decode: from spans, from facts, from the growth of sums; unknown with the reason otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from latency.readings.server_split import ServerSplit, server_split, server_splits
from latency.types import Case, Fact, QueryReadings, Series
from rag.otlp import SpanRecord
from rag.types import Answer, Interval, Split, Stage

TRACE = "0af7651916cd43dd8448eb211c80319c"
GENERATE = Interval("generate", 1.0, 4.0, "stream the answer", Split())
HYDE = Interval("hyde", 0.0, 0.8, "write a passage", Split())


def answer(*intervals: Interval, where: str = "http") -> Answer:
    stages = tuple(Stage(each.stage, each.seconds, 1, where=where) for each in intervals)
    return Answer("q", "?", "2026-11-21T05:00:00.000+00:00", "answered", stages=stages, timeline=intervals, total_seconds=5.0)


def span(span_id: str, parent: str | None, stage: str = "", **attributes: Any) -> SpanRecord:
    known = {"ragdeck.stage": stage} if stage else {}
    return SpanRecord(TRACE, span_id, parent, "llm_request", "SERVER", 0, 10, "UNSET", known | attributes)


def ours(stage: str, span_id: str, port: int = 8001) -> SpanRecord:
    return span(span_id, "root", stage, **{"server.address": "localhost", "server.port": port})


def latency(**parts: float) -> dict[str, float]:
    return {f"gen_ai.latency.{name}": value for name, value in parts.items()}


V1 = latency(time_in_queue=0.5, time_in_model_prefill=0.25, time_in_model_decode=3.0, time_to_first_token=0.8, e2e=3.8)


def engine(
    source: str = "vllm",
    requests: tuple[float, ...] = (10, 10, 11),
    queue: tuple[float, ...] = (100.0, 100.0, 100.5),
    running: tuple[float, ...] = (0, 1, 0),
    times: tuple[float, ...] = (0.9, 2.0, 5.1),
    address: str = "http://127.0.0.1:8001",
) -> QueryReadings:
    prefill, decode = tuple(7.0 + 0.25 * (n - 10) for n in requests), tuple(50.0 + 3.0 * (n - 10) for n in requests)
    values = {
        "engine.requests_total": requests,
        "engine.queue_seconds_total": queue,
        "engine.prefill_seconds_total": prefill,
        "engine.decode_seconds_total": decode,
        "engine.running": running,
    }
    series = tuple(Series(source, name, times, each) for name, each in values.items())
    return QueryReadings("q", 0.0, 5.0, series, (Fact(source, "service.address", address, 0, 5),))


def test_a_server_span_below_the_stage() -> None:
    spans = (ours("hyde", "h"), ours("generate", "g"), span("s1", "g", **V1))
    case = Case(answer(HYDE, GENERATE), spans)
    assert server_split(case) == ServerSplit("generate", 0.5, 0.25, 3.0, "span s1")
    assert server_split(case, "hyde").reason == "no server span joined this trace, and there are no readings of this time"
    assert [each.stage for each in server_splits(case)] == ["hyde", "generate"]


def test_retries_are_added_up() -> None:
    spans = (ours("generate", "g"), span("s1", "g", **V1), span("s2", "g", **V1))
    assert server_split(Case(answer(GENERATE), spans))[1:5] == (1.0, 0.5, 6.0, "span s1, s2")


def test_older_versions_give_no_prefill_and_decode() -> None:
    attributes = latency(time_in_queue=0.5, time_to_first_token=0.75, e2e=3.75)
    found = server_split(Case(answer(GENERATE), (ours("generate", "g"), span("s", "g", **attributes))))
    assert found[1:4] == (0.5, 0.25, 3.0)


def test_a_span_whose_parent_is_another_programs() -> None:
    """A gateway in between: its span is not in our trace."""
    spans = (ours("generate", "g"), span("s1", "gateway", **V1))
    assert server_split(Case(answer(GENERATE), spans)).source == "span s1"
    both = Case(answer(HYDE, GENERATE), (*spans, ours("hyde", "h")))
    assert not server_split(both).known and not server_split(both, "hyde").known  # it may be either's


@pytest.mark.parametrize("value", [-1.0, True, "0.5", None])
def test_what_is_no_time_is_unknown(value: Any) -> None:
    spans = (ours("generate", "g"), span("s1", "g", **{"gen_ai.latency.time_in_queue": value}))
    assert not server_split(Case(answer(GENERATE), spans)).known


def test_facts_of_the_interval() -> None:
    facts = {"server_queue_seconds": 0.1, "server_prefill_seconds": 0.2, "server_decode_seconds": 0.3, "attempts": 1}
    case = Case(answer(replace(GENERATE, facts=facts)), (), engine())
    assert server_split(case) == ServerSplit("generate", 0.1, 0.2, 0.3, "facts")
    assert server_split(case).seconds == pytest.approx(0.6)


def test_the_growth_of_sums_when_one_request_ran() -> None:
    found = server_split(Case(answer(GENERATE), (ours("generate", "g"),), engine()))
    assert found.known and found.source == "metrics of vllm" and found.reason is None
    assert found[1:4] == pytest.approx((0.5, 0.25, 3.0))


def test_the_first_look_after_the_stage_that_has_the_request() -> None:
    late = engine(requests=(10, 10, 11), times=(0.9, 5.1, 5.6), running=(0, 0, 0))
    assert server_split(Case(answer(GENERATE), (), late)).known


@pytest.mark.parametrize(
    ("readings", "reason"),
    [
        (engine(requests=(10, 11, 12)), "served others too: 2 requests ended"),
        (engine(running=(0, 2, 0)), "served others too: 2 requests ran at once"),
        (engine(times=(1.2, 2.0, 5.1)), "no look at the metrics of vllm shortly before"),
        (engine(times=(0.9, 2.0, 4.9)), "no look at the metrics of vllm shortly after"),
        (engine(requests=(10, 10, 10)), "no look at the metrics of vllm shortly after"),
        (engine(queue=(100.0, 100.0, 0.5)), "was started anew"),
        (engine(queue=(100.0, 100.0, 140.0)), "counted a longer request than this stage"),
        (engine(address="http://127.0.0.1:9999"), "no metrics of the server that answered"),
        (QueryReadings("q", 0.0, 5.0), "no metrics of the server that answered"),
    ],
)
def test_otherwise_it_is_unknown_and_says_why(readings: QueryReadings, reason: str) -> None:
    found = server_split(Case(answer(GENERATE), (ours("generate", "g"),), readings))
    assert not found.known and found[1:4] == (None, None, None)
    assert reason in str(found.reason)


def test_which_of_several_servers() -> None:
    two = engine("small", address="http://127.0.0.1:8003")
    both = replace(two, series=(*two.series, *engine().series), facts=(*two.facts, *engine().facts))
    assert server_split(Case(answer(GENERATE), (ours("generate", "g", 8001),), both)).source == "metrics of vllm"
    assert "several servers" in str(server_split(Case(answer(GENERATE), (), both)).reason)


def test_a_server_that_gives_no_sums() -> None:
    readings = engine()
    without = replace(readings, series=tuple(each for each in readings.series if each.metric == "engine.running"))
    assert "gives no sums" in str(server_split(Case(answer(GENERATE), (), without)).reason)


def test_hyde_and_generate_are_told_apart_by_a_look_between_them() -> None:
    looks = engine(requests=(10, 11, 12), queue=(100.0, 100.5, 100.5), running=(0, 0, 0), times=(-0.5, 0.9, 5.1))
    case = Case(answer(replace(HYDE, seconds=0.8, start=0.0), GENERATE), (), looks)
    assert "counted a longer request" in str(server_split(case, "hyde").reason)  # 3.75 s do not fit into 0.8 s
    assert server_split(case).known


def test_stages_that_asked_no_server() -> None:
    assert server_split(Case(answer(GENERATE, where="in-process"))).reason == (
        "the model runs in this process: the stage's own split has its times"
    )
    assert server_split(Case(answer(HYDE))).reason == "the stage did not run"
    skipped = replace(answer(HYDE), stages=(Stage("hyde", skipped="off"),))
    assert server_split(Case(skipped), "hyde").reason == "the stage did not run"
    assert server_splits(Case(replace(answer(), stages=(), timeline=()))) == ()
    assert server_splits(Case(answer(GENERATE, where="in-process"))) == ()
