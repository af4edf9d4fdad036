"""The list of stored queries as HTML: one row a query with a small bar of its stages. Pure; sorting and paging are SQL's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from rag.trace_rows import QueryRow
from rag.types import STAGES
from ui.cards import state_mark
from ui.figures import table
from ui.format import escape, query_url, seconds, shortened, time_html, value_html
from ui.style import colour

# label -> (field of QueryRow, descending)
SORTS: Mapping[str, tuple[str, bool]] = {
    "newest first": ("started_at", True),
    "oldest first": ("started_at", False),
    "slowest first": ("total_seconds", True),
    "fastest first": ("total_seconds", False),
    "slowest first token": ("ttft_seconds", True),
    **{f"slowest {stage}": (f"{stage}_seconds", True) for stage in STAGES},
}
# label -> fields of QueryFilter
ASKERS: Mapping[str, Mapping[str, Any]] = {
    "anybody": {},
    "anybody but measurements": {"measured": False},
    "a page": {"origin": "ask"},
    "the API": {"origin": "api"},
    "a command": {"origin": "cli"},
    "a measurement": {"measured": True},
    "other programs": {"foreign": True},
}
_SEVERITIES = {"answered": "ok", "failed": "critical", "no_documents": "warn"}


def page_count(matching: int, size: int) -> int:
    return max(1, -(-matching // size))


def page_line(matching: int, total: int, page: int, size: int) -> str:
    """`1-100 of 2,310 matching, 10,000 in all`."""
    if not matching:
        return f"0 of {total:,}"
    first = (page - 1) * size + 1
    shown = f"{first:,}–{min(matching, page * size):,} of {matching:,}"
    return shown if matching == total else f"{shown} matching, {total:,} in all"


def rows_html(rows: Sequence[QueryRow], now: datetime, zone: tzinfo) -> str:
    longest = max((row.total_seconds for row in rows), default=0.0)
    heads = ["Asked", "Question", "Outcome", "Total", "Stages", "TTFT", "Cold", "Model"]
    cells = ([*_what(row, now, zone), *_times(row, longest)] for row in rows)
    return f'<div class="rd-queries">{table(heads, cells, numeric=(3, 5), wrap=(1,))}</div>'


def _what(row: QueryRow, now: datetime, zone: tzinfo) -> list[str]:
    asked = time_html(datetime.fromtimestamp(row.started_at, UTC), now, zone)
    text = escape(shortened(row.question, 160)) if row.content and row.question.strip() else "question not kept"
    by = f' <span class="rd-soft">{escape(asked_by(row.origin))}</span>' if row.origin != "ask" else ""
    words = f"failed in {row.error_stage}" if row.outcome == "failed" and row.error_stage else row.outcome.replace("_", " ")
    return [
        f'<span class="rd-nowrap rd-soft">{asked}</span>',
        f'<a class="rd-plain" dir="auto" href="{query_url(row.id)}" title="{escape(row.id)}">{text}</a>{by}',
        state_mark(_SEVERITIES.get(row.outcome, "unknown"), words),
    ]


def asked_by(origin: str) -> str:
    """Who asked, in words."""
    name = origin.removeprefix("otlp:")
    words = {"ask": "a page", "api": "the API", "cli": "a command", "measure": "a measurement"}
    return f"by {words.get(origin, f'the program {name}' if name != origin else origin)}"


def _times(row: QueryRow, longest: float) -> list[str]:
    return [
        seconds(row.total_seconds),
        stage_bar(row, longest),
        value_html(seconds(row.ttft_seconds), "no token was streamed"),
        '<abbr title="a model was loaded or ran for the first time">cold</abbr>' if row.cold else "",
        _model(row.model or ""),
    ]


def _model(name: str) -> str:
    """A model's name without the remark behind it, which is on hover."""
    return f'<span class="rd-soft" title="{escape(name)}">{escape(shortened(name.partition(" (")[0], 40))}</span>'


def stage_bar(row: QueryRow, longest: float) -> str:
    """Stages side by side, as long as their share of the slowest total on this page."""
    known = [(stage, spent) for stage in STAGES if (spent := row.stage_seconds(stage))]
    scale = 100 / max(longest, row.total_seconds, sum(spent for _, spent in known), 1e-9)
    parts = "".join(f'<i style="{colour(stage)};width:{spent * scale:.2f}%"></i>' for stage, spent in known)
    detail = escape("\n".join(f"{stage} {seconds(spent)}" for stage, spent in known) or "no stage ran")
    return f'<div class="rd-mini" title="{detail}">{parts}</div>'
