"""Every page in real Chromium with hostile texts in everything that it shows: they stand there as text, and nothing else happens.

And every secret is planted: what a page holds, what its WebSocket brought and the files that it offers are searched for them at
the same visit, since loading a page is what takes the time here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext

from tests.security.canaries import Search
from tests.security.hostile_data import EVALUATED, EXPERIMENTS, SPANS
from tests.security.looking import shows, signed_in, watched
from tests.security.payloads import FAMILIES, NAME, PAYLOAD, series
from tests.security.world import ROOT, SECRETS, World, eventually

SEARCH = Search(SECRETS)
PAGES = ["ask", "queries", "latency", "compare", "experiments", "evaluation", "cache", "knowledge", "overview", "alerts"]
PAGES += ["machines", "machine", "services", "models", "capacity", "query", "readiness", "access"]
TELLING = {"ask", "queries", "experiments", "evaluation", "cache", "overview", "alerts", "machines", "services"}


def test_every_page_of_the_frame_is_looked_at() -> None:
    """A new page must be put into PAGES (and shown here with hostile texts)."""
    frame = (ROOT / "ui" / "frame.py").read_text()
    assert set(re.findall(r'page\("(\w+)"\)', frame)) - {path.stem for path in Path(ROOT / "pages").glob("*.py")} == set()
    assert set(re.findall(r'st\.Page\(page\("(\w+)"\)', frame)) == set(PAGES)


@pytest.fixture(scope="module")
def context(used: World, browser: Browser) -> Iterator[BrowserContext]:
    # without a rerank nothing is degraded (nor with a short question), so the cache keeps it, once no document is being written any more
    eventually(lambda: used.ask(f"the boiler {NAME}", rerank=False)["stages"][0].get("hit"), lambda: "the cache keeps nothing")
    used.sends_spans()
    opened = signed_in(browser, used.url, used.token)
    yield opened
    opened.close()


def path_of(name: str) -> str:
    return "/" if name == "ask" else f"/{name}"


class Looked(NamedTuple):
    """The text of a page's main part, the addresses that it links to, and the names of the files that it offers."""

    text: str
    links: tuple[str, ...]
    files: tuple[str, ...]


def looked_at(world: World, context: BrowserContext, path: str) -> Looked:
    with watched(context, world.url) as seen:
        text = seen.visit(path)
        links = seen.links()
        files = seen.downloads()
        assert seen.harm() == [], path
        assert seen.beyond() == [0, 0], path
        assert seen.page.get_by_test_id("stException").count() == 0, path
        assert seen.frames, path
        given = {path: b"\n".join([seen.page.content().encode(), *seen.frames]), **dict(files)}
    assert {place: found for place, data in given.items() if (found := SEARCH.found(data))} == {}
    return Looked(text, links, tuple(name for name, _ in files))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_hostile_texts_as_texts_and_no_secret(world: World, context: BrowserContext, name: str) -> None:
    text = looked_at(world, context, path_of(name)).text
    assert shows(text) or name not in TELLING, "the page is to show the planted text, or this test shows nothing"


def test_details_show_hostile_texts_as_texts_and_no_secret(world: World, context: BrowserContext) -> None:
    rows = world.call("GET", "/api/v1/queries?limit=1000").json()["queries"]
    failed, oldest = next(row["id"] for row in rows if row["outcome"] == "failed"), rows[-1]["id"]
    paths = [f"/query?id={failed}", f"/query?id={oldest}", f"/compare?a={failed}&b={oldest}"]
    paths += [f"/services?name={quote(name)}" for name in (world.service, "models")]
    files = []
    for path in paths:
        looked = looked_at(world, context, path)
        assert shows(looked.text), path
        files += looked.files
    assert {Path(name).suffix for name in files} >= {".json", ".csv", ".html", ".md"}, files


VIEWS = {
    "/knowledge": ("view=ingestion", "view=inspect&text=boiler", "view=inspect&question=boiler", "view=store"),
    "/cache": ("view=Misses", "view=Tester", "view=Calibration"),
    "/experiments": ("kind=replay", "kind=components"),
    "/evaluation": ("new=upload",),
}


@pytest.mark.parametrize("page", VIEWS)
def test_views_show_hostile_texts_as_texts_and_no_secret(world: World, context: BrowserContext, page: str) -> None:
    """What a page shows only when it is asked for: names of files that were read, passages, what an export would hold."""
    seen = {view: looked_at(world, context, f"{page}?{view}") for view in VIEWS[page]}
    if page == "/knowledge":
        near, runs = seen["view=inspect&text=boiler"], seen["view=ingestion"].links
        assert shows(near.text) and shows(seen["view=inspect&question=boiler"].text)
        document = next(link for link in near.links if "document=" in link)
        assert shows(looked_at(world, context, document).text)
        assert any(shows(looked_at(world, context, f"{page}{link}").text) for link in runs if "job=" in link), (
            "files of an ingestion"
        )
    if page == "/cache":
        export = looked_at(world, context, f"{page}?view=Export&export=All+answers")
        assert shows(export.text) and export.files
        entry = next(link for link in looked_at(world, context, page).links if "entry=" in link)
        assert shows(looked_at(world, context, entry).text)


@pytest.mark.parametrize("number", range(len(SPANS)))
def test_spans_of_others_are_shown_as_text(world: World, context: BrowserContext, number: int) -> None:
    """Their names, services, attributes, events, errors: everything at once, with control characters, and without end."""
    ids = world.of_others()
    assert len(ids) == len(SPANS)
    text = looked_at(world, context, f"/query?id={ids[number]}").text
    assert shows(text) or "WWWW" in text
    if number:
        looked_at(world, context, f"/compare?a={ids[number]}&b={ids[number - 1]}")


@pytest.mark.parametrize("key", EXPERIMENTS)
def test_experiments_results_are_shown_as_text(world: World, context: BrowserContext, key: str) -> None:
    looked_at(world, context, f"/experiments?id={key}")


def test_question_sets_and_their_runs_are_shown_as_text(world: World, context: BrowserContext) -> None:
    from rag.evaluation.evaluations import Evaluations

    known = Evaluations(world.data).sets.list()[0].id
    for path in (f"/evaluation?set={known}", f"/evaluation?run={EVALUATED}"):
        assert shows(looked_at(world, context, path).text), path


def parameters() -> list[str]:
    """Every query parameter that the pages read, as their sources name them."""
    text = "\n".join(path.read_text() for folder in ("pages", "ui") for path in sorted((ROOT / folder).glob("*.py")))
    bound = re.findall(r'key="([\w-]+)"[^()]*?bind="query-params"|bind="query-params"[^()]*?key="([\w-]+)"', text)
    read = re.findall(r'query_params(?:\.get)?[\[(]"(\w+)"|"(\w+)" in st\.query_params', text)
    return sorted({name for pair in (*bound, *read) for name in pair if name} | {"a", "b"})


# A third of the parameters at once, so that one that is refused hides few others; the first round of each page, then the others
THIRDS = tuple(parameters()[at::3] for at in range(3))
ROUNDS = [(page, THIRDS[(number + turn) % 3]) for turn in range(3) for number, page in enumerate(PAGES)]


def test_the_pages_parameters_are_found() -> None:
    assert {"id", "name", "text", "set", "run", "job", "plan", "preset", "collection", "range"} <= set(parameters())


def test_hostile_query_parameters_do_nothing(world: World, context: BrowserContext) -> None:
    """Each page once, 200 of the thousand texts in a third of the parameters; everything is in `make test-long`."""
    parameters_do_nothing(world, context, [text for family in FAMILIES for text in series(family, 50)], ROUNDS[: len(PAGES)])


def parameters_do_nothing(world: World, context: BrowserContext, texts: list[str], rounds: list[tuple[str, list[str]]]) -> None:
    """Each text had its turn in the end."""
    assert sum(len(names) for _, names in rounds) >= len(texts)
    following = itertools.cycle(texts)
    with watched(context, world.url) as seen:
        for page, names in rounds:
            query = "&".join(f"{name}={quote(next(following)[:150].encode(errors='replace'))}" for name in names)
            seen.visit(f"{path_of(page)}?{query}")
            assert seen.harm() == [], (page, query)
            assert seen.page.get_by_test_id("stException").count() == 0, (page, query)


def test_the_machines_own_names_are_shown(world: World, context: BrowserContext) -> None:
    """GPU, container and process of the machine over SSH have hostile names; without them the pages above show less than they say."""

    def told() -> bool:
        """Its own name, its GPU's and its container's."""
        return looked_at(world, context, f"/machine?name={quote(world.machine)}").text.count("data-planted") >= 3

    assert eventually(told, lambda: "the machine's GPU and container were not read")


def test_the_answer_is_text_with_its_structure(world: World, context: BrowserContext) -> None:
    key = world.ask(f"boiler structure {PAYLOAD}")["id"]
    with watched(context, world.url) as seen:
        seen.visit(f"/query?id={key}")
        answer = seen.page.locator("[class*='st-key-answer']")
        assert answer.locator("h1").count() == 1, "what a model may do: headings, tables, code"
        assert PAYLOAD.replace("\n", " ")[:60] in answer.inner_text()
        assert answer.locator("img, script, svg image, iframe, a[href^='http']").count() == 0
