"""The index of cached questions: one contract for memory and for Milvus, here Milvus Lite behind the store."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_server.interfaces import ModelInfo
from rag.cache.index import MemoryIndex, Row, fused
from rag.cache.milvus_index import BASE, MilvusIndex
from rag.store import Store
from tests.rag.cache_samples import vector

EMBEDDER = ModelInfo("tiny", "embedder", "tiny-4", "cpu", "fp32", dimension=4, learned_sparse=True)
SCOPE, OTHER = "a" * 16, "b" * 16
ROWS = [
    Row(f"{SCOPE}1", SCOPE, "Why is the GPU idle?", vector(1, 0, 0, 0), 10.0),
    Row(f"{SCOPE}2", SCOPE, "Which port does Milvus use?", vector(0, 1, 0, 0), 11.0),
    Row(f"{SCOPE}3", SCOPE, "How long are logs kept?", vector(0, 0.9, 0.4, 0), 12.0),
    Row(f"{OTHER}4", OTHER, "Why is the GPU idle?", vector(1, 0, 0, 0), 13.0),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(uri=None, data_dir=tmp_path_factory.mktemp("index"), collection="passages", timeout=30.0)
    yield store
    store.close()


@pytest.fixture(params=["memory", "milvus"])
def index(request, store):
    found = MemoryIndex() if request.param == "memory" else MilvusIndex(store, lambda: EMBEDDER, timeout=30.0)
    found.add(ROWS)
    yield found
    found.clear()


def test_nearest_by_both_routes_with_both_scores(index):
    near = index.search(SCOPE, vector(0.1, 1, 0, 0), "milvus port", 2)
    assert near[0].id == f"{SCOPE}2"
    assert near[0].question == "Which port does Milvus use?"
    assert near[0].dense == pytest.approx(0.995, abs=0.01)
    assert near[0].sparse > 0
    assert all(item.id.startswith(SCOPE) for item in near)


def test_what_only_the_words_find_has_its_cosine_too(index):
    near = {item.id: item for item in index.search(SCOPE, vector(0, 1, 0, 0), "gpu idle", 1)}
    assert near[f"{SCOPE}1"].dense == pytest.approx(0.0, abs=1e-6)
    assert near[f"{SCOPE}1"].sparse > 0


def test_scopes_are_kept_apart_and_an_unknown_one_is_empty(index):
    assert [item.id for item in index.search(OTHER, vector(1, 0, 0, 0), "port", 5)] == [f"{OTHER}4"]
    assert index.search("c" * 16, vector(1, 0, 0, 0), "port", 5) == []


def test_removed_and_replaced(index):
    index.remove([f"{SCOPE}1", "nobody"])
    assert index.count() == 3
    assert f"{SCOPE}1" not in {item.id for item in index.search(SCOPE, vector(1, 0, 0, 0), "gpu idle", 5)}
    index.add([ROWS[1]._replace(question="Which port does Redis use?", vector=vector(0, 0, 0, 1))])
    assert index.count() == 3
    near = index.search(SCOPE, vector(0, 0, 0, 1), "redis", 1)
    assert (near[0].question, round(near[0].dense, 3)) == ("Which port does Redis use?", 1.0)


def test_a_question_without_words_is_searched_by_its_vector(index):
    assert index.search(SCOPE, vector(1, 0, 0, 0), "???", 1)[0].id == f"{SCOPE}1"


def test_milvus_keeps_cached_questions_in_a_collection_of_their_own(store):
    index = MilvusIndex(store, lambda: EMBEDDER, timeout=30.0)
    index.add(ROWS[:1])
    assert [info.name for info in store.collections(None)] == [f"{BASE}__tiny_4"]
    index.clear()


def test_memory_finds_what_brute_force_finds_and_survives_growth():
    chance = np.random.default_rng(5)
    vectors = chance.standard_normal((500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = MemoryIndex()
    index.add(Row(f"{SCOPE}{n}", SCOPE, f"question number {n}", vectors[n]) for n in range(500))
    index.remove(f"{SCOPE}{n}" for n in range(0, 500, 2))
    asked = chance.standard_normal(16).astype(np.float32)
    scores = vectors @ asked
    best = max((n for n in range(500) if n % 2), key=lambda n: scores[n])
    assert index.search(SCOPE, asked, "zzz", 3)[0].id == f"{SCOPE}{best}"
    assert index.count() == 250
    index.add([Row(f"{SCOPE}new", SCOPE, "entirely fresh words", vectors[0])])
    assert index.search(SCOPE, asked, "fresh words", 1)[-1].id in {f"{SCOPE}new", f"{SCOPE}{best}"}
    assert f"{SCOPE}new" in {item.id for item in index.search(SCOPE, asked, "fresh words", 1)}


def test_a_vector_of_another_dimension_finds_nothing():
    index = MemoryIndex()
    index.add(ROWS[:1])
    assert index.search(SCOPE, vector(1, 0), "gpu", 3) == []
    index.add([Row(f"{SCOPE}9", SCOPE, "gpu", vector(1, 0))])
    assert index.count() == 1


def test_fusion_orders_by_the_sum_of_reciprocal_ranks():
    assert fused([1, 2, 3], [3, 1]) == [1, 3, 2]
