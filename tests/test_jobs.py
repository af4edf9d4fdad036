"""Jobs: readers that come late or in crowds, cancelling, failing, limits, the end of the process, forgetting."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Generator
from typing import Any

import pytest

from jobs import Event, Job, Jobs, JobsFull

PATIENCE = 20.0


class Gate:
    """Work that yields `count` numbers, then waits until it is let through."""

    def __init__(self, count: int = 3) -> None:
        self.opened = threading.Event()
        self._count = count

    def __call__(self, job: Job[str]) -> Generator[Event, None, str]:
        for number in range(self._count):
            yield {"type": "number", "number": number}
        assert self.opened.wait(PATIENCE)
        yield {"type": "last"}
        return "result"


def until_cancelled(job: Job[None]) -> Generator[Event, None, None]:
    yield {"type": "started"}
    assert job.cancelled.wait(PATIENCE)
    yield {"type": "stopped"}


def finished(job: Job[Any]) -> Job[Any]:
    assert job.wait(PATIENCE)
    return job


def count_to(end: int) -> Any:
    def work(job: Job[int]) -> Generator[Event, None, int]:
        for number in range(end):
            yield {"type": "number", "number": number}
        return end

    return work


def seqs(events: Any) -> list[int]:
    return [event["seq"] for event in events if event is not None]


# 1) reading


def test_events_are_numbered_and_timed_from_the_start() -> None:
    job = finished(Jobs().submit("count", "to three", count_to(3)))
    events = job.events()
    assert seqs(events) == [1, 2, 3]
    assert [event["number"] for event in events] == [0, 1, 2]
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert events[0]["at"] >= 0 and events[-1]["at"] <= job.elapsed()
    assert (job.state, job.result, job.error, job.done) == ("finished", 3, None, True)


def test_a_late_reader_gets_the_whole_log_and_any_part() -> None:
    job = finished(Jobs().submit("count", "to five", count_to(5)))
    assert seqs(job.follow()) == [1, 2, 3, 4, 5]
    assert seqs(job.follow(after=3)) == [4, 5] == seqs(job.events(after=3))
    assert list(job.follow(after=5)) == [] == job.events(after=99)


def test_a_reader_in_the_middle_follows_to_the_end() -> None:
    gate = Gate()
    job = Jobs().submit("gate", "x", gate)
    reader = job.follow()
    assert [next(reader)["number"] for _ in range(3)] == [0, 1, 2]  # type: ignore[index]
    gate.opened.set()
    assert [event["type"] for event in reader if event] == ["last"]
    assert finished(job).result == "result"


def test_work_without_events_ends_its_readers() -> None:
    job = Jobs().submit("count", "to nothing", count_to(0))
    assert list(job.follow()) == []
    assert finished(job).result == 0


def test_a_silence_gives_beats_and_no_event_is_lost_between_them() -> None:
    gate = Gate(2)
    job = Jobs().submit("gate", "x", gate)
    seen, beats = [], 0
    for event in job.follow(beat=0.01):
        if event is None:
            beats += 1
            if beats == 3:
                gate.opened.set()
        else:
            seen.append(event["seq"])
    assert seen == [1, 2, 3] and beats >= 3


def test_without_a_beat_a_silence_gives_nothing() -> None:
    gate = Gate(1)
    job = Jobs().submit("gate", "x", gate)
    threading.Timer(0.1, gate.opened.set).start()
    assert None not in list(job.follow())


def test_a_reader_cannot_change_the_log() -> None:
    job = finished(Jobs().submit("count", "to two", count_to(2)))
    job.events().clear()
    assert seqs(job.events()) == [1, 2]


def test_many_followers_lose_nothing() -> None:
    """Threads switch as often as they can: each of twenty readers sees every event once, in order, and ends."""
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        jobs = Jobs()
        for _ in range(5):
            start = threading.Event()

            def work(job: Job[None], start: threading.Event = start) -> Generator[Event, None, None]:
                assert start.wait(PATIENCE)
                for number in range(200):
                    yield {"type": "number", "number": number}

            job = jobs.submit("count", "x", work)
            read: list[list[int]] = []
            readers = [
                threading.Thread(
                    target=lambda job=job, read=read, beat=beat: read.append(seqs(job.follow(beat=beat))), daemon=True
                )  # type: ignore[misc]
                for beat in (None, 0.001) * 10
            ]
            for reader in readers[:10]:
                reader.start()
            start.set()
            for reader in readers[10:]:
                reader.start()
            for reader in readers:
                reader.join(PATIENCE)
            assert read == [list(range(1, 201))] * 20
    finally:
        sys.setswitchinterval(switch)


# 2) ends


def test_cancelling_is_seen_by_the_work_and_by_readers() -> None:
    job = Jobs().submit("wait", "x", until_cancelled)
    reader = job.follow()
    assert next(reader)["type"] == "started"  # type: ignore[index]
    job.cancel()
    job.cancel()
    assert [event["type"] for event in reader if event] == ["stopped"]
    assert finished(job).state == "cancelled" and job.error is None


def test_a_cancel_that_comes_too_late_changes_nothing() -> None:
    job = finished(Jobs().submit("count", "x", count_to(1)))
    job.cancel()
    assert job.state == "finished"


@pytest.mark.parametrize("problem", [ValueError("broken"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_failing_work_ends_its_readers_and_is_logged(problem: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def work(job: Job[None]) -> Generator[Event, None, None]:
        yield {"type": "started"}
        raise problem

    with caplog.at_level(logging.ERROR, "jobs"):
        job = finished(Jobs().submit("fail", "x", work))
    assert (job.state, job.result) == ("failed", None)
    assert job.error is problem or repr(problem) in str(job.error)
    assert [event["type"] for event in job.follow() if event] == ["started"]
    assert job.id in caplog.text


def test_work_that_fails_before_its_first_event() -> None:
    def work(job: Job[None]) -> Generator[Event, None, None]:
        raise ValueError("at once")

    job = finished(Jobs().submit("fail", "x", work))
    assert (job.state, list(job.follow())) == ("failed", [])


def test_an_error_after_a_cancel_is_a_cancel_and_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    def work(job: Job[None]) -> Generator[Event, None, None]:
        yield {"type": "started"}
        assert job.cancelled.wait(PATIENCE)
        raise ValueError("broken off")

    with caplog.at_level(logging.ERROR, "jobs"):
        job = Jobs().submit("fail", "x", work)
        job.cancel()
        assert finished(job).state == "cancelled"
    assert isinstance(job.error, ValueError) and not caplog.records


def test_waiting_ends_without_the_job() -> None:
    gate = Gate()
    job = Jobs().submit("gate", "x", gate)
    assert not job.wait(0.01)
    gate.opened.set()
    assert job.wait(PATIENCE)


def test_elapsed_stops_with_the_job_and_the_deadline_is_monotonic() -> None:
    job = finished(Jobs().submit("count", "x", count_to(1), deadline_seconds=60))
    assert job.elapsed() == job.elapsed()
    assert job.deadline is not None and 0 < job.deadline - time.monotonic() <= 60


# 3) many jobs


def test_a_kind_has_a_limit_of_its_own() -> None:
    jobs, gate = Jobs(limits={"gate": 2}), Gate()
    first, second = jobs.submit("gate", "1", gate), jobs.submit("gate", "2", gate)
    with pytest.raises(JobsFull, match="2 jobs of kind gate"):
        jobs.submit("gate", "3", gate)
    assert finished(jobs.submit("count", "another kind", count_to(1))).result == 1
    gate.opened.set()
    finished(first), finished(second)
    assert finished(jobs.submit("gate", "4", gate)).state == "finished"


def test_no_more_than_the_limit_run_however_many_ask_at_once() -> None:
    jobs, gate = Jobs(limits={"gate": 3}), Gate()
    barrier, refused, taken = threading.Barrier(12), [], []

    def ask() -> None:
        barrier.wait(PATIENCE)
        try:
            taken.append(jobs.submit("gate", "x", gate))
        except JobsFull:
            refused.append(1)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (len(taken), len(refused)) == (3, 9)
    gate.opened.set()
    assert all(finished(job).done for job in taken)


def test_a_job_that_gets_no_thread_does_not_count_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    jobs = Jobs(limits={"count": 1})
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(JobsFull, match="no more threads"):
            jobs.submit("count", "x", count_to(1))
    assert jobs.recent() == []
    assert finished(jobs.submit("count", "x", count_to(1))).result == 1


def test_finished_jobs_go_oldest_first_and_running_ones_stay() -> None:
    jobs, gate = Jobs(keep=3), Gate()
    running = jobs.submit("gate", "running", gate)
    done = [finished(jobs.submit("count", str(number), count_to(1))) for number in range(5)]
    assert [job.title for job in jobs.recent()] == ["4", "3", "running"]
    assert [job.title for job in jobs.recent("count")] == ["4", "3"]
    assert jobs.get(done[0].id) is None and jobs.get(done[4].id) is done[4] and jobs.get(running.id) is running
    assert seqs(done[0].follow()) == [1]  # who still holds a forgotten job reads on
    gate.opened.set()
    finished(running)


def test_more_may_run_than_are_kept() -> None:
    jobs, gate = Jobs(keep=1), Gate()
    running = [jobs.submit("gate", str(number), gate) for number in range(4)]
    assert len(jobs.recent()) == 4
    gate.opened.set()
    assert all(finished(job).state == "finished" for job in running)


def test_stop_cancels_what_runs_and_refuses_what_comes() -> None:
    jobs = Jobs()
    running = [jobs.submit("wait", str(number), until_cancelled) for number in range(4)]
    assert jobs.stop(PATIENCE)
    assert {job.state for job in running} == {"cancelled"}
    with pytest.raises(JobsFull, match="stopping"):
        jobs.submit("count", "late", count_to(1))
    assert jobs.stop(0.0)


def test_stop_waits_for_all_together_and_says_when_some_do_not_end() -> None:
    jobs, gate = Jobs(), Gate()
    stubborn = [jobs.submit("gate", str(number), gate) for number in range(3)]
    assert not jobs.stop(0.05)
    gate.opened.set()
    assert all(finished(job).done for job in stubborn)


def test_jobs_started_while_stopping_are_cancelled_or_refused() -> None:
    for _ in range(20):
        jobs, taken = Jobs(), []
        barrier = threading.Barrier(2)

        def ask(jobs: Jobs = jobs, taken: list[Any] = taken, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(PATIENCE)
            try:
                taken.append(jobs.submit("wait", "x", until_cancelled))
            except JobsFull:
                taken.append(None)

        asking = threading.Thread(target=ask)
        asking.start()
        barrier.wait(PATIENCE)
        assert jobs.stop(PATIENCE)
        asking.join(PATIENCE)
        assert taken[0] is None or taken[0].state == "cancelled"
