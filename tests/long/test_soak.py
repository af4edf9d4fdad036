"""`make test-long`: kill series and a soak. Each round is a real process, killed where it stands."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.test_cli import ROOT, env, rag, wait_healthy

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


def test_twelve_kills_at_random_moments_of_ingestion_lose_nothing_finished(tmp_path: Path):
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(150):
        (notes / f"n{number}.md").write_text(f"# Note {number}\n\n" + f"Sentence {number} about the subject of pumps. " * 40)
    chance, finished = random.Random(5), 0
    for _ in range(12):
        command = [sys.executable, "-m", "rag", "ingest", str(notes)]
        process = subprocess.Popen(command, cwd=ROOT, env=env(tmp_path / "data"), stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(1.0, 12.0))
        process.kill()
        process.wait(20)
        listed = rag(tmp_path / "data", "ingest", str(notes / "n0.md"), "--json")
        assert listed.returncode == 0, listed.stderr
    summary = json.loads(rag(tmp_path / "data", "ingest", str(notes), "--json").stdout)
    finished = summary["added"] + summary["unchanged"] + summary["replaced"]
    assert (finished, summary["failed"]) == (150, 0)
    found = json.loads(rag(tmp_path / "data", "ask", "What is note 77 about?", "--candidates", "100", "--json").stdout)
    assert len({passage["id"] for passage in found["passages"]}) == len(found["passages"]), "no passage is there twice"


def test_ten_kills_while_queries_run_keep_every_acknowledged_one(tmp_path: Path):
    chance, acknowledged = random.Random(9), set()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for _ in range(10):
        server = subprocess.Popen(
            [sys.executable, "-m", "rag", "serve", "--port", str(port)], cwd=ROOT, env=env(tmp_path / "data")
        )
        wait_healthy(url, server)
        assert acknowledged <= stored(url)
        end = time.monotonic() + chance.uniform(0.5, 3.0)
        while time.monotonic() < end:
            ask(url)
        acknowledged = stored(url)
        ask(url)
        server.kill()
        server.wait(20)


def test_two_thousand_queries_do_not_grow_the_process(tmp_path: Path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "rag", "serve", "--port", str(port)], cwd=ROOT, env=env(tmp_path / "data"))
    try:
        wait_healthy(url, server)
        for _ in range(300):
            ask(url)
        warm = rss_mib(server.pid)
        for _ in range(2000):
            ask(url)
        assert rss_mib(server.pid) - warm < 100
    finally:
        server.terminate()
        assert server.wait(40) == 0


def ask(url: str) -> str:
    body = json.dumps({"query": f"Why is query {random.random()} slow?"}).encode()
    request = urllib.request.Request(f"{url}/api/v1/ask", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(json.load(response)["id"])


def stored(url: str) -> set[str]:
    with urllib.request.urlopen(f"{url}/api/v1/queries?limit=1000", timeout=10) as response:
        return {row["id"] for row in json.load(response)["queries"]}


def rss_mib(pid: int) -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024
