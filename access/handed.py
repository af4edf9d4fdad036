"""What pages were told belongs to whom they were told it: addresses of files made for a page, and the names of its sessions.

Streamlit gives a file under `/media/` to whoever knows its address, and a page's state to whoever reconnects under its session's
name. Both cannot be guessed, but addresses get into logs and histories. Here only who was told them may use them. Knows their
form, and no more of Streamlit.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator

from starlette.types import Message, Send

REMEMBERED = 20_000
PROTOCOLS = "sec-websocket-protocol"
_FILE = re.compile(rb"/media/([\w-]+)")
_SESSION = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_FILE_PATH = re.compile(r"(?:/(?!(?:static|component|app)/)[^/]*)*/media/([^/.]+)")  # not Streamlit's own fonts in /static/media/


class Handed:
    """In bounded memory; what was forgotten was told nobody, and a page that runs again is told it again."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def note(self, key: str, name: str) -> None:
        """`key` is that of an identity."""
        self._known[key, name] = None
        self._known.move_to_end((key, name))
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def sending(self, key: str, send: Send) -> Send:
        """`send` of a page's WebSocket that takes note of what it tells."""
        named = False

        async def sender(message: Message) -> None:
            nonlocal named
            data = message.get("bytes") or b""
            if b"/media/" in data:
                for name in _files(data):
                    self.note(key, name)
            if not named:  # the first message that names anything names the session
                names = _SESSION.findall(data)
                named = bool(names)
                for name in names:
                    self.note(key, name.decode())
            await send(message)

        return sender

    def is_for(self, key: str, path: str) -> bool:
        """Whether this path is none of a page's files, or one that was told to this identity."""
        found = _FILE_PATH.match(path)
        return found is None or (key, found[1]) in self._known

    def resumed(self, key: str, protocols: str) -> str:
        """What a browser says at the handshake (protocol, token against forgery, session), without a session of others."""
        entries = protocols.split(",")
        return protocols if len(entries) < 3 or (key, entries[2].strip()) in self._known else ",".join(entries[:2])


def _files(data: bytes) -> Iterator[str]:
    """Files that a protobuf message names. One without an ending runs into the next field; the byte before states its length."""
    for found in _FILE.finditer(data):
        name = found[1].decode()
        yield name
        stated = data[found.start() - 1] - len("/media/") if found.start() else 0
        if 0 < stated < len(name):
            yield name[:stated]
