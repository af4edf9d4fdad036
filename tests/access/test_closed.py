"""The view of the runtime that pages get is closed but for what its tables name: by walking over a real runtime."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jobs
import runtime
from access.operations import ASKING, OPERATIONS, READS, Guarded, Viewer, may_cancel, unwrapped
from access.operations import _is_plain as is_plain
from access.scopes import ALL, Identity, Scope
from collectors.audit import AuditLog
from rag.errors import RagError
from rag.evaluation.evaluations import Evaluations
from tests.fresh_runtime import only_settings_of

# What pages never call, and whoever may not operate never could: closed on purpose, by being in no table
CLOSED = {
    "": "start stop",
    "job": "add run",
    "job.cancelled": "clear isSet set",
    "jobs": "stop",
    "traces": "close delete_before save",
    "hyde_history": "decide",
    "pool": "add_chat_model add_embedder add_reranker prove reload stop warm warm_up",
    "models": "close greet probe reload",
    "store": "close",
    "store.versions": "dropped on_change settled writing",
    "library": "close ensure_samples prepare stop take_in",
    "library.record": "*",
    "library.readers": "*",
    "library.ingestions": "go_on submit take_in",
    "cache": "carry_over close keep look_up release",
    "cache.answers": "*",
    "cache.index": "*",
    "cache.book": "close denied",
    "deployment": "apply forget start stop",
    "deployment.audit": "begin end",
    "deployment.own": "*",  # counters of /metrics, of which no page tells
    "deployment.alerts": "*",  # other ways to what the runtime has itself
    "deployment.history": "*",
    "deployment.notifier": "*",
    "deployment.sweep": "*",
    "investigation.experiments": "*",
    "investigation.readings": "*",
    "investigation.receiver": "*",
    "models.pool": "*",
    "models.caches": "*",
    "sweep": "apply restart start stop",
    "history": "close forget write",
    "alerts": "close evaluate prune use",
    "notifier": "send stop",
    "readings": "close delete delete_before save",
    "experiments": "close save",
    "receiver": "close settle start take",
    "investigation": "forget_before look_without_hyde start stop watching",
}
# Handed out as they are: they compute, and keep nothing that anybody else sees
WHOLE = {
    "settings",
    "chat",
    "models.chat",
    "models.embedder",
    "models.reranker",
    "store.mapping",
    "cache.limits",
    "job.error",
    "job.result",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    folder = tmp_path_factory.mktemp("closed")
    with only_settings_of(folder, "[ingest]\nsample_corpus = false\n[models]\npreload = false\n[traces]\nreceive = true\n"):
        yield runtime.get()


def public(thing: Any) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


def walked(thing: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every public attribute below it that a viewer may get hold of, with its path."""
    seen.add(id(thing))
    for name in public(thing):
        below = f"{path}.{name}" if path else name
        value = getattr(thing, name)
        yield below, value
        whole = below in READS or below in OPERATIONS or is_plain(value) or callable(value)
        if not whole and CLOSED.get(below) != "*" and id(value) not in seen:
            yield from walked(value, below, seen)


def test_every_method_that_a_page_can_reach_is_in_a_table(running: runtime.Runtime) -> None:
    roots = [(running, ""), (jobs.Job("query", "t"), "job")]
    data = Evaluations(running.settings.data_dir)
    roots += [(data.sets, "evaluations.sets"), (data.runs, "evaluations.runs"), (data.marks, "evaluations.marks")]
    closed = {f"{owner}.{name}".lstrip(".") for owner, names in CLOSED.items() for name in names.split() if name != "*"}
    found = [each for thing, path in roots for each in walked(thing, path, set())]
    unlisted = [path for path, value in found if callable(value) and path not in OPERATIONS and path not in READS | closed]
    assert unlisted == [], (
        "say in access/operations.py whether they change something (OPERATIONS) or not (READS), or close them here"
    )
    assert len(found) > 250 and {"library.ingestions.pause", "store.drop", "cache.book.pairs"} <= {path for path, _ in found}
    raw = {path for path, value in found if path in READS and not callable(value) and not is_plain(value)}
    assert raw <= WHOLE, (
        "an object that is handed out as it is can do whatever it can: leave it out of READS, and list its methods"
    )
    known = {path for path, _ in found}
    foreign = "store.client."  # there once a store is open; its methods are Milvus's
    gone = sorted(path for path in (READS | OPERATIONS.keys() | closed) - known if not path.startswith(foreign))
    assert not gone, "named in a table, but not there: renamed?"


def test_no_path_is_in_both_tables() -> None:
    assert not READS & OPERATIONS.keys()


# 2) what a viewer may do with what no table names, and with jobs


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.log")


def seen_by(thing: Any, log: AuditLog, *scopes: Scope, name: str = "bo") -> Any:
    return Guarded(thing, Viewer(lambda: Identity(name, "proxy", frozenset(scopes)), "10.0.0.9", log))


class Thing:
    """A runtime with methods that somebody added, and forgot to list."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.version = "1"
        self.table = {"a": (1, 2.0)}
        self.jobs = jobs.Jobs()
        self.inner = Inner(self.done)

    def burn(self, what: str) -> str:
        self.done.append(what)
        return what


class Inner:
    def __init__(self, done: list[str]) -> None:
        self.deeper = self
        self._done = done

    def burn(self, what: str) -> None:
        self._done.append(what)


def test_what_no_table_names_is_the_operators_and_leaves_a_trace(log: AuditLog) -> None:
    thing = Thing()
    for call in (lambda each: each.burn("x"), lambda each: each.inner.burn("x"), lambda each: each.inner.deeper.deeper.burn("x")):
        with pytest.raises(RagError) as caught:
            call(seen_by(thing, log, "read", "ask"))
        assert caught.value.kind == "authentication" and "operate" in caught.value.message
    assert thing.done == [] and {each.outcome for each in log.read()} == {"refused"}
    assert seen_by(thing, log, *ALL).burn("y") == "y" and thing.done == ["y"]
    last = log.read()[0]
    assert (last.what, last.target, last.outcome) == ("burn (in no list)", "y", "done")


def test_values_are_as_they_are_and_nothing_is_set_or_private(log: AuditLog) -> None:
    thing = Thing()
    seen = seen_by(thing, log)
    assert seen.version == "1" and seen.table["a"] == (1, 2.0) and isinstance(seen, Thing) and unwrapped(seen) is thing
    with pytest.raises(AttributeError):
        seen.version = "2"
    with pytest.raises(AttributeError):
        _ = seen.inner._done
    with pytest.raises(AttributeError):
        _ = seen.nothing
    assert thing.version == "1"


def waiting(job: jobs.Job[Any]) -> Iterator[Any]:
    yield {"type": "began"}
    job.cancelled.wait(30)


@pytest.mark.parametrize("kind", sorted(ASKING))
def test_a_question_is_cancelled_by_who_asked_it_and_by_operators(log: AuditLog, kind: str) -> None:
    thing = Thing()
    mine = seen_by(thing, log, "read", "ask").jobs.submit(kind, "what is it", waiting)
    for scopes, name in ((("read",), "bo"), ((), "bo"), (("read", "ask"), "anna")):
        other = seen_by(thing, log, *scopes, name=name).jobs.get(mine.id)
        assert other.title == "what is it" and not other.cancelled.is_set() and not may_cancel(other)
        with pytest.raises(RagError):
            other.cancel()
        with pytest.raises(RagError):
            other.cancelled.set()
        assert not seen_by(thing, log, *scopes).jobs.recent()[0].cancelled.is_set()
    assert may_cancel(mine)
    before = len(log.read(limit=99))
    mine.cancel()
    assert mine.wait(10) and mine.state == "cancelled" and len(log.read(limit=99)) == before  # a question is nobody's business
    second = seen_by(thing, log, "read", "ask").jobs.submit(kind, "again", waiting)
    seen_by(thing, log, "operate", name="op").jobs.get(second.id).cancel()
    assert second.wait(10) and (log.read()[0].what, log.read()[0].target, log.read()[0].outcome) == (
        "cancel a job",
        f"{kind}: again",
        "done",
    )


@pytest.mark.parametrize("kind", ["ingest", "store", "calibration", "experiment", "new"])
def test_other_jobs_are_the_operators_also_for_who_started_them(log: AuditLog, kind: str) -> None:
    thing = Thing()
    scopes: list[frozenset[Scope]] = [ALL]
    seen = Guarded(thing, Viewer(lambda: Identity("bo", "proxy", scopes[0]), None, log))
    job = seen.jobs.submit(kind, "t", waiting)
    scopes[0] = frozenset({"read", "ask"})
    with pytest.raises(RagError):
        job.cancel()
    with pytest.raises(RagError):
        seen.jobs.submit(kind, "t", waiting)
    scopes[0] = ALL
    job.cancel()
    assert job.wait(10) and [each.outcome for each in log.read()] == ["done", "refused", "refused", "done"]


def test_jobs_are_guarded_wherever_they_come_from(log: AuditLog) -> None:
    thing = Thing()
    job = thing.jobs.submit("query", "t", waiting)
    thing.status = lambda: runtime.Status("1", (), "none", None, False, (), job)  # type: ignore[attr-defined]
    seen = seen_by(thing, log, "read", "ask")
    for found in (seen.jobs.get(job.id), seen.jobs.recent()[0], seen.status().sample_job):
        assert isinstance(found, jobs.Job) and found == job
        with pytest.raises(RagError):
            found.cancel()
    assert not job.cancelled.is_set()
    job.cancel()
    assert job.wait(10)


def test_a_job_goes_on_as_who_started_it_when_their_access_ends(log: AuditLog) -> None:
    thing, ended, burnt = Thing(), threading.Event(), threading.Event()
    scopes: list[frozenset[Scope]] = [ALL]
    seen = Guarded(thing, Viewer(lambda: Identity("bo", "oidc", scopes[0]), None, log))

    def work(job: jobs.Job[Any]) -> Iterator[Any]:
        assert ended.wait(10)
        seen.burn("in the job")
        burnt.set()
        yield {"type": "end"}

    job = seen.jobs.submit("store", "t", work)
    scopes[0] = frozenset()
    ended.set()
    assert job.wait(10) and burnt.is_set() and thing.done == ["in the job"]
    with pytest.raises(RagError):
        seen.burn("after it")
