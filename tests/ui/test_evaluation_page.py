"""The page Evaluation and the marks on a query, on a real runtime with the starter models, through Streamlit's AppTest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import runtime
from rag.evaluation.evaluations import Evaluations
from rag.evaluation.types import Run, Setting
from tests.fresh_runtime import only_settings_of
from ui.cached import the_runtime

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.xdist_group("pages")

NAVIGATION = """
import streamlit as st
from ui.links import page
names = ("evaluation", "queries", "query", "knowledge", "ask")
st.navigation([st.Page(page(name), default=name == "evaluation") for name in names]).run()
"""
MARKING = """
import streamlit as st
from ui import mark_view
from ui.cached import the_runtime
mark_view.show(the_runtime().traces.get(st.query_params["id"]), "-test")
"""


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    """The process's runtime in a fresh data folder, with three documents that look like the sample corpus's."""
    folder = tmp_path_factory.mktemp("evaluation")
    guide = folder / "field-guide"
    guide.mkdir()
    (guide / "cold.md").write_text("# Cold <start>\n\n## Load\n\nThe first query loads the embedder, which takes 12 seconds.\n")
    (guide / "tunnel.md").write_text("# Tunnel\n\n## Milvus\n\nSearching Milvus through a tunnel adds a round trip.\n")
    (guide / "mig.md").write_text("# Slices\n\n## Memory\n\nA card is cut into slices, each with memory of its own.\n")
    with only_settings_of(folder):
        the_runtime.clear()
        running = runtime.get()
        assert running.submit_ingest([guide]).wait(150)
        yield running
        the_runtime.clear()


@pytest.fixture
def evaluations(rt: runtime.Runtime) -> Iterator[Evaluations]:
    """Empty for each test."""
    path = rt.settings.data_dir / "evaluations.db"
    yield Evaluations(rt.settings.data_dir)
    for part in path.parent.glob(f"{path.name}*"):
        part.unlink()


def opened(**query: str) -> AppTest:
    app = AppTest.from_string(NAVIGATION, default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(item.proto.body) for item in app.get("html"))


def asked(rt: runtime.Runtime, question: str) -> str:
    job = rt.submit_query(question)
    assert job.wait(120) and job.result is not None
    rt.traces.flush()
    return job.result.id


def made(evaluations: Evaluations, name: str = "Mine <b>") -> str:
    from rag.evaluation import readers

    rows = (
        {"question": "Why is the first query <i>slow</i>?", "relevant": [{"source": "cold.md", "grade": 2}]},
        {"question": "Does a tunnel slow Milvus?", "relevant": ["tunnel"]},
        {"question": "How is a card cut?", "relevant": ["mig.md", "gone.md"]},
    )
    questions = readers.read({"m.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows).encode()}).questions
    return evaluations.sets.create(name, questions, "by hand").id


def finished_run(app: AppTest, rt: runtime.Runtime) -> AppTest:
    app.button(key="run-start").click().run()
    assert not app.exception
    job = rt.jobs.get(str(app.query_params["job"]))
    assert job is not None and job.wait(120) and job.error is None
    app.run()
    assert not app.exception
    return app


def test_without_anything_the_page_leads_to_marking(evaluations: Evaluations) -> None:
    app = opened()
    shown = html(app)
    assert "There is no question set yet" in shown and "No query is marked yet" in shown
    assert not app.button(key="sample-set").disabled


def test_the_sample_questions_are_one_click_and_offered_once(evaluations: Evaluations) -> None:
    app = opened()
    app.button(key="sample-set").click().run()
    assert not app.exception
    (known,) = evaluations.sets.list()
    assert known.questions == 60 and app.query_params["set"] == known.id
    assert "are not in the collection" in html(app), "these three documents are not the whole corpus"
    assert not [button for button in opened().button if button.key == "sample-set"]


def test_a_marked_query_becomes_a_set_and_outlives_its_trace(rt: runtime.Runtime, evaluations: Evaluations) -> None:
    query_id = asked(rt, "Why does the first query take so long <b>?")
    marking = AppTest.from_string(MARKING, default_timeout=60)
    marking.query_params["id"] = query_id
    marking.run()
    marking.button(key="mark-good-test").click().run()
    assert not marking.exception
    mark = evaluations.marks.get(query_id)
    assert mark is not None and mark.verdict == "good" and mark.passages
    rt.traces.delete_before(4e9)
    app = opened()
    assert "1 question of 1 marked query" in html(app)
    app.text_input(key="marks-name").set_value("From marks")
    app.button(key="marks-make").click().run()
    assert not app.exception
    found = evaluations.sets.named("From marks")
    assert found is not None and found.questions[0].query_id == query_id
    assert app.query_params["set"] == found.info.id


def test_a_mark_is_taken_back_by_pressing_again(rt: runtime.Runtime, evaluations: Evaluations) -> None:
    query_id = asked(rt, "Does a tunnel slow the search down?")
    marking = AppTest.from_string(MARKING, default_timeout=60)
    marking.query_params["id"] = query_id
    marking.run()
    marking.button(key="mark-bad-test").click().run()
    assert (found := evaluations.marks.get(query_id)) is not None and found.verdict == "bad"
    marking.button(key="mark-bad-test").click().run()
    assert evaluations.marks.get(query_id) is None


def test_a_note_that_is_too_long_is_told_and_stays(rt: runtime.Runtime, evaluations: Evaluations) -> None:
    marking = AppTest.from_string(MARKING, default_timeout=60)
    marking.query_params["id"] = asked(rt, "Why is the note about a tunnel so long?")
    marking.run()
    marking.text_area(key="mark-note-test").set_value("long " * 500)
    marking.button(key="mark-keep-note-test").click().run()
    assert not marking.exception and "a note has at most 2,000 characters" in html(marking)
    assert marking.text_area(key="mark-note-test").value == "long " * 500


def test_passages_are_judged_one_by_one(rt: runtime.Runtime, evaluations: Evaluations) -> None:
    query_id = asked(rt, "Why does the first query take so long?")
    marking = AppTest.from_string(MARKING, default_timeout=60)
    marking.query_params["id"] = query_id
    marking.session_state["mark-passages-test"] = True
    marking.run()
    assert not marking.exception and "Cold &lt;start&gt;" in html(marking)
    marking.selectbox(key="mark-grade-test-1").set_value(3).run()
    mark = evaluations.marks.get(query_id)
    assert not marking.exception and mark is not None and [each.grade for each in mark.passages].count(3) == 1
    assert marking.selectbox(key="mark-grade-test-1").value == 3
    marking.selectbox(key="mark-grade-test-1").set_value(-1).run()
    assert evaluations.marks.get(query_id) is None


def test_an_upload_names_its_bad_lines_and_makes_a_set(evaluations: Evaluations) -> None:
    app = opened()
    app.segmented_control[0].set_value("upload").run()
    data = b'{"question": "Why <u>?", "relevant": ["cold.md", "nowhere.md"]}\n{oops\n'
    app.file_uploader(key="set-files").upload("mine.jsonl", data).run()
    shown = html(app)
    assert not app.exception and "mine.jsonl:2" in shown and "Why &lt;u&gt;?" in shown and "nowhere.md" in shown
    app.button(key="upload-make").click().run()
    assert not app.exception
    assert [(each.name, each.questions) for each in evaluations.sets.list()] == [("mine", 1)]


def test_a_file_that_is_no_set_is_refused_in_words(evaluations: Evaluations) -> None:
    app = opened()
    app.segmented_control[0].set_value("upload").run()
    app.file_uploader(key="set-files").upload("mine.jsonl", b"\x00\x01\x02").run()
    assert not app.exception and "no UTF-8 text" in html(app)


def test_a_set_runs_as_a_job_and_its_runs_are_compared(rt: runtime.Runtime, evaluations: Evaluations) -> None:
    set_id = made(evaluations)
    app = opened(set=set_id)
    assert "Mine &lt;b&gt;" in html(app) and "gone.md" in html(app) and "has not been run yet" in html(app)
    app.multiselect(key="run-rerank").set_value([True, False])
    finished_run(app, rt)
    runs = evaluations.runs.list(set_id)
    assert [(run.state, run.measured, run.setting.rerank) for run in runs] == [("finished", 3, False), ("finished", 3, True)]
    assert "2 runs" in html(app) and "nDCG@10 over time" in html(app)
    one = opened(run=runs[1].id)
    shown = html(one)
    assert "recall" in shown.lower() and "starter" in shown and "&lt;i&gt;slow" in shown and "knowledge?view=inspect" in shown
    assert "counted as not found" in shown
    both = html(opened(**{"run": runs[0].id, "with": runs[1].id}))
    assert "too few to tell" in both and "What else differed" in both
    assert "1 question set" in html(opened()) and "Latest runs" in html(opened())


def test_more_than_six_settings_are_refused_in_words(evaluations: Evaluations) -> None:
    app = opened(set=made(evaluations))
    app.multiselect(key="run-candidates").set_value([20, 40, 60, 80])
    app.multiselect(key="run-rerank").set_value([True, False])
    app.button(key="run-start").click().run()
    assert not app.exception and "at most 6 run in turn" in html(app)
    assert evaluations.runs.list() == ()


def test_editing_a_set_that_was_run_makes_the_next_version(evaluations: Evaluations) -> None:
    set_id = made(evaluations)
    evaluations.runs.save(Run("r", set_id, 1, "Mine", 1.0, Setting(), state="finished"))
    app = opened(set=set_id)
    app.button(key="edit").click().run()
    area = next(item for item in app.text_area if str(item.key).startswith("edit-"))
    area.set_value(str(area.value).splitlines()[0]).run()
    app.button(key="edit-keep").click().run()
    assert not app.exception
    assert [(each.version, each.questions) for each in evaluations.sets.versions(set_id)] == [(2, 1), (1, 3)]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"set": "none"}, "no such question set"),
        ({"run": "none"}, "no such run"),
        ({"job": "gone"}, "no longer known here"),
    ],
)
def test_addresses_of_what_is_gone_help(evaluations: Evaluations, query: dict[str, str], said: str) -> None:
    assert said in html(opened(**query))


def test_a_deleted_set_is_asked_about_first(evaluations: Evaluations) -> None:
    app = opened(set=made(evaluations))
    app.button(key="delete").click().run()
    assert evaluations.sets.list()
    app.button(key="really").click().run()
    assert not app.exception and evaluations.sets.list() == ()
