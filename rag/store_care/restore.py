"""A backup's collections and files put back: everything is checked and made aside before anything that is there is replaced.

What is replaced by files is moved into a folder beside them, not deleted. Knows nothing of who uses the data folder now, but asks
that nobody has its files open.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from rag.content_versions import PROPERTY as CONTENT
from rag.content_versions import new_version
from rag.errors import Cancelled, RagError
from rag.store import Store
from rag.store_care import data_files, layout, live, versions
from rag.store_care.archive import Archive, check_space, mapped
from rag.store_care.layout import Layout
from rag.store_care.rows import BATCH, Pace, Row, Source, batches

ASIDE = "__restoring"

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Restored:
    """Rows by collection, names of files, and where the files went that were replaced (None where none was)."""

    collections: dict[str, int]
    files: tuple[str, ...]
    replaced: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Plan:
    collections: tuple[Mapping[str, Any], ...]
    files: tuple[str, ...]


def restore(
    path: Path,
    *,
    store: Store | None,
    data_dir: Path,
    names: Sequence[str] = (),
    parts: Sequence[str] = data_files.PARTS,
    force: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, Restored]:
    """Events `store_progress`; returns what was put back. `store` None restores no collections, no `names` all of them.

    Raises RagError, with nothing changed: bad_input for a file that is no whole backup or for something that is there already and
    not to be replaced (`force`), held where another process has the files open, internal where the disk has no room.
    """
    with Archive(path) as archive:
        plan = _planned(archive, store, names, parts)
        pace = Pace("checking", sum(record["bytes"] for record in archive.members.values()))
        for size in archive.verify(cancelled):
            yield pace.event(size)
        _check(cancelled)
        _refuse(store, data_dir, plan, force)
        data_dir.mkdir(parents=True, exist_ok=True)
        check_space(data_dir, _needed(archive, plan))
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=data_dir) as folder:
            aside = Path(folder)
            _extract(archive, plan.files, aside)
            made: list[tuple[str, int]] = []
            try:
                for item in plan.collections:
                    assert store is not None
                    made.append((item["name"], (yield from _fill(archive, store, item, cancelled))))
                _check(cancelled)
            except BaseException:
                _forget(store, plan)
                raise
            if store is not None:
                _swap(store, archive, made)
            replaced = _replace(aside, data_dir, plan.files, now())
    return Restored(dict(made), plan.files, str(replaced) if replaced else None)


# 1) before anything is changed


def _planned(archive: Archive, store: Store | None, names: Sequence[str], parts: Sequence[str]) -> _Plan:
    try:
        known = {item["name"]: item for item in archive.manifest["collections"]}
        for item in known.values():
            if Layout.from_json(item["layout"]).primary not in Layout.from_json(item["layout"]).stored:
                raise ValueError("a layout without a primary key")
            if int(item["schema_version"]) > versions.CURRENT:
                raise RagError(
                    f"the collection {item['name']} in the backup has schema version {item['schema_version']}; this version of "
                    f"the program knows {versions.CURRENT}",
                    kind="bad_input",
                    next_step="Update this program, then restore it.",
                )
        files = [str(name) for name in archive.manifest["files"]]
        if any(f"data/{name}" not in archive.members for name in files):
            raise KeyError("files")
    except (KeyError, TypeError, ValueError, StopIteration, AttributeError):
        raise archive.bad("its manifest does not describe what is in it") from None
    for name in names:
        if name not in known:
            raise RagError(
                f"the backup holds no collection {name!r}",
                kind="not_found",
                next_step=f"It holds: {', '.join(known) or 'none'}.",
            )
    chosen = [known[name] for name in names] if names else list(known.values())
    return _Plan(tuple(chosen) if store is not None else (), tuple(name for name in files if data_files.part_of(name) in parts))


def _refuse(store: Store | None, data_dir: Path, plan: _Plan, force: bool) -> None:
    there = [data_dir / name for name in plan.files if (data_dir / name).exists()]
    process = data_files.holder(there)
    if process is not None:
        raise RagError(
            f"process {process} has files of {data_dir} open; they cannot be replaced under it",
            kind="held",
            address=str(data_dir),
            next_step="Stop the dashboard first, or restore into another data folder (RAGDECK_DATA). Nothing was changed.",
        )
    full = []
    if store is not None and plan.collections:
        store.open()
        with store.mapped("list the collections"):
            names = {str(name) for name in store.client.list_collections(timeout=store.timeout)}
        full = [item["name"] for item in plan.collections if item["name"] in names and Source.open(store, item["name"]).count()]
    found = [*full, *(path.name for path in there)]
    if found and not force:
        raise RagError(
            f"there is something already: {', '.join(found)}",
            kind="bad_input",
            next_step="Add --force to replace it, or restore into another folder (RAGDECK_DATA) or store. Nothing was changed.",
        )


def _needed(archive: Archive, plan: _Plan) -> int:
    sizes = {name: int(record["bytes"]) for name, record in archive.members.items()}
    prefixes = tuple(f"collections/{int(item['number']):04}/" for item in plan.collections)
    files = sum(sizes[f"data/{name}"] for name in plan.files)
    return files + sum(size for name, size in sizes.items() if prefixes and name.startswith(prefixes))


def _extract(archive: Archive, files: Sequence[str], aside: Path) -> None:
    for name in files:
        path = aside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        archive.extract(f"data/{name}", path)
        if data_files.is_database(path):
            data_files.check_database(path, name)


# 2) made aside


def _fill(archive: Archive, store: Store, item: Mapping[str, Any], cancelled: Callable[[], bool]) -> Generator[Event, None, int]:
    """A collection under a name of its own, with all its rows, counted."""
    shape, aside = Layout.from_json(item["layout"]), item["name"] + ASIDE
    properties = {versions.PROPERTY: str(item["schema_version"]), CONTENT: new_version()}
    with store.exclusive(), store.mapped(f"make {aside}"):
        if store.client.has_collection(aside, timeout=store.timeout):
            store.client.drop_collection(aside, timeout=store.timeout)
        layout.create(store.client, aside, shape, embedded=store.embedded, properties=properties, timeout=store.timeout)
    target = Source(store, aside, shape)
    pace = Pace(f"restoring {item['name']}", int(item["rows"]))
    yield pace.event()
    for part in range(1, int(item["parts"]) + 1):
        for batch in batches(_rows(archive, shape, f"collections/{int(item['number']):04}/{part:05}"), BATCH):
            _check(cancelled)
            target.write(batch)
            yield pace.event(len(batch))
    target.settle()
    count = target.count()
    if count != int(item["rows"]):
        raise archive.bad(f"{count:,} rows of {item['name']} could be written, its manifest says {item['rows']:,}")
    return count


def _rows(archive: Archive, shape: Layout, stem: str) -> list[Row]:
    try:
        rows = [json.loads(line) for line in archive.read(f"{stem}.jsonl").decode().split("\n")]
        for field in shape.dense:
            vectors = np.load(BytesIO(archive.read(f"{stem}.{field}.npy")), allow_pickle=False)
            for row, vector in zip(rows, vectors, strict=True):
                row[field] = vector.tolist()
    except (ValueError, KeyError, TypeError):
        raise archive.bad(f"{stem} holds no rows of this layout") from None
    for field in shape.sparse:
        for row in rows:
            row[field] = {int(key): float(value) for key, value in row[field].items()}
    return rows


def _forget(store: Store | None, plan: _Plan) -> None:
    for item in plan.collections:
        if store is not None:
            with store.exclusive(), store.mapped("remove what was restored in part"):
                store.client.drop_collection(item["name"] + ASIDE, timeout=store.timeout)


# 3) put in place


def _swap(store: Store, archive: Archive, made: Sequence[tuple[str, int]]) -> None:
    names = {name for name, _ in made}
    for name in names:
        with store.exclusive(), store.mapped(f"put {name} in place"):
            if store.client.has_collection(name, timeout=store.timeout):
                store.drop(name)
            store.client.rename_collection(name + ASIDE, name, timeout=store.timeout)
            store.client.load_collection(name, timeout=max(60.0, store.timeout))
    used = dict(archive.manifest.get("live") or {})
    with store.mapped("read the aliases"):
        now_used = live.read(store.client, store.timeout)
    for name in sorted(names):
        logical = live.name_of(name)
        if used.get(logical, logical) == name != now_used.get(logical, logical):
            store.switch(logical, name)


def _replace(aside: Path, data_dir: Path, files: Sequence[str], now: datetime) -> Path | None:
    """Move what is there out of the way, then the restored files in; where that fails, back again."""
    kept, done = data_dir / f"replaced-{now:%Y%m%d-%H%M%S}", []
    moved: list[tuple[Path, Path]] = []
    with mapped(data_dir, "written"):
        try:
            for name in files:
                for suffix in ("", "-wal", "-shm", "-journal"):
                    old = data_dir / f"{name}{suffix}"
                    if old.exists():
                        (kept / name).parent.mkdir(parents=True, exist_ok=True)
                        os.replace(old, kept / f"{name}{suffix}")
                        moved.append((kept / f"{name}{suffix}", old))
            for name in files:
                (data_dir / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside / name, data_dir / name)
                done.append(data_dir / name)
        except OSError:
            for path in done:
                path.unlink(missing_ok=True)
            for path, old in moved:
                os.replace(path, old)
            shutil.rmtree(kept, ignore_errors=True)
            raise
    return kept if moved else None


def _check(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("stopped; nothing was changed", kind="internal")
