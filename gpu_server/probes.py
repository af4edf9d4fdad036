"""A model tried out with one text or one pair, wherever it runs: what a test button and a greeting at the start do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from gpu_server.interfaces import Embedder, ModelInfo, RerankCandidate, Reranker, Timing


class Probe(NamedTuple):
    """A model tried with one text or one pair; seconds, `network_seconds` None in-process."""

    seconds: float
    network_seconds: float | None
    info: ModelInfo


def probe_embedder(embedder: Embedder) -> Probe:
    """Embed one text, past every cache. Raises EngineError."""
    return _probed(lambda: embedder.embed(["Is anybody there?"], "query", caches="bypass").timing, lambda: embedder.info)


def probe_reranker(reranker: Reranker) -> Probe:
    """Score one pair, past every cache. Raises EngineError."""
    pair = [RerankCandidate("The server answers.", dense=0.5, sparse=1.0)]
    return _probed(lambda: reranker.score("Is anybody there?", pair, caches="bypass").timing, lambda: reranker.info)


def _probed(run: Callable[[], Timing], info: Callable[[], ModelInfo]) -> Probe:
    started = time.perf_counter()
    timing = run()
    return Probe(time.perf_counter() - started, timing.network, info())
