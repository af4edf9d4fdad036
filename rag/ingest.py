"""The ingestion job: files to stored passages, as an iterator of events. Knows the store and the embedder by protocol only.

Three things go on beside each other: a thread reads and splits (`rag.ingest_reading`), IN_FLIGHT requests are with the embedder,
and the caller's thread writes. Passages of several files are embedded together, and each file is written once all its passages
have vectors: a file is in the store as a whole or as it was before.

The same text under another path is stored once. The second file's outcome is `duplicate`, its note names the first; passages
that it had before leave. It stays a file like any other: when the first one is removed or changed, the next run takes the
second one in. Only whole documents are compared, by the hash of their normalised text, which is part of the `content_hash`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import Embedder, Embeddings
from rag.errors import Cancelled, RagError
from rag.ingest_progress import Meter, file_finished, problem_json
from rag.ingest_reading import HASH_DIGITS, Claims, Document, Drained, FileOutcome, Part, Reader, Splitting, document_id
from rag.loaders import FileProblem, Found, LoadError, SourceFile, find, printable
from rag.loaders.media import NONE, MediaReaders
from rag.types import Event, PassageRow, Problem, StoredDocument

__all__ = ["BATCH", "LARGEST_BATCH", "PassageStore", "document_id", "ingest"]

BATCH = 64
SMALLEST_BATCH, LARGEST_BATCH = 16, 512
BATCH_SECONDS = 0.5  # of embedding a batch: long enough to be sorted by length into full passes, short enough to follow
IN_FLIGHT = 2  # one is computed while the next is tokenised or on its way
FLUSH_PASSAGES = 2000
PROGRESS_SECONDS = 0.25
LOOK_SECONDS = 0.05  # between two looks at the cancel token while waiting
ENDING_KINDS = ("connection", "held", "authentication")  # no other file would fare better


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
    readers: MediaReaders | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], datetime] = utc_now,
) -> Iterator[Event]:
    """Read, split, embed and store what is new or changed; `ingest_finished` is always the last event.

    A file that fails is reported in its `file_finished` and the rest goes on. A store or model that is away ends the run:
    `outcome` is then "failed" and `error` says why; what was written stays. `outcome` is else "finished" or "cancelled".
    `readers` read scans and speech. `clock` gives seconds, monotonic. Raises ValueError for
    chunk settings that contradict each other.
    """
    if not 0 <= overlap_tokens < chunk_tokens:
        raise ValueError(f"overlap_tokens ({overlap_tokens}) must be less than chunk_tokens ({chunk_tokens}), and not negative")
    splitting = Splitting(chunk_tokens, overlap_tokens, max_file_bytes, id_prefix, readers or NONE)
    found = found if isinstance(found, Found) else find(found, readers)
    return _Run(store, embedder, splitting, cancelled, clock, now).events(found)


class _Ended(Exception):
    """The run cannot go on; `__cause__` is why."""


class _Answered(NamedTuple):
    """What the embedder gave, and when it was asked and answered, in the run's clock."""

    result: Embeddings
    asked: float
    answered: float


class _Item(NamedTuple):
    """A passage that waits for its vector."""

    document: Document
    row: PassageRow


class _Run:
    def __init__(
        self,
        store: PassageStore,
        embedder: Embedder,
        splitting: Splitting,
        cancelled: Callable[[], bool],
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._store, self._embedder = store, embedder
        self._cancelled, self._clock, self._now = cancelled, clock, now
        self._splitting = replace(splitting, readers=replace(splitting.readers, check=self._check))
        self._meter = Meter()
        self._queue: deque[_Item] = deque()
        self._flying: deque[tuple[list[_Item], Future[_Answered]]] = deque()  # requests with the embedder, oldest first
        self._open: list[Document] = []  # documents that are not written yet
        self._held: list[Document] = []  # duplicates, as long as their originals may still fail or change
        self._known: Mapping[str, StoredDocument] = {}
        self._sources: dict[str, str] = {}
        self._claims = Claims({})
        self._reader: Reader | None = None
        self._read_seconds = 0.0  # of readers that ended
        self._busy_until = 0.0  # the embedder's last answer
        self._unflushed = 0
        self._progress_at = clock()
        self._workers = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="ingest-embed")

    # 1) the run

    def events(self, found: Found) -> Iterator[Event]:
        sizes = [_size(file.path) for file in found.files]
        meter = self._meter
        meter.files, meter.bytes = len(found.files) + len(found.refused), sum(sizes)
        meter.started = self._progress_at = self._clock()
        yield {"type": "ingest_started", "files": meter.files, "bytes": meter.bytes}
        outcome, error = "finished", None
        try:
            self._known = self._store.documents()
            self._sources = {key: stored.source for key, stored in self._known.items()}
            self._claims = Claims(self._known)
            yield from self._all(found, sizes)
        except Cancelled:
            outcome = "cancelled"
        except Exception as problem:  # whatever ends the run is told in its last event
            outcome, error = "failed", problem.__cause__ if isinstance(problem, _Ended) else problem
        except BaseException:  # the reader closed this iterator, or the process is told to end
            self._flush()
            raise
        finally:
            self._workers.shutdown(wait=False, cancel_futures=True)  # a request in flight is left behind
        flush_error = self._flush()
        if flush_error is not None and error is None:
            outcome, error = "failed", flush_error
        yield self._progress()
        yield meter.summary(found, outcome, problem_json(error) if error else None, self._clock())

    def _all(self, found: Found, sizes: Sequence[int]) -> Iterator[Event]:
        for problem in found.refused:
            yield self._refused(problem)
        files: list[tuple[SourceFile, int]] = list(zip(found.files, sizes, strict=True))
        while files:
            yield from self._pass(files)
            files = yield from self._settle_duplicates()

    def _pass(self, files: Sequence[tuple[SourceFile, int]]) -> Iterator[Event]:
        embedder = self._embedder
        self._reader = Reader(files, self._splitting, self._known, self._claims, embedder.count_tokens, embedder.info.max_tokens)
        self._reader.start()
        try:
            while True:
                self._check()
                try:
                    part = self._reader.buffer.get(LOOK_SECONDS)
                except Drained:
                    break
                if part is not None:
                    yield from self._take(part)
                elif self._flying:
                    yield from self._land(wait=False)
                yield from self._progress_if_due()
            while self._queue or self._flying:
                yield from self._embed_batch() if self._queue else self._land()
        finally:
            self._reader.stop()
            self._read_seconds += self._reader.busy_seconds
            self._reader = None

    def _settle_duplicates(self) -> Generator[Event, None, list[tuple[SourceFile, int]]]:
        """Tell of the duplicates; those whose originals failed, or have another text by now, come back to be read."""
        held, self._held = self._held, []
        again = []
        for document in held:
            self._check()
            if self._claims.holder(document.content_hash, document.file.path.suffix) == document.original:
                yield self._duplicate(document)
            else:
                again.append((document.file, document.size_bytes))
        return again

    def _duplicate(self, document: Document) -> Event:
        try:
            if document.document_id in self._known:
                self._store.remove_document(document.document_id)
        except Exception as problem:
            return self._failed(document, problem)
        document.notes = (f"same text as {self._sources.get(document.original or '', 'another document')}: stored once",)
        return self._finished(document, "duplicate", 0)

    def _check(self) -> None:
        if self._cancelled():
            raise Cancelled("the ingestion was cancelled")

    # 2) one file's part

    def _take(self, part: Part) -> Iterator[Event]:
        document = part.document
        self._sources.setdefault(document.document_id, document.file.source)
        if part.problem is not None:
            yield self._failed(document, part.problem)
        elif part.end == "unchanged":
            yield self._finished(document, "unchanged", document.passages)
        elif part.end == "duplicate":
            self._held.append(document)
        elif not document.failed:
            if not document.rows:
                self._open.append(document)
            document.rows.extend(part.rows)
            document.complete = part.end == "complete"
            self._queue.extend(_Item(document, row) for row in part.rows)
            while len(self._queue) >= self._batch_size():
                yield from self._embed_batch()
            if document.writable:
                yield from self._write_ready()

    # 3) embed

    def _batch_size(self) -> int:
        """Passages that the embedder takes BATCH_SECONDS for, as measured: it sorts a request by length and fills its passes."""
        meter = self._meter
        if not meter.embedded or meter.embedding_seconds <= 0:
            return BATCH
        return max(SMALLEST_BATCH, min(LARGEST_BATCH, round(BATCH_SECONDS * meter.embedded / meter.embedding_seconds)))

    def _embed_batch(self) -> Iterator[Event]:
        """Send the next passages to the embedder; where enough are there already, first take in what comes back."""
        while len(self._flying) >= IN_FLIGHT:
            yield from self._land()
        batch = [self._queue.popleft() for _ in range(min(self._batch_size(), len(self._queue)))]
        if not batch:  # its document failed meanwhile
            return
        self._flying.append((batch, self._workers.submit(self._embed, batch)))

    def _land(self, wait: bool = True) -> Iterator[Event]:
        """Take in the oldest request and write what is complete; where it failed, each document's share is tried alone, so that
        one cannot spoil the others."""
        batch, future = self._flying[0]
        if not wait and not future.done():
            return
        problem = self._keep(batch, future)
        self._flying.popleft()
        if problem is not None:
            documents = list({id(item.document): item.document for item in batch}.values())
            for document in documents:
                share = [item for item in batch if item.document is document and not document.failed]
                if not share:
                    continue
                own = problem if len(documents) == 1 else self._keep(share, self._workers.submit(self._embed, share))
                if own is not None:
                    yield self._failed(document, own)
        yield from self._write_ready()
        yield from self._progress_if_due()

    def _embed(self, batch: Sequence[_Item]) -> _Answered:
        asked = self._clock()
        result = self._embedder.embed([item.row.indexed_text for item in batch], "passage")
        if len(result.dense) != len(batch) or (result.sparse is not None and len(result.sparse) != len(batch)):
            raise RagError(f"the embedder gave {len(result.dense)} vectors for {len(batch)} passages", kind="bad_answer")
        if not np.isfinite(result.dense).all():
            raise RagError("the embedder gave a vector that is not finite", kind="bad_answer", next_step="Try precision fp32.")
        return _Answered(result, asked, self._clock())

    def _keep(self, batch: Sequence[_Item], future: Future[_Answered]) -> Exception | None:
        """Wait for a request and keep its vectors; what went wrong comes back. Raises Cancelled, and _Ended where no other file
        would fare better."""
        while True:
            self._check()
            try:
                result, asked, answered = future.result(LOOK_SECONDS)
                break
            except NotYet as problem:
                if future.done():  # the embedder's own
                    return problem
            except Exception as problem:  # embedders of any maker
                self._end_if_away(problem)
                return problem
        self._meter.took(result, len(batch), max(0.0, answered - max(asked, self._busy_until)))
        self._busy_until = max(answered, self._busy_until)
        for index, (document, row) in enumerate(batch):
            if document.failed:
                continue
            document.dense.append(result.dense[index])
            if result.sparse is not None:
                document.sparse.append(result.sparse[index])
            document.embedded += 1
            # overlaps count twice and whitespace not at all: never more than the file has
            share = min(len(row.text) * document.bytes_per_character, document.size_bytes - document.bytes_done)
            self._advance(document, share)
        return None

    def _end_if_away(self, problem: Exception) -> None:
        """Raise where the fault is not this file's: the store or the model is away, or the job is cancelled."""
        if isinstance(problem, Cancelled):
            raise problem
        if isinstance(problem, ConnectionError) or getattr(problem, "kind", None) in ENDING_KINDS:
            raise _Ended from problem

    # 4) write

    def _write_ready(self) -> Iterator[Event]:
        for document in [document for document in self._open if document.writable]:
            self._check()
            started = self._clock()
            try:
                self._write(document)
            except Exception as problem:
                yield self._failed(document, problem)
                continue
            finally:
                self._meter.writing_seconds += self._clock() - started
            self._meter.written += len(document.rows)
            self._unflushed += len(document.rows)
            yield self._finished(document, document.outcome, len(document.rows))
            flush_error = self._flush() if self._unflushed >= FLUSH_PASSAGES else None
            if flush_error is not None:
                raise _Ended from flush_error

    def _write(self, document: Document) -> None:
        if not document.rows:
            raise LoadError(printable(document.file.path.name), "holds no words", "Remove it or give it a text.")
        written_at = self._now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._store.write_document(document.rows, np.stack(document.dense), document.sparse or None, written_at)

    def _flush(self) -> Exception | None:
        """Flush what was written since the last time; a failure comes back, since the run's own error matters more."""
        if self._unflushed == 0:
            return None
        started = self._clock()
        try:
            self._store.flush()
        except Exception as problem:
            return problem
        finally:
            self._meter.writing_seconds += self._clock() - started
        self._unflushed = 0
        return None

    # 5) events

    def _failed(self, document: Document, problem: Exception) -> Event:
        self._end_if_away(problem)
        document.failed = True
        if document.content_hash[HASH_DIGITS:]:  # it was read, and counted as having its text
            self._claims.release(document.document_id)
        self._queue = deque(item for item in self._queue if item.document is not document)
        return self._finished(document, "failed", 0, problem)

    def _finished(self, document: Document, outcome: FileOutcome, passages: int, problem: Exception | None = None) -> Event:
        self._meter.counts[outcome] += 1
        self._advance(document, document.size_bytes - document.bytes_done, worked=outcome not in ("unchanged", "duplicate"))
        self._open = [item for item in self._open if item is not document]
        return file_finished(
            document.file.source,
            document.document_id,
            outcome,
            passages,
            document.notes,
            problem_json(problem) if problem else None,
            document.original if outcome == "duplicate" else None,
        )

    def _refused(self, problem: FileProblem) -> Event:
        self._meter.counts["failed"] += 1
        error = asdict(Problem(None, "bad_input", problem.message, problem.source, problem.next_step))
        return file_finished(problem.source, None, "failed", error=error)

    def _advance(self, document: Document, share: float, worked: bool = True) -> None:
        document.bytes_done += share
        self._meter.bytes_done += share
        self._meter.bytes_worked += share if worked else 0

    def _progress_if_due(self) -> Iterator[Event]:
        if self._clock() - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = self._clock()
            yield self._progress()

    def _progress(self) -> Event:
        self._meter.reading_seconds = self._read_seconds + (self._reader.busy_seconds if self._reader else 0.0)
        return self._meter.progress(self._clock())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told when the file is read
        return 0
