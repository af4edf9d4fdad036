"""One small test a defence, so that a defence that is taken away is missed here at once, also where another one still holds.

In the process of the test: no dashboard is started. What the defences do together is tried by the other files of this folder.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
import select
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import app
from access import redaction
from access.headers import INLINE_SCRIPT
from access.limits import API_BYTES
from access.tokens import TokenStore
from collectors.services import Service
from gpu_server.client import RemoteEmbedder, RemoteReranker
from gpu_server.endpoint import Endpoint
from gpu_server.errors import EngineError
from gpu_server.interfaces import ChatRequest, RerankCandidate
from guard import Guard, Policy
from rag.chat import OpenAIChat
from rag.errors import RagError
from rag.loaders import load
from rag.media.speech import WhisperClient
from tests.security.canaries import Search, canary
from tests.security.hostile_server import REFUSE, HostileServer
from tests.security.test_inputs import MEMBERS, says_its_kind
from tests.security.world import ROOT, eventually

LIMIT_BYTES = 50_000_000
HERE = ("127.0.0.1", 5)
# Written out once more: a header that is taken out of the table is missed by no test that reads the table.
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
SOURCES = {
    "default-src": {"'self'"},
    "script-src": {"'self'", INLINE_SCRIPT, "'wasm-unsafe-eval'"},
    "script-src-attr": {"'none'"},
    "style-src": {"'self'", "'unsafe-inline'"},
    "img-src": {"'self'", "data:", "blob:"},
    "media-src": {"'self'", "data:", "blob:"},
    "font-src": {"'self'", "data:"},
    "connect-src": {"'self'"},
    "worker-src": {"'self'", "blob:"},
    "frame-src": {"'self'"},
    "manifest-src": {"'self'"},
    "object-src": {"'none'"},
    "base-uri": {"'self'"},
    "form-action": {"'self'"},
    "frame-ancestors": {"'self'"},
}


async def _length(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
def guarded() -> TestClient:
    """A server without limits of its own, behind the guard."""
    routes = [Route("/api/v1/ask", _length, methods=["POST"]), Route("/", _length)]
    served = Starlette(routes=routes, middleware=[Middleware(Guard, policy=Policy("127.0.0.1"))])
    return TestClient(served, base_url="http://127.0.0.1", client=HERE)


# headers


def test_the_headers_are_these(guarded: TestClient) -> None:
    got = guarded.get("/").headers
    assert {name: got.get(name) for name in HEADERS} == HEADERS
    assert "camera=()" in got["permissions-policy"] and "microphone=()" in got["permissions-policy"]


def test_the_policy_allows_these_sources_and_no_other(guarded: TestClient) -> None:
    """A browser that knows no rule for a kind of thing falls back to `default-src`, but for the last three here."""
    said = guarded.get("/").headers["content-security-policy"]
    given = {name: set(sources) for name, *sources in (part.split() for part in said.split(";"))}
    assert given == SOURCES


# bodies


@pytest.mark.parametrize("stated", [True, False], ids=["length", "chunked"])
def test_the_guard_alone_bounds_a_body(guarded: TestClient, stated: bool) -> None:
    """The route behind it takes everything. One of ours has a limit of its own as well (/v1/traces), and the pages' server
    (uploads): there a missing limit of the guard shows only in how much is read before the refusal."""
    head = {"content-type": "application/json"}
    body = b"0" * (3 * API_BYTES) if stated else (b"0" * (1 << 16) for _ in range(3 * API_BYTES >> 16))
    assert guarded.post("/api/v1/ask", content=body, headers=head).status_code == 413
    assert guarded.post("/api/v1/ask", content=b"0" * API_BYTES, headers=head).text == str(API_BYTES)


def test_a_length_that_is_too_large_is_refused_before_anything_is_read() -> None:
    async def never(*_: object) -> dict[str, object]:
        raise AssertionError("it is read, or passed on")

    async def answer() -> list[dict[str, object]]:
        sent: list[dict[str, object]] = []

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        length = (b"content-length", str(API_BYTES + 1).encode())
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), length]
        scope = {"type": "http", "method": "POST", "path": "/api/v1/ask", "query_string": b"", "headers": headers, "client": HERE}
        await Guard(never, Policy("127.0.0.1"))(scope, never, send)
        return sent

    assert asyncio.run(answer())[0]["status"] == 413


# what a document can do to its reader: several limits in a row, each met alone


@pytest.mark.parametrize("suffix", MEMBERS)
def test_a_bomb_below_every_other_limit_is_refused_by_its_ratio(tmp_path: Path, suffix: str) -> None:
    """40 MiB: less than what may be held as XML, and than what may be expanded in all."""
    path = tmp_path / f"a.{suffix}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        says_its_kind(archive, suffix)
        with archive.open("media/a.bin", "w") as file:
            for _ in range(40):
                file.write(b" " * (1 << 20))
    with pytest.raises(RagError, match=r"is or looks like a ZIP bomb .* one entry 1,0[0-9][0-9]-fold"):
        load(path, LIMIT_BYTES)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "[" * 200_000 + "]" * 200_000])
def test_deep_json_is_refused_by_name_and_not_by_the_net_below(tmp_path: Path, text: str) -> None:
    """`load` turns whatever a reader raises into an error; without one that knows the cause it tells Python's."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RagError, match="nested too deep"):
        load(tmp_path / "a.json", LIMIT_BYTES)


# tokens


def test_a_cookie_with_another_secret_is_nobodys(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "access.db")
    _, made = store.create("one", ["read"], created_by="test")
    cookie = store.open_session(made.id)
    assert store.identify(cookie) is not None
    assert store.identify(cookie[:-43] + "A" * 43) is None


def test_a_session_of_a_revoked_token_is_nobodys_even_where_it_is_still_stored(tmp_path: Path) -> None:
    """Revoking deletes them; one that another process writes at that moment must count for nothing all the same."""
    store = TokenStore(tmp_path / "access.db")
    _, made = store.create("one", ["read"], created_by="test")
    store.revoke(made.id)
    assert store.identify(store.open_session(made.id)) is None


# secrets in the log of the dashboard


@pytest.fixture
def settings_with_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For `app`, whose policy and log are put back."""
    (tmp_path / "dashboard.toml").write_text(f'[llm]\napi_key = "{canary("llm.api_key")}"\n')
    for name in [name for name in os.environ if name.startswith("RAGDECK_")]:
        monkeypatch.delenv(name)
    given = {"RAGDECK_CONFIG": str(tmp_path / "dashboard.toml"), "RAGDECK_DATA": str(tmp_path / "data")}
    for name, value in {**given, "RAGDECK_TOKEN": canary("server.token")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "_rules", None)
    monkeypatch.setattr(app.config, "set_option", lambda *_: None)
    before = [(handler, handler.formatter) for handler in redaction._handlers()]
    yield
    for handler, formatter in before:
        handler.setFormatter(formatter)


@pytest.mark.usefixtures("settings_with_a_secret")
def test_the_app_masks_its_own_log() -> None:
    """From the first request on. What is logged here no pattern knows: only the settings say that it is secret."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        assert app.current_policy().authenticator.required
        for name in ("server.token", "llm.api_key"):
            logging.getLogger("some.library").warning("a library says %s", canary(name))
            logging.getLogger("another").error("a library says %r", {"x": canary(name)})
    finally:
        root.removeHandler(handler)
    assert written.getvalue().count("a library says") == 4
    assert Search(("server.token", "llm.api_key")).found(written.getvalue().encode()) == set()


# secrets in what remote models answer


KEY, PASSWORD, HEADER = "llm.api_key", "llm.base_url", "embeddings.headers"
SEARCH = Search((KEY, PASSWORD, HEADER))


@pytest.fixture(scope="module")
def remote() -> Iterator[HostileServer]:
    server = HostileServer()
    yield server
    server.stop()


def _embeds(url: str, endpoint: Endpoint) -> object:
    return RemoteEmbedder(endpoint, dialect="openai").embed(["boiler"])


def _ranks(url: str, endpoint: Endpoint) -> object:
    return RemoteReranker(endpoint, dialect="cohere").score("boiler", [RerankCandidate("a")])


def _chats(url: str, endpoint: Endpoint) -> object:
    """Of a refusal that is none of the key's it tells what the server says."""
    request = ChatRequest(({"role": "user", "content": f"boiler {REFUSE}400"},), 10, 0.0, timeout=20.0)
    return list(OpenAIChat(url.replace("/locked", "/llm"), "m", endpoint.api_key, 20.0).stream(request))


def _transcribes(url: str, endpoint: Endpoint) -> object:
    return WhisperClient(url, "m", endpoint.api_key, None, 20.0, 0).transcribe(b"RIFF0000WAVE", "a.wav", lambda: None)


@pytest.mark.parametrize("login", ["", "user:{}@"], ids=["key", "password"])
@pytest.mark.parametrize("call", [_embeds, _ranks, _chats, _transcribes])
def test_the_error_of_a_remote_model_quotes_no_key(
    remote: HostileServer, call: Callable[[str, Endpoint], object], login: str
) -> None:
    """The server repeats what it was sent, whole and in part."""
    url = f"http://{login.format(canary(PASSWORD))}127.0.0.1:{remote.port}/locked"
    key, headers = (None if login else canary(KEY)), {"X-Team": canary(HEADER)}
    remote.requests.clear()
    with pytest.raises((EngineError, RagError)) as refused:
        call(url, Endpoint(url, "m", key, headers, timeout=20.0, retries=0))
    sent = str(remote.requests)
    assert SEARCH.found(sent.encode()), "the server was given one, and could repeat it"
    told = [f"{problem} {problem!r}" for problem in _chain(refused.value)]
    assert any("Incorrect API key" in text for text in told), "what it says is kept"
    assert SEARCH.found("".join(told).encode()) == set()


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    """It and what caused it: a log prints both."""
    while problem is not None:
        yield problem
        problem = problem.__cause__


def test_what_a_watched_service_says_quotes_no_key_nor_a_part_of_one() -> None:
    """Messages of probes go to pages, alerts, reports and what is kept of a query."""
    key, password = canary(KEY), canary(PASSWORD)
    service = Service("far", "openai-chat", f"http://user:{password}@127.0.0.1:9", api_key=key, headers={"X": canary(HEADER)})
    basic = base64.b64encode(f"user:{password}".encode()).decode()
    for secret in (key, password, canary(HEADER), basic):
        for form in (secret, secret[8:30], secret[:12], secret[-12:], f"{secret}{secret}", f"a{secret[3:20]}b{secret[9:]}"):
            said = service.said(f"Incorrect key {form} (see the documentation)")
            assert SEARCH.found(said.encode()) == set() and secret[8:20] not in said
            assert said.startswith("Incorrect key ") and said.endswith(" (see the documentation)")


# secrets in the log of the GPU server


def test_the_gpu_servers_log_holds_none() -> None:
    """Its key, the password of its Redis (where nobody listens), and keys that are wrong; at the most that it says."""
    secrets = Search(("server.token", "redis.url", "services.api_key"))
    named = {"GPU_SERVER_TOKEN": canary("server.token"), "REDIS_URL": f"redis://:{canary('redis.url')}@127.0.0.1:9/0"}
    command = [sys.executable, "-m", "gpu_server", "--port", "0", "--device", "cpu", "--embedder", "none"]
    kept = {name: value for name, value in os.environ.items() if name not in ("EMBEDDING_MODEL", "RERANKER_MODEL", "DEVICE")}
    with subprocess.Popen(
        command, cwd=ROOT, env={**kept, **named}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as server:
        try:
            said = _said_until(server, b"answers on ")  # its models are warm
            address = said.split(b"listening on ")[1].split(b": embedder")[0]
            told = _asked(address.decode())
        finally:
            server.terminate()
            rest, _ = server.communicate(timeout=60)
    assert told == {200, 401, 400}, told
    assert b"rerank scores are not cached" in said + rest, "it has met the Redis that does not answer"
    assert secrets.found(said + rest) == set()


def _said_until(server: subprocess.Popen[bytes], wanted: bytes) -> bytes:
    """What it has printed until it says this."""
    said = b""
    assert server.stdout is not None
    while wanted not in said.rpartition(b"\n")[0]:
        ready, _, _ = select.select([server.stdout], [], [], 120)
        piece = os.read(server.stdout.fileno(), 65536) if ready else b""
        assert piece, said
        said += piece
    return said


def _asked(url: str) -> set[int]:
    """The statuses of a right question, one with a wrong key, and one that is none."""
    right = {"authorization": f"Bearer {canary('server.token')}"}
    wrong = {"authorization": f"Bearer {canary('services.api_key')}"}
    body = {"query": "boiler", "documents": ["a boiler"]}
    with httpx.Client(base_url=url, timeout=90, trust_env=False, verify=False) as client:
        eventually(lambda: client.get("/health").status_code == 200)  # a moment after it says that its models answer
        answers = [client.post("/v1/rerank", json=body, headers=head) for head in (right, wrong)]
        answers.append(client.post("/v1/rerank", json={"query": 5}, headers=right))
    assert all(not Search(("server.token", "redis.url")).found(answer.content) for answer in answers)
    return {answer.status_code for answer in answers}
