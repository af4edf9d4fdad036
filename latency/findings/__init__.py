"""Findings: why a query was slow, ranked, each with evidence, saving, derivation, confidence and what to change.

`find` and `find_many` are pure functions of traces, readings and what is usual. Causes take seconds from a ledger, surest first:

1. what the query measured of itself: loads, failed attempts, queues, opening the store, the network;
2. what was slower than usual and says why by its own facts: first runs, unflushed rows, long prompts;
3. what readings of machines explain of what is then left beyond the usual;
4. what is slower than usual, with nothing that says why;
5. what costs without being slow: a CPU beside a GPU, long answers, too many candidates, HyDE without effect, cache misses.

So no two findings explain the same second. A finding must cost 100 ms and 5 % of the query; none is an answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from latency.findings.many import find_many
from latency.findings.single import find

__all__ = ["CODES", "find", "find_many"]

CODES: Mapping[str, str] = {
    "model_loaded": "a model's weights were loaded inside the request, with the first run after it",
    "first_run": "a model's first run after its load fell into the request",
    "remote_model_per_request": "a remote model seems to be built anew for each request",
    "reranker_on_cpu": "the reranker ran on the CPU of a machine with a GPU",
    "embedder_on_cpu": "the embedder ran on the CPU of a machine with a GPU",
    "hyde_cost": "HyDE cost its time and seldom changed the first five passages",
    "network_store": "round trips to the store",
    "network_model": "the network's part of a model behind HTTP",
    "store_unflushed": "the search went through rows that were never flushed",
    "store_not_loaded": "the store was opened, or its collection loaded, inside the request",
    "too_many_candidates": "candidates were reranked below the ranks that reranking ever lifts",
    "prompt_too_long": "the first token came later because the prompt was long",
    "decode_slow": "tokens came far more slowly than usual",
    "answer_long": "the language model wrote many more tokens than usual",
    "ttft_slow": "the first token came late, and nothing read says why",
    "llm_queue": "the request waited in the language model server's queue",
    "kv_cache_full": "the request waited because the KV cache was full",
    "gpu_shared": "another process used the GPU",
    "gpu_throttled": "the GPU was held back by heat or power",
    "gpu_clocks_low": "the GPU ran at a low clock without such a reason",
    "gpu_persistence_off": "the GPU had to be woken up: persistence mode is off",
    "vram_full": "the GPU's memory was full",
    "cpu_saturated": "other processes kept the processors busy",
    "cpu_ours": "other work of this process kept the processors busy",
    "disk_saturated": "a disk had no time left",
    "cache_misses": "the answer to a near-equal question was there and not used",
    "retries": "failed attempts and time-outs hidden inside a stage",
    "padding_waste": "time spent on padding, or on text that was cut away",
    "client_queue": "the query waited in this process's own queue for a model",
    "server_queue": "the query waited in a model server's queue",
}
