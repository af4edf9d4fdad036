"""Restarting a service unit or a container that the settings name: the fixed command, and what its output means.

Knows no transport and no list of what is allowed. This is the only thing that is ever changed on a machine. What keeps this
process from restarting anything on its own machine is in `restart_powers`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from collectors.docker import CONTAINER_NAME, FIND
from collectors.shell import Output
from collectors.systemd import UNIT_NAME
from collectors.texts import cut

SECONDS = 90.0  # systemd's own limit for stopping, and for starting; a client that is cut off leaves its job to the daemon
CONTAINER = "docker:"
SERVICE = ".service"
# Restarting one of these would do something else: `reboot.target` is a unit too.
_OTHER_UNITS = re.compile(r".+\.(socket|device|mount|automount|swap|target|path|timer|slice|scope|snapshot)")

_STEPS = (
    (
        r"no new privileges",
        "sudo cannot work there (NoNewPrivileges): allow it by a polkit rule, or watch the machine over SSH. See "
        "docs/provisioning.md, Restarts.",
    ),
    (
        r"sudo: .*(password|terminal|askpass|not allowed|may not run)|not in the sudoers",
        "Allow it on the machine, with visudo: `USER ALL=(root) NOPASSWD: /usr/bin/systemctl restart {name}`.",
    ),
    (r"sudo: (command )?not found|sudo: No such file", "Install sudo there, or log in as root."),
    (
        r"[Aa]uthentication (is )?required|Access denied",
        "The login may not restart units: allow it by sudo or a polkit rule (docs/provisioning.md, Restarts).",
    ),
    (r"permission denied.*docker|docker.*permission denied", "Add the user to the group `docker` on the machine."),
    (r"Cannot connect to the Docker daemon|Is the docker daemon running", "Start Docker: `systemctl status docker` says why."),
    (r"Unit .* not found|No such container", "Is its name right? Correct it in the machine's setting `restart`."),
)


@dataclass(frozen=True, slots=True)
class Restarted:
    """How a restart ended. `text` is what the machine said (cut short, never to be shown unescaped)."""

    name: str
    ok: bool
    text: str
    next_step: str
    seconds: float


def canonical(name: str) -> str:
    """The name as it is shown and run: `vllm.service` (also for `vllm`), or `docker:NAME`. Raises ValueError for any other."""
    if name.startswith(CONTAINER):
        if not CONTAINER_NAME.fullmatch(name.removeprefix(CONTAINER)):
            raise ValueError(f"not the name of a container: {name!r}")
        return name
    if not UNIT_NAME.fullmatch(name) or name.startswith("-"):
        raise ValueError(f"not the name of a systemd unit: {name!r} (a container is `docker:NAME`)")
    if _OTHER_UNITS.fullmatch(name):
        raise ValueError(f"{name!r} is no service: only services and containers are restarted")
    return name if name.endswith(SERVICE) else name + SERVICE


def command(name: str) -> str:
    """The command. As another user than root by `sudo -n`, which never asks; where no process may gain privileges (`NoNewPrivs`,
    see `powers`) sudo always fails, and polkit decides. Raises ValueError for what `canonical` refuses."""
    known = canonical(name)
    if known.startswith(CONTAINER):
        return f"{FIND}; $docker restart {shlex.quote(known.removeprefix(CONTAINER))} 2>&1"
    # No `--` before the name, which cannot begin with a hyphen: a line of sudoers allows exactly these words.
    restart = f"systemctl restart {shlex.quote(known)}"
    by_polkit = f"systemctl --no-ask-password restart {shlex.quote(known)}"
    return (
        f'if [ "$(id -u)" = 0 ]; then {restart}; '
        f"elif grep -q '^NoNewPrivs:.*1' /proc/self/status 2>/dev/null; then {by_polkit}; "
        f"else sudo -n {restart}; fi 2>&1"
    )


def outcome(name: str, output: Output) -> Restarted:
    """What the command's output means."""
    text = cut(output.stdout.strip(), 500)
    if output.exit_status == 0:
        return Restarted(name, True, text, "", output.seconds)
    said = text or f"it ended with exit status {output.exit_status} and said nothing"
    return Restarted(name, False, said, next_step(name, said), output.seconds)


def is_refusal(text: str) -> bool:
    """It failed at what we may do there, not at the service."""
    return bool(re.search(r"no new priv|uthentication|ccess denied|ermission denied|sudo:|connect to bus|not been booted", text))


def next_step(name: str, text: str) -> str:
    """What to do about a restart that failed."""
    found = next((step for pattern, step in _STEPS if re.search(pattern, text)), "Read its last log lines.")
    return found.replace("{name}", name)
