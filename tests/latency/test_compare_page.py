"""The page Compare on a real runtime's stores, through Streamlit's AppTest, and its HTML read back with a parser."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from bs4 import BeautifulSoup
from streamlit.testing.v1 import AppTest

import runtime
from latency.comparing.agreement import Rank
from latency.comparing.compare import compare
from latency.experiments.experiments import Experiment
from rag.types import Split
from tests.fresh_runtime import only_settings_of
from tests.latency.comparison_cases import gpu, noisy, passages, query
from ui import compare_view

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.xdist_group("pages")
FRAME = """
import streamlit as st
from ui.links import page
from ui.style import stylesheet
st.html(stylesheet())
names = ("compare", "ask", "queries", "query")
st.navigation([st.Page(page(name), default=name == "compare") for name in names]).run()
"""
EVIL = '"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    """The process's runtime in a fresh data folder, without models and documents."""
    folder = tmp_path_factory.mktemp("compare")
    with only_settings_of(folder, "[models]\npreload = false\n[ingest]\nsample_corpus = false\n"):
        running = runtime.started()
        assert running.wait_warm(60)  # the store is open: closing it half open ends the process badly
        yield running


@pytest.fixture
def app(rt: runtime.Runtime, tmp_path: Path) -> AppTest:
    rt.traces.flush()
    rt.traces.delete_before(time.time() + 10 * 365 * 86400)
    frame = tmp_path / "frame.py"
    frame.write_text(FRAME)
    return AppTest.from_file(str(frame), default_timeout=60)


def keep(rt: runtime.Runtime, *cases) -> list[str]:
    for case in cases:
        rt.traces.save(case.answer)
        if case.readings is not None:
            rt.readings.save(replace(case.readings, query_id=case.answer.id))
    assert rt.traces.flush()
    return [case.answer.id for case in cases]


def open_page(app: AppTest, **query_params: str) -> str:
    for key, value in query_params.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return html(app)


def html(app: AppTest) -> str:
    return "\n".join(str(item.proto.body) for item in app.get("html"))


def test_without_queries_it_says_what_to_do(app: AppTest) -> None:
    assert "There is nothing to compare yet" in open_page(app)


def test_without_sides_it_offers_the_last_two(app: AppTest, rt: runtime.Runtime) -> None:
    ids = keep(rt, *(query(n) for n in range(3)))
    open_page(app)
    app.button(key="suggestion").click().run()
    assert not app.exception
    assert (app.query_params["a"], app.query_params["b"]) in ((ids[1], ids[2]), ([ids[1]], [ids[2]]))
    assert "Stage by stage" in html(app)


def test_with_one_side_the_same_question_is_offered(app: AppTest, rt: runtime.Runtime) -> None:
    ids = keep(rt, query(0, question="same *one*"), query(1, question="same *one*"), query(2), query(3, question="only once"))
    open_page(app, a=ids[1])
    button = app.button(key="suggestion")
    assert button.label.startswith("Compare with same \\*one\\*")
    button.click().run()
    assert not app.exception and "Stage by stage" in html(app)
    shown = BeautifulSoup(html(app), "html.parser")
    assert [str(link["href"]) for link in shown.select(".rd-cmp > p > a")][:2] == [f"/query?id={ids[1]}", f"/query?id={ids[0]}"]


def test_a_query_can_be_found_and_chosen_and_a_set_typed(app: AppTest, rt: runtime.Runtime) -> None:
    ids = keep(rt, query(0), query(1, question="A needle in the list"))
    open_page(app)
    app.text_input(key="find").set_value("needle").run()
    picker = app.selectbox(key="pick-a")
    assert len(picker.options) == 1 and picker.options[0].startswith("A needle in the list · 9.53 s")
    picker.select_index(0).run()
    app.text_input(key="text-b").set_value(ids[0]).run()
    assert not app.exception
    assert "Stage by stage" in html(app)


def test_two_queries_are_compared_with_a_replay_offered(app: AppTest, rt: runtime.Runtime) -> None:
    a = query(0, readings=gpu(0.9, 1980.0))
    b = query(1, {"hyde": 0}, readings=gpu(0.3, 1980.0), passages=passages("bagcde"))
    ids = keep(rt, a, b)
    shown = open_page(app, a=ids[0], b=ids[1])
    assert "B was 3.00 s faster (31 %): 3.00 s of it in hyde, which A ran and B skipped." in shown
    assert "One run each proves nothing" in shown and f"/experiments?replay={ids[0]}" in shown
    page = BeautifulSoup(shown, "html.parser")
    assert len(page.select(".rd-wf")) == 2
    first = [cell.text for cell in page.select(".rd-cmp.stages tbody tr")[0].select("td")]
    assert first == ["hyde", "3.00 s", "–", "−3.00 s", "", "100 %"]
    assert "gpu.0.utilization_ratio" in shown and "Kendall" in shown and "gone" in shown
    assert {button.proto.label for button in app.get("download_button")} == {"HTML", "Markdown", "CSV", "JSON"}


def test_passages_that_say_something_come_first() -> None:
    def rank(name: str, a: int | None, b: int | None, kept: bool = False) -> Rank:
        return Rank(name, name, "x.md", None, a, b, kept, False)

    ranks = [
        rank("far", 30, None),
        rank("kept", 1, None, True),
        rank("moved", 9, 12),
        rank("still", 20, 20),
        rank("new", None, 33),
    ]
    first, rest = compare_view.notable_first(ranks)
    assert [each.passage_id for each in first] == ["kept", "moved"]
    assert [each.passage_id for each in rest] == ["far", "still", "new"]


def test_swap_changes_the_sides_over(app: AppTest, rt: runtime.Runtime) -> None:
    ids = keep(rt, query(0), query(1, {"hyde": 0}))
    open_page(app, a=ids[0], b=ids[1])
    next(button for button in app.button if button.label == "Swap A and B").click().run()
    assert not app.exception
    assert "B was 3.00 s slower" in html(app)


def test_sets_show_intervals_and_counts(app: AppTest, rt: runtime.Runtime) -> None:
    keep(rt, *(replace(case, answer=replace(case.answer, fingerprint={"settings": "aaa"})) for case in noisy(0, 12)))
    keep(rt, *(replace(case, answer=replace(case.answer, fingerprint={"settings": "bbb"})) for case in noisy(1, 12, rerank=3.0)))
    shown = open_page(app, a="set:settings=aaa", b="set:settings=bbb")
    assert "12 pairs" in shown and "99 % interval" in shown and "slower" in shown and "p95" in shown
    assert "proves nothing" not in shown
    rerank = BeautifulSoup(shown, "html.parser").select(".rd-cmp.stages tbody tr")[0]
    assert rerank.text.startswith("rerank") and "…" in rerank.text and "12, 12" in rerank.text


def test_a_set_can_be_built_without_knowing_how_it_is_written(app: AppTest, rt: runtime.Runtime) -> None:
    ids = keep(rt, query(0), query(1, fingerprint={"settings": "b b"}), query(2, fingerprint={"settings": "b b"}))
    open_page(app, b=ids[0])
    app.text_input(key="set-a-settings").set_value("b b").run()
    app.text_input(key="set-a-limit").set_value("1").run()
    app.button(key="use-a").click().run()
    assert not app.exception
    assert app.query_params["a"] in ("set:settings=b%20b;limit=1", ["set:settings=b%20b;limit=1"])
    assert f"/query?id={ids[2]}" in html(app)


def test_a_side_of_an_experiment_is_shown_by_its_name(app: AppTest, rt: runtime.Runtime) -> None:
    a, b = keep(rt, *noisy(0, 9)), keep(rt, *noisy(1, 9, hyde=0))
    sides = [{"label": "as stored", "query_ids": a}, {"label": "hyde off", "query_ids": b}]
    rt.experiments.save(Experiment("r1", "replay", "HyDE on trial", 1.0, 2.0, "finished", result={"sides": sides}))
    shown = open_page(app, a="experiment:r1:A", b="experiment:r1:B")
    assert "HyDE on trial: as stored" in shown and "HyDE on trial: hyde off" in shown and "9 pairs" in shown


@pytest.mark.parametrize(
    ("a", "said"),
    [
        ("nope", "No stored query is nope"),
        ("set:colour=red", "A set has no colour"),
        ("experiment:x:A", "There is no experiment x"),
    ],
)
def test_a_side_that_is_none_says_which_and_what_to_do(app: AppTest, rt: runtime.Runtime, a: str, said: str) -> None:
    ids = keep(rt, query(0))
    shown = open_page(app, a=a, b=ids[0])
    assert "Side A cannot be shown" in shown and said in shown and "Side B" not in shown


def test_queries_that_are_gone_are_counted(app: AppTest, rt: runtime.Runtime) -> None:
    ids = keep(rt, query(0), query(1))
    assert "Not stored any more: 1 query of this side." in open_page(app, a=f"{ids[0]},gone", b=ids[1])


def test_everything_of_users_and_documents_is_escaped(app: AppTest, rt: runtime.Runtime) -> None:
    bad = [passage._replace(title=EVIL, source=EVIL, location=EVIL) for passage in passages("abc")]
    a = query(
        0,
        question=EVIL,
        passages=tuple(bad),
        fingerprint={"settings": EVIL, "version": "1"},
        readings=gpu(0.5, 900, EVIL, [EVIL]),
    )
    b = query(1, question=f"{EVIL}?", passages=passages("abd"), device=EVIL, readings=gpu(0.9, 900))
    ids = keep(rt, a, b)
    shown = open_page(app, a=ids[0], b=ids[1])
    assert "<script>" not in shown and not BeautifulSoup(shown, "html.parser").select("script")
    assert "&lt;script&gt;" in shown


# the pieces


def test_bars_point_to_the_faster_side_and_stay_inside() -> None:
    found = compare([query(0)], [query(1, {"hyde": 0, "rerank": 1.7})])
    page = BeautifulSoup(compare_view.stages_html(found), "html.parser")
    styles = [str(bar["style"]) for bar in page.select("tr:not(.part) .rd-gap i")]
    assert styles[0] == "left:0.00%;width:50.00%" and styles[1] == "left:50.00%;width:25.00%"


def test_both_waterfalls_have_one_axis() -> None:
    shown = compare_view.waterfalls_html(query(0).answer, query(1, {"hyde": 0, "generate": 1.0}).answer)
    axes = [[tick.text for tick in axis.select("span")] for axis in BeautifulSoup(shown, "html.parser").select(".rd-axis")]
    assert axes[0] == axes[1] and axes[0][-1] == "9.53 s"


def test_parts_stand_below_their_stage() -> None:
    far = query(1, {"search": 1.8}, splits={"search": Split(compute=0.2, network=1.5, other=0.1)})
    page = BeautifulSoup(compare_view.stages_html(compare([query(0)], [far])), "html.parser")
    names = [row.select("td")[0].text for row in page.select("tbody tr")]
    assert names[:3] == ["search", "network", "compute"] or names[:3] == ["search", "network", "other"]
    assert names[-1] == "total"


def test_the_csv_holds_every_row_unrounded() -> None:
    found = compare(noisy(0, 10), noisy(1, 10, rerank=2.0))
    rows = list(csv.DictReader(io.StringIO(compare_view.comparison_csv(found).decode("utf-8-sig"))))
    assert rows[0]["stage"] == "total" and float(rows[0]["difference_seconds"]) == found.total.difference_seconds
    assert {"rerank", "generate", "between stages"} <= {row["stage"] for row in rows}
    assert any(row["part"] == "compute" and row["stage"] == "rerank" for row in rows)
    assert float(rows[1]["interval_low_seconds"]) < float(rows[1]["interval_high_seconds"])


def test_links_of_a_side_lead_to_its_query() -> None:
    found = compare([query(0)], [query(1)])
    shown = compare_view.side_html("A", found.a, "query", query(0).answer, datetime(2026, 11, 22, tzinfo=UTC), UTC)
    link = urlparse(str(BeautifulSoup(shown, "html.parser").a["href"]))  # type: ignore[index]
    assert link.path == "/query" and parse_qs(link.query) == {"id": [found.a.ids[0]]}
