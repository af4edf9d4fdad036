"""Who changed what, when, from where, and what came of it: a file that is only ever added to, a JSON object a line.

An action has two lines of one id: `asked`, written before anything is done, and its outcome. A file that is full becomes
`audit.log.1`, that one `.2`, and so on; the oldest goes. Knows no machine, no token and no page.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from collectors.texts import cut

Outcome = Literal["asked", "done", "failed", "refused"]
READ_BYTES = 1_000_000  # of the end of the file
FULL_BYTES = 10_000_000
KEPT_FILES = 9
MAX_CHARS = 500


@dataclass(frozen=True, slots=True)
class Action:
    """One action. `at` and `ended_at` are ISO 8601 in UTC; `outcome` stays `asked` while it runs, and for good when the process
    ended before it did. `who` is None where it is not known; `text` is what was said of the outcome, not to be trusted. `machine`
    is where it was done, "" for RAG Deck itself; `target` what it was done to; `address` where it was asked from."""

    id: str
    at: str
    who: str | None
    machine: str
    what: str
    outcome: Outcome
    text: str = ""
    ended_at: str | None = None
    address: str | None = None
    target: str = ""


class AuditLog:
    """Thread-safe. `clock` gives Unix seconds."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, full_bytes: int = FULL_BYTES) -> None:
        self.path, self._clock, self._full_bytes = path, clock, full_bytes
        self._lock = threading.Lock()

    def begin(self, who: str | None, machine: str, what: str, address: str | None = None, target: str = "") -> Action:
        """Write that something was asked for. Raises OSError: then it must not be done."""
        short = None if who is None else cut(who, MAX_CHARS)
        asked = Action(uuid.uuid4().hex, self._now(), short, cut(machine, MAX_CHARS), cut(what, MAX_CHARS), "asked")
        known = None if address is None else cut(address, MAX_CHARS)
        action = replace(asked, address=known, target=cut(target, MAX_CHARS))
        self._write(action)
        return action

    def end(self, action: Action, outcome: Outcome, text: str = "") -> Action:
        """Write what came of it. Raises OSError."""
        ended = replace(action, outcome=outcome, text=cut(text, MAX_CHARS), ended_at=self._now())
        self._write(ended)
        return ended

    def read(self, machine: str | None = None, limit: int = 20) -> list[Action]:
        """The latest actions, of one machine or of all, the newest first. Raises OSError; a file that is not there is empty."""
        found: dict[str, Action] = {}
        for line in self._tail():
            action = _parsed(line)
            if action is not None and machine in (None, action.machine):
                found[action.id] = action
        return list(reversed(found.values()))[:limit]

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")

    def _write(self, action: Action) -> None:
        """In one write, and on the disk before it is acted upon."""
        data = json.dumps(asdict(action), ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._turn()
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                file.write(data)
                os.fsync(descriptor)

    def _turn(self) -> None:
        """Begin a new file where this one is full. Another process may do so at the same moment: one of them does."""
        if not self._is_full():
            return
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._is_full():
                return
            for number in range(KEPT_FILES - 1, 0, -1):
                older = self._older(number)
                if older.exists():
                    older.replace(self._older(number + 1))
            self.path.replace(self._older(1))

    def _is_full(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size >= self._full_bytes

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _tail(self) -> list[bytes]:
        """The lines of the last READ_BYTES, the oldest first; also of the file before, where this one has begun lately."""
        last = _end(self.path, READ_BYTES)
        before = _end(self._older(1), READ_BYTES - len(last)) if len(last) < READ_BYTES else b""
        return before.split(b"\n") + last.split(b"\n")


def _end(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            return file.read()
    except FileNotFoundError:
        return b""


def _parsed(line: bytes) -> Action | None:
    """None for a line that was cut off, or written by a hand."""
    try:
        values: dict[str, Any] = json.loads(line)
        return Action(**values)
    except (ValueError, TypeError, RecursionError):
        return None
