"""One real dashboard in the worst company: every secret set is a canary, every text that can come from elsewhere is hostile.

Its remote model, rerank, OCR and speech services are `HostileServer`; Redis, sshd and the dashboard itself are real.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import tomli_w
from PIL import Image, ImageDraw

from tests.collectors.machine_fakes import with_path
from tests.collectors.sshd import Sshd, keygen
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.security import hostile_data
from tests.security.canaries import canary
from tests.security.hostile_server import REFUSE, HostileServer
from tests.security.payloads import NAME, PAYLOAD
from tests.security.planted import DECLARED, IN_ENVIRONMENT, NAMES, plant, with_secret

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 90.0
START_SECONDS = 300.0  # models load for a minute on a machine that has much else to do
QUESTION = f"What does the boiler manual say? {PAYLOAD}"
KEY_VARIABLE = "PLANTED_KEY"  # an entry names it, and it holds the secret IN_ENVIRONMENT
STATUSES = (400, 401, 403, 404, 413, 418, 422, 429, 500, 503)  # that the language model's server refuses with
# Addresses that are not set here: they would take models, store or sign-in elsewhere. test_secret_outputs.py plants them too.
ELSEWHERE = frozenset(
    {"access.oidc.metadata_url", "access.oidc.redirect_uri", "embeddings.base_url", "gpu_server.url", "milvus.uri"}
)
SECRETS = tuple(name for name in NAMES if name not in ELSEWHERE)


@dataclass
class World:
    """`folder` holds everything that the dashboard writes (`data`, `log`) and the settings; `token` is server.token."""

    url: str
    port: int
    token: str
    folder: Path
    process: subprocess.Popen[bytes]
    remote: HostileServer
    redis: RedisServer
    machine: str
    service: str
    sshd_pid: int

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def call(self, method: str, path: str, *, token: str | None = "", **given: Any) -> httpx.Response:
        """A request with the right token; `token` None sends none."""
        right = self.token if token == "" else token
        headers = {**({"authorization": f"Bearer {right}"} if right else {}), **given.pop("headers", {})}
        # `verify` spares the authorities' certificates, which are read anew for each request and asked by none of these
        return httpx.request(
            method, self.url + path, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False, verify=False, **given
        )

    def ask(self, question: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("POST", "/api/v1/ask", json={"query": question, **options}).json()
        return answer

    def ask_refused(self, status: int) -> dict[str, Any]:
        """A question that the language model's server refuses, repeating the credentials."""
        return self.ask(f"boiler {REFUSE}{status} {PAYLOAD}", caches="bypass")

    def sends_spans(self) -> None:
        """Another program's spans, with a hostile text wherever one can stand; returns once their queries are stored."""
        body, headers = gzip.compress(json.dumps(hostile_data.spans()).encode()), {"content-encoding": "gzip"}
        answer = self.call("POST", "/v1/traces", content=body, headers={**headers, "content-type": "application/json"})
        assert answer.status_code == 200 and "rejectedSpans" not in answer.text, answer.text
        eventually(lambda: len(self.of_others()) >= len(hostile_data.SPANS))

    def of_others(self) -> list[str]:
        """The ids of stored queries that other programs answered."""
        rows = self.call("GET", "/api/v1/queries?limit=1000").json()["queries"]
        return [row["id"] for row in rows if row["origin"].startswith("otlp:")]

    def memory_bytes(self) -> int:
        """Resident memory of the dashboard's process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def eventually(happened: Callable[[], Any], said: Callable[[], str] = str, seconds: float = PATIENCE_SECONDS) -> Any:
    """What `happened` gives once it is true. Raises AssertionError when it does not come."""
    end = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < end, said()
        time.sleep(0.1)
    return result


@contextlib.contextmanager
def started(folder: Path) -> Iterator[World]:
    """The dashboard in `folder`, its hostile documents read, one question answered."""
    with contextlib.ExitStack() as stack:
        remote = HostileServer()
        stack.callback(remote.stop)
        redis = RedisServer()
        redis.kill()
        redis.start("--requirepass", canary("redis.url"))
        stack.callback(redis.kill)
        sshd = Sshd(folder / "sshd", force=with_path(_programs(folder / "programs")))
        stack.callback(sshd.stop)
        stack.enter_context(_process_with_a_name())
        machine, service = f"machine {PAYLOAD}", f"service {PAYLOAD}"
        config = folder / "dashboard.toml"
        settings = _settings(folder, remote, redis, sshd, machine, service)
        for key in sorted(DECLARED):
            plant(settings, key, with_secret(key, canary(key)))
        config.write_text(tomli_w.dumps(settings))
        _documents(folder / "documents")
        (folder / "data").mkdir()
        hostile_data.experiments(folder / "data")
        hostile_data.evaluations(folder / "data")
        port = free_port()
        process = _start(folder, config, port)
        url = f"http://127.0.0.1:{port}"
        world = World(url, port, canary("server.token"), folder, process, remote, redis, machine, service, sshd.process.pid)
        stack.callback(_end, world)
        _wait(world)
        yield world


def _wait(world: World) -> None:
    """Until the documents are in the collection and their question was answered."""

    def answers() -> bool:
        assert world.process.poll() is None, world.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            answer = world.call("POST", "/api/v1/ask", json={"query": QUESTION})
            return answer.status_code == 200 and len(answer.json()["passages"]) >= 3
        return False

    eventually(answers, lambda: world.log.read_text()[-3000:], START_SECONDS)


def _start(folder: Path, config: Path, port: int) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAGDECK_", "STREAMLIT_", "OTEL_"))}
    environment = {**kept, "RAGDECK_DATA": str(folder / "data"), "RAGDECK_CONFIG": str(config), "HF_HUB_OFFLINE": "1"}
    environment |= {"RAGDECK_TOKEN": canary("server.token"), KEY_VARIABLE: canary(IN_ENVIRONMENT)}
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def _end(world: World) -> None:
    if world.process.poll() is None:
        world.process.send_signal(signal.SIGTERM)
        world.process.wait(PATIENCE_SECONDS)


def _with_user(url: str, secret: str) -> str:
    """The address with a password in it."""
    return url.replace("://", f"://user:{canary(secret)}@")


def _settings(folder: Path, remote: HostileServer, redis: RedisServer, sshd: Sshd, machine: str, service: str) -> dict[str, Any]:
    key = keygen(folder / "sshd" / "locked_key", passphrase=canary("machines.passphrase"))
    with (folder / "sshd" / "authorized_keys").open("a") as file:
        file.write(Path(f"{key}.pub").read_text())
    return {
        "ingest": {"sample_corpus": False, "watch": [str(folder / "documents")], "watch_seconds": 1.0},
        "gpu_server": {"retries": 0},
        "access": {"requests_per_minute": 1_000_000},  # thousands of requests come from one address here
        "embeddings": {"headers": {"X-Team": canary("embeddings.headers")}},
        "reranker": {
            "api_url": _with_user(f"{remote.url}/locked", "reranker.api_url"),
            "api_dialect": "cohere",
        },
        "llm": {
            "base_url": _with_user(f"{remote.url}/llm", "llm.base_url"),
            "model": "hostile",
            "default_hyde": "off",
            "retries": 0,
        },
        "ocr": {"base_url": _with_user(f"{remote.url}/locked/ocr", "ocr.base_url"), "model": "m"},
        "speech": {"base_url": _with_user(f"{remote.url}/locked/speech", "speech.base_url")},
        "redis": {"url": f"redis://:{canary('redis.url')}@127.0.0.1:{redis.port}/0"},
        "traces": {"otlp_endpoint": _with_user(f"{remote.url}/otlp", "traces.otlp_endpoint")},
        "alerts": {
            "notify": [f"json://user:{canary('alerts.notify')}@127.0.0.1:{remote.port}/locked/{canary('alerts.notify')}"],
            "rules": {"service-failing": {"window_seconds": 0}},  # the locked service's alert comes at once, not after minutes
        },
        "machines": [
            {
                "name": machine,
                "address": f"127.0.0.1:{sshd.port}",
                "key": str(key),
                "passphrase": canary("machines.passphrase"),
                "known_hosts": str(sshd.known_hosts),
                "use_agent": False,
                "slow_every_seconds": 5,
            }
        ],
        "services": [
            {
                "name": service,
                "kind": "http",
                "url": _with_user(f"{remote.url}/page?api_key={canary('services.query')}", "services.url"),
                "headers": {"X-Auth": canary("services.headers")},
                "liveness_every_seconds": 1,
            },
            {"name": "locked", "kind": "openai-chat", "url": f"{remote.url}/locked", "api_key": canary("services.api_key")},
            {"name": "models", "kind": "openai-chat", "url": f"{remote.url}/named"},
            {"name": "by name", "kind": "openai-chat", "url": f"{remote.url}/llm", "api_key_env": KEY_VARIABLE},
        ],
        "prometheus": [
            {
                "name": f"source {PAYLOAD}",
                "url": _with_user(f"{remote.url}/locked/prometheus?key={canary('prometheus.query')}", "prometheus.url"),
                "api_key": canary("prometheus.api_key"),
                "headers": {"X-Team": canary("prometheus.headers")},
            }
        ],
    }


def _documents(folder: Path) -> None:
    folder.mkdir()
    text = f"# {PAYLOAD}\n\n## {PAYLOAD}\n\nThe boiler manual says: {PAYLOAD}. The boiler is brass, and it whistles.\n"
    (folder / f"{NAME}.md").write_text(text)
    (folder / f"page {NAME}.html").write_text(f"<title>{PAYLOAD}</title><h1>boiler</h1><p>{PAYLOAD} boiler</p>")
    (folder / f"table {NAME}.csv").write_text(f'name,"{PAYLOAD.replace(chr(34), chr(34) * 2)}"\nboiler,=1+1\n')
    (folder / "broken.docx").write_bytes(b"PK\x03\x04 no archive")
    picture = Image.new("RGB", (600, 300), "white")
    ImageDraw.Draw(picture).text((20, 100), "The boiler is brass and whistles", "black", font_size=30)
    picture.save(folder / "scan.png")
    with wave.open(str(folder / "speech.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\x00\x10" * 8000)


def _programs(folder: Path) -> Path:
    """A fake `nvidia-smi` and `docker` of the remote machine, whose names are hostile."""
    folder.mkdir(parents=True)
    capture = (ROOT / "tests/collectors/data/nvidia_smi/a100.csv").read_text()
    head, _, line = capture.partition("\n")
    fields = head.removeprefix("# ").split(",")
    (folder / "help").write_text("\n".join(f'"{field}"' for field in fields))
    cells = line.replace("NVIDIA A100-SXM4-40GB", PAYLOAD).split(",")
    cells[fields.index("driver_version")] = f" {PAYLOAD}"
    (folder / "gpus").write_text(",".join(cells))
    (folder / "apps").write_text(f"{line.split(',')[1].strip()}, 4242, 100, {PAYLOAD}\n")
    _program(
        folder / "nvidia-smi",
        f'case "$1" in --help*) cat {folder}/help;; --query-gpu*) cat {folder}/gpus;; --query-compute*) cat {folder}/apps;; esac',
    )
    container = {"id": "c" * 64, "name": f"/{PAYLOAD}", "image": PAYLOAD, "restarts": 0, "state": "exited", "exit": 1}
    container |= {"oom": False, "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:01Z", "health": None}
    (folder / "containers").write_text(json.dumps(container) + "\n")
    _program(folder / "docker", f'case "$1" in ps) echo {"c" * 64};; inspect) cat {folder}/containers;; esac')
    return folder


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@contextlib.contextmanager
def _process_with_a_name() -> Iterator[None]:
    """A process that the kernel lists under a hostile name and command line."""
    name = "<img src=x one>"
    code = f"import ctypes,time\nctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\ntime.sleep(7200)"
    process = subprocess.Popen([sys.executable, "-c", code, PAYLOAD])
    try:
        yield
    finally:
        process.kill()
        process.wait()
