"""HyDE: a hypothetical answer written by the language model and embedded beside the question (Gao et al. 2022).

It costs seconds, so `auto` decides first, from signals that are already there: the question, its first search, and how often
HyDE changed anything for such questions (rag/hyde_history.py). The rules come before what was learnt.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from rag.hyde_history import HydeHistory
from rag.types import HydeEffect, HydeMode

LONG_QUESTION_WORDS = 24
TOP = 5  # passages that are compared to say whether HyDE changed anything
CLOSE_ENOUGH = 0.62  # cosine of the best dense hit; above it the question already speaks the documents' words
IDENTIFIER = re.compile(r"\d|[A-Za-z]+_[A-Za-z]|\b[A-Z]{2,}[A-Z0-9-]*\d|(?<!\w)[\"“«`]|--\w")  # not the quote in צה"ל


def skip_before_search(mode: HydeMode, question: str, has_model: bool, history: HydeHistory | None = None) -> str | None:
    """Why HyDE is not tried, from the question alone; None when nothing speaks against it yet.

    A history that knows how close first searches came is asked after the search instead, which is needed either way.
    """
    if mode == "off":
        return "switched off"
    if not has_model:
        return "no language model is configured"
    if mode == "on":
        return None
    if IDENTIFIER.search(question):
        return "the question names a number or an identifier, which a made-up answer would blur"
    words = len(question.split())
    if words > LONG_QUESTION_WORDS:
        return f"the question is long enough by itself ({words} words)"
    return _learnt(question, None, history) if history is not None and not history.knows_closeness else None


def skip_after_search(best_dense: float | None, question: str = "", history: HydeHistory | None = None) -> str | None:
    """Why HyDE is not needed after a first search with the question itself; `best_dense` is its best passage's cosine."""
    if best_dense is not None and best_dense >= CLOSE_ENOUGH:
        return f"the first search already found a close passage (cosine {best_dense:.2f})"
    return _learnt(question, best_dense, history) if history is not None else None


def _learnt(question: str, best_dense: float | None, history: HydeHistory) -> str | None:
    decision = history.decide(question, best_dense)
    return None if decision.run else decision.reason


def blend(question: NDArray[np.float32], hypothesis: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of the two unit vectors, made a unit vector again."""
    mean = question + hypothesis
    norm = float(np.linalg.norm(mean))
    return mean / norm if norm > 1e-6 else question


def effect(
    plain: tuple[str, ...] | None, blended: tuple[str, ...] | None, *, shadow: bool = False, best_dense: float | None = None
) -> HydeEffect | None:
    """What the hypothesis changed: the ids of the first passages without and with it; None unless both are known."""
    if plain is None or blended is None:
        return None
    most = max(len(plain), len(blended))
    overlap = len(set(plain) & set(blended)) / most if most else 1.0
    return HydeEffect(overlap < 1.0, overlap, shadow, best_dense)
