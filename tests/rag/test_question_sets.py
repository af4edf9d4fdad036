"""Marks, question sets and their uploads on real files."""

from __future__ import annotations

import io
import json
import sqlite3
import zipfile
from pathlib import Path

import pytest

from rag.errors import RagError
from rag.evaluation import readers
from rag.evaluation.evaluations import Evaluations
from rag.evaluation.marks import Mark, text_hash
from rag.evaluation.sets import from_marks
from rag.evaluation.types import Judgement, Question, Run, Setting
from rag.types import Answer, Citation, Options, Passage

ROOT = Path(__file__).parents[2]
QUESTION = "Why is the first query of the day so slow to answer?"


class Clock:
    """Seconds that only a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def evaluations(tmp_path: Path) -> Evaluations:
    return Evaluations(tmp_path, Clock())


def passage(name: str, location: str | None = None, text: str = "words") -> Passage:
    return Passage(f"id-{name}-{location}-{text}", text, f"{name}.md", name.title(), location)


def answered(query_id: str = "q1", question: str = QUESTION, collection: str | None = None) -> Answer:
    passages = (passage("cold", "Load"), passage("cold", "Warm"), passage("other"))
    cited = (Citation(1, passages[0].id, "cold.md", "Cold", "Load"),)
    options = Options(collection=collection)
    return Answer(query_id, question, "2026-01-02T00:00:00.000Z", "answered", passages=passages, citations=cited, options=options)


def question(text: str = "why?", source: str = "a.md", grade: int = 1) -> Question:
    return Question(text, (Judgement(source, None, grade),))


def a_run(run_id: str, set_id: str, version: int = 1, state: str = "finished") -> Run:
    return Run(run_id, set_id, version, "name", 1.0, Setting(), state=state, beat_at_unix=1000.0)  # type: ignore[arg-type]


# 1) marks


def test_a_mark_keeps_the_question_the_sources_and_the_hashes(evaluations: Evaluations, tmp_path: Path) -> None:
    evaluations.marks.say(answered(), "good", "as in the manual")
    kept = Evaluations(tmp_path).marks.get("q1")
    assert kept is not None
    assert (kept.question, kept.verdict, kept.note, kept.language) == (QUESTION, "good", "as in the manual", "en")
    assert [(each.source, each.location, each.cited, each.grade) for each in kept.passages] == [
        ("cold.md", "Load", True, None),
        ("cold.md", "Warm", False, None),
        ("other.md", None, False, None),
    ]
    assert kept.passages[0].text_hash == text_hash("  words ")


def test_grades_are_kept_by_passage_and_taken_back(evaluations: Evaluations) -> None:
    answer = answered()
    evaluations.marks.grade(answer, {answer.passages[2].id: 3, answer.passages[1].id: 0})
    kept = evaluations.marks.get("q1")
    assert kept is not None and [each.grade for each in kept.passages] == [None, 0, 3] and kept.verdict is None
    evaluations.marks.grade(answer, {answer.passages[2].id: None, answer.passages[1].id: None})
    assert evaluations.marks.get("q1") is None, "a mark that says nothing is none"


def test_a_verdict_leaves_the_note_and_taking_back_leaves_the_grades(evaluations: Evaluations) -> None:
    answer = answered()
    evaluations.marks.say(answer, "bad", "wrong article")
    evaluations.marks.grade(answer, {answer.passages[0].id: 1})
    evaluations.marks.say(answer, None)
    kept = evaluations.marks.get("q1")
    assert kept is not None and (kept.verdict, kept.note, kept.passages[0].grade) == (None, "wrong article", 1)


def test_marks_refuse_what_cannot_be(evaluations: Evaluations) -> None:
    answer = answered()
    with pytest.raises(RagError, match="not kept"):
        evaluations.marks.say(answered(question="  "), "good")
    with pytest.raises(RagError, match="0 to 3"):
        evaluations.marks.grade(answer, {answer.passages[0].id: 4})
    with pytest.raises(RagError, match="no passage"):
        evaluations.marks.grade(answer, {"strange": 1})
    with pytest.raises(RagError, match="characters"):
        evaluations.marks.say(answer, "good", "x" * 3000)
    assert evaluations.marks.list() == ()


def test_marks_are_listed_by_time_collection_language_and_verdict(evaluations: Evaluations) -> None:
    evaluations.marks.say(answered("one"), "good")
    evaluations.marks.say(answered("two", "למה השאילתה הראשונה של היום איטית כל כך?", "archive"), "bad")
    listed = evaluations.marks.list()
    assert [mark.query_id for mark in listed] == ["two", "one"]
    assert [mark.query_id for mark in evaluations.marks.list(collection="archive")] == ["two"]
    assert [mark.query_id for mark in evaluations.marks.list(language="he")] == ["two"]
    assert [mark.query_id for mark in evaluations.marks.list(verdict="good")] == ["one"]
    assert evaluations.marks.list(since=listed[0].asked_at_unix + 1) == ()
    assert len(evaluations.marks.list(until=listed[0].asked_at_unix + 1)) == 2


# 2) sets of marks


def marked(evaluations: Evaluations) -> tuple[Mark, ...]:
    good, bad, idle = answered("good"), answered("bad", "How are passages cut into pieces?"), answered("idle", "What is this?")
    evaluations.marks.say(good, "good")
    evaluations.marks.grade(good, {good.passages[1].id: 2})
    evaluations.marks.say(bad, "bad")
    evaluations.marks.grade(bad, {bad.passages[2].id: 3, bad.passages[0].id: 0})
    evaluations.marks.say(idle, "bad")
    return evaluations.marks.list()


def test_a_set_of_marks_judges_documents_by_their_best_passage(evaluations: Evaluations) -> None:
    found = {each.query_id: each for each in from_marks(marked(evaluations))}
    assert set(found) == {"good", "bad"}, "a mark without a relevant passage asks nothing"
    assert found["good"].judgements == (Judgement("cold.md", None, 2),)
    assert set(found["bad"].judgements) == {Judgement("other.md", None, 3), Judgement("cold.md", None, 0)}


def test_places_and_citations_are_choices(evaluations: Evaluations) -> None:
    found = {each.query_id: each for each in from_marks(marked(evaluations), places=True)}
    assert set(found["good"].judgements) == {Judgement("cold.md", "Load", 1), Judgement("cold.md", "Warm", 2)}
    without = {each.query_id: each for each in from_marks(marked(evaluations), places=True, cited=False)}
    assert without["good"].judgements == (Judgement("cold.md", "Warm", 2),)


def test_of_equal_questions_the_newest_mark_counts(evaluations: Evaluations) -> None:
    first, second = answered("first"), answered("second", f"  {QUESTION.upper()}")
    evaluations.marks.say(first, "good")
    evaluations.marks.say(second, "good")
    assert [each.query_id for each in from_marks(evaluations.marks.list())] == ["second"]


# 3) versions


def test_a_set_that_was_run_is_edited_into_its_next_version(evaluations: Evaluations) -> None:
    made = evaluations.sets.create("Mine", [question("one?")], "by hand")
    same = evaluations.sets.edit(made.id, [question("two?")], "by hand")
    assert same.version == 1
    evaluations.runs.save(a_run("r1", made.id))
    after = evaluations.sets.edit(made.id, [question("three?")], "by hand")
    assert after.version == 2
    old, new = evaluations.sets.get(made.id, 1), evaluations.sets.get(made.id)
    assert old is not None and new is not None
    assert (old.questions[0].text, new.questions[0].text) == ("two?", "three?")
    assert [(each.version, each.runs) for each in evaluations.sets.versions(made.id)] == [(2, 0), (1, 1)]
    assert [(each.version, each.runs) for each in evaluations.sets.list()] == [(2, 1)]


def test_names_are_unique_and_runs_follow_a_new_name(evaluations: Evaluations) -> None:
    made = evaluations.sets.create(" Mine ", [question()], "by hand")
    evaluations.sets.create("Other", [question()], "by hand")
    with pytest.raises(RagError, match="already"):
        evaluations.sets.create("MINE", [question()], "by hand")
    with pytest.raises(RagError, match="already"):
        evaluations.sets.rename(made.id, "other")
    with pytest.raises(RagError, match="characters"):
        evaluations.sets.rename(made.id, " ")
    evaluations.runs.save(a_run("r1", made.id))
    evaluations.sets.rename(made.id, "mine")
    assert [run.set_name for run in evaluations.runs.list()] == ["mine"]
    assert evaluations.sets.named(" MINE") is not None and evaluations.sets.named("nobody's") is None


def test_a_deleted_set_takes_its_runs_along_but_not_while_one_runs(evaluations: Evaluations) -> None:
    made = evaluations.sets.create("Mine", [question()], "by hand")
    evaluations.runs.save(a_run("r1", made.id, state="running"))
    with pytest.raises(RagError, match="not ended"):
        evaluations.sets.delete(made.id)
    evaluations.runs.save(a_run("r1", made.id), [])
    evaluations.sets.delete(made.id)
    assert evaluations.sets.list() == () and evaluations.runs.list() == ()
    with pytest.raises(RagError) as caught:
        evaluations.sets.delete(made.id)
    assert caught.value.kind == "not_found"


def test_a_set_needs_questions_that_have_an_answer(evaluations: Evaluations) -> None:
    with pytest.raises(RagError, match="at least one question"):
        evaluations.sets.create("Mine", [], "by hand")
    with pytest.raises(RagError, match="no relevant document"):
        evaluations.sets.create("Mine", [question(grade=0)], "by hand")


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "evaluations.db") as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(RagError, match="another program"):
        Evaluations(tmp_path).sets.list()
    (tmp_path / "evaluations.db").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(RagError, match="file of evaluations"):
        Evaluations(tmp_path).marks.list()


# 4) uploads


def lines(*rows: object) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def test_json_lines_in_every_form() -> None:
    data = lines(
        {"question": "one?", "relevant": ["a.md", {"source": "b.md", "location": "p. 3", "grade": 3}]},
        {"question": "two?", "relevant": ["a.md", "b.md#Part 2"], "grades": [2, 0], "language": "en"},
        {"question": "three?", "relevant": ["a.md"], "grades": {"a.md": 3}},
    )
    read = readers.read({"mine.jsonl": data})
    assert read.faults == ()
    assert read.questions[0].judgements == (Judgement("a.md"), Judgement("b.md", "p. 3", 3))
    assert read.questions[1] == Question("two?", (Judgement("a.md", None, 2), Judgement("b.md", "Part 2", 0)), "en")
    assert read.questions[2].judgements == (Judgement("a.md", None, 3),)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{half", "expected a JSON object"),
        ("[1]", "not list"),
        ({"relevant": ["a"]}, "expected a text under 'question'"),
        ({"question": 7, "relevant": ["a"]}, "expected a text under 'question'"),
        ({"question": "x?"}, "expected a list of documents"),
        ({"question": "x?", "relevant": [7]}, "expected a source"),
        ({"question": "x?", "relevant": ["a"], "grades": [1, 2]}, "as many grades"),
        ({"question": "x?", "relevant": [{"source": "a", "grade": "many"}]}, "expected a grade"),
        ({"question": "x?", "relevant": [{"source": "a", "location": 4}]}, "'location'"),
        ({"question": "x" * 4_000_000, "relevant": ["a"]}, "this one 4,000,000"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(row: object, said: str) -> None:
    read = readers.read({"mine.jsonl": lines({"question": "good?", "relevant": ["a"]}, row)})
    assert [each.text for each in read.questions] == ["good?"]
    assert len(read.faults) == 1 and read.faults[0].startswith("mine.jsonl:2: ") and said in read.faults[0]
    assert len(read.faults[0]) < 300


def test_questions_that_come_twice_are_joined_and_counted() -> None:
    read = readers.read(
        {"m.jsonl": lines({"question": "One?", "relevant": ["a"]}, {"question": " one? ", "relevant": ["b", "a"]})}
    )
    assert read.questions == (Question("One?", (Judgement("a"), Judgement("b"))),)
    assert "1 questions came more than once" in read.notes[0]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no file"),
        ({"x.jsonl": b"\x89PNG\r\n\x1a\n\x00\x00"}, "no UTF-8"),
        ({"x.jsonl": "שלום".encode("utf-16")}, "no UTF-8"),
        ({"x.jsonl": b""}, "no question"),
        ({"x.jsonl": b"{}\n"}, "x.jsonl:1"),
        ({"x.csv": b"a,b\n1,2\n"}, "expected the columns question and source"),
        ({"x.zip": b"PK but not really"}, "cannot be unpacked"),
        ({"queries.jsonl": b"{}", "x.txt": b""}, "only queries.jsonl was found|queries.jsonl:1"),
        ({"x.jsonl": b"x" * (readers.MAX_FILE_BYTES + 1)}, "at most"),
    ],
)
def test_what_is_no_question_set_is_refused(files: dict[str, bytes], said: str) -> None:
    with pytest.raises(RagError, match=said) as caught:
        readers.read(files)
    assert caught.value.kind == "bad_input" and "BEIR" in caught.value.next_step


def test_csv_has_a_judgement_a_line() -> None:
    text = "\ufeffQuestion,Source,Location,Grade\none?,a.md,,2\none?,b.md,p. 4,1\ntwo?,,,\nthree?,c.md#Part,,x\nfour?,d.md,,\n"
    read = readers.read({"m.csv": text.encode()})
    assert read.questions == (
        Question("one?", (Judgement("a.md", None, 2), Judgement("b.md", "p. 4", 1))),
        Question("four?", (Judgement("d.md"),)),
    )
    assert [fault.split(" ")[0] for fault in read.faults] == ["m.csv:4:", "m.csv:5:"] and read.notes == ()


def beir() -> dict[str, bytes]:
    folder = ROOT / "samples" / "field-guide-eval"
    return {path.name: path.read_bytes() for path in (folder / "queries.jsonl", folder / "qrels" / "test.tsv")}


def test_beir_as_files_and_as_a_zip_are_the_same() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        target.writestr("set/queries.jsonl", beir()["queries.jsonl"])
        target.writestr("set/qrels/test.tsv", beir()["test.tsv"])
        target.writestr("set/corpus.jsonl", b"never read \x00")
    loose = readers.read({**beir(), "corpus.jsonl": b"never read \x00"})
    assert readers.read({"set.zip": packed.getvalue()}) == loose
    assert len(loose.questions) == 60 and loose.faults == ()
    assert Judgement("symptoms/cold-embedder-load", "how-it-shows-itself", 2) in loose.questions[0].judgements


def test_beir_names_bad_lines_and_judgements_without_a_query() -> None:
    files = {
        "queries.jsonl": lines({"_id": "q1", "text": "one?"}, {"_id": "q2"}),
        "test.tsv": b"query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tb\nq9\tc\t1\nq1\td\t-1\n",
    }
    read = readers.read(files)
    assert read.questions == (Question("one?", (Judgement("a"), Judgement("d", None, 0))),)
    assert read.faults[0].startswith("test.tsv:3: expected query id") and "q9" in read.faults[-1]


def test_what_is_downloaded_can_be_uploaded() -> None:
    questions = readers.read(beir()).questions
    assert readers.read({"again.jsonl": readers.to_json_lines(questions)}).questions == questions


def test_too_many_questions_are_refused_with_the_number() -> None:
    many = lines(*({"question": f"{number}?", "relevant": ["a"]} for number in range(readers.MAX_QUESTIONS + 1)))
    with pytest.raises(RagError, match="at most 5,000"):
        readers.read({"m.jsonl": many})
