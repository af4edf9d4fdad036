"""Experiments: component tests, replay, load test, CPU against GPU; each stored with its environment, named, comparable.

`?kind=` chooses the form, `?replay=ID` a query to replay, `?job=` follows one that runs, `?id=` opens a stored one and `&with=`
another beside it.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from jobs import Job
from latency.experiments import experiments
from latency.experiments.experiments import Experiment
from latency.reports.reports import experiment_report
from parts import parts
from rag.errors import RagError
from rag.types import Problem
from ui import cards, experiment_forms, experiment_live, experiment_results, experiments_view
from ui.cached import now, the_runtime, zone
from ui.format import escape, plural
from ui.gauges import card_title
from ui.links import page

runtime = the_runtime()
KINDS = tuple(experiments_view.KINDS)
LISTED = 200


def problem(error: RagError, what: str) -> None:
    st.html(cards.problem_note(Problem(None, error.kind, error.message, error.address, error.next_step), what))


def go(**query: str) -> None:
    """Show another view of this page."""
    st.query_params.from_dict(query)
    st.rerun()


# 1) start


def running_job() -> Job[object] | None:
    return next((job for job in runtime.jobs.recent("experiment") if not job.done), None)


def chosen_kind() -> str:
    """From `?kind=`, which holds the kind's own word, not the label that a bound widget would write there."""
    asked = st.query_params.get("kind", "replay" if "replay" in st.query_params else "load")
    st.session_state["kind"] = asked if asked in KINDS else "load"
    chosen = st.segmented_control(
        "Kind",
        KINDS,
        required=True,
        key="kind",
        on_change=lambda: st.query_params.update(kind=st.session_state["kind"]),
        format_func=experiments_view.kind_words,
        label_visibility="collapsed",
    )
    return chosen or "load"


def forms(busy: str | None) -> None:
    kind = chosen_kind()
    try:
        wanted = form(kind, busy)
        if wanted is not None:
            start(wanted)
    except RagError as error:
        problem(error, "Starting")


def form(kind: str, busy: str | None) -> experiment_forms.Wanted | None:
    when = now().astimezone(zone())
    if kind == "components":
        return experiment_forms.components_form(runtime, parts(runtime), busy, when)
    if kind == "replay":
        return experiment_forms.replay_form(runtime, busy, when)
    if kind == "hardware":
        return experiment_forms.hardware_form(runtime, busy, when)
    return experiment_forms.load_form(runtime, busy, when)


def start(wanted: experiment_forms.Wanted) -> None:
    local = runtime.sweep.snapshot().machine("local")
    gpus = local.gpus.value if local is not None and local.gpus is not None else None
    job = experiments.run(
        runtime.jobs,
        runtime.experiments,
        kind=wanted.kind,
        name=wanted.name,
        parameters=wanted.parameters,
        work=wanted.work,
        environment=experiments.environment(runtime.status().version, gpus),
    )
    go(job=job.id)


# 2) one that runs


def job_view(job_id: str) -> None:
    job = runtime.jobs.get(job_id)
    if job is not None and not job.done:
        st.html(f'<h2 class="rd-plain rd-question" dir="auto">{escape(job.title)}</h2>')
        with st.container(border=True, gap="small"):
            experiment_live.watch(job)
        st.page_link(page("experiments"), label="All experiments")
        return
    go(id=job_id)  # it is stored under the same id, whichever process ran it


# 3) one that is stored


def opened(experiment_id: str) -> None:
    found = runtime.experiments.get(experiment_id)
    if found is None:
        st.html(
            cards.empty("There is no experiment with this id.", "It may have been deleted, or belong to another data folder.")
        )
        st.page_link(page("experiments"), label="All experiments")
        return
    job = runtime.jobs.get(experiment_id)
    if found.state == "running" and job is not None and not job.done:
        go(job=experiment_id)
    other = runtime.experiments.get(st.query_params["with"]) if "with" in st.query_params else None
    if "with" in st.query_params and other is None:
        st.html(cards.note("unknown", "There is no experiment with the id that was to stand beside it."))
    st.html(f'<h2 class="rd-plain rd-question" dir="auto">{escape(found.name)}</h2>')
    st.html(experiments_view.head(found, now(), zone()))
    actions(found)
    if other is not None:
        experiment_results.beside(found, other)
        return
    experiment_results.content(found)
    with st.expander("Environment and parameters"):
        st.html(experiments_view.environment_table(found.environment))
        st.json(dict(found.parameters), expanded=False)


def actions(found: Experiment) -> None:
    row = st.container(horizontal=True, gap="small", vertical_alignment="bottom")
    downloads(row, found)
    with row.popover("Rename"):
        name = st.text_input("Name", found.name, key=f"rename-{found.id}", max_chars=200)
        if st.button("Save", key="save-name"):
            try:
                runtime.experiments.rename(found.id, name)
                st.rerun()
            except RagError as error:
                problem(error, "Renaming")
    if row.button("Delete", key="delete", disabled=found.state == "running", help="You are asked again."):
        confirm(found)
    others = {each.id: each for each in runtime.experiments.list(found.kind, LISTED, results=False) if each.id != found.id}
    chosen = row.selectbox(
        "Compare with",
        ["", *others],
        index=["", *others].index(st.query_params["with"]) if st.query_params.get("with") in others else 0,
        key=f"with-{found.id}",
        format_func=lambda key: others[key].name if key else "–",
        disabled=not others,
        help=None if others else "There is no other experiment of this kind.",
        width=280,
    )
    if (chosen or "") != st.query_params.get("with", ""):
        go(**({"id": found.id, "with": chosen} if chosen else {"id": found.id}))


def downloads(row: Any, found: Experiment) -> None:
    empty = found.result is None
    files = (
        ("HTML report", "html", "text/html", lambda: experiment_report(found).html().encode()),
        ("Markdown", "md", "text/markdown", lambda: experiment_report(found).markdown().encode()),
        ("JSON", "json", "application/json", lambda: experiments_view.to_json(found)),
        ("CSV", "csv", "text/csv", lambda: experiments_view.table_csv(found) or b""),
    )
    for label, ending, kind, make in files:
        row.download_button(
            label,
            make,
            experiments_view.file_name(found, ending),
            kind,
            on_click="ignore",
            type="tertiary",
            disabled=empty and ending == "csv",
            help="It has no result." if empty and ending == "csv" else None,
        )


@st.dialog("Delete this experiment?")
def confirm(found: Experiment) -> None:
    st.html(f'<div class="rd" dir="auto">{escape(found.name)} and its numbers are deleted. Queries that it asked stay.</div>')
    if st.button("Delete", type="primary", key="really", on_click=delete, args=(found.id,)):
        st.rerun()


def delete(experiment_id: str) -> None:
    """What goes wrong is told by the next run."""
    try:
        runtime.experiments.delete(experiment_id)
        st.query_params.clear()
    except RagError as error:
        st.session_state["not-deleted"] = error


# 4) all of them


def stored() -> None:
    known = runtime.experiments.list(limit=LISTED, results=False)
    with st.container(border=True, gap="small"):
        st.html(card_title(f"{plural(len(known), 'experiment')} stored" if known else "Stored experiments"))
        if known:
            st.html(experiments_view.list_table(known, now(), zone()))
        else:
            st.html(cards.empty("Nothing has been measured yet.", "Choose what to measure above and start it."))


st.title("Experiments")
if "not-deleted" in st.session_state:
    problem(st.session_state.pop("not-deleted"), "Deleting")
try:
    if "job" in st.query_params:
        job_view(st.query_params["job"])
    elif "id" in st.query_params:
        opened(st.query_params["id"])
        st.page_link(page("experiments"), label="All experiments")
    else:
        active = running_job()
        if active is not None:
            st.html(experiment_live.banner(active, f"/experiments?job={active.id}"))
        forms("Another experiment is running; two at once would measure each other." if active else None)
        stored()
except RagError as error:
    problem(error, "The experiments")
