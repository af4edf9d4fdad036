"""What people said of stored queries: good or bad, a note, and how relevant single passages were.

A mark keeps the question and names passages by document, place and text hash, so that it outlives the query's trace and the
cutting of the document. Knows nothing of sets, pages or how a query ran.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any

from rag.errors import RagError
from rag.evaluation.database import Database
from rag.evaluation.types import HIGHEST_GRADE, Verdict
from rag.loaders import detect_language
from rag.loaders.document import Section
from rag.trace_rows import pack, started_unix, storable, unpack
from rag.types import Answer, Passage

NOTE_CHARS = 2000


@dataclass(frozen=True, slots=True)
class PassageMark:
    """A passage as its query saw it. `grade` None: nobody judged it; `cited`: the answer cites it."""

    source: str
    location: str | None
    title: str
    text_hash: str
    grade: int | None = None
    cited: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of one marked query. `verdict` None: only passages were judged. `language` is that of the question, None
    where it is too short to tell; `collection` the base name it was asked of, None the one in force."""

    query_id: str
    question: str
    verdict: Verdict | None
    note: str
    collection: str | None
    language: str | None
    asked_at_unix: float
    marked_at_unix: float
    passages: tuple[PassageMark, ...]


def text_hash(text: str) -> str:
    """16 hex digits of a passage's text; blanks do not count, which a new loader may set otherwise."""
    return blake2b(" ".join(text.split()).encode(), digest_size=8).hexdigest()


class Marks:
    """Marks in the file of evaluations. Every method raises RagError as `Database.open` does."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    def get(self, query_id: str) -> Mark | None:
        with self._database.open() as db:
            return _read(db, query_id)

    def list(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        collection: str | None = None,
        language: str | None = None,
        verdict: Verdict | None = None,
    ) -> tuple[Mark, ...]:
        """Marked queries asked at or after `since` and before `until` (Unix seconds), newest mark first."""
        tests: tuple[tuple[str, Any], ...] = (
            ("asked_at_unix >= ?", since),
            ("asked_at_unix < ?", until),
            ("collection = ?", collection),
            ("language = ?", language),
            ("verdict = ?", verdict),
        )
        chosen = [(clause, value) for clause, value in tests if value is not None]
        where = " WHERE " + " AND ".join(clause for clause, _ in chosen) if chosen else ""
        with self._database.open() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM marks{where} ORDER BY marked_at_unix DESC, query_id", [value for _, value in chosen]
            )
            return tuple(_mark(row) for row in rows)

    def say(self, answer: Answer, verdict: Verdict | None, note: str | None = None) -> None:
        """Call the query good or bad (None takes that back); `note` None leaves the note. Raises RagError bad_input for a query
        whose question was not kept."""
        self._change(answer, lambda mark: replace(mark, verdict=verdict, note=mark.note if note is None else _note(note)))

    def grade(self, answer: Answer, grades: Mapping[str, int | None]) -> None:
        """Judge passages of the answer, by passage id, 0 to 3; None takes a judgement back. Raises RagError bad_input."""
        if wrong := [grade for grade in grades.values() if grade is not None and not 0 <= grade <= HIGHEST_GRADE]:
            raise RagError(
                f"a grade is 0 to {HIGHEST_GRADE}, not {wrong[0]}", kind="bad_input", next_step="Choose another grade."
            )
        known = {passage.id: place(passage) for passage in answer.passages}
        if strange := [key for key in grades if key not in known]:
            raise RagError(f"the query has no passage {strange[0]}", kind="bad_input", next_step="Choose one of its passages.")
        wanted = {known[key]: grade for key, grade in grades.items()}

        def graded(mark: Mark) -> Mark:
            changed = (replace(each, grade=wanted.get(_place(each), each.grade)) for each in mark.passages)
            return replace(mark, passages=tuple(changed))

        self._change(answer, graded)

    def remove(self, query_id: str) -> None:
        with self._database.open() as db:
            db.execute("DELETE FROM marks WHERE query_id = ?", (query_id,))

    def _change(self, answer: Answer, change: Callable[[Mark], Mark]) -> None:
        if not answer.question.strip():
            raise RagError(
                "the question of this query was not kept, and a mark needs it",
                kind="bad_input",
                next_step="Switch traces.capture_content on, and ask again.",
            )
        with self._database.change() as db:
            mark = replace(change(_completed(_read(db, answer.id), unmarked(answer))), marked_at_unix=self._clock())
            if _says_nothing(mark):
                db.execute("DELETE FROM marks WHERE query_id = ?", (answer.id,))
                return
            values = (*(getattr(mark, name) for name in _NARROW), pack({"passages": [asdict(each) for each in mark.passages]}))
            db.execute(f"INSERT OR REPLACE INTO marks ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)


def unmarked(answer: Answer) -> Mark:
    """The query with nothing said of it yet."""
    cited = {citation.passage_id for citation in answer.citations}
    passages: dict[tuple[str, str | None, str], PassageMark] = {}
    for each in answer.passages:
        source, location, text = key = place(each)
        known = key in passages and passages[key].cited
        passages[key] = PassageMark(source, location, storable(each.title), text, cited=known or each.id in cited)
    return Mark(
        query_id=answer.id,
        question=storable(answer.question),
        verdict=None,
        note="",
        collection=answer.options.collection,
        language=detect_language([Section(answer.question, None, "text")]),
        asked_at_unix=started_unix(answer),
        marked_at_unix=0.0,
        passages=tuple(passages.values()),
    )


def _completed(kept: Mark | None, fresh: Mark) -> Mark:
    """What was kept, with the passages that the answer has beyond it."""
    if kept is None:
        return fresh
    known = {_place(each) for each in kept.passages}
    return replace(kept, passages=(*kept.passages, *(each for each in fresh.passages if _place(each) not in known)))


def place(passage: Passage) -> tuple[str, str | None, str]:
    """What a mark knows a passage by: source, location, text hash."""
    return storable(passage.source), passage.location and storable(passage.location), text_hash(storable(passage.text))


def _place(mark: PassageMark) -> tuple[str, str | None, str]:
    return mark.source, mark.location, mark.text_hash


def _says_nothing(mark: Mark) -> bool:
    return mark.verdict is None and not mark.note and all(each.grade is None for each in mark.passages)


def _note(text: str) -> str:
    if len(text) > NOTE_CHARS:
        raise RagError(f"a note has at most {NOTE_CHARS:,} characters", kind="bad_input", next_step="Shorten it.")
    return storable(text.strip())


_NARROW = ("query_id", "question", "verdict", "note", "collection", "language", "asked_at_unix", "marked_at_unix")
_COLUMNS = ", ".join((*_NARROW, "body"))


def _read(db: sqlite3.Connection, query_id: str) -> Mark | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM marks WHERE query_id = ?", (query_id,)).fetchone()
    return _mark(row) if row else None


def _mark(row: tuple[Any, ...]) -> Mark:
    values = dict(zip(_NARROW, row, strict=False))
    return Mark(**values, passages=tuple(PassageMark(**each) for each in unpack(row[-1])["passages"]))
