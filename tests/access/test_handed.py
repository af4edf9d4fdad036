"""What pages were told, and to whom: files and sessions are for whoever was told them."""

from __future__ import annotations

import asyncio

from starlette.types import Message
from streamlit.proto.DownloadButton_pb2 import DownloadButton

from access.handed import Handed

FILE, OTHER = "a1" * 28, "b2" * 28
SESSION, LATER = "0b1c2d3e-4f50-4a7b-8c9d-0e1f2a3b4c5d", "9b1c2d3e-4f50-4a7b-8c9d-0e1f2a3b4c5d"


def told(handed: Handed, key: str, *data: bytes) -> list[Message]:
    """What went on to the browser."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def all_of_it() -> None:
        sender = handed.sending(key, send)
        await sender({"type": "websocket.accept"})
        for each in data:
            await sender({"type": "websocket.send", "bytes": each})

    asyncio.run(all_of_it())
    return sent


def test_files_are_for_whoever_was_told_them() -> None:
    handed = Handed()
    data = (b"\x0a\x02/media/" + FILE.encode() + b".csv\x12", b"", b"/media/ nothing")
    assert [message.get("bytes") for message in told(handed, "anna", *data)] == [None, *data]
    for path in (f"/media/{FILE}.csv", f"/media/{FILE}", f"/base/media/{FILE}.csv"):
        assert handed.is_for("anna", path) and not handed.is_for("bo", path)
    assert not handed.is_for("anna", f"/media/{OTHER}.csv") and not handed.is_for("anna", "/media/nothing")
    assert handed.is_for("bo", "/") and handed.is_for("bo", "/media") and handed.is_for("bo", "/static/js/x.js")


def test_a_file_without_an_ending_is_told_too() -> None:
    """In a real message of Streamlit's, where the bytes of the next field follow its address."""
    for help_text in ("", "b2", "Bytes", "0"):
        handed = Handed()
        button = DownloadButton(id="plan", url=f"/media/{FILE[:32]}", help=help_text, disabled=True, type="secondary")
        told(handed, "anna", button.SerializeToString())
        assert handed.is_for("anna", f"/media/{FILE[:32]}") and not handed.is_for("bo", f"/media/{FILE[:32]}")


def test_the_fonts_and_components_of_pages_are_for_everybody() -> None:
    handed = Handed()
    for path in ("/static/media/MaterialSymbols-Rounded.nEdyypZU.woff2", "/base/static/media/x.woff2", "/component/a/media/b.js"):
        assert handed.is_for("bo", path), path
    for path in (f"//media/{FILE}", f"/a/b/media/{FILE}", f"/statics/media/{FILE}"):
        assert not handed.is_for("bo", path), path


def test_a_session_is_resumed_by_whoever_was_told_its_name() -> None:
    handed = Handed()
    told(handed, "anna", b"\x01\x02 nothing", b'"' + SESSION.encode() + b'"', b"typed into a page: " + LATER.encode())
    assert handed.resumed("anna", f"streamlit, token, {SESSION}") == f"streamlit, token, {SESSION}"
    for said in (f"streamlit, token, {SESSION}", f"streamlit,token,{SESSION} ", f"streamlit, token,  {SESSION}, x, {SESSION}"):
        assert SESSION not in handed.resumed("bo", said) and handed.resumed("bo", said).startswith("streamlit")
    assert handed.resumed("bo", f"streamlit, , {SESSION}") == "streamlit, "
    for said in ("", "streamlit", "streamlit, token"):
        assert handed.resumed("bo", said) == said
    assert LATER not in handed.resumed("anna", f"streamlit, token, {LATER}")  # only the first name on a line is a session's


def test_it_keeps_no_more_than_it_may() -> None:
    handed = Handed(most=2)
    for name in (FILE, OTHER, "c3" * 28):
        told(handed, "anna", b"/media/" + name.encode())
    assert not handed.is_for("anna", f"/media/{FILE}.csv") and handed.is_for("anna", f"/media/{OTHER}.csv")
