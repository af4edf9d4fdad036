"""Causes in the store and in what is asked of it: distance, a collection that is not ready, too many candidates, a slow disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rag.routes import Found
from rag.store import Store
from tests.faults import readings
from tests.faults.laboratory import Fault, Injection
from tests.faults.world import COLLECTION, Bench, World

LOAD_SECONDS = 0.4
FAR_SECONDS = 0.05


def tunnel(round_trip: float) -> Injection:
    """The store at the other end of a line; its connection is open before the query."""

    @contextmanager
    def inject(bench: Bench, world: World) -> Iterator[World]:
        yield world.with_clients(store=bench.far_store(round_trip))

    return inject


@contextmanager
def opened_in_request(bench: Bench, world: World) -> Iterator[World]:
    """A process that has not spoken to its store yet."""
    store = Store(uri=bench.milvus_through(FAR_SECONDS), data_dir=bench.folder, collection=COLLECTION, timeout=20.0)
    try:
        yield world.with_clients(store=store)
    finally:
        store.close()


class SlowLoads:
    """A Milvus client whose `load_collection` takes longer, as that of a large collection does."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def load_collection(self, *arguments: Any, **named: Any) -> None:
        time.sleep(LOAD_SECONDS)
        self._client.load_collection(*arguments, **named)


@contextmanager
def released(bench: Bench, world: World) -> Iterator[World]:
    """Somebody else released the collection: the search has to load it."""
    store = bench.store
    client = store.client
    client.release_collection(store.collection_name(bench.embedder.info))
    store.client = SlowLoads(client)
    try:
        yield world
    finally:
        store.client = client


@contextmanager
def unflushed(bench: Bench, world: World) -> Iterator[World]:
    yield world.with_options(collection=bench.unflushed)


@contextmanager
def many_candidates(bench: Bench, world: World) -> Iterator[World]:
    yield world.with_options(candidates=500)


class SlowSearches:
    """A store whose searches take longer, as on a disk that others keep busy."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store, self._seconds = store, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def search(self, *arguments: Any, **named: Any) -> Found:
        time.sleep(self._seconds)
        return self._store.search(*arguments, **named)


@contextmanager
def busy_disk(bench: Bench, world: World) -> Iterator[World]:
    yield world.with_clients(store=SlowSearches(world.clients.store, LOAD_SECONDS)).on(readings.busy_disk)


FAULTS = (
    Fault("store 40 ms away", "network_store", tunnel(0.04), base=lambda bench: bench.far_world(0.0), costs_little=True),
    # two round trips: just about the least cost that is judged
    Fault("store 150 ms away", "network_store", tunnel(0.15), base=lambda bench: bench.far_world(0.0), least_seconds=0.25),
    Fault("store 300 ms away", "network_store", tunnel(0.3), base=lambda bench: bench.far_world(0.0), only_long=True),
    Fault(
        "store opened inside the request",
        "store_not_loaded",
        opened_in_request,
        base=lambda bench: bench.far_world(FAR_SECONDS),
        only_long=True,
    ),
    Fault("collection released", "store_not_loaded", released, note="its load is made to take 0.45 s"),
    Fault("collection never flushed", "store_unflushed", unflushed, base=lambda bench: bench.flushed_world),
    Fault("500 candidates", "too_many_candidates", many_candidates, note="the reranker is a fake"),
    Fault("busy disk", "disk_saturated", busy_disk, note="seconds added to the search, readings recorded", only_long=True),
)
