"""The guard in front of a small app on a real server: who gets in, with what, and what the others are told."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import anyio.to_thread
import httpx
import pytest
import streamlit
import uvicorn
import websockets.exceptions
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from access.authenticator import COOKIE
from access.headers import INLINE_SCRIPT, SECURITY_HEADERS
from access.limits import API_BYTES
from access.throttle import CLIENTS_REMEMBERED, WrongTokens
from guard import Guard, Policy

TOKEN = "correct horse"
BEARER = {"authorization": f"Bearer {TOKEN}"}
JSON = {"content-type": "application/json"}
PORTAL = "https://portal.example"
LONG: Any = {"proxy": None, "open_timeout": 20}


# 1) the app behind the guard, and its server


async def ask(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body())})


async def page(request: Request) -> Response:
    return PlainTextResponse("a page", headers={"x-frame-options": "DENY"} if request.url.path == "/strict" else None)


async def fail(request: Request) -> Response:
    raise RuntimeError("secret detail")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


GETS = ("/", "/query", "/strict", "/static/js/x.js", "/_stcore/metrics", "/_stcore/health", "/api/health", "/api/v1/queries")
ROUTES = [
    Route("/api/v1/ask", ask, methods=["POST"]),
    Route("/custom", ask, methods=["POST"]),
    Route("/_stcore/upload_file", ask, methods=["PUT"]),
    Route("/fail", fail),
    *(Route(path, page) for path in GETS),
    WebSocketRoute("/_stcore/stream", echo),
]


@dataclass
class Served:
    port: int
    pauses: list[float] = field(default_factory=list)
    """How long wrong tokens would have waited."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, **given: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=20, verify=False, **given)

    def raw(self, request: bytes) -> bytes:
        """What comes back for these bytes, until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as line:
            line.sendall(request)
            return b"".join(iter(lambda: line.recv(65536), b""))

    def web_socket(self, host: str | None = None, origin: str | None = None, headers: dict[str, str] | None = None) -> str:
        """`hello` as the echo gave it back, or the status and body of the refusal."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        uri = f"ws://{host or f'127.0.0.1:{self.port}'}/_stcore/stream"
        try:
            with connect(uri, sock=line, origin=origin, additional_headers=headers, **LONG) as client:  # type: ignore[arg-type]
                client.send("hello")
                return str(client.recv(timeout=20))
        except websockets.exceptions.InvalidStatus as refused:
            return f"{refused.response.status_code} {bytes(refused.response.body or b'').decode()}"
        finally:
            line.close()


@contextlib.contextmanager
def serve(policy: Policy, address: str = "127.0.0.1", pause: Any = None) -> Iterator[Served]:
    """The app on a free port, guarded by a middleware, as the dashboard is."""
    pauses: list[float] = []

    async def noted(seconds: float) -> None:
        pauses.append(seconds)

    app = Starlette(routes=ROUTES, middleware=[Middleware(Guard, policy=policy, pause=pause or noted)])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listening:
        listening.bind((address, 0))
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="websockets-sansio")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield Served(listening.getsockname()[1], pauses)
        finally:
            server.should_exit = True
            thread.join(20)


def wait_for(happened: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "did not happen in time"
        threading.Event().wait(0.01)


@pytest.fixture(scope="module")
def local() -> Iterator[Served]:
    with serve(Policy("127.0.0.1", ("rag.example",), (PORTAL,))) as served:
        yield served


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with serve(Policy("127.0.0.1", token=TOKEN)) as served:
        yield served


def kind(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert error["message"] and error["next_step"]
    return str(error["kind"])


# 2) host


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8502", "LocalHost:1", "localhost", "[::1]:8502", "[::1]", "rag.example", "127.8.8.8"]
)
def test_hosts_that_are_ours(local: Served, host: str) -> None:
    assert local.call("GET", "/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8502", "127.0.0.1.evil.example", "rag.example.evil", "192.168.1.7", "[2001:db8::1]:80", "",
     "[", "[::1", "::1", "evil@127.0.0.1", "127.0.0.1/evil", "127.0.0.1#", "127.0.0.1:80:80", "localhost.evil", "127.0.0.1:8x"],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/", "/_stcore/health", "/_stcore/metrics", "/static/js/x.js", "/api/v1/queries", "/signin", "/api/health"]
)
def test_a_name_that_is_not_ours_is_refused_on_every_route(local: Served, host: str, path: str) -> None:
    response = local.call("GET", path, headers={"host": host})
    if response.status_code != 400:  # some are no header at all, which uvicorn says
        assert (response.status_code, kind(response)) == (421, "authentication")


def test_no_host_and_two_hosts_are_refused(local: Served) -> None:
    assert b" 421 " in local.raw(b"GET / HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
    two = local.raw(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert b" 400 " in two.split(b"\r\n")[0]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8502", "192.168.1.7"])
def test_a_web_socket_under_a_name_that_is_not_ours_is_refused(local: Served, host: str) -> None:
    assert local.web_socket(host=host, origin=f"http://{host}").startswith("421 ")


def test_what_is_bound_beyond_loopback_takes_addresses_and_configured_names_only() -> None:
    policy = Policy("0.0.0.0", ("rag.example",))
    assert all(policy.host_allowed(host) for host in ("192.168.1.7", "2001:db8::1", "localhost", "rag.example", "0.0.0.0"))
    assert not any(policy.host_allowed(host) for host in ("evil.example", "", "1.2.3.4.evil", "999.1.1.1"))
    assert Policy("gpu7.lan").host_allowed("gpu7.lan")


def test_what_counts_as_loopback() -> None:
    assert all(Policy(host).loopback_only for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"))
    assert not any(Policy(host).loopback_only for host in ("0.0.0.0", "::", "192.168.1.7", "gpu7.lan", ""))


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_over_ipv6() -> None:
    try:
        with serve(Policy("::1", token=TOKEN), "::1") as served:
            url = f"http://[::1]:{served.port}"
            assert httpx.get(url, headers=BEARER, timeout=20).status_code == 200
            own = {**BEARER, **JSON, "origin": url}
            assert httpx.post(f"{url}/api/v1/ask", headers=own, content=b"{}", timeout=20).status_code == 200
            foreign = {**own, "origin": "http://[::1]:1"}
            assert httpx.post(f"{url}/api/v1/ask", headers=foreign, content=b"{}", timeout=20).status_code == 403
    except OSError:
        pytest.skip("no IPv6 loopback")


def test_only_this_machine_while_the_settings_are_wrong() -> None:
    policy = Policy("127.0.0.1", local_clients_only=True)
    assert policy.client_allowed(("127.0.0.1", 1)) and policy.client_allowed(("::1", 1))
    assert not policy.client_allowed(("192.168.1.7", 1)) and not policy.client_allowed(None)
    with serve(policy) as served:
        assert served.call("GET", "/").status_code == 200
        # uvicorn believes a proxy on this machine
        refused = served.call("GET", "/", headers={"x-forwarded-for": "192.168.1.7"})
        assert (refused.status_code, kind(refused)) == (403, "authentication")


# 3) origin

FOREIGN = [
    "http://evil.example",
    "null",
    "http://127.0.0.1:1",
    "http://localhost",
    "http://[",
    "",
    "file://",
    "PORT",
    "https://portal.example.evil",
]


def own_port_but(served: Served, origin: str) -> str:
    return f"http://localhost:{served.port}" if origin == "PORT" else origin


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("path", ["/api/v1/ask", "/custom"])
def test_another_sites_page_cannot_post(local: Served, origin: str, path: str) -> None:
    headers = {"origin": own_port_but(local, origin), "content-type": "text/plain"}
    response = local.call("POST", path, headers=headers, content=b'{"query": "x"}')
    assert (response.status_code, kind(response)) == (403, "authentication")
    upload = local.call("PUT", "/_stcore/upload_file", headers=headers, content=b"x")
    assert upload.status_code == 403


def test_two_origins_must_both_be_ours(local: Served) -> None:
    headers = [("origin", local.url), ("origin", "http://evil.example"), ("content-type", "application/json")]
    assert local.call("POST", "/api/v1/ask", headers=headers, content=b"{}").status_code == 403


def test_a_browser_that_hides_the_origin_still_says_cross_site(local: Served) -> None:
    headers = {**JSON, "sec-fetch-site": "cross-site"}
    assert local.call("POST", "/api/v1/ask", headers=headers, content=b"{}").status_code == 403
    assert local.call("GET", "/query", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link on another page


def test_our_own_pages_programs_and_configured_origins_may_post(local: Served) -> None:
    for headers in ({"origin": local.url}, {"origin": local.url.replace("http:", "https:")}, {}, {"origin": PORTAL}):
        assert local.call("POST", "/api/v1/ask", headers={**JSON, **headers}, content=b"{}").json() == {"bytes": 2}


def test_a_configured_origins_page_may_read_answers_and_preflights(local: Served) -> None:
    ask = {"origin": PORTAL, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    preflight = local.call("OPTIONS", "/api/v1/ask", headers=ask)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == PORTAL
    assert "content-type" in preflight.headers["access-control-allow-headers"]
    answer = local.call("POST", "/api/v1/ask", headers={**JSON, "origin": PORTAL}, content=b"{}")
    assert answer.headers["access-control-allow-origin"] == PORTAL and "origin" in answer.headers["vary"].lower()
    assert "access-control-allow-credentials" not in answer.headers
    for origin in ("http://evil.example", local.url):
        headers = local.call("OPTIONS", "/api/v1/ask", headers={**ask, "origin": origin}).headers
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("origin", [origin for origin in FOREIGN if origin])
def test_another_sites_page_cannot_open_a_web_socket(local: Served, origin: str) -> None:
    assert local.web_socket(origin=own_port_but(local, origin)).startswith("403 ")


def test_our_own_page_opens_a_web_socket(local: Served) -> None:
    assert local.web_socket(origin=local.url) == "hello"
    assert local.web_socket() == "hello"
    assert local.web_socket(origin=PORTAL) == "hello"


def test_a_server_without_answers_in_the_handshake_still_refuses() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"origin", b"http://evil.example")]
    scope = {"type": "websocket", "path": "/_stcore/stream", "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1)}
    anyio.run(Guard(Starlette(), Policy("127.0.0.1")), scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# 4) bodies


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonx"],
)
def test_only_json_is_taken(local: Served, content_type: str) -> None:
    response = local.call("POST", "/api/v1/ask", headers={"content-type": content_type}, content=b"{}")
    assert (response.status_code, kind(response)) == (415, "bad_input")


def test_json_with_a_charset_and_no_body_at_all_are_taken(local: Served) -> None:
    response = local.call("POST", "/api/v1/ask", headers={"content-type": "Application/JSON; charset=utf-8"}, content=b"{}")
    assert response.status_code == 200
    assert local.call("POST", "/api/v1/ask").json() == {"bytes": 0}


@pytest.mark.parametrize("size", [API_BYTES + 1, 4_000_000])
def test_too_large_a_body_is_answered_413(local: Served, size: int) -> None:
    stated = local.call("POST", "/api/v1/ask", headers=JSON, content=b"a" * size)
    chunked = local.call("POST", "/api/v1/ask", headers=JSON, content=iter([b"a" * 50_000] * (size // 50_000 + 1)))
    for response in (stated, chunked):
        assert (response.status_code, kind(response)) == (413, "bad_input")
        assert response.headers["x-content-type-options"] == "nosniff"


def test_the_largest_body_is_taken_stated_and_chunked(local: Served) -> None:
    body = b"a" * API_BYTES
    assert local.call("POST", "/api/v1/ask", headers=JSON, content=body).json() == {"bytes": API_BYTES}
    assert local.call("POST", "/api/v1/ask", headers=JSON, content=iter([body])).json() == {"bytes": API_BYTES}


def test_a_connection_goes_on_after_a_body_was_refused(local: Served) -> None:
    with httpx.Client(base_url=local.url, timeout=20) as client:
        assert client.post("/api/v1/ask", headers=JSON, content=iter([b"a" * 2_000_000])).status_code == 413
        assert client.post("/api/v1/ask", headers=JSON, content=b"{}").json() == {"bytes": 2}


def test_uploads_are_not_the_apis(local: Served) -> None:
    """Streamlit limits its own uploads (server.maxUploadSize)."""
    assert local.call("PUT", "/_stcore/upload_file", content=b"a" * 3_000_000).json() == {"bytes": 3_000_000}


# 5) token


@pytest.mark.parametrize(
    "path", ["/", "/query", "/static/js/x.js", "/_stcore/metrics", "/api/v1/queries", "/nowhere", "/api/health/", "/signin/"]
)
def test_everything_needs_the_token(locked: Served, path: str) -> None:
    refused = locked.call("GET", path)
    assert (refused.status_code, kind(refused), refused.headers["www-authenticate"]) == (401, "authentication", "Bearer")
    assert locked.call("GET", path, headers=BEARER).status_code in (200, 307, 404)


@pytest.mark.parametrize("path", ["/api/health", "/_stcore/health", "/signin"])
def test_health_and_the_sign_in_are_open(locked: Served, path: str) -> None:
    assert locked.call("GET", path).status_code == 200


def test_posts_uploads_and_odd_methods_need_the_token(locked: Served) -> None:
    for method, path in (
        ("POST", "/api/v1/ask"),
        ("PUT", "/_stcore/upload_file"),
        ("HEAD", "/"),
        ("DELETE", "/x"),
        ("OPTIONS", "/"),
    ):
        assert locked.call(method, path, headers=JSON, content=b"{}").status_code == 401


def test_the_web_socket_needs_the_token(locked: Served) -> None:
    refused = locked.web_socket(origin=locked.url)
    assert refused.startswith("401 ") and "authentication" in refused
    assert locked.web_socket(origin=locked.url, headers={"Authorization": "Bearer wrong"}).startswith("401 ")
    assert locked.web_socket(headers={"Authorization": f"Bearer {TOKEN}"}) == "hello"
    cookie = sign_in(locked).cookies[COOKIE]
    assert locked.web_socket(origin=locked.url, headers={"Cookie": f"{COOKIE}={cookie}"}) == "hello"
    # the cookie comes along from another site's page on the same host: the origin decides
    foreign = locked.web_socket(origin="http://127.0.0.1:1", headers={"Cookie": f"{COOKIE}={cookie}"})
    assert foreign.startswith("403 ")


WRONG = [
    "Bearer wrong",
    "Bearer",
    f"Basic {TOKEN}",
    TOKEN,
    f"Bearer {TOKEN}x",
    f"bearer{TOKEN}",
    "Bearer \xe9\xff",
    f"Bearer {TOKEN.upper()}",
]


@pytest.mark.parametrize("given", WRONG)
def test_wrong_bearers(locked: Served, given: str) -> None:
    response = locked.call("GET", "/api/v1/queries", headers=[(b"authorization", given.encode("latin-1"))])
    assert response.status_code == 401


def test_the_scheme_is_not_case_sensitive_and_the_first_of_two_counts(locked: Served) -> None:
    assert locked.call("GET", "/", headers={"authorization": f"bEARER  {TOKEN}"}).status_code == 200
    two = [("authorization", "Bearer wrong"), ("authorization", f"Bearer {TOKEN}")]
    assert locked.call("GET", "/", headers=two).status_code == 401


def test_a_token_beyond_ascii() -> None:
    token = "schlüssel-מפתח"
    with serve(Policy("127.0.0.1", token=token)) as served:
        right = [(b"authorization", b"Bearer " + token.encode())]
        assert served.call("GET", "/", headers=right).status_code == 200
        assert served.call("GET", "/", headers=[(b"authorization", b"Bearer schl\xfcssel")]).status_code == 401
        assert sign_in(served, token).status_code == 303


# 6) signing in


def sign_in(served: Served, token: str = TOKEN, following: str | None = None, **headers: str) -> httpx.Response:
    path = "/signin" if following is None else f"/signin?next={quote(following, safe='')}"
    return served.call("POST", path, data={"token": token}, headers=headers)


def test_a_browser_is_sent_to_sign_in_and_back(locked: Served) -> None:
    with httpx.Client(base_url=locked.url, headers={"accept": "text/html", "origin": locked.url}, timeout=20) as browser:
        sent = browser.get("/query?id=7&x=a%20b")
        assert sent.status_code == 303 and sent.headers["cache-control"] == "no-store"
        form = browser.get(sent.headers["location"])
        assert form.status_code == 200 and 'name="token"' in form.text and form.headers["cache-control"] == "no-store"
        back = browser.post(sent.headers["location"], data={"token": f" {TOKEN} "})
        assert (back.status_code, back.headers["location"]) == (303, "/query?id=7&x=a%20b")
        assert browser.get("/query?id=7").status_code == 200
        assert browser.get("/static/js/x.js").status_code == 200
        asked = browser.post("/api/v1/ask", headers=JSON, content=b"{}")
        assert asked.status_code == 200


def test_the_cookie_holds_no_token_and_no_script_can_read_it(locked: Served) -> None:
    response = sign_in(locked)
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie and "secure" not in cookie
    assert TOKEN not in response.headers["set-cookie"] and "horse" not in cookie
    behind_tls = sign_in(locked, **{"x-forwarded-proto": "https"})
    assert "secure" in behind_tls.headers["set-cookie"].lower()


def test_a_cookie_is_found_among_odd_ones_and_a_wrong_one_is_refused(locked: Served) -> None:
    good = f"{COOKIE}={sign_in(locked).cookies[COOKIE]}"
    for cookies in (good, f'other={{"a": 1, "b": [2]}}; {good}', f"b\xe4d\x80=1; @@; ; {good}; tail"):
        assert locked.call("GET", "/", headers=[(b"cookie", cookies.encode("latin-1"))]).status_code == 200
    assert locked.call("GET", "/", headers=[("cookie", "a=1"), ("cookie", good)]).status_code == 200
    for cookies in (f"{COOKIE}={TOKEN}", f"{COOKIE}=", f"{good}x", f'{COOKIE}="\\377"', f"x{good}"):
        assert locked.call("GET", "/", headers={"cookie": cookies}).status_code == 401


def test_another_token_ends_the_sessions(locked: Served) -> None:
    cookie = sign_in(locked).cookies[COOKIE]
    with serve(Policy("127.0.0.1", token="another")) as served:
        assert served.call("GET", "/", headers={"cookie": f"{COOKIE}={cookie}"}).status_code == 401


@pytest.mark.parametrize("given", ["wrong", "", "x" * 100_000, "\u05d0", "%"])
def test_a_wrong_token_gives_no_cookie(locked: Served, given: str) -> None:
    response = sign_in(locked, given)
    assert response.status_code == (413 if len(given) > 4096 else 401) and "set-cookie" not in response.headers
    assert (response.status_code == 413 or 'role="alert"' in response.text) and "correct horse" not in response.text


def test_another_site_cannot_sign_a_browser_in(locked: Served) -> None:
    assert sign_in(locked, origin="http://evil.example").status_code == 403


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "https:evil.example",
     "javascript:alert(1)", "evil.example", "", " //evil.example", "/\t/evil.example", "/\n/evil.example", "\t//evil.example",
     "/\r\nset-cookie: a=b", "/\u2028/evil.example"],
)  # fmt: skip
def test_no_open_redirect(locked: Served, target: str) -> None:
    response = sign_in(locked, following=target)
    location = response.headers["location"]
    assert response.status_code == 303
    assert location.startswith("/") and not location.startswith(("//", "/\\")) and location.isascii() and location.isprintable()
    assert httpx.URL(f"{locked.url}/signin").join(location).host == "127.0.0.1"
    assert "a=b" not in response.headers["set-cookie"]


def test_the_form_quotes_its_target(locked: Served) -> None:
    page = locked.call("GET", "/signin?next=/%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert "<script" not in page.text


def test_signing_in_where_no_token_is_asked_for_leads_on(local: Served) -> None:
    response = local.call("GET", "/signin?next=/query")
    assert (response.status_code, response.headers["location"]) == (303, "/query")
    assert local.call("GET", "/signin?next=//evil.example").headers["location"] == "/"


# 7) guessing


def test_wrong_tokens_wait_longer_and_longer_but_right_ones_never() -> None:
    with serve(Policy("127.0.0.1", token=TOKEN)) as served:
        for _ in range(3):
            sign_in(served, "wrong")
        for given in ({"authorization": "Bearer wrong"}, {"cookie": f"{COOKIE}=wrong"}):
            assert served.call("GET", "/", headers=given).status_code == 401
        assert len(served.pauses) == 5 and served.pauses == sorted(set(served.pauses))
        served.pauses.clear()
        assert served.call("GET", "/", headers=BEARER).status_code == 200
        assert sign_in(served).status_code == 303
        assert served.call("GET", "/").status_code == 401  # who tries no token guesses none
        assert served.pauses == []


def scope(address: str) -> dict[str, Any]:
    return {"client": (address, 1)}


def test_each_client_has_its_own_patience_and_is_forgotten() -> None:
    now = [0.0]
    wrong = WrongTokens(lambda: now[0])
    waits = [wrong.seconds(scope("10.0.0.1")) for _ in range(50)]
    assert waits == sorted(waits) and waits[-1] <= 2.0
    assert wrong.seconds(scope("10.0.0.2")) == waits[0]
    now[0] += 61
    assert wrong.seconds(scope("10.0.0.1")) == waits[0]
    for number in range(CLIENTS_REMEMBERED * 2):
        wrong.seconds(scope(f"client-{number}"))
    assert len(wrong._counts) == CLIENTS_REMEMBERED
    assert wrong.seconds({"client": None}) == waits[0]


def test_a_waiting_guess_keeps_nobody_else_waiting() -> None:
    released, waiting = threading.Event(), threading.Event()

    async def pause(seconds: float) -> None:
        waiting.set()
        await anyio.to_thread.run_sync(lambda: released.wait(20))

    with serve(Policy("127.0.0.1", token=TOKEN), pause=pause) as served:
        results: list[int] = []
        guess = threading.Thread(target=lambda: results.append(sign_in(served, "wrong").status_code))
        guess.start()
        assert waiting.wait(20)
        assert served.call("GET", "/", headers=BEARER).status_code == 200
        assert sign_in(served).status_code == 303
        assert results == []
        released.set()
        guess.join(20)
        assert results == [401]


# 8) headers


def all_security(headers: httpx.Headers, but: Sequence[str] = ()) -> bool:
    return all(headers.get(name) == value for name, value in SECURITY_HEADERS.items() if name not in but)


def test_security_headers_are_on_every_answer(local: Served, locked: Served) -> None:
    answers = [
        *(local.call("GET", path) for path in ("/", "/nowhere", "/fail", "/_stcore/metrics", "/api/health", "/signin")),
        local.call("POST", "/"),  # 405
        local.call("GET", "/", headers={"host": "evil.example"}),
        local.call("POST", "/custom", headers={"origin": "http://evil.example"}),
        locked.call("GET", "/"),
        locked.call("GET", "/", headers={"accept": "text/html"}),
        locked.call("GET", "/signin"),
        sign_in(locked, "wrong"),
        sign_in(locked),
    ]
    assert all(all_security(answer.headers) for answer in answers), [answer.status_code for answer in answers]


def test_the_apps_own_header_wins(local: Served) -> None:
    headers = local.call("GET", "/strict").headers
    assert headers["x-frame-options"] == "DENY" and all_security(headers, but=["x-frame-options"])


def test_a_failure_is_told_without_its_detail(local: Served) -> None:
    response = local.call("GET", "/fail")
    assert (response.status_code, kind(response)) == (500, "internal")
    assert "secret detail" not in response.text


def test_nothing_may_come_from_another_host() -> None:
    policy = SECURITY_HEADERS["content-security-policy"]
    sources = {word for part in policy.split(";") for word in part.split()[1:]}
    assert sources <= {"'self'", "'none'", "'unsafe-inline'", "'wasm-unsafe-eval'", "data:", "blob:", INLINE_SCRIPT}
    scripts = next(part.split() for part in policy.split("; ") if part.startswith("script-src "))
    assert scripts == ["script-src", "'self'", INLINE_SCRIPT, "'wasm-unsafe-eval'"]


def test_streamlits_inline_script_is_the_one_that_may_run() -> None:
    page = (Path(streamlit.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")
    inline = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline]
    assert hashes == [INLINE_SCRIPT]


def test_odd_paths_do_not_slip_past(locked: Served) -> None:
    for path in (
        "/%5fstcore/metrics",
        "//_stcore/metrics",
        "/_stcore/../_stcore/metrics",
        "/api/health/../v1/queries",
        "/api/health%00",
        "/api/health%0A",
        "/signin%2f..%2f",
    ):
        answer = locked.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        assert (b" 400 " if "%0" in path else b" 401 ") in answer.split(b"\r\n")[0], path
