"""How large each collection is and what state it is in, and from when on Milvus Lite is outgrown.

Thresholds are measured (benchmarks/bench_store.py, 2026-11-21, 2 CPU cores without a GPU, 384 dimensions, texts of 60 words, both
routes, 40 hits each): 44 ms at 5,000 rows, 183 ms at 20,000, 328 ms at 50,000, 773 ms at 100,000, and the first search after a
start 0.4, 1.1, 2.7 and 5.2 s. The time grows with the rows: Milvus Lite compares every one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rag.store import Store
from rag.store_care import layout, live, versions
from rag.store_care.reembed import FROM

WARN_ROWS, CRITICAL_ROWS = 20_000, 100_000
WARN_SECONDS, CRITICAL_SECONDS = 0.2, 0.8  # a search, median
ENOUGH_SEARCHES = 20
CACHED_QUESTIONS = "cached_questions__"

LoadState = Literal["loaded", "loading", "not loaded", "unknown"]


@dataclass(frozen=True, slots=True)
class CollectionCare:
    """One collection. What is None has its reason in `unknown`, by field name.

    `loaded_ratio` is 0 to 1; `index` says the state of the dense index in words; `filling_from` names the source of an unfinished
    re-embedding; `replaced_by` the collection that is in use in its place.
    """

    name: str
    rows: int | None
    size_bytes: int | None
    dimension: int | None
    load_state: LoadState
    loaded_ratio: float | None
    index: str | None
    unflushed_rows: int
    last_write_unix: float | None
    schema_version: int | None
    active: bool
    read_only: bool
    filling_from: str | None
    replaced_by: str | None
    ours: bool
    unknown: Mapping[str, str]

    @property
    def holds_questions(self) -> bool:
        """Whether these are vectors of the semantic cache, not passages."""
        return self.name.startswith(CACHED_QUESTIONS)


@dataclass(frozen=True, slots=True)
class Outgrown:
    """Milvus Lite holds more than it searches quickly. `why` is a sentence with its numbers."""

    severity: Literal["warn", "critical"]
    why: str


def look(store: Store, active: str | None) -> tuple[CollectionCare, ...]:
    """Every collection. Raises RagError where the store is away."""
    store.open()
    with store.mapped("look at the collections"):
        used = live.read(store.client, store.timeout)
        names = sorted(str(name) for name in store.client.list_collections(timeout=store.timeout))
        return tuple(_look_at(store, name, active, used) for name in names)


def _look_at(store: Store, name: str, active: str | None, used: Mapping[str, str]) -> CollectionCare:
    client, timeout = store.client, store.timeout
    known = client.describe_collection(name, timeout=timeout)
    dimensions = [int(field["params"]["dim"]) for field in known["fields"] if (field.get("params") or {}).get("dim")]
    rows = client.get_collection_stats(name, timeout=timeout).get("row_count")
    state, ratio = _load_state(client, name, timeout)
    folder = _folder(store, name)
    unknown: dict[str, str] = {}
    if folder is None:
        unknown["size_bytes"] = "a Milvus server does not tell a collection's size; its object storage does"
        unknown["last_write_unix"] = "a Milvus server does not tell when a collection was last written to"
    if rows is None:
        unknown["rows"] = "the store did not say"
    if not dimensions:
        unknown["dimension"] = "no dense vectors"
    index = _index(client, name, timeout)
    if index is None:
        unknown["index"] = "it has no dense index"
    size, written = _on_disk(folder) if folder else (None, None)
    properties = dict(known.get("properties") or {})
    logical = live.name_of(name)
    current = used.get(logical, logical)
    text = str(properties.get(versions.PROPERTY, "1"))
    return CollectionCare(
        name=name,
        rows=None if rows is None else int(rows),
        size_bytes=size,
        dimension=dimensions[0] if dimensions else None,
        load_state=state,
        loaded_ratio=ratio,
        index=index,
        unflushed_rows=store.unflushed(name),
        last_write_unix=written,
        schema_version=int(text) if text.isdecimal() else None,
        active=name == active,
        read_only=store.mapping is not None and store.mapping.collection == name,
        filling_from=str(properties[FROM]) if FROM in properties and current != name else None,
        replaced_by=current if current != name and FROM not in properties else None,
        ours={"id", "text", "indexed", "document_id"} <= {field["name"] for field in known["fields"]},
        unknown=unknown,
    )


def _load_state(client: Any, name: str, timeout: float) -> tuple[LoadState, float | None]:
    found = client.get_load_state(name, timeout=timeout)
    words = re.sub(r"[^a-z]", "", str(getattr(found["state"], "name", found["state"])).lower())
    if words == "loaded":
        return "loaded", 1.0
    if words == "loading":
        progress = found.get("progress")
        return "loading", None if progress is None else float(progress) / 100
    return ("not loaded", 0.0) if words == "notload" else ("unknown", None)


def _index(client: Any, name: str, timeout: float) -> str | None:
    """`FLAT, finished`, `AUTOINDEX, 1,200 rows pending`: of the first dense index."""
    shape = layout.read(client, name, timeout)
    for index in client.list_indexes(name, timeout=timeout):
        found = client.describe_index(name, index, timeout=timeout) or {}
        if found.get("field_name") in shape.dense:
            pending = int(found.get("pending_index_rows") or 0)
            state = f"{pending:,} rows pending" if pending else str(found.get("state") or "state not told").lower()
            return f"{found.get('index_type')}, {state}"
    return None


def _folder(store: Store, name: str) -> Path | None:
    if not store.embedded:
        return None
    folder = Path(store.address) / "collections" / name
    return folder if folder.is_dir() else None


def _on_disk(folder: Path) -> tuple[int, float | None]:
    """Bytes, and when a file was last written (Unix seconds): a write, a flush or a change of its properties."""
    size, newest = 0, None
    for path in folder.rglob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:  # a flush replaced it
            continue
        if path.is_file():
            size += found.st_size
            newest = max(newest or 0.0, found.st_mtime)
    return size, newest


def outgrown(collections: Sequence[CollectionCare], *, embedded: bool, searches: Sequence[float] = ()) -> Outgrown | None:
    """Whether to move to a server: by the rows of the collection in use, or by its searches' measured seconds (the last ones)."""
    if not embedded:
        return None
    rows = max((item.rows or 0 for item in collections if item.active), default=0)
    median = sorted(searches)[len(searches) // 2] if len(searches) >= ENOUGH_SEARCHES else None
    told = f"Its last {len(searches)} searches took {median * 1000:.0f} ms in the median. " if median is not None else ""
    if rows < WARN_ROWS and (median is None or median < WARN_SECONDS):
        return None
    critical = rows >= CRITICAL_ROWS or (median is not None and median >= CRITICAL_SECONDS)
    why = (
        f"The collection in use has {rows:,} rows. {told}Milvus Lite compares every one: a search took 0.18 s at 20,000 rows "
        "and 0.77 s at 100,000 on two cores, the first one after a start 1.1 s and 5.2 s."
    )
    return Outgrown("critical" if critical else "warn", why)
