"""Ask: a question, the query while it runs, and what came of it. `?job=` follows a job, `?id=` a stored query."""

from __future__ import annotations

from datetime import UTC, datetime

import streamlit as st

from rag.errors import RagError
from rag.trace_rows import QueryRow
from rag.types import Options, Problem
from ui import answer_view, ask_form, cards, live
from ui.cached import now, the_runtime, zone
from ui.format import escape, query_url, seconds, shortened, time_html
from ui.links import page, query_link

runtime = the_runtime()
base = runtime.default_options()


def submit(question: str, options: Options) -> None:
    """Start the query and put its job into the URL; what cannot be asked is said."""
    if not question.strip():
        st.html(cards.note("warn", "<strong>Type a question first.</strong>"))
        return
    try:
        job = runtime.submit_query(question, options)
    except RagError as error:
        st.html(cards.problem_note(Problem(None, error.kind, error.message, error.address, error.next_step), "The question"))
        return
    st.query_params.from_dict({**ask_form.to_url(options, base), "job": job.id})


def ask_example(question: str) -> None:
    st.session_state["question"] = question
    st.session_state["ask_now"] = True


def job_view(job_id: str) -> None:
    job = runtime.jobs.get(job_id)
    if job is None:
        st.html(
            cards.note(
                "warn",
                "<strong>This query is no longer running here.</strong>",
                "The dashboard was restarted since it began, or newer ones have replaced it. If it ended, it is in the list.",
            )
        )
        st.page_link(page("queries"), label="All queries")
    elif not job.done:
        question_line(job.title)
        live.watch(job)
    elif job.result is not None:
        del st.query_params["job"]
        st.query_params["id"] = job.result.id
        query_view(job.result.id)
    else:
        text = f"{type(job.error).__name__}: {job.error}" if job.error else "It ended without a result."
        st.html(cards.problem_note(Problem(None, "internal", text, None, "The server's log has the details.")))


def query_view(query_id: str) -> None:
    found = answer_view.load(query_id)
    if found is None:
        st.html(cards.empty("There is no query with this id.", "It may have been deleted, or belong to another data folder."))
        st.page_link(page("queries"), label="All queries")
        return
    known, findings = found
    question_line(known.answer.question)
    answer_view.render(known, findings)
    query_link(known.answer.id, "Open this query's own page")


def question_line(question: str) -> None:
    st.html(f'<div class="rd rd-plain" dir="auto" style="font-size:1.05rem;font-weight:600">{escape(question)}</div>')


def start_view() -> None:
    rows = runtime.traces.search(limit=6)
    if not rows:
        st.html('<div class="rd rd-soft">Nothing has been asked yet. Try one of these:</div>')
        with st.container(horizontal=True, gap="small"):
            for number, example in enumerate(ask_form.EXAMPLES):
                st.button(example, key=f"example-{number}", on_click=ask_example, args=(example,))
        return
    lines = "".join(recent_line(row) for row in rows)
    st.html(f'<div class="rd"><p class="rd-title">Asked last</p><table class="rd-table"><tbody>{lines}</tbody></table></div>')


def recent_line(row: QueryRow) -> str:
    link = f'<a class="rd-plain" dir="auto" href="{query_url(row.id)}">{escape(shortened(row.question, 110) or row.id)}</a>'
    when = time_html(datetime.fromtimestamp(row.started_at, UTC), now(), zone())
    return (
        f'<tr><td class="wrap">{link}</td><td class="n">{seconds(row.total_seconds)}</td><td class="n rd-soft">{when}</td></tr>'
    )


st.title("Ask")
status = runtime.status()
if status.store is not None:
    st.html(cards.store_note(status.store, status.models, "Opening the passage store"))
if status.llm.startswith("No "):
    st.html(f'<div class="rd rd-soft">{escape(status.llm)}</div>')
sent = ask_form.form(base)
if st.session_state.pop("ask_now", False):
    sent = (st.session_state["question"], base)
if sent:
    submit(*sent)
if "job" in st.query_params:
    job_view(st.query_params["job"])
elif "id" in st.query_params:
    query_view(st.query_params["id"])
else:
    start_view()
