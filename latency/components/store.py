"""The passage store: connect, open the collection and first search in a process of their own, then searches here.

The process that is tested has its connection already, and pymilvus hands the same one out again; so connecting is timed in a
child process, as a program that starts now would find it. The embedded store can be open in one process only: the child gets a
copy of its files. `python -m latency.components.store` is that child: it reads its task from standard input.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpu_server.interfaces import Embeddings, ModelInfo
from latency.components.rows import Bench, Row, StorePlace, skipped
from latency.components.targets import CODES
from rag.errors import RagError
from rag.routes import FieldMapping
from rag.store import Store

QUESTION = "Why is the first answer after a start so slow?"
ROOT = Path(__file__).parents[2]
COPY_BYTES = 512_000_000
CHILD_SECONDS = 60.0  # besides the store's own time limits: a slow machine's imports
CHILD = "latency.components.store"


def store(bench: Bench) -> Iterator[Row]:
    """Rows `store.connect`, `store.load`, `store.connect_load`, `store.first_search`, `store.search`."""
    clients = bench.clients
    info = clients.embedder.info
    embedded = clients.embedder.embed([QUESTION], "query", priority=1, caches="bypass")
    name = clients.store.use(info)
    yield from _anew(bench, info, embedded)
    limit, sparse = bench.options.candidates, embedded.sparse[0] if embedded.sparse else None
    samples, found = bench.timed(lambda _: clients.store.search(name, embedded.dense[0], QUESTION, limit, sparse=sparse))
    trip = clients.store.round_trip_seconds
    values = {"limit": limit, "rows": clients.store.count(name), "found": len(found.dense), "round_trip_seconds": trip}
    where = "embedded, in this process" if clients.store.embedded else f"at {clients.store.address}, on the open connection"
    yield Row("store.search", CODES["store.search"], samples, f"{limit} hits of each route, {where}", values)


def _anew(bench: Bench, info: ModelInfo, embedded: Embeddings) -> Iterator[Row]:
    codes = ("store.connect", "store.load", "store.connect_load", "store.first_search")
    place = bench.parts.store
    if place is None:
        yield from (skipped(code, CODES[code], "how the store is reached was not told") for code in codes)
        return
    with _place(place) as (usable, how):
        if usable is None:
            yield from (skipped(code, CODES[code], f"already open: {how}") for code in codes)
            return
        told = _child(bench, usable, info, embedded)
    if problem := told.get("error"):
        raise RagError(problem["message"], kind=problem["kind"], address=problem["address"], next_step=problem["next_step"])
    connect, load = told["connect_seconds"], told["load_seconds"]
    values = {"round_trip_seconds": told["round_trip_seconds"], "import_seconds": told["import_seconds"]}
    checked = "" if place.uri is None else "; a server that has the collection loaded already only checks it"
    yield Row(codes[0], CODES[codes[0]], (connect,), f"{how}; without {told['import_seconds']:.2g} s for imports", values)
    yield Row(codes[1], CODES[codes[1]], (load,), f"{how}{checked}")
    yield Row(codes[2], CODES[codes[2]], (connect + load,), how)
    yield Row(codes[3], CODES[codes[3]], (told["search_seconds"],), f"{how}, {bench.options.candidates} hits of each route")


@contextmanager
def _place(place: StorePlace) -> Iterator[tuple[StorePlace | None, str]]:
    """Where a second process can connect, and how to say it; None, and why, where it cannot."""
    if place.uri is not None:
        yield place, "a new process and connection"
        return
    files = place.data_dir / "milvus.db"
    size = sum(file.stat().st_size for file in files.rglob("*") if file.is_file())
    if size > COPY_BYTES:
        yield None, f"its {size / 1e6:.0f} MB are too many to copy, and one process at a time can open it"
        return
    with tempfile.TemporaryDirectory(prefix="ragdeck-store-") as folder:
        # one that is written to meanwhile may be copied half: the child's error then says so
        shutil.copytree(files, Path(folder) / "milvus.db")
        yield replace(place, data_dir=Path(folder)), f"a new process on a copy of the files ({size / 1e6:.3g} MB)"


def _child(bench: Bench, place: StorePlace, info: ModelInfo, embedded: Embeddings) -> Mapping[str, Any]:
    """What the child process measured, or its error. Raises RagError for one that says nothing, Cancelled."""
    task = {
        "place": {**asdict(place), "data_dir": str(place.data_dir)},
        "info": asdict(info),
        "dense": embedded.dense[0].tolist(),
        "sparse": dict(embedded.sparse[0]) if embedded.sparse else None,
        "limit": bench.options.candidates,
    }
    end = time.monotonic() + CHILD_SECONDS + 3 * place.timeout_seconds
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-m", CHILD], stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT)
    given: bytes | None = json.dumps(task, default=_number).encode()
    try:
        while True:
            try:
                out, err = process.communicate(given, timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                given = None  # it has been handed over: what is left is to wait
            bench.check()
            if time.monotonic() > end:
                raise RagError("the store could not be opened anew in time", kind="timeout", address=place.uri)
    finally:
        process.kill()
        process.wait()
    said, complaint = out.decode("utf-8", "replace"), err.decode("utf-8", "replace").strip()
    try:
        told: Mapping[str, Any] = json.loads(said.strip().rpartition("\n")[2])
    except ValueError:
        reason = complaint.rpartition("\n")[2] or f"exit code {process.returncode}"
        raise RagError(f"the process that opens the store anew failed: {reason}", kind="internal") from None
    return told


def _number(value: Any) -> Any:
    """numpy's numbers as Python's."""
    return value.item()


# the child's side


def main() -> None:
    """Do the task on standard input; one line of JSON on standard output: seconds of each step, or the error."""
    task = json.load(sys.stdin)
    try:
        told: dict[str, Any] = _measure(task)
    except RagError as problem:
        error = {"kind": problem.kind, "message": problem.message, "address": problem.address, "next_step": problem.next_step}
        told = {"error": error}
    print(json.dumps(told), flush=True)


def _measure(task: Mapping[str, Any]) -> dict[str, Any]:
    place, info = task["place"], ModelInfo(**task["info"])
    started = time.perf_counter()
    for name in ("pymilvus", "milvus_lite.server_manager"):  # what the store imports at its first use: no part of connecting
        importlib.import_module(name)
    imported = time.perf_counter()
    mapping = FieldMapping(**place["mapping"]) if place["mapping"] else None
    opened = Store(
        uri=place["uri"],
        data_dir=Path(place["data_dir"]),
        collection=place["collection"],
        token=place["token"],
        timeout=place["timeout_seconds"],
        mapping=mapping,
    )
    try:
        begun = time.perf_counter()
        opened.open()
        connected = time.perf_counter()
        name = opened.use(info, create=False)
        loaded = time.perf_counter()
        sparse = {int(key): weight for key, weight in task["sparse"].items()} if task["sparse"] else None
        opened.search(name, np.array(task["dense"], dtype=np.float32), QUESTION, task["limit"], sparse=sparse)
        searched = time.perf_counter()
        trip = opened.round_trip_seconds
    finally:
        opened.close()
    return {
        "import_seconds": imported - started,
        "connect_seconds": connected - begun,
        "load_seconds": loaded - connected,
        "search_seconds": searched - loaded,
        "round_trip_seconds": trip,
    }


if __name__ == "__main__":
    main()
