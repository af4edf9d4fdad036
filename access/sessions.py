"""The cookie of a browser that showed the server's own token: signed with the token, dated, and told from all others by its mark.

Nothing is kept of it. Another token ends all of them, since it signs otherwise. Knows neither HTTP nor the file of ended ones.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

from itsdangerous import BadData, TimestampSigner

from access.tokens import SESSION_SECONDS

_NONCE_BYTES = 16


class ServerSessions:
    """`clock` gives Unix seconds; a session counts for SESSION_SECONDS."""

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._signer = _Signer(token, clock)

    def open(self) -> str:
        """A cookie's value, another each time. Proves knowledge of the token without holding it."""
        return self._signer.sign(secrets.token_hex(_NONCE_BYTES)).decode()

    def mark(self, cookie: str) -> bytes | None:
        """Which session it is, however the cookie is written; None for one that is forged, too old, or from the future."""
        try:
            signed = self._signer.unsign(cookie.encode("utf-8", "replace"), max_age=int(SESSION_SECONDS) - 1)
        except (BadData, ValueError):
            return None
        return hashlib.sha256(b"server session\n" + signed).digest()


class _Signer(TimestampSigner):
    def __init__(self, token: str, clock: Callable[[], float]) -> None:
        super().__init__(token, salt="ragdeck session", key_derivation="hmac", digest_method=hashlib.sha256)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock())
