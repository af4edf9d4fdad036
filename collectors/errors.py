"""One error tree for reaching machines; foreign errors (sockets, paramiko, subprocess) are mapped to it at the edges.

CollectorError
├── NameNotFound            the address does not resolve
├── ConnectionFailed        nothing answers at the address, or it does not speak SSH
│   └── ConnectionLost      the connection or the channel ended while it was in use
├── HostKeyError            the host did not show a key we may trust
│   ├── HostKeyUnknown      no key of it is known: nothing was sent
│   ├── HostKeyChanged      another key is known for it
│   └── HostKeyRevoked      its key is marked @revoked
├── AuthenticationFailed    it wants another user or key: do not retry
│   └── KeyUnusable         the private key cannot be read or needs its passphrase
├── ShellUnusable           logged in, but no POSIX shell answers
├── TimedOut                also a TimeoutError: the time limit passed
└── OutputTooLarge          the command printed more than is taken from a machine

What a command says about its machine is no error: parsers return it as a `Fault` of the reading.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Kind = Literal["connection", "authentication", "timeout", "bad_answer", "internal"]
Step = Literal["name", "connect", "host key", "authentication", "shell", "command"]


class CollectorError(Exception):
    """Root of the tree. `step` says where on the way to the machine it failed; `next_step` what to check or do."""

    kind: ClassVar[Kind] = "internal"
    step: Step = "command"

    def __init__(self, message: str, *, next_step: str = "", address: str | None = None, step: Step | None = None) -> None:
        super().__init__(message)
        self.step = step or self.step
        self.message = message
        self.next_step = next_step
        self.address = address


class NameNotFound(CollectorError):
    """The address does not resolve."""

    kind = "connection"
    step = "name"


class ConnectionFailed(CollectorError):
    """Nothing answers at the address, or what answers does not speak SSH."""

    kind = "connection"
    step: Step = "connect"


class ConnectionLost(ConnectionFailed):
    """The connection or the channel ended while it was in use."""

    step = "command"


class HostKeyError(CollectorError):
    """The host did not show a key we may trust. `fingerprint` is that of the key it showed, `SHA256:…`."""

    kind = "authentication"
    step = "host key"

    def __init__(self, message: str, *, fingerprint: str, next_step: str = "", address: str | None = None) -> None:
        super().__init__(message, next_step=next_step, address=address)
        self.fingerprint = fingerprint


class HostKeyUnknown(HostKeyError):
    """No key of the host is known. `command` adds the key it showed: to be run once the fingerprint has been compared."""

    def __init__(self, message: str, *, fingerprint: str, command: str, next_step: str = "", address: str | None = None) -> None:
        super().__init__(message, fingerprint=fingerprint, next_step=next_step, address=address)
        self.command = command


class HostKeyChanged(HostKeyError):
    """Another key is known for the host."""


class HostKeyRevoked(HostKeyError):
    """The key is marked @revoked."""


class AuthenticationFailed(CollectorError):
    """The host wants another user or key. Retrying makes it worse: newer servers penalise the source."""

    kind = "authentication"
    step = "authentication"


class KeyUnusable(AuthenticationFailed):
    """The private key cannot be read, or needs its passphrase."""


class ShellUnusable(CollectorError):
    """Logged in, but no POSIX shell answers."""

    kind = "bad_answer"
    step = "shell"


class TimedOut(CollectorError, TimeoutError):
    """The time limit passed."""

    kind = "timeout"


class OutputTooLarge(CollectorError):
    """The command printed more than is taken from a machine."""

    kind = "bad_answer"
