"""The real dashboard, `streamlit run app.py`: its guard before Streamlit's own routes, its page in a browser, wrong settings."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.exceptions
from playwright.sync_api import Page, sync_playwright
from websockets.sync.client import connect

from rag.trace_store import TraceStore
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
CHROMIUM = "/usr/bin/chromium"
PATIENCE = 120.0
TOKEN = "correct-horse"
SETTINGS = "[ingest]\nsample_corpus = false\n"
ANSWERING = (
    "/",
    "/query?id=1",
    "/_stcore/host-config",
    "/_stcore/metrics",
    "/_stcore/agent/openapi.json",
    "/favicon.png",
    "/api/v1/queries",
)
OURS = ("x-content-type-options", "x-frame-options", "referrer-policy", "content-security-policy", "cross-origin-opener-policy")


@dataclass
class App:
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    config: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, **given: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=PATIENCE, verify=False, **given)

    def web_socket(self, host: str | None = None, origin: str | None = None, **headers: str) -> int:
        """101 when the page's WebSocket opened, else the status of the refusal."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        uri = f"ws://{host or f'127.0.0.1:{self.port}'}/_stcore/stream"
        given: dict[str, Any] = {"origin": origin, "additional_headers": headers, "subprotocols": ["streamlit"], "proxy": None}
        given["open_timeout"] = PATIENCE
        try:
            with connect(uri, sock=line, **given):
                return 101
        except websockets.exceptions.InvalidStatus as refused:
            return refused.response.status_code
        finally:
            line.close()


def wait_for(happened: Callable[[], Any], log: Path) -> Any:
    end = time.monotonic() + PATIENCE
    while not (result := happened()):
        assert time.monotonic() < end, log.read_text()
        threading.Event().wait(0.05)
    return result


def status(url: str) -> int:
    try:
        return httpx.get(url, timeout=PATIENCE, verify=False).status_code
    except httpx.TransportError:
        return 0


@contextlib.contextmanager
def start(
    folder: Path, address: str = "127.0.0.1", settings: str = SETTINGS, port: int | None = None, **environment: str
) -> Iterator[App]:
    port = port or free_port()
    config, log = folder / "dashboard.toml", folder / "log"
    config.write_text(settings)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAGDECK_", "STREAMLIT_"))}
    given = {**kept, "RAGDECK_DATA": str(folder / "data"), "RAGDECK_CONFIG": str(config), **environment}
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.address", address, "--server.port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=given, stdout=output, stderr=output)
    app = App(port, process, log, config)
    try:
        wait_for(lambda: process.poll() is not None or status(f"{app.url}/_stcore/health") == 200, log)
        yield app
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """As it starts without any setting: loopback, no token."""
    with start(tmp_path_factory.mktemp("opened")) as app:
        yield app


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """On every interface, with a token and a proxy's name and origin."""
    server = '[server]\nallowed_hosts = ["rag.example"]\nallowed_origins = ["https://portal.example"]\n'
    with start(tmp_path_factory.mktemp("locked"), "0.0.0.0", SETTINGS + server, RAGDECK_TOKEN=TOKEN) as app:
        yield app


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Callable[[], Page]]:
    """Makes pages of a headless Chromium, each with cookies of its own, that remember what broke the content policy."""
    if not Path(CHROMIUM).exists():
        pytest.skip("no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])

        def make() -> Page:
            page = browser.new_context().new_page()
            page.set_default_timeout(PATIENCE * 1000)
            page.add_init_script("addEventListener('securitypolicyviolation', e => console.error('VIOLATION ' + e.blockedURI))")
            return page

        yield make
        browser.close()


# 1) without a token


def test_it_answers_on_loopback_only(opened: App) -> None:
    assert opened.call("GET", "/").status_code == 200
    own = address_of_this_machine()
    if own is None:
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((own, opened.port), timeout=5)


def address_of_this_machine() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        own = str(probe.getsockname()[0])
    return None if own.startswith("127.") else own


def test_the_first_page_is_found_by_its_name_too(opened: App) -> None:
    answer = opened.call("GET", "/ask?q=why%20slow%3F&x=//other.example")
    assert (answer.status_code, answer.headers["location"]) == (308, "/?q=why%20slow%3F&x=//other.example")


@pytest.mark.parametrize("path", [*ANSWERING, "/_stcore/health", "/api/health", "/signin"])
def test_another_name_is_refused_on_streamlits_routes_too(opened: App, path: str) -> None:
    response = opened.call("GET", path, headers={"host": f"evil.example:{opened.port}"})
    assert response.status_code == 421 and response.json()["error"]["next_step"]


def test_the_web_socket_of_another_name_or_site_is_refused(opened: App) -> None:
    port = opened.port
    assert opened.web_socket(origin=opened.url) == 101
    assert opened.web_socket(host=f"localhost:{port}", origin=f"http://localhost:{port}") == 101
    assert opened.web_socket(host=f"evil.example:{port}", origin=f"http://evil.example:{port}") == 421
    assert opened.web_socket(origin="http://evil.example") == 403
    assert opened.web_socket(origin="null") == 403


def test_another_sites_page_can_neither_ask_nor_upload(opened: App) -> None:
    foreign = {"origin": "http://evil.example", "content-type": "text/plain"}
    assert opened.call("POST", "/api/v1/ask", headers=foreign, content=b'{"query": "x"}').status_code == 403
    assert opened.call("PUT", "/_stcore/upload_file/a/b", headers=foreign, content=b"x").status_code == 403
    assert opened.call("POST", "/_stcore/agent/interact", headers=foreign, content=b"{}").status_code == 403


def test_bodies(opened: App) -> None:
    json = {"content-type": "application/json", "origin": opened.url}
    assert opened.call("POST", "/api/v1/ask", headers={**json, "content-type": "text/plain"}, content=b"{}").status_code == 415
    assert opened.call("POST", "/api/v1/ask", headers=json, content=b"a" * 4_000_000).status_code == 413
    chunked = opened.call("POST", "/api/v1/ask", headers=json, content=iter([b"a" * 100_000] * 40))
    assert chunked.status_code == 413 and chunked.json()["error"]["kind"] == "bad_input"
    assert all(name in chunked.headers for name in OURS)


def test_security_headers_are_on_streamlits_answers_too(opened: App) -> None:
    for path in (*ANSWERING, "/_stcore/health", "/media/nothing", "/component/nothing/x", "/static/nothing.js"):
        headers = opened.call("GET", path).headers
        assert all(name in headers for name in OURS), path


def test_a_question_over_the_apps_own_port_as_events(opened: App) -> None:
    wait_for(lambda: status(f"{opened.url}/api/health") == 200, opened.log)
    headers = {"accept": "text/event-stream", "accept-encoding": "gzip"}
    response = opened.call("POST", "/api/v1/ask", headers=headers, json={"query": "Is anything there?"})
    assert response.status_code == 200 and "content-encoding" not in response.headers  # a packed stream would come late
    assert "event: finished" in response.text.rstrip().rpartition("id: ")[2]


def test_the_page_works_under_its_content_policy(opened: App, browser_page: Callable[[], Page]) -> None:
    assert_works(browser_page(), opened.url)


def assert_works(page: Page, url: str, before: Callable[[Page], None] = lambda _: None) -> None:
    """The page connects and shows itself; nothing was blocked, nothing raised, nothing was fetched from elsewhere."""
    problems: list[str] = []
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(httpx.URL(request.url).host))
    page.goto(url, timeout=PATIENCE * 1000)
    before(page)
    settled = "[data-testid='stApp'][data-test-connection-state='CONNECTED'][data-test-script-state='notRunning']"
    page.wait_for_selector(settled, timeout=PATIENCE * 1000)
    page.wait_for_selector("h1, textarea", timeout=PATIENCE * 1000)
    # under a deep link Streamlit looks for its own routes below it first, and gets 404
    assert [problem for problem in problems if "(Not Found)" not in problem] == []
    assert hosts <= {"127.0.0.1", ""}


# 2) with a token, on every interface


@pytest.mark.parametrize("path", ANSWERING)
def test_everything_needs_the_token(locked: App, path: str) -> None:
    refused = locked.call("GET", path)
    assert refused.status_code == 401 and all(name in refused.headers for name in OURS)
    assert locked.call("GET", path, headers={"authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)


def test_assets_media_uploads_and_the_web_socket_need_it(locked: App) -> None:
    right = {"authorization": f"Bearer {TOKEN}"}
    page = locked.call("GET", "/", headers=right).text
    script = page.partition('src="')[2].partition('"')[0].removeprefix(".").replace("./", "/")
    assert script.endswith(".js")
    path = "/" + script.lstrip("/")
    assert locked.call("GET", path).status_code == 401 and locked.call("GET", path, headers=right).status_code == 200
    for method, path in (
        ("GET", "/media/x"),
        ("PUT", "/_stcore/upload_file/a/b"),
        ("POST", "/_stcore/agent/mcp"),
        ("POST", "/api/v1/ask"),
    ):
        assert locked.call(method, path).status_code == 401
    assert locked.web_socket(origin=locked.url) == 401
    assert locked.web_socket(origin=locked.url, Authorization="Bearer wrong") == 401
    assert locked.web_socket(Authorization=f"Bearer {TOKEN}") == 101


def test_health_is_open(locked: App) -> None:
    assert locked.call("GET", "/_stcore/health").status_code == 200
    assert locked.call("GET", "/api/health").status_code in (200, 503)


def test_what_it_is_called(locked: App) -> None:
    """Bound to every interface, any address is right, any name but the configured one wrong."""
    right = {"authorization": f"Bearer {TOKEN}"}
    for host, expected in (("192.168.1.7:8502", 200), ("[2001:db8::1]", 200), ("rag.example", 200), ("evil.example", 421)):
        assert locked.call("GET", "/", headers={**right, "host": host}).status_code == expected


def test_a_configured_origin_reaches_streamlits_web_socket(locked: App) -> None:
    """A proxy that changes the Host header: Streamlit has a check of its own."""
    assert locked.web_socket(origin="https://portal.example", Authorization=f"Bearer {TOKEN}") == 101
    assert locked.web_socket(origin="https://evil.example", Authorization=f"Bearer {TOKEN}") == 403


def test_a_browser_signs_in_and_works(locked: App, browser_page: Callable[[], Page]) -> None:
    page = browser_page()

    def sign_in(page: Page) -> None:
        assert "/signin?next=/queries" in page.url
        page.get_by_label("Token of this server").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/queries*")

    assert_works(page, f"{locked.url}/queries?since=1", sign_in)
    cookie = next(cookie for cookie in page.context.cookies() if cookie["name"] == "ragdeck_session")
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and TOKEN not in cookie["value"]


def test_a_wrong_token_in_a_browser(locked: App, browser_page: Callable[[], Page]) -> None:
    page = browser_page()
    page.goto(locked.url)
    page.get_by_label("Token of this server").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").wait_for()
    assert page.context.cookies() == []


# 3) wrong settings, and the end


def test_wrong_settings_let_this_machine_alone_in_until_they_are_right(tmp_path: Path) -> None:
    with start(tmp_path, "0.0.0.0", SETTINGS + "[server]\nport = 'x'\n", RAGDECK_TOKEN=TOKEN) as app:
        assert app.call("GET", "/").status_code == 200
        assert app.call("GET", "/api/health").json() == {"status": "broken"}
        assert app.call("GET", "/", headers={"x-forwarded-for": "192.168.1.7"}).status_code == 403
        assert app.call("GET", "/", headers={"host": "192.168.1.7"}).status_code == 421
        own = address_of_this_machine()
        if own is not None:
            by_address = httpx.get(f"http://{own}:{app.port}/", headers={"host": "localhost"}, timeout=PATIENCE, verify=False)
            assert by_address.status_code == 403
        app.config.write_text(SETTINGS)
        assert app.call("GET", "/").status_code == 401
        assert app.call("GET", "/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_beyond_loopback_without_a_way_to_sign_in_it_does_not_start(tmp_path: Path) -> None:
    with start(tmp_path, "0.0.0.0") as app:
        assert app.process.wait(PATIENCE) == 2
        assert "refused to listen" in app.log.read_text()


def test_sigterm_loses_nothing_and_leaves_nothing_held(tmp_path: Path) -> None:
    with start(tmp_path) as app:
        answer = app.call("POST", "/api/v1/ask", json={"query": "the last question"}).json()
        app.process.send_signal(signal.SIGTERM)
        app.process.wait(PATIENCE)
        assert "Traceback" not in app.log.read_text(), app.log.read_text()
    traces = TraceStore(tmp_path / "data" / "traces.db")
    stored = traces.get(answer["id"])
    traces.close()
    assert stored is not None and stored.question == "the last question"
    lock = next((tmp_path / "data").glob("*.lock"))
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_python_app_py_with_wrong_settings_says_what_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "dashboard.toml"
    config.write_text("[server]\nport = 'x'\n")
    environment = {**os.environ, "RAGDECK_DATA": str(tmp_path / "data"), "RAGDECK_CONFIG": str(config)}
    ended = subprocess.run(
        [sys.executable, "app.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 2 and "server.port" in ended.stderr and "Traceback" not in ended.stderr
