"""The two search routes of one query, dense and sparse, and their fusion. Speaks to a Milvus client that it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rag.milvus_terms import literal
from rag.types import Passage

RRF_K = 60  # Cormack, Clarke & Büttcher 2009
PASSAGE_FIELDS = ["text", "source", "title", "location", "language", "document_id"]


@dataclass(frozen=True, slots=True)
class FieldMapping:
    """How an existing collection, filled by somebody else, is read: which field is what, and the metrics of its indexes."""

    collection: str
    text_field: str
    dense_field: str | None = None
    sparse_field: str | None = None
    source_field: str | None = None
    title_field: str | None = None
    location_field: str | None = None
    dense_metric: str = "COSINE"
    sparse_metric: str = "IP"


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage found by a route: raw score, higher is better."""

    id: str
    score: float
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What the search brought: hits of each route, best first, and completed scores of candidates the route missed.

    `round_trips` counts the sequential calls made, for the network estimate. `open_seconds` went to loading the collection, which
    the server had released.
    """

    dense: tuple[Hit, ...]
    sparse: tuple[Hit, ...]
    completed: Mapping[str, Mapping[str, float]]
    round_trips: int
    open_seconds: float = 0.0

    def cut(self, limit: int) -> Found:
        """What a search for only `limit` hits a route would have brought; scores of the rest count as completed."""
        completed = {
            route: {**self.completed[route], **{hit.id: hit.score for hit in hits[limit:]}}
            for route, hits in (("dense", self.dense), ("sparse", self.sparse))
        }
        return Found(self.dense[:limit], self.sparse[:limit], completed, self.round_trips)


class Routes:
    """The two searches of one query against one collection, in its own field names."""

    def __init__(
        self,
        client: Any,
        name: str,
        mapping: FieldMapping | None,
        vector: NDArray[np.float32] | None,
        text: str,
        sparse: Mapping[int, float] | None,
        timeout: float,
    ) -> None:
        self._client, self._name, self._timeout = client, name, timeout
        self._vector, self._text, self._sparse = vector, text, sparse
        self._mapping = mapping
        self._fields = PASSAGE_FIELDS if mapping is None else _mapped_fields(mapping)
        self._dense_field = "dense" if mapping is None else mapping.dense_field
        self._sparse_field = "sparse" if mapping is None else mapping.sparse_field
        self._dense_metric = "COSINE" if mapping is None else mapping.dense_metric

    def dense(self, limit: int, ids: Sequence[str] | None = None) -> tuple[Hit, ...]:
        if self._vector is None or self._dense_field is None or limit == 0:
            return ()
        sign = -1.0 if self._dense_metric == "L2" else 1.0  # a distance: smaller is better
        return self._hits(self._dense_field, self._vector.tolist(), limit, ids, sign)

    def sparse(self, limit: int, ids: Sequence[str] | None = None) -> tuple[Hit, ...]:
        if self._sparse_field is None or limit == 0:
            return ()
        by_text = self._sparse is None
        if self._mapping is not None and by_text and self._mapping.sparse_metric != "BM25":
            return ()  # the collection wants learned weights that this embedder does not make
        if not by_text and not self._sparse or by_text and not re.search(r"\w", self._text):
            return ()
        hits = self._hits(self._sparse_field, self._text if by_text else dict(self._sparse or {}), limit, ids, 1.0)
        # Milvus Lite 3.2 gives BM25 as a negative distance, the server as a positive score; no BM25 score is below 0
        return tuple(Hit(hit.id, abs(hit.score), hit.fields) for hit in hits) if by_text else hits

    def _hits(self, field: str, data: Any, limit: int, ids: Sequence[str] | None, sign: float) -> tuple[Hit, ...]:
        expression = f"id in {literal(list(ids))}" if ids is not None else ""
        rows = self._client.search(
            self._name,
            data=[data],
            anns_field=field,
            limit=limit,
            filter=expression,
            output_fields=[] if ids is not None else self._fields,
            timeout=self._timeout,
        )[0]
        return tuple(Hit(_primary_key(row), sign * float(row["distance"]), self._named(row.get("entity") or {})) for row in rows)

    def _named(self, entity: Mapping[str, Any]) -> dict[str, Any]:
        mapping = self._mapping
        if mapping is None:
            return dict(entity)
        source = str(entity.get(mapping.source_field, "")) if mapping.source_field else mapping.collection
        return {
            "text": str(entity.get(mapping.text_field, "")),
            "source": source,
            "title": str(entity.get(mapping.title_field, "")) if mapping.title_field else source,
            "location": str(entity.get(mapping.location_field, "")) if mapping.location_field else None,
        }


def _primary_key(row: Mapping[str, Any]) -> str:
    if "id" in row:
        return str(row["id"])
    return str(next(value for key, value in row.items() if key not in ("distance", "entity")))


def _mapped_fields(mapping: FieldMapping) -> list[str]:
    fields = (mapping.text_field, mapping.source_field, mapping.title_field, mapping.location_field)
    return [field for field in fields if field]


def fuse(found: Found, limit: int) -> tuple[Passage, ...]:
    """Candidates by reciprocal rank fusion, sum of 1 / (60 + rank) over the routes, best first, at most `limit`.

    Each keeps its rank and raw score by route; a rank is None where the route did not find it.
    """
    hits = {hit.id: hit for hit in (*found.sparse, *found.dense)}
    dense_ranks = {hit.id: rank for rank, hit in enumerate(found.dense, 1)}
    sparse_ranks = {hit.id: rank for rank, hit in enumerate(found.sparse, 1)}
    dense_scores = {**found.completed["dense"], **{hit.id: hit.score for hit in found.dense}}
    sparse_scores = {**found.completed["sparse"], **{hit.id: hit.score for hit in found.sparse}}
    fused = {key: 1 / (RRF_K + rank) for key, rank in dense_ranks.items()}
    for key, rank in sparse_ranks.items():
        fused[key] = fused.get(key, 0.0) + 1 / (RRF_K + rank)
    best = sorted(fused, key=lambda key: (-fused[key], dense_ranks.get(key, limit + 1), key))[:limit]
    return tuple(
        _passage(
            hits[key],
            {"dense": dense_ranks.get(key), "sparse": sparse_ranks.get(key), "fused": rank, "rerank": None},
            {"dense": dense_scores.get(key), "sparse": sparse_scores.get(key), "fused": fused[key], "rerank": None},
        )
        for rank, key in enumerate(best, 1)
    )


def _passage(hit: Hit, ranks: Mapping[str, int | None], scores: Mapping[str, float | None]) -> Passage:
    field = hit.fields.get
    return Passage(
        hit.id,
        str(field("text", "")),
        str(field("source", "")),
        str(field("title", "")),
        field("location") or None,
        field("language") or None,
        field("document_id") or None,
        False,
        ranks,
        scores,
    )
