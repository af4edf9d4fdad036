"""A calibration with its progress: pairs are embedded in small batches, then thresholds are chosen and the curve is drawn.

Puts nothing in force. Knows no job and no page.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import Embedder
from rag.cache.calibrate import Calibration, Pair, Point, calibrate, curve, score

BATCH = 32


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """The calibration, and what other cosines would do to the pairs held out."""

    calibration: Calibration
    curve: tuple[Point, ...]


def calibrating(
    pairs: Sequence[Pair], embedder: Embedder, *, false_hits: float
) -> Generator[dict[str, Any], None, CalibrationRun]:
    """Yields `{type: progress, done, texts}` after each batch. Raises RagError, EngineError.

    Past every cache: a thousand questions would push out those that users ask again.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.a, pair.b)))
    vectors: dict[str, NDArray[np.float32]] = {}
    yield {"type": "progress", "done": 0, "texts": len(texts), "pairs": len(pairs)}
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        vectors.update(zip(part, embedder.embed(part, "query", caches="bypass").dense, strict=True))
        yield {"type": "progress", "done": len(vectors), "texts": len(texts), "pairs": len(pairs)}
    scored = score(pairs, lambda wanted: np.stack([vectors[text] for text in wanted]))
    found = calibrate(scored, embedder.info.identity, false_hits=false_hits)
    return CalibrationRun(found, curve(scored, found.thresholds.agreement))
