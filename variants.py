"""Models other than those in force, for queries that measure: another device, precision or place, for a while.

Only places that the settings name can be chosen: an address from a page would be sent the keys that the environment holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import models
from gpu_server.errors import EngineError
from gpu_server.model_pool import ModelPool
from latency.lab import Variant
from rag.errors import RagError
from rag.query import Clients
from settings import Settings

PLACES = ("in-process", "http")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
MODEL_KEYS = frozenset(f"{kind}{part}" for kind in ("embedder", "reranker") for part in ("", ".device", ".precision"))
LLM_KEYS = frozenset({"llm.model", "llm.temperature", "llm.max_tokens"})


@contextmanager
def variant(settings: Settings, clients: Clients, changes: Mapping[str, Any]) -> Iterator[Variant]:
    """`clients` with the changes of `latency.lab.Lab.variant` made. What is built for it is let go of at the end.

    Raises RagError bad_input for a key or place that is not to be had, model for a model that cannot be built.
    """
    if unknown := sorted(set(changes) - MODEL_KEYS - LLM_KEYS):
        known = ", ".join(sorted(MODEL_KEYS | LLM_KEYS))
        raise RagError(f"{unknown[0]} cannot be changed for a measurement", kind="bad_input", next_step=f"Known: {known}.")
    pool = ModelPool()
    with ExitStack() as stack:
        stack.callback(pool.stop)
        if wanted := _about("embedder", changes):
            embedder, far_embedder = models.embedder_of(_changed(settings, "embedder", wanted), pool)
            clients = replace(clients, embedder=embedder)
            if far_embedder:
                stack.callback(far_embedder.server.close)
        if wanted := _about("reranker", changes):
            reranker, far_reranker = models.reranker_of(_changed(settings, "reranker", wanted), pool)
            clients = replace(clients, reranker=reranker)
            if far_reranker:
                stack.callback(far_reranker.server.close)
        if "llm.model" in changes:
            chat = models.remote_chat(settings, str(changes["llm.model"]))
            if chat is None:
                raise RagError("no language model's address is set", kind="bad_input", next_step="Set VLLM_BASE_URL.")
            stack.callback(chat.close)
            clients = replace(clients, chat=chat)
        prompts = {key.removeprefix("llm."): changes[key] for key in ("llm.temperature", "llm.max_tokens") if key in changes}
        _warm(pool)
        yield Variant(dict(changes), replace(clients, prompts=replace(clients.prompts, **prompts)))


def _about(kind: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if key == kind or key.startswith(f"{kind}.")}


def _warm(pool: ModelPool) -> None:
    for slot in pool.status():
        try:
            pool.warm(slot.kind)
        except EngineError as problem:
            raise RagError(problem.message, kind=problem.kind, next_step=problem.next_step) from problem


def _changed(settings: Settings, kind: str, wanted: Mapping[str, Any]) -> Settings:
    """The settings with one kind of model elsewhere. Device and precision are of models in this process."""
    device, precision = wanted.get(f"{kind}.device"), wanted.get(f"{kind}.precision")
    place = wanted.get(kind) or ("in-process" if device or precision else None)
    if place not in PLACES:
        raise RagError(f"{kind} is {place!r}", kind="bad_input", next_step=f"Choose one of {', '.join(PLACES)}.")
    far = settings.embeddings.base_url if kind == "embedder" else settings.reranker.api_url
    if place == "http":
        if far is None and settings.gpu_server.url is None:
            name = "GPU_SERVER_URL or EMBEDDING_BASE_URL" if kind == "embedder" else "GPU_SERVER_URL or RERANKER_API_URL"
            raise RagError(f"the settings name no server that has the {kind}", kind="bad_input", next_step=f"Set {name}.")
        if device or precision:
            raise RagError(
                f"the {kind} behind HTTP has the device and precision of its server",
                kind="bad_input",
                next_step=f"Leave {kind}.device and {kind}.precision out, or choose in-process.",
            )
        return settings
    section, key = ("embeddings", "base_url") if kind == "embedder" else ("reranker", "api_url")
    if device and not DEVICE.fullmatch(str(device)):
        raise RagError(f"{kind}.device is {device!r}", kind="bad_input", next_step="Choose auto, cpu, cuda or cuda:N.")
    if precision and precision not in PRECISIONS:
        raise RagError(
            f"{kind}.precision is {precision!r}", kind="bad_input", next_step=f"Choose one of {', '.join(PRECISIONS)}."
        )
    own = {"device": device, "precision": precision}
    return settings.model_copy(
        update={
            section: getattr(settings, section).model_copy(update={key: None}),
            "gpu_server": settings.gpu_server.model_copy(update={"url": None}),
            "models": settings.models.model_copy(update={name: value for name, value in own.items() if value}),
        }
    )
