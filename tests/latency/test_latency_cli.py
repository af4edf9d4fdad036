"""`python -m latency` on a small store of its own: what is printed, JSON on standard output alone, exit codes, what is kept."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import runtime
from latency.__main__ import main
from latency.experiments.experiments import ExperimentStore
from rag.store_lock import StoreLock
from rag.trace_store import TraceStore
from rag.types import Answer, Split
from settings import load

ROOT = Path(__file__).parents[2]
NOTES = """# Pump

## Valve

The red valve of the cooling pump opens at 4.2 bar.

## Fan

The fan turns at 2,400 rpm above 60 degrees.
"""
QUESTION = "At which pressure does the red valve open?"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with one document and one stored query; every command of this module runs on it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "pump.md").write_text(NOTES, encoding="utf-8")
    (folder / "dashboard.toml").write_text("[ingest]\nsample_corpus = false\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGDECK_DATA", str(folder / "data"))
        patch.setenv("RAGDECK_CONFIG", str(folder / "dashboard.toml"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        before = signal.getsignal(signal.SIGTERM)
        running = runtime.Runtime(load())
        assert running.submit_ingest([folder / "pump.md"]).wait(90)
        assert running.submit_query(QUESTION).wait(90)
        running.stop()
        yield folder / "data"
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def stored(data: Path) -> str:
    return answers(data)[0].id


def answers(data: Path) -> list[Answer]:
    """What is stored, oldest first."""
    traces = TraceStore(data / "traces.db")
    try:
        return [traces.get(row.id) for row in traces.search(descending=False)]
    finally:
        traces.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        code = main(arguments)
    except SystemExit as end:  # argparse
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


# usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["warp"],
        ["load"],
        ["load", "--questions", "q.txt", "--users", "0"],
        ["load", "--questions", "q.txt", "--users", "1,x"],
        ["findings", "--last", "soon"],
        ["findings", "--last", "-3h"],
        ["replay"],
        ["replay", "x", "--times", "0"],
        ["compare", "x"],
    ],
)
def test_wrong_usage_is_exit_code_2_with_usage(capsys, arguments: list[str]):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "usage: python -m latency" in err


@pytest.mark.parametrize("command", ["", "components", "load", "replay", "compare", "findings"])
def test_help_says_what_each_command_is_for(capsys, command: str):
    code, out, _ = run(capsys, *([command] if command else []), "--help")
    assert code == 0
    assert ("replay" in out and "findings" in out) if not command else "--json" in out
    if command == "replay":
        assert "reranker.device" in out


def test_the_command_itself_starts_without_models(data: Path):
    done = subprocess.run(
        [sys.executable, "-m", "latency", "replay", "x", "--change", "warp=9,topk"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 2
    assert "'topk' is no KEY=VALUE" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "said"),
    [
        (["replay", "f" * 32], 1, "not_found", "no stored query"),
        (["replay", "f" * 32, "--change", "rerank=maybe"], 2, "bad_input", "rerank is 'maybe'"),
        (["replay", "f" * 32, "--change", "candidates=few"], 2, "bad_input", "candidates is 'few'"),
        (["compare", "f" * 32, "e" * 32], 1, "not_found", "no stored query"),
        (["compare", "nothing:A", "nothing:B"], 1, "not_found", "no side of a replay"),
        (["findings", "f" * 32], 1, "not_found", "no stored query"),
        (["findings", "f" * 32, "--last", "1h"], 2, "bad_input", "at once"),
        (["components", "--preset", "r9"], 2, "bad_input", "no targets"),
        (["components", "--target", "reranker.20"], 2, "bad_input", "KEY=VALUE"),
        (["components", "--target", "warp=1"], 2, "bad_input", "no component test"),
        (["components", "--only", "warp"], 2, "bad_input", "no component test"),
        (["load", "--questions", "no-such-file.txt"], 2, "bad_input", "no-such-file.txt"),
        (["load", "--questions", __file__, "--set", "topk=3"], 2, "bad_input", "no option topk"),
    ],
)
def test_what_cannot_be_done_is_said_as_json_with_its_exit_code(data: Path, capsys, arguments, code, kind, said):
    found, out, _ = run(capsys, *arguments, "--json")
    error = json.loads(out)["error"]
    assert (found, error["kind"]) == (code, kind)
    assert said in error["message"]
    assert error["next_step"]


# components


def test_components_prints_the_table_and_keeps_it(data: Path, capsys):
    code, out, err = run(
        capsys, "components", "--only", "embedder,store,disk", "--name", "before the move", "--preset", "r1-a100"
    )
    assert code == 0
    assert "Embedder: load" in out
    assert "12.4 s" in out  # the target
    assert "embedder …" in err
    kept = ExperimentStore(data / "experiments.db").list("components")[0]
    assert (kept.name, kept.state) == ("before the move", "finished")
    assert kept.id in out
    rows = {row["code"]: row for row in kept.result["rows"]}
    assert rows["embedder.load"]["target"]["source"] == "R1 A100 80 GB"
    assert rows["disk.read:embedder"]["values"]["read_bytes"] > 10_000_000
    assert rows["store.connect"]["verdict"] == "ok"
    assert kept.environment["ragdeck"]


def test_components_slower_than_a_target_that_was_asked_for_are_exit_code_1(data: Path, capsys):
    code, out, err = run(capsys, "components", "--only", "embedder", "--target", "embedder.warm=0.0000001", "--json")
    document = json.loads(out)
    assert code == 1
    assert err == ""
    assert {row["code"]: row["verdict"] for row in document["result"]["rows"]}["embedder.warm"] == "slow"
    assert document["parameters"]["targets"]["embedder.warm"]["source"] == "the command line"


# replay, compare, findings


@pytest.fixture(scope="module")
def replayed(data: Path, stored: str) -> dict:
    """The document of one replay: as stored against two changes at once."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["replay", stored, "--change", "candidates=1,rerank=off", "--times", "2", "--json"])
    assert code == 0, out.getvalue()
    return json.loads(out.getvalue())


def test_replay_asks_both_sides_and_compares_them(data: Path, stored: str, replayed: dict):
    assert (replayed["kind"], replayed["state"]) == ("replay", "finished")
    sides = replayed["result"]["sides"]
    assert [side["label"] for side in sides] == ["as stored", "candidates 1, rerank off"]
    assert [side["n"] for side in sides] == [2, 2]
    comparison = replayed["comparisons"][0]
    assert (comparison["a"]["n"], comparison["b"]["n"]) == (2, 2)
    measured = {answer.id: answer for answer in answers(data) if answer.origin == "measure"}
    assert set(sides[1]["query_ids"]) < set(measured)
    assert all(measured[each].options.candidates == 1 for each in sides[1]["query_ids"])
    assert all(measured[each].options.caches == "bypass" for each in sides[0]["query_ids"])
    assert ExperimentStore(data / "experiments.db").get(replayed["id"]).result == replayed["result"]


def test_compare_takes_queries_lists_of_them_and_sides_of_a_replay(data: Path, capsys, replayed: dict):
    ids = [side["query_ids"] for side in replayed["result"]["sides"]]
    code, out, _ = run(capsys, "compare", ",".join(ids[0]), ",".join(ids[1]), "--json")
    by_ids = json.loads(out)
    assert (code, by_ids["a"]["n"], by_ids["b"]["n"]) == (0, 2, 2)
    code, out, _ = run(capsys, "compare", f"{replayed['id']}:A", f"{replayed['id']}:1", "--json")
    assert (code, json.loads(out)) == (0, by_ids)
    code, out, _ = run(capsys, "compare", ids[0][0], ids[1][0])
    assert code == 0
    assert by_ids["stages"][0]["name"] in out
    assert "B - A" in out
    code, _, err = run(capsys, "compare", f"{replayed['id']}:C", ids[1][0])
    assert code == 1
    assert "no side" in err


def test_a_replay_printed_for_people(data: Path, capsys, stored: str):
    code, out, err = run(capsys, "replay", stored, "--times", "1", "--change", "as-stored", "--base", "keep=1")
    assert code == 0
    assert "keep 1" in out
    assert "as stored" in out
    assert "B - A" in out
    assert "1/2" in err


def test_a_side_without_a_run_that_counts_is_exit_code_1(data: Path, capsys, stored: str):
    code, out, _ = run(capsys, "replay", stored, "--times", "1", "--change", "collection=nowhere", "--json")
    document = json.loads(out)
    assert code == 1
    assert document["comparisons"] == []
    assert document["result"]["sides"][1]["failed"] == 1


def with_load(answer: Answer, seconds: float) -> Answer:
    """The same query as if its embedder had been loaded inside it."""
    split = Split(load=seconds, compute=0.01)
    embed = [replace(each, seconds=seconds + 0.01, cold=True, split=split) for each in answer.stages if each.stage == "embed"]
    others = [each for each in answer.stages if each.stage != "embed"]
    first = next(each for each in answer.timeline if each.stage == "embed")
    later = [replace(each, start=each.start + seconds) for each in answer.timeline if each.stage != "embed"]
    timeline = (replace(first, seconds=seconds + 0.01, cold=True, split=split), *later)
    total = answer.total_seconds + seconds
    return replace(answer, id="c" * 32, stages=(*embed, *others), timeline=timeline, total_seconds=total)


def test_findings_of_one_query_and_of_the_last_hour_leave_measured_ones_out(data: Path, capsys, replayed: dict):
    cold = with_load(answers(data)[0], 3.0)
    traces = TraceStore(data / "traces.db")
    traces.save(cold)
    traces.close()
    code, out, _ = run(capsys, "findings", "--json")
    document = json.loads(out)
    assert (code, document["queries"]) == (0, 2)
    assert document["findings"][0]["query_ids"] == [cold.id]
    code, out, _ = run(capsys, "findings", cold.id, "--json")
    found = json.loads(out)["findings"][0]
    assert found["stage"] == "embed"
    assert found["cost_seconds"] == pytest.approx(3.0, abs=0.1)
    code, out, _ = run(capsys, "findings", cold.id)
    assert out.startswith(f"1. {found['title']}")
    assert found["change"] in out


def test_findings_where_nothing_was_asked_say_so(data: Path, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RAGDECK_DATA", str(tmp_path))
    code, out, _ = run(capsys, "findings", "--last", "7d")
    assert (code, out.strip()) == (0, "no query in that time")


# load


class _Api(BaseHTTPRequestHandler):
    """Answers like `/api/v1/ask`, always with the same stored answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.server.bodies.append((self.path, self.headers.get("authorization"), json.loads(self.rfile.read(length))))
        body = json.dumps(self.server.answer.to_json()).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def api(data: Path) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    server.bodies, server.answer = [], replace(answers(data)[0], total_seconds=0.01)
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.txt"
    path.write_text(f"{QUESTION}\nTwo?\n", encoding="utf-8")
    return path


def test_load_against_a_server_needs_no_store_here(data: Path, capsys, api, questions: Path, monkeypatch):
    monkeypatch.setenv("RAGDECK_TOKEN", "a-token-of-theirs")
    held = StoreLock(data / "milvus.lock")
    held.acquire()  # another process has the embedded store
    steps = ["--users", "1,2", "--seconds", "5", "--requests", "6"]
    try:
        code, out, _ = run(capsys, "load", *steps, "--questions", str(questions), "--api", api.url, "--set", "hyde=off", "--json")
    finally:
        held.release()
    document = json.loads(out)
    assert (code, document["state"]) == (0, "finished")
    assert [step["users"] for step in document["result"]["steps"]] == [1, 2]
    assert {body["query"] for _, _, body in api.bodies} == {QUESTION, "Two?"}
    assert {(path, token) for path, token, _ in api.bodies} == {("/api/v1/ask", "Bearer a-token-of-theirs")}
    assert all(body["hyde"] == "off" for _, _, body in api.bodies)
    assert "a-token-of-theirs" not in out
    assert ExperimentStore(data / "experiments.db").get(document["id"]).kind == "load"


def test_load_in_this_process_prints_steps_and_the_knee(data: Path, capsys, questions: Path):
    code, out, err = run(capsys, "load", "--users", "1", "--questions", str(questions), "--seconds", "10", "--requests", "3")
    assert code == 0, out + err
    assert "answered" in out
    assert "1 user …" in err


def test_a_load_test_that_is_stopped_keeps_what_it_has(data: Path, api, questions: Path):
    command = [sys.executable, "-m", "latency", "load", "--users", "1", "--questions", str(questions), "--api", api.url]
    command += ["--seconds", "300", "--requests", "10000"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stderr is not None
        assert "step 1/1" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(20)
    assert process.returncode == 130
    kept = ExperimentStore(data / "experiments.db").list("load")[0]
    assert kept.id in err
    assert kept.state == "cancelled"


# a store that another process has


@pytest.mark.parametrize(
    ("command", "step"),
    [("components", "pages of that server (http://127.0.0.1:8502)"), ("replay", "pages of that server"), ("load", "--api")],
)
def test_a_held_store_is_said_with_who_holds_it_and_where_to_run_it(data: Path, capsys, stored: str, command: str, step: str):
    arguments = {"components": [], "replay": [stored], "load": ["--questions", __file__]}[command]
    held = StoreLock(data / "milvus.lock", url="http://127.0.0.1:8502")
    held.acquire()
    try:
        code, out, _ = run(capsys, command, *arguments, "--json")
    finally:
        held.release()
    error = json.loads(out)["error"]
    assert (code, error["kind"], error["pid"], error["url"]) == (1, "held", os.getpid(), "http://127.0.0.1:8502")
    assert step in error["next_step"]
