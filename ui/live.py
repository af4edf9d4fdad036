"""A query while it runs: stages light up with their running time, the answer streams, passages appear as they are ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from jobs import Job
from rag.types import Answer, Passage
from ui import cards, figures, viewer
from ui.cached import the_runtime
from ui.format import answer_markdown, escape

REFRESH_SECONDS = 0.2


def watch(job: Job[Answer]) -> None:
    """Follow the job in a fragment that polls only while it runs; a whole run follows its end."""
    st.fragment(_follow, run_every=REFRESH_SECONDS)(job.id)


def _follow(job_id: str) -> None:
    job = the_runtime().jobs.get(job_id)
    if job is None or job.done:
        st.rerun()
    events = job.events()
    head, stop = st.columns([5, 1], vertical_alignment="center")
    stopping = job.cancelled.is_set()
    head.html(cards.live_line(job.elapsed(), "cancelling" if stopping else doing(events)))
    stop.button("Cancel", key="cancel", width="stretch", **viewer.stop(job))
    left, right = st.columns([10, 9], gap="medium")
    with left:
        _answer(events)
        with st.container(border=True, gap="small"):
            st.html('<p class="rd rd-title">Where the time goes</p>')
            st.html(figures.waterfall(figures.live_bars(events, job.elapsed()), job.elapsed(), live=True))
    with right, st.container(border=True, gap="small"):
        _passages(events)


def doing(events: Sequence[Mapping[str, Any]]) -> str:
    """The stage that runs now, in a word."""
    running = figures.live_bars(events, 0.0)
    return f"running: {running[-1].stage}" if running and running[-1].running else "running"


def answer_text(events: Sequence[Mapping[str, Any]]) -> str:
    return "".join(str(event["text"]) for event in events if event["type"] == "token")


def passages_of(events: Sequence[Mapping[str, Any]]) -> list[Passage]:
    """The passages of the last `passages` event; keys of a newer version are left out."""
    found: list[Mapping[str, Any]] = next((event["passages"] for event in reversed(events) if event["type"] == "passages"), [])
    names = Passage._fields
    return [Passage(**{key: value for key, value in item.items() if key in names}) for item in found]


def _answer(events: Sequence[Mapping[str, Any]]) -> None:
    text = answer_text(events)
    with st.container(border=True, key="answer-live", gap="small"):
        if text:
            kept = sum(passage.kept for passage in passages_of(events))
            st.markdown(answer_markdown(text, range(1, kept + 1)))
        else:
            st.html('<div class="rd rd-soft">The answer appears here as it is written.</div>')


def _passages(events: Sequence[Mapping[str, Any]]) -> None:
    passages = passages_of(events)
    kept = [passage for passage in passages if passage.kept]
    title = f"{len(kept)} passages kept of {len(passages)} candidates" if passages else "Passages"
    st.html(f'<p class="rd rd-title">{escape(title)}</p>')
    if not passages:
        st.html('<div class="rd rd-soft">Passages appear here once they are ranked.</div>')
        return
    chart = figures.bump_chart(passages)
    if chart:
        st.html(chart)
    st.html(cards.passage_cards(kept))
