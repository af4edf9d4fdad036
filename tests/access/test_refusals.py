"""How often one caller's refusals are written: bounded, and what is not written is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from access import audit
from access.operations import Viewer, require
from access.refusals import IDENTITIES, NOT_WRITTEN, OF_ALL_KINDS, OF_ONE_KIND, WINDOW_SECONDS, Refusals
from access.scopes import Identity
from collectors.audit import AuditLog
from rag.errors import RagError


class Time:
    """A clock, and what is to be called later."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._due.append((self.now + seconds, call))

    def go(self, seconds: float) -> None:
        self.now += seconds
        due = [call for at, call in self._due if at <= self.now]
        self._due = [(at, call) for at, call in self._due if at > self.now]
        for call in due:
            call()


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.log")


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def refusals(time: Time) -> Refusals:
    return Refusals(time, time.later)


def reader(name: str = "eve") -> Identity:
    return Identity(name, "oidc", frozenset({"read"}))


def written(log: AuditLog) -> list[tuple[str | None, str, str]]:
    """(who, what, text), the oldest first."""
    return [(each.who, each.what, each.text) for each in reversed(log.read(limit=100_000))]


def test_the_first_are_written_and_then_one_line_counts_the_others(log: AuditLog, time: Time, refusals: Refusals) -> None:
    for _ in range(100):
        audit.refused(log, reader(), "10.0.0.9", "reload a model", "lacks 'operate'", refusals=refusals)
    assert written(log) == [("eve", "reload a model", "lacks 'operate'")] * OF_ONE_KIND
    time.go(WINDOW_SECONDS + 1)  # nobody asks any more: the count comes all the same
    count = ("eve", NOT_WRITTEN, f"{100 - OF_ONE_KIND} more within 60 s: reload a model ({100 - OF_ONE_KIND})")
    assert written(log)[OF_ONE_KIND:] == [count]
    assert log.read()[0].outcome == "refused" and log.read()[0].address == "10.0.0.9"
    time.go(WINDOW_SECONDS * 10)
    assert len(written(log)) == OF_ONE_KIND + 1
    audit.refused(log, reader(), None, "reload a model", "why", refusals=refusals)
    assert written(log)[-1] == ("eve", "reload a model", "why")


def test_asking_for_many_things_is_bounded_too(log: AuditLog, time: Time, refusals: Refusals) -> None:
    for number in range(300):
        audit.refused(log, reader(), None, f"thing {number % 60}", "why", f"target {number}", refusals=refusals)
    assert len(written(log)) == OF_ALL_KINDS
    time.go(WINDOW_SECONDS + 1)
    assert len(written(log)) == OF_ALL_KINDS + 1 and written(log)[-1][2].startswith(f"{300 - OF_ALL_KINDS} more within 60 s: ")


def test_asking_on_and_on_fills_little(log: AuditLog, time: Time, refusals: Refusals) -> None:
    """A bound on lines: what six minutes write, however often it is asked."""
    for _ in range(6 * 4):
        for number in range(40):
            refusals.add(log, reader(), "10.0.0.9", f"thing {number}", "lacks 'operate'", "x" * 200)
        time.go(WINDOW_SECONDS / 4)
    assert len(log.path.read_bytes().splitlines()) <= 2 * 7 * (OF_ALL_KINDS + 1)


def test_who_asks_too_often_hides_nobody_else(log: AuditLog, refusals: Refusals) -> None:
    for _ in range(50):
        refusals.add(log, reader(), None, "reload a model", "why")
    refusals.add(log, reader("anna"), None, "reload a model", "why")
    refusals.add(log, Identity("eve", "proxy", frozenset()), None, "reload a model", "why")  # another one of that name
    refusals.add(log, reader(), None, "purge", "why")
    assert written(log)[OF_ONE_KIND:] == [
        ("anna", "reload a model", "why"),
        ("eve", "reload a model", "why"),
        ("eve", "purge", "why"),
    ]


def test_its_memory_is_bounded_and_no_count_is_lost(log: AuditLog, refusals: Refusals, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "_write", lambda action: lines.append(action.text))
    for _ in range(OF_ONE_KIND + 3):
        refusals.add(log, reader("first"), None, "purge", "why")
    for number in range(IDENTITIES + 5):
        refusals.add(log, reader(f"user {number}"), None, "purge", "why")
    assert len(refusals._windows) == IDENTITIES and "3 more within 60 s: purge (3)" in lines


def test_a_disk_that_is_full_refuses_all_the_same(log: AuditLog, time: Time, refusals: Refusals) -> None:
    log.path.mkdir()
    for _ in range(OF_ONE_KIND):
        with pytest.raises(OSError):
            refusals.add(log, reader(), None, "purge", "why")
    refusals.add(log, reader(), None, "purge", "why")
    time.go(WINDOW_SECONDS + 1)  # the count cannot be written either; that is logged, and nothing breaks


def test_pages_go_this_way(log: AuditLog) -> None:
    who = Viewer(reader, "10.0.0.9", log)
    for _ in range(OF_ONE_KIND * 3):
        with pytest.raises(RagError, match="may not do this"):
            require(who, "operate", "reload a model")
    assert len(written(log)) == OF_ONE_KIND


def test_a_refusal_says_what_was_wrong_with_the_address(log: AuditLog) -> None:
    who = Viewer(lambda: Identity("42", "oidc", frozenset(), hint="Set access.oidc.trust_email."), None, log)
    with pytest.raises(RagError) as caught:
        require(who, "operate", "purge")
    assert caught.value.next_step.endswith("Set access.oidc.trust_email.")
