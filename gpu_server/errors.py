"""One error tree for models, in-process and over HTTP; foreign errors are mapped to it at the edges.

EngineError
├── BadInput              the request cannot be served as it is (empty text, token ids, unknown option)
│   └── TooLarge          it is over a stated limit
├── Overloaded            the queue is full: try again later
├── ModelError            the model cannot be loaded, or is not the one asked for
│   └── ForwardFailed     the model ran and failed on this very request
├── ConnectionFailed      nothing answers at the address
├── AuthenticationFailed  the server wants another key
├── BadAnswer             a server answered, but not with what was asked for
└── TimedOut              also a TimeoutError: the deadline or the request's time limit passed
"""

from __future__ import annotations

from typing import ClassVar, Literal

Kind = Literal["connection", "authentication", "model", "timeout", "overloaded", "bad_answer", "bad_input", "internal"]


class EngineError(Exception):
    """Root of the tree. `kind` is the class's own; `next_step` says in a sentence what to check or do."""

    kind: ClassVar[Kind] = "internal"

    def __init__(self, message: str, *, next_step: str = "", address: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.address = address


class BadInput(EngineError):
    """The request cannot be served as it is."""

    kind = "bad_input"


class TooLarge(BadInput):
    """The request is over a stated limit."""


class Overloaded(EngineError):
    """The queue is full. `retry_after` is seconds until a place is likely, None where unknown."""

    kind = "overloaded"

    def __init__(
        self, message: str, *, next_step: str = "", address: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, next_step=next_step, address=address)
        self.retry_after = retry_after


class ModelError(EngineError):
    """The model cannot be loaded (what is missing is named), or is not the one asked for."""

    kind = "model"


class ForwardFailed(ModelError):
    """The model ran and failed on this very request; others in its batch were served."""


class ConnectionFailed(EngineError):
    """Nothing answers at the address: refused, unknown host, broken connection, TLS."""

    kind = "connection"


class AuthenticationFailed(EngineError):
    """The server wants a key, or another one."""

    kind = "authentication"


class BadAnswer(EngineError):
    """A server answered, but not with what was asked for: wrong dimension, NaN, missing scores, no JSON."""

    kind = "bad_answer"


class TimedOut(EngineError, TimeoutError):
    """The deadline or the request's time limit passed."""

    kind = "timeout"
