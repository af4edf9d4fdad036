"""What-if against replay: what is predicted for queries without HyDE is what running them without it measures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latency.experiments import replay
from latency.experiments.replay import Change
from latency.percentiles import what_if
from latency.percentiles.table import StageTables
from latency.percentiles.what_if import Scenario
from rag.types import Options
from runtime import Runtime
from settings import load
from tests.faults.servers import MODEL, FakeVllm, Pace
from tests.test_remote_models import QUESTION, fill

TIMES = 8
# HyDE and the answer take 0.7 s each, many times what a busy machine adds: few long sleeps, since each of them wakes late
PACE = Pace(prefill=0.2, per_token=0.1, tokens=5)


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder: Path = tmp_path_factory.mktemp("what-if")
    (folder / "dashboard.toml").write_text("[ingest]\nsample_corpus = false\n", encoding="utf-8")
    with FakeVllm(PACE) as llm:
        environment = {"RAGDECK_DATA": str(folder / "data"), "VLLM_BASE_URL": llm.address, "VLLM_MODEL": MODEL}
        running = Runtime(load(environment, folder))
        fill(running, folder / "documents")
        yield running
        running.stop()


def test_a_prediction_without_hyde_is_what_replay_measures(rt: Runtime) -> None:
    asked = rt.submit_query(QUESTION, Options(hyde="on", keep=2))
    assert asked.wait(60) and asked.result is not None
    sides = [Change({}, {}), Change({"hyde": "off"}, {})]
    job = rt.jobs.submit("experiment", "with and without HyDE", replay.work(rt, [asked.result.id], sides, TIMES))
    assert job.wait(120) and job.result is not None, job.error
    with_hyde, without = (set(job.result.query_ids(side)) for side in (0, 1))
    assert rt.traces.flush()
    table = StageTables(rt.traces.path).at(rt.traces.revision)
    rows = np.array([row for row, each in enumerate(table.ids) if each in with_hyde])
    measured = [row.total_seconds for row in rt.traces.search() if row.id in without]
    assert len(rows) == len(measured) == TIMES
    said = what_if.predict(table, rows, Scenario(hyde_skip_ratio=1.0))
    unchanged = what_if.predict(table, rows, Scenario())
    assert said is not None and unchanged is not None
    right, wrong = what_if.check(said, measured), what_if.check(unchanged, measured)
    assert right.p50_error_ratio is not None and abs(right.p50_error_ratio) <= 0.25
    assert wrong.p50_error_ratio is not None and wrong.p50_error_ratio >= 0.5 and not wrong.holds
