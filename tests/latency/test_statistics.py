"""Intervals and verdicts: formulas against tables and brute force, A/A on recorded timings, power, what must not be called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from latency.comparing import statistics
from latency.comparing.statistics import difference, effective_size, fewest, paired_difference, student, verdict

RECORDED = json.loads((Path(__file__).parent / "data" / "recorded_totals.json").read_text())
TOTALS = np.array(RECORDED["total_us"]) / 1e6


def effect(a, b, share: float = statistics.MINIMUM_SHARE) -> float:
    return share * max(float(np.median(a)), float(np.median(b)))


def called_pairs(a, b) -> bool:
    interval = paired_difference(a, b)
    return verdict(float(np.median(np.subtract(b, a))), interval, effect(a, b)).called


def called_sets(a, b, in_order: bool = False) -> bool:
    interval = difference(a, b, in_order=in_order)
    share = statistics.MINIMUM_SHARE_APART
    return verdict(float(np.median(b) - np.median(a)), interval, effect(a, b, share)).called


def windows(count: int, length: int, seed: int):
    """Pieces of the recording that begin with a pair."""
    random = np.random.default_rng(seed)
    starts = random.integers(0, (len(TOTALS) - length) // 2, count) * 2
    return [TOTALS[start : start + length] for start in starts]


def test_the_recording_is_as_bad_as_machines_are() -> None:
    medians = [float(np.median(TOTALS[at : at + 100])) for at in range(0, len(TOTALS) - 100, 100)]
    assert max(medians) > 2 * min(medians)  # it drifts
    assert np.quantile(TOTALS, 0.99) > 3 * np.median(TOTALS)  # it has outliers
    assert TOTALS.mean() > 1.1 * np.median(TOTALS)  # it is skewed


@pytest.mark.parametrize("n", [15, 30, 60])
def test_runs_in_turn_of_the_same_thing_are_no_difference(n: int) -> None:
    calls = sum(called_pairs(piece[0::2], piece[1::2]) for piece in windows(200, 2 * n, seed=n))
    assert calls <= 4


@pytest.mark.parametrize("n", [15, 30, 60])
def test_sets_of_the_same_runs_are_no_difference(n: int) -> None:
    random = np.random.default_rng(n)
    pieces = [random.permutation(piece) for piece in windows(200, 2 * n, seed=100 + n)]
    assert sum(called_sets(piece[:n], piece[n:]) for piece in pieces) <= 4


def noisy(random: np.random.Generator, n: int) -> np.ndarray:
    """2n totals of a machine that drifts by 10 %, with a skewed noise of 10 % and every thirtieth query four times as long."""
    noise = np.exp(random.normal(0, 0.08, 2 * n) + random.gamma(2, 0.04, 2 * n) + np.linspace(0, 0.1, 2 * n))
    return 9.0 * np.where(random.random(2 * n) < 1 / 30, 4.0, 1.0) * noise


def test_a_fifth_more_is_found_in_nine_of_ten_with_thirty_runs() -> None:
    random = np.random.default_rng(5)
    found = missed = 0
    for _ in range(200):
        runs = noisy(random, 30)
        a, b = runs[0::2], runs[1::2]
        found += called_pairs(a, b * 1.2)
        missed += called_pairs(a, b)
    assert found >= 180 and missed <= 4


def test_the_noisier_the_machine_the_more_runs_a_fifth_takes() -> None:
    power = []
    for n in (30, 240):
        pieces = windows(40, 2 * n, seed=9)
        power.append(sum(called_pairs(piece[0::2], piece[1::2] * 1.2) for piece in pieces) / 40)
    assert power[1] >= 0.9 > power[0]


def test_the_direction_and_the_size_are_right() -> None:
    random = np.random.default_rng(2)
    a = random.normal(10, 0.5, 40)
    b = random.normal(7, 0.5, 50)
    interval = difference(a, b)
    assert interval is not None and interval.low < -3 < interval.high < 0
    assert (interval.n_a, interval.n_b, interval.confidence) == (40, 50, 0.99)
    assert verdict(interval.difference, interval, 0.5).word == "faster"
    assert verdict(-interval.difference, interval.reversed, 0.5).word == "slower"


def test_changing_the_sides_over_reverses_the_interval_exactly() -> None:
    random = np.random.default_rng(3)
    a, b = random.gamma(3, 1, 30), random.gamma(3, 1.1, 30)
    for interval in (difference, paired_difference):
        one, other = interval(a, b), interval(b, a)
        assert one is not None and other is not None and one == other.reversed
    assert difference(a, b) == difference(a, b)


@pytest.mark.parametrize(("quantile", "n"), [(0.5, 21), (0.5, 20), (0.95, 130)])
def test_resampling_by_order_statistics_is_the_bootstrap(quantile: float, n: int) -> None:
    random = np.random.default_rng(4)
    a, b = random.gamma(2, 1, n), random.gamma(2, 1.3, n)
    interval = difference(a, b, quantile=quantile)
    draws = [np.quantile(random.choice(side, (8000, n)), quantile, axis=1) for side in (a, b)]
    low, high = statistics._ends(draws[1] - draws[0], n, 0.99)
    assert interval is not None
    width = high - low
    assert interval.low == pytest.approx(low, abs=0.12 * width) and interval.high == pytest.approx(high, abs=0.12 * width)


def test_the_interval_covers_the_truth() -> None:
    """Of a skewed distribution, with few runs: not less often than it says (of 400, at 99 %, 8 misses are one in 300)."""
    random = np.random.default_rng(6)
    missed = 0
    for _ in range(400):
        found = difference(random.gamma(2, 1, 12), random.gamma(2, 1, 12) + 0.5, resamples=4000)
        assert found is not None
        missed += not found.low <= 0.5 <= found.high
    assert missed <= 8


def test_too_few_runs_have_no_interval() -> None:
    assert (fewest(), fewest(0.95), fewest(0.5, 0.95)) == (8, 104, 6)
    seven = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert difference(seven, seven) is None and paired_difference(seven, seven) is None
    assert difference([*seven, 8.0], [*seven, 8.0]) is not None
    assert difference(TOTALS[:103], TOTALS[:200], quantile=0.95) is None
    said = verdict(-5.0, None, 0.1)
    assert said.word == "too few" and not said.called


def test_pairs_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError):
        paired_difference([1.0] * 10, [1.0] * 11)


def test_a_difference_that_matters_to_nobody_is_not_called() -> None:
    a = [10.0 + 0.001 * n for n in range(40)]
    interval = difference(a, [value + 0.1 for value in a])
    assert interval is not None and interval.low > 0
    said = verdict(interval.difference, interval, 0.5)
    assert said.word == "no difference" and "too small" in said.reason


def test_a_wide_interval_is_not_sold_as_proof_that_nothing_changed() -> None:
    wide = statistics.Interval(0.5, -2.0, 3.0, 0.99, 10, 10, 10.0, "")
    narrow = wide._replace(low=-0.1, high=0.1)
    assert "may hide" in verdict(0.5, wide, 0.5).reason
    assert "may hide" not in verdict(0.0, narrow, 0.5).reason


def test_runs_that_follow_one_another_count_less() -> None:
    random = np.random.default_rng(7)
    noise = random.normal(0, 1, 400)
    drift = np.cumsum(noise)
    assert effective_size(noise) > 250
    assert effective_size(drift) < 40
    assert effective_size(np.full(50, 3.0)) == 50.0  # what never changes is no trend
    apart = difference(drift[:200], drift[200:], in_order=True)
    close = difference(drift[:200], drift[200:])
    assert close is not None and (apart is None or apart.high - apart.low > close.high - close.low)


def test_drift_between_sets_is_called_less_often_when_the_order_is_known() -> None:
    pieces = windows(100, 120, seed=8)
    calls = [sum(called_sets(piece[:60], piece[60:], in_order=order) for piece in pieces) for order in (False, True)]
    assert calls[1] < calls[0] / 2


def test_constant_runs_make_a_point() -> None:
    found = paired_difference([2.0] * 10, [2.0] * 10)
    assert found is not None and (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert verdict(0.0, found, 0.01).word == "no difference"


def test_student_agrees_with_the_table() -> None:
    for freedom, value in ((7, 3.499), (9, 3.250), (29, 2.756), (1000, 2.581)):
        assert student(0.995, freedom) == pytest.approx(value, rel=0.005)
