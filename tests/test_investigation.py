"""What the process keeps beside each query: readings of its time, what is usual, and what HyDE changed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from latency.findings import find
from latency.types import LOCAL, Case
from rag.types import Answer, HydeEffect, Options
from runtime import Runtime
from settings import load
from tests.llm import tiny
from tests.llm.server import LlmServer
from tests.test_remote_models import QUESTION, fill

PATIENCE = 90.0


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory, llm_server: LlmServer) -> Iterator[Runtime]:
    folder = tmp_path_factory.mktemp("investigation")
    prompts = 'answer_prompt = "{passages} {question} short"\nhyde_prompt = "{question} short"\n'
    text = f"[ingest]\nsample_corpus = false\n[llm]\nshadow_ratio = 1.0\n{prompts}"
    (folder / "dashboard.toml").write_text(text, encoding="utf-8")
    environment = {"RAGDECK_DATA": str(folder / "data"), "VLLM_BASE_URL": llm_server.address, "VLLM_MODEL": tiny.NAME}
    running = Runtime(load(environment, folder))
    fill(running, folder / "documents")
    yield running
    running.stop()


def ask(running: Runtime, options: Options | None = None, origin: str = "ask") -> Answer:
    job = running.submit_query(QUESTION, options, origin=origin)
    assert job.wait(PATIENCE) and job.result is not None
    return job.result


def effect_of(running: Runtime, query_id: str, patience: float) -> HydeEffect | None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = running.traces.get(query_id)
        if found is not None and found.hyde_effect is not None:
            return found.hyde_effect
        time.sleep(0.05)
    return None


def test_a_querys_readings_cover_its_time(rt: Runtime) -> None:
    answer = ask(rt)
    busy = None
    end = time.monotonic() + PATIENCE
    while busy is None and time.monotonic() < end:  # of so short a query the processor's figures come from just after it
        readings = rt.readings.get(answer.id)
        assert readings is not None and readings.seconds == pytest.approx(answer.total_seconds, abs=0.05)
        busy = readings.get(LOCAL, "cpu.busy_ratio")
        time.sleep(0.1)
    assert busy is not None and any(value is not None and 0 <= value <= 1 for value in busy.values)
    assert all(-30 < moment < answer.total_seconds + 10 for moment in busy.times)


def test_what_hyde_changed_is_kept_after_the_answer_but_not_looked_for_in_measurements(rt: Runtime) -> None:
    asked = ask(rt, Options(hyde="on", keep=2))
    effect = effect_of(rt, asked.id, PATIENCE)
    assert effect is not None and effect.shadow and effect.overlap == 1.0  # three passages are found either way
    measured = ask(rt, Options(hyde="on", keep=2), origin="measure")
    assert effect_of(rt, measured.id, 1.0) is None


def test_what_is_usual_comes_from_what_was_asked_and_healthy_queries_have_no_findings(rt: Runtime) -> None:
    answers = [ask(rt, Options(hyde="off")) for _ in range(4)]
    assert rt.traces.flush()
    usual = rt.baseline(before=time.time() + 1)
    assert usual.queries >= 4
    answer = answers[-1]
    case = Case(answer, tuple(rt.traces.spans(answer.id)), rt.readings.get(answer.id))
    assert isinstance(find(case, usual), tuple)
    assert rt.baseline() is rt.baseline()  # kept for a while


def test_readings_go_with_their_queries(rt: Runtime) -> None:
    answer = ask(rt)
    end = time.monotonic() + PATIENCE
    while newest(rt, answer) < answer.total_seconds + 1.0:  # its last samples come after it, and are written with the rest
        assert time.monotonic() < end
        time.sleep(0.05)
    assert rt.readings.flush(PATIENCE)
    rt.investigation.forget_before(time.time() + 60)
    assert rt.readings.get(answer.id) is None


def newest(running: Runtime, answer: Answer) -> float:
    """When its last sample was taken, in seconds since its start."""
    readings = running.readings.get(answer.id)
    assert readings is not None
    return max((moment for series in readings.series for moment in series.times), default=0.0)
