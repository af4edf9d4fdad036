"""Chat completions of an OpenAI-compatible server (vLLM, TGI, llama.cpp, a cloud), streamed, its errors told apart.

Connections are read on one event loop, on a thread of its own, and handed over through queues: a cancel or a deadline is obeyed
in whatever a server is silent (connect, headers, between tokens), and ends the connection, so that the server stops too.
"""

from __future__ import annotations

import asyncio
import queue
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeVar

from gpu_server.interfaces import ChatRequest, Delta, ModelInfo, Timing
from gpu_server.redaction import login, masked, secrets_of, shown_address, without_login
from rag.errors import Kind, RagError

T = TypeVar("T")
CONNECT_SECONDS = 5.0
LIST_SECONDS = 10.0
BEAT_SECONDS = 0.05
FIRST_PAUSE_SECONDS = 0.5
BUSY = (429, 502, 503)
VERSION = re.compile(r"/v\d\w*(/|$)")
ENDPOINT = re.compile(r"/(chat/completions|completions|models)$")


def base_url(address: str) -> str:
    """The address that the endpoints' names are put behind: `/v1` is added unless it names a version (`/v1beta/openai`)."""
    address = ENDPOINT.sub("", address.strip().rstrip("/")).rstrip("/")
    return address if VERSION.search(address) else f"{address}/v1"


class OpenAIChat:
    """Streams completions over pooled connections. Thread-safe."""

    def __init__(self, address: str, model: str | None, api_key: str | None, timeout: float, retries: int = 0) -> None:
        """`retries`: further attempts while the server says that it is busy and no answer has begun."""
        import openai

        base = base_url(address)
        self.address, self._secrets = shown_address(base), secrets_of(base, (api_key,))
        self._model = model
        self._retries = retries
        self._thinking_switch = True
        self._client = openai.AsyncOpenAI(
            base_url=without_login(base),
            api_key=api_key or "none",
            max_retries=0,
            timeout=_timeouts(timeout),
            # the login apart from the address, which logs have; a redirect would take the key to another host
            http_client=openai.DefaultAsyncHttpxClient(auth=login(base), follow_redirects=False),
        )

    @property
    def info(self) -> ModelInfo:
        name = self._model or "the server's first model"
        return ModelInfo(
            name=name, kind="llm", identity=name, device="remote", precision="unknown", where="http", address=self.address
        )

    def model(self) -> str:
        """The configured model, or the first that the server lists."""
        return _run(self._find_model())

    async def _find_model(self) -> str:
        if self._model is None:
            with mapped(self.address, self._secrets):
                listed = (await _fresh(self._list)).data
            if not listed:
                raise RagError(
                    "the server lists no model",
                    kind="model",
                    address=self.address,
                    next_step="Set VLLM_MODEL to the served model.",
                )
            self._model = listed[0].id
        return self._model

    async def _list(self) -> Any:
        return await self._client.models.list(timeout=_timeouts(LIST_SECONDS))

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """Deltas as the server sends them, the last with token counts; an empty one is a beat while the server is silent."""
        answered = False
        tries = _Tries()
        pump = _Pump(lambda: self._open_patiently(request, tries), request.timeout)
        try:
            with mapped(self.address, self._secrets):
                for chunk in pump.chunks():
                    if chunk is not None and tries.errors and not answered:
                        yield Delta(timing=tries.timing())
                    answered = answered or bool(chunk and chunk.choices)
                    yield from _deltas(chunk)
                if not answered:
                    raise ValueError("it holds no completion")
        finally:
            pump.close()

    async def _open_patiently(self, request: ChatRequest, tries: _Tries) -> Any:
        """The open stream; while the server says that it is busy, asked again after a pause (its own, where it names one)."""
        import openai

        started = time.monotonic()
        while True:
            tried = time.monotonic()
            try:
                stream = await self._open(request)
            except openai.APIStatusError as problem:
                pause = _pause(problem, len(tries.errors))
                if problem.status_code not in BUSY or len(tries.errors) >= self._retries or pause > request.timeout:
                    raise
                tries.errors.append(masked(f"{problem.status_code}: {_said(problem)}"[:200], self._secrets))
                await asyncio.sleep(pause)
            else:
                tries.waited = tried - started
                return stream

    async def _open(self, request: ChatRequest) -> Any:
        import openai

        switch = {"chat_template_kwargs": {"enable_thinking": False}} if self._thinking_switch and not request.thinking else None
        arguments: dict[str, Any] = {
            "model": request.model or await self._find_model(),
            "messages": [dict(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_headers": dict(request.headers),
            "timeout": _timeouts(request.timeout),
        }
        try:
            return await _fresh(partial(self._client.chat.completions.create, **arguments, extra_body=switch))
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            if switch is None:
                raise
            stream = await _fresh(partial(self._client.chat.completions.create, **arguments))
            self._thinking_switch = False  # this server refuses the switch: it is not sent again
            return stream

    def close(self) -> None:
        _run(self._client.close())


async def _fresh(call: Callable[[], Awaitable[Any]]) -> Any:
    """The call's answer; made once more when its connection breaks before an answer begins.

    A pooled connection may have been closed by the server since it was last used (uvicorn does so after an error, every
    server after a restart), which shows only when it is used again.
    """
    import openai

    try:
        return await call()
    except openai.APIConnectionError as problem:
        if _name(problem.__cause__) not in ("ReadError", "WriteError", "RemoteProtocolError"):
            raise
        return await call()


def _timeouts(seconds: float) -> Any:
    import openai

    return openai.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop that reads every connection, on a daemon thread that starts with the first call."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="chat-reader", daemon=True).start()
    return loop


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


@dataclass(slots=True)
class _Tries:
    """Attempts that failed before the one whose answer is read; `waited` seconds went to them and the pauses between."""

    errors: list[str] = field(default_factory=list)
    waited: float = 0.0

    def timing(self) -> Timing:
        return Timing(attempts=1 + len(self.errors), waited=self.waited, errors=tuple(self.errors))


def _pause(problem: Any, failed: int) -> float:
    """Seconds until the next attempt: what the server asks for, else 0.5, 1, 2 … with jitter."""
    try:
        return max(0.0, float(problem.response.headers["retry-after"]))
    except (KeyError, ValueError):
        return float(FIRST_PAUSE_SECONDS * 2**failed * random.uniform(0.75, 1.25))


class _Pump:
    """Reads a response on the event loop; `chunks()` waits for it with a deadline and can be given up at any time."""

    def __init__(self, open_stream: Callable[[], Awaitable[AsyncIterator[Any]]], timeout: float) -> None:
        self._open = open_stream
        self._deadline = time.monotonic() + timeout
        self._queue: queue.Queue[Any] = queue.Queue()
        self._reading = asyncio.run_coroutine_threadsafe(self._read(), _loop())

    async def _read(self) -> None:
        try:
            stream: Any = await self._open()
            async with stream:
                async for chunk in stream:
                    self._queue.put(chunk)
            self._queue.put(None)
        except Exception as problem:
            self._queue.put(problem)

    def chunks(self) -> Iterator[Any]:
        """Chunks; None comes through as a beat in silence, so that the caller can look at its cancel token."""
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no answer before the time limit")
            try:
                item = self._queue.get(timeout=min(BEAT_SECONDS, left))
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        """Give up reading, which closes the connection; nothing to do when the response has been read."""
        self._reading.cancel()


def _deltas(chunk: Any) -> Iterator[Delta]:
    if chunk is None:
        yield Delta()
        return
    usage = getattr(chunk, "usage", None)
    for choice in chunk.choices or ():
        delta = choice.delta
        if delta is None:
            yield Delta(finish_reason=choice.finish_reason)
            continue
        extra = getattr(delta, "model_extra", None) or {}
        reasoning = extra.get("reasoning_content") or extra.get("reasoning") or ""
        yield Delta(text=delta.content or "", reasoning=str(reasoning), finish_reason=choice.finish_reason)
    if usage is not None:
        yield Delta(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


class mapped:
    """Turns the errors of openai and httpx into RagErrors that name the address and what to check, without `secrets`."""

    def __init__(self, address: str, secrets: Sequence[str] = ()) -> None:
        self._address, self._secrets = address, secrets

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if problem is None or not isinstance(problem, Exception) or isinstance(problem, RagError):
            return
        found, message, next_step = _diagnose(problem)
        problem.args = tuple(masked(str(part), self._secrets) for part in problem.args)  # a log may print where it came from
        raise RagError(masked(message, self._secrets), kind=found, address=self._address, next_step=next_step) from problem


def _diagnose(problem: Exception) -> tuple[Kind, str, str]:
    import openai

    cause = problem.__cause__ or problem
    lost = isinstance(problem, (openai.APIConnectionError, OSError)) or _is_transport(problem)
    if _is_timeout(problem):
        return "timeout", "the language model did not answer in time", "Look at the server's queue, or raise llm.timeout_seconds."
    if lost:
        return (
            "connection",
            f"the connection to the language model failed or broke off: {(str(cause) or _name(cause))[:300]}",
            "Check that the server runs at this address (VLLM_BASE_URL) and was not restarted.",
        )
    if isinstance(problem, (openai.AuthenticationError, openai.PermissionDeniedError)):
        return "authentication", "the language model's server refused the key", "Check VLLM_API_KEY."
    if isinstance(problem, openai.NotFoundError):
        return "model", f"not found: {_said(problem)}", "Check VLLM_MODEL against the server's /v1/models, and VLLM_BASE_URL."
    if isinstance(problem, openai.RateLimitError):
        return "overloaded", f"the server is overloaded: {_said(problem)}", "Wait, or lower the load."
    if isinstance(problem, (openai.BadRequestError, openai.UnprocessableEntityError)):
        return "bad_input", f"the server refused the request: {_said(problem)}", "Lower llm.context_tokens or llm.max_tokens."
    if isinstance(problem, openai.APIStatusError) and problem.status_code == 413:
        return "bad_input", f"the server refused the request: {_said(problem)}", "Lower llm.context_tokens."
    if isinstance(problem, openai.APIStatusError) and problem.status_code >= 500:
        kind: Kind = _GATEWAY.get(problem.status_code, "internal")
        return kind, f"the server failed ({problem.status_code}): {_said(problem)}", "Look at its log."
    if type(problem) is openai.APIError:  # an error object in the middle of a stream
        return "internal", f"the server broke the answer off: {_said(problem)}", "Look at its log."
    return (
        "bad_answer",
        f"the answer could not be read: {str(problem)[:300]}",
        "Check that VLLM_BASE_URL is an OpenAI-compatible server.",
    )


_GATEWAY: dict[int, Kind] = {502: "connection", 503: "overloaded", 504: "timeout"}


def _is_timeout(problem: BaseException) -> bool:
    import openai

    late = isinstance(problem, (openai.APITimeoutError, TimeoutError)) or _is_transport(problem) and "Timeout" in _name(problem)
    return late and _name(problem.__cause__) != "ConnectTimeout" != _name(problem)  # who cannot be reached is no slow answerer


def _name(problem: BaseException | None) -> str:
    return type(problem).__name__


def _is_transport(problem: BaseException) -> bool:
    """An error of the HTTP library under openai (httpx, from 3.0 on httpx2)."""
    return type(problem).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")


def _said(problem: Any) -> str:
    body = getattr(problem, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    return str(said or problem)[:400]
