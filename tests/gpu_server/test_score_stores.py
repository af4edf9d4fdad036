"""Where rerank scores are kept: memory with a clock of the test's, and a real Redis that dies, hangs, fills up and comes back."""

from __future__ import annotations

import socket
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import redis

from gpu_server import score_stores
from gpu_server.caches import CachedReranker
from gpu_server.score_stores import (
    ENTRY_BYTES,
    PREFIX,
    RETRY_SECONDS,
    MemoryScores,
    RedisScores,
    StoredScore,
    decoded,
    encoded,
    score_store,
)
from tests.gpu_server.cache_fakes import PATIENCE, FakeReranker, passages

if TYPE_CHECKING:
    from tests.redis_server import RedisServer

pytest_plugins = ["tests.redis_server"]

SCORE = StoredScore(-1.5, True)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine is not an outage: who tests one sets the waits of the product again."""
    for name in ("CONNECT_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(score_stores, name, PATIENCE)


CANDIDATES = passages("a", "bb")


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


# Memory


def test_a_score_lives_as_long_as_it_may():
    clock = Clock()
    store = MemoryScores(ttl_seconds=60, clock=clock)
    store.keep({key(1): SCORE})
    clock.now += 59.9
    assert store.find([key(1), key(2)]).result(0) == [SCORE, None]
    clock.now += 0.1
    assert store.find([key(1)]).result(0) == [None]
    assert store.state.entries == 0 and store.state.bytes == 0


def test_keeping_again_renews():
    clock = Clock()
    store = MemoryScores(ttl_seconds=60, clock=clock)
    store.keep({key(1): SCORE})
    clock.now += 50
    store.keep({key(1): StoredScore(2.0, False)})
    clock.now += 50
    assert store.find([key(1)]).result(0) == [StoredScore(2.0, False)]
    assert store.state.entries == 1


def test_the_least_recently_used_goes_first():
    store = MemoryScores(max_entries=2)
    store.keep({key(1): SCORE, key(2): SCORE})
    store.find([key(1)])
    store.keep({key(3): SCORE})
    assert store.find([key(1), key(2), key(3)]).result(0) == [SCORE, None, SCORE]
    assert store.state.evictions == 1


def test_memory_is_what_it_says():
    store = MemoryScores(max_entries=5000)
    tracemalloc.start()
    try:
        for number in range(8000):
            store.keep({key(number): StoredScore(float(number), False)})
        taken_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert store.state.entries == 5000 and store.state.bytes == 5000 * ENTRY_BYTES
    assert 0.6 * taken_bytes < 5000 * ENTRY_BYTES < 1.5 * taken_bytes


# Redis


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    client = redis.Redis(port=redis_server.port, protocol=2)
    client.flushall()
    return client


def connected(url: str, clock: Clock | None = None, ttl_seconds: int = 3600) -> RedisScores:
    store = RedisScores(url, ttl_seconds, clock=clock or Clock())
    assert store.wait_until_up(PATIENCE)
    return store


def test_scores_are_shared_between_processes_and_expire(redis_server, client):
    store = connected(redis_server.url, ttl_seconds=777)
    other = connected(redis_server.url)
    store.keep({key(1): SCORE, key(2): StoredScore(0.1, False)})
    store.find([key(1)]).result(PATIENCE)  # its turn comes after the keeping
    found = other.find([key(2), key(3), key(1)]).result(PATIENCE)
    assert found == [StoredScore(float(np.float32(0.1)), False), None, SCORE]
    name = PREFIX + key(1).hex()
    assert 700 < client.ttl(name) <= 777
    assert len(name) < 100 and len(client.get(name)) == 8


def test_what_was_kept_is_found_by_the_next_call(redis_server, client):
    store = connected(redis_server.url)
    for number in range(50):
        store.keep({key(number): SCORE})
        assert store.find([key(number)]).result(PATIENCE) == [SCORE]


def test_one_round_trip_to_find_and_one_to_keep(redis_server, client):
    store = connected(redis_server.url)
    store.find([key(0)]).result(PATIENCE)  # connected, and greeted
    before = calls(client)
    store.keep({key(number): SCORE for number in range(40)})
    store.find([key(number) for number in range(40)]).result(PATIENCE)
    after = calls(client)
    assert after["mget"] - before["mget"] == 1
    assert after["set"] - before.get("set", 0) == 40
    assert after.get("multi", 0) == before.get("multi", 0)


def calls(client: redis.Redis) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in client.info("commandstats").items()}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0.5",
        b"12345678",
        encoded(SCORE)[:-1],
        encoded(SCORE) + b"\0",
        struct.pack("<3sBf", b"rs2", 0, 1.0),
        struct.pack("<3sBf", b"rs1", 2, 1.0),
        struct.pack("<3sBf", b"rs1", 0, float("nan")),
        struct.pack("<3sBf", b"rs1", 0, float("inf")),
    ],
)
def test_a_value_that_is_not_ours_counts_as_missing(redis_server, client, value):
    assert decoded(value) is None
    store = connected(redis_server.url)
    client.set(PREFIX + key(1).hex(), value)
    client.rpush(PREFIX + key(2).hex(), "a list")
    client.set(PREFIX + key(3).hex(), encoded(SCORE))
    assert store.find([key(1), key(2), key(3)]).result(PATIENCE) == [None, None, SCORE]
    assert store.state.problem is None


def test_a_redis_that_dies_fails_no_query_and_is_taken_up_again(redis_server, client):
    clock = Clock()
    store = connected(redis_server.url, clock)
    model = FakeReranker()
    cached = CachedReranker(model, store)
    cached.score("q", CANDIDATES)
    assert cached.score("q", CANDIDATES).cached == 2
    redis_server.kill()
    try:
        assert cached.score("q", CANDIDATES).values.tolist() == [0.25, 1.25]
        problem = cached.stats.problem
        assert problem is not None and "127.0.0.1" in problem and "Connection" in problem
        assert cached.stats.store == "redis" and cached.stats.entries is None
        assert cached.score("q", CANDIDATES).cached == 0
    finally:
        redis_server.start()
    assert client.ping()
    accepted = client.info("stats")["total_connections_received"]
    assert cached.score("q", CANDIDATES).cached == 0
    assert not store.wait_until_up(PATIENCE)  # too early to try again
    assert client.info("stats")["total_connections_received"] == accepted
    clock.now += RETRY_SECONDS
    assert cached.score("q", CANDIDATES).cached == 0  # starts the attempt and does not wait for it
    assert store.wait_until_up(PATIENCE)
    cached.score("q", CANDIDATES)
    assert cached.score("q", CANDIDATES).cached == 2
    assert cached.stats.problem is None


def test_a_restart_that_nobody_saw_costs_nothing(redis_server, client):
    store = connected(redis_server.url)
    store.keep({key(1): SCORE})
    assert store.find([key(1)]).result(PATIENCE) == [SCORE]
    redis_server.kill()
    redis_server.start()
    assert store.find([key(1)]).result(PATIENCE) == [None]
    assert store.state.problem is None
    store.keep({key(1): SCORE})
    assert store.find([key(1)]).result(PATIENCE) == [SCORE]


def test_a_redis_that_hangs_holds_up_one_query_and_no_other(redis_server, client, monkeypatch):
    monkeypatch.setattr(score_stores, "READ_SECONDS", 1.0)
    clock = Clock()
    store = connected(redis_server.url, clock)
    model = FakeReranker()
    cached = CachedReranker(model, store)
    cached.score("q", CANDIDATES)
    redis_server.freeze()
    try:
        waiting = [store.find([key(1)]) for _ in range(60)]
        assert cached.begin("q", CANDIDATES).result(30).cached == 0  # 60 waits of READ_SECONDS would be 60 s
        assert [future.result(0) for future in waiting] == [[None]] * 60
        assert "Timeout" in (cached.stats.problem or "")
        assert store.find([key(1)]).done()  # nothing is asked
    finally:
        redis_server.thaw()
    clock.now += RETRY_SECONDS
    cached.score("q", CANDIDATES)
    assert store.wait_until_up(PATIENCE)
    cached.score("q", CANDIDATES)
    assert cached.score("q", CANDIDATES).cached == 2


def test_no_redis_at_the_start_fails_nothing_and_is_tried_again(redis_server, client):
    clock = Clock()
    redis_server.kill()
    try:
        store = RedisScores(redis_server.url, clock=clock)
        cached = CachedReranker(FakeReranker(), store)
        assert not store.wait_until_up(PATIENCE)
        assert "refused" in (store.state.problem or "")
        assert cached.score("q", CANDIDATES).values.tolist() == [0.25, 1.25]
    finally:
        redis_server.start()
    clock.now += RETRY_SECONDS
    cached.score("q", CANDIDATES)
    assert store.wait_until_up(PATIENCE)
    assert store.state.problem is None


def test_an_attempt_is_one_attempt(redis_server, client):
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(PATIENCE)

        def hang_up() -> None:
            listener.accept()[0].close()
            listener.setblocking(False)

        seen = thread.submit(hang_up)
        store = RedisScores(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        assert not store.wait_until_up(PATIENCE)
        seen.result(PATIENCE)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_full_redis_is_told_and_still_read(redis_server, client):
    store = connected(redis_server.url)
    store.keep({key(1): SCORE})
    store.find([key(1)]).result(PATIENCE)
    client.config_set("maxmemory", 1)
    try:
        store.keep({key(2): SCORE})
        assert store.find([key(1), key(2)]).result(PATIENCE) == [SCORE, None]
        assert "maxmemory" in (store.state.problem or "")
    finally:
        client.config_set("maxmemory", 0)
    store.keep({key(2): SCORE})
    assert store.find([key(2)]).result(PATIENCE) == [SCORE]
    assert store.state.problem is None


def test_a_wrong_password_is_told_and_not_shown(redis_server, client):
    client.config_set("requirepass", "right")
    try:
        store = RedisScores(redis_server.url.replace("//", "//reader:hunter2@"))
        assert not store.wait_until_up(PATIENCE)
        problem = store.state.problem or ""
        assert "Authentication" in problem and "hunter2" not in problem and "reader" not in problem
        assert connected(redis_server.url.replace("//", "//:right@")).find([key(1)]).result(PATIENCE) == [None]
    finally:
        admin = redis.Redis(port=redis_server.port, password="right", protocol=2)
        admin.config_set("requirepass", "")


@pytest.mark.parametrize("address", ["http://:hunter2@h:1", "redis://:hunter2@h:port", "redis://u:hunter2@h/0?db=x"])
def test_an_address_that_is_none_is_refused_without_its_password(address):
    with pytest.raises(ValueError) as caught:
        score_store(address)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_the_store_is_redis_where_one_is_configured(redis_server):
    assert score_store(None).state.store == "memory"
    assert score_store(redis_server.url).state.store == "redis"
