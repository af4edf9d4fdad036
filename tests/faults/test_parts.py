"""The laboratory's own parts: what they claim to add is added, and what servers say of themselves is what they did."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import httpx
import pytest

from collectors.vllm_metrics import parse
from latency.types import LOCAL, QueryReadings
from tests.faults import readings
from tests.faults.laboratory import REPEATS, Laboratory, ask
from tests.faults.servers import FakeVllm, Pace, Proxy
from tests.gpu_server.odd_server import Odd, odd_server


def test_the_proxy_adds_its_round_trip_and_changes_no_byte():
    body = {"text": "x" * 300_000}
    with odd_server(lambda asked: Odd(body)) as server, Proxy(server.address) as proxy, httpx.Client(trust_env=False) as client:
        assert client.get(proxy.address).json() == body
        with proxy.slower(0.3):
            started = time.perf_counter()
            assert client.get(proxy.address).json() == body  # on the open connection: one round trip
            assert 0.3 <= time.perf_counter() - started < 3
        assert server.connections == 1


def test_the_fake_engine_queues_refuses_and_says_so():
    request = {"model": "m", "messages": [{"role": "user", "content": "word " * 40}], "max_tokens": 5, "stream": True}
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    with FakeVllm(Pace(queue=0.2, tokens=9, refusals=1, retry_after=3, kv_ratio=0.5)) as engine:
        url = f"{engine.address}/v1/chat/completions"
        refused = httpx.post(url, json=request, trust_env=False)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "3")
        answered = httpx.post(url, json=request, headers={"traceparent": parent}, trust_env=False)
        assert answered.text.count('"word') == 5
        assert '"finish_reason": "length"' in answered.text and '"prompt_tokens": 50' in answered.text
        (span,) = engine.spans_of("a" * 32)
        assert span.parent_id == "b" * 16
        assert span.attributes["gen_ai.latency.time_in_queue"] >= 0.2
        gauges = parse(httpx.get(f"{engine.address}/metrics", trust_env=False).text).gauges
        assert gauges["waiting"] == gauges["running"] == 0


def test_readings_cover_the_window_at_twenty_a_second(laboratory: Laboratory):
    world = laboratory.bench.local
    with laboratory.bench.llm.at(per_token=0.05):  # a second, so that it is looked at meanwhile also where much else runs
        case = ask(world)
    found, total = case.readings, case.answer.total_seconds
    assert found is not None
    for series in found.series:
        assert len(series.times) == len(series.values)
        if series.source == LOCAL:
            assert series.times[0] < 0 and series.times[-1] > total
            assert all(abs(late - early - 0.05) < 1e-6 for early, late in pairwise(series.times))
    running = found.get(readings.ENGINE, "engine.running")
    assert running is not None and 1.0 in running.values, "the engine was looked at while it answered"
    assert QueryReadings.from_json(found.to_json()) == found


def test_trouble_shows_in_its_stage_alone(laboratory: Laboratory):
    case = ask(laboratory.bench.local.with_options(keep=5))
    start, end = readings.during("rerank", case.answer)
    hot = readings.throttled(readings.calm(case.answer), case.answer)
    clock = hot.get(LOCAL, "gpu.0.sm_clock_mhz")
    assert clock is not None
    assert set(clock.within(start, end)) <= {645.0}
    assert clock.values[0] == clock.values[-1] == 1980.0
    fact = next(each for each in hot.facts if each.name == "gpu.0.throttle_reasons")
    assert (fact.start, fact.end) == (start, end)


def test_the_path_really_ran(laboratory: Laboratory):
    case = ask(replace(laboratory.bench.local, questions=("Why is the first rerank after a restart slow?",)))
    by_name = {stage.stage: stage for stage in case.answer.stages}
    assert by_name["rerank"].device == "cuda:0" and by_name["generate"].where == "http"
    assert len(case.answer.passages) == 40 and len([each for each in case.answer.passages if each.kept]) == 6
    assert case.answer.tokens.completion == 20
    assert any(span.name == "llm_request" and span.trace_id == case.spans[0].trace_id for span in case.spans)


@pytest.mark.parametrize(("short", "long"), [(True, True), (False, True), (False, False)])
def test_a_short_series_that_disagrees_is_decided_by_the_long_one(short: bool, long: bool):
    asked: list[int] = []

    def check(repeats: int) -> None:
        asked.append(repeats)
        assert short if repeats == REPEATS else long

    with nullcontext() if short or long else pytest.raises(AssertionError):
        Laboratory(None).decide(check)
    assert asked == ([REPEATS] if short else [REPEATS, 3 * REPEATS])
