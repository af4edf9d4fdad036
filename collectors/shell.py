"""How a command reaches a machine: the protocol that both shells keep. Knows no command and no reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MAX_OUTPUT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Output:
    """What a command printed, decoded as UTF-8 with replacement characters, and how it ended: `exit_status` as in `$?`,
    128 and the signal's number when a signal ended it."""

    stdout: str
    stderr: str
    exit_status: int
    seconds: float


class Shell(Protocol):
    """Runs POSIX shell text on one machine."""

    def run(self, command: str, timeout: float) -> Output:
        """Run `command` with `sh`, `LC_ALL=C` and no input; at most `timeout` seconds in all.

        Raises TimedOut, OutputTooLarge or another CollectorError. A command that fails is no error: see `exit_status`. However
        the call ends, nothing that it started is left running, save what the machine itself cannot kill.
        """

    def close(self) -> None:
        """End what is open. May be called twice."""
