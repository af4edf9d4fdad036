"""Runs the app headless where nothing outside can be reached, and uses it as people do: page, assets, a query, every page.

`python -m deploy.offline.inside JOB.json` runs it; `running.py` starts it, in a network namespace where there can be one.
Imports nothing of ours but `page` and `resolver`, so that what it reports is the app's doing and not its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import site
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.offline import page, resolver

START_SECONDS, QUERY_SECONDS, PAGE_SECONDS, END_SECONDS, CALL_SECONDS = 120.0, 240.0, 25.0, 60.0, 120.0
MOST_ASSETS = 400
SCRIPT_FINISHED = 6  # field of Streamlit's ForwardMsg
LOG_CHARS = 3000


@dataclass(frozen=True)
class Job:
    """What to run and how to use it. `environment` is the app's, the hook's variables among it."""

    root: str
    environment: dict[str, str]
    port: int
    question: str
    pages: list[str]
    namespace: bool
    report: str
    log: str
    token: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


def main(path: str) -> int:
    job = Job(**json.loads(Path(path).read_text(encoding="utf-8")))
    if job.namespace:
        loopback_up()
    with resolver.listening(_name_servers() if job.namespace else []) as asked:
        alone = _python_alone(job, asked) if job.namespace else None
        before = unrouted()
        report = use(job)
        report["unrouted_packets"] = unrouted() - before if job.namespace else None
        report |= {"looked_up": sorted({tuple(each) for each in asked}), "python_alone": alone}
    Path(job.report).write_text(json.dumps(report), encoding="utf-8")
    return 0


def use(job: Job) -> dict[str, Any]:
    """What came of it; `problem` says why the app did not start."""
    where = ["--server.address", "127.0.0.1", "--server.port", str(job.port), "--server.headless", "true"]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", *where]
    with Path(job.log).open("wb") as log:
        app = subprocess.Popen(
            command, cwd=job.root, env=job.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        report: dict[str, Any] = {"pid": app.pid, "healthy_seconds": _healthy(job, app)}
        if report["healthy_seconds"] is None:
            text = Path(job.log).read_text(encoding="utf-8", errors="replace")
            return {**report, "problem": f"exit code {app.poll()}: {text[-LOG_CHARS:].strip()}"}
        report["query"] = _query(job)
        report["served"], report["policy"] = _served(job)
        report["pages"] = {name: _visit(job, name) for name in job.pages}
        return report
    finally:
        _end(app)


def _name_servers() -> list[str]:
    with contextlib.suppress(OSError):
        return resolver.servers(Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace"))
    return resolver.servers("")


def _python_alone(job: Job, asked: list[resolver.Question]) -> dict[str, Any]:
    """What an interpreter sends that runs nothing: code in `.pth` files runs before the hook can see it."""
    before = unrouted()
    with contextlib.suppress(subprocess.SubprocessError):
        subprocess.run(
            [sys.executable, "-c", "pass"], cwd=job.root, env=job.environment, capture_output=True, timeout=CALL_SECONDS
        )
    return {"packets": unrouted() - before, "names": sorted({each.name for each in asked}), "files": _files_with_code()}


def _files_with_code() -> list[str]:
    """`.pth` files that run code at each start of this Python."""
    files = [path for folder in site.getsitepackages() for path in sorted(Path(folder).glob("*.pth"))]
    return [str(path) for path in files if re.search(r"^import[ \t]", path.read_text(encoding="utf-8", errors="replace"), re.M)]


def loopback_up() -> None:
    """As `ip link set lo up`, which is not everywhere (SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(link, 0x8913, request), 16)[0]
        fcntl.ioctl(link, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))


def unrouted() -> int:
    """Packets of any process in this namespace that had no route (`OutNoRoutes`), whoever sent them."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text(encoding="ascii").splitlines() if line.startswith("Ip:")]
    count = int(dict(zip(lines[0], lines[1], strict=True))["OutNoRoutes"])
    with contextlib.suppress(OSError):  # no IPv6 in this kernel
        for line in Path("/proc/net/snmp6").read_text(encoding="ascii").splitlines():
            count += int(line.split()[1]) if line.startswith("Ip6OutNoRoutes") else 0
    return count


def _until(seconds: float) -> Iterator[float]:
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        yield passed
        time.sleep(0.3)


def _healthy(job: Job, app: subprocess.Popen[bytes]) -> float | None:
    """Seconds until the app answered; None when it ended, or did not within START_SECONDS."""
    for passed in _until(START_SECONDS):
        if app.poll() is not None:
            return None
        with contextlib.suppress(OSError):
            _get(job, "/api/health")
            return passed
    return None


def _get(job: Job, path: str) -> tuple[str, Any]:
    """(text, headers). Raises OSError."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(job.address + path, headers=job.headers), timeout=CALL_SECONDS) as answer:
        return answer.read().decode("utf-8", errors="replace"), answer.headers


def _query(job: Job) -> dict[str, Any]:
    """Outcome of one query through the whole path; asked again while the first documents are read in."""
    body = json.dumps({"query": job.question, "caches": "bypass"}).encode()
    headers = {"content-type": "application/json", **job.headers}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    said: dict[str, Any] = {}
    for _ in _until(QUERY_SECONDS):
        try:
            with opener.open(urllib.request.Request(f"{job.address}/api/v1/ask", body, headers), timeout=QUERY_SECONDS) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as problem:
            said = {"outcome": "failed", "error": problem.read(2000).decode(errors="replace")}
            if problem.code in (429, 503):
                continue
        except (OSError, ValueError) as problem:
            said = {"outcome": "failed", "error": str(problem)}
        if said.get("outcome") in ("answered", "failed"):
            break
    return {name: said.get(name) for name in ("outcome", "error", "total_seconds", "stages")}


def _served(job: Job) -> tuple[list[dict[str, Any]], str | None]:
    """(what page and assets load from other hosts, the content-security-policy)."""
    text, headers = _get(job, "/")
    remotes, local = page.in_html(text)
    found = [_found("/", each) for each in remotes]
    for path in ["/" + each.removeprefix("./").lstrip("/") for each in local[:MOST_ASSETS]]:
        reader: Callable[[str], list[page.Remote]] | None
        reader = {".js": page.in_script, ".css": page.in_style}.get(os.path.splitext(path.split("?")[0])[1])
        if reader:
            with contextlib.suppress(OSError):  # an asset that is not served loads nothing
                found += [_found(path, each) for each in reader(_get(job, path)[0])]
    return found, headers.get("content-security-policy")


def _found(where: str, remote: page.Remote) -> dict[str, Any]:
    return {"where": where, "url": remote.url, "is_font": remote.is_font}


def _visit(job: Job, name: str) -> dict[str, Any]:
    """Runs a page's script as a browser would, and reads what it sends: `{finished, remote}`."""
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    raw = name.encode()
    state = b"\x22" + bytes([len(raw)]) + raw  # ClientState.page_name
    remotes: dict[str, dict[str, Any]] = {}
    try:
        with connect(
            f"ws://127.0.0.1:{job.port}/_stcore/stream", subprotocols=["streamlit"], additional_headers=job.headers,  # type: ignore[list-item]
            proxy=None, max_size=None, open_timeout=CALL_SECONDS,
        ) as link:  # fmt: skip
            link.send(b"\x5a" + bytes([len(state)]) + state)  # BackMsg.rerun_script
            for _ in iter(int, 1):
                message = link.recv(timeout=PAGE_SECONDS)
                raw = message if isinstance(message, bytes) else message.encode()
                remotes |= {each.url: _found(f"page {name}", each) for each in page.in_message(raw)}
                if SCRIPT_FINISHED in fields(raw):
                    return {"finished": True, "remote": list(remotes.values())}
    except (OSError, TimeoutError, WebSocketException) as problem:
        return {"finished": False, "problem": f"{type(problem).__name__}: {problem}"[:300], "remote": list(remotes.values())}
    return {"finished": False, "remote": list(remotes.values())}


def fields(message: bytes) -> set[int]:
    """Numbers of the top-level fields of a protobuf message; empty for what is none."""
    found: set[int] = set()
    at = 0
    try:
        while at < len(message):
            tag, at = _varint(message, at)
            found.add(tag >> 3)
            kind = tag & 7
            if kind == 2:
                length, at = _varint(message, at)
                at += length
            elif kind == 0:
                _, at = _varint(message, at)
            else:
                at += {1: 8, 5: 4}[kind]
    except (IndexError, KeyError):
        return set()
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not message[at - 1] & 0x80:
            return value, at


def _end(app: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(app.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            app.wait(END_SECONDS)
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
