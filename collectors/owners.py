"""Which container or systemd unit a process belongs to, from the text of /proc/PID/cgroup. Pure."""

from __future__ import annotations

import re

from collectors.texts import cut, lines

_CONTAINER = re.compile(r"(?:^|[/-])(docker|cri-containerd|crio|libpod|lxc)?[-/.:]?([0-9a-f]{64})(?:\.scope)?$")
_LXC = re.compile(r"/lxc(?:\.payload)?[./]([^/]+)")
_UNIT = re.compile(r"/([^/]+\.service)(?:/|$)")
_SCOPE = re.compile(r"/([^/]+\.scope)$")
_RUNTIMES = {"libpod": "podman", "cri-containerd": "pod", "crio": "pod"}


def owner(text: str) -> str | None:
    """`docker 3f2a…` (12 digits of the id), `podman …`, `pod …`, `lxc NAME`, `unit vllm.service`, `unit session-3.scope`, or None
    for a process of none of them. Old hierarchies name the same path several times: the most telling counts."""
    paths = [line.split(":", 2)[2] for line in lines(text) if line.count(":") >= 2]
    for find in (_container, _lxc, _unit):
        for path in paths:
            if found := find(path):
                return cut(found)
    return None


def _container(path: str) -> str | None:
    for part in reversed(path.split("/")):
        match = _CONTAINER.search(part)
        if match:
            runtime = "pod" if "/kubepods" in path else _RUNTIMES.get(match[1] or "docker", match[1] or "docker")
            return f"{runtime} {match[2][:12]}"
    return None


def _lxc(path: str) -> str | None:
    match = _LXC.search(path)
    return f"lxc {match[1]}" if match else None


def _unit(path: str) -> str | None:
    """The innermost service: of a user's own services the user's, not `user@1000.service` around it."""
    services = _UNIT.findall(path.replace("/", "//"))
    if services:
        return f"unit {services[-1]}"
    scope = _SCOPE.search(path)
    return f"unit {scope[1]}" if scope else None
