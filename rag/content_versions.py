"""Which content a collection has: another version as soon as documents came, went or changed, in whatever process.

The version lies on the collection itself, as a property, so that it is as durable and as shared as the passages are. While a
process writes, the property says so and there is no version: what is searched then is neither the old content nor the new.
Collections that others fill, or that were made before there were versions, carry none until they are written to: there the number
of rows stands in, and the cache's time to live bounds what that misses.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rag.store import Store

PROPERTY = "ragdeck.content"
WRITING = "writing"
MAX_AGE_SECONDS = 2.0
WRITER_GONE_SECONDS = 600.0  # a writer that has not renewed its mark for so long was killed
RENEW_SECONDS = 60.0


def new_version() -> str:
    return uuid.uuid4().hex


class Change(NamedTuple):
    """Documents came, went or changed: `old` and `new` are versions; None where it is not known what went before."""

    collection: str
    old: str | None
    new: str
    documents: frozenset[str]


class _Writing(NamedTuple):
    old: str | None
    marked_at: float
    documents: set[str]


class ContentVersions:
    """Versions of one store's collections. Thread-safe; raises RagError where the store is away.

    `on_change` is told of every change that this process made, in the thread that made it.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_age_seconds: float = MAX_AGE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._max_age, self._clock, self._wall_clock = store, max_age_seconds, clock, wall_clock
        self._lock = threading.RLock()
        self._known: dict[str, tuple[str, float]] = {}
        self._writing: dict[str, _Writing] = {}
        self.on_change: Callable[[Change], None] = lambda change: None

    def current(self, name: str) -> str | None:
        """To be asked before the collection is searched; None while it is written to.

        Of a server at most `max_age_seconds` old; an embedded store is this process's own.
        """
        with self._lock:
            mine = self._writing.get(name)
            if mine is not None and self._clock() - mine.marked_at < WRITER_GONE_SECONDS:
                return None
            if mine is not None:  # its writer ended without a flush
                self.dropped(name)
            known = self._known.get(name)
        if known is None or not (self._store.embedded or self._clock() - known[1] < self._max_age):
            asked = self._clock()
            version = self._read(name)
            with self._lock:
                if self._known.get(name) == known:  # else it was changed meanwhile, and that is newer
                    self._known[name] = version, asked
                known = self._known[name]
        return None if self._is_written(known[0]) else known[0]

    def _is_written(self, version: str) -> bool:
        mark, _, at = version.partition(":")
        return mark == WRITING and self._wall_clock() - float(at) < WRITER_GONE_SECONDS

    def writing(self, name: str, document_id: str) -> None:
        """To be called before a document is written or removed; the mark is put down once a minute, not for each."""
        with self._lock:
            mine = self._writing.get(name)
            if mine is None:
                mine = _Writing(self._before(name), float("-inf"), set())
            mine.documents.add(document_id)
            if self._clock() - mine.marked_at >= RENEW_SECONDS:
                mine = mine._replace(marked_at=self._clock())
                self._put(name, f"{WRITING}:{self._wall_clock():.0f}")
            self._writing[name] = mine

    def _before(self, name: str) -> str | None:
        known = self._known.get(name)
        version = known[0] if known and self._store.embedded else self._read(name)
        return None if self._is_written(version) else version

    def settled(self, name: str) -> None:
        """To be called when what was written can be searched. Does nothing where nothing was."""
        with self._lock:
            mine = self._writing.get(name)
            if mine is None:
                return
            version = new_version()
            self._put(name, version)
            del self._writing[name]
            self._known[name] = version, self._clock()
        self.on_change(Change(name, mine.old, version, frozenset(mine.documents)))

    def dropped(self, name: str) -> None:
        """The collection is gone; one of the same name that is made later has another version."""
        with self._lock:
            self._writing.pop(name, None)
            self._known.pop(name, None)

    def _put(self, name: str, version: str) -> None:
        store = self._store
        with store.mapped("note the collection's version"):
            store.client.alter_collection_properties(name, properties={PROPERTY: version}, timeout=store.timeout)

    def _read(self, name: str) -> str:
        store = self._store
        store.open()
        with store.mapped("read the collection's version"):
            version = dict(store.describe(name).get("properties") or {}).get(PROPERTY)
            if version:
                return str(version)
            rows = store.client.get_collection_stats(name, timeout=store.timeout).get("row_count")
        return f"rows-{rows}"
