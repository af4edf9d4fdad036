"""Pages, sockets and answers that are open when their viewer's access ends, in the real app and a real browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import ClientConnection, connect

from access.scopes import Scope
from access.tokens import TokenStore
from tests.llm.fakes import SILENCE, FakeServer, delta, events
from tests.test_app import CHROMIUM, PATIENCE, SETTINGS, App, start

SETTLED = "[data-testid='stApp'][data-test-connection-state='CONNECTED'][data-test-script-state='notRunning']"
PROXY_SECRET = "hunter2-proxy-secret"
SETUP = '[access]\noperate = ["group:admins"]\nread = ["group:staff"]\n[access.proxy]\nheader = "X-User"\ngroups_header = "X-Groups"\n'
SETUP += "[llm]\ntimeout_seconds = 280\n"  # the endless text lasts as long as any test


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Its language model begins a text and never ends it."""
    with (
        FakeServer([(events(delta(role="assistant", content="It begins")), SILENCE)]) as endless,
        start(
            tmp_path_factory.mktemp("ended"),
            "0.0.0.0",
            SETTINGS + SETUP,
            RAGDECK_PROXY_SECRET=PROXY_SECRET,
            VLLM_BASE_URL=f"{endless.address}/v1",
            VLLM_MODEL="fake",
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE * 1000)
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


def tokens(app: App) -> TokenStore:
    return TokenStore(app.config.parent / "data" / "access.db")


def given(app: App, *scopes: Scope) -> tuple[str, str]:
    """(the secret, the id) of a new token."""
    secret, token = tokens(app).create("somebody", list(scopes), created_by="test")
    return secret, token.id


def opened(browser: Browser, app: App, secret: str, path: str) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(app.url + path)
    page.get_by_label("Token of this server").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector(SETTLED)
    return page


# 1) in a browser


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/machines?view=x", "local"), ("/capacity", "Capacity"), ("/access", "API tokens"), ("/queries", "Queries")],
    ids=["live", "idle", "operator", "list"],
)
def test_an_open_page_is_replaced_when_its_token_is_revoked(app: App, browser: Browser, path: str, shown: str) -> None:
    secret, key = given(app, "read", "ask", "operate")
    page = opened(browser, app, secret, path)
    main = page.get_by_test_id("stMain")
    expect(main).to_contain_text(shown, timeout=PATIENCE * 1000)
    tokens(app).revoke(key)
    main.get_by_text("You are signed out.").wait_for()
    expect(main).not_to_contain_text(shown)
    link = main.get_by_role("link", name="Sign in again").get_attribute("href")
    assert link is not None and urlsplit(link).path == "/signin"
    assert parse_qs(urlsplit(link).query)["next"][0].startswith(path.partition("?")[0])
    assert not page.get_by_test_id("stException").count() and not page.get_by_test_id("stConnectionStatus").count()
    main.get_by_role("link", name="Sign in again").click()
    page.get_by_label("Token of this server").fill(given(app, "read")[0])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_test_id("stMain").get_by_role("heading", level=1)).to_be_visible(timeout=PATIENCE * 1000)
    assert urlsplit(page.url).path == path.partition("?")[0]
    page.context.close()


def test_an_answer_that_is_being_written_is_replaced_too(app: App, browser: Browser) -> None:
    secret, key = given(app, "read", "ask")
    page = opened(browser, app, secret, "/?hyde=on")
    page.get_by_label("Question").fill("why is the sky blue")
    page.get_by_role("button", name="Ask", exact=True).click()
    main = page.get_by_test_id("stMain")
    main.get_by_role("button", name="Cancel").wait_for()
    other = opened(browser, app, given(app, "read")[0], page.url.removeprefix(app.url))
    stop = other.get_by_test_id("stMain").get_by_role("button", name="Cancel")
    expect(stop).to_be_disabled(timeout=PATIENCE * 1000)  # it is somebody else's question
    tokens(app).revoke(key)
    main.get_by_text("You are signed out.").wait_for()
    expect(main).not_to_contain_text("why is the sky blue")
    expect(stop).to_be_visible()
    for each in (page, other):
        each.context.close()


def test_who_signs_out_in_one_tab_is_signed_out_in_the_other(app: App, browser: Browser) -> None:
    page = opened(browser, app, given(app, "read")[0], "/machines")
    tab = page.context.new_page()
    tab.goto(f"{app.url}/signout")
    page.get_by_test_id("stMain").get_by_text("You are signed out.").wait_for()
    page.context.close()


def test_what_the_proxy_says_of_somebody_later_counts_for_their_open_page(app: App, browser: Browser) -> None:
    said = {"X-User": "cy", "X-RagDeck-Proxy-Secret": PROXY_SECRET}
    context = browser.new_context(extra_http_headers={**said, "X-Groups": "staff"})
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    page.goto(f"{app.url}/capacity")
    page.wait_for_selector(SETTLED, timeout=PATIENCE * 1000)
    page.get_by_test_id("stMain").get_by_role("heading", name="Capacity").wait_for(timeout=PATIENCE * 1000)
    changed = {**said, "X-Groups": "none"}
    context.set_extra_http_headers(changed)
    ended, end = page.get_by_test_id("stMain").get_by_text("Your access has ended."), time.monotonic() + PATIENCE
    while not ended.count() and time.monotonic() < end:  # once may be too early: files that the page asked for before still come
        assert app.call("GET", "/api/v1/queries", headers=changed).status_code == 403
        page.wait_for_timeout(500)
    expect(page.get_by_test_id("stMain")).to_contain_text("You are cy")
    context.close()


# 2) at the WebSocket


class Line:
    """A page's WebSocket by hand."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    def say(self, message: BackMsg) -> None:
        self._socket.send(message.SerializeToString())

    def run(self) -> str:
        """The HTML of all that comes until a script has run to its end."""
        html, end = "", time.monotonic() + PATIENCE
        while time.monotonic() < end:
            message = ForwardMsg.FromString(self._socket.recv(timeout=PATIENCE, decode=False))
            html += message.delta.new_element.html.body
            if message.WhichOneof("type") == "script_finished":
                return html
        raise TimeoutError(html)


@contextmanager
def line(app: App, secret: str) -> Iterator[Line]:
    header = {"authorization": f"Bearer {secret}"}
    where = f"ws://127.0.0.1:{app.port}/_stcore/stream"
    with connect(where, additional_headers=header, subprotocols=["streamlit"], **LONG) as socket:  # type: ignore[list-item]
        yield Line(socket)


LONG: Any = {"proxy": None, "max_size": None, "open_timeout": PATIENCE}
SAID = [
    BackMsg(rerun_script=ClientState(fragment_id="f" * 32)),
    BackMsg(clear_cache=True),
    BackMsg(stop_script=True),
    BackMsg(load_git_info=True),
    BackMsg(rerun_script=ClientState(query_string="id=1")),
]


@pytest.mark.parametrize("said", SAID, ids=lambda each: each.WhichOneof("type"))
def test_whatever_is_said_after_the_end_shows_the_same_note(app: App, said: BackMsg) -> None:
    secret, key = given(app, "read", "operate")
    with line(app, secret) as here:
        here.say(BackMsg(rerun_script=ClientState()))
        assert "You are signed out" not in here.run()
        tokens(app).revoke(key)
        assert "You are signed out" in here.run()  # it says nothing, and is told all the same
        here.say(said)
        html = here.run()
        assert "You are signed out" in html and html.count('class="rd rd-note"') == 1


def test_a_reader_clears_nobodys_cache(app: App) -> None:
    with line(app, given(app, "read")[0]) as here:
        here.say(BackMsg(rerun_script=ClientState()))
        here.run()
        here.say(BackMsg(clear_cache=True))
        here.say(BackMsg(rerun_script=ClientState()))
        assert "You are signed out" not in here.run()


# 3) an answer over the API


def test_a_question_asked_over_the_api_is_cancelled_on_a_page_by_its_owner_only(app: App, browser: Browser) -> None:
    secret, other = given(app, "read", "ask")[0], given(app, "read", "ask")[0]
    header = {"authorization": f"Bearer {secret}", "accept": "text/event-stream"}
    body = {"query": "why is the grass green", "hyde": "on"}
    with httpx.stream("POST", f"{app.url}/api/v1/ask", headers=header, json=body, timeout=PATIENCE) as answer:
        job = answer.headers["x-ragdeck-job"]
        theirs = opened(browser, app, other, f"/?job={job}")
        stop = theirs.get_by_test_id("stMain").get_by_role("button", name="Cancel")
        expect(stop).to_be_disabled(timeout=PATIENCE * 1000)
        theirs.context.close()
        mine = opened(browser, app, secret, f"/?job={job}")
        mine.get_by_test_id("stMain").get_by_role("button", name="Cancel").click()
        seen = "".join(answer.iter_text())
        mine.context.close()
    assert '"outcome":"cancelled"' in seen


def test_a_stream_ends_with_the_token_and_the_query_is_cancelled(app: App) -> None:
    secret, key = given(app, "ask")
    seen: list[str] = []
    header = {"authorization": f"Bearer {secret}", "accept": "text/event-stream"}
    body = {"query": "why is the sea salty", "hyde": "on"}
    with httpx.stream("POST", f"{app.url}/api/v1/ask", headers=header, json=body, timeout=PATIENCE) as answer:
        for text in answer.iter_lines():
            if not seen:
                tokens(app).revoke(key)
            seen.append(text)
    assert answer.status_code == 200 and not any("finished" in text and "event" in text for text in seen if "stage" not in text)
    reader = {"authorization": f"Bearer {given(app, 'read')[0]}"}
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        rows = app.call("GET", "/api/v1/queries?text=salty", headers=reader).json()["queries"]
        if rows:
            break
        threading.Event().wait(0.1)
    assert [row["outcome"] for row in rows] == ["cancelled"]
