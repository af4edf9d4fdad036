"""Start and end a real OpenAI-compatible server: `transformers serve` with the model of `tiny.py`, without a network."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.ports import reserved_port

READY_SECONDS = 150.0


@dataclass(frozen=True, slots=True)
class LlmServer:
    """A running server: where it listens, the model that it lists, its process."""

    address: str
    model: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """kill -9, as the kernel does it when memory is short; returns when the process is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def serve(home: Path, model: str) -> Iterator[LlmServer]:
    """Serve the models of the hub cache at `home`; ready when this returns. Its output is in `home`/serve-PORT.log."""
    with reserved_port() as port:
        yield from _serving(home, model, port)


def _serving(home: Path, model: str, port: int) -> Iterator[LlmServer]:
    address = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [str(Path(sys.executable).parent / "transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (home / f"serve-{port}.log").open("wb") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(process, address, Path(log.name))
        yield LlmServer(address, model, process)
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/health", timeout=2.0, trust_env=False).status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"transformers serve did not start: {log.read_text(errors='replace')[-2000:]}")
