"""Who may come in: by which host names, from which origins, by which ways in. Values and pure checks; knows no request."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from access.authenticator import Authenticator
from access.limits import Limits
from access.watch import Words


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may come in. `host` is what the server binds; `token` None means that no sign-in is asked for.

    `local_clients_only` looks at the connection too, not only at the name that it asks for.
    """

    host: str
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    local_clients_only: bool = False
    access: Authenticator | None = None
    limits: Limits = field(default_factory=Limits)
    oidc_url: Callable[[], str] | None = None
    """Where a browser begins to sign in; None without OpenID Connect."""
    words: Words | None = None
    """How to read what pages' browsers say over their WebSocket; None for a server without pages."""

    @property
    def loopback_only(self) -> bool:
        return is_loopback(self.host)

    def host_allowed(self, host: str) -> bool:
        """Loopback names, the bound and the configured ones. No name can be
        rebound to a plain address: beyond loopback any of those.
        """
        if is_loopback(host) or host in self.allowed_hosts or host == self.host:
            return True
        return not self.loopback_only and is_address(host)

    def client_allowed(self, client: tuple[str, int] | None) -> bool:
        return not self.local_clients_only or (client is not None and is_loopback(client[0]))

    def origin_allowed(self, origin: str, host_header: str) -> bool:
        """The page's own origin (whatever scheme a proxy speaks) or one from the settings."""
        return origin.lower() in self.allowed_origins or _own_origin(origin, host_header)

    @property
    def authenticator(self) -> Authenticator:
        return self.access or Authenticator(required=self.token is not None, server_token=self.token)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, lower case; nothing for what is no host."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s\[\]:/@?#\\]+))(?::[0-9]*)?", host)
    return (found[1] or found[2]).lower() if found else ""


def _own_origin(origin: str, host_header: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host_header.lower()
