"""Starts the servers that are measured side by side, waits until they answer, and ends them by their process."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket

ROOT = Path(__file__).parents[1]
INFINITY = ROOT / ".venv-infinity"
START_SECONDS = 180.0


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[int]:
    """The command as a server on `port`, ended when the block ends. Raises RuntimeError with its last words if it dies."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _wait(process, port)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if process.stderr:
            process.stderr.close()


def _wait(process: subprocess.Popen[str], port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            words = process.stderr.read() if process.stderr else ""
            raise RuntimeError(f"the server ended with {process.returncode}: {words[-500:]}")
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return
        time.sleep(0.2)
    raise RuntimeError(f"no answer on port {port} within {START_SECONDS:.0f} s")


def ours(port: int, precision: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "gpu_server", "--port", str(port), "--device", "cpu", "--precision", precision, *more]


def plain(port: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.plain_server", str(folder), str(port)]


def infinity(port: int, folder: Path) -> list[str]:
    """The command of infinity, in an environment of its own that is made at the first call."""
    program = INFINITY / "bin" / "infinity_emb"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(INFINITY)], check=True)
        requirements = str(Path(__file__).parent / "requirements-infinity.txt")
        subprocess.run([str(INFINITY / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
    options = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--served-model-name", "minilm"]
    return [str(program), "v2", "--model-id", str(folder), "--host", "127.0.0.1", "--port", str(port), *options]
