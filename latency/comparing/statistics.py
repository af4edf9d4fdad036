"""Is B faster than A, or is it noise: bootstrap intervals of a difference of medians or p95, and a verdict. Pure, seeded.

Knows nothing of queries: values are seconds (or anything else) of runs. A difference is always B minus A.

Which interval, and why:

- **Percentile bootstrap, not BCa.** BCa's acceleration comes from the jackknife, and the jackknife is inconsistent for the
  median and other quantiles (Efron & Tibshirani 1993, An Introduction to the Bootstrap, sections 11.6 and 14.3); the percentile
  bootstrap is sound for medians (Wilcox 2017, Introduction to Robust Estimation, sections 4.6 and 5.4).
- **Expanded tails.** With few runs percentile intervals are too short; their tail is taken at
  Phi(-sqrt(n/(n-1)) t(1-alpha/2, n-1)) (Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 3.3).
- **No resample is ever drawn.** The k-th smallest of n draws from a sample is the sample's value at a place that is
  Beta(k, n-k+1) distributed (David & Nagaraja 2003, Order Statistics, section 2.3), so 20,000 resamples of a quantile cost
  20,000 draws, however many runs there are.
- **Runs that follow one another are not independent** where a machine drifts. Sets that lie one after the other in time count
  as n / (1 + 2 sum of autocorrelations) runs (Thiebaux & Zwiers 1984; the sum ends at the first negative one, after Geyer
  1992), with rank autocorrelations, so that a few outliers do not hide the drift. Interleaved runs (A B A B) are compared in
  pairs instead: what both runs of a pair met falls out of their difference. A step of the machine's speed just between two sets
  is a difference of the sets; no formula tells it from one of the settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Word = Literal["faster", "slower", "no difference", "too few"]

CONFIDENCE = 0.99
RESAMPLES = 20_000
MINIMUM_SHARE = 0.05  # an effect below this share of the slower side is nobody's reason to change anything
MINIMUM_SHARE_APART = 0.10  # and this, where the sides were not measured in turn: a drift of the machine looks the same
ONE_SIDED = 1.645  # standard errors: 5 % of what is independent looks more alike
_NORMAL = NormalDist()


class Interval(NamedTuple):
    """Where the true difference lies with `confidence`, from `n_a` and `n_b` runs that count as `effective_n` a side."""

    difference: float
    low: float
    high: float
    confidence: float
    n_a: int
    n_b: int
    effective_n: float
    statistic: str

    @property
    def reversed(self) -> Interval:
        """The same with A and B changed over."""
        return self._replace(difference=-self.difference, low=-self.high, high=-self.low, n_a=self.n_b, n_b=self.n_a)


class Verdict(NamedTuple):
    """`word` says what B is compared with A; `reason` why, as a clause without numbers of its own unit."""

    word: Word
    difference: float
    interval: Interval | None
    minimum_effect: float
    reason: str

    @property
    def called(self) -> bool:
        return self.word in ("faster", "slower")

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "interval": self.interval._asdict() if self.interval else None}


def fewest(quantile: float = 0.5, confidence: float = CONFIDENCE) -> int:
    """How many runs a side are needed before any interval of that quantile can have the confidence: the least n for which
    smallest and largest value enclose the quantile from both sides, q^n <= alpha/2 and (1-q)^n <= alpha/2 (David & Nagaraja,
    section 7.1). 8 for the median, 104 for p95 at 99 %."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(quantile, 1 - quantile)))


def difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    quantile: float = 0.5,
    confidence: float = CONFIDENCE,
    in_order: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Interval of quantile(b) - quantile(a) for two sets of runs; None when there are too few.

    `in_order`: the values stand in the order in which they were measured, and what is alike about neighbours counts.
    The same values give the same interval, and changing A and B over reverses it.
    """
    if sorted(b) < sorted(a):
        turned = difference(b, a, quantile=quantile, confidence=confidence, in_order=in_order, resamples=resamples, seed=seed)
        return turned.reversed if turned else None
    first, second = np.asarray(a, float), np.asarray(b, float)
    size = effective_size(first, second) if in_order else float(min(len(a), len(b)))
    if size < fewest(quantile, confidence):
        return None
    each = [len(side) * size / min(len(a), len(b)) for side in (first, second)]
    random = np.random.default_rng(seed)
    found = [_quantiles(side, quantile, size, resamples, random) for side, size in zip((first, second), each, strict=True)]
    low, high = _ends(found[1] - found[0], size, confidence)
    value = float(np.quantile(second, quantile) - np.quantile(first, quantile))
    return Interval(value, low, high, confidence, len(a), len(b), size, f"difference of {_name(quantile)}s")


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    in_order: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Interval of the median of b[i] - a[i], for runs made in turn (A B A B) or of the same questions; None for too few.

    Raises ValueError when the sides differ in length.
    """
    gaps = np.asarray(b, float) - np.asarray(a, float)
    n = len(gaps)
    size = effective_size(gaps, ignore=ONE_SIDED) if in_order else float(n)
    if size < fewest(0.5, confidence):
        return None
    if (np.median(gaps), gaps.sum()) < (0.0, 0.0):
        turned = paired_difference(b, a, confidence=confidence, in_order=in_order, resamples=resamples, seed=seed)
        return turned.reversed if turned else None
    found = _quantiles(gaps, 0.5, size, resamples, np.random.default_rng(seed))
    low, high = _ends(found, size, confidence)
    return Interval(float(np.median(gaps)), low, high, confidence, n, n, size, "median of the pairs' differences")


def verdict(difference: float, interval: Interval | None, minimum_effect: float) -> Verdict:
    """A difference is called when its interval excludes none at all *and* it is large enough to matter."""

    def said(word: Word, reason: str) -> Verdict:
        return Verdict(word, difference, interval, minimum_effect, reason)

    if interval is None:
        return said("too few", "there are too few independent runs for an interval")
    confidence = f"the {interval.confidence:.0%} interval"
    if interval.low <= 0.0 <= interval.high:
        beyond = max(-interval.low, interval.high) > minimum_effect
        hidden = ", but it is wide: a difference that matters may hide in it" if beyond else ""
        return said("no difference", f"{confidence} includes none{hidden}")
    if abs(difference) < minimum_effect:
        return said("no difference", f"{confidence} excludes none, but the difference is too small to matter")
    return said("slower" if difference > 0 else "faster", f"{confidence} excludes none")


def effective_size(*series: Values, ignore: float = 0.0) -> float:
    """As how many independent runs the shortest series counts, its values in the order of time; never more than it has.

    The autocorrelation is that of all the series together, up to the first lag at which it is not above `ignore` standard
    errors of none (1/sqrt(n)): where drift is not expected, chance must not cost runs.
    """
    sides = [_midranks(side) for side in series]
    shortest = min(len(side) for side in sides)
    spread = sum(float(side @ side) for side in sides)
    if spread == 0.0 or shortest < 4:
        return float(shortest)
    lags = shortest // 2
    correlation = np.sum([_products(side, lags) for side in sides], axis=0) / spread
    ends = np.flatnonzero(correlation <= ignore / math.sqrt(sum(len(side) for side in sides)))
    together = float(correlation[: ends[0] if len(ends) else lags].sum())
    return shortest / (1 + 2 * together)


def _products(values: Values, lags: int) -> Values:
    """sum of v[i] v[i+k] for k = 1 … lags, by FFT."""
    spectrum = np.fft.rfft(values, 2 * len(values))
    result: Values = np.fft.irfft(spectrum * np.conj(spectrum))[1 : lags + 1]
    return result


def _midranks(values: Values) -> Values:
    """Ranks around 0; equal values share theirs, else a constant would look like a trend."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Values = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return ranks - (len(values) - 1) / 2


def _quantiles(values: Values, quantile: float, size: float, resamples: int, random: np.random.Generator) -> Values:
    """That quantile of `resamples` resamples of `size` values each, interpolated as numpy does by default."""
    ordered: Values = np.sort(values)
    place = (size - 1) * quantile
    k, part = math.floor(place) + 1, place - math.floor(place)
    at = random.beta(k, size - k + 1, resamples)
    lower = ordered[np.minimum((at * len(ordered)).astype(int), len(ordered) - 1)]
    if part < 1e-12:
        return np.asarray(lower)
    after = at + (1 - at) * random.beta(1, size - k, resamples)  # the next larger of the same resample
    upper = ordered[np.minimum((after * len(ordered)).astype(int), len(ordered) - 1)]
    mixed: Values = lower * (1 - part) + upper * part
    return mixed


def _ends(found: Values, n: float, confidence: float) -> tuple[float, float]:
    tail = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * student(1 - (1 - confidence) / 2, n - 1))
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def student(probability: float, freedom: float) -> float:
    """Quantile of Student's t by Cornish and Fisher's expansion (Abramowitz & Stegun 26.7.5): to 0.5 % from 7 degrees on."""
    z = _NORMAL.inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def _name(quantile: float) -> str:
    return "median" if quantile == 0.5 else f"p{quantile * 100:g}"
