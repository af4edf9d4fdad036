"""A long-lived loop on a machine: a line in, a frame out. Knows no SSH (the stream is given) and no reading.

One loop runs one request at a time, so what can hang (`nvidia-smi`) gets a loop of its own. A request that is not answered in
time stays under way: nothing more is sent until it is answered, so that hanging programs do not pile up there.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from collectors.errors import CollectorError, ConnectionLost, OutputTooLarge, ShellUnusable, TimedOut
from collectors.frames import Frame, Frames, loop_script
from collectors.shell import MAX_OUTPUT_BYTES
from collectors.texts import cut

LEASE_SECONDS = 900


class Stream(Protocol):
    """The input and output of a remote `sh`."""

    def send(self, data: bytes, timeout: float) -> None:
        """All of `data`. Raises TimeoutError, or OSError when the other end is gone."""

    def receive(self, timeout: float) -> bytes:
        """What has come, b"" at the end. Raises TimeoutError."""

    def close(self) -> None:
        """Close both ways; the loop over there ends itself. May be called twice."""


class Loop:
    """`open_stream(timeout)` opens a stream to `sh`, at the first request and again when half of the lease is over or the stream
    was lost. `scripts` is word -> POSIX shell text. Safe in several threads, which wait for each other."""

    def __init__(
        self,
        open_stream: Callable[[float], Stream],
        scripts: Mapping[str, str],
        *,
        lease_seconds: int = LEASE_SECONDS,
        quiet: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_stream = open_stream
        self._scripts = dict(scripts)
        self._lease_seconds = lease_seconds
        self._quiet = quiet
        self._clock = clock
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._frames = Frames("")
        self._opened_at = 0.0
        self._number = 0
        self._waiting: tuple[int, float] | None = None

    @property
    def waiting_seconds(self) -> float | None:
        """For how long a request has been unanswered; None when there is none."""
        waiting = self._waiting
        return None if waiting is None else self._clock() - waiting[1]

    def sample(self, word: str, timeout: float) -> Frame:
        """Run the script `word` once. Raises TimedOut while it, or one before it, is not answered; ShellUnusable when there is no
        shell; ConnectionLost or OutputTooLarge after which the next call opens a new stream."""
        if word not in self._scripts:
            raise ValueError(f"no script {word!r}: there are {sorted(self._scripts)}")
        deadline = self._clock() + timeout
        with self._lock:
            try:
                return self._sample(word, deadline)
            except (CollectorError, OSError) as error:
                if isinstance(error, TimedOut) and self._waiting is not None:
                    raise
                self._drop()
                if isinstance(error, CollectorError):
                    raise
                raise ConnectionLost(f"the connection ended: {cut(str(error))}", next_step=_AGAIN) from error

    def close(self) -> None:
        """End the loop over there. A later `sample` opens another."""
        stream = self._stream
        if stream is not None:
            stream.close()  # wakes a `sample` that waits in another thread
        with self._lock:
            self._drop()

    def _sample(self, word: str, deadline: float) -> Frame:
        if self._waiting is not None:
            self._receive(self._waiting[0], deadline)
        if self._stream is not None and self._clock() - self._opened_at > self._lease_seconds / 2:
            self._drop()
        if self._stream is None:
            self._open(deadline)
        self._number += 1
        self._send(f"{self._number} {word}\n".encode(), deadline)
        self._waiting = (self._number, self._clock())
        return self._receive(self._number, deadline)

    def _open(self, deadline: float) -> None:
        nonce = secrets.token_hex(12)
        self._frames = Frames(nonce)
        self._stream = self._open_stream(deadline - self._clock())
        self._opened_at = self._clock()
        self._send(loop_script(self._scripts, nonce, self._lease_seconds, quiet=self._quiet).encode(), deadline)
        while not self._frames.ready:  # only then may more be sent: a shell may read its script in blocks
            self._read(deadline)

    def _receive(self, number: int, deadline: float) -> Frame:
        while True:
            for frame in self._read(deadline):
                if frame.number == number:
                    self._waiting = None
                    return frame

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._stream is not None
        self._stream.send(data, max(0.01, deadline - self._clock()))

    def _read(self, deadline: float) -> list[Frame]:
        assert self._stream is not None
        try:
            data = self._stream.receive(max(0.0, deadline - self._clock()))
        except TimeoutError:
            raise self._late() from None
        if not data:
            raise self._ended()
        frames = self._frames.feed(data)
        if self._frames.pending_bytes > MAX_OUTPUT_BYTES:
            raise OutputTooLarge(
                f"more than {MAX_OUTPUT_BYTES} bytes in one answer", next_step="See what floods its output there."
            )
        return frames

    def _late(self) -> TimedOut:
        if self._waiting is not None:
            seconds = self._clock() - self._waiting[1]
            return TimedOut(
                f"no answer for {seconds:.1f} s", next_step="A program may hang there: `ps -eo pid,stat,args | grep D`."
            )
        return TimedOut("logged in, but no shell answered in time", next_step=_SHELL + self._said(), step="shell")

    def _ended(self) -> CollectorError:
        if self._frames.ready:
            return ConnectionLost("the machine ended the loop", next_step=_AGAIN)
        return ShellUnusable(f"logged in, but no POSIX shell answered{self._said()}", next_step=_SHELL)

    def _said(self) -> str:
        return f"; it said: {cut(self._frames.noise)}" if self._frames.noise else ""

    def _drop(self) -> None:
        self._waiting = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None


_AGAIN = "It is tried again; if it goes on, look at the machine's log (journalctl -u ssh)."
_SHELL = "The account needs a login shell that runs `/bin/sh`, and profiles that do not read the input or start another shell."
