"""What a question asks, as tokens that can be compared: typed ones (numbers, articles, dates …) and the concepts of its words.

`analyse` reads one question by itself; what two of them have in common is `rag/cache/guards.py`'s matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from rag.cache.lexicon import Entry, Lexicon, detect, lexicon
from rag.cache.normalise import clean, units_told_apart

Kind = Literal[
    "number", "quantity", "article", "date", "identifier", "name", "word", "pole", "negation", "question", "modal", "weak"
]
ORDERED: frozenset[str] = frozenset(("number", "quantity", "article", "date", "identifier", "name", "word", "pole", "negation"))

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "day": 86400.0, "week": 604800.0}
_MONTHS = {"month": 1.0, "year": 12.0}
_BYTES = (
    {"byte": 1.0} | {f"{p}b": 1000.0**n for n, p in enumerate("kmgt", 1)} | {f"{p}ib": 1024.0**n for n, p in enumerate("kmgt", 1)}
)
DIRECTED = frozenset(
    ("from", "to", "until", "since", "than", "instead", "before", "after", "behind", "against", "over", "under", "without")
)
INTERROGATIVES = frozenset(
    (
        "what",
        "why",
        "who",
        "when",
        "where",
        "how",
        "duration",
        "frequency",
        "number",
        "amount",
        "size",
        "speed",
        "distance",
        "age",
        "polar",
    )
)
_MEASURES = frozenset(("duration", "frequency", "number", "amount", "size", "speed", "distance", "age", "degree"))
_CLAUSES = frozenset(("before", "after", "until", "since", "when", "although", "because", "without"))
_ORDINAL_WORDS = {"second", "seconde", "segundo", "segunda", "deuxième"}
_ROMAN = re.compile(r"[ivxlc]{1,7}")
_PARTICLE = re.compile(r"\b((?:turn|switch)(?:s|ed|ing|es)?) ((?:[^\W\d_][\w-]* ){1,3})(on|off)(?= |[?.!,]|$)", re.I)
_CONTRACTIONS = ((re.compile(r"\b(ca|wo|sha)n't\b", re.I), r"\1n not"), (re.compile(r"n't\b", re.I), " not"))
_ABBREVIATED = re.compile(r"\b(arts?|sec|al|para|fig)\.?\s*(?=\d)|(?<!\w)(n\.?|no\.|n[°])\s*(?=\d)", re.I)
# Identifiers are looked ahead for 100 characters, not to the run's end: each piece of "a-a-a…" would look through all the rest.
_PIECE = re.compile(
    r"""(?P<url>https?://[^\s"]+[^\s.,;:?!)"])
    | (?P<time>(?<![\w:])\d{1,2}:\d{2}(?![\d:]))
    | (?P<clock>(?<!\w)\d{1,2}h\d{2}(?!\w))
    | (?P<date>(?<![\w-])\d{4}-\d{1,2}-\d{1,2}(?![\w-])|(?<![\w./])\d{1,2}[/.]\d{1,2}[/.]\d{2,4}(?![\w/]))
    | (?P<flag>(?<![\w-])--?[A-Za-z][\w-]*)
    | (?P<path>(?<![\w/])(?:~|\.{1,2})?/[A-Za-z][\w.@/-]*\w)
    | (?P<measure>(?<![\w.-])\d+(?:[.,]\d+)*(?:\ ?[%°]|[A-Za-zµ°]{1,4})(?![\w-]))
    | (?P<identifier>(?=[A-Za-z0-9_])(?=[A-Za-z0-9_.+-]{0,100}[0-9_])(?=[A-Za-z0-9_.+-]{0,100}[A-Za-z_])
                    [A-Za-z0-9_]+(?:[-_.+]+[A-Za-z0-9_]+)*
                    |(?<!\w)[A-Za-z]\w*(?:\.[A-Za-z]\w+)+)
    | (?P<number>\d{1,3}(?:\ \d{3})+(?!\d)|\d+(?:[.,]\d+)*)
    | (?P<word>[\u05d0-\u05ea]+(?:['"][\u05d0-\u05ea]+)*'?|[^\W\d_\u05d0-\u05ea]+)
    | (?P<sign>[$€£₪§%°#]+|\+\+)
    | (?P<stop>[,;:.?!()"])
    """,
    re.X,
)


class Token(NamedTuple):
    """One thing that the question says. `value` is compared, `said` is shown; `role` is the part a preposition gives it."""

    kind: Kind
    value: str
    said: str
    role: str | None = None
    movable: bool = False
    phrase: int = 0


class _Piece(NamedTuple):
    kind: str
    text: str
    low: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question taken apart. `asks` is what kind of answer it wants: `what`, `how`, `polar`, `keywords`, or why, who, when …

    `measures`: it asks how much of something. `symmetric`: its verb lets both sides change places ("A works with B").
    """

    text: str
    language: str
    tokens: tuple[Token, ...]
    asks: frozenset[str]
    symmetric: bool = False
    measures: bool = False

    def of(self, *kinds: Kind) -> list[Token]:
        return [token for token in self.tokens if token.kind in kinds]


@lru_cache(maxsize=8192)
def analyse(text: str, language: str | None = None) -> Question:
    """Take a question apart; `language` None finds it out. Never raises: what is not understood is a word."""
    plain = clean(text)
    for pattern, other in _CONTRACTIONS:
        plain = pattern.sub(other, plain)
    plain = _PARTICLE.sub(r"\1 \3 \2", plain)
    plain = _ABBREVIATED.sub(lambda found: f"{found[1]} " if found[1] else "", units_told_apart(plain))
    pieces = [_Piece(str(found.lastgroup), found[0], found[0].lower()) for found in _PIECE.finditer(plain)]
    language = language or detect([piece.low for piece in pieces if piece.kind == "word"])
    reader = _Reader(pieces, lexicon(language))
    reader.read()
    symmetric = not reader.words.symmetric.isdisjoint(reader.low)
    measures = any(concept in _MEASURES for _, _, concept in reader.interrogatives)
    return Question(text, language, tuple(reader.tokens), reader.asks(plain.rstrip().endswith("?")), symmetric, measures)


class _Reader:
    """One pass over the pieces; `tokens` and the words that ask are what comes out."""

    def __init__(self, pieces: Sequence[_Piece], words: Lexicon) -> None:
        self.pieces, self.words = pieces, words
        self.low = [piece.low for piece in pieces]
        self.at = 0
        self.role: str | None = None
        self.phrase = 0
        self.tokens: list[Token] = []
        self.interrogatives: list[tuple[int, int, str]] = []
        self.asked_parts: set[str] = set()
        self.says_from = False
        self.comma = self.low.index(",") + 1 if "," in self.low[:-1] else 0  # the piece behind the first one; 0: there is none

    def read(self) -> None:
        while self.at < len(self.pieces):
            self._next()

    def _next(self) -> None:
        piece = self.pieces[self.at]
        if piece.kind == "stop":
            if piece.text in ",;:()":
                self._break(None)
            self.at += 1
        elif not (self._article() or self._date() or self._quantity() or self._phrase()):
            self._other(piece)
            self.at += 1

    def _break(self, role: str | None) -> None:
        self.role = role
        self.phrase += 1

    def _said_in_phrase(self) -> bool:
        return bool(self.tokens) and self.tokens[-1].phrase == self.phrase

    def add(self, kind: Kind, value: str, said: str, *, movable: bool = False) -> bool:
        self.tokens.append(Token(kind, value, said, self.role, movable, self.phrase))
        self.says_from |= self.role == "from"
        if self.role in ("asked", "topic") and self.words.language != "en" and kind in ORDERED:
            self._break(None)  # no auxiliary ends the phrase that is asked for
        return True

    def _peek(self, ahead: int) -> _Piece:
        index = self.at + ahead
        return self.pieces[index] if index < len(self.pieces) else _Piece("end", "", "")

    # 1) typed tokens

    def _article(self) -> bool:
        """`Art. 72(3)`, `section 14`, `סעיף 7`: a kind of passage of a law or document and its number."""
        kind = self._looked_up(self.words.articles, self._peek(0))
        step = 2 if self._peek(1).text == "." else 1
        number = self._peek(step)
        roman = number.kind == "word" and bool(_ROMAN.fullmatch(number.low)) and number.text.isupper()
        if kind is None or not (number.kind in ("number", "identifier", "measure") or roman):
            return False
        value, end = number.low, step + 1
        while self._peek(end).text == "(" and self._peek(end + 2).text == ")":
            value, end = f"{value}({self._peek(end + 1).low})", end + 3
        said = f"{self._peek(0).text} {value}"
        self.at += end
        return self.add("article", f"{kind} {value}", said)

    def _date(self) -> bool:
        piece = self._peek(0)
        if piece.kind in ("date", "time", "clock"):
            self.at += 1
            return self.add("date", _written_date(piece), piece.text)
        day, end = (piece.low, 1) if piece.kind == "number" and len(piece.low) <= 2 else ("", 0)
        if day and self._peek(end).low in ("of", "de", "ב", "er"):
            end += 1
        month = self._month(self._peek(end), bool(day), self._peek(end + 1).kind == "number")
        if month is None:
            return False
        end += 1
        if not day and self._peek(end).kind == "number" and len(self._peek(end).low) <= 2:
            day, end = self._peek(end).low, end + 1
        if self._peek(end).low in (",", "de", "of") and self._peek(end + 1).kind == "number":
            end += 1
        year = self._peek(end).low if re.fullmatch(r"\d{4}", self._peek(end).low) else ""
        said = " ".join(part.text for part in self.pieces[self.at : self.at + end + bool(year)])
        self.at += end + bool(year)
        return self.add("date", f"{year or '*'}-{int(month):02}-{day.zfill(2) if day else '*'}", said)

    def _month(self, piece: _Piece, after_day: bool, before_number: bool) -> str | None:
        month = self._looked_up(self.words.months, piece)
        if month and self.words.language == "en" and (len(piece.low) <= 4 or piece.low == "march"):
            return month if after_day or before_number else None  # may, march, jan: also other words
        return month

    def _quantity(self) -> bool:
        """A number with its unit, as one value whatever unit it is written in; or the number alone."""
        piece = self._peek(0)
        if piece.kind == "sign" and piece.text in "$€£₪" and self._peek(1).kind == "number":
            unit = self._looked_up(self.words.units, piece) or piece.text
            self.at += 2
            return self.add(
                "quantity", f"{self._number(self.pieces[self.at - 1].low)} {unit}", piece.text + self.pieces[self.at - 1].text
            )
        if piece.kind == "measure":
            return self._measure(piece)
        value = self._number(piece.low) if piece.kind == "number" else self._looked_up(self.words.numbers, piece)
        if value is None:
            return False
        if piece.kind == "word" and piece.low in self.words.function:
            return False
        measured_in = self._looked_up(self.words.units, self._peek(1))
        if measured_in is None or not value[0].isdigit():
            self.at += 1
            return self.add("number", value, piece.text)
        said = f"{piece.text} {self._peek(1).text}"
        self.at += 2
        return self.add("quantity", _in_base_unit(value, measured_in), said)

    def _measure(self, piece: _Piece) -> bool:
        """`7.25s`, `16GB`, `40k`; what has no unit behind its digits (`7B`, `3rd`) is an identifier or an ordinal."""
        found = re.fullmatch(r"([\d.,]*\d) ?(\D+)", piece.low)
        assert found is not None
        self.at += 1
        if found[2] in ("st", "nd", "rd", "th", "e", "er", "eme"):
            return self.add("number", f"o{found[1]}", piece.text)
        if found[2] == "k" and re.fullmatch(r"\d+(?:\.\d+)?", thousands := self._number(found[1])):
            return self.add("number", f"{float(thousands) * 1000:.12g}", piece.text)
        unit = self.words.units.get(found[2])
        if unit is None:
            return self.add("identifier", piece.low, piece.text)
        return self.add("quantity", _in_base_unit(self._number(found[1]), unit), piece.text)

    def _number(self, text: str) -> str:
        """Thousands' separators out, a decimal point in; "2.10" stays apart from "2.1", as versions are."""
        text = text.replace(" ", "")
        grouped, decimal = (".", ",") if self.words.language in ("pt", "fr") else (",", ".")
        if re.fullmatch(rf"\d{{1,3}}(?:{re.escape(grouped)}\d{{3}})+(?:{re.escape(decimal)}\d+)?", text):
            text = text.replace(grouped, "")
        return text.replace(",", ".")

    def _looked_up(self, table: object, piece: _Piece) -> str | None:
        assert isinstance(table, dict)
        if piece.kind not in ("word", "sign"):
            return None
        found = table.get(piece.low)
        if found is None and len(piece.low) > 3:
            found = table.get(self.words.stem(piece.low))
        return found

    # 2) words

    def _phrase(self) -> bool:
        if self._peek(0).kind != "word" or (self._peek(0).text == "A" and self.at > 0):  # "Is A allowed …": no article
            return False
        words = []
        for piece in self.pieces[self.at : self.at + 9]:
            if piece.kind != "word":
                break
            words.append(piece.low)
        found = self.words.match(words, 0)
        unit = self._bare_unit(self._peek(0))
        if unit is not None and (found is None or found[0] == 1 and found[1].section not in ("adjectives", "negation")):
            self.at += 1
            return unit
        if found is None:
            return False
        count, entry = found
        self._take(entry, count, " ".join(piece.text for piece in self.pieces[self.at : self.at + count]))
        self.at += count
        return True

    def _bare_unit(self, piece: _Piece) -> bool | None:
        """A unit without a number ("in how many hours"); `second` alone is an ordinal."""
        if piece.low in _ORDINAL_WORDS:
            return self.add("number", "o2", piece.text)
        unit = self._looked_up(self.words.units, piece) if len(piece.low) > 2 else None
        return None if unit is None else self.add("quantity", unit, piece.text)

    def _take(self, entry: Entry, count: int, said: str) -> None:
        section, low = entry.section, said.lower()
        if entry.role is not None:
            self._take_role(entry.role, count)
        elif low in self.words.auxiliaries:
            asks_what_it_is = self.role == "asked" and low in self.words.copulas and not self._said_in_phrase()
            if not (low in self.words.copulas and self.role in _CLAUSES):
                self._break("topic" if asks_what_it_is else None)
        elif low in self.words.determiners:
            self.phrase += 1
        if section == "questions":
            self._take_interrogative(entry, count, said)
        elif section == "modals":
            self.add("modal", entry.concepts[0], said)
            self._break(None)
        elif section == "negation":
            self.add("negation", "not", said)
        elif section == "weekdays":
            self.add("date", f"w{entry.concepts[0]}", said)
        elif section == "poles":
            self.add("pole", entry.concepts[0], said, movable=True)
        elif section == "weak":
            self.add("weak", self.words.stem(low) if entry.concepts == ("weak",) else entry.concepts[0], said)
        elif section in ("verbs", "nouns", "adjectives"):
            if entry.concepts[0] == "per":
                self.add("quantity", " ".join(entry.concepts), said)
                return
            named = self.at > 0 and self.low[self.at - 1] in self.words.determiners  # "the reranker", "a restart": a thing
            for concept in entry.concepts:
                self.add("word", concept, said, movable=section == "verbs" and not named)
            if section == "verbs":
                self._break(None)

    def _take_role(self, role: str, count: int) -> None:
        """`to` before a verb says no direction."""
        following = self._peek(count)
        names_a_goal = (
            following.low in self.words.determiners
            or following.kind in ("number", "identifier", "measure")
            or following.text[:1].isupper()
            or self.says_from
        )
        self._break(role if role != "to" or self.words.language != "en" or names_a_goal else None)

    def _degree(self, count: int) -> bool:
        """English "how hot", beside "how do I"."""
        following = self._peek(count)
        verb = following.low in self.words.auxiliaries or following.low in ("to", "about", "the")
        return self.words.language == "en" and count == 1 and following.kind == "word" and not verb

    def _take_interrogative(self, entry: Entry, count: int, said: str) -> None:
        """What stands after which, what, how many is asked for, wherever in the sentence that is."""
        after_role = self.role is not None and not self._said_in_phrase()
        for concept in entry.concepts:
            if concept in INTERROGATIVES:
                self.interrogatives.append((self.at, count, "degree" if concept == "how" and self._degree(count) else concept))
            else:
                self.add("word", concept, said, movable=True)
        asked = any(concept in ("what", "number", "amount") for concept in entry.concepts)
        if after_role and self.role in DIRECTED:
            self.asked_parts.add(str(self.role))
            return
        if asked or not after_role:
            self._break("asked" if asked else None)

    def _other(self, piece: _Piece) -> None:
        if piece.kind == "word":
            opens = self.at == 0 or self.pieces[self.at - 1].text in ".?!"
            name = piece.text[0].isupper() and (not opens or piece.text.isupper() and len(piece.text) > 1)
            self.add("name" if name else "word", self.words.stem(piece.low), piece.text)
        elif piece.kind != "sign" or piece.text in ("#", "++"):
            value = (
                re.sub(r"(?<=\d)s$", "", piece.low).replace("-", "").replace("_", "") if piece.kind == "identifier" else piece.low
            )
            self.add("identifier", value, piece.text)

    # 3) what is asked for

    def asks(self, ends_with_mark: bool) -> frozenset[str]:
        """The interrogatives; `when`, `where` and `who` count only where they ask, not where they join a clause."""
        places: dict[str, set[int]] = {}
        for at, _, concept in self.interrogatives:
            places.setdefault(concept, set()).add(at)
        asked = {
            concept
            for at, count, concept in self.interrogatives
            if concept not in ("what", "amount", "polar") and (count > 1 or not self._may_join(at, concept, places))
        }
        if asked:
            return frozenset(asked | self.asked_parts)
        if any(concept in ("what", "amount") for _, _, concept in self.interrogatives):
            return frozenset(("what", *self.asked_parts))
        polar = ends_with_mark or any(concept == "polar" for _, _, concept in self.interrogatives)
        return frozenset(("polar" if polar else "keywords",))

    def _may_join(self, at: int, concept: str, places: Mapping[str, Set[int]]) -> bool:
        """Whether the word may be a conjunction or a relative pronoun here: "What happens when …", "the team that … who"."""
        others = any(other != concept and len(indexes) > (at in indexes) for other, indexes in places.items())
        if concept == "when":
            following = self.low[at + 1] if at + 1 < len(self.low) else "?"
            clause = at == 0 and self.comma and self.low[self.comma] in self.words.auxiliaries
            return others or bool(clause) or not (at == 0 or following == "?" or following in self.words.auxiliaries)
        return concept in ("where", "who", "how") and others and at > 0


def _written_date(piece: _Piece) -> str:
    if piece.kind == "clock":
        return piece.low.replace("h", ":").zfill(5)
    if piece.kind == "time":
        return piece.low.zfill(5)
    parts = re.split(r"[-/.]", piece.low)
    if len(parts[0]) == 4:
        return f"{parts[0]}-{int(parts[1]):02}-{int(parts[2]):02}"
    return piece.low


def _in_base_unit(number: str, unit: str) -> str:
    for table, base in ((_SECONDS, "s"), (_MONTHS, "month"), (_BYTES, "byte")):
        if unit in table:
            try:
                return f"{float(number) * table[unit]:.12g} {base}"
            except ValueError:
                break
    return f"{number} {unit}"
