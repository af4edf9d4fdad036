"""The load test against real servers: a fake API of known capacity on a real socket, and RAG Deck's own path in this process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from collectors.readings import Cpu, Gpu, Gpus, Host
from collectors.views import MachineView, Part, Snapshot
from jobs import Job, Jobs
from latency.load import load
from latency.load.clients import ask_url, told_of
from latency.load.load import LoadPlan, LoadResult, read_questions
from latency.load.plan import MAX_FILE_BYTES, checked
from latency.load.readings import Looks
from latency.load.steps import Heard, Step, Times, Told, step_of, throughput
from latency.load.users import Turns, arrivals
from rag.errors import RagError
from rag.types import Answer, Interval, Options, Problem, Split, Stage
from tests.ports import reserved_port

QUESTIONS = ("one?", "two?", "three?")


class FakeApi:
    """A fake of an API that answers `capacity` questions at once, each in `seconds`; the others wait for their turn."""

    def __init__(self, capacity: int = 2, seconds: float = 0.05) -> None:
        self.capacity, self.seconds = capacity, seconds
        self.token: str | None = None
        self.refuse_beyond: int | None = None
        self.plain_text = self.silent = self.strict = False
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most = 0
        self._places: asyncio.Semaphore | None = None

    async def ask(self, request: Request) -> Response:
        if self._places is None:
            self._places = asyncio.Semaphore(self.capacity)
        self.bodies.append(await request.json())
        if self.strict and set(self.bodies[-1]) != {"query"}:
            return JSONResponse({"detail": "extra fields not permitted"}, 422)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"detail": "no"}, 401)
        if self.silent:
            await asyncio.sleep(60)
        if self.refuse_beyond is not None and self.running >= self.refuse_beyond:
            return JSONResponse({"error": {"kind": "overloaded", "message": "too many queries run"}}, 429)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            came = time.perf_counter()
            async with self._places:
                waited = time.perf_counter() - came
                await asyncio.sleep(self.seconds)
            return PlainTextResponse("An answer.") if self.plain_text else self._answer(waited)
        finally:
            self.running -= 1

    def _answer(self, waited: float) -> JSONResponse:
        rerank = Stage("rerank", waited + self.seconds, 1, split=Split(queue=waited, compute=self.seconds))
        total = rerank.seconds
        answer = Answer("ab" * 16, "q", "2026-01-01T00:00:00Z", "answered", stages=(rerank,), total_seconds=total)
        return JSONResponse(answer.to_json())


@contextmanager
def serving(api: FakeApi) -> Iterator[str]:
    app = Starlette(routes=[Route("/api/v1/ask", api.ask, methods=["POST"])])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    found = Jobs()
    yield found
    assert found.stop(15)


def finish(jobs: Jobs, plan: LoadPlan, lab: Any = None) -> LoadResult:
    job: Job[LoadResult] = jobs.submit("experiment", "load", load.work(lab, plan))
    assert job.wait(60)
    if job.error is not None:
        raise job.error
    assert job.result is not None
    return job.result


# 1) closed loop


def test_the_knee_of_a_server_with_two_places_is_found_and_its_queue_named(jobs: Jobs) -> None:
    api = FakeApi(capacity=2, seconds=0.25)  # much longer than what a loaded machine adds
    with serving(api) as url:
        result = finish(jobs, LoadPlan((1, 2, 4, 8), QUESTIONS, 2.5, api_url=url))
    assert [step.users for step in result.steps] == [1, 2, 4, 8] and result.stopped is None
    found = result.knee
    assert found.users is not None and 1.2 <= found.users <= 4
    assert result.steps[-1].total and result.steps[0].total and result.steps[-1].total.p50 > 2 * result.steps[0].total.p50
    assert found.growth[0].stage == "rerank" and found.growth[0].share > 0.6
    assert found.growth[0].queue == pytest.approx(found.growth[0].seconds, rel=0.3)
    assert result.warmup is not None and result.warmup.answered == 3
    assert {json.dumps(body["caches"]) for body in api.bodies} == {'"bypass"'}
    assert LoadResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_an_api_that_answers_only_text_has_totals_and_no_stages(jobs: Jobs) -> None:
    api = FakeApi(4, 0.02)
    api.plain_text = api.strict = True
    with serving(api) as url:
        result = finish(jobs, LoadPlan((1, 2), QUESTIONS, 50, 10, warmup_requests=1, api_url=url))
    assert [step.answered for step in result.steps] == [10, 10]
    assert all(step.total is not None and not step.stages and not step.slowest for step in result.steps)
    assert sum(set(body) != {"query"} for body in api.bodies) <= 2  # what it refuses is not sent again


def test_refusals_are_counted_by_kind_and_said(jobs: Jobs) -> None:
    api = FakeApi(1, 0.3)
    api.refuse_beyond = 1
    with serving(api) as url:
        result = finish(jobs, LoadPlan((1, 4), QUESTIONS, 3.0, api_url=url))
    calm, crowded = result.steps
    assert not calm.failed and crowded.errors["overloaded"] >= 3 and crowded.answered
    assert crowded.asked == crowded.answered + crowded.failed
    assert crowded.examples["overloaded"] == "HTTP 429: too many queries run"
    assert any("refused" in note for note in result.knee.notes)
    assert result.knee.recommended == 1


def test_a_step_ends_with_its_requests(jobs: Jobs) -> None:
    api = FakeApi(8, 0.01)
    with serving(api) as url:
        result = finish(jobs, LoadPlan((2, 4), QUESTIONS, 300, 20, api_url=url, warmup_requests=1))
    assert [step.asked for step in result.steps] == [20, 20] and len(api.bodies) == 41


def test_a_wrong_token_is_said_by_the_warm_up(jobs: Jobs) -> None:
    api = FakeApi()
    api.token = "right"
    with serving(api) as url:
        with pytest.raises(RagError) as refused:
            finish(jobs, LoadPlan((1,), QUESTIONS, 1, api_url=url, token="wrong"))
        assert finish(jobs, LoadPlan((1,), QUESTIONS, 20, 2, api_url=url, token="right")).steps[0].answered
    assert refused.value.kind == "authentication" and "token" in refused.value.next_step
    assert "wrong" not in repr(LoadPlan(token="wrong")) and "wrong" not in json.dumps(LoadPlan(token="wrong").to_json())


def test_nobody_there_is_said_by_the_warm_up(jobs: Jobs) -> None:
    with reserved_port() as port, pytest.raises(RagError) as refused:
        finish(jobs, LoadPlan((1,), QUESTIONS, 1, api_url=f"http://127.0.0.1:{port}"))
    assert refused.value.kind == "connection" and str(port) in str(refused.value.address)


def test_answers_that_do_not_come_are_time_outs_and_end_the_test(jobs: Jobs) -> None:
    api = FakeApi()
    api.silent = True
    with serving(api) as url:
        plan = LoadPlan((1, 2), QUESTIONS, 1.5, api_url=url, warmup_requests=0, timeout_seconds=2.5)
        result = finish(jobs, plan)
    assert [step.errors for step in result.steps] == [{"timeout": 1}]
    assert result.stopped == "with 1 users nothing was answered" and result.knee.users is None


# 2) open loop


def test_users_who_do_not_wait_have_their_latency_from_the_intended_moment(jobs: Jobs) -> None:
    """20 questions a second for one place that answers 10: the wait grows to about a second, and all of it counts."""
    api = FakeApi(1, 0.1)
    with serving(api) as url:
        result = finish(jobs, LoadPlan((20,), QUESTIONS, 1.5, open_rate=1.0, api_url=url, warmup_requests=1))
    (step,) = result.steps
    assert step.rate == 20 and step.total is not None and step.waited is not None
    assert step.answered == len(arrivals(LoadPlan((20,), QUESTIONS, 1.5, open_rate=1.0), 20))
    assert step.total.highest > 0.6  # the last one waits for all before it, however late it is sent


def test_waiting_in_our_own_client_counts_as_latency() -> None:
    heard = [Heard(intended=1.0, sent=4.0, ended=4.5, told=Told())]
    step = step_of(heard, 1, 5.0, rate=1.0)
    assert step.total is not None and step.total.p50 == 3.5
    assert step.waited is not None and step.waited.p50 == 3.0


def test_arrivals_are_poisson_and_repeatable() -> None:
    plan = LoadPlan((5,), QUESTIONS, 100.0, 10_000, open_rate=4.0, seed=3)
    due = arrivals(plan, 5)
    assert due == arrivals(plan, 5) and due != arrivals(LoadPlan((5,), QUESTIONS, 100.0, 10_000, open_rate=4.0, seed=4), 5)
    assert 1800 < len(due) < 2200 and due == sorted(due)
    gaps = [after - before for before, after in zip(due, due[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.15)  # of exponential gaps


# 3) stopping


def test_stopping_in_the_middle_keeps_what_was_measured(jobs: Jobs) -> None:
    api = FakeApi(8, 0.02)
    with serving(api) as url:
        job = jobs.submit("experiment", "load", load.work(None, LoadPlan((1, 2, 4), QUESTIONS, 60, 10_000, api_url=url)))
        for event in job.follow():
            if event is not None and event["type"] == "progress" and event["answered"]:
                job.cancel()
                break
        assert job.wait(20)
    assert job.state == "cancelled" and job.result is not None
    assert job.result.stopped == "stopped by hand"
    assert [step.users for step in job.result.steps] == [1] and job.result.steps[0].answered


def test_a_silent_server_does_not_hold_up_the_stop(jobs: Jobs) -> None:
    api = FakeApi()
    api.silent = True
    with serving(api) as url:
        work = load.work(None, LoadPlan((4,), QUESTIONS, 60, api_url=url, warmup_requests=0))
        job = jobs.submit("experiment", "load", work)
        while not api.bodies:
            time.sleep(0.02)
        job.cancel()
        assert job.wait(20)
    assert job.state == "cancelled" and job.result is not None and job.result.steps == ()


# 4) the numbers


def test_throughput_of_a_queue_that_started_empty_is_what_the_server_does() -> None:
    """One server, one a second, four users: the first waits 1 s, all later ones 4 s, and the last ones end after the step."""
    sent = [(0.0, float(n)) for n in (1, 2, 3, 4)] + [(float(n), n + 4.0) for n in range(1, 10)]
    heard = [Heard(each, each, ended, Told()) for each, ended in sent]
    assert throughput(heard, 4, 10.0, waits=True) == pytest.approx(1.0)


def test_throughput_without_a_queue_is_users_over_latency() -> None:
    heard = [Heard(at, at, at + 4.0, Told()) for at in (0.0, 4.0, 8.0) for _ in range(4)]
    assert throughput(heard, 4, 10.0, waits=True) == pytest.approx(1.0)


def test_throughput_of_a_step_of_one_round_is_over_all_its_time() -> None:
    heard = [Heard(0.0, 0.0, float(n), Told()) for n in (1, 2, 3, 4)]
    assert throughput(heard, 4, 1.0, waits=True) == pytest.approx(1.0)
    assert throughput(heard, 4, 1.0, waits=False) == pytest.approx(1.0)
    assert throughput([Heard(0, 0, 1, Told(error="timeout"))], 1, 1.0, waits=True) == 0.0


def test_errors_and_cold_answers_are_in_no_percentile_of_others() -> None:
    heard = [
        Heard(0, 0, 1, Told({"embed": 0.5}, {"embed": 0.2}, cold=True, query_id="a")),
        Heard(0, 0, 9, Told(error="timeout", message="late")),
        Heard(0, 0, 9, Told(error="cancelled")),
    ]
    step = step_of(heard, 3, 9.0)
    assert step.total == Times(1, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert (step.asked, step.answered, step.errors, step.unfinished, step.cold) == (3, 1, {"timeout": 1}, 1, 1)
    assert step.slowest[0].query_id == "a"
    assert Step.from_json(json.loads(json.dumps(step.to_json()))) == step


def test_an_answer_is_told_with_its_queues() -> None:
    ran = Stage("generate", 2.0, 1, split=Split(queue=0.1))
    timeline = (Interval("generate", 0, 2.0, "", Split(), facts={"server_queue_seconds": 0.7}),)
    answer = Answer("a", "q", "t", "answered", stages=(ran, Stage("hyde", skipped="off")), timeline=timeline)
    told = told_of(answer)
    assert told.stages == {"generate": 2.0} and told.queues == {"generate": 0.7} and told.error is None
    failed = told_of(Answer("a", "q", "t", "failed", error=Problem("embed", "timeout", "late")))
    assert (failed.error, failed.message) == ("timeout", "late")


def test_turns_end_by_time_and_by_number() -> None:
    now = [0.0]
    turns = Turns(LoadPlan((1,), QUESTIONS, 10.0, 4), 1, lambda: now[0])
    asked = [turn.question for _ in range(3) if (turn := turns.next())]
    assert sorted(asked) == sorted(QUESTIONS)
    now[0] = 10.0
    assert turns.next() is None and turns.window() == 10.0 and turns.is_over()
    few = Turns(LoadPlan((2,), QUESTIONS, 5.0, 1), 2, lambda: 3.0)
    again = few.next()
    assert again is not None and again.question == asked[0]  # every step asks in the same order
    assert few.next() is None and few.window() == 3.0


def test_questions_due_that_nobody_got_round_to_are_counted() -> None:
    now = [0.0]
    plan = LoadPlan((10,), QUESTIONS, 5.0, open_rate=1.0)
    turns = Turns(plan, 10, lambda: now[0])
    turns.next()
    now[0] = 5.0
    assert turns.overdue() == len(arrivals(plan, 10)) - 1 and turns.is_over()


class FakeSweep:
    """A fake of the sweep, with the machine readings it is given."""

    def __init__(self) -> None:
        self.at, self.busy = 100.0, 0.5

    def snapshot(self) -> Snapshot:
        cpu = Cpu(4, self.busy, None, None, None, None)
        host = Host(None, 1.0, cpu, None, None, None, None, None, None, None)
        gpus = Gpus((Gpu(0, utilization_ratio=0.9),))
        view = MachineView("box", "", "ssh", "ok", host=Part(host, self.at), gpus=Part(gpus, self.at))
        return Snapshot(self.at, (view,), ())


def test_machine_readings_count_once_and_only_from_the_step_on() -> None:
    sweep = FakeSweep()
    looks = Looks(sweep, since=100.5)
    looks.look()  # older than the step
    for sweep.at, sweep.busy in ((101.0, 0.6), (101.0, 0.6), (103.0, 1.0)):
        looks.look()
    found = {each.metric: each for each in looks.summary()}
    assert set(found) == {"cpu.busy_ratio", "gpu.0.utilization_ratio"}
    cpu = found["cpu.busy_ratio"]
    assert (cpu.source, cpu.mean, cpu.highest, cpu.n) == ("box", pytest.approx(0.8), 1.0, 2)
    assert {"source": "box", "metric": "cpu.busy_ratio", "value": 1.0} in looks.latest()


def test_the_table_has_a_row_a_step_and_dashes_for_what_is_unknown() -> None:
    heard = [Heard(0, 0, 1, Told({"embed": 0.5}, {"embed": 0.2}))]
    steps = [step_of(heard, 1, 2.0), step_of([Heard(0, 0, 1, Told(error="timeout"))], 2, 2.0)]
    heads, rows = load.rows(steps)
    assert all(len(row) == len(heads) for row in rows)
    first, second = (dict(zip(heads, row, strict=True)) for row in rows)
    assert first["embed_p95"] == 0.5 and first["embed_queue_mean"] == 0.2 and first["errors_timeout"] == 0
    assert second["total_p50"] is None and second["errors_timeout"] == 1


# 5) plans and files


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"questions": ()}, "no question"),
        ({"users": ()}, "0 steps"),
        ({"users": (4, 2)}, "do not rise"),
        ({"users": (1, 500)}, "users is 500"),
        ({"seconds_per_step": 9999}, "seconds_per_step"),
        ({"requests_per_step": 3, "users": (1, 4)}, "requests_per_step is 3"),
        ({"open_rate": 100.0}, "open_rate x users"),
        ({"api_url": "ftp://there"}, "no HTTP address"),
        ({"api_url": "http://me:secret@there"}, "holds a login"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_the_value(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RagError, match=said) as refused:
        checked(LoadPlan(**{"questions": QUESTIONS, **changes}))
    assert refused.value.kind == "bad_input" and "secret" not in refused.value.message


def test_an_address_without_a_path_gets_the_api_s() -> None:
    assert ask_url("http://h:8080/") == "http://h:8080/api/v1/ask"
    assert ask_url("https://h/other/ask") == "https://h/other/ask"


def test_questions_are_lines_or_objects() -> None:
    text = '\ufeffplain?\r\n\n{"question": "object?", "n": 1}\n שאלה? \n'
    assert read_questions(text.encode()) == ("plain?", "object?", "שאלה?")


@pytest.mark.parametrize(
    "data, said",
    [
        (b"x" * (MAX_FILE_BYTES + 1), "more than 4 MB"),
        (b"\x7fELF\0\0", "binary"),
        (b"caf\xe9 latin", "no text in UTF-8"),
        (b"\n\n", "no question"),
        (b'ok?\n{"query": "x"}', "line 2"),
        (b"{broken", "no JSON"),
        (b"q" * 30_000, "30,000 characters"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(RagError, match=said) as refused:
        read_questions(data, "questions.txt")
    assert refused.value.kind == "bad_input" and refused.value.next_step


# 6) this process


class FakeLab:
    """A fake of the runtime: answers from a thread, two at once, and refuses what is more than `limit`."""

    def __init__(self, limit: int = 100) -> None:
        self.sweep = FakeSweep()
        self.jobs = Jobs(limits={"query": limit})
        self.places = threading.Semaphore(2)
        self.asked: list[tuple[str, Options, str]] = []

    def default_options(self) -> Options:
        return Options(hyde="off")

    def submit_query(self, question: str, options: Options, *, origin: str) -> Job[Answer]:
        self.asked.append((question, options, origin))

        def work(job: Job[Answer]) -> Any:
            yield {"type": "stage_started"}
            with self.places:
                job.cancelled.wait(0.05)
            return Answer("00" * 16, question, "t", "cancelled" if job.cancelled.is_set() else "answered")

        try:
            return self.jobs.submit("query", question, work)
        except Exception as full:
            raise RagError(str(full), kind="overloaded") from None


def test_this_process_is_asked_as_a_measurement_past_the_caches(jobs: Jobs) -> None:
    lab = FakeLab(limit=4)
    result = finish(jobs, LoadPlan((1, 8), QUESTIONS, 0.8, options={"candidates": 12}), lab)
    assert {origin for _, _, origin in lab.asked} == {"measure"}
    assert {(options.caches, options.candidates, options.hyde) for _, options, _ in lab.asked} == {("bypass", 12, "off")}
    assert not result.steps[0].failed and result.steps[1].errors.keys() == {"overloaded"}
    assert load.where_asked(result.plan) == "this process"
    assert lab.jobs.stop(10)


def test_an_option_nobody_knows_is_refused_before_anything_starts() -> None:
    with pytest.raises(RagError, match="'candidate'"):
        load.work(FakeLab(), LoadPlan(questions=QUESTIONS, options={"candidate": 1}))  # type: ignore[arg-type]
    with pytest.raises(RagError, match="nobody to ask"):
        load.work(None, LoadPlan(questions=QUESTIONS))


def test_progress_is_told_with_readings(jobs: Jobs) -> None:
    lab = FakeLab()
    lab.sweep.at = time.time() + 3600
    job = jobs.submit("experiment", "load", load.work(lab, LoadPlan((2,), QUESTIONS, 4.0)))  # type: ignore[arg-type]
    assert job.wait(30)
    kinds = [event["type"] for event in job.events()]
    assert kinds[:3] == ["load_started", "warmup_finished", "step_started"] and kinds[-1] == "step_finished"
    told = next(event for event in job.events() if event["type"] == "progress")
    assert told["users"] == 2 and {each["metric"] for each in told["readings"]} >= {"cpu.busy_ratio"}
    assert isinstance(job.result, LoadResult) and job.result.steps[0].reading("gpu.utilization_ratio")[0].mean == 0.9
    assert SimpleNamespace(**job.result.steps[0].to_json()).readings
    assert lab.jobs.stop(10)
