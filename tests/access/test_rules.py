"""Addresses, uploads, redaction, the table of scopes: what is refused, masked and needed."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import pytest
from pydantic import SecretStr

from access.addresses import check_host, check_url
from access.redaction import RedactingFormatter, Redactor, install, secret_values
from access.scopes import RULES, SCOPES, checked, needed
from access.uploads import Bounds, check
from rag.errors import RagError
from settings import load

# 1) addresses


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest/meta-data", "http://169.254.1.1", "http://[fe80::1]/", "http://[fe80::1%25eth0]/",
     "http://[::ffff:169.254.169.254]", "http://[::ffff:a9fe:a9fe]", "http://[64:ff9b::a9fe:a9fe]", "http://[2002:a9fe:a9fe::]",
     "http://2852039166/", "http://0xa9fea9fe/", "http://0251.0376.0251.0376/", "http://169.254.43518/", "http://0xa9.254.169.254",
     "http://metadata.google.internal/", "http://METADATA.google.internal./x", "http://metadata", "http://100.100.100.200",
     "http://168.63.129.16", "http://[fd00:ec2::254]", "http://0.0.0.0:80", "http://[::]", "http://224.0.0.1",
     "http://user:pass@169.254.169.254", "http://rebound.example"],
)  # fmt: skip
def test_metadata_services_are_refused_however_they_are_written(url: str) -> None:
    with pytest.raises(RagError) as caught:
        check_url(url, lambda name: ["10.0.0.1", "169.254.169.254"] if name == "rebound.example" else [])
    assert caught.value.kind == "bad_input" and caught.value.next_step and "pass" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    ["", "file:///etc/passwd", "gopher://a", "ftp://a", "//a", "a", "http://", "http://a:99999", "http://[", "javascript:1"],
)
def test_what_is_no_http_address_is_refused(url: str) -> None:
    with pytest.raises(RagError):
        check_url(url, lambda name: [])


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.7", "192.168.1.7", "gpu.lan", "203.0.113.7", "::1", "[::1]", "fd12::1", "1.2"]
)
def test_what_is_watched_is_allowed(host: str) -> None:
    check_host(host, lambda name: ["10.1.2.3"])


# 2) uploads


def zipped(**entries: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return out.getvalue()


def test_what_is_what_it_says_is_taken() -> None:
    check(
        [("a.txt", b"hello"), ("b.md", "# שלום".encode()), ("c.pdf", b"%PDF-1.7\n"), ("DIR\\d.HTML", b"<html></html>")], Bounds()
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pdf", b"MZ\x90 no pdf"),
        ("a.txt", b"\x7fELF\x02"),
        ("a.txt", b"MZ\x90\0\x03"),
        ("a.docx", zipped(x="y")),
        ("a.txt", zipped(x="y")),
        ("a.exe", b"x"),
        ("a", b"x"),
        ("", b"x"),
        ("a.txt\0.exe", b"x"),
        ("x" * 600 + ".txt", b"x"),
        ("a.txt.html.svg", b"<svg/>"),
        ("big.txt", b"x" * 101),
    ],
)
def test_what_is_not_is_refused_before_anything_is_stored(name: str, data: bytes) -> None:
    with pytest.raises(RagError) as caught:
        check([("good.txt", b"fine"), (name, data)], Bounds(5, 100, 1000))
    assert caught.value.kind == "bad_input" and caught.value.next_step and caught.value.message.isprintable()


def test_count_and_sum_are_bounded() -> None:
    check([("a.txt", b"x" * 100)] * 5, Bounds(5, 100, 500))
    for files in ([("a.txt", b"x")] * 6, [("a.txt", b"x" * 100)] * 5):
        with pytest.raises(RagError):
            check(files, Bounds(5, 100, 499))


# 3) redaction


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("GET http://anna:s3cr3t-p@ss@10.0.0.1/x failed", "10.0.0.1/x"),
        ("redis://:s3cr3t-pw@10.0.0.7:6379/0", "10.0.0.7:6379/0"),
        ("Authorization: Bearer s3cr3t-token.abc", "Bearer"),
        ("{'authorization': 'Basic czNjcjN0OnMzY3IzdA=='}", "authorization"),
        ("token rdk_0123456789ab_" + "s3cr3t" * 7 + "x is used", "rdk_0123456789ab_"),
        ("api_key=s3cr3t-key&x=1", "x=1"),
        ('{"password": "s3cr3t-pw", "user": "a"}', '"user": "a"'),
        ("Incorrect API key provided: sk-s3cr3ts3cr3ts3cr3t.", "sk-"),
        ("the planted value s3cr3t/value in a text", "in a text"),
        ("in a URL s3cr3t%2Fvalue too", "in a URL"),
    ],
)
def test_secrets_are_masked_and_the_rest_is_kept(text: str, kept: str) -> None:
    masked = Redactor(["s3cr3t/value"])(text)
    assert "s3cr3t" not in masked and "czNj" not in masked and kept in masked and "***" in masked


@pytest.mark.parametrize(
    "text", ["the token count is 12", "password: None", "http://10.0.0.1:8000/a@b", "max_tokens=512", "a bearer of news"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor(["ab", ""])(text) == text


def test_arguments_and_tracebacks_are_masked_too() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log = logging.Logger("alone")
    log.addHandler(handler)
    install(Redactor(["old-value"]), [handler])
    install(Redactor(["hunter2-value"]), [handler])
    try:
        raise OSError("cannot reach http://root:hunter2@host with hunter2-value")
    except OSError:
        log.exception("asked with %s and %r", "hunter2-value", {"key": "hunter2-value"})
    said = written.getvalue()
    assert "hunter2" not in said and "Traceback" in said and said.startswith("ERROR asked with ***")
    assert isinstance(handler.formatter, RedactingFormatter) and not isinstance(handler.formatter.inner, RedactingFormatter)


def test_every_secret_of_the_settings_is_known_to_it(tmp_path: Path) -> None:
    (tmp_path / "dashboard.toml").write_text(
        '[[machines]]\nname = "m"\naddress = "h"\npassword = "s3cr3t-ssh"\n'
        '[embeddings]\nheaders = { X-Team = "s3cr3t-header" }\n[alerts]\nnotify = ["json://u:s3cr3t-notify@h"]\n'
    )
    found = secret_values(load({"RAGDECK_TOKEN": "s3cr3t-token", "REDIS_URL": "redis://:s3cr3t-redis@h:1"}, tmp_path))
    assert {"s3cr3t-token", "s3cr3t-redis", "s3cr3t-ssh", "s3cr3t-header", "s3cr3t-notify"} <= set(found)
    assert secret_values((SecretStr("a"), {"x": [SecretStr("b")]}, "c")) == ["a", "b"]


# 4) scopes


def test_the_scope_of_a_request() -> None:
    assert needed("POST", "/api/v1/ask") == needed("POST", "/v1/traces") == "ask"
    assert needed("GET", "/api/v1/queries/1") == needed("HEAD", "/metrics") == needed("WEBSOCKET", "/_stcore/stream") == "read"
    assert needed("DELETE", "/api/v1/queries/1") == needed("PUT", "/_stcore/upload_file/a/b") == "operate"
    assert needed("GET", "/api/health") is None and needed("HEAD", "/api/health") is None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"])
@pytest.mark.parametrize(
    "path", ["/", "/api/health", "/api/health/", "/api/v1/ask/", "/api/v1/ask/x", "//api/v1/ask", "/API/v1/ask", "/new"]
)
def test_what_no_rule_names_needs_the_most(method: str, path: str) -> None:
    assert needed(method, path) == "operate"


@pytest.mark.parametrize(
    "path", ["/api/health/", "/api/healthx", "/x/api/health", "/signin/x", "/oauth2callback/x", "/api/health\n"]
)
def test_no_neighbour_of_an_open_path_is_open(path: str) -> None:
    assert needed("GET", path) == "read"


def test_every_route_of_the_app_has_its_rule() -> None:
    import app

    rules = {(rule.method, rule.path): rule.scope for rule in RULES}
    served = {(method, route.path) for route in app.ROUTES for method in route.methods - {"HEAD"}}
    assert served and served <= rules.keys()
    assert all(scope in (None, *SCOPES) for scope in rules.values())


def test_scopes_by_name() -> None:
    assert checked([" Read", "ask"]) == {"read", "ask"}
    for wrong in ([], ["admin"], "read", None, 3):
        with pytest.raises(ValueError):
            checked(wrong)
