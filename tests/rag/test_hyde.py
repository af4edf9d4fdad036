"""When HyDE is tried, and how its vector joins the question's."""

from __future__ import annotations

import numpy as np
import pytest

from rag import hyde

PLAIN = "why does the server answer so late after a restart"


@pytest.mark.parametrize(
    ("mode", "question", "has_model", "said"),
    [
        ("off", PLAIN, True, "switched off"),
        ("off", PLAIN, False, "switched off"),
        ("on", PLAIN, False, "no language model"),
        ("auto", PLAIN, False, "no language model"),
        ("auto", "what does article 72 say", True, "identifier"),
        ("auto", "what is VLLM_BASE_URL for", True, "identifier"),
        ("auto", 'who said "the cache is cold"', True, "identifier"),
        ("auto", "who said “the cache is cold”", True, "identifier"),
        ("auto", "qui a dit «le cache est froid»", True, "identifier"),
        ("auto", "what does `warm_up` do", True, "identifier"),
        ("auto", "what does --keep do", True, "identifier"),
        ("auto", "word " * 25, True, "25 words"),
    ],
)
def test_reasons_not_to_try(mode: hyde.HydeMode, question: str, has_model: bool, said: str):
    reason = hyde.skip_before_search(mode, question, has_model)
    assert reason is not None and said in reason


@pytest.mark.parametrize(
    ("mode", "question"),
    [
        ("on", "what does article 72 say"),
        ("on", "word " * 100),
        ("auto", PLAIN),
        ("auto", "word " * 24),
        ("auto", "why is e-mail slow - and what about the well-known well"),
        ("auto", 'מה ההנחיות של צה"ל בארה"ב'),
        ("auto", ""),
    ],
)
def test_nothing_speaks_against_it(mode: hyde.HydeMode, question: str):
    assert hyde.skip_before_search(mode, question, True) is None


def test_a_close_passage_makes_it_needless():
    assert hyde.skip_after_search(None) is None
    assert hyde.skip_after_search(hyde.CLOSE_ENOUGH - 0.01) is None
    reason = hyde.skip_after_search(hyde.CLOSE_ENOUGH)
    assert reason is not None and "0.62" in reason


def test_the_blend_is_the_middle_as_a_unit_vector():
    one, two = np.array([1, 0, 0], np.float32), np.array([0, 1, 0], np.float32)
    assert hyde.blend(one, two) == pytest.approx([2**-0.5, 2**-0.5, 0])
    assert hyde.blend(one, two).dtype == np.float32


def test_opposite_vectors_leave_the_question_alone():
    one = np.array([1, 0, 0], np.float32)
    assert hyde.blend(one, -one) is one


def test_what_it_changed_is_the_set_of_the_first_passages_not_their_order():
    assert hyde.effect(("a", "b"), None) is None
    assert hyde.effect(("a", "b"), ("b", "a")) == hyde.HydeEffect(False, 1.0)
    assert hyde.effect(("a", "b"), ("a", "c"), shadow=True) == hyde.HydeEffect(True, 0.5, True)
    assert hyde.effect((), ()) == hyde.HydeEffect(False, 1.0)
