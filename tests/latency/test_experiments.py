"""Experiments on disk: kept, named, deleted; what a dead process leaves; files that cannot be used; and as a job."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from collectors.readings import Fault, Gpu, Gpus
from jobs import Jobs
from latency.experiments import experiments
from latency.experiments.experiments import Experiment, ExperimentStore, environment, run
from rag.errors import Cancelled, RagError

ROOT = Path(__file__).parents[2]
DONE = Experiment("a1", "load", "first", 100.0, 2.5, "finished", {"users": [1, 2]}, {"p95": 0.25, "none": None}, {"cores": 2})


@pytest.fixture
def store(tmp_path: Path) -> ExperimentStore:
    return ExperimentStore(tmp_path / "data" / "experiments.db")


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs(limits={"experiment": 1})
    yield made
    made.stop()


def test_an_experiment_comes_back_as_it_was_saved(store: ExperimentStore):
    store.save(DONE)
    assert store.get("a1") == DONE
    assert ExperimentStore(store.path).get("a1") == DONE
    assert json.loads(json.dumps(DONE.to_json()))["result"]["p95"] == 0.25
    assert store.get("b2") is None


def test_the_list_is_newest_first_by_kind_limited_and_without_results_when_asked(store: ExperimentStore):
    for number, kind in enumerate(["load", "replay", "load", "components"]):
        store.save(replace(DONE, id=f"e{number}", kind=kind, started_at_unix=100.0 + number))
    assert [each.id for each in store.list()] == ["e3", "e2", "e1", "e0"]
    assert [each.id for each in store.list("load")] == ["e2", "e0"]
    assert [each.id for each in store.list(limit=2)] == ["e3", "e2"]
    assert {each.result for each in store.list(results=False)} == {None}


def test_a_new_name_survives_the_end_of_the_experiment(store: ExperimentStore):
    store.save(replace(DONE, state="running", result=None))
    store.rename("a1", "  after   the move ")
    store.save(DONE)
    found = store.get("a1")
    assert found is not None
    assert (found.name, found.state, found.result) == ("after the move", "finished", DONE.result)


@pytest.mark.parametrize(
    ("identity", "name", "kind"), [("a1", "  ", "bad_input"), ("a1", "x" * 201, "bad_input"), ("b2", "x", "not_found")]
)
def test_a_name_that_is_none_and_an_experiment_that_is_not_there_are_refused(store, identity, name, kind):
    store.save(DONE)
    with pytest.raises(RagError) as caught:
        store.rename(identity, name)
    assert caught.value.kind == kind
    assert caught.value.next_step


def test_deleted_is_gone_and_what_runs_is_not_deleted(store: ExperimentStore):
    store.save(DONE)
    store.delete("a1")
    assert store.list() == ()
    with pytest.raises(RagError, match="no experiment a1"):
        store.delete("a1")
    store.save(replace(DONE, state="running"))
    with pytest.raises(RagError, match="running"):
        store.delete("a1")


CHILD = """
import sys, time
from pathlib import Path
from latency.experiments.experiments import Experiment, ExperimentStore
ExperimentStore(Path(sys.argv[1])).save(Experiment("c3", "load", "theirs", 50.0))
print("saved", flush=True)
time.sleep(60)
"""


def test_what_another_process_runs_is_running_until_that_process_is_killed(store: ExperimentStore):
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(store.path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"saved\n"
        assert store.get("c3").state == "running"
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        found = store.get("c3")
        assert (found.state, found.seconds) == ("interrupted", None)
        assert "ended before it did" in found.error
        store.delete("c3")
    finally:
        process.kill()
        process.wait(20)


def test_a_process_id_that_came_again_is_another_process():
    node, pid, started = experiments._owner().rsplit("/", 2)
    assert experiments._is_alive(f"{node}/{pid}/{started}")
    assert not experiments._is_alive(f"{node}/{pid}/{started}9")
    assert not experiments._is_alive(f"elsewhere/{pid}/{started}")
    assert not experiments._is_alive(f"{node}/99999999/{started}")


def test_many_threads_save_and_read_at_once(store: ExperimentStore):
    def save(number: int) -> None:
        for step in range(5):
            store.save(replace(DONE, id=f"t{number}-{step}"))
            assert store.get(f"t{number}-{step}") is not None

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(store.list()) == 20


# files that cannot be used


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path):
    path = tmp_path / "experiments.db"
    path.write_bytes(b"no database at all" * 500)
    with pytest.raises(RagError, match="experiments") as caught:
        ExperimentStore(path)
    assert str(path) in caught.value.message
    assert "move the file away" in caught.value.next_step


def test_a_file_of_another_program_is_left_alone(tmp_path: Path):
    path = tmp_path / "experiments.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(RagError, match="another program"):
        ExperimentStore(path)


def test_a_file_of_a_newer_version_is_left_alone(store: ExperimentStore):
    with contextlib.closing(sqlite3.connect(store.path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(RagError, match="newer version"):
        ExperimentStore(store.path)


def test_a_result_that_meets_a_locked_file_is_shown_and_written_later(store: ExperimentStore, monkeypatch):
    monkeypatch.setattr(experiments, "WAIT_SECONDS", 0.05)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RagError) as caught:
            store.save(DONE)
        assert caught.value.kind == "held"
        other.execute("ROLLBACK")
    assert store.get("a1") == DONE
    assert ExperimentStore(store.path).get("a1") is None
    store.save(replace(DONE, id="a2"))
    assert {each.id for each in ExperimentStore(store.path).list()} == {"a1", "a2"}


def test_what_waits_is_written_at_the_close(store: ExperimentStore, monkeypatch):
    monkeypatch.setattr(experiments, "WAIT_SECONDS", 0.05)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RagError):
            store.save(DONE)
        other.execute("ROLLBACK")
    store.close()
    assert ExperimentStore(store.path).get("a1") == DONE


FULL = """
import resource, signal, sys
from pathlib import Path
from latency.experiments.experiments import Experiment, ExperimentStore
from rag.errors import RagError
store = ExperimentStore(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
import os
big = Experiment("big", "load", "big", 1.0, 1.0, "finished", result={"x": os.urandom(400_000).hex()})
try:
    store.save(big)
except RagError as problem:
    print(problem.kind, problem.next_step)
assert store.get("big").result == big.result
"""


def test_a_full_disk_is_said_and_loses_no_result(tmp_path: Path):
    """A limit on the size of files stands in for a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "experiments.db")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Check the disk" in done.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# as a job


@dataclass(frozen=True)
class Result:
    steps: int

    def to_json(self) -> dict[str, int]:
        return {"steps": self.steps}


def started(jobs: Jobs, store: ExperimentStore, work, name: str = "mine"):
    return run(jobs, store, kind="replay", name=name, parameters={"times": 3}, work=work, environment={"cores": 2})


def test_a_job_is_stored_at_its_start_and_at_its_end_with_what_it_found(jobs: Jobs, store: ExperimentStore):
    go = threading.Event()

    def work(job):
        yield {"type": "step"}
        go.wait(20)
        return Result(3)

    job = started(jobs, store, work)
    first = store.get(job.id)
    assert (first.state, first.kind, first.name, first.parameters) == ("running", "replay", "mine", {"times": 3})
    assert job.kind == "experiment"
    go.set()
    assert job.wait(20)
    last = store.get(job.id)
    assert (last.state, last.result, last.environment, last.error) == ("finished", {"steps": 3}, {"cores": 2}, None)
    assert last.seconds >= 0
    assert [event["type"] for event in job.events()] == ["step", "experiment_finished"]
    assert job.result == Result(3)


def test_a_failure_is_stored_with_its_reason_and_next_step(jobs: Jobs, store: ExperimentStore):
    def work(job):
        yield {"type": "step"}
        raise RagError("the store is away", kind="connection", next_step="Start it.")

    job = started(jobs, store, work)
    assert job.wait(20)
    found = store.get(job.id)
    assert (job.state, found.state, found.error, found.result) == ("failed", "failed", "the store is away. Start it.", None)


@pytest.mark.parametrize("raises", [True, False])
def test_a_cancelled_one_says_so_and_keeps_what_the_work_gave(jobs: Jobs, store: ExperimentStore, raises: bool):
    def work(job):
        yield {"type": "step"}
        job.cancelled.wait(20)
        if raises:
            raise Cancelled("stopped")
        return Result(1)

    job = started(jobs, store, work)
    job.cancel()
    assert job.wait(20)
    found = store.get(job.id)
    assert (job.state, found.state) == ("cancelled", "cancelled")
    assert found.result == (None if raises else {"steps": 1})


def test_a_second_experiment_at_once_is_refused_and_leaves_nothing(jobs: Jobs, store: ExperimentStore):
    go = threading.Event()

    def work(job):
        yield {"type": "step"}
        go.wait(20)
        return Result(0)

    job = started(jobs, store, work)
    with pytest.raises(RagError) as caught:
        started(jobs, store, work)
    assert caught.value.kind == "overloaded"
    assert "measure each other" in caught.value.next_step
    go.set()
    assert job.wait(20)
    assert [each.id for each in store.list()] == [job.id]


def test_nothing_runs_where_it_could_not_be_kept(jobs: Jobs, store: ExperimentStore):
    ran = []

    def work(job):
        ran.append(job.id)
        yield {"type": "step"}
        return Result(0)

    store.path.write_bytes(b"damaged" * 2000)
    for side in ("-wal", "-shm"):
        store.path.with_name(store.path.name + side).unlink(missing_ok=True)
    with pytest.raises(RagError, match="damaged"):
        started(jobs, store, work)
    assert ran == []


def test_a_result_that_cannot_be_written_at_the_end_is_said_and_not_lost(jobs: Jobs, store: ExperimentStore, monkeypatch):
    monkeypatch.setattr(experiments, "WAIT_SECONDS", 0.05)
    go = threading.Event()

    def work(job):
        yield {"type": "step"}
        go.wait(20)
        return Result(5)

    job = started(jobs, store, work)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        go.set()
        assert job.wait(20)
        other.execute("ROLLBACK")
    assert job.state == "finished"
    assert job.events()[-1]["stored"] is False
    assert store.get(job.id).result == {"steps": 5}


# the environment


def test_the_environment_names_versions_machine_and_gpus():
    reading = Gpus((Gpu(index=0, name="Card", memory_total_bytes=80),), driver_version="999.1")
    found = environment("1.2.3", reading)
    assert found["ragdeck"] == "1.2.3"
    assert found["packages"]["numpy"]
    assert found["gpus"] == [{"index": 0, "name": "Card", "memory_bytes": 80}]
    assert found["driver"] == "999.1"
    assert found["cores"] == os.cpu_count()
    assert found["memory_bytes"] > 10**8
    assert json.loads(json.dumps(found)) == found


def test_what_is_not_known_of_the_machine_is_none_with_the_reason(tmp_path: Path):
    found = environment("1", Gpus(None, faults=(Fault("no_driver", "NVML is not there", "Install it."),)), root=tmp_path)
    assert (found["cpu"], found["cores_limit"], found["memory_limit_bytes"]) == (None, None, None)
    assert (found["gpus"], found["gpus_unknown"]) == (None, "NVML is not there")


def test_limits_of_a_container_are_read(tmp_path: Path):
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("150000 100000\n")
    (group / "memory.max").write_text("2000000000\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name : Some CPU @ 2 GHz\n")
    found = environment("1", root=tmp_path)
    assert (found["cores_limit"], found["memory_limit_bytes"], found["cpu"]) == (1.5, 2_000_000_000, "Some CPU @ 2 GHz")
    (group / "cpu.max").write_text("max 100000\n")
    assert environment("1", root=tmp_path)["cores_limit"] is None


def test_reading_the_environment_imports_nothing_heavy():
    code = "import sys; from latency.experiments.experiments import environment; environment('1'); print([m for m in ('torch','pymilvus','streamlit') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_it_opens_while_another_process_makes_the_same_file(tmp_path: Path):
    path = tmp_path / "experiments.db"
    code = f"from pathlib import Path; from latency.experiments.experiments import ExperimentStore; ExperimentStore(Path({str(path)!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    end = time.monotonic() + 60
    errors = [process.communicate(timeout=max(1.0, end - time.monotonic()))[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
