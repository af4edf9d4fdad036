"""Who a proxy says it is, and who Streamlit's cookie says it is: believed only with the secret."""

from __future__ import annotations

import hashlib
import json
import stat
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from itsdangerous import URLSafeTimedSerializer
from starlette.datastructures import Headers
from streamlit.auth_util import set_cookie_with_chunks
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

from access.authenticator import Authenticator
from access.oidc import COOKIE, OidcSessions, write_secrets
from access.proxy import TrustedProxy
from access.scopes import ALL, OPEN, Scope
from access.tokens import TokenStore

ALLOWED: dict[Scope, tuple[str, ...]] = {"read": ("*",), "ask": ("group:Team", "bo@example.org"), "operate": ("group:admins",)}
SECRET = "proxy-secret-of-32-characters-xx"
PROXY = TrustedProxy("X-User", "X-Proof", SECRET, "X-Groups", ALLOWED)
OIDC = OidcSessions("c" * 43, "https://rag.example/oauth2callback", "groups", 3600.0, ALLOWED)


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.lower().encode(), value.encode()) for name, value in pairs])


# 1) proxy


def test_a_proxy_with_its_secret_is_believed() -> None:
    who = PROXY.identify(headers(("X-User", "anna"), ("X-Proof", SECRET), ("X-Groups", "team, Admins")))
    assert who is not None and (who.name, who.how, who.scopes, who.groups) == ("anna", "proxy", ALL, ("team", "Admins"))
    plain = PROXY.identify(headers(("X-User", "carl"), ("X-Proof", SECRET)))
    assert plain is not None and plain.scopes == {"read"}


@pytest.mark.parametrize(
    "given",
    [
        [("X-User", "anna")],
        [("X-User", "anna"), ("X-Proof", "")],
        [("X-User", "anna"), ("X-Proof", SECRET[:-1])],
        [("X-User", "anna"), ("X-Proof", SECRET), ("X-Proof", SECRET)],
        [("X-User", "anna"), ("X-User", "root"), ("X-Proof", SECRET)],
        [("X-User", "anna"), ("X-Proof", SECRET), ("X-Groups", "a"), ("X-Groups", "admins")],
        [("X-Proof", SECRET)],
        [("X-User", "  "), ("X-Proof", SECRET)],
        [("X-User", "\u202e"), ("X-Proof", SECRET)],
    ],
)
def test_nobody_else_is(given: list[tuple[str, str]]) -> None:
    assert PROXY.identify(headers(*given)) is None


@pytest.mark.parametrize("name", ["admins", "group:admins", "GROUP:ADMINS", "*"])
def test_calling_oneself_like_a_group_makes_nobody_its_member(name: str) -> None:
    who = PROXY.identify(headers(("X-User", name), ("X-Proof", SECRET)))
    assert who is not None and who.scopes == {"read"}


# 2) OpenID Connect


def cookie(claims: Any, secret: str = OIDC.cookie_secret) -> dict[str, str]:
    """As Streamlit itself sets it, in chunks where it is long."""
    made: dict[str, str] = {}

    def sign(name: str, value: str) -> bytes:
        return create_signed_value(secret, name, value)

    def keep(name: str, value: str) -> None:
        made[name] = sign(name, value).decode()

    set_cookie_with_chunks(keep, sign, COOKIE, claims, cookie_attr_size=80)
    return made


CLAIMS = {"email": "bo@example.org", "sub": "42", "is_logged_in": True, "origin": "https://rag.example", "groups": ["admins"]}


def test_streamlits_own_cookie_is_read() -> None:
    who = OIDC.identify(cookie(CLAIMS))
    assert who is not None and (who.name, who.how, who.scopes) == ("bo@example.org", "oidc", ALL)


def test_a_long_cookie_comes_in_chunks() -> None:
    made = cookie({**CLAIMS, "groups": ["admins", *(hashlib.sha256(bytes([n])).hexdigest() for n in range(190))]})
    assert len(made) > 2
    who = OIDC.identify(made)
    assert who is not None and who.may("operate")
    made.pop(f"{COOKIE}_2")
    assert OIDC.identify(made) is None


@pytest.mark.parametrize(
    "claims",
    [
        {**CLAIMS, "is_logged_in": False},
        {**CLAIMS, "is_logged_in": "true"},
        {**CLAIMS, "origin": "https://evil.example"},
        {key: value for key, value in CLAIMS.items() if key != "origin"},
        {key: value for key, value in CLAIMS.items() if key not in ("email", "sub")},
        [],
        "anna",
    ],
)
def test_other_claims_are_nobody(claims: Any) -> None:
    signed = URLSafeTimedSerializer(OIDC.cookie_secret, salt=COOKIE).dumps(json.dumps(claims))
    assert OIDC.identify({COOKIE: signed}) is None


def test_forged_moved_and_old_cookies_are_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    good = cookie(CLAIMS)[COOKIE]
    assert OIDC.identify(cookie(CLAIMS, "d" * 43)) is None
    assert OIDC.identify({COOKIE: good[:-2] + "xx"}) is None
    assert OIDC.identify({COOKIE: URLSafeTimedSerializer(OIDC.cookie_secret, salt="other").dumps(json.dumps(CLAIMS))}) is None
    assert OIDC.identify({}) is None and OIDC.identify({COOKIE: ""}) is None and OIDC.identify({COOKIE: "א" * 50}) is None
    later = time.time() + 3700
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: later)
    assert OIDC.identify({COOKIE: good}) is None


def test_an_address_that_is_not_verified_gives_no_role() -> None:
    who = OIDC.identify(cookie({**CLAIMS, "groups": [], "email_verified": False}))
    assert who is not None and (who.name, who.scopes) == ("42", {"read"})


def test_names_that_users_choose_themselves_give_no_role() -> None:
    who = OIDC.identify(
        cookie({**CLAIMS, "groups": [], "email": "x@y", "name": "admins", "preferred_username": "bo@example.org"})
    )
    assert who is not None and who.scopes == {"read"}


def test_the_secrets_file_is_for_its_owner_and_a_restart_signs_nobody_out(tmp_path: Path) -> None:
    given = {
        "metadata_url": "https://id",
        "client_id": "c",
        "client_secret": 's"\n]',
        "redirect_uri": "https://rag/oauth2callback",
    }
    path, secret = write_secrets(tmp_path / "access", **given)
    auth = tomllib.loads(path.read_text())["auth"]
    assert auth["client_secret"] == 's"\n]' and auth["cookie_secret"] == secret and len(secret) >= 43
    assert [stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()] == [0o600, 0o600]
    assert write_secrets(tmp_path / "access", **given)[1] == secret


# 3) together


def test_the_ways_in_stand_beside_each_other(tmp_path: Path) -> None:
    tokens = TokenStore(tmp_path / "access.db")
    secret, _ = tokens.create("program", ["ask"], created_by="x")
    ways = Authenticator(True, "the server's own", tokens, PROXY, OIDC)
    jar = "; ".join(f"{name}={value}" for name, value in cookie(CLAIMS).items())
    names = [
        ways.identify(headers(*pairs))
        for pairs in (
            [("Authorization", "Bearer the server's own")],
            [("Authorization", f"bearer {secret}")],
            [("X-User", "anna"), ("X-Proof", SECRET)],
            [("Cookie", jar)],
            [("Authorization", "Basic eHg6eHg="), ("X-User", "anna"), ("X-Proof", SECRET)],
        )
    ]
    assert [who and who.how for who in names] == ["server token", "api token", "proxy", "oidc", "proxy"]
    assert ways.identify(headers()) is None
    assert ways.identify(headers(("Authorization", f"Bearer {secret}x"), ("X-User", "anna"), ("X-Proof", SECRET))) is None


def test_where_nothing_is_needed_a_wrong_token_is_still_wrong(tmp_path: Path) -> None:
    tokens = TokenStore(tmp_path / "access.db")
    secret, token = tokens.create("program", ["ask"], created_by="x")
    ways = Authenticator(tokens=tokens)
    assert ways.identify(headers()) == OPEN
    who = ways.identify(headers(("Authorization", f"Bearer {secret}")))
    assert who is not None and who.scopes == {"ask"}
    tokens.revoke(token.id)
    assert ways.identify(headers(("Authorization", f"Bearer {secret}"))) is None


def test_nothing_secret_is_in_a_repr() -> None:
    shown = repr(Authenticator(True, "the server's own", None, PROXY, OIDC))
    assert "own" not in shown and SECRET not in shown and OIDC.cookie_secret not in shown
