"""One HTTP request over a fresh connection, with its latency taken apart. Knows nothing of services or of what is asked.

No redirect is followed and no proxy used, so that keys go where the settings say and nowhere else. Answers are cut at a limit.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from collectors.connect_timing import Steps, Tls, Wire, connect
from collectors.services import DEFAULT_PORTS, ServiceError

LIMIT_BYTES = 1024 * 1024
PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """`url` without user and password. `body` goes out with a content-length."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    tls: Tls = field(default_factory=Tls)
    limit_bytes: int = LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """`headers` by lower-case name. `truncated`: there was more than the limit. `watched_seconds` is from the request sent to the
    moment when `watch` first said yes, None where it never did."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool
    watched_seconds: float | None


def exchange(request: HttpRequest, deadline: float, steps: Steps, watch: Callable[[bytes], bool] | None = None) -> HttpAnswer:
    """Send and receive, all before `deadline` (`time.monotonic()`). `watch` sees the body so far after each piece of it.

    Raises ServiceError for everything that is no HTTP answer; a status of 500 is an answer.
    """
    parts = urlsplit(request.url)
    if parts.scheme not in ("http", "https"):
        raise ServiceError("bad_input", f"the url begins with {parts.scheme}://, not http:// or https://")
    host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    sock = connect(host, port, deadline, steps, request.tls if parts.scheme == "https" else None)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with sock:
        connection = http.client.HTTPConnection(host, port)
        connection.sock = cast(socket.socket, Wire(sock, deadline, steps))
        try:
            _send(connection, request, target, {"Host": parts.netloc, "Connection": "close", **request.headers})
            with connection.getresponse() as response:
                return _receive(response, request.limit_bytes, steps, watch)
        except TimeoutError:
            raise ServiceError("timeout", _late(steps)) from None
        except http.client.RemoteDisconnected:
            raise ServiceError("connection", "the server closed the connection without an answer") from None
        except http.client.IncompleteRead:
            raise _broken_off() from None
        except http.client.BadStatusLine as problem:
            raise _no_http(str(problem)) from None
        except http.client.UnknownProtocol:
            raise ServiceError("bad_answer", "what answers speaks a version of HTTP that nobody knows") from None
        except http.client.HTTPException as problem:
            raise ServiceError("bad_answer", f"its answer is no proper HTTP: {problem}") from None
        except OSError as problem:
            raise ServiceError("connection", f"the connection broke off: {problem.strerror or 'ended'}") from None


def _send(connection: http.client.HTTPConnection, request: HttpRequest, target: str, headers: Mapping[str, str]) -> None:
    try:
        connection.request(request.method, target, request.body, dict(headers))
    except (ValueError, http.client.InvalidURL):  # its text would repeat the header, and with it the key
        raise ServiceError("bad_input", "the url or a header holds characters that HTTP does not allow") from None
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before all was sent: the answer may be there all the same


def _receive(
    response: http.client.HTTPResponse, limit_bytes: int, steps: Steps, watch: Callable[[bytes], bool] | None
) -> HttpAnswer:
    body, watched = bytearray(), None
    while len(body) <= limit_bytes and (piece := response.read1(PIECE_BYTES)):
        body += piece
        if watch and watched is None and watch(bytes(body)):
            watched = time.monotonic() - (steps.sent_at or 0.0)
    if len(body) <= limit_bytes and response.length:
        raise _broken_off()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return HttpAnswer(response.status, headers, bytes(body[:limit_bytes]), len(body) > limit_bytes, watched)


def _no_http(line: str) -> ServiceError:
    """`line` is what came instead of a status line; a TLS alert (RFC 8446, type 21) means that it wanted a handshake."""
    if line.startswith("\x15\x03"):
        return wants_tls()
    if "\0" in line:
        step = "Another protocol answers there (gRPC, a database): check the port of the url, and the kind of this service."
        return ServiceError("bad_answer", "what answers does not speak HTTP/1.1: it sends binary data", step)
    said = line.strip(" \r\n'")[:60]  # an empty line comes as its repr
    begins = f": it begins with “{said}”" if said else ""
    return ServiceError("bad_answer", f"what answers does not speak HTTP{begins}")


def wants_tls() -> ServiceError:
    return ServiceError("tls", "it speaks TLS, and was asked without", "Write https:// in the url of this service.")


def _broken_off() -> ServiceError:
    return ServiceError("connection", "the connection ended in the middle of the answer")


def _late(steps: Steps) -> str:
    if steps.sent_at is None:
        return "the server did not take the request in time"
    if steps.first_byte_seconds is None:
        return "the server took the request and did not answer in time"
    return "the server began to answer and did not finish in time"
