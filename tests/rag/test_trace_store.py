"""The trace store on real files: what is saved is read back, whatever else is going on; nothing acknowledged is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_traces import Synthetic, fill
from rag.errors import RagError
from rag.trace import SpanRecord
from rag.trace_file import VERSION, connect
from rag.trace_rows import passage_hash, unpack
from rag.trace_store import QueryFilter, TraceStore
from rag.types import STAGES, Answer, HydeEffect, Interval, Options, Passage, Split, Stage

ROOT = Path(__file__).parents[2]
V1 = Path(__file__).parent / "data" / "traces_v1.sql"
PATIENCE = 60.0


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "traces.db"


@pytest.fixture
def store(path: Path) -> Iterator[TraceStore]:
    opened = TraceStore(path)
    yield opened
    opened.close(5.0)


@pytest.fixture(scope="module")
def made() -> list[tuple[Answer, list[SpanRecord]]]:
    return list(Synthetic(5).answers(60))


def answered(made: list[tuple[Answer, list[SpanRecord]]]) -> tuple[Answer, list[SpanRecord]]:
    return next(pair for pair in made if pair[0].outcome == "answered")


# Round trips


def test_a_prompt_does_not_store_the_passages_texts_again(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    answer, spans = next(item for item in made if item[0].passages)
    answer = replace(answer, passages=tuple(p._replace(kept=n < 3) for n, p in enumerate(answer.passages)))
    kept = answer.passages[:3]
    text = "Question with a \0 in it\n\n" + "\n\n".join(f"[{n}] {p.text}" for n, p in enumerate(kept, 1))
    asked = replace(answer, prompt=({"role": "user", "content": text},))
    store.save(asked, spans)
    assert store.flush()
    found = store.get(answer.id)
    assert found is not None and found.prompt == asked.prompt
    with sqlite3.connect(store.path) as db:
        body = db.execute("SELECT body FROM answers WHERE query_id = ?", (answer.id,)).fetchone()[0]
    assert kept[0].text not in json.dumps(unpack(body), ensure_ascii=False)


def test_answers_and_spans_come_back_equal(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    for answer, spans in made:
        store.save(answer, spans)
        assert store.get(answer.id) == answer and store.spans(answer.id) == spans  # before it is on disk
    assert store.flush()
    for answer, spans in made:
        assert store.get(answer.id) == answer and store.spans(answer.id) == spans
    assert store.get("0" * 32) is None and store.spans("0" * 32) == []


def test_they_come_back_after_a_restart(path: Path, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    first = TraceStore(path)
    for answer, spans in made:
        first.save(answer, spans)
    assert first.close()
    again = TraceStore(path)
    assert [again.get(answer.id) for answer, _ in made] == [answer for answer, _ in made]
    again.close()
    with pytest.raises(RagError, match="closed"):
        again.save(made[0][0])


@pytest.mark.parametrize(
    "text", ["", "Größe? 東京 🛠", "nul\0in it", "lone \ud800 surrogate", "'; DROP TABLE queries; --", "x" * 200_000]
)
def test_any_text_can_be_stored(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]], text: str) -> None:
    passage = Passage("p", text.replace("\ud800", "?"), "source", "title", location=None)
    answer = replace(made[0][0], question=text, answer=text, passages=(passage,), hyde_text=text)
    store.save(answer)
    assert store.flush() and store.health().rejected == 0
    assert store.get(answer.id) == answer


def test_saving_again_replaces(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    answer, spans = answered(made)
    store.save(answer, spans)
    store.flush()
    store.save(replace(answer, answer="other", stages=answer.stages[:2]), spans[:1])
    store.flush()
    found = store.get(answer.id)
    assert found and found.answer == "other" and len(store.spans(answer.id)) == 1
    assert store.count() == 1 and len(store.stage_rows()) == 2 and store.stats().spans == 1


def test_a_passage_is_stored_once(store: TraceStore) -> None:
    fill(store, 300)
    stats = store.stats()
    assert (stats.queries, stats.passages <= 2000, stats.backlog) == (300, True, 0)
    assert passage_hash(Passage("a", "x", "yz", "t")) != passage_hash(Passage("a", "xy", "z", "t"))


def test_numpy_like_values_and_odd_fingerprints_are_stored(
    store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]
) -> None:
    import numpy

    answer = replace(
        made[0][0],
        passages=(Passage("p", "t", "s", "t", scores={"dense": numpy.float32(0.5)}),),  # type: ignore[dict-item]
        fingerprint={"settings": {"path": Path("/x")}, "version": None},
    )
    store.save(answer)
    store.flush()
    found = store.get(answer.id)
    assert found and found.passages[0].scores == {"dense": 0.5} and found.fingerprint["settings"] == {"path": "/x"}


def test_one_query_that_cannot_be_stored_holds_up_no_other(
    store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = made[0][0], replace(made[1][0], options=Options(candidates=2**70))
    store.save(bad)
    store.save(good)
    assert store.flush(5.0)
    assert (store.health().rejected, store.count(), store.get(good.id)) == (1, 1, good)
    assert bad.id in caplog.text


def test_an_answer_without_a_time_is_the_caller_s_mistake(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    with pytest.raises(RagError, match="not a time"):
        store.save(replace(made[0][0], started_at="yesterday"))


def test_without_content_only_the_measurements_are_kept(path: Path, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    store = TraceStore(path, capture_content=False)
    answer, spans = answered(made)
    secret = replace(
        answer, question="secret", answer="secret", hyde_text="secret", prompt=({"role": "user", "content": "secret"},)
    )
    secret = replace(secret, passages=tuple(passage._replace(text="secret") for passage in answer.passages))
    store.save(secret, [replace(spans[0], attributes={**spans[0].attributes, "input.value": "secret"})])
    pending = store.get(answer.id)
    store.close()
    assert all(b"secret" not in part.read_bytes() for part in path.parent.iterdir())
    again = TraceStore(path)
    found, row = again.get(answer.id), again.search()[0]
    again.close()
    assert found and found == pending and (found.question, found.answer, found.prompt, found.hyde_text) == ("", "", (), None)
    assert found.stages == answer.stages and [p.scores for p in found.passages] == [p.scores for p in answer.passages]
    assert row.content is False and row.total_seconds == answer.total_seconds


# Listing


def test_rows_carry_what_the_list_shows(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    for answer, spans in made:
        store.save(answer, spans)
    store.flush()
    rows = {row.id: row for row in store.search()}
    for answer, _ in made:
        row, stages = rows[answer.id], {stage.stage: stage for stage in answer.stages}
        assert (row.question, row.outcome, row.total_seconds, row.cold) == (
            answer.question, answer.outcome, answer.total_seconds, answer.cold
        )  # fmt: skip
        for name in STAGES:
            assert row.stage_seconds(name) == (stages[name].seconds if name in stages else None)
        assert row.cache_hit is False and row.error_stage == (answer.error.stage if answer.error else None)


def test_filters(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    answers = [replace(answer, question=f"{answer.question} 100% ÄRGER_{n}") for n, (answer, _) in enumerate(made)]
    for answer in answers:
        store.save(answer)
    store.flush()
    middle = store.search(sort="started_at", descending=False)[30].started_at

    def ids(**conditions: Any) -> set[str]:
        where = QueryFilter(**conditions)
        rows = store.search(where)
        assert store.count(where) == len(rows)
        return {row.id for row in rows}

    def expected(test: Any) -> set[str]:
        return {answer.id for answer in answers if test(answer)}

    assert len(ids(since=middle)) == 30 and len(ids(until=middle)) == 30
    assert ids(cold=True) == expected(lambda a: a.cold) and ids(cold=False) == expected(lambda a: not a.cold)
    assert ids(outcome="failed") == expected(lambda a: a.outcome == "failed")
    assert ids(slower_than=2.0) == expected(lambda a: a.total_seconds > 2)
    assert ids(model="synthetic-llm-8b") == expected(lambda a: any(s.stage == "generate" for s in a.stages))
    assert ids(text="ärger_7") == expected(lambda a: a.question.endswith("ÄRGER_7"))  # letters outside ASCII fold too
    assert ids(text="SYNTHETIC 12)") == {answers[12].id}
    assert ids(text="100%") == expected(lambda a: True) and ids(text="1%0") == set() and ids(text="_") == expected(lambda a: True)
    assert ids(text=answers[3].id) == {answers[3].id}
    assert ids(text="100%", outcome="answered", since=middle) <= ids(outcome="answered")


@pytest.mark.parametrize(
    "sort", ["started_at", "total_seconds", "question", "outcome", *(f"{stage}_seconds" for stage in STAGES)]
)
@pytest.mark.parametrize("descending", [True, False])
def test_sorting_puts_the_unknown_last(path: Path, sort: str, descending: bool) -> None:
    store = TraceStore(path)
    fill(store, 80)
    values = [getattr(row, sort) for row in store.search(sort=sort, descending=descending)]
    pages = [
        getattr(row, sort)
        for at in range(0, 80, 30)
        for row in store.search(sort=sort, descending=descending, limit=30, offset=at)
    ]
    store.close()
    known = [value for value in values if value is not None]
    assert len(values) == 80 and known == sorted(known, reverse=descending) and values[: len(known)] == known and pages == values


def test_sorting_by_anything_else_is_refused(store: TraceStore) -> None:
    with pytest.raises(RagError, match="Cannot sort"):
        store.search(sort="id; DROP TABLE queries")


def test_stage_rows(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    answer, spans = answered(made)
    store.save(answer, spans)
    store.flush()
    rows = {row.stage: row for row in store.stage_rows()}
    for stage in answer.stages:
        row = rows[stage.stage]
        assert (row.seconds, row.queue, row.network, row.cold) == (
            stage.seconds,
            stage.split.queue,
            stage.split.network,
            stage.cold,
        )
        start = min(interval.start for interval in answer.timeline if interval.stage == stage.stage)
        assert row.started_at_unix - rows["embed"].started_at_unix == pytest.approx(start - answer.timeline[0].start, abs=1e-5)
    assert [row.stage for row in store.stage_rows(stage="rerank")] == ["rerank"]
    assert store.stage_rows(QueryFilter(outcome="failed")) == []


def test_revision_grows_with_commits_of_any_process(
    store: TraceStore, path: Path, made: list[tuple[Answer, list[SpanRecord]]]
) -> None:
    seen = [store.revision]
    assert store.revision == seen[0]
    other = TraceStore(path)
    for saver in (store, other, store):
        saver.save(made[len(seen)][0])
        saver.flush()
        seen.append(store.revision)
    other.close()
    assert seen == sorted(set(seen))
    assert store.count() == 3


def test_delete_before(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    ids = fill(store, 600)
    rows = store.search(descending=False)
    assert store.delete_before(rows[550].started_at) == 550
    assert store.count() == 50 and store.get(ids[0]) is None and store.spans(ids[0]) == [] and store.stats().spans > 0
    kept = store.get(ids[599]) or store.get(ids[598])
    assert kept and all(passage.text for passage in kept.passages)
    before = store.stats()
    assert store.delete_before(rows[-1].started_at + 1e6) == 50
    after = store.stats()
    assert (after.queries, after.spans, after.passages) == (0, 0, 0) and after.bytes_on_disk < before.bytes_on_disk


# Other versions, other files


def restore(path: Path, sql: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    db.executescript(sql)
    db.close()


def test_a_file_of_version_1_is_migrated(path: Path) -> None:
    restore(path, V1.read_text())
    store = TraceStore(path)
    rows = store.search(descending=False)
    answers = [store.get(row.id) for row in rows]
    store.save(Synthetic(9).one(0, 1.8e9)[0])
    assert store.flush() and store.count() == 4
    store.close()
    assert (
        len(rows) == 3
        and all(answers)
        and rows[1].hyde_seconds is None
        and rows[0].rerank_seconds == pytest.approx(0.2306, abs=1e-4)
    )
    for row, answer in zip(rows, answers, strict=True):
        assert answer and answer.passages[0].text and store_seconds(row) == {
            stage.stage: stage.seconds for stage in answer.stages if stage.skipped is None
        }  # fmt: skip
    db = connect(path)
    assert db.execute("PRAGMA user_version").fetchone()[0] == VERSION
    db.close()


def store_seconds(row: Any) -> dict[str, float]:
    return {stage: row.stage_seconds(stage) for stage in STAGES if row.stage_seconds(stage) is not None}


def test_a_failed_migration_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore(path, V1.read_text())

    def half(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE queries ADD COLUMN half REAL")
        raise sqlite3.OperationalError("disk I/O error")

    import rag.trace_file

    with monkeypatch.context() as patch:
        patch.setattr(rag.trace_file, "MIGRATIONS", (rag.trace_file.MIGRATIONS[0], half))
        with pytest.raises(RagError):
            TraceStore(path)
    store = TraceStore(path)
    assert store.count() == 3
    store.close()


def refused(path: Path, message: str) -> RagError:
    before = path.read_bytes()
    with pytest.raises(RagError, match=message) as caught:
        TraceStore(path)
    assert path.read_bytes() == before and str(path) in caught.value.message and caught.value.next_step
    return caught.value


def test_a_newer_version_is_refused(path: Path) -> None:
    TraceStore(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    refused(path, "newer version")


def test_another_program_s_file_is_refused(path: Path) -> None:
    restore(path, "CREATE TABLE notes (text); PRAGMA user_version = 1;")
    refused(path, "another program")


@pytest.mark.parametrize("content", [b"this is no database at all " * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert "move the file away" in refused(path, "damaged").next_step


def test_a_file_damaged_in_the_middle_is_named(path: Path) -> None:
    store = TraceStore(path)
    ids = fill(store, 200)
    store.close()
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 8192):
            file.seek(page * 8192)
            file.write(b"\xee" * 4096)
    with pytest.raises(RagError, match="damaged") as caught:
        opened = TraceStore(path)
        try:
            opened.search()
            opened.get(ids[5])
        finally:
            opened.close(0.1)
    assert str(path) in caught.value.message and ".recover" in caught.value.next_step


def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    """In a child that is nobody, because root may write anywhere."""
    folder = Path("/tmp") / f"ragdeck-ro-{os.getpid()}"
    folder.mkdir(mode=0o555)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            TraceStore(folder / "traces.db")
        except RagError as error:
            code = 0 if str(folder) in error.message and "write access" in error.next_step else 2
        finally:
            os._exit(code)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        folder.rmdir()


def test_a_path_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RagError, match="cannot be opened"):
        TraceStore(tmp_path / "file" / "traces.db")


# Trouble while running


def test_a_locked_database_is_waited_out(store: TraceStore, path: Path, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for answer, spans in made[:10]:
        store.save(answer, spans)
    until(lambda: not store.health().ok)
    assert not store.flush(0.1)
    health = store.health()
    assert not health.ok and "locked" in str(health.error) and health.backlog == 10
    assert store.get(made[3][0].id) == made[3][0] and store.count() == 0  # readers are not held up
    blocker.execute("ROLLBACK")
    blocker.close()
    assert store.flush(PATIENCE) and store.health().ok and store.health().backlog == 0
    assert store.count() == 10


def test_a_full_queue_makes_save_wait_and_drops_nothing(path: Path, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    store = TraceStore(path, capacity=5)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")

    def save_many() -> None:
        for answer, spans in made[:20]:
            store.save(answer, spans)

    saver = threading.Thread(target=save_many)
    saver.start()
    until(lambda: store.health().backlog == 5)
    assert saver.is_alive()
    with pytest.raises(RagError) as caught:
        store.save(made[30][0], timeout=0.1)
    assert caught.value.kind == "overloaded"
    blocker.execute("ROLLBACK")
    blocker.close()
    saver.join(PATIENCE)
    assert store.close(PATIENCE) and not saver.is_alive()
    assert len(TraceStore(path).search()) == 20


def test_close_gives_up_after_its_time_and_says_so(path: Path, made: list[tuple[Answer, list[SpanRecord]]], caplog: Any) -> None:
    store = TraceStore(path)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    store.save(made[0][0])
    start = time.monotonic()
    assert store.close(0.5) is False
    assert time.monotonic() - start < PATIENCE and "1 queries could not be written" in caplog.text
    blocker.close()


def _fill_a_small_disk(path: Path, answers: int) -> None:
    """A limit on file size stands in for a full disk; lifted, everything must be written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = TraceStore(path)
    fill(store, 5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for answer, spans in Synthetic(8).answers(answers):
        store.save(answer, spans)
    until(lambda: not store.health().ok)
    stuck = not store.flush(0.5) and store.health().backlog > 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    written = store.flush(PATIENCE) and store.count() == answers + 5 and store.health().ok
    os._exit(0 if stuck and written and store.close(PATIENCE) else 1)


def test_a_full_disk_is_waited_out(path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_fill_a_small_disk, args=(path, 100))
    child.start()
    child.join(150)
    assert child.exitcode == 0


def test_a_file_moved_away_is_replaced_by_a_new_one(
    store: TraceStore, path: Path, made: list[tuple[Answer, list[SpanRecord]]]
) -> None:
    store.save(made[0][0])
    store.flush()
    assert store.count() == 1
    seen = store.revision
    for part in list(path.parent.iterdir()):
        part.rename(part.with_name("old-" + part.name))
    store.save(made[1][0])
    assert store.flush(PATIENCE)
    assert store.count() == 1 and store.get(made[1][0].id) == made[1][0] and store.revision > seen
    old = sqlite3.connect(path.parent / "old-traces.db")
    assert old.execute("SELECT id FROM queries").fetchall() == [(made[0][0].id,)]
    old.close()


def test_readers_and_writers_at_once(store: TraceStore) -> None:
    stop, errors = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                for row in store.search(limit=5):
                    found = store.get(row.id)
                    assert found and found.question == row.question and store.spans(row.id)
            except Exception as error:
                errors.append(error)

    def write(seed: int) -> None:
        for answer, spans in Synthetic(seed).answers(60):
            store.save(answer, spans)

    readers = [threading.Thread(target=read) for _ in range(3)]
    writers = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2, 3)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    assert store.flush()
    stop.set()
    for thread in readers:
        thread.join()
    assert errors == [] and store.count() == 180


def _write_some(path: Path, seed: int) -> None:
    store = TraceStore(path)
    fill(store, 40, seed=seed)
    os._exit(0 if store.close(PATIENCE) else 1)


def test_processes_that_open_and_write_one_new_file_at_once(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_write_some, args=(path, seed)) for seed in (1, 2, 3)]
    for child in children:
        child.start()
    for child in children:
        child.join(150)
    assert [child.exitcode for child in children] == [0, 0, 0]
    store = TraceStore(path)
    assert store.count() == 120
    store.close()


KILLED = """
import sys
from pathlib import Path
from benchmarks.bench_traces import Synthetic
from rag.trace_store import TraceStore
store = TraceStore(Path(sys.argv[1]))
for answer, spans in Synthetic(int(sys.argv[2])).answers(100_000):
    store.save(answer, spans)
    if store.flush(60.0):
        print(answer.id, flush=True)
"""


def test_what_flush_acknowledged_survives_kill_9(path: Path) -> None:
    acknowledged: list[str] = []
    for seed in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(seed)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout
        for number, line in enumerate(child.stdout):
            if number == 12:  # so many at least, however slow the machine; the child goes on meanwhile
                threading.Timer(0.05 * seed, child.kill).start()
            if line.endswith("\n"):
                acknowledged.append(line.strip())
        child.wait(20)
    store = TraceStore(path)
    assert len(acknowledged) > 30
    for query_id in acknowledged:
        answer = store.get(query_id)
        assert answer and answer.id == query_id and store.spans(query_id)
    db = connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    db.close()
    store.close()


FORGETFUL = """
import sys
from pathlib import Path
from benchmarks.bench_traces import Synthetic
from rag.trace_store import TraceStore
store = TraceStore(Path(sys.argv[1]))
for answer, spans in Synthetic().answers(200):
    store.save(answer, spans)
"""


def test_a_program_that_forgets_to_close_loses_nothing(path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", FORGETFUL, str(path)], cwd=ROOT, timeout=60).returncode == 0
    store = TraceStore(path)
    assert store.count() == 200
    store.close()


def test_queries_are_told_apart_by_who_asked(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    answer, spans = made[0]
    for number, origin in enumerate(("ask", "api", "measure", "otlp:shop")):
        store.save(replace(answer, id=f"{number:032x}", origin=origin), spans)
    assert store.flush()
    found = {
        name: sorted(row.origin for row in store.search(QueryFilter(**where)))  # type: ignore[arg-type]
        for name, where in {
            "all": {},
            "usual": {"measured": False},
            "measured": {"measured": True},
            "foreign": {"foreign": True},
            "api": {"origin": "api"},
        }.items()
    }
    assert found == {
        "all": ["api", "ask", "measure", "otlp:shop"],
        "usual": ["api", "ask", "otlp:shop"],
        "measured": ["measure"],
        "foreign": ["otlp:shop"],
        "api": ["api"],
    }


def test_stages_keep_what_makes_them_comparable(store: TraceStore, made: list[tuple[Answer, list[SpanRecord]]]) -> None:
    answer, spans = made[0]
    rerank = Stage("rerank", 0.5, 1, device="cuda", model="bge", where="in-process", split=Split(compute=0.4, other=0.1))
    timeline = (Interval("rerank", 0.1, 0.5, "score", Split(compute=0.4, other=0.1), facts={"candidates": 40, "tokens": 900}),)
    effect = HydeEffect(True, 0.4, True)
    store.save(replace(answer, stages=(rerank,), timeline=timeline, hyde_effect=effect), spans)
    assert store.flush()
    (found,) = store.stage_rows()
    assert (found.device, found.model, found.place, found.units, found.other) == ("cuda", "bge", "in-process", 40.0, 0.1)
    back = store.get(answer.id)
    assert back is not None and back.hyde_effect == effect and dict(back.timeline[0].facts) == {"candidates": 40, "tokens": 900}
