"""Every endpoint in order: name, TCP, TLS, HTTP, a functional probe; and the versions that they tell.

A step that failed is told once: the later steps of that endpoint are not reached.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from collectors.services import ProbeKind, ProbeResult, Service, ServiceError
from deploy.validation.types import Check, Item, Verdict, failed, passed, skipped, warning
from deploy.validation.world import TLS_SCHEMES, Connection, World

NO_ENDPOINT = "no endpoint is configured: models and store are in this process, and no [[services]] are named"
CAUSES = {
    "dns": "The name is not known to this machine's name servers.",
    "refused": "Nothing listens there, or a firewall refuses.",
    "connection": "The network between this machine and the service is broken.",
    "timeout": "A firewall drops what is sent, or the machine is overloaded or off.",
    "tls": "The certificate or the TLS versions do not fit.",
    "authentication": "The key in the settings is not the one that the server wants.",
    "not_found": "The url leads to a server that has no such path.",
    "model": "The model asked for is not the one that is served, or it is not loaded.",
    "overloaded": "The server has more requests than it takes.",
    "bad_input": "The entry in the settings cannot be used as it is.",
    "bad_answer": "Another kind of server, or another version, answers there.",
    "server_error": "The server failed at a well-formed request.",
    "internal": "The probe itself failed.",
}
KEY_VALUE = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;]+)")


def step_of(made: Connection) -> str:
    """The step that a connection failed at: `dns`, `tcp`, `tls`; empty where it stood."""
    if made.problem is None:
        return ""
    if made.problem.failure in ("dns", "bad_input"):
        return "dns"
    return "tls" if made.steps.connect_seconds is not None else "tcp"


def _step(
    step: str, text: Callable[[Service, Connection], str], applies: Callable[[Service], bool]
) -> Callable[[World], Verdict]:
    """The check of one step of a connection."""
    before = {"dns": (), "tcp": ("dns",), "tls": ("dns", "tcp")}[step]

    def run(world: World) -> Verdict:
        items = [_item(service, made) for service, made in world.connections() if applies(service)]
        return Verdict(tuple(items), "" if items else _nothing(world))

    def _item(service: Service, made: Connection) -> Item:
        ended = step_of(made)
        if ended == step:
            assert made.problem is not None
            return problem_item(service, made.problem)
        return skipped(service.name, "not reached") if ended in before else passed(service.name, text(service, made))

    return run


def _nothing(world: World) -> str:
    return "no endpoint is asked over TLS" if world.subject.services else NO_ENDPOINT


def problem_item(service: Service, problem: ServiceError) -> Item:
    return failed(service.name, f"{service.address}: {service.said(problem.message)}", CAUSES[problem.failure], problem.next_step)


def probe_item(service: Service, result: ProbeResult) -> Item:
    """A probe's result as an item: what is degraded or loading is a warning."""
    seconds = f"{result.latency.total_seconds * 1000:.0f} ms"
    if result.state == "ok":
        notes = f" ({'; '.join(result.notes)})" if result.notes else ""
        return passed(service.name, f"{result.message or 'answers'}{notes}, {seconds}")
    make = failed if result.state == "failed" else warning
    cause = CAUSES.get(result.failure or "", "") or "It is slower than its thresholds allow."
    return make(service.name, f"{result.address}: {result.message}", cause, result.next_step)


def _probe(kind: ProbeKind) -> Callable[[World], Verdict]:
    def run(world: World) -> Verdict:
        reached = {id(service): result for service, result in world.probes(kind)}
        items = [
            probe_item(service, reached[id(service)]) if id(service) in reached else skipped(service.name, "not reached")
            for service in world.subject.services
        ]
        measures = {f"{each.service}.{name}": value for each in reached.values() for name, value in each.measures.items()}
        return Verdict(tuple(items), "" if items else NO_ENDPOINT, measures=measures)

    return run


def _milliseconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value * 1000:.1f} ms"


def versions(world: World) -> Verdict:
    """Versions of servers of one kind must agree, our GPU servers with us, and installed packages with their pins."""
    by_kind: dict[str, dict[str, str]] = defaultdict(dict)
    for service, result in world.probes("functional"):
        if result.version:
            by_kind[service.kind][service.name] = result.version
    items = [_agreement(kind, found, world.subject.version) for kind, found in by_kind.items()]
    items += _pins(world.subject.root / "requirements-remote.txt")
    if world.installed("torch"):
        items += _pins(world.subject.root / "requirements.txt")
    return Verdict(tuple(items), "" if items else "no server tells its version, and no requirements file is there")


def _agreement(kind: str, found: dict[str, str], own: str) -> Item:
    said = ", ".join(f"{name} {version}" for name, version in found.items())
    if kind == "gpu_server" and set(found.values()) != {own}:
        cause = "Dashboard and GPU server were updated at different times."
        return warning(kind, f"{said}; this is {own}", cause, "Bring both to one version: requests and answers may differ.")
    if len(set(found.values())) > 1:
        return warning(kind, said, "Replicas of one kind run different versions.", "Bring them to one version.")
    return passed(kind, said)


def _pins(path: Path) -> list[Item]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    pins = {match[1]: match[2] for line in lines if (match := KEY_VALUE.match(line.strip()))}
    wrong = []
    for name, pinned in pins.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "not installed"
        if installed.partition("+")[0] != pinned:  # torch's build, such as +cpu, is no other version
            wrong.append(f"{name} {installed} (pinned {pinned})")
    if not wrong:
        return [passed(path.name, f"{len(pins)} packages as pinned")]
    cure = f"Run `pip install -r {path.name}` in the environment that RAG Deck runs in."
    return [warning(path.name, ", ".join(wrong), "The environment was changed by hand or made for another version.", cure)]


CHECKS = (
    Check(
        "E-1", "Endpoints", "Names resolve", "Every host name of the settings is known to this machine.",
        _step("dns", lambda _, made: f"in {_milliseconds(made.steps.dns_seconds)}", lambda _: True),
    ),
    Check(
        "E-2", "Endpoints", "Ports take connections", "The network and the firewalls let this machine through.",
        _step("tcp", lambda each, made: f"{each.address} in {_milliseconds(made.steps.connect_seconds)}", lambda _: True),
    ),
    Check(
        "E-3", "Endpoints", "TLS is agreed on", "Certificates are valid, trusted and made out to the names used.",
        _step(
            "tls",
            lambda _, made: f"in {_milliseconds(made.steps.tls_seconds)}",
            lambda each: _scheme(each) in TLS_SCHEMES,
        ),
    ),
    Check("E-4", "Endpoints", "Servers answer", "What listens is the kind of server that the settings say.", _probe("liveness")),
    Check(
        "E-5", "Endpoints", "Services do their work", "Each answered a real small request correctly.", _probe("functional")
    ),
    Check("V-1", "Models", "Versions fit", "Servers of one kind and the installed packages are of the versions meant.", versions),
)  # fmt: skip


def _scheme(service: Service) -> str:
    try:
        return service.parts.scheme
    except ServiceError:
        return ""
