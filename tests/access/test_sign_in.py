"""Who a proxy says it is, and who Streamlit's cookie says it is: believed only with the secret."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from itsdangerous import URLSafeTimedSerializer
from starlette.datastructures import Headers
from streamlit.auth_util import set_cookie_with_chunks
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

from access.authenticator import COOKIE as SESSION_COOKIE
from access.authenticator import SERVER, Authenticator
from access.oidc import COOKIE, OidcSessions, write_secrets
from access.proxy import TrustedProxy
from access.scopes import ALL, OPEN, Scope
from access.sessions import ServerSessions
from access.tokens import SESSION_SECONDS, TokenStore

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


CLAIMS = {
    "email": "bo@example.org",
    "email_verified": True,
    "sub": "42",
    "is_logged_in": True,
    "origin": "https://rag.example",
    "groups": ["admins"],
}


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
    assert OIDC.identify({COOKIE: good[:-20] + "x" * 20}) is None  # so many, because two may stand there already
    assert OIDC.identify({COOKIE: URLSafeTimedSerializer(OIDC.cookie_secret, salt="other").dumps(json.dumps(CLAIMS))}) is None
    assert OIDC.identify({}) is None and OIDC.identify({COOKIE: ""}) is None and OIDC.identify({COOKIE: "א" * 50}) is None
    later = time.time() + 3700
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: later)
    assert OIDC.identify({COOKIE: good}) is None


UNSTATED = {key: value for key, value in CLAIMS.items() if key not in ("groups", "email_verified")}
TRUSTING = replace(OIDC, trust_email=True)


@pytest.mark.parametrize("stated", [True, "true"])
def test_an_address_that_the_provider_has_verified_counts(stated: Any) -> None:
    who = OIDC.identify(cookie({**UNSTATED, "email_verified": stated}))
    assert who is not None and (who.name, who.scopes, who.hint) == ("bo@example.org", {"read", "ask"}, "")


@pytest.mark.parametrize("stated", [None, False, "false", "", 0, 1, "no", [True]])
def test_any_other_gives_no_role_and_it_is_said_why(stated: Any) -> None:
    who = OIDC.identify(cookie({**UNSTATED, "email_verified": stated}))
    assert who is not None and (who.name, who.scopes) == ("42", {"read"}) and "(42)" in who.hint
    assert ("access.oidc.trust_email" in who.hint) == (stated is None)
    nobody = OIDC.identify(cookie({**UNSTATED, "email_verified": stated, "email": "no-role@example.org"}))
    assert nobody is not None and nobody.hint == who.hint  # it does not tell which addresses have a role


def test_unstated_addresses_count_where_the_settings_trust_them_and_denied_ones_never() -> None:
    for claims in (UNSTATED, {**UNSTATED, "email_verified": None}):
        who = TRUSTING.identify(cookie(claims))
        assert who is not None and (who.name, who.scopes, who.hint) == ("bo@example.org", {"read", "ask"}, "")
        doubted = OIDC.identify(cookie(claims))
        assert doubted is not None and doubted.scopes == {"read"}
    for stated in (False, "false", 0, "no"):
        who = TRUSTING.identify(cookie({**UNSTATED, "email_verified": stated}))
        assert who is not None and (who.name, who.scopes) == ("42", {"read"}) and "not verified" in who.hint


def test_without_an_address_nothing_is_said_of_it() -> None:
    who = OIDC.identify(cookie({key: value for key, value in UNSTATED.items() if key != "email"}))
    assert who is not None and who.hint == ""


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


def test_processes_that_begin_at_once_have_one_secret(tmp_path: Path) -> None:
    folders = [str(tmp_path / str(number)) for number in range(20)]
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "cookie.secret").write_text("cut")  # by a disk that was full
    command = [sys.executable, "-m", "tests.access.secret_child", *folders]
    with ExitStack() as ending:
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "text": True,
            "bufsize": 1,
            "cwd": Path(__file__).parents[2],
        }
        children = [ending.enter_context(subprocess.Popen(command, **pipes)) for _ in range(4)]
        assert {_said(child) for child in children} == {"ready"}
        for folder in folders:
            for child in children:
                assert child.stdin is not None
                child.stdin.write("now\n")
            made = {_said(child) for child in children}
            assert len(made) == 1 and made == {(Path(folder) / "cookie.secret").read_text()}
            assert made == {tomllib.loads((Path(folder) / "secrets.toml").read_text())["auth"]["cookie_secret"]}


def test_threads_that_begin_at_once_have_one_secret(tmp_path: Path) -> None:
    given = {"metadata_url": "https://id", "client_id": "c", "client_secret": "s", "redirect_uri": "https://rag/oauth2callback"}
    begin = threading.Barrier(8)

    def make(_: int) -> str:
        begin.wait(20)
        return write_secrets(tmp_path / "access", **given)[1]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(8)))) == 1


def _said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


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


# 4) the cookie of the server's own token


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def signed_in(ways: Authenticator) -> Headers:
    who = ways.by_token("the server's own")
    assert who is not None
    return headers(("Cookie", f"{SESSION_COOKIE}={ways.session(who)}"))


def test_the_cookie_of_the_servers_token_ends_after_twelve_hours(tmp_path: Path) -> None:
    clock = Clock()
    ways = Authenticator(True, "the server's own", TokenStore(tmp_path / "access.db", clock), unix_clock=clock)
    shown = signed_in(ways)
    clock.now += SESSION_SECONDS - 1
    assert ways.identify(shown) == SERVER
    clock.now += 1
    assert ways.identify(shown) is None and ways.identify(signed_in(ways)) == SERVER
    clock.now -= 2 * SESSION_SECONDS  # it was made in the future: a clock that was set back makes no session longer
    assert ways.identify(shown) is None


def test_a_sign_out_ends_copies_of_it_and_no_other_session(tmp_path: Path) -> None:
    ways = Authenticator(True, "the server's own", TokenStore(tmp_path / "access.db"))
    mine, other = signed_in(ways), signed_in(ways)
    ways.end_session(mine)
    elsewhere = Authenticator(True, "the server's own", TokenStore(tmp_path / "access.db"))  # another process
    for each in (ways, elsewhere):
        assert each.identify(mine) is None and each.identify(other) == SERVER


def test_its_end_is_kept_as_long_as_it_would_have_counted(tmp_path: Path) -> None:
    clock = Clock()
    ways = Authenticator(True, "the server's own", TokenStore(tmp_path / "access.db", clock), unix_clock=clock)
    ended = signed_in(ways)
    ways.end_session(ended)
    for _ in range(4):
        clock.now += SESSION_SECONDS / 4 - 1
        ways.end_session(signed_in(ways))  # what is over is removed at such a moment
        assert ways.identify(ended) is None


def test_another_token_ends_it_and_no_part_of_it_can_be_changed(tmp_path: Path) -> None:
    ways = Authenticator(True, "the server's own")
    value = ServerSessions("the server's own").open()
    nonce, stamp, signature = value.split(".")
    assert "server" not in value and ServerSessions("another").mark(value) is None  # "own" may stand there by chance
    later = ServerSessions("the server's own", lambda: time.time() + 1).open().split(".")[1]
    assert later != stamp
    for wrong in (
        f"{nonce}.{later}.{signature}",
        f"{nonce[::-1]}.{stamp}.{signature}",
        f"{nonce}.{signature}",
        "",
        ".",
        "a.b.c",
        "\udcff",
    ):
        assert ServerSessions("the server's own").mark(wrong) is None, wrong
        assert ways.identify(headers(("Cookie", f"{SESSION_COOKIE}={wrong}".encode("utf-8", "replace").decode()))) is None
    changed = value[:-1] + chr(ord(value[-1]) ^ 1)  # base64 has bits that say nothing: another spelling is the same session
    assert ServerSessions("the server's own").mark(changed) in (None, ServerSessions("the server's own").mark(value))


def test_a_file_that_cannot_be_read_lets_no_cookie_in(tmp_path: Path) -> None:
    (tmp_path / "access.db").write_text("no database at all, but long enough to be taken for one" * 100)
    ways = Authenticator(True, "the server's own", TokenStore(tmp_path / "access.db"))
    assert ways.identify(signed_in(ways)) is None
    assert ways.identify(headers(("Authorization", "Bearer the server's own"))) == SERVER
