"""The commands as a user runs them: processes, exit codes, JSON on standard output and nothing else there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from fpdf import FPDF

from tests.ports import free_port

ROOT = Path(__file__).parents[1]


def rag(data: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rag", *arguments],
        cwd=ROOT,
        env=env(data, **environment),
        capture_output=True,
        text=True,
        timeout=150,
    )


def env(data: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "RAGDECK_DATA": str(data),
        "HF_HUB_OFFLINE": "1",
        **more,
    }


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A store with the tester's own PDF and folder of Markdown, and no samples."""
    folder = tmp_path_factory.mktemp("own")
    notes = folder / "notes"
    notes.mkdir()
    (notes / "pump.md").write_text(
        "# Pump manual\n\n## Valve\n\nThe red valve of the cooling pump opens at 4.2 bar.\n", encoding="utf-8"
    )
    (notes / "fan.md").write_text(
        "# Fan manual\n\nThe fan turns at 2,400 rpm when the heat sink is above 60 degrees.\n", encoding="utf-8"
    )
    pdf = FPDF()
    for text in ("This report is about turbines in general.", "The turbine blade of model Zephyr weighs 318 kilograms."):
        pdf.add_page()
        pdf.set_font("helvetica", size=12)
        pdf.multi_cell(0, 8, text)
    pdf.output(str(folder / "turbine.pdf"))
    data = folder / "data"
    done = rag(data, "ingest", str(notes), str(folder / "turbine.pdf"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["added"] == 3
    return folder


def test_own_documents_are_cited_in_answers(own: Path):
    asked = rag(own / "data", "ask", "How heavy is the Zephyr turbine blade?", "--json")
    found = json.loads(asked.stdout)
    assert "318" in found["answer"]
    assert found["citations"][0]["source"] == "turbine.pdf"
    assert found["citations"][0]["location"] == "p. 2"
    asked = json.loads(rag(own / "data", "ask", "At which pressure does the red valve open?", "--json").stdout)
    assert "4.2 bar" in asked["answer"]
    assert any(citation["source"] == "notes/pump.md" for citation in asked["citations"])


def test_the_same_files_again_change_nothing_and_a_changed_one_is_replaced(own: Path):
    again = json.loads(rag(own / "data", "ingest", str(own / "notes"), "--json").stdout)
    assert (again["unchanged"], again["added"], again["replaced"]) == (2, 0, 0)
    (own / "notes" / "fan.md").write_text("# Fan manual\n\nThe fan turns at 9,000 rpm now.\n", encoding="utf-8")
    changed = json.loads(rag(own / "data", "ingest", str(own / "notes"), "--json").stdout)
    assert (changed["unchanged"], changed["replaced"]) == (1, 1)
    found = json.loads(rag(own / "data", "ask", "How fast does the fan turn?", "--json").stdout)
    assert "9,000" in found["answer"]
    assert "2,400" not in json.dumps(found["passages"])


def test_a_broken_file_is_reported_and_the_rest_goes_on(own: Path, tmp_path: Path):
    (tmp_path / "good.md").write_text("# Good\n\nA whole sentence about magnets.\n", encoding="utf-8")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 broken")
    done = rag(own / "data", "ingest", str(tmp_path), "--collection", "other", "--json")
    summary = json.loads(done.stdout)
    assert done.returncode == 1
    assert (summary["added"], summary["failed"]) == (1, 1)


def test_a_series_reports_the_first_as_cold_the_rest_warm_and_percentiles(own: Path):
    done = rag(own / "data", "ask", "--query", "How heavy is the blade?", "--repeat", "4", "--json")
    found = json.loads(done.stdout)
    assert [answer["cold"] for answer in found["answers"]] == [True, False, False, False]
    assert all(answer["options"]["caches"] == "bypass" for answer in found["answers"])
    assert found["percentiles"]["seconds"]["total"]["n"] == 3
    assert found["percentiles"]["cold"] == 1
    warm = found["percentiles"]["seconds"]["embed"]
    assert 0 < warm["p50"] <= warm["p99"]


def test_questions_from_a_file_and_options_reach_the_path(own: Path, tmp_path: Path):
    questions = tmp_path / "questions.txt"
    questions.write_text("How heavy is the blade?\n\nWhat opens at 4.2 bar?\n", encoding="utf-8")
    done = rag(own / "data", "ask", "--questions", str(questions), "--candidates", "2", "--keep", "1", "--no-rerank", "--json")
    answers = json.loads(done.stdout)["answers"]
    assert len(answers) == 2
    assert all(len(answer["passages"]) <= 2 for answer in answers)
    assert all(
        stage["skipped"] == "switched off" for answer in answers for stage in answer["stages"] if stage["stage"] == "rerank"
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ask",), 2),
        (("ask", "", "--json"), 2),
        (("ask", "x", "--candidates", "0"), 2),
        (("ask", "--questions", "/nowhere.txt"), 2),
        (("evaluate", "/nowhere"), 1),
        (("ask", "x", "--api", "http://127.0.0.1:9"), 1),
        (("nonsense",), 2),
    ],
)
def test_wrong_usage_and_failures_have_their_exit_codes_and_a_message(own: Path, arguments, code):
    done = rag(own / "data", *arguments)
    assert done.returncode == code, done.stderr
    assert (done.stderr + done.stdout).strip()
    assert "Traceback" not in done.stderr


def test_wrong_settings_are_told_with_key_and_line(tmp_path: Path):
    config = tmp_path / "dashboard.toml"
    config.write_text("[reranker]\ntop_kk = 5\n", encoding="utf-8")
    done = rag(tmp_path / "data", "ask", "x", RAGDECK_CONFIG=str(config))
    assert done.returncode == 2
    assert "dashboard.toml, line 2: reranker.top_kk" in done.stderr


@pytest.fixture
def served(own: Path):
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "rag", "serve", "--port", str(port)], cwd=ROOT, env=env(own / "data"))
    url = f"http://127.0.0.1:{port}"
    wait_healthy(url, server)
    yield url, server
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        server.wait(90)


def wait_healthy(url: str, server: subprocess.Popen[bytes], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{url}/api/health", timeout=20) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not become healthy")


def test_a_held_store_says_by_whom_and_the_api_answers_instead(own: Path, served):
    url, server = served
    held = rag(own / "data", "ask", "x", "--json")
    error = json.loads(held.stdout)["error"]
    assert held.returncode == 1
    assert (error["kind"], error["pid"], error["url"]) == ("held", server.pid, url)
    assert f"--api {url}" in error["next_step"]
    asked = rag(own / "data", "ask", "How heavy is the Zephyr blade?", "--api", url, "--json")
    assert asked.returncode == 0, asked.stderr
    assert "318" in json.loads(asked.stdout)["answer"]


def test_kill_during_queries_loses_nothing_that_was_answered(own: Path):
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "rag", "serve", "--port", str(port)], cwd=ROOT, env=env(own / "data"))
    url = f"http://127.0.0.1:{port}"
    wait_healthy(url, server)
    body = json.dumps({"query": "How heavy is the Zephyr blade?"}).encode()
    ids = []
    for _ in range(5):
        request = urllib.request.Request(f"{url}/api/v1/ask", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=90) as response:
            ids.append(json.load(response)["id"])
    end, stored = time.monotonic() + 60, set[str]()
    while ids[-1] not in stored:  # stored in batches: wait until the list shows the last one, then pull the plug
        assert time.monotonic() < end
        with urllib.request.urlopen(f"{url}/api/v1/queries", timeout=60) as response:
            stored = {row["id"] for row in json.load(response)["queries"]}
    server.kill()
    server.wait(20)
    second = subprocess.Popen([sys.executable, "-m", "rag", "serve", "--port", str(port)], cwd=ROOT, env=env(own / "data"))
    try:
        wait_healthy(url, second)
        for key in ids:
            with urllib.request.urlopen(f"{url}/api/v1/queries/{key}", timeout=60) as response:
                assert "318" in json.load(response)["answer"]
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(90) == 0


def test_kill_during_ingestion_then_again_finishes_the_work(tmp_path: Path):
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(80):
        (notes / f"n{number}.md").write_text(f"# Note {number}\n\n" + f"Sentence {number} about the subject of pumps. " * 40)
    command = [sys.executable, "-m", "rag", "ingest", str(notes)]
    first = subprocess.Popen(command, cwd=ROOT, env=env(tmp_path / "data"), stderr=subprocess.PIPE, text=True)
    seen = ""
    while not re.search(r"[1-9]\d* passages", seen):
        piece = first.stderr.read(20)
        assert piece, "it ended before it could be killed"
        seen += piece
    first.kill()
    first.wait(20)
    done = rag(tmp_path / "data", "ingest", str(notes), "--json")
    summary = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert summary["added"] + summary["unchanged"] + summary["replaced"] == 80
    again = json.loads(rag(tmp_path / "data", "ingest", str(notes), "--json").stdout)
    assert again["unchanged"] == 80
