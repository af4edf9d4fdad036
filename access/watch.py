"""What was let in once is looked at again while it lasts: a page's WebSocket, an answer that streams.

Knows the ASGI messages; what a page's messages mean it is told by `Words`. Who somebody is it asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from starlette.types import Message, Receive, Send

from access.scopes import Identity, Scope

LOOK_SECONDS = 1.0

Asking = Callable[[], Identity | None]


class Said(NamedTuple):
    """What a message of a page's browser needs, and the wish to load anew, and do nothing else, the page on which the browser is;
    None where the message names no page."""

    needs: Scope
    anew: bytes | None = None


class Words(Protocol):
    """How to read what a page's browser says."""

    first_page: bytes
    """The wish to load the first page anew."""

    def read(self, message: bytes) -> Said | None:
        """None for what is no message; the app closes the connection over it."""
        ...


class Watch:
    """Whether somebody may still do what they were let in for; asked again once in `every` seconds at most."""

    def __init__(self, who: Identity, needed: Scope, asking: Asking, clock: Callable[[], float] = time.monotonic) -> None:
        self.who: Identity | None = who
        self.needed, self._asking, self._clock = needed, asking, clock
        self._looked = clock()

    @property
    def ended(self) -> bool:
        now = self._clock()
        if now - self._looked >= LOOK_SECONDS:
            self._looked, self.who = now, self._asking()
        return self.who is None or not self.who.may(self.needed)


class PageSocket:
    """`receive` of a page's WebSocket.

    While its viewer may read, messages pass, but for those that need more than they have. From the moment on that they may not,
    whatever the browser says is taken for the wish to load its page anew, and the same is said once for a browser that is
    silent: so the page's script runs from its beginning, where it finds that the access has ended and shows how to go on. A run
    that was under way ends there too. The connection stays: one that is closed takes what somebody is typing with it.
    """

    def __init__(self, receive: Receive, watch: Watch, words: Words, every: float = LOOK_SECONDS) -> None:
        self._receive, self._watch, self._words, self._every = receive, watch, words, every
        self._next: asyncio.Task[Message] | None = None
        self._anew_here = words.first_page
        self._told = False

    async def receive(self) -> Message:
        while True:
            message = await self._heard()
            if message is None and self._watch.ended and not self._told:
                return self._anew()
            if message is None:
                continue
            data = message.get("bytes")
            if message["type"] != "websocket.receive" or data is None:
                return message
            if self._watch.ended:
                return self._anew()
            self._told = False
            if self._may_say(data):
                return message

    def done(self) -> None:
        """The app has ended: nothing more is waited for."""
        if self._next is not None:
            self._next.cancel()

    async def _heard(self) -> Message | None:
        """The next message, or None after a while of silence. The wait for it is never broken off: a message could get lost."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._receive())
        await asyncio.wait({self._next}, timeout=self._every)
        if not self._next.done():
            return None
        done, self._next = self._next, None
        return done.result()

    def _may_say(self, data: bytes) -> bool:
        said, who = self._words.read(data), self._watch.who
        if said is None:
            return True
        self._anew_here = said.anew or self._anew_here
        return who is not None and who.may(said.needs)

    def _anew(self) -> dict[str, Any]:
        self._told = True
        return {"type": "websocket.receive", "bytes": self._anew_here}


class Stream:
    """`receive` and `send` of an answer that may take long: one of no stated length ends where its reader's access ends, and the
    app is told that the reader has gone, so that it stops what it does for them."""

    def __init__(self, receive: Receive, send: Send, watch: Watch) -> None:
        self._receive, self._send, self._watch = receive, send, watch
        self._began = self._cut = False
        self._is_open = False

    async def receive(self) -> Message:
        if self._began and self._watch.ended:
            return {"type": "http.disconnect"}
        return await self._receive()

    async def send(self, message: Message) -> None:
        if self._cut:
            return
        if self._began and self._watch.ended:
            self._cut = True
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        if message["type"] == "http.response.start":
            self._is_open = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
        self._began = self._began or (self._is_open and bool(message.get("more_body")))
        await self._send(message)
