"""The page Readiness on a real runtime with a fake deployment: empty, running, kept, broken, one check, hostile words."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import runtime
from collectors.readings import Gpu, Gpus
from deploy.cli_subject import JOB_KIND, RunningProcess, subject, submit, targets
from deploy.validation import kept
from deploy.validation.checks import CHECKS, CODES
from deploy.validation.subject import Targets
from deploy.validation.types import Item, Report, Result
from latency.experiments.experiments import Experiment
from rag.errors import RagError
from settings import SettingsError, load, reference
from tests.ui.deployment_fakes import EVIL, fake_deployment
from ui import readiness_view

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_SECONDS = 120.0
pytestmark = pytest.mark.xdist_group("pages")


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    folder = tmp_path_factory.mktemp("readiness")
    with pytest.MonkeyPatch.context() as patch:
        for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
            patch.delenv(name, raising=False)
        patch.setenv("RAGDECK_DATA", str(folder / "data"))
        patch.setenv("RAGDECK_CONFIG", str(folder / "empty.toml"))
        (folder / "empty.toml").write_text("")
        runtime.shut_down()
        running = runtime.get()
        fake_deployment(running, folder / "fake", time.time())
        yield running
        runtime.shut_down()


@pytest.fixture
def app(rt: runtime.Runtime, tmp_path: Path) -> Iterator[AppTest]:
    """The page beside those it links to, without the frame; nothing kept before and after."""
    kept.path_in(rt.settings.data_dir).unlink(missing_ok=True)
    pages = [str(ROOT / "pages" / f"{name}.py") for name in ("readiness", "experiments")]
    script = tmp_path / "frame.py"
    script.write_text(f"import streamlit as st\nst.navigation([st.Page(each) for each in {pages!r}]).run()\n")
    yield AppTest.from_file(str(script), default_timeout=60)
    for job in rt.jobs.recent(JOB_KIND):
        job.cancel()
        assert job.wait(WAIT_SECONDS)


def html(app: AppTest) -> str:
    shown = "\n".join(str(item.proto.body) for item in app.get("html"))
    assert "<img" not in shown
    return shown


def opened(app: AppTest, **query: str) -> AppTest:
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def made(code: str = "E-2", **values: Any) -> Result:
    item = Item(EVIL, "failed", f"{EVIL} refused", f"cause {EVIL}", f"cure {EVIL}")
    usual = {"group": "Endpoints", "title": "Ports", "proves": "Something.", "outcome": "failed", "items": (item,), "reason": ""}
    more = {"table": (), "measures": {"query.ttft_seconds": 0.41}, "seconds": 0.5, "at_unix": time.time()}
    return Result(code, **{**usual, **more, **values})


def test_before_anything_was_measured_it_says_what_to_do(app: AppTest) -> None:
    shown = html(opened(app))
    assert "Nothing has been validated yet." in shown and [each.value for each in app.code] == ["python -m deploy validate"]
    assert "`" not in shown and '<code class="rd-mono">python -m latency load</code>' in shown
    assert "readiness.answer_seconds</code>, default" in shown and "Stable with 10 users at once" in shown  # it has eight H100s
    assert "Works offline" in shown and "no load test has finished yet" in shown and shown.count("not measured") >= 4


def test_a_run_shows_progress_is_kept_and_can_be_downloaded(
    app: AppTest, rt: runtime.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_twice, known = threading.Event(), RunningProcess.collections
    monkeypatch.setattr(RunningProcess, "collections", lambda self: asked_twice.wait(WAIT_SECONDS) and known(self))
    opened(app).button("run").click().run()
    job = next(iter(rt.jobs.recent(JOB_KIND)))
    with pytest.raises(RagError, match="running already"):
        submit(rt)
    asked_twice.set()
    assert job.wait(WAIT_SECONDS) and job.error is None
    assert job.result is not None and tuple(each.code for each in job.result.results) == CODES
    shown = html(opened(app))
    assert "R4-3" in shown and "/readiness?check=E-1" in shown
    assert kept.load(rt.settings.data_dir) == job.result
    assert [each.proto.label for each in app.get("download_button")] == ["HTML", "Markdown", "JUnit", "JSON"]
    share, doing = readiness_view.progress(job.events())
    assert share == 1.0 and doing.startswith(f"{len(CHECKS)} of {len(CHECKS)}")


def test_one_check_has_its_own_address_with_cause_and_cure(app: AppTest, rt: runtime.Runtime) -> None:
    kept.save(rt.settings.data_dir, Report(time.time(), 1.0, "0.1.0", (made(),)))
    shown = html(opened(app, check="e-2"))
    assert "<strong>Cause:</strong> cause" in shown and "<strong>Cure:</strong> cure" in shown and "410 ms" in shown
    app.button("run-one").click().run()
    job = next(iter(rt.jobs.recent(JOB_KIND)))
    assert job.wait(WAIT_SECONDS) and job.result is not None
    assert job.result.result("E-2").outcome == "not_applicable", "run anew"  # type: ignore[union-attr]


def test_commands_are_code_and_can_be_copied(app: AppTest, rt: runtime.Runtime) -> None:
    item = Item("disk", "failed", "it holds `a <b>`", "It is full.", "Run `docker image prune`, or `df -h`; see `PATH`.")
    kept.save(rt.settings.data_dir, Report(time.time(), 1.0, "0.1.0", (made(items=(item,)),)))
    shown = html(opened(app, check="E-2"))
    assert all(f'<code class="rd-mono">{code}</code>' in shown for code in ("docker image prune", "PATH", "a &lt;b&gt;"))
    assert [each.value for each in app.code] == ["docker image prune", "df -h"]


def test_what_is_acceptable_is_a_setting_and_said_with_where_it_comes_from(
    app: AppTest, rt: runtime.Runtime, tmp_path: Path
) -> None:
    (tmp_path / "dashboard.toml").write_text("[readiness]\nanswer_seconds = 4\nusers = 12\n")
    changed = load({"RAGDECK_DATA": str(rt.settings.data_dir)}, tmp_path)
    assert targets(changed) == Targets(4.0, 2.0, 12, 30.0, 7.0)
    shown = readiness_view.limits(targets(changed), changed.origins)
    assert " 4 s " in shown and "dashboard.toml:2" in shown and "dashboard.toml:3" in shown and "default" in shown
    (tmp_path / "dashboard.toml").write_text("[readiness]\nusers = 0\n")
    with pytest.raises(SettingsError, match=r"line 2: readiness\.users"):
        load({"RAGDECK_DATA": str(rt.settings.data_dir)}, tmp_path)


def test_users_follow_the_machines_where_no_setting_says_them(rt: runtime.Runtime) -> None:
    def machine(count: int, gib: int) -> Gpus:
        return Gpus(gpus=tuple(Gpu(index=n, memory_total_bytes=gib * 2**30) for n in range(count)))

    assert targets(rt.settings, [machine(8, 80)]).users == 10
    assert targets(rt.settings, [machine(1, 40), machine(7, 80), machine(8, 40)]).users == 3


def test_checks_that_are_none_or_have_not_run_are_said(app: AppTest) -> None:
    assert "There is no check X-1." in html(opened(app, check="X-1"))
    assert "It has not run yet." in html(opened(app, check="Q-1"))


def test_a_kept_file_that_is_broken_is_said(app: AppTest, rt: runtime.Runtime) -> None:
    kept.path_in(rt.settings.data_dir).write_text("{")
    shown = html(opened(app))
    assert "readiness.json cannot be read" in shown and "Run the checks again" in shown


def test_the_list_can_be_narrowed(app: AppTest, rt: runtime.Runtime) -> None:
    fine = made("E-1", outcome="passed", items=(Item("x", "passed", "well"),))
    kept.save(rt.settings.data_dir, Report(time.time(), 1.0, "0.1.0", (fine, made())))
    opened(app)
    app.get("button_group")[0].set_value("needs work").run()
    shown = html(app).rpartition("1 check failed")[2]
    assert "check=E-2" in shown and "check=E-1" not in shown


def test_the_criteria_follow_what_was_measured(app: AppTest, rt: runtime.Runtime) -> None:
    steps = [{"users": 12, "answered": 40, "errors": {}, "unfinished": 0, "total": {"p95": 1.25}}]
    load = {"steps": steps, "knee": {"text": "no knee up to 12 users"}}
    rt.experiments.save(Experiment("load-1", "load", "load", time.time(), 9.0, "finished", result=load))
    shown = html(opened(app))
    assert "12 users: 40 answered, p95 1.25 s" in shown and "/experiments?id=load-1" in shown
    assert "1 of 5 criteria are met" in shown and "whisper is failed" in shown
    rt.experiments.delete("load-1")


def test_what_the_settings_describe_is_what_is_validated(rt: runtime.Runtime) -> None:
    what = subject(rt.settings)
    assert [each.role for each in what.local_models] == ["embedder", "reranker"] and what.services == ()
    assert [machine.name for machine in what.machines] == ["local"] and what.own[0].port == rt.settings.server.port
    process = RunningProcess(rt)
    answer = process.ask("What does it say?")
    assert answer["outcome"] in ("answered", "no_documents") and answer["origin"] == "measure"
    assert json.dumps(replace(what, question="x").offline) == json.dumps(what.offline)
