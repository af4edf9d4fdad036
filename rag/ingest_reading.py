"""The first half of ingestion: a thread that reads, splits and hands on, bounded in passages and characters.

Decides for each file whether it is new, changed, unchanged or a duplicate. Knows the store's list of documents as it was when the
run began; knows nothing of models but a count of tokens, and writes nothing.
"""

from __future__ import annotations

import hashlib
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rag.chunks import CHUNKER_VERSION, passages
from rag.loaders import LOADER_VERSION, LoadedDocument, SourceFile, parse, read
from rag.loaders.media import NONE, MediaReaders
from rag.types import PassageRow, StoredDocument

PART_ROWS = 64
BUFFER_ROWS = 2048
BUFFER_CHARACTERS = 8_000_000
HASH_DIGITS = 16

FileOutcome = Literal["added", "replaced", "unchanged", "duplicate", "failed"]
PartEnd = Literal["more", "complete", "unchanged", "duplicate", "failed"]


def document_id(path: Path, prefix: str = "") -> str:
    """32 hex digits of the real path: the same file is the same document from wherever it is read in."""
    return hashlib.sha256(prefix.encode() + bytes(path.resolve())).hexdigest()[:32]


def text_hash(document: LoadedDocument) -> str:
    """16 hex digits of the document's text with white space and compatibility forms (NFKC) made one; not of its title."""
    digest = hashlib.sha256()
    for section in document.sections:
        for word in unicodedata.normalize("NFKC", section.text).split():
            digest.update(word.encode("utf-8", "surrogatepass") + b" ")
    return digest.hexdigest()[:HASH_DIGITS]


@dataclass(frozen=True, slots=True)
class Splitting:
    """How files become passages. A change of it makes every file a changed one."""

    chunk_tokens: int
    overlap_tokens: int
    max_file_bytes: int
    id_prefix: str = ""
    readers: MediaReaders = NONE

    def data_hash(self, data: bytes, path: Path) -> str:
        """16 hex digits of the bytes, of how they are split and of who reads them where they are no text."""
        digest = hashlib.sha256(data)
        digest.update(f"|{self.chunk_tokens}|{self.overlap_tokens}|{LOADER_VERSION}|{CHUNKER_VERSION}".encode())
        digest.update(self.readers.fingerprint(path).encode())
        return digest.hexdigest()[:HASH_DIGITS]


@dataclass(slots=True)
class Document:
    """A file on its way: `complete` once all its rows are known, writable once all of them have vectors.

    `content_hash` is that of the bytes and then that of the text. `original` is the document that has its text already.
    """

    file: SourceFile
    document_id: str
    size_bytes: int
    outcome: FileOutcome = "added"
    content_hash: str = ""
    passages: int = 0
    original: str | None = None
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


@dataclass(frozen=True, slots=True)
class Part:
    """The next passages of a document, and whether they are its last or why there are none."""

    document: Document
    rows: Sequence[PassageRow] = ()
    end: PartEnd = "more"
    problem: Exception | None = None


class Claims:
    """Which document has which bytes and which text: at first as the store says, then with what is read. Thread-safe."""

    def __init__(self, known: Mapping[str, StoredDocument]) -> None:
        self._texts: dict[str, str] = {}
        self._data: dict[tuple[str, str], str] = {}
        self._held: dict[str, tuple[str, tuple[str, str]]] = {}
        self._lock = threading.RLock()
        for stored in sorted(known.values(), key=lambda item: (item.ingested_at, item.document_id)):
            self.hold(stored.document_id, stored.content_hash, Path(stored.source).suffix)

    def hold(self, holder: str, content_hash: str, suffix: str) -> None:
        """The document has this content now, and no longer what it had before; who came first keeps the claim."""
        text, data = content_hash[HASH_DIGITS:], (content_hash[:HASH_DIGITS], suffix.lower())
        with self._lock:
            self.release(holder)
            if text:  # documents stored by an older version carry no hash of their text
                self._texts.setdefault(text, holder)
                self._data.setdefault(data, holder)
                self._held[holder] = text, data

    def release(self, holder: str) -> None:
        with self._lock:
            text, data = self._held.pop(holder, ("", ("", "")))
            if self._texts.get(text) == holder:
                del self._texts[text]
            if self._data.get(data) == holder:
                del self._data[data]

    def holder(self, content_hash: str, suffix: str) -> str | None:
        """The document_id that has this text; where only the hash of the bytes is known, these bytes in this kind of file."""
        with self._lock:
            if content_hash[HASH_DIGITS:]:
                return self._texts.get(content_hash[HASH_DIGITS:])
            return self._data.get((content_hash, suffix.lower()))


class Drained(Exception):
    """The last part has been taken."""


class Buffer:
    """Parts between the reading thread and the run. A put waits while the buffer is full, and says False once it is closed."""

    def __init__(self, max_rows: int = BUFFER_ROWS, max_characters: int = BUFFER_CHARACTERS) -> None:
        self._max_rows, self._max_characters = max_rows, max_characters
        self._parts: deque[Part] = deque()
        self._rows = self._characters = 0
        self._ended = self._closed = False
        self._problem: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, part: Part) -> bool:
        rows, characters = _weight(part)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._parts or self._fits(rows, characters))
            if self._closed:
                return False
            self._parts.append(part)
            self._rows += rows
            self._characters += characters
            self._changed.notify_all()
            return True

    def _fits(self, rows: int, characters: int) -> bool:
        return self._rows + rows <= self._max_rows and self._characters + characters <= self._max_characters

    def get(self, timeout: float) -> Part | None:
        """The next part, None when none came in `timeout` seconds. Raises Drained after the last, and what ended the thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._parts or self._ended, timeout)
            if self._parts:
                part = self._parts.popleft()
                rows, characters = _weight(part)
                self._rows -= rows
                self._characters -= characters
                self._changed.notify_all()
                return part
            if self._problem is not None:
                raise self._problem
            if self._ended:
                raise Drained
            return None

    def end(self, problem: BaseException | None = None) -> None:
        with self._changed:
            self._ended, self._problem = True, problem
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._parts.clear()
            self._changed.notify_all()


def _weight(part: Part) -> tuple[int, int]:
    return len(part.rows) + 1, sum(len(row.text) for row in part.rows)


class Reader:
    """A thread over the files, in order. `busy_seconds` is what it worked, without waiting for room in the buffer."""

    def __init__(
        self,
        files: Iterable[tuple[SourceFile, int]],
        splitting: Splitting,
        known: Mapping[str, StoredDocument],
        claims: Claims,
        count_tokens: Callable[[str], int],
        max_tokens: int | None = None,
    ) -> None:
        """`files` come with their sizes in bytes; `max_tokens` is the most that the embedder takes, if known."""
        self._files, self._splitting, self._known = files, splitting, known
        self._claims, self._count_tokens, self._max_tokens = claims, count_tokens, max_tokens
        self.buffer = Buffer()
        self.busy_seconds = 0.0
        self._since = 0.0
        self._thread = threading.Thread(target=self._run, name="ingest-read", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Ask it to end; a parser in the middle of a file is left behind, what it makes is thrown away."""
        self.buffer.close()
        self._thread.join(timeout)

    def _run(self) -> None:
        problem: BaseException | None = None
        self._since = time.perf_counter()
        try:
            for file, size in self._files:
                document = Document(file, document_id(file.path, self._splitting.id_prefix), size)
                if not self._read(document):
                    return
        except BaseException as error:  # raised where the parts are taken
            problem = error
        finally:
            self.busy_seconds += time.perf_counter() - self._since
            self.buffer.end(problem)

    def _put(self, part: Part) -> bool:
        self.busy_seconds += time.perf_counter() - self._since
        taken = self.buffer.put(part)
        self._since = time.perf_counter()
        return taken

    def _read(self, document: Document) -> bool:
        """Hand on one file's parts; False when nobody wants any more."""
        try:
            loaded = self._load(document)
            if loaded is None:
                return self._put(Part(document, end="duplicate" if document.original else "unchanged"))
            return self._split(document, loaded)
        except Exception as problem:  # of this file: told in its event
            return self._put(Part(document, end="failed", problem=problem))

    def _load(self, document: Document) -> LoadedDocument | None:
        """The document with its hashes; None when its passages are stored already, under this path or another."""
        path, suffix = document.file.path, document.file.path.suffix
        data = read(path, self._splitting.max_file_bytes)
        document.content_hash = self._splitting.data_hash(data, path)
        stored = self._known.get(document.document_id)
        if stored is not None and stored.content_hash[:HASH_DIGITS] == document.content_hash:
            document.passages = stored.passages
            return None
        document.outcome = "replaced" if stored else "added"
        if self._is_duplicate(document):
            return None
        loaded = parse(data, path, self._splitting.readers)
        if loaded.incomplete:  # what could not be read this time is tried again the next
            document.content_hash = hashlib.sha256(f"{document.content_hash}|incomplete".encode()).hexdigest()[:HASH_DIGITS]
        document.content_hash += text_hash(loaded)
        if self._is_duplicate(document):
            return None
        document.notes = loaded.notes
        document.bytes_per_character = document.size_bytes / max(1, sum(len(section.text) for section in loaded.sections))
        self._claims.hold(document.document_id, document.content_hash, suffix)
        return loaded

    def _is_duplicate(self, document: Document) -> bool:
        holder = self._claims.holder(document.content_hash, document.file.path.suffix)
        if holder is None or holder == document.document_id:
            return False
        document.original = holder
        self._claims.release(document.document_id)  # the text it had is nobody's now
        return True

    def _split(self, document: Document, loaded: LoadedDocument) -> bool:
        rows: list[PassageRow] = []
        splitting = self._splitting
        for row in passages(
            loaded,
            document.document_id,
            document.file.source,
            document.content_hash,
            self._count_tokens,
            splitting.chunk_tokens,
            splitting.overlap_tokens,
            max_tokens=self._max_tokens,
        ):
            if document.failed:  # a passage of it could not be embedded
                return True
            rows.append(row)
            if len(rows) == PART_ROWS:
                if not self._put(Part(document, rows)):
                    return False
                rows = []
        return self._put(Part(document, rows, "complete"))
