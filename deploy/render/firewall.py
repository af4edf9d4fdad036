"""Firewall rules of each machine, for named sources only: scripts for ufw (and Docker's ports, unseen by ufw) and gcloud.

Everything else is denied. A second run changes nothing; what the settings no longer name is taken away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from deploy.render.files import File, commented
from deploy.render.schema import Host
from deploy.render.site import Client, Site
from deploy.render.templates import filled


class Opening(NamedTuple):
    """A port that networks may reach. `container` for what Docker publishes."""

    name: str
    port: int
    clients: tuple[Client, ...]
    container: bool


def files(site: Site) -> Iterator[File]:
    """Nothing where the settings have no [firewall]: rules without a way in for SSH would lock everybody out."""
    if site.deployment.firewall is None:
        return
    for host in site.machines:
        folder = f"{host.name}/firewall"
        yield commented(site, f"{folder}/ufw.sh", _ufw(site, host), 0o755)
        unit = filled("firewall.service", config=host.config_dir)
        yield commented(site, f"{folder}/ragdeck-firewall.service", unit)
        if host.cloud == "gcloud":
            yield commented(site, f"{folder}/gcloud.sh", _gcloud(site, host), 0o755)


def openings(site: Site, host: Host) -> list[Opening]:
    """What is open on a machine, SSH first."""
    rules = site.deployment.firewall
    found = [Opening("ssh", rules.ssh_port, tuple(site.named(rules.ssh_from)), False)] if rules else []
    for service in site.on(host.name):
        clients = site.clients(service)
        by = site.run_by(service)
        if clients and by != "external":
            found.append(Opening(service.name, service.listens_on, clients, by == "compose"))
    proxy = site.deployment.tls
    if proxy and proxy.host == host.name and proxy.allow:
        found += [Opening("proxy", port, tuple(site.named(proxy.allow)), False) for port in (80, 443)]
    return found


def _published(site: Site, host: Host) -> list[int]:
    return sorted(each.listens_on for each in site.on(host.name, "compose") if site.published(each))


def _ufw(site: Site, host: Host) -> str:
    plain: list[str] = []
    container: list[str] = []
    for opening in openings(site, host):
        for client in opening.clients:
            network = client.cidr.removesuffix("/32").removesuffix("/128")  # as ufw writes one address
            words = f"{network} {opening.port} {opening.name}:{client.name}"
            (container if opening.container else plain).append(words)
    ports = [str(each) for each in _published(site, host)]
    return filled("ufw.sh", rules=_lines(plain), containers=_lines(container), published=" ".join(ports))


def _lines(words: list[str]) -> str:
    return "\n".join(dict.fromkeys(words)) or "# none"


def _gcloud(site: Site, host: Host) -> str:
    tag = f"{site.deployment.name}-{host.name}"
    lines = []
    for opening in openings(site, host):
        networks = list(dict.fromkeys(each.cidr for each in opening.clients))
        for suffix, some in (
            ("", [each for each in networks if ":" not in each]),
            ("-6", [each for each in networks if ":" in each]),
        ):
            if some:  # a rule of Google Cloud takes addresses of one kind
                lines.append(f"allow {tag}-{opening.name}-{opening.port}{suffix} {opening.port} {','.join(some)}")
    return filled("gcloud.sh", tag=tag, network=host.network, instance=host.name, zone=host.zone, rules="\n".join(lines))
