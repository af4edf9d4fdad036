"""Uploaded question sets -> questions: JSON lines, CSV, BEIR (a zip, or its files); and questions -> JSON lines.

A line that cannot be used is a fault that names file, line and what was expected; the others are read. Knows no collection:
whether a judged document exists is for later.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from rag.errors import RagError
from rag.evaluation.types import Judgement, Question

MAX_FILE_BYTES = 32 * 2**20
MAX_QUESTIONS = 5000
MAX_QUESTION_CHARS = 4000
MAX_JUDGED = 1000  # a question
HIGHEST_UPLOADED_GRADE = 10  # others grade finer than we do
EXPECTED = (
    'a JSON object a line, {"question": "…", "relevant": ["source", {"source": "…", "location": "…", "grade": 2}]}; CSV with the '
    "columns question, source and perhaps location and grade; or BEIR's queries.jsonl and qrels/test.tsv, zipped or as files"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What an upload holds. `faults` name lines that are left out, `notes` say what was joined or guessed."""

    questions: tuple[Question, ...]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Fault(Exception):
    """One line cannot be used, and why."""


@dataclass(slots=True)
class _Gathered:
    """Questions by their folded text, in the order in which they came."""

    questions: dict[str, Question] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    repeated: int = 0

    def add(self, where: str, question: Question, *, again: bool = False) -> None:
        """`again`: a question may come in several lines, a judgement each."""
        key = folded(question.text)
        known = self.questions.get(key)
        if known is None:
            if len(self.questions) >= MAX_QUESTIONS:
                raise RagError(
                    f"{where}: a set has at most {MAX_QUESTIONS:,} questions", kind="bad_input", next_step="Upload fewer at once."
                )
            self.questions[key] = question
            return
        self.repeated += not again
        self.questions[key] = replace(known, judgements=joined((*known.judgements, *question.judgements)))

    def reading(self) -> Reading:
        useful = [each for each in self.questions.values() if any(judged.grade > 0 for judged in each.judgements)]
        faults = [*self.faults]
        if idle := len(self.questions) - len(useful):
            faults.append(f"{idle:,} questions have no relevant document: expected at least one with a grade above 0")
        notes = (f"{self.repeated:,} questions came more than once; their judgements were joined.",) if self.repeated else ()
        return Reading(tuple(useful), tuple(faults), notes)


def folded(text: str) -> str:
    """What makes two questions the same: their words without regard to case and blanks."""
    return " ".join(text.casefold().split())


def joined(judgements: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """One judgement a document or place, with its highest grade."""
    best: dict[tuple[str, str | None], Judgement] = {}
    for each in judgements:
        known = best.get((each.source, each.location))
        if known is None or known.grade < each.grade:
            best[each.source, each.location] = each
    return tuple(best.values())


def read(files: Mapping[str, bytes]) -> Reading:
    """The questions in uploaded files, by name. Raises RagError bad_input for files that are no question set at all."""
    if not files:
        raise _refused("no file was given")
    for name, data in files.items():
        if len(data) > MAX_FILE_BYTES:
            raise _refused(f"{name} has {len(data):,} bytes; at most {MAX_FILE_BYTES:,} are read")
    if len(files) == 1:
        name, data = next(iter(files.items()))
        if name.lower().endswith(".zip"):
            return read(_unpacked(name, data))
        if name.lower().endswith((".csv", ".tsv")):
            return _csv(name, _text(name, data))
        return _json_lines(name, _text(name, data))
    return _beir(files)


def _unpacked(name: str, data: bytes) -> dict[str, bytes]:
    """The questions' files of a zip; its corpus stays packed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            entries = [each for each in packed.infolist() if not each.is_dir() and _wanted(each.filename)]
            if not entries:
                raise _refused(f"{name} holds no queries and no judgements")
            found: dict[str, bytes] = {}
            for entry in entries:
                with packed.open(entry) as handle:  # the size in the directory may lie
                    found[entry.filename] = handle.read(MAX_FILE_BYTES + 1)
            return found
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as problem:
        raise _refused(f"{name} cannot be unpacked ({problem})") from None


def _wanted(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return name.endswith((".jsonl", ".tsv", ".csv")) and not name.startswith((".", "corpus"))


def _text(name: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise _refused(f"{name} is no UTF-8 text")
    return text


def _refused(message: str) -> RagError:
    return RagError(message, kind="bad_input", next_step=f"A question set is {EXPECTED}.")


# 1) JSON lines


def _json_lines(name: str, text: str) -> Reading:
    gathered = _Gathered()
    for where, row in _rows(name, text, gathered):
        try:
            gathered.add(where, Question(_question(row, "question"), _relevant(row), _optional(row, "language")))
        except Fault as fault:
            gathered.faults.append(f"{where}: {fault}")
    return _some(name, gathered)


def _rows(name: str, text: str, gathered: _Gathered) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            gathered.faults.append(f"{where}: expected a JSON object ({str(problem)[:80]})")
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            gathered.faults.append(f"{where}: expected a JSON object, not {type(row).__name__}")


def _question(row: Mapping[str, Any], key: str) -> str:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        raise Fault(f"expected a text under {key!r}")
    if len(text) > MAX_QUESTION_CHARS:
        raise Fault(f"a question has at most {MAX_QUESTION_CHARS:,} characters, this one {len(text):,}")
    return text.strip().encode("utf-8", "replace").decode()


def _optional(row: Mapping[str, Any], key: str) -> str | None:
    text = row.get(key)
    return text[:16] if isinstance(text, str) and text else None


def _relevant(row: Mapping[str, Any]) -> tuple[Judgement, ...]:
    """`relevant` with grades in it, in `grades` beside it (a list in its order, or by source), or 1."""
    listed, grades = row.get("relevant"), row.get("grades")
    if not isinstance(listed, list) or not listed:
        raise Fault("expected a list of documents under 'relevant'")
    if len(listed) > MAX_JUDGED:
        raise Fault(f"a question has at most {MAX_JUDGED:,} judged documents, this one {len(listed):,}")
    if isinstance(grades, list) and len(grades) != len(listed):
        raise Fault(f"expected as many grades as documents: {len(listed)}, not {len(grades)}")
    judged = []
    for index, each in enumerate(listed):
        beside = (
            grades[index]
            if isinstance(grades, list)
            else grades.get(each, 1)
            if isinstance(grades, dict) and isinstance(each, str)
            else 1
        )
        judged.append(_judgement(each, beside))
    return joined(judged)


def _judgement(value: Any, beside: Any) -> Judgement:
    if isinstance(value, str) and value.strip():
        return replace(named(value), grade=_grade(beside))
    if isinstance(value, dict) and isinstance(value.get("source"), str) and value["source"].strip():
        location = value.get("location")
        if location is not None and not isinstance(location, str):
            raise Fault("expected a text as 'location'")
        return Judgement(value["source"].strip(), (location or "").strip() or None, _grade(value.get("grade", beside)))
    raise Fault("expected a source, or an object with 'source', in 'relevant'")


def named(name: str) -> Judgement:
    """`source` or `source#location`."""
    source, _, location = name.strip().rpartition("#")
    return Judgement(source, location) if source and location else Judgement(name.strip())


def _grade(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,3}", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value > HIGHEST_UPLOADED_GRADE:
        raise Fault(f"expected a grade from 0 (not relevant) to {HIGHEST_UPLOADED_GRADE}, not {str(value)[:40]!r}")
    return max(0, value)  # TREC's judges mark spam with negative grades


# 2) CSV


def _csv(name: str, text: str) -> Reading:
    gathered = _Gathered()
    rows = csv.DictReader(io.StringIO(text), delimiter="\t" if name.lower().endswith(".tsv") else ",")
    heads = [(head or "").strip().lower() for head in rows.fieldnames or ()]
    if "question" not in heads or not {"source", "relevant"} & set(heads):
        raise _refused(f"{name}:1: expected the columns question and source, not {', '.join(heads)[:200] or 'none'}")
    rows.fieldnames = heads
    try:
        for row in rows:
            where = f"{name}:{rows.line_num}"
            try:
                gathered.add(where, _csv_question(row), again=True)
            except Fault as fault:
                gathered.faults.append(f"{where}: {fault}")
    except csv.Error as problem:
        gathered.faults.append(f"{name}:{rows.line_num}: {problem}; what follows was not read")
    return _some(name, gathered)


def _csv_question(row: Mapping[str, Any]) -> Question:
    source = row.get("source") or row.get("relevant")
    if not source or not source.strip():
        raise Fault("expected a document under 'source'")
    location = (row.get("location") or "").strip() or None
    grade = _grade((row.get("grade") or "1").strip())
    judgement = replace(named(source), grade=grade) if location is None else Judgement(source.strip(), location, grade)
    return Question(_question(row, "question"), (judgement,), _optional(row, "language"))


# 3) BEIR


def _beir(files: Mapping[str, bytes]) -> Reading:
    """Queries by id and judgements by query id; document ids are sources. The corpus is not read."""
    wanted = {name: data for name, data in files.items() if _wanted(name)}
    queries = next((name for name in wanted if name.lower().endswith(".jsonl")), None)
    tables = sorted(name for name in wanted if name.lower().endswith(".tsv"))
    judgements = next((name for name in tables if PurePosixPath(name).name.lower() == "test.tsv"), tables[0] if tables else None)
    if queries is not None and not tables and len(wanted) == 1:
        return _json_lines(queries, _text(queries, wanted[queries]))
    if queries is None or judgements is None:
        raise _refused(f"of the queries and their judgements only {', '.join(wanted) or 'nothing'} was found")
    for name in (queries, judgements):
        if len(wanted[name]) > MAX_FILE_BYTES:
            raise _refused(f"{name} is larger than {MAX_FILE_BYTES:,} bytes")
    gathered = _Gathered()
    judged = _judged(judgements, _text(judgements, wanted[judgements]), gathered)
    for where, row in _rows(queries, _text(queries, wanted[queries]), gathered):
        try:
            mine = judged.pop(_question(row, "_id"), None)
            if mine is not None:
                gathered.add(where, Question(_question(row, "text"), joined(mine)))
        except Fault as fault:
            gathered.faults.append(f"{where}: {fault}")
    if judged:
        gathered.faults.append(
            f"{judgements}: {len(judged):,} judged query ids are not in {queries}, such as {next(iter(judged))[:80]!r}"
        )
    return _some(queries, gathered)


def _judged(name: str, text: str, gathered: _Gathered) -> dict[str, list[Judgement]]:
    judged: dict[str, list[Judgement]] = {}
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        cells = line.rstrip("\n").split("\t")
        if number == 1 and not cells[-1].lstrip("-").isdigit() or not line.strip():
            continue
        try:
            if len(cells) != 3 or not cells[0] or not cells[1].strip():
                raise Fault("expected query id, document id and a whole number, separated by tabs")
            judged.setdefault(cells[0], []).append(replace(named(cells[1]), grade=_grade(cells[2])))
        except Fault as fault:
            gathered.faults.append(f"{name}:{number}: {fault}")
    return judged


def _some(name: str, gathered: _Gathered) -> Reading:
    reading = gathered.reading()
    if not reading.questions:
        first = reading.faults[0] if reading.faults else f"{name} holds no question"
        raise _refused(first)
    return reading


# 4) out again


def to_json_lines(questions: Sequence[Question]) -> bytes:
    """A question a line, as `read` takes them."""
    return "".join(json.dumps(each.to_json(), ensure_ascii=False) + "\n" for each in questions).encode()
