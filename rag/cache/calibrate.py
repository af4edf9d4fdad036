"""From labelled pairs of questions to an embedder's thresholds, and what they are worth on pairs that were not used for them.

Families (a question, its paraphrases and its near misses) go to one side whole, so that no wording is seen on both. Guards are
fixed; what is calibrated is from which cosine and which agreement on a pair that passes them is a hit. Of all thresholds that
keep the share of false hits within the bound, the strictest is taken that gives away at most RECALL_FOR_STRICTNESS of the
recall there is: a pair set is finite, and distance from what it holds is the only protection from what it does not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rag.cache.guards import Comparison, compare
from rag.cache.types import Thresholds
from rag.errors import RagError

PAIRS = Path(__file__).parents[2] / "samples" / "cache-pairs" / "pairs.jsonl"
HELD_OUT_RATIO = 0.5
RECALL_FOR_STRICTNESS = 0.01
CONFIDENCE = 0.95
DENSE_STEPS = tuple(step / 100 for step in range(50, 100))
AGREEMENT_STEPS = tuple(step / 100 for step in range(50, 101, 2))

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two questions: `same` may have one answer, `different` must not."""

    id: str
    family: str
    language: str
    label: Literal["same", "different"]
    kind: str
    a: str
    b: str


class Scored(NamedTuple):
    """A pair with what a look-up would know of it: the cosine, and the guards' comparison."""

    pair: Pair
    dense: float
    comparison: Comparison

    def hit(self, dense: float, agreement: float) -> bool:
        return self.comparison.refused is None and self.dense >= dense and self.comparison.agreement >= agreement


@dataclass(frozen=True, slots=True)
class Rates:
    """What a rule does to pairs. `false_hits_upper` and the precision's interval are Clopper-Pearson (1934), two-sided 95 %.

    `precision` None: nothing was hit. Precision depends on how many pairs of each label a set holds; the share of near misses
    that hit does not.
    """

    hits: int
    same: int
    false_hits: int
    different: int
    recall: float | None
    false_hit_ratio: float | None
    false_hits_upper: float | None
    precision: float | None
    precision_low: float | None
    precision_high: float | None


class Point(NamedTuple):
    """One cosine of a curve, and what it does to the held-out pairs."""

    dense: float
    rates: Rates


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds, and what they do to the pairs they were chosen on and to those held out."""

    thresholds: Thresholds
    bound: float
    chosen_on: Rates
    held_out: Rates
    by_language: Mapping[str, Rates]
    by_kind: Mapping[str, Rates]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Pairs of a JSON-lines file. Raises RagError that names file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise RagError(
            f"cannot read {path}: {problem}", kind="not_found", next_step="samples/cache-pairs/README.md says what it looks like."
        ) from None
    pairs = tuple(_pair(line, f"{path}:{number}", number) for number, line in enumerate(lines, 1) if line.strip())
    if not pairs:
        raise _bad(str(path), "no pairs")
    return pairs


def _pair(line: str, where: str, number: int) -> Pair:
    try:
        row = json.loads(line)
    except ValueError as problem:
        raise _bad(where, f"no JSON: {problem}") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) and row[key].strip() for key in ("a", "b", "label")):
        raise _bad(where, "expected an object with the texts a, b and label")
    if row["label"] not in ("same", "different"):
        raise _bad(where, f"label is {row['label']!r}; it is same or different")
    family = str(row.get("family") or row["a"])
    return Pair(
        str(row.get("id") or number), family, str(row.get("language") or "?"), row["label"], str(row.get("kind") or "?"),
        row["a"], row["b"],
    )  # fmt: skip


def _bad(where: str, message: str) -> RagError:
    return RagError(f"{where}: {message}", kind="bad_input", next_step="Correct the file (samples/cache-pairs/README.md).")


def held_out(family: str, ratio: float = HELD_OUT_RATIO) -> bool:
    """Which side a family is on: by a hash of its name, so that it stays there when others come."""
    return int.from_bytes(hashlib.sha256(family.encode()).digest()[:4], "big") / 2**32 < ratio


def score(pairs: Sequence[Pair], embed: Embed) -> list[Scored]:
    """Every pair compared; each distinct question is embedded once, as a query."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.a, pair.b)))
    rows = {text: index for index, text in enumerate(texts)}
    vectors = np.concatenate([embed(texts[start : start + 64]) for start in range(0, len(texts), 64)])
    return [Scored(pair, float(vectors[rows[pair.a]] @ vectors[rows[pair.b]]), compare(pair.a, pair.b)) for pair in pairs]


def calibrate(
    scored: Sequence[Scored], embedder: str, *, false_hits: float = 0.01, held_out_ratio: float = HELD_OUT_RATIO
) -> Calibration:
    """Choose thresholds on one side of the families, measure on the other. Raises RagError for too few pairs, or no solution.

    `false_hits` bounds the share of near misses that may hit, as observed on the chosen side.
    """
    chosen = [item for item in scored if not held_out(item.pair.family, held_out_ratio)]
    kept_back = [item for item in scored if held_out(item.pair.family, held_out_ratio)]
    if len({item.pair.label for item in chosen}) < 2 or not kept_back:
        raise _bad("the pair set", "too few families: both sides need pairs, the calibrated one of both labels")
    dense, agreement = _strictest(chosen, false_hits)
    on_chosen, on_held = rates(chosen, dense, agreement), rates(kept_back, dense, agreement)
    measured = {"pairs": len(scored), "bound": false_hits, "chosen_on": asdict(on_chosen), "held_out": asdict(on_held)}
    return Calibration(
        Thresholds(embedder, dense, agreement, measured=measured),
        false_hits,
        on_chosen,
        on_held,
        {name: rates(part, dense, agreement) for name, part in _parts(kept_back, "language")},
        {name: rates(part, dense, agreement) for name, part in _parts(kept_back, "kind")},
        tuple(_remarks(on_chosen, on_held, false_hits)),
    )


def _strictest(chosen: Sequence[Scored], bound: float) -> tuple[float, float]:
    open_to = [item for item in chosen if item.comparison.refused is None]
    likeness = np.array([(item.dense, item.comparison.agreement) for item in open_to]).reshape(-1, 2)
    is_same = np.array([item.pair.label == "same" for item in open_to], dtype=bool)
    different = sum(item.pair.label == "different" for item in chosen)
    found: dict[tuple[float, float], int] = {}
    for dense in DENSE_STEPS:
        for agreement in AGREEMENT_STEPS:
            hit = (likeness >= (dense, agreement)).all(axis=1)
            if (hit & ~is_same).sum() <= bound * different and (hit & is_same).any():
                found[dense, agreement] = int((hit & is_same).sum())
    if not found:
        raise RagError(
            f"no threshold keeps the false hits within {bound:.2%} and finds any paraphrase",
            kind="bad_input",
            next_step="Allow more false hits (--false-hits), or look at the pairs that the guards let through.",
        )
    same = sum(item.pair.label == "same" for item in chosen)
    enough = max(found.values()) - RECALL_FOR_STRICTNESS * same
    return max((key for key, hits in found.items() if hits >= enough), key=lambda key: (sum(key), key[0]))


def curve(scored: Sequence[Scored], agreement: float, steps: Sequence[float] = DENSE_STEPS[::2]) -> tuple[Point, ...]:
    """What the held-out side would see at other cosines, this agreement left as it is."""
    held = [item for item in scored if held_out(item.pair.family)]
    return tuple(Point(dense, rates(held, dense, agreement)) for dense in steps)


def rates(scored: Iterable[Scored], dense: float, agreement: float) -> Rates:
    """Guards and thresholds on pairs."""
    return rates_of([(item.pair, item.hit(dense, agreement)) for item in scored])


def rates_of(outcomes: Sequence[tuple[Pair, bool]]) -> Rates:
    """Any rule's outcomes, counted."""
    same = sum(pair.label == "same" for pair, _ in outcomes)
    hits = sum(hit for pair, hit in outcomes if pair.label == "same")
    false_hits = sum(hit for pair, hit in outcomes if pair.label == "different")
    different = len(outcomes) - same
    served = hits + false_hits
    low, high = interval(hits, served) if served else (None, None)
    return Rates(
        hits=hits,
        same=same,
        false_hits=false_hits,
        different=different,
        recall=hits / same if same else None,
        false_hit_ratio=false_hits / different if different else None,
        false_hits_upper=interval(false_hits, different)[1] if different else None,
        precision=hits / served if served else None,
        precision_low=low,
        precision_high=high,
    )


def _parts(scored: Sequence[Scored], field: str) -> list[tuple[str, list[Scored]]]:
    parts: dict[str, list[Scored]] = {}
    for item in scored:
        parts.setdefault(getattr(item.pair, field), []).append(item)
    return sorted(parts.items())


def _remarks(chosen: Rates, held: Rates, bound: float) -> Iterable[str]:
    if chosen.false_hits_upper is not None and chosen.false_hits_upper > bound:
        needed = math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(1 - bound)) if 0 < bound < 1 else None
        more = f"; {needed} near misses without one would show {bound:.2%}" if needed else ""
        yield (
            f"{chosen.false_hits} of {chosen.different} near misses hit where the thresholds were chosen: the true share may be "
            f"up to {chosen.false_hits_upper:.2%}{more}"
        )
    if held.false_hit_ratio is not None and held.false_hit_ratio > bound:
        yield f"{held.false_hits} of {held.different} held-out near misses hit: more than the bound of {bound:.2%}"


def interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper-Pearson interval of a share: the shares that a two-sided exact binomial test does not reject (1934)."""
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _solve(lambda share: 1 - _at_most(successes - 1, trials, share), tail)
    high = 1.0 if successes == trials else _solve(lambda share: -_at_most(successes, trials, share), -tail)
    return low, high


def _at_most(count: int, trials: int, share: float) -> float:
    """Chance of at most `count` successes."""
    if share <= 0 or share >= 1:
        return 1.0 if share <= 0 else float(count >= trials)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(share) + (trials - k) * math.log1p(-share)
        for k in range(count + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def _solve(rising: Callable[[float], float], target: float) -> float:
    """Where a rising function of 0..1 reaches the target."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2
