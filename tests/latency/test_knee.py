"""The knee on synthetic data: closed and open queueing systems with a known number of servers."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from random import Random

import pytest

from latency.load.knee import FLAT, OPEN_LOAD, REST, Knee, explain, find
from latency.load.steps import Heard, Reading, Step, Told, step_of

SERVICE = 0.1


def closed(users: int, servers: int, seconds: float = 60.0, seed: int = 1, fixed: float = 0.05) -> Step:
    """A simulated closed system: users ask again at once; `servers` serve in exponential time; `fixed` delays every request."""
    random = Random(seed * 1000 + users)
    free = [0.0] * servers
    ready = [(0.0, user) for user in range(users)]
    heard: list[Heard] = []
    while ready[0][0] < seconds:
        at, user = heapq.heappop(ready)
        begun = max(at, heapq.heappop(free))
        done = begun + random.expovariate(1 / SERVICE)
        heapq.heappush(free, done)
        stages = {"embed": fixed, "rerank": done - at}
        heard.append(Heard(at, at, done + fixed, Told(stages, {"embed": 0.0, "rerank": begun - at})))
        heapq.heappush(ready, (done + fixed, user))
    return step_of(heard, users, seconds)


def opened(users: int, rate_each: float, servers: int, seconds: float = 120.0) -> Step:
    """A simulated M/M/c queue at `users` times the rate."""
    random = Random(users)
    free = [0.0] * servers
    heard: list[Heard] = []
    at = random.expovariate(users * rate_each)
    while at < seconds:
        begun = max(at, heapq.heappop(free))
        done = begun + random.expovariate(1 / SERVICE)
        heapq.heappush(free, done)
        heard.append(Heard(at, at, done, Told({"generate": done - at}, {"generate": begun - at})))
        at += random.expovariate(users * rate_each)
    return step_of(heard, users, seconds, rate=users * rate_each)


@pytest.mark.parametrize("servers", [1, 2, 4, 6, 10])
@pytest.mark.parametrize("users", [(1, 2, 4, 8, 16, 32), (1, 4, 8, 12, 16, 20, 24, 28, 32)])
def test_the_knee_of_a_closed_system_is_where_its_servers_are_used_up(servers: int, users: Sequence[int]) -> None:
    """Asymptotes meet at capacity times the response time without waiting: c/S * (S + Z) with Z the fixed delay."""
    found = find([closed(each, servers) for each in users])
    expected = servers / SERVICE * (SERVICE + 0.05)
    assert found.users == pytest.approx(expected, rel=0.25, abs=0.6)
    assert found.capacity == pytest.approx(servers / SERVICE, rel=0.12)
    assert found.recommended is not None and abs(found.recommended - expected) <= max(1.0, 0.3 * expected)


@pytest.mark.parametrize("seed", range(8))
def test_enough_servers_have_no_knee(seed: int) -> None:
    found = find([closed(users, 64, seconds=8.0, seed=seed) for users in (1, 2, 4, 8, 16)])
    assert found.users is None and found.text.startswith("No knee up to 16 users") and found.recommended == 16
    assert found.saturated == ()


@pytest.mark.parametrize("users", [(8, 9, 10), (4, 5, 6, 7)])
def test_steps_close_together_are_no_knee(users: Sequence[int]) -> None:
    assert find([closed(each, 64, seconds=120.0) for each in users]).users is None


def test_the_knee_of_an_open_queue_is_its_capacity() -> None:
    found = find([opened(users, 2.0, servers=4) for users in (2, 5, 10, 15, 25, 40)])
    assert found.users == pytest.approx(20, rel=0.15)  # 4 servers of 10 a second, 2 a second each user
    assert found.capacity == pytest.approx(40, rel=0.1)
    assert found.recommended_rate == pytest.approx(OPEN_LOAD * 40, rel=0.1)


def test_a_device_that_batches_and_only_then_fills_up() -> None:
    """Latency doubles at once, but throughput grows on to 64 users: the knee is there, not where latency first grew."""

    def step(users: int) -> Step:
        return steady(users, 0.1 if users == 1 else 0.2 * max(1.0, users / 64))

    assert find([step(users) for users in (1, 2, 4, 8, 16, 32, 64, 128, 256)]).users == pytest.approx(64, rel=0.1)


def test_throughput_that_falls_again_has_its_knee_before_the_fall() -> None:
    found = find([_flat(users, throughput) for users, throughput in ((1, 10), (2, 19), (4, 30), (8, 20), (16, 12))])
    assert found.users is not None and 2.5 <= found.users <= 4.5 and found.capacity == 30


def steady(users: int, seconds: float, rounds: int = 10, readings: tuple[Reading, ...] = ()) -> Step:
    """Users who are answered after exactly `seconds`, one after another."""
    heard = [Heard(n * seconds, n * seconds, (n + 1) * seconds, Told()) for n in range(rounds) for _ in range(users)]
    return step_of(heard, users, (rounds - 0.5) * seconds, readings=readings)


def _flat(users: int, throughput: float, readings: tuple[Reading, ...] = ()) -> Step:
    return steady(users, users / throughput, readings=readings)


def test_the_stage_whose_queue_grows_explains_the_added_latency() -> None:
    steps = [closed(users, 2) for users in (1, 2, 4, 8, 16)]
    found = find(steps)
    assert [each.stage for each in found.growth] == ["rerank"]
    (growth,) = found.growth
    assert growth.share == pytest.approx(1.0, abs=0.05)
    assert growth.queue is not None and growth.queue == pytest.approx(growth.seconds, rel=0.1)
    assert (found.calm, found.loaded) == (1, 16)
    assert "2" in found.text and "latency grows" in found.text


def test_what_no_stage_tells_is_named_as_outside() -> None:
    calm = step_of([Heard(0, 0, 1.0, Told({"embed": 0.9}))], 1, 1.0)
    loaded = step_of([Heard(0, 0, 3.0, Told({"embed": 1.1}))], 4, 3.0)
    assert [(each.stage, round(each.share, 2)) for each in explain(calm, loaded)] == [(REST, 0.9), ("embed", 0.1)]


def test_a_stage_that_only_some_requests_ran_counts_over_all() -> None:
    calm = step_of([Heard(0, 0, 1.0, Told({"embed": 1.0}))] * 2, 1, 2.0)
    loaded = step_of([Heard(0, 0, 3.0, Told({"embed": 1.0, "hyde": 2.0})), Heard(0, 0, 1.0, Told({"embed": 1.0}))], 2, 3.0)
    (growth,) = explain(calm, loaded)
    assert (growth.stage, growth.seconds, growth.share, growth.queue) == ("hyde", 1.0, 1.0, 0.0 if growth.queue == 0 else None)


def test_what_was_full_is_said_from_the_readings() -> None:
    full = (
        Reading("app", "cpu.busy_ratio", 0.97, 1.0, 12),
        Reading("l4-vm", "gpu.0.utilization_ratio", 0.4, 0.9, 12),
        Reading("l4-vm", "gpu.1.utilization_ratio", 0.99, 1.0, 12),
        Reading("vllm", "engine.waiting", 6.0, 11.0, 12),
        Reading("vllm", "engine.kv_cache_used_ratio", 0.7, 0.98, 12),
    )
    said = " ".join(find([_flat(1, 10), _flat(2, 10.2), _flat(8, 10.1, full)]).saturated)
    assert "processor of app was 97 %" in said and "GPU of l4-vm was 99 %" in said and "40 %" not in said
    assert "6 requests waited inside vllm" in said and "KV cache of vllm was 98 %" in said


def test_one_step_or_none_has_no_knee_and_says_so() -> None:
    assert "One step alone" in find([_flat(4, 10)]).text
    nothing = find([])
    assert nothing.text == "No step was answered." and nothing.capacity is None and nothing.recommended is None


def test_the_recommendation_stays_below_what_was_refused() -> None:
    refused = step_of([Heard(0, 0, 0.1, Told())] * 40 + [Heard(0, 0, 0, Told(error="overloaded"))], 8, 0.5)
    found = find([_flat(2, 20), _flat(4, 40), refused])
    assert found.users is None and found.recommended == 4 and any("refused" in note for note in found.notes)


def test_a_knee_survives_its_json() -> None:
    found = find([closed(users, 2, 5.0) for users in (1, 2, 4, 8)])
    assert Knee.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert 0.3 < FLAT < 0.34
