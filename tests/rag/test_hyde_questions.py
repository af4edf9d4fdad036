"""Classes of questions from cheap signals."""

from __future__ import annotations

import pytest

from rag.hyde_questions import classify


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How do I warm the models?", ("English", "short", "how")),
        ("why does the server answer so late after a restart", ("English", "medium", "why")),
        ("Which index is best for small collections?", ("English", "medium", "what")),
        ("In which file is the port?", ("English", "short", "what")),
        ("Where are the logs?", ("English", "short", "who, when, where")),
        ("Is the cache shared between processes?", ("English", "short", "yes or no")),
        ("reranker latency cpu", ("another language", "short", "keywords")),
        ("The first request is slow and the second one is not", ("English", "medium", "statement")),
        ("Como é que aqueço os modelos?", ("Portuguese", "short", "how")),
        ("Por que a primeira resposta demora?", ("Portuguese", "short", "why")),
        ("Comment réchauffer les modèles avant la première question ?", ("French", "medium", "how")),
        ("Peut-on mettre le cache en mémoire ?", ("French", "medium", "yes or no")),
        ("Warum ist die erste Antwort so langsam?", ("German", "medium", "why")),
        ("¿Cuál es el puerto del servidor?", ("Spanish", "short", "what")),
        ("איך מחממים את המודלים?", ("Hebrew", "short", "how")),
        ("האם אפשר לכבות את המטמון?", ("Hebrew", "short", "yes or no")),
        ("как прогреть модели", ("Cyrillic", "short", "keywords")),
        ("word " * 20 + "?", ("another language", "long", "statement")),
        ("", ("another language", "short", "keywords")),
        ("🙂 ?", ("another language", "short", "statement")),
        ("\ud800 \0", ("another language", "short", "keywords")),
    ],
)
def test_classes(question: str, expected: tuple[str, str, str]) -> None:
    assert tuple(classify(question)) == expected
