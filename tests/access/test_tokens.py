"""API tokens in a real file: what is kept of them, when they count, and when no more."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from access.tokens import MAX_TOKENS, NOTE_SECONDS, SESSION_SECONDS, TokenStore
from rag.errors import RagError


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> TokenStore:
    return TokenStore(tmp_path / "data" / "access.db", clock)


def test_a_token_names_its_holder_and_scopes(store: TokenStore) -> None:
    secret, token = store.create(" nightly  run ", ["ask", "read"], created_by="anna")
    who = store.identify(secret)
    assert who is not None and (who.name, who.how, who.scopes) == ("nightly run", "api token", {"ask", "read"})
    assert not who.may("operate") and who.token_id == token.id and secret.startswith(token.prefix)


def test_the_file_holds_no_secret_and_is_for_its_owner_only(store: TokenStore) -> None:
    secret, _ = store.create("a", ["read"], created_by="anna")
    session = store.open_session(store.all()[0].id)
    for path in store.path.parent.iterdir():
        content = path.read_bytes()
        assert not any(text.split("_", 2)[2].encode() in content for text in (secret, session))  # it may hold a "_" itself
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600


def test_no_two_secrets_are_alike_and_each_has_256_bits(store: TokenStore) -> None:
    secrets = {store.create(f"n{n}", ["read"], created_by="x")[0] for n in range(20)}
    assert len(secrets) == 20 and all(len(secret.split("_", 2)[2]) == 43 for secret in secrets)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:-1] + ("A" if s[-1] != "A" else "B"),
        lambda s: s[:-1],
        lambda s: s + "A",
        lambda s: s.replace("rdk_", "rds_"),
        lambda s: s.upper(),
        lambda s: f" {s}",
        lambda s: f"{s}\n",
        lambda s: "",
        lambda s: "rdk_" + "0" * 12 + "_" + "A" * 43,
        lambda s: "rdk_' OR 1=1 --_" + "A" * 43,
        lambda s: s.split("_")[1],
    ],
)
def test_anything_else_is_nobody(store: TokenStore, change) -> None:
    secret, _ = store.create("a", ["read"], created_by="x")
    assert store.identify(change(secret)) is None and store.identify(secret) is not None


def test_revoked_and_expired_tokens_and_their_sessions_count_for_nothing(store: TokenStore, clock: Clock) -> None:
    secret, token = store.create("a", ["read"], created_by="x")
    short, other = store.create("b", ["read"], created_by="x", expires_in_seconds=60)
    one, two = store.open_session(token.id), store.open_session(other.id)
    assert all(store.identify(text) for text in (secret, short, one, two))
    clock.now += 61
    assert store.identify(short) is store.identify(two) is None
    store.revoke(token.prefix)
    assert store.identify(secret) is store.identify(one) is None
    assert [found.state(clock.now) for found in store.all()] == ["revoked", "expired"] or {
        found.name: found.state(clock.now) for found in store.all()
    } == {"a": "revoked", "b": "expired"}
    assert not store.any_active()


def test_another_process_sees_a_revocation_at_once(store: TokenStore, clock: Clock) -> None:
    secret, token = store.create("a", ["read"], created_by="x")
    TokenStore(store.path, clock).revoke(token.id)
    assert store.identify(secret) is None


def test_a_session_ends_by_itself_and_when_it_is_closed(store: TokenStore, clock: Clock) -> None:
    _, token = store.create("a", ["read"], created_by="x")
    one, two = store.open_session(token.id), store.open_session(token.id)
    store.close_session(one)
    assert store.identify(one) is None and store.identify(two) is not None
    clock.now += SESSION_SECONDS
    assert store.identify(two) is None


def test_last_use_is_kept_but_not_at_every_request(store: TokenStore, clock: Clock) -> None:
    secret, _ = store.create("a", ["read"], created_by="x")
    first = clock.now
    assert store.all()[0].used_at_unix is None
    store.identify(secret)
    clock.now += NOTE_SECONDS / 2
    store.identify(secret)
    assert store.all()[0].used_at_unix == first
    clock.now += NOTE_SECONDS
    store.identify(secret)
    assert store.all()[0].used_at_unix == clock.now


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "a\x00b", "a\u202eb"])
def test_a_name_must_be_one(store: TokenStore, name: str) -> None:
    with pytest.raises(RagError) as caught:
        store.create(name, ["read"], created_by="x")
    assert caught.value.kind == "bad_input" and store.all() == []


@pytest.mark.parametrize("scopes", [[], ["root"], ["read", "root"], "read", None])
def test_scopes_are_of_three(store: TokenStore, scopes: object) -> None:
    with pytest.raises(RagError) as caught:
        store.create("a", scopes, created_by="x")
    assert caught.value.kind == "bad_input"


@pytest.mark.parametrize("seconds", [0, -1, 1e11, float("nan")])
def test_expiry_is_in_the_future(store: TokenStore, seconds: float) -> None:
    with pytest.raises(RagError):
        store.create("a", ["read"], created_by="x", expires_in_seconds=seconds)


def test_there_is_an_end_to_them(store: TokenStore) -> None:
    store.create("a", ["read"], created_by="x")
    with sqlite3.connect(store.path) as db:
        rows = [(f"{n:012x}", b"", "n", "read", "x", 0.0, None, None, None) for n in range(MAX_TOKENS)]
        db.executemany("INSERT INTO tokens VALUES (?,?,?,?,?,?,?,?,?)", rows)
    with pytest.raises(RagError):
        store.create("one more", ["read"], created_by="x")


def test_looking_makes_no_file_and_a_broken_one_lets_nobody_in(store: TokenStore) -> None:
    assert store.all() == [] and store.identify("rdk_" + "0" * 12 + "_" + "A" * 43) is None and not store.path.parent.exists()
    store.path.parent.mkdir()
    store.path.write_bytes(b"no database at all" * 100)
    with pytest.raises(RagError) as caught:
        store.identify("rdk_" + "0" * 12 + "_" + "A" * 43)
    assert caught.value.next_step
    with pytest.raises(RagError):
        store.revoke("nothing")
