"""What a browser must not have done after it has shown a hostile page. Knows no page."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page

from tests.security.payloads import FOREIGN, MARK

# Elements and attributes that only a payload that was taken for HTML or Markdown can have made.
PLANTED = f"""() => [...document.querySelectorAll('[data-planted], [onerror], [onload], [onmouseover], a, iframe, img, link, form, [src]')]
.filter(node => {{
  if (node.matches('[data-planted], [onerror], [onload], [onmouseover]')) return true;
  const target = node.getAttribute('href') || node.getAttribute('src') || node.getAttribute('action') || '';
  try {{ return target.trim().toLowerCase().startsWith('javascript:') || new URL(target, location).hostname.includes('{FOREIGN}') }}
  catch (error) {{ return false }}
}}).map(node => node.outerHTML.slice(0, 300)).concat(window.__planted ? ['script ran: ' + window.__planted] : [])"""

# How far a page reaches beyond the window, or its content beyond the part that scrolls.
BEYOND = """() => [document.scrollingElement, document.querySelector('[data-testid=stMain]')]
.map(node => node.scrollWidth - node.clientWidth)"""
NARROW = {"width": 390, "height": 844}
LINKS = "nodes => nodes.map(node => node.getAttribute('href') || '')"  # in one look: a page that ticks changes between two
PATIENCE_MS = 90_000
LAID_OUT_SECONDS = 20.0


def settled(page: Page) -> None:
    """Wait until the script has run and nothing is a skeleton any more; asks the page nothing that its policy forbids."""
    ready = "[data-testid='stApp'][data-test-connection-state='CONNECTED'][data-test-script-state='notRunning']"
    page.wait_for_selector(ready, timeout=PATIENCE_MS)
    page.wait_for_selector("[data-testid='stSkeleton']", state="detached", timeout=PATIENCE_MS)


@dataclass
class Watched:
    """A page with what happened on it: dialogs, requests to other hosts, navigations elsewhere, refusals by the content policy.
    `frames` is what its WebSocket brought since the last visit began."""

    page: Page
    origin: str
    dialogs: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)

    def visit(self, path: str) -> str:
        """Open it; returns the text that is shown in its main part."""
        self.frames.clear()
        self.page.goto(self.origin + path)
        settled(self.page)
        self.unfold()
        return self.page.get_by_test_id("stMain").inner_text()

    def unfold(self) -> None:
        """Open everything that is folded: what is not shown is not rendered."""
        self.page.evaluate(
            "document.querySelectorAll('[data-testid=stMain] details:not([open]) > summary').forEach(s => s.click())"
        )
        settled(self.page)

    def beyond(self) -> list[int]:
        """Pixels by which the page is wider than a telephone's window, of the window and of its main part; what is drawn anew at
        another width (charts, the sidebar) has its time for it."""
        before = self.page.viewport_size
        assert before is not None
        self.page.set_viewport_size(NARROW)
        settled(self.page)
        pixels: list[int] = self.page.evaluate(BEYOND)
        end = time.monotonic() + LAID_OUT_SECONDS
        while any(pixels) and time.monotonic() < end:
            self.page.wait_for_timeout(100)
            pixels = self.page.evaluate(BEYOND)
        self.page.set_viewport_size(before)
        return pixels

    def links(self) -> tuple[str, ...]:
        """The addresses that its main part links to."""
        return tuple(self.page.get_by_test_id("stMain").locator("a[href]").evaluate_all(LINKS))

    def downloads(self) -> list[tuple[str, bytes]]:
        """(name, bytes) of every file that is offered where one can see it."""
        found = []
        buttons = self.page.locator("[data-testid=stDownloadButton] button:visible:enabled")
        for number in range(buttons.count()):
            with self.page.expect_download() as started:
                buttons.nth(number).click()
            found.append((started.value.suggested_filename, Path(started.value.path()).read_bytes()))
        return found

    def harm(self) -> list[str]:
        planted: list[str] = self.page.evaluate(PLANTED)
        return [*self.dialogs, *self.foreign, *self.violations, *planted]


@contextmanager
def watched(context: BrowserContext, origin: str) -> Iterator[Watched]:
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    seen = Watched(page, origin)
    host = urlsplit(origin).netloc

    def request(url: str) -> None:
        if urlsplit(url).scheme in ("http", "https", "ws", "wss") and urlsplit(url).netloc != host:
            seen.foreign.append(f"asked {url}")

    def dialog(opened) -> None:
        seen.dialogs.append(f"dialog {opened.message}")
        opened.dismiss()

    page.on("request", lambda asked: request(asked.url))

    def keep(payload: str | bytes) -> None:
        seen.frames.append(payload if isinstance(payload, bytes) else payload.encode())

    page.on("websocket", lambda opened: (request(opened.url), opened.on("framereceived", keep)))
    page.on("dialog", dialog)
    page.on("popup", lambda other: seen.foreign.append(f"popup {other.url}"))
    page.on(
        "console",
        lambda said: seen.violations.append(said.text) if FOREIGN in said.text or "VIOLATION inline" in said.text else None,
    )
    page.add_init_script("addEventListener('securitypolicyviolation', e => console.error('VIOLATION ' + e.blockedURI))")
    yield seen
    page.close()


def signed_in(browser: Browser, origin: str, token: str) -> BrowserContext:
    """A browser's context with the session that the sign-in gives."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(origin)
    page.get_by_label(re.compile("token", re.I)).fill(token)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url(lambda url: "signin" not in url)
    settled(page)
    page.close()
    return context


def shows(text: str) -> bool:
    """Whether a planted text stands there as text, or the beginning of one that was cut."""
    return MARK in text or "<img src=" in text
