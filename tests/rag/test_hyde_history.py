"""What is learnt of HyDE from a real trace file: when it is skipped, when not, and that no query waits for it."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rag import hyde
from rag.hyde_history import ENOUGH_CASES, EXPLORE_ONE_IN, HydeHistory, Share, explores
from rag.trace_store import TraceStore
from rag.types import Answer, HydeEffect

START = 1_790_000_000
Ask = Callable[..., None]


@pytest.fixture
def traces(tmp_path: Path) -> Iterator[TraceStore]:
    store = TraceStore(tmp_path / "traces.db")
    yield store
    store.close(5.0)


@pytest.fixture
def ask(traces: TraceStore) -> Ask:
    """Store a question and whether HyDE changed its first passages (None: not known)."""
    asked = iter(range(1_000_000))

    def save(question: str, changed: bool | None, origin: str = "ask") -> None:
        number = next(asked)
        at = f"2026-11-21T05:{number // 60 % 60:02}:{number % 60:02}.{number // 3600:03}Z"
        effect = None if changed is None else HydeEffect(changed, 0.4 if changed else 1.0)
        traces.save(Answer(f"{number:032x}", question, at, "answered", hyde_effect=effect, origin=origin))

    return save


def history(traces: TraceStore, **options: object) -> HydeHistory:
    assert traces.flush()
    made = HydeHistory(traces.path, **options)  # type: ignore[arg-type]
    made.refresh()
    return made


def how(number: int) -> str:
    return f"How do I warm model {chr(97 + number % 26)}{chr(97 + number // 26 % 26)}{chr(97 + number // 676)}?"


def unexplored(make: Callable[[int], str] = how) -> str:
    return next(text for number in range(5000, 6000) if not explores(text := make(number)))


def explored(make: Callable[[int], str] = how) -> str:
    return next(text for number in range(5000, 6000) if explores(text := make(number)))


def why(number: int) -> str:
    return how(number).replace("How do I", "Why must I")


def test_an_empty_history_changes_nothing(tmp_path: Path) -> None:
    empty = HydeHistory(tmp_path / "none.db")
    empty.refresh()
    assert empty.decide(how(1)).run and empty.table() == () and empty.problem is None
    assert not (tmp_path / "none.db").exists()
    for mode in ("off", "on", "auto"):
        for has_model in (True, False):
            for question in (how(1), "what does article 72 say", "word " * 30):
                plain = hyde.skip_before_search(mode, question, has_model)
                assert hyde.skip_before_search(mode, question, has_model, empty) == plain
    for best in (None, 0.1, 0.7):
        assert hyde.skip_after_search(best, how(1), empty) == hyde.skip_after_search(best)


def test_it_learns_a_class_that_never_changes(traces: TraceStore, ask: Ask) -> None:
    for number in range(48):
        ask(how(number), number < 2)
    for number in range(40):
        ask(why(number), number % 2 == 0)
    learnt = history(traces)
    reason = "of 48 such questions (short, English, “how”) HyDE changed the first passages of 2 (95 % below 14 %)"
    assert learnt.decide(unexplored()).reason == reason
    assert not learnt.decide(unexplored()).run
    assert hyde.skip_before_search("auto", unexplored(), True, learnt) == reason
    assert hyde.skip_after_search(0.4, unexplored(), learnt) == reason
    kept = learnt.decide(unexplored(why))
    assert kept.run and kept.reason.startswith(
        "of 40 such questions (short, English, “why”) HyDE changed the first passages of 20"
    )


def test_rules_and_the_callers_wish_come_first(traces: TraceStore, ask: Ask) -> None:
    for number in range(60):
        ask(how(number), False)
    learnt = history(traces)
    assert hyde.skip_before_search("on", unexplored(), True, learnt) is None
    assert hyde.skip_before_search("off", unexplored(), True, learnt) == "switched off"
    assert hyde.skip_before_search("auto", unexplored(), False, learnt) == "no language model is configured"
    assert "close passage" in (hyde.skip_after_search(0.7, unexplored(), learnt) or "")


def test_too_few_questions_decide_nothing(traces: TraceStore, ask: Ask) -> None:
    for number in range(ENOUGH_CASES - 1):
        ask(how(number), False)
    learnt = history(traces)
    assert learnt.decide(unexplored()) == learnt.decide(unexplored())
    assert learnt.decide(unexplored()).run and "19 questions" in learnt.decide(unexplored()).reason


def test_some_questions_are_tried_all_the_same(traces: TraceStore, ask: Ask) -> None:
    for number in range(60):
        ask(how(number), False)
    learnt = history(traces)
    decision = learnt.decide(explored())
    assert decision.run and decision.explored and f"1 in {EXPLORE_ONE_IN}" in decision.reason
    assert learnt.decide(f"  {explored().upper()}  ").explored  # the same question, written otherwise
    tried = sum(learnt.decide(how(number)).explored for number in range(2000))
    assert 50 < tried < 160  # a hash: always the same count


def test_it_unlearns_when_the_tried_ones_change(traces: TraceStore, ask: Ask) -> None:
    for number in range(60):
        ask(how(number), False)
    learnt = history(traces, cases=60)
    assert not learnt.decide(unexplored()).run
    for number in range(100, 130):
        ask(how(number), True)
    traces.flush()
    learnt.refresh()
    assert learnt.decide(unexplored()).run


def test_a_wide_class_does_not_overrule_a_narrow_one_that_speaks_against(traces: TraceStore, ask: Ask) -> None:
    for number in range(150):
        ask(how(number), False)
    for number in range(5):
        ask(f"Is model {chr(97 + number)} warm?", True)
    learnt = history(traces)
    decision = learnt.decide("Is model z warm?")
    assert decision.run and decision.reason.startswith("of 5 such questions (short, English, yes or no)")
    assert not learnt.decide(unexplored()).run


def test_random_outcomes_do_not_flip_back_and_forth(traces: TraceStore, ask: Ask) -> None:
    """Of questions that HyDE changes as often as not, none is ever skipped; near the threshold a decision stays."""
    chance = random.Random(7)
    learnt = HydeHistory(traces.path)
    decisions = []
    for number in range(300):
        ask(how(number), chance.random() < 0.5)
        ask(why(number), chance.random() < 0.12)
        if number % 10 == 9:
            traces.flush()
            learnt.refresh()
            decisions.append((learnt.decide(unexplored()).run, learnt.decide(unexplored(why)).run))
    assert all(run for run, _ in decisions)
    flips = sum(one != other for (_, one), (_, other) in zip(decisions, decisions[1:], strict=False))
    assert flips <= 2 and decisions[-1][1] is False


def test_a_skipped_class_stays_skipped_a_little_above_the_threshold(traces: TraceStore, ask: Ask) -> None:
    for number in range(60):
        ask(how(number), number < 5)  # upper bound 18 %
    learnt = history(traces)
    assert not learnt.decide(unexplored()).run
    for number in range(60, 65):
        ask(how(number), number < 63)  # 8 of 65: upper bound 22 %
    traces.flush()
    learnt.refresh()
    assert not learnt.decide(unexplored()).run
    assert history(traces).decide(unexplored()).run  # one that starts there does not skip


def test_each_question_counts_once_and_only_those_of_people(traces: TraceStore, ask: Ask) -> None:
    for number in range(100):
        ask(how(0) if number % 2 else how(0).upper(), number < 99)  # the newest: not changed
        ask(how(number + 1), False, origin="measure")
        ask(how(number + 1), False, origin="otlp:other")
        ask(how(number + 1), None)
    rows = history(traces).table()
    assert rows[0].label == "all questions" and (rows[0].cases, rows[0].changed) == (1, 0)


def test_the_first_search_decides_where_it_is_stored(traces: TraceStore, ask: Ask) -> None:
    for number in range(120):
        ask(how(number), number % 2 == 0)
    traces.flush()
    with sqlite3.connect(traces.path) as db:
        if "hyde_dense" not in {row[1] for row in db.execute("PRAGMA table_info(queries)")}:
            db.execute("ALTER TABLE queries ADD COLUMN hyde_dense REAL")
        db.execute("UPDATE queries SET hyde_dense = CASE hyde_changed WHEN 1 THEN 0.35 ELSE 0.55 END")
    learnt = history(traces)
    assert learnt.knows_closeness
    assert hyde.skip_before_search("auto", unexplored(), True, learnt) is None  # better made after the search
    close = hyde.skip_after_search(0.58, unexplored(), learnt)
    assert close is not None and "first search 0.5 to 0.6" in close and "of 60" in close
    assert hyde.skip_after_search(0.31, unexplored(), learnt) is None


def test_a_query_never_waits_for_the_reading(traces: TraceStore, ask: Ask) -> None:
    for number in range(60):
        ask(how(number), False)
    traces.flush()
    now = [0.0]
    learnt = HydeHistory(traces.path, clock=lambda: now[0])
    assert learnt.decide(unexplored()).run  # nothing is read yet
    assert learnt.wait()
    assert not learnt.decide(unexplored()).run
    for number in range(100, 200):
        ask(how(number), True)
    traces.flush()
    now[0] = 59.0
    learnt.decide(how(1))
    assert learnt.wait() and learnt.table()[0].cases == 60
    now[0] = 61.0
    learnt.decide(how(1))
    assert learnt.wait() and learnt.table()[0].cases == 160


def test_many_threads_ask_while_it_is_read(traces: TraceStore, ask: Ask) -> None:
    for number in range(60):
        ask(how(number), False)
    learnt = history(traces, refresh_seconds=0.0)
    wrong: list[object] = []

    def work() -> None:
        for number in range(100):
            decision = learnt.decide(how(number))
            if decision.run != decision.explored:
                wrong.append(decision)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert learnt.wait() and wrong == []


def test_a_damaged_file_is_told_and_changes_nothing(traces: TraceStore, ask: Ask, tmp_path: Path) -> None:
    for number in range(60):
        ask(how(number), False)
    learnt = history(traces)
    traces.close()
    for part in tmp_path.glob("traces.db-*"):
        part.unlink()
    traces.path.write_bytes(b"no database" * 1000)
    learnt.refresh()
    assert learnt.problem is not None and "damaged" in learnt.problem
    assert not learnt.decide(unexplored()).run  # what was known stays
    other = tmp_path / "other.db"
    sqlite3.connect(other).close()
    of_other = HydeHistory(other)
    of_other.refresh()
    assert of_other.table() == () and of_other.problem is None


@pytest.mark.parametrize(
    ("share", "low", "high"),
    [(Share(48, 2), 0.0115, 0.1397), (Share(10, 5), 0.2366, 0.7634), (Share(20, 0), 0.0, 0.1611), (Share(20, 20), 0.8389, 1.0)],
)
def test_wilsons_interval(share: Share, low: float, high: float) -> None:
    assert share.interval == pytest.approx((low, high), abs=5e-4)


def test_no_cases_have_no_share() -> None:
    assert Share(0, 0).ratio is None and Share(0, 0).interval == (0.0, 1.0)
