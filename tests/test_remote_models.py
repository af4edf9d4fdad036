"""The dashboard's path with models behind HTTP: which ones the settings choose, what a trace says, what happens without them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import models
import runtime
from gpu_server.model_pool import ModelPool
from rag.errors import RagError
from rag.types import Answer, Options, Stage
from settings import load
from tests.gpu_server.odd_server import Asked, Odd, OddServer, odd_server
from tests.gpu_server.serving import Served, process

NO_SAMPLES = "[ingest]\nsample_corpus = false\n"
DOCUMENTS = {
    "rerank.md": "# Rerank\n\nThe first rerank after a restart is slow because kernels are compiled on first use.",
    "tunnel.md": "# Tunnel\n\nSearching Milvus through an SSH tunnel adds a round trip of a second to every query.",
    "memory.md": "# Memory\n\nAn idle GPU full of weights is the normal case; memory in use is no sign of work.",
}
QUESTION = "Why is the first rerank after a restart slow?"


@pytest.fixture(scope="module")
def gpu_server() -> Iterator[Served]:
    """The starter models in a process of their own."""
    with process() as served:
        yield served


def built(tmp_path: Path, toml: str = NO_SAMPLES, **environment: str) -> runtime.Runtime:
    (tmp_path / "dashboard.toml").write_text(toml, encoding="utf-8")
    return runtime.Runtime(load({"RAGDECK_DATA": str(tmp_path / "data"), **environment}, tmp_path))


def fill(running: runtime.Runtime, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    job = running.submit_ingest([folder])
    assert job.wait(60)
    assert job.result is not None and job.result["outcome"] == "finished", (job.error, job.result)


def ask(running: runtime.Runtime, options: Options | None = None) -> Answer:
    job = running.submit_query(QUESTION, options)
    assert job.wait(60)
    assert job.result is not None
    return job.result


def stage(answer: Answer, name: str) -> Stage:
    return next(stage for stage in answer.stages if stage.stage == name)


# ------------------------------------------------------------------------------------------- which models the settings choose


def chosen(tmp_path: Path, toml: str = "", **environment: str) -> models.Models:
    (tmp_path / "dashboard.toml").write_text(toml, encoding="utf-8")
    return models.build(load(environment, tmp_path), ModelPool())


def far(found: models.Models, kind: str) -> Any:
    """The client of the embedder or the reranker, None where it is in this process or switched off."""
    return next((model for model in found.remote if model.server.status.kind == kind), None)


def places(found: models.Models) -> tuple[str | None, str | None]:
    """Where embedder and reranker are, without asking anybody."""
    embedder, reranker = far(found, "embedder"), far(found, "reranker")
    here = "here" if found.reranker else None
    return (embedder.server.status.address if embedder else "here", reranker.server.status.address if reranker else here)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("here", "here")),
        ({"RERANKER_ENABLED": "false"}, ("here", None)),
        ({"GPU_SERVER_URL": "http://g:8000"}, ("http://g:8000", "http://g:8000")),
        ({"GPU_SERVER_URL": "http://g:8000", "RERANKER_ENABLED": "false"}, ("http://g:8000", None)),
        ({"RERANKER_API_URL": "http://r:8002/rerank"}, ("here", "http://r:8002")),
        ({"EMBEDDING_BASE_URL": "http://e:8001/v1"}, ("http://e:8001/v1", "here")),
        ({"GPU_SERVER_URL": "http://g:8000", "RERANKER_API_URL": "http://r:8002"}, ("http://g:8000", "http://r:8002")),
        ({"GPU_SERVER_URL": "http://g:8000", "EMBEDDING_BASE_URL": "http://e:8001"}, ("http://e:8001", "http://g:8000")),
        ({"GPU_SERVER_URL": "http://g:8000", "EMBEDDING_MODEL": "no/such", "RERANKER_MODEL": "no/such"}, ("http://g:8000",) * 2),
    ],
)  # fmt: skip
def test_the_more_special_address_wins(tmp_path: Path, environment: dict[str, str], expected: tuple[str, str | None]) -> None:
    assert places(chosen(tmp_path, **environment)) == expected


def test_settings_reach_the_endpoints(tmp_path: Path) -> None:
    toml = """
        [embeddings]
        headers = { X-Team = "search" }
        timeout_seconds = 7
        retries = 1
        backoff_factor = 3
        query_prompt = "query: "
        [gpu_server]
        timeout_seconds = 9
    """
    environment = {"EMBEDDING_BASE_URL": "http://e", "EMBEDDING_API_KEY": "k1", "EMBEDDING_MODEL": "big/model"}
    found = chosen(tmp_path, toml, **environment, RERANKER_API_URL="http://r", RERANKER_API_KEY="k2")
    embedder, reranker = (far(found, kind).server.transport.endpoint for kind in ("embedder", "reranker"))
    assert (embedder.model, embedder.api_key, embedder.headers) == ("big/model", "k1", {"X-Team": "search"})
    assert (embedder.timeout, embedder.retries, embedder.backoff_factor) == (7, 1, 3)
    assert (reranker.model, reranker.api_key, reranker.timeout) == (None, "k2", 9)


@pytest.mark.parametrize(
    ("environment", "cached"),
    [
        ({}, {"embedder"}),  # the starter's blend depends on all candidates
        ({"GPU_SERVER_URL": "http://g"}, set()),  # it has caches of its own
        ({"GPU_SERVER_URL": "http://g", "RERANKER_API_URL": "http://r"}, {"reranker"}),
        ({"EMBEDDING_BASE_URL": "http://e", "RERANKER_ENABLED": "false"}, {"embedder"}),
    ],
)
def test_caches_stand_before_what_has_none(tmp_path: Path, environment: dict[str, str], cached: set[str]) -> None:
    assert set(chosen(tmp_path, **environment).caches) == cached


def test_a_question_asked_again_is_embedded_from_the_cache_unless_it_is_bypassed(tmp_path: Path) -> None:
    made = built(tmp_path)
    try:
        answers = [ask(made, Options(caches=mode)) for mode in ("use", "use", "bypass")]
        labels = [next(each.label for each in found.timeline if each.stage == "embed") for found in answers]
        assert labels == ["wait for the embedder", "embed the question (from cache)", "embed the question"]
        assert made.status().models[0].cache_hit_ratio == 0.5
    finally:
        made.stop()


def test_switching_over_gives_no_notice_any_more(tmp_path: Path) -> None:
    made = built(tmp_path, GPU_SERVER_URL="http://127.0.0.1:9", RERANKER_API_URL="http://127.0.0.1:9")
    try:
        assert made.status().notices == ()
    finally:
        made.stop()


# ---------------------------------------------------------------------------------------------------- the same path over HTTP


def test_a_query_finds_the_same_over_http_as_in_process_and_says_where(tmp_path: Path, gpu_server: Served) -> None:
    plain = Options(rerank=False, caches="bypass")
    made = built(tmp_path)
    try:
        fill(made, tmp_path / "documents")
        here = ask(made, plain)
    finally:
        made.stop()
    made = built(tmp_path, GPU_SERVER_URL=gpu_server.address)  # the same store: the same model has the same collection
    try:
        there = ask(made, plain)
    finally:
        made.stop()
    assert here.outcome == there.outcome == "answered"
    assert [passage.id for passage in there.passages] == [passage.id for passage in here.passages]
    assert there.passages[0].source.endswith("rerank.md")
    embed = stage(there, "embed")
    assert (stage(here, "embed").where, embed.where) == ("in-process", "http")
    assert (stage(here, "embed").split.network, embed.model) == (None, stage(here, "embed").model)
    assert embed.split.network is not None and embed.split.compute > 0
    split = embed.split
    total = split.load + split.queue + split.tokenize + split.compute + (split.network or 0) + split.other
    assert total == pytest.approx(embed.seconds, abs=1e-9)
    assert not embed.cold


def test_ingestion_and_reranking_over_http_and_the_state_of_both_models(tmp_path: Path, gpu_server: Served) -> None:
    made = built(tmp_path, GPU_SERVER_URL=gpu_server.address)
    try:
        assert {model.state for model in made.status().models} == {"waiting"}
        fill(made, tmp_path / "documents")
        answer = ask(made)
        assert answer.outcome == "answered"
        assert answer.passages[0].source.endswith("rerank.md")
        assert (stage(answer, "rerank").where, stage(answer, "rerank").degraded) == ("http", None)
        embedder, reranker = made.status().models
        assert (embedder.kind, embedder.state, embedder.where, embedder.address) == (
            "embedder",
            "remote",
            "http",
            gpu_server.address,
        )
        assert (embedder.dimension, embedder.device) == (384, "cpu")
        assert reranker.state == "remote"
        assert embedder.load_seconds is None
        live = made.status(live=True).models[0]
        assert live.load_seconds is not None and live.load_seconds > 0
        assert live.cache_hit_ratio == 0.0
        for kind in ("embedder", "reranker"):
            probe = made.test_model(kind)
            assert probe.network_seconds is not None and probe.info.where == "http"
        spans = {span.stage: span for span in made.traces.spans(answer.id)}
        assert spans["embed"].attributes["server.port"] == int(gpu_server.address.rsplit(":", 1)[1])
    finally:
        made.stop()


# --------------------------------------------------------------------------------------------------- answers of a fake server


def vector(text: str) -> list[float]:
    norm = math.hypot(len(text), 1)
    return [len(text) / norm, 1 / norm]


class FakeGpuServer:
    """Named a fake: lengths as vectors and scores; `status` other than 200 is its answer to everything."""

    def __init__(self, cached: int = 0, times: bool = True) -> None:
        self.status = 200
        self.headers = {"x-cached": str(cached), "x-total-time": "0.1", "x-inference-time": "0.05"} if times else {}

    def __call__(self, asked: Asked) -> Odd:
        if self.status != 200:
            return Odd({"reason": "the models are being loaded"}, self.status)
        if asked.path == "/health":
            return Odd({"status": "healthy", "model": "fake", "device": "cpu"})
        if asked.path == "/embed":
            return Odd({"dense_embeddings": [vector(text) for text in asked.body["texts"]]}, headers=self.headers)
        if asked.path == "/rerank":
            order = list(range(len(asked.body["documents"])))
            return Odd({"rankings": order, "scores": [-float(index) - 1 for index in order]}, headers=self.headers)
        return Odd({}, 404)


@pytest.mark.parametrize(("cached", "times", "embed", "rerank"), [
    (0, True, "embed the question", "score the candidates"),
    (1, True, "embed the question (from cache)", "score the candidates (1 of 3 from cache)"),
    (0, False, "embed the question (network estimated)", "score the candidates (network estimated)"),
])  # fmt: skip
def test_caches_and_estimates_are_said_on_the_time_axis(
    tmp_path: Path, cached: int, times: bool, embed: str, rerank: str
) -> None:
    with odd_server(FakeGpuServer(cached, times)) as server:
        made = built(tmp_path, GPU_SERVER_URL=server.address)
        try:
            fill(made, tmp_path / "documents")
            answer = ask(made, Options(caches="refresh"))
            labels = {interval.stage: interval.label for interval in answer.timeline}
            assert (labels["embed"], labels["rerank"]) == (embed, rerank)
            modes = [asked.headers["x-ragdeck-caches"] for asked in server.asked if asked.path in ("/embed", "/rerank")]
            assert modes[-2:] == ["refresh", "refresh"]  # both stages of the query
            assert set(modes[:-2]) == {"use"}  # ingestion
        finally:
            made.stop()


def test_a_gpu_server_that_is_away_is_told_on_every_page_and_its_return_needs_no_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "MEND_SECONDS", 0.02)
    fake = FakeGpuServer()
    fake.status = 503
    with odd_server(fake) as server:
        made = built(tmp_path, NO_SAMPLES + "[gpu_server]\nretries = 0\n", GPU_SERVER_URL=server.address)
        try:
            made.start()
            assert made.wait_warm(60)
            status = made.status()
            assert [(model.kind, model.state) for model in status.models] == [("embedder", "failed"), ("reranker", "failed")]
            assert all("being loaded" in (model.error or "") for model in status.models)
            assert status.store is not None and status.store.address == server.address
            assert status.store.kind == "overloaded"
            problem = made.knowledge().problem
            assert problem is not None and problem.next_step
            answer = ask(made)
            assert answer.outcome == "failed"
            assert answer.error is not None
            assert (answer.error.stage, answer.error.kind, answer.error.address) == ("embed", "overloaded", server.address)
            with pytest.raises(RagError, match="being loaded"):
                made.test_model("embedder")
            fake.status = 200
            until(lambda: made.status().store is None)
            assert {model.state for model in made.status().models} == {"remote"}
        finally:
            made.stop()


def until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def test_nobody_at_the_address_fails_the_query_with_what_to_do(tmp_path: Path) -> None:
    gone = OddServer(FakeGpuServer())
    gone.close()
    made = built(tmp_path, NO_SAMPLES + "[gpu_server]\nretries = 0\n", GPU_SERVER_URL=gone.address)
    try:
        answer = ask(made)
        assert answer.error is not None
        assert (answer.error.stage, answer.error.kind, answer.error.address) == ("embed", "connection", gone.address)
        assert "GPU_SERVER_URL" in answer.error.next_step
    finally:
        made.stop()


def test_a_rerank_service_that_is_away_degrades_and_the_fused_order_stands(tmp_path: Path) -> None:
    gone = OddServer(FakeGpuServer())
    gone.close()
    with odd_server(FakeGpuServer()) as server:
        toml = NO_SAMPLES + "[gpu_server]\nretries = 0\n"
        made = built(tmp_path, toml, GPU_SERVER_URL=server.address, RERANKER_API_URL=gone.address)
        try:
            fill(made, tmp_path / "documents")
            answer = ask(made)
            assert answer.outcome == "answered"
            assert "the fused order stands" in (stage(answer, "rerank").degraded or "")
            assert "refused" in (stage(answer, "rerank").degraded or "")
            assert [model.state for model in made.status().models] == ["remote", "failed"]
        finally:
            made.stop()


def test_a_server_that_serves_another_model_needs_a_reload_and_no_restart(tmp_path: Path) -> None:
    fake = FakeGpuServer()
    with odd_server(fake) as server:
        made = built(tmp_path, GPU_SERVER_URL=server.address)
        try:
            fill(made, tmp_path / "documents")
            fake.headers = {"x-model-identity": "another-2"}
            error = ask(made).error
            assert error is not None
            assert (error.kind, error.stage) == ("bad_answer", "embed")
            assert "another-2" in error.message and "fake-2" in error.message
            assert made.reload_model("embedder").info.identity == "another-2"
            assert ask(made).outcome == "no_documents"  # its vectors have a collection of their own
        finally:
            made.stop()


def test_a_model_that_is_not_configured_cannot_be_tried(tmp_path: Path) -> None:
    made = built(tmp_path, GPU_SERVER_URL="http://127.0.0.1:9", RERANKER_ENABLED="false")
    try:
        with pytest.raises(RagError, match="no reranker") as caught:
            made.test_model("reranker")
        assert caught.value.kind == "not_found"
    finally:
        made.stop()
