"""Chromium on the real app: pages work under the content security policy, what is injected does not, and scopes hold on pages."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from access.tokens import TokenStore
from tests.test_app import CHROMIUM, PATIENCE, SETTINGS, App, start

SETTLED = "[data-testid='stApp'][data-test-connection-state='CONNECTED'][data-test-script-state='notRunning']"
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with start(tmp_path_factory.mktemp("browser"), "0.0.0.0", SETTINGS, RAGDECK_TOKEN=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """Another origin, and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def signed_in(browser: Browser, app: App, token: str, path: str) -> tuple[Page, list[str]]:
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE * 1000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto(app.url + path)
    page.get_by_label("Token of this server").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector(SETTLED)
    return page, said


def test_pages_break_no_rule_and_nothing_injected_gets_out(app: App, browser: Browser, elsewhere: tuple[str, list[str]]) -> None:
    page, said = signed_in(browser, app, TOKEN, "/machines")
    page.goto(f"{app.url}/machine?name=local")
    page.wait_for_selector(SETTLED)
    page.get_by_text("Disk space").first.wait_for()
    assert not [text for text in said if "Content Security Policy" in text or "Content-Security-Policy" in text], said
    url, asked = elsewhere
    page.evaluate(
        """url => {
            window.ran = [];
            const add = (name, set) => document.body.append(Object.assign(document.createElement(name), set));
            add('script', {src: url + '/script'});
            add('script', {textContent: "window.ran.push('inline')"});
            add('img', {src: url + '/img'});
            add('link', {rel: 'stylesheet', href: url + '/link'});
            add('iframe', {src: url + '/frame'});
            add('object', {data: url + '/object'});
            add('video', {src: url + '/video'});
            add('div', {innerHTML: `<img src=x onerror="window.ran.push('handler')"><svg onload="window.ran.push('svg')"></svg>
                <style>body { background-image: url(${url}/background) }</style>`});
            try { eval("window.ran.push('eval')") } catch {}
            fetch(url + '/fetch').catch(() => {});
            navigator.sendBeacon(url + '/beacon');
            try { new WebSocket(url.replace('http', 'ws') + '/socket') } catch {}
        }""",
        url,
    )
    end = time.monotonic() + PATIENCE
    while refused(said) < 8 and time.monotonic() < end:
        page.wait_for_timeout(100)
    page.wait_for_timeout(1500)  # what is not refused has time to get out
    # `evaluate` itself runs past the policy, so its own eval may run; all that it put into the page must not
    assert asked == [] and not set(page.evaluate("window.ran")) - {"eval"}
    assert refused(said) >= 8


def refused(said: list[str]) -> int:
    """How often the browser's console told that the policy refused something."""
    return sum("Content Security Policy" in text for text in said)


def test_a_reader_sees_pages_and_changes_nothing(app: App, browser: Browser) -> None:
    data = app.config.parent / "data"
    secret, _ = TokenStore(data / "access.db").create("reader <b>", ["read"], created_by="test")
    page, _ = signed_in(browser, app, secret, "/alerts")
    page.get_by_role("button", name="Back to the defaults").wait_for()
    page.goto(f"{app.url}/models")
    page.wait_for_selector(SETTLED)
    page.get_by_role("button", name="Reload").first.click()
    page.get_by_text("it needs the scope 'operate'").first.wait_for()
    told = (Path(data) / "audit.log").read_text()
    assert '"refused"' in told and "reader <b>" in told and "reload a model" in told
