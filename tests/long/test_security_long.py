"""`make test-long`: the whole series of what tests/security tries in part: every wrong token, path and hostile text, everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Browser, BrowserContext

from tests.browser.conftest import browser as browser
from tests.security.looking import signed_in, watched
from tests.security.test_bodies import PATHS, refuses_a_gigabyte
from tests.security.test_inputs import TEXTS, api_stands
from tests.security.test_matrix import all_refuse, guarded, socket_opens, wrong_tokens
from tests.security.test_matrix import tokens as tokens
from tests.security.test_pages import PAGES, ROUNDS, parameters_do_nothing, path_of
from tests.security.world import World, started

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
WRONG = ("none", "wrong", "long", "almost", "expired", "revoked", "twice", "nul")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with started(tmp_path_factory.mktemp("world")) as running:
        yield running


@pytest.fixture(scope="module")
def context(world: World, browser: Browser) -> Iterator[BrowserContext]:
    opened = signed_in(browser, world.url, world.token)
    yield opened
    opened.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("chunked", "token"), [(False, False), (True, True)], ids=["length, nobody", "chunked, token"])
def test_a_gigabyte_is_refused_everywhere(world: World, path: str, chunked: bool, token: bool) -> None:
    refuses_a_gigabyte(world, path, chunked, token)


def test_the_api_takes_or_refuses_all_thousand_texts(world: World) -> None:
    api_stands(world, TEXTS)


def test_all_thousand_texts_in_the_addresses_of_pages_do_nothing(world: World, context: BrowserContext) -> None:
    parameters_do_nothing(world, context, TEXTS, ROUNDS)


def test_a_question_of_each_text_is_shown_as_text(world: World, context: BrowserContext) -> None:
    """All of them asked, then looked at in every list, and the last ones by themselves."""
    questions = [text.encode("utf-8", "replace").decode()[:400] for text in TEXTS]

    def asked_of(question: str) -> int:
        return world.call("POST", "/api/v1/ask", json={"query": question, "rerank": False}).status_code

    with ThreadPoolExecutor(4) as threads:
        wrong = {
            question: status
            for question, status in zip(questions, threads.map(asked_of, questions), strict=True)
            if status not in (200, 400)
        }
    assert wrong == {}
    rows = world.call("GET", "/api/v1/queries?limit=1000").json()["queries"]
    asked = {row["question"] for row in rows}
    assert len(asked) > 700
    with watched(context, world.url) as seen:
        for path in [*(path_of(name) for name in PAGES), *(f"/query?id={row['id']}" for row in rows[::40])]:
            seen.visit(path)
            assert seen.harm() == [], path
            assert seen.page.get_by_test_id("stException").count() == 0, path


@pytest.mark.parametrize("kind", WRONG)
def test_every_route_refuses_every_wrong_token(world: World, tokens: dict[str, str], kind: str) -> None:
    wrong = wrong_tokens(tokens)
    assert set(wrong) == set(WRONG)
    all_refuse(world, guarded(), wrong[kind])
    assert not socket_opens(world, wrong[kind])
