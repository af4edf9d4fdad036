"""Numbered articles: what begins one, that it stays whole where it fits, and that no passage mixes two. Tokens are words here."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.chunks import ARTICLE_MULTIPLE, passages
from rag.chunks.markers import heading_marker, markers
from rag.loaders import LoadedDocument, Section
from rag.types import PassageRow


def count(text: str) -> int:
    return len(text.split())


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def split(*sections: Section, chunk: int = 40, most: int | None = 400, overlap: int = 5) -> list[PassageRow]:
    document = LoadedDocument("Title", sections, "en")
    return list(passages(document, "doc", "a.txt", "hash", count, chunk, overlap, max_tokens=most))


def prose(number: int) -> str:
    return "Words " + " ".join(f"w{n}" for n in range(number)) + "."


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Article 12", "Article 12"),
        ("ARTICLE 12 – Right of access", "ARTICLE 12 — Right of access"),
        ("Article IV. The courts", "Article IV — The courts"),
        ("Section 3.1 Results", "Section 3.1 — Results"),
        ("Art. 72", "Art. 72"),
        ("Art.72: Fines", "Art.72 — Fines"),
        ("§ 5 Scope", "§ 5 — Scope"),
        ("§ 433a", "§ 433a"),
        ("§ 5 (1) Der Verkäufer haftet.", "§ 5"),
        ("Artikel 5 Freiheit", "Artikel 5 — Freiheit"),
        ("Artigo 5º", "Artigo 5º"),
        ("Art. 5.º Todos são iguais perante a lei.", "Art. 5.º"),
        ("Art. 5.º-A - Prazo", "Art. 5.º-A — Prazo"),
        ("CLÁUSULA PRIMEIRA – DO OBJETO", "CLÁUSULA PRIMEIRA — DO OBJETO"),
        ("Cláusula 3.ª Preço", "Cláusula 3.ª — Preço"),
        ("Article L. 121-1", "Article L. 121-1"),
        ("Article 1er - Objet", "Article 1er — Objet"),
        ("Article premier", "Article premier"),
        ("Art. 3 bis. - Le contrat", "Art. 3 bis — Le contrat"),
        ("סעיף 12", "סעיף 12"),
        ("סעיף 12א. תחולה", "סעיף 12א — תחולה"),
        ("תקנה 3: הגדרות", "תקנה 3 — הגדרות"),
        ("**Article 9** *Notice*", None),
        ("### Article 9. Notice", "Article 9 — Notice"),
        ("Clause 7 (Payment)", "Clause 7 — (Payment)"),
    ],
)
def test_lines_that_begin_an_article(line: str, name: str | None) -> None:
    found = markers(f"Before it.\n\n{line}\nSome text of it\nand more.\n")
    assert len(found) == 1
    assert name is None or found[0].name == name
    assert found[0].start == len("Before it.\n\n")


@pytest.mark.parametrize(
    "text",
    [
        "As set out in\nArticle 12. The controller",
        "See also, among others,\nArticle 12\nof the Treaty",
        "End.\n\nArticle 12 of the Treaty applies.",
        "End.\n\nArticle 12, paragraph 2, applies.",
        "End.\n\nArticle 12(2) applies.",
        "End.\n\nArticle 12 (2) applies to all.",
        "End.\n\narticle 12 Applies",
        "End.\n\nSection three is next.",
        "End.\n\n§ 433 BGB regelt das.",
        "End.\n\n§ 5 Abs. 1 gilt.",
        "End.\n\nסעיף 12 לחוק קובע כי",
        "End.\n\nפרק זה עוסק בכך.",
        "End.\n\nPart of it is done.",
        "End.\n\nArticles 5 and 6",
        "```\nArticle 12\n```\n",
        "Artful 5\nSectional 3",
        "End.\n\nSection 230.5.2 milliseconds later",
    ],
)
def test_lines_that_only_look_so(text: str) -> None:
    assert markers(text) == []


def test_headings() -> None:
    assert heading_marker("Article 40. Model changes") is not None
    assert heading_marker("Articles of faith") is None
    assert heading_marker("Chapter 2") is not None and heading_marker("Chapter 2").holds  # type: ignore[union-attr]


LAW = f"""THE ACT

CHAPTER I
General provisions

Article 1
Subject matter

1. {prose(50)}

2. {prose(30)}

Article 2
Scope

{prose(8)} This applies as in
Article 1 of this Act.

Article 3 (repealed)

CHAPTER II
Rights

Article 4
A long one

"""
LAW += "\n\n".join(f"({number}) {prose(50)}" for number in range(1, 6))


def test_an_article_that_fits_is_one_passage_and_a_longer_one_is_parts_with_its_name() -> None:
    rows = split(Section(LAW, None, "text"), most=120)
    first, second = "CHAPTER I — General provisions", "CHAPTER II — Rights"
    assert [row.location for row in rows[:4]] == [
        None,
        f"{first} › Article 1 — Subject matter",
        f"{first} › Article 2 — Scope",
        f"{first} › Article 3 — (repealed)",
    ]
    assert count(rows[1].text) > 40  # beyond chunk_tokens
    parts = rows[4:]
    assert [row.location for row in parts] == [f"{second} › Article 4 — A long one › part {n}" for n in range(1, len(parts) + 1)]
    assert len(parts) > 5
    assert all(count(row.text) <= 40 for row in parts)
    assert "Article 4" in parts[0].text and "w0" in parts[0].text  # the title is no passage by itself
    assert parts[0].text.startswith("CHAPTER II\nRights")


@pytest.mark.parametrize(("most", "whole"), [(None, False), (40, False), (72, False), (90, True), (100_000, True)])
def test_an_article_stays_whole_up_to_what_the_embedder_takes(most: int | None, whole: bool) -> None:
    rows = split(Section(f"Article 1\n\n{prose(60)}\n\nArticle 2\n\n{prose(3)}", None, "text"), most=most)
    assert (len(rows) == 2) is whole
    assert rows[0].location == ("Article 1" if whole else "Article 1 › part 1")
    assert rows[-1].location == "Article 2"


def test_an_article_beyond_the_multiple_is_split_whatever_the_embedder_takes() -> None:
    rows = split(Section(f"Article 1\n\n{prose(40 * ARTICLE_MULTIPLE)}", None, "text"), most=100_000)
    assert len(rows) > ARTICLE_MULTIPLE


def test_an_article_that_is_a_table_repeats_its_header() -> None:
    rows = "\n".join(f"| n{number} | some value {number} |" for number in range(20))
    parts = split(
        Section(f"Article 1\nFees\n\n| name | fee |\n|---|---|\n{rows}\n\nArticle 2\n{prose(3)}", None, "text"), most=None
    )
    assert len(parts) > 3 and parts[-1].location == "Article 2"
    assert all("| name | fee |\n|---|---|\n| n" in part.text for part in parts[:-1])
    assert [part.location for part in parts[:-1]] == [f"Article 1 — Fees › part {n}" for n in range(1, len(parts))]


def test_an_article_goes_on_over_pages() -> None:
    rows = split(
        Section(f"Page one. {prose(5)}\nArticle 1\n{prose(10)}\nArticle 2\n{prose(20)}", "p. 1", "pdf"),
        Section(f"{prose(20)} end\nArticle 3\n{prose(90)}", "p. 2", "pdf"),
        Section(f"{prose(90)}", "p. 3", "pdf"),
        most=60,
    )
    assert [row.location for row in rows[:3]] == ["p. 1", "Article 1 › p. 1", "Article 2 › p. 1–2"]
    later = [row.location or "" for row in rows[3:]]
    assert all(re.fullmatch(r"Article 3 › p\. (2|3|2–3) › part \d+", where) for where in later)
    assert later[0].startswith("Article 3 › p. 2 ") and later[-1].startswith("Article 3 › p. 3 ")


def test_pages_without_articles_keep_their_number() -> None:
    assert [row.location for row in split(Section("one page", "p. 1", "pdf"), Section("two", "p. 2", "pdf"))] == ["p. 1", "p. 2"]


def test_a_page_header_that_repeats_the_article_begins_none() -> None:
    rows = split(Section(f"Article 5\n{prose(5)}", "p. 1", "pdf"), Section(f"Article 5\n{prose(6)}", "p. 2", "pdf"))
    assert [row.location for row in rows] == ["Article 5 › p. 1–2"]


def test_headings_that_are_articles_take_what_is_below_them() -> None:
    rows = split(
        Section(prose(5), "Chapter 1", "markdown"),
        Section(prose(30), "Chapter 1 › Article 12. Access", "markdown"),
        Section(prose(30), "Chapter 1 › Article 12. Access › Exceptions", "markdown"),
        Section(prose(2), "Chapter 1 › Article 13", "markdown"),
        Section(prose(2), "Chapter 1 › Article 14", "markdown"),
    )
    assert [row.location for row in rows] == [
        "Chapter 1",
        "Chapter 1 › Article 12. Access",
        "Chapter 1 › Article 13",
        "Chapter 1 › Article 14",
    ]
    assert "\n\nExceptions\n\n" in rows[1].text


def test_a_table_of_contents_is_no_article() -> None:
    contents = "Contents\nCHAPTER I\nArticle 1 Subject ..... 3\nArticle 2 Scope ..... 4\nArticle 3 Rights ..... 5\nCHAPTER I\n\n"
    rows = split(Section(f"{contents}Article 1\nSubject\n{prose(5)}\n\nArticle 2\nScope\n{prose(5)}", None, "text"))
    assert [row.location for row in rows if row.location] == ["CHAPTER I › Article 1 — Subject", "CHAPTER I › Article 2 — Scope"]


def test_articles_below_sections_and_sections_below_articles() -> None:
    french = f"Section 1\nArticle 1\n{prose(3)}\nArticle 2\n{prose(3)}\nSection 2\nArticle 3\n{prose(3)}"
    assert [row.location for row in split(Section(french, None, "text"))] == [
        "Section 1 › Article 1",
        "Section 1 › Article 2",
        "Section 2 › Article 3",
    ]
    american = f"Article I\nSection 1\n{prose(3)}\nSection 2\n{prose(3)}\nArticle II\nSection 1\n{prose(3)}"
    assert [row.location for row in split(Section(american, None, "text"))] == [
        "Article I › Section 1",
        "Article I › Section 2",
        "Article II › Section 1",
    ]


HEADS = st.sampled_from(["Article {}", "Art. {}.º", "§ {}", "סעיף {}", "Artigo {}º", "Section {}", "Clause {}"])


@settings(max_examples=60, deadline=None)
@given(
    HEADS,
    st.lists(st.integers(1, 130), min_size=1, max_size=8),
    st.sampled_from([20, 40, 100]),
    st.sampled_from([None, 90, 1000]),
)
def test_no_passage_mixes_articles_and_no_word_is_lost(head: str, sizes: list[int], chunk: int, most: int | None) -> None:
    bodies = [" ".join(f"a{number}x{n}" + ("." if n % 9 == 8 else "") for n in range(size)) for number, size in enumerate(sizes)]
    text = "\n\n".join(f"{head.format(number + 1)}\n{body}." for number, body in enumerate(bodies))
    rows = split(Section(text, None, "text"), chunk=chunk, most=most, overlap=0)
    assert all(len({word.split("x")[0] for word in words(row.text) if re.fullmatch(r"a\d+x\d+", word)}) == 1 for row in rows)
    for number, _ in enumerate(sizes):
        own = [row for row in rows if f"a{number}x0" in words(row.text)]
        assert (own[0].location or "").split(" › ")[0] == head.format(number + 1)
    assert [word for row in rows for word in words(row.text)] == words(text)  # in order, each once: nothing overlaps
    for row in rows:
        is_part = " › part " in (row.location or "")
        assert count(row.text) <= (chunk if is_part or most is None else max(chunk, min(most, ARTICLE_MULTIPLE * chunk)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *("Article 1", "Article 2 of", "CHAPTER I", "§ 3", "w1 w2 w3.", "", "Annex A", "| a | b |", "|---|---|"),
                *("| 1 | 2 |", "```", "Section 1. Foo", "word " * 30, "- item", "סעיף 4", "פרק א'", "(1) Text.", "Title of it"),
            ]
        ),
        max_size=40,
    ),
    st.sampled_from(["text", "markdown", "pdf", "html"]),
    st.lists(st.integers(0, 39), max_size=3),
)
def test_any_lines_keep_their_words_in_order(lines: list[str], kind: str, cuts: list[int]) -> None:
    at = sorted({0, *cuts, len(lines)})
    texts = ["\n".join(lines[one:other]) for one, other in pairwise(at)]
    sections = [Section(text, f"p. {n}" if kind == "pdf" else None, kind) for n, text in enumerate(texts, 1)]  # type: ignore[arg-type]
    rows = split(*sections, chunk=20, overlap=0)
    kept, wanted = [word for row in rows for word in words(row.text)], [word for text in texts for word in words(text)]
    at_word = iter(kept)  # a table's header may come again: what is wanted is a subsequence of what is kept
    assert all(word in at_word for word in wanted)
    assert all(count(row.text) <= ARTICLE_MULTIPLE * 20 for row in rows)
    assert rows == split(*sections, chunk=20, overlap=0)
