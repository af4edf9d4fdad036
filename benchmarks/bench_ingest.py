"""Ingestion against a plain loop of `SentenceTransformer.encode` and Milvus inserts, in one run, in turns.

    python -m benchmarks.bench_ingest [--rounds 3] [--scale 1.0] [--folder DIR]

Both get the same files, the same weights (all-MiniLM-L6-v2 of the starter), the same loaders, the same chunks and the same
kind of Milvus Lite collection, fresh each time; both end with a flush. The plain loop is what a careful script does: the model
loaded once, one document after the other, its chunks encoded together (the library's own batches of 32), inserted together.

1) Many small files: 200 of a few passages. 2) Few long ones: 8 of about 100; so many times `--scale`. The texts are sentences
of the sample corpus in random order, the same in every run. Reported: passages a second (median of the rounds), how many times
faster (median over the rounds of the ratio within one), and of ours what limited it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.figures import rounded
from gpu_server import starter
from gpu_server.interfaces import Embedder
from gpu_server.model_pool import ModelPool
from library import Writer
from rag.chunks import passages
from rag.ingest import ingest
from rag.loaders import find, load
from rag.milvus_terms import entity
from rag.store import Store

CHUNK_TOKENS, OVERLAP_TOKENS, MAX_BYTES = 220, 32, 50_000_000
SAMPLES = Path(__file__).parents[1] / "samples" / "field-guide"


def write_files(folder: Path, count: int, sentences: tuple[int, int], seed: int) -> Path:
    """`count` Markdown files of so many sentences (least, most)."""
    chance = random.Random(seed)
    known = sorted(
        {
            sentence.strip()
            for path in sorted(SAMPLES.rglob("*.md"))
            for sentence in re.split(r"(?<=[.!?])\s+", path.read_text(encoding="utf-8"))
            if 40 < len(sentence) < 300 and "\n" not in sentence and "|" not in sentence
        }
    )
    folder.mkdir(parents=True)
    for number in range(count):
        chosen = chance.choices(known, k=chance.randint(*sentences))
        paragraphs = (" ".join(chosen[start : start + 6]) for start in range(0, len(chosen), 6))
        (folder / f"{number:04}.md").write_text(f"# Document {number}\n\n" + "\n\n".join(paragraphs), encoding="utf-8")
    return folder


def ours(folder: Path, data: Path, embedder: Embedder) -> dict[str, Any]:
    """One ingestion; its last event, with the seconds until the flush is done."""
    store = Store(uri=None, data_dir=data, collection="bench")
    try:
        writer = Writer(store, store.use(embedder.info))
        started, summary = time.perf_counter(), {}
        for event in ingest(
            [folder],
            writer,
            embedder,
            chunk_tokens=CHUNK_TOKENS,
            overlap_tokens=OVERLAP_TOKENS,
            max_file_bytes=MAX_BYTES,
        ):
            summary = event
        return {**summary, "seconds": time.perf_counter() - started}
    finally:
        store.close()


def plain(folder: Path, data: Path, model: Any, embedder: Embedder) -> dict[str, Any]:
    """The loop. `embedder` only counts tokens, for the same chunks."""
    store = Store(uri=None, data_dir=data, collection="bench")
    try:
        name = store.use(embedder.info)
        client = store.client
        started, written = time.perf_counter(), 0
        for number, file in enumerate(find([folder]).files):
            document = load(file.path, MAX_BYTES)
            rows = list(
                passages(
                    document,
                    f"{number:032}",
                    file.source,
                    "plain",
                    embedder.count_tokens,
                    CHUNK_TOKENS,
                    OVERLAP_TOKENS,
                    max_tokens=embedder.info.max_tokens,
                )
            )
            vectors = model.encode([row.indexed_text for row in rows], normalize_embeddings=True, show_progress_bar=False)
            client.insert(name, [entity(row, np.asarray(vectors[index]), None, len(rows), "") for index, row in enumerate(rows)])
            written += len(rows)
        client.flush(name)
        return {"seconds": time.perf_counter() - started, "passages": written}
    finally:
        store.close()


def compare(folder: Path, embedder: Embedder, model: Any, rounds: int) -> dict[str, Any]:
    """Both in turns; the first round does not count."""
    calls: dict[str, Callable[[Path], dict[str, Any]]] = {
        "plain": lambda data: plain(folder, data, model, embedder),
        "ours": lambda data: ours(folder, data, embedder),
    }
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            with tempfile.TemporaryDirectory() as data:
                result = call(Path(data))
            if turn:
                results[name].append(result)
    counts = {result["passages"] for found in results.values() for result in found}
    assert len(counts) == 1, f"not the same chunks: {counts}"
    rates = {name: median(result["passages"] / result["seconds"] for result in found) for name, found in results.items()}
    last = results["ours"][-1]
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(results["plain"], results["ours"], strict=True)]
    parts = {f"{part}_seconds": last[f"{part}_seconds"] for part in ("reading", "embedding", "writing")}
    return {
        "passages": counts.pop(),
        "passages_per_second": rounded(rates, 1),
        "times_faster": round(median(ratios), 2),
        "each_round": [round(ratio, 2) for ratio in ratios],
        "ours": {
            **rounded({"limit_share": last["limit_share"] or 0.0, "tokens_per_second": last["tokens_per_second"], **parts}, 2),
            "limited_by": last["limited_by"],
        },
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_ingest")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="compare on the files of this folder too")
    options = parser.parse_args(arguments)
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(starter.weights_folder()), device="cpu")
    model.max_seq_length = starter.MAX_TOKENS
    pool = ModelPool()
    embedder = pool.add_embedder("starter", starter.StarterEmbedder)
    pool.warm_up()
    result: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as temporary:
            corpora = {
                "small_files": write_files(Path(temporary) / "small", max(1, round(200 * options.scale)), (2, 40), seed=1),
                "long_files": write_files(Path(temporary) / "long", max(1, round(8 * options.scale)), (600, 900), seed=2),
            }
            if options.folder:
                corpora["folder"] = options.folder
            check(embedder, model)
            for name, folder in corpora.items():
                result[name] = compare(folder, embedder, model, options.rounds)
    finally:
        pool.stop()
    print(json.dumps({"device": embedder.info.device, "precision": embedder.info.precision, **result}))
    return 0


def check(embedder: Embedder, model: Any) -> None:
    """That both compute the same: the same weights give the same vectors."""
    texts = ["Which valve opens at 4.2 bar?", "The pump stops when the level falls below the mark. " * 30]
    one = embedder.embed(texts).dense
    other = np.asarray(model.encode(texts, normalize_embeddings=True))
    cosine = float((one * other).sum(axis=1).min())
    assert cosine > 0.99, f"not the same model: cosine {cosine:.4f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
