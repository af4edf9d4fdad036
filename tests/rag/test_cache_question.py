"""A question taken apart: typed tokens in four languages, what is asked for, and no text that breaks it."""

from __future__ import annotations

import random

import pytest

from rag.cache.lexicon import LANGUAGES, lexicon, stem
from rag.cache.question import Question, analyse


def values(question: Question, *kinds: str) -> list[str]:
    return [token.value for token in question.tokens if token.kind in kinds]


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("What does Art. 72(3) say?", "article", ["article 72(3)"]),
        ("What does article 72 (3) say?", "article", ["article 72(3)"]),
        ("see § 14", "article", ["section 14"]),
        ("Annex IV of the act", "article", ["annex iv"]),
        ("Que dit l'alinéa 12 ?", "article", ["paragraph 12"]),
        ("O que diz o artigo 5.º?", "article", ["article 5"]),
        ("מה קובע סעיף 7(2)?", "article", ["article 7(2)"]),
        ("the release of 12 March 2026", "date", ["2026-03-12"]),
        ("the release of March 12, 2026", "date", ["2026-03-12"]),
        ("the release of 2026-3-12", "date", ["2026-03-12"]),
        ("la version du 4 juin 2025", "date", ["2025-06-04"]),
        ("a versão de 4 de junho de 2025", "date", ["2025-06-04"]),
        ("הגרסה של 4 ביוני 2025", "date", ["2025-06-04"]),
        ("may the team march on?", "date", []),
        ("on the second Tuesday at 6:00", "date", ["w2", "06:00"]),
        ("na terça-feira às 6:00", "date", ["w2", "06:00"]),
        ("it takes 90 s", "quantity", ["90 s"]),
        ("it takes 1.5 minutes", "quantity", ["90 s"]),
        ("40 Go de mémoire, le prix ?", "quantity", ["40000000000 byte"]),
        ("is 40 GiB enough?", "quantity", ["42949672960 byte"]),
        ("costs $40 a month", "quantity", ["40 usd", "per month"]),
        ("a monthly price of 40 dollars", "quantity", ["per month", "40 usd"]),
        ("16,000 tokens, please, for the prompt", "number", ["16000"]),
        ("the 40k tokens of the prompt", "number", ["40000"]),
        ("os 16.000 pedidos do usuário", "number", ["16000"]),
        ("four replicas with two GPUs", "number", ["4", "2"]),
        ("שני כרטיסים", "number", ["2"]),
        ("Does Qwen3-8B-AWQ run on an A100 with --max-model-len?", "identifier", ["qwen38bawq", "a100", "--max-model-len"]),
        ("What is GPU_SERVER_URL and settings.toml?", "identifier", ["gpuserverurl", "settings.toml"]),
        ("two L4s", "identifier", ["l4"]),
    ],
)
def test_typed_tokens(text, kind, wanted):
    assert values(analyse(text), kind) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Which port does it use?", {"what"}),
        ("How do I restart it?", {"how"}),
        ("How long does it take?", {"duration"}),
        ("Is the GPU idle?", {"polar"}),
        ("milvus port", {"keywords"}),
        ("What happens when it is full?", {"what"}),
        ("When does it expire?", {"when"}),
        ("When it is full, what happens?", {"what"}),
        ("How many users?", {"number"}),
        ("Pourquoi est-ce lent ?", {"why"}),
        ("Est-ce que c'est lent ?", {"polar"}),
        ("Quem aprova os pedidos?", {"who"}),
        ("האם זה איטי?", {"polar"}),
        ("מתי זה פג?", {"when"}),
    ],
)
def test_what_is_asked_for(text, wanted):
    assert analyse(text).asks == wanted


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Why is the GPU idle?", "en"),
        ("Pourquoi le GPU est-il inactif ?", "fr"),
        ("Por que a GPU está parada?", "pt"),
        ("למה ה-GPU לא עובד?", "he"),
        ("Qwen3-8B 19530", "und"),
        ("¿Se puede usar la GPU sin permiso?", "und"),
        ("Was kostet eine L4 pro Monat?", "und"),
        ("Quanto costa una L4 al mese?", "und"),
    ],
)
def test_languages(text, language):
    assert analyse(text).language == language


def test_reordered_by_of_and_by_roles():
    line = analyse("How do I change the port from 6379 to 6380?").tokens
    assert [(token.value, token.role) for token in line if token.kind == "number"] == [("6379", "from"), ("6380", "to")]


def test_no_text_breaks_it():
    chance = random.Random(3)
    letters = "aZ09 .,;:?!()[]-_/%°$€§#+'\"²½\u200fאבג\u0591é\n\t\x00🙂漢"
    words = [
        "Art.",
        "2026-13-99",
        "1.2.3k",
        "99:99",
        "12h99",
        "§",
        "II",
        "from",
        "to",
        "v",
        "--",
        "1,2,3",
        "סעיף",
        "http://",
        "7.25",
    ]
    for _ in range(3000):
        text = "".join(
            chance.choice(letters) if chance.random() < 0.6 else f" {chance.choice(words)} " for _ in range(chance.randrange(30))
        )
        found = analyse(text)
        assert isinstance(found, Question)
    assert analyse("x" * 50_000).tokens


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_words_of_a_language_are_read(language):
    words = lexicon(language)
    assert len(words.entries) > 300
    assert words.numbers and words.months and words.units and words.articles and words.function
    sections = {keyed.entry.section for items in words.entries.values() for keyed in items}
    assert {"drop", "negation", "questions", "modals", "poles", "verbs", "nouns", "weak"} <= sections


def test_forms_of_a_word_have_one_stem():
    for language, forms in {
        "en": ("cache", "caches", "cached", "caching"),
        "fr": ("conserve", "conserver", "conservée", "conservés"),
        "pt": ("apagar", "apagado", "apagados"),
        "he": ("מודל", "המודל", "המודלים"),
    }.items():
        assert len({stem(form, language) for form in forms}) == 1, language
