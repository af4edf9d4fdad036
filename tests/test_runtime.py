"""The runtime: settings in force, samples where they belong, traces sent on, nothing lost at the end."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import runtime
from benchmarks.bench_traces import fill
from rag.errors import RagError
from rag.types import Options
from settings import SettingsError, load


def built(tmp_path: Path, toml: str = "[ingest]\nsample_corpus = false\n", **environment: str) -> runtime.Runtime:
    (tmp_path / "dashboard.toml").write_text(toml, encoding="utf-8")
    return runtime.Runtime(load({"RAGDECK_DATA": str(tmp_path / "data"), **environment}, tmp_path))


@pytest.fixture
def running(tmp_path: Path):
    made = built(tmp_path)
    yield made
    made.stop()


def test_settings_are_the_defaults_of_a_query(tmp_path: Path):
    made = built(tmp_path, RERANKER_TOP_K="30", RERANKER_RETURN_K="10", RERANKER_ENABLED="false")
    try:
        options = made.default_options()
        assert (options.candidates, options.keep, options.rerank) == (30, 10, False)
    finally:
        made.stop()


@pytest.mark.parametrize(
    ("question", "options", "said"),
    [
        ("", None, "empty"),
        ("   \n", None, "empty"),
        ("x" * 4_000_000, None, "4,000,000 characters"),
        ("x", Options(candidates=0), "candidates"),
        ("x", Options(keep=101), "keep"),
        ("x", Options(hyde="maybe"), "hyde"),
        ("x", Options(caches="no"), "caches"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(running: runtime.Runtime, question, options, said):
    with pytest.raises(RagError, match=said) as caught:
        running.submit_query(question, options)
    assert caught.value.kind == "bad_input"
    assert caught.value.next_step
    assert running.jobs.recent() == []


def test_a_change_on_a_page_is_in_force_with_the_next_query_and_after_a_restart(tmp_path: Path):
    made = built(tmp_path)
    made.change({"reranker.return_k": 3, "llm.default_hyde": "off"})
    assert made.default_options().keep == 3
    with pytest.raises(SettingsError, match="return_k"):
        made.change({"reranker.return_k": 0})
    assert made.default_options().keep == 3
    made.stop()
    again = built(tmp_path)
    try:
        assert (again.default_options().keep, again.default_options().hyde) == (3, "off")
    finally:
        again.stop()


@pytest.mark.parametrize("key", ["llm.base_url", "llm.api_key", "server.token", "milvus.uri"])
def test_addresses_and_secrets_cannot_be_changed_on_a_page(running: runtime.Runtime, key: str):
    with pytest.raises(RagError, match="cannot be changed"):
        running.change({key: "http://evil.example"})


def test_what_the_environment_decides_stays(tmp_path: Path):
    made = built(tmp_path, RERANKER_RETURN_K="5")
    try:
        with pytest.raises(SettingsError, match="RERANKER_RETURN_K"):
            made.change({"reranker.return_k": 3})
        assert made.default_options().keep == 5
    finally:
        made.stop()


def test_traces_older_than_keep_days_are_deleted_at_the_start(tmp_path: Path):
    made = built(tmp_path)
    fill(made.traces, 3, until_unix=time.time() - 40 * 86_400)
    job = made.submit_query("Kept?")
    assert job.wait(60)
    made.stop()
    again = built(tmp_path, toml="[ingest]\nsample_corpus = false\n[traces]\nkeep_days = 30\n")
    try:
        assert again.traces.count() == 4
        again.start()
        end = time.monotonic() + 60
        while again.traces.count() != 1:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert again.traces.search()[0].id == job.result.id
    finally:
        again.stop()


def test_stop_writes_every_query_and_starts_no_new_one(tmp_path: Path):
    made = built(tmp_path)
    jobs = [made.submit_query(f"Question {number}?") for number in range(5)]
    for job in jobs:
        assert job.wait(60)
    made.stop()
    made.stop()  # a second time changes nothing
    with pytest.raises(RagError):
        made.submit_query("too late?")
    again = built(tmp_path)
    try:
        assert {row.id for row in again.traces.search()} == {job.result.id for job in jobs}
    finally:
        again.stop()


def test_samples_go_into_an_empty_embedded_store_once_and_not_again_after_removal(tmp_path: Path):
    made = built(tmp_path, toml="")
    job = made.library.ensure_samples()
    assert job.wait(120)
    assert job.result["added"] == 60
    document = made.knowledge().documents[0]
    assert made.remove_document(document.document_id) == document.passages
    made.stop()
    again = built(tmp_path, toml="")
    try:
        assert again.library.ensure_samples() is None
        assert len(again.knowledge().documents) == 59
    finally:
        again.stop()


def test_samples_never_go_into_a_configured_milvus(tmp_path: Path):
    made = built(tmp_path, toml="", MILVUS_URI="http://127.0.0.1:9")
    try:
        assert not made.library.samples_wanted()
    finally:
        made.stop()


def test_a_store_that_is_away_is_a_problem_on_screen_not_a_crash(tmp_path: Path):
    made = built(tmp_path, toml="[milvus]\ntimeout_seconds = 1\n", MILVUS_URI="http://127.0.0.1:9")
    try:
        made.start()
        assert made.wait_warm(60)
        status = made.status()
        assert status.store.address == "http://127.0.0.1:9"
        assert made.knowledge().problem.next_step
        assert {model.state for model in status.models} == {"warm"}
    finally:
        made.stop()


def test_a_cache_that_is_off_says_why(tmp_path: Path):
    for name, toml, environment, said in (
        ("off", "[cache]\nenabled = false\n", {}, "cache.enabled"),
        ("private", "", {"RAGDECK_CAPTURE_CONTENT": "0"}, "traces.capture_content"),
    ):
        (tmp_path / name).mkdir()
        made = built(tmp_path / name, toml=toml, **environment)
        try:
            assert made.cache is None
            assert said in made.cache_off
        finally:
            made.stop()


def test_an_equal_question_is_answered_from_the_cache_also_after_a_restart(tmp_path: Path):
    asked = "Why is the GPU idle while queries take 30 seconds?"
    for expected in (None, True):
        made = built(tmp_path, toml="[ingest]\nsample_corpus = true\n")
        try:
            made.start()
            assert made.wait_warm(60)
            assert made.status().sample_job is None or made.status().sample_job.wait(150)
            hits = []
            for _ in range(2):
                job = made.submit_query(asked)
                assert job.wait(60)
                hits.append(next(stage.hit for stage in job.result.stages if stage.stage == "cache"))
            assert hits == [bool(expected), True]
        finally:
            made.stop()


def test_an_unknown_model_is_refused_with_what_is_known(tmp_path: Path):
    with pytest.raises(RagError, match="starter") as caught:
        built(tmp_path, EMBEDDING_MODEL=str(tmp_path / "no-such-folder"))
    assert caught.value.kind == "model"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b\\c.md", "...", "", "x" * 400 + ".md", "שאלה.md", "a\x00b.txt", "con\nrol.md"]
)
def test_an_upload_stays_in_its_folder(running: runtime.Runtime, tmp_path: Path, name: str):
    path = running.save_upload(name, b"text")
    assert path.parent == tmp_path / "data" / "uploads"
    assert path.read_bytes() == b"text"
    assert len(path.name.encode()) <= 255


class _Collector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def test_traces_are_sent_on_where_the_environment_says(tmp_path: Path):
    collector = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    collector.received = []
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    try:
        made = built(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}")
        job = made.submit_query("Is this sent on?")
        assert job.wait(60)
        made.stop()
        path, body = collector.received[0]
        assert path == "/v1/traces"
        assert bytes.fromhex(job.result.id) in body
        assert b"Is this sent on?" in body
    finally:
        collector.shutdown()
        collector.server_close()
