"""The language of a passage where its document mixes languages. Knows passages as texts only.

A classifier guesses: a passage takes another language than its document only where its script leaves no doubt, or where it is
long, mostly letters, and the guess is far ahead.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

from rag.loaders import LANGUAGE_LETTERS

SURE_LETTERS = 100
LETTER_RATIO = 0.9  # of what is no space: code, numbers and tables have less
MARGIN_PER_LETTER = 0.04  # in log-probability: within a pair of relatives (pt, es) about 0.05 where one is right
SCRIPT_RATIO = 0.8

_OF_SCRIPT = {"HEBREW": "he", "GREEK": "el", "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "THAI": "th"}
# words of one language and not of its relatives: a text with enough of them needs no classifier, which takes a quarter of a ms
_TELLING = {
    "en": "the of and to is that for it with as on be are this or by at from",
    "de": "der die das und ist den von zu mit nicht ein eine auf für im",
    "fr": "le les des et est dans une du pour par sur au aux ne pas",
    "pt": "do da dos das em não uma um ao são com os",
    "es": "el los las del y una con su sus lo",
}
_TELLING_WORDS = {language: frozenset(words.split()) for language, words in _TELLING.items()}
TELLING_RATIO = 0.15
_RELATIVES = (
    frozenset(("pt", "gl")),
    frozenset(("no", "nb", "nn", "da", "sv")),
    frozenset(("hr", "bs", "sr", "sl")),
    frozenset(("cs", "sk")),
    frozenset(("id", "ms", "jv")),
    frozenset(("es", "ca", "an", "gl")),
    frozenset(("nl", "af")),
    frozenset(("ru", "be", "uk", "bg", "mk")),
    frozenset(("he", "yi")),
    frozenset(("ja", "zh")),
)


def language_of(text: str, document: str | None) -> str | None:
    """ISO 639-1 code of a passage: that of its document (None: unknown) unless the passage is clearly in another."""
    letters = [character for character in text if character.isalpha()]
    if len(letters) < LANGUAGE_LETTERS:
        return document
    script, share = _script(letters)
    if share >= SCRIPT_RATIO and script in _OF_SCRIPT:
        found = _OF_SCRIPT[script]
        return document if document and _related(found, document) else found
    if _speaks(text, document):
        return document
    if len(letters) < SURE_LETTERS or len(letters) < LETTER_RATIO * sum(not character.isspace() for character in text):
        return document
    return _guessed(text, len(letters), document)


def _speaks(text: str, language: str | None) -> bool:
    telling = _TELLING_WORDS.get(language or "")
    words = text.lower().split() if telling else []
    return telling is not None and sum(word in telling for word in words) >= TELLING_RATIO * max(len(words), 1)


def _script(letters: list[str]) -> tuple[str, float]:
    """The most frequent script and its share, by the names of the letters."""
    counts = Counter(letters)
    scripts: Counter[str] = Counter()
    for letter, count in counts.items():
        scripts[unicodedata.name(letter, "?").split(" ", 1)[0]] += count
    script, most = scripts.most_common(1)[0]
    return script, most / len(letters)


def _guessed(text: str, letters: int, document: str | None) -> str | None:
    import py3langid

    ranked = [(str(code), float(score)) for code, score in py3langid.rank(text)]
    best, score = ranked[0]
    if len(best) != 2 or best == document or (document and _related(best, document)):
        return document
    other = dict(ranked).get(document, ranked[-1][1]) if document else ranked[1][1]
    return best if score - other >= MARGIN_PER_LETTER * letters else document


def _related(one: str, other: str) -> bool:
    return one == other or any(one in group and other in group for group in _RELATIVES)
