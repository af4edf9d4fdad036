"""Rows of a collection as they lie there, vectors included: listed, fetched, written, compared. Any layout.

Knows nothing of documents. A collection that is not loaded is loaded first: Milvus reads no other.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from rag.errors import RagError
from rag.milvus_terms import literal
from rag.store import Store
from rag.store_care import layout
from rag.store_care.layout import Layout

T = TypeVar("T")
Row = dict[str, Any]
Key = str | int
PAGE = 2000
BATCH = 256
SAMPLE, SEARCHES, BEST = 64, 8, 10
SCORE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Source:
    """A collection to read from."""

    store: Store
    name: str
    layout: Layout

    @classmethod
    def open(cls, store: Store, name: str) -> Source:
        """Raises RagError not_found where there is no such collection."""
        store.open()
        with store.mapped(f"read the collection {name}"):
            if not store.client.has_collection(name, timeout=store.timeout):
                raise RagError(
                    f"there is no collection {name!r}",
                    kind="not_found",
                    address=store.address,
                    next_step="The page Knowledge lists the collections that are there.",
                )
            found = layout.read(store.client, name, store.timeout)
            store.client.load_collection(name, timeout=max(60.0, store.timeout))
        return cls(store, name, found)

    def pages(self, fields: Sequence[str], expression: str = "") -> Iterator[list[Row]]:
        """Every row's `fields`, some thousand at a time, in the order of the primary key."""
        with self.store.mapped(f"read the collection {self.name}"):
            pages = self.store.client.query_iterator(
                self.name, filter=expression, output_fields=list(fields), batch_size=PAGE, timeout=max(60.0, self.store.timeout)
            )
            try:
                while page := pages.next():
                    yield [dict(row) for row in page]
            finally:
                pages.close()

    def keys(self) -> set[Key]:
        """The primary keys of all rows: about 100 bytes of memory each."""
        primary = self.layout.primary
        return {row[primary] for page in self.pages([primary]) for row in page}

    def fetch(self, keys: Sequence[Key]) -> list[Row]:
        """The rows of these keys that are still there, as they can be written again."""
        if not keys:
            return []
        primary, fields = self.layout.primary, [*self.layout.stored, *(["*"] if self.layout.dynamic else [])]
        with self.store.mapped(f"read the collection {self.name}"):
            found = self.store.client.query(
                self.name, filter=_among(primary, keys), output_fields=fields, timeout=max(60.0, self.store.timeout)
            )
        known = {row[primary]: dict(row) for row in found}
        computed = {name for field in self.layout.functions for name in field["outputs"]}
        return [{key: known[one][key] for key in known[one] if key not in computed} for one in keys if one in known]

    def delete(self, keys: Sequence[Key]) -> None:
        for batch in batches(sorted(keys, key=str), BATCH):
            with self.store.exclusive(), self.store.mapped(f"remove rows of {self.name}"):
                wait = max(60.0, self.store.timeout)
                self.store.client.delete(self.name, filter=_among(self.layout.primary, batch), timeout=wait)

    def write(self, rows: Sequence[Row]) -> None:
        """Upsert rows of the same layout."""
        if not rows:
            return
        with self.store.exclusive(), self.store.mapped(f"write to {self.name}"):
            self.store.client.upsert(self.name, list(rows), timeout=max(60.0, self.store.timeout))

    def settle(self) -> None:
        """Seal what was written and load it."""
        with self.store.exclusive(), self.store.mapped(f"flush {self.name}"):
            self.store.client.flush(self.name, timeout=max(120.0, self.store.timeout))
            self.store.client.load_collection(self.name, timeout=max(120.0, self.store.timeout))

    def count(self) -> int:
        """Rows that a search can find now."""
        with self.store.mapped(f"count the rows of {self.name}"):
            wait = max(60.0, self.store.timeout)
            return int(self.store.client.query(self.name, filter="", output_fields=["count(*)"], timeout=wait)[0]["count(*)"])


def _among(primary: str, keys: Sequence[Key]) -> str:
    listed = literal(list(keys)) if keys and isinstance(keys[0], str) else json.dumps(list(keys))  # type: ignore[arg-type]
    return f"{primary} in {listed}"


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


class Pace:
    """Progress of a known amount of rows, as events: how many, how many a second, how long still."""

    def __init__(self, doing: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._doing, self._total, self._clock = doing, total, clock
        self._started, self._done = clock(), 0

    def event(self, more: int = 0) -> dict[str, Any]:
        self._done += more
        spent = self._clock() - self._started
        rate = self._done / spent if spent > 0 and self._done else None
        left = (self._total - self._done) / rate if rate else None
        return {
            "type": "store_progress",
            "doing": self._doing,
            "done": self._done,
            "total": self._total,
            "rows_per_second": rate,
            "seconds_left": left,
        }


def sample(keys: Iterable[Key], size: int = SAMPLE) -> list[Key]:
    """The same of the same keys each time."""
    ordered = sorted(keys, key=str)
    return random.Random(len(ordered)).sample(ordered, min(size, len(ordered)))


def verify_copy(source: Source, target: Source, keys: set[Key]) -> dict[str, Any]:
    """Compare counts, a sample of rows with their vectors, and what the sample's vectors find. Raises RagError where they differ.

    Searches are compared by the scores of their ten best, for an index of a server may be approximate and rows may tie.
    """
    count = target.count()
    if count != len(keys):
        raise differ(target, f"{count:,} rows arrived of {len(keys):,}")
    chosen = sample(keys)
    ours, theirs = source.fetch(chosen), target.fetch(chosen)
    for one, other in zip(ours, theirs, strict=True):
        field = differing(one, other, source.layout)
        if field is not None:
            raise differ(target, f"row {one[source.layout.primary]}: {field} is not the same")
    agreeing, asked = 0, 0
    for field in source.layout.dense:
        for row in ours[:SEARCHES]:
            asked += 1
            agreeing += bool(np.allclose(best(source, field, row[field]), best(target, field, row[field]), atol=SCORE_TOLERANCE))
    if agreeing < asked - asked // SEARCHES:  # one in eight may miss a neighbour
        raise differ(target, f"{asked - agreeing} of {asked} searches found something else")
    return {"rows": count, "rows_compared": len(ours), "searches_compared": asked, "searches_equal": agreeing}


def differ(target: Source, what: str) -> RagError:
    return RagError(
        f"the copy {target.name} is not the original: {what}",
        kind="bad_answer",
        address=target.store.address,
        next_step="Run the command again: it goes on where it stopped. If that does not help, drop the copy and start anew.",
    )


def differing(one: Row, other: Row, shape: Layout) -> str | None:
    """The first field in which two rows are not the same; vectors may differ in the last bits of float32."""
    for name in shape.stored:
        if name in shape.dense:
            if not np.allclose(np.asarray(one[name]), np.asarray(other[name]), rtol=1e-5, atol=1e-6):
                return name
        elif name in shape.sparse:
            if {int(key) for key in one[name]} != {int(key) for key in other[name]}:
                return name
        elif one.get(name) != other.get(name):
            return name
    return None


def best(source: Source, field: str, vector: Any) -> list[float]:
    """Scores of the ten nearest."""
    with source.store.mapped(f"search {source.name}"):
        found = source.store.client.search(
            source.name, data=[vector], anns_field=field, limit=BEST, output_fields=[], timeout=max(60.0, source.store.timeout)
        )[0]
    scores = [float(hit["distance"]) for hit in found]
    return scores + [0.0] * (BEST - len(scores))
