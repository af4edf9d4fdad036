"""Which content a collection has: another version as soon as documents came, went or changed, in whatever process.

The version lies on the collection itself, as a property, so that it is as durable and as shared as the passages are.
Collections that others fill carry none: there the number of rows stands in, and the cache's time to live bounds what that misses.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from rag.store import Store

PROPERTY = "ragdeck.content"
MAX_AGE_SECONDS = 2.0


class ContentVersions:
    """Versions of one store's collections. Thread-safe; raises RagError where the store is away."""

    def __init__(
        self, store: Store, *, max_age_seconds: float = MAX_AGE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._max_age, self._clock = store, max_age_seconds, clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, float]] = {}

    def current(self, name: str) -> str:
        """To be asked before the collection is searched. Of a server at most `max_age_seconds` old; an embedded store is ours."""
        with self._lock:
            known = self._known.get(name)
        if known is not None and (self._store.embedded or self._clock() - known[1] < self._max_age):
            return known[0]
        asked = self._clock()
        version = self._read(name)
        with self._lock:
            if self._known.get(name) == known:  # else it was changed meanwhile, and that is newer
                self._known[name] = version, asked
            return self._known[name][0]

    def changed(self, name: str) -> None:
        """To be called before the first write and after the last: who searches in between keeps nothing for those after it."""
        version = uuid.uuid4().hex
        client: Any = self._store._client
        if self._store.mapping is None and client is not None:
            with self._store._mapped("note the collection's version"):
                if client.has_collection(name, timeout=self._store._timeout):
                    client.alter_collection_properties(name, properties={PROPERTY: version}, timeout=self._store._timeout)
        with self._lock:
            self._known[name] = version, self._clock()

    def _read(self, name: str) -> str:
        store = self._store
        store.open()
        with store._mapped("read the collection's version"):
            version = dict(store._describe(name).get("properties") or {}).get(PROPERTY)
            if version:
                return str(version)
            rows = store._client.get_collection_stats(name, timeout=store._timeout).get("row_count")
        return f"rows-{rows}"
