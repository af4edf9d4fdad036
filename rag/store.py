"""The passage store: the only importer of pymilvus. Collections, the two search routes, writes, flush, and who holds the lock.

`MILVUS_URI` names a Milvus server; without it the store is Milvus Lite under `data/milvus.db`, which one process can open.
Every call states a timeout: without one pymilvus retries for minutes.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import ModelInfo
from rag.content_versions import PROPERTY, ContentVersions, new_version
from rag.errors import RagError
from rag.milvus_terms import diagnose, entity, is_released, literal
from rag.routes import FieldMapping, Found, Hit, Routes
from rag.store_care import layout, live, versions
from rag.store_lock import StoreLock
from rag.types import PassageRow, StoredDocument

log = logging.getLogger(__name__)

DOCUMENT_FIELDS = ["document_id", "content_hash", "source", "title", "language", "passages", "ingested_at"]
WRITE_BATCH = 256
ROUND_TRIP_AGE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection in the store. `embedder` is the identity its name carries, None where it is not ours."""

    name: str
    entities: int | None
    embedder: str | None
    active: bool
    read_only: bool
    flushed: bool
    dimension: int | None


class Store:
    """One Milvus, one active collection. Thread-safe: searches run side by side, writes are serialised."""

    def __init__(
        self,
        *,
        uri: str | None,
        data_dir: Path,
        collection: str,
        token: str | None = None,
        timeout: float = 10.0,
        mapping: FieldMapping | None = None,
        url: str | None = None,
    ) -> None:
        """`url` is where this process serves, told to others who find the embedded store held."""
        self.embedded = uri is None
        self.address = uri or str(data_dir / "milvus.db")
        self.mapping = mapping
        self._base = collection
        self.timeout = timeout
        self._token = token
        self._lock = StoreLock(data_dir / "milvus.lock", url=url) if self.embedded else None
        self.client: Any = None
        self._open_lock = threading.Lock()
        self._write_lock = threading.RLock()
        self._live: dict[str, str] = {}
        self._moved: dict[str, str] = {}
        self._ready: dict[str, str] = {}
        self._unflushed: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="store")
        self.versions = ContentVersions(self)
        self.round_trip_seconds: float | None = None
        self._round_trip_at = float("-inf")

    # 1) opening and closing

    def open(self) -> None:
        """Connect, once. Raises HeldError when another process has the embedded store, RagError when the server is away."""
        with self._open_lock:
            if self.client is not None:
                return
            if self._lock is not None:
                self._lock.acquire()
            try:
                client = self._connect()
                with self.mapped("read the aliases"):
                    self._live = live.read(client, self.timeout)
                self.client = client
            except BaseException:
                if self._lock is not None:
                    self._lock.release()
                raise

    def _connect(self) -> Any:
        from pymilvus import MilvusClient

        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs every failed attempt with a stack; we raise instead
        with self.mapped("connect"):
            if self.embedded:
                logging.getLogger("grpc._server").setLevel(logging.CRITICAL)  # Lite answers some optional calls with a stack
                for chatty in ("faiss", "milvus_lite"):
                    logging.getLogger(chatty).setLevel(logging.WARNING)
                Path(self.address).parent.mkdir(parents=True, exist_ok=True)
            client = MilvusClient(uri=self.address, token=self._token or "", timeout=self.timeout)
            if not self.embedded:
                self.round_trip_seconds = self._round_trip(client)
                self._round_trip_at = time.monotonic()
            return client

    def _round_trip(self, client: Any) -> float:
        """The quickest of five trivial calls on the open connection, seconds: an upper estimate of one network round trip.

        Not their median: a busy machine would pass for a far one.
        """
        samples = []
        for _ in range(5):
            started = time.perf_counter()
            client.get_server_version(timeout=self.timeout)
            samples.append(time.perf_counter() - started)
        return min(samples)

    def close(self) -> None:
        """Flush what is not flushed, disconnect, release the lock."""
        with self._open_lock:
            if self.client is None:
                return
            try:
                for name in [name for name, rows in self._unflushed.items() if rows]:
                    self.flush(name)
            except RagError as problem:
                log.warning("last flush failed: %s", problem)
            self._pool.shutdown(wait=True)
            self.client.close()
            self.client = None
            if self.embedded:
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(self.address)
            if self._lock is not None:
                self._lock.release()

    # 2) collections

    def collection_name(self, embedder: ModelInfo, base: str | None = None) -> str:
        """The collection of this embedder that is in use; after a re-embedding another one than `logical_name`."""
        name = self.logical_name(embedder, base)
        return self._live.get(name, name)

    def logical_name(self, embedder: ModelInfo, base: str | None = None) -> str:
        """What the collections of this embedder are called: its identity is in the name, so that different vectors never mix."""
        if self.mapping is not None:
            return self.mapping.collection
        return f"{base or self._base}__{re.sub(r'[^A-Za-z0-9]+', '_', embedder.identity)}"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else of this process writes meanwhile; searches go on."""
        with self._write_lock:
            yield

    def switch(self, name: str, collection: str) -> None:
        """Put another collection into use under a logical name, in one step; writers to the one before write to this."""
        self._refuse_read_only()
        with self._write_lock, self.mapped("switch the collection"):
            self.client.load_collection(collection, timeout=max(30.0, self.timeout))
            live.point(self.client, name, collection, self.timeout)
            before = self._live.get(name, name)
            self._live = {**self._live, name: collection}
            moved = {old: collection if new == before else new for old, new in self._moved.items()} | {before: collection}
            self._moved = {old: new for old, new in moved.items() if old != collection}

    def _now(self, name: str, document_id: str) -> str:
        """Where a write to a collection goes, the write lock held: elsewhere once another collection has taken its place."""
        found = self._moved.get(name, name)
        if found != name:  # the caller has marked the one before as being written to
            self.versions.writing(found, document_id)
        return found

    def use(self, embedder: ModelInfo, base: str | None = None, *, create: bool = True) -> str:
        """The name of the embedder's collection, loaded; made when it is not there yet, or with `create` False not_found."""
        if self.client is None:
            self.open()
        name = self.collection_name(embedder, base)
        if name in self._ready:
            return name
        with self._write_lock, self.mapped("open the collection"):
            if self.mapping is not None:
                self._check_mapping(embedder)
            elif not self.client.has_collection(name, timeout=self.timeout):
                if not create:
                    raise RagError(
                        f"there is no collection {base!r} filled by {embedder.name}",
                        kind="not_found",
                        address=self.address,
                        next_step="The page Knowledge lists the collections; `rag ingest --collection` makes one.",
                    )
                self.create(name, embedder)
            else:
                versions.check(self.client, name, self.timeout)
                self.client.load_collection(name, timeout=self.timeout)
                self.client.flush(name, timeout=self.timeout)  # rows of a killed process are scanned in Python until flushed
            self._ready[name] = embedder.identity
        return name

    def create(self, name: str, embedder: ModelInfo, **properties: str) -> None:
        """Make an empty collection of the embedder's, loaded; `properties` go onto it."""
        layout.create(
            self.client,
            name,
            layout.passages(embedder),
            embedded=self.embedded,
            properties={PROPERTY: new_version(), versions.PROPERTY: str(versions.CURRENT), **properties},
            timeout=self.timeout,
        )

    def _check_mapping(self, embedder: ModelInfo) -> None:
        assert self.mapping is not None
        mapping = self.mapping
        if not self.client.has_collection(mapping.collection, timeout=self.timeout):
            raise RagError(
                f"the collection {mapping.collection!r} of milvus.mapping does not exist",
                kind="not_found",
                address=self.address,
                next_step="Correct milvus.mapping.collection; the page Knowledge lists the collections that are there.",
            )
        fields = {field["name"]: field for field in self.describe(mapping.collection)["fields"]}
        wanted = [mapping.text_field, mapping.dense_field, mapping.sparse_field, mapping.source_field, mapping.title_field]
        missing = [name for name in [*wanted, mapping.location_field] if name and name not in fields]
        if missing:
            raise RagError(
                f"milvus.mapping names fields that {mapping.collection!r} has not: {', '.join(missing)}",
                kind="bad_input",
                address=self.address,
                next_step=f"Its fields are {', '.join(sorted(fields))}.",
            )
        if mapping.dense_field:
            dimension = int(fields[mapping.dense_field]["params"].get("dim", 0))
            if dimension != embedder.dimension:
                raise RagError(
                    f"{mapping.collection}.{mapping.dense_field} has {dimension} dimensions, the embedder {embedder.name} has "
                    f"{embedder.dimension}",
                    kind="model",
                    address=self.address,
                    next_step="Choose the embedder that filled this collection (models.embedder).",
                )
        self.client.load_collection(mapping.collection, timeout=self.timeout)

    def describe(self, name: str) -> dict[str, Any]:
        description: dict[str, Any] = self.client.describe_collection(name, timeout=self.timeout)
        return description

    def collections(self, active: str | None) -> tuple[CollectionInfo, ...]:
        """Every collection of the store with its row count."""
        self.open()
        with self.mapped("list the collections"):
            return tuple(self._collection_info(name, active) for name in self._names())

    def _collection_info(self, name: str, active: str | None) -> CollectionInfo:
        dimensions = [field["params"].get("dim") for field in self.describe(name)["fields"] if field["params"].get("dim")]
        rows = self.client.get_collection_stats(name, timeout=self.timeout).get("row_count")
        return CollectionInfo(
            name=name,
            entities=None if rows is None else int(rows),
            embedder=live.name_of(name).split("__", 1)[1] if "__" in name else None,
            active=name == active,
            read_only=self.mapping is not None and name == self.mapping.collection,
            flushed=not self._unflushed.get(name),
            dimension=int(dimensions[0]) if dimensions else None,
        )

    def drop(self, name: str) -> None:
        """Delete a collection and all its passages; with one that re-embedding put into use, those that it replaced."""
        self._refuse_read_only()
        self.open()
        with self._write_lock, self.mapped("drop the collection"):
            gone = [name]
            if name in self._live.values():
                logical = live.name_of(name)
                self.client.drop_alias(logical + live.ALIAS, timeout=self.timeout)
                self._live = {key: kept for key, kept in self._live.items() if kept != name}
                gone += [old for old in self._names() if old != name and live.name_of(old) == logical]
            for collection in gone:
                self.client.drop_collection(collection, timeout=self.timeout)
                self._ready.pop(collection, None)
                self._unflushed.pop(collection, None)
            self._moved = {old: new for old, new in self._moved.items() if new not in gone}
        for collection in gone:
            self.versions.dropped(collection)

    def _names(self) -> list[str]:
        return sorted(self.client.list_collections(timeout=self.timeout))

    def count(self, name: str) -> int:
        """Passages in the collection."""
        with self.mapped("count the passages"):
            rows = self.client.query(name, filter="", output_fields=["count(*)"], timeout=self.timeout)
            return int(rows[0]["count(*)"])

    # 3) documents

    def documents(self, name: str) -> dict[str, StoredDocument]:
        """Documents by id, from their marker rows (position 0, written last). Of two markers the newer counts."""
        if self.mapping is not None:
            return {}
        found: dict[str, StoredDocument] = {}
        for row in self._rows(name, "position == 0", DOCUMENT_FIELDS):
            document = StoredDocument(**{**{key: row[key] for key in DOCUMENT_FIELDS}, "language": row["language"] or None})
            known = found.get(document.document_id)
            if known is None or known.ingested_at < document.ingested_at:
                found[document.document_id] = document
        return found

    def passages(self, name: str, document_id: str) -> list[dict[str, Any]]:
        """A document's passages in order: id, position, location, text."""
        rows = self._rows(name, f"document_id == {literal(document_id)}", ["id", "position", "location", "text"])
        return sorted(rows, key=lambda row: int(row["position"]))

    def _rows(self, name: str, expression: str, fields: list[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        with self.mapped("read the documents"):
            pages = self.client.query_iterator(
                self._moved.get(name, name), filter=expression, output_fields=fields, batch_size=2000, timeout=self.timeout
            )
            while page := pages.next():
                rows.extend(dict(row) for row in page)
            pages.close()
        return rows

    def write_document(
        self,
        name: str,
        rows: Sequence[PassageRow],
        vectors: NDArray[np.float32],
        sparse: Sequence[Mapping[int, float]] | None,
        ingested_at: str,
    ) -> None:
        """Write a document's passages, its marker (position 0) last, then remove what an older content left behind."""
        if not rows:
            return
        self._refuse_read_only()
        self.versions.writing(name, rows[0].document_id)
        last_first = [*range(1, len(rows)), 0]
        ordered = [sparse[index] for index in last_first] if sparse else None
        self.write_rows(name, [rows[index] for index in last_first], vectors[last_first], ordered, len(rows), ingested_at)
        document, content = literal(rows[0].document_id), literal(rows[0].content_hash)
        with self._write_lock, self.mapped("remove old passages"):
            old = f"document_id == {document} and content_hash != {content}"
            self.client.delete(self._now(name, rows[0].document_id), filter=old, timeout=self.timeout)

    def write_rows(
        self,
        name: str,
        rows: Sequence[PassageRow],
        vectors: NDArray[np.float32],
        sparse: Sequence[Mapping[int, float]] | None,
        passages: int = 1,
        ingested_at: str = "",
    ) -> None:
        """Upsert passages in the given order. `passages` and `ingested_at` go onto marker rows (position 0)."""
        if not rows:
            return
        self._refuse_read_only()
        data = [
            entity(row, vectors[index], sparse[index] if sparse else None, passages, ingested_at)
            for index, row in enumerate(rows)
        ]
        with self._write_lock, self.mapped("write passages"):
            name = self._now(name, rows[0].document_id)
            for start in range(0, len(data), WRITE_BATCH):
                self.client.upsert(name, data[start : start + WRITE_BATCH], timeout=self.timeout)
            self._unflushed[name] = self._unflushed.get(name, 0) + len(rows)

    def remove_document(self, name: str, document_id: str) -> int:
        """Delete a document; returns how many passages went."""
        self._refuse_read_only()
        self.versions.writing(name, document_id)
        with self._write_lock, self.mapped("remove the document"):
            name = self._now(name, document_id)
            expression = f"document_id == {literal(document_id)}"
            before = len(self._rows(name, expression, ["id"]))
            self.client.delete(name, filter=expression, timeout=self.timeout)
        self.flush(name)
        return before

    def flush(self, name: str) -> None:
        """Seal what was written: unflushed rows are scanned one by one (915 ms against 6.5 ms for 5,000 rows)."""
        if self.mapping is not None:
            return
        with self._write_lock, self.mapped("flush"):
            for collection in {name, self._moved.get(name, name)}:
                self.client.flush(collection, timeout=max(60.0, self.timeout))
                self._unflushed[collection] = 0
        for collection in {name, self._moved.get(name, name)}:
            self.versions.settled(collection)

    def _refuse_read_only(self) -> None:
        if self.mapping is not None:
            raise RagError(
                f"the collection {self.mapping.collection!r} is searched read-only",
                kind="bad_input",
                address=self.address,
                next_step="Remove milvus.mapping from the settings to use a collection of our own.",
            )

    # 4) search

    def search(
        self,
        name: str,
        vector: NDArray[np.float32] | None,
        text: str,
        limit: int,
        *,
        sparse: Mapping[int, float] | None = None,
        complete: bool = False,
        timeout: float | None = None,
    ) -> Found:
        """Both routes side by side, `limit` hits each. `complete` asks each route for the other's finds too, by id.

        A route's BM25 score that stays unknown after that is truly 0: the passage shares no word with the question.
        """
        routes = Routes(self.client, name, self.mapping, vector, text, sparse, min(self.timeout, timeout or self.timeout))
        complete = complete and self.mapping is None
        self._measure_round_trip()
        try:
            with self.mapped("search"):
                return self._search(routes, limit, complete)
        except RagError as problem:
            self._ready.pop(name, None)  # a server that was restarted has to load it again: the next `use` does
            if not is_released(problem.message):
                raise
        started = time.perf_counter()
        with self.mapped("load the collection"):
            self.client.load_collection(name, timeout=max(30.0, self.timeout))
        opened = time.perf_counter() - started
        with self.mapped("search"):
            return replace(self._search(routes, limit, complete), open_seconds=opened)

    def unflushed(self, name: str) -> int:
        """Rows that this process wrote to the collection since it was last flushed."""
        return self._unflushed.get(name, 0)

    def is_open(self, name: str) -> bool:
        """Whether `use` has the collection ready already."""
        return name in self._ready

    def _measure_round_trip(self) -> None:
        """Keep the round trip of a server true, beside the search and not before it; at most once in ten seconds."""
        if self.embedded or time.monotonic() - self._round_trip_at < ROUND_TRIP_AGE_SECONDS:
            return
        self._round_trip_at = time.monotonic()
        self._pool.submit(self._look_at_round_trip)

    def _look_at_round_trip(self) -> None:
        """And at the aliases: another process may have put another collection into use."""
        try:
            self.round_trip_seconds = self._round_trip(self.client)
            self._live = live.read(self.client, self.timeout)
        except Exception as problem:  # pymilvus has its own tree, and the search beside this call says what is wrong
            log.debug("the round trip could not be measured: %s", problem)

    def _search(self, routes: Routes, limit: int, complete: bool) -> Found:
        dense, sparse = self.both(lambda: routes.dense(limit), lambda: routes.sparse(limit))
        completed: dict[str, dict[str, float]] = {"dense": {}, "sparse": {}}
        found_dense, found_sparse = {hit.id for hit in dense}, {hit.id for hit in sparse}
        missing_dense = [hit.id for hit in sparse if hit.id not in found_dense]
        missing_sparse = [hit.id for hit in dense if hit.id not in found_sparse]
        if not complete or not (missing_dense or missing_sparse):
            return Found(dense, sparse, completed, round_trips=1)
        more_dense, more_sparse = self.both(
            lambda: routes.dense(len(missing_dense), missing_dense), lambda: routes.sparse(len(missing_sparse), missing_sparse)
        )
        completed["dense"] = {hit.id: hit.score for hit in more_dense}
        completed["sparse"] = {**dict.fromkeys(missing_sparse, 0.0), **{hit.id: hit.score for hit in more_sparse}}
        return Found(dense, sparse, completed, round_trips=2)

    def both(self, first: Any, second: Any) -> tuple[tuple[Hit, ...], tuple[Hit, ...]]:
        if self.embedded:  # in this process: threads would only wait for each other
            return first(), second()
        other = self._pool.submit(second)
        return first(), other.result()

    @contextmanager
    def mapped(self, doing: str) -> Iterator[None]:
        """Foreign errors become RagErrors that name the store's address."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except RagError:
            raise
        except (MilvusException, ValueError, OSError, TimeoutError) as problem:
            kind, next_step = diagnose(problem, self.embedded)
            text = getattr(problem, "message", None) or str(problem)
            raise RagError(f"could not {doing}: {text[:500]}", kind=kind, address=self.address, next_step=next_step) from problem
