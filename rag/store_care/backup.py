"""Collections with their vectors, and the data folder's files, into one file, while everything goes on running.

A collection is taken as a list of its keys and then row by row: what is removed meanwhile is not in the file, what is added may
not be. A document that was being written has no marker then and is ingested again. `rag.store_care.restore` reads it back.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import Cancelled
from rag.store import Store
from rag.store_care import data_files, live, versions
from rag.store_care.archive import ArchiveWriter
from rag.store_care.move import finished
from rag.store_care.rows import BATCH, Pace, Row, Source, batches

CHUNK_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Backup:
    """What is in the file: rows by collection, names of data files, and how large it is."""

    path: str
    size_bytes: int
    collections: dict[str, int]
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def backup(
    path: Path,
    *,
    store: Store | None,
    data_dir: Path,
    names: Sequence[str] = (),
    parts: Sequence[str] = ("databases", "settings"),
    version: str = "",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[dict[str, Any], None, Backup]:
    """Events `store_progress`; returns what was written. `store` None leaves collections out, no `names` takes all of them.

    The file appears under its name only when it is whole. Raises RagError.
    """
    with ArchiveWriter(path) as archive:
        about: dict[str, Any] = {
            "made_at": now().isoformat(timespec="seconds"),
            "program": version,
            "collections": [],
            "files": [],
        }
        chosen = (list(names) or finished(store)) if store is not None else []
        for number, name in enumerate(chosen, 1):
            assert store is not None
            about["collections"].append((yield from _collection(archive, Source.open(store, name), number, cancelled)))
        if store is not None:
            with store.mapped("read the aliases"):
                used = live.read(store.client, store.timeout)
            about["live"] = {logical: name for logical, name in used.items() if name in chosen}
        about["files"] = data_files.files(data_dir, parts)
        pace = Pace("copying files", len(about["files"]))
        for name in about["files"]:
            yield pace.event()
            _check(cancelled)
            _add_file(archive, data_dir / name, name)
            yield pace.event(1)
        archive.finish(about)
    rows = {item["name"]: item["rows"] for item in about["collections"]}
    return Backup(str(path), path.stat().st_size, rows, tuple(about["files"]))


def _add_file(archive: ArchiveWriter, path: Path, name: str) -> None:
    if not data_files.is_database(path):
        archive.add(f"data/{name}", path.read_bytes() if data_files.part_of(name) == "settings" else path)
        return
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=archive.path.parent) as folder:  # the same disk as the backup
        copy = Path(folder) / path.name
        data_files.copy_database(path, copy)
        archive.add(f"data/{name}", copy)


def _collection(
    archive: ArchiveWriter, source: Source, number: int, cancelled: Callable[[], bool]
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    keys = sorted(source.keys(), key=str)
    pace, rows, parts = Pace(f"saving {source.name}", len(keys)), 0, 0
    yield pace.event()
    for chunk in batches(keys, CHUNK_ROWS):
        taken: list[Row] = []
        for batch in batches(chunk, BATCH):
            _check(cancelled)
            taken += source.fetch(batch)
        if taken:
            parts += 1
            _add_rows(archive, source, f"collections/{number:04}/{parts:05}", taken)
        rows += len(taken)
        yield pace.event(len(chunk))
    description = source.store.describe(source.name)
    return {
        "name": source.name,
        "number": number,
        "rows": rows,
        "parts": parts,
        "schema_version": versions.of(description),
        "layout": source.layout.to_json(),
    }


def _add_rows(archive: ArchiveWriter, source: Source, stem: str, rows: list[Row]) -> None:
    dense = source.layout.dense
    lines = (
        json.dumps({key: plain(value) for key, value in row.items() if key not in dense}, ensure_ascii=False) for row in rows
    )
    archive.add(f"{stem}.jsonl", "\n".join(lines).encode())
    for field in dense:
        out = io.BytesIO()
        np.save(out, np.asarray([row[field] for row in rows], dtype=np.float32), allow_pickle=False)
        archive.add(f"{stem}.{field}.npy", out.getvalue())


def plain(value: Any) -> Any:
    """A field's value in JSON's types; arrays of Milvus come as sequences of their own."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return [plain(item) for item in value] if hasattr(value, "__iter__") else float(value)


def _check(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("stopped; no file was left", kind="internal")
