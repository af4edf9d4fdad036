"""Units for what runs on a machine without containers: hardened, restarted after 10 s, secrets in files of mode 0600; and what
lets the dashboard restart the units beside it."""

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
# CUDA would have its device files made by a program that gains root, which a unit without new privileges cannot start.
MAKE_DEVICES = "\nExecStartPre=-+/usr/bin/nvidia-modprobe -c 0 -u"
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
            yield from _restarting(site, folder, units)
            names = " ".join(apps.unit_name(each) for each in units)
            values = {"units": names, "config": host.config_dir, "data": host.data_dir, "install": host.install_dir}
            yield commented(site, f"{folder}/install.sh", filled("install_units.sh", **values), 0o755)


def _restarting(site: Site, folder: str, units: tuple[Service, ...]) -> Iterator[File]:
    """A rule for polkit where the dashboard runs beside other units: NoNewPrivileges leaves no way by sudo."""
    names = [name for each in units for name in apps.restartable(site, each)]
    if names:
        listed = ", ".join(f'"{name}"' for name in names)
        yield commented(site, f"{folder}/polkit.rules", filled("polkit.rules", units=listed))


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
    yield commented(site, f"{folder}/{apps.unit_name(service)}", _unit(site, host, service))


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
        before=MAKE_DEVICES if site.placed(service) else "",
        hidden=_hidden(service),
    )


def _hidden(service: Service) -> str:
    """What of the machine a unit does not see. NVML and CUDA need /dev/nvidia*, and the dashboard reads this machine's processes
    and speaks to systemd, which has to know its user."""
    lines = {"dashboard": ["PrivateDevices=no"], "gpu-server": ["PrivateDevices=no", "ProtectProc=invisible"]}
    return "\n".join(lines.get(service.role, ["PrivateDevices=yes", "ProtectProc=invisible", "PrivateUsers=yes"]))


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
