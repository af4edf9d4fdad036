"""What-if against sums done by hand, and against queries that really were as the scenario says (made by the same generator)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latency.percentiles.percentiles import rank
from latency.percentiles.table import StageTable, StageTables
from latency.percentiles.what_if import Prediction, Scenario, check, predict
from rag.errors import RagError
from rag.trace_store import TraceStore
from rag.types import Answer, Split, Stage, Tokens

START = "2026-11-21T05:00:00+00:00"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    opened = TraceStore(tmp_path / "traces.db")
    yield opened
    opened.close(5.0)


def answer(
    number: int,
    *,
    hyde: float | None = None,
    search: float = 0.1,
    network: float | None = None,
    rerank: float | None = None,
    generate: float | None = None,
    ttft: float | None = None,
    tokens: int | None = None,
    hit: bool | None = None,
) -> Answer:
    spent = {"hyde": hyde, "search": search, "rerank": rerank, "generate": generate}
    stages = [
        Stage(name, each, 1, split=Split(network=network if name == "search" else None))
        for name, each in spent.items()
        if each is not None
    ]
    cache = () if hit is None else (Stage("cache", 0.0, 1, hit=hit),)
    total = sum(each for each in spent.values() if each is not None)
    return Answer(
        f"{number:032x}",
        "?",
        START,
        "answered",
        stages=(*cache, *stages),
        total_seconds=total,
        ttft_seconds=ttft,
        tokens=Tokens(completion=tokens),
    )


def table_of(store: TraceStore, *answers: Answer) -> StageTable:
    for each in answers:
        store.save(each)
    assert store.flush()
    return StageTables(store.path).at(store.revision)


def predicted(table: StageTable, scenario: Scenario) -> Prediction:
    found = predict(table, np.arange(len(table)), scenario)
    assert found is not None
    return found


def test_nothing_changed_predicts_what_was(store: TraceStore) -> None:
    table = table_of(store, *(answer(n, search=float(n + 1)) for n in range(20)))
    found = predicted(table, Scenario())
    assert (found.before_p50.value, found.before_p95.value, found.before_mean) == (10.0, 19.0, pytest.approx(10.5))
    assert (found.p50, found.p95, found.mean) == (found.before_p50, found.before_p95, found.before_mean)
    assert found.n == 20 and found.assumptions == ()
    assert predict(table, np.arange(0), Scenario()) is None


def test_hyde_skipped_always_and_half_of_the_time(store: TraceStore) -> None:
    table = table_of(store, answer(0, hyde=3.0, search=1.0), answer(1, hyde=3.0, search=2.0), answer(2, search=1.5))
    always = predicted(table, Scenario(hyde_skip_ratio=1.0))
    assert (always.p50.value, always.p95.value, always.mean) == (1.5, 2.0, pytest.approx(1.5))
    # the mixture: 1, 4 and 2, 5 with a sixth each, 1.5 with a third
    half = predicted(table, Scenario(hyde_skip_ratio=0.5))
    assert (half.p50.value, half.p95.value, half.mean) == (1.5, 5.0, pytest.approx(2.5))
    assert "50% of the 2 queries that ran it" in half.assumptions[0]


def test_hits_take_their_own_time_and_stored_hits_are_no_miss(store: TraceStore) -> None:
    table = table_of(store, *(answer(n, search=4.0, hit=False) for n in range(4)), answer(4, search=0.01, hit=True))
    found = predicted(table, Scenario(hit_ratio=0.6, hit_seconds=0.05))
    assert (found.p50.value, found.p95.value, found.mean) == (0.05, 4.0, pytest.approx(0.6 * 0.05 + 0.4 * 4.0))
    assert predicted(table, Scenario(hit_ratio=1.0)).p95.value == 0.05
    none = predicted(table, Scenario(hit_ratio=0.0))
    assert (none.p50.value, none.mean) == (4.0, pytest.approx(4.0)), "the stored hits would have been misses"
    only_hits = table_of(store, *(answer(n, hit=True) for n in range(5)))
    assert predicted(only_hits, Scenario(hit_ratio=0.2)).p50.value == 0.05


def test_reranker_store_and_generation(store: TraceStore) -> None:
    table = table_of(store, answer(0, search=1.0, network=0.8, rerank=3.0, generate=5.0, ttft=1.0, tokens=41))
    assert predicted(table, Scenario(rerank_seconds=0.2)).p50.value == pytest.approx(6.2)
    assert predicted(table, Scenario(rerank_scale=0.5)).p50.value == pytest.approx(7.5)
    assert predicted(table, Scenario(near_store=True)).p50.value == pytest.approx(8.2)
    # 40 tokens after the first at 20 tokens/s: 2 s in place of 4 s
    assert predicted(table, Scenario(tokens_per_second=20)).p50.value == pytest.approx(7.0)
    both = predicted(table, Scenario(rerank_seconds=0.0, near_store=True, tokens_per_second=20))
    assert both.p50.value == pytest.approx(3.2) and len(both.assumptions) == 3


def test_what_is_not_known_stays_and_is_counted(store: TraceStore) -> None:
    table = table_of(store, answer(0, search=1.0, network=0.8), answer(1, search=1.0), answer(2, search=1.0, generate=4.0))
    near = predicted(table, Scenario(near_store=True, tokens_per_second=50, rerank_seconds=0.1))
    assert near.mean == pytest.approx((0.2 + 1.0 + 5.0) / 3)
    assert "measured in 1 of 3 searches" in " ".join(near.assumptions)
    assert "known of 0 of 1 answers" in " ".join(near.assumptions) and "0 rerankings" in near.assumptions[0]


def test_the_interval_is_that_of_the_bootstrap(store: TraceStore) -> None:
    values = np.sort(np.random.default_rng(5).lognormal(1, 0.6, 150))
    table = table_of(store, *(answer(n, search=float(each)) for n, each in enumerate(values)))
    found = predicted(table, Scenario()).p95
    drawn = np.sort(np.random.default_rng(6).choice(values, (20_000, 150)), axis=1)[:, rank(95, 150)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    # both are stored values: at most one neighbour apart
    places = np.searchsorted(values, [found.low, low, found.high, high])
    assert abs(places[0] - places[1]) <= 1 and abs(places[2] - places[3]) <= 1
    assert found.low < found.value < found.high
    again = predicted(table, Scenario()).p95
    assert again == found, "seeded"


def test_a_prediction_is_checked_against_what_was_measured(store: TraceStore) -> None:
    rng = np.random.default_rng(8)
    base, slow = rng.lognormal(0, 0.3, 200), rng.lognormal(1, 0.2, 200)
    table = table_of(store, *(answer(n, search=float(base[n]), rerank=float(slow[n])) for n in range(200)))
    guess = predicted(table, Scenario(rerank_seconds=0.15))
    measured = rng.lognormal(0, 0.3, 60) + 0.15  # the same deployment with a reranker that takes 150 ms
    right = check(guess, list(measured))
    assert right.holds and right.n == 60 and right.p50_error_ratio == pytest.approx(0, abs=0.15)
    wrong = check(predicted(table, Scenario()), list(measured))
    assert not wrong.holds and wrong.p50_error_ratio is not None and wrong.p50_error_ratio > 1
    with pytest.raises(RagError, match="nothing measured"):
        check(guess, [])


@pytest.mark.parametrize(
    "bad",
    [
        {"hyde_skip_ratio": 1.5},
        {"hit_ratio": -0.1},
        {"hit_ratio": float("nan")},
        {"rerank_seconds": -1.0},
        {"rerank_scale": float("inf")},
        {"tokens_per_second": 0.0},
    ],
)
def test_a_scenario_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(RagError) as raised:
        Scenario(**bad)  # type: ignore[arg-type]
    assert next(iter(bad)) in raised.value.message and raised.value.next_step
