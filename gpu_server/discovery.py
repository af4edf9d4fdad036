"""What a model server is, found out by a few cheap GETs: its dialect, its model, its limits.

An explicit dialect is believed. `auto` asks `/health` (our server, R0's and R2's say status and model there) and `/info`
(TEI); everything else is taken for OpenAI-compatible (embeddings) or Cohere-style (reranking).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpu_server.errors import BadAnswer, ModelError
from gpu_server.interfaces import ModelInfo
from gpu_server.remote_dialects import Dialect
from gpu_server.transport import Transport

Kind = Literal["embedder", "reranker"]

NO_INFO = frozenset(range(300, 502)) - {408, 429}  # an overloaded or restarting server is asked again
NOT_THERE = (400, 404, 405, 422)


@dataclass(frozen=True, slots=True)
class Served:
    """What stands at the address. `url` is where requests go; `max_batch` is None where the server states no limit.

    `model` is sent with each request where the dialect has a place for it. `ours`: the server says in `/health` what a
    ModelInfo wants to know, and gives raw scores when asked. Until the first answer `info.dimension` may be None.
    """

    dialect: Dialect
    url: str
    info: ModelInfo
    model: str | None = None
    max_batch: int | None = None
    ours: bool = False


def discover(transport: Transport, kind: Kind, dialect: str, deadline: float | None = None) -> Served:
    """Ask the server what it is. Raises EngineError: it cannot be reached, is another one, or serves no model of this kind."""
    endpoint = transport.endpoint
    if dialect in ("auto", "native"):
        reply = transport.get(endpoint.bare("/health"), deadline=deadline, accept=NOT_THERE)
        health = reply.object() if reply.status < 300 else {}
        if _is_native(health) or (dialect == "native" and reply.status >= 300):
            return _native(transport, kind, health)
        if dialect == "native":
            raise _other_server(transport)
    if kind == "embedder":
        return _openai(transport, deadline)
    info = _tei_info(transport, deadline) if dialect in ("auto", "tei") else {}
    return _tei(transport, info) if info or dialect == "tei" else _cohere(transport, deadline)


def _other_server(transport: Transport) -> BadAnswer:
    return BadAnswer(
        "another kind of server answers there: its /health does not say status and model",
        address=transport.endpoint.shown,
        next_step="For an OpenAI-compatible embedder set EMBEDDING_BASE_URL, for a rerank service RERANKER_API_URL.",
    )


def _is_native(health: Mapping[str, Any]) -> bool:
    return "status" in health and any(key in health for key in ("models", "model", "device"))


def _native(transport: Transport, kind: Kind, health: Mapping[str, Any]) -> Served:
    endpoint = transport.endpoint
    url = endpoint.bare("/embed" if kind == "embedder" else "/rerank")
    models = health.get("models")
    if not isinstance(models, list):
        name = endpoint.model or _text(health.get("model")) or f"{kind} at {endpoint.shown}"
        return Served("native", url, _info(transport, kind, name, _text(health.get("device"))))
    entry = next((item for item in models if isinstance(item, dict) and item.get("kind") == kind), None)
    if entry is None:
        raise ModelError(
            f"the server serves no {kind}",
            address=endpoint.shown,
            next_step=f"Start it with --{kind}, or set another address than {endpoint.names.url}.",
        )
    return Served("native", url, _stated(transport, kind, entry), ours=True)


def _stated(transport: Transport, kind: Kind, entry: Mapping[str, Any]) -> ModelInfo:
    """What our server says of its model. Raises BadAnswer where the entry lacks what identifies a model."""
    endpoint = transport.endpoint
    name, identity, dimension = _text(entry.get("name")), _text(entry.get("identity")), _whole(entry.get("dimension"))
    if name is None or identity is None or (kind == "embedder" and dimension is None):
        raise BadAnswer(
            f"/health lists the {kind} without name, identity or dimension",
            address=endpoint.shown,
            next_step="Bring server and dashboard to one version.",
        )
    return ModelInfo(
        name=name,
        kind=kind,
        identity=identity,
        device=_text(entry.get("device")) or "remote",
        precision=_text(entry.get("precision")) or "unknown",
        where="http",
        address=endpoint.shown,
        dimension=dimension,
        max_tokens=_whole(entry.get("max_tokens")),
        learned_sparse=bool(entry.get("learned_sparse")),
        late_interaction=bool(entry.get("late_interaction")),
        note=_text(entry.get("note")),
        memory_bytes=_whole(entry.get("memory_bytes")),
    )


def _openai(transport: Transport, deadline: float | None) -> Served:
    endpoint = transport.endpoint
    info = _tei_info(transport, deadline)  # TEI speaks OpenAI's dialect too, and takes 32 texts a request by default
    model = endpoint.model or _text(info.get("model_id")) or _only(transport.served(deadline))
    name = model or f"embedder at {endpoint.shown}"
    stated = _info(transport, "embedder", name, None, info.get("max_input_length"))
    return Served("openai", endpoint.versioned("/embeddings"), stated, model, _limit(info))


def _only(names: list[str]) -> str | None:
    """The model to ask for where none is configured: of several, the server knows best which one embeds."""
    return names[0] if len(names) == 1 else None


def _tei(transport: Transport, info: Mapping[str, Any]) -> Served:
    endpoint = transport.endpoint
    name = endpoint.model or _text(info.get("model_id")) or f"reranker at {endpoint.shown}"
    stated = _info(transport, "reranker", name, None, info.get("max_input_length"))
    return Served("tei", endpoint.bare("/rerank"), stated, max_batch=_limit(info))


def _cohere(transport: Transport, deadline: float | None) -> Served:
    endpoint = transport.endpoint
    url = endpoint.versioned("/rerank")
    if not endpoint.has_version:  # Infinity has no /v1: an empty body is refused where the path exists
        reply = transport.post(url, {}, deadline=deadline, accept=(*NOT_THERE, 500))
        url = endpoint.bare("/rerank") if reply.status in (404, 405) else url
    model = endpoint.model or _only(transport.served(deadline))
    return Served("cohere", url, _info(transport, "reranker", model or f"reranker at {endpoint.shown}", None), model)


def _tei_info(transport: Transport, deadline: float | None) -> dict[str, Any]:
    """TEI's `/info`; {} where the server has none."""
    reply = transport.get(transport.endpoint.bare("/info"), deadline=deadline, accept=NO_INFO)
    info = reply.object() if reply.status < 300 else {}
    return info if "model_id" in info else {}


def _limit(info: Mapping[str, Any]) -> int | None:
    return _whole(info.get("max_client_batch_size")) or None


def _info(transport: Transport, kind: Kind, name: str, device: str | None, max_tokens: Any = None) -> ModelInfo:
    """What is known of a model whose server does not say more; an embedder's identity and dimension follow its first answer."""
    return ModelInfo(
        name=name,
        kind=kind,
        identity=name,
        device=device or "remote",
        precision="unknown",
        where="http",
        address=transport.endpoint.shown,
        max_tokens=_whole(max_tokens),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None
