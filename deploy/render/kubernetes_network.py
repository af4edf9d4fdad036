"""Who may talk to whom in a cluster: nothing, but what the site says; and the way in with TLS. Knows no containers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploy.render.schema import APPS, STORES, Host, Service
from deploy.render.site import Site, has_metrics

OPERATOR_NAMESPACES = ("milvus-operator", "redis-operator")
NODE_LOCAL_DNS = "169.254.20.10/32"  # the node's own cache of names, where there is one: its pod is in no network of pods


def policies(site: Site, host: Host) -> Iterator[dict[str, Any]]:
    """A policy that denies everything, name look-ups for all, and one policy a service."""
    here = site.on(host.name, "kubernetes")
    ours = [each for each in here if each.role not in STORES]
    mine = {"matchLabels": part_of(site)}
    yield _policy("deny-all", mine, {"policyTypes": ["Ingress", "Egress"]})
    dns = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    servers = [_namespace("kube-system"), {"ipBlock": {"cidr": NODE_LOCAL_DNS}}]
    yield _policy("names", mine, {"policyTypes": ["Egress"], "egress": [{"to": servers, **dns}]})
    yield from (_of(site, each) for each in ours)
    if len(ours) < len(here):
        yield _stores(site)


def part_of(site: Site) -> dict[str, str]:
    """On every pod of ours, and on none that an operator makes."""
    return {"app.kubernetes.io/part-of": site.deployment.name}


def _stores(site: Site) -> dict[str, Any]:
    """Pods of the operators: from this namespace, and from the operators' own, which look after them."""
    ((label, value),) = part_of(site).items()
    others = {"matchExpressions": [{"key": label, "operator": "NotIn", "values": [value]}]}
    entering = [{"podSelector": {}}, *(_namespace(each) for each in OPERATOR_NAMESPACES)]
    return _policy("stores", others, {"policyTypes": ["Ingress"], "ingress": [{"from": entering}]})


def _of(site: Site, service: Service) -> dict[str, Any]:
    port = {"ports": [{"protocol": "TCP", "port": service.listens_on}]}
    entering: list[dict[str, Any]] = [_pods(each) for each in site.used_by(service) if each.host == service.host]
    if service.role in APPS and site.deployment.tls:
        entering.append(_namespace(site.deployment.tls.ingress_namespace))
    entering += [{"ipBlock": {"cidr": each.cidr}} for each in site.clients(service)]
    if has_metrics(service):
        entering.append(_namespace(site.deployment.monitoring.namespace))
    found: dict[str, Any] = {"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": entering, **port}] if entering else []}
    found["egress"] = [*_to_others(site, service), *_to_hub(site, service)]
    return _policy(service.name, {"matchLabels": {"app.kubernetes.io/name": service.name}}, found)


def _to_others(site: Site, service: Service) -> Iterator[dict[str, Any]]:
    """Every service it uses or watches; stores run in pods that their operators label."""
    used = [each for each in site.deployment.services if service in site.used_by(each)]
    for each in used:
        port = {"ports": [{"protocol": "TCP", "port": each.listens_on}]}
        if each.host == service.host and each.role not in STORES:
            yield {"to": [_pods(each)], **port}
        elif each.host == service.host:
            yield {"to": [{"podSelector": {}}], **port}
        else:
            address = site.host(each).address
            yield {"to": [{"ipBlock": {"cidr": f"{address}/{128 if ':' in address else 32}"}}], **port}


def _to_hub(site: Site, service: Service) -> Iterator[dict[str, Any]]:
    """Models are fetched at the first start, unless they are in the images."""
    if site.hub_models(service) and not site.deployment.offline:
        inside = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"]
        world = {"ipBlock": {"cidr": "0.0.0.0/0", "except": inside}}
        yield {"to": [world], "ports": [{"protocol": "TCP", "port": 443}]}


def _pods(service: Service) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": {"app.kubernetes.io/name": service.name}}}


def _namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _policy(name: str, pods: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    head = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}}
    return {**head, "spec": {"podSelector": pods, **spec}}


def ingress(site: Site, host: Host) -> Iterator[dict[str, Any]]:
    """TLS and WebSocket by an ingress controller that follows the annotations of ingress-nginx; only named sources get in."""
    tls = site.deployment.tls
    if tls is None:
        return
    for role, name in (("dashboard", tls.dashboard), ("api", tls.api)):
        service = site.role(role)
        if service is None or name is None or service.host != host.name:
            continue
        allowed = ",".join(each.cidr for each in site.named(tls.allow))
        notes = {
            "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600",
            "nginx.ingress.kubernetes.io/proxy-send-timeout": "3600",
        }
        notes |= {"nginx.ingress.kubernetes.io/proxy-body-size": "51m", "nginx.ingress.kubernetes.io/ssl-redirect": "true"}
        notes |= {"nginx.ingress.kubernetes.io/whitelist-source-range": allowed} if allowed else {}
        backend = {"service": {"name": service.name, "port": {"name": "http"}}}
        rule = {"host": name, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
        yield {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": service.name, "annotations": notes},
            "spec": {
                "ingressClassName": tls.ingress_class,
                "tls": [{"hosts": [name], "secretName": f"{service.name}-tls"}],
                "rules": [rule],
            },
        }
