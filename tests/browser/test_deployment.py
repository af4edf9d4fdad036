"""The pages of the deployment in real Chromium: a real sweep of this machine, of one that refuses, and of a service that is away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import running_app, settled
from tests.browser.test_journey import PROBE

CONFIG = """
[[machines]]
name = "away"
address = "127.0.0.1:1"

[[services]]
name = "reranker"
kind = "rerank"
url = "http://127.0.0.1:1"
"""
PATHS = ("/overview", "/machines", "/machine?name=local", "/machine?name=away", "/services", "/services?name=reranker", "/alerts")


class Watching(NamedTuple):
    url: str
    data: Path


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watching]:
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "dashboard.toml").write_text(CONFIG)
    data = folder / "data"
    with running_app(data, RAGDECK_CONFIG=str(folder / "dashboard.toml")) as url:
        yield Watching(url, data)


def visit(page: Page, app: Watching, path: str):
    page.goto(f"{app.url}{path}")
    settled(page)
    return page.get_by_test_id("stMain")


def test_the_overview_says_what_needs_somebody(page: Page, app: Watching) -> None:
    main = visit(page, app, "/overview")
    expect(main).to_contain_text(re.compile(r"\d things need you"))
    for said in ("away cannot be read", "reranker", "local", "Nothing has been asked yet"):
        expect(main).to_contain_text(said)
    expect(page.get_by_test_id("stSidebar")).to_contain_text("Deployment")
    main.get_by_role("link", name="away cannot be read").click()
    page.wait_for_url("**/machine?name=away")
    expect(page.get_by_test_id("stMain")).to_contain_text("Host answers: no.")


# Frames are watched until the first row has changed three times; counted is when there was no table.
FLICKER = """() => new Promise(done => {
  const there = () => document.querySelector('.rd-machines')?.offsetHeight > 0;
  const row = () => document.querySelector('.rd-machines tbody tr')?.innerHTML;
  let before = row(), changes = 0, wrong = 0;
  const look = () => {
    if (!there()) wrong += 1;
    if (row() && row() !== before) { before = row(); changes += 1; }
    changes < 3 ? requestAnimationFrame(look) : done(wrong);
  };
  look();
})"""


def test_the_list_ticks_without_flicker(page: Page, app: Watching) -> None:
    visit(page, app, "/machines")
    expect(page.locator(".rd-machines tr", has_text="local")).to_contain_text("%")
    expect(page.locator(".rd-machines tr", has_text="away")).to_contain_text("cannot be read")
    assert page.evaluate(FLICKER) == 0


def test_one_machine_with_its_trends_and_a_tooltip(page: Page, app: Watching) -> None:
    main = visit(page, app, "/machine?name=local&range=10 min")
    for said in ("Memory:", "Disk space", "Top processes", "Until now"):
        expect(main).to_contain_text(said)
    chart = page.locator("[class*='st-key-trend-cpu']").first
    expect(chart.locator("canvas")).to_be_visible()
    expect(main).to_contain_text(re.compile(r"CPU busy .*highest"))
    chart.scroll_into_view_if_needed()
    place = chart.bounding_box()
    assert place is not None
    chart.hover(position={"x": place["width"] - 40, "y": 70})  # wherever the page that ticks has moved it by now
    expect(chart).to_contain_text(re.compile(r"CPU busy.*%", re.DOTALL))


def test_a_machine_that_is_away_is_tested_step_by_step_before_it_is_added(page: Page, app: Watching) -> None:
    main = visit(page, app, "/machines")
    main.get_by_text("Add a machine").click()
    main.get_by_label("Name", exact=True).fill("later")
    main.get_by_label("Address", exact=True).fill("127.0.0.1:1")
    main.get_by_role("button", name="Test the connection").click()
    expect(main).to_contain_text("later cannot be read yet")
    steps = main.locator(".rd-step")
    expect(steps).to_have_count(6)
    expect(steps.nth(5)).to_contain_text("not reached")
    main.get_by_role("button", name="Add later all the same").click()
    page.wait_for_url("**/machine?name=later")
    expect(page.get_by_test_id("stMain")).to_contain_text("Host answers: no.")
    assert "later" in (app.data / "edited.toml").read_text()


def test_a_service_is_probed_now(page: Page, app: Watching) -> None:
    main = visit(page, app, "/services?name=reranker")
    main.get_by_role("button", name="Probe now").click()
    expect(main).to_contain_text("Probe of reranker")
    expect(main).to_contain_text("Next: Check that the service runs")


def test_a_rule_is_switched_off_in_the_table_and_kept(page: Page, app: Watching) -> None:
    main = visit(page, app, "/alerts")
    save = main.get_by_role("button", name="Save")
    expect(save).to_be_disabled()
    box = main.get_by_test_id("stDataFrame").locator("canvas").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 25, box["y"] + 35 * 1.5)  # the checkbox of the first rule
    expect(save).to_be_enabled()
    save.click()
    expect(main).to_contain_text("1 of them off")
    assert "cpu-busy" in (app.data / "edited.toml").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
def test_every_page_loads_clean_on_a_phone_in_both_themes(browser: Browser, app: Watching, scheme: str, path: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    problems: list[str] = []
    outside: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda said: problems.append(said.text) if said.type == "error" and not PROBE.search(said.location["url"]) else None,
    )
    own = (app.url, "ws://127.0.0.1", "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else outside.append(request.url))
    visit(page, app, path)
    assert page.get_by_test_id("stException").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 391, "nothing scrolls sideways"
    assert problems == [] and outside == []
    context.close()
