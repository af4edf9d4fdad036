"""Which maker a model's name in the settings stands for. Nothing loads here: makers return functions for the pool to call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

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
        from gpu_server import starter
        from gpu_server.embedders import load

        return starter.StarterEmbedder(device, precision) if name == STARTER else load(name, device, precision)

    return make


def uses_route_scores(name: str) -> bool:
    """Whether this reranker wants the scores of both search routes; known without loading it."""
    return name == STARTER


def reranker(name: str, device: str = "auto", precision: str = "auto") -> Callable[[], RerankModel | Reranker]:
    """The maker of a reranker: `starter`, a folder, or a hub name. Raises UnknownModel; the maker raises ModelError."""
    _check(name)

    def make() -> RerankModel | Reranker:
        from gpu_server import starter
        from gpu_server.rerankers import load

        return starter.StarterReranker() if name == STARTER else load(name, device, precision)

    return make


def reranker_identity(name: str) -> str | None:
    """Who this reranker will be, told from its folder without loading it; None where that cannot be told."""
    from gpu_server import folders, starter

    return starter.StarterReranker().info.identity if name == STARTER else folders.reranker_identity(name)


class OnEveryDevice(Sequence[Callable[[], M]]):
    """A maker for each worker of the pool: of every GPU for `auto` and `cuda`, else of the one device.

    The devices are counted when the first model loads, because that imports torch. Raises ModelError for one that is not there.
    """

    def __init__(self, make: Callable[[str], Callable[[], M]], wanted: str) -> None:
        self._make, self._wanted = make, wanted

    @cached_property
    def _makers(self) -> list[Callable[[], M]]:
        return [self._make(device) for device in devices(self._wanted)]

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: Any) -> Any:
        return self._makers[index]


def embedders(name: str, device: str, precision: str) -> Sequence[Callable[[], EmbeddingModel]]:
    """Makers of an embedder, one for each device that `device` stands for. Raises UnknownModel."""
    _check(name)
    return OnEveryDevice(lambda where: embedder(name, where, precision), device)


def rerankers(name: str, device: str, precision: str) -> Sequence[Callable[[], RerankModel | Reranker]]:
    """Makers of a reranker, one for each device that `device` stands for; the starter's blend needs one only."""
    _check(name)
    if name == STARTER:
        return [reranker(name)]
    return OnEveryDevice(lambda where: reranker(name, where, precision), device)


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
