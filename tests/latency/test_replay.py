"""Replay on the real path: order, warm-ups, what is asked, failures, cancelling; small parts of it without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from gpu_server.interfaces import ModelInfo, Scores, Timing
from latency.experiments import replay
from latency.experiments.replay import Change, order
from rag.errors import RagError
from rag.types import Answer, Options
from tests.latency.small_lab import SmallLab

QUESTION = "Why is the first rerank after a restart slow?"
AS_STORED = Change()
NO_RERANK = Change({"rerank": False})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallLab]:
    made = SmallLab(tmp_path_factory.mktemp("replay"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def stored(lab: SmallLab) -> Answer:
    return lab.ask(QUESTION, Options(hyde="off", candidates=3, keep=2, caches="use"))


@pytest.fixture(autouse=True)
def _forget(lab: SmallLab, stored: Answer) -> Iterator[None]:
    """What a test changes of the shared lab."""
    lab.asked.clear()
    lab.entered = lab.left = 0
    before = lab.made, lab.in_force
    yield
    lab.made, lab.in_force = before


def ran(lab: SmallLab, ids, sides, times: int):
    job = lab.jobs.submit("experiment", "replay", replay.work(lab, ids, sides, times))
    assert job.wait(60)
    return job


class FakeReranker:
    """Scores by position; does at each call what it is told."""

    uses_route_scores = False
    info = ModelInfo("fake", "reranker", "fake", "cpu", "fp32")

    def __init__(self, act=lambda: None) -> None:
        self.act = act

    def score(self, query, candidates, *, deadline=None, caches="use"):
        self.act()
        return Scores(np.arange(len(candidates), 0, -1, dtype=np.float32), Timing(compute=0.001))


# order


@pytest.mark.parametrize("sides", [2, 3])
@pytest.mark.parametrize("queries", [1, 2])
def test_a_steady_drift_weighs_on_every_side_alike(sides: int, queries: int):
    """The mean place in time of each side is the same for each query by itself, with an even number of rounds."""
    slots = [(side, query) for number in range(4) for query in range(queries) for side in order(sides, number, query)]
    for query in range(queries):
        places = [[place for place, slot in enumerate(slots) if slot == (side, query)] for side in range(sides)]
        assert len({sum(each) for each in places}) == 1


def test_an_odd_number_of_rounds_is_balanced_over_two_queries():
    slots = [side for number in range(3) for query in range(2) for side in order(2, number, query)]
    places = [[place for place, side in enumerate(slots) if side == wanted] for wanted in (0, 1)]
    assert sum(places[0]) == sum(places[1])


def test_sides_take_turns_in_turned_order_after_one_warm_up_each(lab: SmallLab, stored: Answer):
    job = ran(lab, [stored.id], [AS_STORED, NO_RERANK], 4)
    assert job.state == "finished", job.error
    result = job.result
    assert [(run.side, run.round) for run in result.warm_ups] == [(0, None), (1, None)]
    assert [run.side for run in result.runs] == [0, 1, 1, 0, 0, 1, 1, 0]
    assert [run.round for run in result.runs] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(lab.asked) == 10
    counted = {run.query_id for run in result.runs}
    assert len(counted) == 8
    assert not counted & {run.query_id for run in result.warm_ups}


# what is asked


def test_the_stored_question_is_asked_with_its_own_options_caches_bypassed_and_marked_as_measuring(lab: SmallLab, stored: Answer):
    job = ran(lab, [stored.id], [AS_STORED, Change({"candidates": 2, "hyde": "auto"})], 1)
    assert job.state == "finished", job.error
    assert {(question, origin) for question, _, origin, _ in lab.asked} == {(QUESTION, "measure")}
    asked = [options for _, options, _, _ in lab.asked]
    assert asked[0] == replace(stored.options, caches="bypass")
    assert asked[1] == replace(stored.options, caches="bypass", candidates=2, hyde="auto")
    again = lab.traces.get(job.result.query_ids(1)[0])
    assert (again.origin, again.options.candidates, again.question) == ("measure", 2, QUESTION)


def test_a_side_may_use_caches_and_is_told_what_that_means(lab: SmallLab, stored: Answer):
    job = ran(lab, [stored.id], [Change({"caches": "use"})], 1)
    assert {options.caches for _, options, _, _ in lab.asked} == {"use"}
    assert any("caches" in note for note in job.result.notes)


def test_other_models_are_built_once_for_equal_sides_and_let_go_of(lab: SmallLab, stored: Answer):
    other = FakeReranker()
    lab.made = lambda clients, changes: replace(clients, reranker=other) if changes == {"reranker": "http"} else clients
    http = Change(models={"reranker": "http"})
    job = ran(lab, [stored.id], [AS_STORED, http, replace(http, options={"keep": 1})], 1)
    assert job.state == "finished", job.error
    assert (lab.entered, lab.left) == (1, 1)
    models = [lab.traces.get(job.result.query_ids(side)[0]).fingerprint["models"]["rerank"] for side in range(3)]
    assert models[1] == models[2] != models[0]


def test_cases_are_the_new_queries_with_their_spans(lab: SmallLab, stored: Answer):
    result = ran(lab, [stored.id], [AS_STORED, NO_RERANK], 2).result
    cases = replay.cases(lab, [*result.query_ids(1), "gone"])
    assert [case.answer.id for case in cases] == list(result.query_ids(1))
    assert all(case.spans and case.stage("rerank") is None for case in cases)
    data = result.to_json()
    assert [side["n"] for side in data["sides"]] == [2, 2]
    assert data["sides"][1]["label"] == "rerank off"
    assert data["sides"][1]["median_seconds"] == result.median_seconds(1) > 0


def test_the_log_tells_how_far_it_is(lab: SmallLab, stored: Answer):
    events = ran(lab, [stored.id], [AS_STORED], 3).events()
    assert [event["type"] for event in events] == ["replay_started", "warm_up", "run", "run", "run"]
    assert [(event["done"], event["of"]) for event in events[2:]] == [(1, 3), (2, 3), (3, 3)]


# what cannot be replayed, and what can in part


def test_a_query_that_is_not_stored_or_whose_content_was_not_kept_is_refused_before_anything_runs(lab: SmallLab, stored: Answer):
    lab.traces.save(replace(stored, id="0" * 32, question="", answer="", passages=()))
    for identity, kind, said in (("f" * 32, "not_found", "no stored query"), ("0" * 32, "bad_input", "not kept")):
        with pytest.raises(RagError, match=said) as caught:
            replay.work(lab, [stored.id, identity], [AS_STORED], 1)
        assert caught.value.kind == kind
        assert caught.value.next_step
    assert lab.asked == []


@pytest.mark.parametrize(
    ("sides", "times", "said"), [([], 1, "needs"), ([AS_STORED], 0, "needs"), ([AS_STORED] * 3, 700, "2100 runs")]
)
def test_impossible_numbers_are_refused(lab: SmallLab, stored: Answer, sides, times, said):
    with pytest.raises(RagError, match=said):
        replay.work(lab, [stored.id], sides, times)


def test_an_option_that_is_none_is_refused():
    with pytest.raises(RagError, match="no option topk"):
        Change({"topk": 3})


def test_a_query_of_another_program_is_asked_by_its_question_with_our_options_and_a_note(lab: SmallLab, stored: Answer):
    lab.traces.save(replace(stored, id="a" * 32, origin="otlp:shop", options=Options(candidates=999)))
    job = ran(lab, ["a" * 32], [AS_STORED], 1)
    assert {options.candidates for _, options, _, _ in lab.asked} == {lab.default_options().candidates}
    assert "shop" in job.result.notes[0]


def test_settings_that_changed_since_are_said(lab: SmallLab, stored: Answer):
    assert ran(lab, [stored.id], [AS_STORED], 1).result.notes == ()
    lab.in_force = replace(lab.in_force, fingerprint={"settings": "two"})
    assert "settings have changed" in ran(lab, [stored.id], [AS_STORED], 1).result.notes[0]


# failures


def test_a_side_that_fails_is_recorded_and_the_others_go_on(lab: SmallLab, stored: Answer):
    job = ran(lab, [stored.id], [AS_STORED, Change({"collection": "nowhere"}), Change({"candidates": 0})], 2)
    assert job.state == "finished", job.error
    result = job.result
    assert [len(result.good(side)) for side in range(3)] == [2, 0, 0]
    assert "no collection" in next(run.error for run in result.runs if run.side == 1)
    assert "candidates is below 1" in next(run.error for run in result.runs if run.side == 2)
    assert result.median_seconds(1) is None
    assert result.to_json()["sides"][1]["failed"] == 2


def test_where_every_warm_up_fails_nothing_more_is_asked(lab: SmallLab, stored: Answer):
    job = ran(lab, [stored.id], [Change({"collection": "nowhere"})], 50)
    assert job.state == "failed"
    assert "no collection" in job.error.message
    assert len(lab.asked) == 1


def test_a_stage_that_went_without_its_model_is_told(lab: SmallLab, stored: Answer):
    def broken() -> None:
        raise RuntimeError("the reranker is away")

    lab.made = lambda clients, _: replace(clients, reranker=FakeReranker(broken))
    result = ran(lab, [stored.id], [AS_STORED, Change(models={"reranker": "http"})], 1).result
    assert [run.degraded for run in result.runs if run.side == 0] == [None]
    assert all("rerank" in run.degraded for run in result.runs if run.side == 1)
    assert result.to_json()["sides"][1]["degraded"] == 1


def test_models_that_cannot_be_had_end_it_with_their_reason(lab: SmallLab, stored: Answer):
    def nowhere(clients, changes):
        raise RagError("there is no cuda:9", kind="model", next_step="Choose another device.")

    lab.made = nowhere
    job = ran(lab, [stored.id], [Change(models={"reranker.device": "cuda:9"})], 1)
    assert (job.state, job.error.message) == ("failed", "there is no cuda:9")
    assert lab.asked == []


# cancelling


def test_a_cancel_ends_the_query_that_runs_and_keeps_what_there_is(lab: SmallLab, stored: Answer):
    calls, entered, go = [], threading.Event(), threading.Event()

    def slow() -> None:
        calls.append(1)
        if len(calls) == 3:  # the warm-up and one run are over
            entered.set()
            go.wait(20)

    lab.in_force = replace(lab.in_force, reranker=FakeReranker(slow))
    job = lab.jobs.submit("experiment", "replay", replay.work(lab, [stored.id], [AS_STORED], 50))
    assert entered.wait(30)
    job.cancel()
    running = lab.jobs.recent("query")[0]
    assert running.cancelled.wait(20)  # the cancel went on to the query
    go.set()
    assert job.wait(30)
    assert job.state == "cancelled"
    assert len(job.result.runs) == 1
    assert len(lab.asked) == 3


def test_it_waits_for_a_place_among_the_queries_of_users(lab: SmallLab, stored: Answer):
    go = threading.Event()

    def work(job):
        yield {"type": "busy"}
        go.wait(20)

    for _ in range(4):
        lab.jobs.submit("query", "a user's", work)
    refused = threading.Event()
    submit = lab.submit_query

    def submit_query(*arguments, **named):
        try:
            return submit(*arguments, **named)
        except Exception as full:
            refused.set()
            raise RagError(str(full), kind="overloaded") from None

    lab.submit_query = submit_query
    try:
        job = lab.jobs.submit("experiment", "replay", replay.work(lab, [stored.id], [AS_STORED], 1))
        assert refused.wait(20)
        go.set()
        assert job.wait(30)
    finally:
        del lab.submit_query
    assert (job.state, len(job.result.good(0))) == ("finished", 1)
