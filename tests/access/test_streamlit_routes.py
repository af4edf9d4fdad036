"""Streamlit's own routes attacked in the running app: paths that climb, files made for somebody else's page, sessions of others."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from streamlit.proto.BackMsg_pb2 import BackendOperationRequest, BackMsg, DeferredFileRequestPayload
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

from access.scopes import Scope
from access.tokens import TokenStore
from tests.test_app import PATIENCE, SETTINGS, App, start

TOKEN = "correct-horse-battery-staple"
CANARY = "canary-of-the-data-folder"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with start(tmp_path_factory.mktemp("routes"), "0.0.0.0", SETTINGS, RAGDECK_TOKEN=TOKEN) as running:
        (running.config.parent / "data" / "canary.txt").write_text(CANARY)
        yield running


def given(app: App, *scopes: Scope) -> str:
    secret, _ = TokenStore(app.config.parent / "data" / "access.db").create("somebody", list(scopes), created_by="test")
    return secret


# 1) paths that climb


ROOTS = ("/", "/static", "/media", "/component", "/component/nothing", "/app/static", "/_stcore/bidi-components", "/_stcore")
DOTS = ("..", "%2e%2e", ".%2e", "%252e%252e", "..%00", "..;", "%c0%ae%c0%ae", "\uff0e\uff0e", "....")
SLASHES = ("/", "%2f", "\\", "%5c", "%252f", "%255c", "//")


def climbing(target: Path) -> Iterator[str]:
    rest = str(target).lstrip("/")
    for root in ROOTS:
        for dots in DOTS:
            for slash in SLASHES:
                yield f"{root.rstrip('/')}/{(dots + slash) * 12}{rest.replace('/', slash)}"
        for absolute in (
            f"/{rest}",
            f"%2f{rest}",
            f"\\{rest}",
            f"%5c{rest}",
            f"file:///{rest}",
            f"C:\\..\\{rest}",
            f"%00/{rest}",
        ):
            yield f"{root.rstrip('/')}/{absolute}"


def beside() -> Iterator[str]:
    """Files beside Streamlit's folder of static files, which a handler that climbs one level would give."""
    for dots in DOTS:
        for slash in SLASHES:
            yield f"/{dots}{slash}__init__.py"
            yield f"/static/{dots}{slash}{dots}{slash}version.py"


class Line:
    """One connection for many requests, written as they are here: an HTTP client would tidy the paths up."""

    def __init__(self, app: App, token: str | None) -> None:
        self._port = app.port
        self._head = f"Host: 127.0.0.1:{app.port}\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")
        self._reading: Any = None

    def get(self, path: str) -> tuple[int, bytes]:
        """(status, body). The server closes the line over what is no request, and when nobody used it for 5 s: the next one has
        another."""
        said = self._asked(path) if self._reading is not None else b""
        if not said:
            self.close()
            self._line = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
            self._reading = self._line.makefile("rb")
            said = self._asked(path)
        status = int(said.split()[1])
        headers: dict[bytes, bytes] = {}
        while (header := self._reading.readline().strip().lower()) != b"":
            name, _, value = header.partition(b":")
            headers[name] = value.strip()
        body = self._reading.read(int(headers.get(b"content-length", 0)))
        if headers.get(b"connection") == b"close":
            self.close()
        return status, body

    def _asked(self, path: str) -> bytes:
        """The first line of the answer; nothing where the line was closed before."""
        try:
            self._line.sendall(f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode())
            return bytes(self._reading.readline())
        except ConnectionError:
            return b""

    def close(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._line.close()
            self._reading = None


def test_no_path_climbs_out_and_without_a_token_none_is_looked_at(app: App) -> None:
    files = ("/etc/passwd", app.config.parent / "data" / "canary.txt", Path(__file__))
    wanted = [path for file in files for path in climbing(Path(file))] + list(beside())
    index = app.call("GET", "/", headers={"authorization": f"Bearer {TOKEN}"}).content
    assert b"<html" in index
    with closing(Line(app, TOKEN)) as known, closing(Line(app, None)) as unknown:
        for path in wanted:
            status, body = known.get(path)
            assert not any(text in body for text in (b"root:x:0", CANARY.encode(), b"from __future__")), path
            assert status in (301, 307, 308, 400, 403, 404) or body == index, (path, status, body[:200])
            status, body = unknown.get(path)
            assert status in (400, 401) and b"<html" not in body, (path, status)


# 2) what pages were told


class Socket:
    """A page's WebSocket by hand; `files` are the downloads that the page offers."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.files: list[str] = []

    def run(self, page: str = "") -> str:
        """Run the script to its end; returns the name of the session."""
        self._inner.send(BackMsg(rerun_script=ClientState(page_name=page)).SerializeToString())
        session, end = "", time.monotonic() + PATIENCE
        while time.monotonic() < end:
            message = self._heard()
            self.files += [message.delta.new_element.download_button.deferred_file_id]
            session = message.new_session.initialize.session_id or session
            if message.WhichOneof("type") == "script_finished" and session:
                return session
        raise TimeoutError

    def download(self, session: str) -> str:
        """Have the page's file made; returns its address."""
        wanted = DeferredFileRequestPayload(file_id=next(filter(None, self.files)))
        asked = BackendOperationRequest(request_id="1", session_id=session, deferred_file=wanted)
        self._inner.send(BackMsg(backend_operation_request=asked).SerializeToString())
        while (message := self._heard()).WhichOneof("type") != "backend_operation_response":
            continue
        return message.backend_operation_response.deferred_file.url

    def _heard(self) -> ForwardMsg:
        return ForwardMsg.FromString(self._inner.recv(timeout=PATIENCE, decode=False))


@contextmanager
def opened(app: App, secret: str, session: str | None = None) -> Iterator[Socket]:
    protocols: list[Any] = ["streamlit", "PLACEHOLDER", *([session] if session else [])]
    header = {"authorization": f"Bearer {secret}"}
    where = f"ws://127.0.0.1:{app.port}/_stcore/stream"
    with connect(
        where, additional_headers=header, subprotocols=protocols, proxy=None, max_size=None, open_timeout=PATIENCE
    ) as inner:
        yield Socket(inner)


def test_a_file_made_for_one_viewer_is_not_given_to_another(app: App) -> None:
    operator, reader = given(app, "read", "operate"), given(app, "read")
    with opened(app, operator) as page:
        file = page.download(page.run("access"))
        mine = app.call("GET", file, headers={"authorization": f"Bearer {operator}"})
        assert mine.status_code == 200 and mine.content.startswith(b"\xef\xbb\xbfid,at,who")
        for wrong in (reader, TOKEN):
            for method in ("GET", "HEAD"):
                assert app.call(method, file, headers={"authorization": f"Bearer {wrong}"}).status_code == 404
        assert app.call("GET", file).status_code == 401
        written = (
            "/media/%2e/",
            "/media/./",
            "//media/",
            "/%6dedia/",
            "/media%2f",
            "/x/../media/",
            "/media/../media/",
            "/Media/",
        )
        with closing(Line(app, reader)) as line:
            for start_of_it in written:
                _, body = line.get(file.replace("/media/", start_of_it))
                assert b"id,at,who" not in body, start_of_it


def test_a_session_is_resumed_by_its_own_viewer_only(app: App) -> None:
    owner, other = given(app, "read"), given(app, "read")
    with opened(app, owner) as page:
        session = page.run()
        with opened(app, other, session) as theirs:  # while it is connected
            assert theirs.run() != session
        assert page.run() == session  # the owner was not thrown out
    with opened(app, other, session) as theirs:  # once it is disconnected
        assert theirs.run() != session
    with opened(app, owner, session) as again:
        assert again.run() == session
