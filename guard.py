"""One ASGI middleware in front of every route, Streamlit's and ours: host, origin, content type, size, token, headers.

Why each: a page of another site can send a `text/plain` POST to 127.0.0.1 (origin, content type), can rebind its own name to
127.0.0.1 (host), and a WebSocket carries no same-origin rule at all (origin).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import ipaddress
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

COOKIE = "ragdeck_session"
SIGN_IN = "/signin"
OPEN_PATHS = frozenset({"/api/health", "/_stcore/health", SIGN_IN})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_API_BYTES = 1 << 20
MAX_SIGN_IN_BYTES = 4096
SESSION_SECONDS = 30 * 24 * 3600
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, FORGET_SECONDS = 0.1, 2.0, 60.0
CLIENTS_REMEMBERED = 1024
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Streamlit's own page has inline scripts and evaluates Vega expressions; nothing may come from another host
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
}


NOT_KEPT = {"cache-control": "no-store"}
CORS_HEADERS = {
    "access-control-allow-methods": "GET, POST",
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
    token: str | None = None
    local_clients_only: bool = False

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

    def session(self) -> str:
        """The cookie's value: proves knowledge of the token without holding it."""
        return hmac.new((self.token or "").encode(), b"ragdeck session", hashlib.sha256).hexdigest()

    def knows(self, headers: Headers) -> bool:
        """Whether the request carries the token, as a bearer or by cookie."""
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self.token.encode()):
            return True
        cookie = _session_cookie(headers)
        return cookie is not None and hmac.compare_digest(cookie.encode(), self.session().encode())


class Guard:
    """The middleware. Refusals are JSON errors that say what to change; a browser without the token is sent to sign in.

    `policy` may be a function, asked at each request. `pause` is how a wrong token waits.
    """

    def __init__(
        self, app: ASGIApp, policy: Policy | Callable[[], Policy], pause: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self._app = app
        self._policy = policy
        self._pause = pause
        self._wrong = WrongTokens()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        policy = self._policy if isinstance(self._policy, Policy) else self._policy()
        headers = Headers(scope=scope)
        guarded = _with_headers(send, _shared_with(policy, headers))
        answer = _refusal(policy, scope, headers) or await self._token_needed(policy, scope, headers)
        if answer is None and scope["type"] == "http" and scope["path"] == SIGN_IN:
            answer = await self._sign_in(policy, scope, headers, receive)
        if answer is None:
            await self._pass_on(scope, receive, guarded)
        elif scope["type"] == "http":
            await answer(scope, receive, guarded)
        else:
            await _deny(answer, scope, receive, guarded)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """To the app. What it raises is answered here: outside, the answer would go without our headers."""
        started = scope["type"] != "http"

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, _limited(receive) if _is_api(scope) else receive, noting)
        except Exception as problem:
            if started:
                raise
            if isinstance(problem, BodyTooLarge):
                answer = _too_large("more")
            else:
                log.exception("%s %s failed", scope["method"], scope["path"])
                answer = _error(500, "internal", "the server failed at this request", "The server's log says why.")
            await answer(scope, receive, send)

    async def _token_needed(self, policy: Policy, scope: Scope, headers: Headers) -> Response | None:
        if scope["path"] in OPEN_PATHS or policy.knows(headers):
            return None
        if "authorization" in headers or _session_cookie(headers) is not None:
            await self._pause(self._wrong.seconds(scope))
        if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            target = quote(scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""))
            return RedirectResponse(f"{SIGN_IN}?next={target}", status_code=303, headers=NOT_KEPT)
        return _error(
            401, "authentication", "a token is needed", "Send it as `Authorization: Bearer …`.", {"www-authenticate": "Bearer"}
        )

    async def _sign_in(self, policy: Policy, scope: Scope, headers: Headers, receive: Receive) -> Response:
        following = _local(parse_qs(scope["query_string"].decode("latin-1")).get("next", ["/"])[0])
        if policy.token is None:
            return RedirectResponse(following, status_code=303)
        if scope["method"] != "POST":
            return HTMLResponse(_sign_in_page(following, None), headers=NOT_KEPT)
        given = parse_qs((await _body(receive, MAX_SIGN_IN_BYTES)).decode("utf-8", "replace")).get("token", [""])[0]
        if not hmac.compare_digest(given.strip().encode(), policy.token.encode()):
            await self._pause(self._wrong.seconds(scope))
            problem = "That is not the token of this server (RAGDECK_TOKEN)."
            return HTMLResponse(_sign_in_page(following, problem), status_code=401, headers=NOT_KEPT)
        response = RedirectResponse(following, status_code=303, headers=NOT_KEPT)
        secure = scope.get("scheme") == "https" or headers.get("x-forwarded-proto") == "https"
        response.set_cookie(COOKIE, policy.session(), SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)
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
    return _body_refusal(headers) if method not in SAFE_METHODS and _is_api(scope) else None


async def _deny(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket: with the answer, where the server can send one instead of the handshake's."""
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        await answer(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 4403, "reason": "refused"})


def _is_api(scope: Scope) -> bool:
    return str(scope["path"]).startswith("/api/")


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


def _session_cookie(headers: Headers) -> str | None:
    """Read leniently: cookies of other servers on this host come too, and one that is odd must not hide ours."""
    return cookie_parser("; ".join(headers.getlist("cookie"))).get(COOKIE)


def _local(target: str) -> str:
    """A path on this server, never another site."""
    return target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"


def _body_refusal(headers: Headers) -> Response | None:
    length = headers.get("content-length")
    if length is not None and length.isdigit() and int(length) > MAX_API_BYTES:
        return _too_large(f"{int(length):,}")
    has_body = length not in (None, "0") or "transfer-encoding" in headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if has_body and kind != "application/json":
        return _error(415, "bad_input", f"content type {kind or 'none'!r} is not taken", "Send `Content-Type: application/json`.")
    return None


def _too_large(size: str) -> Response:
    return _error(413, "bad_input", f"the body has {size} bytes; at most {MAX_API_BYTES:,} are taken", "Send less text.")


class BodyTooLarge(Exception):
    """A body without a length grew past the limit."""


def _limited(receive: Receive) -> Receive:
    """Counts a chunked body, which states no length."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_API_BYTES:
            raise BodyTooLarge
        return message

    return counted


async def _body(receive: Receive, limit: int) -> bytes:
    body = b""
    while len(body) <= limit:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    return body[:limit]


def _with_headers(send: Send, shared_with: str | None) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if shared_with:
                headers["access-control-allow-origin"] = shared_with
                headers.add_vary_header("Origin")
        await send(message)

    return sender


def _error(status: int, kind: str, message: str, next_step: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"kind": kind, "message": message, "next_step": next_step}}, status, headers)


def _sign_in_page(following: str, problem: str | None) -> str:
    said = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    action = html.escape(f"{SIGN_IN}?next={quote(following)}", quote=True)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>RAG Deck · Sign in</title><link rel="icon" href="data:,"><style>
:root{{color-scheme:light dark}}body{{font:16px system-ui,sans-serif;max-width:22rem;margin:18vh auto;padding:0 1rem}}
input,button{{font:inherit;width:100%;padding:.6rem;margin:.3rem 0;box-sizing:border-box}}[role=alert]{{color:#c2410c}}
</style><h1>RAG Deck</h1><form method="post" action="{action}"><label>Token of this server
<input name="token" type="password" autocomplete="current-password" autofocus required></label>{said}
<button>Sign in</button></form></html>"""
