"""One run on the page Evaluation, or two beside each other: numbers by stage, times, what they depend on, single questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import streamlit as st

from rag.errors import RagError
from rag.evaluation import summary
from rag.evaluation.evaluations import Evaluations
from rag.evaluation.types import METRICS, STAGES, Measured, Run
from ui import evaluation_compare, evaluation_view, exports
from ui.cached import zone
from ui.evaluation_view import METRIC_HELP, METRIC_WORDS
from ui.format import escape, plural
from ui.gauges import card_title


def show(evaluations: Evaluations, run: Run, other: Run | None) -> None:
    """The run, or what `other` (B) has otherwise. Raises RagError."""
    _choose_other(evaluations, run, other)
    if other is not None:
        _beside(evaluations, run, other)
    else:
        _single(evaluations, run)


def metric_choice() -> str:
    """From `?metric=`, which holds the metric's own word."""
    asked = st.query_params.get("metric", METRICS[0])
    st.session_state["metric"] = asked if asked in METRICS else METRICS[0]
    chosen = st.segmented_control(
        "Metric",
        METRICS,
        required=True,
        key="metric",
        format_func=lambda each: METRIC_WORDS[each],
        on_change=lambda: st.query_params.update(metric=st.session_state["metric"]),
        help=METRIC_HELP,
    )
    return chosen or METRICS[0]


def _choose_other(evaluations: Evaluations, run: Run, other: Run | None) -> None:
    others = {each.id: each for each in evaluations.runs.list(run.set_id) if each.id != run.id and each.summary}
    if other is not None:
        others.setdefault(other.id, other)
    if not others:
        return

    def name(run_id: str) -> str:
        if not run_id:
            return "nothing"
        each = others[run_id]
        started = datetime.fromtimestamp(each.started_at_unix, zone())
        return f"{started:%Y-%m-%d %H:%M:%S} · {each.setting.words} · version {each.set_version}"

    def changed() -> None:
        chosen = st.session_state["with"]
        if chosen:
            st.query_params["with"] = chosen
        else:
            st.query_params.pop("with", None)

    st.session_state["with"] = other.id if other else ""
    st.selectbox("Compare with, as B", ("", *others), key="with", format_func=name, on_change=changed)


def _single(evaluations: Evaluations, run: Run) -> None:
    if told := evaluation_view.notes(run):
        st.html(told)
    st.html(evaluation_view.stages_table(run))
    left, right = st.columns(2, gap="medium")
    with left.container(border=True, gap="small"):
        st.html(card_title("Time a question"))
        st.html(evaluation_view.times_table(run))
    with right.container(border=True, gap="small"):
        st.html(card_title("Measured with"))
        st.html(evaluation_view.environment_table(run))
    results = evaluations.runs.results(run.id)
    if results:
        with st.container(border=True, gap="small"):
            st.html(card_title("Questions, worst first"))
            metric = metric_choice()
            st.html(evaluation_view.results_table(results, metric))
            st.html(
                '<div class="rd rd-soft rd-small">By stage: the rank of the first relevant document. Before a document its '
                "grade.</div>"
            )
    _downloads(evaluations, run, results)


def _downloads(evaluations: Evaluations, run: Run, results: Sequence[Measured]) -> None:
    row = st.container(horizontal=True, gap="small")
    told = {**run.to_json(), "results": [each.to_json() for each in results]}
    heads = [
        "question",
        *(f"{stage}_{metric}" for stage in STAGES for metric in METRICS),
        *(f"{stage}_seconds" for stage in summary.TIMED),
    ]
    rows = (
        [
            each.question,
            *(each.scores.get(stage, {}).get(metric) for stage in STAGES for metric in METRICS),
            *(each.seconds.get(stage) for stage in summary.TIMED),
        ]
        for each in results
    )
    row.download_button(
        "JSON",
        lambda: json.dumps(told, ensure_ascii=False, indent=2).encode(),
        f"run-{run.id}.json",
        "application/json",
        on_click="ignore",
        type="tertiary",
    )
    row.download_button(
        "CSV", lambda: exports.to_csv(heads, rows), f"run-{run.id}.csv", "text/csv", on_click="ignore", type="tertiary"
    )
    if row.button("Delete", key="delete-run", type="tertiary", disabled=run.state == "running"):
        _confirm(evaluations, run)


@st.dialog("Delete this run?")
def _confirm(evaluations: Evaluations, run: Run) -> None:
    st.html(f'<div class="rd">{escape(run.setting.words)}: its numbers are deleted. The question set stays.</div>')
    if st.button("Delete", type="primary", key="really", on_click=_delete, args=(evaluations, run)):
        st.rerun()


def _delete(evaluations: Evaluations, run: Run) -> None:
    """What goes wrong is told by the next run of the page."""
    try:
        evaluations.runs.delete(run.id)
        st.query_params.from_dict({"set": run.set_id})
    except RagError as error:
        st.session_state["not-deleted"] = error


def _beside(evaluations: Evaluations, a: Run, b: Run) -> None:
    metric = metric_choice()
    found = summary.compare(evaluations.runs.results(a.id), evaluations.runs.results(b.id), metric)
    st.html(evaluation_compare.verdict(found))
    st.html(evaluation_compare.sides(a, b))
    with st.container(border=True, gap="small"):
        st.html(card_title("Means, A → B"))
        st.html(evaluation_compare.beside_table(a, b))
    with st.container(border=True, gap="small"):
        st.html(card_title("What else differed"))
        st.html(evaluation_view.environment_table(a, b))
    if not found.pairs:
        return
    st.html(evaluation_compare.pairs_line(found))
    for title, pairs in (("Worse in B", found.worse), ("Better in B", found.better)):
        if pairs:
            with st.container(border=True, gap="small"):
                st.html(card_title(f"{title}: {plural(len(pairs), 'question')}"))
                st.html(evaluation_compare.pairs_table(pairs, metric))
