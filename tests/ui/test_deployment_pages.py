"""Overview, machines, services and alerts on a real runtime with a fake deployment in it, through Streamlit's AppTest."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import runtime
from collectors.history import Point
from rag.errors import RagError
from settings import reference
from tests.ui.deployment_fakes import EVIL, FakeSweep, fake_deployment, fill_history
from ui import history_csv
from ui.cached import kept_points, the_runtime
from ui.charts import MACHINE
from ui.trend import RANGES

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.xdist_group("pages")


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    """The process's runtime in a fresh data folder; what watches machines is replaced by fakes before it starts."""
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "empty.toml").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
            patch.delenv(name, raising=False)
        patch.setenv("RAGDECK_DATA", str(folder / "data"))
        patch.setenv("RAGDECK_CONFIG", str(folder / "empty.toml"))
        runtime.shut_down()
        the_runtime.clear()
        running: Any = runtime.get()
        kept_points.clear()  # of another file's machines with these names
        fake_deployment(running, folder, time.time())
        yield running
        runtime.shut_down()
        the_runtime.clear()
        kept_points.clear()


@pytest.fixture
def sweep(rt: Any) -> Iterator[FakeSweep]:
    """The fake sweep with nothing asked of it yet; what a test takes away comes back."""
    fake: FakeSweep = rt.sweep
    before = fake.views, fake.watched
    for asked in (fake.tested, fake.probed, fake.asked, fake.retried):
        asked.clear()
    yield fake
    fake.views, fake.watched = before


@pytest.fixture
def app(sweep: FakeSweep) -> AppTest:
    return AppTest.from_file(str(ROOT / "ui" / "frame.py"), default_timeout=60)


def open_page(app: AppTest, file: str, **query: str) -> AppTest:
    app.run()
    for key, value in query.items():
        app.query_params[key] = value
    app.switch_page(str(ROOT / "pages" / f"{file}.py"))
    app.run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    shown = "\n".join(str(item.proto.body) for item in app.get("html"))
    assert "<img" not in shown, "what a machine prints is text"
    return shown


def charts(app: AppTest) -> int:
    return len(app.get("echarts_chart"))


# -------------------------------------------------------------------------------------------------------------- overview


def test_the_overview_shows_what_needs_somebody_and_how_everything_is(app: AppTest) -> None:
    open_page(app, "overview")
    shown = html(app)
    for said in ("5 things need you", "h100-1", "vllm", "whisper", "1 alert", "Nothing has been asked yet", "rd-cells"):
        assert said in shown


def test_the_overview_lists_the_last_queries_with_their_slowest_stage(app: AppTest, rt: runtime.Runtime) -> None:
    assert rt.submit_query(f"a query {EVIL}").wait(120)
    rt.traces.flush()
    open_page(app, "overview")
    assert "rd-mini" in html(app) and "last hour p95" in html(app)
    rt.traces.delete_before(time.time() + 1)


def test_an_overview_of_nothing_says_what_to_do(app: AppTest, sweep: FakeSweep, rt: Any) -> None:
    sweep.views, sweep.watched = sweep.views[:1], ()
    open_page(app, "overview")
    assert "[[services]]" in html(app) and "1 machine read" in html(app)


# -------------------------------------------------------------------------------------------------------------- machines


def test_machines_are_listed_filtered_and_sorted(app: AppTest) -> None:
    open_page(app, "machines")
    assert "2 of 8 machines cannot be read" in html(app) and html(app).count("/machine?name=") == 8
    app.text_input(key="text").set_value("h100").run()
    app.selectbox(key="sort").set_value("name").run()
    shown = html(app)
    assert shown.count("/machine?name=") == 2 and shown.index("name=h100-1") < shown.index("name=h100-2")
    app.text_input(key="text").set_value("no such machine").run()
    assert "None of 8 machines matches" in html(app)


def test_a_list_of_local_alone_says_how_others_come_in(app: AppTest, sweep: FakeSweep) -> None:
    sweep.views = sweep.views[:1]
    open_page(app, "machines")
    assert "Only the machine that RAG Deck runs on is watched" in html(app)


def fill(app: AppTest, **fields: str) -> None:
    for name, value in fields.items():
        app.text_input(key=f"machine-{name}").set_value(value)
    app.button(key="FormSubmitter:machine-Test the connection").click().run()
    assert not app.exception


def test_a_machine_that_does_not_answer_is_tested_and_can_be_added(app: AppTest, rt: Any) -> None:
    open_page(app, "machines")
    fill(app, name="db", address="127.0.0.1:1", user="ops", key="~/.ssh/nobody")
    shown = html(app)
    assert "db cannot be read yet" in shown and "Name resolves" in shown and "not reached" in shown
    app.button(key="machine-add").click().run()
    assert not app.exception
    (kept,) = rt.settings.machines
    assert (kept["name"], kept["address"], kept["user"], kept["host_key_policy"]) == ("db", "127.0.0.1:1", "ops", "strict")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "name is missing"),
        ({"name": "db"}, "address is missing"),
        ({"name": "local"}, "address is missing"),
        ({"name": "x", "address": "a b"}, "cannot be a machine"),
    ],
)
def test_fields_that_make_no_machine_are_refused_in_words(app: AppTest, fields: dict[str, str], said: str) -> None:
    open_page(app, "machines")
    fill(app, **fields)
    assert said in html(app)


def test_a_machine_that_cannot_be_kept_says_why(app: AppTest, rt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(entry: dict[str, Any]) -> None:
        raise RagError(f"the name is taken {EVIL}", kind="bad_input", next_step="Choose another.")

    monkeypatch.setattr(rt, "add_machine", refuse)
    open_page(app, "machines")
    fill(app, name="l4-vm", address="127.0.0.1:1")
    app.button(key="machine-add").click().run()
    assert not app.exception and "It was not saved" in html(app) and "Choose another." in html(app)


def test_a_machine_added_here_is_changed_and_removed_here(app: AppTest, rt: Any, sweep: FakeSweep) -> None:
    """The fake sweep already shows a machine of this name; what is kept of it is real."""
    rt.add_machine({"name": "vps", "address": "127.0.0.1:1", "units": ["a", "b"], "expected_gpus": 0})
    open_page(app, "machine", name="vps")
    assert "It was added on a page" in html(app)
    assert app.text_input(key="changed-name").disabled and app.text_input(key="changed-units").value == "a, b"
    app.text_input(key="changed-address").set_value("127.0.0.1:2")
    app.text_input(key="changed-units").set_value("a")
    app.button(key="FormSubmitter:changed-Test the connection").click().run()
    assert "vps cannot be read yet" in html(app) and "refused" in html(app)
    app.button(key="changed-add").click().run()
    assert not app.exception
    kept = next(each for each in rt.settings.machines if each["name"] == "vps")
    assert (kept["address"], kept["units"], kept["expected_gpus"]) == ("127.0.0.1:2", ["a"], 0)
    app.checkbox(key="remove-history").check()
    app.button(key="remove-now").click().run()
    assert not app.exception
    assert "vps" not in [each["name"] for each in rt.settings.machines]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("local", "It is always watched"),
        ("l4-vm", "It is configured in <code>empty.toml</code>"),
        ("spark", "The Prometheus server at"),
    ],
)
def test_other_machines_say_where_they_are_configured(app: AppTest, name: str, said: str) -> None:
    open_page(app, "machine", name=name)
    assert said in html(app) and "remove-now" not in [button.key for button in app.button]


# --------------------------------------------------------------------------------------------------------------- machine


def test_a_restart_is_confirmed_done_and_in_the_audit_log(app: AppTest, rt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(st.context), "ip_address", property(lambda context: "10.0.0.3"))
    open_page(app, "machine", name="l4-vm")
    assert "Nothing was restarted here yet" in html(app) and "is stopped and started" in html(app)
    assert rt.deployment.restarted == []
    app.button(key="restart-0-vllm.service").click().run()
    assert not app.exception and rt.deployment.restarted == [("l4-vm", "vllm.service")]
    assert "vllm.service on l4-vm was restarted" in html(app) and "restart vllm.service" in html(app)
    app.button(key="restart-1-docker:whisper").click().run()
    assert not app.exception and "was not restarted" in html(app) and "Correct its name." in html(app)
    assert html(app).count("10.0.0.3") == 2


def test_what_the_settings_do_not_name_has_no_button(app: AppTest) -> None:
    open_page(app, "machine", name="h100-1")
    assert not [button.key for button in app.button if button.key and button.key.startswith("restart")]


@pytest.mark.parametrize("name", ["local", "l4-vm", "h100-1", "h100-2", "vps", "ocr-gpu", "spark", "new"])
def test_every_machine_has_a_page(app: AppTest, name: str) -> None:
    open_page(app, "machine", name=name)
    assert f">{name}</h1>" in html(app)


def test_one_machine_with_everything_of_it(app: AppTest) -> None:
    open_page(app, "machine", name="l4-vm")
    shown = html(app)
    for said in (
        "NVIDIA L4",
        "docker 3f2a9c11d0ab",
        "CPU is 88 % busy",
        "Pressure (PSI)",
        "nvme0n1",
        "ens4",
        "milvus",
        "Unit failed",
        "nightly-index.service",
        "exited with 137",
    ):
        assert said in shown
    assert charts(app) > 8


def test_trends_over_another_range(app: AppTest, rt: Any) -> None:
    open_page(app, "machine", name="h100-1")
    assert charts(app) > 8
    fill_history(rt.history, time.time(), 300.0)  # the tests before this one may have taken longer than the range
    app.segmented_control(key="range").set_value("10 min").run()
    assert not app.exception and charts(app) > 0
    axis = json.loads(app.get("echarts_chart")[0].proto.spec)["xAxis"]
    assert axis["max"] - axis["min"] == 600_000
    open_page(app, "machine", name="new")
    assert "Nothing was kept in this time yet" in html(app)


def test_the_series_of_the_charts_as_a_file(rt: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(history_csv.recorded("h100-1", MACHINE, RANGES["1 h"]).decode("utf-8-sig"))))
    metrics = {row["metric"] for row in rows}
    assert {"cpu.busy_ratio", "gpu.0.power_watts", f"disk.{EVIL}.busy_ratio"} <= metrics
    assert "memory.used_ratio" not in metrics, "what no chart shows"
    first = rows[0]
    assert first["source"] == "h100-1" and first["at"].endswith("+00:00") and int(first["samples"]) >= 1
    assert float(first["low"]) <= float(first["mean"]) <= float(first["high"])
    assert history_csv.csv("m", ["=cmd|x"], lambda metric: [Point(0.0, 1.0, 1.0, 1.0, 1)]).endswith(
        b"1970-01-01T00:00:00+00:00,m,'=cmd|x,1.0,1.0,1.0,1\r\n"
    )


def test_a_machine_nobody_knows_leads_to_those_there_are(app: AppTest) -> None:
    open_page(app, "machine", name=EVIL)
    assert "There is no machine called" in html(app) and "/machine?name=h100-1" in html(app)
    again = AppTest.from_file(str(ROOT / "ui" / "frame.py"), default_timeout=60)
    open_page(again, "machine")
    assert "No machine is chosen" in html(again)


def test_logs_are_read_when_asked_for_and_shown_as_text(app: AppTest, sweep: FakeSweep) -> None:
    open_page(app, "machine", name="l4-vm")
    assert sweep.asked == []
    app.selectbox(key="log").set_value("whisper")
    app.button(key="log-read").click().run()
    assert sweep.asked == [("l4-vm", "whisper", 50)] and not app.exception
    assert app.code[0].value == f"2026-11-21 05:00:12 started\nERROR {EVIL} $HOME"
    app.selectbox(key="log").set_value("migrate")
    app.button(key="log-read").click().run()
    assert not app.exception and "Is Docker overloaded?" in html(app)


def test_the_connection_of_a_machine_is_tested_and_tried_again(app: AppTest, sweep: FakeSweep) -> None:
    open_page(app, "machine", name="ocr-gpu")
    assert "it refuses the key of ops" in html(app) and "not tried again by itself" in html(app)
    app.button(key="test").click().run()
    assert sweep.tested == ["ocr-gpu"] and "Host key is known" in html(app) and "rd-command" in html(app)
    app.button(key="retry").click().run()
    assert sweep.retried == ["ocr-gpu"] and not app.exception


def test_processes_by_memory(app: AppTest) -> None:
    open_page(app, "machine", name="l4-vm")
    app.segmented_control(key="order").set_value("memory").run()
    assert not app.exception and "milvus" in html(app)


# -------------------------------------------------------------------------------------------------------------- services


def test_services_are_listed_with_what_fails_first(app: AppTest) -> None:
    open_page(app, "services")
    assert "1 of 6 services fails: whisper" in html(app) and "connection refused" in html(app)
    app.selectbox(key="sort").set_value("worst state first").run()
    shown = html(app)
    assert shown.index("/services?name=whisper") < shown.index("/services?name=gpu-server")


def test_a_service_is_probed_when_asked_for(app: AppTest, sweep: FakeSweep) -> None:
    open_page(app, "services")
    app.button(key="probe-vllm").click().run()
    assert sweep.probed == [("vllm", "functional")] and "Probe of vllm" in html(app) and "one token generated" in html(app)


def test_one_service_with_its_engine_and_its_trend(app: AppTest, sweep: FakeSweep) -> None:
    open_page(app, "services", name="vllm")
    shown = html(app)
    for said in ("Does it answer?", "Does it work?", "KV cache used", "first token (TTFT)", "up: 24 h 100 %"):
        assert said in shown
    assert charts(app) >= 4
    app.button(key="probe").click().run()
    assert sweep.probed == [("vllm", "functional")] and not app.exception


def test_without_services_the_page_says_how_they_come_in(app: AppTest, sweep: FakeSweep) -> None:
    sweep.watched = ()
    open_page(app, "services", name="gone")
    assert "There is no service called gone" in html(app) and "[[services]]" in html(app)


# ---------------------------------------------------------------------------------------------------------------- alerts


def test_alerts_active_ended_and_the_rules(app: AppTest) -> None:
    open_page(app, "alerts")
    shown = html(app)
    for said in (
        "1 critical alert and 1 warning, 1 acknowledged",
        "Unit failed",
        "Ended: 1",
        "Memory used",
        "rules",
        "Nobody is told",
    ):
        assert said in shown


def test_one_alert_by_its_id_with_its_numbers(app: AppTest, rt: Any) -> None:
    slow = next(alert for alert in rt.alerts.active() if alert.rule == "reranker-slow")
    open_page(app, "alerts", id=str(slow.id))
    assert "Reranker slow on rerank: active" in html(app) and charts(app) == 1
    again = AppTest.from_file(str(ROOT / "ui" / "frame.py"), default_timeout=60)
    open_page(again, "alerts", id="99999")
    assert "There is no alert with this id" in html(again)


@pytest.fixture
def changed(rt: Any) -> Iterator[Any]:
    """Rules that differ from the defaults, and none of it left behind."""
    rt.change_alert_rules({"gpu-hot": {"warn": 70.0, "warn_clear": None}})
    yield rt
    rt.change_alert_rules({"gpu-hot": {"warn": 85.0, "warn_clear": 80.0, "enabled": True}})


def rule(rt: Any, name: str) -> Any:
    return next(rule for rule in rt.alerts.rules if rule.id == name)


def test_rules_go_back_to_their_defaults(app: AppTest, changed: Any) -> None:
    assert (rule(changed, "gpu-hot").warn, rule(changed, "gpu-hot").warn_clear) == (70.0, None)
    open_page(app, "alerts")
    assert app.button(key="rules-save").disabled
    app.button(key="rules-defaults").click().run()
    assert not app.exception and (rule(changed, "gpu-hot").warn, rule(changed, "gpu-hot").warn_clear) == (85.0, 80.0)
    assert app.button(key="rules-defaults").disabled


def test_rules_that_cannot_be_are_refused_in_words(app: AppTest, changed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(changes: dict[str, dict[str, Any]]) -> None:
        raise RagError(f"warn_clear is above warn {EVIL}", kind="bad_input", next_step="Lower it.")

    monkeypatch.setattr(changed, "change_alert_rules", refuse)
    open_page(app, "alerts")
    app.button(key="rules-defaults").click().run()
    monkeypatch.undo()
    assert not app.exception and "Nothing was saved" in html(app) and "warn_clear is above warn" in html(app)


def test_alerts_are_acknowledged_one_by_one_and_all_at_once(app: AppTest, rt: Any) -> None:
    open_page(app, "alerts")
    slow = next(alert for alert in rt.alerts.active() if alert.rule == "reranker-slow")
    app.button(key=f"seen-{slow.id}").click().run()
    assert not app.exception and "1 critical alert, 2 acknowledged" in html(app)
    assert f"seen-{slow.id}" not in [button.key for button in app.button]
    assert all(alert.acknowledged_at for alert in rt.alerts.active() if alert.rule == "reranker-slow")


def test_notification_services_are_named_and_tried(app: AppTest, rt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from collectors.notify import Notifier

    notifier = Notifier(["json://127.0.0.1:1/hook"])
    monkeypatch.setattr(rt.deployment, "notifier", notifier)
    open_page(app, "alerts")
    assert "Alerts are sent to 1 service" in html(app) and "json at 127.0.0.1" in html(app)
    app.button(key="notify-test").click().run()
    assert not app.exception and "refused" in html(app)
    notifier.stop()
