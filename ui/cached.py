"""Every `st.cache_*` of the pages, and the way they reach the runtime."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

import runtime
from rag.trace_rows import QueryFilter, QueryRow

if TYPE_CHECKING:
    import pandas as pd


def the_runtime() -> runtime.Runtime:
    """The process's runtime. Not cached here: `runtime.get` is the singleton, and `shut_down` must be able to replace it."""
    return runtime.get()


@st.cache_resource(max_entries=16, show_spinner=False)
def query_table(revision: int, where: QueryFilter, timezone: str) -> pd.DataFrame:
    """The queries that match, newest first, as the list shows them. Shared between sessions: never change it."""
    import pandas as pd

    del revision  # part of the key: a new query makes a new table
    rows = the_runtime().traces.search(where)
    frame = pd.DataFrame(
        [_cells(row) for row in rows],
        columns=pd.Index(
            [
                "link",
                "started",
                "question",
                "outcome",
                "total",
                "cold",
                "cache",
                "hyde",
                "embed",
                "search",
                "rerank",
                "generate",
                "ttft",
                "model",
            ]
        ),
    )
    frame["started"] = pd.to_datetime(frame["started"], unit="s", utc=True).dt.tz_convert(timezone).dt.floor("ms")
    numbers = ["total", "cache", "hyde", "embed", "search", "rerank", "generate", "ttft"]
    frame[numbers] = frame[numbers].astype("float64")
    return frame


def _cells(row: QueryRow) -> tuple[object, ...]:
    outcome = f"failed in {row.error_stage}" if row.outcome == "failed" and row.error_stage else row.outcome.replace("_", " ")
    return (
        f"query?id={row.id}",
        row.started_at,
        row.question if row.content else "(not kept)",
        outcome,
        row.total_seconds,
        row.cold,
        row.cache_seconds,
        row.hyde_seconds,
        row.embed_seconds,
        row.search_seconds,
        row.rerank_seconds,
        row.generate_seconds,
        row.ttft_seconds,
        row.model,
    )


def zone() -> tzinfo:
    """The browser's time zone; UTC where it does not say."""
    try:
        name = st.context.timezone
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def now() -> datetime:
    return datetime.now(UTC)
