"""nginx in front of dashboard and API: TLS, WebSocket, uploads, no identity header that a client made up."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.render.files import File, commented
from deploy.render.schema import Service
from deploy.render.site import Site
from deploy.render.templates import filled

# Headers by which a proxy tells who somebody is: only a proxy may set them.
IDENTITY_HEADERS = (
    *("Remote-User", "Remote-Groups", "Remote-Email", "Remote-Name", "X-Remote-User", "X-Forwarded-User", "X-Forwarded-Email"),
    *("X-Forwarded-Groups", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token", "X-Auth-Request-User"),
    *("X-Auth-Request-Email", "X-Auth-Request-Groups", "X-Auth-Request-Preferred-Username", "X-Auth-Request-Access-Token"),
    *("X-Webauth-User", "X-User", "X-Ragdeck-User", "X-Ragdeck-Proxy-Secret"),
)
BODY_MB = {"dashboard": 51, "api": 2}


def files(site: Site) -> Iterator[File]:
    tls = site.deployment.tls
    if tls is None or tls.host not in {each.name for each in site.machines}:
        return
    servers = []
    for role, name in (("dashboard", tls.dashboard), ("api", tls.api)):
        service = site.role(role)
        if service is not None and name is not None:
            servers.append(_server(site, service, name))
    names = " ".join(name for name in (tls.dashboard, tls.api) if name)
    text = filled("nginx.conf", names=names, servers="\n".join(servers))
    yield commented(site, f"{tls.host}/nginx/ragdeck.conf", text)


def _server(site: Site, service: Service, name: str) -> str:
    tls = site.deployment.tls
    assert tls is not None
    allowed = "".join(f"    allow {each.cidr};  # {each.name}\n" for each in site.named(tls.allow))
    return filled(
        "nginx_server.conf",
        name=name,
        service=service.name.replace("-", "_"),
        upstream=_upstream(site, service),
        certificate=tls.certificate,
        key=tls.key,
        body_mb=str(BODY_MB[service.role]),
        allowed=(allowed + "    deny all;") if allowed else "",
        cleared="\n".join(f'        proxy_set_header {header} "";' for header in IDENTITY_HEADERS),
    )


def _upstream(site: Site, service: Service) -> str:
    """As the proxy's machine reaches it."""
    return site.address(service)
