"""Tasks run when they are due, each once at a time, and what hangs holds up nothing else; back-off and doors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from random import Random

import pytest

from collectors.retry import FIRST_SECONDS, LONGEST_SECONDS, Doors, back_off
from collectors.scheduler import SPARE_THREADS, Scheduler
from tests.collectors.sshd import eventually

LONG = 3600.0
PATIENCE = 30.0


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler("test-sweep")
    made.start()
    yield made
    made.stop(PATIENCE)
    assert eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("test-sweep")])


def test_a_task_repeats_as_it_asks_and_sleeps_until_it_is_woken(scheduler: Scheduler) -> None:
    answers: list[float | None] = [0.0, 0.01, None, None]
    ran = threading.Semaphore(0)

    def run() -> float | None:
        ran.release()
        return answers.pop(0)

    task = scheduler.task("t", run)
    task.soon()
    assert all(ran.acquire(timeout=PATIENCE) for _ in range(3))
    assert eventually(lambda: not task.running)
    assert task.due is None and not ran.acquire(timeout=0.05)
    task.soon()
    assert ran.acquire(timeout=PATIENCE)


def test_the_sooner_plan_counts(scheduler: Scheduler) -> None:
    ran = threading.Event()

    def run() -> None:
        ran.set()

    task = scheduler.task("t", run)
    task.soon(LONG)
    task.soon(0.01)
    task.soon(LONG)
    assert ran.wait(PATIENCE)


def test_what_is_asked_for_while_it_runs_comes_after_and_never_beside(scheduler: Scheduler) -> None:
    begun, go = threading.Semaphore(0), threading.Event()
    at_once = [0, 0]

    def run() -> float:
        at_once[0] += 1
        at_once[1] = max(at_once)
        begun.release()
        go.wait(LONG)
        at_once[0] -= 1
        return LONG

    task = scheduler.task("t", run)
    task.soon()
    assert begun.acquire(timeout=PATIENCE)
    task.soon()
    task.soon()
    assert not begun.acquire(timeout=0.05)
    go.set()
    assert begun.acquire(timeout=PATIENCE)
    assert eventually(lambda: not task.running) and at_once[1] == 1
    assert task.due is not None and task.due > time.monotonic() + LONG / 2


def test_hanging_tasks_hold_up_nothing_else_and_their_threads_go(scheduler: Scheduler) -> None:
    hang, started, ran = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    def hung() -> None:
        started.release()
        hang.wait(LONG)

    def quick() -> float:
        ran.release()
        return 0.01

    for number in range(60):
        scheduler.task(f"hung {number}", hung).soon()
    assert all(started.acquire(timeout=PATIENCE) for _ in range(60))
    scheduler.task("quick", quick).soon()
    assert all(ran.acquire(timeout=PATIENCE) for _ in range(5))
    assert scheduler.threads <= 62
    hang.set()
    assert eventually(lambda: scheduler.threads <= SPARE_THREADS + 2)


def test_cancelled_and_defective_tasks(scheduler: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []
    cancelled = scheduler.task("cancelled", lambda: ran.append("cancelled"))
    with scheduler._changed:  # so that it cannot be due before it is cancelled
        cancelled.soon(0.05)
        cancelled.cancel()
    cancelled.soon()

    def broken() -> float:
        ran.append("broken")
        raise ZeroDivisionError

    task = scheduler.task("broken", broken)
    task.soon(0.1)  # later than the cancelled one was due
    assert eventually(lambda: "broken failed" in caplog.text and not task.running)
    assert task.due is not None and task.due > time.monotonic() + 10
    assert ran == ["broken"]


def test_stop_waits_for_what_runs_and_says_when_it_does_not_end() -> None:
    scheduler, hang, started = Scheduler("test-stop"), threading.Event(), threading.Event()
    scheduler.start()

    def hung() -> float:
        started.set()
        hang.wait(LONG)
        return 0.0

    task = scheduler.task("hung", hung)
    task.soon()
    assert started.wait(PATIENCE)
    assert not scheduler.stop(0.05)
    hang.set()
    assert scheduler.stop(PATIENCE)
    task.soon()
    assert task.due is None
    assert eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("test-stop")])


def test_back_off_doubles_to_a_limit_with_jitter() -> None:
    random = Random(1)
    for failures in range(1, 200):
        whole = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** (failures - 1))
        assert whole / 2 <= back_off(failures, random) <= whole
    assert len({back_off(9, random) for _ in range(20)}) > 10


def test_doors_bound_all_and_each() -> None:
    doors = Doors(at_once=3, per_door=2)
    assert [doors.enter("a"), doors.enter("a"), doors.enter("a"), doors.enter("b"), doors.enter("b")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    doors.leave("a")
    assert doors.enter("b") and not doors.enter("c")
