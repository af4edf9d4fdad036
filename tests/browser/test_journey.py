"""What a user does, in real Chromium: ask, read, reopen, list, add and remove documents, in two languages and two themes."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import settled

QUESTION = "Why is the first rerank after a restart slow?"


# Opened below its root, Streamlit first looks for its server below that path and is told 404
PROBE = re.compile(r"/\w+/_stcore/")


def ask(page: Page, app: str, question: str) -> None:
    page.goto(app)
    settled(page)
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_url(re.compile(r"[?&]id=[0-9a-f]{32}"))
    settled(page)


def test_a_sample_question_is_answered_with_every_stage(page: Page, app: str):
    ask(page, f"{app}/?caches=bypass", QUESTION)
    main = page.get_by_test_id("stMain")
    expect(main.get_by_text("Answered", exact=True)).to_be_visible()
    expect(main).to_contain_text("8 passages kept of 40 candidates")
    for stage in ("cache", "hyde", "embed", "search", "rerank", "generate"):
        expect(main.get_by_text(stage, exact=True).first).to_be_visible()
    expect(main).to_contain_text("first-rerank-slow.md")
    assert not page.get_by_test_id("stException").count()


def test_the_url_of_an_answer_opens_it_again_elsewhere(page: Page, app: str, browser):
    ask(page, app, QUESTION)
    other = browser.new_page()
    other.goto(page.url)
    settled(other)
    expect(other.get_by_test_id("stMain")).to_contain_text("8 passages kept")
    other.close()


def test_a_stored_query_is_listed_and_has_a_deep_link_of_its_own(page: Page, app: str):
    ask(page, app, QUESTION)
    key = re.search(r"id=([0-9a-f]{32})", page.url).group(1)
    page.goto(f"{app}/queries")
    settled(page)
    page.wait_for_selector("[data-testid='stDataFrame'] canvas, [data-testid='stMain'] table")
    page.goto(f"{app}/query?id={key}")
    settled(page)
    expect(page.get_by_test_id("stMain")).to_contain_text(QUESTION)
    expect(page.get_by_test_id("stSidebar")).to_contain_text("Ask")  # the frame ran on a first deep link


def test_an_unknown_query_says_what_to_do_next(page: Page, app: str):
    page.goto(f"{app}/query?id=" + "0" * 32)
    settled(page)
    expect(page.get_by_test_id("stMain")).to_contain_text("There is no query with the id")


def test_hebrew_reads_right_to_left(page: Page, app: str):
    ask(page, app, "למה השאילתה הראשונה איטית?")
    paragraph = page.locator(".st-key-answer p, [class*='st-key-answer'] p").first
    expect(paragraph).to_be_visible()
    assert re.search(r"[\u0590-\u05ff]", paragraph.inner_text())
    assert paragraph.evaluate("node => getComputedStyle(node).unicodeBidi") == "plaintext"


def test_a_document_goes_in_is_cited_and_goes_out_again(page: Page, app: str, tmp_path):
    document = tmp_path / "kettle.md"
    document.write_text("# Kettle manual\n\nThe brass kettle whistles at 97.5 degrees in the tower room.\n", encoding="utf-8")
    page.goto(f"{app}/knowledge")
    settled(page)
    page.locator("input[type=file]").set_input_files(str(document))
    page.get_by_role("button", name="Add to the collection").click()
    expect(page.get_by_test_id("stMain")).to_contain_text(re.compile("1 added|added 1|1 file.*added", re.I))
    ask(page, app, "At how many degrees does the brass kettle whistle?")
    expect(page.get_by_test_id("stMain")).to_contain_text("97.5")
    expect(page.get_by_test_id("stMain")).to_contain_text("kettle.md")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/queries", "/knowledge", "/models"])
def test_every_page_loads_clean_on_a_phone_in_both_themes(browser, app: str, scheme: str, path: str):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text) if message.type == "error" and not PROBE.search(message.location["url"]) else None
        ),
    )
    outside: list[str] = []
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((app, "ws://127.0.0.1", "data:", "blob:")) else outside.append(request.url)
        ),
    )
    page.goto(f"{app}{path}")
    settled(page)
    assert page.get_by_test_id("stException").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 391, "nothing scrolls sideways"
    assert problems == []
    assert outside == [], "nothing loads from another host"
    context.close()


def test_the_api_answers_beside_the_pages(app: str):
    import urllib.request

    request = urllib.request.Request(
        f"{app}/api/v1/ask", json.dumps({"query": QUESTION}).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=90) as response:
        assert json.load(response)["outcome"] == "answered"
