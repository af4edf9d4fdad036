"""The targets by name, and all files of some of them. Knows no folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from deploy.render import compose, docker, firewall, kubernetes, monitoring, proxy, steps, systemd
from deploy.render.files import File
from deploy.render.site import Site

TARGETS: Mapping[str, Callable[[Site], Iterator[File]]] = {
    "systemd": systemd.files,
    "docker": docker.files,
    "compose": compose.files,
    "kubernetes": kubernetes.files,
    "firewall": firewall.files,
    "monitoring": monitoring.files,
    "proxy": proxy.files,
    "steps": steps.files,
}


def rendered(site: Site, target: str = "all") -> list[File]:
    """The files of a target, or of all; a target that the settings have no use for has none."""
    makers = TARGETS.values() if target == "all" else [TARGETS[target]]
    return [file for make in makers for file in make(site)]
