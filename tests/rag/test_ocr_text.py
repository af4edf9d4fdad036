"""What is left of a vision model's answer."""

from __future__ import annotations

import pytest

from rag.errors import RagError
from rag.loaders.media import clock, page_of, ranges, second_of, time_location
from rag.media.page_text import loop_start, page_markdown

PAGE = "# Title\n\nA line.\n\n| a | b |\n|---|---|\n| 1 | 2 |"
CODE = "# Commands\n\nRun this:\n\n```\nmake test\n```\n\nThen that."


@pytest.mark.parametrize(
    "answer",
    [
        PAGE,
        f"```markdown\n{PAGE}\n```",
        f"```\n{PAGE}\n```\n",
        f"~~~md\n{PAGE}\n~~~",
        f"Here is the text of the page:\n\n```markdown\n{PAGE}\n```",
        f"```markdown\n{PAGE}\n```\n\nLet me know if you need more.",
        f"```markdown\n{PAGE}",
        f"Sure! Here's the Markdown:\n\n{PAGE}",
        f"הנה תוכן העמוד:\n\n{PAGE}",
        f"{PAGE}\n\nI hope this helps!",
        f"<think>The page has a table.</think>\n{PAGE}",
        f"![img-0.jpeg](img-0.jpeg)\n\n{PAGE}\n<img src='http://example.com/x.png'>",
        f"  \r\n{PAGE}\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
    ],
)
def test_the_page_alone_is_left(answer: str) -> None:
    assert page_markdown(answer) == PAGE


@pytest.mark.parametrize(
    "answer",
    [
        CODE,
        "```python\nprint('a listing that fills the page')\n```",
        "```\nfirst\n```\n\n# A page between\n\n```\nsecond\n```\n\n| a | table |",
        "The contract says:\nSorry, I cannot be there.",
        "Here is the house: it is blue.",
        "No text may be copied without permission.",
    ],
)
def test_what_belongs_to_the_page_stays(answer: str) -> None:
    assert page_markdown(answer) == answer


@pytest.mark.parametrize(
    "answer",
    ["", "[empty page]", "Empty page.", "There is no text in this image.", "The page appears to be blank.", "```\n\n```"],
)
def test_empty_pages(answer: str) -> None:
    assert page_markdown(answer) == ""


@pytest.mark.parametrize(
    "answer", ["I'm sorry, but I can't assist with that.", "I cannot read this.", "I am unable to see images."]
)
def test_refusals(answer: str) -> None:
    with pytest.raises(RagError) as caught:
        page_markdown(answer)
    assert "declined" in caught.value.message


def test_loops_of_any_length_keep_one_copy() -> None:
    for unit in ("ab", "word ", "| 0 | 0 |\n", "A sentence of some length that comes again. ", "x" * 40 + "y" * 300):
        start = loop_start("Intro. " + unit * 400)
        assert start is not None
        kept = ("Intro. " + unit * 400)[:start]
        assert len(kept) <= len("Intro. ") + 2 * len(unit)


def test_what_is_no_loop() -> None:
    rows = "".join(f"| {number} | 0 | 0 |\n" for number in range(200))
    assert loop_start(rows) is None
    assert loop_start("| 0 | 0 |\n" * 20) is None  # equal rows do occur
    assert loop_start("Contents " + "." * 200 + " 7") is None
    assert loop_start("") is None


def test_places() -> None:
    assert (clock(0), clock(3599.9), clock(36_000)) == ("00:00:00", "00:59:59", "10:00:00")
    assert time_location(83.2, 106.1) == "00:01:23 – 00:01:47"
    assert second_of("00:01:23 – 00:01:47") == 83
    assert second_of("123:00:01 – 123:00:09") == 442_801
    assert [second_of(text) for text in (None, "", "p. 3", "00:99:00", "1:2:3", "00:00:001")] == [None] * 6
    assert [page_of(text) for text in ("p. 3", "p. 12 … p. 13", "Article 7 › p. 3", "p. x", None, "sheet p. 3")] == [3, 12, 3] + [
        None
    ] * 3
    assert ranges([1, 2, 3, 7, 9, 10]) == "1–3, 7, 9–10"
