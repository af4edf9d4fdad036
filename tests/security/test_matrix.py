"""Who may do what: every route of the app's real table, every page and WebSocket, with no, wrong, expired, lesser and right tokens.

A route that no rule of `access.scopes` names fails the test, so that nobody adds one without deciding who may call it.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import websockets.exceptions
from websockets.sync.client import connect

import app
from access.scopes import RULES, SCOPES, Scope, needed
from access.tokens import TokenStore
from tests.security.test_pages import PAGES
from tests.security.world import World

ID = "0" * 32
# Streamlit's own routes, as its server lists them; what is new there fails `test_every_route_of_streamlit_is_known`.
BODIES = {"/api/v1/ask": '{"query": "x", "caches": "use"}', "/v1/traces": "{}"}
REFUSED = (401, 403)


class Call(NamedTuple):
    method: str
    path: str


def ours() -> list[Call]:
    """Every method and path that app.py mounts."""
    return [
        Call(method, route.path) for route in app.ROUTES for method in sorted((route.methods or {"GET"}) - {"HEAD", "OPTIONS"})
    ]


def streamlits() -> list[Call]:
    """Every method and path of Streamlit's own routes, with its placeholders."""
    from streamlit import web

    text = "".join(path.read_text() for path in sorted((Path(web.__file__).parent / "server").rglob("*route*.py")))
    found = sorted(set(re.findall(r'"(_stcore/[\w/-]+)"', text)))
    return [Call("GET", f"/{path}") for path in found]


def filled(path: str) -> str:
    return re.sub(r"\{[^}]*\}", ID, path)


@pytest.fixture(scope="module")
def tokens(world: World) -> dict[str, str]:
    """A token for each scope alone, for all, an expired and a revoked one."""
    store = TokenStore(world.data / "access.db")
    made: dict[str, str] = {}
    for name, scopes in {**{scope: (scope,) for scope in SCOPES}, "all": SCOPES, "expired": SCOPES, "revoked": SCOPES}.items():
        token, secret = _created(store, name, scopes)
        made[name] = secret
        if name == "revoked":
            store.revoke(token)
    with contextlib.closing(sqlite3.connect(world.data / "access.db")) as db, db:
        db.execute("UPDATE tokens SET expires_at_unix = 1 WHERE name = 'expired'")
    return made


def _created(store: TokenStore, name: str, scopes: tuple[Scope, ...]) -> tuple[str, str]:
    secret, made = store.create(name, list(scopes), created_by="test")
    return made.id, secret


def wrong_tokens(tokens: dict[str, str]) -> dict[str, str | None]:
    """Everything that is no right token."""
    good = tokens["all"]
    return {
        "none": None,
        "wrong": "wrong",
        "long": "x" * 4000,
        "almost": good[:-1] + ("A" if good[-1] != "A" else "B"),
        "expired": tokens["expired"],
        "revoked": tokens["revoked"],
        "twice": f"{good} {good}",
        "nul": "rdk_" + "0" * 12 + "_" + "A" * 43,
    }


def test_every_route_of_ours_has_a_rule_of_its_own() -> None:
    ruled = {(rule.method, rule.path) for rule in RULES}
    assert [call for call in ours() if (call.method, call.path) not in ruled] == []
    assert {call.path for call in ours()} >= {"/api/v1/ask", "/api/v1/queries", "/metrics", "/v1/traces", "/api/health"}


def test_only_these_paths_are_open() -> None:
    """Each is harmless without a token: whether the server lives, and the ways to sign in."""
    opened = {(rule.method, rule.path) for rule in RULES if rule.scope is None}
    assert {path for _, path in opened} == {
        *(
            "/api/health",
            "/_stcore/health",
            "/signin",
            "/signin/oidc",
            "/signout",
            "/auth/login",
            "/auth/logout",
            "/oauth2callback",
        )
    }


@pytest.mark.parametrize(
    "path", ["/", "/x", "/API/health", "/api/health/", "/api/health/x", "//api/health", "/_stcore/healthx", "/signin/"]
)
def test_what_only_looks_open_is_not(world: World, path: str) -> None:
    assert needed("GET", path) is not None
    assert world.call("GET", path, token=None, headers={"accept": "application/json"}).status_code in (*REFUSED, 404, 400)


def test_routes_refuse_what_is_no_token(world: World, tokens: dict[str, str]) -> None:
    """Nobody at every route, and the two kinds of a token that is none at one; the others, everywhere, are in `make test-long`."""
    wrong, wanted = wrong_tokens(tokens), guarded()
    all_refuse(world, wanted, None)
    for kind in ("almost", "expired"):
        all_refuse(world, wanted[:1], wrong[kind])


def guarded() -> list[Call]:
    """Every route and page that asks for a scope."""
    wanted = [call for call in [*ours(), *streamlits(), *pages()] if needed(call.method, filled(call.path)) is not None]
    assert len(wanted) > 20
    return wanted


def all_refuse(world: World, calls: list[Call], token: str | None) -> None:
    """Side by side: a wrong token's answer waits up to 2 s, and does so at each of the routes."""
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda call: refuses(world, call, token), calls))


def refuses(world: World, call: Call, token: str | None) -> None:
    answer = request(world, call, token)
    assert answer.status_code in REFUSED, (call, token and token[:20], answer.status_code)
    assert "x-content-type-options" in answer.headers


def pages() -> list[Call]:
    return [Call("GET", f"/{name}") for name in PAGES] + [
        Call("GET", "/"),
        Call("GET", "/static/js/index.js"),
        Call("GET", "/media/x"),
    ]


def request(world: World, call: Call, token: str | None) -> httpx.Response:
    path = filled(call.path)
    headers = {"content-type": "application/json", "accept": "application/json"}
    content = BODIES.get(path) if call.method == "POST" else None
    return world.call(call.method, path, token=token, headers=headers, content=content)


def test_each_route_takes_its_scope_and_no_other(world: World, tokens: dict[str, str]) -> None:
    seen = 0
    for call in ours():
        scope = needed(call.method, filled(call.path))
        if call.method == "DELETE" and call.path.endswith("/queries"):
            continue  # it would delete what other tests look at; a lesser token is tried below
        for held in SCOPES if scope is not None else ():
            answer = request(world, call, tokens[held])
            allowed = answer.status_code not in REFUSED
            assert allowed == (held == scope), (call, held, answer.status_code, answer.text[:200])
            seen += 1
    assert seen >= 15
    for held in ("read", "ask"):
        assert world.call("DELETE", "/api/v1/queries", token=tokens[held]).status_code in REFUSED


def test_a_refusal_tells_nothing_of_what_is_there(world: World) -> None:
    known = world.call("GET", "/api/v1/queries").json()["queries"][0]["id"]
    bodies = {world.call("GET", f"/api/v1/queries/{key}", token=None).text for key in (known, ID)}
    assert len(bodies) == 1


@pytest.mark.parametrize("kind", ["none", "revoked", "ask", "read", "all"])
def test_the_websocket_of_the_pages(world: World, tokens: dict[str, str], kind: str) -> None:
    token = {**wrong_tokens(tokens), **tokens}[kind]
    assert socket_opens(world, token) == (kind in ("read", "all"))


def socket_opens(world: World, token: str | None) -> bool:
    return web_socket(world, {"Authorization": f"Bearer {token}"} if token else {}) == 101


def test_the_websocket_takes_no_token_from_its_address(world: World, tokens: dict[str, str]) -> None:
    """An address is logged by proxies."""
    assert web_socket(world, {}, f"?token={tokens['all']}&access_token={tokens['all']}") in REFUSED


def web_socket(world: World, headers: dict[str, str], query: str = "") -> int:
    uri = f"ws://127.0.0.1:{world.port}/_stcore/stream{query}"
    try:
        with connect(uri, origin=world.url, additional_headers=headers, subprotocols=["streamlit"], proxy=None, open_timeout=90):
            return 101
    except websockets.exceptions.InvalidStatus as refused:
        return refused.response.status_code


def test_headers_that_a_proxy_would_send_open_nothing(world: World) -> None:
    """No proxy is in force here: who says that he is somebody is nobody."""
    for name in (
        "X-Forwarded-User",
        "X-Remote-User",
        "X-Auth-Request-Email",
        "X-Forwarded-Email",
        "Remote-User",
        "X-RAGDeck-Proxy-Secret",
    ):
        answer = world.call("GET", "/api/v1/queries", token=None, headers={name: "admin", "X-Forwarded-For": "127.0.0.1"})
        assert answer.status_code in REFUSED, name


def test_tricks_with_the_path_open_nothing(world: World) -> None:
    for path in ("/api/health/../v1/queries", "/api/%2e%2e/api/v1/queries", "/api//v1/queries", "/signin/../api/v1/queries", "/api/v1/queries;/api/health",
                 "/api/v1/queries?x=/api/health", "/api/v1/queries%00/api/health", "/api/v1/queries#/signin"):  # fmt: skip
        raw = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--path-as-is", "--max-time", "90", world.url + path],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert int(raw.stdout) in (*REFUSED, 400, 404, 303), path
