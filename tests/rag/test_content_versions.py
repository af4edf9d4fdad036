"""The version of a collection's content: another one after every change, the same for all who share the store."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_server.interfaces import ModelInfo
from rag.cache.versions import ContentVersions
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


def test_a_change_makes_another_version_that_outlives_the_process(store, tmp_path):
    versions = ContentVersions(store)
    name = store.use(MODEL)
    first = versions.current(name)
    assert versions.current(name) == first
    versions.changed(name)
    store.write_rows(name, [ROW], np.ones((1, 4), dtype=np.float32), None)
    store.flush(name)
    versions.changed(name)
    second = versions.current(name)
    assert second != first
    store.close()
    again = Store(uri=None, data_dir=tmp_path, collection="passages", timeout=30.0)
    assert ContentVersions(again).current(again.use(MODEL)) == second
    again.close()


def test_collections_have_versions_of_their_own_and_one_that_is_gone_can_still_change(store):
    versions = ContentVersions(store)
    one, other = store.use(MODEL), store.use(MODEL, "other")
    before = versions.current(other)
    versions.changed(one)
    assert versions.current(other) == before
    store.drop(one)
    versions.changed(one)
    assert store.use(MODEL) == one
    assert versions.current(one) != before


def test_what_another_process_changed_is_seen_when_the_version_has_aged(store):
    clock = Clock()
    ours, theirs = ContentVersions(store, max_age_seconds=2, clock=clock), ContentVersions(store)
    store.embedded = False  # as for a server, which others write to
    name = store.use(MODEL)
    known = ours.current(name)
    theirs.changed(name)
    assert ours.current(name) == known
    clock.now += 3
    assert ours.current(name) == theirs.current(name) != known
    store.embedded = True
