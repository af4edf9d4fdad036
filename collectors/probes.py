"""The only prober of services: `probe` asks one service, cheaply or with a real small request, and says what it found.

Knows which kind is asked how (`KINDS`), nothing of sweeps, history or pages. Thread-safe: a probe keeps everything to itself.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

from collectors import probes_http, probes_milvus, probes_models, probes_stores
from collectors.attempt import Attempt, Finding, check_plain
from collectors.services import (
    NEXT_STEPS,
    ProbeKind,
    ProbeResult,
    Service,
    ServiceError,
    ServiceKind,
    Thresholds,
)
from collectors.vllm_metrics import METRICS_BYTES, EngineSample, parse

log = logging.getLogger(__name__)

SECONDS_PER_DAY = 86_400.0

Ask = Callable[[Attempt], Finding]


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of service is asked: whether it answers, and whether it works."""

    liveness: Ask
    functional: Ask


KINDS: Mapping[ServiceKind, Kind] = {
    "http": Kind(probes_http.http_answers, probes_http.http_works),
    "gpu_server": Kind(probes_http.gpu_server_is_healthy, probes_models.gpu_server_works),
    "openai-chat": Kind(probes_http.serves_models, probes_models.one_token),
    "openai-embeddings": Kind(probes_http.serves_models, probes_models.embeds),
    "rerank": Kind(probes_http.server_answers, probes_models.reranks),
    "whisper": Kind(probes_http.serves_models, probes_models.transcribes),
    "ocr": Kind(probes_http.serves_models, probes_models.reads_page),
    "milvus": Kind(probes_milvus.milvus_is_healthy, probes_milvus.milvus_works),
    "redis": Kind(probes_stores.redis_answers, probes_stores.redis_works),
    "postgres": Kind(probes_stores.postgres_answers, probes_stores.postgres_works),
    "tcp": Kind(probes_stores.port_is_open, probes_stores.port_is_open),
}


def probe(service: Service, kind: ProbeKind = "liveness", *, now: Callable[[], float] = time.time) -> ProbeResult:
    """Ask `service`; at most its `timeout_seconds`. Never raises. `now` is the wall clock, for the age of certificates."""
    attempt = Attempt(service, time.monotonic() + service.timeout_seconds)
    try:
        finding = getattr(KINDS[service.kind], kind)(attempt)
    except ServiceError as problem:
        finding = Finding(problem.message, problem.state, problem.failure, problem.next_step)
    except Exception as problem:
        log.error("the %s probe of %s failed: %s", kind, service.name, service.said(repr(problem)))
        finding = Finding(f"the probe itself failed: {type(problem).__name__}", "failed", "internal", NEXT_STEPS["internal"])
    return _judged(_result(attempt, kind, finding, now()), service.thresholds)


def engine_metrics(service: Service) -> EngineSample:
    """What the service tells of itself at `/metrics`, for `vllm_metrics.engine`. Raises ServiceError."""
    attempt = Attempt(service, time.monotonic() + service.timeout_seconds)
    answer = attempt.send("GET", attempt.root("/metrics"), limit_bytes=METRICS_BYTES)
    attempt.check(answer)
    check_plain(answer)
    sample = parse(answer.body.decode("utf-8", "replace"))
    if not sample.known:
        raise ServiceError("bad_answer", "nothing at /metrics is vLLM's, TEI's or our GPU server's")
    return sample


def _result(attempt: Attempt, kind: ProbeKind, finding: Finding, now: float) -> ProbeResult:
    service, expires_at = attempt.service, attempt.certificate_expires_at()
    said = service.said
    return ProbeResult(
        service=service.name,
        kind=service.kind,
        probe=kind,
        state=finding.state,
        address=service.address,
        latency=attempt.latency(),
        failure=finding.failure,
        message=said(finding.message),
        next_step=said(finding.next_step),
        version=None if finding.version is None else said(finding.version),
        models=None if finding.models is None else tuple(said(model) for model in finding.models),
        device=None if finding.device is None else said(finding.device),
        certificate_days=None if expires_at is None else (expires_at - now) / SECONDS_PER_DAY,
        notes=tuple(said(note) for note in finding.notes),
        measures=finding.measures,
    )


def _judged(result: ProbeResult, limits: Thresholds) -> ProbeResult:
    """A good result held against the service's thresholds: what is over them is degraded."""
    if result.state != "ok":
        return result
    days, slow = result.certificate_days, limits.liveness_seconds if result.probe == "liveness" else limits.functional_seconds
    if days is not None and limits.certificate_days is not None and days < limits.certificate_days:
        message = f"the certificate expires in {days:.1f} days"
        return dataclasses.replace(result, state="degraded", failure="tls", message=message, next_step="Renew the certificate.")
    seconds = result.latency.total_seconds
    if slow is not None and seconds > slow:
        message = f"{result.message}, but took {seconds:.3g} s, more than {slow:.3g} s"
        return dataclasses.replace(result, state="degraded", failure="timeout", message=message, next_step=NEXT_STEPS["timeout"])
    return result
