"""Cached answers in Redis: shared by all processes that serve the same deployment, and there again after a restart of ours.

A query waits for Redis for `wait_seconds` at most, whatever Redis does, and for a connection never twice: while it is away
nothing is asked of it, and after RETRY_SECONDS one call tries again. One hash an answer with its own time to live, two sorted
sets for what was used and made last; Redis may throw any of them away at any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from functools import partial
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from rag.cache.answers import MAX_ENTRIES, TTL_SECONDS, AnswersState, Order, folded_has, packed, unpacked, vector_of
from rag.cache.index import Row
from rag.cache.types import CacheAway, CachedAnswer

WAIT_SECONDS = 0.25
BULK_SECONDS = 10.0
RETRY_SECONDS = 5.0
PREFIX = "ragdeck:answers:1:"
_CHUNK = 256
# one step each, so that an answer that expires meanwhile is not made again without its time to live
_TOUCH = """if redis.call('exists', KEYS[1]) == 1 then
  redis.call('hincrby', KEYS[1], 'hits', 1)
  redis.call('hset', KEYS[1], 'used', ARGV[1])
  redis.call('zadd', KEYS[2], 'XX', ARGV[1], ARGV[2])
end"""
_REWRITE = """if redis.call('exists', KEYS[1]) == 0 then return 0 end
redis.call('hset', KEYS[1], 'body', ARGV[1])
return 1"""
_T = TypeVar("_T")


class RedisAnswers:
    """As `AnswerStore`; raises ValueError for an address that is none."""

    state_name: Literal["redis", "sqlite"] = "redis"

    def __init__(
        self,
        url: str,
        *,
        ttl_seconds: float = TTL_SECONDS,
        max_entries: int = MAX_ENTRIES,
        prefix: str = PREFIX,
        wait_seconds: float = WAIT_SECONDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        self._address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._secret = parts.password
        self._wait = wait_seconds
        self._client = self._new_client(url, wait_seconds)
        self._bulk = self._new_client(url, BULK_SECONDS)
        self._ttl, self._max, self._prefix = ttl_seconds, max_entries, prefix
        self._clock, self._monotonic = clock, monotonic
        self._lock = threading.Lock()
        self._retry_at = float("-inf")
        self._problem: str | None = None
        self._write_problem: str | None = None
        self._evictions = 0
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="redis-answers")

    def _new_client(self, url: str, seconds: float) -> Any:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        try:
            return Redis.from_url(
                url, socket_connect_timeout=self._wait, socket_timeout=seconds, retry=Retry(NoBackoff(), 0), protocol=2
            )
        except ValueError:  # its text may hold the password
            raise ValueError(f"not an address of Redis: {self._address}") from None

    @property
    def state(self) -> AnswersState:
        entries: int | None = None
        try:
            entries = self._call(lambda: int(self._client.zcard(self._used)))
        except CacheAway as away:
            return AnswersState("redis", self._address, None, self._evictions, str(away))
        return AnswersState("redis", self._address, entries, self._evictions, self._problem or self._write_problem)

    # asking, and being told no

    def _call(self, ask: Callable[[], _T], seconds: float | None = None) -> _T:
        """The answer within that time, or CacheAway. A refusal (full, read-only) is told and leaves the rest usable."""
        from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

        with self._lock:
            if self._monotonic() < self._retry_at:
                raise CacheAway(self._problem or f"{self._address} is away")
        try:
            value = self._threads.submit(ask).result(seconds or self._wait)
        except Late:
            raise self._lost(f"{self._address} did not answer within {seconds or self._wait:g} s") from None
        except RuntimeError as problem:  # the executor is shut down
            raise CacheAway(f"{self._address}: closed") from problem
        except (AuthenticationError, NoPermissionError) as problem:
            raise self._lost(self._told(problem)) from None
        except ResponseError as problem:
            self._problem = self._told(problem)
            raise CacheAway(self._problem) from None
        except Exception as problem:
            raise self._lost(self._told(problem)) from None
        self._problem = None
        return value

    def _lost(self, problem: str) -> CacheAway:
        self._problem = problem
        with self._lock:
            self._retry_at = self._monotonic() + RETRY_SECONDS
        return CacheAway(problem)

    def _told(self, problem: Exception) -> str:
        text = f"{self._address}: {type(problem).__name__}: {problem}"
        return text.replace(self._secret, "***") if self._secret else text

    @property
    def _used(self) -> str:
        return f"{self._prefix}used"

    @property
    def _made(self) -> str:
        return f"{self._prefix}made"

    def _name(self, key: str) -> str:
        return f"{self._prefix}a:{key}"

    # the store

    def get(self, key: str) -> CachedAnswer | None:
        def read() -> list[Any]:
            pipeline = self._client.pipeline(transaction=False)
            self._ask_for(pipeline, key)
            return list(pipeline.execute())

        return self._entry(*self._call(read))

    def _ask_for(self, pipeline: Any, key: str) -> None:
        pipeline.hmget(self._name(key), "body", "hits", "used")
        pipeline.pttl(self._name(key))

    def _entry(self, fields: list[bytes | None], left_milliseconds: int) -> CachedAnswer | None:
        body, hits, used = fields
        expires = self._clock() + left_milliseconds / 1000 if left_milliseconds >= 0 else None
        return None if body is None else unpacked(body, int(hits or 0), float(used) if used else None, expires)

    def keep(self, entry: CachedAnswer, vector: NDArray[np.float32] | None) -> list[str]:
        now = self._clock()
        fields: dict[str, Any] = {"body": packed(entry), "question": entry.question, "made": now, "used": now, "hits": 0}
        if vector is not None:
            fields["vector"] = np.asarray(vector, dtype="<f4").tobytes()

        def write() -> list[str]:
            pipeline = self._client.pipeline(transaction=True)  # no hash without its time to live
            pipeline.delete(self._name(entry.id))
            pipeline.hset(self._name(entry.id), mapping=fields)
            pipeline.pexpire(self._name(entry.id), max(1, int(self._ttl * 1000)))
            pipeline.zadd(self._used, {entry.id: now})
            pipeline.zadd(self._made, {entry.id: now})
            pipeline.zremrangebyscore(self._made, "-inf", now - self._ttl)
            pipeline.zcard(self._used)
            over = int(pipeline.execute()[-1]) - self._max
            return self._evict(over) if over > 0 else []

        try:
            gone = self._call(write)
        except CacheAway as away:
            self._write_problem = str(away)
            raise
        self._write_problem = None
        return gone

    def _evict(self, over: int) -> list[str]:
        gone = [key.decode() for key, _ in self._client.zpopmin(self._used, over)]
        self._forget(gone)
        self._evictions += len(gone)
        return gone

    def _forget(self, keys: list[str]) -> int:
        if not keys:
            return 0
        pipeline = self._client.pipeline(transaction=False)
        pipeline.unlink(*(self._name(key) for key in keys))
        pipeline.zrem(self._used, *keys)
        pipeline.zrem(self._made, *keys)
        return int(pipeline.execute()[0])

    def touch(self, key: str) -> None:
        now = self._clock()

        self._call(lambda: self._client.eval(_TOUCH, 2, self._name(key), self._used, now, key))

    def rewrite(self, entry: CachedAnswer) -> bool:
        return bool(self._call(lambda: self._client.eval(_REWRITE, 1, self._name(entry.id), packed(entry))))

    def delete(self, keys: Iterable[str]) -> int:
        wanted = list(keys)
        return self._call(lambda: self._forget(wanted), BULK_SECONDS)

    def purge(self) -> int:
        def all_of_it() -> int:
            gone = 0
            while keys := [key.decode() for key, _ in self._bulk.zpopmin(self._used, _CHUNK)]:
                gone += self._forget(keys)
            for name in self._bulk.scan_iter(match=f"{self._prefix}*", count=1000):  # what lost its place in the sorted set
                gone += int(self._bulk.unlink(name)) if b":a:" in name else 0
            self._bulk.delete(self._used, self._made)
            return gone

        return self._call(all_of_it, BULK_SECONDS * 3)

    def page(self, limit: int = 100, offset: int = 0, order: Order = "used", text: str = "") -> list[CachedAnswer]:
        def read() -> list[CachedAnswer]:
            name = self._made if order == "created" else self._used
            some = order != "hits" and not text
            first, last = (offset, offset + limit - 1) if some else (0, -1)
            keys = [key.decode() for key in self._bulk.zrevrange(name, first, last)]
            if text:
                keys = self._asking(keys, text.casefold())
            if order == "hits":
                found = sorted(self._read(keys), key=lambda entry: (-entry.hits, entry.id))
                return found[offset : offset + limit]
            return self._read(keys if some else keys[offset : offset + limit])

        return self._call(read, BULK_SECONDS)

    def _asking(self, keys: list[str], folded: str) -> list[str]:
        """Those whose question holds the text."""
        found: list[str] = []
        for start in range(0, len(keys), _CHUNK):
            part = keys[start : start + _CHUNK]
            pipeline = self._bulk.pipeline(transaction=False)
            for key in part:
                pipeline.hget(self._name(key), "question")
            questions = [(question or b"").decode("utf-8", "replace") for question in pipeline.execute()]
            found += [key for key, question in zip(part, questions, strict=True) if folded_has(question, folded)]
        return found

    def _read(self, keys: list[str]) -> list[CachedAnswer]:
        """What is left of these; ids whose answer has expired or was thrown out are taken off the lists."""
        found: list[CachedAnswer] = []
        gone: list[str] = []
        for start in range(0, len(keys), _CHUNK):
            part = keys[start : start + _CHUNK]
            pipeline = self._bulk.pipeline(transaction=False)
            for key in part:
                self._ask_for(pipeline, key)
            told = pipeline.execute()
            for key, fields, left in zip(part, told[::2], told[1::2], strict=True):
                entry = self._entry(fields, left)
                if entry is None:
                    gone.append(key)
                else:
                    found.append(entry)
        self._forget(gone)
        return found

    def rows(self, since_unix: float = 0.0) -> Iterator[Row]:
        keys = self._call(
            lambda: [key.decode() for key in self._bulk.zrangebyscore(self._made, since_unix, "+inf")], BULK_SECONDS
        )
        for start in range(0, len(keys), _CHUNK):
            part = keys[start : start + _CHUNK]
            for key, (question, blob, made) in zip(part, self._call(partial(self._vectors, part), BULK_SECONDS), strict=True):
                vector = vector_of(blob)
                if vector is not None and question is not None:
                    yield Row(key, key[:16], question.decode("utf-8", "replace"), vector, float(made or 0.0))

    def _vectors(self, keys: list[str]) -> list[Any]:
        pipeline = self._bulk.pipeline(transaction=False)
        for key in keys:
            pipeline.hmget(self._name(key), "question", "vector", "made")
        return list(pipeline.execute())

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        self._bulk.close()
