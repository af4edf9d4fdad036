"""How alike two queries' results are: kept passages, their order, and the answers' texts. Pure.

Knows nothing of whether they are right. Ranks count from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from latency.types import Case
from rag.types import Answer

PERSISTENCE = 0.9  # Webber and others' p: with it the first ten ranks carry 86 % of the weight
DRAWN_RANKS = 60


class Rank(NamedTuple):
    """A passage's place in A and in B, None where that side does not have it."""

    passage_id: str
    title: str
    source: str
    location: str | None
    a: int | None
    b: int | None
    a_kept: bool
    b_kept: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """Means over `compared` pairs of queries. `overlap` is the share of the passages kept by either that both kept, `rbo` how
    alike the kept lists are from the top, `tau` whether passages that both have stand in the same order (1 same, -1 reversed).
    `same_kept` and `same_answers` count pairs with the same passages in the same order, and with the same text, of
    `answers_compared`. `ranks` are of a single pair. None where it cannot be said."""

    compared: int
    overlap: float | None
    rbo: float | None
    tau: float | None
    same_kept: int
    answers_compared: int
    same_answers: int
    ranks: tuple[Rank, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ranks": [each._asdict() for each in self.ranks]}


def agreement(pairs: Sequence[tuple[Case, Case]]) -> Agreement | None:
    """Of queries that asked the same; None without any that came as far as the search."""
    both = [(a.answer, b.answer) for a, b in pairs if a.answer.passages and b.answer.passages]
    if not both:
        return None
    kept = [(kept_ids(a), kept_ids(b)) for a, b in both]
    texts = [(a.answer, b.answer) for a, b in both if a.answer and b.answer]
    return Agreement(
        compared=len(both),
        overlap=_mean([overlap(a, b) for a, b in kept]),
        rbo=_mean([rank_biased_overlap(a, b) for a, b in kept]),
        tau=_mean([kendall_tau(order(a), order(b)) for a, b in both]),
        same_kept=sum(a == b for a, b in kept),
        answers_compared=len(texts),
        same_answers=sum(a == b for a, b in texts),
        ranks=ranks(*both[0]) if len(pairs) == 1 else (),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def kept_ids(answer: Answer) -> list[str]:
    """What the language model saw, in its order."""
    return [passage.id for passage in answer.passages if passage.kept]


def order(answer: Answer) -> list[str]:
    """Every passage, best first: kept ones lead, the rest by the last route that ranked it."""

    def place(number: int) -> tuple[bool, int, int]:
        passage = answer.passages[number]
        last = passage.ranks.get("rerank") or passage.ranks.get("fused") or len(answer.passages)
        return not passage.kept, 0 if passage.kept else last, number

    return [answer.passages[number].id for number in sorted(range(len(answer.passages)), key=place)]


def overlap(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Jaccard's index: what both have over what either has; None when neither has anything."""
    either = set(a) | set(b)
    return len(set(a) & set(b)) / len(either) if either else None


def rank_biased_overlap(a: Sequence[str], b: Sequence[str], p: float = PERSISTENCE) -> float | None:
    """Extrapolated rank-biased overlap of two lists without repetitions, 0 … 1; None when one is empty.

    Equation 32 of Webber, Moffat & Zobel 2010, A similarity measure for indefinite rankings: agreement at each depth, weighted
    by p^depth, and beyond the lists' ends taken to stay as it was. Their lengths may differ.
    """
    short, long = sorted((list(a), list(b)), key=len)
    if not short:
        return None
    s, deepest = len(short), len(long)
    shared = [len(set(short[:depth]) & set(long[:depth])) for depth in range(1, deepest + 1)]
    at_short, at_end = shared[s - 1], shared[-1]
    seen = sum(count / depth * p**depth for depth, count in enumerate(shared, 1))
    unseen = sum(at_short * (depth - s) / (s * depth) * p**depth for depth in range(s + 1, deepest + 1))
    return (1 - p) / p * (seen + unseen) + ((at_end - at_short) / deepest + at_short / s) * p**deepest


def kendall_tau(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Kendall's tau of what both lists have (Kendall 1938): pairs in the same order less pairs in the other, over all pairs.

    None with fewer than two in common. Nothing is tied, so tau-a and tau-b are the same.
    """
    places = {item: place for place, item in enumerate(b)}
    common = [places[item] for item in a if item in places]
    if len(common) < 2:
        return None
    found = np.array(common)
    signs = np.sign(found[None, :] - found[:, None])
    return float(np.triu(signs, 1).sum()) / (len(common) * (len(common) - 1) / 2)


def ranks(a: Answer, b: Answer) -> tuple[Rank, ...]:
    """Each passage's place on both sides, kept ones first, then by the better of its places."""
    first, second = ({item: place for place, item in enumerate(order(answer), 1)} for answer in (a, b))
    kept_a, kept_b = set(kept_ids(a)), set(kept_ids(b))
    known = {passage.id: passage for passage in (*b.passages, *a.passages)}
    far = len(known) + 1

    def best(item: str) -> tuple[bool, int, int]:
        places = first.get(item, far), second.get(item, far)
        return item not in kept_a and item not in kept_b, min(places), sum(places)

    return tuple(
        Rank(
            *(item, known[item].title, known[item].source, known[item].location),
            *(first.get(item), second.get(item), item in kept_a, item in kept_b),
        )
        for item in sorted(known, key=best)[:DRAWN_RANKS]
    )
