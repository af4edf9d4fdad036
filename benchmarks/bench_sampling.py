"""What reading the machine costs a query while it runs.

    python -m benchmarks.bench_sampling [--pairs 12] [--queries 15]

The same questions over the path with and without a window open around them, in blocks that take turns (on off off on), so that
a slow minute of the machine hits both. Beside that the processor time of the sampler's thread for each second, alone and with
fake GPUs: those answer at once, so that it is our own part; what the driver takes comes on top. `begin` and `end` are timed
apart. The embedder is the starter's, the language model a fake that streams at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pynvml  # type: ignore[import-untyped]

from benchmarks import figures
from benchmarks.bench_path import SAMPLES, FakeChat, passages, run
from gpu_server.model_pool import ModelPool
from gpu_server.starter import StarterEmbedder, StarterReranker
from latency.readings.gpus import GpuReader
from latency.readings.sampler import Sampler
from latency.readings.store import ReadingStore, pack
from latency.readings.window import Window
from rag.query import Clients, Prompts
from rag.store import Store
from rag.trace import Tracing
from rag.types import Answer, Options

ALONE_SECONDS = 4.0
PASSAGES = 150


class FakeNvml:
    """A fake of the module pynvml with so many GPUs that answer at once, each call the same."""

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self._memory = type("Memory", (), {"total": 2**36, "used": 2**35, "free": 2**35})
        self._utilization = type("Utilization", (), {"gpu": 50, "memory": 20})

    def nvmlDeviceGetCount(self) -> int:
        return self._gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            return getattr(pynvml, name)
        answers = {"MemoryInfo": self._memory, "UtilizationRates": self._utilization, "RunningProcesses": [], "EventReasons": 0}
        answer = next((each for part, each in answers.items() if name.endswith(part)), 1)
        setattr(self, name, lambda *arguments: answer)  # found at once the next time, as in the real module
        return getattr(self, name)


def alone(gpus: int) -> dict[str, float]:
    """Processor milliseconds of the sampler's thread in a second without queries, and its looks at the fast pace."""
    sampler = Sampler(GpuReader(FakeNvml(gpus)))
    started = time.monotonic()
    with sampler.running():
        time.sleep(ALONE_SECONDS)
    seconds = time.monotonic() - started
    looks = len(sampler.between(started, started + seconds, 0).groups[0 if gpus else 1].times)
    used = sampler.cpu_seconds
    sampler.close()
    return {"cpu_ms_per_second": round(used / seconds * 1000, 2), "looks_per_second": round(looks / seconds, 1)}


def blocks(questions: list[str], clients: Clients, window: Window, sampler: Sampler, pairs: int) -> dict[str, list[float]]:
    """Seconds of each query, by whether a window was open: on off off on."""
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    for turn in range(2 * pairs):
        kind = "on" if turn % 4 in (0, 3) else "off"
        if kind == "on":
            mark = window.begin()
        for question in questions:
            started = time.perf_counter()
            run(question, clients, Options(hyde="off"))
            seconds[kind].append(time.perf_counter() - started)
        if kind == "on":
            window.end(mark, None)
        while sampler.users:
            time.sleep(0.01)
    return seconds


def brackets(window: Window, sampler: Sampler) -> dict[str, float]:
    """Microseconds of `begin` and milliseconds of `end` around a query of two seconds, and how many bytes are kept of it."""
    begins, ends, size = [], [], 0
    for number in range(3):
        started = time.perf_counter()
        mark = window.begin()
        begins.append(time.perf_counter() - started)
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        time.sleep(2.0)
        started = time.perf_counter()
        readings = window.end(mark, Answer(f"q{number}", "", at, "answered", total_seconds=2.0))
        ends.append(time.perf_counter() - started)
        size = len(pack(readings)) if readings is not None else 0
        while sampler.users:
            time.sleep(0.05)
    return {"begin_us": round(median(begins) * 1e6, 1), "end_ms": round(median(ends) * 1000, 2), "bytes_of_2s": size}


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--queries", type=int, default=15, help="in each block")
    arguments = parser.parse_args()
    pool = ModelPool()
    embedder = pool.add_embedder("starter", StarterEmbedder)
    reranker = pool.add_reranker("starter", StarterReranker, uses_route_scores=True)
    pool.warm_up()
    asked = [json.loads(line)["text"] for line in (SAMPLES / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [asked[number % len(asked)] for number in range(arguments.queries)]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(uri=None, data_dir=Path(folder), collection="bench", timeout=60.0)
        kept, sampler = ReadingStore(Path(folder) / "readings.db"), Sampler(GpuReader(FakeNvml(1)))
        try:
            name, rows = store.use(embedder.info), passages()[:PASSAGES]
            store.write_rows(name, rows, embedder.embed([row.indexed_text for row in rows]).dense, None)
            store.flush(name)
            clients = Clients(embedder, reranker, FakeChat(), store, Tracing(), Prompts("{passages}{question}", "{question}"))
            for question in questions:
                run(question, clients, Options(hyde="off"))
            gc.collect()
            gc.freeze()  # as the runtime does after warm-up
            result = _measured(questions, clients, Window(None, kept, sampler), sampler, arguments.pairs)
        finally:
            sampler.close()
            kept.close()
            store.close()
    print(json.dumps(result))
    return result


def _measured(questions: list[str], clients: Clients, window: Window, sampler: Sampler, pairs: int) -> dict[str, Any]:
    started, used = time.monotonic(), sampler.cpu_seconds
    seconds = blocks(questions, clients, window, sampler, pairs)
    sampled = sum(seconds["on"])
    print(f"{len(seconds['on'])} queries each in {time.monotonic() - started:.1f} s")
    return {
        "benchmark": "sampling",
        "queries_each": len(seconds["on"]),
        "query_ms_p50_sampled": round(median(seconds["on"]) * 1000, 3),
        "query_ms_p50_not_sampled": round(median(seconds["off"]) * 1000, 3),
        "query_ms_p95_sampled": round(figures.percentile(seconds["on"], 0.95) * 1000, 3),
        "query_ms_p95_not_sampled": round(figures.percentile(seconds["off"], 0.95) * 1000, 3),
        "difference_of_medians_ratio": round(median(seconds["on"]) / median(seconds["off"]) - 1, 4),
        "sampler_cpu_ratio_while_queries_run": round((sampler.cpu_seconds - used) / sampled, 5),
        "alone_without_gpu": alone(0),
        "alone_1_fake_gpu": alone(1),
        "alone_8_fake_gpus": alone(8),
        **brackets(window, sampler),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
