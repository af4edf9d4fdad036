"""The documents of this process: ingestion jobs that survive it, watched folders, removal, uploads, the sample corpus."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.errors import EngineError
from gpu_server.interfaces import Embedder
from ingestions import SAMPLE_PREFIX, Ingestions, new_request
from ingestions import IngestSummary as IngestSummary
from jobs import Job, Jobs, JobsFull
from rag.errors import RagError
from rag.ingest_ledger import IngestJob, Ledger
from rag.ingest_record import Record, is_alive
from rag.ingest_watch import Folder, Watcher, WatchState
from rag.loaders import MediaReaders, find, printable
from rag.routes import FieldMapping
from rag.store import CollectionInfo, Store
from rag.types import PassageRow, Problem, StoredDocument
from settings import Settings

log = logging.getLogger("ragdeck")

LONGEST_SUFFIX_BYTES = 64


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

    def __init__(
        self,
        settings: Settings,
        store: Store,
        embedder: Embedder,
        jobs: Jobs,
        samples: Path,
        *,
        readers: MediaReaders | None = None,
    ) -> None:
        """`readers` read scans and recordings."""
        self._settings, self._store, self._embedder, self._jobs, self._samples = settings, store, embedder, jobs, samples
        self.uploads = settings.data_dir / "uploads"
        self._samples_done = settings.data_dir / "samples.done"
        self.problem: Problem | None = None
        self.sample_job: Job[IngestSummary] | None = None
        self._sample_lock = threading.Lock()
        self.record = Record(Ledger(settings.data_dir / "ingest.db"))
        self.readers = readers or MediaReaders()
        self.ingestions = Ingestions(settings, jobs, self.record, embedder, self._writer, self.readers, self._job_finished)
        self._watcher = self._make_watcher()
        self._watching: threading.Thread | None = None
        self._ending = threading.Event()

    def _writer(self, base: str | None) -> tuple[str, Writer]:
        name = self.collection(base)
        return name, Writer(self._store, name)

    def collection(self, base: str | None = None) -> str:
        """The collection in use, opened. Raises RagError; also where the embedder, whose identity names it, is away."""
        try:
            info = self._embedder.info
        except EngineError as problem:
            raise RagError(problem.message, kind=problem.kind, address=problem.address, next_step=problem.next_step) from problem
        return self._store.use(info, base)

    def prepare(self) -> None:
        """Open the store, go on with what the last process left unfinished, watch the folders that the settings name; fill an
        embedded store with the samples when it is empty and the settings want it. Problems are kept."""
        try:
            self.collection()
            self.problem = None
            self.ensure_samples()
            if self._store.mapping is None:
                self.ingestions.go_on()
                self._watch()
        except JobsFull:  # the process stops already
            log.info("the process stops before its ingestions went on")
        except RagError as problem:
            self.problem = Problem("search", problem.kind, problem.message, problem.address, problem.next_step)
            log.error("the passage store cannot be used: %s. %s", problem.message, problem.next_step)
        except Exception as problem:
            self.problem = Problem("embed", "model", f"{type(problem).__name__}: {problem}", None, "See the page Models.")
            log.exception("the passage store could not be prepared")

    def stop(self) -> None:
        """Look at the watched folders no more. Jobs end with `Jobs.stop`, and go on in the next process."""
        self._ending.set()
        if self._watching is not None:
            self._watching.join(5.0)

    def close(self) -> None:
        """Write what is still to be written into the ledger, and close it; after the jobs have ended."""
        self.record.close()

    # 1) samples

    def samples_wanted(self) -> bool:
        """Whether the samples may still have to go in; known without opening store or models once they are."""
        wanted = self._settings.ingest.sample_corpus and self._store.embedded and self._store.mapping is None
        return wanted and self._samples.is_dir() and not self._samples_done.exists()

    def ensure_samples(self) -> Job[IngestSummary] | None:
        """Start the sample corpus's ingestion where it belongs: an embedded store that is empty, or whose first fill broke off.

        Never in a Milvus server, and not again after the user removed documents, or paused or cancelled it.
        """
        with self._sample_lock:
            if self.sample_job is not None or not self.samples_wanted():
                return self.sample_job
            begun = self._samples_done.with_suffix(".begun")
            if not begun.exists() and self._store.count(self.collection()):
                self._samples_done.touch()  # the user's own documents came first
                return None
            begun.touch()
            earlier = next((job for job in self.record.jobs() if job.id_prefix == SAMPLE_PREFIX), None)
            if earlier is not None and (earlier.state in ("paused", "cancelled") or is_alive(earlier.owner)):
                return None
            request = earlier or new_request([self._samples], "sample corpus", id_prefix=SAMPLE_PREFIX)
            self.sample_job = self.ingestions.submit(replace(request, paths=(self._samples,)))
            return self.sample_job

    def _job_finished(self, request: IngestJob) -> None:
        if request.id_prefix == SAMPLE_PREFIX:
            self._samples_done.touch()

    # 2) ingestion

    def submit(
        self, paths: Sequence[Path], collection: str | None = None, label: str | None = None, *, id_prefix: str = ""
    ) -> Job[IngestSummary]:
        """Ingest as a job whose result is the summary of its last event. Raises RagError when nothing can be ingested at all."""
        if self._store.mapping is not None:
            raise RagError(
                f"the collection {self._store.mapping.collection!r} is searched read-only",
                kind="bad_input",
                next_step="Remove milvus.mapping from the settings to ingest into a collection of our own.",
            )
        label = label or printable(", ".join(str(path) for path in paths))
        return self.ingestions.submit(new_request(paths, label, collection, id_prefix=id_prefix))

    def reset(self, collection: str | None = None) -> None:
        """Drop the collection's passages; files of watched folders come in again."""
        name = self.collection(collection)
        self._store.drop(name)
        self.record.untake_all(name)

    def original(self, document_id: str) -> Path | None:
        """The file that a document was read from, None where it is not known or is no more."""
        path = self.record.path_of(document_id)
        return path if path is not None and path.is_file() else None

    # watched folders

    @property
    def watched(self) -> tuple[WatchState, ...]:
        """The watched folders as they were at the last look."""
        return self._watcher.states

    def _make_watcher(self) -> Watcher:
        settings = self._settings.ingest
        roots = dict.fromkeys(Path(folder).expanduser().absolute() for folder in settings.watch)
        folders = [Folder(root, lambda paths: find(paths, self.readers), time.time) for root in roots]
        return Watcher(folders, self, self.record, settings.watch_seconds)

    def _watch(self) -> None:
        if self._watching is not None or not self._watcher.states:
            return
        ended = lambda: self._jobs.closed or self._ending.is_set()  # noqa: E731
        self._watching = threading.Thread(target=self._watcher.run, args=(ended, self._ending), name="watch", daemon=True)
        self._watching.start()

    def take_in(self, root: Path, files: Sequence[Path]) -> tuple[str, bool] | None:
        """Ingest new files of a watched folder and wait; see `rag.ingest_watch.Library`."""
        return self.ingestions.take_in(root, files)

    # 3) documents

    def remove(self, document_id: str, collection: str | None = None) -> int:
        """Delete a document; returns how many passages went."""
        name = self.collection(collection)
        removed = self._store.remove_document(name, document_id)
        self.record.untake_duplicates(name, document_id)
        return removed

    def save_upload(self, name: str, data: bytes) -> Path:
        """Keep an uploaded file under the data folder; its name is its identity: the same name again replaces it."""
        safe = re.sub(r"[^\w.\- ()\[\]]", "_", Path(name.replace("\\", "/")).name).lstrip(".") or "upload"
        stem, suffix = Path(safe).stem, Path(safe).suffix
        if len(suffix.encode()) > LONGEST_SUFFIX_BYTES:  # no kind of file
            stem, suffix = safe, ""
        encoded = stem.encode()[: 250 - len(suffix.encode())].decode(errors="ignore")
        self.uploads.mkdir(parents=True, exist_ok=True)
        path = self.uploads / f"{encoded}{suffix}"
        path.write_bytes(data)
        return path

    # 4) what is there

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
