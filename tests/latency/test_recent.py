"""Stored queries as cases for findings: what comes along, in which order, and how much was looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.bench_traces import UNTIL_UNIX, Synthetic
from latency.percentiles import recent
from latency.readings.store import ReadingStore
from latency.types import Baseline, QueryReadings
from rag.errors import RagError
from rag.trace_rows import QueryFilter
from rag.trace_store import TraceStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    opened = TraceStore(tmp_path / "traces.db")
    yield opened
    opened.close(5.0)


def test_cases_have_spans_and_readings_and_passages_without_texts(store: TraceStore, tmp_path: Path) -> None:
    made = [Synthetic(5).one(number, UNTIL_UNIX - 60 * number) for number in range(4)]
    for answer, spans in made:
        store.save(answer, spans)
    store.flush()
    readings = ReadingStore(tmp_path / "readings.db")
    seen = QueryReadings(made[2][0].id, UNTIL_UNIX, 1.0, notes=("hello",))
    readings.save(seen)
    readings.flush()
    ids = [made[2][0].id, "gone", made[0][0].id]
    found = recent.cases(store, readings, ids)
    readings.close()
    assert [case.answer.id for case in found] == [ids[0], ids[2]]
    assert found[0].readings == seen and found[1].readings is None
    for case, (answer, spans) in zip(found, (made[2], made[0]), strict=True):
        assert case.answer.stages == answer.stages and case.answer.timeline == answer.timeline
        assert [span.span_id for span in case.spans] == [span.span_id for span in spans]
        assert [each.ranks for each in case.answer.passages] == [each.ranks for each in answer.passages]
        assert not any(each.text for each in case.answer.passages)


def test_the_slowest_are_looked_at_and_the_others_are_counted(store: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [answer for answer, _ in (Synthetic(6).one(number, UNTIL_UNIX - number) for number in range(7))]
    for answer in made:
        store.save(answer)
    store.flush()
    everything = recent.findings(store, None, Baseline(), QueryFilter(measured=False))
    assert (everything.looked_at, everything.queries) == (7, 7)
    assert everything.seconds == pytest.approx(sum(answer.total_seconds for answer in made))
    monkeypatch.setattr(recent, "MOST", 3)
    some = recent.findings(store, None, Baseline(), QueryFilter(measured=False))
    assert (some.looked_at, some.queries) == (3, 7)
    assert some.seconds == pytest.approx(sum(sorted(answer.total_seconds for answer in made)[-3:]))
    assert recent.findings(store, None, Baseline(), QueryFilter(since=UNTIL_UNIX + 1)) == recent.Recent((), 0, 0, 0)


def test_a_broken_file_is_an_error_that_names_it(store: TraceStore) -> None:
    store.path.with_name("traces.db-wal").unlink()
    store.path.write_bytes(b"no database" * 1000)
    with pytest.raises(RagError, match=r"traces\.db"):
        recent.cases(store, None, ["a"])
