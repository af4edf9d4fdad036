"""For those who have Prometheus and Grafana: what to scrape, rules, a dashboard; of our two expositions and vLLM's.

Knows names and thresholds; the tests hold each name against the pages that really serve it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from deploy.render.files import File, commented, dumped, json_file, yaml_file
from deploy.render.schema import VLLM, Service
from deploy.render.site import Site, has_metrics
from deploy.render.templates import template

SOURCE = "${source}"
SCRAPE_SECONDS = 15


def alerts() -> list[dict[str, Any]]:
    """`{name, expression, minutes, severity, summary, action}` of each rule."""
    return list(tomllib.loads(template("alerts.toml"))["alerts"])


def panels() -> list[dict[str, Any]]:
    """`{title, unit, lines: [[expression, legend]]}` of each chart."""
    return list(tomllib.loads(template("panels.toml"))["panels"])


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
    for each in alerts():
        notes = {"summary": each["summary"], "description": each["action"]}
        rule = {"alert": each["name"], "expr": each["expression"], "for": f"{each['minutes']}m"}
        rules.append({**rule, "labels": {"severity": each["severity"]}, "annotations": notes})
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
        "panels": [_panel(number, each) for number, each in enumerate(panels())],
    }


def _panel(number: int, panel: dict[str, Any]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": SOURCE}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": source, "expr": expression, "legendFormat": legend}
        for index, (expression, legend) in enumerate(panel["lines"])
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel["title"],
        "datasource": source,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": panel["unit"], "custom": {"spanNulls": False}}, "overrides": []},
        "targets": targets,
    }
