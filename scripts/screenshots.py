"""Screenshots of every page, light and dark, wide and narrow, empty and with data, into test-artifacts/.

    python scripts/screenshots.py                     starts its own app in a fresh data folder: empty first, then with data
    python scripts/screenshots.py --url http://…      uses a running app, as it is

Knows the pages by their URLs only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
READY = "[data-testid='stApp'][data-test-connection-state='CONNECTED'][data-test-script-state='notRunning']"
SIZES = {"1440": (1440, 900), "390": (390, 844)}
QUESTIONS = {"en": "Why is only the first query after a start slow?", "he": "למה השאילתה הראשונה איטית?"}


def settle(page: Page) -> None:
    """Wait until the script has run and nothing is a skeleton any more."""
    page.wait_for_selector(READY, timeout=30_000)
    page.wait_for_selector("[data-testid=stSkeleton]", state="detached", timeout=30_000)
    page.wait_for_timeout(400)


def shoot(browser: Browser, url: str, name: str, out: Path, schemes: Sequence[str]) -> list[str]:
    """One page in every scheme and size; returns what the browser complained about."""
    complaints: list[str] = []
    for scheme in schemes:
        for size, (width, height) in SIZES.items():
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})  # type: ignore[arg-type]
            page = context.new_page()
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
            page.goto(url)
            settle(page)
            tall = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
            page.set_viewport_size({"width": width, "height": max(height, min(int(tall), 4000))})
            page.wait_for_timeout(400)
            page.screenshot(path=out / f"{name}-{size}-{scheme}.png")
            wider = page.evaluate("document.documentElement.scrollWidth > innerWidth")
            if wider:
                complaints.append(f"{name} at {size} px scrolls sideways")
            context.close()
    return complaints


def ask(browser: Browser, url: str, question: str, out: Path | None = None) -> str:
    """Ask on the page as a person would; returns the stored query's id."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(url)
    settle(page)
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Question", exact=True).press("Control+Enter")
    if out is not None:
        page.wait_for_timeout(250)
        page.screenshot(path=out / "ask-just-sent-1440-light.png")
    page.wait_for_url("**/?*id=*", timeout=120_000)
    settle(page)
    found = page.url.rpartition("id=")[2]
    page.close()
    return found


@contextmanager
def own_app(port: int, data: str) -> Iterator[str]:
    """An app of our own with an empty data folder."""
    environment = {**os.environ, "RAGDECK_DATA": data}
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=1)
                break
            except OSError:
                time.sleep(0.25)
        yield url
    finally:
        process.terminate()
        process.wait(15)


def everything(url: str, out: Path, fresh: bool, schemes: Sequence[str]) -> list[str]:
    complaints: list[str] = []
    names = ("overview", "alerts", "queries", "latency", "compare", "experiments", "machines", "services", "models", "knowledge")
    pages = {"ask": "/", **{name: f"/{name}" for name in names}}
    pages |= {"machine-local": "/machine?name=local", "machine-unknown": "/machine", "query-unknown": "/query?id=none"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        if fresh:
            for name, path in pages.items():
                complaints += shoot(browser, url + path, f"empty-{name}", out, schemes)
        ids = {name: ask(browser, url, question, out if name == "en" else None) for name, question in QUESTIONS.items()}
        for name, query_id in ids.items():
            complaints += shoot(browser, f"{url}/?id={query_id}", f"ask-answer-{name}", out, schemes)
            complaints += shoot(browser, f"{url}/query?id={query_id}", f"query-{name}", out, schemes)
        for name, path in pages.items():
            complaints += shoot(browser, url + path, name, out, schemes)
        browser.close()
    return complaints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running app; without it one is started")
    parser.add_argument("--port", type=int, default=8619, help="port of the app that is started")
    parser.add_argument("--out", type=Path, default=ROOT / "test-artifacts")
    parser.add_argument("--schemes", default="light,dark")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    schemes = given.schemes.split(",")
    if given.url:
        complaints = everything(given.url.rstrip("/"), given.out, False, schemes)
    else:
        with tempfile.TemporaryDirectory() as data, own_app(given.port, data) as url:
            complaints = everything(url, given.out, True, schemes)
    print(f"{len(list(given.out.glob('*.png')))} screenshots in {given.out}")
    for text in sorted(set(complaints)):
        print(f"browser: {text}")


if __name__ == "__main__":
    main()
