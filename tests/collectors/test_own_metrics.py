"""What a process counts of itself: read back by Prometheus's parser, its names held against promtool's rules."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from collectors import metrics_api
from collectors.exposition import exposition
from collectors.own_metrics import OwnMetrics
from jobs import Jobs
from models import ModelStatus
from rag.types import Answer, Stage
from tests.collectors.test_exposition import snapshot

LOCAL = ModelStatus("embedder", "starter", "warm", queue_texts=3)
FAR = ModelStatus("reranker", "bge", "waiting", where="http")


@dataclass
class FakeProcess:
    """Named a fake: a runtime of which only what is scraped is there; the jobs are real."""

    jobs: Jobs = field(default_factory=lambda: Jobs(keep=1))
    states: tuple[ModelStatus, ...] = (LOCAL, FAR)
    own: OwnMetrics = field(default_factory=lambda: OwnMetrics("1.2.3"))

    @property
    def models(self) -> Any:
        return SimpleNamespace(
            status=lambda: self.states, caches={"embedder": SimpleNamespace(stats=SimpleNamespace(hits=5, misses=2))}
        )

    @property
    def settings(self) -> Any:
        return SimpleNamespace(query=SimpleNamespace(max_running=8))

    @property
    def deployment(self) -> Any:
        sweep = SimpleNamespace(snapshot=snapshot)
        return SimpleNamespace(own=self.own, sweep=sweep, alerts=SimpleNamespace(active=lambda: ()))

    def read(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Sample name -> values in the order of their labels' names -> value; of histograms the sums and counts."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(self.own.text(self).decode()):
            for sample in family.samples:
                if not sample.name.endswith("_bucket"):
                    which = tuple(value for _, value in sorted(sample.labels.items()))
                    assert which not in found.setdefault(sample.name, {})
                    found[sample.name][which] = sample.value
        return found


def answer(outcome: Any = "answered", origin: str = "api", **changes: Any) -> Answer:
    stages = (
        Stage("cache", 0.002, 1, hit=False, reason="nothing like it"),
        Stage("hyde", skipped="switched off"),
        Stage("embed", 0.01, 1),
        Stage("search", 0.03, 2, cold=True),
    )
    given = {"stages": stages, "total_seconds": 0.5, "first_token_seconds": 0.2, **changes}
    return Answer("0" * 32, "q", "2026-01-01T00:00:00.000Z", outcome, origin=origin, **given)


def test_queries_and_stages_are_counted() -> None:
    process = FakeProcess()
    before = process.read()
    assert before["ragdeck_queries_total"]["api", "failed"] == 0, "there before the first, so that a rate sees it"
    for each in (answer(), answer(), answer("failed", "ask", first_token_seconds=None), answer(origin="measure")):
        process.own.answered(each)
    process.own.refused()
    found = process.read()
    queries = found["ragdeck_queries_total"]
    assert (queries["api", "answered"], queries["ask", "failed"], queries["measure", "answered"]) == (2, 1, 1)
    assert found["ragdeck_query_seconds_count"][()] == 3 and found["ragdeck_query_seconds_sum"][()] == pytest.approx(1.5)
    assert found["ragdeck_query_first_token_seconds_count"][()] == 2, "one failed before a token came, one measured"
    stages = found["ragdeck_query_stage_seconds_count"]
    assert stages == {("cache",): 3, ("embed",): 3, ("search",): 3}, "a stage that did not run has no seconds"
    assert found["ragdeck_query_stage_seconds_sum"]["search",] == pytest.approx(0.09)
    assert found["ragdeck_cold_queries_total"][()] == 3 and found["ragdeck_refused_queries_total"][()] == 1
    assert found["ragdeck_build_info"]["1.2.3",] == 1 and found["process_cpu_seconds_total"][()] > 0


def test_caches_are_told_apart() -> None:
    process = FakeProcess()
    process.own.answered(answer(stages=(Stage("cache", 0.001, 1, hit=True),)))
    process.own.answered(answer())
    process.own.answered(answer(stages=(Stage("cache", hit=False, skipped="bypass"),)))
    found = process.read()
    assert found["ragdeck_cache_hits_total"] == {("answers",): 1, ("embedder",): 5}
    assert found["ragdeck_cache_misses_total"] == {("answers",): 1, ("embedder",): 2}


def test_jobs_and_models_are_read_at_the_scrape() -> None:
    process = FakeProcess()
    go = process.jobs.submit("query", "one", _waiting)
    ingest = process.jobs.submit("ingest", "two", _waiting)
    found = process.read()
    assert found["ragdeck_jobs_running"] == {("ingest",): 1, ("query",): 1} and found["ragdeck_jobs_limit"] == {("query",): 8}
    assert found["ragdeck_model_queue_texts"] == {("embedder", "starter"): 3}
    assert found["ragdeck_model_warm"] == {("embedder", "starter"): 1}, "nobody has asked the other yet: neither 1 nor 0"
    for job in (go, ingest):
        job.cancel()
        assert job.wait(20)
    for _ in range(3):  # the job of ingestion is forgotten
        assert process.jobs.submit("query", "x", _nothing).wait(20)
    assert [job.kind for job in process.jobs.recent()].count("ingest") == 0
    process.states = (replace(LOCAL, state="failed"), replace(FAR, state="remote"))
    found = process.read()
    assert found["ragdeck_jobs_running"] == {("ingest",): 0, ("query",): 0}, "a series does not end because nothing runs"
    assert found["ragdeck_model_warm"] == {("embedder", "starter"): 0, ("reranker", "bge"): 1}


def _waiting(job: Any) -> Any:
    while not job.cancelled.wait(0.01):
        pass
    yield from ()


def _nothing(job: Any) -> Any:
    yield from ()


def test_the_route_joins_both_pages_without_a_name_twice() -> None:
    process = FakeProcess()
    with TestClient(Starlette(routes=metrics_api.routes_of(lambda: process))) as client:
        text = client.get("/metrics").text
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) and {"ragdeck_queries_total", "ragdeck_cpu_busy_ratio"} <= {*types}, types


def test_the_route_says_when_there_is_no_runtime() -> None:
    def none() -> Any:
        raise RuntimeError("settings with a secret hunter2")

    with TestClient(Starlette(routes=metrics_api.routes_of(none))) as client:
        failed = client.get("/metrics")
    assert failed.status_code == 503 and "hunter2" not in failed.text


def test_names_and_units_are_those_that_prometheus_asks_for() -> None:
    process = FakeProcess()
    process.own.answered(answer())
    for family in text_string_to_metric_families(process.own.text(process).decode()):
        assert family.documentation and re.fullmatch(r"(ragdeck|process)_[a-z_]+", family.name), family.name
        assert family.type != "histogram" or family.name.endswith("_seconds"), family.name
        assert family.type != "counter" or all(each.name.endswith("_total") for each in family.samples), family.name
    promtool = shutil.which("promtool")
    if promtool is None:  # CI has it
        return
    for page in (process.own.text(process), exposition(snapshot()) + process.own.text(process)):
        done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
