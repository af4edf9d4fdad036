"""Which maker a model's name in the settings stands for. Nothing loads here: makers return functions for the pool to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gpu_server import hub
from gpu_server.devices import devices
from gpu_server.interfaces import ChatModel, Embedder, EmbeddingModel, Reranker, RerankModel

STARTER = "starter"

M = TypeVar("M")


class UnknownModel(ValueError):
    """No model can have this name: it is empty, a file, or a folder that is not there."""


def embedder(name: str, device: str, precision: str) -> Callable[[], EmbeddingModel]:
    """The maker of an embedder: `starter`, a folder, or a hub name. Raises UnknownModel; the maker raises ModelError."""
    _check(name)

    def make() -> EmbeddingModel:
        from gpu_server import embedders, starter

        return starter.StarterEmbedder(device, precision) if name == STARTER else embedders.load(name, device, precision)

    return make


def uses_route_scores(name: str) -> bool:
    """Whether this reranker wants the scores of both search routes; known without loading it."""
    return name == STARTER


def reranker(name: str, device: str = "auto", precision: str = "auto") -> Callable[[], RerankModel | Reranker]:
    """The maker of a reranker: `starter`, a folder, or a hub name. Raises UnknownModel; the maker raises ModelError."""
    _check(name)

    def make() -> RerankModel | Reranker:
        from gpu_server import rerankers, starter

        return starter.StarterReranker() if name == STARTER else rerankers.load(name, device, precision)

    return make


def on_every_device(
    make: Callable[[str, str, str], Callable[[], M]], name: str, device: str, precision: str
) -> list[Callable[[], M]]:
    """One maker for each worker of the pool: of every GPU for `auto` and `cuda`, else of the one device.

    Imports torch to count them. Raises UnknownModel, and ModelError for a device that is not there.
    """
    return [make(name, where, precision) for where in devices(device)]


def cosine_reranker(embedder: Embedder) -> Reranker:
    """What stands in for the starter's blend where candidates come without route scores: over HTTP."""
    from gpu_server.starter import CosineReranker

    return CosineReranker(embedder)


def chat(name: str, device: str, precision: str) -> Callable[[], ChatModel]:
    """The maker of an in-process language model from a hub name or folder."""

    def make() -> ChatModel:
        from gpu_server.local_chat import TransformersChat

        return TransformersChat(name, device, precision)

    return make


def _check(name: str) -> None:
    reason = hub.bad_name(name)
    if reason:
        raise UnknownModel(f"{reason}: name {STARTER!r}, a model folder, or a model as the hub writes it (BAAI/bge-m3)")
