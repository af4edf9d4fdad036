"""From how many passages on Milvus Lite is slow: search and opening by the number of rows, beside what the folder takes on disk.

    python -m benchmarks.bench_store [--rows 5000,20000,50000,100000] [--searches 30]

Random 384-dimensional vectors and texts of 60 words drawn by Zipf's law from 20,000, in a collection as the product makes it,
searched as the product does (both routes, 40 hits each, scores completed for neither). One store that grows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.figures import percentile
from gpu_server.interfaces import ModelInfo
from rag.store import Store
from rag.types import PassageRow

DIMENSION, WORDS, VOCABULARY = 384, 60, 20_000
MODEL = ModelInfo("random", "embedder", "random-384", "cpu", "fp32", dimension=DIMENSION)


class Texts:
    """Texts whose words are as unequally frequent as those of a language."""

    def __init__(self, seed: int = 7) -> None:
        self._random = np.random.default_rng(seed)
        shares = 1.0 / np.arange(1, VOCABULARY + 1)
        self._shares = shares / shares.sum()
        self._words = np.array([f"w{number:x}" for number in range(VOCABULARY)])

    def text(self, words: int) -> str:
        return " ".join(self._random.choice(self._words, words, p=self._shares))

    def vectors(self, count: int) -> Any:
        made = self._random.standard_normal((count, DIMENSION), dtype=np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="5000,20000,50000,100000")
    parser.add_argument("--searches", type=int, default=30)
    given = parser.parse_args()
    texts, levels = Texts(), []
    with tempfile.TemporaryDirectory() as folder:
        stored = 0
        for rows in (int(part) for part in given.rows.split(",")):
            store = _opened(Path(folder))
            name = store.use(MODEL)
            _fill(store, name, texts, stored, rows)
            stored = rows
            store.close()
            level = {"rows": rows, **_measured(Path(folder), texts, given.searches)}
            print(json.dumps(level), flush=True)
            levels.append(level)
    result = {
        "benchmark": "store",
        "levels": levels,
        "dimension": DIMENSION,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(json.dumps(result))
    return result


def _opened(folder: Path) -> Store:
    return Store(uri=None, data_dir=folder, collection="bench", timeout=300.0)


def _fill(store: Store, name: str, texts: Texts, first: int, end: int) -> None:
    for start in range(first, end, 1000):
        count = min(1000, end - start)
        rows = [PassageRow(f"p{start + n:08}", f"d{(start + n) // 40}", "v", 1, texts.text(WORDS), "", "s") for n in range(count)]
        store.write_rows(name, rows, texts.vectors(count), None)
    store.flush(name)


def _measured(folder: Path, texts: Texts, searches: int) -> dict[str, Any]:
    """Opening the store anew and the searches of one process that does nothing else."""
    store = _opened(folder)
    started = time.perf_counter()
    name = store.use(MODEL)
    opening = time.perf_counter() - started
    seconds = []
    for _ in range(searches + 1):
        vector, question = texts.vectors(1)[0], texts.text(8)
        started = time.perf_counter()
        store.search(name, vector, question, 40)
        seconds.append(time.perf_counter() - started)
    store.close()
    size = sum(path.stat().st_size for path in (folder / "milvus.db").rglob("*") if path.is_file())
    return {
        "open_seconds": round(opening, 3),
        "first_search_ms": round(seconds[0] * 1000, 1),
        "search_ms_p50": round(median(seconds[1:]) * 1000, 1),
        "search_ms_p95": round(percentile(seconds[1:], 0.95) * 1000, 1),
        "bytes": size,
    }


if __name__ == "__main__":
    main()
