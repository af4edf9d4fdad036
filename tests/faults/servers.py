"""Servers to make slow: one that speaks as vLLM does, a TCP proxy that adds round-trip time, a Milvus server.

`FakeVllm` is a fake: no model, words at a given pace. What it says of itself (`/metrics`, server spans) is what it did.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rag.otlp import SpanRecord
from tests.gpu_server.odd_server import Asked, Odd, odd_server
from tests.ports import free_port

MODEL = "fake/words"
READY_SECONDS = 120.0
CHARACTERS_A_TOKEN = 4
QUICK = 0.0008  # seconds a candidate of the rerank server takes


@dataclass(frozen=True, slots=True)
class Pace:
    """How `FakeVllm` answers. Seconds. `refusals` answers of 503 come first, each asking for a pause; `kv_ratio` is what it
    says its cache is full of. It says numbered words, or where it `echoes` the last line that it was given, again and again."""

    queue: float = 0.0
    prefill: float = 0.01
    prefill_per_token: float = 0.00004
    per_token: float = 0.001
    tokens: int = 20
    refusals: int = 0
    retry_after: int = 0
    kv_ratio: float = 0.08
    waiting: int = 0
    preemptions: int = 0
    echoes: bool = False


@dataclass
class FakeVllm:
    """An OpenAI-compatible server with vLLM's `/metrics` and its server spans; `pace` is looked at by each request."""

    pace: Pace = Pace()
    spans: list[SpanRecord] = field(default_factory=list)
    running: int = 0
    waiting: int = 0
    preemptions: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeVllm:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def at(self, **changes: Any) -> Iterator[None]:
        """Another pace for a while."""
        before, self.pace = self.pace, replace(self.pace, **changes)
        try:
            yield
        finally:
            self.pace = before

    def spans_of(self, trace_id: str) -> list[SpanRecord]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def refuses(self) -> bool:
        with self._lock:
            left = self.pace.refusals
            self.pace = replace(self.pace, refusals=max(0, left - 1))
            return left > 0

    @contextlib.contextmanager
    def counted(self, gauge: str) -> Iterator[None]:
        self._add(gauge, 1)
        try:
            yield
        finally:
            self._add(gauge, -1)

    def _add(self, gauge: str, change: int) -> None:
        with self._lock:
            setattr(self, gauge, getattr(self, gauge) + change)

    def metrics(self) -> str:
        """A page as vLLM v1 writes it, with the names that the collectors read."""
        ahead = self.pace.waiting if self.waiting else 0
        values = {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting + ahead,
            "kv_cache_usage_perc": self.pace.kv_ratio if self.running or self.waiting else 0.0,
            "num_preemptions_total": self.preemptions,
        }
        lines = [f'vllm:{name}{{engine="0",model_name="{MODEL}"}} {float(value)}' for name, value in values.items()]
        return "\n".join(lines) + "\n"

    def took(self, traceparent: str | None, started: int, queue: float, prefill: float, decode: float) -> None:
        """Leave the span that vLLM's server would send to an OTLP collector, in the caller's trace."""
        trace_id, parent = traceparent.split("-")[1:3] if traceparent else (secrets.token_hex(16), None)
        total = queue + prefill + decode
        attributes = {
            "gen_ai.latency.time_in_queue": queue,
            "gen_ai.latency.time_to_first_token": queue + prefill,
            "gen_ai.latency.e2e": total,
            "gen_ai.latency.time_in_model_prefill": prefill,
            "gen_ai.latency.time_in_model_decode": decode,
            "gen_ai.latency.time_in_model_inference": prefill + decode,
            "gen_ai.response.model": MODEL,
        }
        end = started + int(total * 1e9)
        self.spans.append(
            SpanRecord(trace_id, secrets.token_hex(8), parent, "llm_request", "SERVER", started, end, "UNSET", attributes)
        )


def _handler(owner: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Connection(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._send(200, owner.metrics().encode(), "text/plain")
            elif self.path == "/v1/models":
                self._send(200, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())
            else:
                self._send(404, b"{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if owner.refuses():
                said = json.dumps({"error": {"message": "no worker is free", "type": "overloaded", "code": 503}}).encode()
                self._send(503, said, more={"retry-after": str(owner.pace.retry_after)})
                return
            with contextlib.suppress(ConnectionError):
                self._complete(body)

        def _complete(self, body: dict[str, Any]) -> None:
            pace, started, begun = owner.pace, time.time_ns(), time.perf_counter()
            prompt = sum(len(message["content"]) for message in body["messages"]) // CHARACTERS_A_TOKEN
            with owner.counted("waiting"):
                _sleep(pace.queue)
            owner._add("preemptions", pace.preemptions)
            queued = time.perf_counter()
            with owner.counted("running"):
                _sleep(pace.prefill + pace.prefill_per_token * prompt)
                prefilled = time.perf_counter()
                self._head()
                count = min(pace.tokens, body["max_tokens"])
                said = body["messages"][-1]["content"].splitlines()[-1].split() if pace.echoes else []
                for number in range(count):
                    self._event(_chunk(f"{said[number % len(said)]} " if said else f"word{number} "))
                    # by the clock, so that a busy machine does not make each token a little later
                    _sleep(prefilled + (number + 1) * pace.per_token - time.perf_counter())
            self._event(_chunk("", "stop" if count == pace.tokens else "length"))
            usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
            self._event({**_chunk(""), "choices": [], "usage": usage})
            decoded = time.perf_counter() - prefilled
            # before the end is sent: who has read the answer looks for the span at once
            owner.took(self.headers.get("traceparent"), started, queued - begun, prefilled - queued, decoded)
            self._piece(b"data: [DONE]\n\n")
            self._piece(b"")

        def _head(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()

        def _event(self, chunk: dict[str, Any]) -> None:
            self._piece(f"data: {json.dumps(chunk)}\n\n".encode())

        def _piece(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def _send(self, status: int, data: bytes, kind: str = "application/json", more: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"content-type": kind, "content-length": str(len(data)), **(more or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    return Connection


def _chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}


def _sleep(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


@contextlib.contextmanager
def rerank_server(seconds: float, stalled: float = 0.0) -> Iterator[str]:
    """A fake of a rerank server that is not ours: it reports no times, and takes `seconds` whatever there is to do.

    With `stalled` its gateway gives up on the first request after so long and answers 504, as one does whose server hangs.
    """
    left = [stalled] if stalled else []

    def handle(asked: Asked) -> Odd:
        if asked.path == "/health":
            return Odd({"status": "healthy", "model": "fake/reranker"})
        if asked.path != "/rerank":
            return Odd({}, 404)
        if left:
            time.sleep(left.pop())
            return Odd({"error": "upstream timed out"}, 504)
        documents = asked.body["documents"]
        time.sleep(seconds + QUICK * len(documents))
        return Odd({"rankings": list(range(len(documents))), "scores": [0.9 / (1 + place) for place in range(len(documents))]})

    with odd_server(handle) as server:
        yield server.address


class Proxy:
    """Hands on TCP, `delay` seconds later in each direction: a round trip through it takes twice that longer.

    Bytes keep their order and their distance from each other, as on a long line: the rate is not limited.
    """

    def __init__(self, target: str, delay: float = 0.0) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self.delay = delay
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    @contextlib.contextmanager
    def slower(self, round_trip: float) -> Iterator[None]:
        before, self.delay = self.delay, round_trip / 2
        try:
            yield
        finally:
            self.delay = before

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                _Line(self, source, sink).start()


class _Line:
    """One direction of a connection: a thread that reads and stamps, a thread that writes when it is time."""

    def __init__(self, proxy: Proxy, source: socket.socket, sink: socket.socket) -> None:
        self._proxy, self._source, self._sink = proxy, source, sink
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._filled = threading.Condition()

    def start(self) -> None:
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = self._source.recv(65536)
            except OSError:
                data = b""
            with self._filled:
                self._pieces.append((time.perf_counter() + self._proxy.delay, data))
                self._filled.notify()

    def _write(self) -> None:
        while True:
            with self._filled:
                while not self._pieces:
                    self._filled.wait()
                due, data = self._pieces.popleft()
            _sleep(due - time.perf_counter())
            try:
                if not data:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(data)
            except OSError:
                return


@contextlib.contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    """Milvus Lite's own server over gRPC, in a process of its own; its address."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "milvus_lite",
        "server",
        "--data-dir",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > end or process.poll() is not None:
                    raise RuntimeError("the Milvus server did not start") from None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(20)
