"""Where rerank scores are kept between requests: this process's memory, or Redis. Knows nothing of models, queries or passages.

A store never fails a query: what it cannot find it has not got. `find` answers with a future and never waits itself, so that an
event loop may call it; for Redis one thread does the talking, and a query never waits for a connection, only for an answer on
an open one (READ_SECONDS at most). While Redis is away nothing is asked of it; every RETRY_SECONDS a query starts a new
attempt to connect, beside its own work.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from gpu_server.futures import finished

log = logging.getLogger(__name__)

TTL_SECONDS = 3600
MAX_ENTRIES = 100_000
ENTRY_BYTES = 380  # what one score takes in MemoryScores, key and bookkeeping included, measured
CONNECT_SECONDS = 0.25
READ_SECONDS = 0.25
RETRY_SECONDS = 5.0
PREFIX = "ragdeck:rerank:"

VALUE = struct.Struct("<3sBf")  # format's name and version, whether the pair was cut, the raw score
MAGIC = b"rs1"

StoreName = Literal["memory", "redis"]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class StoredScore:
    """One pair's raw score, and whether the pair was cut to the model's limit."""

    value: float
    truncated: bool


@dataclass(frozen=True, slots=True)
class StoreState:
    """`entries`, `bytes` and `evictions` are None for Redis, which may hold other data. `problem`: why nothing is cached now."""

    store: StoreName
    entries: int | None
    bytes: int | None
    evictions: int | None
    problem: str | None = None


class ScoreStore(Protocol):
    """Scores by key (a digest). Thread-safe; raises nothing for a store that is away."""

    @property
    def state(self) -> StoreState: ...

    def find(self, keys: Sequence[bytes]) -> Future[list[StoredScore | None]]:
        """A future of one score, or None, a key. Returns at once."""
        ...

    def keep(self, scores: Mapping[bytes, StoredScore]) -> None:
        """Keep them for the store's time to live. Returns at once."""
        ...


def score_store(redis_url: str | None, ttl_seconds: int = TTL_SECONDS) -> ScoreStore:
    """Redis where an address is configured, else this process's memory. Raises ValueError for an address that is none."""
    return RedisScores(redis_url, ttl_seconds) if redis_url else MemoryScores(ttl_seconds=ttl_seconds)


class Lru(Generic[K, V]):
    """Entries bounded in number and bytes; the least recently used goes first. Not thread-safe: its owner holds a lock."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.bytes = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Keep the value, unless it alone is over the bound."""
        self.drop(key)
        if size_bytes > self._max_bytes:
            return
        self._entries[key] = (value, size_bytes)
        self.bytes += size_bytes
        while len(self._entries) > self._max_entries or self.bytes > self._max_bytes:
            _, (_, freed_bytes) = self._entries.popitem(last=False)
            self.bytes -= freed_bytes
            self.evictions += 1

    def drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]


class MemoryScores:
    """Scores in this process; one that has outlived `ttl_seconds` takes its place until it is asked for or pushed out."""

    def __init__(
        self,
        max_entries: int = MAX_ENTRIES,
        ttl_seconds: float = TTL_SECONDS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._lru: Lru[bytes, tuple[StoredScore, float]] = Lru(max_entries, max_entries * ENTRY_BYTES)

    @property
    def state(self) -> StoreState:
        with self._lock:
            return StoreState("memory", len(self._lru), self._lru.bytes, self._lru.evictions)

    def find(self, keys: Sequence[bytes]) -> Future[list[StoredScore | None]]:
        now = self._clock()
        with self._lock:
            return finished([self._live(key, now) for key in keys])

    def _live(self, key: bytes, now: float) -> StoredScore | None:
        entry = self._lru.get(key)
        if entry is None:
            return None
        score, ends = entry
        if now >= ends:
            self._lru.drop(key)
            return None
        return score

    def keep(self, scores: Mapping[bytes, StoredScore]) -> None:
        ends = self._clock() + self._ttl_seconds
        with self._lock:
            for key, score in scores.items():
                self._lru.put(key, (score, ends), ENTRY_BYTES)


class RedisScores:
    """Scores in Redis, shared by all processes that serve the same model. Its thread and connection end with it.

    One MGET a request and one pipeline of SET EX after it; a value that is not ours, or broken, counts as not found.
    """

    def __init__(
        self, url: str, ttl_seconds: int = TTL_SECONDS, *, prefix: str = PREFIX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address, self._secret = _address(url)
        self._client = _client(url, self._address)
        self._ttl_seconds = ttl_seconds
        self._prefix = prefix
        self._clock = clock
        self._lock = threading.Lock()
        self._up = False
        self._problem: str | None = None
        self._write_problem: str | None = None
        self._retry_at = math.inf  # nobody else starts an attempt while one is on its way
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="redis-scores")
        self._attempt = self._thread.submit(self._connect)

    @property
    def state(self) -> StoreState:
        return StoreState("redis", None, None, None, self._problem or self._write_problem)

    def wait_until_up(self, timeout_seconds: float) -> bool:
        """Whether Redis answers; waits for an attempt to connect that is on its way."""
        wait([self._attempt], timeout_seconds)
        return self._up

    def find(self, keys: Sequence[bytes]) -> Future[list[StoredScore | None]]:
        if not self._up:
            self._try_again()
            return finished([None] * len(keys))
        return self._thread.submit(self._read, keys)

    def keep(self, scores: Mapping[bytes, StoredScore]) -> None:
        if scores and self._up:
            self._thread.submit(self._write, dict(scores))

    def _try_again(self) -> None:
        with self._lock:
            if self._clock() < self._retry_at:
                return
            self._retry_at = math.inf
            self._attempt = self._thread.submit(self._connect)

    def _connect(self) -> None:
        try:
            self._client.ping()
        except Exception as problem:
            self._lost(problem)
            return
        log.info("Redis at %s keeps the rerank scores", self._address)
        self._problem = None
        self._up = True

    def _read(self, keys: Sequence[bytes]) -> list[StoredScore | None]:
        if not self._up:  # lost while this waited for its turn
            return [None] * len(keys)
        try:
            values = self._client.mget([self._name(key) for key in keys])
        except Exception as problem:
            self._lost(problem)
            return [None] * len(keys)
        return [decoded(value) for value in values]

    def _write(self, scores: Mapping[bytes, StoredScore]) -> None:
        from redis.exceptions import ResponseError

        if not self._up:
            return
        try:
            pipeline = self._client.pipeline(transaction=False)
            for key, score in scores.items():
                pipeline.set(self._name(key), encoded(score), ex=self._ttl_seconds)
            pipeline.execute()
        except ResponseError as problem:  # full, or a read-only replica: what is there can still be read
            self._write_problem = self._told(problem)
        except Exception as problem:
            self._lost(problem)
        else:
            self._write_problem = None

    def _lost(self, problem: Exception) -> None:
        """Whatever it was (refused, timeout, wrong password, not a Redis): ask nothing for a while."""
        self._problem = self._told(problem)
        log.warning("rerank scores are not cached: %s", self._problem)
        self._up = False
        with self._lock:
            self._retry_at = self._clock() + RETRY_SECONDS

    def _told(self, problem: Exception) -> str:
        text = f"{self._address}: {type(problem).__name__}: {problem}"
        return text.replace(self._secret, "***") if self._secret else text

    def _name(self, key: bytes) -> str:
        return self._prefix + key.hex()


def encoded(score: StoredScore) -> bytes:
    return VALUE.pack(MAGIC, score.truncated, score.value)


def decoded(value: bytes | None) -> StoredScore | None:
    """The score, or None for a value that is missing, broken or somebody else's."""
    if value is None or len(value) != VALUE.size:
        return None
    magic, truncated, score = VALUE.unpack(value)
    if magic != MAGIC or truncated > 1 or not math.isfinite(score):
        return None
    return StoredScore(score, bool(truncated))


def _address(url: str) -> tuple[str, str | None]:
    """The address without user, password and options; and the password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", parts.password


def _client(url: str, address: str) -> Any:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=READ_SECONDS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # 3 greets with HELLO, which a Redis before 6 does not know
        )
    except ValueError:  # its text may hold the password
        raise ValueError(f"not an address of Redis: {address}") from None
