"""What the page Experiments shows of any experiment: the list, its state, its environment, tables by kind, files. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any
from urllib.parse import quote

from latency.components.rows import verdict_word
from latency.experiments.experiments import Experiment
from latency.hardware import hardware
from latency.hardware.types import HardwareResult
from latency.load import load
from latency.load.load import LoadResult
from ui import cards, figures
from ui.exports import to_csv
from ui.format import (
    UNKNOWN,
    bytes_text,
    count,
    escape,
    number,
    percentile,
    plural,
    query_url,
    seconds,
    shortened,
    time_html,
    unknown_html,
    value_html,
)

KINDS: Mapping[str, str] = {
    "components": "Component tests",
    "replay": "Replay",
    "load": "Load test",
    "hardware": "CPU against GPU",
}
_STATES = {
    "running": ("warn", "running"),
    "finished": ("ok", "finished"),
    "failed": ("critical", "failed"),
    "cancelled": ("unknown", "stopped"),
    "interrupted": ("critical", "interrupted"),
}
_VERDICTS = {"ok": "ok", "slow": "warn", "failed": "critical", "skipped": "unknown"}


def url(experiment_id: str) -> str:
    return f"/experiments?id={quote(experiment_id, safe='')}"


def compare_url(experiment_id: str) -> str:
    """The first two sides of a replay on the page Compare."""
    sides = (f"{name}={quote(f'experiment:{experiment_id}:{name.upper()}', safe='')}" for name in ("a", "b"))
    return "/compare?" + "&".join(sides)


def kind_words(kind: str) -> str:
    return KINDS.get(kind, kind)


def state_mark(experiment: Experiment) -> str:
    severity, word = _STATES.get(experiment.state, ("unknown", experiment.state))
    return cards.state_mark(severity, word, experiment.error or "")


# 1) the list and the head of one


def list_table(experiments: Sequence[Experiment], now: datetime, zone: tzinfo) -> str:
    rows = [
        [
            f'<a class="rd-plain" dir="auto" href="{url(each.id)}">{escape(shortened(each.name, 90))}</a>',
            escape(kind_words(each.kind)),
            time_html(datetime.fromtimestamp(each.started_at_unix, UTC), now, zone),
            state_mark(each),
            value_html(seconds(each.seconds), "it has not ended, or ended with its process"),
            f'<span class="rd-soft">{escape(environment_line(each.environment))}</span>',
        ]
        for each in experiments
    ]
    return figures.table(["Experiment", "Kind", "Started", "State", "Took", "On"], rows, numeric=(4,), wrap=(0, 5))


def head(experiment: Experiment, now: datetime, zone: tzinfo) -> str:
    """Kind, state, when, how long, on what; the error below."""
    when = time_html(datetime.fromtimestamp(experiment.started_at_unix, UTC), now, zone)
    took = f"took {seconds(experiment.seconds)}" if experiment.seconds is not None else ""
    parts = [escape(kind_words(experiment.kind)), state_mark(experiment), f"started {when}", escape(took)]
    line = f'<div class="rd rd-pairs">{"".join(f"<span>{part}</span>" for part in parts if part)}</div>'
    if experiment.error:
        line += cards.note("critical", escape(experiment.error))
    return line


def environment_line(environment: Mapping[str, Any]) -> str:
    """`Xeon 8481C, 8 cores, 31 GiB, NVIDIA L4`; plain text."""
    gpus = environment.get("gpus") or ()
    names = [str(gpu.get("name") or "GPU") for gpu in gpus]
    cores = environment.get("cores_limit") or environment.get("cores")
    parts = [
        environment.get("cpu"),
        f"{cores:g} cores" if cores else None,
        bytes_text(environment.get("memory_limit_bytes") or environment.get("memory_bytes")),
        ", ".join(names) if names else "no GPU" if environment.get("gpus") is not None else None,
    ]
    return ", ".join(str(part) for part in parts if part and part != UNKNOWN)


def environment_table(environment: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> str:
    """Everything known of the environment; with another one only what differs."""
    first, second = _flat(environment), _flat(other or {})
    names = sorted(first.keys() | second.keys())
    if other is None:
        return figures.table(["Environment", ""], [[escape(name), escape(first[name])] for name in names], wrap=(1,))
    rows = [[escape(name), *(escape(each.get(name, UNKNOWN)) for each in (first, second))] for name in names]
    rows = [row for row in rows if row[1] != row[2]]
    if not rows:
        return '<div class="rd rd-soft">Both ran in the same environment.</div>'
    return figures.table(["What differs", "A", "B"], rows, wrap=(1, 2))


def _flat(environment: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key} ")
        elif isinstance(value, list | tuple):
            found[f"{prefix}{key}"] = ", ".join(json.dumps(each, ensure_ascii=False) for each in value) or "none"
        elif value is not None:
            found[f"{prefix}{key}"] = bytes_text(value) if str(key).endswith("_bytes") else str(value)
    return found


# 2) component tests and replays, from their JSON


def components_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return figures.table(
        ["Component", "Median", "Target", "Verdict", "What"], [_component(row) for row in rows], numeric=(1, 2), wrap=(0, 4)
    )


def _component(row: Mapping[str, Any]) -> list[str]:
    target = row.get("target")
    told = percentile("median", row.get("seconds"), row.get("n") or 0)
    middle = f'<span title="{escape(told)}">{seconds(row["seconds"])}</span>' if row.get("seconds") is not None else ""
    aim = "" if target is None else f'<span title="{escape(_source(target))}">{seconds(target["seconds"])}</span>'
    values = " · ".join(_value(str(name), value) for name, value in (row.get("values") or {}).items())
    about = " · ".join(str(text) for text in (row.get("reason"), row.get("detail"), values) if text)
    verdict = str(row.get("verdict"))
    word = verdict_word(verdict, target is not None)
    return [
        escape(row.get("name")),
        middle or unknown_html(row.get("reason") or "nothing is timed"),
        aim or unknown_html("no target is set for it"),
        cards.state_mark(_VERDICTS.get(word, "unknown"), word),
        f'<span class="rd-soft">{escape(about)}</span>',
    ]


def _source(target: Mapping[str, Any]) -> str:
    return f"target of {target.get('source')}" + (f", {target['date']}" if target.get("date") else "")


def _value(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return f"{words} {value}"
    if name.endswith("_bytes_per_second") or name == "bytes_per_second":
        return f"{bytes_text(value)}/s"
    if name.endswith("_bytes"):
        return f"{words.removesuffix(' bytes')} {bytes_text(value)}"
    if name.endswith("_seconds"):
        return f"{words.removesuffix(' seconds')} {seconds(value)}"
    return f"{words} {number(value)}"


def components_beside(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Medians of the rows that both have, and their ratio."""
    others = {row.get("code"): row for row in second.get("rows") or ()}
    rows = []
    for row in first.get("rows") or ():
        a, b = row.get("seconds"), others.get(row.get("code"), {}).get("seconds")
        if a is not None and b is not None:
            rows.append([escape(row.get("name")), seconds(a), seconds(b), f"{b / a:.2f}" if a > 0 else UNKNOWN])
    if not rows:
        return cards.empty("No component was timed in both.")
    return figures.table(["Component, median", "A", "B", "B / A"], rows, numeric=(1, 2, 3), wrap=(0,))


def replay_table(result: Mapping[str, Any]) -> str:
    """A row a side: what was changed, how many runs, the median; and the difference to the first side."""
    sides = list(result.get("sides") or ())
    base = sides[0].get("median_seconds") if sides else None
    rows = []
    for index, side in enumerate(sides):
        middle = side.get("median_seconds")
        gap = "" if not index or middle is None or base is None else _signed(middle - base)
        lacks = [f"{side[name]} {name}" for name in ("failed", "cold", "degraded") if side.get(name)]
        rows.append(
            [
                f"<strong>{_letter(index)}</strong>",
                escape(side.get("label")),
                count(side.get("n")),
                value_html(seconds(middle), "no run of this side counts"),
                gap,
                f'<span class="rd-soft">{escape(", ".join(lacks))}</span>',
            ]
        )
    return figures.table(["Side", "Changed", "Runs", "Median", "Against A", ""], rows, numeric=(2, 3, 4), wrap=(1, 5))


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _signed(value: float) -> str:
    return f"+{seconds(value)}" if value > 0 else f"−{seconds(-value)}"


def runs_table(result: Mapping[str, Any]) -> str:
    """Every run of a replay, in the order they ran, with a link to its trace."""
    rows = [
        [
            _letter(int(run["side"])),
            count(run["round"] + 1) if run.get("round") is not None else "warm-up",
            f'<a href="{query_url(run["query_id"])}">{seconds(run["total_seconds"])}</a>' if run.get("query_id") else UNKNOWN,
            f'<span class="rd-soft">{escape(_special(run))}</span>',
        ]
        for run in result.get("runs") or ()
    ]
    return figures.table(["Side", "Round", "Total", ""], rows, numeric=(1, 2), wrap=(3,)) if rows else ""


def _special(run: Mapping[str, Any]) -> str:
    return str(run.get("error") or run.get("degraded") or ("cold" if run.get("cold") else ""))


def replay_progress(events: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """(share done, what goes on); plain text."""
    last = next((event for event in reversed(events) if event["type"] in ("run", "warm_up")), None)
    if last is None:
        return 0.0, "building the models of each side"
    if last["type"] == "warm_up":
        return 0.0, "warming up each side"
    return last["done"] / last["of"], f"{count(last['done'])} of {plural(last['of'], 'run')}"


# 3) files


def to_json(experiment: Experiment) -> bytes:
    return json.dumps(experiment.to_json(), ensure_ascii=False, indent=2).encode()


def table_csv(experiment: Experiment) -> bytes | None:
    """The experiment's main table; None where it has no result."""
    result = experiment.result
    if result is None:
        return None
    if experiment.kind == "load":
        return to_csv(*load.rows(LoadResult.from_json(result).steps))
    if experiment.kind == "hardware":
        return to_csv(*hardware.rows_of(HardwareResult.from_json(result)))
    if experiment.kind == "replay":
        heads = ["side", "round", "stored_id", "query_id", "total_seconds", "outcome", "cold", "degraded", "error"]
        return to_csv(heads, ([run.get(name) for name in heads] for run in result.get("runs") or ()))
    heads = ["code", "name", "seconds", "n", "verdict", "reason", "detail"]
    more = ["target_seconds", "target_source"]
    return to_csv([*heads, *more], (_component_row(row, heads) for row in result.get("rows") or ()))


def _component_row(row: Mapping[str, Any], heads: Sequence[str]) -> list[Any]:
    target = row.get("target") or {}
    return [*(row.get(name) for name in heads), target.get("seconds"), target.get("source")]


def file_name(experiment: Experiment, ending: str) -> str:
    """The name in letters that every file system takes."""
    words = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in experiment.name)
    slug = "-".join(part for part in words.split("-") if part)[:60] or experiment.kind
    return f"{slug.lower()}-{experiment.id[:8]}.{ending}"
