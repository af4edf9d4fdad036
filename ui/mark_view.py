"""Marks on a stored query: good or bad, a note, and how relevant single passages are. What is marked makes question sets."""

from __future__ import annotations

import streamlit as st

from rag.errors import RagError
from rag.evaluation.evaluations import Evaluations
from rag.evaluation.marks import NOTE_CHARS, Mark, Marks, PassageMark, place, unmarked
from rag.evaluation.types import GRADE_WORDS, Verdict
from rag.types import Answer, Passage, Problem
from ui import cards, viewer
from ui.cached import the_runtime
from ui.format import escape, plain_markdown, plural, shortened

LISTED = 20
UNJUDGED = -1  # a select box takes None for no choice at all
GRADES = (UNJUDGED, *range(len(GRADE_WORDS)))


def show(answer: Answer, key: str = "") -> None:
    """A row of buttons and, folded away, a choice for each passage. Kept at once, in `evaluations.db`; `key` tells two apart."""
    running = the_runtime()
    marks = viewer.restricted(Evaluations(running.settings.data_dir), "evaluations", running).marks
    try:
        mark = marks.get(answer.id) or unmarked(answer)
        _verdict(marks, answer, mark, key)
        _passages(marks, answer, mark, key)
    except RagError as error:
        problem = Problem(None, error.kind, error.message, error.address, error.next_step)
        st.html(cards.problem_note(problem, "Marking"))


def _verdict(marks: Marks, answer: Answer, mark: Mark, key: str) -> None:
    kept = bool(answer.question.strip())
    row = st.container(horizontal=True, gap="small", vertical_alignment="center")
    for verdict, label, why in _VERDICTS:
        chosen = mark.verdict == verdict
        row.button(
            label,
            key=f"mark-{verdict}{key}",
            type="primary" if chosen else "secondary",
            help=("Marked so; press again to take it back." if chosen else why) if kept else _NOT_KEPT,
            disabled=not kept,
            on_click=_say,
            args=(marks, answer, None if chosen else verdict),
        )
    with row.popover("Note" if not mark.note else "Note (1)", disabled=not kept, type="tertiary"):
        text = st.text_area(f"Note, at most {NOTE_CHARS:,} characters", mark.note, key=f"mark-note{key}", height=96)
        if st.button("Keep the note", key=f"mark-keep-note{key}"):
            marks.say(answer, mark.verdict, text or "")
            st.rerun()
    if f"mark-problem-{answer.id}" in st.session_state:
        st.html(cards.note("critical", escape(st.session_state.pop(f"mark-problem-{answer.id}"))))
    if mark.note:
        st.html(f'<div class="rd rd-soft rd-plain" dir="auto">{escape(mark.note)}</div>')


_VERDICTS: tuple[tuple[Verdict, str, str], ...] = (
    ("good", "Good answer", "Keeps the question for question sets; what the answer cites counts as relevant."),
    ("bad", "Bad answer", "Keeps the question; it enters a set where relevant passages are judged below."),
)
_NOT_KEPT = "The question was not kept (traces.capture_content is off), and a mark needs it."


def _say(marks: Marks, answer: Answer, verdict: Verdict | None) -> None:
    """A callback cannot draw: what goes wrong is shown by the next run."""
    try:
        marks.say(answer, verdict)
    except RagError as error:
        st.session_state[f"mark-problem-{answer.id}"] = f"{error.message}. {error.next_step}"


def _passages(marks: Marks, answer: Answer, mark: Mark, key: str) -> None:
    if not answer.passages or not answer.question.strip():
        return
    known = {(each.source, each.location, each.text_hash): each for each in mark.passages}
    judged = sum(each.grade is not None for each in mark.passages)
    label = f"Judge passages ({plural(judged, 'passage')} judged)" if judged else "Judge passages"
    folded = st.expander(label, key=f"mark-passages{key}", on_change="rerun")
    if not folded.open:
        return
    with folded:
        st.html(
            '<div class="rd rd-soft">You judge the document and the place, so that it holds when the document is cut anew.</div>'
        )
        for number, passage in enumerate(answer.passages[:LISTED], 1):
            _passage(marks, answer, passage, known.get(place(passage)), f"{key}-{number}", number)
        if len(answer.passages) > LISTED:
            st.html(f'<div class="rd rd-soft">The first {LISTED} of {len(answer.passages):,} passages are listed.</div>')


def _passage(marks: Marks, answer: Answer, passage: Passage, known: PassageMark | None, key: str, number: int) -> None:
    where = " · ".join(text for text in (passage.source, passage.location) if text)
    widget = f"mark-grade{key}"
    left, right = st.columns([3, 2], vertical_alignment="center")
    cited = " · cited" if known and known.cited else ""
    left.html(
        f'<div class="rd"><strong class="rd-plain" dir="auto">{number}. {escape(passage.title or passage.source)}</strong>'
        f'<div class="rd-soft rd-plain rd-small" dir="auto">{escape(where + cited)}</div>'
        f'<div class="rd-plain rd-small" dir="auto">{escape(shortened(passage.text, 200))}</div></div>'
    )
    st.session_state[widget] = known.grade if known and known.grade is not None else UNJUDGED
    right.selectbox(
        f"How relevant is {plain_markdown(passage.title or passage.source)}",
        GRADES,
        key=widget,
        format_func=lambda grade: "not judged" if grade == UNJUDGED else f"{grade} · {GRADE_WORDS[grade]}",
        label_visibility="collapsed",
        on_change=_grade,
        args=(marks, answer, passage.id, widget),
    )


def _grade(marks: Marks, answer: Answer, passage_id: str, widget: str) -> None:
    try:
        chosen = st.session_state[widget]
        marks.grade(answer, {passage_id: None if chosen == UNJUDGED else chosen})
    except RagError as error:
        st.session_state[f"mark-problem-{answer.id}"] = f"{error.message}. {error.next_step}"
