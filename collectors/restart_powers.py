"""Whether this process can restart anything on the machine it runs on, before anybody tries. Changes nothing, runs no command.

Our systemd unit has `NoNewPrivileges=yes`: no process in it gains privileges by `execve` (prctl(2), PR_SET_NO_NEW_PRIVS), so that
sudo ends at once. Taking that line away does not help: systemd.exec(5) has it follow from most of the unit's other lines. What is
left is asking systemd over D-Bus, where polkit decides, or SSH to this machine, whose sessions are outside of the unit.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from collectors.restart import CONTAINER

RULE_FILE = "/etc/polkit-1/rules.d/50-ragdeck-restart.rules"
OVER_SSH = (
    "Or watch this machine over SSH, as a [[machines]] with the address 127.0.0.1, and move `restart` there "
    "(docs/provisioning.md, Restarts)."
)


@dataclass(frozen=True, slots=True)
class Powers:
    """What this process may do here. `docker_socket`: whether it may write to Docker's; None where there is none, or another is
    named. `polkit`: there is one that reads rules (0.106 and later)."""

    uid: int
    user: str
    no_new_privileges: bool
    systemctl: bool
    sudo: bool
    polkit: bool
    docker_socket: bool | None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a restart cannot work, or (not `certain`) only by a rule that cannot be seen from here."""

    name: str
    text: str
    next_step: str
    certain: bool


def powers(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Powers:
    """Those of this process. `root` is where `/proc`, `/etc`, `/usr` and `/run` are."""
    uid, path = os.geteuid(), environ.get("PATH")
    return Powers(
        uid=uid,
        user=_name(uid),
        no_new_privileges=_no_new_privileges(root / "proc/self/status"),
        systemctl=shutil.which("systemctl", path=path) is not None and os.path.isdir(root / "run/systemd/system"),
        sudo=shutil.which("sudo", path=path) is not None,
        polkit=any(os.path.isdir(root / folder / "polkit-1/rules.d") for folder in ("etc", "usr/share")),
        docker_socket=_docker_socket(root / "run/docker.sock", environ),
    )


def obstacles(names: Iterable[str], may: Powers) -> tuple[Obstacle, ...]:
    """What stands in the way of each of these (canonical names)."""
    every = tuple(names)
    return tuple(_obstacles(every, may))


def polkit_rule(user: str, units: Iterable[str]) -> str:
    """A rule that lets `user` restart these units and nothing else, for polkit 0.106 and later."""
    listed = ", ".join(f'"{unit}"' for unit in units)
    return (
        "polkit.addRule(function (action, subject) {\n"
        f"    var units = [{listed}];\n"
        '    if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "' + user + '"\n'
        '            && action.lookup("verb") == "restart" && units.indexOf(action.lookup("unit")) >= 0) {\n'
        "        return polkit.Result.YES;\n"
        "    }\n"
        "});\n"
    )


def _obstacles(names: tuple[str, ...], may: Powers) -> Iterator[Obstacle]:
    units = [name for name in names if not name.startswith(CONTAINER)]
    for name in names:
        found = _of_container(name, may) if name.startswith(CONTAINER) else _of_unit(name, may, units)
        if found is not None:
            yield found


def _of_container(name: str, may: Powers) -> Obstacle | None:
    if may.docker_socket is not False:
        return None
    step = f"Add `SupplementaryGroups=docker` to the unit of RAG Deck (or {may.user} to the group docker), and start it again."
    return Obstacle(name, f"{may.user} may not use Docker here: its socket belongs to the group docker.", step, True)


def _of_unit(name: str, may: Powers, units: list[str]) -> Obstacle | None:
    if not may.systemctl:
        text = "RAG Deck sees no systemd here: it runs in a container, or on a machine without."
        step = "Watch the host over SSH, as a [[machines]] with its address, and move `restart` there."
        return Obstacle(name, text, step, True)
    if may.uid == 0:
        return None
    if not may.no_new_privileges:
        text, step = "There is no sudo here.", "Install it, with a line for this unit: docs/provisioning.md, Restarts."
        return None if may.sudo else Obstacle(name, text, step, True)
    why = "RAG Deck runs with NoNewPrivileges, so that sudo cannot work"
    if not may.polkit:
        step = f"Install polkitd and allow it by a rule. {OVER_SSH}"
        return Obstacle(name, f"{why}, and there is no polkit that reads rules.", step, True)
    rule = " ".join(polkit_rule(may.user, units).split())
    text = f"{why}: it works only if polkit has a rule for it, which cannot be seen from here."
    return Obstacle(name, text, f"Write this into {RULE_FILE}: {rule} {OVER_SSH}", False)


def _no_new_privileges(status: Path) -> bool:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith("NoNewPrivs:") and line.split()[1:] == ["1"] for line in lines)


def _docker_socket(socket: Path, environ: Mapping[str, str]) -> bool | None:
    if environ.get("DOCKER_HOST") or not os.path.exists(socket):
        return None
    return os.access(socket, os.W_OK)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
