"""Docker files and the script that builds them. Images run as user 10001 and are healthy when their models have answered."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from deploy.render.files import File, commented
from deploy.render.schema import APPS, DEFAULT_PORTS, STORES, VLLM, Service
from deploy.render.site import Site
from deploy.render.templates import filled, template

USER = 10001
PROBES = {"llm": "completion", "ocr": "completion", "embedding": "embedding", "whisper": "transcription"}
HEALTH_PATHS = {"dashboard": "/api/health", "api": "/api/health", "gpu-server": "/health"}


def files(site: Site) -> Iterator[File]:
    images = site.deployment.images
    python, python3 = _fetch("/venv/bin/python"), _fetch("python3")
    port = str(DEFAULT_PORTS["gpu-server"])
    texts = {
        "Dockerfile.cpu": filled("Dockerfile.cpu", python=images.python, fetch=python),
        "Dockerfile.cuda": filled("Dockerfile.cuda", cuda=images.cuda, fetch=python, port=port),
        "Dockerfile.vllm": filled("Dockerfile.vllm", vllm=images.vllm, fetch=python3),
    }
    for name, text in texts.items():
        yield commented(site, f"docker/{name}", text)
        # BuildKit reads the list beside the Docker file by this name, so that the repository's root stays untouched.
        yield commented(site, f"docker/{name}.dockerignore", template("dockerignore"))
    lines = [_built(site, each) for each in site.deployment.services if _is_built(site, each)]
    if lines:
        yield commented(site, "docker/build.sh", filled("build.sh", images="\n".join(lines)), 0o755)


def _fetch(python: str) -> str:
    return filled("fetch.docker", python=python).rstrip()


def image(site: Site, service: Service) -> str:
    """What a container of the service runs."""
    images = site.deployment.images
    if service.role in STORES:
        return str(getattr(images, service.role))
    return f"{images.repository}/{service.name}:{images.tag}"


def _is_built(site: Site, service: Service) -> bool:
    return site.run_by(service) in ("compose", "kubernetes") and service.role not in STORES


def dockerfile(site: Site, service: Service) -> str:
    if service.role in VLLM:
        return "Dockerfile.vllm"
    return "Dockerfile.cuda" if site.placed(service) else "Dockerfile.cpu"


def _built(site: Site, service: Service) -> str:
    words = ["image", service.name, dockerfile(site, service), image(site, service)]
    models = " ".join(site.hub_models(service)) if site.deployment.offline else ""
    remote = site.role("gpu-server") or site.role("embedding")
    own_models = not remote if service.role in APPS else service.role == "gpu-server" and not site.placed(service)
    if own_models:
        words += ["--build-arg", "REQUIREMENTS=requirements.txt"]
    if models:
        words += ["--build-arg", f"MODELS={models}"]
    return shlex.join(words)


def probe(site: Site, service: Service) -> list[str]:
    """The probe's arguments: a real request where the server can be asked one."""
    port = str(service.listens_on)
    if service.role in VLLM:
        return [PROBES[service.role], port, site.model(service) or ""]
    return [f"health:{HEALTH_PATHS[service.role]}", port]
