"""The report of an experiment of any kind: parameters, result and environment as tables, whatever the result's shape. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from latency.findings.words import seconds
from latency.reports.blocks import Block, Heading, Report, Table, Text, masked
from latency.reports.values import CONTENT_KEYS, DEEPEST, NO_CONTENT, flattened, pairs_table, time_text, value_text, words


class ExperimentLike(Protocol):
    """What a report reads of `latency.experiments.experiments.Experiment`."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def started_at_unix(self) -> float: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def state(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...
    @property
    def result(self) -> Mapping[str, Any] | None: ...
    @property
    def environment(self) -> Mapping[str, Any]: ...
    @property
    def error(self) -> str | None: ...


def experiment_report(experiment: ExperimentLike, *, content: bool = True) -> Report:
    """Of an experiment of any kind: what is in its result is shown as tables, whatever its shape."""
    head = {
        "Experiment": experiment.id,
        "Kind": experiment.kind,
        "Started": time_text(experiment.started_at_unix),
        "Took": seconds(experiment.seconds),
        "State": experiment.state,
    }
    blocks: list[Block] = [pairs_table(head)]
    if experiment.error:
        blocks.append(Text(experiment.error if content else "It ended with an error.", "critical"))
    result = experiment.result
    sections = (("Parameters", experiment.parameters), ("Result", result or {}), ("Environment", experiment.environment))
    for title, values in sections:
        blocks += [Heading(title), *(_any(values, 3, content) or [Text("Nothing was recorded.", "soft")])]
    if not content:
        blocks.append(Text(NO_CONTENT, "soft"))
    return Report(experiment.name or f"Experiment {experiment.id}", tuple(blocks))


def _any(value: Mapping[str, Any], level: int, content: bool) -> list[Block]:
    """A mapping: its plain values as one table, lists of mappings as a table each, what lies deeper under headings."""
    plain: dict[str, Any] = {}
    below: list[Block] = []
    for key, item in value.items():
        if not content and key.lower() in CONTENT_KEYS:
            continue
        if isinstance(item, Mapping) and item and level < 3 + DEEPEST:
            below += [Heading(words(key), min(level, 4)), *_any(item, level + 1, content)]
        elif _is_rows(item):
            below += [Heading(words(key), min(level, 4)), _record_table(item, content)]
        else:
            plain[key] = masked(key, item)
    return [*([pairs_table({words(key): item for key, item in plain.items()})] if plain else []), *below]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _record_table(rows: Sequence[Mapping[str, Any]], content: bool) -> Table:
    """Mappings as rows; a mapping within one becomes columns `outer.inner`."""
    flat = [
        {key: item for key, item in flattened(row).items() if content or key.rpartition(".")[2].lower() not in CONTENT_KEYS}
        for row in rows
    ]
    keys = list(dict.fromkeys(key for row in flat for key in row))
    numeric = frozenset(
        place for place, key in enumerate(keys) if all(isinstance(row.get(key), int | float | None) for row in flat)
    )
    return Table(tuple(map(words, keys)), tuple(tuple(value_text(key, row.get(key)) for key in keys) for row in flat), numeric)
