"""Carry collections from one store to another with their vectors: from Milvus Lite to a server. The source is only read.

A run that broke off is run again: only rows that are not there yet are carried. Knows nothing of settings.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rag.content_versions import PROPERTY as CONTENT
from rag.content_versions import new_version
from rag.errors import Cancelled, RagError
from rag.store import Store
from rag.store_care import layout, live, versions
from rag.store_care.reembed import FROM
from rag.store_care.rows import BATCH, Pace, Source, batches, verify_copy

PASSES = 3  # a server as a source may be written to meanwhile


@dataclass(frozen=True, slots=True)
class Moved:
    """One collection: `carried` rows by this run, and what the comparison of original and copy looked at."""

    name: str
    rows: int
    carried: int
    rows_compared: int
    searches_compared: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def move(
    source: Store,
    target: Store,
    names: Sequence[str] = (),
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[dict[str, Any], None, tuple[Moved, ...]]:
    """Events `store_progress`; returns what is now in the target, verified. Without `names` every collection that is finished.

    Raises RagError: not_found for a name that is not there, bad_input where the target holds something else under a name.
    """
    source.open()
    target.open()
    chosen = _chosen(source, names)
    moved = []
    for name in chosen:
        moved.append((yield from _move_one(source, target, name, cancelled)))
    with source.mapped("read the aliases"):
        used = live.read(source.client, source.timeout)
    for logical, name in used.items():
        if name in chosen:
            target.switch(logical, name)
    return tuple(moved)


def finished(store: Store) -> list[str]:
    """Collections but those that a re-embedding or a restoring has only begun."""
    store.open()
    with store.mapped("list the collections"):
        names = sorted(str(name) for name in store.client.list_collections(timeout=store.timeout))
        used = set(live.read(store.client, store.timeout).values())
        begun = {name for name in names if name not in used and FROM in (store.describe(name).get("properties") or {})}
    return [name for name in names if name not in begun and not name.endswith("__restoring")]


def _chosen(source: Store, names: Sequence[str]) -> list[str]:
    known = finished(source)
    for name in names:
        if name not in known:
            raise RagError(
                f"there is no collection {name!r} to move",
                kind="not_found",
                address=source.address,
                next_step=f"There are: {', '.join(known) or 'none'}.",
            )
    return list(names) or known


def _move_one(
    source_store: Store, target_store: Store, name: str, cancelled: Callable[[], bool]
) -> Generator[dict[str, Any], None, Moved]:
    source = Source.open(source_store, name)
    target = _target(source, target_store)
    keys, have = source.keys(), target.keys()
    if have - keys:
        raise RagError(
            f"{name} at the target holds {len(have - keys):,} rows that the original has not",
            kind="bad_input",
            address=target_store.address,
            next_step="Drop it there, move into another database (URI with a path), or leave it out with --collection.",
        )
    carried = 0
    for _ in range(PASSES):
        missing = keys - have
        pace = Pace(f"moving {name}", len(missing))
        yield {**pace.event(), "collection": name}
        for batch in batches(sorted(missing, key=str), BATCH):
            if cancelled():
                raise Cancelled("stopped; the same command goes on from here", kind="internal")
            rows = source.fetch(batch)
            target.write(rows)
            carried += len(rows)
            yield {**pace.event(len(batch)), "collection": name}
        target.settle()
        keys, have = source.keys(), target.keys()
        target.delete(list(have - keys))
        if keys == have:
            break
    found = verify_copy(source, target, keys)
    return Moved(name, found["rows"], carried, found["rows_compared"], found["searches_compared"])


def _target(source: Source, store: Store) -> Source:
    """The collection of the same name at the target, made where it is not there."""
    with store.mapped(f"make {source.name}"):
        exists = store.client.has_collection(source.name, timeout=store.timeout)
    if exists:
        found = Source.open(store, source.name)
        if not found.layout.same_rows(source.layout):
            raise RagError(
                f"{source.name} is at the target already, with other fields",
                kind="bad_input",
                address=store.address,
                next_step="Drop it there, or leave it out with --collection.",
            )
        return found
    known = dict(source.store.describe(source.name).get("properties") or {})
    properties = {versions.PROPERTY: str(known.get(versions.PROPERTY, 1)), CONTENT: new_version()}
    with store.mapped(f"make {source.name}"):
        layout.create(
            store.client, source.name, source.layout, embedded=store.embedded, properties=properties, timeout=store.timeout
        )
    return Source.open(store, source.name)
