"""The starter models with the real weights: near and far meanings, what is cut, batches that change nothing; the blend."""

from __future__ import annotations

import time

import numpy as np
import pytest

from gpu_server.interfaces import RerankCandidate
from gpu_server.starter import (
    DIMENSION,
    MAX_TOKENS,
    StarterEmbedder,
    StarterReranker,
    identity,
    length_batches,
    standardise,
    weights_folder,
)

# bf16 keeps 8 bits: a vector computed in another batch may differ by a little over 1e-3 in cosine
SAME = 0.995


@pytest.fixture(scope="module")
def model() -> StarterEmbedder:
    return StarterEmbedder("cpu")


@pytest.fixture(scope="module")
def exact() -> StarterEmbedder:
    return StarterEmbedder("cpu", "fp32")


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray((one * other).sum(axis=-1))


def test_known_similarities(exact: StarterEmbedder, model: StarterEmbedder) -> None:
    """Cosines of the model card's sentences (Sentence Transformers, all-MiniLM-L6-v2), fp32."""
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    for embedder, tolerance in ((exact, 5e-4), (model, 1.5e-2)):
        dense = embedder.embed(texts).dense
        near, far, other = float(dense[0] @ dense[1]), float(dense[0] @ dense[2]), float(dense[1] @ dense[2])
        assert (near, far, other) == pytest.approx((0.6660, 0.1046, 0.1411), abs=tolerance)


def test_vectors_have_length_one_in_float32(model: StarterEmbedder) -> None:
    result = model.embed(["one", "two words", "three small words"])
    assert result.dense.dtype == np.float32 and result.dense.shape == (3, DIMENSION)
    assert np.linalg.norm(result.dense, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert result.sparse is None and result.truncated == 0
    assert result.tokens == sum(model.count_tokens(text) + 2 for text in ("one", "two words", "three small words"))
    assert result.timing.compute > 0 and result.timing.tokenize > 0 and not result.timing.cold


def test_what_the_model_says_of_itself(model: StarterEmbedder, exact: StarterEmbedder) -> None:
    info = model.info
    assert (info.kind, info.dimension, info.max_tokens, info.device) == ("embedder", DIMENSION, MAX_TOKENS, "cpu")
    assert exact.info.precision == "fp32" and exact.info.identity == info.identity == identity(weights_folder())
    assert info.identity.startswith("all-MiniLM-L6-v2-384-mean-") and info.note


def test_a_text_is_cut_at_the_limit_and_counted(model: StarterEmbedder) -> None:
    whole, over = "word " * (MAX_TOKENS - 2), "word " * (MAX_TOKENS - 1)
    result = model.embed([whole, over, "short", "word " * 5000])
    assert result.truncated == 2
    assert result.tokens == 3 * MAX_TOKENS + 3
    assert cosines(result.dense[0], result.dense[1]) > SAME  # cut to the same text
    assert model.count_tokens(over) == MAX_TOKENS - 1


def test_what_is_past_the_limit_changes_nothing(exact: StarterEmbedder) -> None:
    start = "milvus " * 400
    dense = exact.embed([start + "cats", start + "a very different end"]).dense
    assert cosines(dense[0], dense[1]) == pytest.approx(1.0, abs=1e-5)


def test_tokens_are_counted_without_special_ones(model: StarterEmbedder) -> None:
    assert model.count_tokens("") == 0
    assert model.count_tokens("hello world") == 2
    assert model.count_tokens("[CLS]") >= 1


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_neither_batch_nor_order_changes_a_vector(precision: str, exact: StarterEmbedder, model: StarterEmbedder) -> None:
    embedder = exact if precision == "fp32" else model
    texts = ["a", "GPU memory is full", "x " * 300, "", "מה קורה כשהזיכרון מלא?", "query latency " * 20, "b"]
    together = embedder.embed(texts).dense
    alone = np.vstack([embedder.embed([text]).dense for text in texts])
    shuffled = embedder.embed(texts[::-1]).dense[::-1]
    least = 0.99999 if precision == "fp32" else SAME
    assert cosines(together, alone).min() > least
    assert cosines(together, shuffled).min() > least


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "\ufffd", "😀" * 10, "שלום עולם", "مرحبا", "漢字" * 50, "\u200f\u202e", "a" * 5000]
)
def test_odd_texts_have_vectors(model: StarterEmbedder, text: str) -> None:
    dense = model.embed([text, "ordinary"], "query").dense
    assert np.isfinite(dense).all() and np.linalg.norm(dense, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_a_hundred_kilobytes(model: StarterEmbedder) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 2300
    assert len(text) > 100_000
    result = model.embed([text])
    assert result.truncated == 1 and result.tokens == MAX_TOKENS and np.isfinite(result.dense).all()
    assert model.count_tokens(text) > 20_000


def test_a_deadline_that_passed(model: StarterEmbedder) -> None:
    with pytest.raises(TimeoutError):
        model.embed(["x"], deadline=time.monotonic() - 1)


# the batches


def test_batches_hold_every_index_once_within_the_budget() -> None:
    lengths = [256] * 40 + [3] * 500 + [100] * 7
    batches = length_batches(lengths, 8192)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[index] for index in batch) <= 8192 for batch in batches)
    assert length_batches([], 10) == []
    assert length_batches([99, 1], 10) == [[1], [0]]  # what is longer than the budget goes alone


# the blend


def test_standardised_scores_have_mean_0_and_deviation_1() -> None:
    values = standardise([1.0, 2.0, 3.0, 10.0])
    assert values.mean() == pytest.approx(0) and values.std() == pytest.approx(1)
    assert list(np.argsort(values)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "scores", [[], [0.7], [None], [None, None], [0.5, 0.5, 0.5], [None, 3.0], [1e-15, 0.0], [float("nan"), 1.0]]
)
def test_what_says_nothing_of_the_order_counts_nothing(scores: list[float | None]) -> None:
    assert standardise(scores).tolist() == [0.0] * len(scores)


def test_an_unknown_score_is_the_mean_of_the_known() -> None:
    values = standardise([1.0, None, 3.0])
    assert values.tolist() == [-1.0, 0.0, 1.0]


def scored(*pairs: tuple[float | None, float | None]) -> list[float]:
    values = StarterReranker().score("q", [RerankCandidate("text", dense, sparse) for dense, sparse in pairs]).values
    assert values.dtype == np.float32 and np.isfinite(values).all()
    return [float(value) for value in values]


def test_the_blend_is_dense_plus_half_of_sparse() -> None:
    assert scored((0.2, 1.0), (0.4, 3.0)) == [-1.5, 1.5]
    assert scored((0.2, 3.0), (0.4, 1.0)) == [-0.5, 0.5]


def test_the_blends_edges() -> None:
    assert scored() == []
    assert scored((0.9, 4.0)) == [0.0]
    assert scored((0.5, 1.0), (0.5, 1.0)) == [0.0, 0.0]
    assert scored((0.1, None), (0.3, None)) == [-1.0, 1.0]  # a route that found nothing counts nothing
    assert scored((None, None), (None, None)) == [0.0, 0.0]


def test_the_blend_says_that_it_is_no_model() -> None:
    info = StarterReranker().info
    assert StarterReranker.uses_route_scores and "not a reranker model" in (info.note or "")
