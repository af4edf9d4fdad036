"""What was let in once and is looked at again: by clocks and messages that the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates

from access.authenticator import COOKIE, VOUCHED_SECONDS, Authenticator
from access.oidc import OidcSessions
from access.proxy import TrustedProxy
from access.scopes import ALL, Identity, Scope
from access.tokens import TokenStore
from access.watch import LOOK_SECONDS, PageSocket, Stream, Watch
from tests.access.test_sign_in import ALLOWED, CLAIMS, cookie
from ui.socket_words import StreamlitWords

BO = Identity("bo", "oidc", frozenset[Scope]({"read"}))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def message(said: BackMsg) -> dict[str, Any]:
    return {"type": "websocket.receive", "bytes": said.SerializeToString()}


def state(heard: dict[str, Any]) -> ClientState:
    said = BackMsg.FromString(heard["bytes"])
    assert said.WhichOneof("type") == "rerun_script"
    return said.rerun_script


PRESSED = WidgetStates(widgets=[WidgetState(id="delete", trigger_value=True)])
PRESS = BackMsg(
    rerun_script=ClientState(query_string="name=x", page_script_hash="p" * 32, fragment_id="f" * 32, widget_states=PRESSED)
)


class Page:
    """A page's socket; `now` is who its viewer is."""

    def __init__(self, now: Identity | None = BO) -> None:
        self.now, self.clock, self.queue = now, Clock(), asyncio.Queue[dict[str, Any]]()
        watch = Watch(BO, "read", lambda: self.now, self.clock)
        self.socket = PageSocket(self.queue.get, watch, StreamlitWords(), every=0.01)

    async def hears(self, said: BackMsg) -> dict[str, Any]:
        self.queue.put_nowait(message(said))
        return dict(await asyncio.wait_for(self.socket.receive(), 10))


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_messages_pass_while_they_may_and_in_their_order() -> None:
    async def test() -> None:
        page = Page()
        for number in range(5):
            page.queue.put_nowait(message(BackMsg(rerun_script=ClientState(query_string=str(number)))))
        assert [state(dict(await page.socket.receive())).query_string for _ in range(5)] == list("01234")
        assert await page.hears(PRESS) == message(PRESS)
        page.queue.put_nowait({"type": "websocket.disconnect", "code": 1001})
        assert (await page.socket.receive())["type"] == "websocket.disconnect"
        page.socket.done()

    run(test)


def test_what_was_pressed_is_forgotten_and_the_page_runs_anew() -> None:
    async def test() -> None:
        page = Page()
        await page.hears(PRESS)
        page.now, page.clock.now = None, LOOK_SECONDS
        kept = state(dict(await asyncio.wait_for(page.socket.receive(), 10)))  # nobody said anything
        assert (kept.query_string, kept.page_script_hash) == ("name=x", "p" * 32)
        assert not kept.fragment_id and not kept.widget_states.widgets
        silent = asyncio.ensure_future(page.socket.receive())
        await asyncio.sleep(0.1)
        assert not silent.done()  # it is said once
        page.queue.put_nowait(message(BackMsg(stop_script=True)))
        assert state(dict(await silent)) == kept
        for said in (PRESS, BackMsg(clear_cache=True), BackMsg(load_git_info=True)):
            assert state(await page.hears(said)) == kept
        page.now, page.clock.now = BO, 2 * LOOK_SECONDS
        assert await page.hears(PRESS) == message(PRESS)  # signed in again, in another tab

    run(test)


def test_what_only_operators_may_say_does_not_arrive() -> None:
    async def test() -> None:
        page = Page()
        page.queue.put_nowait(message(BackMsg(clear_cache=True)))
        page.queue.put_nowait({"type": "websocket.receive", "bytes": b"\xff\xff no message"})
        assert (await page.socket.receive())["bytes"] == b"\xff\xff no message"  # Streamlit closes over it
        page.now, page.clock.now = Identity("bo", "oidc", ALL), LOOK_SECONDS
        assert (await page.hears(BackMsg(clear_cache=True))) == message(BackMsg(clear_cache=True))

    run(test)


def test_it_is_asked_once_a_second() -> None:
    asked, clock = [], Clock()
    watch = Watch(BO, "read", lambda: asked.append(1) or BO, clock)  # type: ignore[func-returns-value]
    for tenth in range(1, 31):
        clock.now = tenth / 10
        assert not watch.ended
    assert len(asked) == 3


def test_a_stream_ends_and_an_answer_of_known_length_does_not() -> None:
    async def test(headers: list[tuple[bytes, bytes]]) -> tuple[list[Any], str]:
        sent, clock, now = [], Clock(), [BO]

        async def send(each: Any) -> None:
            sent.append((each.get("body"), each.get("more_body")))

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        stream = Stream(receive, send, Watch(BO, "read", lambda: now[0] if now else None, clock))
        await stream.send({"type": "http.response.start", "status": 200, "headers": headers})
        await stream.send({"type": "http.response.body", "body": b"a", "more_body": True})
        now.clear()
        clock.now = LOOK_SECONDS
        heard = (await stream.receive())["type"]
        for _ in range(3):
            await stream.send({"type": "http.response.body", "body": b"b", "more_body": True})
        return sent[1:], heard

    assert asyncio.run(test([])) == ([(b"a", True), (b"", False)], "http.disconnect")
    assert asyncio.run(test([(b"Content-Length", b"4")])) == ([(b"a", True), *[(b"b", True)] * 3], "http.request")


# 2) what counts of a sign-in that was made some time ago


def headers(**given: str) -> Headers:
    return Headers({name.replace("_", "-"): value for name, value in given.items()})


def test_a_proxys_newest_word_counts_and_not_for_ever() -> None:
    clock = Clock()
    ways = Authenticator(True, proxy=TrustedProxy("X-User", "X-Proof", "s" * 32, "X-Groups", ALLOWED), clock=clock)
    page = headers(X_User="anna", X_Proof="s" * 32, X_Groups="admins")
    who = ways.arrived(page)
    assert who is not None and who.may("operate") and ways.again(page) == who
    ways.arrived(headers(X_User="anna", X_Proof="guessed", X_Groups=""))
    assert ways.again(page) == who  # whoever has no secret says nothing of anybody
    ways.arrived(headers(X_User="anna", X_Proof="s" * 32, X_Groups=""))
    less = ways.again(page)
    assert less is not None and less.scopes == {"read"}
    clock.now = VOUCHED_SECONDS
    assert ways.again(page) is None
    for number in range(3000):
        ways.arrived(headers(X_User=f"user {number}", X_Proof="s" * 32))
    assert len(ways.vouched) <= 1024


def test_who_signs_out_is_out_however_the_cookie_is_written(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    tokens = TokenStore(tmp_path / "access.db", lambda: now[0])
    oidc = OidcSessions("c" * 43, "https://rag.example/oauth2callback", "groups", 3600.0, ALLOWED)
    ways = Authenticator(True, tokens=tokens, oidc=oidc)
    long = {**CLAIMS, "groups": [f"group {n}" for n in range(50)]}
    for claims, other in ((CLAIMS, {**CLAIMS, "sub": "43"}), (long, {**long, "sub": "43"})):
        shown = cookie(claims)
        mine = headers(cookie="; ".join(f"{name}={value}" for name, value in shown.items()))
        assert ways.identify(mine) is not None
        ways.end_session(mine)
        assert ways.identify(mine) is None
        more = headers(
            cookie="; ".join([f"{name}={value}" for name, value in shown.items()] + ["_streamlit_user_99=x", f"{COOKIE}=y"])
        )
        padded = headers(cookie="; ".join(f"{name}={value}=" for name, value in shown.items()))
        assert ways.identify(more) is None and ways.identify(padded) is None
        jar = headers(cookie="; ".join(f"{name}={value}" for name, value in cookie(other).items()))
        assert ways.identify(jar) is not None  # another sign-in, in the same second
    ways.end_session(headers(cookie="_streamlit_user=forged"))
    now[0] += 3601
    tokens.end_sign_in(b"another", 1.0)
    assert not tokens.has_ended(b"nothing") and tokens.has_ended(b"another")


def test_a_file_of_an_older_version_ends_nobody(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "access.db") as db:
        db.execute("CREATE TABLE tokens (id TEXT)")
    assert not TokenStore(tmp_path / "access.db").has_ended(b"x")


@pytest.mark.parametrize("broken", [b"no database at all, but a text", b"\0" * 5000])
def test_a_file_that_cannot_be_read_lets_nobody_in(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "access.db").write_bytes(broken)
    oidc = OidcSessions("c" * 43, "https://rag.example/oauth2callback", "groups", 3600.0, ALLOWED)
    ways = Authenticator(True, tokens=TokenStore(tmp_path / "access.db"), oidc=oidc)
    assert ways.identify(headers(cookie="; ".join(f"{name}={value}" for name, value in cookie(CLAIMS).items()))) is None
