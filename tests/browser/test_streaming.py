"""A query while it runs, in real Chromium, against a real OpenAI-compatible server (a tiny model built on the spot)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import running_app, settled
from tests.llm.server import LlmServer


@pytest.fixture(scope="module")
def streaming_app(tmp_path_factory, llm_server: LlmServer) -> Iterator[str]:
    data = tmp_path_factory.mktemp("streaming")
    with running_app(data, VLLM_BASE_URL=llm_server.address, VLLM_MODEL=llm_server.model) as url:
        yield url


def send(page: Page, app: str, question: str) -> None:
    page.goto(f"{app}/?hyde=on")
    settled(page)
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def test_the_language_model_answers_and_hyde_is_shown(page: Page, streaming_app: str):
    send(page, streaming_app, "Why is the first rerank slow?")
    page.wait_for_url(re.compile(r"[?&]id=[0-9a-f]{32}"))
    settled(page)
    main = page.get_by_test_id("stMain")
    expect(main.get_by_text("Answered", exact=True)).to_be_visible()
    expect(main).to_contain_text("tok/s")
    main.get_by_text("Hypothetical passage that HyDE searched with").click()
    main.get_by_text("Prompt sent").click()
    expect(main).to_contain_text("numbered passages below")


def test_a_second_tab_sees_the_same_running_query_and_can_cancel_it(page: Page, streaming_app: str, browser):
    send(page, streaming_app, "say-long")
    page.wait_for_url(re.compile(r"[?&](job|id)="))
    other = browser.new_page()
    other.goto(page.url)
    settled(other)
    shown = other.get_by_test_id("stMain")
    expect(shown).to_contain_text("say-long")
    assert not other.get_by_test_id("stException").count()
    other.close()
