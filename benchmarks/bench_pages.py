"""Pages in a cold headless browser over 10,000 stored queries, and how soon the app is usable after a start.

    python -m benchmarks.bench_pages [--queries 10000] [--rounds 5]

Each visit is a new browser process with an empty profile. The stored queries are synthetic. "Start" is from the process's start
to the first page being usable, and to the models being warm, with the files in the disk cache.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benchmarks.bench_traces import fill
from rag.trace_store import TraceStore

ROOT = Path(__file__).parents[1]
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
READY = "[data-testid='stApp'][data-test-connection-state='CONNECTED'][data-test-script-state='notRunning']"


def start(data: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "RAGDECK_DATA": str(data), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ), f"http://127.0.0.1:{port}"


def stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    server.wait(40)


def healthy(url: str, want: int = 200) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as response:
            return bool(response.status == want)
    except OSError:
        return False


def wait(ready: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError("the app did not become ready")
        time.sleep(0.02)


def visit(playwright: Any, url: str, shown: Callable[[Page], None]) -> float:
    """Seconds from navigation in a new browser to `shown` having returned."""
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
    try:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        started = time.perf_counter()
        page.goto(url, wait_until="commit")
        shown(page)
        return time.perf_counter() - started
    finally:
        browser.close()


def list_shown(page: Page) -> None:
    page.wait_for_selector(".rd-queries tbody tr:nth-child(100)")
    page.wait_for_selector(READY)


def waterfall_shown(page: Page) -> None:
    page.wait_for_selector("[data-testid='stMain'] [role='img']")
    page.wait_for_selector(READY)


def ask_shown(page: Page) -> None:
    page.get_by_label("Question").wait_for()
    page.wait_for_selector(READY)


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024  # type: ignore[union-attr]


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        data = Path(folder)
        starts = [_start(playwright, data) for _ in range(2)][1:]  # the first one fills disk cache and samples
        server, url = start(data)
        try:
            wait(lambda: healthy(url))
            visit(playwright, url, ask_shown)
            idle = rss_mib(server.pid)
        finally:
            stop(server)
        keys = _store(data, given.queries)
        server, url = start(data)
        try:
            wait(lambda: healthy(url))
            visit(playwright, url, ask_shown)
            lists = [visit(playwright, f"{url}/queries", list_shown) for _ in range(given.rounds)]
            queries = [visit(playwright, f"{url}/query?id={keys[-n - 1]}", waterfall_shown) for n in range(given.rounds)]
            rerun = _rerun_seconds(playwright, url)
            grown = rss_mib(server.pid)
        finally:
            stop(server)
    result = {
        "benchmark": "pages",
        "queries": given.queries,
        "rounds": given.rounds,
        "first_page_usable_s": round(starts[0][0], 2),
        "models_warm_s": round(starts[0][1], 2),
        "list_cold_browser_s_median": round(median(lists), 2),
        "query_cold_browser_s_median": round(median(queries), 2),
        "list_rerun_ms_median": round(rerun * 1000, 1),
        "rss_idle_warm_mib": round(idle),
        "rss_growth_mib": round(grown - idle),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))
    return result


def _start(playwright: Any, data: Path) -> tuple[float, float]:
    """Seconds from process start to a usable page and to warm models; the browser is launched before."""
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    started = time.perf_counter()
    server, url = start(data)
    try:
        wait(lambda: _answers(url))
        page.goto(url, wait_until="commit")
        ask_shown(page)
        usable = time.perf_counter() - started
        wait(lambda: healthy(url))
        warm = time.perf_counter() - started
        wait(lambda: (data / "samples.done").exists())
    finally:
        browser.close()
        stop(server)
    return usable, warm


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


def _store(data: Path, count: int) -> list[str]:
    print(f"storing {count} synthetic queries …")
    store = TraceStore(data / "traces.db")
    keys = fill(store, count)
    store.close()
    return keys


def _rerun_seconds(playwright: Any, url: str) -> float:
    """Script time of a rerun of the list: from a click on a filter to the script being done, as the browser sees it."""
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
    try:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{url}/queries")
        list_shown(page)
        spent = []
        for _ in range(7):
            page.evaluate(_WATCH)
            page.get_by_text("Cold only").click()
            page.wait_for_function("window.rerun !== null")
            spent.append(float(page.evaluate("window.rerun")) / 1000)
        return median(spent)
    finally:
        browser.close()


# The app element says `running` while the script runs: measures that, without the polling of the driver
_WATCH = """() => {
  const app = document.querySelector("[data-testid='stApp']"); let began = 0; window.rerun = null;
  const watch = new MutationObserver(() => {
    const state = app.getAttribute('data-test-script-state');
    if (state === 'running' && !began) began = performance.now();
    if (state === 'notRunning' && began) { window.rerun = performance.now() - began; watch.disconnect(); }
  });
  watch.observe(app, {attributes: true});
}"""

if __name__ == "__main__":
    main()
