"""Means with bootstrap intervals, and whether two runs differ on the same questions. Pure; equal values give equal answers.

Questions are the units that are drawn: a set is a sample of what people ask. Knows nothing of stages or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

CONFIDENCE = 0.95
FEWEST = 5  # questions; an interval of fewer would only look like knowledge
RESAMPLES = 4000
FLIPS = 10_000
EXACT = 13  # questions up to which all 2^n assignments of signs are tried
_BLOCK = 250


class Mean(NamedTuple):
    """A mean of `n` questions and where the mean of all such questions lies with 95 % confidence; None with too few."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Difference(NamedTuple):
    """Mean of b - a over the `n` questions both have, its 95 % interval, and the two-sided p value of the randomisation test."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    @property
    def called(self) -> bool:
        """Whether chance is an unlikely cause: the interval excludes none and p is below 0.05."""
        return (
            self.low is not None and self.high is not None and self.p is not None and self.p < 0.05 and self.low * self.high > 0
        )


def means(columns: Sequence[Sequence[float]], *, seed: int = 0) -> tuple[Mean, ...]:
    """The mean of each column with its percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3).

    All columns are values of the same questions, and every resample draws the same questions for all of them.
    """
    values = np.asarray(columns, dtype=np.float64)
    n = values.shape[1] if values.ndim == 2 else 0
    if n == 0:
        return ()
    found = values.mean(axis=1)
    if n < FEWEST:
        return tuple(Mean(float(each), None, None, n) for each in found)
    low, high = _interval(values, seed)
    return tuple(Mean(float(each), float(down), float(up), n) for each, down, up in zip(found, low, high, strict=True))


def _interval(values: Values, seed: int) -> tuple[Values, Values]:
    """2.5 % and 97.5 % of the resampled means of each row; drawn in blocks, so that large sets need little memory."""
    random = np.random.default_rng(seed)
    n = values.shape[1]
    even = np.full(n, 1.0 / n)
    drawn = [random.multinomial(n, even, size=_BLOCK) @ values.T / n for _ in range(RESAMPLES // _BLOCK)]
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1.0 - tail], axis=0)
    return low, high


def paired(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Difference:
    """How b differs from a on the same questions. Raises ValueError when their lengths differ or are 0."""
    if len(a) != len(b) or not a:
        raise ValueError(f"pairs are needed, not {len(a)} and {len(b)} values")
    gaps = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    if len(gaps) < FEWEST:
        return Difference(float(gaps.mean()), None, None, None, len(gaps))
    low, high = _interval(gaps[np.newaxis, :], seed)
    return Difference(float(gaps.mean()), float(low[0]), float(high[0]), randomisation_p(gaps, seed=seed), len(gaps))


def randomisation_p(gaps: Values, *, seed: int = 0) -> float:
    """Two-sided p of Fisher's randomisation test: how often random signs make a mean as far from 0 as the one found.

    Preferred for retrieval metrics by Smucker, Allan & Carterette (CIKM 2007). All assignments for up to 13 questions, else
    10,000 random ones, the found one counted among them, so that p is never 0.
    """
    n, wanted = len(gaps), abs(float(gaps.sum())) - 1e-12
    if n <= EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, np.newaxis] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ gaps) >= wanted))
    random = np.random.default_rng(seed)
    hits = 0
    for _ in range(FLIPS // _BLOCK):
        signs = 2.0 * random.integers(0, 2, size=(_BLOCK, n)) - 1.0
        hits += int(np.count_nonzero(np.abs(signs @ gaps) >= wanted))
    return (hits + 1) / (FLIPS + 1)


def median(values: Sequence[float]) -> float:
    """Nearest rank, as every percentile of the dashboard: a value that was measured."""
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) / 2) - 1]
