"""Ingestion jobs as the dashboard runs them, on a real store and ledger: pause, restart, retry, watched folders, broken ledgers."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestions import new_request
from jobs import Job
from rag.errors import RagError
from rag.ingest_ledger import IngestJob
from tests.ingest_child import FakeEmbedder, Process

ROOT = Path(__file__).parents[1]
Start = Callable[..., Process]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Start]:
    """Processes one after the other in one data folder; the last one is stopped at the end."""
    running: list[Process] = []

    def start(embedder: FakeEmbedder | None = None, **ingest: Any) -> Process:
        while running:
            running.pop().stop()
        running.append(Process(tmp_path / "data", embedder, **ingest))
        return running[0].start()

    yield start
    while running:
        running.pop().stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    root.mkdir()
    return root


def fill(folder: Path, count: int, words: int = 600) -> None:
    for number in range(count):
        (folder / f"{number:02}.txt").write_text(" ".join(f"w{number}x{index}" for index in range(words)))


def ended(job: Job[Any]) -> dict[str, Any]:
    assert job.wait(60)
    assert job.error is None
    return job.result


def known(process: Process, job_id: str) -> IngestJob:
    found = process.library.ingestions.get(job_id)
    assert found is not None
    return found


def sources(process: Process) -> set[str]:
    return {item.source for item in process.store.documents(process.library.collection()).values()}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def stuck(folder: Path) -> FakeEmbedder:
    """An embedder that answers nobody until `may_run` is set."""
    fill(folder, 6)
    embedder = FakeEmbedder()
    embedder.may_run.clear()
    return embedder


# jobs


def test_a_pause_survives_a_restart_and_the_same_job_goes_on(begin: Start, folder: Path) -> None:
    process = begin(stuck(folder))
    job = process.library.submit([folder])
    until(lambda: known(process, job.id).state == "running")
    process.library.ingestions.pause(job.id)
    assert ended(job)["outcome"] == "paused"
    assert known(process, job.id).state == "paused"
    process.embedder.may_run.set()
    again = begin()
    assert again.jobs.recent("ingest") == []
    assert known(again, job.id).state == "paused"
    resumed = again.library.ingestions.resume(job.id)
    assert resumed.id == job.id
    assert ended(resumed)["added"] == 6
    found = known(again, job.id)
    assert (found.state, found.files, dict(found.counts)) == ("finished", 6, {"added": 6})
    with pytest.raises(RagError, match="is finished"):
        again.library.ingestions.resume(job.id)


def test_a_stop_of_the_process_is_no_cancel(begin: Start, folder: Path) -> None:
    process = begin(stuck(folder))
    job = process.library.submit([folder], label="my <files>")
    until(lambda: known(process, job.id).state == "running")
    again = begin()
    process.embedder.may_run.set()
    resumed = again.jobs.get(job.id)
    assert resumed is not None
    assert ended(resumed)["added"] == 6
    assert [(item.id, item.label, item.state) for item in again.library.ingestions.all()] == [(job.id, "my <files>", "finished")]


def test_a_cancelled_job_stays_cancelled_until_it_is_resumed(begin: Start, folder: Path) -> None:
    process = begin(stuck(folder))
    first, second = process.library.submit([folder]), process.library.submit([folder / "00.txt"])
    until(lambda: known(process, first.id).state == "running")
    assert known(process, second.id).state == "queued"
    process.library.ingestions.cancel(second.id)
    assert second.wait(30), "one that waits for its turn need not wait for it to be cancelled"
    process.library.ingestions.cancel(first.id)
    assert first.wait(30)
    assert first.state == "cancelled"
    process.embedder.may_run.set()
    again = begin()
    assert again.jobs.recent("ingest") == []
    assert {item.state for item in again.library.ingestions.all()} == {"cancelled"}
    assert ended(again.library.ingestions.resume(first.id))["added"] == 6


def test_what_failed_as_a_whole_says_why_and_can_be_resumed(begin: Start, folder: Path) -> None:
    fill(folder, 3)
    process = begin()
    process.embedder.away = ConnectionRefusedError("nobody is at home")
    job = process.library.submit([folder])
    assert ended(job)["outcome"] == "failed"
    found = known(process, job.id)
    assert found.state == "failed"
    assert found.error is not None and "nobody is at home" in found.error["message"]
    process.embedder.away = None
    assert ended(process.library.ingestions.resume(job.id))["added"] == 3
    assert known(process, job.id).error is None


def test_only_the_files_that_failed_are_tried_again(begin: Start, folder: Path) -> None:
    fill(folder, 2)
    (folder / "bad.json").write_text('{"half')
    process = begin()
    job = process.library.submit([folder, folder.parent / "late.txt"])
    assert ended(job)["failed"] == 2
    rows = process.library.ingestions.files(job.id)
    assert [row.outcome for row in rows] == ["failed", "failed", "added", "added"]
    assert all(row.error and row.error["next_step"] for row in rows[:2])
    (folder / "bad.json").write_text('{"whole": "by now"}')
    (folder.parent / "late.txt").write_text("it has come")
    (folder / "00.txt").write_text("changed, but not asked for")
    (folder / "new.txt").write_text("new, and not asked for")
    again = ended(process.library.ingestions.retry(job.id))
    assert (again["files"], again["added"]) == (2, 2)
    assert dict(known(process, job.id).counts) == {"added": 4}
    assert len(sources(process)) == 4
    with pytest.raises(RagError, match="no file"):
        process.library.ingestions.retry(job.id)


def test_a_citations_file_is_found_as_long_as_it_is_there(begin: Start, folder: Path) -> None:
    odd = folder / os.fsdecode(b"na\xefve \xd7\xa9.txt")
    odd.write_text("a name that is no UTF-8")
    process = begin()
    ended(process.library.submit([odd]))
    document = next(iter(process.store.documents(process.library.collection())))
    again = begin()
    assert again.library.original(document) == odd
    assert again.library.original("0" * 32) is None
    odd.unlink()
    assert again.library.original(document) is None


def test_a_duplicate_comes_in_when_its_original_has_left(begin: Start, folder: Path) -> None:
    (folder / "a.txt").write_text("The same text.\n\nTwice.")
    (folder / "b.md").write_text("The same  text.\nTwice.\n")
    process = begin()
    job = process.library.submit([folder])
    assert (ended(job)["added"], job.result["duplicate"]) == (1, 1)
    row = next(row for row in process.library.ingestions.files(job.id) if row.outcome == "duplicate")
    assert row.notes == ("same text as docs/a.txt: stored once",)
    assert ended(process.library.submit([folder]))["duplicate"] == 1
    process.library.remove(next(iter(process.store.documents(process.library.collection()))))
    (folder / "a.txt").unlink()
    assert ended(process.library.submit([folder]))["added"] == 1
    assert sources(process) == {"docs/b.md"}


# watched folders


class Watching:
    """A process whose watched folder is looked at by hand."""

    def __init__(self, begin: Start, folder: Path) -> None:
        self.process = begin(watch=[str(folder)], watch_seconds=3600)
        self.library = self.process.library
        self.library.stop()  # its own thread has looked once, or not yet

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.library._watcher.look()

    @property
    def state(self) -> Any:
        return self.library.watched[0]


def test_new_changed_and_removed_files_follow(begin: Start, folder: Path) -> None:
    watching = Watching(begin, folder)
    (folder / "a.txt").write_text("first")
    watching.look()
    (folder / "a.txt").write_text("first, still being copied")
    watching.look()
    assert sources(watching.process) == set(), "a file that changes between two looks waits"
    assert watching.state.waiting == 1
    watching.look()
    assert sources(watching.process) == {"docs/a.txt"}
    assert watching.state.waiting == 0
    job = known(watching.process, watching.state.job_id)
    assert (job.root, job.state, dict(job.counts)) == (folder, "finished", {"added": 1})
    watching.look(2)
    assert watching.state.job_id == job.id, "what was taken in is not taken in again"
    (folder / "a.txt").write_text("second, and longer")
    (folder / "b.txt").write_text("another")
    (folder / "bad.json").write_text("{")
    watching.look(2)
    assert sources(watching.process) == {"docs/a.txt", "docs/b.txt"}
    again = known(watching.process, watching.state.job_id)
    assert dict(again.counts) == {"added": 1, "replaced": 1, "failed": 1}
    watching.look(2)
    assert watching.state.job_id == again.id, "a broken file waits until it changes"
    (folder / "a.txt").unlink()
    watching.look()
    assert sources(watching.process) == {"docs/b.txt"}
    assert watching.state.removed == 1


def test_a_file_removed_while_nobody_looked_leaves_and_its_duplicate_comes(begin: Start, folder: Path) -> None:
    watching = Watching(begin, folder)
    (folder / "a.txt").write_text("the same")
    (folder / "b.txt").write_text("the  same")
    watching.look(2)
    assert sources(watching.process) == {"docs/a.txt"}
    (folder / "a.txt").unlink()
    again = Watching(begin, folder)
    again.look(3)
    assert sources(again.process) == {"docs/b.txt"}


def test_a_folder_that_vanishes_removes_nothing(begin: Start, folder: Path) -> None:
    fill(folder, 2)
    watching = Watching(begin, folder)
    watching.look(2)
    assert len(sources(watching.process)) == 2
    folder.rename(folder.parent / "unmounted")
    watching.look(2)
    assert len(sources(watching.process)) == 2
    assert "is not there" in watching.state.problem
    (folder.parent / "unmounted").rename(folder)
    watching.look(2)
    assert watching.state.problem is None
    assert len(sources(watching.process)) == 2


def test_a_store_that_is_away_makes_looks_rarer_and_loses_nothing(begin: Start, folder: Path) -> None:
    watching = Watching(begin, folder)
    fill(folder, 1)
    watching.process.embedder.away = ConnectionRefusedError("away")
    watching.look(2)
    assert watching.state.next_look_seconds >= 3600
    assert known(watching.process, watching.state.job_id).state == "failed"
    watching.process.embedder.away = None
    watching.look()
    assert sources(watching.process) == {"docs/00.txt"}


def test_a_paused_ingestion_of_a_watched_folder_stays_the_only_one(begin: Start, folder: Path) -> None:
    watching = Watching(begin, folder)
    watching.process.embedder.may_run.clear()
    fill(folder, 2)
    watching.look()
    looking = threading.Thread(target=watching.look)
    looking.start()
    until(lambda: any(job.state == "running" for job in watching.library.ingestions.all()))
    job = watching.library.ingestions.all()[0]
    watching.library.ingestions.pause(job.id)
    looking.join(30)
    watching.process.embedder.may_run.set()
    watching.look(2)
    assert [item.state for item in watching.library.ingestions.all()] == ["paused"]
    assert ended(watching.library.ingestions.resume(job.id))["added"] == 2
    watching.look(2)
    assert len(watching.library.ingestions.all()) == 1


def test_the_thread_takes_in_by_itself(begin: Start, folder: Path) -> None:
    fill(folder, 2)
    process = begin(watch=[str(folder)], watch_seconds=0.05)
    until(lambda: len(sources(process)) == 2)


# the ledger


def test_ingestion_goes_on_without_a_ledger_that_is_damaged(begin: Start, folder: Path) -> None:
    fill(folder, 2)
    data = folder.parent / "data"
    data.mkdir()
    (data / "ingest.db").write_bytes(b"no database at all, " * 500)
    process = begin()
    job = process.library.submit([folder])
    assert ended(job)["added"] == 2
    problem = process.library.ingestions.problem
    assert problem is not None
    assert "damaged" in problem.message and "mv" in problem.next_step
    assert dict(known(process, job.id).counts) == {"added": 2}
    assert len(process.library.ingestions.files(job.id)) == 2
    assert (data / "ingest.db").read_bytes().startswith(b"no database"), "nothing is ever deleted"


def test_ingestion_goes_on_beside_a_locked_ledger_which_gets_everything_later(begin: Start, folder: Path) -> None:
    fill(folder, 2)
    process = begin()
    ended(process.library.submit([folder / "00.txt"]))
    other = sqlite3.connect(folder.parent / "data" / "ingest.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    job = process.library.submit([folder / "01.txt"])
    assert ended(job)["added"] == 1
    problem = process.library.ingestions.problem
    assert problem is not None
    assert (problem.kind, "locked" in problem.message) == ("held", True)
    other.execute("ROLLBACK")
    other.close()
    again = begin()
    assert again.library.ingestions.problem is None
    assert [dict(item.counts) for item in again.library.ingestions.all()] == [{"added": 1}, {"added": 1}]
    assert known(again, job.id).state == "finished"


FULL = """
import resource, sys
from pathlib import Path
from rag.ingest_ledger import FileRow, IngestJob, Ledger
from rag.ingest_record import Record
record = Record(Ledger(Path(sys.argv[1])))
record.put(IngestJob("j", "label", (), 1.0))
assert record.problem is None, record.problem
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
for number in range(300):
    record.put_file("j", FileRow(f"{number}.txt", f"{number:032}", "added", 1, ("a note " * 50,)), Path(f"/x/{number}"))
print(record.problem.message, record.problem.next_step, len(record.files("j")))
"""


def test_a_ledger_that_cannot_grow_is_told_and_kept_in_memory(tmp_path: Path) -> None:
    """The disk that is full is played by a limit on the size of files."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "ingest.db")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "ingest.db" in done.stdout and "disk" in done.stdout
    assert done.stdout.split()[-1] == "300"


def test_a_ledger_of_another_program_is_left_alone(begin: Start, folder: Path) -> None:
    fill(folder, 1)
    data = folder.parent / "data"
    data.mkdir()
    other = sqlite3.connect(data / "ingest.db")
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    process = begin()
    assert ended(process.library.submit([folder]))["added"] == 1
    assert process.library.ingestions.problem is not None
    assert "another program" in process.library.ingestions.problem.message


def test_a_job_that_another_living_process_runs_is_left_to_it(begin: Start, folder: Path) -> None:
    fill(folder, 1)
    process = begin()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    from dataclasses import replace

    from rag.ingest_record import owner

    try:
        theirs = replace(new_request([folder], "theirs"), state="running", owner=owner(child.pid))
        process.library.record.put(theirs)
        assert process.library.ingestions.go_on() == []
    finally:
        child.kill()
        child.wait()
    assert [job.id for job in process.library.ingestions.go_on()] == [theirs.id]
