"""One query's dealings with the semantic cache: its key, its look-ups, and what is kept at its end. Knows no events or spans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.errors import EngineError
from gpu_server.interfaces import identity_of
from rag.errors import RagError
from rag.semantic_cache import CachedAnswer, CacheKey, Lookup, SemanticCache
from rag.types import Answer, Options

if TYPE_CHECKING:
    from rag.query import Clients

OFF = "no semantic cache is set up"
BYPASSED = "bypassed by the caller"
_NOT_OF_THE_ANSWER = ("timeout",)


class CacheStage:
    """`key` is None until `look` made it, and where nothing can be looked up or kept; `hit` is the answer to give."""

    def __init__(self, question: str, options: Options, clients: Clients) -> None:
        self._question, self._options, self._clients = question, options, clients
        self._cache: SemanticCache | None = clients.cache
        self._leads = False
        self.key: CacheKey | None = None
        self.found: Lookup | None = None

    @property
    def skipped(self) -> str | None:
        """Why the cache is not asked at all."""
        if self._options.caches == "bypass":
            return BYPASSED
        return self._clients.cache_off if self._cache is None else None

    @property
    def hit(self) -> CachedAnswer | None:
        return self.found.hit if self.found else None

    @property
    def can_be_alike(self) -> bool:
        """Whether a look-up by meaning may still find something."""
        return self.key is not None and self.hit is None and self._options.caches == "use"

    def look(self, check: Callable[[], None]) -> Lookup:
        """For an equal question; waits for one that is being answered. `check` raises to end the wait."""
        assert self._cache is not None
        try:
            self.key = _current_key(self._options, self._clients)
        except (RagError, EngineError) as problem:
            self.found = Lookup(None, f"nothing is looked up: {problem.message}")
            return self.found
        if self.key is None:
            self.found = Lookup(None, "documents are being written, so nothing is looked up or kept")
        elif self._options.caches == "refresh":
            self.found = Lookup(None, "answered anew, as the caller wants it")
        else:
            self.found = self._cache.look_up(self._question, None, self.key, check=check)
            self._leads = self.found.lead
        return self.found

    def look_alike(self, vector: NDArray[np.float32] | None) -> Lookup:
        """For a question of the same meaning."""
        assert self._cache is not None and self.key is not None and self.found is not None
        found = self._cache.look_up(self._question, vector, self.key)
        away = None if found.hit or " is away" not in self.found.reason else self.found.reason
        self.found = found if away is None else Lookup(None, away, found.candidates)
        return self.found

    def near_equal(self) -> int:
        """Candidates that every guard let pass, and whose likeness alone did not suffice."""
        candidates = self.found.candidates if self.found else ()
        return sum(bool(item.checks) and all(check.passed for check in item.checks) for item in candidates if item.refused)

    def keep(self, answer: Answer, vector: NDArray[np.float32] | None) -> str | None:
        """Why the answer is not kept, None where it is, or where there was nothing to keep."""
        if self._cache is None or self.key is None or self.hit is not None:
            return None
        try:  # once more: a model that was loaded for this very query has told who it is by now
            key = _key(self._options, self._clients, self.key.collection, self.key.content_version)
        except (RagError, EngineError) as problem:
            return f"who answered cannot be told: {problem.message}"
        self._leads = self._leads and key != self.key  # to keep ends the lead of its own key: another may lead it by now
        return self._cache.keep(answer, vector, key)

    def release(self) -> None:
        """Let those go on who wait for this query, where it kept nothing."""
        if self._leads and self._cache is not None and self.key is not None:
            self._leads = False
            self._cache.release(self._question, self.key)


def _current_key(options: Options, clients: Clients) -> CacheKey | None:
    """None while the collection is written to. Raises RagError, EngineError."""
    wanted = options.collection
    name = clients.store.use(clients.embedder.info, wanted, create=wanted is None)
    version = clients.store.versions.current(name)
    return None if version is None else _key(options, clients, name, version)


def _key(options: Options, clients: Clients, collection: str, version: str) -> CacheKey:
    """Everything that changes an answer."""
    chat = clients.chat
    reranker = identity_of(clients.reranker) if options.rerank and clients.reranker is not None else None
    prompt: Mapping[str, Any] = {key: value for key, value in asdict(clients.prompts).items() if key not in _NOT_OF_THE_ANSWER}
    return CacheKey.of(
        collection=collection,
        content_version=version,
        embedder=clients.embedder.info.identity,
        model=options.model or (chat.info.identity if chat is not None else "extractive"),
        prompt=prompt,
        options={
            "hyde": options.hyde,
            "candidates": options.candidates,
            "keep": options.keep,
            "reranker": reranker,
            "version": clients.fingerprint.get("version"),
        },
    )
