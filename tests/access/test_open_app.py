"""The real app opened beyond loopback: refused without a way in, and what each way in lets do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from access.tokens import TokenStore
from tests.access.oidc_provider import CLIENT, SECRET, Provider, provider
from tests.ports import free_port
from tests.test_app import PATIENCE, ROOT, SETTINGS, App, start

PROXY_SECRET = "hunter2-proxy-secret"
PROXY = {"x-forwarded-user": "anna", "x-ragdeck-proxy-secret": PROXY_SECRET}


# 1) refused


def test_streamlit_run_is_refused_with_both_ways_on(tmp_path: Path) -> None:
    with start(tmp_path, "0.0.0.0", SETTINGS + '[access.proxy]\nheader = "X-User"\n') as app:
        assert app.process.wait(PATIENCE) == 2
        said = app.log.read_text()
    assert "refused to listen on 0.0.0.0" in said and "Traceback" not in said
    assert "[access.oidc]" in said and "[access.proxy]" in said and "secret not set" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gpu7.lan"])
def test_python_app_py_is_refused(tmp_path: Path, host: str) -> None:
    config = tmp_path / "dashboard.toml"
    config.write_text(f'[server]\nhost = "{host}"\n')
    given = {**os.environ, "RAGDECK_DATA": str(tmp_path / "data"), "RAGDECK_CONFIG": str(config)}
    given.pop("RAGDECK_TOKEN", None)
    ended = subprocess.run([sys.executable, "app.py"], cwd=ROOT, env=given, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 2 and "refused to listen" in ended.stderr and "Traceback" not in ended.stderr


# 2) a trusted proxy, and API tokens


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    lines = '[access]\noperate = ["group:admins"]\n[access.proxy]\nheader = "X-Forwarded-User"\ngroups_header = "X-Forwarded-Groups"\n'
    with start(tmp_path_factory.mktemp("behind"), "0.0.0.0", SETTINGS + lines, RAGDECK_PROXY_SECRET=PROXY_SECRET) as app:
        yield app


def test_without_the_proxys_secret_nobody_comes_in(behind: App) -> None:
    for headers in ({}, {"x-forwarded-user": "anna"}, {**PROXY, "x-ragdeck-proxy-secret": "guessed-secret-of-16"}):
        assert behind.call("GET", "/", headers=headers).status_code == 401
        assert behind.web_socket(**headers) == 401
    page = behind.call("GET", "/signin").text
    assert "proxy" in page or "token" in page


def test_with_it_users_come_in_with_the_scopes_of_their_groups(behind: App) -> None:
    assert behind.call("GET", "/", headers=PROXY).status_code == 200
    assert behind.web_socket(**PROXY) == 101
    assert behind.call("GET", "/api/v1/whoami", headers=PROXY).json()["scopes"] == ["read", "ask"]
    assert behind.call("DELETE", "/api/v1/queries?all=1", headers=PROXY).status_code == 403
    assert behind.call("PUT", "/_stcore/upload_file/a/b", headers=PROXY, files={"f": b"x"}).status_code == 403
    admin = {**PROXY, "x-forwarded-groups": "users, Admins"}
    assert behind.call("DELETE", "/api/v1/queries?all=1", headers=admin).status_code == 200


def test_an_api_token_works_until_it_is_revoked(behind: App) -> None:
    store = TokenStore(behind.config.parent / "data" / "access.db")
    secret, token = store.create("program", ["read"], created_by="test")
    header = {"authorization": f"Bearer {secret}"}
    assert behind.call("GET", "/api/v1/queries", headers=header).status_code == 200
    assert behind.call("POST", "/api/v1/ask", headers=header, json={"query": "x"}).status_code == 403
    assert behind.call("POST", "/v1/traces", headers=header, json={}).status_code == 403
    signed = behind.call("POST", "/signin", data={"token": secret})
    assert signed.status_code == 303 and secret not in signed.headers["set-cookie"]
    cookie = {"cookie": signed.headers["set-cookie"].partition(";")[0]}
    assert behind.call("GET", "/", headers=cookie).status_code == 200
    assert behind.call("GET", "/signout", headers=cookie).status_code == 303
    assert behind.call("GET", "/", headers=cookie).status_code == 401
    store.revoke(token.id)
    assert behind.call("GET", "/api/v1/queries", headers=header).status_code == 401
    assert behind.call("POST", "/signin", data={"token": secret}).status_code == 401


@pytest.mark.parametrize("end", ["%0A", "%0a", "%0D%0A", "%00", "%09", "%7F"])
def test_a_path_that_is_written_otherwise_needs_no_less(behind: App, end: str) -> None:
    secret, _ = TokenStore(behind.config.parent / "data" / "access.db").create("reader", ["read"], created_by="test")
    header = {"authorization": f"Bearer {secret}"}
    for method, path in (("GET", "/api/v1/audit"), ("DELETE", "/api/v1/queries"), ("POST", "/api/v1/ask"), ("GET", "/metrics")):
        assert behind.call(method, path + end, headers=header).status_code == 400, (method, path)
    assert behind.call("GET", "/api/v1/audit", headers=header).status_code == 403


def test_a_gigabyte_is_refused_before_it_is_sent(behind: App) -> None:
    for path, limit in (
        ("/api/v1/ask", 1 << 20),
        ("/v1/traces", 16 << 20),
        ("/_stcore/upload_file/a/b", 50_000_000 + (1 << 20)),  # ingest.max_file_bytes, and the form around it
        ("/", 50_000_000 + (1 << 20)),
    ):
        for method in ("POST", "PUT", "GET"):
            with socket.create_connection(("127.0.0.1", behind.port), timeout=PATIENCE) as line:
                head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {1 << 30}\r\n\r\n"
                line.sendall(head.encode())
                answer = b"".join(iter(lambda line=line: line.recv(65536), b""))  # until the server closes
            said = f"at most {limit:,} are taken".encode()
            assert b" 413 " in answer.split(b"\r\n")[0] and said in answer, (path, method, answer)


def test_a_head_that_never_ends_is_cut_off(behind: App) -> None:
    with socket.create_connection(("127.0.0.1", behind.port), timeout=PATIENCE) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        assert line.recv(100) == b""


# 3) OpenID Connect


@pytest.fixture(scope="module")
def signed_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, Provider]]:
    with signing_in(tmp_path_factory.mktemp("oidc"), '[access]\noperate = ["group:rag-admins"]\n') as both:
        yield both


@contextmanager
def signing_in(folder: Path, access: str) -> Iterator[tuple[App, Provider]]:
    port = free_port()  # the settings name it
    with provider() as identity:
        lines = (
            f'{access}[access.oidc]\nmetadata_url = "{identity.url}/.well-known/openid-configuration"\n'
            f'client_id = "{CLIENT}"\nredirect_uri = "http://127.0.0.1:{port}/oauth2callback"\n'
        )
        with start(folder, "0.0.0.0", SETTINGS + lines, port, RAGDECK_OIDC_CLIENT_SECRET=SECRET) as app:
            yield app, identity


def client(app: App) -> httpx.Client:
    return httpx.Client(base_url=app.url, timeout=PATIENCE, follow_redirects=True, headers={"accept": "text/html"})


def test_a_browser_signs_in_at_the_provider_and_out_again(signed_in: tuple[App, Provider]) -> None:
    app, _ = signed_in
    with client(app) as browser:
        first = browser.get("/queries?since=1")
        assert first.url.path == "/signin" and "/signin/oidc" in first.text
        arrived = browser.get("/signin/oidc")
        assert arrived.status_code == 200 and arrived.url.path == "/" and "_streamlit_user" in browser.cookies
        me = browser.get("/api/v1/whoami").json()
        assert me == {"name": "anna@example.org", "how": "oidc", "scopes": ["read", "ask", "operate"]}
        jar = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        assert app.web_socket(cookie=jar) == 101
        browser.get("/signout")
        assert browser.get("/").url.path == "/signin"
    assert app.web_socket() == 401 and app.web_socket(cookie=jar) == 401  # a copy of the cookie is worth nothing either
    assert app.call("GET", "/api/v1/whoami", headers={"cookie": jar}).status_code == 401


def test_others_have_fewer_scopes_and_a_forged_answer_signs_nobody_in(signed_in: tuple[App, Provider]) -> None:
    app, identity = signed_in
    identity.claims = {"sub": "rag-admins", "email": "bo@example.org", "name": "rag-admins", "groups": []}
    with client(app) as browser:
        browser.get("/signin/oidc")
        assert browser.get("/api/v1/whoami").json()["scopes"] == ["read", "ask"]
    identity.wrong_nonce = True
    with client(app) as browser:
        assert browser.get("/signin/oidc").url.path == "/signin"
        assert browser.get("/oauth2callback?code=the-code&state=forged").url.path == "/signin"


def test_an_address_that_is_not_verified_opens_nothing_and_the_page_says_so(tmp_path: Path) -> None:
    with signing_in(tmp_path, '[access]\nread = ["anna@example.org"]\n') as (app, identity):
        for stated, said in ((None, "access.oidc.trust_email"), (False, "is not verified")):
            identity.claims = {"sub": "42", "email": "anna@example.org", "email_verified": stated}
            with client(app) as browser:
                refused = browser.get("/signin/oidc")
                assert (refused.status_code, refused.url.path) == (403, "/")
                assert refused.headers["content-type"].startswith("text/html") and 'href="/signout"' in refused.text
                assert "42 may not do this" in refused.text and said in refused.text and "anna@" not in refused.text
                program = browser.get("/api/v1/queries", headers={"accept": "application/json"})
                assert program.status_code == 403 and said in program.json()["error"]["next_step"]
                jar = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
                assert app.web_socket(cookie=jar) == 403
        identity.claims = {"sub": "42", "email": "anna@example.org", "email_verified": True}
        with client(app) as browser:
            assert browser.get("/signin/oidc").status_code == 200


def test_its_secrets_are_in_no_log_and_no_answer(signed_in: tuple[App, Provider]) -> None:
    app, _ = signed_in
    data = app.config.parent / "data"
    kept = (data / "access" / "cookie.secret").read_text()
    with client(app) as browser:
        pages = [
            browser.get(path).text for path in ("/signin", "/", "/api/health", "/oauth2callback?error=x&error_description=y")
        ]
    for text in (app.log.read_text(), *pages):
        assert SECRET not in text and kept not in text
