"""Units for what runs on a machine without containers: hardened, restarted after 10 s, secrets in files of mode 0600."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.planner import flags
from deploy.render import apps
from deploy.render.files import File, commented
from deploy.render.schema import APPS, Host, Service
from deploy.render.site import Site
from deploy.render.templates import filled

# How long an end may take: the GPU server finishes what it has accepted (60 s and 5 s), the others drain for 10 s.
STOP_SECONDS = {"gpu-server": 75, "dashboard": 30, "api": 30}
TITLES = {
    "gpu-server": "RAG Deck GPU server: embedder and reranker kept warm",
    "api": "RAG Deck query API",
    "dashboard": "RAG Deck dashboard",
}


def files(site: Site) -> Iterator[File]:
    for host in site.machines:
        units = site.on(host.name, "systemd")
        for service in units:
            yield from _service(site, host, service)
        if units:
            folder = f"{host.name}/systemd"
            yield commented(site, f"{folder}/sysusers.conf", f'u ragdeck - "RAG Deck" {host.data_dir} -\n')
            names = " ".join(unit_name(each) for each in units)
            values = {"units": names, "config": host.config_dir, "data": host.data_dir, "install": host.install_dir}
            yield commented(site, f"{folder}/install.sh", filled("install_units.sh", **values), 0o755)


def unit_name(service: Service) -> str:
    return f"ragdeck-{service.name}.service"


def command(site: Site, host: Host, service: Service) -> list[str]:
    python = f"{host.install_dir}/.venv/bin/python"
    if service.role == "dashboard":
        return [python, f"{host.install_dir}/app.py"]
    if service.role == "api":
        return [python, "-m", "rag", "serve"]
    return [python, "-m", "gpu_server", *site.arguments(service)]


def _service(site: Site, host: Host, service: Service) -> Iterator[File]:
    folder = f"{host.name}/systemd"
    if service.role in APPS:
        yield apps.settings_file(site, service, f"{folder}/{service.name}.toml")
    yield commented(site, f"{folder}/{service.name}.env.example", _secrets(site, service), 0o600)
    yield commented(site, f"{folder}/{unit_name(service)}", _unit(site, host, service))


def _unit(site: Site, host: Host, service: Service) -> str:
    data = f"{host.data_dir}/{service.name}"
    variables = apps.variables(site, service, f"{host.config_dir}/{service.name}.toml", data)
    for placed in site.placed(service):
        variables |= flags.environment(placed)
    variables |= {"HF_HOME": f"{host.data_dir}/models", "HOME": host.data_dir}
    return filled(
        "unit.service",
        title=TITLES[service.role],
        install=host.install_dir,
        data=host.data_dir,
        own_data=data,
        command=" ".join(command(site, host, service)),
        environment="\n".join(f"Environment={_quoted(f'{name}={value}')}" for name, value in variables.items()),
        env_file=f"{host.config_dir}/{service.name}.env",
        stop_seconds=str(STOP_SECONDS[service.role]),
        # NVML and CUDA need /dev/nvidia*, and the dashboard reads this machine's processes: the API alone needs neither.
        private_devices="yes" if service.role == "api" else "no",
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if " " in escaped or '"' in escaped else escaped


def _secrets(site: Site, service: Service) -> str:
    lines = ["# Copy beside the settings without .example, mode 0600, owner root; fill in (openssl rand -hex 32)"]
    for variable, name in apps.secrets(site, service).items():
        lines += [f"# the value that is called {name} elsewhere in this deployment", f"{variable}="]
    url = apps.redis_url(site, service, "PASSWORD")
    lines += ["# PASSWORD is Redis's", f"#REDIS_URL={url}"] if url else []
    return "\n".join(lines) + "\n"
