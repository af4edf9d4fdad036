"""Docker (or Podman) containers: state, health, restarts, memory. Knows no transport, and changes nothing: it only reads.

`COMMAND` prints the machine's time, one JSON line a container and, from the control groups, their memory: `docker stats` takes
two seconds and asks the daemon. A daemon that does not answer is a fault and `containers` is None: dead is not "none". A client
alone, on a machine where no daemon was ever set up, is no fault: it is noted as Docker that is not installed is.
"""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC, datetime
from typing import Any

from collectors.readings import Container, Containers, Fault
from collectors.texts import count, cut, lines, number

_FORMAT = (
    '{"id":{{json .Id}},"name":{{json .Name}},"image":{{json .Config.Image}},"restarts":{{json .RestartCount}}'
    ',"state":{{json .State.Status}},"exit":{{json .State.ExitCode}},"oom":{{json .State.OOMKilled}}'
    ',"started":{{json .State.StartedAt}},"finished":{{json .State.FinishedAt}}'
    ',"health":{{if .State.Health}}{{json .State.Health.Status}}{{else}}null{{end}}}'
)
# Sets $docker to the program that is there.
FIND = "docker=docker; command -v docker >/dev/null 2>&1 || { command -v podman >/dev/null 2>&1 && docker=podman; }"
COMMAND = f"""{FIND}
printf 'now %s\\n' "$(date +%s)"
if ids=$($docker ps --all --quiet --no-trunc 2>&1); then
  printf 'answered\\n'
  [ -z "$ids" ] || $docker inspect --type container --format {shlex.quote(_FORMAT)} $ids 2>&1
  for id in $ids; do
    for file in "/sys/fs/cgroup/system.slice/docker-$id.scope/memory.current" "/sys/fs/cgroup/docker/$id/memory.current" \\
      "/sys/fs/cgroup/memory/docker/$id/memory.usage_in_bytes" "/sys/fs/cgroup/machine.slice/libpod-$id.scope/memory.current"
    do [ -r "$file" ] && read -r used <"$file" && printf 'memory %s %s\\n' "$id" "$used"; done
  done
else
  printf '%s\\n' "$ids"
  daemon=; for trace in /var/run/docker.sock /var/lib/docker /lib/systemd/system/docker.service /etc/systemd/system/docker.service
  do [ ! -e "$trace" ] || daemon=1; done
  [ -n "$daemon$DOCKER_HOST" ] || command -v dockerd >/dev/null 2>&1 || printf 'client alone\\n'
fi
"""
CLOCK_SECONDS = 5.0  # `date` tells whole seconds, and clocks are set by small steps
CONTAINER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")

_USUAL = "unix:///var/run/docker.sock"  # where a client looks that nobody told anything else
_CLIENT_ALONE = "The Docker client is installed there, but no Docker daemon is set up."
_FAULTS = (
    ("no_docker", "not found", "Docker is not installed there: leave containers out of the settings.", "note"),
    ("docker_denied", "permission denied", "Add the user to the group `docker` on the machine, or watch it as another user.", ""),
    ("docker_down", "Cannot connect to the Docker daemon", "Start it: `systemctl status docker` says why it is down.", ""),
    ("docker_down", "Is the docker daemon running", "Start it: `systemctl status docker` says why it is down.", ""),
)


def logs(container: str, count: int = 50) -> str:
    """The command for the last lines of a container's log. Raises ValueError for what is no container's name."""
    if not CONTAINER_NAME.fullmatch(container):
        raise ValueError(f"not the name of a container: {container!r}")
    return f"{FIND}; $docker logs --tail {int(count)} --timestamps {shlex.quote(container)} 2>&1"


def parse(text: str) -> Containers:
    """The reading in what COMMAND printed. Never raises."""
    found = lines(text)
    if "answered" not in found:
        return Containers(None, (_refusal(text),))
    now = next((number(line[4:]) for line in found if line.startswith("now ")), None)
    memory = {words[1]: count(words[2]) for line in found if len(words := line.split()) == 3 and words[0] == "memory"}
    containers: list[Container] = []
    faults: list[Fault] = []
    for line in found:
        if line.startswith("{"):
            container = _container(line, now, memory)
            if container is None:
                faults.append(Fault("docker_unreadable", cut(line), "The format of `docker inspect` is not the known one."))
            else:
                containers.append(container)
        elif "No such" in line:  # it ended between `ps` and `inspect`
            faults.append(Fault("container_gone", cut(line), "It ended while it was being read.", severity="note"))
        elif "rror" in line:
            faults.append(Fault("docker_failed", cut(line), "Run `docker inspect` by hand on the machine."))
    faults += [finding for container in containers if (finding := _finding(container)) is not None]
    return Containers(tuple(containers), tuple(faults))


def _refusal(text: str) -> Fault:
    found = lines(text)
    if "client alone" in found and any(f"daemon at {_USUAL}" in line for line in found):
        return Fault(
            "no_docker_daemon", _CLIENT_ALONE, "Leave containers out of the settings, or install Docker.", severity="note"
        )
    for code, words, next_step, severity in _FAULTS:
        line = next((line for line in found if words in line), None)
        if line is not None:
            return Fault(code, cut(line), next_step, severity="note" if severity else "warning")
    return Fault("docker_failed", cut(text), "Run `docker ps` by hand on the machine.")


def _container(line: str, now: float | None, memory: dict[str, int | None]) -> Container | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("name"), str):
        return None
    state = _text(row, "state")
    since = _unix_seconds(row.get("started" if state in ("running", "paused") else "finished"))
    return Container(
        name=cut(row["name"].removeprefix("/")),
        id=cut(row["id"], 80),
        image=_text(row, "image"),
        state=state,
        health=None if row.get("health") == "none" else _text(row, "health"),
        restarts=_integer(row, "restarts"),
        exit_code=_integer(row, "exit"),
        out_of_memory=row["oom"] if isinstance(row.get("oom"), bool) else None,
        state_seconds=_age(since, now),
        memory_bytes=memory.get(row["id"]),
    )


def _age(since: float | None, now: float | None) -> float | None:
    """None where the clock there was set back beyond the time: it did not begin just now."""
    if since is None or now is None or now < since - CLOCK_SECONDS:
        return None
    return max(0.0, now - since)


def _text(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    return cut(value) or None if isinstance(value, str) else None


def _integer(row: dict[str, Any], name: str) -> int | None:
    value = row.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _unix_seconds(text: object) -> float | None:
    """RFC 3339 with nanoseconds; year 1 is Docker's "never"."""
    match = re.match(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})", str(text))
    if not match or match[1].startswith("0001"):
        return None
    try:
        return datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00")).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def _finding(container: Container) -> Fault | None:
    subject, log = container.name, f"Read its log: `docker logs --tail 50 {container.name}`."
    if container.health == "unhealthy":
        return Fault("container_unhealthy", f"{subject} is unhealthy", log, subject, "critical")
    if container.state == "restarting":
        return Fault("container_restarting", f"{subject} is restarting again and again", log, subject, "critical")
    if container.state == "exited" and container.out_of_memory:
        return Fault(
            "container_out_of_memory", f"{subject} was ended for want of memory", "Give it more memory.", subject, "critical"
        )
    return None
