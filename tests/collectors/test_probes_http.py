"""Probes over HTTP: the latency split, TLS, failures told apart, garbage never taken for health, and keys that stay secret."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from collectors.probes import KINDS, engine_metrics, probe
from collectors.services import KINDS as NAMES
from collectors.services import Service, ServiceError, Thresholds, metrics
from tests.collectors.service_fakes import fake_port, fake_service, make_certificate, says, silence
from tests.ports import free_port

HTTP_KINDS = ("gpu_server", "openai-chat", "openai-embeddings", "rerank", "whisper", "ocr")
KEY = "sk-very-secret-0001"


def service(url: str, kind: Any = "http", **changes: Any) -> Service:
    return Service("probed", kind, url, **{"timeout_seconds": 30.0, **changes})


def test_every_kind_has_both_probes():
    assert set(KINDS) == set(NAMES)


def test_an_answer_is_timed_step_by_step():
    with fake_service({"GET /": Response("hello", headers={"server": "fake/1"})}) as fake:
        result = probe(service(fake.address))
    assert (result.state, result.failure, result.message) == ("ok", None, "answered 200")
    split = result.latency
    parts = [split.dns_seconds, split.connect_seconds, split.first_byte_seconds]
    assert all(part is not None and part > 0 for part in parts)
    assert sum(part for part in parts if part) <= split.total_seconds
    assert split.tls_seconds is None and result.certificate_days is None, "no TLS: unknown, not 0"
    assert json.loads(json.dumps(result.to_json()))["latency"]["total_seconds"] == split.total_seconds
    found = metrics(result)
    assert found["service.failed"] == 0.0 and found["service.liveness_seconds"] == split.total_seconds
    assert "service.liveness_tls_seconds" not in found


def test_waiting_for_the_first_byte_is_told_apart_from_connecting():
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        time.sleep(1.0)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with fake_port(serve) as port:
        split = probe(service(f"http://127.0.0.1:{port}")).latency
    assert split.first_byte_seconds is not None and split.connect_seconds is not None
    assert split.first_byte_seconds > 0.5 and split.connect_seconds + split.first_byte_seconds <= split.total_seconds


def test_an_expected_text_is_looked_for():
    with fake_service({"GET /ui": "<title>Console</title>"}) as fake:
        assert probe(service(f"{fake.address}/ui", expect_text="Console"), "functional").state == "ok"
        result = probe(service(f"{fake.address}/ui", expect_text="Dashboard"), "functional")
    assert (result.state, result.failure) == ("failed", "bad_answer")


def test_nothing_listens():
    result = probe(service(f"http://127.0.0.1:{free_port()}"))
    assert (result.state, result.failure) == ("failed", "refused")
    assert result.latency.dns_seconds is not None and result.latency.connect_seconds is None


def test_a_name_that_does_not_resolve():
    result = probe(service("http://no-such-host.invalid:8000"))
    assert (result.state, result.failure) == ("failed", "dns")
    assert "no-such-host.invalid" in result.message


@pytest.mark.parametrize("url", ["http://", "http://host:99999/", "ftp://127.0.0.1:1/", "127.0.0.1", "http://[::1"])
def test_an_url_that_cannot_be_used(url):
    result = probe(service(url))
    assert (result.state, result.failure) == ("failed", "bad_input")


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("which", ["liveness", "functional"])
def test_silence_ends_at_the_time_limit(kind, which):
    with fake_port(silence) as port:
        started = time.monotonic()
        result = probe(service(f"http://127.0.0.1:{port}", kind, timeout_seconds=1.0), which)
    assert (result.state, result.failure) == ("failed", "timeout")
    assert 1.0 <= time.monotonic() - started < 30
    assert result.latency.connect_seconds is not None, "how far it came is told"


def test_an_answer_that_drips_ends_at_the_time_limit():
    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.01)

    with fake_port(drip) as port:
        started = time.monotonic()
        result = probe(service(f"http://127.0.0.1:{port}", timeout_seconds=1.0))
    assert result.failure == "timeout" and "finish" in result.message
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "data, failure",
    [
        (b"", "connection"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 500 + b"\r\n", "bad_answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort", "connection"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nx", "connection"),
    ],
)
def test_what_is_no_whole_http_answer(data, failure):
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(data)

    with fake_port(serve) as port:
        result = probe(service(f"http://127.0.0.1:{port}"))
    assert (result.state, result.failure) == ("failed", failure)


@pytest.mark.parametrize(
    "status, failure",
    [
        *[(401, "authentication"), (403, "authentication"), (404, "not_found"), (429, "overloaded"), (500, "server_error")],
        *[(503, "overloaded"), (504, "timeout"), (400, "bad_input"), (422, "bad_input"), (302, "bad_answer")],
    ],
)
def test_statuses_become_kinds_of_failure(status, failure):
    with fake_service({"GET /v1/models": JSONResponse({"error": {"message": "because"}}, status)}) as fake:
        result = probe(service(f"{fake.address}/v1", "openai-chat"))
    assert (result.state, result.failure) == ("failed", failure)
    assert result.next_step


def test_a_server_that_loads_is_neither_well_nor_failed():
    body = {"status": "loading", "reason": "the models are being loaded"}
    with fake_service({"GET /health": JSONResponse(body, 503)}) as fake:
        for which in ("liveness", "functional"):
            result = probe(service(fake.address, "gpu_server"), which)
            assert result.state == "loading" and not result.up
            assert metrics(result)["service.loading"] == 1.0 and metrics(result)["service.failed"] == 0.0
        body |= {"status": "unhealthy", "reason": "RuntimeError: CUDA out of memory"}
        fake.answers["GET /health"] = JSONResponse(body, 503)
        result = probe(service(fake.address, "gpu_server"))
    assert (result.state, result.failure) == ("failed", "model") and "out of memory" in result.message


GARBAGE: list[Any] = [
    b"",
    "<html><body>Welcome to nginx!</body></html>",
    "null",
    "[]",
    "{}",
    '"ok"',
    '{"data": 7, "results": "x", "choices": {}, "text": [], "rankings": [], "scores": [], "status": 1}',
    '{"data": [{"index": 0, "embedding": "AAAA"}], "choices": [{}], "results": [{"index": 5, "score": "NaN"}]}',
    '{"data": [{"id": 3}], "choices": [{"message": {"content": null}}], "results": [null], "text": null}',
    '{"dense_embeddings": [[1, 2], [NaN, 2]], "rankings": [0, 0], "scores": [1, 2]}',
    "[" * 100_000,
    b"\x00\xff\xfe garbage",
    "1" * 10_000,
]


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("which", ["liveness", "functional"])
def test_garbage_with_status_200_is_never_health(kind, which):
    garbage = [*GARBAGE, b"{" + b" " * 2_000_000 + b"}"]
    asked = 0
    with fake_service() as fake:
        for body in garbage:
            for path in ("/health", "/v1/models", "/version", "/status"):
                fake.answers[f"GET {path}"] = body
            for path in ("/embed", "/rerank", "/v1/rerank", "/v1/embeddings", "/v1/chat/completions", "/v1/audio/transcriptions"):
                fake.answers[f"POST {path}"] = body
            if kind == "rerank" and which == "liveness":
                fake.answers["GET /health"] = JSONResponse({"detail": "Not Found"}, 404)
            result = probe(service(fake.address, kind, model="m"), which)
            assert result.state == "failed", (body[:80], result)
            assert result.failure == "bad_answer", (body[:80], result)
            asked += 1
    assert asked == len(garbage)


def test_an_answer_is_cut_at_the_limit():
    def flood(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        while True:
            connection.sendall(b" " * 65536)

    with fake_port(flood) as port:
        result = probe(service(f"http://127.0.0.1:{port}", "openai-chat"))
    assert result.failure == "bad_answer" and "larger than 1,048,576 bytes" in result.message


# ------------------------------------------------------------------------------------------------------- models' lists


def test_the_models_served_are_told_and_the_one_wanted_must_be_among_them():
    with fake_service({"GET /v1/models": {"object": "list", "data": [{"id": "qwen"}, {"id": "bge"}]}}) as fake:
        for url in (fake.address, f"{fake.address}/v1", f"{fake.address}/v1/", f"{fake.address}/v1/chat/completions"):
            result = probe(service(url, "openai-chat", model="qwen"))
            assert (result.state, result.models) == ("ok", ("qwen", "bge"))
        result = probe(service(fake.address, "openai-chat", model="llama"))
    assert (result.state, result.failure) == ("failed", "model")
    assert "qwen" in result.message and "llama" in result.message


def test_a_server_without_a_list_of_models_is_asked_for_its_health():
    with fake_service({"GET /health": b""}) as fake:
        result = probe(service(fake.address, "openai-embeddings"))
        assert result.state == "ok" and result.models is None
        fake.answers.clear()
        result = probe(service(f"{fake.address}/wrong", "openai-embeddings"))
    assert (result.state, result.failure) == ("failed", "not_found")


def test_the_gpu_server_tells_device_and_models():
    health = {"status": "healthy", "device": "cuda", "gpu": "NVIDIA L4", "model": "m3", "models": [{"name": "m3"}, {"name": "r"}]}
    with fake_service({"GET /health": health}) as fake:
        result = probe(service(fake.address, "gpu_server"))
        assert (result.state, result.device, result.models) == ("ok", "cuda (NVIDIA L4)", ("m3", "r"))
        fake.answers["GET /health"] = {"status": "healthy", "device": "cpu", "model": "BAAI/bge-reranker-v2-m3"}
        result = probe(service(fake.address, "gpu_server"))
    assert (result.device, result.models) == ("cpu", ("BAAI/bge-reranker-v2-m3",))


# ------------------------------------------------------------------------------------------------------------ secrets


def test_keys_never_come_back_out():
    async def echo(request: Request) -> Response:
        said = f"Incorrect API key provided: {request.headers['authorization']} / {request.headers['x-api-key']}"
        return JSONResponse({"error": {"message": said}}, 401)

    with fake_service({"GET /v1/models": echo}) as fake:
        asked = service(fake.address, "openai-chat", api_key=KEY, headers={"X-Api-Key": "other-secret-0002"})
        result = probe(asked)
        assert fake.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert result.failure == "authentication" and "***" in result.message
    for text in (json.dumps(result.to_json()), repr(result), repr(asked), asked.address):
        assert KEY not in text and "other-secret-0002" not in text


def test_user_and_password_of_an_url_are_sent_and_not_shown():
    with fake_service({"GET /page": "ok"}) as fake:
        asked = service(fake.address.replace("http://", "http://user:pa%40ssword@") + "/page?token=t0psecret")
        result = probe(asked)
        sent = fake.asked[0].headers
    assert result.state == "ok" and sent["authorization"] == "Basic dXNlcjpwYUBzc3dvcmQ=" and "pa%40" not in sent["host"]
    assert result.address == f"{fake.address}/page"
    for secret in ("pa%40ssword", "pa@ssword", "t0psecret", "dXNlcjpwYUBzc3dvcmQ="):
        assert secret not in repr(asked) + repr(result)
        assert secret not in asked.said(f"it said {secret}")


def test_a_key_that_no_header_can_hold_is_not_repeated():
    with fake_service({"GET /": "ok"}) as fake:
        result = probe(service(fake.address, api_key="bad\nsecret-key"))
    assert result.failure == "bad_input" and "secret-key" not in repr(result)


def test_a_redirect_is_not_followed_and_takes_no_key_along():
    with fake_service({"GET /v1/models": {"data": []}}) as other:
        target = f"{other.address}/v1/models?key={KEY}"
        with fake_service({"GET /v1/models": RedirectResponse(target), "GET /": RedirectResponse("/login")}) as fake:
            result = probe(service(fake.address, "openai-chat", api_key=KEY))
            alive = probe(service(fake.address))
    assert (result.state, result.failure) == ("failed", "bad_answer") and "redirect" in result.message
    assert other.asked == [] and KEY not in repr(result)
    assert alive.state == "ok" and "/login" in alive.notes[0]


def test_a_proxy_of_the_environment_is_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with fake_service({"GET /": "ok"}) as fake:
        assert probe(service(fake.address)).state == "ok"


# --------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("changes", "status", "message", "step"),
    [
        ({}, 401, "needs a key: set api_key_env (answered 401: no)", "Set api_key_env of probed"),
        ({}, 403, "needs a key: set api_key_env (answered 403: no)", "environment variable"),
        (
            {"api_key": KEY, "key_setting": "api_key_env (LLM_KEY)"},
            401,
            "key refused (answered 401: no)",
            "Compare the key in api_key_env (LLM_KEY)",
        ),
        (
            {"api_key": KEY, "key_setting": "api_key"},
            403,
            "the key may not do this (answered 403: no)",
            "Give the key in api_key",
        ),
        ({"headers": {"X-Api-Key": KEY}}, 401, "key refused (answered 401: no)", "the key in headers of probed"),
        ({"key_setting": "llm.api_key"}, 401, "needs a key: set llm.api_key (answered 401: no)", "Set llm.api_key to the key"),
    ],
)
@pytest.mark.parametrize("kind", ["http", *HTTP_KINDS])
def test_a_service_that_wants_a_key_says_what_to_set(kind: Any, changes: Any, status: int, message: str, step: str):
    no = JSONResponse({"detail": "no"}, status)
    paths = ("GET /", "GET /health", "GET /v1/models")
    with fake_service(dict.fromkeys(paths, no)) as fake:
        result = probe(service(fake.address, kind, **changes))
    assert (result.state, result.failure, result.message) == ("failed", "authentication", message)
    assert result.next_step.startswith(step) or step in result.next_step


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("which", ["liveness", "functional"])
def test_every_request_of_a_probe_carries_the_key(kind: Any, which: Any):
    """A fake that answers what belongs to each path, to who shows the key, and 401 to anybody else."""
    answers: dict[str, Any] = {
        "GET /health": {"status": "healthy", "models": [{"kind": "embedder", "name": "m"}, {"kind": "reranker", "name": "r"}]},
        "GET /v1/models": {"data": [{"id": "m"}]},
        "GET /version": {"version": "1"},
        "GET /status": {"version": "1"},
        "POST /embed": {"dense_embeddings": [[1.0, 0.0], [0.0, 1.0]]},
        "POST /rerank": {"rankings": [0, 1], "scores": [0.9, 0.1]},
        "POST /v1/embeddings": {"data": [{"index": 0, "embedding": [1.0, 0.0]}, {"index": 1, "embedding": [0.0, 1.0]}]},
        "POST /v1/chat/completions": {"choices": [{"message": {"content": "a"}}]},
        "POST /v1/audio/transcriptions": {"text": "a"},
    }

    def guarded(answer: Any) -> Any:
        async def serve(request: Request) -> Response:
            known = request.headers.get("authorization") == f"Bearer {KEY}"
            return JSONResponse(answer) if known else JSONResponse({"detail": "no"}, 401)

        return serve

    with fake_service({path: guarded(answer) for path, answer in answers.items()}) as fake:
        assert probe(service(fake.address, kind), which).failure == "authentication"
        fake.asked.clear()
        assert probe(service(fake.address, kind, api_key=KEY), which).up
        assert fake.asked and {asked.headers.get("authorization") for asked in fake.asked} == {f"Bearer {KEY}"}


def test_the_page_of_metrics_is_asked_for_with_the_key():
    with fake_service({"GET /metrics": JSONResponse({"detail": "no"}, 401)}) as fake:
        with pytest.raises(ServiceError, match="needs a key: set api_key_env"):
            engine_metrics(service(fake.address, "gpu_server"))
        with pytest.raises(ServiceError, match="key refused"):
            engine_metrics(service(fake.address, "gpu_server", api_key=KEY))
    assert fake.asked[-1].headers["authorization"] == f"Bearer {KEY}"


# ------------------------------------------------------------------------------------------------------- broken answers

SIGN_IN = "<!DOCTYPE html>\n<html><head><title>Sign in\n to Corp</title></head><body>password</body></html>"


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "text/plain", "application/json"])
@pytest.mark.parametrize("kind", [kind for kind in HTTP_KINDS if kind != "rerank"])
def test_a_sign_in_page_with_status_200_is_named(kind: Any, content_type: str):
    page = Response(SIGN_IN, media_type=content_type)
    with fake_service({"GET /health": page, "GET /v1/models": page}) as fake:
        result = probe(service(fake.address, kind))
    assert (result.state, result.failure) == ("failed", "bad_answer")
    assert "a web page (“Sign in to Corp”) where JSON was expected" in result.message and "sign-in" in result.next_step


def test_a_sign_in_page_is_no_rerankers_health_whatever_its_type():
    with fake_service({"GET /health": Response(SIGN_IN, media_type="text/plain")}) as fake:
        result = probe(service(fake.address, "rerank"))
    assert (result.state, result.failure) == ("failed", "bad_answer") and "web page" in result.message


def test_a_compressed_answer_is_not_unpacked():
    bomb = gzip.compress(b" " * 100_000_000)
    assert len(bomb) < 200_000
    packed = Response(bomb, headers={"content-encoding": "gzip"}, media_type="application/json")
    with fake_service({"GET /v1/models": packed, "GET /metrics": packed, "GET /": packed}) as fake:
        result = probe(service(fake.address, "openai-chat"))
        text = probe(service(fake.address, expect_text="x"), "functional")
        with pytest.raises(ServiceError, match="compressed"):
            engine_metrics(service(fake.address, "openai-chat"))
        assert {asked.headers["accept-encoding"] for asked in fake.asked} == {"identity"}
    assert (result.failure, result.message) == ("bad_answer", "the answer is compressed (gzip), which nobody asked for")
    assert text.failure == "bad_answer" and "Accept-Encoding" in text.next_step


@pytest.mark.parametrize("location", ["/loop", "loop", "HTTP://127.0.0.1:{port}/loop", "http://127.0.0.1:{port}/loop#x"])
def test_a_redirect_to_itself_is_no_sign_of_life(location: str):
    with fake_service() as fake:
        target = location.format(port=fake.port)
        fake.answers["GET /loop"] = Response(status_code=302, headers={"location": target})
        result = probe(service(f"{fake.address}/loop"))
        fake.answers["GET /loop"] = Response(status_code=302, headers={"location": "/loop?x=1"})
        assert probe(service(f"{fake.address}/loop")).state == "ok", "another address is none of our business"
    assert (result.state, result.failure) == ("failed", "bad_answer") and "to itself" in result.message


@pytest.mark.parametrize(
    ("data", "failure", "message", "step"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_answer", "begins with “SSH-2.0-OpenSSH_9.2”", "url"),
        (b"<html>HTTP/0.9 says hello</html>", "bad_answer", "begins with “<html>HTTP/0.9 says", "url"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "bad_answer", "binary data", "gRPC"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "tls", "speaks TLS", "https://"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 500 + b"\r\n", "bad_answer", "100 headers", "url"),
        (
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 66\r\n\r\n<html>The plain HTTP request was sent to HTTPS port (nginx) </html>",
            "tls",
            "speaks TLS",
            "https://",
        ),
    ],
)
def test_what_speaks_something_else_is_told(data: bytes, failure: str, message: str, step: str):
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(data)

    with fake_port(serve) as port:
        result = probe(service(f"http://127.0.0.1:{port}"))
    assert (result.state, result.failure) == ("failed", failure)
    assert message in result.message and step in result.next_step


def test_a_real_tls_server_asked_without_tls(tmp_path: Path):
    with fake_service({"GET /": "ok"}, make_certificate(tmp_path)) as fake:
        result = probe(service(fake.address.replace("https:", "http:")))
    assert result.state == "failed" and result.failure in ("tls", "connection"), result


def test_chunks_without_end_stop_at_the_time_limit():
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1\r\nx\r\n")
            time.sleep(0.02)

    with fake_port(serve) as port:
        result = probe(service(f"http://127.0.0.1:{port}", "openai-chat", timeout_seconds=1.0))
    assert result.failure == "timeout" and "finish" in result.message


def test_an_ipv6_address_is_asked_and_written_with_brackets():
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        port = listener.getsockname()[1]
        refused = probe(service(f"http://[::1]:{port}"))
        assert refused.failure == "refused" and f"[::1]:{port}" in refused.message
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

        asked: list[bytes] = []
        thread = threading.Thread(target=serve)
        thread.start()
        result = probe(service(f"http://[::1]:{port}"))
        thread.join(10)
    assert result.state == "ok" and f"Host: [::1]:{port}".encode() in asked[0] and result.address == f"http://[::1]:{port}"


# ---------------------------------------------------------------------------------------------------------------- TLS


def test_a_self_signed_certificate_and_one_of_tomorrow_each_say_what_to_do(tmp_path: Path):
    with fake_service({"GET /": "ok"}, make_certificate(tmp_path / "a")) as fake:
        unknown = probe(service(fake.address))
    assert unknown.failure == "tls" and f"localhost:{fake.port} is not trusted" in unknown.message
    assert "ca_file" in unknown.next_step
    early = make_certificate(tmp_path / "b", begins_in_days=1.0)
    with fake_service({"GET /": "ok"}, early) as fake:
        result = probe(service(fake.address, ca_file=early.authority))
    assert result.failure == "tls" and "does not hold yet" in result.message and "clock" in result.next_step


def test_a_trusted_certificate_and_its_days(tmp_path: Path):
    certificate = make_certificate(tmp_path, days=30)
    with fake_service({"GET /": "ok"}, certificate) as fake:
        result = probe(service(fake.address, ca_file=certificate.authority))
        assert result.state == "ok" and result.latency.tls_seconds is not None
        assert result.certificate_days == pytest.approx(30, abs=0.1)
        assert metrics(result)["service.certificate_days"] == result.certificate_days
        later = probe(service(fake.address, ca_file=certificate.authority), now=lambda: time.time() + 20 * 86_400)
        assert (later.state, later.failure) == ("degraded", "tls") and "10.0 days" in later.message
        assert later.up
        patient = service(fake.address, ca_file=certificate.authority, thresholds=Thresholds(certificate_days=None))
        assert probe(patient, now=lambda: time.time() + 20 * 86_400).state == "ok"


def test_an_unknown_authority(tmp_path: Path):
    with fake_service({"GET /": "ok"}, make_certificate(tmp_path, days=9)) as fake:
        result = probe(service(fake.address, api_key=KEY))
        assert (result.state, result.failure) == ("failed", "tls") and "not trusted" in result.message
        assert result.certificate_days == pytest.approx(9, abs=0.1), "told all the same"
        assert fake.asked == [], "nothing was sent"
        unchecked = probe(service(fake.address, verify=False))
    assert unchecked.state == "degraded" and unchecked.certificate_days == pytest.approx(9, abs=0.1)


def test_an_expired_certificate(tmp_path: Path):
    certificate = make_certificate(tmp_path, days=-5)
    with fake_service({"GET /": "ok"}, certificate) as fake:
        result = probe(service(fake.address, ca_file=certificate.authority))
    assert (result.state, result.failure) == ("failed", "tls") and "expired" in result.message
    assert result.certificate_days == pytest.approx(-5, abs=0.1)


def test_a_certificate_for_another_name(tmp_path: Path):
    certificate = make_certificate(tmp_path, name="other.example")
    with fake_service({"GET /": "ok"}, certificate) as fake:
        result = probe(service(fake.address, ca_file=certificate.authority))
    assert result.failure == "tls" and "not made out to localhost" in result.message


def test_no_tls_where_it_is_wanted(tmp_path: Path):
    with fake_service({"GET /": "ok"}) as fake:
        result = probe(service(fake.address.replace("http:", "https:")))
    assert result.failure == "tls" and "does not speak TLS" in result.message
    missing = probe(service("https://127.0.0.1:1", ca_file=tmp_path / "none.pem"))
    assert missing.failure == "tls" and "ca_file" in missing.message


def test_a_handshake_that_hangs():
    with fake_port(silence) as port:
        result = probe(service(f"https://127.0.0.1:{port}", timeout_seconds=1.0))
    assert result.failure == "timeout" and "TLS" in result.message


# ---------------------------------------------------------------------------------------------------- slow, odd, /metrics


def test_a_slow_service_is_degraded():
    with fake_service({"GET /": "ok"}) as fake:
        slow = probe(service(fake.address, thresholds=Thresholds(liveness_seconds=0.0)))
        functional = probe(service(fake.address, thresholds=Thresholds(liveness_seconds=0.0)), "functional")
    assert (slow.state, slow.failure) == ("degraded", "timeout") and slow.up and "more than 0 s" in slow.message
    assert functional.state == "ok", "each probe has its own threshold"


def test_what_a_server_says_is_kept_to_one_short_line():
    with fake_service({"GET /": JSONResponse({"error": "a\r\n\x1b[31mb\u202e" + "x" * 5000}, 500)}) as fake:
        message = probe(service(fake.address)).message
    assert message.isprintable() and len(message) <= 330 and message.endswith("…")


def test_a_fault_of_ours_is_a_result_too(caplog):
    result = probe(replace(service("http://127.0.0.1:1", api_key=KEY), kind="nothing"))  # type: ignore[arg-type]
    assert (result.state, result.failure) == ("failed", "internal")
    assert KEY not in caplog.text


def test_metrics_of_an_engine_are_read():
    page = (Path(__file__).parent / "data/vllm/v1_first.txt").read_text()
    with fake_service({"GET /metrics": page}) as fake:
        sample = engine_metrics(service(f"{fake.address}/v1", "openai-chat"))
        assert sample.gauges["running"] == 3.0
        fake.answers["GET /metrics"] = "go_goroutines 7\n"
        with pytest.raises(ServiceError) as caught:
            engine_metrics(service(fake.address, "openai-chat"))
    assert caught.value.failure == "bad_answer"
    with fake_port(says(b"garbage\r\n")) as port, pytest.raises(ServiceError):
        engine_metrics(service(f"http://127.0.0.1:{port}", "openai-chat"))
