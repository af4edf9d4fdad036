"""The order of work on each host, as a text with the commands: what was rendered for it decides. Knows no file's content."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.render.files import File, commented
from deploy.render.schema import Host
from deploy.render.site import Site


def files(site: Site) -> Iterator[File]:
    lines = [f"Steps for {site.deployment.name}. Run them in this order; each may be run again.", ""]
    number = 0
    if any(site.on(each.name, by) for each in site.deployment.hosts for by in ("compose", "kubernetes")):
        number += 1
        lines += [f"{number}. Where Docker is: docker/build.sh REPOSITORY_ROOT, then push the images or carry them over."]
    for host in _servers_first(site):
        for step in _steps(site, host):
            number += 1
            lines.append(f"{number}. {step}")
    lines.append(f"{number + 1}. Check it: python -m deploy validate {site.source}")
    yield commented(site, "STEPS.txt", "\n".join(lines) + "\n")


def _servers_first(site: Site) -> list[Host]:
    """Hosts that only serve come before those whose programs use them."""
    return sorted(site.deployment.hosts, key=lambda host: sum(each.role in ("api", "dashboard") for each in site.on(host.name)))


def _steps(site: Site, host: Host) -> Iterator[str]:
    where = f"On {host.name} ({host.address}), in {host.name}/"
    if host.kind == "kubernetes":
        yield f"With kubectl set to {host.name}, in {host.name}/: copy secrets.env.example to secrets.env, fill it in; ./apply.sh"
        return
    if site.deployment.firewall is not None:
        yield f"{where}firewall as root: ./ufw.sh; where Docker publishes ports also install ragdeck-firewall.service."
        if host.cloud == "gcloud":
            yield f"Where gcloud is set up: {host.name}/firewall/gcloud.sh"
    if site.on(host.name, "compose"):
        yield f"{where}: copy secrets.env.example to secrets.env, fill it in; docker compose --env-file secrets.env up -d --wait"
    if site.on(host.name, "systemd"):
        yield f"{where}systemd, with the program and its .venv in {host.install_dir}, as root: ./install.sh"
    if site.deployment.tls and site.deployment.tls.host == host.name:
        yield f"{where}nginx as root: copy ragdeck.conf to /etc/nginx/conf.d/, then nginx -t && systemctl reload nginx"
