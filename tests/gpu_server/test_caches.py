"""The cache before an embedder: what is kept, for which model, how much, and what a result says. The model is a fake."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from gpu_server.caches import CachedEmbedder
from gpu_server.errors import ConnectionFailed
from gpu_server.interfaces import Timing, VectorKind
from tests.gpu_server.cache_fakes import FakeEmbedder, lengths

DENSE: frozenset[VectorKind] = frozenset({"dense"})


def test_an_equal_query_is_computed_once():
    model = FakeEmbedder(late=True)
    cached = CachedEmbedder(model)
    first = cached.embed(["abc"], "query")
    again = cached.embed(["abc"], "query")
    assert model.calls == [["abc"]]
    assert first.cached == 0 and first.tokens == 3 and first.timing.cold and first.timing.compute == 2.0
    assert again.cached == 1 and again.tokens == 0 and again.timing == Timing()
    assert again.dense.dtype == np.float32 and again.dense.tolist() == first.dense.tolist()
    assert again.sparse == first.sparse == ({3: 0.5},)
    assert again.late is not None and again.late[0].tolist() == [[1.0, 1.0]] * 3


def test_only_what_is_missing_is_computed_and_the_order_is_kept():
    model = FakeEmbedder()
    cached = CachedEmbedder(model)
    cached.embed(["aa", "bbbb"], "query")
    result = cached.embed(["ccc", "aa", "d", "bbbb", "ccc"], "query")
    assert model.calls == [["aa", "bbbb"], ["ccc", "d"]]
    assert lengths(result) == [3, 2, 1, 4, 3]
    assert result.cached == 2 and result.tokens == 4 and result.timing.compute == 2.0
    assert (cached.stats.hits, cached.stats.misses) == (2, 5)
    assert cached.stats.hit_ratio == pytest.approx(2 / 7)


def test_nothing_asked_has_no_hit_ratio():
    assert CachedEmbedder(FakeEmbedder()).stats.hit_ratio is None


def test_bulk_passages_pass_through_and_a_single_one_is_kept():
    model = FakeEmbedder()
    cached = CachedEmbedder(model)
    for _ in range(2):
        cached.embed(["a", "b"])
        cached.embed(["single"])
    assert model.calls == [["a", "b"], ["single"], ["a", "b"]]
    assert cached.stats.entries == 1


def test_kind_and_wanted_vectors_are_told_apart():
    model = FakeEmbedder()
    cached = CachedEmbedder(model)
    cached.embed(["a"], "query")
    cached.embed(["a"], "passage")
    cached.embed(["a"], "query", vectors=DENSE)
    assert len(model.calls) == 3


def test_texts_that_are_no_utf8_are_kept_too():
    cached = CachedEmbedder(FakeEmbedder())
    cached.embed(["\ud800", "x" * 100_000], "query")
    assert cached.embed(["x" * 100_000, "\ud800"], "query").cached == 2


def test_truncation_is_reported_from_the_cache_too():
    cached = CachedEmbedder(FakeEmbedder())
    assert cached.embed(["short", "x" * 50, "y" * 30], "query").truncated == 2
    assert cached.embed(["short"], "query").truncated == 0
    assert cached.embed(["y" * 30, "short"], "query").truncated == 1


@pytest.mark.parametrize("mode", ["bypass", "refresh"])
def test_bypass_and_refresh_always_compute(mode):
    model = FakeEmbedder()
    cached = CachedEmbedder(model)
    cached.embed(["abc"], "query")
    result = cached.embed(["abc"], "query", caches=mode)
    assert result.cached == 0 and result.tokens == 3
    assert model.calls == [["abc"]] * 2 and model.modes == ["use", mode]
    assert (cached.stats.hits, cached.stats.misses) == (0, 1)  # neither looked anything up


def test_bypass_keeps_nothing_and_refresh_replaces():
    model = FakeEmbedder()
    cached = CachedEmbedder(model)
    cached.embed(["bypassed"], "query", caches="bypass")
    assert cached.stats.entries == 0
    cached.embed(["a"], "query")
    model.answer = lambda texts: replace(FakeEmbedder().answer(texts), dense=np.full((1, 2), 9, np.float32))
    cached.embed(["a"], "query", caches="refresh")
    assert lengths(cached.embed(["a"], "query")) == [9]


def test_a_result_can_be_changed_without_changing_the_cache():
    cached = CachedEmbedder(FakeEmbedder(late=True))
    for _ in range(2):  # the computed answer and the one from the cache
        result = cached.embed(["abc"], "query")
        result.dense[:] = 0
        assert result.sparse is not None and result.late is not None
        dict.clear(result.sparse[0])
        with pytest.raises(ValueError, match="read-only"):
            result.late[0][:] = 0
    assert lengths(cached.embed(["abc"], "query")) == [3]
    assert cached.embed(["abc"], "query").sparse == ({3: 0.5},)


def test_what_the_model_gave_can_be_changed_without_changing_the_cache():
    model = FakeEmbedder()
    given = model.answer(["abc"])
    model.answer = lambda texts: given
    cached = CachedEmbedder(model)
    cached.embed(["abc"], "query")
    assert given.sparse is not None
    given.dense[:] = 0
    dict.clear(given.sparse[0])
    again = cached.embed(["abc"], "query")
    assert lengths(again) == [3] and again.sparse == ({3: 0.5},)


def test_the_least_recently_used_goes_first():
    model = FakeEmbedder()
    cached = CachedEmbedder(model, max_entries=2)
    for text in ("a", "b", "a", "c"):
        cached.embed([text], "query")
    assert cached.stats.entries == 2 and cached.stats.evictions == 1
    assert cached.embed(["a"], "query").cached == 1
    assert cached.embed(["b"], "query").cached == 0


def test_bytes_are_bounded_by_what_entries_really_take():
    limit_bytes = 512 * 1024
    cached = CachedEmbedder(FakeEmbedder(late=True), max_bytes=limit_bytes)
    cached.embed(["warm-up"], "query")
    tracemalloc.start()
    try:
        for number in range(1000):
            cached._inner.calls.clear()
            cached.embed([f"question {number}"], "query")
        taken_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    stats = cached.stats
    assert stats.bytes is not None and stats.evictions is not None
    assert stats.evictions > 0 and stats.bytes <= limit_bytes
    assert 0.6 * taken_bytes < stats.bytes < 1.5 * taken_bytes


def test_an_entry_over_the_bound_is_answered_and_not_kept():
    cached = CachedEmbedder(FakeEmbedder(late=True), max_bytes=4000)
    cached.embed(["small"], "query")
    assert lengths(cached.embed(["x" * 5000], "query")) == [5000]
    assert cached.stats.entries == 1


def test_who_the_model_is_is_asked_after_it_answered():
    model = FakeEmbedder()
    asked = []
    model.before = lambda deadline: asked.append(model.asked_who)
    CachedEmbedder(model).embed(["a"], "query")
    assert asked == [0] and model.asked_who == 1


def test_another_model_does_not_get_the_old_ones_vectors():
    model = FakeEmbedder()
    cached = CachedEmbedder(model)
    cached.embed(["a", "b"], "query")
    model.factor = 2.0
    result = cached.embed(["a"], "query")
    assert result.cached == 0 and result.dense.tolist() == [[1.0, 2.0]]
    model.factor = 1.0
    assert cached.embed(["a"], "query").cached == 1


def test_vectors_of_two_models_are_never_mixed():
    model = FakeEmbedder()
    cached = CachedEmbedder(model)
    cached.embed(["a"], "query")

    def exchange(deadline: float | None) -> None:
        model.factor = 2.0

    model.before = exchange
    result = cached.embed(["a", "bb"], "query")
    assert result.dense.tolist() == [[1.0, 2.0], [2.0, 2.0]]
    assert result.cached == 0


def test_a_model_that_cannot_say_who_it_is_is_served_and_not_kept():
    model = FakeEmbedder(info_error=ConnectionFailed("gone"))
    cached = CachedEmbedder(model)
    for _ in range(2):
        assert lengths(cached.embed(["abc"], "query")) == [3]
    assert len(model.calls) == 2 and cached.stats.entries == 0
