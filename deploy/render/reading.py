"""The settings file of a deployment: read, validated, planned; everything that is wrong with it by key and line.

Knows no output. The file may come from anybody: sizes are bounded, and every name that reaches a script is checked.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from deploy.render.schema import (
    APPS,
    DEFAULT_PORTS,
    OURS,
    STORES,
    VLLM,
    Deployment,
    Firewall,
    Host,
    Images,
    Monitoring,
    Part,
    Service,
    Tls,
)
from deploy.render.site import EVERYWHERE, Site, planned, run_by, shares_gpus
from rag.errors import RagError

LARGEST_FILE_BYTES = 200_000
PRESETS = ("single-vm", "vm-and-vps", "six-services-a100", "six-services-h100", "kubernetes")
PRESETS_FOLDER = Path(__file__).parent.parent / "presets"
TABLES: Mapping[str, type[Part]] = {
    "hosts": Host,
    "services": Service,
    "images": Images,
    "tls": Tls,
    "firewall": Firewall,
    "monitoring": Monitoring,
}
Location = tuple[str | int, ...]


class Problem(NamedTuple):
    """Where in the file, what is there, what should be."""

    where: Location
    found: str
    expected: str


def read(path: Path) -> Site:
    """Raises RagError (`bad_input`, `not_found`) with every problem found."""
    try:
        raw = path.read_bytes() if path.stat().st_size <= LARGEST_FILE_BYTES else None
    except OSError as problem:
        raise RagError(f"{path} cannot be read: {problem.strerror}", kind="not_found") from problem
    if raw is None:
        raise RagError(f"{path} is larger than {LARGEST_FILE_BYTES:,} bytes: it is no deployment", kind="bad_input")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise RagError(f"{path.name} is not UTF-8 at byte {problem.start}", kind="bad_input") from problem
    return parse(text, path.name)


def preset(name: str) -> Site:
    return read(PRESETS_FOLDER / f"{name}.toml")


def parse(text: str, name: str = "deployment.toml") -> Site:
    """The site that a text describes. Raises RagError (`bad_input`) with every problem found."""
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise RagError(f"{name} is no TOML: {str(problem)[:200]}", kind="bad_input") from problem
    lines = _lines(text)
    try:
        deployment = Deployment.model_validate_json(_json(data))
    except ValidationError as problem:
        raise _refused(name, [_of(each) for each in problem.errors()], lines, data) from None
    problems = list(_inconsistent(deployment))
    if problems:
        raise _refused(name, problems, lines, data)
    site = Site(deployment, name, hashlib.sha256(text.encode()).hexdigest(), planned(deployment))
    problems = [*_unplanned(site), *_unreachable(site), *_open(site)]
    if problems:
        raise _refused(name, problems, lines, data)
    return site


def _json(data: Mapping[str, Any]) -> bytes:
    # Strict mode takes lists for tuples from JSON only; dates and NaN of TOML are refused here as texts.
    import orjson

    return orjson.dumps(data, default=str)


def _of(detail: Any) -> Problem:
    expected = re.sub(r"^(Value error, |Input should be |String should )", "", detail["msg"])
    if detail["type"] == "missing":
        return Problem(tuple(detail["loc"]), "nothing", "a value")
    if detail["type"] == "extra_forbidden":
        return Problem(tuple(detail["loc"]), "an unknown key", _known(tuple(detail["loc"])))
    return Problem(tuple(detail["loc"]), _shown(detail["input"]), expected)


def _known(where: Location) -> str:
    """What the table of an unknown key may hold; the nearest name alone where one is near."""
    table = TABLES.get(str(where[0]) if len(where) > 1 else "", Deployment)
    names = sorted(table.model_fields)
    near = difflib.get_close_matches(str(where[-1]), names, n=1)
    return near[0] if near else f"one of {', '.join(names)}"


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:60] + "…"


def _refused(name: str, problems: Sequence[Problem], lines: Mapping[Location, int], data: Mapping[str, Any]) -> RagError:
    said = "\n".join(f"  - {_place(each.where, lines, data)}: found {each.found}, expected {each.expected}" for each in problems)
    return RagError(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {name}:\n{said}", kind="bad_input")


def _place(where: Location, lines: Mapping[Location, int], data: Mapping[str, Any]) -> str:
    """`line 12, services.llm.port`: entries of a list are called by their names."""
    known = where
    while known and known not in lines:
        known = known[:-1]
    words: list[str] = []
    here: Any = data
    for part in where:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = None
        words.append(str(here.get("name", part))[:40] if isinstance(part, int) and isinstance(here, Mapping) else str(part))
    return f"line {lines[known]}, {'.'.join(words)}" if known else ".".join(words)


def _lines(text: str) -> dict[Location, int]:
    """The line of each table, list entry and key; tomllib keeps no positions."""
    found: dict[Location, int] = {}
    table: Location = ()
    counts: Counter[str] = Counter()
    for number, line in enumerate(text.split("\n"), 1):
        entry = re.match(r"\s*\[\[\s*([\w-]+)\s*\]\]", line)
        header = re.match(r"\s*\[\s*([\w.-]+)\s*\]", line)
        key = re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line)
        if entry:
            table = (entry[1], counts[entry[1]])
            counts[entry[1]] += 1
            found.setdefault((entry[1],), number)
        elif header:
            table = tuple(header[1].split("."))
        if entry or header:
            found.setdefault(table, number)
        elif key:
            found.setdefault((*table, key[1]), number)
    return found


# ---------------------------------------------------------------------------------------------------- one with another


def _inconsistent(deployment: Deployment) -> Iterator[Problem]:
    """What no single value shows."""
    for kind in ("hosts", "services"):
        names = [each.name for each in getattr(deployment, kind)]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield Problem((kind, index, "name"), repr(name), "a name of its own")
    hosts = {each.name: each for each in deployment.hosts}
    for index, host in enumerate(deployment.hosts):
        yield from _host(index, host)
    for index, service in enumerate(deployment.services):
        if service.host not in hosts:
            yield Problem(("services", index, "host"), repr(service.host), f"one of {', '.join(hosts)}")
        else:
            yield from _service(index, service, hosts[service.host])
        yield from _sources(deployment, ("services", index, "allow"), service.allow)
    yield from _ports(deployment)
    yield from _once(deployment)
    if deployment.tls:
        yield from _sources(deployment, ("tls", "allow"), deployment.tls.allow)
        if deployment.tls.host not in hosts:
            yield Problem(("tls", "host"), repr(deployment.tls.host), f"one of {', '.join(hosts)}")
    if deployment.firewall:
        yield from _sources(deployment, ("firewall", "ssh_from"), deployment.firewall.ssh_from)
        if not deployment.firewall.ssh_from:
            yield Problem(("firewall", "ssh_from"), "no source", "at least one, or the rules lock everybody out")
    if deployment.monitoring.from_source:
        yield from _sources(deployment, ("monitoring", "from_source"), (deployment.monitoring.from_source,))


def _host(index: int, host: Host) -> Iterator[Problem]:
    if host.cloud == "gcloud" and not host.zone:
        yield Problem(("hosts", index, "zone"), "nothing", "the zone of the instance")
    if host.kind == "machine" and host.run_by == "kubernetes":
        yield Problem(("hosts", index, "run_by"), "'kubernetes'", 'compose or systemd, or kind = "kubernetes"')
    if host.kind == "machine":
        try:
            ipaddress.ip_address(host.address)
        except ValueError:
            yield Problem(("hosts", index, "address"), repr(host.address), "an IP address: firewall rules need one")


def _service(index: int, service: Service, host: Host) -> Iterator[Problem]:
    at = ("services", index)
    by = run_by(service, host)
    if by == "systemd" and service.role not in OURS:
        yield Problem((*at, "run_by"), "'systemd'", f"compose or external: we ship units for {', '.join(OURS)}")
    if (by == "kubernetes") != (host.kind == "kubernetes") and by != "external":
        yield Problem((*at, "run_by"), repr(by), f"what runs on {host.name}, a {host.kind}")
    if service.role in VLLM and not service.model:
        yield Problem((*at, "model"), "nothing", "the model it serves")
    if service.role not in VLLM and service.model:
        yield Problem((*at, "model"), repr(service.model), "no model for this role (a GPU server has embedder and reranker)")
    if service.role == "gpu-server" and not (service.embedder or service.reranker):
        yield Problem((*at, "embedder"), "neither embedder nor reranker", "at least one of them")
    if service.role in VLLM and by != "external" and host.gpu is None:
        yield Problem((*at, "host"), f"{host.name}, which has no gpu", "a host with one")
    if service.role in APPS and not service.token:
        yield Problem((*at, "token"), "nothing", "the name of the variable that holds its token: it is never served without")
    if service.most_replicas > 1 and by != "kubernetes":
        yield Problem((*at, "replicas"), str(service.most_replicas), "1 outside Kubernetes")
    if service.role in APPS and service.most_replicas > 1:
        yield Problem((*at, "replicas"), str(service.most_replicas), "1: it keeps its traces on a disk of its own")
    if service.role == "redis" and by == "kubernetes" and service.listens_on != 6379:
        yield Problem((*at, "port"), str(service.listens_on), "6379: the operator's Redis listens there")
    if service.role == "milvus" and by == "kubernetes" and service.listens_on != DEFAULT_PORTS["milvus"]:
        yield Problem((*at, "port"), str(service.listens_on), "19530: the operator takes no other port")
    if service.role in ("redis", "postgres") and by != "external" and not service.token:
        yield Problem((*at, "token"), "nothing", "the name of the variable that holds its password")


def _sources(deployment: Deployment, where: Location, names: Sequence[str]) -> Iterator[Problem]:
    for name in names:
        if name not in deployment.sources:
            known = ", ".join(deployment.sources) or "none is named"
            yield Problem(where, repr(name), f"a name of [sources] ({known})")


def _ports(deployment: Deployment) -> Iterator[Problem]:
    """On one machine no port twice."""
    taken: dict[tuple[str, int], str] = {}
    proxy = deployment.tls
    if proxy:
        taken |= {(proxy.host, 443): "the proxy", (proxy.host, 80): "the proxy"}
    for index, service in enumerate(deployment.services):
        place = (service.host, service.listens_on)
        if place in taken:
            expected = f"a port that {taken[place]} on {service.host} does not have"
            yield Problem(("services", index, "port"), str(service.listens_on), expected)
        taken.setdefault(place, service.name)


def _once(deployment: Deployment) -> Iterator[Problem]:
    """Of most roles our programs take one address."""
    seen: dict[str, str] = {}
    for index, service in enumerate(deployment.services):
        if service.role in seen:
            expected = f"one service of this role; {seen[service.role]} has it"
            yield Problem(("services", index, "role"), repr(service.role), expected)
        seen.setdefault(service.role, service.name)
    if {"dashboard", "api"} <= seen.keys() and "milvus" not in seen:
        at = next(index for index, each in enumerate(deployment.services) if each.role == "api")
        yield Problem(
            ("services", at), "API and dashboard without Milvus", "a service of role milvus: one process holds the embedded store"
        )
    if {"embedding", "gpu-server"} <= seen.keys():
        at = next(index for index, each in enumerate(deployment.services) if each.role == "gpu-server")
        if deployment.services[at].embedder:
            yield Problem(
                ("services", at, "embedder"), repr(deployment.services[at].embedder), "no second embedder beside role embedding"
            )


# ------------------------------------------------------------------------------------------------------------ the plan


def _unreachable(site: Site) -> Iterator[Problem]:
    """Hosts whose address leads nowhere for those who need it."""
    for index, host in enumerate(site.deployment.hosts):
        if host.address not in ("127.0.0.1", "::1"):
            continue
        needed = [each.name for each in site.on(host.name) if host.kind == "machine" and site.exposed(each)]
        if len(site.deployment.hosts) > 1 or needed:
            why = f"the address at which {needed[0]} is reached" if needed else "an address that the other hosts see"
            yield Problem(("hosts", index, "address"), repr(host.address), why)


def _open(site: Site) -> Iterator[Problem]:
    """Model servers that others reach, and that ask for no key. Our GPU server listens beyond loopback with a key alone, and in a
    container its loopback is nobody else's."""
    expected = "the name of the variable that holds its key: "
    for index, service in enumerate(site.deployment.services):
        serves = service.role in VLLM or service.role == "gpu-server"
        if not serves or service.token or site.run_by(service) == "external":
            continue
        if site.exposed(service):
            yield Problem(("services", index, "token"), "nothing", f"{expected}it is reached from beyond its machine")
        elif service.role == "gpu-server" and site.binds(service) == EVERYWHERE:
            yield Problem(("services", index, "token"), "nothing", f"{expected}without one it does not start in a container")


def _unplanned(site: Site) -> Iterator[Problem]:
    """What does not fit on the GPUs, or could not be started as planned."""
    for index, service in enumerate(site.deployment.services):
        if service.role in STORES or site.run_by(service) == "external":
            continue
        for placed in site.placed(service):
            if not placed.fits:
                yield Problem(("services", index), f"no room for {placed.service.model}", f"a plan that fits. {placed.problem}")
            elif "<" in site.served(placed):
                found = f"{placed.precision.upper()} without weights"
                yield Problem(
                    ("services", index, "weights"), found, f"the {placed.precision.upper()} weights: a hub name or a folder"
                )
    for index, host in enumerate(site.deployment.hosts):
        if host.kind != "kubernetes":
            continue
        wanted = sum(site.gpus_each(each) * each.most_replicas for each in site.on(host.name))
        if wanted > host.gpus and host.gpu:
            yield Problem(("hosts", index, "gpus"), str(host.gpus), f"at least {wanted}: so many are taken with all replicas")
        for number, service in enumerate(site.deployment.services):
            if service.host == host.name and shares_gpus(site, service):
                yield Problem(
                    ("services", number, "gpus"),
                    "a GPU shared with another service",
                    "GPUs of its own: Kubernetes gives whole ones",
                )
