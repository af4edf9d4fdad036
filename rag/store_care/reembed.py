"""Fill a new collection from the texts of another one by an embedder, and put it into use when it is whole.

Queries go on with the collection before; what is added to it or removed meanwhile is caught up. No files are read: the stored
texts are enough. A run that was killed goes on where it stopped. Does not cut passages anew: that is ingestion's work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gpu_server.errors import EngineError
from gpu_server.interfaces import Embedder, Embeddings, ModelInfo
from rag.errors import Cancelled, RagError
from rag.store import Store
from rag.store_care import live
from rag.store_care.rows import Key, Pace, Row, Source, batches, differ, sample

FROM = "ragdeck.reembed.from"
BATCH = 64
FEW = 64  # as many rows may be left for the moment in which nobody else writes
PASSES = 8
CHECKED = 16
SAME_COSINE = 0.999

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reembedded:
    """`rows` were in the collection when it was put into use, `embedded` of them by this run, `copied` with their vectors."""

    source: str
    collection: str
    rows: int
    embedded: int
    copied: int
    dropped: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Run:
    """What a run works on. `kept` is the collection that the embedder has now, where that is not the source."""

    store: Store
    embedder: Embedder
    source: Source
    kept: Source | None
    target: Source
    embedded: int = 0
    copied: int = 0


def reembed(
    store: Store,
    embedder: Embedder,
    source: str,
    *,
    base: str | None = None,
    drop_old: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, Reembedded]:
    """Events `store_progress`; returns what was put into use. `source` is a collection of our own layout.

    Documents that the embedder's own collection holds already are taken from there, with their vectors. Raises RagError; what
    was done stays for the next run.
    """
    info = _info(embedder)
    run = _prepared(store, embedder, info, source, base)
    for _ in range(PASSES):
        wanted, extra = _difference(run)
        if len(wanted) + len(extra) <= FEW and run.target.count():
            break
        yield from _pass(run, wanted, extra, cancelled)
    run.target.settle()
    yield {**Pace("verifying", run.target.count()).event(), "collection": run.target.name}
    _verify_vectors(run)
    name = store.logical_name(info, base)
    with store.exclusive():
        for _ in _pass(run, *_difference(run), cancelled):
            pass
        run.target.settle()
        rows = _verify_rows(run)
        store.switch(name, run.target.name)
        with store.mapped("finish the new collection"):
            store.client.drop_collection_properties(run.target.name, property_keys=[FROM], timeout=store.timeout)
    dropped = drop_old and source != run.target.name
    if dropped:
        store.drop(source)
    return Reembedded(source, run.target.name, rows, run.embedded, run.copied, dropped)


def _info(embedder: Embedder) -> ModelInfo:
    try:
        return embedder.info
    except EngineError as problem:
        raise RagError(problem.message, kind=problem.kind, address=problem.address, next_step=problem.next_step) from problem


def sources(store: Store, embedder: Embedder, base: str | None = None) -> list[str]:
    """Collections in use with passages of other embedders, of the same base name: what this embedder could take texts from."""
    info = _info(embedder)
    own, prefix = store.logical_name(info, base), store.logical_name(replace(info, identity=""), base)
    begun = unfinished(store)
    with store.mapped("list the collections"):
        used = live.read(store.client, store.timeout)
        names = [str(name) for name in store.client.list_collections(timeout=store.timeout)]
        mine = [name for name in names if name.startswith(prefix) and name not in begun and live.name_of(name) != own]
        in_use = [name for name in mine if used.get(live.name_of(name), live.name_of(name)) == name]
        return [name for name in sorted(in_use) if store.client.get_collection_stats(name, timeout=store.timeout)["row_count"]]


def unfinished(store: Store) -> dict[str, str]:
    """Collections that a run began to fill and that are not in use yet, and what each is filled from."""
    store.open()
    with store.mapped("list the collections"):
        used = set(live.read(store.client, store.timeout).values())
        begun = {}
        for name in store.client.list_collections(timeout=store.timeout):
            source = dict(store.describe(name).get("properties") or {}).get(FROM)
            if source and name not in used:
                begun[name] = str(source)
        return begun


def _prepared(store: Store, embedder: Embedder, info: ModelInfo, source: str, base: str | None) -> _Run:
    if store.mapping is not None:
        raise RagError(
            "the collection of milvus.mapping is searched read-only and cannot be replaced",
            kind="bad_input",
            next_step="Remove milvus.mapping from the settings to use a collection of our own.",
        )
    old = Source.open(store, source)
    missing = {"id", "text", "indexed", "document_id", "content_hash", "position"} - set(old.layout.stored)
    if missing:
        raise RagError(
            f"the collection {source} is not one of ours: it has no field {', '.join(sorted(missing))}",
            kind="bad_input",
            next_step="Ingest its documents, or search it as it is with milvus.mapping.",
        )
    name = store.logical_name(info, base)
    used = store.collection_name(info, base)
    begun = [key for key, value in unfinished(store).items() if value == source and live.name_of(key) == name]
    with store.exclusive(), store.mapped("make the new collection"):
        existing = [str(item) for item in store.client.list_collections(timeout=store.timeout)]
        target = begun[0] if begun else live.next_generation(name, existing)
        if not begun:
            store.create(target, info, **{FROM: source})
    kept = Source.open(store, used) if used != source and used in existing else None
    return _Run(store, embedder, old, kept, Source.open(store, target))


def _wanted(run: _Run) -> dict[Key, Source]:
    """What the target is to hold, and where each row comes from: a document that the embedder has already, from there."""
    wanted: dict[Key, Source] = {}
    mine: set[str] = set()
    if run.kept is not None:
        for page in run.kept.pages(["id", "document_id"]):
            wanted.update((row["id"], run.kept) for row in page)
            mine.update(row["document_id"] for row in page)
    for page in run.source.pages(["id", "document_id"]):
        wanted.update((row["id"], run.source) for row in page if row["document_id"] not in mine)
    return wanted


def _difference(run: _Run) -> tuple[dict[Key, Source], set[Key]]:
    """Rows that the target lacks, by where they come from, and rows that it has too many."""
    wanted, have = _wanted(run), run.target.keys()
    return {key: source for key, source in wanted.items() if key not in have}, have - wanted.keys()


def _pass(run: _Run, wanted: dict[Key, Source], extra: set[Key], cancelled: Callable[[], bool]) -> Generator[Event, None, None]:
    run.target.delete(list(extra))
    pace = Pace("embedding", len(wanted))
    yield {**pace.event(), "collection": run.target.name}
    ordered = sorted(wanted, key=lambda key: (wanted[key] is run.source, str(key)))
    for keys in batches(ordered, BATCH):
        if cancelled():
            raise Cancelled("stopped; what was embedded is kept, and the next run goes on from there", kind="internal")
        copied = run.kept.fetch([key for key in keys if wanted[key] is run.kept]) if run.kept else []
        texts = run.source.fetch([key for key in keys if wanted[key] is run.source])
        run.target.write([*copied, *_embedded(run, texts)])
        run.copied += len(copied)
        run.embedded += len(texts)
        yield {**pace.event(len(keys)), "collection": run.target.name}


def _embedded(run: _Run, rows: list[Row]) -> list[Row]:
    """The rows with vectors of this embedder."""
    if not rows:
        return []
    found = _embed(run.embedder, [str(row["indexed"]) for row in rows])
    made = [{**row, "dense": found.dense[index].tolist()} for index, row in enumerate(rows)]
    for index, row in enumerate(made):
        row.pop("sparse", None)
        if _info(run.embedder).learned_sparse and found.sparse is not None:
            row["sparse"] = dict(found.sparse[index]) or {0: 1e-6}  # Milvus rejects an empty sparse vector
    return made


def _embed(embedder: Embedder, texts: list[str]) -> Embeddings:
    try:
        found = embedder.embed(texts, "passage")
    except EngineError as problem:
        raise RagError(problem.message, kind=problem.kind, address=problem.address, next_step=problem.next_step) from problem
    if found.dense.shape[0] != len(texts) or not np.isfinite(found.dense).all():
        raise RagError(
            f"the embedder gave {found.dense.shape[0]} vectors for {len(texts)} texts, or some that are no numbers",
            kind="bad_answer",
            next_step="Test the embedder on the page Models.",
        )
    return found


def _verify_vectors(run: _Run) -> None:
    """A sample is embedded once more: what lies in the collection must be what the embedder makes of its texts."""
    rows = run.target.fetch(sample(run.target.keys(), CHECKED))
    if not rows:
        return
    again = _embed(run.embedder, [str(row["indexed"]) for row in rows]).dense
    stored = np.asarray([row["dense"] for row in rows], dtype=np.float32)
    norms = np.linalg.norm(again, axis=1) * np.linalg.norm(stored, axis=1)
    cosines = (again * stored).sum(axis=1) / np.maximum(norms, 1e-12)
    if float(cosines.min()) < SAME_COSINE:
        raise differ(run.target, f"a stored vector has a cosine of {cosines.min():.4f} to a new one of the same text")


def _verify_rows(run: _Run) -> int:
    """Every row is there and a sample has its texts; returns how many there are."""
    wanted, have = _wanted(run), run.target.keys()
    if wanted.keys() != have:
        missing, extra = len(wanted.keys() - have), len(have - wanted.keys())
        raise differ(run.target, f"{missing} rows are missing and {extra} too many")
    chosen = sample(have)
    new = {row["id"]: row for row in run.target.fetch(chosen)}
    for source in (run.source, run.kept):
        for row in source.fetch([key for key in chosen if wanted[key] is source]) if source else ():
            if any(row[name] != new[row["id"]][name] for name in ("text", "indexed", "position")):
                raise differ(run.target, f"passage {row['id']} has another text")
    return len(have)
