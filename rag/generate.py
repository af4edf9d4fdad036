"""From kept passages to an answer with citations: the prompt, the model's stream, or quotes when there is no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rag.types import Citation, Passage

NO_DOCUMENTS = "No relevant documents were found for this question."
CITATION = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")  # [1], and [1, 2] as many models write it
# not before a digit or a small letter: "Art. 72" and "e.g. this" are no sentence ends
SENTENCE = re.compile(r"(?<=[.!?…])\s+(?=[^\s\da-z.!?…])|\n\s*\n|\n(?=\s*[-*#>|\d])")
LEADING = re.compile(r"^[#>*\-\s|]+")
FENCE = re.compile(r"(?:```|~~~)\w*")
QUOTED_SENTENCES = 4


def prompt(
    template: str, question: str, passages: Sequence[Passage], budget_tokens: int
) -> tuple[tuple[Mapping[str, str], ...], int]:
    """The messages to send and how many passages fit into `budget_tokens` (estimated at four characters a token)."""
    blocks: list[str] = []
    left = budget_tokens * 4
    for number, passage in enumerate(passages, 1):
        place = f"{passage.title}, {passage.location}" if passage.location else passage.title
        block = f"[{number}] {place} ({passage.source})\n{passage.text}"
        if blocks and len(block) > left:
            break
        blocks.append(block[: max(left, 400)])
        left -= len(block)
    text = template.format(question=question, passages="\n\n".join(blocks))  # as the settings check it
    return ({"role": "user", "content": text},), len(blocks)


def citations(answer: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """The passages that the answer cites as [n], in order of first mention; numbers that name no passage are left out."""
    numbers = dict.fromkeys(int(number) for match in CITATION.findall(answer) for number in match.split(","))
    return tuple(
        Citation(
            number,
            passages[number - 1].id,
            passages[number - 1].source,
            passages[number - 1].title,
            passages[number - 1].location,
        )
        for number in numbers
        if 1 <= number <= len(passages)
    )


class ThinkFilter:
    """Splits a stream into answer and reasoning at `<think>` … `</think>`, also where a tag is cut between pieces."""

    def __init__(self) -> None:
        self._thinking = False
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """(answer, reasoning) of what is certain so far."""
        if not self._held and not self._thinking and "<" not in text:
            return text, ""
        self._held += text
        answer, reasoning = "", ""
        while True:
            tag = "</think>" if self._thinking else "<think>"
            before, found, after = self._held.partition(tag)
            if not found:
                keep = _tail(self._held, tag)
                certain = self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                return (answer, reasoning + certain) if self._thinking else (answer + certain, reasoning)
            if self._thinking:
                reasoning += before
            else:
                answer += before
            self._held, self._thinking = after, not self._thinking

    def rest(self) -> str:
        """What was held back at the end of the stream, when it is answer text."""
        held, self._held = self._held, ""
        return "" if self._thinking else held


def _tail(text: str, tag: str) -> int:
    """How many last characters of `text` could be the beginning of `tag`."""
    if "<" not in text[1 - len(tag) :]:
        return 0
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-size:])), 0)


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    words: tuple[str, ...]
    passage: int
    order: int


def extract(question: str, passages: Sequence[Passage]) -> Iterator[str]:
    """The best sentences of the passages, each with its [n], best passage first: what is answered without a model.

    A sentence scores by BM25-like weights of the question's words in it (k1 1.2, b 0.75, document frequencies over the
    sentences at hand), half as much for words in its passage's title and heading, times a factor that falls with its rank.
    """
    # headings and crumbs are left out, unless there is nothing else: short lines, or a script that puts no spaces
    sentences = list(_sentences(passages, 4)) or list(_sentences(passages, 1))
    if not sentences:
        return
    asked = set(_words(question))
    frequency = Counter(word for sentence in sentences for word in set(sentence.words))
    mean = sum(len(sentence.words) for sentence in sentences) / len(sentences)

    headings = [asked.intersection(_words(f"{passage.title} {passage.location or ''}")) for passage in passages]

    def rarity(word: str) -> float:
        return math.log(1 + (len(sentences) - frequency[word] + 0.5) / (frequency[word] + 0.5))

    def score(sentence: _Sentence) -> float:
        total = 0.1 + 0.5 * sum(rarity(word) for word in headings[sentence.passage])
        for word, count in Counter(word for word in sentence.words if word in asked).items():
            total += rarity(word) * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(sentence.words) / mean))
        return total / (1 + 0.25 * sentence.passage)

    best = sorted(sentences, key=score, reverse=True)[:QUOTED_SENTENCES]
    for sentence in sorted(best, key=lambda item: (item.passage, item.order)):
        yield f"{sentence.text} [{sentence.passage + 1}]"


def _sentences(passages: Sequence[Passage], at_least: int) -> Iterable[_Sentence]:
    """Sentences of `at_least` words, without what the answer would be misread by: code fences, and the source's own [3]."""
    for index, passage in enumerate(passages):
        for order, text in enumerate(SENTENCE.split(passage.text)):
            text = " ".join(CITATION.sub(r"(\1)", FENCE.sub(" ", LEADING.sub("", text))).split())
            words = tuple(_words(text))
            if len(words) >= at_least:
                yield _Sentence(text[:600], words, index, order)


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if len(word) > 2 or word.isdigit()]
