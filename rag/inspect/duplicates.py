"""Near-duplicate passages of a collection: every pair of vectors compared, in blocks. Knows nothing of models or screens."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rag.errors import RagError
from rag.inspect.reading import Reader
from rag.types import Event

MOST_PASSAGES = 20_000  # compared in about 200 billion multiplications at 384 dimensions: seconds on two cores
MOST_VECTOR_BYTES = 256 * 2**20
BLOCK_ROWS = 512


class Group(NamedTuple):
    """Passages of which each has another of the group at least as near as the threshold; the first was read first.

    `nearest` is each one's highest cosine within the group.
    """

    ids: tuple[str, ...]
    nearest: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The groups, largest first, of `compared` passages out of `total`."""

    groups: tuple[Group, ...]
    threshold: float
    compared: int
    total: int
    seconds: float

    @property
    def spare(self) -> int:
        """Passages that would go if each group kept one."""
        return sum(len(group.ids) - 1 for group in self.groups)


def scan(
    reader: Reader,
    threshold: float,
    *,
    most: int = MOST_PASSAGES,
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, Duplicates]:
    """Compare the first `most` passages of the collection, each with each. Yields `progress {part, done, total}`.

    Reads at most MOST_VECTOR_BYTES of vectors. When `cancelled`, what was compared so far counts. Raises RagError.
    """
    if reader.layout.dense_field is None or reader.layout.dimension is None:
        raise RagError("the collection has no dense vectors", kind="bad_input", next_step="Choose another collection.")
    if not 0 < threshold <= 1:
        raise RagError(f"the cosine is {threshold}", kind="bad_input", next_step="Choose one above 0 and at most 1.")
    started, total = clock(), reader.count()
    most = min(most, total, MOST_VECTOR_BYTES // (4 * reader.layout.dimension))
    ids: list[str] = []
    vectors = np.empty((most, reader.layout.dimension), dtype=np.float32)
    for page_ids, page in reader.vector_pages(most):
        vectors[len(ids) : len(ids) + len(page)] = page
        ids += page_ids
        yield {"type": "progress", "part": "read", "done": len(ids), "total": most}
        if cancelled():
            break
    compared = 0
    links = Links(vectors[: len(ids)], threshold)
    for compared in links.compare():
        yield {"type": "progress", "part": "compared", "done": compared, "total": len(ids)}
        if cancelled():
            break
    groups = tuple(Group(tuple(ids[row] for row in rows), tuple(nearest)) for rows, nearest in links.groups())
    return Duplicates(groups, threshold, compared, total, clock() - started)


class Links:
    """Which of n vectors hang together by cosines of at least the threshold: connected components, no list of pairs kept.

    n equal vectors have n² / 2 pairs; memory here stays n labels and one block of cosines.
    """

    def __init__(self, vectors: NDArray[np.float32], threshold: float) -> None:
        """`vectors` is float32 [n, dimension], of any length; a vector of zeros is like no other."""
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._unit = vectors / np.where(norms > 0, norms, 1.0)
        self._threshold = threshold - 1e-6  # equal vectors come out a few units of float32's last place below 1
        self._labels = np.arange(len(vectors))
        self._nearest = np.full(len(vectors), -1.0, dtype=np.float32)

    def compare(self, block_rows: int = BLOCK_ROWS) -> Iterator[int]:
        """Compare block by block with all that come later; yields how many vectors are through."""
        count = len(self._unit)
        for start in range(0, count, block_rows):
            end = min(count, start + block_rows)
            cosines = self._unit[start:end] @ self._unit[start:].T
            cosines[np.tril_indices(end - start)] = -1.0  # itself, and pairs that were seen from the other side
            hits = cosines >= self._threshold
            self._note_nearest(np.where(hits, cosines, -1.0), start, end)
            for row in np.flatnonzero(hits.any(axis=1)):
                self._join(start + int(row), start + np.flatnonzero(hits[row]))
            yield end

    def _note_nearest(self, cosines: NDArray[np.float32], start: int, end: int) -> None:
        self._nearest[start:end] = np.maximum(self._nearest[start:end], cosines.max(axis=1))
        self._nearest[start:] = np.maximum(self._nearest[start:], cosines.max(axis=0))

    def _join(self, row: int, others: NDArray[np.intp]) -> None:
        labels = self._labels[others]
        if (labels != self._labels[row]).any():  # n equal vectors are joined once, not n times
            together = np.unique(np.append(labels, self._labels[row]))
            self._labels[np.isin(self._labels, together)] = together[0]

    def groups(self) -> list[tuple[list[int], list[float]]]:
        """Rows and their highest cosines by group of two and more, the largest first, then in order of the first row."""
        linked = np.flatnonzero(self._nearest > -1.0)
        order = linked[np.argsort(self._labels[linked], kind="stable")]
        _, starts = np.unique(self._labels[order], return_index=True)
        parts = np.split(order, starts[1:]) if len(order) else []
        found = [([int(row) for row in part], [min(1.0, float(value)) for value in self._nearest[part]]) for part in parts]
        return sorted(found, key=lambda group: (-len(group[0]), group[0][0]))
