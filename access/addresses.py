"""Addresses that people give on pages or over the API and that RAG Deck will then call: which are refused.

Private networks are allowed: watching them is what RAG Deck is for. Refused is what only ever serves an attacker: the metadata
services of clouds, which hand credentials to whoever asks from the machine, and other link-local addresses.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from rag.errors import RagError

METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_METADATA = "169.254.169.254 169.254.170.2 169.254.170.23 100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 fd20:ce::254"
METADATA = tuple(ipaddress.ip_address(text) for text in _METADATA.split())
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def resolve(name: str) -> list[str]:
    """The addresses that the name has now; none where it has none."""
    try:
        return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)))
    except (OSError, UnicodeError):
        return []


def check_url(url: str, resolving: Callable[[str], Iterable[str]] = resolve) -> None:
    """Raises RagError bad_input for a URL that must not be called. A name that cannot be resolved passes: it cannot be called."""
    try:
        parts = urlsplit(url.strip())
        host, scheme = parts.hostname, parts.scheme.lower()
        _ = parts.port
    except ValueError:
        host, scheme = None, ""
    if scheme not in ("http", "https") or not host:
        raise RagError("not an address that can be called", kind="bad_input", next_step="Give a URL such as http://host:port.")
    check_host(host, resolving)


def check_host(host: str, resolving: Callable[[str], Iterable[str]] = resolve) -> None:
    """Raises RagError bad_input for a host name or address that must not be called."""
    name = host.strip().strip("[]").rstrip(".").lower()
    if name in METADATA_NAMES:
        raise _refused(host)
    literal = _literal(name)
    found = [literal] if literal is not None else [_literal(text) for text in resolving(name)]
    if any(address is not None and is_forbidden(address) for address in found):
        raise _refused(host)


def is_forbidden(address: Address) -> bool:
    """Whether nothing of ours ever lives there. Looks through the ways to write an IPv4 address as an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_forbidden(inner)
    return address in METADATA or address.is_link_local or address.is_multicast or address.is_unspecified


def _literal(text: str) -> Address | None:
    """An address in any form that the system's resolver takes: 0xa9fea9fe and 2852039166 are 169.254.169.254 too."""
    try:
        return ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        if not re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+)){0,3}", text):
            return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text))
    except (OSError, ValueError):
        return None


def _refused(host: str) -> RagError:
    step = "Metadata services and link-local addresses are never called; give the machine's own address."
    return RagError(f"{host[:100]} is not called from here", kind="bad_input", next_step=step)
