"""What to change: the setting, the flag or the command that removes a cause, in words. Texts only."""

from __future__ import annotations

from collections.abc import Mapping

WARM = (
    "Keep models.preload = true, so that the models are loaded and run once before the first question, and let the process "
    "live: ask through the dashboard or `rag ask --api` instead of starting a process for each question."
)
SERVER_WARM = (
    "Have the server load and warm its model when it starts and keep it; `python -m gpu_server` does both, and its /health says "
    "when it is ready. If it loads on each request, it builds the model inside the handler: build it once for the process."
)
BUILD_ONCE = (
    "Look into that server's handler: the model must be built once for the process, not for each request. "
    "`python -m gpu_server` keeps it warm and reports load, queue and computing in its headers (gpu_server.url)."
)
GPU_FOR_EMBEDDER = (
    'Set models.device = "auto" or "cuda" with a CUDA build of torch installed; or run `python -m gpu_server` where the GPU is '
    "and set gpu_server.url. The collection stays valid: the vectors are the same."
)
GPU_FOR_RERANKER = (
    'Set models.device = "auto" or "cuda" with a CUDA build of torch installed; or run `python -m gpu_server` where the GPU is '
    "and set reranker.api_url or gpu_server.url. The way back is the same setting."
)

OUR_QUEUE = (
    "The model's worker was busy with other texts: lower query.max_running, ingest when nobody asks, or give the model a server "
    "of its own (gpu_server.url, reranker.api_url)."
)
SERVER_QUEUE = (
    "The model server had other requests before this one: let fewer clients share it, start another replica, or give bulk work a "
    "server of its own."
)
LLM_QUEUE = (
    "vLLM had more requests than it runs at once: lower the load, raise --max-num-seqs while the KV cache has room, or start "
    "another replica; a smaller --max-model-len makes room as well."
)
KV_CACHE = (
    "Give the KV cache more memory (--gpu-memory-utilization, a smaller --max-model-len, --kv-cache-dtype fp8), or the requests "
    "less to hold (llm.context_tokens, llm.max_tokens); else start another replica."
)
_SERVERS: Mapping[str, str] = {
    "embed": "embeddings.base_url or gpu_server.url",
    "rerank": "reranker.api_url or gpu_server.url",
    "search": "milvus.uri",
}
_LIMITS: Mapping[str, str] = {"embed": "embeddings.timeout_seconds", "rerank": "gpu_server.timeout_seconds"}


def server(stage: str) -> str:
    """The settings that say where a stage's server is."""
    return _SERVERS.get(stage, "llm.base_url")


def after_errors(stage: str, *, late: bool) -> str:
    """For attempts that failed; `late`: one of them by a time limit."""
    if late:
        limit = _LIMITS.get(stage, "llm.timeout_seconds")
        return (
            f"The server ({server(stage)}) did not answer in time: look in its log for what it waited for, and at its load. "
            f"A lower {limit} makes the attempt fail sooner; it cures nothing."
        )
    return (
        f"Look at that server's log and load ({server(stage)}): it refused or dropped requests that it took a moment later. 503 "
        "and 429 mean overload: let fewer clients share it or start another replica."
    )


OPEN_AT_START = (
    "Ask through a process that lives (the dashboard, `rag ask --api`): it opens the store at start. If it happens there again "
    "and again, somebody releases the collection or Milvus restarts: look at Milvus' log, and load the collection after a start."
)
FLUSH = (
    "Flush the collection after writing (RAG Deck's ingestion does so at its end; programs of your own call flush()), and let "
    "ingestion finish before you measure."
)
STORE_NEARER = (
    "Put Milvus next to the app: run it on the app's machine, or the app on Milvus' machine, and set milvus.uri (MILVUS_URI) to "
    "the near address. Through a tunnel or to another region every search pays its round trips again."
)
CACHE = 'Set up the semantic cache and ask with caches = "use"; redis.url keeps it over restarts.'
SHORTER_TEXTS = (
    "Make passages shorter than the model's limit (ingest.chunk_tokens), so that nothing is cut; let the server sort texts by "
    "length into its batches, as `python -m gpu_server` does."
)


def model_nearer(stage: str) -> str:
    return (
        f"Run the app near that server, or the model near the app ({server(stage)}); go without a tunnel where a private network "
        "reaches it. Small models can also run in this process (models.embedder, models.reranker)."
    )


def fewer_candidates(number: float) -> str:
    return f"Set reranker.top_k (RERANKER_TOP_K) to {number:.0f}; compare the kept passages by a replay before you keep it."


def hyde_off(mode: str) -> str:
    other = "" if mode == "auto" else ' or llm.default_hyde = "auto", which asks for it only where the search found nothing close'
    return f'Set llm.default_hyde = "off"{other}. If you keep it, a smaller llm.hyde_model or llm.hyde_max_tokens is cheaper.'


SHORTER_PROMPT = (
    "Lower llm.context_tokens or reranker.return_k, so that the prompt goes back to its usual length; passages are as long as "
    "ingest.chunk_tokens. vLLM's prefix caching (--enable-prefix-caching) spares what is the same in every prompt."
)
SHORTER_ANSWER = "Lower llm.max_tokens, or ask for a short answer in llm.answer_prompt."
SHORTER_HYPOTHESIS = "Lower llm.hyde_max_tokens, or ask for a shorter passage in llm.hyde_prompt."
FASTER_DECODE = (
    "See what the engine is busy with: fewer requests at once, a quantised model (AWQ, FP8), speculative decoding, tensor "
    "parallelism over several GPUs, or a smaller llm.model. Watch its machine, to know whether its GPU is held back."
)
FASTER_FIRST_TOKEN = (
    "See what the engine does before the first token: prefill of other requests (--enable-chunked-prefill lets decoding go on), "
    "a queue that it does not report, or a model that was swapped out; vLLM's /metrics tell queue and prefill apart."
)

COOL = "Cool the GPU: fans, air flow, dust, the room; a lower power limit keeps an even clock (nvidia-smi -pl)."
MORE_POWER = "Raise the GPU's power limit (nvidia-smi -pl) if supply and cooling allow it; the limit is a setting, not a fault."
OWN_GPU = (
    "Move that process to another GPU or another hour, or set CUDA_VISIBLE_DEVICES so that each has its own; MIG or MPS where "
    "they have to share."
)
RESET_CLOCKS = "Reset the clocks (nvidia-smi -rgc, -rac), and switch persistence mode on, so that the GPU stays awake."
FREE_VRAM = (
    "Leave the GPU room: a lower --gpu-memory-utilization of vLLM, a smaller model or precision, or another GPU for the models."
)
PERSISTENCE = "Start nvidia-persistenced (or `nvidia-smi -pm 1`) and enable it at boot."
OWN_WORK = "Lower query.max_running, ingest when nobody asks, or give the models a GPU or a server of their own (gpu_server.url)."
HOG = (
    "End or move that process, or give it a lower weight (nice, CPUWeight= of its systemd unit); more cores where it has to stay."
)
DISK = (
    "Find who reads or writes (iotop, `pidstat -d`), and move it or limit it (IOWeight= of its systemd unit); keep data_dir and "
    "Milvus' data on a disk of their own, NVMe where it can be."
)
