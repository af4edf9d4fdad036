"""The view Inspect on a real runtime with the starter models and a store of its own; its figures by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import runtime
from gpu_server.errors import ConnectionFailed
from rag.inspect.neighbours import Neighbour
from rag.inspect.reading import StoredPassage
from rag.inspect.stages import Search, StageRun
from rag.routes import Found
from rag.types import Options, Passage, PassageRow
from tests.fresh_runtime import only_settings_of
from ui import inspect_figures
from ui.inspect_figures import Measured
from ui.inspect_place import progress_html

pytestmark = pytest.mark.xdist_group("pages")
LONG = 120
SHARED = "This sentence ends one passage and begins the next."
HOSTILE = "<img src=x onerror=alert(1)> yeast & sugar"
HEBREW = "המודל נטען פעם אחת בלבד."


def view() -> None:
    from ui import inspect_view

    inspect_view.show()


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    folder = tmp_path_factory.mktemp("inspect")
    with only_settings_of(folder, "[ingest]\nsample_corpus = false\n"):
        running = runtime.get()
        fill(running)
        yield running


def fill(rt: runtime.Runtime) -> None:
    write(rt, "long", [f"Step {n} of the handbook." for n in range(LONG)])
    write(rt, "pair", [f"The first rerank after a restart is slow. {SHARED}", f"{SHARED} Warm it up at start."])
    write(rt, "hostile", [HOSTILE], title="<b>Bold</b>")
    for key in ("copy-one", "copy-two"):
        write(rt, key, ["An idle GPU full of weights is the normal case."], title="GPU")
    write(rt, "hebrew", [HEBREW], title="עברית")
    rt.store.flush(rt.library.collection())


def write(rt: runtime.Runtime, key: str, texts: list[str], title: str = "Title") -> None:
    rows = [PassageRow(f"{key}-{n}", key, "v", n, text, title, f"{key}.md", "Part", "en") for n, text in enumerate(texts)]
    vectors = rt.models.embedder.embed([row.indexed_text for row in rows]).dense
    rt.store.write_document(rt.library.collection(), rows, vectors, None, "2026-01-01T00:00:00Z")


def opened(**query: str) -> AppTest:
    app = AppTest.from_function(view, default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(item.proto.body) for item in app.get("html"))


# ------------------------------------------------------------------------------------------------------------ the views


def test_without_a_choice_it_says_what_to_do(rt: runtime.Runtime) -> None:
    app = opened()
    assert "Choose a document above" in html(app)
    assert len(app.selectbox(key="inspect-document").options) == 6
    app.selectbox(key="inspect-document").select("pair").run()
    assert not app.exception and app.query_params["document"] in ("pair", ["pair"])
    assert "Warm it up at start." in html(app)


def test_a_document_shows_its_passages_and_what_neighbours_share(rt: runtime.Runtime) -> None:
    shown = html(opened(document="pair"))
    assert f'title="the end of passage 1 too: {len(SHARED)} characters">{SHARED}</mark> Warm it up' in shown
    assert "rd-lengths" in shown and "Title\nPart</div>" in shown and 'id="stored-2"' in shown
    assert "passage=pair-1" in shown


def test_a_long_document_comes_in_pages_and_a_passage_opens_its_own(rt: runtime.Runtime) -> None:
    app = opened(document="long")
    assert html(app).count("<article") == 50 and f"passages 1–50 of {LONG}" in html(app)
    app.button[1].click().run()
    assert not app.exception and f"passages 51–100 of {LONG}" in html(app)
    third = html(opened(document="long", at="long-110"))
    assert third.count("<article") == LONG - 100 and 'id="stored-111" class="rd-at"' in third
    assert html(opened(document="long", page="9" * 40)).count("<article") == LONG - 100


def test_what_was_stored_is_text_on_the_page(rt: runtime.Runtime) -> None:
    for shown in (html(opened(document="hostile")), html(opened(text="yeast sugar")), html(opened(question="yeast & sugar"))):
        assert "<img" not in shown and "&lt;img src=x onerror=alert(1)&gt;" in shown
        assert "<b>Bold" not in shown and "&lt;b&gt;Bold&lt;/b&gt;" in shown


def test_links_that_lead_nowhere_are_told(rt: runtime.Runtime) -> None:
    assert "is not in this collection" in html(opened(document="nobody"))
    assert "this passage is not in the collection" in html(opened(passage="nobody"))
    assert "is not in the store" in html(opened(collection="nobody"))
    assert "no longer known here" in html(opened(subject="duplicates", scan="gone"))


def test_neighbours_of_a_text_mark_the_near_duplicates(rt: runtime.Runtime) -> None:
    app = opened(text="GPU\nPart\nAn idle GPU full of weights is the normal case.", near="0.9")
    shown = html(app)
    assert "2 near-duplicates (cosine at least 0.90)" in shown and "1.000" in shown
    app.segmented_control(key="inspect-order").select("words").run()
    assert not app.exception and app.query_params["order"] in ("words", ["words"])


def test_a_text_is_asked_for_through_the_form_and_kept_in_the_url(rt: runtime.Runtime) -> None:
    app = opened(subject="near")
    assert "Type a text above" in html(app)
    app.text_area[0].set_value("idle GPU")
    app.button[0].click().run()
    assert not app.exception and app.query_params["text"] in ("idle GPU", ["idle GPU"])
    assert "copy-one.md" in html(app)
    app.text_area[0].set_value("idle GPU " * 400)
    app.button[0].click().run()
    assert not app.exception and "text" not in app.query_params and "copy-one.md" in html(app)


@pytest.mark.parametrize("subject", ["near", "question"])
def test_a_paste_that_is_too_long_is_told_and_stays(rt: runtime.Runtime, subject: str) -> None:
    app = opened(subject=subject)
    app.text_area[0].set_value("yeast " * 4000)
    app.button[0].click().run()
    assert not app.exception and "has 24,000 characters; at most 20,000 are taken" in html(app)
    assert app.text_area[0].value == "yeast " * 4000 and not {"text", "question"} & set(app.query_params)


def test_a_stored_passage_has_neighbours_without_itself(rt: runtime.Runtime) -> None:
    shown = html(opened(passage="copy-one-0"))
    assert "Neighbours of this passage" in shown and "the same text" in shown and "copy-two.md" in shown


def test_the_scan_groups_duplicates_and_has_an_address(rt: runtime.Runtime) -> None:
    app = opened(subject="duplicates")
    app.button[0].click().run()
    assert not app.exception
    (job,) = rt.jobs.recent("duplicates")[:1]
    assert job.wait(120)
    shown = html(opened(subject="duplicates", scan=job.id))
    assert "copy-one.md" in shown and "copy-two.md" in shown and f"{LONG + 6} passages compared" in shown


def test_a_question_is_followed_through_the_stages(rt: runtime.Runtime) -> None:
    stored = rt.traces.count()
    app = opened(question="Why is the first rerank slow?", candidates="5", keep="1")
    shown = html(app)
    assert "1 of " in shown and "cut off by the fusion" in shown and "<mark>rerank</mark>" in shown
    assert "cut by rerank" in shown and len(app.get("echarts_chart")) == 1
    rt.traces.flush()
    assert rt.traces.count() == stored, "nothing is stored of it"
    app.selectbox(key="inspect-lost").select("rerank").run()
    assert not app.exception and html(app).count(">cut by rerank</span>") == 4


def test_the_same_question_is_not_asked_again_by_a_rerun(rt: runtime.Runtime) -> None:
    app = opened(question="Why is the first rerank slow?")
    before = len(rt.jobs.recent("inspect"))
    app.run()
    assert not app.exception and len(rt.jobs.recent("inspect")) == before


def test_the_expected_document_is_followed(rt: runtime.Runtime) -> None:
    question = "Why is the first rerank slow?"
    assert "The expected document was kept." in html(opened(question=question, expect="pair"))
    app = opened(question=question, expect="hebrew", candidates="2", keep="1")
    assert "The expected document was not found." in html(app) and "Looked for deeper" in html(app)
    assert "is not in this collection" in html(opened(question=question, expect="nobody"))


@pytest.mark.parametrize("candidates", ["0", "99999999999999999999", "x", "-1"])
def test_wrong_numbers_in_the_url_are_those_of_the_settings(rt: runtime.Runtime, candidates: str) -> None:
    assert "40 candidates a route" in html(opened(question="rerank", candidates=candidates))


def test_a_collection_of_another_embedder_is_searched_by_words_alone(rt: runtime.Runtime) -> None:
    info = replace(rt.models.embedder.info, identity="another-384-mean-00")
    name = rt.store.use(info)
    row = PassageRow("other-0", "other", "v", 0, "Bread rises by yeast.", "Bread", "bread.md")
    rt.store.write_document(name, [row], np.ones((1, 384), dtype=np.float32), None, "2026-01-01T00:00:00Z")
    rt.store.flush(name)
    try:
        assert "Bread rises by yeast." in html(opened(collection=name, document="other"))
        near = html(opened(collection=name, text="yeast"))
        assert "another embedder filled this collection" in near and "bread.md" in near
        assert "Another embedder filled this collection" in html(opened(collection=name, question="yeast"))
    finally:
        rt.store.drop(name)


def test_an_embedder_that_fails_is_a_note(rt: runtime.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        """Named a fake: an embedder whose server went away after it had said what it is."""

        info = rt.models.embedder.info

        def embed(self, *_, **__):
            raise ConnectionFailed("refused", address="http://127.0.0.1:9")

        def count_tokens(self, text: str) -> int:
            raise ConnectionFailed("refused", address="http://127.0.0.1:9")

    monkeypatch.setattr(rt, "models", replace(rt.models, embedder=Failing()))
    assert "Tokens are not known: the embedder failed: refused" in html(opened(document="pair"))
    assert "the embedder failed: refused" in html(opened(text="rerank"))
    assert "embed: refused" in html(opened(question="rerank"))


def test_a_store_that_is_away_is_a_note(rt: runtime.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(rt.store.client, "has_collection", away)
        shown = html(opened())
    assert "Looking into the store failed" in shown and "<strong>Next:</strong>" in shown


# -------------------------------------------------------------------------------------------------------------- figures


def passage(key: str, *, kept: bool = False, **ranks: int | None) -> Passage:
    scores = {route: None if rank is None else 1 / rank for route, rank in ranks.items()}
    return Passage(key, f"text of {key}", f"{key}.md", key, document_id=key, kept=kept, ranks=ranks, scores=scores)


def run_of(*passages: Passage) -> StageRun:
    search = Search("c", None, "q", 2, None, Found((), (), {"dense": {}, "sparse": {}}, 1))
    return StageRun("q", Options(candidates=2, keep=1), passages, search, True, None, ())


def test_rank_changes_are_against_the_stage_before() -> None:
    item = passage("a", dense=9, sparse=4, fused=6, rerank=1)
    run = run_of(item)
    assert "↓2" in inspect_figures.rank_cell(run, item, "fused") and "BM25 4, now 6" in inspect_figures.rank_cell(
        run, item, "fused"
    )
    assert "↑5" in inspect_figures.rank_cell(run, item, "rerank")
    same = passage("b", dense=2, sparse=None, fused=2, rerank=None)
    assert "=</span>" in inspect_figures.rank_cell(run, same, "fused")
    assert "did not find it" in inspect_figures.rank_cell(run, same, "sparse")
    assert "did not come so far" in inspect_figures.rank_cell(run, same, "rerank")


def test_the_chart_has_a_line_a_passage_and_tells_kept_ones() -> None:
    run = run_of(
        passage("kept", kept=True, dense=1, sparse=2, fused=1, rerank=1), passage("cut", dense=2, sparse=None, fused=2, rerank=2)
    )
    chart = inspect_figures.rank_chart(run, "cut", False)
    lines = {line["name"]: line for line in chart["series"]}
    assert lines["cut"]["data"] == [2, None, 2, 2] and lines["cut"]["lineStyle"]["type"] == "dashed"
    assert lines["kept"]["color"] != lines["cut"]["color"]
    json.dumps(chart)


def test_a_chart_of_a_thousand_passages_is_bounded_and_keeps_the_kept() -> None:
    many = [passage(f"p{n}", kept=n == 999, dense=n + 1, sparse=None, fused=n + 1, rerank=None) for n in range(1000)]
    names = [line["name"] for line in inspect_figures.rank_chart(run_of(*many), None, True)["series"]]
    assert len(names) == inspect_figures.MOST_LINES and "p999" in names


def test_addresses_survive_their_characters() -> None:
    address = inspect_figures.inspect_url(document="a&b=c #ד", at=None)
    assert parse_qs(urlsplit(address).query) == {"view": ["inspect"], "document": ["a&b=c #ד"]}


def test_jsonl_has_a_line_a_passage() -> None:
    one = StoredPassage("1", "line one\nline two", "T\nline one\nline two", "T", "t.md", "d", 0, None, "he")
    (line,) = inspect_figures.jsonl([one]).decode().splitlines()
    assert json.loads(line)["text"] == one.text and json.loads(line)["language"] == "he"


def test_unknown_tokens_are_not_zero_and_a_cut_is_told() -> None:
    stored = StoredPassage("1", "text", "Title\ntext", "Title", "t.md", "d", 0)
    assert inspect_figures.lengths([Measured(stored, None, None)], 220) == ""
    unknown = inspect_figures.stored_passages([Measured(stored, None, None)], None, "c", None, "the embedder is away", None)
    assert "the embedder is away" in unknown and "0 tokens" not in unknown
    cut = inspect_figures.stored_passages([Measured(stored, 250, 255)], None, "c", 256, "", None)
    assert "embedded up to token 256" in cut
    assert 'class="over"' in inspect_figures.lengths([Measured(stored, 250, 255)], 220)


def test_a_neighbour_without_a_score_says_why() -> None:
    item = Neighbour(passage("a", dense=None, sparse=1, fused=1), None, False)
    shown = inspect_figures.neighbours_table([item], "c", "COSINE", "the embedder failed", None)
    assert shown.count("the embedder failed") == 2 and "near-duplicate" not in shown


def test_progress_tells_part_or_stage() -> None:
    assert "read 5 of 10 passages" in progress_html([{"type": "progress", "part": "read", "done": 5, "total": 10}], 1.0)
    assert "running: embed" in progress_html([{"type": "stage_started", "stage": "embed"}], 1.0)
    assert "starting" in progress_html([], 1.0)
