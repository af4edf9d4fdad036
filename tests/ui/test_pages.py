"""The pages on a real runtime with the starter models and a store of its own, through Streamlit's AppTest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import runtime
from settings import SettingsError, reference
from ui.cached import the_runtime

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.xdist_group("pages")


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    """The process's runtime in a fresh data folder, with two documents."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "cold.md").write_text(
        "# Cold <start>\n\nThe first query loads the embedder, which costs $12 and takes 12 seconds.\n"
    )
    (folder / "he.md").write_text("# שאילתה ראשונה\n\nהשאילתה הראשונה איטית כי המודל נטען.\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
            patch.delenv(name, raising=False)
        patch.setenv("RAGDECK_DATA", str(folder / "data"))
        patch.setenv("RAGDECK_CONFIG", str(_empty(folder / "empty.toml")))
        runtime.shut_down()
        running = runtime.get()
        job = running.submit_ingest([folder / "cold.md", folder / "he.md"])
        assert job.wait(150)
        yield running
        runtime.shut_down()


def _empty(path: Path) -> Path:
    path.write_text("")
    return path


@pytest.fixture
def app(rt: runtime.Runtime) -> AppTest:
    return AppTest.from_file(str(ROOT / "ui" / "frame.py"), default_timeout=60)


def open_page(app: AppTest, name: str, **query: str) -> AppTest:
    app.run()
    for key, value in query.items():
        app.query_params[key] = value
    app.switch_page(str(ROOT / "pages" / f"{name}.py"))
    app.run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(item.proto.body) for item in app.get("html"))


def ask(app: AppTest, rt: runtime.Runtime, question: str) -> str:
    """Ask through the form and wait; returns the id of the stored query, which the page has put into its URL."""
    app.text_area(key="question").set_value(question)
    app.button(key="send").click().run()
    assert not app.exception
    if "job" in app.query_params:
        job = rt.jobs.get(str(app.query_params["job"]))
        assert job is not None and job.wait(120)
        app.run()
    rt.traces.flush()
    return str(app.query_params["id"])


def test_ask_when_nothing_was_asked_offers_examples(app: AppTest, rt: runtime.Runtime) -> None:
    rt.traces.flush()
    rt.traces.delete_before(time.time() + 1)
    app.run()
    assert not app.exception
    assert "Nothing has been asked yet" in html(app)
    assert len([button for button in app.button if str(button.key).startswith("example-")]) == 4


def test_ask_shows_the_answer_its_passages_and_its_times(app: AppTest, rt: runtime.Runtime) -> None:
    app.run()
    query_id = ask(app, rt, "Why does the first query cost $12?")
    shown = html(app)
    assert rt.traces.get(query_id) is not None
    for part in ("rd-wf", "rd-passages", "Answered", "Cold &lt;start&gt;"):
        assert part in shown
    assert any("\\$12" in item.value and "#passage-1" in item.value for item in app.markdown)


def test_the_options_reach_the_query_and_the_url(app: AppTest, rt: runtime.Runtime) -> None:
    app.run()
    app.toggle(key="opt_rerank").set_value(False)
    app.number_input(key="opt_candidates").set_value(5)
    query_id = ask(app, rt, "first query")
    answer = rt.traces.get(query_id)
    assert answer is not None and (answer.options.rerank, answer.options.candidates) == (False, 5)
    assert (app.query_params["rerank"], app.query_params["candidates"]) == ("off", "5")


def test_an_empty_question_is_refused_in_words(app: AppTest) -> None:
    app.run()
    app.text_area(key="question").set_value("   ")
    app.button(key="send").click().run()
    assert not app.exception and "Type a question first" in html(app)


def test_a_job_nobody_knows_says_what_happened(app: AppTest) -> None:
    app.query_params["job"] = "gone"
    app.run()
    assert not app.exception and "no longer running here" in html(app)


def test_query_page_shows_a_stored_query(app: AppTest, rt: runtime.Runtime) -> None:
    app.run()
    query_id = ask(app, rt, "<script>alert(1)</script> למה?")
    again = AppTest.from_file(str(ROOT / "ui" / "frame.py"), default_timeout=60)
    open_page(again, "query", id=query_id)
    shown = html(again)
    assert "&lt;script&gt;" in shown and "<script>" not in shown and "rd-wf" in shown
    assert any(item.label.startswith("Spans (") for item in again.expander)


@pytest.mark.parametrize("query", [{"id": "nope"}, {}])
def test_query_page_without_a_query_helps(app: AppTest, query: dict[str, str]) -> None:
    open_page(app, "query", **query)
    assert "Choose one from the list" in html(app)


def test_queries_lists_filters_and_counts(app: AppTest, rt: runtime.Runtime) -> None:
    rt.submit_query("a needle in the list").wait(120)
    rt.traces.flush()
    open_page(app, "queries")
    total = rt.traces.count()
    assert f"1–{total} of {total}" in html(app)
    app.text_input(key="text").set_value("needle").run()
    assert f"1–1 of 1 matching, {total} in all" in html(app) or total == 1
    app.text_input(key="text").set_value("no such words").run()
    assert not app.exception and "Widen the time" in html(app)


def test_knowledge_lists_collections_and_documents(app: AppTest) -> None:
    open_page(app, "knowledge")
    shown = html(app)
    assert "2 documents" in shown and "in use" in shown
    assert list(app.dataframe[0].value["Title"]) and len(app.dataframe[0].value) == 2


def test_knowledge_takes_an_upload(app: AppTest, rt: runtime.Runtime) -> None:
    open_page(app, "knowledge")
    app.file_uploader[0].upload("new_file.txt", b"A third document about reranking on CPUs.")
    app.button[0].click().run()
    assert not app.exception
    job = rt.jobs.recent("ingest")[0]
    assert job.wait(120)
    app.run()
    assert not app.exception and "1 added" in html(app) and len(rt.knowledge().documents) == 3


def test_models_are_tried_and_loaded_anew_by_buttons(app: AppTest, rt: runtime.Runtime) -> None:
    open_page(app, "models")
    app.button(key="test-embedder").click().run(timeout=120)
    assert "embedded one text in" in html(app) and "384 dimensions" in html(app)
    before = next(model.runs for model in rt.status().models if model.kind == "embedder")
    app.button(key="reload-embedder").click().run(timeout=120)
    assert not app.exception and "all-MiniLM-L6-v2 in this process embedded one text" in html(app)
    status = next(model for model in rt.status().models if model.kind == "embedder")
    assert status.state == "warm" and status.runs > before
    app.button(key="test-reranker").click().run(timeout=120)
    assert "scored one pair in" in html(app)


def test_models_shows_states_and_masked_settings(app: AppTest) -> None:
    open_page(app, "models")
    assert "No language model is configured" in html(app)
    table = app.dataframe[0].value
    assert {"llm.api_key", "reranker.top_k"} <= set(table["Setting"])


def test_a_setting_changed_on_screen_is_in_force_and_a_wrong_one_is_refused(app: AppTest, rt: runtime.Runtime) -> None:
    open_page(app, "models")
    app.number_input(key="setting-reranker.return_k").set_value(3)
    app.button(key="FormSubmitter:settings-Save").click().run()
    assert not app.exception
    assert rt.default_options().keep == 3
    app.text_area(key="setting-llm.hyde_prompt").set_value("no placeholder")
    app.button(key="FormSubmitter:settings-Save").click().run()
    assert "Nothing was saved" in html(app) and "hyde_prompt" in html(app)
    rt.change({"reranker.return_k": None})
    assert rt.default_options().keep == 8


def test_settings_that_are_wrong_are_shown_not_raised(monkeypatch: pytest.MonkeyPatch, app: AppTest) -> None:
    def refuse(url: str | None = None) -> runtime.Runtime:
        from settings import Problem

        raise SettingsError([Problem("environment variable MILVUS_URI", "milvus.uri", "<nonsense>", "an address")])

    monkeypatch.setattr(runtime, "get", refuse)
    the_runtime.clear()
    app.run()
    assert not app.exception
    assert app.title[0].value == "The settings cannot be used" and "&lt;nonsense&gt;" in html(app)
