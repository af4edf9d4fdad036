"""One finished query on the page: what Ask shows at the end and the Query page shows at any time."""

from __future__ import annotations

import streamlit as st

from latency.findings import find
from latency.readings.server_split import server_splits
from latency.reports.reports import query_report
from latency.types import Case, Finding
from rag.types import Answer
from ui import cache_view, cards, exports, figures, findings_view, media_view, readings_view
from ui.cached import the_runtime
from ui.format import answer_markdown, count, escape, plural, seconds


def load(query_id: str) -> tuple[Case, tuple[Finding, ...]] | None:
    """A stored query with its spans and readings, and why it took its time; None when there is no such query. Raises RagError.

    Read anew each time, which takes milliseconds: spans and the last readings come after the answer.
    """
    running = the_runtime()
    answer = running.traces.get(query_id)
    if answer is None:
        return None
    case = Case(answer, tuple(running.traces.spans(query_id)), running.readings.get(query_id))
    return case, find(case, running.baseline())


def render(case: Case, findings: tuple[Finding, ...], *, key: str = "") -> None:
    """Outcome, problems, answer beside its passages, waterfall over the readings of its time, findings, and everything behind
    them on demand."""
    answer = case.answer
    st.html(cards.outcome_line(answer))
    if answer.error is not None and answer.outcome == "failed":
        st.html(cards.problem_note(answer.error))
    degraded = cards.degraded_note(answer.stages)
    if degraded:
        st.html(degraded)
    cache_view.hit_note(answer, key)
    left, right = st.columns([10, 9], gap="medium")
    with left:
        _answer(answer, key)
        _time(case, key)
        _why(answer, findings)
        _details(case, findings, key)
    with right:
        _passages(answer, key)


def _answer(answer: Answer, key: str) -> None:
    with st.container(border=True, key=f"answer{key}", gap="small"):
        if answer.outcome == "no_documents":
            st.html(
                cards.empty(
                    answer.answer or "No relevant documents were found.",
                    "Add documents on the page Knowledge, or ask in the words that your documents use.",
                )
            )
        elif answer.answer:
            st.markdown(answer_markdown(answer.answer, {citation.number for citation in answer.citations}))
            _sources(answer)
        else:
            st.html(cards.empty("There is no answer.", _why_none(answer)))


def _why_none(answer: Answer) -> str:
    if answer.outcome == "cancelled":
        return "The query was cancelled before the answer began; what had run until then is below."
    if answer.outcome == "failed":
        return "The stages that ran before the failure are below."
    return "The text was not kept (traces.capture_content is off), or the model wrote nothing."


def _sources(answer: Answer) -> None:
    lines = [
        f'<a href="#passage-{item.number}">[{item.number}]</a> <span dir="auto">{escape(item.title)}</span>'
        f' <span class="rd-soft">{escape(" · ".join(text for text in (item.source, item.location) if text))}</span>'
        for item in sorted(answer.citations, key=lambda citation: citation.number)
    ]
    if answer.finish_reason == "length":
        st.html(cards.note("warn", "The answer reached llm.max_tokens and was cut."))
    if lines:
        st.html(f'<div class="rd">{"<br>".join(lines)}</div>')


def _time(case: Case, key: str) -> None:
    answer = case.answer
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">{escape(cards.waterfall_title(answer))}</p>')
        bars = figures.bars_of(answer.timeline)
        st.html(figures.waterfall(bars, answer.total_seconds, stages=answer.stages, first_token=answer.first_token_seconds))
        readings_view.render(answer, case.readings, *server_splits(case), key=key)


def _why(answer: Answer, findings: tuple[Finding, ...]) -> None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Why it took so long</p>')
        findings_view.render(findings, answer.total_seconds)


def _passages(answer: Answer, key: str) -> None:
    kept = [passage for passage in answer.passages if passage.kept]
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">{_passages_title(answer, len(kept))}</p>')
        if not answer.passages:
            st.html(cards.empty("No passages.", "The query ended before the search, or nothing was found."))
            return
        chart = figures.bump_chart(answer.passages)
        if chart:
            st.html(chart)
        st.html(cards.passage_cards(kept, {citation.number for citation in answer.citations}))
        for number, passage in enumerate(kept, 1):
            media_view.button_for(passage, the_runtime().library.original, f"passage{key}-{number}")


def _passages_title(answer: Answer, kept: int) -> str:
    if not answer.passages:
        return "Passages"
    if any(stage.stage == "cache" and stage.hit for stage in answer.stages):
        return f"{plural(kept, 'passage')} kept when the answer was made"
    return f"{plural(kept, 'passage')} kept of {plural(len(answer.passages), 'candidate')}"


def _details(case: Case, findings: tuple[Finding, ...], key: str) -> None:
    answer = case.answer
    if answer.answer:
        with st.expander("Answer as text, to copy"):
            st.code(exports.answer_text(answer), language=None, wrap_lines=True)
    with st.expander("Times as a table"):
        st.html(figures.timing_table(answer))
        st.html(_timing_notes(answer))
    others = [passage for passage in answer.passages if not passage.kept]
    if others:
        with st.expander(f"Candidates that were not kept ({len(others)})"):
            rows = [[escape(item.title), escape(item.source), escape(figures.rank_line(item))] for item in others]
            st.html(figures.table(["Title", "Source", "Ranks (scores)"], rows, wrap=(0, 1, 2)))
    if answer.hyde_text:
        with st.expander("Hypothetical passage that HyDE searched with"):
            st.code(answer.hyde_text, language=None, wrap_lines=True)
    if answer.prompt:
        with st.expander("Prompt sent"):
            for message in answer.prompt:
                st.caption(message.get("role", ""))
                st.code(message.get("content", ""), language=None, wrap_lines=True, height=320)
    _downloads(case, findings, key)


def _timing_notes(answer: Answer) -> str:
    tokens = answer.tokens
    parts = [
        f"first answer token {seconds(answer.first_token_seconds)} after the question",
        f"{seconds(answer.ttft_seconds)} after the request to the model",
        f"tokens: prompt {count(tokens.prompt)}, answer {count(tokens.completion)}",
    ]
    return f'<div class="rd rd-soft">{escape(" · ".join(parts))}</div>'


def _downloads(case: Case, findings: tuple[Finding, ...], key: str) -> None:
    answer = case.answer
    name = f"query-{answer.id[:12]}"
    with st.container(horizontal=True, gap="small"):
        files = (
            ("Report", "html", "text/html", lambda: query_report(case, findings).html().encode()),
            ("Report as Markdown", "md", "text/markdown", lambda: query_report(case, findings).markdown().encode()),
            ("JSON", "json", "application/json", lambda: exports.answer_json(answer)),
            ("Stages CSV", "stages.csv", "text/csv", lambda: exports.stages_csv(answer)),
            ("Passages CSV", "passages.csv", "text/csv", lambda: exports.passages_csv(answer)),
        )
        for label, ending, mime, make in files:
            st.download_button(
                label, make, f"{name}.{ending}", mime, key=f"download{key}-{ending}", on_click="ignore", type="tertiary"
            )
