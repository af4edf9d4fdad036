"""What the deployment does right now: machines and services swept, their history, alerts and who is told. Built from settings.

Everything starts with the process and needs no browser. A history or alert file that cannot be opened costs what it would have
kept, is said in `problem`, and stops nothing.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from collectors import rules
from collectors.alerts import Alerts
from collectors.history import History
from collectors.inventory import BadInventory, Inventory, from_settings
from collectors.notify import BadUrl, Notifier
from collectors.sweep import Sweep
from rag.errors import RagError
from settings import Settings, edited, revealed

log = logging.getLogger("ragdeck")

STOP_SECONDS = 5.0
OFF = "off"  # TOML has no null: a threshold that is switched off

T = TypeVar("T")


class Deployment:
    """The sweep and what it feeds. Thread-safe as its parts are."""

    def __init__(self, settings: Settings, url: str | None) -> None:
        """`url` is this dashboard's own, for notifications. Raises RagError bad_input for entries that cannot be."""
        self.problems: list[str] = []
        self._inventory = inventory(settings)
        known = alert_rules(settings)
        self.history = self._opened(settings.data_dir / "history.db", History)
        self.alerts = self._opened(settings.data_dir / "alerts.db", lambda path: Alerts(path, known))
        try:
            self.notifier = Notifier([each.get_secret_value() for each in settings.alerts.notify], url and f"{url}/alerts")
        except BadUrl as problem:
            raise RagError(str(problem), kind="bad_input", next_step="Correct alerts.notify (RAGDECK_NOTIFY).") from None
        self.sweep = Sweep(*self._inventory, history=self.history, alerts=self.alerts, notifier=self.notifier)

    def _opened(self, path: Path, make: Callable[[Path], T]) -> T:
        """The file's keeper; where it cannot be opened, one that lives as long as the process."""
        try:
            return make(path)
        except (sqlite3.Error, OSError) as problem:
            self.problems.append(f"{path.name} cannot be opened ({problem}): what it would keep is lost when this process ends.")
            log.error("%s", self.problems[-1])
            return make(Path(":memory:"))

    def start(self) -> None:
        """Begin to watch. Once; returns at once."""
        self.sweep.start()

    def stop(self) -> None:
        """End the sweep, send what waits, close the files."""
        if not self.sweep.stop(STOP_SECONDS):
            log.warning("a reading or probe did not end within %.0f s", STOP_SECONDS)
        self.notifier.stop(2.0)
        self.alerts.close()
        self.history.close()

    def apply(self, settings: Settings) -> None:
        """Watch what other settings name, by their rules. Raises RagError bad_input, with nothing changed."""
        watched, known = inventory(settings), alert_rules(settings)
        if watched != self._inventory:
            self.sweep.apply(*watched)
            self._inventory = watched
        self.alerts.use(known)


def inventory(settings: Settings) -> Inventory:
    """Raises RagError bad_input that names the entry."""
    tables = (settings.machines, settings.services, settings.prometheus)
    return _tables(*([revealed(entry) for entry in table] for table in tables))


def _tables(*tables: Sequence[Mapping[str, Any]]) -> Inventory:
    machines, services, prometheus = (*tables, [], [], [])[:3]
    try:
        return from_settings(machines, services, prometheus)
    except BadInventory as problem:
        raise RagError(str(problem), kind="bad_input", next_step="Correct this entry.") from None


def alert_rules(settings: Settings) -> tuple[rules.Rule, ...]:
    """The default rules with the settings' changes. Raises RagError bad_input that names the rule."""
    return _rules(settings.alerts.rules)


def _rules(changes: Mapping[str, Mapping[str, Any]]) -> tuple[rules.Rule, ...]:
    try:
        return rules.rules({name: _read(change) for name, change in changes.items()})
    except ValueError as problem:
        raise RagError(str(problem), kind="bad_input", next_step="Correct [alerts.rules] in the settings.") from None


def _read(change: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if value == OFF else value for key, value in change.items()}


def with_machine(settings: Settings, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The machines of edited.toml with one more; one of the same name there is replaced. Raises RagError."""
    _tables([entry])
    names = {each["name"] for each in (*settings.machines, *settings.services, *settings.prometheus)}
    own: Sequence[Mapping[str, Any]] = edited(settings, "machines") or []
    if entry.get("name") in names - {each.get("name") for each in own}:
        raise RagError(
            f"{entry['name']} is watched already", kind="bad_input", next_step="Choose another name, or change it in the file."
        )
    return [*(dict(each) for each in own if each.get("name") != entry.get("name")), dict(entry)]


def with_rules(settings: Settings, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The changed rules of edited.toml with more changes; what is as by default is left out. Raises RagError bad_input."""
    usual = {rule.id: rule for rule in rules.DEFAULTS}
    merged: dict[str, dict[str, Any]] = {name: dict(change) for name, change in (edited(settings, "alerts.rules") or {}).items()}
    for name, change in changes.items():
        if name not in usual:
            raise RagError(f"no alert rule {name!r}", kind="bad_input", next_step="Choose one that the page lists.")
        merged[name] = _read(merged.get(name, {})) | dict(change)
    kept = {
        name: {key: OFF if value is None else value for key, value in change.items() if value != getattr(usual[name], key)}
        for name, change in merged.items()
    }
    found = {name: change for name, change in kept.items() if change}
    _rules(found)
    return found
