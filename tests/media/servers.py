"""Fake vision and speech servers: real HTTP, in the shapes of vLLM, faster-whisper servers, OpenAI and whisper.cpp.

A fake recognises nothing: the vision server counts the black squares at the top of the page (`samples.page_picture`) and tells
that page's text, the speech server tells what it was given.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from tests.media.samples import squares

PIECE_CHARS = 40


@dataclass(frozen=True)
class Reply:
    """An HTTP answer. `sse`: JSON objects of a stream; `broken`: the connection is cut instead of ending; `pause` in seconds."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    sse: Sequence[Mapping[str, Any]] | None = None
    broken: bool = False
    pause: float = 0.0


@dataclass
class Seen:
    """A page as the vision server got it."""

    squares: int
    size: tuple[int, int]
    bytes: int
    payload: dict[str, Any]


@dataclass
class Heard:
    """A request as the speech server got it."""

    fields: dict[str, str]
    name: str
    type: str
    data: bytes
    authorization: str | None


class FakeServer:
    """`address` answers; `requests` are what came, in order; `gone` counts readers who left in the middle."""

    def __init__(self, understand: Callable[[BaseHTTPRequestHandler, bytes], Any], answer: Callable[[Any], Reply]) -> None:
        self.requests: list[Any] = []
        self.gone = threading.Event()
        self._lock = threading.Lock()
        self.at_once = self.most_at_once = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = understand(self, body)
                with outer._lock:
                    outer.requests.append(request)
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    reply = answer(request)
                    time.sleep(reply.pause)
                finally:
                    with outer._lock:  # before the answer goes out: its reader's next request may come before this goes on
                        outer.at_once -= 1
                try:
                    send(self, reply)
                except OSError:
                    outer.gone.set()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeServer]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    handler.send_response(reply.status)
    for name, value in reply.headers.items():
        handler.send_header(name, value)
    if reply.sse is not None:
        _send_stream(handler, reply)
        return
    text = isinstance(reply.body, str)
    body = reply.body.encode() if isinstance(reply.body, str) else json.dumps(reply.body).encode()
    handler.send_header("content-type", "text/plain; charset=utf-8" if text else "application/json")
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2] if reply.broken else body)
    handler.close_connection = reply.broken


def _send_stream(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    handler.send_header("content-type", "text/event-stream; charset=utf-8")
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    for item in reply.sse or ():
        data = f"data: {json.dumps(item)}\n\n".encode()
        handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        handler.wfile.flush()
    if reply.broken:
        handler.close_connection = True
        return
    handler.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


# vision


def completion(text: str, finish_reason: str | None = "stop", broken: bool = False, pause: float = 0.0) -> Reply:
    """A chat completion as vLLM streams it."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake-vision"}

    def chunk(delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    pieces = [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]
    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": piece}) for piece in pieces)]
    if not broken:
        chunks.append(chunk({"content": ""}, finish_reason))
        chunks.append({**head, "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}})
    return Reply(sse=chunks, broken=broken, pause=pause)


def error(status: int, message: str, **headers: str) -> Reply:
    """An error as vLLM and OpenAI write it."""
    body = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def vision(answer: Callable[[Seen], Reply]) -> FakeServer:
    def understand(_: BaseHTTPRequestHandler, body: bytes) -> Seen:
        payload = json.loads(body)
        (url,) = (part["image_url"]["url"] for part in payload["messages"][-1]["content"] if part["type"] == "image_url")
        head, _, encoded = url.partition(",")
        assert head == "data:image/jpeg;base64"
        data = base64.b64decode(encoded)
        image = Image.open(io.BytesIO(data))
        return Seen(squares(image), image.size, len(data), payload)

    return FakeServer(understand, answer)


# speech


def speech(answer: Callable[[Heard], Reply]) -> FakeServer:
    def understand(handler: BaseHTTPRequestHandler, body: bytes) -> Heard:
        assert handler.path == "/v1/audio/transcriptions"
        boundary = handler.headers["content-type"].partition("boundary=")[2].encode()
        fields: dict[str, str] = {}
        name = kind = ""
        data = b""
        for part in body.split(b"--" + boundary)[1:-1]:
            head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            content = content.removesuffix(b"\r\n")
            about = head.decode()
            field_name = about.partition('name="')[2].partition('"')[0]
            if "filename=" in about:
                name = about.partition('filename="')[2].partition('"')[0]
                kind, data = about.lower().partition("content-type: ")[2].strip(), content
            else:
                fields[field_name] = content.decode()
        return Heard(fields, name, kind, data, handler.headers["authorization"])

    return FakeServer(understand, answer)


def segment(number: int, start: float, end: float, text: str, **doubts: float) -> dict[str, Any]:
    """A segment as faster-whisper servers and OpenAI write it."""
    known = {"temperature": 0.0, "avg_logprob": -0.21, "compression_ratio": 1.4, "no_speech_prob": 0.02}
    return {"id": number, "seek": 0, "start": start, "end": end, "text": f" {text}", "tokens": [50364, 50614], **known, **doubts}


def verbose(segments: Sequence[Mapping[str, Any]], language: str = "he", **more: Any) -> Reply:
    text = "".join(str(item["text"]) for item in segments)
    duration = max((item["end"] for item in segments), default=0.0)
    return Reply(
        body={"task": "transcribe", "language": language, "duration": duration, "text": text, "segments": list(segments), **more}
    )
