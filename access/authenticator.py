"""Who sent a request: the server's token, an API token, a session, a trusted proxy, or a sign-in. Knows no routes."""

from __future__ import annotations

import hashlib
import hmac
import logging
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from access.oidc import OidcSessions
from access.proxy import TrustedProxy
from access.scopes import ALL, OPEN, Identity
from access.tokens import TokenStore, looks_like_one
from rag.errors import RagError

log = logging.getLogger(__name__)

COOKIE = "ragdeck_session"
SERVER = Identity("server token", "server token", ALL)


@dataclass(frozen=True)
class Authenticator:
    """The ways in. `required` False: whoever shows nothing may do everything (only ever on loopback)."""

    required: bool = False
    server_token: str | None = field(default=None, repr=False)
    tokens: TokenStore | None = None
    proxy: TrustedProxy | None = None
    oidc: OidcSessions | None = None

    def identify(self, headers: Headers) -> Identity | None:
        """None: nobody we know. A token of ours that is wrong, expired or revoked counts for nothing even where none is needed:
        it was shown to limit what its holder may do."""
        bearer = self._bearer(headers)
        if bearer is not None:
            found = self.by_token(bearer)
            if found is not None or looks_like_one(bearer):
                return found
        found = self._by_session(headers)
        if found is None and self.proxy is not None:
            found = self.proxy.identify(headers)
        if found is None and self.oidc is not None:
            found = self.oidc.identify(cookies(headers))
        return found or (None if self.required else OPEN)

    def by_token(self, text: str) -> Identity | None:
        """Of the server's own token or an API token."""
        if self.server_token is not None and hmac.compare_digest(text.encode("utf-8", "replace"), self.server_token.encode()):
            return SERVER
        return self._stored(text)

    def session(self, who: Identity) -> str:
        """A cookie's value for somebody who showed a token. Raises RagError internal."""
        if who.token_id is None or self.tokens is None:
            return self.server_session()
        return self.tokens.open_session(who.token_id)

    def server_session(self) -> str:
        """Proves knowledge of the server's token without holding it."""
        return hmac.new((self.server_token or "").encode(), b"ragdeck session", hashlib.sha256).hexdigest()

    def end_session(self, headers: Headers) -> None:
        """Raises RagError internal."""
        cookie = cookies(headers).get(COOKIE)
        if cookie is not None and self.tokens is not None:
            self.tokens.close_session(cookie)

    @property
    def takes_tokens(self) -> bool:
        """Whether a form that asks for a token makes sense."""
        return self.server_token is not None or self.tokens is not None

    def _bearer(self, headers: Headers) -> str | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        text = given.strip().encode("latin-1").decode("utf-8", "replace")  # as bytes came: a header has no encoding of its own
        return text if scheme.lower() == "bearer" and text else None

    def _by_session(self, headers: Headers) -> Identity | None:
        cookie = cookies(headers).get(COOKIE)
        if cookie is None:
            return None
        if self.server_token is not None and hmac.compare_digest(
            cookie.encode("utf-8", "replace"), self.server_session().encode()
        ):
            return SERVER
        return self._stored(cookie) if not looks_like_one(cookie) else None

    def _stored(self, text: str) -> Identity | None:
        try:
            return self.tokens.identify(text) if self.tokens is not None else None
        except RagError as problem:  # a file that cannot be read lets nobody in
            log.error("%s. %s", problem.message, problem.next_step)
            return None


def cookies(headers: Headers) -> dict[str, str]:
    """Read leniently: cookies of other servers on this host come too, and one that is odd must not hide ours."""
    return cookie_parser("; ".join(headers.getlist("cookie")))


def has_credentials(headers: Headers) -> bool:
    """Whether something was shown that could be wrong: then the answer waits."""
    return "authorization" in headers or COOKIE in cookies(headers)
