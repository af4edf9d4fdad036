"""Question sets by version. A version that a run has used never changes: editing it makes the next one.

Knows nothing of uploads, marks' storage or how a set is measured.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from rag.errors import RagError
from rag.evaluation.database import Database
from rag.evaluation.marks import Mark
from rag.evaluation.readers import MAX_QUESTIONS, folded, joined
from rag.evaluation.types import STALE_SECONDS, Judgement, Question, QuestionSet, SetInfo
from rag.trace_rows import pack, storable, unpack

NAME_CHARS = 100
CITED_GRADE = 1  # an answer that was called good cites what at least helped


class QuestionSets:
    """Sets in the file of evaluations. Every method raises RagError as `Database.open` does; not_found for a set that is not
    there, bad_input for a name or questions that cannot be."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    def create(self, name: str, questions: Sequence[Question], origin: str) -> SetInfo:
        """A new set at version 1. Its name may not be another set's."""
        asked = _checked(questions)
        with self._database.change() as db:
            wanted = _free_name(db, name, None)
            made = SetInfo(uuid.uuid4().hex[:12], 1, wanted, self._clock(), origin, len(asked))
            _insert(db, made, asked)
        return made

    def edit(self, set_id: str, questions: Sequence[Question], origin: str) -> SetInfo:
        """Other questions for the newest version; the next version where a run has used that one."""
        asked = _checked(questions)
        with self._database.change() as db:
            newest = _info(_newest(db, set_id))
            version = newest.version + 1 if newest.runs else newest.version
            made = SetInfo(set_id, version, newest.name, self._clock(), origin, len(asked))
            _insert(db, made, asked)
        return made

    def rename(self, set_id: str, name: str) -> None:
        """All its versions and their runs."""
        with self._database.change() as db:
            _newest(db, set_id)
            wanted = _free_name(db, name, set_id)
            db.execute("UPDATE sets SET name = ? WHERE id = ?", (wanted, set_id))
            db.execute("UPDATE runs SET set_name = ? WHERE set_id = ?", (wanted, set_id))

    def delete(self, set_id: str) -> None:
        """All its versions, and their runs. Raises RagError bad_input while one runs."""
        with self._database.change() as db:
            _newest(db, set_id)
            lively = "SELECT 1 FROM runs WHERE set_id = ? AND state = 'running' AND beat_at_unix > ?"
            if db.execute(lively, (set_id, self._clock() - STALE_SECONDS)).fetchone():
                raise RagError(
                    "a run with this set has not ended", kind="bad_input", next_step="Stop it, or delete the run first."
                )
            db.execute("DELETE FROM results WHERE run_id IN (SELECT id FROM runs WHERE set_id = ?)", (set_id,))
            db.execute("DELETE FROM runs WHERE set_id = ?", (set_id,))
            db.execute("DELETE FROM sets WHERE id = ?", (set_id,))

    def list(self) -> tuple[SetInfo, ...]:
        """The newest version of each set, by name; `runs` are those of all versions."""
        sql = f"SELECT {_INFO}, (SELECT count(*) FROM runs WHERE set_id = one.id) FROM sets AS one"
        sql += " WHERE version = (SELECT max(version) FROM sets WHERE id = one.id) ORDER BY name COLLATE NOCASE, id"
        with self._database.open() as db:
            return tuple(_info(row) for row in db.execute(sql))

    def versions(self, set_id: str) -> tuple[SetInfo, ...]:
        """Newest first."""
        with self._database.open() as db:
            return tuple(_info(row) for row in db.execute(f"{_VERSIONS} WHERE id = ? ORDER BY version DESC", (set_id,)))

    def get(self, set_id: str, version: int | None = None) -> QuestionSet | None:
        """A version with its questions, the newest by default; None when there is none."""
        which = "version = ?" if version is not None else "version >= ?"
        sql = f"SELECT {_INFO}, {_RUNS}, body FROM sets WHERE id = ? AND {which} ORDER BY version DESC LIMIT 1"
        with self._database.open() as db:
            row = db.execute(sql, (set_id, version or 0)).fetchone()
        if row is None:
            return None
        return QuestionSet(_info(row[:-1]), tuple(Question.from_json(each) for each in unpack(row[-1])))

    def named(self, name: str) -> QuestionSet | None:
        """The newest version of the set of that name, without regard to case."""
        found = next((each for each in self.list() if each.name.casefold() == name.strip().casefold()), None)
        return self.get(found.id) if found else None


def from_marks(marks: Sequence[Mark], *, cited: bool = True, places: bool = False) -> tuple[Question, ...]:
    """Questions of marked queries that have a relevant document. `cited`: what an answer called good cites, and nobody judged,
    counts as relevant. `places`: judge places in documents, not whole documents. Of equal questions the newest mark counts."""
    asked: dict[str, Question] = {}
    for mark in sorted(marks, key=lambda each: -each.marked_at_unix):
        judged = []
        for each in mark.passages:
            implied = CITED_GRADE if cited and each.cited and mark.verdict == "good" else None
            grade = each.grade if each.grade is not None else implied
            if grade is not None:
                judged.append(Judgement(each.source, each.location if places else None, grade))
        if any(each.grade > 0 for each in judged):
            asked.setdefault(folded(mark.question), Question(mark.question, joined(judged), mark.language, mark.query_id))
    return tuple(asked.values())


_INFO = "id, version, name, created_at_unix, origin, questions"
_RUNS = "(SELECT count(*) FROM runs WHERE set_id = sets.id AND set_version = sets.version)"
_VERSIONS = f"SELECT {_INFO}, {_RUNS} FROM sets"


def _checked(questions: Sequence[Question]) -> tuple[Question, ...]:
    kept = tuple({folded(each.text): each for each in questions if each.text.strip()}.values())
    if not kept:
        raise RagError("a set needs at least one question", kind="bad_input", next_step="Add a question and what answers it.")
    if len(kept) > MAX_QUESTIONS:
        raise RagError(f"a set has at most {MAX_QUESTIONS:,} questions", kind="bad_input", next_step="Make two sets of it.")
    idle = next((each for each in kept if not any(judged.grade > 0 for judged in each.judgements)), None)
    if idle is not None:
        message = f"no relevant document is named for {idle.text[:80]!r}"
        raise RagError(message, kind="bad_input", next_step="Name at least one with a grade above 0, or take the question out.")
    return kept


def _free_name(db: sqlite3.Connection, name: str, of: str | None) -> str:
    wanted = storable(" ".join(name.split()))
    if not wanted or len(wanted) > NAME_CHARS:
        raise RagError(f"a set's name has 1 to {NAME_CHARS} characters", kind="bad_input", next_step="Choose another name.")
    taken = {row[0].casefold() for row in db.execute("SELECT DISTINCT name FROM sets WHERE id IS NOT ?", (of,))}
    if wanted.casefold() in taken:
        raise RagError(f"there is a set named {wanted!r} already", kind="bad_input", next_step="Choose another name.")
    return wanted


def _newest(db: sqlite3.Connection, set_id: str) -> tuple[Any, ...]:
    row = db.execute(f"{_VERSIONS} WHERE id = ? ORDER BY version DESC LIMIT 1", (set_id,)).fetchone()
    if row is None:
        raise RagError(f"there is no question set {set_id}", kind="not_found", next_step="The page Evaluation lists them.")
    found: tuple[Any, ...] = row
    return found


def _insert(db: sqlite3.Connection, info: SetInfo, questions: Sequence[Question]) -> None:
    body = pack([each.to_json() for each in questions])
    values = (info.id, info.version, info.name, info.created_at_unix, storable(info.origin), info.questions, body)
    db.execute(f"INSERT OR REPLACE INTO sets ({_INFO}, body) VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def _info(row: tuple[Any, ...]) -> SetInfo:
    return SetInfo(*row)
