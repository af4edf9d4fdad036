"""A fake Hugging Face hub on the loopback: the four requests that a download makes, answered from folders; fake, and named so."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """`models` are folders by name; `asked` is every path that was asked for; names in `gated` want their terms accepted."""

    models: Mapping[str, Path]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    gated: frozenset[str] = frozenset()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        for name, folder in self.models.items():
            if path.startswith((f"/api/models/{name}", f"/{name}/resolve/")):
                return self._of(name, folder, path.partition("?")[0])
        missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        return 401, missing, b"{}"

    def _of(self, name: str, folder: Path, path: str) -> tuple[int, dict[str, str], bytes]:
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to the model is restricted"}, b"{}"
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        named = {str(file.relative_to(folder)): file for file in files}
        if path.startswith(f"/{name}/resolve/{COMMIT}/"):
            content = named[path.removeprefix(f"/{name}/resolve/{COMMIT}/")].read_bytes()
            return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content
        if "/tree/" in path:
            tree = [{"type": "file", "path": key, "size": file.stat().st_size, "oid": key} for key, file in named.items()]
            return 200, {}, json.dumps(tree).encode()
        about = {"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": key} for key in named]}
        return 200, {}, json.dumps(about).encode()


@contextlib.contextmanager
def fake_hub(models: Mapping[str, Path], gated: frozenset[str] = frozenset()) -> Iterator[FakeHub]:
    hub = FakeHub(models, gated=gated)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._send(body=False)

        def do_GET(self) -> None:
            self._send(body=True)

        def _send(self, body: bool) -> None:
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content)), "Content-Type": "application/json"}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
