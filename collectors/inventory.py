"""What is to be watched, from plain mappings as the settings hold them. Knows no file and no environment.

Every mistake is said with the entry it is in: `machines[2] (db): …`. Secrets come in as plain text and are not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from collectors import systemd
from collectors.errors import CollectorError
from collectors.host_keys import Policy
from collectors.machines import LOCAL, PARTS, Machine
from collectors.prometheus_source import PrometheusSource
from collectors.restart import canonical
from collectors.service_watch import FUNCTIONAL_SECONDS, LIVENESS_SECONDS, WatchedService
from collectors.services import KINDS, Service, ServiceError, Thresholds
from collectors.source_watch import EVERY_SECONDS as PROMETHEUS_SECONDS
from collectors.source_watch import WatchedSource
from collectors.ssh_config import split_address
from collectors.sweep import check_names

T = TypeVar("T")


class BadInventory(ValueError):
    """An entry that cannot be used; the message says which, and why."""


class Inventory(NamedTuple):
    """What `Sweep` takes."""

    machines: tuple[Machine, ...]
    services: tuple[WatchedService, ...]
    sources: tuple[WatchedSource, ...] = ()


def from_settings(
    machines: Sequence[Mapping[str, Any]],
    services: Sequence[Mapping[str, Any]],
    prometheus: Sequence[Mapping[str, Any]] = (),
) -> Inventory:
    """The records of the settings' tables; `local` is put before the machines where it is not among them. A value of None is as
    one that is not there. Raises BadInventory."""
    found = Inventory(
        _each("machines", machines, _machine), _each("services", services, _service), _each("prometheus", prometheus, _source)
    )
    if not any(machine.name == LOCAL for machine in found.machines):
        found = found._replace(machines=(Machine(LOCAL), *found.machines))
    try:
        check_names(*found)
    except ValueError as error:
        raise BadInventory(str(error)) from None
    return found


def _each(table: str, entries: Sequence[Mapping[str, Any]], make: Callable[[_Entry], T]) -> tuple[T, ...]:
    return tuple(make(_Entry(table, number, dict(entry))) for number, entry in enumerate(entries, 1))


class _Entry:
    """One mapping. Each value is taken out once, by its type; `done` complains of what is left."""

    def __init__(self, table: str, number: int, values: dict[str, Any]) -> None:
        name = values.get("name")
        self._label = f"{table}[{number}]" + (f" ({name})" if isinstance(name, str) else "")
        self._values = {key: value for key, value in values.items() if value is not None}

    def error(self, text: str) -> BadInventory:
        return BadInventory(f"{self._label}: {text}")

    def required(self, key: str) -> str:
        value = self.text(key)
        if not value:
            raise self.error(f"{key} is missing")
        return value

    def text(self, key: str) -> str | None:
        return self._typed(key, str, "a text")

    def path(self, key: str) -> Path | None:
        value = self._values.pop(key, None)
        if value is not None and not isinstance(value, str | Path):
            raise self.error(f"{key} is not a path")
        return None if value is None else Path(value).expanduser()

    def flag(self, key: str, default: bool) -> bool:
        value = self._typed(key, bool, "true or false")
        return default if value is None else value

    def whole(self, key: str, lowest: int, highest: int) -> int | None:
        value = self.number(key, lowest, highest)
        if value is not None and value != int(value):
            raise self.error(f"{key} is not a whole number")
        return None if value is None else int(value)

    def number(self, key: str, lowest: float, highest: float = 1e9) -> float | None:
        value = self._values.pop(key, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
            raise self.error(f"{key} is {value!r}, not a number from {lowest:g} to {highest:g}")
        return float(value)

    def seconds(self, key: str, default: float, lowest: float = 0.5) -> float:
        value = self.number(key, lowest, 86_400)
        return default if value is None else value

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self._values.pop(key, None)
        if value is None:
            return None
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
            raise self.error(f"{key} is not a list of texts")
        return tuple(value)

    def headers(self) -> dict[str, str]:
        value = self._values.pop("headers", {})
        if not isinstance(value, Mapping) or not all(isinstance(each, str) for pair in value.items() for each in pair):
            raise self.error("headers is not a table of texts")
        return dict(value)

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> Any:
        value = self.text(key) or default
        if value not in allowed:
            raise self.error(f"{key} is {'missing' if value is None else repr(value)}; it is one of {', '.join(allowed)}")
        return value

    def done(self) -> None:
        if self._values:
            raise self.error(f"there is no setting {min(self._values)!r}")

    def _typed(self, key: str, kind: type[T], words: str) -> T | None:
        value = self._values.pop(key, None)
        if value is not None and not isinstance(value, kind):
            raise self.error(f"{key} is not {words}")
        return value


def _machine(entry: _Entry) -> Machine:
    defaults = Machine("")
    name = entry.required("name")
    collect = entry.texts("collect")
    unknown = sorted(set(collect or ()) - set(PARTS))
    if unknown:
        raise entry.error(f"nothing called {unknown[0]!r} can be collected; there are {', '.join(PARTS)}")
    machine = Machine(
        name=name,
        address=entry.text("address"),
        user=entry.text("user"),
        port=entry.whole("port", 1, 65_535),
        key=entry.path("key"),
        passphrase=entry.text("passphrase"),
        jump=entry.text("jump"),
        host_key_policy=entry.choice("host_key_policy", get_args(Policy), defaults.host_key_policy),
        known_hosts=entry.path("known_hosts"),
        use_agent=entry.flag("use_agent", defaults.use_agent),
        collect=PARTS if collect is None else tuple(part for part in PARTS if part in collect),
        units=entry.texts("units") or (),
        restart=_restartable(entry),
        expected_gpus=entry.whole("expected_gpus", 0, 1_000),
        every_seconds=entry.seconds("every_seconds", defaults.every_seconds),
        slow_every_seconds=entry.seconds("slow_every_seconds", defaults.slow_every_seconds, 5.0),
    )
    entry.done()
    _check_machine(entry, machine)
    return machine


def _restartable(entry: _Entry) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(canonical(name) for name in entry.texts("restart") or ()))
    except ValueError as error:
        raise entry.error(f"restart: {error}") from None


def _check_machine(entry: _Entry, machine: Machine) -> None:
    if machine.address is None and machine.name != LOCAL:
        raise entry.error("address is missing (only `local`, the machine of the dashboard, has none)")
    try:
        for address in [machine.address, *(machine.jump or "").split(",")]:
            if address:
                split_address(address.strip())
        systemd.build(machine.units)
    except CollectorError as error:
        raise entry.error(f"{error.message}. {error.next_step}") from None
    except ValueError as error:
        raise entry.error(str(error)) from None


def _service(entry: _Entry) -> WatchedService:
    service = Service(
        name=entry.required("name"),
        kind=entry.choice("kind", KINDS),
        model=entry.text("model"),
        thresholds=_thresholds(entry),
        expect_text=entry.text("expect_text"),
        language=entry.choice("language", ("he", "en"), "he"),
        **_connection(entry),
    )
    liveness = entry.seconds("liveness_every_seconds", LIVENESS_SECONDS, 1.0)
    functional = entry.seconds("functional_every_seconds", FUNCTIONAL_SECONDS, 1.0)
    on = entry.flag("functional", True)
    entry.done()
    _check_service(entry, service)
    return WatchedService(service, liveness, functional if on else None)


def _source(entry: _Entry) -> WatchedSource:
    server = Service(name=entry.required("name"), kind="http", **_connection(entry))
    source = PrometheusSource(
        server,
        machine_label=entry.text("machine_label") or "instance",
        window_seconds=entry.whole("window_seconds", 10, 3_600) or 120,
    )
    every = entry.seconds("every_seconds", PROMETHEUS_SECONDS, 1.0)
    entry.done()
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", source.machine_label):
        raise entry.error("machine_label is not the name of a label")
    _check_service(entry, server)
    return WatchedSource(source, every)


def _thresholds(entry: _Entry) -> Thresholds:
    days = entry.number("certificate_days", 0)
    return Thresholds(
        liveness_seconds=entry.number("slow_liveness_seconds", 0.001),
        functional_seconds=entry.number("slow_functional_seconds", 0.001),
        certificate_days=Thresholds().certificate_days if days is None else days,
    )


def _connection(entry: _Entry) -> dict[str, Any]:
    """The fields of a Service that say where it is and how to be let in."""
    key, variable = entry.text("api_key"), entry.text("api_key_env")
    if variable and not key:  # whoever read the settings puts the variable's value beside its name
        raise entry.error(f"api_key_env names {variable}, whose value is not known")
    return {
        "url": entry.required("url"),
        "api_key": key,
        "key_setting": f"api_key_env ({variable})" if variable else "api_key" if key else "api_key_env",
        "headers": entry.headers(),
        "verify": entry.flag("verify", True),
        "ca_file": entry.path("ca_file"),
        "timeout_seconds": entry.seconds("timeout_seconds", 10.0),
    }


def _check_service(entry: _Entry, service: Service) -> None:
    try:
        _ = service.endpoint
    except ServiceError as error:
        raise entry.error(error.message) from None
