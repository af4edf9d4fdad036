"""Near misses that must not share an answer, paraphrases that may, and the words in which a refusal is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.cache.calibrate import PAIRS, held_out, read_pairs
from rag.cache.guards import compare

NEAR_MISSES = Path(__file__).parent / "data" / "cache_near_misses.txt"


def test_near_misses_of_all_kinds_are_refused_both_ways():
    passed = []
    lines = NEAR_MISSES.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 140
    for line in lines:
        one, other = line.split("|")
        passed += [line for pair in ((one, other), (other, one)) if compare(*pair).refused is None]
    assert passed == []


def test_no_near_miss_of_the_pair_set_passes_the_guards():
    passed = [
        (pair.a, pair.b) for pair in read_pairs(PAIRS) if pair.label == "different" and compare(pair.a, pair.b).refused is None
    ]
    assert passed == []


@pytest.mark.parametrize(
    ("asked", "cached", "guard", "words"),
    [
        ("What does Art. 75 say?", "What does Art. 72 say?", "article", "Art 75"),
        ("Does it take 3 tries?", "Does it take 4 tries?", "number", "3 is asked, the cached question has 4"),
        ("Is 16 GB enough?", "Is 16 MB enough?", "unit", "16 GB"),
        ("What changed on 4 June 2025?", "What changed on 4 July 2025?", "date", "4 July 2025"),
        ("Does Qwen3-8B fit?", "Does Qwen3-14B fit?", "identifier", "Qwen3-14B"),
        ("Does the API answer?", "Does the API not answer?", "negation", "none against not"),
        ("Does latency increase?", "Does latency decrease?", "direction", "'increase' against 'decrease'"),
        ("Which port does Milvus use?", "Which port does Redis use?", "name", "Milvus is asked, the cached question has Redis"),
        ("Why is the GPU idle?", "When is the GPU idle?", "question", "asks why, the cached question asks when"),
        ("Must I restart it?", "May I restart it?", "modality", "'Must' against 'May'"),
        ("Who approves storage requests?", "Who approves network requests?", "content", "'storage' stands where"),
        ("Copy it to the server room", "Copy it from the server room", "role", "to 'server' against from 'server'"),
        ("Does the API call the server?", "Does the server call the API?", "order", "another order"),
        ("Pourquoi le GPU est-il lent ?", "Why is the GPU slow?", "language", "asked in fr"),
    ],
)
def test_a_refusal_says_why(asked, cached, guard, words):
    refused = compare(asked, cached).refused
    assert refused is not None
    assert refused.name == guard
    assert words in refused.said


@pytest.mark.parametrize(
    ("asked", "cached"),
    [
        ("What does Article 72 say?", "What does Art. 72 say?"),
        ("After a restart, why is the first rerank so slow?", "Why is the first rerank after a restart so slow?"),
        ("How can I disable HyDE?", "How do I turn HyDE off?"),
        ("Is the GPU server called by the API?", "Does the API call the GPU server?"),
        ("Combien de temps conserve-t-on les journaux ?", "Pendant combien de temps les journaux sont-ils conservés ?"),
        ("Quanto custa uma L4 por mês na AWS?", "Qual é o preço mensal de uma L4 na AWS?"),
        ("כיצד מכבים את HyDE?", "איך להשבית את HyDE?"),
    ],
)
def test_paraphrases_pass(asked, cached):
    assert compare(asked, cached).refused is None
    assert compare(asked, cached).agreement > 0.85


def test_every_guard_gives_a_verdict_and_equal_questions_agree_wholly():
    found = compare("Why is the GPU idle?", "Why is the GPU idle?")
    assert found.agreement == 1.0
    assert len(found.checks) == 14
    assert all(check.said for check in found.checks)


def test_a_question_without_a_word_that_can_be_compared_is_never_alike():
    assert compare("What is it?", "How is that?").refused is not None
    assert compare("What is it?", "What is that?").refused is not None


def test_both_sides_of_the_pair_set_hold_every_language_and_label():
    for side in (True, False):
        pairs = [pair for pair in read_pairs(PAIRS) if held_out(pair.family) is side]
        assert {pair.language for pair in pairs} == {"en", "pt", "fr", "he"}
        assert sum(pair.label == "different" for pair in pairs) >= 200
