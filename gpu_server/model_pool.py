"""Models loaded once a process, kept warm, handed out: the cure for models re-created on every request.

A model of texts runs behind a batcher, on one worker for each device; a language model and a reranker that is no model are
called directly, one caller at a time. Knows nothing of names or makers: what loads is given as functions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from gpu_server.batcher import MAX_QUEUE_TEXTS
from gpu_server.interfaces import ChatModel, EmbeddingModel, Reranker, RerankModel
from gpu_server.pooled import PooledChatModel, PooledEmbedder, PooledReranker, embedding_forward, rerank_forward
from gpu_server.slot import Slot, SlotStatus

__all__ = ["ModelPool", "PooledChatModel", "PooledEmbedder", "PooledReranker", "SlotStatus"]

log = logging.getLogger(__name__)

RELOAD_SECONDS = 60.0  # for what waits to be finished before the weights are dropped

M = TypeVar("M")
Makers = Callable[[], M] | Sequence[Callable[[], M]]


class ModelPool:
    """The models of this process, one of each kind: embedder, reranker, llm.

    `add_…` registers a maker, or several, one for each device; nothing loads before `warm_up` or the first call.
    """

    def __init__(self, *, max_queue_texts: int = MAX_QUEUE_TEXTS) -> None:
        """`max_queue_texts` may wait for each model in each lane, urgent and bulk; more get Overloaded."""
        self._max_queue_texts = max_queue_texts
        self._models: dict[str, PooledEmbedder | PooledReranker | PooledChatModel] = {}

    def add_embedder(self, name: str, make: Makers[EmbeddingModel]) -> PooledEmbedder:
        slot = Slot("embedder", name, _all(make), embedding_forward, self._max_queue_texts)
        embedder = self._models["embedder"] = PooledEmbedder(slot)
        return embedder

    def add_reranker(
        self,
        name: str,
        make: Makers[RerankModel | Reranker],
        *,
        uses_route_scores: bool = False,
        identity: Callable[[], str | None] | None = None,
    ) -> PooledReranker:
        """A maker gives a `RerankModel`, or what is a `Reranker` already, which is called directly. `identity` tells who it will
        be before it is loaded, None where that cannot be told."""
        slot = Slot("reranker", name, _all(make), rerank_forward, self._max_queue_texts)
        reranker = self._models["reranker"] = PooledReranker(slot, uses_route_scores, identity)
        return reranker

    def add_chat_model(self, name: str, make: Callable[[], ChatModel]) -> PooledChatModel:
        chat = self._models["llm"] = PooledChatModel(Slot("llm", name, [make], lambda _: None, self._max_queue_texts))
        return chat

    def warm_up(self) -> None:
        """Load every model and run each once, so that no query pays for it. A model that fails is reported, not raised."""
        for kind, model in self._models.items():
            try:
                model.prove()
            except Exception as problem:
                log.warning("warm-up of %s %s failed: %s", kind, model.slot.name, problem)

    def prove(self, kind: str, deadline: float | None = None) -> float:
        """Run the model once on each of its devices, before all that waits, loaded first where it is not; seconds of the run.

        Raises what is wrong, TimedOut at `deadline` (monotonic seconds), LookupError for a kind that is not there.
        """
        return self._model(kind).prove(deadline)

    def warm(self, kind: str) -> SlotStatus:
        """Load the model where it is not loaded, and run it once. Raises as `prove` does."""
        self.prove(kind)
        return self._model(kind).slot.status

    def reload(self, kind: str, timeout: float = RELOAD_SECONDS) -> SlotStatus:
        """Finish what waits, drop the weights, load them anew and run them once; calls that come meanwhile wait for it.

        Raises TimedOut where what waits takes longer than `timeout` seconds, and as `prove` does.
        """
        self._model(kind).slot.reload(timeout)
        return self.warm(kind)

    def status(self) -> tuple[SlotStatus, ...]:
        return tuple(model.slot.status for model in self._models.values())

    def stop(self, timeout: float = 10.0) -> None:
        """Finish what waits, for `timeout` seconds at most, and end the workers; calls get Overloaded from now on."""
        end = time.monotonic() + timeout
        for model in self._models.values():
            model.slot.stop(max(0.0, end - time.monotonic()))

    def _model(self, kind: str) -> PooledEmbedder | PooledReranker | PooledChatModel:
        if kind not in self._models:
            raise LookupError(f"no {kind} is in this pool; there are {', '.join(self._models) or 'none'}")
        return self._models[kind]


def _all(make: Makers[M]) -> Sequence[Callable[[], M]]:
    return [make] if callable(make) else make
