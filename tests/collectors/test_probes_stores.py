"""Probes of stores and ports: real Redis, PostgreSQL and Milvus Lite, and fakes for the states that those do not take on demand."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.probes import probe
from collectors.probes_milvus import protobuf_fields
from collectors.services import ProbeResult, Service, metrics
from tests.collectors.service_fakes import (
    fake_port,
    fake_service,
    make_certificate,
    running,
    says,
    silence,
    takes_connections,
    wait_for,
)
from tests.ports import free_port

PASSWORD = "correct-horse-battery"


def ask(url: str, kind: Any, which: Any = "functional", **changes: Any) -> ProbeResult:
    return probe(Service("probed", kind, url, **{"timeout_seconds": 30.0, **changes}), which)


# ----------------------------------------------------------------------------------------------------------------- tcp


def test_a_port_that_is_open_and_one_that_is_not():
    with fake_port(silence) as port:
        for url in (f"127.0.0.1:{port}", f"tcp://127.0.0.1:{port}", f"tcp://localhost:{port}"):
            result = ask(url, "tcp", "liveness")
            assert result.state == "ok" and result.latency.connect_seconds is not None
    result = ask(f"127.0.0.1:{port}", "tcp")
    assert (result.state, result.failure) == ("failed", "refused")


# --------------------------------------------------------------------------------------------------------------- Redis


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD]
    acl = ["--user", "reader", "on", ">" + PASSWORD, "~*", "+@read", "+ping"]
    with running([*command, *acl], port, cwd=tmp_path_factory.mktemp("redis")):
        yield port


def redis_cli(port: int, *words: str) -> str:
    command = ["redis-cli", "-p", str(port), "-a", PASSWORD, "--no-auth-warning", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def test_redis_answers_and_works(redis_port: int):
    alive = ask(f"redis://:{PASSWORD}@127.0.0.1:{redis_port}/0", "redis", "liveness")
    result = ask(f"redis://127.0.0.1:{redis_port}/3", "redis", api_key=PASSWORD)
    for each in (alive, result):
        assert each.state == "ok", each
        assert each.version and each.version[0].isdigit() and each.measures["memory_used_bytes"] > 100_000
        assert each.latency.first_byte_seconds is not None and each.latency.connect_seconds is not None
        assert PASSWORD not in repr(each)
    assert redis_cli(redis_port, "-n", "3", "KEYS", "*").strip() == "", "our key is gone"


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:{}", "redis://:wrong-password@127.0.0.1:{}", "redis://who:wrong@127.0.0.1:{}"]
)
@pytest.mark.parametrize("which", ["liveness", "functional"])
def test_redis_wants_another_password(redis_port: int, url: str, which: str):
    result = ask(url.format(redis_port), "redis", which)
    assert (result.state, result.failure) == ("failed", "authentication")
    assert "wrong-password" not in repr(result)


def test_a_redis_user_who_may_not_write(redis_port: int):
    url = f"redis://reader:{PASSWORD}@127.0.0.1:{redis_port}"
    alive = ask(url, "redis", "liveness")
    assert alive.state == "ok" and alive.version is None and "INFO" in alive.notes[0]
    result = ask(url, "redis")
    assert (result.state, result.failure) == ("failed", "authentication") and "SET" in result.message.upper()


def test_redis_full_or_a_replica(redis_port: int):
    url = f"redis://:{PASSWORD}@127.0.0.1:{redis_port}"
    try:
        redis_cli(redis_port, "CONFIG", "SET", "maxmemory", "1")
        full = ask(url, "redis")
        assert (full.state, full.failure) == ("failed", "overloaded")
        alive = ask(url, "redis", "liveness")
        assert alive.state == "ok" and metrics(alive)["service.memory_used_ratio"] > 1
        redis_cli(redis_port, "CONFIG", "SET", "maxmemory", "0")
        redis_cli(redis_port, "REPLICAOF", "127.0.0.1", "1")
        replica = ask(url, "redis")
        assert (replica.state, replica.failure) == ("failed", "server_error") and "replica" in replica.message
    finally:
        redis_cli(redis_port, "CONFIG", "SET", "maxmemory", "0")
        redis_cli(redis_port, "REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(
    "data, state, failure",
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading", "server_error"),
        (b"-MISCONF Errors writing to the AOF file\r\n", "failed", "server_error"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "failed", "bad_answer"),
        (b"$99999999999\r\n", "failed", "bad_answer"),
        (b"$x\r\n", "failed", "bad_answer"),
        (b":1\r\n", "failed", "bad_answer"),
        (b"+OK\r\n", "failed", "bad_answer"),
        (b"+" + b"x" * 100_000, "failed", "bad_answer"),
    ],
)
def test_what_else_a_redis_port_may_say(data: bytes, state: str, failure: str):
    with fake_port(says(data)) as port:
        result = ask(f"redis://127.0.0.1:{port}", "redis", "liveness")
    assert (result.state, result.failure) == (state, failure)


def test_redis_that_hangs_or_hangs_up():
    with fake_port(silence) as port:
        assert ask(f"redis://127.0.0.1:{port}", "redis", timeout_seconds=0.2).failure == "timeout"

    def cut_off(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"$100\r\nshort")

    for serve in (cut_off, lambda connection: None):
        with fake_port(serve) as port:
            assert ask(f"redis://127.0.0.1:{port}", "redis", "liveness").failure == "connection"
    with fake_port(lambda connection: None) as port:
        assert ask(f"redis://127.0.0.1:{port}", "redis").failure == "connection"
    assert ask("http://127.0.0.1:1", "redis").failure == "bad_input"


def test_redis_over_tls(tmp_path: Path):
    made, port = make_certificate(tmp_path / "made", days=40), free_port()
    files = ["--tls-cert-file", str(made.chain), "--tls-key-file", str(made.key), "--tls-ca-cert-file", str(made.authority)]
    command = ["redis-server", "--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", "--save", "", *files]
    with running(command, port, cwd=tmp_path):
        result = ask(f"rediss://localhost:{port}", "redis", ca_file=made.authority)
        assert result.state == "ok" and result.certificate_days == pytest.approx(40, abs=0.1), result
        assert ask(f"rediss://localhost:{port}", "redis").failure == "tls"


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


def postgres_folder() -> Path:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [str(Path(shutil.which("postgres") or "").parent)]
    return Path(found[-1])


@pytest.fixture(scope="module")
def postgres_port() -> Iterator[int]:
    """A real cluster. It refuses to run as root: there it is the package's own user."""
    home, port = Path(tempfile.mkdtemp(prefix="pg")), free_port()
    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    (home / "password").write_text(PASSWORD)
    if user:
        for path in (home, home / "password"):
            shutil.chown(path, "postgres")
    folder, data = postgres_folder(), str(home / "data")
    options = ["-D", data, "-U", "probe", "-A", "scram-sha-256", f"--pwfile={home / 'password'}", "--no-sync", "--no-locale"]
    subprocess.run([folder / "initdb", *options, "-E", "UTF8"], check=True, capture_output=True, timeout=150, cwd=home, **user)
    command = [str(folder / "postgres"), "-D", data, "-p", str(port), "-k", str(home), "-h", "127.0.0.1", "-c", "fsync=off"]
    try:
        with running(command, port, cwd=home, **user):
            wait_for(lambda: ask(f"postgresql://127.0.0.1:{port}", "postgres", "liveness").state == "ok")
            yield port
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_postgres_answers_and_works(postgres_port: int):
    alive = ask(f"postgresql://127.0.0.1:{postgres_port}/postgres", "postgres", "liveness")
    assert alive.state == "ok", "whether it takes logins needs none"
    for url, key in (
        (f"postgresql://probe:{PASSWORD}@127.0.0.1:{postgres_port}/postgres", None),
        (f"postgres://probe@127.0.0.1:{postgres_port}/postgres", PASSWORD),
    ):
        result = ask(url, "postgres", api_key=key)
        assert result.state == "ok", result
        assert result.version and float(result.version) >= 12 and PASSWORD not in repr(result)


@pytest.mark.parametrize(
    "login, database, failure",
    [
        ("probe:wrong-password@", "postgres", "authentication"),
        ("nobody:wrong-password@", "postgres", "authentication"),
        ("probe@", "postgres", "authentication"),
        (f"probe:{PASSWORD}@", "missing", "not_found"),
    ],
)
def test_postgres_refuses(postgres_port: int, login: str, database: str, failure: str):
    result = ask(f"postgresql://{login}127.0.0.1:{postgres_port}/{database}", "postgres")
    assert (result.state, result.failure) == ("failed", failure), result
    assert "wrong-password" not in repr(result) and PASSWORD not in repr(result)


def test_postgres_without_a_connection_left(postgres_port: int):
    import psycopg

    admin = f"postgresql://probe:{PASSWORD}@127.0.0.1:{postgres_port}/postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0 PASSWORD 'correct-horse-battery'")
    result = ask(f"postgresql://crowded:{PASSWORD}@127.0.0.1:{postgres_port}/postgres", "postgres")
    assert (result.state, result.failure) == ("failed", "overloaded"), result


STARTING = b"E\0\0\0\x4cSFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0Fpostmaster.c\0\0"
STARTING = b"E" + (len(STARTING) - 1).to_bytes(4, "big") + STARTING[5:]


@pytest.mark.parametrize("which", ["liveness", "functional"])
def test_postgres_that_starts(which: str):
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(STARTING)

    with fake_port(serve) as port:
        result = ask(f"postgresql://probe@127.0.0.1:{port}/postgres?sslmode=disable&gssencmode=disable", "postgres", which)
    assert result.state == "loading", result


@pytest.mark.parametrize("which", ["liveness", "functional"])
def test_a_port_that_is_no_postgres(which: str):
    with fake_port(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        url = f"postgresql://probe@127.0.0.1:{port}/postgres?sslmode=disable&gssencmode=disable"
        result = ask(url, "postgres", which)
    assert result.state == "failed" and result.failure in ("bad_answer", "connection"), result


def test_postgres_that_hangs_at_the_query():
    with fake_port(says(b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I")) as port:
        started = time.monotonic()
        url = f"postgresql://probe@127.0.0.1:{port}/postgres?sslmode=disable&gssencmode=disable"
        result = ask(url, "postgres", timeout_seconds=0.5)
    assert (result.state, result.failure) == ("failed", "timeout"), result
    assert time.monotonic() - started < 30


def test_a_postgres_port_that_is_silent():
    with fake_port(silence) as port:
        result = ask(f"postgresql://probe@127.0.0.1:{port}/postgres", "postgres", "liveness", timeout_seconds=0.3)
    assert (result.state, result.failure) == ("failed", "timeout"), result


def test_a_broken_postgres_url():
    assert ask("postgresql://127.0.0.1:1/db?nonsense=1", "postgres").failure in ("bad_input", "refused")
    assert ask("http://127.0.0.1:80", "postgres").failure in ("bad_input", "refused")


# -------------------------------------------------------------------------------------------------------------- Milvus


@pytest.fixture(scope="module")
def milvus_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port, data = free_port(), tmp_path_factory.mktemp("milvus")
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(data), "--host", "127.0.0.1", "--port", str(port)]
    with running(command, port):
        yield port


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}", "tcp://localhost:{}"])
def test_milvus_answers_and_works(milvus_port: int, form: str):
    alive = ask(form.format(milvus_port), "milvus", "liveness")
    result = ask(form.format(milvus_port), "milvus")
    for each in (alive, result):
        assert each.state == "ok", each
        assert each.version and each.latency.connect_seconds is not None
    assert result.measures["collections"] == 0.0


def test_the_collections_are_counted(milvus_port: int):
    from pymilvus import MilvusClient

    client = MilvusClient(f"http://127.0.0.1:{milvus_port}", timeout=60)
    client.create_collection("probed", dimension=4)
    client.close()
    assert ask(f"127.0.0.1:{milvus_port}", "milvus").measures["collections"] == 1.0


def test_what_is_no_milvus():
    with fake_service() as fake:
        result = ask(fake.address, "milvus", timeout_seconds=3)
        assert result.state == "failed" and result.failure in ("bad_answer", "timeout"), result
    with fake_port(silence) as port:
        assert ask(f"127.0.0.1:{port}", "milvus", timeout_seconds=0.5).failure == "timeout"
    assert ask(f"http://127.0.0.1:{free_port()}", "milvus").failure == "refused"


def grpc_server(answers: dict[str, Callable[[Any], bytes]]) -> Any:
    """A fake Milvus: a real gRPC server whose methods answer with bytes of ours."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            answer = answers.get(details.method.rpartition("/")[2])
            return answer and grpc.unary_unary_rpc_method_handler(lambda _, context: answer(context))

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Handler(),))
    return server


def test_milvus_that_is_ill_or_refuses():
    import grpc

    asked: list[Any] = []

    def refuse(context: Any) -> bytes:
        asked.append(dict(context.invocation_metadata()))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")
        return b""

    answers: dict[str, Callable[[Any], bytes]] = {
        "GetVersion": lambda _: b"\x12\x062.6.11",
        "CheckHealth": lambda _: b"\x10\x00\x1a\x11querynode is down",
    }
    server = grpc_server(answers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        for which in ("liveness", "functional"):
            answers["ShowCollections"] = lambda _: b"\x12\x01a\x12\x01b"
            ill = ask(f"127.0.0.1:{port}", "milvus", which)
            assert (ill.state, ill.failure, ill.version) == ("degraded", "server_error", "2.6.11")
            assert "querynode is down" in ill.message
        answers["CheckHealth"] = lambda _: b"\x10\x01"
        assert ask(f"127.0.0.1:{port}", "milvus").measures["collections"] == 2.0
        answers["ShowCollections"] = lambda _: b"\x0a\x0f\x08\x01\x12\x09no quorum\x18\x05"
        assert ask(f"127.0.0.1:{port}", "milvus").failure == "server_error"
        answers["GetVersion"] = lambda _: b"\xff\xff\xff"
        assert ask(f"127.0.0.1:{port}", "milvus").failure == "bad_answer"
        answers["GetVersion"] = refuse
        refused = ask(f"http://root:{PASSWORD}@127.0.0.1:{port}", "milvus")
        assert refused.failure == "authentication" and PASSWORD not in repr(refused)
        assert asked[0]["authorization"] == "cm9vdDpjb3JyZWN0LWhvcnNlLWJhdHRlcnk="
        del answers["CheckHealth"]
        answers["GetVersion"] = lambda _: b"\x12\x062.6.11"
        assert "no health check" in ask(f"127.0.0.1:{port}", "milvus", "liveness").notes[0]
    finally:
        server.stop(0).wait(5)
    wait_for(lambda: not takes_connections(port))


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_an_error(data: bytes):
    try:
        fields = protobuf_fields(data)
    except ValueError:
        return
    assert all(isinstance(value, int | bytes) for _, value in fields)


def test_fields_of_a_message():
    assert protobuf_fields(b"\x08\x96\x01\x12\x03abc\x1d\x01\x00\x00\x00") == [(1, 150), (2, b"abc"), (3, b"\x01\0\0\0")]
    with pytest.raises(ValueError):
        protobuf_fields(b"\x12\x05ab")


def test_a_port_is_needed():
    assert ask("tcp://127.0.0.1", "tcp").failure == "bad_input"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert ask(f"127.0.0.1:{taken.getsockname()[1]}", "tcp").failure == "refused", "bound, but nobody listens"
