"""`make test-long`: 20,000 requests of mixed length through the pool do not grow the process."""

from __future__ import annotations

import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from gpu_server import makers
from gpu_server.interfaces import VectorKind
from gpu_server.model_pool import ModelPool, PooledEmbedder

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

REQUESTS = 20_000
CALLERS = 8
SAMPLES = 400
LOST = 0.02  # of the requests, cancelled in the queue
WORDS = "memory graphics card latency query embedding passage reranker batch token pump valve Märchen 東京 2024 ß".split()
DENSE: frozenset[VectorKind] = frozenset({"dense"})


def test_memory_is_flat_over_20_000_requests_of_mixed_length():
    pool = ModelPool()
    embedder = pool.add_embedder("starter", makers.embedder("starter", "auto", "auto"))
    pool.warm_up()
    sizes, answered = drive(embedder)
    quarter = len(sizes) // 4
    second, last = mean(sizes[quarter : 2 * quarter]), mean(sizes[3 * quarter :])
    status = pool.status()[0]
    print(f"second quarter {second:.1f} MiB, last {last:.1f} MiB, {status.batches} batches, {status.tokens} tokens")
    assert answered > REQUESTS * (1 - 2 * LOST)
    assert (status.queue_texts, status.failures) == (0, 0)
    assert last <= second * 1.02
    pool.stop()


def drive(embedder: PooledEmbedder) -> tuple[list[float], int]:
    """Resident MiB, noted evenly over all requests, and how many of them were answered. A caller's numbers are its seed's."""
    lock, sizes, counts = threading.Lock(), [], {"sent": 0, "answered": 0}

    def call(seed: int) -> None:
        chance = random.Random(seed)
        while True:
            with lock:
                counts["sent"] += 1
                if counts["sent"] > REQUESTS:
                    return
                if counts["sent"] % (REQUESTS // SAMPLES) == 0:
                    sizes.append(rss_mib())
            answered = ask(embedder, chance)
            with lock:
                counts["answered"] += answered

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sizes, counts["answered"]


def ask(embedder: PooledEmbedder, chance: random.Random) -> bool:
    """A query most of the time, a few passages sometimes; False where the request was given up."""
    texts = [
        " ".join(chance.choices(WORDS, k=chance.choice((2, 5, 12, 60)))) for _ in range(chance.choice((1, 1, 1, 1, 1, 1, 4, 8)))
    ]
    kind: Any = "query" if len(texts) == 1 else "passage"
    future = embedder.begin(texts, kind, vectors=DENSE)
    if chance.random() < LOST and future.cancel():
        return False
    assert future.result(120).dense.shape == (len(texts), 384)
    return True


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def rss_mib() -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024
