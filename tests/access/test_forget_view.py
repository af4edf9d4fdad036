"""The delete buttons, on a real store: what goes, who may, and the line in the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import runtime
from access.scopes import Identity
from settings import reference
from tests.rag.cache_samples import answer
from ui import viewer
from ui.cached import the_runtime

pytestmark = pytest.mark.xdist_group("pages")

SCRIPT = """
from rag.trace_rows import QueryFilter
from ui import forget_view
forget_view.one("a1")
forget_view.many(QueryFilter(text="second"), 2)
"""


@pytest.fixture
def rt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[runtime.Runtime]:
    for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "d.toml").write_text("[ingest]\nsample_corpus = false\n[models]\npreload = false\n")
    monkeypatch.setenv("RAGDECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RAGDECK_CONFIG", str(tmp_path / "d.toml"))
    runtime.shut_down()
    the_runtime.clear()
    running = runtime.get()
    for key, question in (("a1", "the first"), ("a2", "the second"), ("a3", "a second one"), ("a4", "another")):
        running.traces.save(answer(question, id=key))
    assert running.traces.flush()
    yield running
    runtime.shut_down()
    the_runtime.clear()


def test_one_and_many_go(rt: runtime.Runtime) -> None:
    page = AppTest.from_string(SCRIPT, default_timeout=60).run()
    page.button(key="really-forget-a1").click().run()
    assert not page.exception and [row.id for row in rt.traces.search(sort="id", descending=False)] == ["a2", "a3", "a4"]
    page.button(key="really-forget-many").click().run()
    assert not page.exception and [row.id for row in rt.traces.search()] == ["a4"]
    told = [(each.what, each.target, each.outcome) for each in rt.deployment.audit.read()]
    assert told == [("delete stored queries", "2 queries", "done"), ("delete a stored query", "a1", "done")]


def test_who_may_not_deletes_nothing(rt: runtime.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Identity("bo", "proxy", frozenset({"read", "ask"}))
    monkeypatch.setattr(viewer, "_ways", lambda running: type("Ways", (), {"again": lambda self, headers: reader})())
    page = AppTest.from_string(SCRIPT, default_timeout=60).run()
    page.button(key="really-forget-a1").click().run()
    page.button(key="really-forget-many").click().run()
    assert rt.traces.count() == 4 and not page.exception
    assert [each.outcome for each in rt.deployment.audit.read()] == ["refused", "refused"]
