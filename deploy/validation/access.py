"""Who can get in: ports open to the world, TLS, tokens. And whether the machines' clocks agree.

Ports are read on the machines themselves; nothing is scanned. Tokens are tried only at services that the settings name, once
without a token and once with a wrong one.
"""

from __future__ import annotations

import dataclasses
import http.client
import secrets
import ssl
import time

from collectors.connect_timing import Steps
from collectors.http_timing import HttpRequest, exchange
from collectors.services import Service, ServiceError
from deploy.validation.machines import MachineFacts
from deploy.validation.subject import OwnServer
from deploy.validation.types import Check, Item, Verdict, failed, passed, skipped, warning
from deploy.validation.world import TLS_SCHEMES, World

WRONG_TOKEN_CHARS = 24
SKEW_WARN_SECONDS = 1.0
SKEW_FAILED_SECONDS = 30.0
ASK_SECONDS = 10.0
# What stands on these ports by default gives away data or runs commands for whoever connects.
SENSITIVE = {
    2375: "Docker without TLS",
    2379: "etcd",
    5432: "PostgreSQL",
    6379: "Redis",
    8000: "GPU server or vLLM",
    8001: "vLLM or embedder",
    8002: "reranker or OCR",
    8003: "language model",
    8004: "Whisper",
    8080: "query API",
    8502: "dashboard",
    9000: "MinIO",
    9091: "Milvus's management port",
    9200: "Elasticsearch",
    19530: "Milvus",
}
MEANT = {22: "SSH", 80: "HTTP", 443: "HTTPS"}


# 1) ports


def open_ports(world: World) -> Verdict:
    """What listens beyond loopback on each watched machine, against what the settings say."""
    if not world.subject.machines:
        return Verdict(reason="no machine is watched")
    items = [item for facts in world.machines() for item in _of_machine(world, facts)]
    return Verdict(tuple(items))


def _of_machine(world: World, facts: MachineFacts) -> list[Item]:
    if facts.listeners is None:
        why = facts.problems.get("connection") or facts.problems.get("listeners") or "the list of sockets is empty"
        return [skipped(facts.name, f"its sockets cannot be read: {why}")]
    beyond: dict[int, list[str]] = {}
    for each in facts.listeners:
        if not each.is_loopback:
            beyond.setdefault(each.port, []).append(each.address)
    loopback = len({each.port for each in facts.listeners} - beyond.keys())
    items = [_port(world, facts, port, addresses) for port, addresses in sorted(beyond.items())]
    if not any(item.outcome in ("failed", "warning") for item in items):
        text = f"{len(beyond)} ports beyond loopback, all meant; {loopback} on loopback alone"
        return [*items, passed(facts.name, text)]
    return items


def _port(world: World, facts: MachineFacts, port: int, addresses: list[str]) -> Item:
    name, where = f"{facts.name}:{port}", ", ".join(addresses)
    own = next((each for each in world.subject.own if facts.is_local and each.port == port), None)
    if own is not None:
        return _own_port(world, own, name, where)
    if port in MEANT:
        return passed(name, f"{MEANT[port]} on {where}")
    named = _named(world, facts, port)
    if named is not None:
        return passed(name, f"{where}: service {named} of the settings; S-3 says whether it wants a token")
    what = SENSITIVE.get(port)
    if what is not None:
        cause = f"{what} usually listens there, and no setting says that it is to be reached from outside."
        cure = f"Bind it to 127.0.0.1, or open it to named sources only: `ufw allow from SOURCE to any port {port}`."
        return failed(name, f"open on {where}", cause, cure)
    cause = "No setting names this port."
    return warning(name, f"open on {where}", cause, "Close it, or name what listens there in [[services]].")


def _own_port(world: World, own: OwnServer, name: str, where: str) -> Item:
    if world.is_loopback(own.host):
        cause = f"The settings bind {own.name} to {own.host}; it was started with another address."
        return failed(name, f"{own.name} is open on {where}", cause, "Start it with the settings' address, behind a proxy.")
    if own.token is None:
        cause = f"{own.name} is bound to {own.host} and no token is set."
        return failed(name, f"{own.name} is open on {where}", cause, "Set RAGDECK_TOKEN, or bind it to 127.0.0.1.")
    return passed(name, f"{own.name} on {where}, as set, with a token")


def _named(world: World, facts: MachineFacts, port: int) -> str | None:
    """The service of the settings that is asked at this port of this machine."""
    for service in world.subject.services:
        try:
            host, asked = service.endpoint
        except ServiceError:
            continue
        here = facts.is_local and world.is_loopback(host)
        if asked == port and (here or host in (facts.host_name, facts.name)):
            return None if here else service.name
    return None


# 2) TLS


def encrypted(world: World) -> Verdict:
    """TLS wherever a service is beyond loopback, with certificates that last and are checked."""
    items = [_encrypted(world, service) for service in world.subject.services]
    return Verdict(tuple(items), "" if items else "no service is asked over a network")


def _encrypted(world: World, service: Service) -> Item:
    try:
        host, scheme = service.endpoint[0], service.parts.scheme
    except ServiceError as problem:
        return skipped(service.name, problem.message)
    if scheme in TLS_SCHEMES:
        return _certificate(world, service)
    if world.is_loopback(host):
        return skipped(service.name, "on loopback: nothing leaves this machine")
    if service.secrets():
        cause = "The settings send a key or a password to it without TLS: whoever is on the way can read and use it."
        return failed(service.name, f"{service.address} with a key", cause, _TLS_CURE)
    cause = "Questions, passages and answers go over the network in clear."
    return warning(service.name, service.address, cause, _TLS_CURE)


_TLS_CURE = "Put TLS before it (a proxy with a certificate) and write https://, or reach it through an SSH or VPN tunnel."


def _certificate(world: World, service: Service) -> Item:
    made = next(found for each, found in world.connections() if each is service)
    if made.problem is not None:
        return skipped(service.name, "no TLS connection stands: see E-1 to E-3")
    if not service.verify:
        cause = "`verify = false` takes any certificate: a stranger in between is not noticed."
        return warning(service.name, "the certificate is not checked", cause, "Set ca_file to the authority's certificate.")
    expires = made.steps.certificate_expires_at
    if expires is None:
        return passed(service.name, "trusted and made out to this name; it does not say when it ends")
    days, least = (expires - world.now()) / 86_400, service.thresholds.certificate_days
    if least is not None and days < least:
        return warning(service.name, f"the certificate ends in {days:.0f} days", "Nobody renewed it.", "Renew the certificate.")
    return passed(service.name, f"trusted, made out to this name, good for {days:.0f} days")


# 3) tokens


def tokens(world: World) -> Verdict:
    """Beyond loopback everything must refuse whoever has no token or a wrong one."""
    items = [_asks_for_token(world, service) for service in world.reached()]
    items += [_own_asks(world, own) for own in world.subject.own]
    return Verdict(tuple(items), "" if items else "nothing is reached beyond loopback")


_KEYS = {
    "gpu_server": "Start it with GPU_SERVER_TOKEN set",
    "openai-chat": "Start it with a key (vLLM: --api-key)",
    "openai-embeddings": "Start it with a key (vLLM: --api-key)",
    "redis": "Set requirepass or an ACL user",
    "milvus": "Set common.security.authorizationEnabled",
    "postgres": "Ask for a password in pg_hba.conf",
}


def _asks_for_token(world: World, service: Service) -> Item:
    host = service.endpoint[0]
    if world.is_loopback(host):
        return skipped(service.name, "on loopback: only this machine reaches it")
    if service.kind in ("http", "tcp"):
        return skipped(service.name, f"what of a service of kind {service.kind} needs a token is not known")
    for how, key in (("without a token", None), ("with a wrong token", secrets.token_hex(WRONG_TOKEN_CHARS))):
        result = world.prober(stranger(service, key), "functional")
        if result.up:
            cause = f"It does its work for everybody who reaches {service.address}."
            cure = f"{_KEYS.get(service.kind, 'Start it with a key')}; or open it to named sources only."
            return failed(service.name, f"it answers {how}", cause, cure)
        if result.failure != "authentication":
            return skipped(service.name, f"asked {how} it failed otherwise: {result.message}")
    return passed(service.name, "refuses without a token and with a wrong one")


def stranger(service: Service, key: str | None) -> Service:
    """The service as somebody asks who has not its secrets; `key` is a wrong one."""
    bare = service.url
    if "@" in bare:
        scheme, sign, rest = bare.rpartition("://")
        password = f":{key}@" if key and service.kind in ("redis", "postgres") else ""
        bare = f"{scheme}{sign}{password}{rest.rpartition('@')[2]}"
    return dataclasses.replace(service, url=bare, api_key=key, headers={})


def _own_asks(world: World, own: OwnServer) -> Item:
    if world.is_loopback(own.host):
        return skipped(own.name, f"bound to {own.host}: only this machine reaches it")
    if own.token is None:
        cause = f"It is bound to {own.host} and no token is set."
        return failed(own.name, f"{own.host}:{own.port}", cause, "Set RAGDECK_TOKEN, or bind it to 127.0.0.1.")
    try:
        answers = [_status(own, headers) for headers in ({}, {"Authorization": f"Bearer {secrets.token_hex()}"})]
    except ServiceError as problem:
        return skipped(own.name, f"a token is set, but it does not run at {own.url}: {problem.message}")
    if answers == [401, 401]:
        return passed(own.name, "refuses without a token and with a wrong one (401)")
    cause = "What runs there was started without the token of the settings."
    return failed(own.name, f"answered {answers[0]} without a token, {answers[1]} with a wrong one", cause, "Start it anew.")


def _status(own: OwnServer, headers: dict[str, str]) -> int:
    """The status of a list of queries asked for. Raises ServiceError where nothing answers."""
    try:
        request = HttpRequest("GET", f"{own.url}/api/v1/queries?limit=1", headers)
        return exchange(request, time.monotonic() + ASK_SECONDS, Steps()).status
    except (TimeoutError, http.client.HTTPException, ssl.SSLError) as problem:
        raise ServiceError("connection", type(problem).__name__) from None


# 4) clocks


def clocks(world: World) -> Verdict:
    """The clocks of the machines against ours."""
    far = [facts for facts in world.machines() if not facts.is_local]
    if not far:
        return Verdict(reason="no machine is watched over SSH: there is one clock")
    measures = {f"{each.name}.offset_seconds": each.clock.offset_seconds for each in far if each.clock}
    return Verdict(tuple(_clock(facts) for facts in far), measures=measures)


def _clock(facts: MachineFacts) -> Item:
    if facts.clock is None:
        return skipped(facts.name, facts.problems.get("connection") or facts.problems.get("clock", "not read"))
    offset, within = facts.clock
    text = f"{offset:+.2f} s against ours, to within {within:.2f} s"
    surely = max(0.0, abs(offset) - within)
    cause = "The machine does not keep its time by NTP, or this one does not."
    cure = "Switch time synchronisation on on both: `timedatectl set-ntp true`, then look at `timedatectl`."
    if surely > SKEW_FAILED_SECONDS:
        return failed(facts.name, text, f"{cause} Certificates and traces of the two machines do not fit together.", cure)
    return warning(facts.name, text, cause, cure) if surely > SKEW_WARN_SECONDS else passed(facts.name, text)


CHECKS = (
    Check("S-1", "Security", "No port is open by accident", "What listens beyond loopback is named in the settings.", open_ports),
    Check("S-2", "Security", "TLS beyond loopback", "Nothing secret crosses a network in clear; certificates last.", encrypted),
    Check("S-3", "Security", "Tokens are required", "Beyond loopback nobody is served without the right token.", tokens),
)
T_1 = Check("T-1", "Machines", "Clocks agree", "Times of different machines can be laid beside each other.", clocks)
