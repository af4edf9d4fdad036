"""The script of the Streamlit app: page table, style, what is still warming, and what to show when nothing can start."""

from __future__ import annotations

import logging
from pathlib import Path

import streamlit as st

from rag.errors import RagError
from rag.types import Problem
from settings import SettingsError
from ui import access_view, cards, viewer
from ui.cached import the_runtime
from ui.format import code_html, escape, plural
from ui.links import page
from ui.style import stylesheet

log = logging.getLogger("ragdeck")

_PAGES = {
    "Now": [
        st.Page(page("overview"), title="Overview", help="Is everything all right: alerts, services, machines, last queries."),
        st.Page(page("alerts"), title="Alerts", help="What is wrong, what was, the rules, and who is told."),
    ],
    "Investigate": [
        st.Page(page("ask"), title="Ask", default=True, help="Ask a question and see where the time went."),
        st.Page(page("queries"), title="Queries", help="Every stored query: filter, sort, download, open."),
        st.Page(page("query"), title="Query", visibility="hidden"),
        st.Page(page("latency"), title="Latency", help="Percentiles by stage, trends, findings of the last hour, what if."),
        st.Page(page("compare"), title="Compare", help="Two queries or two sets, stage by stage, and what else differed."),
        st.Page(page("experiments"), title="Experiments", help="Component tests, replay, load tests, CPU against GPU."),
    ],
    "Deployment": [
        st.Page(page("machines"), title="Machines", help="Processors, memory, GPUs and disks of every machine; add one."),
        st.Page(page("machine"), title="Machine", visibility="hidden"),
        st.Page(page("services"), title="Services", help="Does each answer, does it work, how long does it take."),
        st.Page(page("models"), title="Models", help="What is loaded, cold and warm times, settings in force."),
        st.Page(page("capacity"), title="Capacity", help="Will these models fit on these GPUs, with which flags, for what load."),
        st.Page(page("access"), title="Access", help="Who you are, tokens of programs, who did what."),
        st.Page(page("readiness"), title="Readiness", help="The five success criteria and every check, with cause and cure."),
    ],
    "Content": [
        st.Page(page("knowledge"), title="Knowledge", help="Documents, ingestion, what is in a collection, and its care."),
        st.Page(page("evaluation"), title="Evaluation", help="Question sets, and how well retrieval finds what answers."),
        st.Page(page("cache"), title="Cache", help="Answers given again: hit rate, time saved, entries, tester, calibration."),
    ],
}


def main() -> None:
    st.set_page_config(page_title="RAG Deck", page_icon=str(Path(__file__).parent / "icon.svg"), layout="wide")
    st.logo(str(Path(__file__).parent / "logo.svg"))
    st.html(stylesheet())
    chosen = st.navigation(_PAGES, expanded=True)
    st.set_page_config(page_title=f"{chosen.title} · RAG Deck")
    try:
        runtime = the_runtime()
    except SettingsError as error:
        _cannot_start("The settings cannot be used", [str(problem) for problem in error.problems], _SETTINGS_STEP)
        return
    except RagError as error:
        _cannot_start("RAG Deck cannot start", [error.message, error.address or ""], error.next_step)
        return
    except Exception as error:
        log.exception("the runtime cannot be built")
        _cannot_start("RAG Deck cannot start", [f"{type(error).__name__}: {error}"], "The server's log has the details.")
        return
    me = viewer.who(runtime)
    if not me.may("read"):
        st.html(access_view.ended(me, viewer.here()))
        return
    busy = _still_busy()
    with st.sidebar:
        st.fragment(_warming, run_every=1.0 if busy else None)()
        st.html(f'<div class="rd rd-soft" style="font-size:.75rem">RAG Deck {escape(runtime.status().version)}</div>')
    try:
        chosen.run()
    except RagError as error:  # what a page does not expect to be refused
        st.html(cards.problem_note(Problem(None, error.kind, error.message, error.address, error.next_step), chosen.title))


_SETTINGS_STEP = "Correct .env or dashboard.toml and reload this page; after a change of the environment start RAG Deck again."


def _cannot_start(title: str, lines: list[str], next_step: str) -> None:
    st.title(title)
    step = f"<strong>Next:</strong> {code_html(next_step)}" if next_step else ""
    st.html(cards.note("critical", *(escape(line) for line in lines), step))


def _still_busy() -> bool:
    status = the_runtime().status()
    return status.warming or bool(status.sample_job and not status.sample_job.done)


def _warming() -> None:
    """One line a thing that is not ready; nothing at all when everything is."""
    status = the_runtime().status()
    lines = [cards.state_mark("warn", f"{model.kind} is loading") for model in status.models if model.state == "loading"]
    failed = [model for model in status.models if model.state == "failed"]
    lines += [cards.state_mark("critical", f"{model.kind} failed", model.error or "") for model in failed]
    job = status.sample_job
    if job is not None and not job.done:
        lines.append(cards.state_mark("warn", _reading(job.events())))
    elif status.warming and not lines:
        lines.append(cards.state_mark("warn", "warming up"))
    if status.store is not None:
        lines.append(cards.state_mark("critical", "passage store unavailable", status.store.message))
    if lines:
        st.html(f'<div class="rd" aria-live="polite">{"<br>".join(lines)}</div>')
    else:
        st.empty()
    # The timer goes on until the user's next click: a whole run started from here may swallow a click made at that moment


def _reading(events: list[dict[str, object]]) -> str:
    done = sum(event.get("type") == "file_finished" for event in events)
    return f"reading the sample corpus: {plural(done, 'file')}"


main()
