"""The audit log, and the runtime as a viewer may use it."""

from __future__ import annotations

import csv
import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from access import audit
from access.operations import Guarded, Viewer, require, unwrapped
from access.scopes import ALL, Identity, Scope
from collectors.audit import KEPT_FILES, AuditLog
from rag.errors import RagError

ANNA = Identity("anna", "oidc", ALL)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.log", lambda: 1_800_000_000.0)


def viewer(log: AuditLog, *scopes: Scope) -> Viewer:
    return Viewer(lambda: Identity("bo", "proxy", frozenset(scopes)), "10.0.0.9", log)


# 1) the log


def test_what_is_done_has_who_where_what_and_outcome(log: AuditLog) -> None:
    with audit.recorded(log, ANNA, "10.0.0.1", "purge", "cache"):
        assert [action.outcome for action in log.read()] == ["asked"]
    with pytest.raises(RagError), audit.recorded(log, ANNA, None, "remove", "x"):
        raise RagError("no such thing", kind="not_found")
    with pytest.raises(ZeroDivisionError), audit.recorded(log, ANNA, None, "divide", "0"):
        raise ZeroDivisionError("a secret detail")
    found = [(each.who, each.address, each.what, each.target, each.outcome, each.text) for each in log.read()]
    assert found == [
        ("anna", None, "divide", "0", "failed", "ZeroDivisionError"),
        ("anna", None, "remove", "x", "refused", "no such thing"),
        ("anna", "10.0.0.1", "purge", "cache", "done", ""),
    ]


def test_nothing_is_done_that_cannot_be_written_down(log: AuditLog) -> None:
    log.path.mkdir()
    done: list[int] = []
    with pytest.raises(RagError) as caught, audit.recorded(log, ANNA, None, "purge"):
        done.append(1)
    assert not done and "nothing was done" in caught.value.message


def test_no_name_breaks_a_line_or_hinders_the_log(log: AuditLog) -> None:
    who = Identity('eve\n{"who": "anna"}\x1b[2J', "proxy", ALL)
    with audit.recorded(log, who, None, "purge", "half \ud800 of a character\u2028\r\nline"):
        pass
    audit.refused(log, who, None, "purge", "why", "\udfff")
    lines = log.path.read_bytes().split(b"\n")
    assert len(lines) == 5 and lines[-1] == b"" and all(json.loads(line)["who"].startswith("eve {") for line in lines[:-1])
    assert not any(character in log.path.read_text() for character in "\x1b\r")


def test_the_file_turns_and_the_oldest_goes(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log", lambda: 0.0, full_bytes=2000)
    for number in range(200):
        log.begin("anna", "", f"action {number}")
    files = sorted(path.name for path in tmp_path.glob("audit.log*"))
    assert files == ["audit.log", *(f"audit.log.{n + 1}" for n in range(KEPT_FILES))]
    assert all(path.stat().st_size < 2600 for path in tmp_path.glob("audit.log*"))
    assert [action.what for action in log.read(limit=3)] == ["action 199", "action 198", "action 197"]
    assert len(log.read(limit=1000)) > 2000 // 300  # also of the file before


def test_many_writers_lose_no_line(tmp_path: Path) -> None:
    logs = [AuditLog(tmp_path / "audit.log", full_bytes=20_000) for _ in range(4)]
    threads = [threading.Thread(target=lambda log=log: [log.begin("a", "", "x") for _ in range(40)]) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line for path in tmp_path.glob("audit.log*") for line in path.read_text().splitlines()]
    assert len(lines) == 160 and all(json.loads(line)["what"] == "x" for line in lines)


def test_it_is_filtered_and_a_spreadsheet_runs_nothing(log: AuditLog) -> None:
    for who, outcome in (("=cmd|' /C calc'!A0", "done"), ("bo", "failed"), ("bo", "refused")):
        log.end(log.begin(who, "", "purge", "10.0.0.1", "@SUM(1)"), outcome)  # type: ignore[arg-type]
    assert [each.outcome for each in audit.found(log, audit.Filter("BO"))] == ["refused", "failed"]
    assert [each.who for each in audit.found(log, audit.Filter(outcome="failed"))] == ["bo"]
    assert audit.found(log, audit.Filter(since="2999")) == [] and len(audit.found(log, audit.Filter(), 1)) == 1
    rows = list(csv.reader(io.StringIO(audit.to_csv(audit.found(log, audit.Filter())).decode("utf-8-sig"))))
    assert len(rows) == 4 and not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert len(audit.to_json_lines(log.read()).splitlines()) == 3


# 2) operations


class Inner:
    def __init__(self) -> None:
        self.called: list[Any] = []

    def pause(self, job_id: str) -> str:
        self.called.append(job_id)
        return "paused"


def running() -> Any:
    inner = Inner()
    return SimpleNamespace(
        library=SimpleNamespace(ingestions=inner, problem=None),
        cache=None,
        change=lambda changes: inner.called.append(changes),
        submit_query=lambda question: f"job of {question}",
        jobs=SimpleNamespace(submit=lambda kind, title, work: kind, get=lambda key: key),
        deployment=SimpleNamespace(restart=lambda machine, name, who=None: who),
        inner=inner,
    )


def test_who_may_not_does_nothing_and_it_is_written_down(log: AuditLog) -> None:
    rt = running()
    seen = Guarded(rt, viewer(log, "read"))
    for attempt in (
        lambda: seen.library.ingestions.pause("7"),
        lambda: seen.change({"llm.model": "x"}),
        lambda: seen.submit_query("q"),
    ):
        with pytest.raises(RagError) as caught:
            attempt()
        assert caught.value.kind == "authentication" and caught.value.next_step
    assert rt.inner.called == []
    assert [(each.who, each.what, each.target, each.outcome) for each in log.read()] == [
        ("bo", "submit_query", "", "refused"),
        ("bo", "change settings", "llm.model", "refused"),
        ("bo", "pause an ingestion", "7", "refused"),
    ]


def test_who_may_does_and_a_setting_s_value_is_not_in_the_log(log: AuditLog) -> None:
    rt = running()
    seen = Guarded(rt, viewer(log, "read", "operate"))
    assert seen.library.ingestions.pause("7") == "paused"
    seen.change({"llm.answer_prompt": "hunter2"})
    assert rt.inner.called == ["7", {"llm.answer_prompt": "hunter2"}] and "hunter2" not in log.path.read_text()
    assert [(each.what, each.outcome) for each in log.read()] == [("change settings", "done"), ("pause an ingestion", "done")]
    assert seen.deployment.restart("m", "u") == "bo from 10.0.0.9"


def test_what_nobody_may_do_is_refused_before_it_is_done(log: AuditLog) -> None:
    rt, kept = running(), []
    rt.add_machine, rt.save_upload = kept.append, lambda name, data: kept.append(name)
    seen = Guarded(rt, viewer(log, "operate"))
    for attempt in (
        lambda: seen.add_machine({"name": "m", "address": "169.254.169.254"}),
        lambda: seen.add_machine({"name": "m", "address": "root@[::ffff:a9fe:a9fe]"}),
        lambda: seen.save_upload("a.pdf", b"MZ no pdf"),
        lambda: seen.save_upload("a.exe", b"x"),
    ):
        with pytest.raises(RagError) as caught:
            attempt()
        assert caught.value.kind == "bad_input"
    assert kept == [] and {each.outcome for each in log.read()} == {"refused"}
    seen.add_machine({"name": "m", "address": "10.0.0.7"})
    seen.save_upload("a.txt", b"fine")
    assert kept == [{"name": "m", "address": "10.0.0.7"}, "a.txt"]


def test_asking_is_not_written_down_and_jobs_need_what_they_do(log: AuditLog) -> None:
    seen = Guarded(running(), viewer(log, "read", "ask"))
    assert seen.submit_query("q") == "job of q" and seen.jobs.submit("evaluation", "t", None) == "evaluation"
    assert not log.path.exists()
    for kind in ("store", "calibration", "experiment"):
        with pytest.raises(RagError):
            seen.jobs.submit(kind, "t", None)


def test_what_changes_nothing_is_as_it_is(log: AuditLog) -> None:
    rt = running()
    seen = Guarded(rt, viewer(log))
    assert seen.jobs.get("k") == "k" and seen.cache is None and seen.library.problem is None
    assert seen.inner == rt.inner and unwrapped(seen.inner) is rt.inner and hash(Guarded(1, viewer(log))) == hash(1)


def test_a_token_revoked_meanwhile_counts_for_nothing(log: AuditLog) -> None:
    scopes: list[frozenset[Scope]] = [ALL]
    who = Viewer(lambda: Identity("bo", "api token", scopes[0]), None, log)
    seen = Guarded(running(), who)
    seen.library.ingestions.pause("1")
    scopes[0] = frozenset()
    with pytest.raises(RagError):
        seen.library.ingestions.pause("2")
    with pytest.raises(RagError):
        require(who, "read")
