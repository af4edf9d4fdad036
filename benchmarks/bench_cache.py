"""What the semantic cache finds, what it serves wrongly, and what it costs with 10,000 entries.

    python -m benchmarks.bench_cache [--entries 10000] [--rounds 100] [--milvus]

1) The labelled pairs that calibration did not see, side by side in one run: the default setting; dense only from cosine 0.8
(GPTCache's default `similarity_threshold`, taken as a cosine); from 0.6 (what that default lets through over the squared L2
distance of its own evaluation: 4 - (2 - 2 cos) >= 0.8 x 4); from 0.9 (RedisVL's default `distance_threshold` of 0.1).

2) Times of an equal question, of a paraphrase with its embedding, and of what two look-ups add to a miss, over entries made
from the pairs' questions with other numbers in them and vectors a little off theirs. SQLite and the index in memory; Redis
where redis-server is installed; with --milvus also Milvus Lite as the index.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.model_pool import ModelPool
from gpu_server.starter import StarterEmbedder
from rag.cache.answers import AnswerStore, SqliteAnswers
from rag.cache.book import CacheBook
from rag.cache.calibrate import PAIRS, Scored, held_out, rates, rates_of, read_pairs, score
from rag.cache.index import MemoryIndex, QuestionIndex, Row
from rag.cache.milvus_index import MilvusIndex
from rag.cache.redis_answers import RedisAnswers
from rag.cache.types import CachedAnswer, CacheKey
from rag.semantic_cache import SemanticCache
from rag.store import Store
from rag.types import Answer, Passage

DENSE_ONLY = {"gptcache_0.8": 0.8, "gptcache_0.8_as_l2": 0.6, "redisvl_0.1": 0.9}


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--milvus", action="store_true")
    given = parser.parse_args()
    pool = ModelPool()
    embedder = pool.add_embedder("starter", StarterEmbedder)
    pool.warm_up()

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return embedder.embed(list(texts), "query", caches="bypass").dense

    try:
        scored = [item for item in score(read_pairs(PAIRS), embed) if held_out(item.pair.family)]
        with tempfile.TemporaryDirectory() as folder:
            result: dict[str, Any] = {"unseen_pairs": _quality(scored, embedder.info.identity, Path(folder))}
            key = CacheKey("bench", "1", embedder.info.identity, "llm", "prompt", "options")
            rows = _rows(scored, embed, key, given.entries)
            result["entries"] = len(rows)
            result["milliseconds"] = dict(_times(Path(folder), rows, embed, key, given.rounds, given.milvus, embedder.info))
    finally:
        pool.stop()
    print(json.dumps(result))
    return result


def _quality(scored: Sequence[Scored], embedder: str, folder: Path) -> dict[str, Any]:
    book = CacheBook(folder / "book.db")
    default = book.thresholds(embedder)
    assert default is not None
    found = {"default": rates(scored, default.dense, default.agreement)}
    for name, threshold in DENSE_ONLY.items():
        found[name] = rates_of([(item.pair, item.dense >= threshold) for item in scored])
    for name, result in found.items():
        print(
            f"{name:20} paraphrases found {result.hits} of {result.same} ({result.recall:.0%}), "
            f"near misses served {result.false_hits} of {result.different} ({result.false_hit_ratio:.0%})"
        )
    book.close()
    languages = sorted({item.pair.language for item in scored})
    by_language = {
        language: asdict(rates([item for item in scored if item.pair.language == language], default.dense, default.agreement))
        for language in languages
    }
    return {**{name: asdict(result) for name, result in found.items()}, "default_by_language": by_language}


def _rows(
    scored: Sequence[Scored], embed: Callable[[Sequence[str]], NDArray[np.float32]], key: CacheKey, count: int
) -> list[Row]:
    texts = list(dict.fromkeys(item.pair.a for item in scored))
    vectors = np.concatenate([embed(texts[start : start + 64]) for start in range(0, len(texts), 64)])
    chance = np.random.default_rng(11)
    rows = []
    for number in range(count):
        base = number % len(texts)
        question = texts[base] if number < len(texts) else f"{texts[base]} ({number})"
        vector = vectors[base] if number < len(texts) else _near(vectors[base], chance)
        rows.append(Row(key.entry_id(question), key.scope, question, vector, 1.0))
    return rows


def _near(vector: NDArray[np.float32], chance: np.random.Generator) -> NDArray[np.float32]:
    moved = vector + 0.02 * chance.standard_normal(len(vector)).astype(np.float32)
    return np.asarray(moved / np.linalg.norm(moved), dtype=np.float32)


def _times(
    folder: Path, rows: list[Row], embed: Any, key: CacheKey, rounds: int, with_milvus: bool, info: Any
) -> Iterator[tuple[str, Any]]:
    sqlite = SqliteAnswers(folder / "cache.db", max_entries=len(rows) + 1000)
    yield "sqlite_memory", _measure(folder / "one", sqlite, MemoryIndex(), rows, embed, key, rounds)
    if shutil.which("redis-server"):
        with _redis() as url:
            redis = RedisAnswers(url, max_entries=len(rows) + 1000, wait_seconds=5.0)
            yield "redis_memory", _measure(folder / "two", redis, MemoryIndex(), rows, embed, key, rounds)
    if with_milvus:
        store = Store(uri=None, data_dir=folder / "three", collection="bench", timeout=60.0)
        index = MilvusIndex(store, lambda: info, timeout=60.0)
        answers = SqliteAnswers(folder / "three.db", max_entries=len(rows) + 1000)
        yield "sqlite_milvus_lite", _measure(folder / "three", answers, index, rows, embed, key, rounds)
        store.close()


def _measure(
    folder: Path, answers: AnswerStore, index: QuestionIndex, rows: list[Row], embed: Any, key: CacheKey, rounds: int
) -> dict[str, Any]:
    for row in rows:
        answers.keep(_entry(row, key), row.vector)
    if not isinstance(index, MemoryIndex):
        index.add(rows)
    cache = SemanticCache(answers, index, CacheBook(folder / "book.db"))
    started = time.perf_counter()
    assert cache.wait_until_ready(120)
    ready = time.perf_counter() - started
    known = [row.question for row in rows[:100]]
    vector = embed(["How is the weather on the moon?"])[0]

    def miss(number: int) -> None:
        question = f"How is the weather on moon {number}?"
        cache.look_up(question, None, key)
        assert cache.look_up(question, vector, key).hit is None
        cache.release(question, key)

    def equal(number: int) -> None:
        assert cache.look_up(known[number % len(known)], None, key).hit is not None

    def alike(number: int) -> None:
        question = f"Please, {known[number % len(known)]}"
        found = cache.look_up(question, None, key)
        if found.hit is None:
            cache.look_up(question, embed([question])[0], key)
            cache.release(question, key)

    def keep(number: int) -> None:
        question = f"Which new question is number {number}?"
        cache.keep(_answer(question), vector, key)

    result = {
        "equal_question": _spread(equal, rounds),
        "other_words_with_embedding": _spread(alike, rounds),
        "embedding_alone": _spread(lambda number: embed([f"Please, {known[number % len(known)]}"]), rounds),
        "added_to_a_miss": _spread(miss, rounds),
        "keep": _spread(keep, min(rounds, 50)),
        "index_ready_after": round(1000 * ready, 1),
        "alike_hits": cache.status().counted.alike_hits,
    }
    cache.close()
    print(type(answers).__name__, type(index).__name__, json.dumps(result))
    return result


def _spread(work: Callable[[int], Any], rounds: int) -> dict[str, float]:
    for number in range(3):
        work(-1 - number)
    spent = []
    for number in range(rounds):
        started = time.perf_counter()
        work(number)
        spent.append(1000 * (time.perf_counter() - started))
    return {"p50": round(median(spent), 2), "p95": round(quantiles(spent, n=20)[-1], 2)}


def _answer(question: str) -> Answer:
    passages = tuple(
        Passage(f"p{number}", "A passage of about eighty words. " * 15, f"{number}.md", "A title", kept=number < 8)
        for number in range(16)
    )
    return Answer(
        "0" * 32, question, "2026-01-01T00:00:00Z", "answered", answer="An answer of some sentences [1]. " * 12,
        passages=passages, total_seconds=9.0, finish_reason="stop",
    )  # fmt: skip


def _entry(row: Row, key: CacheKey) -> CachedAnswer:
    return CachedAnswer.from_answer(_answer(row.question), key, 1.0)


@contextmanager
def _redis() -> Iterator[str]:
    """A redis-server on a free port, ended by its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


if __name__ == "__main__":
    main()
