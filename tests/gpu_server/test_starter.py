"""The starter models with the real weights: near and far meanings, what they say of themselves; the blend; the cosine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gpu_server import makers, starter
from gpu_server.errors import TimedOut
from gpu_server.interfaces import EmbeddingModel, RerankCandidate, VectorKind
from gpu_server.model_pool import ModelPool, PooledEmbedder
from gpu_server.starter import MAX_TOKENS, StarterEmbedder, StarterReranker, standardise

DENSE: frozenset[VectorKind] = frozenset({"dense"})
IDENTITY = "all-MiniLM-L6-v2-384-mean-264329e8"


@pytest.fixture(scope="module")
def models() -> dict[str, EmbeddingModel]:
    return {precision: StarterEmbedder("cpu", precision) for precision in ("fp32", "bf16", "int8")}


def vectors(model: EmbeddingModel, texts: list[str]) -> np.ndarray:
    return np.stack([item.dense for item in model.forward(model.encode(texts, "passage"), DENSE)])


# the embedder


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 5e-4), ("bf16", 1.5e-2), ("int8", 5e-2)])
def test_known_similarities(models: dict[str, EmbeddingModel], precision: str, tolerance: float) -> None:
    """Cosines of the model card's sentences (Sentence Transformers, all-MiniLM-L6-v2), fp32."""
    one, near, far = vectors(
        models[precision], ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )
    assert (one @ near, one @ far, near @ far) == pytest.approx((0.6660, 0.1046, 0.1411), abs=tolerance)


def test_equals_sentence_transformers(models: dict[str, EmbeddingModel]) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["GPU memory is full", "", "query latency " * 200, "מה קורה?", "Ça va? 😀"]
    wanted = SentenceTransformer(str(starter.weights_folder()), device="cpu").encode(texts)
    assert (vectors(models["fp32"], texts) * wanted).sum(1).min() >= 0.99999
    assert (vectors(models["bf16"], texts) * wanted).sum(1).min() >= 0.999


def test_what_the_model_says_of_itself(models: dict[str, EmbeddingModel]) -> None:
    """Stored collections are named by the identity: it must never change, in whatever precision the model runs."""
    for precision, model in models.items():
        info = model.info
        assert (info.name, info.kind, info.dimension, info.max_tokens) == ("all-MiniLM-L6-v2", "embedder", 384, MAX_TOKENS)
        assert (info.identity, info.device, info.precision) == (IDENTITY, "cpu", precision)
        assert info.note and "English" in info.note and not info.learned_sparse


def test_a_text_is_cut_at_256_tokens(models: dict[str, EmbeddingModel]) -> None:
    model = models["fp32"]
    whole, over, far_over = model.encode(["word " * 254, "word " * 255, "word " * 5000], "passage")
    assert [item.truncated for item in (whole, over, far_over)] == [False, True, True]
    assert whole.ids == over.ids == far_over.ids and len(whole.ids) == 256
    assert model.count_tokens("hello world") == 2


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


def blend(*pairs: tuple[float | None, float | None]) -> list[float]:
    values = StarterReranker().score("q", [RerankCandidate("text", dense, sparse) for dense, sparse in pairs]).values
    assert values.dtype == np.float32 and np.isfinite(values).all()
    return [float(value) for value in values]


def test_the_blend_is_dense_plus_half_of_sparse() -> None:
    assert blend((0.2, 1.0), (0.4, 3.0)) == [-1.5, 1.5]
    assert blend((0.2, 3.0), (0.4, 1.0)) == [-0.5, 0.5]


def test_the_blends_edges() -> None:
    assert blend() == []
    assert blend((0.9, 4.0)) == [0.0]
    assert blend((0.5, 1.0), (0.5, 1.0)) == [0.0, 0.0]
    assert blend((0.1, None), (0.3, None)) == [-1.0, 1.0]  # a route that found nothing counts nothing
    assert blend((None, None), (None, None)) == [0.0, 0.0]


def test_the_blend_says_that_it_is_no_model() -> None:
    info = StarterReranker().info
    assert StarterReranker.uses_route_scores and "not a reranker model" in (info.note or "")
    assert info.identity == "blend-0.5"


def test_the_blend_needs_no_torch() -> None:
    """With requirements-remote.txt neither torch nor transformers is there, and the blend is arithmetic."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'FlagEmbedding', 'tokenizers', 'safetensors', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "from gpu_server import makers\n"
        "from gpu_server.interfaces import RerankCandidate\n"
        "candidates = [RerankCandidate('a', 0.2, 1.0), RerankCandidate('b', 0.4, 3.0)]\n"
        "print(makers.reranker('starter')().score('q', candidates).values.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[-1.5, 1.5]", done.stderr


# the cosine


@pytest.fixture(scope="module")
def pooled(models: dict[str, EmbeddingModel]) -> Iterator[PooledEmbedder]:
    pool = ModelPool()
    make: Callable[[], EmbeddingModel] = lambda: models["fp32"]  # noqa: E731
    yield pool.add_embedder("starter", make)
    pool.stop()


def test_the_cosine_of_query_and_texts(pooled: PooledEmbedder) -> None:
    reranker = makers.cosine_reranker(pooled)
    texts = ["He drove to the stadium.", "It's so sunny outside!"]
    found = reranker.score("The weather is lovely today.", [RerankCandidate(text) for text in texts])
    assert found.values.dtype == np.float32
    assert found.values.tolist() == pytest.approx([0.1046, 0.6660], abs=5e-4)
    assert found.timing.compute > 0 and found.timing.tokenize > 0 and found.timing.network is None
    assert found.tokens == sum(pooled.count_tokens(text) + 2 for text in ("The weather is lovely today.", *texts))


def test_the_cosine_counts_what_was_cut(pooled: PooledEmbedder) -> None:
    reranker = makers.cosine_reranker(pooled)
    candidates = [RerankCandidate("short"), RerankCandidate("word " * 400)]
    assert reranker.score("query", candidates).truncated == 1
    assert reranker.score("query " * 400, candidates).truncated == 2  # pairs: a cut query counts in each


def test_the_cosine_says_what_it_is(pooled: PooledEmbedder) -> None:
    reranker = makers.cosine_reranker(pooled)
    info = reranker.info
    assert not reranker.uses_route_scores
    assert (info.name, info.kind, info.identity) == ("starter cosine", "reranker", f"cosine-{IDENTITY}")
    assert info.note and "not a reranker model" in info.note and "HTTP" in info.note and info.dimension is None


def test_the_cosine_of_nothing_asks_nobody(pooled: PooledEmbedder) -> None:
    runs = pooled.slot.status.runs
    assert makers.cosine_reranker(pooled).score("query", []).values.shape == (0,)
    assert pooled.slot.status.runs == runs


def test_the_cosine_obeys_its_deadline(pooled: PooledEmbedder) -> None:
    with pytest.raises(TimedOut):
        makers.cosine_reranker(pooled).score("query", [RerankCandidate("text")], deadline=0.0)
