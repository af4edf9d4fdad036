"""Every name in rules and dashboard is on a real page: our GPU server's, the dashboard's, vLLM's. And the probe against real servers."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from collectors.alerts import Alert
from collectors.exposition import exposition
from deploy.render import templates
from tests.collectors.test_exposition import snapshot
from tests.deploy.test_render import made
from tests.gpu_server.serving import Served, process

ROOT = Path(__file__).resolve().parent.parent.parent
VLLM = ROOT / "tests" / "collectors" / "data" / "vllm" / "v1_first.txt"
NAME = re.compile(r"\b(?:ragdeck_|te_|vllm:)[a-z0-9_]+")
KEY = "k" * 32


@pytest.fixture(scope="module")
def gpu_server() -> Iterator[Served]:
    """The real server with the starter models, and a key."""
    with process(environment={"GPU_SERVER_TOKEN": KEY}) as served:
        yield served


def names(page: str) -> set[str]:
    return {
        match
        for line in page.splitlines()
        if not line.startswith("#")
        for match in NAME.findall(line.split("{")[0].split(" ")[0])
    }


@pytest.fixture(scope="module")
def exposed(gpu_server: Served) -> set[str]:
    """Names of samples on the three kinds of pages; the GPU server has been asked something, well and badly."""
    head = {"authorization": f"Bearer {KEY}"}
    assert gpu_server.post("/embed", {"texts": ["a"]}, headers=head).status_code == 200
    assert gpu_server.post("/embed", {"texts": []}, headers=head).status_code == 400
    ours = names(gpu_server.get("/metrics", headers=head).text)
    alert = Alert(1, "gpu-hot", "GPU hot", "gpu-1", "gpu.0.t", "warn", 90, 90, 1.0, "", "", "celsius")
    return ours | names(exposition(snapshot(), [alert]).decode()) | names(VLLM.read_text())


def test_rules_use_names_that_exist(exposed: set[str]) -> None:
    rules = yaml.safe_load(made("single-vm")["monitoring/ragdeck.rules.yml"].text)["groups"][0]["rules"]
    used = {each["alert"]: set(NAME.findall(each["expr"])) for each in rules}
    assert len(used) == len(rules) == 16 and all(used.values())
    assert {alert: found - exposed for alert, found in used.items() if found - exposed} == {}


def test_the_dashboard_uses_names_that_exist(exposed: set[str]) -> None:
    panels = json.loads(made("single-vm")["monitoring/ragdeck.dashboard.json"].text)["panels"]
    used = {panel["title"]: set(NAME.findall(" ".join(each["expr"] for each in panel["targets"]))) for panel in panels}
    assert len(used) == len(panels) == 16 and all(used.values())
    assert {title: found - exposed for title, found in used.items() if found - exposed} == {}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)


def test_scaling_goes_by_names_that_exist(exposed: set[str]) -> None:
    rules = yaml.safe_load(made("kubernetes")["cluster/stores/prometheus-adapter-values.yaml"].text)["rules"]["custom"]
    assert {NAME.findall(each["seriesQuery"])[0] for each in rules} <= exposed


# -------------------------------------------------------------------------------------------------------------- the probe


def probe(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`probe.py` as a container's health check runs it, by an interpreter without our packages."""
    command = [sys.executable, "-I", "-S", str(templates.FOLDER / "probe.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PROBE_SECONDS": "30", **environment})


def port_of(address: str) -> str:
    return address.rpartition(":")[2].rstrip("/")


def test_probe_of_our_server_follows_its_health(gpu_server: Served) -> None:
    gpu_server.wait_healthy()
    port = port_of(gpu_server.address)
    assert probe("health:/health", port).returncode == 0
    assert probe("health:/status", port).returncode == 1
    assert probe("health:/status", port, GPU_SERVER_TOKEN=KEY).returncode == 0
    assert probe("embedding", port, "starter", GPU_SERVER_TOKEN=KEY).returncode == 0
    wrong = probe("embedding", port, "another/model", GPU_SERVER_TOKEN=KEY)
    assert wrong.returncode == 1 and "404" in wrong.stderr


@dataclass
class Fake:
    """A fake model server: answers everything with one status and body, keeps what it was asked."""

    status: int
    answer: str
    asked: list[tuple[str, Message, bytes]] = field(default_factory=list)

    def __enter__(self) -> Fake:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                fake.asked.append((self.path, self.headers, body))
                said = fake.answer.encode()
                self.send_response(fake.status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = str(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("kind", "status", "answer", "words"),
    [
        ("health:/health", 503, "loading", "503 loading"),
        ("completion", 200, '{"choices": []}', "IndexError"),
        ("completion", 200, '{"choices": [{"text": null}]}', "no text"),
        ("embedding", 200, '{"data": [{"embedding": [0.0, 0.0]}]}', "all zero"),
        ("embedding", 200, '{"data": [{"embedding": [NaN, 1.0]}]}', "not of numbers"),
        ("transcription", 200, "<html>", "JSONDecodeError"),
        ("nonsense", 200, "{}", "unknown kind"),
    ],
)
def test_probe_is_not_satisfied_by_an_open_port(kind: str, status: int, answer: str, words: str) -> None:
    with Fake(status, answer) as server:
        found = probe(kind, server.port, "m")
    assert found.returncode == 1 and words in found.stderr
    assert len(server.asked) == (kind != "nonsense")


def test_probe_of_nobody_and_wrong_usage() -> None:
    assert probe("health:/health", "1").returncode == 1
    assert probe().returncode == 2


def test_probe_asks_as_the_servers_expect() -> None:
    """A half second of silence as a form, a completion of one token; the key where there is one; no proxy of the environment."""
    with Fake(200, '{"text": ""}') as server:
        assert probe("transcription", server.port, "whisper", VLLM_API_KEY="abc", http_proxy="http://127.0.0.1:9").returncode == 0
    ((path, headers, body),) = server.asked
    assert path == "/v1/audio/transcriptions" and headers["authorization"] == "Bearer abc"
    form = message_from_bytes(b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body)
    model, sound = (part.get_payload(decode=True) for part in form.get_payload())  # type: ignore[union-attr]
    assert model == b"whisper"
    with wave.open(io.BytesIO(sound)) as read:
        assert read.getnframes() / read.getframerate() == 0.5
    with Fake(200, '{"choices": [{"text": "2"}]}') as server:
        assert probe("completion", server.port, "m").returncode == 0
    ((path, headers, body),) = server.asked
    assert path == "/v1/completions" and "authorization" not in headers
    assert json.loads(body) == {"model": "m", "prompt": "1", "max_tokens": 1, "temperature": 0}
