"""The page Cache in real Chromium: a question asked again is a hit, its answer is opened, judged and deleted, a tester link opens."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import settled

QUESTION = "Why is the first rerank after a restart slow?"


def ask(page: Page, app: str, question: str) -> None:
    page.goto(app)
    settled(page)
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_url(re.compile(r"[?&]id=[0-9a-f]{32}"))
    settled(page)


def test_a_question_asked_again_is_a_hit_whose_answer_can_be_curated_and_deleted(page: Page, app: str):
    for _ in range(2):
        ask(page, app, QUESTION)
    page.goto(f"{app}/cache?range=24+h")
    settled(page)
    main = page.get_by_test_id("stMain")
    expect(main).to_contain_text("Hit rate")
    expect(main).to_contain_text("1 equal")
    main.get_by_role("link", name=QUESTION).first.click()
    page.wait_for_url(re.compile(r"[?&]entry=[0-9a-f]{40}"))
    settled(page)
    expect(main).to_contain_text("unchanged since")
    page.get_by_role("button", name="Mark good").click()
    expect(main).to_contain_text("it goes into the export")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete it").click()
    expect(main).to_contain_text("The answer is deleted.")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.wait_for_url(lambda url: "entry=" not in url)
    assert not page.get_by_test_id("stException").count()


def test_a_link_to_the_tester_opens_with_its_verdict_and_fits_a_phone(page: Page, app: str):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{app}/cache?asked=What+does+Art.+72+say%3F&cached=What+does+Art.+75+say%3F")
    settled(page)
    main = page.get_by_test_id("stMain")
    expect(main).to_contain_text("Art 72 is asked, the cached question has Art 75")
    expect(page.get_by_label("Asked", exact=True)).to_have_value("What does Art. 72 say?")
    assert main.evaluate("node => node.scrollWidth <= node.clientWidth + 1")
    assert not page.get_by_test_id("stException").count()
