"""Readiness: the five success criteria, each measured, and every check with cause and cure; `?check=CODE` shows one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import streamlit as st

from deploy.cli_subject import JOB_KIND, local_models, submit, targets
from deploy.validation import criteria, kept, report
from deploy.validation.checks import CHECKS
from deploy.validation.types import Report
from jobs import Job
from rag.errors import RagError
from rag.trace_rows import QueryFilter
from ui import cards, readiness_view, viewer
from ui.cached import now, the_runtime, zone
from ui.format import code_html, escape
from ui.gauges import card_title
from ui.links import page

REFRESH_SECONDS = 0.5
QUERIES = 500

runtime = the_runtime()
code = st.query_params.get("check", "").upper()


def problem(error: RagError) -> None:
    st.html(cards.note("critical", f"<strong>{escape(error.message)}.</strong>", code_html(error.next_step)))


def last_report() -> Report | None:
    try:
        return kept.load(runtime.settings.data_dir)
    except RagError as error:
        problem(error)
        return None


def running_job() -> Job[Report] | None:
    return next((job for job in runtime.jobs.recent(JOB_KIND) if not job.done), None)


def start(*codes: str) -> None:
    try:
        submit(runtime, codes)
    except RagError as error:
        st.session_state["refused"] = error


def follow() -> None:
    job = running_job()
    if job is None:
        st.rerun()
    share, doing = readiness_view.progress(job.events())
    head, stop = st.columns([5, 1], vertical_alignment="center")
    stopping = job.cancelled.is_set()
    said = "stopping" if stopping else doing
    head.html(f'<div class="rd" aria-live="polite">{cards.meter(share)}<span class="rd-soft">{escape(said)}</span></div>')
    stop.button("Stop", key="stop", width="stretch", **viewer.stop(job, "What ran until then is kept."))


def run_part(last: Report | None) -> None:
    """The button, or the progress of what runs; and how the last run broke off, if it did."""
    if refused := st.session_state.pop("refused", None):
        problem(refused)
    if running_job() is not None:
        st.fragment(follow, run_every=REFRESH_SECONDS)()
        return
    failed = next(iter(runtime.jobs.recent(JOB_KIND)), None)
    if failed is not None and isinstance(failed.error, RagError):
        problem(failed.error)
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.button("Run all checks", key="run", type="primary", on_click=start, help=RUN_HELP)
        if last is not None:
            downloads(last)


RUN_HELP = "Small real requests to everything the settings name, one full query, and a look at each machine: some 10 seconds."


def downloads(last: Report) -> None:
    texts: dict[str, tuple[Callable[[Report], str], str, str]] = {
        "HTML": (report.html, "validation.html", "text/html"),
        "Markdown": (report.markdown, "validation.md", "text/markdown"),
        "JUnit": (report.junit, "validation.junit.xml", "application/xml"),
        "JSON": (lambda made: json.dumps(made.to_json(), ensure_ascii=False), "validation.json", "application/json"),
    }
    for name, (make, file, kind) in texts.items():
        st.download_button(name, make(last), file, kind, key=f"download-{name}", on_click="ignore", type="tertiary")


def five(last: Report | None) -> None:
    """R4's criteria, from everything that was measured, and what they call acceptable."""
    snapshot = runtime.sweep.snapshot()
    gpus = [each.gpus.value for each in snapshot.machines if each.gpus and each.gpus.value]
    wanted = targets(runtime.settings, gpus)
    try:
        since = time.time() - wanted.query_days * criteria.SECONDS_PER_DAY
        rows = runtime.traces.search(QueryFilter(since=since, cold=False, outcome="answered", measured=False), limit=QUERIES)
        tests = runtime.experiments.list("load", 20)
    except RagError as error:
        problem(error)
        rows, tests = [], ()
    local = [each.role for each in local_models(runtime.settings)]
    measured = readiness_view.measured(last, snapshot, rows, tests, local)
    found = criteria.criteria(measured, wanted, now().timestamp())
    st.html(card_title(readiness_view.headline(found)))
    for first in range(0, len(found), 3):
        for column, each in zip(st.columns(3, gap="small"), found[first : first + 3], strict=False):
            with column.container(border=True, gap="small", height="stretch"):
                st.html(readiness_view.criterion(each, now(), zone()))
    st.html(readiness_view.limits(wanted, runtime.settings.origins))


def all_checks(last: Report | None) -> None:
    if last is None or not last.results:
        st.html(cards.empty("Nothing has been validated yet.", f"Press Run all checks ({len(CHECKS)}), or in a pipeline run:"))
        st.code("python -m deploy validate", language="bash")
        return
    with st.container(border=True, gap="small"):
        st.html(card_title(readiness_view.title(last)))
        which = st.segmented_control(
            "Show", readiness_view.FILTERS, default="all", key="show", bind="query-params", label_visibility="collapsed"
        )
        st.html(readiness_view.checks(readiness_view.chosen(last, which or "all"), now(), zone()))


def one_check(last: Report | None) -> None:
    known = next((each for each in CHECKS if each.code == code), None)
    if known is None:
        st.html(cards.empty(f"There is no check {code}.", "These are the checks:"))
        return
    result = last.result(code) if last else None
    with st.container(border=True, gap="small"):
        st.html(card_title(f"{known.code} {known.title}"))
        if result is None:
            st.html(cards.empty("It has not run yet.", f"It proves: {known.proves}"))
        else:
            st.html(readiness_view.check(result, now(), zone()))
            for command in readiness_view.to_copy(result):
                st.code(command, language="bash", wrap_lines=True)
        with st.container(horizontal=True, gap="small"):
            busy = running_job() is not None
            st.button("Run this check", key="run-one", on_click=start, args=(code,), disabled=busy)
            if st.button("All checks", key="back", type="tertiary"):
                st.switch_page(page("readiness"), query_params={})


st.title("Readiness")
last = last_report()
run_part(last)
if code:
    one_check(last)
else:
    five(last)
all_checks(last)
