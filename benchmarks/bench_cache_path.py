"""What a cached answer takes from the question to the answer, in the real path with 10,000 entries, and what a miss pays for it.

    python -m benchmarks.bench_cache_path [--entries 10000] [--rounds 100]

A dashboard's runtime in a folder of its own: starter models, Milvus Lite, the sample corpus and its questions, answers in
SQLite. In turn: the question in the same words, in other words, a question nobody asked, and that one past the cache.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from benchmarks.bench_cache import _near
from rag.cache.types import CacheKey
from rag.types import Answer, Options
from runtime import ROOT, Runtime
from settings import load

QUESTIONS = ROOT / "samples" / "field-guide-eval" / "queries.jsonl"


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with _runtime(Path(folder)) as runtime:
            job = runtime.status().sample_job
            assert job is not None
            job.wait()
            known = [text for text in _questions() if _ask(runtime, text).outcome == "answered"]
            _fill(runtime, given.entries)
        with _runtime(Path(folder)) as runtime:
            result = _measured(runtime, known, given.rounds)
    print(json.dumps(result))
    return result


@contextmanager
def _runtime(folder: Path) -> Iterator[Runtime]:
    (folder / "dashboard.toml").write_text("[cache]\nmax_entries = 1000000\n", encoding="utf-8")  # nothing is pushed out
    runtime = Runtime(load({"RAGDECK_DATA": str(folder)}, folder))
    try:
        runtime.start()
        runtime.wait_warm()
        assert runtime.cache is not None and runtime.cache.wait_until_ready(120)
        yield runtime
    finally:
        runtime.stop()


def _questions() -> list[str]:
    return [json.loads(line)["text"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


def _measured(runtime: Runtime, known: Sequence[str], rounds: int) -> dict[str, Any]:
    spent: dict[str, list[float]] = {"equal": [], "alike": [], "miss": [], "bypassed": [], "lookup_of_a_miss": []}
    unexpected = dict.fromkeys(("equal", "alike", "miss"), 0)
    for number in range(rounds):
        text = known[number % len(known)]
        equal, alike = _ask(runtime, text), _ask(runtime, f"Please: {text}")
        new = f"How many lions of cage {number} like to eat apples on Sundays?"
        miss, bypassed = _ask(runtime, new), _ask(runtime, new, Options(hyde="off", caches="bypass"))
        for name, wrong in (("equal", not _hit(equal)), ("alike", not _hit(alike)), ("miss", _hit(miss))):
            unexpected[name] += wrong
        for name, found in (("equal", equal), ("alike", alike), ("miss", miss), ("bypassed", bypassed)):
            spent[name].append(found.total_seconds)
        spent["lookup_of_a_miss"].append(next(stage.seconds for stage in miss.stages if stage.stage == "cache"))
        assert runtime.cache is not None
        runtime.cache.delete(max(runtime.cache.entries(3, order="created"), key=lambda entry: entry.created_at_unix).id)
    assert runtime.cache is not None
    return {
        "entries": runtime.cache.status().answers.entries,
        "rounds": rounds,
        "unexpected_verdicts": unexpected,
        "milliseconds": {
            name: {"p50": round(1000 * median(values), 2), "p95": round(1000 * quantiles(values, n=20)[-1], 2)}
            for name, values in spent.items()
        },
    }


def _hit(answer: Answer) -> bool:
    return bool(next(stage.hit for stage in answer.stages if stage.stage == "cache"))


def _ask(runtime: Runtime, question: str, options: Options | None = None) -> Answer:
    job = runtime.submit_query(question, options or Options(hyde="off"), origin="measure")
    job.wait()
    assert job.result is not None, job.error
    return job.result


def _fill(runtime: Runtime, count: int) -> None:
    """Further entries made from the first ones: other questions, vectors a little off theirs."""
    cache = runtime.cache
    assert cache is not None
    chance = np.random.default_rng(11)
    rows = list(cache.answers.rows())
    for number in range(len(rows), count):
        row = rows[number % len(rows)]
        entry = cache.entry(row.id)
        assert entry is not None
        key, question = CacheKey(**entry.key), f"{row.question} ({number})"
        cache.answers.keep(
            replace(entry, id=key.entry_id(question), question=question, created_at_unix=entry.created_at_unix - 10.0 * number),
            _near(np.asarray(row.vector, dtype=np.float32), chance),
        )


if __name__ == "__main__":
    main()
