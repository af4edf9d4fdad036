"""Which words of a question stand in a text, and where: whole words, case aside, as BM25's standard analyser compares them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rag.cache.lexicon import Keyed, detect, lexicon

WORD = re.compile(r"\w+")


class Piece(NamedTuple):
    """A stretch of a text; `word` is the question's word that it is, or None between such words."""

    text: str
    word: str | None


def question_words(question: str) -> tuple[str, ...]:
    """The question's words in order, once each, in lower case, without those that every text has (`of`, `qual`, `מה`).

    BM25 counts these too, but for next to nothing. Where nothing else is left, all words count.
    """
    words = list(dict.fromkeys(word.lower() for word in WORD.findall(question)))
    known = lexicon(detect(words))
    empty = known.function | known.auxiliaries | known.copulas | known.determiners
    telling = [word for word in words if word not in empty and not _asks(word, known.entries)]
    return tuple(telling or words)


def _asks(word: str, entries: Mapping[str, Sequence[Keyed]]) -> bool:
    found = entries.get(word, ())
    return any(keyed.words == (word,) and keyed.entry.section == "questions" for keyed in found)


def matched(words: Sequence[str], *texts: str | None) -> tuple[str, ...]:
    """Those of the words that stand in one of the texts, in the words' order."""
    there = {word.lower() for text in texts if text for word in WORD.findall(text)}
    return tuple(word for word in words if word in there)


def pieces(text: str, words: Sequence[str]) -> Iterator[Piece]:
    """The text cut at the words, for highlighting; joined the pieces are the text."""
    wanted, start = set(words), 0
    for match in WORD.finditer(text):
        if (word := match.group().lower()) in wanted:
            if match.start() > start:
                yield Piece(text[start : match.start()], None)
            yield Piece(match.group(), word)
            start = match.end()
    if start < len(text):
        yield Piece(text[start:], None)


def excerpt(text: str, words: Sequence[str], chars: int = 320) -> str:
    """The stretch of at most `chars` with the most different words of the question, cut at blanks; `…` where text is left out."""
    if len(text) <= chars:
        return text
    places = [(match.start(), match.group().lower()) for match in WORD.finditer(text) if match.group().lower() in set(words)]
    starts = [place for place, _ in places] or [0]
    best = max(
        starts, key=lambda start: (len({word for place, word in places if start <= place < start + chars * 3 // 4}), -start)
    )
    start = max(0, min(best - chars // 6, len(text) - chars))
    start = text.find(" ", start, start + 40) + 1 if start else 0
    end = min(len(text), start + chars)
    end = text.rfind(" ", end - 40, end) if end < len(text) and " " in text[end - 40 : end] else end
    return f"{'… ' if start else ''}{text[start:end].strip()}{' …' if end < len(text) else ''}"
