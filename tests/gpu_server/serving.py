"""Start and end real GPU servers for tests: the process of `python -m gpu_server`, or the app on a thread with fake models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from gpu_server.drain import DrainingServer, address_of, listen
from gpu_server.engine import Engine
from gpu_server.interfaces import Encoded, ModelInfo, TextKind, VectorKind, Vectors
from gpu_server.server import create_app
from gpu_server.service import Limits

ROOT = Path(__file__).parents[2]
START_SECONDS = 90.0
PLAIN_ENVIRONMENT = ("EMBEDDING_MODEL", "RERANKER_MODEL", "DEVICE", "GPU_SERVER_TOKEN", "REDIS_URL")


@dataclass(frozen=True, slots=True)
class Served:
    """A server that listens: a process of its own, or a thread of the test's that `drain` ends as SIGTERM does a process."""

    address: str
    process: subprocess.Popen[str] | None = None
    drain: Callable[[], object] | None = None

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", timeout=60, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.address}{path}", json=body, timeout=60, **more)

    def post_bytes(self, path: str, body: bytes, content_type: str = "application/json") -> httpx.Response:
        return httpx.post(f"{self.address}{path}", content=body, headers={"content-type": content_type}, timeout=60)

    def wait_healthy(self) -> None:
        wait_until(lambda: self.get("/health").status_code == 200, START_SECONDS)

    def metric(self, name: str) -> float:
        """Sum over the labels of one metric."""
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return sum(float(value) for label, value in lines if label.split("{")[0] == name)


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    """Look until `condition()` is true. Raises AssertionError when `seconds` have passed."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)


@contextlib.contextmanager
def process(*arguments: str, healthy: bool = True, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """`python -m gpu_server` on a free port of loopback; killed in the end where it still runs."""
    plain = {name: value for name, value in os.environ.items() if name not in PLAIN_ENVIRONMENT}
    command = [sys.executable, "-m", "gpu_server", "--port", "0", "--json", *arguments]
    with tempfile.TemporaryFile("w+") as words:
        running = subprocess.Popen(
            command, cwd=ROOT, env={**plain, **(environment or {})}, stdout=subprocess.PIPE, stderr=words, text=True
        )
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            assert line, f"it ended with {running.wait(30)}: {words.seek(0)}{words.read()}"
            served = Served(json.loads(line)["address"], running)
            if healthy:
                served.wait_healthy()
            yield served
        finally:
            running.kill()
            running.wait(30)
            if running.stdout is not None:
                running.stdout.close()


@contextlib.contextmanager
def on_thread(engine: Engine, limits: Limits | None = None, api_key: str | None = None) -> Iterator[Served]:
    """The app with any engine on a real socket, so that a test can hold the models it serves."""
    listener = listen("127.0.0.1", 0)
    app = create_app(engine, limits or Limits(), api_key)
    loops: list[asyncio.AbstractEventLoop] = []
    server = DrainingServer(
        uvicorn.Config(app, log_level="warning", access_log=False, ws="none", lifespan="on"),
        app.state.traffic,
        patience_seconds=60,
        closing=app.state.readiness.close,
        listening=lambda: loops.append(asyncio.get_running_loop()),
    )
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: loops)
    served = Served(address_of(listener), drain=lambda: loops[0].call_soon_threadsafe(server.drain))
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join(30)


@dataclass(slots=True)
class Hold:
    """Lets a fake model's passes through, or holds them until `open` is set."""

    open: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open.set()

    def close(self) -> None:
        self.open.clear()
        self.entered.clear()

    def passed(self, texts: int) -> None:
        self.seen.append(texts)
        self.entered.set()
        assert self.open.wait(60), "the test never opened the fake model"


class FakeEmbedder:
    """A text of n characters is n tokens, cut at 100: the vector (n, 1) / norm, sparse {its first character: n}, late n times
    that vector. The text 'poison' makes a pass fail, one that begins with '?' becomes NaN.
    """

    def __init__(self, hold: Hold | None = None) -> None:
        self.hold = hold or Hold()
        self.broken: Exception | None = None
        self.info = ModelInfo("fake/Embedder", "embedder", "fake-2", "cpu", "fp32", dimension=2, max_tokens=100)

    def encode(self, texts: Sequence[str], kind: TextKind) -> list[Encoded]:
        return [Encoded([ord(letter) for letter in text[:100]] or [0], len(text) > 100) for text in texts]

    def forward(self, batch: Sequence[Encoded], vectors: frozenset[VectorKind]) -> list[Vectors]:
        self.hold.passed(len(batch))
        if self.broken is not None:
            raise self.broken
        if any("".join(map(chr, item.ids)) == "poison" for item in batch):
            raise RuntimeError("poisoned")
        return [self._vectors(item.ids, vectors) for item in batch]

    def _vectors(self, ids: Sequence[int], wanted: frozenset[VectorKind]) -> Vectors:
        row = np.array([np.nan if ids[0] == ord("?") else len(ids), 1.0], dtype=np.float32)
        row /= np.linalg.norm(row)
        sparse = {ids[0]: float(len(ids))} if "sparse" in wanted else None
        return Vectors(row, sparse, np.stack([row] * len(ids)) if "late" in wanted else None)

    def count_tokens(self, text: str) -> int:
        return len(text)


class FakeReranker:
    """The raw score of a passage is its length less the query's."""

    def __init__(self) -> None:
        self.info = ModelInfo("fake/Reranker", "reranker", "fake-reranker", "cpu", "fp32", max_tokens=100)

    def encode(self, query: str, texts: Sequence[str]) -> list[Encoded]:
        return [Encoded([len(query), *(ord(letter) for letter in text)]) for text in texts]

    def forward(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        return np.array([len(item.ids) - 1 - item.ids[0] for item in batch], dtype=np.float32)
