"""Environment variables that lead out: endpoints that libraries read for themselves, and proxies. No host is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deploy.offline.findings import Finding
from deploy.offline.hosts import host_of, is_outside

# Read by libraries and not by our settings, which are looked at by themselves.
ENDPOINTS = (
    "HF_ENDPOINT", "OPENAI_BASE_URL", "OPENAI_API_BASE", "SENTRY_DSN", "LANGCHAIN_ENDPOINT", "LANGSMITH_ENDPOINT",
    "LANGFUSE_HOST", "PHOENIX_COLLECTOR_ENDPOINT", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
)  # fmt: skip
# Switches that send traces to a vendor unless an endpoint is named -> that endpoint's variable.
TRACING = {"LANGCHAIN_TRACING_V2": "LANGCHAIN_ENDPOINT", "LANGSMITH_TRACING": "LANGSMITH_ENDPOINT"}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def findings(environ: Mapping[str, str], allowed: frozenset[str]) -> Iterator[Finding]:
    """`environ`: the environment and `.env` together. A user and a password in a URL are not repeated."""
    for name in ENDPOINTS:
        host = host_of(environ.get(name, "").strip()) if environ.get(name, "").strip() else None
        if host and is_outside(host, allowed):
            yield Finding("public_endpoint", f"{name} leads to {host}", name)
    for name, endpoint in TRACING.items():
        if environ.get(name, "").lower() in ("1", "true") and not environ.get(endpoint):
            yield Finding("telemetry", f"{name} sends every run to a vendor, and {endpoint} is not set", name)
    for name in PROXIES:
        value = (environ.get(name) or environ.get(name.lower()) or "").strip()
        if value:
            what = f"{name} is set: calls go through {host_of(value) or 'it'} wherever that leads, and look like calls inside"
            yield Finding("proxy_set", what, name)
