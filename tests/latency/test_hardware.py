"""CPU against GPU on real small models in this process; what this machine cannot have is a row with its reason."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpu_server import makers
from gpu_server.errors import EngineError
from gpu_server.interfaces import ModelInfo, Scores, Timing
from gpu_server.model_pool import ModelPool
from jobs import Job, Jobs
from latency.hardware import hardware
from latency.hardware.hardware import ModelClient, checked, forecast, passages, rows_of, unfit, work
from latency.hardware.types import Cell, HardwarePlan, HardwareResult, Place, Row
from latency.load.steps import Heard, Told, step_of
from rag.errors import RagError
from rag.trace_store import TraceStore
from rag.types import Answer, Passage
from tests.tiny_models import tiny_bge_reranker

__all__ = ["tiny_bge_reranker"]


class SmallLab:
    """What the comparison needs of a runtime: real models of the pool, built anew for each variant as the runtime does."""

    def __init__(self, folder: Path, reranker: str) -> None:
        self.traces = TraceStore(folder / "traces.db")
        self.reranker = reranker
        self.asked: list[Mapping[str, Any]] = []
        self.open = 0

    @contextmanager
    def variant(self, changes: Mapping[str, Any]) -> Iterator[Any]:
        self.asked.append(changes)
        if "http" in changes.values():
            raise RagError("no server is configured", kind="bad_input", next_step="Set GPU_SERVER_URL.")
        kind = "embedder" if "embedder" in changes else "reranker"
        device, precision = changes[f"{kind}.device"], changes[f"{kind}.precision"]
        pool = ModelPool()
        embedder = pool.add_embedder("starter", makers.embedders("starter", device, precision)) if kind == "embedder" else None
        make = makers.rerankers(self.reranker, device, precision)
        scored = makers.uses_route_scores(self.reranker)
        reranker = pool.add_reranker("r", make, uses_route_scores=scored) if kind == "reranker" else None
        self.open += 1
        try:
            yield SimpleNamespace(changes=changes, clients=SimpleNamespace(embedder=embedder, reranker=reranker))
        finally:
            self.open -= 1
            pool.stop()


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    found = Jobs()
    yield found
    assert found.stop(30)


@pytest.fixture
def lab(tmp_path: Path, tiny_bge_reranker: Path) -> Iterator[SmallLab]:
    found = SmallLab(tmp_path, str(tiny_bge_reranker))
    yield found
    assert found.traces.close() and not found.open


QUICK = HardwarePlan(candidates=(2, 4), clients=(1, 2), seconds_per_cell=0.1, calls_per_cell=20)


def finish(jobs: Jobs, lab: Any, plan: HardwarePlan) -> tuple[HardwareResult, Job[HardwareResult]]:
    job = jobs.submit("experiment", "hardware", work(lab, plan))
    assert job.wait(90) and job.error is None and job.result is not None, job.error
    return job.result, job


def test_this_machine_is_measured_and_what_it_lacks_is_a_reason(jobs: Jobs, lab: SmallLab) -> None:
    result, job = finish(jobs, lab, HardwarePlan(**{**_fields(QUICK), "devices": ("cpu", "cuda:9"), "precisions": ("fp32",)}))
    rows = {(row.place.component, row.place.name): row for row in result.rows}
    assert set(rows) == {(each, name) for each in ("embed", "rerank") for name in ("cpu fp32", "cuda:9 fp32", "HTTP")}
    embed, rerank = rows["embed", "cpu fp32"], rows["rerank", "cpu fp32"]
    assert {cell.size for cell in embed.cells} == {1, 2, 4} and {cell.size for cell in rerank.cells} == {2, 4}
    for row in (embed, rerank):
        assert row.skipped is None and row.device == "cpu" and row.precision == "fp32" and row.load_seconds
        assert all(cell.step and cell.step.answered and cell.step.throughput > 0 and not cell.step.failed for cell in row.cells)
    assert "cuda:9" in str(rows["rerank", "cuda:9 fp32"].skipped) and not rows["rerank", "cuda:9 fp32"].cells
    assert rows["embed", "HTTP"].skipped == "no server is configured"
    assert "sample passage" in result.texts
    kinds = [event["type"] for event in job.events()]
    assert kinds.count("place_finished") == 6 and kinds.count("cell") == 10 and kinds[0] == "hardware_started"
    assert HardwareResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def _fields(plan: HardwarePlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def test_the_starter_reranker_is_no_model_to_compare(jobs: Jobs, tmp_path: Path) -> None:
    lab = SmallLab(tmp_path, "starter")
    plan = HardwarePlan(("rerank",), ("cpu",), ("fp32",), False, (2,), (1,), 0.1)
    result, _ = finish(jobs, lab, plan)
    (row,) = result.rows
    assert row.skipped and "arithmetic" in row.skipped
    assert lab.traces.close()


def test_a_precision_that_did_not_come_about_is_said() -> None:
    info = ModelInfo("m", "reranker", "i", "cpu", "fp32")
    assert unfit(Place("rerank", "in-process", "cpu", "fp32"), info) is None
    assert unfit(Place("rerank", "in-process", "cpu", "int8"), info) == "asked for int8, and m runs in fp32"
    assert unfit(Place("rerank", "in-process", "cuda:0", "fp32"), info) == "asked for cuda:0, and m runs on cpu"
    assert unfit(Place("rerank", "http"), info) is None


class FakeReranker:
    """A fake of a reranker that takes `seconds` a candidate, one call at a time."""

    uses_route_scores = False
    info = ModelInfo("fake", "reranker", "f", "cpu", "fp32")

    def __init__(self, seconds: float = 0.0, problem: Exception | None = None) -> None:
        self.seconds, self.problem = seconds, problem
        self.worker = threading.Lock()
        self.calls: list[tuple[str, int, str]] = []

    def score(self, query: str, candidates: Any, *, deadline: float | None = None, caches: str = "use") -> Scores:
        self.calls.append((query, len(candidates), caches))
        if self.problem is not None:
            raise self.problem
        came = time.perf_counter()
        with self.worker:
            queue = time.perf_counter() - came
            time.sleep(self.seconds * len(candidates))
        return Scores(np.zeros(len(candidates), np.float32), Timing(queue=queue, compute=self.seconds * len(candidates)))


class FakeLab:
    """A fake lab whose every variant is the same fake reranker."""

    def __init__(self, reranker: FakeReranker, traces: TraceStore) -> None:
        self.reranker, self.traces = reranker, traces

    @contextmanager
    def variant(self, changes: Mapping[str, Any]) -> Iterator[Any]:
        yield SimpleNamespace(clients=SimpleNamespace(embedder=None, reranker=self.reranker))


@pytest.fixture
def traces(tmp_path: Path) -> Iterator[TraceStore]:
    found = TraceStore(tmp_path / "traces.db")
    yield found
    assert found.close()


def test_calls_bypass_caches_and_none_is_like_another(jobs: Jobs, traces: TraceStore) -> None:
    reranker = FakeReranker(0.001)
    plan = HardwarePlan(("rerank",), ("cpu",), ("fp32",), False, (2, 5), (1, 3), 0.1)
    result, _ = finish(jobs, FakeLab(reranker, traces), plan)
    assert {caches for _, _, caches in reranker.calls} == {"bypass"} and {size for _, size, _ in reranker.calls} == {2, 5}
    (row,) = result.rows
    three = row.cell(5, 3)
    assert three and three.step and three.step.queues["compute"].mean > 0 and three.step.answered >= 3


def test_a_cell_that_would_take_too_long_is_left_out_with_its_forecast(
    jobs: Jobs, traces: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "CELL_LIMIT_SECONDS", 0.5)
    plan = HardwarePlan(("rerank",), ("cpu",), ("fp32",), False, (10,), (1, 32), 2.0)
    result, _ = finish(jobs, FakeLab(FakeReranker(0.005), traces), plan)
    alone, many = result.rows[0].cells
    assert alone.step and many.step is None and many.skipped and "would take about" in many.skipped


def test_the_forecast_grows_with_texts_and_clients() -> None:
    step = step_of([Heard(0, 0, 2.0, Told())], 1, 2.0)
    assert forecast(20, 4, [Cell(10, 1, step)]) == pytest.approx(16.0)
    assert forecast(20, 4, []) is None


def test_the_time_limit_ends_the_comparison_and_is_said(jobs: Jobs, traces: TraceStore) -> None:
    plan = HardwarePlan(("rerank",), ("cpu",), ("fp32", "bf16"), False, (1, 2, 3, 4, 5), (1, 2), 0.5, seconds=1.0)
    result, _ = finish(jobs, FakeLab(FakeReranker(0.001), traces), plan)
    assert result.stopped == "the comparison's time limit of 1 s passed"
    left_out = [cell for row in result.rows for cell in row.cells if cell.skipped] + [row for row in result.rows if row.skipped]
    assert left_out and all("time limit" in str(each.skipped) for each in left_out)


def test_a_model_that_fails_is_a_reason_and_not_the_end(jobs: Jobs, traces: TraceStore) -> None:
    lab = FakeLab(FakeReranker(problem=EngineError("out of memory")), traces)
    result, _ = finish(jobs, lab, HardwarePlan(("rerank",), ("cpu",), ("fp32",), False, (2,), (1,), 0.1))
    assert result.rows[0].skipped == "out of memory"


def test_stopping_keeps_the_cells_that_were_measured(jobs: Jobs, traces: TraceStore) -> None:
    plan = HardwarePlan(("rerank",), ("cpu",), ("fp32",), False, (1, 2, 3), (1, 2), 10.0)
    job = jobs.submit("experiment", "hardware", work(FakeLab(FakeReranker(0.01), traces), plan))  # type: ignore[arg-type]
    for event in job.follow():
        if event is not None and event["type"] == "place_started":
            break
    job.cancelled.wait(0.3)
    job.cancel()
    assert job.wait(20) and job.state == "cancelled" and job.result is not None
    assert job.result.stopped == "stopped by hand" and len(job.result.rows[0].cells) < 6


def test_passages_are_those_of_stored_queries(traces: TraceStore) -> None:
    found = (Passage("1", "first text", "s", "t"), Passage("2", "second", "s", "t"), Passage("3", "  ", "s", "t"))
    traces.save(Answer("0" * 32, "q", "2026-01-01T00:00:00Z", "answered", passages=found), [])
    traces.flush()
    texts, about = passages(traces)
    assert texts == ("first text", "second") and about.startswith("2 passages")


def test_an_embedder_gets_a_question_alone_and_passages_together() -> None:
    seen: list[tuple[list[str], str]] = []

    def embed(texts: list[str], kind: str, **_: Any) -> Any:
        seen.append((texts, kind))
        return SimpleNamespace(timing=Timing())

    for size in (1, 3):
        client = ModelClient(Place("embed", "http"), SimpleNamespace(embed=embed), ["a", "b"], size)  # type: ignore[arg-type]
        assert client.ask("q", threading.Event()).error is None
    assert seen == [(["q (1)"], "query"), (["q (1) a", "q (1) b", "q (1) a"], "passage")]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"components": ()}, "nothing to measure"),
        ({"devices": (), "http": False}, "nothing to measure"),
        ({"precisions": ("fp8",)}, "'fp8'"),
        ({"candidates": (0,)}, "candidates are 0"),
        ({"clients": (1, 64)}, "clients are 1, 64"),
        ({"clients": (4, 2)}, "do not rise"),
        ({"seconds": 1e9}, "seconds is"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RagError, match=said):
        checked(HardwarePlan(**{**_fields(HardwarePlan()), **changes}))


def test_the_table_has_every_cell_and_every_reason() -> None:
    step = step_of([Heard(0, 0, 0.5, Told({"compute": 0.4}, {"compute": 0.1}))], 1, 0.5)
    rows = (
        Row(
            Place("rerank", "in-process", "cpu", "fp32"), (Cell(10, 1, step), Cell(10, 2, skipped="too long")), "m", "cpu", "fp32"
        ),
        Row(Place("rerank", "http"), skipped="no server"),
    )
    heads, table = rows_of(HardwareResult({}, rows, ""))
    assert all(len(row) == len(heads) for row in table) and len(table) == 3
    first = dict(zip(heads, table[0], strict=True))
    assert (first["p50_seconds"], first["calls_per_second"], first["texts_per_second"]) == (0.5, 2.0, 20.0)
    assert [row[-1] for row in table] == [None, "too long", "no server"]
