"""The page Cache on a real runtime with the starter models and a store of its own, through Streamlit's AppTest."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from streamlit.testing.v1 import AppTest

import runtime
from gpu_server.errors import ConnectionFailed
from rag.cache.types import CachedAnswer
from rag.semantic_cache import CacheLimits, SemanticCache, open_cache
from rag.types import Answer, Interval, Split, Stage
from tests.fresh_runtime import only_settings_of
from tests.ports import free_port
from tests.rag.cache_samples import KEY, answer, vector
from ui import cache_cached, cache_calibration

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.xdist_group("pages")
SCRIPT = f"""
import streamlit as st
st.navigation([st.Page({str(ROOT / "pages" / "cache.py")!r}, title="Cache")]).run()
"""
QUESTION = "What does Art. 72 say?"


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    folder = tmp_path_factory.mktemp("cache-page")
    (folder / "cold.md").write_text("# Cold start\n\nThe first query loads the embedder, which takes 12 seconds.\n")
    with only_settings_of(folder):
        running = runtime.get()
        job = running.submit_ingest([folder / "cold.md"])
        assert job.wait(150)
        yield running


@pytest.fixture
def cache(rt: runtime.Runtime) -> SemanticCache:
    """The runtime's own, with no answer, no judged pair, no calibrated thresholds and no stored query."""
    found = rt.cache
    assert found is not None
    found.purge()
    for pair in found.book.pairs():
        found.book.remove_pair(pair.a, pair.b)
    with found.book._open() as db:
        db.execute("DELETE FROM thresholds")
    found.book._thresholds = None
    rt.traces.flush()
    rt.traces.delete_before(time.time() + 1)
    return found


@pytest.fixture
def app(rt: runtime.Runtime) -> AppTest:
    return AppTest.from_string(SCRIPT, default_timeout=60)


def html(app: AppTest) -> str:
    return "\n".join(str(item.proto.body) for item in app.get("html"))


def shown(app: AppTest, view: str = "Entries", **query: str) -> str:
    for key, value in query.items():
        app.query_params[key] = value
    app.session_state["view"] = view
    app.run()
    assert not app.exception
    return html(app)


def press(app: AppTest, key: str) -> str:
    app.button(key=key).click().run()
    assert not app.exception
    return html(app)


def submit(app: AppTest, label: str) -> str:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception
    return html(app)


def keep(cache: SemanticCache, question: str = QUESTION, text: str = "It limits windows [1].") -> CachedAnswer:
    assert cache.keep(answer(question, text), vector(), KEY) is None
    found = cache.entry(KEY.entry_id(question))
    assert found is not None
    return found


def store_hit(rt: runtime.Runtime, entry: CachedAnswer, question: str, total_seconds: float = 0.5) -> Answer:
    """A stored query that got this answer."""
    facts = {"entry": entry.id, "kept_seconds": entry.seconds, "kept_query": entry.query_id}
    found = answer(
        question,
        entry.answer,
        id=f"{abs(hash(question)):032x}"[:32],
        stages=(Stage("cache", 0.004, 2, hit=True, reason=f"like {entry.question!r}"),),
        timeline=tuple(Interval("cache", 0.0, 0.002, "look", Split(), facts=facts) for _ in range(2)),
        total_seconds=total_seconds,
    )
    rt.traces.save(found)
    assert rt.traces.flush()
    return found


# 1) the head and the list


def test_without_an_answer_it_says_what_to_do_next(app: AppTest, cache: SemanticCache) -> None:
    found = shown(app)
    assert "No answer is kept yet." in found and "Ask a question" in found
    assert "no query has asked the cache in this time" in found
    assert "came with RAG Deck" in found and "387 unseen pairs" in found


def test_a_question_asked_twice_is_a_hit_on_the_page(app: AppTest, cache: SemanticCache, rt: runtime.Runtime) -> None:
    for _ in range(2):
        job = rt.submit_query("What takes the first query 12 seconds?")
        assert job.wait(120)
    assert rt.traces.flush()
    found = shown(app)
    assert "50 %" in found and "n 2 since" in found and "1 equal, 0 alike · 1 miss" in found
    assert "What takes the first query 12 seconds?" in found and "cold.md" in found


def test_time_saved_is_what_the_answers_took_less_what_the_hits_took(
    app: AppTest, cache: SemanticCache, rt: runtime.Runtime
) -> None:
    entry = keep(cache)  # took 9.5 s
    store_hit(rt, entry, "What does Article 72 say?", 0.5)
    store_hit(rt, entry, "Can you tell me what Art. 72 says?", 1.5)
    app.session_state["range"] = "all"
    found = shown(app)
    assert "17.0 s" in found and "over 2 hits" in found and "0 equal, 2 alike" in found


def test_questions_and_answers_are_escaped_and_searched(app: AppTest, cache: SemanticCache) -> None:
    keep(cache, "<script>alert(1)</script> why?", "<img src=x onerror=alert(2)> [1]")
    keep(cache, "Ünrelated?")
    found = shown(app)
    assert "&lt;script&gt;" in found and "<script>" not in found and "<img" not in found
    app.text_input(key="find").set_value("ünre").run()
    assert "Ünrelated?" in html(app) and "&lt;script&gt;" not in html(app)
    app.text_input(key="find").set_value("nowhere").run()
    assert "No kept question matches." in html(app)


def test_many_entries_come_in_pages(app: AppTest, cache: SemanticCache) -> None:
    for number in range(53):
        keep(cache, f"Question {number}?")
    found = shown(app)
    assert found.count("/cache?entry=") == 50 and "1–50" in found
    next(button for button in app.button if button.label == "Next").click().run()
    assert html(app).count("/cache?entry=") == 3 and "51–53" in html(app)


def test_a_purge_is_confirmed_and_leaves_pairs_and_thresholds(app: AppTest, cache: SemanticCache) -> None:
    keep(cache)
    cache.book.add_pair("a?", "b?", "different")
    name = next(iter(json.loads((ROOT / "rag" / "cache" / "thresholds.json").read_text())))["embedder"]
    shown(app)
    next(button for button in app.button if button.label == "Purge").click().run()
    assert cache.entries() and "cannot be undone" in " ".join(item.value for item in app.markdown)
    found = press(app, "really-purge")
    assert "1 answer deleted" in found and not cache.entries()
    assert len(cache.book.pairs()) == 1 and cache.thresholds(name) is not None


# 2) one entry


def test_an_entry_has_its_own_address_with_everything_about_it(app: AppTest, cache: SemanticCache) -> None:
    entry = keep(cache, text="It <b>limits</b> windows [1].")
    found = shown(app, entry=entry.id)
    for part in (QUESTION, "passages__test", "test-4", entry.id, "About kept", "its query is no longer stored"):
        assert part in found
    assert any("&lt;b>" in item.value and "#passage-1" in item.value for item in app.markdown)


def test_an_entry_that_is_gone_helps(app: AppTest, cache: SemanticCache) -> None:
    assert "no longer kept" in shown(app, entry="0" * 40)


def test_good_answers_are_marked_and_edited_and_their_citations_read_anew(app: AppTest, cache: SemanticCache) -> None:
    entry = keep(cache)
    shown(app, entry=entry.id)
    assert "goes into the export" in press(app, "good")
    assert cache.entry(entry.id).good
    app.text_area(key=f"text-{entry.id}").set_value("No source for this.")
    assert "0 citations read anew" in submit(app, "Save")
    changed = cache.entry(entry.id)
    assert (changed.answer, changed.citations, changed.edited, changed.good) == ("No source for this.", (), True, True)
    app.text_area(key=f"text-{entry.id}").set_value("  ")
    assert "the answer is empty" in submit(app, "Save")
    press(app, "good")
    assert not cache.entry(entry.id).good


def test_deleting_asks_first(app: AppTest, cache: SemanticCache) -> None:
    entry = keep(cache)
    shown(app, entry=entry.id)
    press(app, "delete")
    assert cache.entry(entry.id) is not None
    assert "The answer is deleted." in press(app, "really-delete")
    assert cache.entry(entry.id) is None and "entry" not in app.query_params


def test_a_wrong_answer_is_reported_for_a_typed_question(app: AppTest, cache: SemanticCache) -> None:
    entry = keep(cache)
    shown(app, entry=entry.id)
    assert "Write the question" in submit(app, "Report as wrong")
    app.text_input(key="report-asked").set_value("What does Art. 75 say?")
    assert "Reported" in submit(app, "Report as wrong")
    assert cache.entry(entry.id) is None
    (pair,) = cache.book.pairs()
    assert (pair.a, pair.b, pair.label) == ("What does Art. 75 say?", QUESTION, "different")


def test_a_query_that_got_the_answer_is_reported_by_its_own_button(
    app: AppTest, cache: SemanticCache, rt: runtime.Runtime
) -> None:
    entry, other = keep(cache), keep(cache, "Something else?")
    got = store_hit(rt, entry, "What is said by Art. 72 of the <i>law</i>?")
    store_hit(rt, other, "Something else, please?")
    found = shown(app, entry=entry.id)
    assert "&lt;i&gt;law" in found and "saved 9.00 s" in found and "Something else, please" not in found
    press(app, f"wrong-{got.id}")
    assert cache.entry(entry.id) is None and cache.entry(other.id) is not None
    assert [pair.a for pair in cache.book.pairs()] == [got.question]


def note_script(query_id: str) -> None:
    import runtime
    from ui import cache_view

    found = runtime.get().traces.get(query_id)
    assert found is not None
    cache_view.hit_note(found, "-test")


def test_the_note_on_an_answer_tells_why_and_takes_a_report(cache: SemanticCache, rt: runtime.Runtime) -> None:
    entry = keep(cache)
    got = store_hit(rt, entry, "What does <u>Art. 72</u> say?")
    app = AppTest.from_function(note_script, args=(got.id,), default_timeout=60).run()
    found = html(app)
    assert not app.exception and "From the cache:" in found and f"/cache?entry={quote(entry.id)}" in found
    assert "Reported" in press(app, "wrong-test")
    assert cache.entry(entry.id) is None and len(cache.book.pairs()) == 1


def test_an_answer_of_its_own_has_no_note(cache: SemanticCache, rt: runtime.Runtime) -> None:
    missed = answer("Fresh?", stages=(Stage("cache", 0.01, 2, hit=False, reason="new"),))
    rt.traces.save(missed)
    rt.traces.flush()
    app = AppTest.from_function(note_script, args=(missed.id,), default_timeout=60).run()
    assert not app.exception and not html(app) and not app.button


# 3) the tester


def test_the_tester_tells_every_guard_and_the_verdict(app: AppTest, cache: SemanticCache) -> None:
    found = shown(app, "Tester", asked="What does Art. 72 <b>say</b>?", cached="What does Art. 75 <b>say</b>?")
    assert "No hit" in found and "Art 72 is asked, the cached question has Art 75" in found and "<b>say" not in found
    for guard in ("language", "article", "number", "unit", "date", "negation", "direction", "name", "cosine", "agreement"):
        assert f"<td>{guard}</td>" in found
    assert "at least 0.64 is wanted" in found
    other = AppTest.from_string(SCRIPT, default_timeout=60)
    assert "A hit" in shown(other, "Tester", asked="What does Art. 72 say?", cached="What does Article 72 say?")


def test_the_form_puts_both_questions_into_the_address_and_an_example_does_too(app: AppTest, cache: SemanticCache) -> None:
    shown(app, "Tester")
    app.text_input(key="asked-").set_value("One?")
    app.text_input(key="cached-").set_value("Two?")
    submit(app, "Compare")
    assert (app.query_params["asked"], app.query_params["cached"]) == ("One?", "Two?")
    example = cache_cached.examples()[0]
    press(app, f"example-{example.id}")
    assert app.query_params["asked"] == example.a and "Read in the first" in html(app)


def test_a_judgement_is_kept_and_counts_at_once(app: AppTest, cache: SemanticCache) -> None:
    asked, cached = "What does Art. 72 say?", "What does Article 72 say?"
    assert "Nobody has judged a pair yet." in shown(app, "Tester", asked=asked, cached=cached)
    assert "The pair is kept." in press(app, "judge-different")
    assert [(pair.label, pair.language) for pair in cache.book.pairs()] == [("different", "en")]
    assert "somebody reported" in html(app) and "1 judged pair" in html(app)
    press(app, "judge-same")
    assert [pair.label for pair in cache.book.pairs()] == ["same"] and "A hit" in html(app)


class Broken:
    """A fake embedder that is away."""

    @property
    def info(self) -> object:
        raise ConnectionFailed("refused", address="http://127.0.0.1:9", next_step="Start the server.")

    def embed(self, *_: object, **__: object) -> object:
        return self.info


def test_an_embedder_that_is_away_leaves_the_guards(
    app: AppTest, cache: SemanticCache, rt: runtime.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rt, "models", replace(rt.models, embedder=Broken()))
    found = shown(app, "Tester", asked="What does Art. 72 say?", cached="What does Art. 75 say?")
    assert "Embedding failed" in found and "Start the server." in found
    assert "Art 72 is asked, the cached question has Art 75" in found


# 4) the calibration


@pytest.fixture
def few_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = cache_calibration.PAIRS.read_text(encoding="utf-8").splitlines()[:140]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(cache_calibration, "PAIRS", path)


def test_a_calibration_takes_force_by_the_second_click_only(
    app: AppTest, cache: SemanticCache, rt: runtime.Runtime, few_pairs: None
) -> None:
    name = rt.models.embedder.info.identity
    before = cache.thresholds(name)
    cache.book.add_pair("Is A on?", "Is B on?", "different", "en")
    shown(app, "Calibration")
    submit(app, "Calibrate")
    job = rt.jobs.get(str(app.query_params["job"]))
    assert job is not None and job.wait(120)
    app.run()
    found = html(app)
    assert not app.exception and "Found in" in found and "held out" in found and "In force now: cosine 0.64" in found
    assert cache.thresholds(name) == before and cache.book.calibrated_at_unix(name) is None
    assert "In force: cosine" in press(app, "in-force")
    now = cache.thresholds(name)
    assert now == job.result.calibration.thresholds and now.measured["pairs"] == 141
    assert "These thresholds are in force." in html(app) and "calibrated here" in html(app)


def test_a_calibration_without_a_solution_says_so(
    app: AppTest, cache: SemanticCache, rt: runtime.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"a": "a?", "b": "b?", "label": "same"}))
    monkeypatch.setattr(cache_calibration, "PAIRS", path)
    shown(app, "Calibration")
    submit(app, "Calibrate")
    job = rt.jobs.get(str(app.query_params["job"]))
    assert job is not None and job.wait(120)
    app.run()
    assert "too few families" in html(app) and "The calibration failed" in html(app)


def test_a_calibration_of_another_process_is_told(app: AppTest, cache: SemanticCache) -> None:
    assert "no longer known here" in shown(app, "Calibration", job="gone")


# 5) the export


def test_the_export_counts_and_previews_and_says_what_is_missing(app: AppTest, cache: SemanticCache) -> None:
    entry = keep(cache, "<i>Italic</i>?")
    keep(cache, "Another?")
    assert "No answer is marked good yet." in shown(app, "Export")
    cache.mark_good(entry.id)
    app.run()
    assert "Chat: 1 line<" in html(app) and "Embedder: 1 line<" in html(app)
    assert [json.loads(item.value[: item.value.rindex("}") + 1])["query"] for item in app.code if '"query"' in item.value] == [
        "<i>Italic</i>?"
    ]
    app.session_state["export"] = "All answers"
    app.run()
    assert "Chat: 2 lines" in html(app)


# 6) what is off or away


def test_a_cache_that_is_off_says_why_and_what_to_do(app: AppTest, rt: runtime.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rt._answer_cache, "cache", None)
    monkeypatch.setattr(rt._answer_cache, "off", "switched off in the settings (cache.enabled)")
    found = shown(app)
    assert "switched off in the settings" in found and "dashboard.toml" in found


def test_redis_that_is_away_is_told_without_its_password_and_the_page_stays(
    app: AppTest, rt: runtime.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    away = open_cache(tmp_path, f"redis://:hunter2@127.0.0.1:{port}/0", CacheLimits(dense=0.9))
    monkeypatch.setattr(rt._answer_cache, "cache", away)
    try:
        for view in ("Entries", "Misses", "Tester", "Export"):
            found = shown(app, view)
            assert f"redis://127.0.0.1:{port}/0" in found and "away" in found and "hunter2" not in found
        assert "from the settings" in found
        assert "cannot be read" in shown(app, entry="0" * 40)
    finally:
        away.close()


def test_an_embedder_without_thresholds_sends_to_the_calibration(
    app: AppTest, cache: SemanticCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(cache), "thresholds", lambda *_: None)
    assert "none for this embedder: open the view Calibration" in shown(app)
    assert "Calibrate thresholds for this embedder" in shown(app, "Tester", asked="One thing?", cached="One thing?")
