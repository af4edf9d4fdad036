"""What the deployment does right now: machines and services swept, their history, alerts and who is told. Built from settings.

Also the one thing that is ever changed on a machine: a restart that the settings allow, with a line in the audit log. And `own`,
which counts what this process itself does for `/metrics`.

Everything starts with the process and needs no browser. A history or alert file that cannot be opened costs what it would have
kept, is said in `problem`, and stops nothing.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from collectors import rules
from collectors.alerts import Alerts
from collectors.audit import Action, AuditLog
from collectors.errors import CollectorError
from collectors.history import History
from collectors.inventory import BadInventory, Inventory, from_settings
from collectors.machines import LOCAL
from collectors.notify import BadUrl, Notifier
from collectors.own_metrics import OwnMetrics
from collectors.restart import Restarted
from collectors.sweep import Sweep
from rag.errors import RagError
from settings import VERSION, Settings, edited, revealed

log = logging.getLogger("ragdeck")

STOP_SECONDS = 5.0
OFF = "off"  # TOML has no null: a threshold that is switched off

T = TypeVar("T")


class Deployment:
    """The sweep and what it feeds. Thread-safe as its parts are."""

    def __init__(self, settings: Settings, url: str | None) -> None:
        """`url` is this dashboard's own, for notifications. Raises RagError bad_input for entries that cannot be."""
        self._lost: list[str] = []
        self._inventory = inventory(settings)
        known = alert_rules(settings)
        self.history = self._opened(settings.data_dir / "history.db", History)
        self.alerts = self._opened(settings.data_dir / "alerts.db", lambda path: Alerts(path, known))
        try:
            self.notifier = Notifier([each.get_secret_value() for each in settings.alerts.notify], url and f"{url}/alerts")
        except BadUrl as problem:
            raise RagError(str(problem), kind="bad_input", next_step="Correct alerts.notify (RAGDECK_NOTIFY).") from None
        self.own = OwnMetrics(VERSION)
        self.audit = AuditLog(settings.data_dir / "audit.log")
        self.sweep = Sweep(*self._inventory, history=self.history, alerts=self.alerts, notifier=self.notifier)

    @property
    def problems(self) -> list[str]:
        """What will be lost, and what cannot work here although the settings allow it: a sentence each."""
        own = self.sweep.snapshot().machine(LOCAL)
        hindered = [each for each in own.restart_obstacles if each.certain] if own else []
        return [
            *self._lost,
            *(f"{each.name} cannot be restarted on this machine. {each.text} {each.next_step}" for each in hindered),
        ]

    def _opened(self, path: Path, make: Callable[[Path], T]) -> T:
        """The file's keeper; where it cannot be opened, one that lives as long as the process."""
        try:
            return make(path)
        except (sqlite3.Error, OSError) as problem:
            self._lost.append(f"{path.name} cannot be opened ({problem}): what it would keep is lost when this process ends.")
            log.error("%s", self._lost[-1])
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

    def restart(self, machine: str, name: str, who: str | None = None) -> Restarted:
        """Restart what the machine's settings name; takes up to 90 s. `who` asks for it, for the audit log. A restart that fails
        is no error. Raises RagError for what is not to be restarted, and where nothing can be written to the log: then nothing
        is done."""
        try:
            asked = self.audit.begin(who, machine, f"restart {name}")
        except OSError as problem:
            message = f"nothing was restarted: {self.audit.path.name} cannot be written ({problem.strerror})"
            raise RagError(message, next_step="Make room on the disk of RAG Deck, and its data folder writable.") from None
        started = time.monotonic()
        try:
            done = self.sweep.restart(machine, name)
        except (KeyError, ValueError) as problem:
            said = f"no machine {machine!r} is watched" if isinstance(problem, KeyError) else str(problem)
            self._ended(asked, "refused", said)
            raise RagError(said, kind="bad_input", next_step="Name it in the machine's setting `restart`.") from None
        except CollectorError as problem:
            done = Restarted(name, False, problem.message, problem.next_step, time.monotonic() - started)
        except Exception as problem:
            self._ended(asked, "failed", f"{type(problem).__name__}: {problem}")
            raise
        self._ended(asked, "done" if done.ok else "failed", done.text)
        return done

    def forget(self, name: str) -> None:
        """Delete the history of what is watched no more. Raises RagError."""
        try:
            self.history.forget(name)
        except sqlite3.Error as problem:
            raise RagError(f"the history of {name} could not be deleted: {problem}", next_step="Try it again.") from None

    def _ended(self, action: Action, outcome: Literal["done", "failed", "refused"], text: str) -> None:
        log.info("%s on %s, asked for by %s: %s", action.what, action.machine, action.who or "somebody", outcome)
        try:
            self.audit.end(action, outcome, text)
        except OSError as problem:  # what was done was done: that it was asked for stands in the file
            log.error("the outcome of %s could not be written to %s: %s", action.what, self.audit.path, problem)


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


def own_machines(settings: Settings) -> list[dict[str, Any]]:
    """The machines that pages may change: those of edited.toml, but not where dashboard.toml has one of the same name. Raises
    SettingsError."""
    return [dict(each) for each in _edited_machines(settings) if each in settings.machines]


def _edited_machines(settings: Settings) -> Sequence[Mapping[str, Any]]:
    return edited(settings, "machines") or ()


def without_machine(settings: Settings, name: str) -> list[dict[str, Any]]:
    """The machines of edited.toml without one. Raises RagError for one that pages may not change."""
    if name not in {each["name"] for each in own_machines(settings)}:
        step = "Take it out of the settings file that names it."
        raise RagError(f"{name} was not added on a page", kind="bad_input", next_step=step)
    return [dict(each) for each in _edited_machines(settings) if each.get("name") != name]


def with_machine(settings: Settings, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The machines of edited.toml with one more; one of the same name there is replaced. Raises RagError."""
    _tables([entry])
    if "restart" in entry:
        step = "Name what may be restarted in dashboard.toml: a page must not allow it."
        raise RagError(f"{entry['name']} has `restart`, which is not set on a page", kind="bad_input", next_step=step)
    names = {each["name"] for each in (*settings.machines, *settings.services, *settings.prometheus)}
    if entry["name"] in names - {each["name"] for each in own_machines(settings)}:
        step = "Choose another name, or change it in the file."
        raise RagError(f"{entry['name']} is watched already", kind="bad_input", next_step=step)
    return [*(dict(each) for each in _edited_machines(settings) if each.get("name") != entry["name"]), dict(entry)]


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
