"""One collection, read only and in pages: its documents' passages, passages by id, vectors. Knows nothing of models or screens.

Every call has the store's timeout and raises RagError. A collection that a server has released from its memory is loaded: there
is no other way to read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import ModelInfo
from rag.errors import RagError
from rag.milvus_terms import is_released, literal
from rag.routes import FieldMapping
from rag.store import DOCUMENT_FIELDS, Store
from rag.types import StoredDocument

OVERLAP_CHARS = 12  # two texts that end and begin with fewer letters alike do so by chance
PAGE_ROWS = 500
_OURS = ["id", "document_id", "position", "text", "indexed", "title", "source", "location", "language"]


class StoredPassage(NamedTuple):
    """A passage as it lies in the store. `indexed` is the text that was embedded and is searched: title and heading, then text.

    In a collection of somebody else's `indexed` is the text, and document and position are None.
    """

    id: str
    text: str
    indexed: str
    title: str
    source: str
    document_id: str | None = None
    position: int | None = None
    location: str | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Which field of the collection is what. `metric` is the dense index's; only COSINE and normalised IP compare as cosines."""

    ours: bool
    id_field: str
    id_is_text: bool
    fields: tuple[str, ...]
    dense_field: str | None
    dimension: int | None
    metric: str
    sparse: Literal["bm25", "learned"] | None


class Reader:
    """A collection by its full name. Made for one look: holds no more than the layout."""

    def __init__(self, store: Store, name: str) -> None:
        """Opens the store and loads the collection. Raises RagError, not_found where there is no such collection."""
        self.store, self.name = store, name
        self._mapping = store.mapping
        if self._mapping is not None and name != self._mapping.collection:
            raise RagError(
                f"only the collection of milvus.mapping, {self._mapping.collection!r}, can be looked into",
                kind="bad_input",
                address=store.address,
                next_step="Remove milvus.mapping from the settings to look into the others.",
            )
        store.open()
        with store.mapped("open the collection"):
            if not store.client.has_collection(name, timeout=store.timeout):
                raise RagError(
                    f"there is no collection {name!r}",
                    kind="not_found",
                    address=store.address,
                    next_step="Choose one of those that the page Knowledge lists.",
                )
            self.layout = _layout(store.describe(name), self._mapping)
        if not store.is_open(name):
            self._load()

    def filled_by(self, embedder: ModelInfo) -> bool:
        """Whether its vectors are this embedder's: by the identity in its name, or by dimension where others filled it."""
        if self._mapping is not None:
            return self.layout.dimension == embedder.dimension
        return self.name == self.store.collection_name(embedder, base_name(self.name))

    def count(self) -> int:
        """Passages in the collection."""
        return self.store.count(self.name)

    def document(self, document_id: str) -> StoredDocument | None:
        """The document's record; None where the collection has no such document. Of two records the newer counts."""
        if not self.layout.ours:
            return None
        rows = self._query(f"document_id == {literal(document_id)} and position == 0", DOCUMENT_FIELDS, 16)
        newest = max(rows, key=lambda row: str(row["ingested_at"]), default=None)
        if newest is None:
            return None
        return StoredDocument(**{**{key: newest[key] for key in DOCUMENT_FIELDS}, "language": newest["language"] or None})

    def passages(self, document: StoredDocument, first: int, count: int) -> tuple[StoredPassage, ...]:
        """The document's passages at positions `first` to `first + count - 1`, in order: never the whole of a long document."""
        last = first + count
        expression = f"document_id == {literal(document.document_id)} and position >= {first} and position < {last}"
        # while a document is replaced its old and new passages lie side by side
        expression += f" and content_hash == {literal(document.content_hash)}"
        rows = self._query(expression, _OURS, count)
        return tuple(self._passage(row) for row in sorted(rows, key=lambda row: int(row["position"])))

    def every_passage(self, document: StoredDocument) -> Iterator[StoredPassage]:
        """All passages of a document in order, read in pages."""
        for first in range(0, document.passages, PAGE_ROWS):
            yield from self.passages(document, first, PAGE_ROWS)

    def by_ids(self, ids: Sequence[str]) -> dict[str, StoredPassage]:
        """Passages by id; those that are not there are left out."""
        found: dict[str, StoredPassage] = {}
        fields = _OURS if self.layout.ours else list(self.layout.fields)
        for start in range(0, len(ids), PAGE_ROWS):
            page = ids[start : start + PAGE_ROWS]
            rows = self._query(self._is_one_of(page), fields, len(page))
            found |= {passage.id: passage for passage in (self._passage(row) for row in rows)}
        return found

    def vector(self, passage_id: str) -> NDArray[np.float32] | None:
        """The stored dense vector, float32 [dimension]; None where there is no such passage or no dense field."""
        field = self.layout.dense_field
        if field is None:
            return None
        rows = self._query(self._is_one_of([passage_id]), [field], 1)
        return np.asarray(rows[0][field], dtype=np.float32) if rows else None

    def vector_pages(self, most: int) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Ids and dense vectors, float32 [rows, dimension], a page at a time, until `most` passages were read."""
        field, key = self.layout.dense_field, self.layout.id_field
        if field is None:
            return
        with self.store.mapped("read the vectors"):
            pages = self.store.client.query_iterator(
                self.name, filter="", output_fields=[key, field], batch_size=PAGE_ROWS, timeout=self.store.timeout, limit=most
            )
        try:
            while most > 0:
                with self.store.mapped("read the vectors"):
                    rows = pages.next()[:most]
                if not rows:
                    return
                most -= len(rows)
                yield [str(row[key]) for row in rows], np.asarray([row[field] for row in rows], dtype=np.float32)
        finally:
            pages.close()

    def _is_one_of(self, ids: Sequence[str]) -> str:
        field = self.layout.id_field
        if self.layout.id_is_text:
            return f"{field} in {literal(list(ids))}"
        return f"{field} in {[int(item) for item in ids if item.lstrip('-').isdigit()]}"

    def _query(self, expression: str, fields: list[str], limit: int) -> list[dict[str, Any]]:
        try:
            return self._rows(expression, fields, limit)
        except RagError as problem:  # a server may release a collection that was loaded a moment ago
            if not is_released(problem.message):
                raise
        self._load()
        return self._rows(expression, fields, limit)

    def _load(self) -> None:
        with self.store.mapped("load the collection"):
            self.store.client.load_collection(self.name, timeout=max(30.0, self.store.timeout))

    def _rows(self, expression: str, fields: list[str], limit: int) -> list[dict[str, Any]]:
        with self.store.mapped("read the passages"):
            rows = self.store.client.query(
                self.name, filter=expression, output_fields=fields, limit=max(1, limit), timeout=self.store.timeout
            )
            return [dict(row) for row in rows]

    def _passage(self, row: dict[str, Any]) -> StoredPassage:
        mapping, key = self._mapping, str(row[self.layout.id_field])
        if mapping is None:
            return StoredPassage(
                **{name: row[name] for name in _OURS} | {name: row[name] or None for name in ("location", "language")}
            )
        text = str(row.get(mapping.text_field, ""))
        source = str(row.get(mapping.source_field, "")) if mapping.source_field else mapping.collection
        title = str(row.get(mapping.title_field, "")) if mapping.title_field else source
        location = str(row.get(mapping.location_field) or "") if mapping.location_field else ""
        return StoredPassage(key, text, text, title, source, location=location or None)


def base_name(collection: str) -> str:
    """The collection's name without the embedder's identity, as `Options.collection` takes it."""
    return collection.rpartition("__")[0] or collection


def overlap_chars(before: str, text: str) -> int:
    """How many characters the end of `before` and the beginning of `text` share: what neighbouring passages have in common."""
    start = before.find(text[:OVERLAP_CHARS]) if len(text) >= OVERLAP_CHARS else -1
    while start >= 0:
        if text.startswith(before[start:]):
            return len(before) - start
        start = before.find(text[:OVERLAP_CHARS], start + 1)
    return 0


def _layout(description: dict[str, Any], mapping: FieldMapping | None) -> Layout:
    fields: dict[str, dict[str, Any]] = {field["name"]: field for field in description["fields"]}
    key = next((name for name, field in fields.items() if field.get("is_primary")), "id")
    is_text = "max_length" in (fields.get(key, {}).get("params") or {})
    dense: str | None
    sparse: Literal["bm25", "learned"] | None
    if mapping is not None:
        names = (mapping.text_field, mapping.source_field, mapping.title_field, mapping.location_field)
        wanted = tuple(name for name in (key, *names) if name)
        dense, metric = mapping.dense_field, mapping.dense_metric
        sparse = None if mapping.sparse_field is None else "bm25" if mapping.sparse_metric == "BM25" else "learned"
    elif {*_OURS, "dense", "sparse"} <= fields.keys():
        wanted, dense, metric = tuple(_OURS), "dense", "COSINE"
        sparse = "bm25" if description.get("functions") else "learned"
    else:
        raise RagError(
            f"the collection {description.get('collection_name')!r} was not made by this program",
            kind="bad_input",
            next_step="Describe its fields in milvus.mapping to look into it and search it.",
        )
    size = (fields.get(dense or "", {}).get("params") or {}).get("dim")
    return Layout(mapping is None, key, is_text, wanted, dense, int(size) if size else None, metric, sparse)
