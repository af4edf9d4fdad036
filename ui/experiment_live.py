"""An experiment while it runs: progress, the numbers so far, a button that stops it, in a fragment that polls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from jobs import Job
from latency.load import knee
from latency.load.steps import Step
from ui import cards, experiments_view, hardware_view, load_view, viewer
from ui.cached import the_runtime
from ui.format import escape, seconds

REFRESH_SECONDS = 1.0
Events = Sequence[Mapping[str, Any]]


def watch(job: Job[Any]) -> None:
    st.fragment(_follow, run_every=REFRESH_SECONDS)(job.id)


def kind_of(events: Events) -> str:
    """Which experiment the log is of; empty before its first event."""
    begun = {
        "load_started": "load",
        "hardware_started": "hardware",
        "replay_started": "replay",
        "component_started": "components",
    }
    return next((begun[event["type"]] for event in events if event["type"] in begun), "")


def _follow(job_id: str) -> None:
    job = the_runtime().jobs.get(job_id)
    if job is None or job.done:
        st.rerun()
    events = job.events()
    stopping = job.cancelled.is_set()
    head, stop = st.columns([5, 1], vertical_alignment="center")
    head.html(cards.live_line(job.elapsed(), "stopping" if stopping else "running"))
    stop.button(
        "Stop",
        key="stop",
        width="stretch",
        **viewer.stop(job, "It is being stopped." if stopping else "Ends it; what was measured until then is kept."),
    )
    shown = _SHOWN.get(kind_of(events))
    if shown is None:
        st.html('<div class="rd rd-soft">Preparing …</div>')
    else:
        shown(events)


def _meter(share: float, line: str) -> None:
    st.html(f'{cards.meter(share)}<div class="rd rd-soft">{escape(line)}</div>')


def steps_so_far(events: Events) -> list[Step]:
    return [Step.from_json(event["step"]) for event in events if event["type"] == "step_finished"]


def _load(events: Events) -> None:
    plan = next(event["plan"] for event in events if event["type"] == "load_started")
    steps, of = steps_so_far(events), len(plan["users"])
    last = next((event for event in reversed(events) if event["type"] in ("progress", "step_started", "step_finished")), None)
    now = last if last is not None and last["type"] == "progress" else None
    within = min(1.0, now["seconds"] / plan["seconds_per_step"]) if now else 0.0
    _meter(min(1.0, (len(steps) + within) / of), load_view.running_line(last, of, len(steps)))
    readings = load_view.readings_line(now["readings"]) if now else ""
    if readings:
        st.html(f'<div class="rd rd-soft">{escape(readings)}</div>')
    if steps:
        found = knee.find(steps) if len(steps) > 2 else None
        st.echarts_chart(load_view.curve(steps, found, is_dark()), height=230, key="live-curve", alt="Latency by users so far")
        st.html(load_view.steps_table(steps))


def _hardware(events: Events) -> None:
    _meter(*hardware_view.progress_line(events))
    st.html(hardware_view.cells_table(events[-400:]))


def _replay(events: Events) -> None:
    _meter(*experiments_view.replay_progress(events))
    runs = [event["run"] for event in events if event["type"] == "run"]
    if runs:
        st.html(experiments_view.runs_table({"runs": runs[-12:]}))


def _components(events: Events) -> None:
    rows = [event["row"] for event in events if event["type"] == "component"]
    now = next((event["component"] for event in reversed(events) if event["type"] == "component_started"), "")
    st.html(f'<div class="rd rd-soft">{escape(f"testing: {now} · {len(rows)} rows so far")}</div>')
    if rows:
        st.html(experiments_view.components_table(rows))


_SHOWN: Mapping[str, Callable[[Events], None]] = {
    "load": _load,
    "hardware": _hardware,
    "replay": _replay,
    "components": _components,
}


def is_dark() -> bool:
    return st.context.theme.type == "dark"


def banner(job: Job[Any], link: str) -> str:
    """That one runs, for a page that shows something else."""
    return cards.note("warn", f'<a href="{escape(link)}">{escape(job.title)}</a> is running, for {seconds(job.elapsed())}.')
