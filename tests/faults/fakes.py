"""Models that can be made slow. `FakeCrossEncoder` is a fake: it counts common words and computes nothing.

`SlowStarter` is the real starter embedder with seconds added. Both take their speed, and the device they say they run on, from a
`Speed` that a fault changes while they work. Waiting is done asleep, as for a GPU or a disk: it costs no processor.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import EmbeddingModel, Encoded, ModelInfo, TextKind, VectorKind, Vectors
from gpu_server.starter import StarterEmbedder

NAME = "fake/cross-encoder"
MAX_WORDS = 512


@dataclass
class Speed:
    """Seconds that are added; `first` to the first pass after a load."""

    device: str = "cuda:0"
    load: float = 0.0
    first: float = 0.0
    a_pass: float = 0.0
    per_text: float = 0.0
    per_token: float = 0.0

    @contextlib.contextmanager
    def at(self, **changes: Any) -> Iterator[None]:
        """Another speed for a while."""
        before = {name: getattr(self, name) for name in changes}
        self._set(changes)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def spend(self, batch: Sequence[Encoded], is_first: bool) -> None:
        """The time of one pass."""
        tokens = sum(len(item.ids) for item in batch)
        time.sleep(self.a_pass + self.per_text * len(batch) + self.per_token * tokens + (self.first if is_first else 0.0))


class FakeCrossEncoder:
    """Scores a passage by the share of the question's words in it."""

    def __init__(self, speed: Speed) -> None:
        time.sleep(speed.load)
        self._speed = speed
        self._is_first = True

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(NAME, "reranker", "fake-cross-encoder", self._speed.device, "fp32", max_tokens=MAX_WORDS)

    def encode(self, query: str, texts: Sequence[str]) -> list[Encoded]:
        """The first id is the count of common words in thousandths, the others stand for words."""
        asked = _words(query)
        return [_encoded(asked, text) for text in texts]

    def forward(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        self._speed.spend(batch, self._is_first)
        self._is_first = False
        return np.array([item.ids[0] / 1000 for item in batch], dtype=np.float32)


def _encoded(asked: set[str], text: str) -> Encoded:
    words = text.lower().split()
    common = len(asked.intersection(_words(text)))
    share = common / max(1, len(asked)) - len(words) / 1_000_000  # of equals, the shorter one
    return Encoded([int(1000 * share), *range(1, min(len(words), MAX_WORDS))], len(words) > MAX_WORDS)


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


class SlowStarter:
    """The starter embedder and its vectors; seconds and the device's name are the speed's."""

    def __init__(self, speed: Speed, model: EmbeddingModel | None = None) -> None:
        """`model` spares a load: the weights of another instance are used."""
        time.sleep(speed.load)
        self._speed = speed
        self._model = model or StarterEmbedder("cpu")
        self._is_first = True

    @property
    def info(self) -> ModelInfo:
        return replace(self._model.info, device=self._speed.device)

    def encode(self, texts: Sequence[str], kind: TextKind) -> list[Encoded]:
        return self._model.encode(texts, kind)

    def forward(self, batch: Sequence[Encoded], vectors: frozenset[VectorKind]) -> list[Vectors]:
        self._speed.spend(batch, self._is_first)
        self._is_first = False
        return self._model.forward(batch, vectors)

    def count_tokens(self, text: str) -> int:
        return self._model.count_tokens(text)
