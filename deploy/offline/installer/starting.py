"""Starts an installation, waits until it is healthy, and asks it one question: the proof that the move worked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import InstallError

START_SECONDS, QUESTION_SECONDS, END_SECONDS, LOOK_SECONDS, PAUSE_SECONDS = 300.0, 180.0, 60.0, 5.0, 0.5
INSTALLED = "It is installed; correct that in its .env or dashboard.toml, then start it"
QUESTION = "What is this documentation about?"


def start(to: Path, port: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Starts the dashboard (unless it runs), waits until it is healthy, asks one question. Raises InstallError.

    A dashboard that was started here and does not pass is ended again; one that passes goes on running.
    """
    address = f"http://127.0.0.1:{port}"
    running = _answers(address)
    if running and running_pid(to) is None:
        raise InstallError(f"something else answers on port {port}", "Choose another with --port.")
    began = time.monotonic()
    process = None if running else _launch(to, port)
    try:
        _wait(address, process, to, say)
        healthy_seconds = time.monotonic() - began
        answer = _ask(address, to, say)
    except BaseException:
        if process is not None:
            _end(process)
        raise
    return {"address": address, "healthy_seconds": healthy_seconds, "seconds": time.monotonic() - began, **answer}


def _launch(to: Path, port: int) -> subprocess.Popen[bytes]:
    where = ["-m", "streamlit", "run", "app.py", "--server.address", "127.0.0.1", "--server.port", str(port)]
    with (to / "data" / "dashboard.log").open("ab") as log:
        command = [str(to / "python.sh"), *where]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    (to / "dashboard.pid").write_text(str(process.pid), encoding="utf-8")
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(END_SECONDS)
    except ProcessLookupError:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(END_SECONDS)


def running_pid(to: Path) -> int | None:
    """A process of the dashboard of `to`, however it was started (`start`, start.sh, a service); None where none runs."""
    try:
        noted = int((to / "dashboard.pid").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = 0
    others = sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid())
    return next((pid for pid in (noted, *others) if pid and _is_python_in(pid, to / "app")), None)


def _is_python_in(pid: int, folder: Path) -> bool:
    """Whose working directory it is; a shell that somebody left there holds no data open."""
    try:
        here = Path(f"/proc/{pid}/cwd").resolve(strict=True) == folder.resolve(strict=True)
        return here and Path(f"/proc/{pid}/exe").resolve().name.startswith("python")
    except OSError:
        return False


def _wait(address: str, process: subprocess.Popen[bytes] | None, to: Path, say: Callable[[str], None]) -> None:
    for seconds in _until(START_SECONDS):
        if _answers(address):
            return
        if process is not None and process.poll() is not None:
            raise InstallError(f"the dashboard ended with {process.returncode}:\n{_log_end(to)}", f"{INSTALLED}: {to}/start.sh")
        say(f"starting, {seconds:.0f} s")
    raise InstallError(
        f"the dashboard did not answer within {START_SECONDS:.0f} s:\n{_log_end(to)}", f"{INSTALLED}: {to}/start.sh"
    )


def _until(seconds: float) -> Iterator[float]:
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        yield passed
        time.sleep(PAUSE_SECONDS)


def _answers(address: str) -> bool:
    try:
        with _opener().open(f"{address}/api/health", timeout=LOOK_SECONDS) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no way to this machine's loopback


def _ask(address: str, to: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Asks until the first documents are read in; an empty store is no failure, and said so."""
    said: dict[str, Any] = {}
    for seconds in _until(QUESTION_SECONDS):
        said = _answer(address, _token(to)) or said
        if said.get("outcome") == "answered":
            return {"outcome": "answered", "answer": str(said.get("answer", ""))[:200], "passages": len(said["passages"])}
        if said.get("outcome") == "failed":
            raise InstallError(f"the question failed: {said.get('error')}", f"{INSTALLED}: {to}/start.sh, and ask there")
        say(f"waiting for the first documents, {seconds:.0f} s")
    return {"outcome": said.get("outcome"), "answer": None, "passages": 0}


def _answer(address: str, token: str | None) -> dict[str, Any] | None:
    """The Answer; None where the server is not ready yet."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    body = json.dumps({"query": QUESTION, "caches": "bypass"}).encode()
    try:
        with _opener().open(urllib.request.Request(f"{address}/api/v1/ask", body, headers), timeout=QUESTION_SECONDS) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as problem:
        if problem.code in (429, 503):
            return None
        detail = problem.read(2000).decode(errors="replace")
        raise InstallError(f"the question was answered with {problem.code}: {detail}") from problem
    except (OSError, ValueError) as problem:
        raise InstallError(f"the question was not answered: {problem}") from problem


def _token(to: Path) -> str | None:
    for line in (to / ".env").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "RAGDECK_TOKEN" and value.strip():
            return value.strip().strip("'\"")
    return os.environ.get("RAGDECK_TOKEN")


def _log_end(to: Path) -> str:
    try:
        return (to / "data" / "dashboard.log").read_text(encoding="utf-8", errors="replace")[-2000:]
    except OSError as problem:
        return f"(no log: {problem})"
