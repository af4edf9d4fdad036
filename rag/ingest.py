"""The ingestion job: files to stored passages, as an iterator of events. Knows the store and the embedder by protocol only.

Passages of several files are embedded together, BATCH at a time, and each file is written once all its passages have
vectors: a file is in the store as a whole or as it was before.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import Embedder, Embeddings
from rag.chunks import passages
from rag.errors import Cancelled, RagError
from rag.loaders import LOADER_VERSION, FileProblem, Found, LoadError, SourceFile, find, parse, printable, read
from rag.types import Event, PassageRow, Problem, StoredDocument

BATCH = 64
FLUSH_PASSAGES = 2000
PROGRESS_SECONDS = 0.25
ENDING_KINDS = ("connection", "held", "authentication")  # no other file would fare better

FileOutcome = Literal["added", "replaced", "unchanged", "failed"]


class PassageStore(Protocol):
    """One collection of a store, open for writing."""

    def documents(self) -> Mapping[str, StoredDocument]:
        """The complete documents by document_id."""
        ...

    def write_document(
        self,
        rows: Sequence[PassageRow],
        vectors: NDArray[np.float32],
        sparse: Sequence[Mapping[int, float]] | None,
        ingested_at: str,
    ) -> None:
        """Write the rows of one document (vectors are [n, d]), row 0 last, then remove its rows of any other content."""
        ...

    def remove_document(self, document_id: str) -> int:
        """Delete a document; returns how many passages went."""
        ...

    def flush(self) -> None: ...


def utc_now() -> datetime:
    return datetime.now(UTC)


def ingest(
    found: Found | Sequence[Path],
    store: PassageStore,
    embedder: Embedder,
    *,
    chunk_tokens: int,
    overlap_tokens: int,
    max_file_bytes: int,
    id_prefix: str = "",
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], datetime] = utc_now,
) -> Iterator[Event]:
    """Read, split, embed and store what is new or changed; `ingest_finished` is always the last event.

    A file that fails is reported in its `file_finished` and the rest goes on. A store or model that is away ends the run:
    `outcome` is then "failed" and `error` says why; what was written stays. `outcome` is else "finished" or "cancelled".
    `clock` gives seconds, monotonic. Raises ValueError for chunk settings that contradict each other.
    """
    if not 0 <= overlap_tokens < chunk_tokens:
        raise ValueError(f"overlap_tokens ({overlap_tokens}) must be less than chunk_tokens ({chunk_tokens}), and not negative")
    settings = _Settings(chunk_tokens, overlap_tokens, max_file_bytes, id_prefix)
    found = found if isinstance(found, Found) else find(found)
    return _Run(store, embedder, settings, cancelled, clock, now).events(found)


@dataclass(frozen=True, slots=True)
class _Settings:
    chunk_tokens: int
    overlap_tokens: int
    max_file_bytes: int
    id_prefix: str

    def document_id(self, path: Path) -> str:
        return hashlib.sha256(self.id_prefix.encode() + bytes(path.resolve())).hexdigest()[:32]

    def content_hash(self, data: bytes) -> str:
        digest = hashlib.sha256(data)
        digest.update(f"|{self.chunk_tokens}|{self.overlap_tokens}|{LOADER_VERSION}".encode())
        return digest.hexdigest()[:16]


@dataclass(slots=True)
class _Document:
    """A file on its way: `complete` once all its rows are known, writable once all of them have vectors."""

    file: SourceFile
    document_id: str
    content_hash: str
    size_bytes: int
    outcome: FileOutcome
    bytes_per_character: float = 0.0
    notes: tuple[str, ...] = ()
    rows: list[PassageRow] = field(default_factory=list)
    dense: list[NDArray[np.float32]] = field(default_factory=list)
    sparse: list[Mapping[int, float]] = field(default_factory=list)
    embedded: int = 0
    bytes_done: float = 0.0
    complete: bool = False
    failed: bool = False

    @property
    def writable(self) -> bool:
        return self.complete and not self.failed and self.embedded == len(self.rows)


class _Ended(Exception):
    """The run cannot go on; `__cause__` is why."""


class _Run:
    def __init__(
        self,
        store: PassageStore,
        embedder: Embedder,
        settings: _Settings,
        cancelled: Callable[[], bool],
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._store, self._embedder, self._settings = store, embedder, settings
        self._cancelled, self._clock, self._now = cancelled, clock, now
        self._queue: deque[tuple[_Document, PassageRow]] = deque()  # passages that wait for vectors
        self._open: list[_Document] = []  # documents that are not written yet
        self._known: Mapping[str, StoredDocument] = {}
        self._counts: dict[str, int] = dict.fromkeys(("added", "replaced", "unchanged", "failed"), 0)
        self._files = self._bytes = self._written = self._unflushed = 0
        self._embedded = self._tokens = self._truncated = 0
        self._bytes_done = self._bytes_worked = 0.0  # worked: without unchanged files, which say nothing of the speed
        self._started = self._progress_at = clock()

    # 1) the run

    def events(self, found: Found) -> Iterator[Event]:
        sizes = [_size(file.path) for file in found.files]
        self._files, self._bytes = len(found.files) + len(found.refused), sum(sizes)
        self._started = self._progress_at = self._clock()
        yield {"type": "ingest_started", "files": self._files, "bytes": self._bytes}
        outcome, error = "finished", None
        try:
            self._known = self._store.documents()
            yield from self._all(found, sizes)
        except Cancelled:
            outcome = "cancelled"
        except Exception as problem:  # whatever ends the run is told in its last event
            outcome, error = "failed", problem.__cause__ if isinstance(problem, _Ended) else problem
        except BaseException:  # the reader closed this iterator, or the process is told to end
            self._flush()
            raise
        flush_error = self._flush()
        if flush_error is not None and error is None:
            outcome, error = "failed", flush_error
        yield self._progress()
        yield self._summary(found, outcome, error)

    def _all(self, found: Found, sizes: Sequence[int]) -> Iterator[Event]:
        for problem in found.refused:
            yield self._refused(problem)
        for file, size in zip(found.files, sizes, strict=True):
            yield from self._file(file, size)
            yield from self._progress_if_due()
        while self._queue:
            yield from self._embed_batch()

    def _check(self) -> None:
        if self._cancelled():
            raise Cancelled("the ingestion was cancelled")

    # 2) one file

    def _file(self, file: SourceFile, size: int) -> Iterator[Event]:
        self._check()
        document = _Document(file, self._settings.document_id(file.path), "", size, "added")
        try:
            data = read(file.path, self._settings.max_file_bytes)
            document.content_hash = self._settings.content_hash(data)
            stored = self._known.get(document.document_id)
            if stored is not None and stored.content_hash == document.content_hash:
                yield self._finished(document, "unchanged", stored.passages)
                return
            document.outcome = "replaced" if stored else "added"
            rows = self._rows(document, data)
            while (row := next(rows, None)) is not None:
                document.rows.append(row)
                self._queue.append((document, row))
                if len(self._queue) >= BATCH:
                    yield from self._embed_batch()
                    if document.failed:
                        return
        except (Cancelled, _Ended):
            raise
        except Exception as problem:
            yield self._failed(document, problem)
            return
        document.complete = True
        yield from self._write_ready()

    def _rows(self, document: _Document, data: bytes) -> Iterator[PassageRow]:
        """Parse and split; raises LoadError when nothing comes of it."""
        loaded = parse(data, document.file.path)
        document.notes = loaded.notes
        document.bytes_per_character = document.size_bytes / sum(len(section.text) for section in loaded.sections)
        self._open.append(document)
        yield from passages(
            loaded,
            document.document_id,
            document.file.source,
            document.content_hash,
            self._embedder.count_tokens,
            self._settings.chunk_tokens,
            self._settings.overlap_tokens,
        )

    # 3) embed and write

    def _embed_batch(self) -> Iterator[Event]:
        """Embed the next BATCH passages; where that fails, each document's share alone, so that one cannot spoil the others."""
        self._check()
        batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        problem = self._try_embed(batch)
        if problem is not None:
            documents = list({id(document): document for document, _ in batch}.values())
            for document in documents:
                share = [item for item in batch if item[0] is document]
                own = problem if len(documents) == 1 else self._try_embed(share)
                if own is not None:
                    yield self._failed(document, own)
        yield from self._write_ready()
        yield from self._progress_if_due()

    def _try_embed(self, batch: Sequence[tuple[_Document, PassageRow]]) -> Exception | None:
        try:
            result = self._embed(batch)
        except Exception as problem:  # embedders of any maker
            self._end_if_away(problem)
            return problem
        self._keep(batch, result)
        return None

    def _embed(self, batch: Sequence[tuple[_Document, PassageRow]]) -> Embeddings:
        result = self._embedder.embed([row.indexed_text for _, row in batch], "passage")
        if len(result.dense) != len(batch) or (result.sparse is not None and len(result.sparse) != len(batch)):
            raise RagError(f"the embedder gave {len(result.dense)} vectors for {len(batch)} passages", kind="bad_answer")
        if not np.isfinite(result.dense).all():
            raise RagError("the embedder gave a vector that is not finite", kind="bad_answer", next_step="Try precision fp32.")
        return result

    def _keep(self, batch: Sequence[tuple[_Document, PassageRow]], result: Embeddings) -> None:
        for index, (document, row) in enumerate(batch):
            document.dense.append(result.dense[index])
            if result.sparse is not None:
                document.sparse.append(result.sparse[index])
            document.embedded += 1
            # overlaps count twice and whitespace not at all: never more than the file has
            share = min(len(row.text) * document.bytes_per_character, document.size_bytes - document.bytes_done)
            self._advance(document, share)
        self._embedded += len(batch)
        self._tokens += result.tokens
        self._truncated += result.truncated

    def _write_ready(self) -> Iterator[Event]:
        for document in [document for document in self._open if document.writable]:
            try:
                if not document.rows:
                    raise LoadError(printable(document.file.path.name), "holds no words", "Remove it or give it a text.")
                written_at = self._now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                sparse = document.sparse if document.sparse else None
                self._store.write_document(document.rows, np.stack(document.dense), sparse, written_at)
            except Exception as problem:
                yield self._failed(document, problem)
                continue
            self._written += len(document.rows)
            self._unflushed += len(document.rows)
            yield self._finished(document, document.outcome, len(document.rows))
            flush_error = self._flush() if self._unflushed >= FLUSH_PASSAGES else None
            if flush_error is not None:
                raise _Ended from flush_error

    def _flush(self) -> Exception | None:
        """Flush what was written since the last time; a failure comes back, since the run's own error matters more."""
        if self._unflushed == 0:
            return None
        try:
            self._store.flush()
        except Exception as problem:
            return problem
        self._unflushed = 0
        return None

    def _end_if_away(self, problem: Exception) -> None:
        """Raise where the fault is not this file's: the store or the model is away, or the job is cancelled."""
        if isinstance(problem, Cancelled):
            raise problem
        if isinstance(problem, ConnectionError) or getattr(problem, "kind", None) in ENDING_KINDS:
            raise _Ended from problem

    # 4) events

    def _failed(self, document: _Document, problem: Exception) -> Event:
        self._end_if_away(problem)
        document.failed = True
        self._queue = deque(item for item in self._queue if item[0] is not document)
        return self._finished(document, "failed", 0, problem)

    def _finished(self, document: _Document, outcome: FileOutcome, passages: int, problem: Exception | None = None) -> Event:
        self._counts[outcome] += 1
        self._advance(document, document.size_bytes - document.bytes_done, worked=outcome != "unchanged")
        self._open = [item for item in self._open if item is not document]
        return _file_finished(document.file.source, outcome, passages, document.notes, _problem(problem) if problem else None)

    def _refused(self, problem: FileProblem) -> Event:
        self._counts["failed"] += 1
        error = asdict(Problem(None, "bad_input", problem.message, problem.source, problem.next_step))
        return _file_finished(problem.source, "failed", 0, (), error)

    def _advance(self, document: _Document, share: float, worked: bool = True) -> None:
        document.bytes_done += share
        self._bytes_done += share
        self._bytes_worked += share if worked else 0

    def _progress_if_due(self) -> Iterator[Event]:
        if self._clock() - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = self._clock()
            yield self._progress()

    def _progress(self) -> Event:
        seconds = self._clock() - self._started
        left = max(0, self._bytes - round(self._bytes_done))
        known = self._bytes_worked > 0 or left == 0
        return {
            "type": "progress",
            "files_done": sum(self._counts.values()),
            "files": self._files,
            "passages": self._embedded,
            "tokens": self._tokens,
            "bytes_done": round(self._bytes_done),
            "bytes": self._bytes,
            "passages_per_second": self._embedded / seconds if seconds > 0 else None,
            "seconds": seconds,
            "seconds_left": (seconds * left / self._bytes_worked if left else 0.0) if known else None,
        }

    def _summary(self, found: Found, outcome: str, error: BaseException | None) -> Event:
        seconds = self._clock() - self._started
        return {
            "type": "ingest_finished",
            "outcome": outcome,
            "files": self._files,
            **self._counts,
            "skipped": sum(item.count for item in found.skipped),
            "skipped_reasons": [asdict(item) for item in found.skipped],
            "not_done": self._files - sum(self._counts.values()),
            "passages": self._written,
            "tokens": self._tokens,
            "truncated": self._truncated,
            "seconds": seconds,
            "passages_per_second": self._written / seconds if seconds > 0 else None,
            "error": _problem(error) if error else None,
        }


def _file_finished(
    source: str, outcome: FileOutcome, passages: int, notes: tuple[str, ...], error: dict[str, object] | None
) -> Event:
    return {
        "type": "file_finished",
        "source": source,
        "outcome": outcome,
        "passages": passages,
        "notes": list(notes),
        "error": error,
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told when the file is read
        return 0


def _problem(problem: BaseException) -> dict[str, object]:
    """A `Problem` as JSON; errors of other trees keep their kind, address and next step where they have them."""
    kind = "connection" if isinstance(problem, ConnectionError) else getattr(problem, "kind", "internal")
    message = str(problem) or type(problem).__name__
    return asdict(Problem(None, str(kind), message, getattr(problem, "address", None), getattr(problem, "next_step", "")))
