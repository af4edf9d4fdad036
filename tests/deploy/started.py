"""Starts what was rendered, for real, in a network of its own: `python -m tests.deploy.started PLAN` inside `unshare -nm`.

The addresses of a plan's machines and the names of its containers exist in that network alone, so that every process binds and
calls what the rendered files say, ports included. Prints what was seen as one JSON line. Knows no format of rendered files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

PATIENCE_SECONDS = 400.0  # a loaded machine takes minutes to import torch; what is well is seen at once
MOST_CHARACTERS = 100_000
UP, SET_ADDRESS, SET_FLAGS = 1, 0x8916, 0x8914  # IFF_UP, SIOCSIFADDR, SIOCSIFFLAGS


def main(path: Path) -> None:
    plan = json.loads(path.read_text())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for number, address in enumerate(["127.0.0.1", *plan["addresses"]]):
            _give(control, f"lo:{number}" if number else "lo", address)
    _name(path.parent / "hosts", plan["names"])
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for step in plan["processes"]:
            running[step["name"]] = _start(path.parent, step)
        for step in plan["processes"]:
            _wait(lambda step=step: _well(step), running[step["name"]], path.parent / f"{step['name']}.log")
        print(json.dumps([_asked(path.parent, each) for each in plan["asked"]]))
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait(20)


def _give(control: socket.socket, interface: str, address: str) -> None:
    """An address of its own for loopback, as `ip address add` does it, which is not everywhere."""
    where = struct.pack("16sH2s4s8s", interface.encode(), socket.AF_INET, b"\0" * 2, socket.inet_aton(address), b"\0" * 8)
    if interface != "lo":
        fcntl.ioctl(control, SET_ADDRESS, where)
    fcntl.ioctl(control, SET_FLAGS, struct.pack("16sH14s", interface.encode(), UP, b"\0" * 14))


def _name(hosts: Path, names: dict[str, str]) -> None:
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in names.items()))
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)


def _start(folder: Path, step: dict[str, Any]) -> subprocess.Popen[bytes]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", **step["environment"]}
    with (folder / f"{step['name']}.log").open("wb") as log:
        return subprocess.Popen(step["command"], cwd=step["folder"], env=environment, stdout=log, stderr=log)


def _well(step: dict[str, Any]) -> bool:
    """By the health check that was rendered: a command, or an address that answers with 200; else by its open port."""
    health = step["health"]
    try:
        if isinstance(health, list):
            given = {"PATH": os.environ["PATH"], **step["environment"]}
            return subprocess.run(health, cwd=step["folder"], env=given, capture_output=True, timeout=120).returncode == 0
        if isinstance(health, int):
            socket.create_connection(("127.0.0.1", health), 5).close()
            return True
        return httpx.get(health, timeout=30, trust_env=False).status_code == 200
    except (OSError, httpx.TransportError, subprocess.TimeoutExpired):
        return False


def _wait(happened: Callable[[], Any], process: subprocess.Popen[bytes] | None, log: Path) -> Any:
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := happened()):
        if process is not None and process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{log.stem} is not well: {log.read_text()[-3000:]}")
        time.sleep(0.2)
    return found


def _asked(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The status and the beginning of an answer; asked again until the patterns of `until` are in it."""

    def once() -> dict[str, Any] | None:
        head = {"Authorization": f"Bearer {asked['token']}"} if asked["token"] else {}
        answer = httpx.request(
            asked.get("method", "GET"), asked["url"], headers=head, json=asked.get("body"), timeout=300, trust_env=False
        )
        found = {"status": answer.status_code, "text": answer.text[:MOST_CHARACTERS]}
        return found if all(re.search(each, answer.text) for each in asked.get("until", [])) else None

    return dict(_wait(once, None, folder / asked["log"]))


# ------------------------------------------------------------------------------------------------------- a fake model server


def _vector(text: str) -> list[float]:
    """Another one for each text, of no meaning."""
    digest = hashlib.sha256(text.encode()).digest()[:8]
    length = math.sqrt(sum(each * each for each in digest))
    return [each / length for each in digest]


class FakeVllm(BaseHTTPRequestHandler):
    """A fake: says one sentence, and gives vectors of no meaning, to whoever shows the key of its environment; /health and /metrics are open, as vLLM's are."""

    protocol_version = "HTTP/1.1"
    model = ""

    def do_GET(self) -> None:
        if self.path in ("/health", "/metrics"):
            self._say(200, b"")
        elif self._may():
            self._say(200, json.dumps({"object": "list", "data": [{"id": self.model, "object": "model"}]}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._may():
            return
        if self.path.endswith("/transcriptions"):
            self._say(200, b'{"text": "Yes."}')
            return
        asked = json.loads(body)
        if asked["model"] != self.model:
            self._say(404, b'{"error": {"message": "no such model"}}')
        elif self.path.endswith("/embeddings"):
            texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
            rows = [{"object": "embedding", "index": index, "embedding": _vector(text)} for index, text in enumerate(texts)]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            self._say(200, json.dumps({"object": "list", "model": self.model, "data": rows, "usage": usage}).encode())
        elif asked.get("stream"):
            pieces = [{"delta": {"role": "assistant", "content": "Yes [1]."}}, {"delta": {}, "finish_reason": "stop"}]
            lines = "".join(f"data: {json.dumps(self._chunk(each))}\n\n" for each in pieces) + "data: [DONE]\n\n"
            self._say(200, lines.encode(), "text/event-stream")
        else:
            said = {"text": "Yes.", "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self._say(200, json.dumps({**self._chunk(said), "usage": usage}).encode())

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {"id": "c", "object": "chat.completion", "created": 1, "model": self.model, "choices": [{"index": 0, **choice}]}

    def _may(self) -> bool:
        key = os.environ.get("VLLM_API_KEY")
        if key and self.headers.get("Authorization") != f"Bearer {key}":
            self._say(401, b'{"error": "Unauthorized"}')
            return False
        return True

    def _say(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def fake_vllm(arguments: list[str]) -> None:
    """Takes the words that follow `vllm serve`."""
    FakeVllm.model = arguments[0]
    server = ThreadingHTTPServer(("0.0.0.0", int(arguments[arguments.index("--port") + 1])), FakeVllm)
    threading.current_thread().name = "fake vLLM"
    server.serve_forever()


if __name__ == "__main__":
    fake_vllm(sys.argv[2:]) if sys.argv[1] == "vllm" else main(Path(sys.argv[1]))
