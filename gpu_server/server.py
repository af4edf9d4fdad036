"""The models over HTTP: native, TEI's, OpenAI's and Cohere's paths on one app. `create_app` is the way in.

Each handler reads one dialect's body, asks the service and answers in the shape that was asked in.
Knows nothing of batching, loading or files.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gpu_server.asgi import Gate, Traffic
from gpu_server.dialects import base64_floats, dialect_of, error_response, refusal, shortened, sigmoid
from gpu_server.engine import Engine
from gpu_server.errors import TooLarge
from gpu_server.interfaces import Embeddings, Scores, TextKind, VectorKind
from gpu_server.metrics import Metrics
from gpu_server.readiness import Readiness
from gpu_server.reports import Reports, live_metrics
from gpu_server.schemas import (
    CohereRerankAnswer,
    CohereRerankRequest,
    EmbedAnswer,
    EmbedRequest,
    EmptyInput,
    NotReadable,
    OpenAiEmbeddingsAnswer,
    OpenAiEmbeddingsRequest,
    RerankAnswer,
    RerankRequest,
    SparseValue,
    TeiEmbedRequest,
    TeiRank,
    TeiRerankRequest,
    read,
)
from gpu_server.service import Call, Endpoint, Limits, Service

DENSE: frozenset[VectorKind] = frozenset({"dense"})
DENSE_SPARSE: frozenset[VectorKind] = frozenset({"dense", "sparse"})


class Handlers:
    """One method a path; two dialects share `/embed` and `/rerank`, told apart by their fields."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def embed(self, call: Call) -> Response:
        if "inputs" in call.body and "texts" not in call.body:
            return await self._tei_embed(call)
        asked = read(EmbedRequest, call.body)
        _not_empty(asked.texts, "texts")
        info = self._service.info("embedder")
        vectors = DENSE_SPARSE if asked.return_sparse else DENSE
        result = await self._service.embed(call, asked.texts, asked.kind, vectors | {"late"} if asked.return_colbert else vectors)
        data: dict[str, Any] = {
            "dense_embeddings": result.dense if asked.return_dense else None,
            "sparse_embeddings": result.sparse if asked.return_sparse else None,
        }
        if asked.return_colbert:
            data["colbert_embeddings"] = result.late
        return self._service.answer(call, data, result, len(asked.texts), info)

    async def _tei_embed(self, call: Call) -> Response:
        result, texts = await self._tei_result(call, DENSE)
        return self._service.answer(call, result.dense, result, texts, self._service.info("embedder"))

    async def embed_sparse(self, call: Call) -> Response:
        result, texts = await self._tei_result(call, DENSE_SPARSE)
        info = self._service.info("embedder")
        if result.sparse is None:
            raise NotReadable(f"{info.name} makes no sparse weights", next_step="Serve BAAI/bge-m3 for them.")
        rows = [[{"index": token, "value": weight} for token, weight in row.items()] for row in result.sparse]
        return self._service.answer(call, rows, result, texts, info)

    async def _tei_result(self, call: Call, vectors: frozenset[VectorKind]) -> tuple[Embeddings, int]:
        asked = read(TeiEmbedRequest, call.body)
        _not_empty(asked.inputs, "inputs", each=True)
        if not asked.normalize:
            raise NotReadable("vectors are always normalised here", field="normalize", next_step="Leave `normalize` out.")
        kind: TextKind = "query" if asked.prompt_name == "query" else "passage"
        result = await self._service.embed(call, asked.inputs, kind, vectors)
        _not_cut(result, asked.truncate)
        return result, len(asked.inputs)

    async def openai_embeddings(self, call: Call) -> Response:
        asked = read(OpenAiEmbeddingsRequest, call.body)
        _not_empty(asked.input, "input", each=True)
        info = self._service.info("embedder", asked.model)
        dimension = info.dimension or 1
        if asked.dimensions is not None and not 1 <= asked.dimensions <= dimension:
            raise NotReadable(f"dimensions is {asked.dimensions}; {info.name} has 1 to {dimension}", field="dimensions")
        result = await self._service.embed(call, asked.input, asked.input_type, DENSE)
        dense = shortened(result.dense, asked.dimensions) if asked.dimensions else result.dense
        rows = [base64_floats(row) for row in dense] if asked.encoding_format == "base64" else dense
        data = {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            "model": info.name,
            "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
        }
        return self._service.answer(call, data, result, len(asked.input), info)

    async def rerank(self, call: Call) -> Response:
        if "texts" in call.body and "documents" not in call.body:
            return await self._tei_rerank(call)
        asked = read(RerankRequest, call.body)
        result, order, scores = await self._ranked(call, asked.query, asked.documents, "documents", raw=asked.raw_scores)
        best = order[: asked.top_k]
        data = {"rankings": best, "scores": scores[best]}
        return self._service.answer(call, data, result, len(asked.documents), self._service.info("reranker"))

    async def _tei_rerank(self, call: Call) -> Response:
        asked = read(TeiRerankRequest, call.body)
        result, order, scores = await self._ranked(call, asked.query, asked.texts, "texts", raw=asked.raw_scores)
        _not_cut(result, asked.truncate)
        data = [{"index": index, "score": scores[index]} for index in order]
        if asked.return_text:
            data = [{**rank, "text": asked.texts[index]} for rank, index in zip(data, order, strict=True)]
        return self._service.answer(call, data, result, len(asked.texts), self._service.info("reranker"))

    async def cohere_rerank(self, call: Call) -> Response:
        asked = read(CohereRerankRequest, call.body)
        info = self._service.info("reranker", asked.model)
        result, order, scores = await self._ranked(call, asked.query, asked.documents, "documents", raw=False)
        results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order[: asked.top_n]]
        if asked.return_documents:
            results = [{**row, "document": {"text": asked.documents[row["index"]]}} for row in results]
        data = {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": info.name,
            "results": results,
            "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
            "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": result.tokens}},
        }
        return self._service.answer(call, data, result, len(asked.documents), info)

    async def _ranked(
        self, call: Call, query: str, texts: Sequence[str], field: str, *, raw: bool
    ) -> tuple[Scores, list[int], Any]:
        """The result, the indices best first (equal ones in their given order), and the scores by index."""
        _not_empty(texts, field)
        _not_empty([query], "query", each=True)
        result = await self._service.score(call, query, texts)
        order: list[int] = np.argsort(-result.values, kind="stable").tolist()
        return result, order, result.values if raw else sigmoid(result.values)


def _not_empty(texts: Sequence[str], field: str, *, each: bool = False) -> None:
    if not texts or (each and "" in texts):
        raise EmptyInput(f"`{field}` {'is' if not texts or len(texts) == 1 else 'holds a text that is'} empty", field=field)


def _not_cut(result: Embeddings | Scores, may_cut: bool) -> None:
    if result.truncated and not may_cut:
        raise TooLarge(f"{result.truncated} texts are longer than the model reads, and `truncate` is false")


class _Route(APIRoute):
    """An endpoint called with the request as it is: handlers read their bodies themselves, so there is nothing to inject."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Any = self.endpoint
        return endpoint  # type: ignore[no-any-return]


def create_app(engine: Engine, limits: Limits, api_key: str | None = None, *, version: str = "0") -> FastAPI:
    """The app; its lifespan starts the loading. `app.state.traffic` and `app.state.readiness` are for who drains it."""
    traffic, readiness = Traffic(), Readiness(engine.prove)
    metrics = Metrics(lambda: traffic.active, lambda: live_metrics(engine))
    service = Service(engine, limits, readiness, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        readiness.start()
        yield

    app = FastAPI(title="RAG Deck GPU server", version=version, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.traffic, app.state.readiness = traffic, readiness
    app.router.route_class = _Route
    _add_models(app, service)
    _add_reports(app, Reports(service, version))
    app.add_middleware(Gate, traffic=traffic, api_key=api_key)
    app.add_exception_handler(HTTPException, _no_such_path)
    return app


def _add_models(app: FastAPI, service: Service) -> None:
    handlers = Handlers(service)

    def post(path: str, handle: Any, bodies: tuple[type[BaseModel], ...], answer: Any, about: str) -> None:
        schemas = [body.model_json_schema() for body in bodies]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        app.add_api_route(
            path,
            service.endpoint(handle),
            methods=["POST"],
            summary=about,
            operation_id=path.strip("/").replace("/", "_"),
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
            responses={200: {"model": answer}},
        )

    post("/embed", handlers.embed, (EmbedRequest, TeiEmbedRequest), EmbedAnswer | list[list[float]], "Vectors of texts")
    post("/embed_sparse", handlers.embed_sparse, (TeiEmbedRequest,), list[list[SparseValue]], "Sparse weights, as TEI")
    post("/rerank", handlers.rerank, (RerankRequest, TeiRerankRequest), RerankAnswer | list[TeiRank], "Passages by relevance")
    post("/v1/embeddings", handlers.openai_embeddings, (OpenAiEmbeddingsRequest,), OpenAiEmbeddingsAnswer, "As OpenAI")
    for path in ("/v1/rerank", "/v2/rerank"):
        post(path, handlers.cohere_rerank, (CohereRerankRequest,), CohereRerankAnswer, "As Cohere, Jina and vLLM")


def _add_reports(app: FastAPI, reports: Reports) -> None:
    pages: dict[str, tuple[Endpoint, str]] = {
        "/health": (reports.health, "Whether real passes have proven the models"),
        "/status": (reports.status, "Models, memory, load, queue, caches"),
        "/info": (reports.info, "As TEI"),
        "/v1/models": (reports.models, "As OpenAI"),
        "/metrics": (reports.metrics, "Prometheus"),
    }
    for path, (endpoint, about) in pages.items():
        app.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            summary=about,
            operation_id=path.strip("/").replace("/", "_"),
            response_class=PlainTextResponse if path == "/metrics" else JSONResponse,  # what the document calls it
        )
    app.add_api_route("/docs", _docs, methods=["GET"], include_in_schema=False)


async def _docs(request: Request) -> Response:
    return Response((Path(__file__).parent / "docs.html").read_bytes(), media_type="text/html")


async def _no_such_path(request: Request, problem: Exception) -> Response:
    dialect = dialect_of(request.scope["path"])
    return error_response(refusal(problem, dialect), dialect)
