"""Secrets kept out of texts: addresses without their user and password, messages without keys that a server repeats.

A server that refuses a key quotes it, whole or in part, as it came over the wire; and what quotes it may be cut in its middle.
Knows no connection and no setting.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

HIDDEN = "***"
SHORTEST_CHARS = 4  # a shorter secret hides nothing, and masking every "1" would make messages unreadable
PART_CHARS = 8  # so much of a secret in a row is masked too


class Login(NamedTuple):
    """User and password of an address, for HTTP's Basic authentication."""

    user: str
    password: str


def login(url: str) -> Login | None:
    """Who the address logs in as; None where it names nobody."""
    parts = urlsplit(url)
    if not parts.username and not parts.password:
        return None
    return Login(unquote(parts.username or ""), unquote(parts.password or ""))


def without_login(url: str) -> str:
    """The address without user and password, to be asked: its query stays."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def shown_address(url: str) -> str:
    """The address to show: without user, password, query and fragment."""
    parts = urlsplit(without_login(url))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def secrets_of(url: str, values: Iterable[str | None] = ()) -> tuple[str, ...]:
    """What must not be shown of an address and `values` (keys, headers), the longest first: as it is, without a scheme such as
    `Bearer`, percent-encoded, and as Basic authentication sends it."""
    found = {value for value in values if value}
    found |= {value.partition(" ")[2] for value in found}
    parts, known = urlsplit(url), login(url)
    if known is not None:
        found |= {known.password, parts.password or "", base64.b64encode(f"{known.user}:{known.password}".encode()).decode()}
    found |= {pair.partition("=")[2] for pair in parts.query.split("&")}
    found |= {form for secret in found for form in (quote(secret, safe=""), unquote(secret))}
    return tuple(sorted((secret for secret in found if len(secret) >= SHORTEST_CHARS), key=lambda item: (-len(item), item)))


def masked(text: str, secrets: Iterable[str]) -> str:
    """`text` with every secret, and every PART_CHARS or more of one in a row, as HIDDEN."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
        at = 0
        while at + PART_CHARS <= len(secret):
            size = PART_CHARS
            if secret[at : at + size] not in text:
                at += 1
                continue
            while at + size < len(secret) and secret[at : at + size + 1] in text:
                size += 1
            text = text.replace(secret[at : at + size], HIDDEN)
    return text
