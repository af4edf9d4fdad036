"""The page Access on a real runtime, through AppTest: tokens made and revoked, the log shown, and who may not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import runtime
from access.scopes import Identity
from access.tokens import TokenStore
from settings import reference
from ui import viewer
from ui.cached import the_runtime

PAGE = str(Path(__file__).resolve().parents[2] / "pages" / "access.py")
pytestmark = pytest.mark.xdist_group("pages")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty.toml").write_text("[ingest]\nsample_corpus = false\n[models]\npreload = false\n")
    monkeypatch.setenv("RAGDECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RAGDECK_CONFIG", str(tmp_path / "empty.toml"))
    runtime.shut_down()
    the_runtime.clear()
    yield tmp_path
    runtime.shut_down()
    the_runtime.clear()


@pytest.fixture
def page(folder: Path) -> AppTest:
    return AppTest.from_file(PAGE, default_timeout=60)


def text(page: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in page.get("html"))


def test_a_token_is_made_shown_once_and_revoked(page: AppTest, folder: Path) -> None:
    page.run()
    assert not page.exception and "No program has a token yet" in text(page) and "You are local user" in text(page)
    page.text_input[0].input("nightly <script>alert(1)</script>")
    page.button[0].click().run()
    assert not page.exception
    secret = re.search(r"rdk_[0-9a-f]{12}_[\w-]{43}", text(page))
    assert secret is not None and "<script>" not in text(page)
    store = TokenStore(folder / "data" / "access.db")
    who = store.identify(secret[0])
    assert who is not None and who.scopes == {"read"}
    page.run()
    assert secret[0] not in text(page) and "active" in text(page)
    page.button(key="really-revoke").click().run()
    assert not page.exception and store.identify(secret[0]) is None and "is revoked" in text(page)
    assert text(page).count("revoke token") == 1 and "create token (read)" in text(page)


def test_the_log_is_filtered(page: AppTest, folder: Path) -> None:
    page.run()
    page.text_input[0].input("one")
    page.button[0].click().run()
    page.text_input(key="text").input("nothing like it").run()
    assert not page.exception and "No line matches" in text(page)


def test_who_may_not_operate_sees_neither(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Identity("bo", "proxy", frozenset({"read"}), groups=("<b>team</b>",))
    monkeypatch.setattr(viewer, "_ways", lambda running: type("Ways", (), {"again": lambda self, headers: reader})())
    page.run()
    assert not page.exception and "You are bo" in text(page) and "lacks the scope" in text(page)
    assert not page.button and "API tokens" not in text(page) and "<b>team" not in text(page)
