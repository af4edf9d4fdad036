"""Is a host inside an air-gapped network, as far as its address or name tells."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

NETWORKS = tuple(
    map(ipaddress.ip_network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10",
                               "0.0.0.0/32", "::1/128", "::/128", "fc00::/7", "fe80::/10"))
)  # fmt: skip
# Reserved for inner networks (RFC 6762, 8375, ICANN's .internal), and what Kubernetes and companies use inside.
INNER_NAMES = ("localhost", "local", "lan", "internal", "intranet", "home.arpa", "corp", "private", "svc", "svc.cluster.local")


def is_outside(host: str, allowed: frozenset[str] = frozenset()) -> bool:
    """Whether reaching `host` would leave the network. Addresses: all but private, link-local, shared and loopback ranges.

    Names: all with a dot but those of inner networks and of `allowed`, which stand for their subdomains too.
    """
    name = host.strip("[]").split("%")[0].rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        inner = any(name == end or name.endswith(f".{end}") for end in (*INNER_NAMES, *allowed))
        return "." in name and not inner
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return name not in allowed and not any(address in network for network in NETWORKS)


def host_of(url: str) -> str | None:
    """The host of a URL or `host:port`; None where there is none to read."""
    try:
        return urlsplit(url if "://" in url else f"//{url}").hostname
    except ValueError:
        return None
