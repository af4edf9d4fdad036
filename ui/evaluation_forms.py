"""Forms of the page Evaluation: a set from marks, by upload, of the sample corpus; editing a set; starting runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import streamlit as st

from rag.errors import RagError
from rag.evaluation import readers
from rag.evaluation.collection import content, find_passages, passage_ids, unknown_sources, with_places
from rag.evaluation.evaluations import MAX_SETTINGS, Evaluations, grid
from rag.evaluation.marks import Mark
from rag.evaluation.readers import Reading
from rag.evaluation.sets import NAME_CHARS, from_marks
from rag.evaluation.types import Question, QuestionSet, SetInfo, Setting
from runtime import SAMPLES, Runtime
from ui import cards, evaluation_view
from ui.cached import now
from ui.format import escape, plural

SAMPLE_SET = SAMPLES.parent / f"{SAMPLES.name}-eval"
SAMPLE_NAME = "Sample questions"
SINCE: Mapping[str, timedelta | None] = {
    "all time": None,
    "7 days": timedelta(7),
    "30 days": timedelta(30),
    "90 days": timedelta(90),
}
DIFFERENT = (20, 40, 60, 80, 100)  # candidates offered besides the setting in force
PREVIEWED = 5


# 1) a new set


def from_marks_form(evaluations: Evaluations) -> SetInfo | None:
    """Marked queries, narrowed down; returns the set when it was just made. Raises RagError."""
    marks = evaluations.marks.list()
    if not marks:
        st.html(
            cards.empty(
                "No query is marked yet.",
                "Ask, open the query on its own page and mark the answer good, or judge its passages: it is listed here then.",
            )
        )
        return None
    chosen = _narrowed(marks)
    left, right = st.columns(2)
    cited = left.toggle(
        "What a good answer cites is relevant",
        True,
        key="marks-cited",
        help="Counts passages that an answer marked good cites, and that nobody judged, with grade 1.",
    )
    places = right.toggle(
        "Judge places, not documents",
        False,
        key="marks-places",
        help="A relevant document found at another place then counts as another item. Documents survive cutting anew best.",
    )
    questions = from_marks(chosen, cited=cited, places=places)
    idle = len(chosen) - len(questions)
    left_out = f" · {plural(idle, 'mark')} without a relevant passage, or of an equal question, left out" if idle else ""
    of = plural(len(chosen), "marked query", "marked queries")
    st.html(f'<div class="rd rd-soft">{plural(len(questions), "question")} of {of}{left_out}</div>')
    return _make(
        evaluations, "marks", questions, f"from {plural(len(questions), 'marked query', 'marked queries')}", "Marked queries"
    )


def _narrowed(marks: Sequence[Mark]) -> list[Mark]:
    when, where, language = st.columns(3)
    span = SINCE[when.selectbox("Asked within", tuple(SINCE), key="marks-since")]
    names = sorted({mark.collection or "in force" for mark in marks})
    name = where.selectbox("Collection", ("all", *names), key="marks-collection")
    tongues = sorted({mark.language or "unknown" for mark in marks})
    tongue = language.selectbox(
        "Language", ("all", *tongues), key="marks-language", help="Of the question, where it is long enough to tell."
    )
    since = (now() - span).timestamp() if span else 0.0
    return [
        mark
        for mark in marks
        if mark.asked_at_unix >= since
        and name in ("all", mark.collection or "in force")
        and tongue in ("all", mark.language or "unknown")
    ]


def upload_form(evaluations: Evaluations, runtime: Runtime) -> SetInfo | None:
    """A file or BEIR's three; returns the set when it was just made. Raises RagError."""
    files = st.file_uploader(
        "Question set",
        type=["jsonl", "csv", "tsv", "zip"],
        accept_multiple_files=True,
        key="set-files",
        help=f"A question set is {readers.EXPECTED}. Of BEIR the corpus is not read: the live collection is searched.",
    )
    if not files:
        return None
    reading = readers.read({file.name: file.getvalue() for file in files})
    questions = _placed(reading, runtime)
    if reading.faults:
        st.html(evaluation_view.faults(reading.faults))
    for note in reading.notes:
        st.html(cards.note("unknown", escape(note)))
    st.html(evaluation_view.questions_table(questions[:PREVIEWED]))
    if len(questions) > PREVIEWED:
        st.html(f'<div class="rd rd-soft">and {len(questions) - PREVIEWED:,} more</div>')
    name = Path(files[0].name).stem[:NAME_CHARS]
    return _make(evaluations, "upload", questions, f"uploaded as {', '.join(file.name for file in files)[:100]}", name)


def _placed(reading: Reading, runtime: Runtime) -> tuple[Question, ...]:
    """The questions with passage ids turned into places, where the collection has them; and what it does not hold, said."""
    try:
        name = runtime.library.collection()
        held = content(runtime.store, name, read_only=runtime.store.mapping is not None)
        ids = passage_ids(reading.questions, held.names)
        with st.spinner(f"Looking for {plural(len(ids), 'passage')} …", show_time=True):
            found = find_passages(runtime.store, name, list(held.documents or ()), ids) if ids else {}
    except RagError as error:
        st.html(cards.note("warn", f"Whether the collection holds the judged documents is not known: {escape(error.message)}"))
        return reading.questions
    questions = with_places(reading.questions, found)
    if missing := unknown_sources(questions, held.names):
        st.html(evaluation_view.unknown_note(missing, name))
    return questions


def sample_form(evaluations: Evaluations, runtime: Runtime) -> SetInfo | None:
    """One button, where the sample corpus is in the collection and its questions are no set yet. Raises RagError."""
    known = runtime.knowledge()
    sources = {document.source for document in known.documents}
    there = sum(source.startswith(f"{SAMPLES.name}/") for source in sources)
    if not there or evaluations.sets.named(SAMPLE_NAME) is not None or not SAMPLE_SET.is_dir():
        return None
    st.html(
        f'<div class="rd">The sample corpus is in the collection ({plural(there, "document")}); sixty questions with judged '
        "sections come with it.</div>"
    )
    if not st.button("Load the sample questions", key="sample-set"):
        return None
    files = {path.name: path.read_bytes() for path in (SAMPLE_SET / "queries.jsonl", SAMPLE_SET / "qrels" / "test.tsv")}
    return evaluations.sets.create(SAMPLE_NAME, readers.read(files).questions, "the sample corpus's judged questions")


def _make(evaluations: Evaluations, key: str, questions: Sequence[Question], origin: str, name: str) -> SetInfo | None:
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    wanted = left.text_input("Name of the set", name, max_chars=NAME_CHARS, key=f"{key}-name")
    if right.button(
        f"Make a set of {plural(len(questions), 'question')}", key=f"{key}-make", type="primary", disabled=not questions
    ):
        return evaluations.sets.create(wanted or "", questions, origin)
    return None


# 2) a set that is there


def edit_form(evaluations: Evaluations, known: QuestionSet) -> SetInfo | None:
    """The questions as text, a JSON object a line; returns the version that was written. Raises RagError."""
    st.html(
        '<div class="rd rd-soft">A question a line, as it is downloaded. Change, add, delete lines; grades are 0 (not relevant) '
        "to 3.</div>"
    )
    before = readers.to_json_lines(known.questions).decode()
    text = st.text_area(
        "Questions", before, height=320, key=f"edit-{known.info.id}-{known.info.version}", label_visibility="collapsed"
    )
    follow = "the next version" if known.info.runs else "this version"
    if not st.button(f"Keep as {follow}", key="edit-keep", disabled=text == before, type="primary"):
        return None
    reading = readers.read({"line": (text or "").encode()})
    if reading.faults:
        st.html(evaluation_view.faults(reading.faults))
        return None
    kept = {readers.folded(each.text): each for each in known.questions}
    return evaluations.sets.edit(known.info.id, [_same_origin(each, kept) for each in reading.questions], "edited here")


def _same_origin(question: Question, before: Mapping[str, Question]) -> Question:
    known = before.get(readers.folded(question.text))
    return Question(question.text, question.judgements, question.language, known.query_id if known else None)


# 3) runs


def run_form(runtime: Runtime, busy: str | None) -> tuple[Setting, ...] | None:
    """What to vary; returns the settings when they were just chosen. Raises RagError for what cannot run."""
    base = runtime.default_options()
    offered = sorted({*DIFFERENT, base.candidates})
    with st.form("evaluate", border=True):
        columns = st.columns([3, 2, 2, 1], vertical_alignment="top")
        candidates = columns[0].multiselect(
            "Candidates", offered, [base.candidates], key="run-candidates", help="Passages into the reranker."
        )
        can_rerank = runtime.models.reranker is not None
        rerank = columns[1].multiselect(
            "Rerank",
            (True, False) if can_rerank else (False,),
            [can_rerank and base.rerank],
            key="run-rerank",
            format_func=lambda each: "on" if each else "off",
            help=None if can_rerank else "The reranker is switched off in the settings.",
        )
        can_hyde = runtime.chat is not None
        hyde = columns[2].multiselect(
            "HyDE",
            (False, True) if can_hyde else (False,),
            [False],
            key="run-hyde",
            format_func=lambda each: "on" if each else "off",
            help="On asks the language model once a question." if can_hyde else "No language model is configured.",
        )
        keep = columns[3].number_input("Keep", 1, 100, base.keep, key="run-keep", help="Passages an answer is written from.")
        sent = st.form_submit_button("Run", type="primary", key="run-start", disabled=busy is not None, help=busy)
    st.html(
        f'<div class="rd rd-soft">Every combination runs in turn, {MAX_SETTINGS} at most, over the collection in use with the '
        "models in force; nothing is answered from a cache, and nothing is written to the traces.</div>"
    )
    return grid(candidates, int(keep), rerank, hyde) if sent else None
