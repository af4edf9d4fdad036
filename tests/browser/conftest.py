"""The real app in a process of its own and a real Chromium to look at it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 90.0  # a machine that has much else to do takes ten times as long
FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-sync",
]


@contextmanager
def running_app(data: Path, **environment: str) -> Iterator[str]:
    """`app.py` on a free port, warm and with the sample corpus in; ended by SIGTERM."""
    port = free_port()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "RAGDECK_DATA": str(data),
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: status(f"{url}/api/health") == 200 and (data / "samples.done").exists(), server)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE_SECONDS)


def wait_until(ready, server: subprocess.Popen[bytes], seconds: float = 3 * PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert server.poll() is None, "the app ended"
        assert time.monotonic() < end, "the app did not become healthy"
        time.sleep(0.1)


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return int(response.status)
    except OSError as problem:
        return getattr(problem, "code", 0)


@pytest.fixture(scope="module")  # not the session: while Playwright runs, no other test can run an event loop
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("browser-data")
    with running_app(data) as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_SECONDS * 1000)
    yield opened
    context.close()


def settled(page: Page) -> None:
    """Wait until the script has run and nothing is a skeleton any more."""
    ready = "[data-testid='stApp'][data-test-connection-state='CONNECTED'][data-test-script-state='notRunning']"
    page.wait_for_selector(ready, timeout=PATIENCE_SECONDS * 1000)
    # not wait_for_function: our CSP forbids its eval
    page.wait_for_selector("[data-testid='stSkeleton']", state="detached", timeout=PATIENCE_SECONDS * 1000)
