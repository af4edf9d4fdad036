"""Tries a machine step by step and says which step failed, why, and what to do. Knows no page."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from collectors.errors import CollectorError, HostKeyUnknown, Step
from collectors.ssh import Passed, SshShell
from collectors.ssh_config import Route
from collectors.texts import cut

STEPS: tuple[Step, ...] = get_args(Step)
# What the collectors run there; without the first ones little can be read.
NEEDED = ("tail", "cat", "sed", "df")
OPTIONAL = ("nvidia-smi", "systemctl", "docker", "journalctl")

Told = Callable[["StepResult"], None]


@dataclass(frozen=True, slots=True)
class StepResult:
    """How a step went; `ok` is None when it was not reached. `text` is what was found, or why it failed: never to be shown
    unescaped. `fingerprint` and `command` are set for a host yet to be known."""

    step: Step
    ok: bool | None
    text: str = ""
    next_step: str = ""
    seconds: float | None = None
    fingerprint: str | None = None
    command: str | None = None


def ignore(result: StepResult) -> None:
    """For callers who wait for the whole test."""


def try_connection(
    route: Route, timeout: float = 15.0, needed: Sequence[str] = NEEDED, told: Told = ignore
) -> tuple[StepResult, ...]:
    """All steps in order, each with its result; never raises for what a machine does. `told` gets each that was reached as soon
    as it is over."""
    results: list[StepResult] = []
    since = time.monotonic()

    def over(result: StepResult) -> None:
        results.append(result)
        told(result)

    def passed(step: Step, text: str = "") -> None:
        nonlocal since
        now = time.monotonic()
        over(StepResult(step, True, text, seconds=now - since))
        since = now

    shell = SshShell(route)
    deadline = since + timeout
    try:
        shell.connect(timeout, passed)
        _try_shell(shell, deadline, needed, passed)
    except CollectorError as error:
        over(_failure(error, time.monotonic() - since))
    finally:
        shell.close()
    by_step = {result.step: result for result in results}
    return tuple(by_step.get(step, StepResult(step, None)) for step in STEPS)


def _try_shell(shell: SshShell, deadline: float, needed: Sequence[str], passed: Passed) -> None:
    system = shell.run("uname -sr", max(0.1, deadline - time.monotonic())).stdout
    passed("shell", cut(system.strip()))
    names = " ".join([*needed, *OPTIONAL])
    command = f"for name in {names}; do command -v $name >/dev/null 2>&1 || printf '%s\\n' $name; done"
    missing = shell.run(command, max(0.1, deadline - time.monotonic())).stdout.split()
    lacking = [name for name in needed if name in missing]
    if lacking:
        raise CollectorError(f"not there: {', '.join(lacking)}", next_step="Install them: they are in every base system.")
    absent = [name for name in OPTIONAL if name in missing]
    passed("command", f"not there: {', '.join(absent)} (their readings will be missing)" if absent else "")


def _failure(error: CollectorError, seconds: float) -> StepResult:
    command = error.command if isinstance(error, HostKeyUnknown) else None
    fingerprint = getattr(error, "fingerprint", None)
    return StepResult(error.step, False, cut(error.message, 500), error.next_step, seconds, fingerprint, command)
