"""Every page in real Chromium with hostile texts in everything that it shows: they stand there as text, and nothing else happens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext

from tests.security.looking import shows, signed_in, watched
from tests.security.payloads import FAMILIES, NAME, PAYLOAD, series
from tests.security.world import EXPERIMENT, ROOT, World, eventually

PAGES = ["ask", "queries", "latency", "compare", "experiments", "evaluation", "cache", "knowledge", "overview", "alerts"]
PAGES += ["machines", "machine", "services", "models", "capacity", "query", "readiness", "access"]
TELLING = {"ask", "queries", "experiments", "evaluation", "cache", "overview", "alerts", "machines", "services"}


def test_every_page_of_the_frame_is_looked_at() -> None:
    """A new page must be put into PAGES (and shown here with hostile texts)."""
    frame = (ROOT / "ui" / "frame.py").read_text()
    assert set(re.findall(r'page\("(\w+)"\)', frame)) - {path.stem for path in Path(ROOT / "pages").glob("*.py")} == set()
    assert set(re.findall(r'st\.Page\(page\("(\w+)"\)', frame)) == set(PAGES)


@pytest.fixture(scope="module")
def context(world: World, browser: Browser) -> Iterator[BrowserContext]:
    # without a rerank nothing is degraded (nor with a short question), so the cache keeps it, once no document is being written any more
    eventually(lambda: world.ask(f"the boiler {NAME}", rerank=False)["stages"][0].get("hit"), lambda: "the cache keeps nothing")
    world.ask_refused(500)
    opened = signed_in(browser, world.url, world.token)
    yield opened
    opened.close()


def path_of(name: str) -> str:
    return "/" if name == "ask" else f"/{name}"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_hostile_texts_as_texts(world: World, context: BrowserContext, name: str) -> None:
    with watched(context, world.url) as seen:
        text = seen.visit(path_of(name))
        assert seen.harm() == []
        assert seen.page.get_by_test_id("stException").count() == 0
    assert shows(text) or name not in TELLING, "the page is to show the planted text, or this test shows nothing"


def test_details_show_hostile_texts_as_texts(world: World, context: BrowserContext) -> None:
    rows = world.call("GET", "/api/v1/queries").json()["queries"]
    newest, oldest = rows[0]["id"], rows[-1]["id"]
    paths = [f"/query?id={newest}", f"/query?id={oldest}", f"/compare?a={newest}&b={oldest}", f"/experiments?id={EXPERIMENT}"]
    paths += [f"/machine?name={quote(world.machine)}", f"/services?name={quote(world.service)}"]
    for path in paths:
        with watched(context, world.url) as seen:
            text = seen.visit(path)
            assert seen.harm() == [], path
            assert shows(text), path


PARAMETERS = (
    "id",
    "a",
    "b",
    "name",
    "view",
    "open",
    "range",
    "sort",
    "text",
    "set",
    "run",
    "job",
    "file",
    "collection",
    "option",
)


def test_hostile_query_parameters_do_nothing(world: World, context: BrowserContext) -> None:
    """200 of the thousand texts, each in the address of a page, and every page with fifteen of them."""
    parameters_do_nothing(world, context, [text for family in FAMILIES for text in series(family, 50)])


def parameters_do_nothing(world: World, context: BrowserContext, texts: list[str]) -> None:
    """Page by page, round after round, until each text had its turn; at least one round."""
    width = len(PARAMETERS)
    with watched(context, world.url) as seen:
        for number in range(max(len(PAGES), -(-len(texts) // width))):
            name = PAGES[number % len(PAGES)]
            values = [texts[(number * width + at) % len(texts)][:400].encode(errors="replace") for at in range(width)]
            seen.visit(
                f"{path_of(name)}?{'&'.join(f'{key}={quote(value)}' for key, value in zip(PARAMETERS, values, strict=True))}"
            )
            assert seen.harm() == [], (name, values)
            assert seen.page.get_by_test_id("stException").count() == 0, (name, values)


def test_the_machines_own_names_are_shown(world: World, context: BrowserContext) -> None:
    """GPU, container and process of the machine over SSH have hostile names; without them the pages above show less than they say."""
    with watched(context, world.url) as seen:
        text = seen.visit(f"/machine?name={quote(world.machine)}")
    assert text.count("data-planted") >= 3, "its own name, its GPU's and its container's"


def test_the_answer_is_text_with_its_structure(world: World, context: BrowserContext) -> None:
    key = world.ask(f"boiler structure {PAYLOAD}")["id"]
    with watched(context, world.url) as seen:
        seen.visit(f"/query?id={key}")
        answer = seen.page.locator("[class*='st-key-answer']")
        assert answer.locator("h1").count() == 1, "what a model may do: headings, tables, code"
        assert PAYLOAD.replace("\n", " ")[:60] in answer.inner_text()
        assert answer.locator("img, script, svg image, iframe, a[href^='http']").count() == 0
