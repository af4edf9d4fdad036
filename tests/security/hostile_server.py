"""A fake of every remote endpoint at once, and a bad one: its model writes PAYLOAD, its errors repeat the caller's credentials.

Paths: `/llm` an OpenAI-compatible model (a question with REFUSE and a status is refused with it), `/locked` refuses all, `/otlp` takes spans,
`/page` is an HTTP service whose answer is PAYLOAD, `/named` a model server whose models and version have hostile names.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.security.payloads import CONTROLS, PAYLOAD

SHOWN = ("authorization", "x-auth", "x-team", "api-key", "cookie")
REFUSE = "zzrefuse"  # and the status to refuse with: `zzrefuse404`

# Names of models and a version, as every dialect asks for them.
NAMED = {
    "object": "list",
    "data": [{"id": PAYLOAD, "object": "model", "owned_by": PAYLOAD}, {"id": CONTROLS + "W" * 3000, "object": "model"}],
    "version": PAYLOAD,
    "status": "ok",
}


class HostileServer:
    """On a free port of loopback until `stop`. `requests` are (path, headers, body) in the order of their coming."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        kept = self.requests

        class Handler(_Handler):
            requests = kept

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path: str) -> list[tuple[str, dict[str, str], bytes]]:
        return [request for request in self.requests if request[0].startswith(path)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, dict[str, str], bytes]]

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("content-length") or 0)))

    def version_string(self) -> str:
        return PAYLOAD

    def log_message(self, *_: Any) -> None:
        return

    def _answer(self, body: bytes) -> None:
        self.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        if self.path.startswith("/otlp"):
            self._send(200, b"", "application/x-protobuf")
        elif self.path.startswith("/page"):
            self._send(500, PAYLOAD.encode(), "text/html")
        elif self.path.startswith("/named"):
            self._send(200, json.dumps(NAMED).encode())
        elif self.path.startswith("/llm") and self.path.endswith("/models"):
            self._send(200, json.dumps({"object": "list", "data": [{"id": "hostile", "object": "model"}]}).encode())
        elif self.path.startswith("/llm") and body:
            wanted = re.findall(rf"{REFUSE}(\d+)".encode(), body)
            if wanted:
                self._refuse(int(wanted[-1]))
            else:
                self._stream()
        else:
            self._refuse(401)

    def _refuse(self, status: int) -> None:
        """As bad servers do: the error repeats what came, credentials first."""
        shown = {name.lower(): value for name, value in self.headers.items() if name.lower() in SHOWN} | {"path": self.path}
        halves = [value.partition(" ")[2][8:30] for value in shown.values()]  # some repeat a part, to be discreet
        said = f"Incorrect API key provided: {shown} …{halves}… {PAYLOAD}"
        self._send(status, json.dumps({"error": {"message": said, "type": said, "code": said}, "detail": said}).encode())

    def _stream(self) -> None:
        words = f"Quoted [1]. {PAYLOAD}\n\n# {PAYLOAD}\n\n```html\n{PAYLOAD}\n```\n\n| a |\n|---|\n| {PAYLOAD} |\n"
        pieces = [words[at : at + 50] for at in range(0, len(words), 50)]
        events = [{"role": "assistant", "content": piece} for piece in pieces]
        chunks = [_chunk(event, None) for event in events] + [_chunk({}, "stop")]
        data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self._send(200, data.encode(), "text/event-stream")

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("set-cookie", "planted=1")
        self.end_headers()
        self.wfile.write(body)


def _chunk(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "hostile", "choices": [choice]}
