"""What the path costs by itself, and what the starter's retrieval costs over 1,400 passages.

    python -m benchmarks.bench_path [--queries 200]

Side by side in one run: the same questions with their traces stored and not, and with the embedder's and the store's results
replayed from memory: the difference to the last is what the path pays for running right after them, on cold CPU caches. "Own"
time is the query's total minus what was spent inside the embedder, the store, the reranker and the language model, each timed
from outside. The language model is a fake that streams 50 pieces at once, so that streaming counts. Passages are recombined
sentences of the sample corpus.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from gpu_server.interfaces import ChatRequest, Delta, ModelInfo
from gpu_server.model_pool import ModelPool
from gpu_server.starter import StarterEmbedder, StarterReranker
from rag.query import Clients, Finished, Prompts, answer
from rag.store import Store
from rag.trace import Tracing
from rag.trace_store import TraceStore
from rag.types import Options, PassageRow

SAMPLES = Path(__file__).parents[1] / "samples" / "field-guide-eval"
PASSAGES = 1400


class Clock:
    """Seconds spent inside everything it wraps."""

    def __init__(self) -> None:
        self.inside = 0.0

    def around(self, target: Any) -> Any:
        return _Timed(target, self)


class _Timed:
    def __init__(self, target: Any, clock: Clock) -> None:
        self._target, self._clock = target, clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return found(*arguments, **options)
            finally:
                self._clock.inside += time.perf_counter() - started

        return timed


class Replay:
    """Gives the results of an earlier call with the same arguments again, at once. Attributes are the target's."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._known: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name not in ("embed", "search"):
            return found

        def replayed(*arguments: Any, **options: Any) -> Any:
            key = str(arguments[0]) if name == "embed" else str(arguments[2])
            if key not in self._known:
                self._known[key] = found(*arguments, **options)
            return self._known[key]

        return replayed


class FakeChat:
    """A fake language model: fifty pieces with a citation, at once."""

    info = ModelInfo("fake", "llm", "fake", "cpu", "fp32")

    pieces = (  # made beforehand: the model's own time is not the path's
        *(Delta(text=f"word{number} [1] ") for number in range(50)),
        Delta(prompt_tokens=800, completion_tokens=50, finish_reason="stop"),
    )

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        return iter(self.pieces)


def passages() -> list[PassageRow]:
    """1,400 passages of about 120 words, recombined from the sample corpus's sentences with a fixed seed."""
    lines = (SAMPLES / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines]
    sentences = [part for document in documents for part in document["text"].split(". ") if len(part.split()) > 5]
    chance = random.Random(7)
    return [
        PassageRow(f"p{n}", f"d{n}", "v", 0, ". ".join(chance.sample(sentences, 8)), chance.choice(documents)["title"], f"{n}.md")
        for n in range(PASSAGES)
    ]


def run(question: str, clients: Clients, options: Options) -> Finished:
    steps = answer(question, options, clients)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            finished: Finished = end.value
            return finished


def own_times(questions: list[str], clients: Clients, traces: TraceStore | None) -> list[float]:
    """Own seconds of each query; storing the trace counts as own time."""
    found = []
    for question in questions:
        clock = Clock()
        wrapped = replace(
            clients,
            embedder=clock.around(clients.embedder),
            reranker=clock.around(clients.reranker),
            store=clock.around(clients.store),
        )
        started = time.perf_counter()
        done = run(question, wrapped, Options(hyde="off"))
        if traces is not None:
            traces.save(done.answer, done.spans)
        found.append(time.perf_counter() - started - clock.inside)
        if traces is not None:
            traces.flush()  # what the writer thread does in between is not this query's time
    return found


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=200)
    count = parser.parse_args().queries
    pool = ModelPool()
    embedder = pool.add_embedder("starter", StarterEmbedder)
    reranker = pool.add_reranker("starter", StarterReranker, uses_route_scores=True)
    pool.warm_up()
    asked = [json.loads(line)["text"] for line in (SAMPLES / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [asked[number % len(asked)] for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(uri=None, data_dir=Path(folder), collection="bench", timeout=60.0)
        traces = TraceStore(Path(folder) / "traces.db")
        try:
            _fill(store, embedder)
            clients = Clients(embedder, reranker, FakeChat(), store, Tracing(), Prompts("{passages}{question}", "{question}"))
            result = _measure(questions, clients, traces)
        finally:
            store.close()
            traces.close()
    print(json.dumps(result))
    return result


def _fill(store: Store, embedder: Any) -> None:
    name, rows = store.use(embedder.info), passages()
    print(f"embedding {len(rows)} passages …")
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        store.write_rows(name, batch, embedder.embed([row.indexed_text for row in batch]).dense, None)
    store.flush(name)


def _measure(questions: list[str], clients: Clients, traces: TraceStore) -> dict[str, Any]:
    for question in questions[:10]:
        run(question, clients, Options(hyde="off"))
    gc.collect()
    gc.freeze()  # as the runtime does after warm-up
    embedder: Any = Replay(clients.embedder)
    store: Any = Replay(clients.store)
    replayed = replace(clients, embedder=embedder, store=store)
    own_times(sorted(set(questions)), replayed, None)
    traced, bare, alone = [], [], []
    for start in range(0, len(questions), 20):  # interleaved, so that a slow minute of the machine hits both
        chunk = questions[start : start + 20]
        traced += own_times(chunk, clients, traces)
        bare += own_times(chunk, clients, None)
        alone += own_times(chunk, replayed, traces)
    retrieval = []
    for question in questions:
        stages = {stage.stage: stage.seconds for stage in run(question, clients, Options(hyde="off")).answer.stages}
        retrieval.append(stages["embed"] + stages["search"] + stages["rerank"])
    retrieval.sort()
    return {
        "benchmark": "path",
        "queries": len(questions),
        "passages": PASSAGES,
        "own_ms_p50_traced_and_stored": round(median(traced) * 1000, 3),
        "own_ms_p50_not_stored": round(median(bare) * 1000, 3),
        "own_ms_p50_results_replayed_and_stored": round(median(alone) * 1000, 3),
        "retrieval_ms_p50": round(median(retrieval) * 1000, 1),
        "retrieval_ms_p95": round(retrieval[int(len(retrieval) * 0.95)] * 1000, 1),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
