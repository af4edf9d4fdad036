"""Who sent a request: the server's token, an API token, a session, a trusted proxy, or a sign-in. Knows no routes."""

from __future__ import annotations

import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from access.oidc import OidcSessions
from access.proxy import TrustedProxy
from access.scopes import ALL, OPEN, Identity
from access.sessions import ServerSessions
from access.tokens import SESSION_SECONDS, TokenStore, looks_like_one
from rag.errors import RagError

log = logging.getLogger(__name__)

COOKIE = "ragdeck_session"
USERS_REMEMBERED = 1024
VOUCHED_SECONDS = SESSION_SECONDS
Vouched = OrderedDict[str, tuple[Identity, float]]
"""The proxy's newest word on each user, and when it said so (by the clock)."""
SERVER = Identity("server token", "server token", ALL)


@dataclass(frozen=True)
class Authenticator:
    """The ways in. `required` False: whoever shows nothing may do everything (only ever on loopback)."""

    required: bool = False
    server_token: str | None = field(default=None, repr=False)
    tokens: TokenStore | None = None
    proxy: TrustedProxy | None = None
    oidc: OidcSessions | None = None
    vouched: Vouched = field(default_factory=OrderedDict, repr=False, compare=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)
    unix_clock: Callable[[], float] = field(default=time.time, repr=False, compare=False)

    def arrived(self, headers: Headers) -> Identity | None:
        """Who sends a request now. See `identify`."""
        who = self.identify(headers)
        if who is not None and who.how == "proxy":
            self.vouched[who.name] = who, self.clock()
            self.vouched.move_to_end(who.name)
            if len(self.vouched) > USERS_REMEMBERED:
                self.vouched.popitem(last=False)
        return who

    def again(self, headers: Headers) -> Identity | None:
        """Who sent a request some time ago, with what they may do now. A proxy is not asked again: its newest word on them
        counts, and that for VOUCHED_SECONDS."""
        who = self.identify(headers)
        if who is None or who.how != "proxy":
            return who
        newest, at = self.vouched.get(who.name, (who, self.clock()))
        return newest if self.clock() - at < VOUCHED_SECONDS else None

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
            found = self._by_sign_in(headers, self.oidc)
        return found or (None if self.required else OPEN)

    def by_token(self, text: str) -> Identity | None:
        """Of the server's own token or an API token."""
        if self.server_token is not None and hmac.compare_digest(text.encode("utf-8", "replace"), self.server_token.encode()):
            return SERVER
        return self._stored(text)

    def session(self, who: Identity) -> str:
        """A cookie's value for somebody who showed a token. Raises RagError internal."""
        if who.token_id is not None and self.tokens is not None:
            return self.tokens.open_session(who.token_id)
        sessions = self._server_sessions
        if sessions is None:
            raise RagError("there is no token to sign in with", next_step="Sign in another way.")
        return sessions.open()

    def end_session(self, headers: Headers) -> None:
        """What the browser shows counts for nothing any more, also for whoever has a copy of it. Raises RagError internal."""
        if self.tokens is None:
            return
        shown = cookies(headers)
        if COOKIE in shown:
            self.tokens.close_session(shown[COOKIE])
            mark = self._server_sessions.mark(shown[COOKIE]) if self._server_sessions else None
            if mark is not None:
                self.tokens.end_sign_in(mark, SESSION_SECONDS)
        signed_in = self.oidc.read(shown) if self.oidc is not None else None
        if self.oidc is not None and signed_in is not None:
            self.tokens.end_sign_in(signed_in.mark, self.oidc.session_seconds)

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
        mark = self._server_sessions.mark(cookie) if self._server_sessions else None
        if mark is not None:
            return None if self._has_ended(mark) else SERVER
        return self._stored(cookie) if not looks_like_one(cookie) else None

    def _by_sign_in(self, headers: Headers, oidc: OidcSessions) -> Identity | None:
        signed_in = oidc.read(cookies(headers))
        return None if signed_in is None or self._has_ended(signed_in.mark) else signed_in.who

    @property
    def _server_sessions(self) -> ServerSessions | None:
        return ServerSessions(self.server_token, self.unix_clock) if self.server_token is not None else None

    def _has_ended(self, mark: bytes) -> bool:
        try:
            return self.tokens is not None and self.tokens.has_ended(mark)
        except RagError as problem:  # a file that cannot be read lets nobody in
            log.error("%s. %s", problem.message, problem.next_step)
            return True

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
