"""Percentiles against numbers worked out by hand, and the table against what the store holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.bench_latency import fill
from latency.percentiles import percentiles
from latency.percentiles.options import NOT_RUN, OPTIONS, UNKNOWN
from latency.percentiles.percentiles import DONE, EVERY, TOTAL, Selection, rank
from latency.percentiles.table import TAIL_SECONDS, StageTable, StageTables
from rag.errors import RagError
from rag.trace_store import TraceStore
from rag.types import STAGES, Answer, Interval, Options, Outcome, Split, Stage, Tokens

START = 1_795_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    opened = TraceStore(tmp_path / "traces.db")
    yield opened
    opened.close(5.0)


def answer(
    number: int,
    seconds: Mapping[str, float],
    *,
    at: float | None = None,
    cold: tuple[str, ...] = (),
    skipped: tuple[str, ...] = (),
    device: str = "cpu",
    outcome: Outcome = "answered",
    **more: Any,
) -> Answer:
    """A query whose total is the sum of its stages."""
    stages = [
        Stage(name, spent, 1, name in cold, device=device, model=f"{name}-model", where="in-process", split=Split(compute=spent))
        for name, spent in seconds.items()
    ]
    stages += [Stage(name, skipped="not wanted") for name in skipped]
    when = START + 60 * number if at is None else at
    answered = Answer(
        id=f"{number:032x}",
        question=f"question {number}",
        started_at=datetime.fromtimestamp(when, UTC).isoformat(),
        outcome=outcome,
        stages=tuple(stages),
        total_seconds=sum(seconds.values()),
    )
    return replace(answered, **more)


def table_of(store: TraceStore, *answers: Answer) -> StageTable:
    for each in answers:
        store.save(each)
    assert store.flush()
    return StageTables(store.path).at(store.revision)


def everything(table: StageTable) -> Any:
    return np.arange(len(table))


# Percentiles by hand


@pytest.mark.parametrize(
    ("percent", "n", "index"),
    [
        *[(50, 1, 0), (99, 1, 0), (50, 2, 0), (50, 3, 1), (50, 4, 1), (90, 10, 8), (95, 10, 9), (95, 20, 18), (95, 21, 19)],
        *[(99, 100, 98), (99, 101, 99), (7, 100, 6), (95, 100_000, 94_999)],
    ],
)
def test_nearest_rank_by_hand(percent: int, n: int, index: int) -> None:
    assert rank(percent, n) == index


def test_percentiles_of_twenty_queries_by_hand(store: TraceStore) -> None:
    # 1 s to 20 s, stored out of order: p50 is the 10th, p90 the 18th, p95 the 19th, p99 and the longest the 20th
    table = table_of(
        store, *(answer(n, {"generate": float(seconds)}) for n, seconds in enumerate([*range(11, 21), *range(1, 11)]))
    )
    told = percentiles.summary(*percentiles.timed(table, everything(table), "generate"))
    assert told is not None
    assert told[:8] == (20, 10.0, 18.0, 19.0, 20.0, 20.0, 10.5, 210.0)
    assert [table.seconds[row, STAGES.index("generate")] for row in told.rows] == [10.0, 18.0, 19.0, 20.0, 20.0]
    assert table.ids[told.rows[2]] == f"{8:032x}"  # the query that took 19 s: each percentile is one that exists


def test_one_query_is_every_percentile_and_none_is_no_summary(store: TraceStore) -> None:
    table = table_of(store, answer(0, {"search": 0.25}))
    told = percentiles.summary(*percentiles.timed(table, everything(table), "search"))
    assert told is not None and told[1:7] == (0.25,) * 6
    assert percentiles.summary(*percentiles.timed(table, everything(table), "rerank")) is None


def test_percentiles_agree_with_an_independent_count_on_many_values(store: TraceStore) -> None:
    values = np.random.default_rng(3).lognormal(0, 1, 997)
    told = percentiles.summary(values, np.arange(997))
    assert told is not None
    for percent, found in zip(percentiles.PERCENTS, told[1:5], strict=True):
        at_or_below = (values <= found).mean() * 100
        below = (values < found).mean() * 100
        assert below < percent <= at_or_below


# By stage


def test_shares_and_cold_and_warm_apart(store: TraceStore) -> None:
    table = table_of(
        store,
        answer(0, {"embed": 9.0, "generate": 1.0}, cold=("embed",)),
        answer(1, {"embed": 0.5, "generate": 4.5}),
        answer(2, {"embed": 0.5, "generate": 4.5}, skipped=("hyde",)),
    )
    lines = {line.stage: line for line in percentiles.by_stage(table, everything(table))}
    embed, total = lines["embed"], lines[TOTAL]
    assert embed.all and embed.warm and embed.cold and total.all and total.cold and total.warm
    assert (embed.all.n, embed.warm.n, embed.cold.n) == (3, 2, 1)
    assert (embed.warm.longest, embed.cold.p50) == (0.5, 9.0)
    assert (total.cold.n, total.warm.n) == (1, 2)
    assert embed.share == pytest.approx(0.5) and lines["generate"].share == pytest.approx(0.5)
    assert lines["generate"].parts["compute"] == pytest.approx(10 / 3)
    assert lines["hyde"].all is None, "a skipped stage has no time, not 0"
    assert percentiles.leading(tuple(lines.values())) in (embed, lines["generate"])


# Who is counted


def test_measured_runs_are_left_out_and_counted(store: TraceStore) -> None:
    answers = [answer(n, {"search": 1.0}) for n in range(6)]
    answers += [answer(n, {"search": 50.0}, origin="measure") for n in range(6, 9)]
    answers += [answer(9, {"search": 2.0}, origin="otlp:shop"), answer(10, {"search": 3.0}, outcome="failed")]
    table = table_of(store, *answers)
    usual = percentiles.choose(table, Selection())
    assert (len(usual.rows), usual.within, usual.measured, usual.other_outcome) == (7, 11, 3, 1)
    assert 50.0 not in table.total[usual.rows]
    both = percentiles.choose(table, Selection(origin=EVERY, outcome=EVERY))
    assert (len(both.rows), both.measured) == (11, 0)
    shop = percentiles.choose(table, Selection(origin="otlp:shop"))
    assert [table.total[row] for row in shop.rows] == [2.0] and (shop.measured, shop.other_origin) == (3, 7)
    assert len(percentiles.choose(table, Selection(origin="nobody")).rows) == 0
    assert len(percentiles.choose(table, Selection(outcome="failed")).rows) == 1


def test_a_time_is_from_inclusive_to_exclusive(store: TraceStore) -> None:
    table = table_of(store, *(answer(n, {"search": 1.0}) for n in range(5)))
    chosen = percentiles.choose(table, Selection(since=START + 60, until=START + 180, outcome=DONE))
    assert list(table.started[chosen.rows]) == [START + 60, START + 120]


def test_groups_and_filters_by_every_option(store: TraceStore) -> None:
    table = table_of(
        store,
        answer(0, {"rerank": 4.0, "hyde": 1.0}, device="cpu", options=Options(candidates=20)),
        answer(1, {"rerank": 1.0}, device="cuda:0", skipped=("hyde",)),
        answer(2, {"rerank": 2.0}, device="cuda:0", options=Options(hyde="off"), fingerprint={"settings": "s2"}),
        answer(3, {"search": 1.0}),
    )
    rows = everything(table)

    def values(option: str) -> dict[str, int]:
        return {group.value: group.queries for group in percentiles.groups(table, rows, option)}

    assert values("rerank_device") == {"cuda:0": 2, "cpu": 1, NOT_RUN: 1}
    assert values("hyde") == {"skipped": 2, "ran": 1, "off": 1}
    assert values("candidates") == {"40": 3, "20": 1}
    assert values("settings") == {UNKNOWN: 3, "s2": 1}
    for option in OPTIONS:
        found = percentiles.groups(table, rows, option)
        assert sum(group.queries for group in found) == 4, option
        for group in found:  # what a row of the comparison links to is what it counted
            chosen = percentiles.choose(table, Selection(option=option, value=group.value))
            assert len(chosen.rows) == group.queries and chosen.other_value == 4 - group.queries
    by_device = {group.value: group.summary for group in percentiles.groups(table, rows, "rerank_device", "rerank")}
    assert by_device[NOT_RUN] is None and by_device["cuda:0"] is not None and by_device["cuda:0"].p95 == 2.0


# In time


def test_trend_buckets_and_what_changed(store: TraceStore) -> None:
    def made(n: int, device: str, settings: str) -> Answer:
        return answer(n, {"rerank": 4.0 if device == "cpu" else 1.0}, device=device, fingerprint={"settings": settings})

    table = table_of(store, *(made(n, "cpu" if n < 30 else "cuda:0", "a" if n < 45 else "b") for n in range(90)))
    found = percentiles.trend(table, everything(table), "rerank", length=3600.0)
    assert found.step == 60.0 and len(found.buckets) == 90 and all(bucket.n == 1 for bucket in found.buckets)
    wide = percentiles.trend(table, everything(table), "rerank", length=90_000.0)
    assert wide.step == 1800.0 and sum(bucket.n for bucket in wide.buckets) == 90
    assert wide.buckets[0].p50 == 4.0 and wide.buckets[-1].p95 == 1.0
    assert all(bucket.start % 1800 == 0 for bucket in wide.buckets)
    assert [(each.option, each.before, each.after, each.at) for each in found.changes] == [
        ("rerank_device", "cpu", "cuda:0", START + 30 * 60),
        ("settings", "a", "b", START + 45 * 60),
    ]


def test_values_that_alternate_are_no_change(store: TraceStore) -> None:
    made = [answer(n, {"generate": 1.0}, fingerprint={"settings": "ab"[n % 3 == 0]}) for n in range(60)]
    table = table_of(store, *made)
    assert percentiles.changes(table, everything(table), 1800.0) == ()


def test_days_begin_at_the_readers_midnight(store: TraceStore) -> None:
    table = table_of(store, *(answer(n, {"search": 1.0}, at=START + n * 40_000) for n in range(8)))
    found = percentiles.trend(table, everything(table), length=70 * 86_400.0, offset=7200.0)
    assert found.step == 86_400 and all((bucket.start + 7200) % 86_400 == 0 for bucket in found.buckets)
    assert percentiles.trend(table, everything(table)[:0]).buckets == ()


# Distribution and outliers


def test_every_duration_is_in_the_bin_that_names_it(store: TraceStore) -> None:
    spent = [1e-7, 1e-4, 0.1, 0.1, 0.125, 1.0, 9.99, 10.0, 31.6]
    table = table_of(store, *(answer(n, {"search": each}, cold=("search",) if each > 5 else ()) for n, each in enumerate(spent)))
    rows = everything(table)
    bins = percentiles.distribution(table, rows, "search")
    assert sum(each.warm + each.cold for each in bins) == len(spent) and sum(each.cold for each in bins) == 3
    assert bins[0].least == 0.0
    for each in bins:
        inside = percentiles.between(table, rows, "search", "all", each.least, each.most)
        assert len(inside) == each.warm + each.cold
        assert all(each.least <= table.total[row] < each.most for row in inside)
    assert all(math.isclose(after.least, before.most) for before, after in zip(bins, bins[1:], strict=False))
    assert percentiles.distribution(table, rows, "rerank") == ()
    assert {each.warm for each in percentiles.distribution(table, rows, "search", "cold")} == {0}


def test_outliers_are_beyond_p99_and_slowest_come_first(store: TraceStore) -> None:
    table = table_of(store, *(answer(n, {"search": 1.0 + n / 1000, "generate": 1.0}) for n in range(200)))
    rows = everything(table)
    found = {each.column: each for each in percentiles.outliers(table, rows)}
    assert set(found) == {TOTAL, "search"}, "generate always takes the same: nothing of it is an outlier"
    assert found["search"].p99 == pytest.approx(1.197)
    assert [table.ids[row] for row in found["search"].rows] == [f"{n:032x}" for n in (199, 198)]
    assert [int(table.ids[row], 16) for row in percentiles.slowest(table, rows, n=3)] == [199, 198, 197]


# The table


def test_the_table_holds_what_was_stored(store: TraceStore) -> None:
    stage = Stage("rerank", 0.5, 1, True, device="cuda:1", model="m", where="http", split=Split(0.1, 0.05, 0.01, 0.3, 0.02, 0.02))
    made = answer(
        0,
        {"search": 1.0},
        ttft_seconds=0.2,
        tokens=Tokens(10, 42, 5.0),
        origin="api",
        stages=(stage, Stage("cache", 0.004, 1, hit=True), Stage("hyde", skipped="off")),
        timeline=(Interval("rerank", 0.0, 0.5, "rerank", stage.split, facts={"candidates": 30}),),
        fingerprint={"version": "1.2", "settings": "abc"},
    )
    table = table_of(store, made)
    rerank, hyde = STAGES.index("rerank"), STAGES.index("hyde")
    assert len(table) == 1 and table.total[0] == 1.0 and table.ttft[0] == 0.2 and table.tokens[0] == 42
    assert table.seconds[0, rerank] == 0.5 and np.isnan(table.seconds[0, hyde])
    assert table.stage_cold[0, rerank] and table.cold[0] and table.cache_hit[0] == 1
    split = [float(table.part(name)[0, rerank]) for name in ("load", "queue", "tokenize", "compute", "network", "other")]
    assert split == pytest.approx([0.1, 0.05, 0.01, 0.3, 0.02, 0.02])
    assert table.units[0, rerank] == 30 and table.candidates[0] == 40
    named = [table.names[codes[0, rerank]] for codes in (table.stage_device, table.stage_model, table.stage_place)]
    assert named == ["cuda:1", "m", "http"]
    texts = [table.names[codes[0]] for codes in (table.origin, table.version, table.settings, table.outcome, table.model)]
    assert texts == ["api", "1.2", "abc", "answered", None]
    with pytest.raises(ValueError, match="read-only"):
        table.total[0] = 2.0


def same(a: StageTable, b: StageTable) -> bool:
    numbers = ("started", "total", "seconds", "queue", "units", "cold", "stage_cold")
    texts = ("settings", "origin", "stage_device", "stage_model")

    def words(table: StageTable, name: str) -> list[str | None]:
        return [table.names[code] for code in getattr(table, name).ravel()]

    return (
        list(a.ids) == list(b.ids)
        and all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in numbers)
        and all(words(a, name) == words(b, name) for name in texts)
    )


def test_new_queries_are_added_without_reading_all_again(store: TraceStore) -> None:
    fill(store.path, 400, until_unix=START)
    tables = StageTables(store.path)
    first = tables.at(store.revision)
    assert len(first) == 400 and tables.at(store.revision) is first
    for n in range(3):
        store.save(answer(n, {"search": 1.0, "rerank": 0.2}, device=f"new-device-{n}"))
        store.flush()
        assert same(tables.at(store.revision), StageTables(store.path).at(store.revision))
    assert tables.full_reads == 1 and len(tables.at(store.revision)) == 403


def test_what_came_late_was_replaced_or_deleted_is_noticed(store: TraceStore) -> None:
    fill(store.path, 300, until_unix=START)
    tables = StageTables(store.path)
    tables.at(store.revision)

    def up_to_date() -> StageTable:
        store.flush()
        found = tables.at(store.revision)
        assert same(found, StageTables(store.path).at(store.revision))
        return found

    store.save(answer(1, {"search": 1.0}, at=START - 5 * 86_400))  # as production's traces come in: late
    assert len(up_to_date()) == 301
    store.save(answer(1, {"search": 1.5}, at=START - 5 * 86_400))  # the same, with spans that came later
    assert 1.5 in up_to_date().total
    store.save(answer(2, {"search": 2.5}, at=START - TAIL_SECONDS / 2))
    reads = tables.full_reads
    store.save(answer(2, {"search": 3.5}, at=START - TAIL_SECONDS / 2))  # in the newest part: no full read
    assert 3.5 in up_to_date().total
    gone = store.delete_before(START - 20 * 86_400)
    assert gone > 50 and len(up_to_date()) == 302 - gone and tables.full_reads == reads
    store.delete_before(START + 1)
    assert len(up_to_date()) == 0
    store.save(answer(3, {"search": 1.0}))
    assert len(up_to_date()) == 1


def test_only_the_time_asked_for_is_read_until_more_is(store: TraceStore) -> None:
    fill(store.path, 300, until_unix=START, days=30)
    tables = StageTables(store.path)
    week = tables.at(store.revision, START - 7 * 86_400)
    assert 60 < len(week) < 80 and week.started.min() >= START - 7 * 86_400
    assert tables.at(store.revision, START - 86_400) is week
    store.save(answer(0, {"search": 1.0}))
    store.flush()
    assert len(tables.at(store.revision, START - 7 * 86_400)) == len(week) + 1 and tables.full_reads == 1
    assert len(tables.at(store.revision)) == 301 and tables.full_reads == 2


def test_rows_of_the_list_come_in_the_order_asked_for(store: TraceStore) -> None:
    ids = fill(store.path, 20, until_unix=START)
    wanted = [ids[7], "gone", ids[3]]
    assert [row.id for row in StageTables(store.path).rows(wanted)] == [ids[7], ids[3]]


def test_a_file_that_is_no_database_is_an_error_that_names_it(tmp_path: Path) -> None:
    broken = tmp_path / "traces.db"
    broken.write_bytes(b"this is no database" * 400)
    with pytest.raises(RagError, match=r"traces\.db") as raised:
        StageTables(broken).at(1)
    assert raised.value.next_step
