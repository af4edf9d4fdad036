"""What the component tests need of a runtime: its store's place, models, addresses. Opens and loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pydantic import SecretStr

import models
from collectors.services import Service, ServiceKind
from gpu_server import folders, makers, starter
from gpu_server.model_pool import ModelPool
from latency.components.components import Parts, StorePlace
from rag.routes import FieldMapping
from runtime import Runtime
from settings import Settings


def parts(running: Runtime) -> Parts:
    """The parts of a runtime as its settings have them."""
    settings = running.settings
    return Parts(
        store=_store_place(settings),
        models=lambda: running.status(live=True).models,
        fresh_pool=partial(_fresh_pool, settings),
        folders=_folders(settings),
        endpoints=endpoints(settings),
    )


def _store_place(settings: Settings) -> StorePlace:
    milvus = settings.milvus
    return StorePlace(
        uri=milvus.uri,
        data_dir=settings.data_dir,
        collection=milvus.collection,
        token=_secret(milvus.token),
        timeout_seconds=milvus.timeout_seconds,
        mapping=FieldMapping(**milvus.mapping.model_dump()) if milvus.mapping else None,
    )


def _fresh_pool(settings: Settings) -> ModelPool:
    pool = ModelPool()
    models.build(settings, pool).close()  # its remote clients are not wanted; the pool's models are
    return pool


def _folders(settings: Settings) -> Mapping[str, Callable[[], Path]]:
    """The folders of the models that run in this process."""
    chosen = settings.models
    found: dict[str, Callable[[], Path]] = {}
    if settings.embeddings.base_url is None and settings.gpu_server.url is None:
        found["embedder"] = partial(_embedder_folder, chosen.embedder)
    local_reranker = settings.reranker.api_url is None and settings.gpu_server.url is None
    if settings.reranker.enabled and local_reranker and chosen.reranker != makers.STARTER:  # the starter's blend has no weights
        found["reranker"] = lambda: folders.reranker(chosen.reranker).path
    return found


def _embedder_folder(name: str) -> Path:
    return starter.weights_folder() if name == makers.STARTER else folders.embedder(name).path


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None


def endpoints(settings: Settings) -> tuple[Service, ...]:
    """The remote addresses of the path as services to be probed, named `llm`, `embedder`, `reranker`, `gpu server`, `store`."""
    llm, embeddings, reranker, server, milvus = (
        settings.llm,
        settings.embeddings,
        settings.reranker,
        settings.gpu_server,
        settings.milvus,
    )
    found: list[Service] = []
    if llm.base_url and not llm.local_model:
        found.append(_keyed("llm", "openai-chat", llm.base_url, llm.api_key, "llm.api_key", llm.model))
    if embeddings.base_url:
        headers = {name: value.get_secret_value() for name, value in (embeddings.headers or {}).items()}
        key = "embeddings.api_key"
        found.append(
            _keyed("embedder", "openai-embeddings", embeddings.base_url, embeddings.api_key, key, embeddings.model, headers)
        )
    if reranker.enabled and reranker.api_url:
        found.append(_keyed("reranker", "rerank", reranker.api_url, reranker.api_key, "reranker.api_key", reranker.api_model))
    if server.url and not (embeddings.base_url and (reranker.api_url or not reranker.enabled)):
        found.append(_keyed("gpu server", "gpu_server", server.url, server.token, "gpu_server.token"))
    if milvus.uri:
        found.append(_keyed("store", "milvus", milvus.uri, milvus.token, "milvus.token"))
    return tuple(found)


def _keyed(
    name: str,
    kind: ServiceKind,
    url: str,
    key: SecretStr | None,
    setting: str,
    model: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Service:
    return Service(name, kind, url, model, _secret(key), headers or {}, key_setting=setting)
