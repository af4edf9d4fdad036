"""Every error of httpx becomes one of ours, with an address and a next step; a new one that nobody mapped fails here."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpcore
import httpx
import pytest

from gpu_server import remote_errors
from gpu_server.endpoint import Endpoint, SettingNames
from gpu_server.errors import BadAnswer, BadInput, ConnectionFailed, EngineError, TimedOut

ENDPOINT = Endpoint("http://h:1", timeout=60, names=SettingNames("GPU_SERVER_URL", "KEY", "MODEL", "TIMEOUT"))
EXPECTED: dict[type[Exception], type[EngineError]] = {
    httpx.ConnectTimeout: TimedOut,
    httpx.ReadTimeout: TimedOut,
    httpx.WriteTimeout: TimedOut,
    httpx.PoolTimeout: TimedOut,
    httpx.ConnectError: ConnectionFailed,
    httpx.ReadError: ConnectionFailed,
    httpx.WriteError: ConnectionFailed,
    httpx.CloseError: ConnectionFailed,
    httpx.ProxyError: ConnectionFailed,
    httpx.UnsupportedProtocol: ConnectionFailed,
    httpx.RemoteProtocolError: ConnectionFailed,
    httpx.LocalProtocolError: BadInput,
    httpx.DecodingError: BadAnswer,
}
GROUPS = {httpx.TransportError, httpx.TimeoutException, httpx.NetworkError, httpx.ProtocolError, httpx.RequestError}


def below(kind: type[Exception]) -> Iterator[type[Exception]]:
    for deeper in kind.__subclasses__():
        yield deeper
        yield from below(deeper)


def test_no_error_of_httpx_is_forgotten() -> None:
    not_met = {httpx.TooManyRedirects}  # redirects are not followed
    assert set(below(httpx.RequestError)) - GROUPS - not_met == set(EXPECTED)


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_is_told_apart_with_address_and_next_step(kind: type[Exception]) -> None:
    error, _ = remote_errors.from_exception(kind("boom"), ENDPOINT, 60.0, answered=False)
    assert type(error) is EXPECTED[kind]
    assert error.address == "http://h:1"
    assert error.next_step


def caused(problem: OSError) -> httpx.ConnectError:
    """As it comes out of httpx: caused by httpcore's, whose argument is the system's."""
    outer = httpx.ConnectError(str(problem))
    outer.__cause__ = httpcore.ConnectError(problem)
    return outer


@pytest.mark.parametrize(
    ("problem", "said", "again"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "nothing listens there", True),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "host name is not known", False),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "host name is not known", True),
        (OSError(113, "No route to host"), "No route to host", True),
    ],
)
def test_connections_that_fail_say_why_and_whether_to_try_again(problem: OSError, said: str, again: bool) -> None:
    failure = remote_errors.from_exception(caused(problem), ENDPOINT, 60.0, answered=False)
    assert said in failure.error.message
    assert "GPU_SERVER_URL" in failure.error.next_step
    assert failure.again is again


def test_a_slow_connection_is_told_from_a_slow_answer() -> None:
    connect, _ = remote_errors.from_exception(httpx.ConnectTimeout("x"), ENDPOINT, 60.0, answered=False)
    read, _ = remote_errors.from_exception(httpx.ReadTimeout("x"), ENDPOINT, 60.0, answered=False)
    assert "no connection" in connect.message
    assert "firewall" in connect.next_step
    assert "no complete answer" in read.message
    assert "TIMEOUT" in read.next_step


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"error": {"message": "a", "type": "t"}}', "a"),
        (b'{"error": "b", "error_type": "Validation"}', "b"),
        (b'{"object": "error", "message": "c", "code": 404}', "c"),
        (b'{"detail": "d"}', "d"),
        (b'{"detail": [{"msg": "e"}]}', '[{"msg":"e"}]'),
        (b'{"status": "loading", "reason": "f"}', "f"),
        (b"<html><body>", "an HTML page"),
        (b"", "empty"),
        (b"Bad Gateway", "text ('Bad Gateway')"),
        (b'"' + b"x" * 5000 + b'"', "x" * 400 + "…"),
    ],
)
def test_what_a_server_says_is_found_in_any_error_body(content: bytes, said: str) -> None:
    assert remote_errors.said(content) == said
