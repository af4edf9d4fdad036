"""Embedder, reranker and language model by themselves: load, first run, warm runs. Knows nothing of the query path.

Load and first run are what the pool recorded when it loaded the model, because loading it again would keep users waiting; with
`reload` a second copy is loaded beside it, measured, and let go of. No two warm runs send the same texts, so that no cache of a
server answers them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from gpu_server.interfaces import ChatModel, ChatRequest, ModelInfo, RerankCandidate
from latency.components.rows import CALL_SECONDS, Bench, ModelState, Row, skipped
from latency.components.store import QUESTION
from latency.components.targets import CODES
from rag.errors import RagError
from rag.routes import fuse

CANDIDATES = (1, 20, 50)
SHORT = "Answer with one word, yes or no: is water wet?"
LONG = "Explain in about two hundred words how a heat pump works."
SHORT_TOKENS, LONG_TOKENS = 8, 256
SHORT_RUNS, LONG_RUNS = 5, 2
SAMPLE_TEXTS = (
    "The first pass after a load is slow, because kernels are chosen and memory is reserved while it runs.",
    "A connection through a tunnel adds its round trip to every request, however small the request is.",
    "Weights that lie on a slow disk are read once, and from memory afterwards as long as it is not needed otherwise.",
)


# embedder


def embedder(bench: Bench) -> Iterator[Row]:
    """Rows `embedder.load`, `embedder.first`, `embedder.warm`."""
    model = bench.clients.embedder

    def embed(number: int) -> int:
        text = f"{QUESTION} ({number}, {time.time_ns()})"
        return model.embed([text], "query", priority=1, deadline=_deadline(), caches="bypass").tokens

    embed(0)  # a model that nobody has used yet is loaded here, and the pool keeps how long that took
    yield from _load(bench, "embedder")
    samples, tokens = bench.timed(embed)
    yield Row("embedder.warm", CODES["embedder.warm"], samples, f"{_where(model.info)}, {tokens} tokens", {"tokens": tokens})


# reranker


def reranker(bench: Bench) -> Iterator[Row]:
    """Rows `reranker.load`, `reranker.first`, and `reranker.N` for N candidates from the store."""
    model = bench.clients.reranker
    if model is None:
        codes = ("reranker.load", "reranker.first", *(f"reranker.{number}" for number in CANDIDATES))
        yield from (skipped(code, CODES[code], "switched off in the settings") for code in codes)
        return
    candidates, source = _candidates(bench, max(CANDIDATES))
    model.score(QUESTION, candidates[:1], deadline=_deadline(), caches="bypass")
    is_model = not model.uses_route_scores  # else arithmetic on the search's scores: no target for a model holds for it
    yield from (replace(row, comparable=is_model) for row in _load(bench, "reranker"))
    for count in CANDIDATES:

        def score(number: int, some: Sequence[RerankCandidate] = candidates[:count]) -> int:
            return model.score(f"{QUESTION} ({number})", some, deadline=_deadline(), caches="bypass").tokens

        samples, tokens = bench.timed(score)
        detail = f"{_where(model.info)}, {source}" + (f", {tokens} tokens" if tokens else "")
        values = {"candidates": count, "tokens": tokens or None}
        yield Row(f"reranker.{count}", CODES[f"reranker.{count}"], samples, detail, values, comparable=is_model)


def _candidates(bench: Bench, count: int) -> tuple[list[RerankCandidate], str]:
    """So many passages, with where they are from: what the store finds, over again where it has fewer."""
    clients = bench.clients
    try:
        embedded = clients.embedder.embed([QUESTION], "query", priority=1, deadline=_deadline(), caches="bypass")
        name = clients.store.use(clients.embedder.info)
        sparse = embedded.sparse[0] if embedded.sparse else None
        found = fuse(clients.store.search(name, embedded.dense[0], QUESTION, count, sparse=sparse, complete=True), count)
    except RagError:
        found = ()
    texts = [RerankCandidate(each.text, each.scores.get("dense"), each.scores.get("sparse")) for each in found]
    source = "passages of the store"
    if not texts:
        texts = [RerankCandidate(text, 0.5 - index / 10, 1.0 + index) for index, text in enumerate(SAMPLE_TEXTS)]
        source = "sample sentences, because the store gave no passage"
    if len(texts) < count:
        source += f" ({len(texts)} of them, repeated)"
    return [texts[index % len(texts)] for index in range(count)], source


# language model


def llm(bench: Bench) -> Iterator[Row]:
    """Rows `llm.load`, `llm.first` (of one in this process), `llm.short`, `llm.long`."""
    chat = bench.clients.chat
    if chat is None:
        reason = "no language model is configured: answers are quoted sentences (VLLM_BASE_URL or RAGDECK_LOCAL_MODEL)"
        yield from (skipped(code, CODES[code], reason) for code in ("llm.short", "llm.long"))
        return
    for code, prompt, tokens, times in (
        ("llm.short", SHORT, SHORT_TOKENS, SHORT_RUNS),
        ("llm.long", LONG, LONG_TOKENS, LONG_RUNS),
    ):
        runs = [_complete(bench, chat, f"{prompt} (Question {number + 1}.)", tokens) for number in range(times)]
        yield _spoken(code, chat.info, runs)
        if code == "llm.short" and chat.info.where == "in-process":
            yield from _load(bench, "llm")


class _Spoken(NamedTuple):
    seconds: float
    ttft_seconds: float | None
    completion_tokens: int | None
    tokens_per_second: float | None
    reasoned: bool


def _complete(bench: Bench, chat: ChatModel, prompt: str, max_tokens: int) -> _Spoken:
    """One completion. The rate is of tokens after the first over the time after the first."""
    timeout = bench.clients.prompts.timeout
    message = {"role": "user", "content": prompt}
    request = ChatRequest((message,), max_tokens, temperature=0.0, thinking=False, timeout=timeout)
    started, first, tokens, reasoned = time.perf_counter(), None, None, False
    for delta in chat.stream(request):
        bench.check()
        reasoned = reasoned or bool(delta.reasoning)
        if first is None and (delta.text or delta.reasoning):
            first = time.perf_counter()
        tokens = delta.completion_tokens if delta.completion_tokens is not None else tokens
    ended = time.perf_counter()
    rate = (tokens - 1) / (ended - first) if first is not None and tokens is not None and tokens > 1 and ended > first else None
    return _Spoken(ended - started, None if first is None else first - started, tokens, rate, reasoned)


def _spoken(code: str, info: ModelInfo, runs: Sequence[_Spoken]) -> Row:
    values = {
        name: median(known) if (known := [value for run in runs if (value := getattr(run, name)) is not None]) else None
        for name in ("ttft_seconds", "completion_tokens", "tokens_per_second")
    }
    detail = f"{_where(info)}, {values['completion_tokens'] or 'an unknown number of'} tokens"
    if any(run.reasoned for run in runs):
        detail += ", reasoning included"
    return Row(code, CODES[code], tuple(run.seconds for run in runs), detail, values)


# load and first run


def _load(bench: Bench, kind: str) -> Iterator[Row]:
    """Rows `KIND.load`, `KIND.first`: of a second copy with `reload`, else as they were when the model was loaded."""
    known = bench.model(kind)
    codes = (f"{kind}.load", f"{kind}.first")
    if known is None:
        yield from (skipped(code, CODES[code], "what the pool recorded was not told") for code in codes)
        return
    if bench.reload and known.where == "in-process":
        reason = _no_room(bench, known)
        if reason is None:
            yield from _reloaded(bench, kind)
            return
        yield from (skipped(code, CODES[code], reason) for code in codes)
        return
    far = f"the server at {known.address}"
    for code, seconds, near_how, far_how in (
        (codes[0], known.load_seconds, "recorded when it was loaded", f"as {far} tells it"),
        (
            codes[1],
            known.first_run_seconds,
            "recorded after the load: a text or two",
            f"the first call of {far}, connecting included",
        ),
    ):
        how = far_how if known.where == "http" else near_how
        if seconds is None:
            yield skipped(code, CODES[code], f"{far} does not tell" if known.where == "http" else "it has not been loaded")
        else:
            yield Row(code, CODES[code], (seconds,), how)


def _reloaded(bench: Bench, kind: str) -> Iterator[Row]:
    make = bench.parts.fresh_pool
    assert make is not None
    pool = make()
    try:
        status = pool.warm(kind)
    finally:
        pool.stop()
    how = "a second copy, loaded just now: libraries were imported before, and its files may lie in memory"
    for code, seconds in ((f"{kind}.load", status.load_seconds), (f"{kind}.first", status.first_run_seconds)):
        assert seconds is not None
        yield Row(code, CODES[code], (seconds,), how)


def _no_room(bench: Bench, known: ModelState) -> str | None:
    """Why a second copy cannot be loaded; None where it can. Half as much again is asked for what a load needs for itself."""
    if bench.parts.fresh_pool is None:
        return "this process does not load a second copy"
    needed = 1.5 * (known.memory_bytes or 0)
    free = _free_bytes(bench, known.device)
    if free is not None and free < needed:
        return f"a second copy does not fit: {needed / 1e9:.2g} GB are needed on {known.device}, {free / 1e9:.2g} GB are free"
    return None


def _free_bytes(bench: Bench, device: str | None) -> float | None:
    if device is None or not device.startswith("cuda"):
        return _available_bytes()
    index = int(device.partition(":")[2] or 0)
    gpus = bench.parts.gpus().gpus or ()
    return next((gpu.memory_free_bytes for gpu in gpus if gpu.index == index), None)


def _available_bytes() -> float | None:
    """What the kernel can give without swapping (/proc/meminfo, MemAvailable); None where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _deadline() -> float:
    return time.monotonic() + CALL_SECONDS


def _where(info: ModelInfo) -> str:
    place = f"at {info.address}" if info.where == "http" else f"on {info.device}"
    precision = "" if info.precision == "unknown" else f" in {info.precision}"
    return f"{info.name} {place}{precision}" + (f" ({info.note})" if info.note else "")
