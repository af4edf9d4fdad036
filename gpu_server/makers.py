"""Which maker a model's name in the settings stands for. Nothing loads here: makers return functions for the pool to call."""

from __future__ import annotations

from collections.abc import Callable

from gpu_server.interfaces import ChatModel, Embedder, Reranker


class UnknownModel(ValueError):
    """No maker knows this name."""


def embedder(name: str, device: str, precision: str) -> Callable[[], Embedder]:
    """The maker of an embedder. Raises UnknownModel."""
    if name != "starter":
        raise UnknownModel(f"no maker for the embedder {name!r} in this version: models.embedder takes 'starter'")

    def make() -> Embedder:
        from gpu_server.starter import StarterEmbedder

        return StarterEmbedder(device, precision)

    return make


def uses_route_scores(name: str) -> bool:
    """Whether this reranker wants the scores of both search routes; known without loading it."""
    return name == "starter"


def reranker(name: str) -> Callable[[], Reranker]:
    """The maker of a reranker. Raises UnknownModel."""
    if name != "starter":
        raise UnknownModel(f"no maker for the reranker {name!r} in this version: models.reranker takes 'starter'")

    def make() -> Reranker:
        from gpu_server.starter import StarterReranker

        return StarterReranker()

    return make


def chat(name: str, device: str, precision: str) -> Callable[[], ChatModel]:
    """The maker of an in-process language model from a hub name or folder."""

    def make() -> ChatModel:
        from gpu_server.local_chat import TransformersChat

        return TransformersChat(name, device, precision)

    return make
