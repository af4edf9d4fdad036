"""The version of a collection's content: another one after every change, the same for all who share the store."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_server.interfaces import ModelInfo
from rag.content_versions import RENEW_SECONDS, WRITER_GONE_SECONDS, ContentVersions
from rag.store import Store
from rag.types import PassageRow
from tests.rag.cache_samples import Clock

MODEL = ModelInfo("tiny", "embedder", "tiny-4", "cpu", "fp32", dimension=4)
ROW = PassageRow("p1", "d1", "h1", 0, "text", "title", "a.md")


@pytest.fixture
def store(tmp_path):
    found = Store(uri=None, data_dir=tmp_path, collection="passages", timeout=30.0)
    yield found
    found.close()


def _write(store: Store, name: str, row: PassageRow = ROW) -> None:
    store.write_document(name, [row], np.ones((1, 4), dtype=np.float32), None, "2026-11-21T00:00:00Z")


def test_a_change_makes_another_version_that_outlives_the_process(store, tmp_path):
    name = store.use(MODEL)
    first = store.versions.current(name)
    assert first == store.versions.current(name) is not None
    _write(store, name)
    assert store.versions.current(name) is None, "half of the documents may be in"
    store.flush(name)
    second = store.versions.current(name)
    assert second not in (None, first)
    store.flush(name)
    assert store.versions.current(name) == second, "nothing was written"
    store.close()
    again = Store(uri=None, data_dir=tmp_path, collection="passages", timeout=30.0)
    assert again.versions.current(again.use(MODEL)) == second
    again.remove_document(name, "d1")
    assert again.versions.current(name) not in (None, first, second)
    again.close()


def test_a_change_is_told_with_its_documents(store):
    name, told = store.use(MODEL), []
    store.versions.on_change = told.append
    before = store.versions.current(name)
    _write(store, name)
    _write(store, name, PassageRow("p2", "d2", "h2", 0, "other", "title", "b.md"))
    assert told == []
    store.flush(name)
    (change,) = told
    assert (change.collection, change.old, change.new) == (name, before, store.versions.current(name))
    assert change.documents == {"d1", "d2"}


def test_collections_have_versions_of_their_own_and_one_that_is_made_anew_has_another(store):
    one, other = store.use(MODEL), store.use(MODEL, "other")
    before, first = store.versions.current(other), store.versions.current(one)
    _write(store, one)
    store.flush(one)
    assert store.versions.current(other) == before
    store.drop(one)
    assert store.use(MODEL) == one
    assert store.versions.current(one) not in (None, first)


def test_what_another_process_writes_is_seen_when_the_version_has_aged(store):
    clock = Clock()
    ours, theirs = ContentVersions(store, max_age_seconds=2, clock=clock), ContentVersions(store)
    store.embedded = False  # as for a server, which others write to
    name = store.use(MODEL)
    known = ours.current(name)
    theirs.writing(name, "d1")
    assert ours.current(name) == known
    clock.now += 3
    assert ours.current(name) is None
    theirs.settled(name)
    clock.now += 3
    assert ours.current(name) == theirs.current(name) != known
    store.embedded = True


def test_a_writer_that_was_killed_blocks_nobody_for_ever(store):
    wall, clock = Clock(), Clock()
    name = store.use(MODEL)
    killed = ContentVersions(store, wall_clock=wall)
    killed.writing(name, "d1")
    after = ContentVersions(store, wall_clock=wall)
    assert after.current(name) is None
    wall.now += WRITER_GONE_SECONDS + 1
    assert after.current(name) is not None
    slow = ContentVersions(store, clock=clock, wall_clock=wall)
    slow.writing(name, "d1")
    wall.now += WRITER_GONE_SECONDS - 1
    clock.now += RENEW_SECONDS + 1
    slow.writing(name, "d2")
    wall.now += 2
    assert ContentVersions(store, wall_clock=wall).current(name) is None, "the mark was renewed"
