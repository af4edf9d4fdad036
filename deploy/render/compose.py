"""A compose file a machine: what runs there in containers, with GPUs as planned, and health checks that ask the model.

Ports are published on the address that somebody needs, never on all. Knows the planner's pieces, no flag of a model server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploy.planner import flags
from deploy.render import apps, docker
from deploy.render.files import File, commented, yaml_file
from deploy.render.schema import APPS, STORES, VLLM, Host, Service
from deploy.render.site import Site
from deploy.render.templates import template

START_SECONDS = {"dashboard": 300, "api": 300, "gpu-server": 600, "milvus": 180, "redis": 20, "postgres": 60}
MODEL_START_SECONDS = 1800  # vLLM reads tens of GB, then captures graphs
STOP_SECONDS = {"gpu-server": 75, "dashboard": 30, "api": 30, "milvus": 120}
PROBE = "/opt/ragdeck/probe.py"
DATA = "/var/lib/ragdeck"
CONFIG = "/etc/ragdeck/dashboard.toml"
ETCD = """listen-client-urls: http://127.0.0.1:2379
advertise-client-urls: http://127.0.0.1:2379
quota-backend-bytes: 4294967296
auto-compaction-mode: revision
auto-compaction-retention: "1000"
"""


def files(site: Site) -> Iterator[File]:
    for host in site.machines:
        here = site.on(host.name, "compose")
        if not here:
            continue
        yield yaml_file(site, f"{host.name}/compose.yaml", composed(site, host))
        yield commented(site, f"{host.name}/secrets.env.example", _secrets(site, here), 0o600)
        yield from (apps.settings_file(site, each, f"{host.name}/{each.name}.toml") for each in here if each.role in APPS)
        if any(each.role in VLLM for each in here):
            yield commented(site, f"{host.name}/probe.py", template("probe.py"))
        if any(each.role == "milvus" for each in here):
            yield commented(site, f"{host.name}/etcd.yaml", ETCD)


def _secrets(site: Site, here: tuple[Service, ...]) -> str:
    names = sorted({name for each in here for name in apps.secrets(site, each).values()} | _redis_password(site, here))
    head = (
        "# Copy to secrets.env (mode 0600), fill in (openssl rand -hex 32), then: docker compose --env-file secrets.env up -d\n"
    )
    return head + "".join(f"{name}=\n" for name in names)


def _redis_password(site: Site, here: tuple[Service, ...]) -> set[str]:
    redis = site.role("redis")
    return {redis.token} if redis and redis.token and any(each.role in APPS for each in here) else set()


def composed(site: Site, host: Host) -> dict[str, Any]:
    """The compose file as data."""
    here = site.on(host.name, "compose")
    volumes = [name for each in here for name in _volumes(site, each)]
    found: dict[str, Any] = {"name": site.deployment.name}
    found["services"] = {each.name: _service(site, each) for each in here}
    return found | ({"volumes": {name: {} for name in dict.fromkeys(volumes)}} if volumes else {})


def _service(site: Site, service: Service) -> dict[str, Any]:
    found: dict[str, Any] = {"image": docker.image(site, service), "restart": "unless-stopped", "init": True}
    found |= _how(site, service)
    found["environment"] = _environment(site, service)
    published = site.published(service)
    if published:
        address = f"[{published}]" if ":" in published else published
        found["ports"] = [f"{address}:{service.listens_on}:{service.listens_on}"]
    mounts = [*_mounts(site, service), *(f"{name}:{place}" for name, place in _volumes(site, service).items())]
    found |= {"volumes": mounts} if mounts else {}
    found["healthcheck"] = _health(site, service)
    waits = _waits(site, service)
    found |= {"depends_on": waits} if waits else {}
    found["stop_grace_period"] = f"{STOP_SECONDS.get(service.role, 60)}s"
    found["security_opt"] = ["no-new-privileges:true"]
    if service.role not in STORES:  # Triton loads what it compiled from /tmp, which is noexec unless said
        found |= {"user": str(docker.USER), "cap_drop": ["ALL"], "read_only": True, "tmpfs": ["/tmp:mode=1777,exec"]}
    found["logging"] = {"driver": "json-file", "options": {"max-size": "20m", "max-file": "5"}}
    return found


def _how(site: Site, service: Service) -> dict[str, Any]:
    """Command and devices."""
    placed = site.placed(service)
    if service.role in VLLM:
        return {"entrypoint": ["vllm", "serve"], **flags.compose_service(site.plans[service.host], placed[0])}
    if service.role == "gpu-server":
        devices = flags.compose_service(site.plans[service.host], placed[0]) if placed else {}
        return {**devices, "entrypoint": ["python", "-m", "gpu_server"], "command": site.arguments(service)}
    if service.role in APPS:
        return {"command": ["python", "app.py"] if service.role == "dashboard" else ["python", "-m", "rag", "serve"]}
    if service.role == "milvus":
        return {"command": ["milvus", "run", "standalone"]}
    if service.role == "redis":  # by the image's entry point, which gives up root
        server = f'redis-server --port {service.listens_on} --requirepass "$$REDIS_PASSWORD" --appendonly yes'
        return {"command": ["sh", "-c", f"exec docker-entrypoint.sh {server}"]}
    return {"command": ["postgres", "-p", str(service.listens_on)]}


def _environment(site: Site, service: Service) -> dict[str, str]:
    found = apps.variables(site, service, CONFIG, DATA)
    for variable, name in apps.secrets(site, service).items():
        found[variable] = f"${{{name}:?set {name} in secrets.env}}"
    redis = site.role("redis")
    if redis:
        url = apps.redis_url(site, service, f"${{{redis.token}:?set {redis.token} in secrets.env}}")
        found |= {"REDIS_URL": url} if url else {}
    if service.role in VLLM:
        found |= {"HF_HOME": "/opt/models", "HOME": "/tmp", "USER": "ragdeck"}
    if service.role == "milvus":
        found |= {"DEPLOY_MODE": "STANDALONE", "ETCD_USE_EMBED": "true", "ETCD_DATA_DIR": "/var/lib/milvus/etcd"}
        found |= {"ETCD_CONFIG_PATH": "/milvus/configs/etcd.yaml", "COMMON_STORAGETYPE": "local"}
        found |= {"PROXY_PORT": str(service.listens_on)}
    return found


def _mounts(site: Site, service: Service) -> list[str]:
    if service.role in APPS:
        return [f"./{service.name}.toml:{CONFIG}:ro"]
    if service.role in VLLM:
        folders = [each for each in (site.model(service),) if each and each.startswith("/")]
        return [f"./probe.py:{PROBE}:ro", *(f"{each}:{each}:ro" for each in folders)]
    if service.role == "gpu-server":
        return [f"{each}:{each}:ro" for each in (service.embedder, service.reranker) if each and each.startswith("/")]
    return ["./etcd.yaml:/milvus/configs/etcd.yaml:ro"] if service.role == "milvus" else []


def _volumes(site: Site, service: Service) -> dict[str, str]:
    """Named volume -> where. The models' cache is one only where models are not in the images."""
    places = {
        "milvus": "/var/lib/milvus",
        "redis": "/data",
        "postgres": "/var/lib/postgresql/data",
        "dashboard": DATA,
        "api": DATA,
    }
    if service.role in places:
        return {f"{service.name}-data": places[service.role]}
    return {f"{service.name}-models": "/opt/models"} if site.hub_models(service) and not site.deployment.offline else {}


def _health(site: Site, service: Service) -> dict[str, Any]:
    port = service.listens_on
    if service.role in VLLM:
        test = ["CMD", "python3", PROBE, *docker.probe(site, service)]
    elif service.role == "milvus":
        test = ["CMD", "curl", "-fsS", "http://127.0.0.1:9091/healthz"]
    elif service.role == "redis":
        test = ["CMD-SHELL", f'REDISCLI_AUTH="$$REDIS_PASSWORD" redis-cli -p {port} ping | grep -q PONG']
    elif service.role == "postgres":
        test = ["CMD-SHELL", f"pg_isready -h 127.0.0.1 -p {port}"]
    else:
        test = ["CMD", "python", "/app/deploy/templates/probe.py", *docker.probe(site, service)]
    start = START_SECONDS.get(service.role, MODEL_START_SECONDS)
    return {"test": test, "interval": "30s", "timeout": "25s", "retries": 3, "start_period": f"{start}s"}


def _waits(site: Site, service: Service) -> dict[str, Any]:
    """The API wants every service well; the dashboard its stores, for it is there to show what is not well. Of model servers
    on one GPU each waits for the one before: they measure what is free while they start."""
    here = [each for each in site.on(service.host, "compose") if each != service]
    if service.role in APPS:
        wanted = [each for each in here if each.role not in APPS and each.role != "postgres"]
        return {each.name: {"condition": _condition(service, each)} for each in wanted}
    before = [
        each
        for each in site.on(service.host, "compose")
        if each.role in VLLM and set(_gpus(site, each)) & set(_gpus(site, service))
    ]
    place = before.index(service) if service in before else len(before)
    return {before[place - 1].name: {"condition": "service_healthy"}} if place else {}


def _condition(app: Service, other: Service) -> str:
    return "service_healthy" if app.role == "api" or other.role in STORES else "service_started"


def _gpus(site: Site, service: Service) -> list[int]:
    return [index for placed in site.placed(service) for index in placed.gpus]
