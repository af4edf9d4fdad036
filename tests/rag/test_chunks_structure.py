"""Tables, rows, lists, code, speech and mixed languages in passages. Tokens are words here."""

from __future__ import annotations

import re

import pytest

from rag.chunks import CHUNKER_VERSION, passages
from rag.chunks.languages import language_of
from rag.loaders import LoadedDocument, Section
from rag.types import PassageRow


def count(text: str) -> int:
    return len(text.split())


def split(*sections: Section, chunk: int = 40, overlap: int = 5, language: str | None = "en") -> list[PassageRow]:
    document = LoadedDocument("Title", sections, language)
    return list(passages(document, "doc", "a.md", "hash", count, chunk, overlap))


HEAD = "| name | value |\n|:---|---:|"


def table(rows: int) -> str:
    return HEAD + "\n" + "\n".join(f"| n{number} | some value {number} |" for number in range(rows))


def test_a_table_is_cut_between_rows_and_each_part_has_its_header() -> None:
    rows = split(Section(f"The caption.\n\n{table(20)}\n\nAfter the table.", "A", "markdown"))
    assert len(rows) > 3
    assert rows[0].text.startswith(f"The caption.\n\n{HEAD}\n| n0 ")
    assert all(HEAD in row.text for row in rows)
    kept = [line for row in rows for line in row.text.split("\n") if line.startswith("| n") and line != HEAD.split("\n")[0]]
    assert kept == table(20).split("\n")[2:]
    assert rows[-1].text.endswith("After the table.")
    assert all(count(row.text) <= 40 for row in rows)


def test_a_row_too_long_by_itself_keeps_its_words_under_the_header() -> None:
    long = " ".join(f"w{number}" for number in range(100))
    rows = split(Section(f"{HEAD}\n| a | {long} |\n| b | 1 |\n", "A", "markdown"))
    assert all(count(row.text) <= 40 for row in rows)
    assert re.findall(r"w\d+", " ".join(row.text for row in rows)) == long.split()
    assert sum(HEAD in row.text for row in rows) == len(rows)


def test_a_header_that_leaves_no_room_is_not_repeated() -> None:
    head = "| " + " | ".join(f"column{number}" for number in range(30)) + " |\n" + "|---" * 30 + "|"
    rows = split(Section(f"{head}\n" + "\n".join("| 1 | 2 | 3 |" for _ in range(30)), "A", "markdown"))
    assert sum("column0" in row.text for row in rows) == 1
    assert all(count(row.text) <= 40 for row in rows)


def test_a_table_in_code_and_a_line_with_a_bar_are_no_table() -> None:
    rows = split(Section(f"```\n{table(30)}\n```", "A", "markdown"))
    assert sum(HEAD in row.text for row in rows) == 1
    assert len(split(Section("a | b\nc | d\ne | f", "A", "markdown"))) == 1


def test_a_line_of_bars_takes_no_time() -> None:
    bars = "|" * 100_000 + "\n"
    assert split(Section(f"word {bars}{bars}x", None, "markdown"), chunk=220)


def test_lists_and_code_stay_whole_where_they_fit() -> None:
    listed = "\n".join(f"- item {number} of the list" for number in range(6))
    code = "```\n" + "\n".join(f"line {number} of code" for number in range(8)) + "\n```"
    rows = split(Section(f"{'word ' * 30}\n\n{listed}\n\n{'more ' * 30}\n\n{code}", "A", "markdown"), overlap=0)
    assert any(listed in row.text for row in rows)
    assert any(code in row.text for row in rows)


def test_rows_stay_whole_and_name_their_own_numbers() -> None:
    lines = [f"Name: n{number}; Role: engineer of {number}" for number in range(2, 32)]
    rows = split(Section("\n".join(lines), "Staff › rows 2–31", "rows"))
    assert [line for row in rows for line in row.text.split("\n")] == lines
    for row in rows:
        first, last = re.findall(r"n(\d+);", row.text)[0], re.findall(r"n(\d+);", row.text)[-1]
        assert row.location == f"Staff › rows {first}–{last}"
    with_gaps = split(Section("\n".join(lines), "Staff › rows 2–90", "rows"))
    assert {row.location for row in with_gaps} == {"Staff › rows 2–90"}


def test_speech_is_joined_from_the_first_second_to_the_last() -> None:
    said = [Section("word " * 15, f"00:0{minute}:00 – 00:0{minute}:50", "speech") for minute in range(5)]  # type: ignore[arg-type]
    assert [row.location for row in split(*said)] == [
        "00:00:00 – 00:01:50",
        "00:02:00 – 00:03:50",
        "00:04:00 – 00:04:50",
    ]
    long = split(Section("word " * 90, "00:00:00 – 00:05:00", "speech"), overlap=0)  # type: ignore[arg-type]
    assert {row.location for row in long} == {"00:00:00 – 00:05:00"} and len(long) == 3


ENGLISH = (
    "The server keeps the models warm and answers every request within a few milliseconds, because nothing is loaded again when"
    " a question comes in."
)
PORTUGUESE = (
    "O servidor mantém os modelos carregados em memória e responde a cada pedido em poucos milissegundos, porque nada precisa de"
    " ser carregado novamente."
)
FRENCH = (
    "Le serveur garde les modèles en mémoire et répond à chaque demande en quelques millisecondes, car rien ne doit être chargé"
    " de nouveau lors d'une question."
)
GERMAN = (
    "Der Server hält die Modelle im Speicher und beantwortet jede Anfrage in wenigen Millisekunden, weil nichts noch einmal"
    " geladen werden muss, wenn eine Frage kommt."
)
HEBREW = "השרת שומר את המודלים בזיכרון ועונה על כל בקשה תוך כמה אלפיות שנייה"
CODE = (
    "import numpy as np\nfor row in rows:\n    total += len(row.text)\nresult = np.stack(vectors, axis=0)\nreturn result.mean()"
    * 3
)


@pytest.mark.parametrize("document", ["en", "pt", "fr", "de", "he", None])
def test_a_passage_in_another_language_than_its_document(document: str | None) -> None:
    texts = {"en": ENGLISH, "pt": PORTUGUESE, "fr": FRENCH, "de": GERMAN, "he": HEBREW}
    assert {language: language_of(text, document) for language, text in texts.items()} == dict(zip(texts, texts, strict=True))


@pytest.mark.parametrize("text", ["GPU L4", "Qwen3 NVIDIA vLLM FlashInfer server", CODE, "1 2 3 4 5 " * 50, "", "Ok."])
@pytest.mark.parametrize("document", ["pt", "he", "en"])
def test_short_texts_code_and_numbers_have_their_documents_language(text: str, document: str) -> None:
    assert language_of(text, document) == document


def test_the_passages_of_a_mixed_document() -> None:
    rows = split(
        Section(ENGLISH, "A", "markdown"), Section(HEBREW * 3, "B", "markdown"), Section(ENGLISH, "C", "markdown"), chunk=45
    )
    assert [row.language for row in rows] == ["en", "he", "en"]


def test_the_version_is_a_number_to_put_into_the_content_hash() -> None:
    assert CHUNKER_VERSION >= 2
