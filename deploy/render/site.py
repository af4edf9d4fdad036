"""A deployment with its GPU plans: who talks to whom and at which address, what listens where, which model is on which GPU.

The only place that decides addresses and asks the planner; targets write down what it says. Knows no file format.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from deploy.planner import flags
from deploy.planner import request as requests
from deploy.planner.placement import Placed, Plan, plan
from deploy.render.schema import APPS, STORES, VLLM, Deployment, Host, RunBy, Service
from rag.errors import RagError

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
ENCODER_CONTEXT, ENCODER_SEQUENCES = 512, 32
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
UNTOLD = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Client(NamedTuple):
    """Who may reach a port, in words and as a network."""

    name: str
    cidr: str


@dataclass(frozen=True, slots=True)
class Site:
    """`source` is the settings file's name, `digest` its sha256; `plans` by host, for hosts with GPUs."""

    deployment: Deployment
    source: str
    digest: str
    plans: Mapping[str, Plan]

    @property
    def machines(self) -> tuple[Host, ...]:
        return tuple(each for each in self.deployment.hosts if each.kind == "machine")

    @property
    def clusters(self) -> tuple[Host, ...]:
        return tuple(each for each in self.deployment.hosts if each.kind == "kubernetes")

    def host(self, service: Service) -> Host:
        return self.deployment.host(service.host)

    def run_by(self, service: Service) -> RunBy:
        return run_by(service, self.host(service))

    def on(self, host: str, by: RunBy | None = None) -> tuple[Service, ...]:
        """The services of a host, those of one kind if asked for."""
        return tuple(each for each in self.deployment.services if each.host == host and by in (None, self.run_by(each)))

    def role(self, role: str) -> Service | None:
        return next((each for each in self.deployment.services if each.role == role), None)

    def used_by(self, service: Service) -> tuple[Service, ...]:
        """Our apps use every other service, and the dashboard watches the API; nothing else uses anything."""
        users = {"dashboard": (), "api": ("dashboard",)}.get(service.role, APPS)
        return tuple(each for each in self.deployment.services if each.role in users)

    # addresses

    def exposed(self, service: Service) -> bool:
        """Whether something reaches it that is not on its machine (or in a container there, which is not on its loopback)."""
        here, by = service.host, self.run_by(service)
        beyond = any(each.host != here for each in self.used_by(service))
        inside = by == "systemd" and any(self.run_by(each) == "compose" for each in self.used_by(service) if each.host == here)
        proxy = self.deployment.tls
        proxied = proxy is not None and service.role in APPS and proxy.host != here and self.host(service).kind == "machine"
        scraped = self.deployment.monitoring.from_source is not None and has_metrics(service)
        return bool(beyond or inside or service.allow or proxied or scraped)

    def binds(self, service: Service) -> str:
        """What the process itself listens on."""
        if self.run_by(service) in ("compose", "kubernetes"):
            return EVERYWHERE
        return self.host(service).address if self.exposed(service) else LOOPBACK

    def published(self, service: Service) -> str | None:
        """The address of the machine on which a container's port appears; None: only inside its network."""
        if self.exposed(service):
            return self.host(service).address
        near = [each for each in self.used_by(service) if self.run_by(each) != "compose"]
        return LOOPBACK if near or service.role not in STORES else None

    def address(self, service: Service, seen_from: Service | None = None) -> str:
        """HOST:PORT as another service reaches it; without one, as its own machine or whoever is beyond does."""
        name = self._name(service, seen_from)
        return f"[{name}]:{service.listens_on}" if ":" in name else f"{name}:{service.listens_on}"

    def _name(self, service: Service, seen_from: Service | None) -> str:
        by = self.run_by(service)
        here = self.host(service)
        if seen_from is not None and seen_from.host == service.host:
            if by == self.run_by(seen_from) == "compose":
                return service.name
            if here.kind == "kubernetes":
                return f"{service.name}-milvus" if service.role == "milvus" and by == "kubernetes" else service.name
        if here.kind == "kubernetes":
            return here.address
        return here.address if self.exposed(service) or by == "external" else LOOPBACK

    def url(self, service: Service, seen_from: Service | None = None) -> str:
        return f"http://{self.address(service, seen_from)}"

    def clients(self, service: Service) -> tuple[Client, ...]:
        """The networks that may reach its port from beyond the machine: its users' machines and the sources named."""
        found = [
            Client(self.host(each).name, _single(self.host(each).address))
            for each in self.used_by(service)
            if each.host != service.host
        ]
        proxy = self.deployment.tls
        if proxy and service.role in APPS and proxy.host != service.host:
            found.append(Client(proxy.host, _single(self.deployment.host(proxy.host).address)))
        named = list(service.allow)
        if self.deployment.monitoring.from_source and has_metrics(service):
            named.append(self.deployment.monitoring.from_source)
        found += self.named(named)
        return tuple(dict.fromkeys(found))

    def named(self, sources: list[str] | tuple[str, ...]) -> Iterator[Client]:
        for name in sources:
            yield from (Client(name, cidr) for cidr in self.deployment.sources[name])

    def warnings(self) -> Iterator[str]:
        """What is allowed, and better otherwise."""
        tls = self.deployment.tls
        if tls and tls.allow and self.deployment.host(tls.host).kind == "kubernetes":
            yield (
                f"who gets in ({', '.join(tls.allow)}) is an annotation of ingress-nginx, which is no longer maintained: the "
                f"controller of class {tls.ingress_class} must be one that follows it, or everybody gets in."
            )
        for host in self.clusters:
            if host.gpu and not host.node_labels and any(self.gpus_each(each) for each in self.on(host.name, "kubernetes")):
                yield (
                    f"the models of {host.name} are planned for {host.gpu}, and its pods take any node with a free GPU: name the "
                    "labels of the right nodes in node_labels, unless all are of this type."
                )
        for service in self.deployment.services:
            host, address = self.host(service), self.host(service).address
            if host.kind == "machine" and self.exposed(service) and ipaddress.ip_address(address).is_global:
                yield (
                    f"{service.name} is reached over plain HTTP at the public address {address}: its key and what is asked can "
                    "be read on the way. Give the host an address of a private network or a tunnel."
                )

    # models

    def placed(self, service: Service) -> tuple[Placed, ...]:
        """What the planner made of it: one model, or the two of a GPU server; none without a GPU."""
        found = self.plans.get(service.host)
        return tuple(each for each in found.services if each.service.runs_in == service.name) if found else ()

    def served(self, placed: Placed) -> str:
        return flags.served(placed)

    def model(self, service: Service) -> str | None:
        """The name under which a server of vLLM serves its model."""
        if service.role not in VLLM:
            return None
        found = self.placed(service)
        return flags.served(found[0]) if found else service.weights or service.model

    def hub_models(self, service: Service) -> tuple[str, ...]:
        """Hub names that have to be in its cache; folders are mounted or copied by whoever made them."""
        named = [self.model(service), service.embedder, service.reranker]
        return tuple(each for each in named if each and not each.startswith("/") and each != "starter")

    def arguments(self, service: Service) -> list[str]:
        """What follows the server's name on its command line."""
        found = self.placed(service)
        if service.role in VLLM:
            return flags.vllm_arguments(found[0])
        if found:
            return ["--host", self.binds(service), *flags.pool_arguments(self.plans[service.host], service.name)]
        words = ["--host", self.binds(service), "--embedder", service.embedder or "none"]
        words += ["--reranker", service.reranker or "none", "--device", "cpu", "--port", str(service.listens_on)]
        return words

    def gpus_each(self, service: Service) -> int:
        """GPUs that one replica takes."""
        return max((each.service.split for each in self.placed(service)), default=0)

    def environment(self, service: Service) -> dict[str, str]:
        """Variables that are no secret and the same everywhere."""
        return {**(OFFLINE if self.deployment.offline else {}), **UNTOLD} if service.role not in STORES else {}


def run_by(service: Service, host: Host) -> RunBy:
    if service.run_by is not None:
        return service.run_by
    return "kubernetes" if host.kind == "kubernetes" else host.run_by


def has_metrics(service: Service) -> bool:
    return service.role in VLLM or service.role in ("dashboard", "gpu-server")


def shares_gpus(site: Site, service: Service) -> bool:
    return any(flags.shares_gpu(site.plans[service.host], each) for each in site.placed(service))


def planned(deployment: Deployment) -> dict[str, Plan]:
    """A plan for each host with GPUs and models. Raises RagError (`bad_input`, `not_found`) for what the planner refuses."""
    return {host.name: found for host in deployment.hosts if (found := _plan(deployment, host)) is not None}


def _plan(deployment: Deployment, host: Host) -> Plan | None:
    here = [each for each in deployment.services if each.host == host.name and run_by(each, host) != "external"]
    services = [each for service in here for each in _asked(service)]
    if not services or host.gpu is None:
        return None
    wanted = {"name": host.name, "gpu": host.gpu, "count": host.gpus, "buffer_gb": host.buffer_gb}
    wanted |= {"buffer_holds_contexts": host.buffer_holds_contexts, "services": services}
    try:
        return plan(requests.from_dict(wanted))
    except RagError as problem:
        said = f"the models of host {host.name} cannot be planned: {problem.message}"
        raise RagError(said, kind=problem.kind, next_step=problem.next_step) from problem


def _asked(service: Service) -> Iterator[dict[str, Any]]:
    """The service as the planner takes it: a GPU server is one process with a model or two."""
    common = {"port": service.listens_on, "process": service.name, "gpus": list(service.gpus), "split": service.split}
    if service.role == "gpu-server":
        for kind in ("embedder", "reranker"):
            model = getattr(service, kind)
            if model and model != "starter":
                sizes = {"context": ENCODER_CONTEXT, "sequences": ENCODER_SEQUENCES}
                yield {**common, **sizes, "name": f"{service.name}-{kind}", "model": model, "engine": "gpu_server"}
    elif service.role in VLLM:
        fields = (
            "precision",
            "context",
            "sequences",
            "cache",
            "reserve_gb",
            "stated_share",
            "fill",
            "batched",
            "eager",
            "weights",
        )
        given = {name: getattr(service, name) for name in fields if getattr(service, name) is not None}
        yield {**common, **given, "name": service.name, "model": service.model}


def _single(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"
