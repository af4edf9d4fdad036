"""Values as reports show them, and mappings as tables. Pure. Units are read from names (`_seconds`, `_bytes`, `_ratio`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from latency.findings.words import figure, percent, seconds
from latency.reports.blocks import Table, masked

UNKNOWN = "–"
PARTS = ("load", "queue", "network", "tokenize", "compute", "other")
DEEPEST = 4
CONTENT_KEYS = frozenset(
    {"question", "questions", "query", "queries", "text", "texts", "answer", "prompt", "title", "titles", "source", "document"}
)
NO_CONTENT = "Questions, answers and names of documents were left out of this report."


def pairs_table(values: Mapping[str, Any]) -> Table:
    return Table((), tuple((key, value_text(key, value)) for key, value in values.items()))


def value_text(key: str, value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return metric_text(key.replace(" ", "_"), value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value_text(name, masked(str(name), item))}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(value_text(key, item) for item in value) or "none"
    return str(value)


def metric_text(name: str, value: float | None) -> str:
    """A number in the unit that its name ends in."""
    if value is None:
        return UNKNOWN
    unit = re.split(r"[_. ]", name)[-1]
    if unit == "seconds":
        return seconds(value)
    if unit in ("ratio", "share"):
        return percent(value)
    if unit == "bytes":
        return f"{figure(value / 2**30)} GiB" if value >= 2**27 else f"{figure(value / 2**20)} MiB"
    if isinstance(value, int):
        return f"{value:,}" if unit != "unix" else time_text(value)
    return time_text(value) if unit == "unix" else f"{figure(value)}{_UNITS.get(unit, '')}"


_UNITS = {"watts": " W", "celsius": " °C", "mhz": " MHz"}


def number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def time_text(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def flattened(value: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and depth < DEEPEST:
            found |= flattened(item, f"{prefix}{key}.", depth + 1)
        else:
            found[f"{prefix}{key}"] = masked(str(key), item)
    return found


def words(key: str) -> str:
    return str(key).replace("_", " ")
