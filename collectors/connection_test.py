"""Tries a machine step by step and says which step failed, why, and what to do. Knows no page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from collectors.errors import CollectorError, HostKeyUnknown, Step
from collectors.ssh import SshShell
from collectors.ssh_config import Route
from collectors.texts import cut

STEPS: tuple[Step, ...] = get_args(Step)
# What the collectors run there; without the first ones little can be read.
NEEDED = ("tail", "cat", "sed", "df")
OPTIONAL = ("nvidia-smi", "systemctl", "docker", "journalctl")


@dataclass(frozen=True, slots=True)
class StepResult:
    """How a step went; `ok` is None when it was not reached. `fingerprint` and `command` are set for a host yet to be known."""

    step: Step
    ok: bool | None
    text: str = ""
    next_step: str = ""
    seconds: float | None = None
    fingerprint: str | None = None
    command: str | None = None


def try_connection(route: Route, timeout: float = 15.0, needed: Sequence[str] = NEEDED) -> tuple[StepResult, ...]:
    """All steps in order, each with its result; never raises for what a machine does."""
    results: list[StepResult] = []
    since = time.monotonic()

    def passed(step: Step, text: str = "") -> None:
        nonlocal since
        now = time.monotonic()
        results.append(StepResult(step, True, text, seconds=now - since))
        since = now

    shell = SshShell(route)
    deadline = since + timeout
    try:
        shell.connect(timeout, passed)
        _try_shell(shell, deadline, needed, passed)
    except CollectorError as error:
        results.append(_failure(error, time.monotonic() - since))
    finally:
        shell.close()
    by_step = {result.step: result for result in results}
    return tuple(by_step.get(step, StepResult(step, None)) for step in STEPS)


def _try_shell(shell: SshShell, deadline: float, needed: Sequence[str], passed: object) -> None:
    assert callable(passed)
    shell.run(":", max(0.1, deadline - time.monotonic()))
    passed("shell")
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
