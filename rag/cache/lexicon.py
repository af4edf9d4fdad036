"""The words of one language, read from `words/*.txt`, and its stemmer. Knows nothing of questions or of comparing them.

A stem is only a key for comparing: it need not be a word. Accents are left out of it, as many people leave them out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

LANGUAGES = ("en", "pt", "fr", "he")
UNKNOWN = "und"
FOLDER = Path(__file__).parent / "words"
# of two entries of equal length the earlier section counts
SECTIONS = ("drop", "weekdays", "negation", "questions", "modals", "poles", "verbs", "nouns", "adjectives", "weak", "function")
_LISTS = ("drop", "negation", "weak", "function", "auxiliaries", "copulas", "determiners", "symmetric")
_HEBREW = re.compile(r"[\u05d0-\u05ea]")
_HEBREW_FINALS = str.maketrans("םןץףך", "מנצפכ")
_HEBREW_PREFIXES = "והבכלמש"


Sections = dict[str, list[tuple[str, list[tuple[str, ...]]]]]


class Entry(NamedTuple):
    """What a word or phrase of the lexicon is: `concepts` are what it says, `role` the part that what follows it plays."""

    section: str
    concepts: tuple[str, ...]
    role: str | None = None


class Keyed(NamedTuple):
    """A phrase of the lexicon under its first word; `written` where that is a form that stands there, else its stem."""

    words: tuple[str, ...]
    entry: Entry
    written: bool


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words and phrases by their stems, the longest first for each first stem; and the words of typed tokens by stem."""

    language: str
    entries: Mapping[str, tuple[Keyed, ...]]
    function: frozenset[str]
    auxiliaries: frozenset[str]
    copulas: frozenset[str]
    determiners: frozenset[str]
    symmetric: frozenset[str]
    numbers: Mapping[str, str]
    articles: Mapping[str, str]
    months: Mapping[str, str]
    units: Mapping[str, str]

    def match(self, words: Sequence[str], start: int) -> tuple[int, Entry] | None:
        """How many words from `start` the longest entry takes, and the entry. `words` are lower case."""
        best: tuple[int, Entry] | None = None
        for key in dict.fromkeys((words[start], self.stem(words[start]))):
            for keyed in self.entries.get(key, ()):
                length, end = len(keyed.words), start + len(keyed.words)
                if best is not None and length < best[0]:
                    break
                as_written = keyed.written and keyed.words == tuple(words[start:end])
                if as_written or (end <= len(words) and self._stems_match(keyed.words, words[start:end])):
                    if best is None or length > best[0] or as_written:
                        best = length, keyed.entry
                    if as_written:
                        break
        return best

    def _stems_match(self, phrase: Sequence[str], words: Sequence[str]) -> bool:
        return all(part in (word, self.stem(word)) for part, word in zip(phrase, words, strict=True))

    def stem(self, word: str) -> str:
        return stem(word, self.language)


@cache
def lexicon(language: str) -> Lexicon:
    """The lexicon of one of LANGUAGES; for any other one without words."""
    sections = _read(FOLDER / f"{language}.txt") if language in LANGUAGES else {}
    found: dict[tuple[str, ...], Entry] = {}
    roles = {phrase: concept for concept, phrases in sections.get("roles", ()) for phrase in phrases}
    for section in SECTIONS:
        for concept, phrases in sections.get(section, ()):
            for phrase in phrases:
                found.setdefault(phrase, Entry(section, tuple(concept.split("+")) if "+" in concept[:-1] else (concept,)))
    for phrase, role in roles.items():
        known = found.get(phrase, Entry("function", ()))
        found[phrase] = known._replace(role=role)
    by_first: dict[str, list[Keyed]] = {}
    for phrase, entry in found.items():
        by_first.setdefault(phrase[0], []).append(Keyed(phrase, entry, True))
        stems = tuple(stem(word, language) for word in phrase)
        if stems != phrase:
            by_first.setdefault(stems[0], []).append(Keyed(stems, entry, False))
    entries = {
        key: tuple(sorted(items, key=lambda item: (-len(item.words), not item.written))) for key, items in by_first.items()
    }
    return Lexicon(
        language,
        entries,
        _single(sections, "function"),
        _single(sections, "auxiliaries"),
        _single(sections, "copulas"),
        _single(sections, "determiners"),
        _single(sections, "symmetric"),
        _values(sections, "numbers", language),
        _values(sections, "articles", language),
        _values(sections, "months", language),
        _values(sections, "units", language),
    )


def _single(sections: Sections, name: str) -> frozenset[str]:
    return frozenset(phrase[0] for _, phrases in sections.get(name, ()) for phrase in phrases)


def _read(path: Path) -> Sections:
    """Sections of a word file as (concept, phrases); opposite poles become the concepts `axis:+` and `axis:-`."""
    sections: Sections = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            sections.setdefault(section, [])
        else:
            sections[section].extend(_line(section, line))
    return sections


def _line(section: str, line: str) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    if section in _LISTS and ":" not in line:
        yield section, _phrases(line)
    elif section in ("numbers", "months", "weekdays"):
        for item in line.split(","):
            word, _, value = item.strip().partition("=")
            yield value, [_words(word)]
    elif section == "poles":
        axis, _, both = line.partition(":")
        more, _, less = both.partition(" / ")
        yield f"{axis}:+", _phrases(more)
        yield f"{axis}:-", _phrases(less)
    else:
        concept, _, forms = line.partition(":")
        name, _, parts = concept.partition("=")
        yield "+".join(parts.split()) or name.strip(), _phrases(forms)


def _phrases(text: str) -> list[tuple[str, ...]]:
    return [words for part in text.split(",") if (words := _words(part))]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.strip().lower().replace("-", " ").split())


def _values(sections: Sections, name: str, language: str) -> dict[str, str]:
    """The words of a section that is looked up word by word, as written and as stem."""
    values: dict[str, str] = {}
    for concept, phrases in sections.get(name, ()):
        for phrase in phrases:
            values.setdefault(" ".join(phrase), concept)
            if len(phrase[0]) > 3:
                values.setdefault(stem(" ".join(phrase), language), concept)
    return values


def detect(words: Sequence[str]) -> str:
    """The language of lower-case words by script and by how many of them its lexicon has; `und` where no word tells."""
    letters = "".join(words)
    if len(_HEBREW.findall(letters)) * 3 > len(letters):
        return "he"
    votes = {language: _votes(lexicon(language), words) for language in LANGUAGES if language != "he"}
    best = max(votes, key=lambda language: votes[language])
    other = max(sum(word in others for word in words) for others in _others())
    return best if votes[best] and votes[best] >= other else UNKNOWN


@cache
def _others() -> tuple[frozenset[str], ...]:
    """The commonest words of languages without a lexicon."""
    lines = (FOLDER / "other.txt").read_text(encoding="utf-8").splitlines()
    return tuple(frozenset(line.partition(": ")[2].split(", ")) for line in lines if ": " in line and not line.startswith("#"))


def _votes(words_of: Lexicon, words: Sequence[str]) -> float:
    return sum(1.0 if word in words_of.function else 0.4 if word in words_of.entries else 0.0 for word in words)


@cache
def _plain(word: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFD", word) if unicodedata.category(letter) != "Mn")


def stem(word: str, language: str) -> str:
    """A lower-case word without its commonest endings, so that forms of it compare equal. Short words stay as they are."""
    if language == "en":
        return _english(word)
    if language == "fr":
        return _french(_plain(word))
    if language == "pt":
        return _portuguese(_plain(word))
    return _hebrew(word) if language == "he" else word


def _english(word: str) -> str:
    if len(word) > 4 and word.endswith(("ies", "ied")):
        word = word[:-3] + "y"
    elif word.endswith(("sses", "xes", "zes", "ches", "shes")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        body = word.removesuffix(ending)
        if body != word and len(body) > 2 and re.search(r"[aeiouy]", body):
            word = body[:-1] if len(body) > 3 and body[-1] == body[-2] and body[-1] not in "lsz" else body
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def _french(word: str) -> str:
    if len(word) > 3 and word.endswith(("s", "x")) and not word.endswith("ss"):
        word = word[:-1]
    for ending in ("ement", "ent", "er", "ee", "e"):
        if len(word) - len(ending) > 3 and word.endswith(ending):
            return word[: -len(ending)]
    return word


def _portuguese(word: str) -> str:
    for ending, other in (("oes", "ao"), ("aes", "ao"), ("ais", "al"), ("eis", "el"), ("ns", "m"), ("s", "")):
        if len(word) - len(ending) > 1 and word.endswith(ending):
            word = word[: -len(ending)] + other
            break
    for ending in ("ando", "endo", "indo", "ado", "ada", "ido", "ida", "am", "em", "ar", "er", "ir", "a", "o", "e"):
        if len(word) - len(ending) > 3 and word.endswith(ending):
            return word[: -len(ending)]
    return word


def _hebrew(word: str) -> str:
    if len(word) > 4 and word.endswith(("ים", "ות")):
        word = word[:-2]
    while len(word) > 3 and word[0] in _HEBREW_PREFIXES:
        word = word[1:]
    return word.translate(_HEBREW_FINALS)
