"""Prompt, citations, reasoning kept out, and the quotes that answer when there is no model."""

from __future__ import annotations

import itertools

import pytest

from rag.generate import CITATION, QUOTED_SENTENCES, ThinkFilter, citations, extract, prompt
from rag.types import Passage


def passage(text: str, number: int = 1, title: str = "", location: str | None = None) -> Passage:
    return Passage(f"p{number}", text, f"{number}.md", title or f"Title {number}", location)


def numbers(answer: str, count: int = 12) -> list[int]:
    passages = [passage("text", number) for number in range(1, count + 1)]
    return [citation.number for citation in citations(answer, passages)]


# the prompt

TEMPLATE = "Documents:\n{passages}\n\nQuestion: {question}"


def test_the_prompt_numbers_the_passages_and_names_their_source():
    (message,), fitted = prompt(TEMPLATE, "Why?", [passage("One."), passage("Two.", 2, location="p. 3")], 1000)
    assert message["role"] == "user"
    assert message["content"] == "Documents:\n[1] Title 1 (1.md)\nOne.\n\n[2] Title 2, p. 3 (2.md)\nTwo.\n\nQuestion: Why?"
    assert fitted == 2


@pytest.mark.parametrize("question", ["{passages}", "{question}", "{0} {x} {{}} %s \\1 \\g<0>", "{passages}{passages}"])
def test_a_question_is_never_filled_in_itself(question: str):
    (message,), _ = prompt(TEMPLATE, question, [passage("Secret {question} text.")], 1000)
    assert message["content"] == f"Documents:\n[1] Title 1 (1.md)\nSecret {{question}} text.\n\nQuestion: {question}"


def test_a_template_may_hold_doubled_braces_and_leave_things_out():
    (message,), fitted = prompt('Answer as {{"a": 1}} {{other}}. {question}', "Why?", [passage("One.")], 1000)
    assert message["content"] == 'Answer as {"a": 1} {other}. Why?'
    assert fitted == 1


def test_passages_that_do_not_fit_are_left_out_but_never_all():
    passages = [passage("word " * 100, number) for number in range(1, 9)]
    (message,), fitted = prompt("{passages}", "Why?", passages, 300)
    assert fitted == 2
    assert "[2]" in message["content"] and "[3]" not in message["content"]
    (message,), fitted = prompt("{passages}", "Why?", passages, 1)
    assert fitted == 1
    assert len(message["content"]) == 400


def test_without_passages_there_is_still_a_prompt():
    (message,), fitted = prompt(TEMPLATE, "Why?", [], 1000)
    assert (message["content"], fitted) == ("Documents:\n\n\nQuestion: Why?", 0)


# citations


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("It is slow [1].", [1]),
        ("It is slow [12].", [12]),
        ("[2][1] and [2] again", [2, 1]),
        ("as [1, 3] say, and [4,5]", [1, 3, 4, 5]),
        ("[0] [13] [99] [1000] [-1] [1.5] [ 1 ] [x] [] [[1]", [1]),
        ("[0, 2]", [2]),
        ("[99, 100]", []),
        ("[1-3] stays a range that nobody can check", []),
        ("בעברית [3]، עמוד [1]", [3, 1]),
        ("", []),
        ("no citation at all", []),
    ],
)
def test_which_numbers_are_citations(answer: str, wanted: list[int]):
    assert numbers(answer) == wanted


def test_a_citation_says_where_it_leads():
    (found,) = citations("so [2]", [passage("a"), passage("b", 2, "Handbook", "p. 7")])
    assert (found.number, found.passage_id, found.source, found.title, found.location) == (2, "p2", "2.md", "Handbook", "p. 7")
    assert citations("so [2]", []) == ()


# reasoning kept out

STREAMS = [
    ("<think>hm</think>Yes", "Yes", "hm"),
    ("A<think>b</think>C<think>d</think>E", "ACE", "bd"),
    ("<think>a < b <think> c</think>x<y", "x<y", "a < b <think> c"),
    ("a <thin </think <<think>x<</think>> b", "a <thin </think <> b", "x<"),
    ("no tags, 1 < 2 and <b>bold</b>", "no tags, 1 < 2 and <b>bold</b>", ""),
    ("<think>never closed, cut </thi", "", "never closed, cut "),
    ("ends in <thi", "ends in <thi", ""),
    ("<think></think>", "", ""),
    ("", "", ""),
]


def fed(pieces: list[str]) -> tuple[str, str]:
    filtered = ThinkFilter()
    pairs = [filtered.feed(piece) for piece in pieces]
    return "".join(answer for answer, _ in pairs) + filtered.rest(), "".join(reasoning for _, reasoning in pairs)


@pytest.mark.parametrize(("stream", "answer", "reasoning"), STREAMS)
def test_reasoning_is_split_off_wherever_the_stream_is_cut(stream: str, answer: str, reasoning: str):
    assert fed([stream]) == (answer, reasoning)
    assert fed(list(stream)) == (answer, reasoning)
    for one, two in itertools.combinations(range(len(stream) + 1), 2):
        assert fed([stream[:one], stream[one:two], stream[two:]]) == (answer, reasoning), (one, two)


def test_text_that_cannot_begin_a_tag_is_not_held_back():
    filtered = ThinkFilter()
    assert filtered.feed("1 < 2 ") == ("1 < 2 ", "")
    assert filtered.feed("<t") == ("", "")
    assert filtered.feed("able>") == ("<table>", "")
    assert filtered.rest() == ""
    assert filtered.rest() == ""


# quotes


def test_the_sentences_that_answer_are_quoted_with_their_numbers():
    passages = [
        passage("Kernels are compiled on first use. The moon is far away and quite cold."),
        passage("A reranker that was never warmed up is slow at first. Nobody knows who wrote this line.", 2),
    ]
    quotes = list(extract("Why is the reranker slow at first use?", passages))
    assert "Kernels are compiled on first use. [1]" in quotes
    assert "A reranker that was never warmed up is slow at first. [2]" in quotes
    assert [citation.number for citation in citations(" ".join(quotes), passages)] == [1, 2]


@pytest.mark.parametrize(
    ("question", "text", "wanted"),
    [
        (
            "למה הזיכרון תפוס?",
            "המודל נטען פעם אחת בלבד בתחילת הריצה. הזיכרון של המאיץ נשאר תפוס גם כשהוא בטל.",
            "הזיכרון של המאיץ נשאר תפוס גם כשהוא בטל. [1]",
        ),
        (
            "Pourquoi la première requête est-elle lente ?",
            "« L'été arrive bientôt chez nous. » La première requête est lente : le modèle est chargé à ce moment-là.",
            "La première requête est lente : le modèle est chargé à ce moment-là. [1]",
        ),
        ("What does Art. 72 say?", "Preface and other words here. Art. 72 limits the work to four hours.", "Art. 72 limits"),
        ("重新启动", "模型在重新启动后加载一次", "模型在重新启动后加载一次 [1]"),
        ("warm?", "Warm it up", "Warm it up [1]"),
    ],
)
def test_quotes_in_many_languages(question: str, text: str, wanted: str):
    quotes = list(extract(question, [passage(text)]))
    assert any(wanted in quote for quote in quotes), quotes


@pytest.mark.parametrize("passages", [[], [passage("")], [passage(" \n\n \t")], [passage("...!?"), passage("---\n***", 2)]])
def test_nothing_to_quote(passages: list[Passage]):
    assert list(extract("Why?", passages)) == []


@pytest.mark.parametrize("question", ["", "???", "a b", "וגם"])
def test_a_question_without_words_still_gets_the_best_passage(question: str):
    (quote,) = extract(question, [passage("One sentence with enough words in it.")])
    assert quote == "One sentence with enough words in it. [1]"


def test_code_is_quoted_without_fences_that_would_swallow_the_rest():
    text = "Set the pool size in code:\n\n```python\npool = Pool(size=4, warm=True, name='main')\n```\n\nThen restart the whole server."
    quotes = list(extract("How do I set the pool size?", [passage(text)]))
    assert any("pool = Pool(size=4, warm=True, name='main')" in quote for quote in quotes)
    assert not any("```" in quote for quote in quotes)


def test_footnotes_of_the_source_are_not_taken_for_citations():
    passages = [passage("The reranker was slow at first.[2] It got faster later, as others found [1, 2]."), passage("Else.", 2)]
    quotes = " ".join(extract("When was the reranker slow?", passages))
    assert "slow at first.(2)" in quotes
    assert {match.group(1) for match in CITATION.finditer(quotes)} == {"1"}


def test_many_long_passages_give_few_short_quotes():
    texts = [(f"The index is warm and the cache is cold in zone {number}. " * 60)[:2000] for number in range(40)]
    texts[7] = "x" * 2000
    texts[8] = "\n" * 2000
    texts[9] = "word " * 400
    quotes = list(extract("Is the cache cold in zone 3?", [passage(text, number) for number, text in enumerate(texts, 1)]))
    assert 1 <= len(quotes) <= QUOTED_SENTENCES
    assert all(len(quote) <= 600 + len(" [40]") for quote in quotes)


def test_a_passage_of_one_endless_line_is_cut():
    (quote,) = extract("word", [passage("word " * 20_000)])
    assert len(quote) <= 604
