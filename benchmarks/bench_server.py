"""The GPU server over HTTP against infinity and the plain server of the reports, all running at once, asked in turn.

    python -m benchmarks.bench_server [--requests 192] [--rounds 2] [--no-infinity]

1) Requests a second at 16 clients, one text of 10 to 200 tokens a request, MiniLM: the same texts, in the same order, to each
server in turn (A B C A B C); the same texts in one in-process `encode` of sentence-transformers as the ceiling of the library.
2) One client and one short query over HTTP against the same call in-process.
3) A single query beside two clients that embed 64 passages a request: its p99 against the time of a batch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import interleaved, percentile
from benchmarks.http_load import BlockingConnection, Connection, Load, closed_loop, post
from benchmarks.servers import free_port, infinity, ours, plain, running
from gpu_server import makers
from gpu_server.devices import import_torch
from gpu_server.model_pool import ModelPool
from gpu_server.starter import weights_folder

CORPUS = Path(__file__).parents[1] / "samples" / "field-guide-eval" / "corpus.jsonl"
CLIENTS = 16
BULK_TEXTS = 64
QUERY = "why is the first query slow"
UNCACHED = ("x-ragdeck-caches: bypass",)


def texts(count: int, tokens: tuple[int, int], seed: int = 7) -> list[str]:
    """`count` texts out of the sample corpus's words, evenly spread over `tokens` (lowest, highest; MiniLM's own tokens)."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = " ".join(json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()).split()
    draw = random.Random(seed)
    low, high = tokens
    made = []
    for index in range(count):
        wanted = low + (high - low) * index // max(1, count - 1)
        start = draw.randrange(len(words) - wanted)
        encoded = tokenizer.encode(" ".join(words[start : start + wanted]), add_special_tokens=False)
        end = encoded.offsets[min(wanted, len(encoded.ids)) - 1][1]
        made.append(" ".join(words[start : start + wanted])[:end])
    draw.shuffle(made)
    return made


def throughput(ports: dict[str, int], shapes: dict[str, Any], count: int, rounds: int) -> dict[str, Any]:
    """Requests a second of each server: the median over rounds, each round asking every server the same texts."""
    mixed = texts(count, (10, 200))
    requests = {name: [shapes[name](text) for text in mixed] for name in ports}
    loads: dict[str, list[Load]] = {name: [] for name in ports}
    ceiling = []
    from sentence_transformers import SentenceTransformer

    library: Any = SentenceTransformer(str(weights_folder()), device="cpu")
    for turn in range(rounds + 1):
        for name, port in ports.items():
            load = asyncio.run(closed_loop(port, requests[name], CLIENTS, count))
            if turn:
                loads[name].append(load)
        started = time.perf_counter()
        library.encode(mixed, batch_size=32, show_progress_bar=False)
        if turn:
            ceiling.append(count / (time.perf_counter() - started))
    result: dict[str, Any] = {
        name: {
            "requests_per_second": round(median(load.per_second for load in runs), 1),
            "p50_ms": round(1000 * median(load.p(0.5) for load in runs), 1),
            "p99_ms": round(1000 * median(load.p(0.99) for load in runs), 1),
        }
        for name, runs in loads.items()
    }
    result["in_process_encode_texts_per_second"] = round(median(ceiling), 1)
    return result


def single(ports: dict[str, int], rounds: int) -> dict[str, Any]:
    """One client, one short query, over HTTP and in-process, in turn, for each precision."""
    result: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        embedder = ModelPool().add_embedder("starter", makers.embedder("starter", "cpu", precision))
        connection = BlockingConnection(ports[f"ours {precision}"])
        ask = partial(connection.ask, post("/embed", {"texts": [QUERY], "kind": "query"}, UNCACHED))
        seconds = interleaved({"in_process": partial(embedder.embed, [QUERY], "query"), "http": ask}, rounds)
        connection.close()
        result[precision] = {
            "in_process_ms": round(1000 * seconds["in_process"], 3),
            "http_ms": round(1000 * seconds["http"], 3),
            "ratio": round(seconds["http"] / seconds["in_process"], 3),
        }
    return result


def beside_bulk(port: int, queries: int) -> dict[str, Any]:
    """p99 of one query after the other while two clients embed passages without pause, in batches of bulk work alone.

    How long such a batch takes is measured first, with the same two clients and no query.
    """
    bulk = post("/embed", {"texts": texts(BULK_TEXTS, (10, 200), seed=9)}, UNCACHED)
    query = post("/embed", {"texts": [QUERY], "kind": "query"}, UNCACHED)

    async def run() -> tuple[list[float], float]:
        done = asyncio.Event()

        async def flood() -> None:
            connection = Connection(port)
            while not done.is_set():
                await connection.ask(bulk)
            connection.close()

        floods = [asyncio.create_task(flood()) for _ in range(2)]
        await asyncio.sleep(2.0)
        before, started = _batches(port), time.perf_counter()
        await asyncio.sleep(5.0)
        batch = (time.perf_counter() - started) / max(1, _batches(port) - before)
        connection, latencies = Connection(port), []
        for _ in range(queries):
            started = time.perf_counter()
            await connection.ask(query)
            latencies.append(time.perf_counter() - started)
        done.set()
        await asyncio.gather(*floods)
        connection.close()
        return latencies, batch

    latencies, batch = asyncio.run(run())
    return {
        "query_p50_ms": round(1000 * percentile(latencies, 0.5), 1),
        "query_p99_ms": round(1000 * percentile(latencies, 0.99), 1),
        "bulk_batch_ms": round(1000 * batch, 1),
        "p50_in_batches": round(percentile(latencies, 0.5) / batch, 2),
        "p99_in_batches": round(percentile(latencies, 0.99) / batch, 2),
    }


def _batches(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
        status = json.load(answer)
    return int(next(item for item in status["models"] if item["kind"] == "embedder")["batches"])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_server")
    parser.add_argument("--requests", type=int, default=192, help="requests a server in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-infinity", action="store_true", help="leave out the peer that needs an environment of its own")
    options = parser.parse_args(arguments)
    os.environ.update(HF_HUB_OFFLINE="1", DO_NOT_TRACK="1")
    import_torch()  # first, so that every library in this process has the same OpenMP setting
    folder = weights_folder()
    alone = ("--reranker", "none")
    commands: dict[str, Callable[[int], list[str]]] = {
        "plain": lambda port: plain(port, folder),
        "infinity": lambda port: infinity(port, folder),
        "ours fp32": lambda port: ours(port, "fp32", *alone),
        "ours bf16": lambda port: ours(port, "bf16", *alone),
    }
    if options.no_infinity:
        del commands["infinity"]
    native = {name: lambda text: post("/embed", {"texts": [text]}, UNCACHED) for name in commands}
    shapes = native | {"infinity": lambda text: post("/embeddings", {"model": "minilm", "input": [text]})}
    with ExitStack() as stack:
        ports = {}
        for name, command in commands.items():
            port = free_port()
            ports[name] = stack.enter_context(running(command(port), port))
        alone_result = single(ports, 300)  # first: a second OpenMP pool in this process slows its own calls down
        rates = throughput(ports, shapes, options.requests, options.rounds)
        bulk = {name: beside_bulk(port, 200) for name, port in ports.items() if name.startswith("ours")}
    ratios = {
        f"{name} / {peer}": round(rates[name]["requests_per_second"] / rates[peer]["requests_per_second"], 2)
        for name in ("ours fp32", "ours bf16")
        for peer in ("plain", "infinity")
        if peer in rates
    }
    result = {"clients": CLIENTS, "throughput": rates, "ratios": ratios, "single_query": alone_result, "beside_bulk": bulk}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
