"""What can go wrong between us and a model server, told apart, each with what to check: httpx's errors and HTTP's statuses.

Every error names the address; none holds a key. Knows nothing of models and dialects beyond the shapes of error bodies.
"""

from __future__ import annotations

import email.utils
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import httpx
import orjson

from gpu_server.endpoint import Endpoint
from gpu_server.errors import (
    AuthenticationFailed,
    BadAnswer,
    BadInput,
    ConnectionFailed,
    EngineError,
    ForwardFailed,
    ModelError,
    Overloaded,
    TimedOut,
    TooLarge,
)

E = TypeVar("E", bound=EngineError)

SAID_CHARS = 400
LISTED_MODELS = 10


class Failure(NamedTuple):
    """A failed attempt; `again`: another one may do better."""

    error: EngineError
    again: bool


# 1) no answer


def from_exception(problem: Exception, endpoint: Endpoint, limit: float, answered: bool) -> Failure:
    """httpx's error as ours. `limit` is what the attempt was given, seconds; `answered`: the answer had begun."""
    names, cause = endpoint.names, _root(problem)
    if isinstance(problem, httpx.TimeoutException):
        return _timed_out(problem, endpoint, limit)
    if isinstance(problem, httpx.DecodingError):
        step = "Check what stands at the address: a proxy may change what comes through."
        return Failure(_made(BadAnswer, endpoint, f"the answer cannot be read: {problem}", step), False)
    if isinstance(problem, (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError)):
        return Failure(_made(ConnectionFailed, endpoint, "the address is none that can be reached", f"Check {names.url}."), False)
    if isinstance(problem, httpx.LocalProtocolError):
        step = "Check the configured headers and the key: HTTP takes printable ASCII."
        return Failure(_made(BadInput, endpoint, "the request cannot be sent as HTTP", step), False)
    if isinstance(problem, httpx.ProxyError):
        step = "Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY in the environment."
        return Failure(_made(ConnectionFailed, endpoint, f"the proxy refused: {problem}", step), True)
    if isinstance(cause, socket.gaierror):
        step = f"Check the host name in {names.url} and this machine's DNS."
        temporary = cause.errno == socket.EAI_AGAIN
        return Failure(_made(ConnectionFailed, endpoint, f"the host name is not known ({cause.strerror})", step), temporary)
    if isinstance(cause, ssl.SSLError):
        reason = getattr(cause, "verify_message", None) or cause.reason or str(cause)
        step = "Check http against https, and the certificate; SSL_CERT_FILE names a CA bundle of your own."
        return Failure(_made(ConnectionFailed, endpoint, f"no TLS connection: {reason}", step), False)
    return _broken(problem, cause, endpoint, answered)


def _timed_out(problem: httpx.TimeoutException, endpoint: Endpoint, limit: float) -> Failure:
    names = endpoint.names
    if isinstance(problem, httpx.ConnectTimeout):
        step = f"Check host and port in {names.url}, and the firewall: a closed one drops connections silently."
        return Failure(_made(TimedOut, endpoint, "no connection was made in time", step), True)
    if isinstance(problem, httpx.PoolTimeout):
        step = "Wait, or lower the load: too many requests to this server are under way."
        return Failure(_made(TimedOut, endpoint, "no connection of the pool became free in time", step), False)
    what = "the request could not be sent" if isinstance(problem, httpx.WriteTimeout) else "no complete answer came"
    less = limit < 0.999 * endpoint.timeout
    given = f"{what} within {limit:.3g} s" + (", the time left before the deadline" if less else "")
    step = f"Look at the server's queue and GPU{'' if less else f', or raise {names.timeout}'}."
    return Failure(_made(TimedOut, endpoint, given, step), False)


def _broken(problem: Exception, cause: BaseException, endpoint: Endpoint, answered: bool) -> Failure:
    url = endpoint.names.url
    if isinstance(cause, ConnectionRefusedError):
        step = f"Start the server, or check host and port in {url}."
        return Failure(_made(ConnectionFailed, endpoint, "the connection was refused: nothing listens there", step), True)
    if isinstance(problem, httpx.ConnectError):
        step = f"Check host, port and network of {url}."
        return Failure(_made(ConnectionFailed, endpoint, f"no connection: {_words(cause)}", step), True)
    if answered:
        step = "Look at the server's log: it ended or was restarted meanwhile."
        error = _made(ConnectionFailed, endpoint, f"the connection broke off in the middle of the answer: {_words(cause)}", step)
        return Failure(error, False)
    step = f"Look at the server's log, and whether {url} speaks HTTP at that port."
    return Failure(_made(ConnectionFailed, endpoint, f"the server broke the connection off: {_words(cause)}", step), True)


def too_late(endpoint: Endpoint) -> Failure:
    step = "Look at the waterfall for what took the time before."
    return Failure(_made(TimedOut, endpoint, "the deadline passed before the request was sent", step), False)


def unsendable(endpoint: Endpoint, problem: Exception) -> BadInput:
    """A text that JSON cannot carry, which is one with half a character (a lone surrogate)."""
    return _made(BadInput, endpoint, f"a text cannot be sent: {problem}", "Send valid Unicode.")


# 2) a status that says no


def from_status(status: int, headers: Mapping[str, str], content: bytes, endpoint: Endpoint) -> Failure:
    """The error of an answer whose status is 300 or more (404 with what is served: `not_found`)."""
    words, names = f"{status}: {said(content)}", endpoint.names
    if status in (401, 403):
        return Failure(_refused_key(words, endpoint), False)
    if status == 429:
        return Failure(_overloaded(f"the server is overloaded ({words})", headers, endpoint), True)
    if status == 503:
        return Failure(_overloaded(f"the server is not ready or overloaded ({words})", headers, endpoint), True)
    if status == 502:
        step = "Check the model server behind the proxy."
        return Failure(_made(ConnectionFailed, endpoint, f"the proxy reaches no server ({words})", step), True)
    if status in (408, 504):
        return Failure(_made(TimedOut, endpoint, f"the server gave up waiting ({words})", "Look at its queue."), status == 504)
    if status == 413:
        step = "Lower the batch size or the passages' length (ingest.chunk_tokens)."
        return Failure(_made(TooLarge, endpoint, f"the request is too large ({words})", step), False)
    if status == 424:
        step = "Look at the server's log: the model failed on this very request."
        return Failure(_made(ForwardFailed, endpoint, f"the model failed ({words})", step), False)
    if status in (400, 415, 422):
        step = f"Check {names.model}, the batch size and the texts' length against the server's limits."
        return Failure(_made(BadInput, endpoint, f"the server refused the request ({words})", step), False)
    if status >= 500:
        step = "Look at the server's log."
        return Failure(_made(ModelError, endpoint, f"the server failed ({words})", step), False)
    if status < 400:
        words = f"{status} to {headers.get('location', 'nowhere')}"
        return Failure(_made(BadAnswer, endpoint, f"the server redirects ({words})", f"Set {names.url} to that address."), False)
    step = f"Check path and server behind {names.url}."
    return Failure(_made(BadAnswer, endpoint, f"the server takes no such request ({words})", step), False)


def not_found(content: bytes, url: str, endpoint: Endpoint, served: Sequence[str]) -> Failure:
    """404: another model than those that are served, or no such path."""
    names, path = endpoint.names, httpx.URL(url).path
    if served:
        listed = ", ".join(served[:LISTED_MODELS]) + (", …" if len(served) > LISTED_MODELS else "")
        asked = f" (asked for: {endpoint.model})" if endpoint.model else ""
        step = f"Set {names.model} to one of them, or check the path in {names.url}."
        return Failure(_made(ModelError, endpoint, f"{said(content)}; the server serves {listed}{asked}", step), False)
    step = f"Check the path in {names.url}, and which kind of server stands there."
    return Failure(_made(BadAnswer, endpoint, f"there is no {path} (404: {said(content)})", step), False)


def _refused_key(words: str, endpoint: Endpoint) -> AuthenticationFailed:
    key = endpoint.names.key
    if endpoint.api_key:
        return _made(AuthenticationFailed, endpoint, f"the server refused the key ({words})", f"Check {key}.")
    return _made(AuthenticationFailed, endpoint, f"the server wants a key ({words})", f"Set {key}.")


def _overloaded(message: str, headers: Mapping[str, str], endpoint: Endpoint) -> Overloaded:
    error = _made(Overloaded, endpoint, message, "Wait, lower the load, or look at the server's queue.")
    error.retry_after = _retry_after(headers.get("retry-after", ""))
    return error


def _retry_after(value: str) -> float | None:
    """Seconds, from a number or an HTTP date (RFC 9110, 10.2.3)."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


# 3) words


def combined(failures: Sequence[EngineError]) -> EngineError:
    """The last failure; after several attempts it says what the earlier ones met."""
    last = failures[-1]
    if len(failures) > 1:
        earlier = list(dict.fromkeys(error.message for error in failures[:-1] if error.message != last.message))
        before = f"; before: {'; '.join(earlier)}" if earlier else ""
        last.message = f"{last.message} (after {len(failures)} attempts{before})"
        last.args = (last.message,)
    return last


def said(content: bytes) -> str:
    """The sentence of an error body: OpenAI's, Cohere's, TEI's, FastAPI's, vLLM's and ours; else what the body is."""
    try:
        data: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        return described(content)
    for key in ("error", "message", "detail", "reason"):
        if isinstance(data, dict) and data.get(key):
            data = data[key]
    text = data if isinstance(data, str) else orjson.dumps(data).decode()
    return text if len(text) <= SAID_CHARS else f"{text[:SAID_CHARS]}…"


def described(content: bytes) -> str:
    """What a body that is no JSON looks like, in a few words."""
    start = content[:200].decode("utf-8", "replace").strip()
    if not start:
        return "empty"
    if start.lower().startswith(("<!doctype", "<html")):
        return "an HTML page"
    return f"text ({start[:80]!r})"


def _root(problem: BaseException) -> BaseException:
    """The error at the bottom: httpx's is caused by httpcore's, which has the system's as its argument."""
    deeper = problem.__cause__ or next((item for item in problem.args if isinstance(item, BaseException)), None)
    return problem if deeper is None else _root(deeper)


def _words(problem: BaseException) -> str:
    return str(getattr(problem, "strerror", None) or problem) or type(problem).__name__


def _made(kind: type[E], endpoint: Endpoint, message: str, next_step: str) -> E:
    return kind(endpoint.redacted(message), next_step=next_step, address=endpoint.shown)
