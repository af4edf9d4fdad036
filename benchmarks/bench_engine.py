"""BGE-M3 and the BGE reranker at their real size (random weights): our engine against FlagEmbedding and sentence-transformers.

    python -m benchmarks.bench_engine [--device cpu] [--rounds 3] [--folder DIR]

Every library has the same weights and the same texts, and they take turns (A B C A B C). Needs about 12 GiB of memory.
1) One query of 12 tokens. 2) 20 and 50 candidates of 64 tokens reranked. 3) Passages a second at 128 tokens. 4) What changes:
cosine of our vectors to FlagEmbedding's in fp32, Kendall's tau of the candidates' order by precision. Random weights give
scores that lie closer together than a trained model's, so tau is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_server import texts
from benchmarks.figures import interleaved, rounded
from gpu_server import makers
from gpu_server.devices import import_torch
from gpu_server.interfaces import RerankCandidate
from gpu_server.model_pool import ModelPool
from scripts import make_random_models

PRECISIONS = ("fp32", "bf16", "int8")


def query_times(folder: Path, device: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of one query, and how near each precision's vector is to FlagEmbedding's in fp32."""
    query = texts(1, (10, 10))
    flag = _flag_embedder(folder, device)
    calls: dict[str, Callable[[], Any]] = {
        "FlagEmbedding fp32": partial(flag.encode, query, return_sparse=True),
        "sentence-transformers fp32": partial(_sentence_transformer(folder, device).encode, query, show_progress_bar=False),
    }
    pools = {name: _embedder(folder, device, name) for name in _precisions(device)}
    for name, embedder in pools.items():
        calls[f"ours {name}"] = partial(embedder.embed, query, "query")
    seconds = interleaved(calls, rounds)
    wanted = np.asarray(flag.encode(query)["dense_vecs"])[0]
    cosines = {name: float(embedder.embed(query, "query").dense[0] @ wanted) for name, embedder in pools.items()}
    return {"ms": rounded({name: 1000 * value for name, value in seconds.items()}, 1), "cosine": rounded(cosines, 6)}


def rerank_times(folder: Path, device: str, rounds: int) -> dict[str, Any]:
    """Milliseconds for 20 and 50 candidates, and how each precision keeps the order of FlagEmbedding's fp32 scores."""
    from FlagEmbedding import FlagReranker

    query, passages = texts(1, (10, 10), seed=3)[0], texts(50, (48, 48), seed=4)
    flag: Any = FlagReranker(str(folder), use_fp16=False, devices=device)
    rerankers = {name: _reranker(folder, device, name) for name in _precisions(device)}
    result: dict[str, Any] = {}
    for count in (20, 50):
        pairs = [(query, text) for text in passages[:count]]
        candidates = [RerankCandidate(text) for text in passages[:count]]
        calls: dict[str, Callable[[], Any]] = {"FlagEmbedding fp32": partial(flag.compute_score, pairs)}
        for name, reranker in rerankers.items():
            calls[f"ours {name}"] = partial(reranker.score, query, candidates)
        result[f"{count}_candidates_ms"] = rounded({n: 1000 * s for n, s in interleaved(calls, rounds).items()}, 1)
    wanted = np.asarray(flag.compute_score(pairs))
    scores = {name: reranker.score(query, candidates).values for name, reranker in rerankers.items()}
    result["kendall_tau_to_flagembedding_fp32"] = rounded({name: kendall_tau(wanted, values) for name, values in scores.items()})
    return result


def passage_rate(folder: Path, device: str, rounds: int) -> dict[str, float]:
    """Passages of 128 tokens a second, 16 at a time."""
    passages = texts(16, (126, 126), seed=5)
    flag = _flag_embedder(folder, device)
    calls: dict[str, Callable[[], Any]] = {"FlagEmbedding fp32": partial(flag.encode, passages, return_sparse=True)}
    for name in _precisions(device):
        embedder = _embedder(folder, device, name)
        calls[f"ours {name}"] = partial(embedder.embed, passages)
    return rounded({name: len(passages) / value for name, value in interleaved(calls, rounds).items()}, 2)


def kendall_tau(one: Any, two: Any) -> float:
    """Kendall's tau-a: concordant less discordant pairs, over all pairs (Kendall 1938)."""
    first, second = np.asarray(one), np.asarray(two)
    upper = np.triu_indices(len(first), 1)
    agree = np.sign(first[:, None] - first)[upper] * np.sign(second[:, None] - second)[upper]
    return float(agree.mean())


def _precisions(device: str) -> tuple[str, ...]:
    return PRECISIONS if device == "cpu" else ("fp32", "bf16", "fp16")


def _embedder(folder: Path, device: str, precision: str) -> Any:
    return ModelPool().add_embedder(str(folder), makers.embedder(str(folder), device, precision))


def _reranker(folder: Path, device: str, precision: str) -> Any:
    return ModelPool().add_reranker(str(folder), makers.reranker(str(folder), device, precision))


def _flag_embedder(folder: Path, device: str) -> Any:
    from FlagEmbedding import BGEM3FlagModel

    return BGEM3FlagModel(str(folder), use_fp16=False, devices=device)


def _sentence_transformer(folder: Path, device: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    word: Any = Transformer(str(folder))
    return SentenceTransformer(modules=[word, Pooling(word.get_embedding_dimension(), "cls")], device=device)


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """How many times faster than FlagEmbedding in the same run."""
    found = {}
    for task, times in (
        ("query", result["query"]["ms"]),
        *((key, result["rerank"][f"{key}_ms"]) for key in ("20_candidates", "50_candidates")),
    ):
        for name, value in times.items():
            if name.startswith("ours"):
                found[f"{task} {name}"] = times["FlagEmbedding fp32"] / value
    return rounded(found, 2)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_engine")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the random models here and find them there the next time")
    options = parser.parse_args(arguments)
    import_torch()
    with tempfile.TemporaryDirectory() as temporary:
        base = options.folder or Path(temporary)
        embedder, reranker = base / "bge-m3", base / "bge-reranker-v2-m3"
        for kind, folder in (("bge-m3", embedder), ("bge-reranker", reranker)):
            if not (folder / "config.json").exists():
                make_random_models.make(kind, folder, real_size=True)
        result: dict[str, Any] = {
            "query": query_times(embedder, options.device, options.rounds * 5),
            "rerank": rerank_times(reranker, options.device, max(1, options.rounds // 2)),
            "passages_per_second": passage_rate(embedder, options.device, max(1, options.rounds // 2)),
        }
    result["times_faster_than_flagembedding"] = ratios(result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
