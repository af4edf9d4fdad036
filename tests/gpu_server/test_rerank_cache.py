"""The cache before a reranker: scores by pair, for one model and precision. The model is a fake."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gpu_server.caches import CachedReranker
from gpu_server.errors import Overloaded
from gpu_server.interfaces import CacheMode, RerankCandidate, Scores, Timing
from gpu_server.score_stores import MemoryScores
from gpu_server.starter import StarterReranker
from tests.gpu_server.cache_fakes import PATIENCE, FakeReranker, passages


def reranker(model: FakeReranker) -> CachedReranker:
    return CachedReranker(model, MemoryScores())


def test_only_pairs_that_are_missing_are_scored_and_the_order_is_kept():
    model = FakeReranker()
    cached = reranker(model)
    first = cached.score("q", passages("aa", "bbbb"))
    result = cached.score("q", passages("ccc", "bbbb", "aa", "d"))
    assert model.calls == [["aa", "bbbb"], ["ccc", "d"]]
    assert first.cached == 0
    assert result.values.dtype == np.float32 and result.values.tolist() == [2.25, 3.25, 1.25, 0.25]
    assert result.cached == 2 and result.tokens == 20 and result.timing == Timing(queue=0.5, compute=2.0)
    full = cached.score("q", passages("d", "aa"))
    assert full.values.tolist() == [0.25, 1.25]
    assert full.cached == 2 and full.tokens == 0 and full.timing == Timing()
    stats = cached.stats
    assert (stats.hits, stats.misses, stats.entries, stats.store, stats.problem) == (4, 4, 4, "memory", None)


def test_a_bypassing_proof_is_enough_to_know_the_model():
    store = MemoryScores()
    CachedReranker(FakeReranker(), store).score("q", passages("a"))
    restarted = CachedReranker(FakeReranker(), store)
    restarted.score("proof", passages("proof"), caches="bypass")
    assert restarted.score("q", passages("a")).cached == 1


def test_scores_belong_to_query_model_and_precision():
    model = FakeReranker()
    cached = reranker(model)
    cached.score("q", passages("a"))
    assert cached.score("qq", passages("a")).cached == 0
    assert cached.score("qa", passages("")).cached == 0
    model.precision = "int8"
    assert cached.score("q", passages("a")).cached == 0
    model.shift = 5.0
    assert cached.score("q", passages("a")).values.tolist() == [5.0]


def test_scores_of_two_models_are_never_mixed():
    model = FakeReranker()
    cached = reranker(model)
    cached.score("q", passages("a"))
    score = model.score

    def exchange(query: str, candidates: Sequence[RerankCandidate], **options: object) -> Scores:
        model.shift = 5.0
        return score(query, candidates)

    model.score = exchange
    result = cached.score("q", passages("a", "bb"))
    assert result.values.tolist() == [5.0, 6.0] and result.cached == 0


def test_cut_pairs_are_reported_from_the_cache_too():
    cached = reranker(FakeReranker())
    cached.score("q", passages("short", "x" * 50, "y" * 30))
    assert cached.score("q", passages("y" * 30, "short")).truncated == 1


def test_a_score_that_is_no_number_is_not_kept():
    model = FakeReranker(shift=float("nan"))
    cached = reranker(model)
    cached.score("q", passages("a"))
    assert cached.stats.entries == 0


@pytest.mark.parametrize("begin", [False, True])
def test_modes_of_the_reranker(begin):
    model = FakeReranker()
    cached = reranker(model)

    def score(mode: CacheMode) -> Scores:
        if begin:
            return cached.begin("q", passages("aa"), caches=mode).result(PATIENCE)
        return cached.score("q", passages("aa"), caches=mode)

    assert score("bypass").cached == 0 and cached.stats.entries == 0
    assert score("refresh").cached == 0 and cached.stats.entries == 1
    assert (cached.stats.hits, cached.stats.misses) == (0, 0)
    assert score("use").cached == 1 and score("use").values.tolist() == [1.25]
    assert score("bypass").cached == 0 and score("refresh").cached == 0
    assert len(model.calls) == 4


def test_begin_scores_what_is_missing():
    model = FakeReranker(held=True)
    cached = reranker(model)
    future = cached.begin("q", passages("aa"))
    assert not future.done()
    model.begun[0].set_result(model.score("q", passages("aa")))
    assert future.result(0).values.tolist() == [1.25]
    assert cached.begin("q", passages("aa")).result(0).cached == 1
    model.held = False
    mixed = cached.begin("q", passages("bbb", "aa")).result(0)
    assert mixed.values.tolist() == [2.25, 1.25] and mixed.cached == 1
    assert model.calls[-1] == ["bbb"]


def test_cancelling_reaches_the_reranker_and_its_cancelling_reaches_us():
    model = FakeReranker(held=True)
    cached = reranker(model)
    future = cached.begin("q", passages("a"))
    future.cancel()
    assert model.begun[0].cancelled()
    other = cached.begin("q", passages("a"))
    model.begun[1].cancel()
    assert other.cancelled()
    third = cached.begin("q", passages("a"))
    model.begun[2].set_exception(Overloaded("full"))
    assert isinstance(third.exception(0), Overloaded)


def test_no_candidates_are_the_models_matter():
    model = FakeReranker()
    assert len(reranker(model).score("q", []).values) == 0
    assert model.calls == [[]]


def test_a_reranker_that_uses_route_scores_is_refused():
    with pytest.raises(ValueError, match="route scores"):
        CachedReranker(StarterReranker(), MemoryScores())
    assert CachedReranker(FakeReranker(), MemoryScores()).uses_route_scores is False
