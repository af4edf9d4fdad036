"""After documents changed: answers that neither cite them nor could cite them stay, under the collection's new version.

An answer could cite a document as soon as one of its passages is among the candidates of the answer's question. So each question
is searched once more, with the vector that is kept with it; what is not searched in time is forgotten with the old version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from rag.cache.types import CacheAway, CachedAnswer, CacheKey
from rag.content_versions import Change
from rag.errors import RagError
from rag.semantic_cache import Carried, SemanticCache
from rag.store import Store

log = logging.getLogger(__name__)
LONGEST_SECONDS = 120.0
_KEY_FIELDS = {each.name for each in fields(CacheKey)}


class Carrier:
    """One thread beside the queries. `limit` is how many candidates each search route gives a question at the most."""

    def __init__(self, cache: SemanticCache, store: Store, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache, self._store, self._limit, self._clock = cache, store, limit, clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache-carry")
        self._ending = False

    def changed(self, change: Change) -> None:
        """To be told of every change of a collection; returns at once."""
        try:
            self._thread.submit(self._carry, change)
        except RuntimeError:  # closed: the answers of the old version are out of reach, and age away
            log.debug("%s changed while the cache was closed", change.collection)

    def close(self) -> None:
        self._ending = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _carry(self, change: Change) -> None:
        try:
            stayed, went = self.carry(change)
        except (CacheAway, RagError) as problem:
            log.warning("answers kept before %s changed are out of reach now: %s", change.collection, problem)
        except Exception:  # in a thread that nobody waits for
            log.exception("answers kept before %s changed could not be looked through", change.collection)
        else:
            if stayed or went:
                log.info("%s changed: %d kept answers stay, %d went", change.collection, stayed, went)

    def carry(self, change: Change) -> tuple[int, int]:
        """How many answers stayed and how many went. Raises CacheAway."""
        until = self._clock() + LONGEST_SECONDS

        def decide(entry: CachedAnswer, vector: NDArray[np.float32]) -> Carried:
            version = entry.key.get("content_version")
            if entry.collection != change.collection or version == change.new:
                return "leave"
            in_time = not self._ending and self._clock() < until
            if version != change.old or set(entry.key) != _KEY_FIELDS or not in_time or not self._stands(entry, vector, change):
                return "forget"
            return CacheKey(**{**entry.key, "content_version": change.new})

        return self._cache.carry_over(decide)

    def _stands(self, entry: CachedAnswer, vector: NDArray[np.float32], change: Change) -> bool:
        if entry.hyde:  # its candidates were found with another vector
            return False
        if any(passage.document_id in change.documents for passage in entry.passages):
            return False
        try:
            found = self._store.search(change.collection, vector, entry.question, self._limit)
        except RagError as problem:
            log.debug("a kept answer goes, its question could not be searched: %s", problem.message)
            return False
        return not any(hit.fields.get("document_id") in change.documents for hit in (*found.dense, *found.sparse))
