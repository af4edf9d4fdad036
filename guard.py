"""One ASGI middleware in front of every route, Streamlit's and ours: host, origin, content type, size, token, headers.

Why each: a page of another site can send a `text/plain` POST to 127.0.0.1 (origin, content type), can rebind its own name to
127.0.0.1 (host), and a WebSocket carries no same-origin rule at all (origin).
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "ragdeck_session"
SIGN_IN = "/signin"
OPEN_PATHS = frozenset({"/api/health", "/_stcore/health", SIGN_IN})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_API_BYTES = 1 << 20
MAX_SIGN_IN_BYTES = 4096
SESSION_SECONDS = 30 * 24 * 3600
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
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss:; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may come in. `host` is what the server binds; `token` None means that no sign-in is asked for."""

    host: str
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    token: str | None = None

    @property
    def loopback_only(self) -> bool:
        return self.host in LOOPBACK

    def host_allowed(self, host: str) -> bool:
        """Loopback names, the bound and the configured ones. A plain address cannot be rebound: any, when bound beyond loopback."""
        if host in LOOPBACK or host in self.allowed_hosts or host == self.host:
            return True
        return not self.loopback_only and _is_address(host)

    def origin_allowed(self, origin: str, host_header: str) -> bool:
        """The page's own origin (whatever scheme a proxy speaks) or one from the settings."""
        return urlsplit(origin).netloc.lower() == host_header.lower() or origin in self.allowed_origins

    def session(self) -> str:
        """The cookie's value: proves knowledge of the token without holding it."""
        return hmac.new((self.token or "").encode(), b"ragdeck session", hashlib.sha256).hexdigest()

    def knows(self, headers: Headers) -> bool:
        """Whether the request carries the token, as a bearer or by cookie."""
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.session().encode())


class Guard:
    """The middleware. Refusals are JSON errors that say what to change; a browser without the token is sent to sign in."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        guarded = _with_headers(send) if scope["type"] == "http" else send
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None and scope["type"] == "http" and scope["path"] == SIGN_IN:
            refusal = await self._sign_in(scope, headers, receive)
        if refusal is None:
            await self._app(scope, _limited(receive) if _is_api(scope) else receive, guarded)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4403, "reason": "refused"})
        else:
            await refusal(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        policy, host = self._policy, headers.get("host", "")
        name = _host_name(host)
        if not policy.host_allowed(name):
            return _error(421, "authentication", f"this server is not {name!r}", "Add the name to server.allowed_hosts.")
        method = scope.get("method", "GET")
        changes = scope["type"] == "websocket" or method not in SAFE_METHODS
        origin = headers.get("origin")
        foreign = origin is not None and not policy.origin_allowed(origin, host)
        if changes and (foreign or (origin is None and headers.get("sec-fetch-site") == "cross-site")):
            return _error(403, "authentication", f"refused: the request comes from {origin}", "Add it to server.allowed_origins.")
        if method not in SAFE_METHODS and _is_api(scope):
            refusal = _body_refusal(headers)
            if refusal is not None:
                return refusal
        if scope["path"] in OPEN_PATHS or policy.knows(headers):
            return None
        if scope["type"] == "http" and method == "GET" and "text/html" in headers.get("accept", ""):
            target = quote(scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""))
            return RedirectResponse(f"{SIGN_IN}?next={target}", status_code=303)
        return _error(
            401, "authentication", "a token is needed", "Send it as `Authorization: Bearer …`.", {"www-authenticate": "Bearer"}
        )

    async def _sign_in(self, scope: Scope, headers: Headers, receive: Receive) -> Response:
        following = _local(parse_qs(scope["query_string"].decode("latin-1")).get("next", ["/"])[0])
        if self._policy.token is None:
            return RedirectResponse(following, status_code=303)
        if scope["method"] != "POST":
            return HTMLResponse(_sign_in_page(following, None))
        given = parse_qs((await _body(receive, MAX_SIGN_IN_BYTES)).decode("utf-8", "replace")).get("token", [""])[0]
        if not hmac.compare_digest(given.strip().encode(), self._policy.token.encode()):
            return HTMLResponse(_sign_in_page(following, "That is not the token of this server (RAGDECK_TOKEN)."), status_code=401)
        response = RedirectResponse(following, status_code=303)
        secure = scope.get("scheme") == "https" or headers.get("x-forwarded-proto") == "https"
        response.set_cookie(COOKIE, self._policy.session(), SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)
        return response


def _is_api(scope: Scope) -> bool:
    return str(scope["path"]).startswith("/api/")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _local(target: str) -> str:
    """A path on this server, never another site."""
    return target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"


def _body_refusal(headers: Headers) -> Response | None:
    length = headers.get("content-length")
    if length is not None and length.isdigit() and int(length) > MAX_API_BYTES:
        return _error(413, "bad_input", f"the body has {int(length):,} bytes; at most {MAX_API_BYTES:,} are taken", "Send less text.")
    has_body = length not in (None, "0") or "transfer-encoding" in headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if has_body and kind != "application/json":
        return _error(415, "bad_input", f"content type {kind or 'none'!r} is not taken", "Send `Content-Type: application/json`.")
    return None


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


def _with_headers(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sender


def _error(status: int, kind: str, message: str, next_step: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"kind": kind, "message": message, "next_step": next_step}}, status, headers)


def _sign_in_page(following: str, problem: str | None) -> str:
    said = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    action = html.escape(f"{SIGN_IN}?next={quote(following)}", quote=True)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>RAG Deck · Sign in</title><style>
:root{{color-scheme:light dark}}body{{font:16px system-ui,sans-serif;max-width:22rem;margin:18vh auto;padding:0 1rem}}
input,button{{font:inherit;width:100%;padding:.6rem;margin:.3rem 0;box-sizing:border-box}}[role=alert]{{color:#c2410c}}
</style><h1>RAG Deck</h1><form method="post" action="{action}"><label>Token of this server
<input name="token" type="password" autocomplete="current-password" autofocus required></label>{said}
<button>Sign in</button></form></html>"""


