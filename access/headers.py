"""The headers that every answer gets: what a browser may do with our pages, and load into them. Knows no routes."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Scope, Send

# Streamlit's page has one inline script, named here by its hash; its styles are inline everywhere. Nothing may come from another
# host, and nothing may be evaluated: what a document or a model smuggles into a page can neither run nor call home.
INLINE_SCRIPT = "'sha256-THxz9J9+wf7rhwR2YkXJoSZ13UCmYyC+3lNDv2+8ugA='"
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        f"script-src 'self' {INLINE_SCRIPT} 'wasm-unsafe-eval'",  # Streamlit loads a WebAssembly module of its own
        "script-src-attr 'none'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "frame-src 'self'",
        "manifest-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "x-permitted-cross-domain-policies": "none",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "content-security-policy": CONTENT_SECURITY_POLICY,
}


def with_headers(send: Send, shared_with: str | None, https: bool) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if https:
                headers.setdefault("strict-transport-security", "max-age=31536000")
            if shared_with:
                headers["access-control-allow-origin"] = shared_with
                headers.add_vary_header("Origin")
        await send(message)

    return sender


def is_https(scope: Scope, headers: Headers) -> bool:
    """Whether the browser came over TLS, here or at the proxy before us."""
    return scope.get("scheme") in ("https", "wss") or headers.get("x-forwarded-proto") == "https"
