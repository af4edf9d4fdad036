"""What machines and services did while a query ran, below its waterfall and on the same time axis."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from latency.readings.server_split import ServerSplit
from latency.types import QueryReadings
from rag.types import Answer
from ui import cards, readings_figures, readings_tables
from ui.format import escape, plural
from ui.readings_tables import readings_csv

__all__ = ["readings_csv", "render"]

NONE_KEPT = (
    "They are taken while a query runs, from this version on; the file may have been deleted or could not be written: "
    "the log says more."
)


def render(answer: Answer, readings: QueryReadings | None, *splits: ServerSplit, reason: str = "", key: str = "") -> None:
    """Rows of readings, other processes, notes; numbers on demand. `reason` is why there are none, where that is known."""
    st.html(readings_figures.STYLE)
    rows, more = readings_figures.rows_of(readings) if readings is not None else ([], [])
    if rows or any(split.known for split in splits):
        st.html(readings_figures.timeline(answer, rows, splits))
    _lines(f"Inside the model server during {each.stage}: not known, {each.reason}." for each in splits if not each.known)
    if readings is None or not readings.series:
        st.html(cards.empty("No readings of this time.", *(readings.notes if readings is not None else ()), reason or NONE_KEPT))
        return
    _around(readings)
    if more:
        with st.expander(f"Readings at zero and others ({len(more)})"):
            st.html(readings_figures.timeline(answer, more))
    with st.expander("Readings as numbers"):
        st.html(readings_tables.numbers_table(answer, readings))
        st.download_button(
            "Readings CSV",
            lambda: readings_csv(readings),
            f"query-{answer.id[:12]}.readings.csv",
            "text/csv",
            key=f"readings-csv{key}",
            on_click="ignore",
            type="tertiary",
        )


def _around(readings: QueryReadings) -> None:
    """Facts in one line, what could not be read, and who else was there."""
    _lines([readings_tables.facts_line(readings), *readings.notes])
    others = [use for use in readings.uses if not use.ours]
    if others:
        st.html(f'<p class="rd rd-title">{plural(len(others), "other process", "other processes")} at the same time</p>')
        st.html(readings_tables.uses_table(readings.uses))


def _lines(texts: Iterable[str]) -> None:
    lines = [escape(text) for text in texts if text]
    if lines:
        st.html(f'<div class="rd rd-soft rd-small rd-plain" dir="auto">{"<br>".join(lines)}</div>')
