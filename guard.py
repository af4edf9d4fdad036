"""One ASGI middleware in front of every route, Streamlit's and ours: host, origin, content type, size, who, scope, rate, headers.

Why each: a page of another site can send a `text/plain` POST to 127.0.0.1 (origin, content type), can rebind its own name to
127.0.0.1 (host), and a WebSocket carries no same-origin rule at all (origin). Who somebody is and what a route needs are in
`access`; here they meet.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from access.answers import NOT_KEPT, busy, error, too_large, too_slow
from access.authenticator import has_credentials
from access.handed import PROTOCOLS, Handed
from access.headers import is_https, with_headers
from access.limits import AtOnce, BodyTooLarge, BodyTooSlow, Buckets, Limits, address_key, limited
from access.login import Login
from access.policy import Policy as Policy
from access.policy import host_name, is_loopback
from access.scopes import KEY, Identity, needed
from access.scopes import Scope as Needed
from access.signin import SIGN_IN, refusal_page
from access.throttle import WrongTokens
from access.watch import PageSocket, Stream, Watch
from rag.api import OWNER

log = logging.getLogger(__name__)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CORS_HEADERS = {
    "access-control-allow-methods": "GET, POST, DELETE",
    "access-control-allow-headers": "authorization, content-type, traceparent",
    "access-control-max-age": "600",
}


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
        self._handed = Handed()
        self._login = Login(self._wrong, pause)
        self._counters: tuple[Limits, Buckets, AtOnce] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        policy = self._policy if isinstance(self._policy, Policy) else self._policy()
        headers = Headers(scope=scope)
        guarded = with_headers(send, _shared_with(policy, headers), is_https(scope, headers))
        with ExitStack() as counted:
            answer = _refusal(policy, scope, headers) or self._too_many(policy, scope, counted)
            answer = answer or await self._not_allowed(policy, scope, headers)
            answer = answer or await self._login.answer(policy, scope, headers, receive)
            if answer is None:
                await self._let_in(policy, scope, receive, guarded)
            elif scope["type"] == "http":
                await answer(scope, receive, guarded)
            else:
                await _deny(answer, scope, receive, guarded)

    def _too_many(self, policy: Policy, scope: Scope, counted: ExitStack) -> Response | None:
        """Of one address: requests a minute and at once. Not on a machine's own loopback while it asks nobody who they are."""
        key = address_key((scope.get("client") or ("",))[0])
        open_here = not policy.authenticator.required and is_loopback(key)
        if not _is_counted(scope) or open_here:
            return None
        buckets, at_once = self._counted(policy.limits)
        if wait := buckets.take(f"address {key}"):
            return busy(f"more than {policy.limits.requests_per_minute} requests a minute from one address", wait)
        if not counted.enter_context(at_once.running(key)):
            return busy(f"{policy.limits.requests_at_once} requests of one address are under way", 1.0)
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
            own = MutableHeaders(scope=scope)
            if PROTOCOLS in own:
                own[PROTOCOLS] = self._handed.resumed(who.key, own[PROTOCOLS])
            socket = PageSocket(receive, watch, policy.words)
            try:
                await self._pass_on(policy.limits, scope, socket.receive, self._handed.sending(who.key, send))
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
                answer = too_large("more", limits.body_bytes(scope["path"]))
            elif isinstance(problem, BodyTooSlow):
                answer = too_slow(limits.seconds(scope["path"]))
            else:
                log.exception("%s %s failed", scope["method"], scope["path"])
                answer = error(500, "internal", "the server failed at this request", "The server's log says why.")
            await answer(scope, receive, send)

    async def _not_allowed(self, policy: Policy, scope: Scope, headers: Headers) -> Response | None:
        wanted = _needed(scope)
        if wanted is None:
            return None
        who = policy.authenticator.arrived(headers)
        if who is None:
            return await self._unknown(policy, scope, headers)
        if wait := self._too_often(policy.limits, scope, who):
            return busy(f"more than {policy.limits.requests_per_minute} requests a minute with one token", wait)
        if not who.may(wanted):
            return _lacking(who, wanted, scope, headers)
        if scope["type"] == "http" and who.how != "open" and not self._handed.is_for(who.key, scope["path"]):
            return error(404, "not_found", "there is no such file for you", "Load the page that shows it.")
        scope[KEY], scope[OWNER] = who, who.key
        return None

    def _too_often(self, limits: Limits, scope: Scope, who: Identity) -> float:
        """Seconds until this token may ask again; 0 where it may now."""
        counts = who.token_id is not None and _is_counted(scope)
        return self._counted(limits)[0].take(f"token {who.token_id}") if counts else 0.0

    async def _unknown(self, policy: Policy, scope: Scope, headers: Headers) -> Response:
        if has_credentials(headers):
            await self._pause(self._wrong.seconds(scope))
        if _shows_pages(scope, headers):
            target = quote(scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""))
            return RedirectResponse(f"{SIGN_IN}?next={target}", status_code=303, headers=NOT_KEPT)
        return error(
            401, "authentication", "a token is needed", "Send it as `Authorization: Bearer …`.", {"www-authenticate": "Bearer"}
        )


def _refusal(policy: Policy, scope: Scope, headers: Headers) -> Response | None:
    """What is wrong with the request whoever sends it; for another site's preflight the answer to it."""
    if _CONTROL.search(scope["path"]):  # a route's pattern takes a line end at its end for nothing; the table of scopes does not
        return error(400, "bad_input", "the path has a control character", "Leave it out.")
    host = headers.get("host", "")
    name = host_name(host)
    if len(headers.getlist("host")) > 1:  # one of them would be checked and the other believed
        return error(400, "bad_input", "the request names two hosts", "Send one Host header.")
    if not policy.host_allowed(name):
        return error(421, "authentication", f"this server is not {name!r}", "Add the name to server.allowed_hosts.")
    if not policy.client_allowed(scope.get("client")):
        return error(
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
        return error(403, "authentication", f"refused: the request comes from {foreign[0]}", "Add it to server.allowed_origins.")
    return _body_refusal(policy.limits, scope, headers) if scope["type"] == "http" else None


def _lacking(who: Identity, wanted: Needed, scope: Scope, headers: Headers) -> Response:
    message = f"{who.name} may not do this: it needs the scope {wanted!r}"
    step = f"Ask with a token, or as somebody, that has the scope {wanted!r} ([access] in the settings). {who.hint}".rstrip()
    if _shows_pages(scope, headers):
        return HTMLResponse(refusal_page(message, step), status_code=403, headers=NOT_KEPT)
    return error(403, "authentication", message, step)


async def _deny(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket: with the answer, where the server can send one instead of the handshake's."""
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        await answer(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 4403, "reason": "refused"})


def _needed(scope: Scope) -> Needed | None:
    return needed("WEBSOCKET" if scope["type"] == "websocket" else scope["method"], scope["path"])


def _shows_pages(scope: Scope, headers: Headers) -> bool:
    """Whether a browser asks for something to look at, and not for a program's answer."""
    return scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", "")


def _is_api(scope: Scope) -> bool:
    return str(scope["path"]).startswith("/api/")


def _is_counted(scope: Scope) -> bool:
    """Our own routes, where a request is work, and the door. A page is a hundred small files that are served from memory."""
    return str(scope["path"]).startswith(("/api/v1/", "/v1/", "/metrics", SIGN_IN, "/auth/login", "/oauth2callback"))


def _shared_with(policy: Policy, headers: Headers) -> str | None:
    """The other origin whose pages may read the answer (it is in the settings), or None."""
    origin = headers.get("origin")
    return origin if origin is not None and origin.lower() in policy.allowed_origins else None


def _body_refusal(limits: Limits, scope: Scope, headers: Headers) -> Response | None:
    length, most = headers.get("content-length"), limits.body_bytes(scope["path"])
    if length is not None and length.isdecimal() and int(length) > most:
        return too_large(f"{int(length):,}", most)
    has_body = length not in (None, "0") or "transfer-encoding" in headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if has_body and kind != "application/json" and scope["method"] not in SAFE_METHODS and _is_api(scope):
        return error(415, "bad_input", f"content type {kind or 'none'!r} is not taken", "Send `Content-Type: application/json`.")
    return None
