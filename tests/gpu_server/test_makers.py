"""One contract for every maker: what a loaded embedder or reranker must do, whatever its weights; and which names have makers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server import folders, makers
from gpu_server.errors import ModelError
from gpu_server.interfaces import EmbeddingModel, RerankModel, VectorKind
from gpu_server.starter import StarterReranker
from scripts import make_random_models

ALL: frozenset[VectorKind] = frozenset({"dense", "sparse", "late"})
DENSE: frozenset[VectorKind] = frozenset({"dense"})
EMBEDDERS = ("starter", "bge_m3", "sentence_transformer")
RERANKERS = ("bge_reranker", "cross_encoder")
ODD = {
    "empty": "",
    "blank": " \n\t ",
    "control characters": "a\x00b\x07c\x1b[31m\x7f",
    "lone surrogate": "broken \ud800 half",
    "hebrew": "מה קורה כשהזיכרון מלא? שלום!",
    "emoji": "😀👩‍👩‍👧🇮🇱" * 5,
    "right to left marks": "\u200f\u202eabc",
    "one long word": "a" * 5000,
    "special tokens": "[CLS] </s> <s> [SEP] <pad>",
}


@pytest.fixture(scope="module", params=EMBEDDERS)
def embedder(request: pytest.FixtureRequest) -> EmbeddingModel:
    name = "starter" if request.param == "starter" else str(request.getfixturevalue(f"tiny_{request.param}"))
    return makers.embedder(name, "cpu", "fp32")()


@pytest.fixture(scope="module", params=RERANKERS)
def reranker(request: pytest.FixtureRequest) -> RerankModel:
    model: Any = makers.reranker(str(request.getfixturevalue(f"tiny_{request.param}")), "cpu", "fp32")()
    return model


def dense(model: EmbeddingModel, texts: Sequence[str]) -> np.ndarray:
    return np.stack([item.dense for item in model.forward(model.encode(texts, "passage"), DENSE)])


def scores(model: RerankModel, query: str, texts: Sequence[str]) -> np.ndarray:
    return model.forward(model.encode(query, texts))


def in_threads(work: Callable[[], object], count: int = 8) -> list[object]:
    """What `count` threads that start at the same moment return, errors included."""
    together, results = threading.Barrier(count), []

    def run() -> None:
        together.wait(60)
        try:
            results.append([work() for _ in range(5)])
        except Exception as problem:
            results.append(problem)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


# embedders


def test_an_embedder_says_what_it_is(embedder: EmbeddingModel) -> None:
    info = embedder.info
    assert (info.kind, info.device, info.precision, info.where) == ("embedder", "cpu", "fp32", "in-process")
    assert info.dimension and info.max_tokens and info.memory_bytes and info.name
    assert f"-{info.dimension}-" in info.identity and "/" not in info.identity and info.address is None


def test_vectors_are_float32_of_length_one(embedder: EmbeddingModel) -> None:
    found = embedder.forward(embedder.encode(["one", "two words", "three small words"], "query"), ALL)
    for item in found:
        assert item.dense.dtype == np.float32 and item.dense.shape == (embedder.info.dimension,)
        assert np.linalg.norm(item.dense) == pytest.approx(1, abs=1e-5)
        assert (item.sparse is not None) == embedder.info.learned_sparse
        assert (item.late is not None) == embedder.info.late_interaction


def test_only_the_vectors_asked_for(embedder: EmbeddingModel) -> None:
    batch = embedder.encode(["one", "two words"], "passage")
    lean, whole = embedder.forward(batch, DENSE), embedder.forward(batch, ALL)
    assert all(item.sparse is None and item.late is None for item in lean)
    assert np.allclose([item.dense for item in lean], [item.dense for item in whole], atol=1e-6)


def test_neither_batch_nor_order_changes_a_vector(embedder: EmbeddingModel) -> None:
    texts = ["a", "GPU memory is full", "x " * 300, "", "מה קורה כשהזיכרון מלא?", "query latency " * 20, "b"]
    together = dense(embedder, texts)
    alone = np.vstack([dense(embedder, [text]) for text in texts])
    shuffled = dense(embedder, texts[::-1])[::-1]
    assert (together * alone).sum(1).min() > 0.99999
    assert (together * shuffled).sum(1).min() > 0.99999
    assert (together @ together.T)[~np.eye(len(texts), dtype=bool)].max() < 0.999  # they do differ from each other


def test_a_text_of_100_000_characters_is_cut_and_says_so(embedder: EmbeddingModel) -> None:
    most = embedder.info.max_tokens
    assert most is not None
    long, short = embedder.encode(["memory is full " * 7000, "memory"], "passage")
    assert long.truncated and len(long.ids) == most
    assert not short.truncated and short.ids[-1] == long.ids[-1]  # the closing token stays
    assert np.isfinite(embedder.forward([long], ALL)[0].dense).all()


def test_the_limit_itself_is_not_cut(embedder: EmbeddingModel) -> None:
    assert embedder.info.max_tokens
    special = len(embedder.encode([""], "passage")[0].ids)
    per_word = embedder.count_tokens("a a") - embedder.count_tokens("a")
    fits = (embedder.info.max_tokens - special) // per_word
    at, over = embedder.encode(["a " * fits, "a " * (fits + 1)], "passage")
    assert (at.truncated, over.truncated) == (False, True)
    assert len(at.ids) == special + fits * per_word


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_texts_have_vectors(embedder: EmbeddingModel, text: str) -> None:
    alone, ordinary = embedder.forward(embedder.encode([text, "ordinary"], "query"), ALL)
    assert np.linalg.norm(alone.dense) == pytest.approx(1, abs=1e-5)
    assert np.allclose(ordinary.dense, dense(embedder, ["ordinary"])[0], atol=1e-5)


def test_a_lone_surrogate_is_a_question_mark(embedder: EmbeddingModel) -> None:
    assert embedder.encode(["broken \ud800 half"], "query") == embedder.encode(["broken ? half"], "query")
    assert embedder.count_tokens("\ud800") == embedder.count_tokens("?")


def test_tokens_are_counted_without_special_ones(embedder: EmbeddingModel) -> None:
    special = len(embedder.encode([""], "passage")[0].ids)
    assert embedder.count_tokens("") == 0
    assert embedder.count_tokens("the memory is full") == len(embedder.encode(["the memory is full"], "passage")[0].ids) - special


def test_eight_threads_encode_at_once(embedder: EmbeddingModel) -> None:
    texts = [*ODD.values(), "long " * 3000]
    wanted = embedder.encode(texts, "passage")
    results = in_threads(lambda: embedder.encode(texts, "passage"))
    assert len(results) == 8 and all(result == [wanted] * 5 for result in results)


def test_no_texts_are_no_vectors(embedder: EmbeddingModel) -> None:
    assert embedder.encode([], "query") == []


# rerankers


def test_a_reranker_says_what_it_is(reranker: RerankModel) -> None:
    info = reranker.info
    assert (info.kind, info.device, info.precision, info.where) == ("reranker", "cpu", "fp32", "in-process")
    assert info.dimension is None and info.max_tokens and info.memory_bytes and info.identity.startswith(info.name)


def test_scores_are_raw_float32_in_the_candidates_order(reranker: RerankModel) -> None:
    texts = ["memory is full", "the queue", "five years at most", "a slow network"]
    found = scores(reranker, "what is full?", texts)
    assert found.dtype == np.float32 and found.shape == (4,)
    assert np.allclose(found[::-1], scores(reranker, "what is full?", texts[::-1]), atol=1e-5)
    assert np.ptp(found) > 1e-3


def test_pairs_of_different_queries_stand_in_one_batch(reranker: RerankModel) -> None:
    one, other = reranker.encode("a query", ["text", "x " * 200]), reranker.encode("another one", ["text"])
    together = reranker.forward([*one, *other])
    assert np.allclose(together, [*reranker.forward(one), *reranker.forward(other)], atol=1e-5)
    assert abs(together[0] - together[2]) > 1e-4  # the query counts


def test_a_long_passage_is_cut_and_the_query_kept(reranker: RerankModel) -> None:
    most = reranker.info.max_tokens
    assert most is not None
    long, short = reranker.encode("what is full?", ["memory is full " * 7000, "memory"])
    assert long.truncated and len(long.ids) == most and not short.truncated
    assert long.ids[: len(short.ids) - 2] == short.ids[:-2]
    assert np.isfinite(reranker.forward([long, short])).all()


def test_a_long_query_leaves_a_quarter_to_the_passage(reranker: RerankModel) -> None:
    most = reranker.info.max_tokens
    assert most is not None
    both = reranker.encode("memory " * 2000, ["queue " * 2000, "queue"])
    assert len(both[0].ids) == most and all(item.truncated for item in both)
    query_tokens = most * 3 // 4
    queue = both[1].ids[-2]
    assert query_tokens < len(both[1].ids) < query_tokens + 8
    assert list(both[0].ids).count(queue) > most // 4 - 8 - 2


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_queries_and_passages_have_scores(reranker: RerankModel, text: str) -> None:
    found = [*scores(reranker, "ordinary", [text, "ordinary"]), *scores(reranker, text, ["ordinary", text])]
    assert np.isfinite(found).all()
    assert found[1] == pytest.approx(scores(reranker, "ordinary", ["ordinary"])[0], abs=1e-5)


def test_eight_threads_encode_pairs_at_once(reranker: RerankModel) -> None:
    texts = [*ODD.values(), "long " * 3000]
    wanted = reranker.encode("query", texts)
    results = in_threads(lambda: reranker.encode("query", texts))
    assert len(results) == 8 and all(result == [wanted] * 5 for result in results)


def test_no_candidates_are_no_pairs(reranker: RerankModel) -> None:
    assert reranker.encode("query", []) == []


# names


def test_a_maker_loads_nothing_before_it_is_called() -> None:
    """A hub name is not looked up when the runtime is built; an obviously bad one is found at once."""
    assert callable(makers.embedder("somebody/some-model", "cpu", "fp32"))
    assert callable(makers.reranker("BAAI/bge-reranker-v2-m3"))


@pytest.mark.parametrize(
    "make", [lambda name: makers.embedder(name, "cpu", "fp32"), makers.reranker], ids=["embedder", "reranker"]
)
def test_names_that_no_model_can_have(make: Callable[[str], object], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    for name in ("", "  ", str(file), str(tmp_path / "nothing"), "./nothing", "what is this?", "a/b/c"):
        with pytest.raises(makers.UnknownModel, match="bge-m3"):
            make(name)


def test_which_reranker_blends_route_scores() -> None:
    assert makers.uses_route_scores("starter")
    assert not makers.uses_route_scores("BAAI/bge-reranker-v2-m3")


def test_one_maker_for_each_device_counted_when_the_first_loads() -> None:
    (make,) = makers.embedders("starter", "cpu", "fp32")
    assert make().info.device == "cpu"
    wrong = makers.rerankers("BAAI/bge-reranker-v2-m3", "cuda:77", "auto")  # asks for no device yet
    with pytest.raises(ModelError, match="cuda:77"):
        list(wrong)
    (blend,) = makers.rerankers("starter", "cuda:77", "auto")  # arithmetic on scores: it needs no GPU
    assert isinstance(blend(), StarterReranker)


def test_a_seed_gives_the_same_model_in_every_process(tmp_path: Path, tiny_bge_m3: Path) -> None:
    """Benchmarks and servers under test write their own copies; other seeds give other weights."""
    command = [sys.executable, "-m", "scripts.make_random_models", "--kind", "bge-m3", str(tmp_path / "again")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, timeout=120)
    assert folders.embedder(str(tmp_path / "again")).hash8() == folders.embedder(str(tiny_bge_m3)).hash8()
    other = make_random_models.make("bge-m3", tmp_path / "other", seed=1)
    assert folders.embedder(str(other)).hash8() != folders.embedder(str(tiny_bge_m3)).hash8()
