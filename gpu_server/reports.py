"""What the server says of itself: health, status, models, TEI's info, metrics. Reads, changes nothing but the proof of health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from prometheus_client.metrics_core import Metric
from starlette.requests import Request
from starlette.responses import Response

from gpu_server.dialects import json_response
from gpu_server.engine import Engine, gpu_memory, gpu_name
from gpu_server.interfaces import ModelInfo
from gpu_server.metrics import CONTENT_TYPE
from gpu_server.model_pool import SlotStatus
from gpu_server.service import Service

RETRY_SECONDS = 2


class Reports:
    """The GET endpoints."""

    def __init__(self, service: Service, version: str) -> None:
        self._service = service
        self._version = version
        self._started = time.monotonic()
        self._started_at = int(time.time())
        self._gpus: dict[str, str | None] = {}

    async def health(self, request: Request) -> Response:
        """200 when a real pass has proven the models, after the start and after a failure; else 503 with the reason."""
        readiness = self._service.readiness
        state = await readiness.check()
        data = {"status": state, **self._identity()}
        if state == "healthy":
            return json_response(data)
        return json_response({**data, "reason": readiness.reason}, status=503, headers={"retry-after": str(RETRY_SECONDS)})

    def _identity(self) -> dict[str, Any]:
        infos = self._service.engine.infos()
        device = infos[0].device if infos else None
        return {
            "device": device.split(":")[0] if device else None,
            "gpu": self._gpu(device),
            "model": infos[0].name if infos else None,
            "models": [_model(info) for info in infos],
        }

    def _gpu(self, device: str | None) -> str | None:
        if device is None:
            return None
        if device not in self._gpus:
            self._gpus[device] = gpu_name(device)
        return self._gpus[device]

    async def status(self, request: Request) -> Response:
        service = self._service
        infos = service.engine.infos()
        devices = sorted({info.device for info in infos})
        memory = {device: await asyncio.to_thread(gpu_memory, device) for device in devices}
        data = {
            "status": service.readiness.state,
            "reason": service.readiness.reason or None,
            "version": self._version,
            "uptime_seconds": time.monotonic() - self._started,
            "models": [asdict(status) for status in service.engine.statuses()],
            "requests": {"answered": service.metrics.answered, **service.metrics.throughput()},
            "caches": service.engine.cache_stats(),
            "gpus": [{"device": device, "name": self._gpu(device), **asdict(known)} for device, known in memory.items() if known],
            "limits": asdict(service.limits),
        }
        return json_response(data)

    async def models(self, request: Request) -> Response:
        """OpenAI's list."""
        rows = [
            {"id": info.name, "object": "model", "created": self._started_at, "owned_by": "rag-deck", "kind": info.kind}
            for info in self._service.engine.infos()
        ]
        return json_response({"object": "list", "data": rows})

    async def info(self, request: Request) -> Response:
        """TEI's `/info`, of the embedder, or of the reranker where it is served alone."""
        service = self._service
        infos = service.engine.infos()
        first = infos[0] if infos else None
        return json_response(
            {
                "model_id": first.name if first else None,
                "model_sha": first.identity if first else None,
                "model_dtype": first.precision if first else None,
                "model_type": {"embedding": {}} if first and first.kind == "embedder" else {"reranker": {}},
                "max_input_length": first.max_tokens if first else None,
                "max_client_batch_size": service.limits.texts,
                "auto_truncate": True,
                "version": self._version,
            }
        )

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), headers={"content-type": CONTENT_TYPE})


def live_metrics(engine: Engine) -> Iterator[Metric]:
    """What the pool and the caches know at the moment of a scrape."""
    yield from _model_gauges(engine.statuses())
    yield from _batches(engine.statuses())
    hits = Metric("ragdeck_cache_hits", "Texts or pairs that a cache answered", "counter")
    misses = Metric("ragdeck_cache_misses", "Texts or pairs that a cache was asked for and had not", "counter")
    for cache, stats in engine.cache_stats().items():
        hits.add_sample("ragdeck_cache_hits_total", {"cache": cache}, stats["hits"])
        misses.add_sample("ragdeck_cache_misses_total", {"cache": cache}, stats["misses"])
    yield from (hits, misses)


def _batches(statuses: Iterable[SlotStatus]) -> Iterator[Metric]:
    """TEI's names, by model: what waits, and how large batches were on the mean (sum / count)."""
    queue = Metric("te_queue_size", "Texts that wait for the model", "gauge")
    sizes = Metric("te_batch_next_size", "Texts of a batch", "summary")
    tokens = Metric("te_batch_next_tokens", "Tokens of a batch", "summary")
    for status in statuses:
        labels = {"kind": status.kind, "model": status.name}
        if status.batches is None:  # not loaded, or called without a queue
            continue
        queue.add_sample("te_queue_size", labels, status.queue_texts or 0)
        for metric, total in ((sizes, status.texts), (tokens, status.tokens)):
            metric.add_sample(f"{metric.name}_sum", labels, total or 0)
            metric.add_sample(f"{metric.name}_count", labels, status.batches)
    yield from (queue, sizes, tokens)


def _model_gauges(statuses: Iterable[SlotStatus]) -> Iterator[Metric]:
    readings: Mapping[str, tuple[str, list[tuple[SlotStatus, float | None]]]] = {
        "ragdeck_model_load_seconds": ("Seconds to load the weights", [(s, s.load_seconds) for s in statuses]),
        "ragdeck_model_first_run_seconds": ("Seconds of the first pass", [(s, s.first_run_seconds) for s in statuses]),
        "ragdeck_model_memory_bytes": ("Bytes of the weights", [(s, s.memory_bytes) for s in statuses]),
        "ragdeck_model_warm": ("1 when the model has answered", [(s, float(s.state == "warm")) for s in statuses]),
    }
    for name, (meaning, rows) in readings.items():
        metric = Metric(name, meaning, "gauge")
        for status, value in rows:
            if value is not None:
                metric.add_sample(name, {"kind": status.kind, "model": status.name}, value)
        yield metric


def _model(info: ModelInfo) -> dict[str, Any]:
    """What a client must know of it; not where it came from."""
    return {key: value for key, value in asdict(info).items() if key not in ("where", "address")}
