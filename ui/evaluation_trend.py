"""Quality over time of one question set as options of ECharts, and what changed between its runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from itertools import pairwise
from math import ceil, floor
from typing import Any, NamedTuple

from rag.evaluation.types import STAGES, Run
from ui.evaluation_view import METRIC_WORDS
from ui.format import absolute, escape, shortened
from ui.style import STAGE_COLOURS

# A route has no colour of its own among the path's stages: quiet tones, the two orders that count in theirs.
_LOOKS: Mapping[str, tuple[tuple[str, str], str]] = {
    "dense": (("#4d82b3", "#8fb4d6"), "dashed"),
    "sparse": (("#868d96", "#8d949d"), "dashed"),
    "fused": (STAGE_COLOURS["search"], "solid"),
    "rerank": (STAGE_COLOURS["rerank"], "solid"),
}
_WATCHED: Mapping[str, str] = {
    "embedder_identity": "embedder",
    "reranker_identity": "reranker",
    "hyde_model": "HyDE's model",
    "collection": "collection",
    "content": "content of the collection",
    "chunk_tokens": "chunk_tokens",
    "overlap_tokens": "overlap_tokens",
    "version": "RAG Deck",
}
_SHOWN: Mapping[str, str] = {"embedder_identity": "embedder", "reranker_identity": "reranker"}  # exact words help nobody read


class Change(NamedTuple):
    """What was otherwise at a run than at the one before it."""

    at_unix: float
    words: tuple[str, ...]


def changes(runs: Sequence[Run]) -> tuple[Change, ...]:
    """Between neighbours in time; oldest first."""
    ordered = sorted(runs, key=lambda run: run.started_at_unix)
    found = []
    for before, after in pairwise(ordered):
        words = [_words(before, after, key) for key in _WATCHED if before.environment.get(key) != after.environment.get(key)]
        if before.setting != after.setting:
            words.append(f"{before.setting.words} → {after.setting.words}")
        if before.set_version != after.set_version:
            words.append(f"set version {before.set_version} → {after.set_version}")
        if words:
            found.append(Change(after.started_at_unix, tuple(words)))
    return tuple(found)


def _words(before: Run, after: Run, key: str) -> str:
    old, new = (run.environment.get(_SHOWN.get(key, key)) for run in (before, after))
    if old == new:
        return f"{_WATCHED[key]} changed"
    told = ("unknown" if each is None else shortened(str(each), 40) for each in (old, new))
    return f"{_WATCHED[key]} {' → '.join(told)}"


def change_list(found: Sequence[Change], zone: tzinfo, most: int = 12) -> str:
    """The numbered lines of the chart, the last ones; empty without any."""
    lines = [
        f"<div><strong>{number}</strong> {escape(absolute(datetime.fromtimestamp(each.at_unix, UTC), zone))}: "
        f"{escape('; '.join(each.words))}</div>"
        for number, each in enumerate(found, 1)
    ][-most:]
    return f'<div class="rd rd-soft rd-small rd-plain">{"".join(lines)}</div>' if lines else ""


def options(runs: Sequence[Run], metric: str, dark: bool) -> dict[str, Any]:
    """A line a stage over the runs that measured something; each point a mean. Changes are numbered dotted lines."""
    ordered = sorted((run for run in runs if run.summary), key=lambda run: run.started_at_unix)
    present = [stage for stage in STAGES if any(run.summary and stage in run.summary["stages"] for run in ordered)]
    low, high = _ends(ordered, metric)
    series = [_line(ordered, stage, metric, dark) for stage in present]
    if series:
        series[-1]["markLine"] = {
            "symbol": "none",
            "silent": True,
            "lineStyle": {"color": "#8d949d", "type": "dotted", "width": 1.5},
            "label": {"position": "end", "color": "#8d949d"},
            "data": [
                {"xAxis": each.at_unix * 1000, "label": {"formatter": str(number)}}
                for number, each in enumerate(changes(ordered), 1)
            ],
        }
    return {
        "animation": False,
        "grid": {"left": 4, "right": 18, "bottom": 2, "top": 46, "containLabel": True},
        "legend": {"show": True, "top": 0, "right": 0, "itemHeight": 8, "itemWidth": 16, "textStyle": {"fontSize": 11}},
        "tooltip": {"trigger": "axis", "confine": True, "valueFormatter": "%.3f"},
        "xAxis": {"type": "time", "splitLine": {"show": False}},
        "yAxis": {
            "type": "value",
            "min": low,
            "max": high,
            "splitNumber": 4,
            "minInterval": 0.05,
            "name": METRIC_WORDS[metric],
            "nameGap": 8,
        },
        "series": series,
    }


def _ends(runs: Sequence[Run], metric: str) -> tuple[float, float]:
    """Tenths around all values: from 0 a loss that matters would be a flat line. The axis says where it begins."""
    values = [cells[metric]["mean"] for run in runs if run.summary for cells in run.summary["stages"].values()] or [0.0, 1.0]
    low, high = floor(min(values) * 10 - 0.5) / 10, ceil(max(values) * 10 + 0.5) / 10
    return max(0.0, low), min(1.0, high)


def _line(runs: Sequence[Run], stage: str, metric: str, dark: bool) -> dict[str, Any]:
    tones, kind = _LOOKS[stage]
    data = [
        [run.started_at_unix * 1000, round(run.summary["stages"][stage][metric]["mean"], 4)]
        for run in runs
        if run.summary and stage in run.summary["stages"]
    ]
    return {
        "type": "line",
        "name": stage,
        "data": data,
        "color": tones[dark],
        "lineStyle": {"width": 2, "type": kind},
        "showSymbol": True,
        "symbolSize": 6,
    }
