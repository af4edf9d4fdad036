"""The cache on a real Redis that is restarted, flushed, full, slow, locked or away: no query is lost, none gets a wrong answer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
import redis

from rag.cache.book import CacheBook
from rag.cache.index import MemoryIndex
from rag.cache.redis_answers import RETRY_SECONDS, WAIT_SECONDS, RedisAnswers
from rag.cache.types import Thresholds
from rag.semantic_cache import SemanticCache
from tests.ports import reserved_port
from tests.rag.cache_samples import EMBEDDER, KEY, Clock, answer, vector

pytest_plugins = ["tests.redis_server"]

QUESTION = "Why is the GPU idle while queries take 30 seconds?"
ALIKE = "How come the GPU is idle while queries take 30 seconds?"


class Proxy:
    """Passes bytes on, each answer `delay_seconds` late."""

    def __init__(self, port: int) -> None:
        self.delay_seconds = 0.0
        self._to = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._socket.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._pass, args=(ours, theirs, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(theirs, ours, True), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, late: bool) -> None:
        with contextlib.suppress(OSError):  # either side has gone
            while data := one.recv(65536):
                if late:
                    time.sleep(self.delay_seconds)
                other.sendall(data)
        other.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def cache(redis_server, tmp_path):
    """A cache with a clock for its retries, on an empty Redis."""
    redis.Redis.from_url(redis_server.url).flushall()
    yield from opened(redis_server.url, tmp_path)


def opened(url, tmp_path, **options):
    clock = Clock()
    book = CacheBook(tmp_path / "book.db")
    book.set_thresholds(Thresholds(EMBEDDER, 0.8, 0.8))
    options = {"wait_seconds": 10.0, **options}  # a loaded machine is not an outage
    found = SemanticCache(RedisAnswers(url, monotonic=clock, **options), MemoryIndex(), book)
    found.clock = clock
    assert found.wait_until_ready(20) or found.status().problem
    yield found
    found.close()


def ask(cache: SemanticCache, question: str = QUESTION) -> str:
    """As the path asks: by text, by vector, and computing what is not there. Returns the answer's text."""
    found = cache.look_up(question, None, KEY)
    if found.hit is None:
        found = cache.look_up(question, vector(), KEY)
    if found.hit is not None:
        cache.release(question, KEY)
        return found.hit.answer
    cache.keep(answer(question, f"Computed for {question} [1]."), vector(), KEY)
    return f"Computed for {question} [1]."


def computed(question: str = QUESTION) -> str:
    return f"Computed for {question} [1]."


def test_answers_are_given_again_by_text_and_by_meaning(cache):
    assert ask(cache) == computed()
    assert ask(cache) == computed()
    assert ask(cache, ALIKE) == computed()
    assert ask(cache, QUESTION.replace("30", "3")) == computed(QUESTION.replace("30", "3"))
    counted = cache.status().counted
    assert (counted.lookups, counted.exact_hits, counted.alike_hits) == (4, 1, 1)


def test_away_the_query_goes_on_and_the_reason_is_told_and_nothing_waits_twice(tmp_path):
    with reserved_port() as port:
        for cache in opened(f"redis://user:secret@127.0.0.1:{port}/0", tmp_path):
            found = cache.look_up(QUESTION, None, KEY)
            assert found.hit is None
            assert found.lead
            assert found.reason.startswith("Redis is away: redis://127.0.0.1")
            assert "secret" not in found.reason
            assert "Redis is away" in cache.look_up(QUESTION, vector(), KEY).reason
            assert "Redis is away" in cache.keep(answer(QUESTION), vector(), KEY)
            assert cache.status().answers.entries is None
            assert "secret" not in str(cache.status())


def test_restarted_it_comes_back_by_itself(cache, redis_server):
    ask(cache)
    redis_server.kill()
    assert ask(cache) == computed()
    assert cache.status().problem is not None
    redis_server.start()
    assert "Redis is away" in cache.look_up(QUESTION, None, KEY).reason  # not asked again so soon
    cache.release(QUESTION, KEY)
    cache.clock.now += RETRY_SECONDS
    assert ask(cache) == computed()  # Redis lost it: computed and kept anew
    assert cache.look_up(QUESTION, None, KEY).hit is not None
    assert cache.status().problem is None


def test_flushed_under_our_feet_what_is_gone_is_computed_again(cache, redis_server):
    ask(cache)
    redis.Redis.from_url(redis_server.url).flushall()
    found = cache.look_up(ALIKE, vector(), KEY)
    assert found.hit is None
    assert found.candidates[0].refused == "its answer is gone"
    assert cache.status().index_entries == 0
    assert ask(cache) == computed()


def test_full_it_keeps_nothing_and_says_so_and_what_it_has_is_still_given(cache, redis_server):
    ask(cache)
    client = redis.Redis.from_url(redis_server.url)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    try:
        assert "maxmemory" in cache.keep(answer("Another question?"), vector(0, 1, 0, 0), KEY)
        assert cache.look_up(QUESTION, None, KEY).hit is not None
        assert ask(cache, "Another question?") == computed("Another question?")
        assert "maxmemory" in cache.status().problem
    finally:
        client.config_set("maxmemory", 0)
    assert cache.keep(answer("Another question?"), vector(0, 1, 0, 0), KEY) is None
    assert cache.status().problem is None


def test_throwing_out_by_itself_it_gives_what_is_left(cache, redis_server):
    client = redis.Redis.from_url(redis_server.url)
    questions = [f"Question {n} about articles?" for n in range(60)]
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 60_000)
    try:
        for question in questions:
            assert ask(cache, question) == computed(question)
        for question in questions:
            assert ask(cache, question) == computed(question)
    finally:
        client.config_set("maxmemory", 0)


def test_slow_it_costs_a_query_a_bounded_time_once(redis_server, tmp_path):
    redis.Redis.from_url(redis_server.url).flushall()
    proxy = Proxy(redis_server.port)
    for cache in opened(f"redis://127.0.0.1:{proxy.port}/0", tmp_path, wait_seconds=WAIT_SECONDS):
        ask(cache)
        proxy.delay_seconds = 240 * WAIT_SECONDS
        started = time.monotonic()
        found = cache.look_up(QUESTION, None, KEY)
        assert found.hit is None
        assert "Redis is away" in found.reason
        assert cache.look_up(ALIKE, vector(), KEY).hit is None
        assert ask(cache, "Something else?") == computed("Something else?")
        assert time.monotonic() - started < proxy.delay_seconds  # let alone that for each call
        cache.release(QUESTION, KEY)
        proxy.delay_seconds = 0.0
        cache.clock.now += RETRY_SECONDS
        assert ask(cache) == computed()
    proxy.close()


def test_with_a_wrong_password_the_reason_is_told_without_it(cache, redis_server, tmp_path):
    client = redis.Redis.from_url(redis_server.url)
    client.config_set("requirepass", "right")
    try:
        url = redis_server.url.replace("redis://", "redis://:wrong-one@")
        for other in opened(url, tmp_path / "other"):
            assert ask(other) == computed()
            reason = other.look_up(QUESTION, None, KEY).reason
            assert "Redis is away" in reason
            assert "Authentication" in reason or "password" in reason
            assert "wrong-one" not in str(other.status()) + reason
    finally:
        redis.Redis.from_url(redis_server.url, password="right").config_set("requirepass", "")


def test_what_one_process_keeps_another_finds_by_meaning(cache, redis_server, tmp_path):
    for other in opened(redis_server.url, tmp_path / "other"):
        ask(cache)
        end = time.monotonic() + 60
        while other.look_up(ALIKE, vector(), KEY).hit is None:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert other.look_up(QUESTION.replace("GPU", "CPU"), vector(), KEY).hit is None


def test_somebody_elses_value_under_our_name_is_no_answer(cache, redis_server):
    from rag.cache.redis_answers import PREFIX

    client = redis.Redis.from_url(redis_server.url)
    name = f"{PREFIX}a:{KEY.entry_id(QUESTION)}"
    client.hset(name, mapping={"body": b"not ours", "hits": 3})
    assert ask(cache) == computed()
    client.delete(name)
    client.set(name, "a string, not a hash")
    assert ask(cache) == computed()


def test_an_address_that_is_none_is_refused_without_its_password():
    with pytest.raises(ValueError) as found:
        RedisAnswers("http://user:secret@host/")
    assert "secret" not in str(found.value)
