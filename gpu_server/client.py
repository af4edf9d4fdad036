"""Embedder and reranker behind HTTP: the interfaces of `interfaces.py` over our GPU server or any server of a known dialect.

Needs no torch. Vectors that cannot go together with earlier ones, too few of them or too few scores are an error, never a result.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from gpu_server.discovery import Served
from gpu_server.endpoint import Endpoint
from gpu_server.errors import BadInput, EngineError
from gpu_server.interfaces import (
    DENSE_AND_SPARSE,
    CacheMode,
    Embeddings,
    ModelInfo,
    RerankCandidate,
    Scores,
    TextKind,
    Timing,
    VectorKind,
)
from gpu_server.remote_dialects import Rows, embed_body, read_embeddings, read_scores, rerank_body
from gpu_server.remote_server import RemoteServer
from gpu_server.transport import Reply

BATCH_TEXTS = 64
BATCH_BYTES = 1_000_000
SPARSE: frozenset[VectorKind] = frozenset({"sparse"})
IDENTIFY_SECONDS = 2.0  # within a query, before its answer is looked for
INFO_SECONDS = 5.0  # a page that only asks who the model is does not wait for every retry


class RemoteEmbedder:
    """An embedder behind HTTP. Dialects: `auto`, `native` (ours, R0's), `openai` (any OpenAI-compatible endpoint)."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        dialect: Literal["auto", "native", "openai"] = "auto",
        batch_size: int = BATCH_TEXTS,
        query_prompt: str = "",
        passage_prompt: str = "",
    ) -> None:
        """`batch_size` texts a request at most; prompts are put before each text, for models that want them."""
        self.server = RemoteServer("embedder", endpoint, dialect)
        self._batch_size = batch_size
        self._prompts: Mapping[TextKind, str] = {"query": query_prompt, "passage": passage_prompt}

    @property
    def info(self) -> ModelInfo:
        """The model; asks the server where nothing is known yet, with one tiny text where it does not say its dimension."""
        known = self.server.known
        if known is None:
            with self.server.call(runs=False):
                known = self.server.served(time.monotonic() + INFO_SECONDS)
        if known.info.dimension is None:
            self.embed(["dimension"], "query")
            known = self.server.known or known
        return known.info

    @property
    def info_at_once(self) -> bool:
        known = self.server.known
        return known is not None and known.info.dimension is not None

    def embed(
        self,
        texts: Sequence[str],
        kind: TextKind = "passage",
        *,
        vectors: frozenset[VectorKind] = DENSE_AND_SPARSE,
        priority: int = 0,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Embeddings:
        """Dense vectors, and learned sparse weights where the server makes them; never late-interaction vectors.

        More texts than a request may hold go in several, one after the other. The server decides priority by `kind`.
        """
        if not texts:
            raise BadInput("no text was given", next_step="Give at least one.", address=self.server.status.address)
        prompt = self._prompts[kind]
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        with self.server.call():
            served = self.server.served(deadline)
            size = min(self._batch_size, served.max_batch or self._batch_size)
            parts = [self._request(served, share, kind, vectors, deadline, caches) for share in shares(prompted, size)]
        return _joined(parts)

    def _request(
        self,
        served: Served,
        texts: Sequence[str],
        kind: TextKind,
        vectors: frozenset[VectorKind],
        deadline: float | None,
        caches: CacheMode,
    ) -> Embeddings:
        wanted = vectors if served.info.dimension else vectors | SPARSE  # the first answer shows what the model makes
        body = embed_body(served.dialect, texts, kind, wanted, served.model)
        reply = self.server.transport.post(served.url, body, headers=_asked(caches), deadline=deadline)
        rows = read_embeddings(served.dialect, reply.json(), len(texts))
        self.server.learnt(_told(served, reply, rows))
        tokens = reply.number("x-compute-tokens")
        tokens = rows.tokens if tokens is None else tokens
        return Embeddings(
            rows.dense,
            rows.sparse,
            self.server.timing(reply, deadline),
            tokens=sum(map(self.count_tokens, texts)) if tokens is None else tokens,
            truncated=reply.number("x-truncated") or 0,
            cached=reply.number("x-cached") or 0,
        )

    def count_tokens(self, text: str) -> int:
        """An estimate: a token for each four bytes of UTF-8. About right for English and CJK, careful for other scripts."""
        return math.ceil(len(text.encode("utf-8", "replace")) / 4)


class RemoteReranker:
    """A reranker behind HTTP. Dialects: `auto`, `native` (ours, R0's, R2's), `cohere` (also Jina, vLLM, Infinity), `tei`."""

    uses_route_scores = False

    def __init__(self, endpoint: Endpoint, *, dialect: Literal["auto", "native", "cohere", "tei"] = "auto") -> None:
        self.server = RemoteServer("reranker", endpoint, dialect)

    @property
    def info(self) -> ModelInfo:
        """What is known of the model without asking: its name, or where it is, until the first call."""
        known, status = self.server.known, self.server.status
        if known is not None:
            return known.info
        return ModelInfo(status.name, "reranker", status.name, "remote", "unknown", where="http", address=status.address)

    def identify(self) -> str:
        """As the server says, which is asked once; what is known without it where it does not answer in time."""
        with contextlib.suppress(EngineError):
            return self.server.served(time.monotonic() + IDENTIFY_SECONDS).info.identity
        return self.info.identity

    def score(
        self,
        query: str,
        candidates: Sequence[RerankCandidate],
        *,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Scores:
        """Raw scores in candidate order; what a server sends activated is put back through the inverse of the sigmoid."""
        if not candidates:
            return Scores(np.empty(0, dtype=np.float32), Timing())
        with self.server.call():
            served = self.server.served(deadline)
            texts = [candidate.text for candidate in candidates]
            size = served.max_batch or len(texts)
            parts = [self._request(served, query, share, deadline, caches) for share in shares(texts, size)]
        return Scores(
            np.concatenate([part.values for part in parts]),
            Timing.total([part.timing for part in parts]),
            truncated=sum(part.truncated for part in parts),
            tokens=sum(part.tokens for part in parts),
            cached=sum(part.cached for part in parts),
        )

    def _request(self, served: Served, query: str, texts: Sequence[str], deadline: float | None, caches: CacheMode) -> Scores:
        body = rerank_body(served.dialect, query, texts, served.model, served.ours)
        reply = self.server.transport.post(served.url, body, headers=_asked(caches), deadline=deadline)
        values = read_scores(served.dialect, reply.json(), len(texts), served.ours)
        return Scores(
            values,
            self.server.timing(reply, deadline),
            truncated=reply.number("x-truncated") or 0,
            tokens=reply.number("x-compute-tokens") or 0,
            cached=reply.number("x-cached") or 0,
        )


# requests and answers


def _asked(caches: CacheMode) -> dict[str, str]:
    return {"x-ragdeck-caches": caches}


def _told(served: Served, reply: Reply, rows: Rows) -> ModelInfo:
    """`info` with the dimension of an answer, and the identity that the server states or that name and dimension make."""
    info, dimension, stated = served.info, rows.dense.shape[1], reply.headers.get("x-model-identity")
    if info.dimension is not None:
        as_header = info.identity.encode("ascii", "backslashreplace").decode("ascii")
        same = stated is None or stated == as_header
        return replace(info, identity=info.identity if same else str(stated), dimension=dimension)
    name = served.model or rows.model or info.name
    identity = stated or f"{name}-{dimension}"
    return replace(info, name=name, identity=identity, dimension=dimension, learned_sparse=rows.sparse is not None)


def shares(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """`texts` in order, at most `size` and about BATCH_BYTES at a time; a text that is longer goes alone."""
    share: list[str] = []
    room = BATCH_BYTES
    for text in texts:
        length = len(text.encode("utf-8", "replace"))
        if share and (len(share) >= size or length > room):
            yield share
            share, room = [], BATCH_BYTES
        share.append(text)
        room -= length
    yield share


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    if len(parts) == 1:
        return parts[0]
    sparse = [row for part in parts for row in part.sparse or ()]
    return Embeddings(
        np.concatenate([part.dense for part in parts]),
        tuple(sparse) if all(part.sparse is not None for part in parts) else None,
        Timing.total([part.timing for part in parts]),
        tokens=sum(part.tokens for part in parts),
        truncated=sum(part.truncated for part in parts),
        cached=sum(part.cached for part in parts),
    )
