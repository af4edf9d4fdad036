"""Sections to units: an article as a whole, wherever its sections and pages end, or a stretch of text outside of any.

Knows nothing of tokens: what is too long is split later, and what is short joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rag.chunks.markers import Marker, heading_marker, markers
from rag.loaders import SEPARATOR, Section, has_words

HEADED = ("markdown", "html", "docx")  # kinds whose location is a path of headings
WITHOUT_ARTICLES = ("rows", "pptx", "speech")

_PAGE = re.compile(r"p\. (\d+)")


@dataclass(frozen=True, slots=True)
class Unit:
    """A text that is one thing. `places` are (offset in the text, location), in order; an `article` keeps for itself.

    `names` is what the text itself says of where it is: chapter and article, outermost first. `head_chars`: how long the lines
    are that only say so.
    """

    text: str
    kind: str
    places: tuple[tuple[int, str | None], ...]
    names: tuple[str, ...] = ()
    article: bool = False
    head_chars: int = 0

    def location(self, start: int = 0, end: int | None = None, part: int | None = None) -> str | None:
        """Where the stretch from `start` to `end` is, of an article with its name and, of a split one, its part."""
        end = len(self.text) if end is None else end
        begins = [offset for offset, _ in self.places[1:]] + [len(self.text)]
        touched = [where for (offset, where), stop in zip(self.places, begins, strict=True) if offset < end and stop > start]
        where = _together([place for place in touched if place])
        path = [*self.names, *([where] if where and self._paged() else [])]
        headings = [where] if where and not self._paged() else []
        return SEPARATOR.join([*headings, *path, *([f"part {part}"] if part else [])]) or None

    def _paged(self) -> bool:
        return self.kind not in HEADED


def _together(places: Sequence[str]) -> str | None:
    """One location for several: `p. 3–5`, or the headings that all are under."""
    if len(set(places)) <= 1:
        return places[0] if places else None
    first, last = _PAGE.fullmatch(places[0]), _PAGE.fullmatch(places[-1])
    if first and last:
        return f"p. {first[1]}–{last[1]}"
    paths = [place.split(SEPARATOR) for place in places]
    shared = next((n for n, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), min(map(len, paths)))
    return SEPARATOR.join(paths[0][:shared]) or f"{places[0]} … {places[-1]}"


def units(sections: Sequence[Section]) -> Iterator[Unit]:
    """The units of the sections, in order. Every word of the sections, headings that lie within a unit included, is in one."""
    reader = _Reader()
    for section in sections:
        if has_words(section.text):
            yield from reader.read(section)
    yield from reader.flush()


@dataclass(slots=True)
class _Reader:
    """What is open while the sections are read: the stack of chapters and articles, and the text of the innermost."""

    stack: list[Marker] = field(default_factory=list)
    base: tuple[str, ...] | None = None  # heading path down to the article that the headings name
    below: tuple[str, ...] = ()  # headings under it that the last section was under
    in_heading: bool = False
    texts: list[tuple[str, str | None]] = field(default_factory=list)
    kind: str = "text"
    bare: list[tuple[str, str | None]] = field(default_factory=list)  # a chapter's line, to go before what it holds
    bare_depth: int = 0

    def read(self, section: Section) -> Iterator[Unit]:
        kind: str = section.kind
        if kind in WITHOUT_ARTICLES:
            yield from self.flush()
            self.stack.clear()
            yield Unit(section.text, kind, ((0, section.location),))
            return
        text, goes_on = section.text, False
        if kind in HEADED:
            text, goes_on = self._under_headings(section)
        if not goes_on and not (self._article() and kind not in HEADED):
            yield from self.flush()
            if kind in HEADED:
                self.stack.clear()
        self.kind = kind
        yield from self._split(text, section.location)

    def _under_headings(self, section: Section) -> tuple[str, bool]:
        """The text, under those of its headings that are new within the article; whether the article goes on."""
        path = tuple((section.location or "").split(SEPARATOR))
        at = next((n for n in reversed(range(len(path))) if (found := heading_marker(path[n])) and not found.holds), None)
        base = path[: at + 1] if at is not None else None
        goes_on = base is not None and base == self.base and bool(self.texts or self.bare)
        self.in_heading = base is not None
        text = section.text
        below = path[len(base) :] if base is not None else ()
        if base is not None:
            known = self.below if goes_on else ()
            shared = next(
                (n for n, (one, other) in enumerate(zip(below, known, strict=False)) if one != other), min(len(below), len(known))
            )
            text = "\n\n".join([*(heading for heading in below[shared:] if heading not in text), text])
        self.base, self.below = base, below
        return text, goes_on

    def _article(self) -> bool:
        """Whether an article is open that the next page goes on with."""
        return bool(self.stack) and not self.stack[-1].holds and bool(self.texts)

    def _split(self, text: str, location: str | None) -> Iterator[Unit]:
        at = 0
        for marker in markers(text):
            if not marker.contents and not self._expected(marker):
                continue
            self._add(text[at : marker.start], location)
            yield from self.flush(before=marker)
            self._open(marker)
            at = marker.start
        self._add(text[at:], location)

    def _add(self, text: str, location: str | None) -> None:
        if text.strip():
            self.texts.append((text.strip("\n"), location))

    def _expected(self, marker: Marker) -> bool:
        """Whether the number goes on counting. A smaller one in running text is a reference; the same again a page's header."""
        same = next((open_one for open_one in self.stack if open_one.family == marker.family), None)
        if same is None or marker.series != same.series or not marker.number or not same.number:
            return True
        return marker.number > same.number or marker.number != same.number and (marker.head_chars > 0 or marker.number == (1,))

    def _open(self, marker: Marker) -> None:
        self.stack = self._above(marker)
        if not marker.contents:
            self.stack.append(marker)

    def _above(self, marker: Marker) -> list[Marker]:
        """What stays open around a marker: down to its own family where that is open, else all, of a chapter only chapters."""
        if marker.family == "annex":
            return []
        open_ones = [one for one in self.stack if one.holds] if marker.holds or marker.contents else self.stack
        at = next((n for n, one in enumerate(open_ones) if one.family == marker.family), None)
        return list(open_ones if at is None else open_ones[:at])

    def flush(self, before: Marker | None = None) -> Iterator[Unit]:
        """The open text as a unit. A chapter's bare line waits for the first thing that the chapter holds."""
        within = before is not None and not before.contents and self._above(before) == self.stack
        if within and self.stack and len(self.texts) == 1 and 0 < len(self.texts[0][0].rstrip()) <= self.stack[-1].head_chars:
            self.bare += self.texts
            self.texts = []
            return
        waited, self.bare = self.bare, []
        texts, self.texts = [*waited, *self.texts], []
        if texts:
            yield self._unit(texts, len(waited))

    def _unit(self, texts: Sequence[tuple[str, str | None]], waited: int) -> Unit:
        joint = "\n\n" if self.kind in HEADED else "\n"
        places, offset = list[tuple[int, str | None]](), 0
        for text, location in texts:
            if not places or places[-1][1] != location:
                places.append((offset, location))
            offset += len(text) + len(joint)
        article = self.in_heading and self.kind in HEADED or any(not one.holds for one in self.stack)
        names = tuple(one.name for one in self.stack)
        own = self.stack[-1].head_chars if self.stack and len(texts) > waited else 0
        head = sum(len(text) + len(joint) for text, _ in texts[:waited]) + own if own else 0
        return Unit(joint.join(text for text, _ in texts), self.kind, tuple(places), names, article, head)
