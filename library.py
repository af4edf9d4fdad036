"""The documents of this process: ingestion jobs, removal, uploads, the sample corpus, and what the pages show of them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.errors import EngineError
from gpu_server.interfaces import Embedder
from jobs import Job, Jobs
from rag.errors import RagError
from rag.ingest import ingest
from rag.loaders import find
from rag.routes import FieldMapping
from rag.store import CollectionInfo, Store
from rag.types import Event, PassageRow, Problem, StoredDocument
from settings import Settings

log = logging.getLogger("ragdeck")

IngestSummary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the store holds: every collection, the documents of the active one. `problem` says why it cannot be read."""

    collections: tuple[CollectionInfo, ...]
    documents: tuple[StoredDocument, ...]
    active: str | None
    address: str
    read_only: bool
    problem: Problem | None


class Writer:
    """One collection as ingestion sees it (`rag.ingest.PassageStore`)."""

    def __init__(self, store: Store, collection: str) -> None:
        self._store, self._collection = store, collection

    def documents(self) -> Mapping[str, StoredDocument]:
        return self._store.documents(self._collection)

    def write_document(
        self,
        rows: Sequence[PassageRow],
        vectors: NDArray[np.float32],
        sparse: Sequence[Mapping[int, float]] | None,
        ingested_at: str,
    ) -> None:
        self._store.write_document(self._collection, rows, vectors, sparse, ingested_at)

    def remove_document(self, document_id: str) -> int:
        return self._store.remove_document(self._collection, document_id)

    def flush(self) -> None:
        self._store.flush(self._collection)


class Library:
    """Documents of one store and one embedder."""

    def __init__(self, settings: Settings, store: Store, embedder: Embedder, jobs: Jobs, samples: Path) -> None:
        self._settings, self._store, self._embedder, self._jobs, self._samples = settings, store, embedder, jobs, samples
        self.uploads = settings.data_dir / "uploads"
        self._samples_done = settings.data_dir / "samples.done"
        self.problem: Problem | None = None
        self.sample_job: Job[IngestSummary] | None = None
        self._sample_lock = threading.Lock()

    def collection(self, base: str | None = None) -> str:
        """The collection in use, opened. Raises RagError; also where the embedder, whose identity names it, is away."""
        try:
            info = self._embedder.info
        except EngineError as problem:
            raise RagError(problem.message, kind=problem.kind, address=problem.address, next_step=problem.next_step) from problem
        return self._store.use(info, base)

    def prepare(self) -> None:
        """Open the store; fill it with the samples when it is embedded, empty and the settings want it. Problems are kept."""
        try:
            self.collection()
            self.problem = None
            self.ensure_samples()
        except RagError as problem:
            self.problem = Problem("search", problem.kind, problem.message, problem.address, problem.next_step)
            log.error("the passage store cannot be used: %s. %s", problem.message, problem.next_step)
        except Exception as problem:
            self.problem = Problem("embed", "model", f"{type(problem).__name__}: {problem}", None, "See the page Models.")
            log.exception("the passage store could not be prepared")

    # 1) samples

    def samples_wanted(self) -> bool:
        """Whether the samples may still have to go in; known without opening store or models once they are."""
        wanted = self._settings.ingest.sample_corpus and self._store.embedded and self._store.mapping is None
        return wanted and self._samples.is_dir() and not self._samples_done.exists()

    def ensure_samples(self) -> Job[IngestSummary] | None:
        """Start the sample corpus's ingestion where it belongs: an embedded store that is empty, or whose first fill broke off.

        Never in a Milvus server, and not again after the user removed documents.
        """
        with self._sample_lock:
            if self.sample_job is not None or not self.samples_wanted():
                return self.sample_job
            begun = self._samples_done.with_suffix(".begun")
            if not begun.exists() and self._store.count(self.collection()):
                self._samples_done.touch()  # the user's own documents came first
                return None
            begun.touch()
            self.sample_job = self.submit(
                [self._samples], label="sample corpus", after=self._samples_done.touch, id_prefix="sample:"
            )
            return self.sample_job

    # 2) ingestion

    def submit(
        self,
        paths: Sequence[Path],
        collection: str | None = None,
        label: str | None = None,
        *,
        after: Callable[[], None] | None = None,
        id_prefix: str = "",
    ) -> Job[IngestSummary]:
        """Ingest as a job whose result is the summary of its last event. Raises RagError when nothing can be ingested at all."""
        settings = self._settings.ingest
        if self._store.mapping is not None:
            raise RagError(
                f"the collection {self._store.mapping.collection!r} is searched read-only",
                kind="bad_input",
                next_step="Remove milvus.mapping from the settings to ingest into a collection of our own.",
            )

        def work(job: Job[IngestSummary]) -> Generator[Event, None, IngestSummary]:
            writer = Writer(self._store, self.collection(collection))
            summary: IngestSummary = {}
            for event in ingest(
                find(paths),
                writer,
                self._embedder,
                chunk_tokens=settings.chunk_tokens,
                overlap_tokens=settings.overlap_tokens,
                max_file_bytes=settings.max_file_bytes,
                id_prefix=id_prefix,
                cancelled=job.cancelled.is_set,
            ):
                if event["type"] == "ingest_finished":
                    summary = event
                yield event
            if after is not None and summary.get("outcome") == "finished":
                after()
            return summary

        return self._jobs.submit("ingest", label or ", ".join(str(path) for path in paths)[:200], work)

    def remove(self, document_id: str, collection: str | None = None) -> int:
        """Delete a document; returns how many passages went."""
        return self._store.remove_document(self.collection(collection), document_id)

    def save_upload(self, name: str, data: bytes) -> Path:
        """Keep an uploaded file under the data folder; its name is its identity: the same name again replaces it."""
        safe = re.sub(r"[^\w.\- ()\[\]]", "_", Path(name.replace("\\", "/")).name).lstrip(".") or "upload"
        stem, suffix = Path(safe).stem, Path(safe).suffix
        encoded = stem.encode()[: 250 - len(suffix.encode())].decode(errors="ignore")
        self.uploads.mkdir(parents=True, exist_ok=True)
        path = self.uploads / f"{encoded}{suffix}"
        path.write_bytes(data)
        return path

    # 3) what is there

    def knowledge(self) -> Knowledge:
        """Everything the store holds; a store that cannot be read is a problem, not an exception."""
        store = self._store
        try:
            active = self.collection()
            documents = sorted(store.documents(active).values(), key=lambda item: item.source)
            collections = store.collections(active)
        except RagError as error:
            problem = Problem("search", error.kind, error.message, error.address, error.next_step)
            return Knowledge((), (), None, store.address, store.mapping is not None, problem)
        return Knowledge(collections, tuple(documents), active, store.address, store.mapping is not None, None)


def summary_json(summary: IngestSummary) -> dict[str, Any]:
    """The summary without the event's own keys."""
    return {key: value for key, value in summary.items() if key not in ("type", "seq", "at")}


def open_store(settings: Settings, url: str | None) -> Store:
    """The passage store that the settings name; connects to nothing yet. `url` is where this process serves."""
    milvus = settings.milvus
    mapping = FieldMapping(**milvus.mapping.model_dump()) if milvus.mapping else None
    return Store(
        uri=milvus.uri,
        data_dir=settings.data_dir,
        collection=milvus.collection,
        token=milvus.token.get_secret_value() if milvus.token else None,
        timeout=milvus.timeout_seconds,
        mapping=mapping,
        url=url,
    )
