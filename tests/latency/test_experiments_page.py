"""The page Experiments on a real runtime with the starter models, through Streamlit's AppTest."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from streamlit.testing.v1 import AppTest

import runtime
from latency.experiments.experiments import Experiment
from latency.hardware.types import Cell, HardwareResult, Place, Row
from latency.load import load
from latency.load.knee import find
from latency.load.load import LoadPlan, LoadResult
from latency.load.steps import Heard, Reading, Step, Told, step_of
from rag import api
from tests.fresh_runtime import only_settings_of
from ui import experiment_live, experiments_view, hardware_view, load_view

pytestmark = pytest.mark.xdist_group("pages")


def app_script() -> None:
    """The pages that this one links to, and this one."""
    import streamlit as st

    from ui.links import page

    names = ("experiments", "queries", "query")
    st.navigation([st.Page(page(name), default=name == "experiments") for name in names]).run()


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    """The process's runtime in a fresh data folder, with a document."""
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "cold.md").write_text("# Cold start\n\nThe first query loads the embedder.\n")
    with only_settings_of(folder):
        running = runtime.get()
        assert running.submit_ingest([folder / "cold.md"]).wait(90)
        yield running


@pytest.fixture
def app(rt: runtime.Runtime) -> Iterator[AppTest]:
    yield AppTest.from_function(app_script, default_timeout=60)
    for job in rt.jobs.recent("experiment"):
        job.cancel()
        assert job.wait(30)
    for each in rt.experiments.list():
        rt.experiments.delete(each.id)


def opened(app: AppTest, **query: str) -> str:
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return html(app)


def html(app: AppTest) -> str:
    return "\n".join(str(item.proto.body) for item in app.get("html"))


def step(users: int, seconds: float, readings: tuple[Reading, ...] = ()) -> Step:
    told = Told({"embed": 0.01, "rerank": seconds - 0.01}, {"rerank": seconds - 0.1}, query_id="ab" * 16)
    heard = [Heard(n * seconds, n * seconds, (n + 1) * seconds, told) for n in range(20) for _ in range(users)]
    heard += [Heard(0, 0, 0.1, Told(error="overloaded", message="<b>too many</b>"))] if users == 8 else []
    return step_of(heard, users, 19.5 * seconds, readings=readings)


def load_result() -> LoadResult:
    busy = (Reading("local", "cpu.busy_ratio", 0.96, 1.0, 9),)
    steps = (step(1, 0.1), step(2, 0.1), step(4, 0.2), step(8, 0.4, busy))
    return LoadResult(LoadPlan((1, 2, 4, 8), ("q?",)).to_json(), steps, find(steps), step(1, 0.3))


def hardware_result() -> HardwareResult:
    cells = tuple(Cell(size, clients, step(clients, 0.01 * size)) for size in (10, 20) for clients in (1, 4))
    rows = (
        Row(Place("rerank", "in-process", "cpu", "fp32"), cells, "m", "cpu", "fp32", None, 1.0),
        Row(Place("rerank", "in-process", "cuda:0", "bf16"), skipped="no <GPU> here"),
        Row(Place("embed", "in-process", "cpu", "fp32"), (Cell(1, 1, step(1, 0.1)),), "e", "cpu", "fp32"),
    )
    return HardwareResult({}, rows, "one passage")


def store(rt: runtime.Runtime, key: str, kind: str, result: object, name: str = "A <test>") -> Experiment:
    data = json.loads(json.dumps(result.to_json() if hasattr(result, "to_json") else result))
    found = Experiment(key * 32, kind, name, time.time() - 60, 12.0, "finished", {}, data, {"cpu": f"CPU {key}", "cores": 4})  # type: ignore[arg-type]
    rt.experiments.save(found)
    return found


# 1) what there is


def test_when_nothing_was_measured_the_page_says_what_to_do(app: AppTest) -> None:
    shown = opened(app)
    assert "Nothing has been measured yet" in shown and "disturbs whoever uses it" in shown
    assert not app.button(key="start-Start the load test").disabled


STARTS = {
    "components": "Test the components",
    "replay": "Start the replay",
    "load": "Start the load test",
    "hardware": "Start the comparison",
}


@pytest.mark.parametrize("kind", STARTS)
def test_every_kind_has_its_form_by_url(app: AppTest, kind: str) -> None:
    opened(app, kind=kind)
    assert [button.label for button in app.button if str(button.key).startswith("start-")] == [STARTS[kind]]


def test_choosing_a_kind_changes_the_url(app: AppTest) -> None:
    opened(app)
    app.segmented_control(key="kind").set_value("hardware").run()
    assert app.query_params["kind"] == "hardware" and app.button(key="start-Start the comparison")


def test_stored_experiments_are_listed_with_links(app: AppTest, rt: runtime.Runtime) -> None:
    store(rt, "a", "load", load_result())
    shown = opened(app)
    assert f'href="/experiments?id={"a" * 32}"' in shown and "A &lt;test&gt;" in shown and "CPU a, 4 cores" in shown


# 2) stored ones


def test_a_load_test_shows_knee_steps_and_reasons(app: AppTest, rt: runtime.Runtime) -> None:
    store(rt, "a", "load", load_result())
    shown = opened(app, id="a" * 32)
    for part in ("The knee is at", "rerank", "processor of local was 96 %", "1 requests were refused", "Asymptotic bounds"):
        assert part in shown
    assert "&lt;b&gt;too many" in shown and "<b>too many" not in shown
    assert f'href="/query?id={"ab" * 16}"' in shown
    assert len(app.get("echarts_chart")) == 2


def test_cpu_against_gpu_shows_cells_reported_numbers_and_costs(app: AppTest, rt: runtime.Runtime) -> None:
    store(rt, "a", "hardware", hardware_result())
    shown = opened(app, id="a" * 32)
    for part in ("no &lt;GPU&gt; here", "reported: T4", "not measured here", "EUR per million", "rule of the report of 2025-01"):
        assert part in shown
    assert "the only one that meets the target" in shown
    app.number_input(key="target").set_value(50.0).run()
    assert not app.exception and "comes closest" in html(app)
    assert "Azure NC4as T4" in shown


def test_component_tests_show_verdicts(app: AppTest, rt: runtime.Runtime) -> None:
    target = {"seconds": 0.5, "source": "R2 <CPU>", "date": "2025-01"}
    row = {"code": "reranker.20", "name": "Reranker: 20", "seconds": 1.2, "n": 5, "verdict": "slow", "target": target}
    row |= {"reason": "2.4 times the target", "values": {"bytes_per_second": 1e6}}
    store(rt, "a", "components", {"rows": [row], "summary": "1 slow"})
    shown = opened(app, id="a" * 32)
    assert "1.20 s" in shown and "slow" in shown and "R2 &lt;CPU&gt;, 2025-01" in shown and "977 KiB/s" in shown


def test_two_stand_side_by_side(app: AppTest, rt: runtime.Runtime) -> None:
    store(rt, "a", "load", load_result(), "First")
    store(rt, "b", "load", load_result(), "Second")
    shown = opened(app, **{"id": "a" * 32, "with": "b" * 32})
    assert "A: First · B: Second" in shown and "B / A" in shown and "CPU a" in shown and "CPU b" in shown
    hardware = [store(rt, key, "hardware", hardware_result()) for key in "cd"]
    shown = opened(app, **{"id": hardware[0].id, "with": hardware[1].id})
    assert "p50 of one client" in shown


def test_renaming_and_deleting(app: AppTest, rt: runtime.Runtime) -> None:
    kept = store(rt, "a", "load", load_result())
    opened(app, id=kept.id)
    app.text_input(key=f"rename-{kept.id}").set_value("Before the move")
    app.button(key="save-name").click().run()
    found = rt.experiments.get(kept.id)
    assert found is not None and found.name == "Before the move" and "Before the move" in html(app)
    app.button(key="delete").click().run()
    assert rt.experiments.get(kept.id) is not None  # asked first
    app.button(key="really").click().run()
    assert not app.exception and rt.experiments.get(kept.id) is None and "id" not in app.query_params


def test_an_experiment_nobody_knows_is_said(app: AppTest) -> None:
    assert "no experiment with this id" in opened(app, id="nobody")
    assert "no experiment with this id" in opened(app, job="nobody")


def test_an_experiment_without_a_result_says_why(app: AppTest, rt: runtime.Runtime) -> None:
    rt.experiments.save(Experiment("f" * 32, "load", "Broken", time.time(), 1.0, "failed", error="the warm-up was not answered"))
    shown = opened(app, id="f" * 32)
    assert "the warm-up was not answered" in shown and "It has no result" in shown


def test_the_files_hold_the_numbers(rt: runtime.Runtime) -> None:
    for kind, result, part in (("load", load_result(), "rerank_p95"), ("hardware", hardware_result(), "no <GPU> here")):
        found = Experiment("a" * 32, kind, "T / ü", 0.0, result=json.loads(json.dumps(result.to_json())))  # type: ignore[arg-type]
        assert part in (experiments_view.table_csv(found) or b"").decode("utf-8-sig")
        assert json.loads(experiments_view.to_json(found))["result"]
        assert experiments_view.file_name(found, "csv") == "t-aaaaaaaa.csv"


# 3) running ones


def test_a_load_test_of_this_process_runs_shows_its_steps_and_is_stored(app: AppTest, rt: runtime.Runtime) -> None:
    opened(app, kind="load")
    app.segmented_control(key="questions-from").set_value("typed").run()
    app.text_area(key="questions-text").set_value("What is cold?\nWhy?")
    app.text_input(key="users").set_value("1,2")
    app.number_input(key="step-requests").set_value(6)
    app.button(key="start-Start the load test").click().run()
    assert not app.exception
    key = str(app.query_params["job"] if "job" in app.query_params else app.query_params["id"])
    job = rt.jobs.get(key)
    assert job is not None and job.wait(60) and job.error is None
    shown = opened(app)
    assert app.query_params["id"] == key and "answers/s" in shown
    found = rt.experiments.get(key)
    assert found is not None and found.state == "finished" and found.environment["cores"]
    result = LoadResult.from_json(found.result or {})
    assert [each.users for each in result.steps] == [1, 2] and all(each.stages["embed"].n for each in result.steps)


def test_rag_deck_s_own_api_tells_its_stages(rt: runtime.Runtime) -> None:
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=api.routes(lambda: rt)), log_level="critical", lifespan="off"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        plan = LoadPlan((1, 2), ("What is cold?",), 60, 5, api_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        job = rt.jobs.submit("experiment", "load", load.work(None, plan))
        assert job.wait(60) and job.error is None and job.result is not None
        server.should_exit = True
        thread.join(15)
    for each in job.result.steps:
        assert each.answered == 5 and {"embed", "search", "generate"} <= each.stages.keys() and each.slowest
    rt.traces.flush()
    kept = rt.traces.get(job.result.steps[0].slowest[0].query_id)
    assert kept is not None and kept.options.caches == "bypass"


def test_stop_ends_it_and_another_cannot_start_meanwhile(app: AppTest, rt: runtime.Runtime) -> None:
    opened(app, kind="load")
    app.segmented_control(key="questions-from").set_value("typed").run()
    app.number_input(key="step-seconds").set_value(300.0)
    app.number_input(key="step-requests").set_value(10_000)
    app.button(key="start-Start the load test").click().run()
    (job,) = [each for each in rt.jobs.recent("experiment") if not each.done]
    other = AppTest.from_function(app_script, default_timeout=60)
    shown = opened(other, kind="hardware")
    assert "is running" in shown and other.button(key="start-Start the comparison").disabled
    assert any(event is not None and event["type"] == "progress" for event in job.follow())
    assert "step 1 of 5: 1 user for" in opened(app, job=job.id)
    app.button(key="stop").click().run()
    assert job.wait(30) and job.state == "cancelled"
    kept = rt.experiments.get(job.id)
    assert kept is not None and kept.state == "cancelled" and kept.result is not None


def test_what_is_wrong_in_a_form_is_said(app: AppTest) -> None:
    opened(app, kind="load")
    app.segmented_control(key="against").set_value("an API").run()
    app.text_input(key="api").set_value("not an address").run()
    app.segmented_control(key="questions-from").set_value("typed").run()
    app.button(key="start-Start the load test").click().run()
    assert not app.exception and "no HTTP address" in html(app)
    opened(app, kind="load")
    app.text_input(key="users").set_value("many").run()
    assert "users are &#x27;many&#x27;" in html(app)


def test_replay_of_a_query_by_url(app: AppTest, rt: runtime.Runtime) -> None:
    job = rt.submit_query("What is cold?")
    assert job.wait(60) and job.result is not None
    rt.traces.flush()
    shown = opened(app, replay=job.result.id)
    assert "“What is cold?”" in shown
    app.button(key="start-Start the replay").click().run()
    assert "side B is the same" in html(app)
    app.selectbox(key="b-rerank").set_value("off")
    app.number_input(key="replay-times").set_value(2)
    app.button(key="start-Start the replay").click().run()
    (running,) = rt.jobs.recent("experiment")[:1]
    assert running.wait(60) and running.error is None
    shown = opened(app, id=running.id)
    assert "rerank off" in shown and "Against A" in shown
    assert f"/compare?a=experiment%3A{running.id}%3AA&b=experiment%3A{running.id}%3AB" in shown


# 4) views by themselves


def test_progress_is_told_in_words() -> None:
    assert load_view.running_line(None, 5, 0) == "warming up"
    assert load_view.running_line({"type": "step_started", "users": 1}, 5, 0) == "step 1 of 5: 1 user"
    event = {"type": "progress", "users": 4, "seconds": 3.0, "answered": 12, "failed": 1, "in_flight": 4}
    assert load_view.running_line(event, 5, 2) == "step 3 of 5: 4 users for 3.00 s · 12 answered · 1 failed · 4 running"
    line = load_view.readings_line([{"source": "vm", "metric": "gpu.0.utilization_ratio", "value": 0.97}])
    assert line == "vm GPU 0 97 %"
    begun = {"type": "hardware_started", "places": 4, "cells": 8}
    place = {"type": "place_started", "place": Place("embed", "http")._asdict(), "name": "HTTP", "number": 2}
    ended = {"type": "place_finished"}
    assert hardware_view.progress_line([begun, ended, place]) == (0.25, "place 2 of 4: embedding on HTTP")
    assert experiment_live.kind_of([{"type": "replay_started"}]) == "replay" and experiment_live.kind_of([]) == ""


def test_charts_mark_the_knee_and_stack_the_stages() -> None:
    result = load_result()
    chart = load_view.curve(result.steps, result.knee, dark=False)
    assert [each["name"] for each in chart["series"]] == ["p50", "p95", "p99", "answers/s"]
    assert chart["series"][3]["markLine"]["data"][0]["xAxis"] == pytest.approx(result.knee.users, rel=0.01)
    stacked = load_view.composition(result.steps, dark=True)
    assert stacked is not None and [each["name"] for each in stacked["series"]] == ["embed", "rerank"]
    assert load_view.composition([step_of([Heard(0, 0, 1, Told())], 1, 1.0)], dark=True) is None
