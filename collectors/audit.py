"""Who changed what on which machine, when, and what came of it: a file that is only ever added to, a JSON object a line.

An action has two lines of one id: `asked`, written before anything is done, and its outcome. Knows no machine and no page.
"""

from __future__ import annotations

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
MAX_CHARS = 500


@dataclass(frozen=True, slots=True)
class Action:
    """One action. `at` and `ended_at` are ISO 8601 in UTC; `outcome` stays `asked` while it runs, and for good when the process
    ended before it did. `who` is None where it is not known; `text` is what was said of the outcome, not to be trusted."""

    id: str
    at: str
    who: str | None
    machine: str
    what: str
    outcome: Outcome
    text: str = ""
    ended_at: str | None = None


class AuditLog:
    """Thread-safe. `clock` gives Unix seconds."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self._lock = threading.Lock()

    def begin(self, who: str | None, machine: str, what: str) -> Action:
        """Write that something was asked for. Raises OSError: then it must not be done."""
        short = None if who is None else cut(who, MAX_CHARS)
        action = Action(uuid.uuid4().hex, self._now(), short, cut(machine, MAX_CHARS), cut(what, MAX_CHARS), "asked")
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
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                file.write(data)
                os.fsync(descriptor)

    def _tail(self) -> list[bytes]:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - READ_BYTES))
                return file.read().split(b"\n")
        except FileNotFoundError:
            return []


def _parsed(line: bytes) -> Action | None:
    """None for a line that was cut off, or written by a hand."""
    try:
        values: dict[str, Any] = json.loads(line)
        return Action(**values)
    except (ValueError, TypeError, RecursionError):
        return None
