"""Fake services on loopback, named as fakes: a web server that answers what a test tells it to, certificates of its own making."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

READY_SECONDS = 120.0  # real servers import a lot, on machines that do other things

Handler = Callable[[Request], Awaitable[Response]]
Answer = Response | Handler | Mapping[str, Any] | list[Any] | str | bytes


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class FakeService:
    """Answers each "METHOD /path" with what stands in `answers`, everything else with 404; keeps what it was asked."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    address: str = ""
    port: int = 0

    async def handle(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append(Asked(request.method, request.url.path, dict(request.headers), body))
        answer = self.answers.get(f"{request.method} {request.url.path}")
        if answer is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        if isinstance(answer, Response):
            return Response(bytes(answer.body), answer.status_code, dict(answer.headers))
        if isinstance(answer, (str, bytes)):
            return Response(answer)
        if isinstance(answer, (dict, list)):
            return JSONResponse(answer)
        assert callable(answer)
        return await answer(request)


@contextlib.contextmanager
def fake_service(answers: dict[str, Answer] | None = None, certificate: Certificate | None = None) -> Iterator[FakeService]:
    """A running FakeService; over TLS where a certificate is given."""
    fake = FakeService(answers or {})
    app = Starlette(routes=[Route("/{path:path}", fake.handle, methods=["GET", "POST"])])
    tls = {"ssl_certfile": str(certificate.chain), "ssl_keyfile": str(certificate.key)} if certificate else {}
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", **tls))  # type: ignore[arg-type]
    listener = socket.create_server(("127.0.0.1", 0))
    fake.port = listener.getsockname()[1]
    fake.address = f"{'https' if certificate else 'http'}://{'localhost' if certificate else '127.0.0.1'}:{fake.port}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def fake_port(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port whose every connection is given to `serve`, in a thread of its own; closed when that returns."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=run, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def silence(connection: socket.socket) -> None:
    """Take all that comes and say nothing, until the other side goes."""
    while connection.recv(65536):
        pass


def says(data: bytes) -> Callable[[socket.socket], None]:
    """Say this to whoever has sent something, and close when the other side goes."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(data)
        silence(connection)

    return serve


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + READY_SECONDS
    while not condition():
        assert time.monotonic() < end, "not ready in time"
        assert process is None or process.poll() is None, "the server ended"
        time.sleep(0.05)


def takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def running(command: list[str], port: int, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A real server as a process, up when it takes connections, killed at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        wait_for(lambda: takes_connections(port), process)
        yield process
    finally:
        process.kill()
        process.wait(20)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate and key, and its authority's certificate, as PEM files."""

    chain: Path
    key: Path
    authority: Path


def make_certificate(folder: Path, *, days: float = 30.0, name: str = "localhost", begins_in_days: float = -400.0) -> Certificate:
    """Signed by an authority made on the spot; negative `days` make one that expired so long ago."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Fake Authority")])
    basic = x509.CertificateBuilder().issuer_name(issuer)
    authority = (
        basic.subject_name(issuer)
        .not_valid_before(now - datetime.timedelta(days=400))
        .public_key(authority_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_after(now + datetime.timedelta(days=400))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = [x509.DNSName(name)] + ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if name == "localhost" else [])
    leaf = (
        basic.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=begins_in_days))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificate(folder / "chain.pem", folder / "key.pem", folder / "authority.pem")
    made.chain.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    made.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    encoding, shape = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    made.key.write_bytes(key.private_bytes(encoding, shape, serialization.NoEncryption()))
    return made
