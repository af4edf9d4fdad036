"""The models that one server serves: an embedder, a reranker or both, from one pool, with caches before them or not.

Knows nothing of HTTP. torch is asked only about a GPU that a loaded model already runs on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from gpu_server.caches import CachedEmbedder, CachedReranker
from gpu_server.devices import import_torch
from gpu_server.interfaces import (
    CacheMode,
    Embeddings,
    ModelInfo,
    RerankCandidate,
    Scores,
    TextKind,
    VectorKind,
)
from gpu_server.model_pool import ModelPool, SlotStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes of the device's memory, all processes together."""

    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Engine:
    """What is served. At least one of the two is there."""

    pool: ModelPool
    embedder: CachedEmbedder | None = None
    reranker: CachedReranker | None = None

    def embed(
        self,
        texts: Sequence[str],
        kind: TextKind,
        vectors: frozenset[VectorKind],
        *,
        deadline: float | None,
        caches: CacheMode,
    ) -> Future[Embeddings]:
        """The embedder's answer, in the future; tokenises here and now. Errors come at once or with it."""
        if self.embedder is None:
            raise ValueError("no embedder")
        return self.embedder.begin(texts, kind, vectors=vectors, deadline=deadline, caches=caches)

    def score(self, query: str, texts: Sequence[str], *, deadline: float | None, caches: CacheMode) -> Future[Scores]:
        """The reranker's answer as `embed` gives the embedder's: raw and in the texts' order."""
        if self.reranker is None:
            raise ValueError("no reranker")
        return self.reranker.begin(query, [RerankCandidate(text) for text in texts], deadline=deadline, caches=caches)

    def prove(self, deadline: float | None) -> None:
        """One real pass of each model on each of its devices, loaded first where it is not. Raises what is wrong."""
        for status in self.statuses():
            self.pool.prove(status.kind, deadline)
        for info in self.infos():
            log.info("%s %s answers on %s in %s", info.kind, info.name, info.device, info.precision)

    def statuses(self) -> tuple[SlotStatus, ...]:
        return self.pool.status()

    def cache_stats(self) -> dict[str, dict[str, Any]]:
        """By cache: hits, misses, entries and what else it knows of itself."""
        caches = {"query_embeddings": self.embedder, "rerank": self.reranker}
        stats = {name: cache.stats for name, cache in caches.items() if cache is not None}
        return {name: {**asdict(known), "hit_ratio": known.hit_ratio} for name, known in stats.items()}

    def status(self, kind: str) -> SlotStatus | None:
        return next((status for status in self.pool.status() if status.kind == kind), None)

    def infos(self) -> list[ModelInfo]:
        """Of the models that are loaded, the embedder first."""
        found = (self.status("embedder"), self.status("reranker"))
        return [status.info for status in found if status is not None and status.info is not None]


def names_of(status: SlotStatus) -> frozenset[str]:
    """The names a client may call the model by, in lower case: as it was configured, its own, and each without its folder."""
    names = {status.name, status.info.name if status.info else status.name}
    return frozenset(part.casefold() for name in names for part in (name, name.rstrip("/").rsplit("/", 1)[-1]))


def gpu_name(device: str) -> str | None:
    """As the driver calls it; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    return str(import_torch().cuda.get_device_name(device))


def gpu_memory(device: str) -> GpuMemory | None:
    """None for a CPU."""
    if not device.startswith("cuda"):
        return None
    free, total = import_torch().cuda.mem_get_info(device)
    return GpuMemory(int(total - free), int(total))
