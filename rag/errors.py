"""One error tree for the query path; foreign errors are mapped to it at the edges.

RagError
├── StageError   a stage failed: names stage, kind, address and the next step
├── HeldError    the embedded store is open in another process
└── Cancelled    the caller asked for an end
"""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "connection", "authentication", "model", "timeout", "overloaded", "bad_answer", "bad_input", "not_found", "held", "internal"
]


class RagError(Exception):
    """Root of the tree. `kind` is one of `Kind`; `next_step` says what to do, in a sentence."""

    def __init__(self, message: str, *, kind: Kind = "internal", address: str | None = None, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.kind: Kind = kind
        self.address = address
        self.next_step = next_step


class StageError(RagError):
    """A stage failed and with it the query (or, where it can degrade, that stage alone)."""

    def __init__(
        self, stage: str, message: str, *, kind: Kind = "internal", address: str | None = None, next_step: str = ""
    ) -> None:
        super().__init__(message, kind=kind, address=address, next_step=next_step)
        self.stage = stage


class HeldError(RagError):
    """The embedded store is open in another process (`pid`, and its `url` when it serves one)."""

    def __init__(self, message: str, *, pid: int | None, url: str | None, next_step: str, address: str | None = None) -> None:
        super().__init__(message, kind="held", address=address, next_step=next_step)
        self.pid = pid
        self.url = url


class Cancelled(RagError):
    """The caller cancelled the work, or its deadline passed while it waited."""
