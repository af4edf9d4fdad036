"""The semantic cache of this process: built as the settings say, kept true when documents change."""

from __future__ import annotations

from collections.abc import Callable

from gpu_server.errors import EngineError
from gpu_server.interfaces import ModelInfo, RerankCandidate
from models import Models
from rag.cache.carry import Carrier
from rag.cache.lexicon import LANGUAGES, lexicon
from rag.cache.milvus_index import MilvusIndex
from rag.errors import RagError
from rag.semantic_cache import CacheLimits, SemanticCache, open_cache
from rag.store import Store
from settings import Settings

LEAST_CANDIDATES = 100  # a caller may want more than the settings say


class AnswerCache:
    """`cache` is None where answers are not kept, and `off` says why. Connects to nothing until it is asked."""

    def __init__(self, settings: Settings, store: Store, models: Models) -> None:
        self.off = _off(settings)
        self.cache: SemanticCache | None = None
        self._carrier: Carrier | None = None
        if self.off:
            return
        given = settings.cache
        limits = CacheLimits(
            ttl_seconds=given.ttl_seconds,
            max_entries=given.max_entries,
            semantic=given.semantic,
            dense=given.dense,
            agreement=given.agreement,
            rerank=given.rerank,
        )
        shared = not store.embedded and store.mapping is None
        index = MilvusIndex(store, _info_of(models)) if shared else None
        url = settings.redis.url.get_secret_value() if settings.redis.url else None
        both_ways = _both_ways(models) if given.rerank is not None else None
        self.cache = open_cache(settings.data_dir, url, limits, index, both_ways=both_ways)
        self._carrier = Carrier(self.cache, store, max(LEAST_CANDIDATES, settings.reranker.top_k))
        store.versions.on_change = self._carrier.changed

    def prepare(self) -> None:
        """Read what comparing questions needs, and begin to fill the index from the answers that are kept."""
        if self.cache is not None:
            for language in LANGUAGES:
                lexicon(language)
            self.cache.wait_until_ready(0.0)

    def close(self) -> None:
        if self._carrier is not None:
            self._carrier.close()
        if self.cache is not None:
            self.cache.close()


def _off(settings: Settings) -> str:
    if not settings.cache.enabled:
        return "switched off in the settings (cache.enabled)"
    if not settings.traces.capture_content:
        return "questions and answers are not kept (traces.capture_content)"
    return ""


def _both_ways(models: Models) -> Callable[[str, str], float] | None:
    """A reranker that reads the texts: one that goes by the scores of the routes has none of a question."""
    reranker = models.reranker
    if reranker is None or reranker.uses_route_scores:
        return None
    return lambda asked, cached: float(reranker.score(asked, [RerankCandidate(cached)]).values[0])


def _info_of(models: Models) -> Callable[[], ModelInfo]:
    def info() -> ModelInfo:
        try:
            return models.embedder.info
        except EngineError as problem:
            raise RagError(problem.message, kind=problem.kind, address=problem.address, next_step=problem.next_step) from problem

    return info
