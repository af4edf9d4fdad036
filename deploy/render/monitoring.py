"""For those who have Prometheus and Grafana: what to scrape, rules, a dashboard. Names are those of our two expositions and vLLM's.

Knows names and thresholds; the tests hold each name against the pages that really serve it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from deploy.render.files import File, commented, dumped, json_file, yaml_file
from deploy.render.schema import VLLM, Service
from deploy.render.site import Site, has_metrics

SOURCE = "${source}"
SCRAPE_SECONDS = 15


class Alerting(NamedTuple):
    """A rule: when `expression` holds for `minutes`, with what to do about it."""

    name: str
    expression: str
    minutes: int
    severity: str
    summary: str
    action: str


class Panel(NamedTuple):
    """A chart: title, unit of Grafana, and (expression, legend) of each line."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]


RULES = (
    Alerting("RagDeckServiceDown", "ragdeck_service_up == 0", 2, "critical", "{{ $labels.service }} does not answer its probe",
             "Open the page Services: it says which probe failed and what to check."),
    Alerting("RagDeckMachineDown", "ragdeck_machine_up == 0", 2, "critical", "{{ $labels.machine }} cannot be read",
             "Open the page Machine: it says whether the network, the login or the command failed."),
    Alerting("RagDeckGpuMissing", "ragdeck_gpus_missing > 0", 1, "critical", "{{ $labels.machine }} has fewer GPUs than before",
             "Look at the driver's messages (Xid) and restart the machine if one fell off the bus."),
    Alerting("RagDeckGpuHot", "ragdeck_gpu_temperature_celsius > 88", 5, "warning",
             "GPU {{ $labels.gpu }} of {{ $labels.machine }} has {{ $value }} °C", "Look at fans, power limit and throttling on the page Machine."),
    Alerting("RagDeckGpuMemoryFull", "ragdeck_gpu_memory_used_ratio > 0.97", 10, "warning",
             "GPU {{ $labels.gpu }} of {{ $labels.machine }} has less than 3 % of its memory free",
             "Compare plan with reality on the page Capacity: which service took more than it was given?"),
    Alerting("RagDeckGpuMemoryErrors", "ragdeck_gpu_ecc_uncorrected > 0", 0, "critical",
             "GPU {{ $labels.gpu }} of {{ $labels.machine }} has uncorrected memory errors", "Take the GPU out of service and reset it."),
    Alerting("RagDeckDiskFull", "ragdeck_filesystem_used_ratio > 0.9", 10, "warning",
             "{{ $labels.mount }} of {{ $labels.machine }} is more than 90 % full", "Old models, images and logs are the usual cause."),
    Alerting("RagDeckUnitFailed", "ragdeck_unit_failed == 1", 1, "critical", "{{ $labels.unit }} of {{ $labels.machine }} failed",
             "Read its log: journalctl -u UNIT."),
    Alerting("RagDeckCertificateEnds", "ragdeck_service_certificate_seconds < 14 * 86400", 60, "warning",
             "The certificate of {{ $labels.service }} ends in less than 14 days", "Renew it."),
    Alerting("GpuServerModelNotWarm", "ragdeck_model_warm == 0", 15, "warning", "{{ $labels.model }} is not warm",
             "Ask /health of the GPU server for the reason."),
    Alerting("GpuServerQueueLong", "sum by (instance, model) (te_queue_size) > 256", 2, "warning",
             "More than 256 texts wait for {{ $labels.model }}", "Add a replica, or let fewer candidates in."),
    Alerting("GpuServerFailing", "sum by (instance) (rate(te_request_failure[5m])) > 0.05 * sum by (instance) (rate(te_request_count[5m]))",
             5, "critical", "More than 5 % of the requests to {{ $labels.instance }} fail", "Its log and /status tell the kind."),
    Alerting("GpuServerSlow",
             "histogram_quantile(0.95, sum by (instance, le) (rate(te_request_duration_bucket[5m]))) > 0.5", 10, "warning",
             "95 % of requests to {{ $labels.instance }} take up to {{ $value }} s", "Compare queue with compute on the dashboard of RAG Deck."),
    Alerting("VllmQueueLong", "vllm:num_requests_waiting > 8", 5, "warning", "{{ $value }} requests wait for {{ $labels.model_name }}",
             "More sequences at once need cache: the page Capacity says how many fit."),
    Alerting("VllmCacheFull", "vllm:kv_cache_usage_perc > 0.95", 5, "warning", "The KV cache of {{ $labels.model_name }} is full",
             "Shorter contexts, fewer sequences, an fp8 cache or a larger share."),
    Alerting("VllmFirstTokenSlow",
             "histogram_quantile(0.95, sum by (model_name, le) (rate(vllm:time_to_first_token_seconds_bucket[5m]))) > 5", 10, "warning",
             "The first token of {{ $labels.model_name }} takes {{ $value }} s at p95", "Queue or prefill? The page Query splits them."),
)  # fmt: skip

PANELS = (
    Panel("Services up", "none", (("ragdeck_service_up", "{{service}}"),)),
    Panel("Probe of each service", "s", (("ragdeck_service_functional_seconds", "{{service}}"),)),
    Panel("GPU utilisation", "percentunit", (("ragdeck_gpu_utilization_ratio", "{{machine}} {{gpu}}"),)),
    Panel("GPU memory", "bytes", (("ragdeck_gpu_memory_used_bytes", "{{machine}} {{gpu}}"),)),
    Panel("GPU memory by process", "bytes", (("ragdeck_gpu_process_memory_bytes", "{{machine}} {{gpu}} {{process}}"),)),
    Panel("GPU temperature", "celsius", (("ragdeck_gpu_temperature_celsius", "{{machine}} {{gpu}}"),)),
    Panel("Processor", "percentunit", (("ragdeck_cpu_busy_ratio", "{{machine}}"),)),
    Panel("Memory", "percentunit", (("ragdeck_memory_used_ratio", "{{machine}}"),)),
    Panel("Embedding and reranking, p95", "s", (
        ("histogram_quantile(0.95, sum by (instance, le) (rate(te_request_duration_bucket[5m])))", "whole {{instance}}"),
        ("histogram_quantile(0.95, sum by (instance, le) (rate(te_request_queue_duration_bucket[5m])))", "queue {{instance}}"),
        ("histogram_quantile(0.95, sum by (instance, le) (rate(te_request_inference_duration_bucket[5m])))", "compute {{instance}}"),
    )),
    Panel("Texts that wait", "short", (("te_queue_size", "{{kind}} {{model}}"),)),
    Panel("Tokens read", "short", (("sum by (instance) (rate(ragdeck_tokens_total[5m]))", "{{instance}} a second"),)),
    Panel("Cold requests", "short", (("sum by (instance) (increase(ragdeck_cold_requests_total[1h]))", "{{instance}} in an hour"),)),
    Panel("First token, p95", "s", (
        ("histogram_quantile(0.95, sum by (model_name, le) (rate(vllm:time_to_first_token_seconds_bucket[5m])))", "{{model_name}}"),
    )),
    Panel("Requests at the language models", "short", (
        ("vllm:num_requests_running", "running {{model_name}}"), ("vllm:num_requests_waiting", "waiting {{model_name}}"),
    )),
    Panel("KV cache", "percentunit", (("vllm:kv_cache_usage_perc", "{{model_name}}"),)),
    Panel("Tokens written", "short", (("sum by (model_name) (rate(vllm:generation_tokens_total[5m]))", "{{model_name}} a second"),)),
)  # fmt: skip


def files(site: Site) -> Iterator[File]:
    if site.clusters:
        yield yaml_file(site, "monitoring/pod-monitors.yaml", *_pod_monitors(site))
    yield commented(site, "monitoring/prometheus.yml", dumped(_scraping(site)))
    yield yaml_file(site, "monitoring/ragdeck.rules.yml", _rules())
    yield json_file(site, "monitoring/ragdeck.dashboard.json", _dashboard(site))


def scraped(site: Site) -> list[Service]:
    return [each for each in site.deployment.services if has_metrics(each)]


def _scraping(site: Site) -> dict[str, Any]:
    """One job a service outside of clusters, where an operator finds the pods. Keys are files beside this one."""
    jobs = []
    for service in scraped(site):
        if site.host(service).kind == "kubernetes":
            continue
        job: dict[str, Any] = {"job_name": service.name, "static_configs": [{"targets": [site.address(service)]}]}
        if _asks_for_key(service):
            job["authorization"] = {"credentials_file": f"secrets/{service.token}"}
        jobs.append(job)
    head = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    return {"global": head, "rule_files": ["ragdeck.rules.yml"], "scrape_configs": jobs}


def _asks_for_key(service: Service) -> bool:
    """vLLM guards /v1 alone."""
    return bool(service.token) and service.role not in VLLM


def _pod_monitors(site: Site) -> Iterator[dict[str, Any]]:
    """For the Prometheus operator."""
    for service in scraped(site):
        if site.host(service).kind != "kubernetes":
            continue
        endpoint: dict[str, Any] = {"port": "http", "path": "/metrics", "interval": f"{SCRAPE_SECONDS}s"}
        if _asks_for_key(service):
            endpoint["authorization"] = {"credentials": {"name": "ragdeck-secrets", "key": service.token}}
        yield {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": {"name": service.name, "namespace": site.deployment.name},
            "spec": {"selector": {"matchLabels": {"app.kubernetes.io/name": service.name}}, "podMetricsEndpoints": [endpoint]},
        }


def _rules() -> dict[str, Any]:
    rules = []
    for each in RULES:
        notes = {"summary": each.summary, "description": each.action}
        rule = {"alert": each.name, "expr": each.expression, "for": f"{each.minutes}m"}
        rules.append({**rule, "labels": {"severity": each.severity}, "annotations": notes})
    return {"groups": [{"name": "ragdeck", "rules": rules}]}


def _dashboard(site: Site) -> dict[str, Any]:
    variable = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"}
    return {
        "uid": "ragdeck",
        "title": f"RAG Deck: {site.deployment.name}",
        "tags": ["rag"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": [_panel(number, each) for number, each in enumerate(PANELS)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": SOURCE}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": source, "expr": expression, "legendFormat": legend}
        for index, (expression, legend) in enumerate(panel.lines)
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": {"spanNulls": False}}, "overrides": []},
        "targets": targets,
    }
