"""One ASGI middleware in front of every route, Streamlit's and ours: host, origin, content type, size, who, scope, rate, headers.

Why each: a page of another site can send a `text/plain` POST to 127.0.0.1 (origin, content type), can rebind its own name to
127.0.0.1 (host), and a WebSocket carries no same-origin rule at all (origin). Who somebody is and what a route needs are in
`access`; here they meet.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from access.authenticator import COOKIE, Authenticator, has_credentials
from access.headers import SECURITY_HEADERS as SECURITY_HEADERS
from access.headers import with_headers
from access.limits import (
    API_BYTES,
    AtOnce,
    BodyTooLarge,
    BodyTooSlow,
    Buckets,
    Limits,
    address_key,
    limited,
    retry_after,
)
from access.scopes import KEY, Identity, needed
from access.scopes import Scope as Needed
from access.signin import OIDC_SIGN_OUT, SIGN_IN, SIGN_IN_OIDC, SIGN_OUT, local, page
from access.tokens import SESSION_SECONDS as TOKEN_SESSION_SECONDS
from access.watch import PageSocket, Stream, Watch, Words
from rag.errors import RagError

log = logging.getLogger(__name__)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_API_BYTES = API_BYTES
MAX_SIGN_IN_BYTES = 4096
SESSION_SECONDS = 30 * 24 * 3600
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, FORGET_SECONDS = 0.1, 2.0, 60.0
CLIENTS_REMEMBERED = 1024
NOT_KEPT = {"cache-control": "no-store"}
CORS_HEADERS = {
    "access-control-allow-methods": "GET, POST, DELETE",
    "access-control-allow-headers": "authorization, content-type, traceparent",
    "access-control-max-age": "600",
}


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
        return _is_loopback(self.host)

    def host_allowed(self, host: str) -> bool:
        """Loopback names, the bound and the configured ones. No name can be
        rebound to a plain address: beyond loopback any of those.
        """
        if _is_loopback(host) or host in self.allowed_hosts or host == self.host:
            return True
        return not self.loopback_only and _is_address(host)

    def client_allowed(self, client: tuple[str, int] | None) -> bool:
        return not self.local_clients_only or (client is not None and _is_loopback(client[0]))

    def origin_allowed(self, origin: str, host_header: str) -> bool:
        """The page's own origin (whatever scheme a proxy speaks) or one from the settings."""
        return origin.lower() in self.allowed_origins or _own_origin(origin, host_header)

    @property
    def authenticator(self) -> Authenticator:
        return self.access or Authenticator(required=self.token is not None, server_token=self.token)


class Guard:
    """The middleware. Refusals are JSON errors that say what to change; a browser without the token is sent to sign in.

    `policy` may be a function, asked at each request. `pause` is how a wrong token waits.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: Policy | Callable[[], Policy],
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._policy = policy
        self._pause = pause
        self._clock = clock
        self._wrong = WrongTokens()
        self._counters: tuple[Limits, Buckets, AtOnce] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        policy = self._policy if isinstance(self._policy, Policy) else self._policy()
        headers = Headers(scope=scope)
        guarded = with_headers(send, _shared_with(policy, headers), _is_https(scope, headers))
        with ExitStack() as counted:
            answer = _refusal(policy, scope, headers) or self._too_many(policy, scope, counted)
            answer = answer or await self._not_allowed(policy, scope, headers)
            if answer is None and scope["type"] == "http" and scope["path"] in (SIGN_IN, SIGN_IN_OIDC):
                answer = await self._sign_in(policy, scope, headers, receive)
            if answer is None and scope["type"] == "http" and scope["path"] == SIGN_OUT:
                answer = _signed_out(policy, headers)
            if answer is None and scope["type"] == "http" and scope["path"] == OIDC_SIGN_OUT:
                answer = _ended(policy, headers)
            if answer is None:
                await self._let_in(policy, scope, receive, guarded)
            elif scope["type"] == "http":
                await answer(scope, receive, guarded)
            else:
                await _deny(answer, scope, receive, guarded)

    def _too_many(self, policy: Policy, scope: Scope, counted: ExitStack) -> Response | None:
        """Of one address: requests a minute and at once. Not on a machine's own loopback while it asks nobody who they are."""
        key = address_key((scope.get("client") or ("",))[0])
        open_here = not policy.authenticator.required and _is_loopback(key)
        if not _is_counted(scope) or open_here:
            return None
        buckets, at_once = self._counted(policy.limits)
        if wait := buckets.take(f"address {key}"):
            return _busy(f"more than {policy.limits.requests_per_minute} requests a minute from one address", wait)
        if not counted.enter_context(at_once.running(key)):
            return _busy(f"{policy.limits.requests_at_once} requests of one address are under way", 1.0)
        return None

    def _counted(self, limits: Limits) -> tuple[Buckets, AtOnce]:
        if self._counters is None or self._counters[0] != limits:
            self._counters = (limits, Buckets(limits.requests_per_minute, self._clock), AtOnce(limits.requests_at_once))
        return self._counters[1:]

    async def _let_in(self, policy: Policy, scope: Scope, receive: Receive, send: Send) -> None:
        """To the app, and look again at who it is for as long as it lasts."""
        who, headers = scope.get(KEY), Headers(scope=scope)
        if not isinstance(who, Identity) or who.how == "open":
            await self._pass_on(policy.limits, scope, receive, send)
            return
        watch = Watch(who, _needed(scope) or "read", lambda: policy.authenticator.again(headers), self._clock)
        if scope["type"] == "http":
            stream = Stream(receive, send, watch)
            await self._pass_on(policy.limits, scope, stream.receive, stream.send)
        elif policy.words is None:
            await self._pass_on(policy.limits, scope, receive, send)
        else:
            socket = PageSocket(receive, watch, policy.words)
            try:
                await self._pass_on(policy.limits, scope, socket.receive, send)
            finally:
                socket.done()

    async def _pass_on(self, limits: Limits, scope: Scope, receive: Receive, send: Send) -> None:
        """To the app. What it raises is answered here: outside, the answer would go without our headers."""
        started = scope["type"] != "http"

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        if not started:
            receive = limited(receive, limits.body_bytes(scope["path"]), limits.seconds(scope["path"]))
        try:
            await self._app(scope, receive, noting)
        except Exception as problem:
            if started:
                raise
            if isinstance(problem, BodyTooLarge):
                answer = _too_large("more", limits.body_bytes(scope["path"]))
            elif isinstance(problem, BodyTooSlow):
                answer = _too_slow(limits.seconds(scope["path"]))
            else:
                log.exception("%s %s failed", scope["method"], scope["path"])
                answer = _error(500, "internal", "the server failed at this request", "The server's log says why.")
            await answer(scope, receive, send)

    async def _not_allowed(self, policy: Policy, scope: Scope, headers: Headers) -> Response | None:
        wanted = _needed(scope)
        if wanted is None:
            return None
        who = policy.authenticator.arrived(headers)
        if who is None:
            return await self._unknown(policy, scope, headers)
        if wait := self._too_often(policy.limits, scope, who):
            return _busy(f"more than {policy.limits.requests_per_minute} requests a minute with one token", wait)
        if not who.may(wanted):
            step = f"Ask with a token, or as somebody, that has the scope {wanted!r} ([access] in the settings)."
            return _error(403, "authentication", f"{who.name} may not do this: it needs the scope {wanted!r}", step)
        scope[KEY] = who
        return None

    def _too_often(self, limits: Limits, scope: Scope, who: Identity) -> float:
        """Seconds until this token may ask again; 0 where it may now."""
        counts = who.token_id is not None and _is_counted(scope)
        return self._counted(limits)[0].take(f"token {who.token_id}") if counts else 0.0

    async def _unknown(self, policy: Policy, scope: Scope, headers: Headers) -> Response:
        if has_credentials(headers):
            await self._pause(self._wrong.seconds(scope))
        if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            target = quote(scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""))
            return RedirectResponse(f"{SIGN_IN}?next={target}", status_code=303, headers=NOT_KEPT)
        return _error(
            401, "authentication", "a token is needed", "Send it as `Authorization: Bearer …`.", {"www-authenticate": "Bearer"}
        )

    async def _sign_in(self, policy: Policy, scope: Scope, headers: Headers, receive: Receive) -> Response:
        ways = policy.authenticator
        following = local(parse_qs(scope["query_string"].decode("latin-1")).get("next", ["/"])[0])
        if not ways.required:
            return RedirectResponse(following, status_code=303)
        if scope["path"] == SIGN_IN_OIDC and policy.oidc_url is not None:
            return RedirectResponse(policy.oidc_url(), status_code=303, headers=NOT_KEPT)
        has_oidc = policy.oidc_url is not None
        if scope["method"] != "POST" or scope["path"] != SIGN_IN:
            return HTMLResponse(page(following, None, token=ways.takes_tokens, oidc=has_oidc), headers=NOT_KEPT)
        who = await self._shown(policy, receive)
        if isinstance(who, Response):
            return who
        if who is None or not who.may("read"):
            await self._pause(self._wrong.seconds(scope))
            problem = WRONG if who is None else "This token may not read, and pages are for reading."
            body = page(following, problem, token=ways.takes_tokens, oidc=has_oidc)
            return HTMLResponse(body, status_code=401, headers=NOT_KEPT)
        return _signed_in(ways, who, following, _is_https(scope, headers))

    async def _shown(self, policy: Policy, receive: Receive) -> Identity | Response | None:
        try:
            body = await _body(limited(receive, MAX_SIGN_IN_BYTES, policy.limits.body_seconds), MAX_SIGN_IN_BYTES)
        except BodyTooLarge:
            return _too_large("more", MAX_SIGN_IN_BYTES)
        except BodyTooSlow:
            return _too_slow(policy.limits.body_seconds)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        return policy.authenticator.by_token(given) if given else None


WRONG = "That is not the token of this server (RAGDECK_TOKEN), nor an API token that is in force."


def _signed_in(ways: Authenticator, who: Identity, following: str, secure: bool) -> Response:
    try:
        value = ways.session(who)
    except RagError as problem:
        return _error(503, "internal", problem.message, problem.next_step)
    response = RedirectResponse(following, status_code=303, headers=NOT_KEPT)
    seconds = SESSION_SECONDS if who.token_id is None else int(TOKEN_SESSION_SECONDS)
    response.set_cookie(COOKIE, value, seconds, httponly=True, samesite="strict", secure=secure)
    return response


def _ended(policy: Policy, headers: Headers) -> Response | None:
    """None: what the browser shows counts no more."""
    try:
        policy.authenticator.end_session(headers)
    except RagError as problem:
        return _error(503, "internal", problem.message, problem.next_step)
    return None


def _signed_out(policy: Policy, headers: Headers) -> Response:
    problem = _ended(policy, headers)
    if problem is not None:
        return problem
    response = RedirectResponse(OIDC_SIGN_OUT if policy.oidc_url else SIGN_IN, status_code=303, headers=NOT_KEPT)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


class WrongTokens:
    """Slows down guessing: each wrong token of one client waits longer for its answer, up to 2 s. Nobody else waits.

    The right token never waits. This stops a simple loop; what makes guessing hopeless is a long token.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def seconds(self, scope: Scope) -> float:
        """Count a wrong token; returns how long its answer waits."""
        address, now = str((scope.get("client") or ("",))[0]), self._clock()
        count, last = self._counts.pop(address, (0, now))
        count = count + 1 if now - last < FORGET_SECONDS else 1
        self._counts[address] = (count, now)
        if len(self._counts) > CLIENTS_REMEMBERED:
            self._counts.popitem(last=False)
        return min(LAST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(count - 1, 10))


def _refusal(policy: Policy, scope: Scope, headers: Headers) -> Response | None:
    """What is wrong with the request whoever sends it; for another site's preflight the answer to it."""
    if _CONTROL.search(scope["path"]):  # a route's pattern takes a line end at its end for nothing; the table of scopes does not
        return _error(400, "bad_input", "the path has a control character", "Leave it out.")
    host = headers.get("host", "")
    name = _host_name(host)
    if len(headers.getlist("host")) > 1:  # one of them would be checked and the other believed
        return _error(400, "bad_input", "the request names two hosts", "Send one Host header.")
    if not policy.host_allowed(name):
        return _error(421, "authentication", f"this server is not {name!r}", "Add the name to server.allowed_hosts.")
    if not policy.client_allowed(scope.get("client")):
        return _error(
            403, "authentication", "the settings are wrong; until then only this machine gets in", "See the server's log."
        )
    method = scope.get("method", "GET")
    if method == "OPTIONS" and "access-control-request-method" in headers and _shared_with(policy, headers):
        return Response(status_code=204, headers=CORS_HEADERS)
    origins = headers.getlist("origin")
    foreign = [origin for origin in origins if not policy.origin_allowed(origin, host)]
    if not origins and headers.get("sec-fetch-site") == "cross-site":
        foreign = ["another site"]
    if foreign and (scope["type"] == "websocket" or method not in SAFE_METHODS):
        return _error(403, "authentication", f"refused: the request comes from {foreign[0]}", "Add it to server.allowed_origins.")
    return _body_refusal(policy.limits, scope, headers) if scope["type"] == "http" else None


async def _deny(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket: with the answer, where the server can send one instead of the handshake's."""
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        await answer(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 4403, "reason": "refused"})


def _needed(scope: Scope) -> Needed | None:
    return needed("WEBSOCKET" if scope["type"] == "websocket" else scope["method"], scope["path"])


def _is_api(scope: Scope) -> bool:
    return str(scope["path"]).startswith("/api/")


def _is_counted(scope: Scope) -> bool:
    """Our own routes, where a request is work, and the door. A page is a hundred small files that are served from memory."""
    return str(scope["path"]).startswith(("/api/v1/", "/v1/", "/metrics", SIGN_IN, "/auth/login", "/oauth2callback"))


def _is_https(scope: Scope, headers: Headers) -> bool:
    return scope.get("scheme") in ("https", "wss") or headers.get("x-forwarded-proto") == "https"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, lower case; nothing for what is no host."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s\[\]:/@?#\\]+))(?::[0-9]*)?", host)
    return (found[1] or found[2]).lower() if found else ""


def _own_origin(origin: str, host_header: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host_header.lower()


def _shared_with(policy: Policy, headers: Headers) -> str | None:
    """The other origin whose pages may read the answer (it is in the settings), or None."""
    origin = headers.get("origin")
    return origin if origin is not None and origin.lower() in policy.allowed_origins else None


def _body_refusal(limits: Limits, scope: Scope, headers: Headers) -> Response | None:
    length, most = headers.get("content-length"), limits.body_bytes(scope["path"])
    if length is not None and length.isdecimal() and int(length) > most:
        return _too_large(f"{int(length):,}", most)
    has_body = length not in (None, "0") or "transfer-encoding" in headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if has_body and kind != "application/json" and scope["method"] not in SAFE_METHODS and _is_api(scope):
        return _error(415, "bad_input", f"content type {kind or 'none'!r} is not taken", "Send `Content-Type: application/json`.")
    return None


# Closed after the answer: otherwise the server would read the rest of the body, to find the next request behind it
CLOSING = {"connection": "close"}


def _too_large(size: str, most: int) -> Response:
    return _error(413, "bad_input", f"the body has {size} bytes; at most {most:,} are taken", "Send less.", CLOSING)


def _too_slow(seconds: float) -> Response:
    return _error(408, "timeout", f"the body did not come within {seconds:g} s", "Send it faster, or less.", CLOSING)


def _busy(message: str, wait_seconds: float) -> Response:
    return _error(429, "overloaded", message, "Wait as long as Retry-After says.", {"retry-after": retry_after(wait_seconds)})


async def _body(receive: Receive, limit: int) -> bytes:
    body = b""
    while len(body) <= limit:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    return body[:limit]


def _error(status: int, kind: str, message: str, next_step: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"kind": kind, "message": message, "next_step": next_step}}, status, headers)
