"""Store care on the page Knowledge: what its HTML says, and the view on a real runtime through Streamlit's AppTest."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import runtime
from gpu_server.interfaces import ModelInfo
from jobs import Job
from rag.errors import RagError
from rag.store_care import handle
from rag.store_care.sizes import CollectionCare, Outgrown
from tests.fresh_runtime import only_settings_of
from ui import store_view

pytestmark = pytest.mark.xdist_group("pages")
ITEM = CollectionCare(
    "passages__x", 1200, 2**20, 384, "loaded", 1.0, "FLAT, finished", 7, 1_700_000_000.0, 1, True, False, None, None, True, {}
)


# 1) pure


def test_a_row_says_size_state_and_what_it_is_for():
    html = store_view.table_html([ITEM, replace(ITEM, name="cached_questions__x", active=False, load_state="not loaded")])
    for text in (
        "1,200",
        "1.00 MiB",
        "loaded",
        "FLAT, finished",
        "in use",
        "cached questions",
        "not loaded",
        ">384<",
        "collection=passages__x",
    ):
        assert text in html, text


def test_what_is_not_known_is_a_dash_with_its_reason():
    html = store_view.table_html([replace(ITEM, size_bytes=None, last_write_unix=None, unknown={"size_bytes": "not told"})])
    assert 'title="not told">–' in html and "0 B" not in html


def test_loading_shows_how_far_and_names_are_escaped():
    html = store_view.table_html([replace(ITEM, name="<b>x", load_state="loading", loaded_ratio=0.4, filling_from="<i>y")])
    assert "loading 40 %" in html and "&lt;b&gt;x" in html and "<b>x" not in html and "<i>y" not in html
    assert "not finished" in html


def test_the_warning_names_the_command():
    html = store_view.outgrown_html(Outgrown("critical", "Too <many> rows"))
    assert "python -m rag move --to" in html and "&lt;many&gt;" in html


def test_progress_is_one_line_with_rate_and_time_left():
    event = {
        "type": "store_progress",
        "doing": "embedding",
        "done": 50,
        "total": 200,
        "rows_per_second": 25.0,
        "seconds_left": 6.0,
    }
    html = store_view.progress_html("embedding again", [event])
    assert "50 of 200" in html and "25.0 passages/s" in html and "6.00 s left" in html and 'aria-valuenow="25"' in html
    assert "starting" in store_view.progress_html("backup", [])


def test_a_job_that_failed_says_what_to_do():
    job: Job[Any] = Job("store", "backup")

    def work(_: Job[Any]) -> Any:
        raise RagError("the disk is <full>", kind="internal", next_step="Free space.")
        yield {}

    job.run(work)
    html = store_view.ended_html(job)
    assert "the disk is &lt;full&gt;" in html and "Free space." in html


# 2) the view


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    folder = tmp_path_factory.mktemp("store-view")
    (folder / "a.md").write_text("# Pumps\n\nThe pump is slow when the filter is old.\n")
    with only_settings_of(folder):
        running = runtime.get()
        assert running.submit_ingest([folder / "a.md"]).wait(150)
        yield running


def script() -> None:
    from ui import store_view

    store_view.show()


@pytest.fixture
def app(rt: runtime.Runtime) -> AppTest:
    return AppTest.from_function(script, default_timeout=60)


def texts(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def press(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label.startswith(label)).click().run()
    assert not app.exception
    return app


def test_the_collections_are_listed_and_can_be_released_and_loaded(app: AppTest, rt: runtime.Runtime):
    app.run()
    assert not app.exception
    active = rt.library.collection()
    assert active in texts(app) and "in use" in texts(app)
    with pytest.raises(RagError, match="in use"):
        handle.drop(rt.store, active, active=active)
    press(app, "Release")
    assert "is released" in texts(app) and "not loaded" in texts(app)
    press(app, "Load")
    assert "is loaded" in texts(app)
    press(app, "Flush")
    assert "is flushed" in texts(app)


def test_a_collection_is_dropped_only_after_its_name_was_typed(app: AppTest, rt: runtime.Runtime):
    other = rt.store.use(ModelInfo("gone", "embedder", "gone-4", "cpu", "fp32", dimension=4))
    app.query_params["collection"] = other
    app.run()
    press(app, "Drop it")
    assert "nothing was deleted" in texts(app) and other in rt.store.client.list_collections()
    next(field for field in app.text_input if field.key == f"drop-typed-{other}").input(other)
    press(app, "Drop it")
    assert other not in rt.store.client.list_collections()


def test_embedding_again_runs_as_a_job_and_puts_the_new_collection_into_use(app: AppTest, rt: runtime.Runtime):
    before = rt.library.collection()
    app.run()
    press(app, "Embed again")
    job = rt.jobs.recent(store_view.KIND)[0]
    assert job.wait(120) and job.error is None
    assert job.id in app.query_params["storejob"]
    app.run()
    assert not app.exception
    assert rt.library.collection() == f"{before}__g2" and f"{before} is kept until you drop it" in texts(app)
    assert f"replaced by {before}__g2" in texts(app)


def test_a_backup_is_written_listed_and_offered(app: AppTest, rt: runtime.Runtime):
    app.run()
    assert "There is no backup yet" in texts(app)
    press(app, "Back up now")
    job = rt.jobs.recent(store_view.KIND)[0]
    assert job.wait(120) and job.error is None
    app.run()
    (path,) = (rt.settings.data_dir / "backups").glob("*.zip")
    assert zipfile.is_zipfile(path) and path.name in texts(app) and "rows of" in texts(app)
    assert "data/traces.db" in zipfile.ZipFile(path).namelist()


def test_an_address_of_a_job_that_is_gone_says_so(app: AppTest, rt: runtime.Runtime):
    app.query_params["storejob"] = "0" * 32
    app.run()
    assert not app.exception and "no longer known" in texts(app)
