"""The page Latency on a real runtime with stored queries, with none, and with a broken file; and the pieces that it shows."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from streamlit.testing.v1 import AppTest

import runtime
from benchmarks.bench_latency import Stored, fill
from latency.percentiles import percentiles, summary
from latency.percentiles.percentiles import COLUMNS, EVERY, TOTAL, Selection
from latency.percentiles.recent import Recent
from latency.percentiles.summary import Pick, View
from latency.percentiles.table import StageTable, StageTables
from latency.types import Finding
from rag.trace_rows import QueryFilter, QueryRow
from rag.trace_store import TraceStore
from tests.fresh_runtime import only_settings_of
from ui import latency_charts, latency_view

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.xdist_group("pages")
FRAME = """
import streamlit as st
from ui.links import page
from ui.style import stylesheet
st.html(stylesheet())
names = ("latency", "ask", "queries", "query")
st.navigation([st.Page(page(name), title=name.capitalize(), default=name == "latency") for name in names]).run()
"""
QUERIES = 240


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    """The process's runtime in a fresh data folder, with no query yet."""
    folder = tmp_path_factory.mktemp("latency-page")
    with only_settings_of(folder):
        running = runtime.started()
        assert running.wait_warm(90)
        yield running


@pytest.fixture(scope="module")
def filled(rt: runtime.Runtime) -> runtime.Runtime:
    """Queries of the last 20 hours; one of them with settings that try to be a script."""
    fill(rt.traces.path, QUERIES, until_unix=time.time(), days=20 / 24)
    hostile = Stored(1).one(0, time.time() - 60, 0.5)
    fingerprint = {"settings": "<script>alert(1)</script>", "version": "v"}
    rt.traces.save(replace(hostile, fingerprint=fingerprint, origin="ask", outcome="answered"))
    assert rt.traces.flush()
    return rt


@pytest.fixture
def app(tmp_path: Path) -> AppTest:
    frame = tmp_path / "frame.py"
    frame.write_text(FRAME)
    return AppTest.from_file(str(frame), default_timeout=60)


def html(app: AppTest) -> str:
    assert not app.exception
    return "\n".join(str(item.proto.body) for item in app.get("html"))


def opened(app: AppTest, **query: str) -> str:
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    return html(app)


def usual(rt: runtime.Runtime) -> list[QueryRow]:
    """What the page counts by default, from the run list."""
    rows = rt.traces.search(QueryFilter(measured=False))
    return [row for row in rows if row.outcome in ("answered", "no_documents")]


def nearest_rank(values: list[float], percent: int) -> float:
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1]


# The page


def test_without_queries_it_says_what_to_do(app: AppTest, rt: runtime.Runtime) -> None:
    assert not rt.traces.count()
    shown = opened(app)
    assert "Nothing has been asked yet" in shown and "nan" not in shown.lower()


def test_sentence_counts_and_percentiles_are_those_of_the_store(app: AppTest, filled: runtime.Runtime) -> None:
    shown = BeautifulSoup(opened(app), "html.parser")
    counted = usual(filled)
    p95 = nearest_rank([row.total_seconds for row in counted], 95)
    question = shown.select_one(".rd-question")
    assert question is not None and f"p95 was {p95:.2f} s over {len(counted)} queries" in question.text
    measured = filled.traces.count(QueryFilter(measured=True))
    assert f"{len(counted)} of {QUERIES + 1} queries of the last 24 h; left out: {measured} measured runs" in shown.text
    row = next(each for each in shown.select("tr") if each.text.startswith("generate"))
    spent = [value for each in counted if (value := each.generate_seconds) is not None]
    link = row.select("a")[2]
    assert link.text == f"{nearest_rank(spent, 95):.2f} s"
    found = filled.traces.get(str(link["href"]).removeprefix("/query?id="))
    assert found is not None, "the percentile links to the query whose time it is"
    generate = next(stage for stage in found.stages if stage.stage == "generate")
    assert generate.seconds == nearest_rank(spent, 95)


def test_measured_runs_can_be_counted_too(app: AppTest, filled: runtime.Runtime) -> None:
    opened(app)
    app.toggle(key="measured").set_value(True).run()
    ended = [row for row in filled.traces.search() if row.outcome in ("answered", "no_documents")]
    assert f"{len(ended)} of {QUERIES + 1} queries" in html(app)
    app.selectbox(key="origin").select("otlp:shop").run()
    shop = [row for row in ended if row.origin == "otlp:shop"]
    assert shop and f"{len(shop)} of {QUERIES + 1} queries" in html(app)


def test_a_deep_link_gives_the_same_view(app: AppTest, filled: runtime.Runtime) -> None:
    shown = opened(app, range="7 d", stage="rerank", by="Reranker device", only="cuda:0", heat="warm", outcome="answered")
    assert app.selectbox(key="only").value == "cuda:0" and app.segmented_control(key="heat").value == "warm"
    assert "Rerank: p95 was" in shown and "warm runs" in shown and "with another value" in shown
    table = StageTables(filled.traces.path).at(filled.traces.revision)
    selection = Selection(outcome="answered", option="rerank_device", value="cuda:0")
    spent = percentiles.timed(table, percentiles.choose(table, selection).rows, "rerank", "warm")[0]
    assert f"over {len(spent)} warm runs" in shown


def test_another_option_forgets_the_value_of_the_first(app: AppTest, filled: runtime.Runtime) -> None:
    opened(app, by="Reranker device", only="cuda:0")
    app.selectbox(key="by").select("candidates").run()
    assert app.selectbox(key="only").value == "every value" and "another value" not in html(app)


def test_a_bar_in_the_url_lists_its_queries(app: AppTest, filled: runtime.Runtime) -> None:
    totals = sorted(row.total_seconds for row in usual(filled))
    least, most = totals[-3], totals[-1]
    shown = opened(app, pick=f"seconds:{least!r}:{most!r}")
    assert "2 queries, slowest first, total from" in shown
    app.button(key="unpick").click().run()
    assert "pick" not in app.query_params and f"The 10 slowest of {len(totals)} queries" in html(app)
    assert "0 queries" in opened(app, pick="time:1.0:2.0")
    assert f"slowest of {len(totals)}" in opened(app, pick="time:x:y"), "nonsense in the URL lists all"


def test_what_was_stored_is_escaped(app: AppTest, filled: runtime.Runtime) -> None:
    shown = opened(app, by="Settings")
    assert "<script>" not in shown and "&lt;script&gt;" in shown


def test_what_if_answers_to_its_controls(app: AppTest, filled: runtime.Runtime) -> None:
    shown = opened(app)
    assert "nothing is changed yet" in shown
    app.number_input(key="hits").set_value(100).run()
    shown = html(app)
    assert "An estimate from" in shown and "100% of all queries are answered from the semantic cache in 50 ms" in shown
    row = next(each for each in BeautifulSoup(shown, "html.parser").select("tr") if each.text.startswith("p95"))
    assert "50.0 ms" in row.select("td")[2].text


def test_findings_of_the_last_hour_are_told(app: AppTest, filled: runtime.Runtime) -> None:
    assert "Last hour: " in opened(app)


def test_a_time_without_queries_offers_a_wider_one(app: AppTest, filled: runtime.Runtime) -> None:
    shown = opened(app, outcome="failed", origin="ask", by="Version", only="v")
    assert "No query matches" in shown and "Look further back" in shown


@pytest.fixture
def broken(filled: runtime.Runtime, tmp_path: Path) -> Iterator[runtime.Runtime]:
    """The trace file replaced by one that is none; the real one comes back afterwards."""
    path = filled.traces.path
    names = [name for name in os.listdir(path.parent) if name.startswith(path.name)]
    for name in names:
        shutil.move(path.parent / name, tmp_path / name)
    path.write_bytes(b"this is no database" * 1000)
    yield filled
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()
    for name in names:
        shutil.move(tmp_path / name, path.parent / name)


def test_a_broken_file_is_told_with_what_to_do(app: AppTest, broken: runtime.Runtime) -> None:
    shown = opened(app)
    assert "is damaged" in shown and "move the file away" in shown


# What it shows


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> StageTable:
    path = tmp_path_factory.mktemp("table") / "traces.db"
    fill(path, 400)
    store = TraceStore(path)
    try:
        return StageTables(path).at(store.revision)
    finally:
        store.close()


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("heat", ["all", "warm", "cold"])
def test_charts_are_plain_json_and_hold_every_query(table: StageTable, column: str, heat: percentiles.Heat) -> None:
    view = View(Selection(origin=EVERY), column, heat, "settings", 30 * 86_400.0)
    found = summary.focus(table, view)
    told = next(line for line in summary.whole(table, view.selection).lines if line.stage == column).of(heat)
    trend = latency_charts.trend_options(found.trend, column, 0.0, 1.0, dark=True)
    assert json.dumps(trend, allow_nan=False)
    n = told.n if told else 0
    assert sum(bucket.n for bucket in found.trend.buckets) == n
    if told is None:
        assert found.bins == ()
        return
    bars = latency_charts.distribution_options(found.bins, column, told, dark=False)
    assert json.dumps(bars, allow_nan=False)
    assert sum(sum(series["data"]) for series in bars["series"]) == n
    marks = {mark["label"]["formatter"]: mark["xAxis"] for mark in bars["series"][0]["markLine"]["data"]}
    for name in ("p50", "p95", "p99"):
        inside = found.bins[marks[name]]
        assert inside.least <= getattr(told, name) < inside.most


def test_a_gap_in_time_is_a_gap_in_the_line() -> None:
    buckets = tuple(percentiles.Bucket(start, 1, 1.0, 2.0, 2.0) for start in (0.0, 60.0, 240.0))
    drawn = latency_charts.trend_options(percentiles.Trend(60.0, buckets, ()), TOTAL, 0.0, 300.0, dark=False)
    line = next(series for series in drawn["series"] if series["name"] == "p95")
    assert [value for _, value in line["data"]] == [2.0, 2.0, None, 2.0]


@pytest.mark.parametrize(
    ("starts", "width"), [((0.0, 60.0, 240.0), "86%"), ((0.0,), "8.6%"), ((0.0, 300.0), "17.2%"), ((), "8.6%")]
)
def test_a_bar_is_as_wide_as_its_bucket(starts: tuple[float, ...], width: str) -> None:
    """ECharts takes shares of the least distance of two bars, and of the whole axis where there is one bar."""
    assert latency_charts.bucket_width(starts, 60.0, 600.0) == width


def test_stages_lie_on_top_of_one_another_in_one_unit() -> None:
    embed = percentiles.Trend(60.0, (percentiles.Bucket(0.0, 2, 0.5, 0.6, 0.7), percentiles.Bucket(60.0, 1, 0.2, 0.2, 0.2)), ())
    search = percentiles.Trend(60.0, (percentiles.Bucket(0.0, 2, 0.7, 0.8, 0.9),), ())
    drawn = latency_charts.stages_options((("embed", embed), ("search", search)), 0.0, 3600.0, dark=False)
    assert [(each["name"], each["data"]) for each in drawn["series"]] == [
        ("embed", [[30_000.0, 0.5], [90_000.0, 0.2]]),
        ("search", [[30_000.0, 0.7], [90_000.0, None]]),  # else the next on top would stand on the wrong one
    ]
    assert drawn["yAxis"]["axisLabel"]["formatter"] == "{value} s"  # 0.5 s and 0.7 s are 1.2 s together
    assert {each["stack"] for each in drawn["series"]} == {"p50"}


def test_the_numbers_to_copy_are_those_shown(table: StageTable) -> None:
    rows = percentiles.choose(table, Selection()).rows
    lines = percentiles.by_stage(table, rows)
    for row in latency_view.stage_rows(lines):
        assert len(row) == len(latency_view.STAGE_CSV)
        told = next(line for line in lines if line.stage == row[0]).of(row[1])
        assert told is not None and row[3:5] == [told.n, told.p50]
    groups = percentiles.groups(table, rows, "cache")
    assert {len(row) for row in latency_view.group_rows(groups, "cache", TOTAL)} == {len(latency_view.GROUP_CSV)}


def test_a_stage_that_never_ran_is_a_dash_with_its_reason(table: StageTable) -> None:
    rows = percentiles.choose(table, Selection(option="cache", value="hit")).rows
    shown = BeautifulSoup(latency_view.stage_table(percentiles.by_stage(table, rows), "all", {}), "html.parser")
    generate = next(each for each in shown.select("tr") if each.text.startswith("generate"))
    assert {each["title"] for each in generate.select("abbr")} == {"no query ran it"}
    assert "–" in generate.text and "0 ms" not in generate.text


def test_what_was_looked_at_of_the_last_hour_is_said() -> None:
    cause = Finding("x", "slow", "rerank", 2.0, None, "d", "derived", (), "do this", query_ids=("a", "b"))
    assert (
        latency_view.findings_title(Recent((cause,), 1000, 3000, 9.0))
        == "Last hour: 1 cause in 3,000 queries, the slowest 1,000 looked at"
    )
    assert latency_view.findings_title(Recent((), 1, 1, 9.0)) == "Last hour: nothing stands out in 1 query"
    assert latency_view.findings_title(Recent((), 0, 0, 0.0)) == "Last hour: no query"
    assert len(latency_view.finding_rows([cause])[0]) == len(latency_view.FINDING_CSV)


def test_links_keep_the_view_and_change_one_thing() -> None:
    url = {"range": "7 d", "only": "a", "by": "HyDE"}
    assert latency_view.page_url(url, only="x&y=1") == "/latency?range=7+d&only=x%26y%3D1&by=HyDE"
    assert latency_view.page_url(url, only=None, by=None, range=None) == "/latency"


def test_a_list_says_what_it_lists() -> None:
    view = View(Selection(), "rerank")
    assert latency_view.list_title(84, 10, view, None, UTC) == "The 10 with the slowest rerank of 84 queries"
    picked = latency_view.list_title(1, 1, view, Pick("seconds", 0.5, 1.0), UTC)
    assert picked == "1 query, slowest first, rerank from 500 ms to 1.00 s"
    asked = latency_view.list_title(2, 2, View(Selection()), Pick("time", 0.0, 60.0), UTC)
    assert asked == "2 queries, slowest first, asked from 1970-01-01 00:00:00 UTC to 1970-01-01 00:01:00 UTC"


def test_the_trend_ends_now_and_is_as_long_as_the_time_asked_for(table: StageTable) -> None:
    view = View(Selection(), length=3600.0)
    trend = summary.focus(table, view).trend
    last = trend.buckets[-1].start + trend.step
    assert latency_view.window(view, trend, last + 50) == (last + 50 - 3600, last + 50)
    everything = View(Selection())
    trend = summary.focus(table, everything).trend
    assert latency_view.window(everything, trend, 0.0)[0] == trend.buckets[0].start <= float(np.min(table.started))


def test_the_zone_decides_where_days_begin() -> None:
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
    assert latency_view.seconds_from(noon, timezone(timedelta(hours=-5))) == -18_000
