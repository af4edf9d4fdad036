"""Signing in and out: a token shown in a form becomes a cookie; a sign-out ends it and its copies. Knows only its own routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope

from access.answers import NOT_KEPT, error, too_large, too_slow
from access.authenticator import COOKIE, Authenticator
from access.headers import is_https
from access.limits import BodyTooLarge, BodyTooSlow, limited
from access.policy import Policy
from access.scopes import Identity
from access.signin import OIDC_SIGN_OUT, SIGN_IN, SIGN_IN_OIDC, SIGN_OUT, local, page
from access.throttle import WrongTokens
from access.tokens import SESSION_SECONDS
from rag.errors import RagError

MAX_SIGN_IN_BYTES = 4096
WRONG = "That is not the token of this server (RAGDECK_TOKEN), nor an API token that is in force."


class Login:
    """`pause` is how a wrong token waits, as long as `wrong` says."""

    def __init__(self, wrong: WrongTokens, pause: Callable[[float], Awaitable[object]]) -> None:
        self._wrong, self._pause = wrong, pause

    async def answer(self, policy: Policy, scope: Scope, headers: Headers, receive: Receive) -> Response | None:
        """Of the routes that sign in and out; None for all others, and where the app has its own part to do."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path in (SIGN_IN, SIGN_IN_OIDC):
            return await self._sign_in(policy, scope, headers, receive)
        if path == SIGN_OUT:
            return _signed_out(policy, headers)
        return _ended(policy.authenticator, headers) if path == OIDC_SIGN_OUT else None

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
        who = await _shown(policy, receive)
        if isinstance(who, Response):
            return who
        if who is None or not who.may("read"):
            await self._pause(self._wrong.seconds(scope))
            problem = WRONG if who is None else "This token may not read, and pages are for reading."
            body = page(following, problem, token=ways.takes_tokens, oidc=has_oidc)
            return HTMLResponse(body, status_code=401, headers=NOT_KEPT)
        return _signed_in(ways, who, following, is_https(scope, headers))


async def _shown(policy: Policy, receive: Receive) -> Identity | Response | None:
    try:
        body = await _body(limited(receive, MAX_SIGN_IN_BYTES, policy.limits.body_seconds), MAX_SIGN_IN_BYTES)
    except BodyTooLarge:
        return too_large("more", MAX_SIGN_IN_BYTES)
    except BodyTooSlow:
        return too_slow(policy.limits.body_seconds)
    given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
    return policy.authenticator.by_token(given) if given else None


async def _body(receive: Receive, limit: int) -> bytes:
    body = b""
    while len(body) <= limit:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    return body[:limit]


def _signed_in(ways: Authenticator, who: Identity, following: str, secure: bool) -> Response:
    try:
        value = ways.session(who)
    except RagError as problem:
        return error(503, "internal", problem.message, problem.next_step)
    response = RedirectResponse(following, status_code=303, headers=NOT_KEPT)
    response.set_cookie(COOKIE, value, int(SESSION_SECONDS), httponly=True, samesite="strict", secure=secure)
    return response


def _ended(ways: Authenticator, headers: Headers) -> Response | None:
    """None: what the browser shows counts no more."""
    try:
        ways.end_session(headers)
    except RagError as problem:
        return error(503, "internal", problem.message, problem.next_step)
    return None


def _signed_out(policy: Policy, headers: Headers) -> Response:
    problem = _ended(policy.authenticator, headers)
    if problem is not None:
        return problem
    response = RedirectResponse(OIDC_SIGN_OUT if policy.oidc_url else SIGN_IN, status_code=303, headers=NOT_KEPT)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
