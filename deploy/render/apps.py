"""Our own processes: the settings file of dashboard and API, their variables, and which secret goes where. Pure.

Secrets are never here: a settings file names none, and variables name the variables that hold them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tomli_w

from deploy.render.files import File, commented
from deploy.render.schema import APPS, Service
from deploy.render.site import Site

ANSWER_TOKENS, PROMPT_TOKENS, PASSAGE_TOKENS = 512, 1024, 6000
KINDS = {
    "dashboard": "http",
    "api": "http",
    "gpu-server": "gpu_server",
    "llm": "openai-chat",
    "embedding": "openai-embeddings",
    "ocr": "ocr",
    "whisper": "whisper",
    "milvus": "milvus",
    "redis": "tcp",
    "postgres": "tcp",
}
HEALTH = {"dashboard": "/api/health", "api": "/api/health"}
WHO = "/api/v1/whoami"  # answers whoever shows a key that holds
API_VARIABLE = "RAGDECK_API_TOKEN"  # under which the dashboard knows the API's key; its own is RAGDECK_TOKEN
# The variable under which our programs take each service's key.
KEY_VARIABLES = {
    "gpu-server": "GPU_SERVER_TOKEN",
    "llm": "VLLM_API_KEY",
    "embedding": "EMBEDDING_API_KEY",
    "ocr": "OCR_API_KEY",
    "whisper": "WHISPER_API_KEY",
}


def settings_file(site: Site, app: Service, path: str) -> File:
    """`dashboard.toml` of an app."""
    return commented(site, path, tomli_w.dumps(settings(site, app)))


def settings(site: Site, app: Service) -> dict[str, Any]:
    """What the app's settings file says, for `settings.load`."""
    own = {"host": site.binds(app), "port": app.listens_on}
    server = own if app.role == "dashboard" else {}
    found: dict[str, Any] = {"server": {**server, "allowed_hosts": _names(site, app)}}
    if app.role == "api":
        found["api"] = own
    found |= _stores(site, app) | _models(site, app)
    if site.deployment.offline:
        found["offline"] = {"hf_hub_offline": True, "transformers_offline": True, "hf_datasets_offline": True}
    if app.role == "dashboard":
        found["services"] = [entry for each in site.deployment.services if each != app for entry in _watched(site, app, each)]
        machines = _machines(site, app)
        found |= {"machines": machines} if machines else {}
    return found


def _names(site: Site, app: Service) -> list[str]:
    """Names under which requests arrive; plain addresses are always taken beyond loopback."""
    proxy = site.deployment.tls
    found = [app.name]
    if proxy:
        found += [name for name in (proxy.dashboard if app.role == "dashboard" else proxy.api,) if name]
    if site.run_by(app) == "kubernetes":
        found += [f"{app.name}.{site.deployment.name}.svc"]
    return list(dict.fromkeys(found))


def _stores(site: Site, app: Service) -> dict[str, Any]:
    milvus = site.role("milvus")
    return {"milvus": {"uri": site.url(milvus, app)}} if milvus else {}


def _models(site: Site, app: Service) -> dict[str, Any]:
    found: dict[str, Any] = {}
    server, embedding = site.role("gpu-server"), site.role("embedding")
    if server:
        found["gpu_server"] = {"url": site.url(server, app)}
    if embedding:
        prompts = {"query_prompt": embedding.query_prompt, "passage_prompt": embedding.passage_prompt}
        found["embeddings"] = {"base_url": f"{site.url(embedding, app)}/v1", "model": site.model(embedding)}
        found["embeddings"] |= {key: value for key, value in prompts.items() if value is not None}
    llm = site.role("llm")
    if llm:
        room = max(256, min(PASSAGE_TOKENS, llm.context - ANSWER_TOKENS - PROMPT_TOKENS))
        found["llm"] = {"base_url": f"{site.url(llm, app)}/v1", "model": site.model(llm), "context_tokens": room}
    for role, table in (("ocr", "ocr"), ("whisper", "speech")):
        service = site.role(role)
        if service:
            found[table] = {"base_url": f"{site.url(service, app)}/v1", "model": site.model(service)}
            if service.language and table == "speech":
                found[table]["language"] = service.language
    return found


def _watched(site: Site, app: Service, service: Service) -> Iterator[dict[str, Any]]:
    """Its entries of [[services]]. Keys stay out of files: an entry names the variable that holds one. The API's health is open
    to all, so that whether its key still holds is an entry of its own."""
    kind, address = KINDS[service.role], site.address(service, app)
    url = address if kind == "tcp" else f"http://{address}{HEALTH.get(service.role, '')}"
    found: dict[str, Any] = {"name": service.name, "kind": kind, "url": url}
    if service.role in KEY_VARIABLES and service.token:
        found["api_key_env"] = KEY_VARIABLES[service.role]
    model = site.model(service)
    yield found | ({"model": model} if model else {}) | ({"language": service.language} if service.language else {})
    if service.role == "api" and service.token:
        yield {"name": f"{service.name}.key", "kind": "http", "url": f"http://{address}{WHO}", "api_key_env": API_VARIABLE}


def restartable(site: Site, app: Service) -> list[str]:
    """Units that the dashboard may restart on its own machine: ours, but not itself, which would cut off who asked."""
    if app.role != "dashboard" or site.run_by(app) != "systemd":
        return []
    return [unit_name(each) for each in site.on(app.host, "systemd") if each != app]


def unit_name(service: Service) -> str:
    return f"ragdeck-{service.name}.service"


def _machines(site: Site, app: Service) -> list[dict[str, Any]]:
    """Its own machine with the units that are ours; the others, over SSH, where the settings name a user for it."""
    units = restartable(site, app)
    found: list[dict[str, Any]] = [{"name": "local", "units": [*units, unit_name(app)], "restart": units}] if units else []
    for host in site.machines:
        if host.name != app.host and host.ssh_user:
            entry: dict[str, Any] = {"name": host.name, "address": host.address, "user": host.ssh_user}
            if host.gpu and site.plans.get(host.name):
                entry["expected_gpus"] = host.gpus
            found.append(entry)
    return found


def secrets(site: Site, service: Service) -> dict[str, str]:
    """Variable of the process -> variable of the secrets file that holds its value."""
    if service.role in APPS:
        found = {"RAGDECK_TOKEN": service.token} if service.token else {}
        wanted = KEY_VARIABLES | ({"api": API_VARIABLE} if service.role == "dashboard" else {})
        others = ((site.role(role), variable) for role, variable in wanted.items())
        return found | {variable: other.token for other, variable in others if other and other.token}
    variable = {"gpu-server": "GPU_SERVER_TOKEN", "redis": "REDIS_PASSWORD", "postgres": "POSTGRES_PASSWORD"}
    return {variable.get(service.role, "VLLM_API_KEY"): service.token} if service.token else {}


def redis_url(site: Site, app: Service, password: str) -> str | None:
    """The address of Redis for an app, with `password` as it is written; None without Redis."""
    redis = site.role("redis")
    if redis is None or app.role not in APPS:
        return None
    secret = f":{password}@" if redis.token else ""
    return f"redis://{secret}{site.address(redis, app)}/0"


def variables(site: Site, app: Service, config: str, data: str) -> dict[str, str]:
    """Variables of one of our processes that are no secret."""
    places = {"RAGDECK_CONFIG": config, "RAGDECK_DATA": data} if app.role in APPS else {}
    return {**places, **site.environment(app)}
