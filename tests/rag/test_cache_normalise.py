"""Texts that are the same but for how they are written, and those that only look it."""

from __future__ import annotations

import pytest

from rag.cache.normalise import clean, exact


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What does Art. 72 say?", "  what does ART. 72   say "),
        ("What does Art. 72 say?", "What does Art. 72 say ?!"),
        ("“Quoted” – it’s 16 GB", '"Quoted" - it\'s 16 GB'),
        ("Que dit l’article 12 ?", "que dit l'article 12"),
        ("cafe\u0301", "caf\u00e9"),
        ("ｆｕｌｌ ｗｉｄｔｈ １２", "full width 12"),
        ("שָׁלוֹם", "שלום"),
        ("צה״ל", 'צה"ל'),
        ("port\u00a019530\u200b", "port 19530"),
        ("16 gb of memory", "16 GB of memory"),
        ("Straße", "strasse"),
    ],
)
def test_the_same_question_written_otherwise(one, other):
    assert exact(one) == exact(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is 10² enough?", "Is 102 enough?"),
        ("H₂O", "H2O"),
        ("5½ hours", "51/2 hours"),
        ("a 100 Mb/s link", "a 100 MB/s link"),
        ("100 Mbps", "100 MBps"),
        ("5 mW", "5 MW"),
        ("What costs 5M?", "What costs 5m?"),
        ("C++", "C"),
        ("95 %", "95"),
        ("-5 degrees", "5 degrees"),
        ("2.1", "2.10"),
    ],
)
def test_what_compatibility_forms_would_make_equal_stays_apart(one, other):
    assert exact(one) != exact(other)


def test_cleaning_keeps_case_and_is_stable():
    text = "  What’s “Milvus”\u200f 2.5?  "
    assert clean(text) == 'What\'s "Milvus" 2.5?'
    assert clean(clean(text)) == clean(text)
