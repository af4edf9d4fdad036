"""The page Knowledge around ingestions: views, one ingestion by its address, pause, resume, retry, watched folders, files as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import runtime
from rag.ingest_ledger import FileRow, IngestJob
from rag.ingest_watch import WatchState
from settings import reference
from ui import ingest_view

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("knowledge") / "docs"
    folder.mkdir()
    (folder / "good.md").write_text("# Good\n\nThe valve opens at 4.2 bar.\n")
    (folder / "bad <b>.json").write_text('{"half')
    return folder


@pytest.fixture(scope="module")
def rt(docs: Path) -> Iterator[runtime.Runtime]:
    """The process's runtime in a fresh data folder that watches a folder which is not there."""
    config = docs.parent / "dashboard.toml"
    config.write_text(f"[ingest]\nsample_corpus = false\nwatch = [{json.dumps(str(docs.parent / 'not-there'))}]\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
            patch.delenv(name, raising=False)
        patch.setenv("RAGDECK_DATA", str(docs.parent / "data"))
        patch.setenv("RAGDECK_CONFIG", str(config))
        runtime.shut_down()
        running = runtime.get()
        assert running.submit_ingest([docs], label="<b>my</b> files").wait(150)
        yield running
        runtime.shut_down()


@pytest.fixture
def app(rt: runtime.Runtime) -> AppTest:
    return AppTest.from_file(str(ROOT / "ui" / "frame.py"), default_timeout=60)


def open_knowledge(app: AppTest, **query: str) -> str:
    app.run()
    for key, value in query.items():
        app.query_params[key] = value
    app.switch_page(str(ROOT / "pages" / "knowledge.py"))
    app.run()
    assert not app.exception
    return html(app)


def html(app: AppTest) -> str:
    return "".join(element.proto.body for element in app.get("html"))


def test_past_ingestions_are_listed_as_links_beside_the_watched_folders(app: AppTest, rt: runtime.Runtime) -> None:
    shown = open_knowledge(app, view="ingestion")
    job = rt.library.ingestions.all()[0]
    assert f"?view=ingestion&job={job.id}" in shown
    assert "&lt;b&gt;my&lt;/b&gt; files" in shown and "<b>my</b>" not in shown
    assert "1 ingestion, newest first" in shown and "2 of 2" in shown
    assert "not-there" in shown and "Watched folders" in shown


def test_an_ingestion_by_its_address_with_its_files_and_a_second_try(app: AppTest, rt: runtime.Runtime, docs: Path) -> None:
    job = rt.library.ingestions.all()[0]
    shown = open_knowledge(app, view="ingestion", job=job.id)
    assert "bad &lt;b&gt;.json" in shown and "broken JSON" in shown
    (docs / "bad <b>.json").write_text('{"whole": "by now"}')
    app.button(key="retry-ingest").click().run()
    assert rt.jobs.get(job.id).wait(120)
    app.run()
    assert not app.exception
    assert "1 added" in html(app)
    assert not [button for button in app.button if button.key == "retry-ingest"]


def test_a_paused_one_is_resumed_on_the_page(app: AppTest, rt: runtime.Runtime, docs: Path) -> None:
    paused = IngestJob("p" * 32, "paused earlier", (docs,), NOW.timestamp(), state="paused")
    rt.library.record.put(paused)
    shown = open_knowledge(app, view="ingestion", job=paused.id)
    assert "paused earlier: paused" in shown
    app.button(key="resume-ingest").click().run()
    assert rt.jobs.get(paused.id).wait(120)
    app.run()
    assert rt.library.ingestions.get(paused.id).state == "finished"
    assert "2 unchanged" in html(app)


def test_an_address_of_nothing(app: AppTest) -> None:
    assert "is not known" in open_knowledge(app, view="ingestion", job="gone")


def test_a_view_of_nothing_is_the_first_one(app: AppTest) -> None:
    assert "Add documents" in open_knowledge(app, view="no such view")
    assert app.query_params["view"] in ("documents", ["documents"])


def test_files_as_csv_hold_no_formulas() -> None:
    error = {"message": "broken", "next_step": "Mend it."}
    rows = [FileRow("=cmd|' /C calc'!A0.txt", None, "failed", 0, ("@note",), error), FileRow("b.txt", "d", "added", 3)]
    table = list(csv.reader(io.StringIO(ingest_view.files_csv(rows).decode("utf-8-sig"))))
    assert table[0] == ["file", "outcome", "why_it_failed", "next", "passages", "notes"]
    assert not table[1][0].startswith("=") and not table[1][5].startswith("@")
    assert table[1][2:4] == ["broken", "Mend it."]
    assert table[2] == ["b.txt", "added", "", "", "3", ""]


def test_speed_says_share_and_what_limits() -> None:
    event = {
        "tokens_per_second": 6230.0,
        "limit_share": 0.87,
        "limited_by": "embedding",
        "reading_seconds": 1.0,
        "embedding_seconds": 4.49,
        "writing_seconds": 0.0,
    }
    assert "6,230 tokens/s, 87 % of what the embedder can" in ingest_view.speed_html(event)
    assert "limited by embedding (reading 1.00 s, embedding 4.49 s, writing 0 ms)" in ingest_view.speed_html(event)
    assert "not known yet" in ingest_view.speed_html({**event, "limit_share": None})
    assert ingest_view.speed_html({**event, "tokens_per_second": 0.0}) == ""


def test_a_watched_folder_with_markup_in_its_name() -> None:
    state = WatchState(Path("/x/<script>"), NOW.timestamp(), 3, 1, 2, "j" * 32, "<b>away</b>")
    shown = ingest_view.watched([state, WatchState(Path("/y"))], 10.0, NOW, UTC)
    assert "<script>" not in shown and "<b>" not in shown
    assert "1 file still changing" in shown and "2 documents removed" in shown and "not looked at yet" in shown
