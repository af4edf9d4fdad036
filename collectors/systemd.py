"""systemd units: the ones asked for, and all that failed. Knows no transport, and changes nothing: it only reads.

`build(units)` -> command, `parse(text)` -> reading. Times are taken from the machine's own monotonic clock, so that neither its
time zone nor a jump of its clock matters.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from collectors.readings import Fault, Unit, Units
from collectors.texts import count, cut, lines, number

PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,Description,NRestarts,StateChangeTimestampMonotonic,MemoryCurrent,MainPID"
    ",ExecMainStatus,UnitFileState"
)
UNIT_NAME = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}")  # man 5 systemd.unit
_NO_VALUE = 2**64 - 1  # how `systemctl show` prints an unset number


def build(units: Sequence[str]) -> str:
    """The command for these units (`vllm` means `vllm.service`) and all that failed. ValueError for what is no unit's name."""
    names = " ".join(_quoted(unit) for unit in units)
    return f"""printf 'uptime %s\\n' "$(cat /proc/uptime)"
if failed=$(systemctl list-units --state=failed --plain --no-legend --no-pager 2>&1); then
  printf 'answered\\n'
  set -- {names} $(printf '%s\\n' "$failed" | cut -d' ' -f1)
  [ $# = 0 ] || systemctl show --no-pager --property={PROPERTIES} -- "$@" 2>&1
else printf '%s\\n' "$failed"; fi
"""


def logs(unit: str, count: int = 50) -> str:
    """The command for the last lines of a unit's log. ValueError for what is no unit's name."""
    return f"journalctl --no-pager --output=short-iso --lines={int(count)} --unit={_quoted(unit)} 2>&1"


def _quoted(unit: str) -> str:
    if not UNIT_NAME.fullmatch(unit) or unit.startswith("-"):
        raise ValueError(f"not the name of a systemd unit: {unit!r}")
    return shlex.quote(unit)


_FAULTS = (
    ("no_systemd", "not found", "This machine does not run systemd: leave its units out of the settings.", "note"),
    ("no_systemd", "System has not been booted with systemd", "This machine does not run systemd (a container?).", "note"),
    ("systemd_unreachable", "Failed to connect to bus", "Is the system's D-Bus running, and may this user reach it?", "warning"),
)


def parse(text: str) -> Units:
    """The reading in what `build` made print. `units` is None when systemd did not answer; a unit it does not know is in it with
    `load` "not-found" and a fault. Never raises."""
    if "answered" not in lines(text):
        return Units(None, (_refusal(text),))
    uptime = re.search(r"^uptime (\S+)", text, re.MULTILINE)
    units: dict[str, Unit] = {}
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in lines(block) if "=" in line)
        unit = _unit(values, number(uptime[1]) if uptime else None)
        if unit is not None:
            units.setdefault(unit.name, unit)
    faults = [_failure(line) for line in lines(text) if line.startswith("Failed to ")]
    faults += [found for unit in units.values() if (found := _finding(unit)) is not None]
    return Units(tuple(units.values()), tuple(faults))


def _refusal(text: str) -> Fault:
    for code, words, next_step, severity in _FAULTS:
        line = next((line for line in lines(text) if words in line), None)
        if line is not None:
            return Fault(code, cut(line), next_step, severity="note" if severity == "note" else "warning")
    return _failure(text)


def _failure(text: str) -> Fault:
    return Fault("systemd_failed", cut(text), "Run `systemctl` by hand on the machine.")


def _unit(block: dict[str, str], uptime: float | None) -> Unit | None:
    name = cut(block.get("Id", ""), 255)
    if not name:
        return None
    changed = _value(block, "StateChangeTimestampMonotonic")
    return Unit(
        name=name,
        load=_text(block, "LoadState"),
        active=_text(block, "ActiveState"),
        sub=_text(block, "SubState"),
        result=_text(block, "Result"),
        description=_text(block, "Description"),
        restarts=_value(block, "NRestarts"),
        state_seconds=None if not changed or uptime is None else max(0.0, uptime - changed / 1e6),  # 0: never since boot
        memory_bytes=_value(block, "MemoryCurrent"),
        main_pid=_value(block, "MainPID") or None,
        exit_status=_value(block, "ExecMainStatus"),
        enabled=_text(block, "UnitFileState"),
    )


def _text(block: dict[str, str], name: str) -> str | None:
    return cut(block.get(name, "")) or None


def _value(block: dict[str, str], name: str) -> int | None:
    value = count(block.get(name, ""))
    return None if value is None or value >= _NO_VALUE else value


def _finding(unit: Unit) -> Fault | None:
    if unit.load == "not-found":
        return Fault("unit_unknown", f"there is no unit {unit.name}", "Is its name right, and is it installed?", unit.name)
    if unit.active == "failed":
        text = f"{unit.name} failed" + (f" ({unit.result}, exit status {unit.exit_status})" if unit.result else "")
        return Fault("unit_failed", text, f"Read its log: `journalctl -u {unit.name} -n 50`.", unit.name, "critical")
    return None
