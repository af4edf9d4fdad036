"""Evaluation: how well retrieval finds what answers, by stage and setting, over time.

`?set=ID` (with `&version=`) opens a question set with its runs, `&edit=1` its questions to change, `?run=ID` a run and `&with=ID`
another beside it; `?job=` follows runs in progress. `?metric=` and `?setting=` choose what tables and trend show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any

import streamlit as st

from jobs import Job, JobsFull
from rag.errors import RagError
from rag.evaluation import evaluations as evaluating
from rag.evaluation import readers
from rag.evaluation.collection import content, unknown_sources
from rag.evaluation.evaluations import Evaluations, Plan
from rag.evaluation.types import METRICS, QuestionSet, Run, SetInfo, Setting
from rag.types import Event, Problem
from ui import cards, evaluation_forms, evaluation_results, evaluation_trend, evaluation_view, viewer
from ui.cached import now, the_runtime, zone
from ui.evaluation_view import METRIC_WORDS
from ui.format import escape, plural, seconds
from ui.gauges import card_title
from ui.links import page

REFRESH_SECONDS = 1.0
KIND = "evaluation"
EVERY = "all"
runtime = the_runtime()
evaluations = viewer.restricted(Evaluations(runtime.settings.data_dir), "evaluations", runtime)


def problem(error: RagError, what: str) -> None:
    st.html(cards.problem_note(Problem(None, error.kind, error.message, error.address, error.next_step), what))


def go(**query: str) -> None:
    """Show another view of this page."""
    st.query_params.from_dict(query)
    st.rerun()


def opened(made: SetInfo | None) -> None:
    if made is not None:
        go(set=made.id)


# 1) all sets


def overview() -> None:
    sets = evaluations.sets.list()
    runs = evaluations.runs.list()
    banner()
    with st.container(border=True, gap="small"):
        st.html(card_title(plural(len(sets), "question set") if sets else "Question sets"))
        if sets:
            newest = {run.set_id: run for run in reversed(runs) if run.summary}
            st.html(evaluation_view.sets_table(sets, newest, now(), zone()))
        else:
            st.html(
                cards.empty(
                    "There is no question set yet.",
                    "1. Ask what your users ask. 2. On a query's page mark the answer good, or judge its passages. "
                    "3. Make a set of the marked queries below, and run it after every change.",
                    "Or upload one, or load the sample questions.",
                )
            )
            st.page_link(page("queries"), label="Open a stored query to mark it")
        opened(evaluation_forms.sample_form(evaluations, runtime))
    new_set()
    if runs:
        with st.container(border=True, gap="small"):
            st.html(card_title("Latest runs"))
            st.html(evaluation_view.runs_table(runs[:10], METRICS[0], now(), zone(), named=True))
            st.html('<div class="rd rd-soft rd-small">nDCG@10 by stage; intervals on hover.</div>')


def new_set() -> None:
    with st.container(border=True, gap="small"):
        st.html(card_title("New set"))
        ways = {"marks": "From marked queries", "upload": "Upload"}
        way = st.segmented_control(
            "From",
            tuple(ways),
            default="marks",
            required=True,
            key="new",
            format_func=lambda each: ways[each],
            label_visibility="collapsed",
        )
        try:
            if way == "upload":
                opened(evaluation_forms.upload_form(evaluations, runtime))
            else:
                opened(evaluation_forms.from_marks_form(evaluations))
        except RagError as error:
            problem(error, "Making a set")


# 2) one set


def set_view(set_id: str, version: int | None) -> None:
    known = evaluations.sets.get(set_id, version)
    if known is None:
        st.html(cards.empty("There is no such question set.", "It may have been deleted, or belong to another data folder."))
        st.page_link(page("evaluation"), label="All question sets")
        return
    st.html(f'<h2 class="rd-plain rd-question" dir="auto">{escape(known.info.name)}</h2>')
    st.html(evaluation_view.set_line(known, now(), zone()))
    if "edit" in st.query_params:
        edit(known)
        return
    actions(known)
    banner()
    unknown(known)
    try:
        chosen = evaluation_forms.run_form(runtime, "Another evaluation is running." if running_job() else None)
        if chosen is not None:
            start(known, chosen)
    except RagError as error:
        problem(error, "Starting")
    measured(known)
    with st.expander(f"Questions ({known.info.questions:,})", key="questions", on_change="rerun") as listed:
        if listed.open:
            st.html(evaluation_view.questions_table(known.questions))
    st.page_link(page("evaluation"), label="All question sets")


def actions(known: QuestionSet) -> None:
    row = st.container(horizontal=True, gap="small", vertical_alignment="bottom")
    versions = [each.version for each in evaluations.sets.versions(known.info.id)]
    if len(versions) > 1:
        st.session_state["version"] = known.info.version
        row.selectbox(
            "Version",
            versions,
            key="version",
            width=120,
            label_visibility="collapsed",
            format_func=lambda each: f"version {each}",
            on_change=lambda: st.query_params.update(version=str(st.session_state["version"])),
        )
    row.download_button(
        "JSONL",
        lambda: readers.to_json_lines(known.questions),
        f"questions-{known.info.id}-v{known.info.version}.jsonl",
        "application/x-ndjson",
        on_click="ignore",
        type="tertiary",
    )
    with row.popover("Rename"):
        name = st.text_input("Name", known.info.name, key="rename", max_chars=100)
        if st.button("Save", key="save-name"):
            evaluations.sets.rename(known.info.id, name or "")
            st.rerun()
    if row.button("Edit", key="edit", disabled=known.info.version != versions[0], help="Only the newest version."):
        go(set=known.info.id, edit="1")
    if row.button("Delete", key="delete"):
        confirm(known.info)


def edit(known: QuestionSet) -> None:
    with st.container(border=True, gap="small"):
        st.html(card_title("Edit the questions"))
        try:
            opened(evaluation_forms.edit_form(evaluations, known))
        except RagError as error:
            problem(error, "Editing")
        if st.button("Leave as it was", key="edit-leave"):
            go(set=known.info.id)


@st.dialog("Delete this question set?")
def confirm(info: SetInfo) -> None:
    runs = sum(each.runs for each in evaluations.sets.versions(info.id))
    st.html(
        f'<div class="rd" dir="auto">{escape(info.name)}, its versions and {plural(runs, "run")} are deleted. Marks stay.</div>'
    )
    if st.button("Delete", type="primary", key="really", on_click=delete, args=(info.id,)):
        st.rerun()


def delete(set_id: str) -> None:
    """What goes wrong is told by the next run."""
    try:
        evaluations.sets.delete(set_id)
        st.query_params.clear()
    except RagError as error:
        st.session_state["not-deleted"] = error


def unknown(known: QuestionSet) -> None:
    """What the set asks for and the collection does not hold."""
    try:
        name = runtime.library.collection()
        held = content(runtime.store, name, read_only=runtime.store.mapping is not None)
    except RagError as error:
        problem(error, "Reading the collection")
        return
    if missing := unknown_sources(known.questions, held.names):
        st.html(evaluation_view.unknown_note(missing, name))


def measured(known: QuestionSet) -> None:
    """The runs of all versions of the set: table and trend."""
    runs = evaluations.runs.list(known.info.id)
    with st.container(border=True, gap="small"):
        st.html(card_title(plural(len(runs), "run") if runs else "Runs"))
        if not runs:
            st.html(cards.empty("This set has not been run yet.", "Choose settings above and start it: it takes seconds."))
            return
        metric = evaluation_results.metric_choice()
        st.html(evaluation_view.runs_table(runs, metric, now(), zone()))
        st.html('<div class="rd rd-soft rd-small">Means; bold is the order an answer is written from; intervals on hover.</div>')
    with_results = [run for run in runs if run.summary and run.state == "finished"]
    if len(with_results) > 1:
        over_time(with_results, metric)


def over_time(runs: Sequence[Run], metric: str) -> None:
    counted = Counter(run.setting.words for run in runs)
    settings = [words for words, _ in counted.most_common()]  # of equals the newest
    asked = st.query_params.get("setting", settings[0])
    with st.container(border=True, gap="small"):
        st.html(card_title(f"{METRIC_WORDS[metric]} over time"))
        if len(settings) > 1:
            st.session_state["setting"] = asked if asked in (*settings, EVERY) else settings[0]
            st.selectbox(
                "Setting",
                (*settings, EVERY),
                key="setting",
                format_func=lambda each: "all settings, in the order they ran" if each == EVERY else each,
                on_change=lambda: st.query_params.update(setting=st.session_state["setting"]),
            )
            asked = st.session_state["setting"]
        else:
            asked = settings[0]
        drawn = [run for run in runs if asked in (EVERY, run.setting.words)]
        st.echarts_chart(
            evaluation_trend.options(drawn, metric, st.context.theme.type == "dark"),
            height=240,
            key="trend",
            alt=f"{METRIC_WORDS[metric]} by stage over {len(drawn)} runs",
        )
        if listed := evaluation_trend.change_list(evaluation_trend.changes(drawn), zone()):
            st.html(listed)


# 3) running


def running_job() -> Job[Any] | None:
    return next((job for job in runtime.jobs.recent(KIND) if not job.done), None)


def start(known: QuestionSet, settings: tuple[Setting, ...]) -> None:
    ingest = runtime.settings.ingest
    about = {"chunk_tokens": ingest.chunk_tokens, "overlap_tokens": ingest.overlap_tokens}
    plan = Plan(known, settings, about)
    clients = runtime.clients()

    def work(job: Job[tuple[str, ...]]) -> Generator[Event, None, tuple[str, ...]]:
        return (yield from evaluating.run(evaluations, plan, clients, job_id=job.id, cancelled=job.cancelled.is_set))

    try:
        job = runtime.jobs.submit(KIND, known.info.name, work)
    except JobsFull as full:
        raise RagError(f"an evaluation cannot start now: {full}", kind="overloaded", next_step="Wait for its end.") from None
    go(set=known.info.id, version=str(known.info.version), job=job.id)


def banner() -> None:
    """What runs now, or how the job of this address ended."""
    wanted = st.query_params.get("job")
    job = runtime.jobs.get(wanted) if wanted else None
    active = job if job is not None and not job.done else running_job()
    if active is not None:
        st.fragment(follow, run_every=REFRESH_SECONDS)(active.id)
    elif job is not None and job.error is not None:
        said = getattr(job.error, "message", None) or f"{type(job.error).__name__}: {job.error}"
        kind, step = getattr(job.error, "kind", "internal"), getattr(job.error, "next_step", "")
        st.html(cards.problem_note(Problem(None, kind, said, getattr(job.error, "address", None), step), "The evaluation"))
    elif wanted and job is None:
        st.html(cards.note("unknown", "The evaluation of this address is no longer known here; what it measured is below."))


def follow(job_id: str) -> None:
    job = runtime.jobs.get(job_id)
    if job is None or job.done:
        st.rerun()
    events = job.events()
    begun = next((each for each in events if each["type"] == "evaluation_started"), None)
    last = next((each for each in reversed(events) if each["type"] == "run_started"), None)
    with st.container(border=True, gap="small"):
        head, stop = st.columns([5, 1], vertical_alignment="center")
        doing = "stopping" if job.cancelled.is_set() else "running"
        head.html(f'<p class="rd rd-title">Measuring {escape(job.title)}: {doing}, {seconds(job.elapsed())}</p>')
        stop.button(
            "Stop",
            key="stop",
            width="stretch",
            **viewer.stop(job, "What was measured is kept."),
        )
        if begun is None or last is None:
            st.html('<div class="rd rd-soft">Opening the collection …</div>')
            return
        done, each, of = sum(event["type"] == "progress" for event in events), begun["questions"], begun["settings"]
        line = f"{last['setting']} · setting {last['number']} of {of} · {plural(done, 'question')} of {each * of:,}"
        st.html(f'{cards.meter(done / (each * of))}<div class="rd rd-soft">{escape(line)}</div>')


# 4) one run, or two


def run_view(run_id: str) -> None:
    run = evaluations.runs.get(run_id)
    if run is None:
        st.html(cards.empty("There is no such run.", "It may have been deleted, or belong to another data folder."))
        st.page_link(page("evaluation"), label="All question sets")
        return
    other = evaluations.runs.get(st.query_params["with"]) if "with" in st.query_params else None
    st.html(f'<h2 class="rd-plain rd-question" dir="auto">{escape(run.set_name)}</h2>')
    st.html(evaluation_view.head(run, now(), zone()))
    banner()
    if "with" in st.query_params and other is None:
        st.html(cards.note("unknown", "There is no run with the id that was to stand beside it."))
    evaluation_results.show(evaluations, run, other)
    st.page_link(page("evaluation"), label="All runs of this set", query_params={"set": run.set_id})


st.title("Evaluation")
st.html(evaluation_view.STYLE)
if "not-deleted" in st.session_state:
    problem(st.session_state.pop("not-deleted"), "Deleting")
try:
    if "run" in st.query_params:
        run_view(st.query_params["run"])
    elif "set" in st.query_params:
        wanted = st.query_params.get("version", "")
        set_view(st.query_params["set"], int(wanted) if wanted.isdecimal() else None)
    else:
        overview()
except RagError as error:
    problem(error, "The evaluations")
