"""Splitting: sizes, ids, locations, and that no word is lost. Tokens are words here, so that sizes can be counted by hand."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from rag import chunks
from rag.chunks import MAX_TEXT_BYTES, WINDOW_CHARS
from rag.loaders import LoadedDocument, Section, load
from rag.types import PassageRow

DATA = Path(__file__).parents[1] / "data" / "documents"


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)  # an underscore marks emphasis in Markdown


def split(*arguments) -> list[PassageRow]:
    return list(chunks.passages(*arguments))


def count(text: str) -> int:
    return len(text.split())


def passages(*sections: Section, chunk: int = 50, overlap: int = 5) -> list[PassageRow]:
    document = LoadedDocument("Title", sections, "en")
    return split(document, "doc", "docs/a.md", "hash", count, chunk, overlap)


def numbered(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last))


def test_rows_carry_the_document_and_ids_are_stable() -> None:
    document = load(DATA / "hebrew.md", 100_000)
    rows = split(document, "doc", "docs/hebrew.md", "hash", count, 15, 3)
    assert rows == split(document, "doc", "docs/hebrew.md", "hash", count, 15, 3)
    assert [row.position for row in rows] == list(range(len(rows)))
    assert len({row.id for row in rows}) == len(rows)
    assert {len(row.id) for row in rows} == {32}
    assert rows[0].id != split(document, "doc", "docs/hebrew.md", "other", count, 15, 3)[0].id
    assert {(row.title, row.source, row.language, row.document_id, row.content_hash) for row in rows} == {
        ("מדריך לאחזור מסמכים", "docs/hebrew.md", "he", "doc", "hash")
    }


def test_sizes_and_overlap() -> None:
    rows = passages(Section(numbered(0, 200), None, "text"))
    assert all(count(row.text) <= 50 for row in rows)
    assert len(rows) == 5
    for one, other in pairwise(rows):
        assert 0 < len(set(words(one.text)) & set(words(other.text))) <= 5


def test_sections_with_headings_stay_apart_unless_small() -> None:
    large = passages(Section(numbered(0, 42), "A", "markdown"), Section(numbered(100, 104), "B", "markdown"))
    assert [(row.location, row.text) for row in large] == [("A", numbered(0, 42)), ("B", numbered(100, 104))]
    small = passages(
        Section("one two three", "A", "markdown"),
        Section("four five six", "A › B", "markdown"),
        Section(numbered(0, 45), "C", "markdown"),
    )
    assert [(row.location, row.text) for row in small] == [
        ("A … A › B", "one two three\n\nB\n\nfour five six"),
        ("C", numbered(0, 45)),
    ]
    pages = passages(Section("one page", "p. 1", "pdf"), Section("another page", "p. 2", "pdf"))
    assert [row.location for row in pages] == ["p. 1", "p. 2"]


def test_no_passage_without_words() -> None:
    rows = passages(
        Section("*** --- !!! " * 60, None, "text"), Section("- - -", "A", "markdown"), Section("one", "B", "markdown")
    )
    assert [words(row.text) for row in rows] == [["one"]]


def test_texts_without_spaces_stay_under_the_limit_of_the_store() -> None:
    for text, chunk in (("x" * 300_000, 220), ("ש" * 300_000, 8192), ("🙂a" * 50_000, 8192)):
        rows = passages(Section(text, None, "text"), chunk=chunk, overlap=0)
        assert all(len(row.text.encode()) <= MAX_TEXT_BYTES for row in rows)
        assert "".join(row.text for row in rows) == text


def test_a_text_longer_than_a_window_loses_nothing() -> None:
    text = "\n\n".join(numbered(start, start + 30) for start in range(0, 60_000, 30))
    assert len(text) > WINDOW_CHARS
    rows = passages(Section(text, None, "text"), chunk=220, overlap=32)
    assert {word for row in rows for word in words(row.text)} == set(words(text))


@pytest.mark.parametrize("seed", range(30))
def test_every_word_is_in_some_passage(seed: int) -> None:
    chance = random.Random(seed)
    alphabet = "abcשלום漢字éß٣ж_"
    marks = [" ", "\n", "\n\n", ", ", ". ", " - ", "\n- ", "\n> ", " | ", "\n```\n", "\t", " 🙂 ", "\n1. ", "**", " !!! "]
    sections = []
    for number in range(chance.randint(1, 6)):
        text = "".join(
            "".join(chance.choices(alphabet, k=chance.randint(1, 12))) + chance.choice([" ", chance.choice(marks)])
            for _ in range(chance.randint(1, 150))
        )
        kind = chance.choice(["markdown", "text", "html", "pdf"])
        sections.append(Section(text, chance.choice([None, f"H{number}"]), kind))  # type: ignore[arg-type]
    chunk = chance.choice([16, 40, 220])
    rows = passages(*sections, chunk=chunk, overlap=chance.choice([0, 5, chunk - 1]))
    assert {word for section in sections for word in words(section.text)} <= {word for row in rows for word in words(row.text)}
    assert all(count(row.text) <= chunk for row in rows)


def test_errors_of_the_counter_and_of_the_settings_come_out() -> None:
    def broken(text: str) -> int:
        raise ConnectionError("the tokenizer is away")

    document = LoadedDocument("Title", (Section(numbered(0, 500), None, "text"),), "en")
    with pytest.raises(ConnectionError, match="the tokenizer is away"):
        split(document, "doc", "a", "hash", broken)
    with pytest.raises(ValueError, match="less than chunk_tokens"):
        split(document, "doc", "a", "hash", count, 20, 20)
