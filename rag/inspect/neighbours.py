"""What lies nearest to a text or to a stored passage, by both search routes. Asks the store's own search; knows no screens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_server.errors import EngineError
from gpu_server.interfaces import Embedder, TextKind
from rag.errors import RagError
from rag.inspect.reading import Reader, StoredPassage
from rag.routes import Found, fuse
from rag.types import Passage

NEAR_DUPLICATE = 0.95  # cosine


class Neighbour(NamedTuple):
    """A passage found by a route; `passage.ranks` and `.scores` hold `dense`, `sparse` and `fused`.

    `near_duplicate`: its cosine is at least the one asked for; None where that is not known. `same_text`: letter by letter.
    """

    passage: Passage
    near_duplicate: bool | None
    same_text: bool


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Both routes' finds, `limit` of each, in fused order. A route that was not asked says why (`no_dense`, `no_sparse`).

    `metric` is of the dense scores; only with COSINE are near-duplicates told.
    """

    items: tuple[Neighbour, ...]
    limit: int
    threshold: float
    metric: str
    no_dense: str | None = None
    no_sparse: str | None = None


@dataclass(frozen=True, slots=True)
class _Probe:
    """What is searched with: a vector and a text, or why there is none."""

    text: str
    vector: NDArray[np.float32] | None = None
    sparse: Mapping[int, float] | None = None
    no_dense: str | None = None
    no_sparse: str | None = None


def of_text(
    reader: Reader,
    embedder: Embedder,
    text: str,
    *,
    kind: TextKind = "passage",
    limit: int = 20,
    threshold: float = NEAR_DUPLICATE,
) -> Neighbours:
    """Neighbours of any text, embedded as `kind`. An embedder that fails costs the dense route alone.

    Raises RagError bad_input for an empty text, and where neither route can be asked.
    """
    if not text.strip():
        raise RagError("the text is empty", kind="bad_input", next_step="Type or paste a text.")
    return _search(reader, _probe(reader, embedder, text, kind), limit, threshold, None)


def of_passage(
    reader: Reader, embedder: Embedder, passage_id: str, *, limit: int = 20, threshold: float = NEAR_DUPLICATE
) -> tuple[StoredPassage, Neighbours]:
    """A stored passage and its neighbours without itself: by its stored vector, which needs no embedder, and its indexed text.

    Raises RagError, not_found where the collection has no such passage.
    """
    passage = reader.by_ids([passage_id]).get(passage_id)
    if passage is None:
        raise RagError(
            "this passage is not in the collection",
            kind="not_found",
            next_step="Its document may have been replaced or removed since: choose the document again.",
        )
    vector = reader.vector(passage_id)
    probe = _Probe(passage.indexed, vector, no_dense=None if vector is not None else "the collection has no dense vectors")
    if reader.layout.sparse != "bm25":
        learned = _probe(reader, embedder, passage.indexed, "passage")
        probe = replace(probe, text=learned.text, sparse=learned.sparse, no_sparse=learned.no_sparse)
    return passage, _search(reader, probe, limit, threshold, passage)


def _probe(reader: Reader, embedder: Embedder, text: str, kind: TextKind) -> _Probe:
    """The text embedded, as far as this collection can be searched with this embedder."""
    by_words = reader.layout.sparse == "bm25"
    no_words = None if by_words else "its sparse vectors come from a model that is not in use"
    if reader.layout.sparse is None:
        no_words = "the collection has no sparse vectors"
    try:
        info = embedder.info
        if not reader.filled_by(info):
            reason = f"another embedder filled this collection; vectors of {info.name} mean nothing in it"
            return _Probe(text if by_words else "", None, None, reason, no_words)
        made = embedder.embed([text], kind, caches="bypass")
    except (EngineError, TimeoutError) as problem:
        reason = f"the embedder failed: {getattr(problem, 'message', None) or problem}"
        return _Probe(text if by_words else "", None, None, reason, no_words)
    weights = made.sparse[0] if made.sparse and reader.layout.sparse == "learned" else None
    no_dense = None if reader.layout.dense_field else "the collection has no dense vectors"
    if weights is not None:
        return _Probe(text, made.dense[0], weights, no_dense, None)
    return _Probe(text if by_words else "", made.dense[0], None, no_dense, no_words)


def _search(reader: Reader, probe: _Probe, limit: int, threshold: float, itself: StoredPassage | None) -> Neighbours:
    if probe.no_dense and probe.no_sparse:
        raise RagError(
            f"no route can be asked: {probe.no_dense}; {probe.no_sparse}",
            kind="model",
            address=reader.store.address,
            next_step="Choose a collection that the embedder in use has filled.",
        )
    more = limit if itself is None else limit + 1
    vector = None if probe.no_dense else probe.vector
    found = reader.store.search(reader.name, vector, probe.text, more, sparse=probe.sparse, complete=vector is not None)
    if itself is not None:
        found = _without(found, itself.id)
    metric = reader.layout.metric
    text = itself.text if itself is not None else probe.text
    items = (_neighbour(passage, metric, threshold, text) for passage in fuse(found.cut(limit), 2 * limit))
    return Neighbours(tuple(items), limit, threshold, metric, probe.no_dense, probe.no_sparse)


def _without(found: Found, passage_id: str) -> Found:
    dense, sparse = (tuple(hit for hit in hits if hit.id != passage_id) for hits in (found.dense, found.sparse))
    return replace(found, dense=dense, sparse=sparse)


def _neighbour(passage: Passage, metric: str, threshold: float, text: str) -> Neighbour:
    cosine = passage.scores.get("dense") if metric == "COSINE" else None
    # float32 arithmetic of two equal vectors ends a few units of its last place below 1
    near = None if cosine is None else cosine >= threshold - 1e-6
    return Neighbour(passage, near, passage.text.strip() == text.strip())
