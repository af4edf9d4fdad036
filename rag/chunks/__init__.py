"""Sections to passages that keep a document's own structure: headings, numbered articles, tables, lists, rows, speech.

Knows nothing of files, models or stores: tokens are counted by a callback.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rag.chunks.languages import language_of
from rag.chunks.measure import MAX_TEXT_BYTES, CountTokens, Measure
from rag.chunks.pieces import WINDOW_CHARS, Splitter
from rag.chunks.units import HEADED, Unit, units
from rag.loaders import SEPARATOR, LoadedDocument
from rag.types import PassageRow

__all__ = ["ARTICLE_MULTIPLE", "CHUNKER_VERSION", "MAX_TEXT_BYTES", "WINDOW_CHARS", "CountTokens", "passages"]

CHUNKER_VERSION = 2  # part of every content hash: raise it when the same sections would give other passages
ARTICLE_MULTIPLE = 4  # a numbered article of up to so many times chunk_tokens stays whole, where the embedder takes it
SMALL_TOKENS = 40
SPECIAL_TOKENS = 8  # what an embedder puts around a text, generously

_TIMES = re.compile(r"(?P<before>.*?)(?P<first>\d{1,5}:\d\d:\d\d(?:\.\d+)?) – (?P<last>\d{1,5}:\d\d:\d\d(?:\.\d+)?)")
_ROWS = re.compile(r"(?P<before>.*)\b(?P<noun>\w+?)s (?P<first>\d+)–(?P<last>\d+)")


def passages(
    document: LoadedDocument,
    document_id: str,
    source: str,
    content_hash: str,
    count_tokens: CountTokens,
    chunk_tokens: int = 220,
    overlap_tokens: int = 32,
    *,
    max_tokens: int | None = None,
) -> Iterator[PassageRow]:
    """The document's passages in order, at most `chunk_tokens` each; neighbours of one section share up to `overlap_tokens`.

    A numbered article (rag/chunks/markers.py) is one passage up to ARTICLE_MULTIPLE × `chunk_tokens`, as far as it fits, with
    its title and location, into the `max_tokens` that the embedder takes (None, unknown: no more than `chunk_tokens`). A longer
    one is split, each part under the article's name; two articles are never in one passage. Tables are cut between rows.
    One at a time: a 50 MB text takes minutes, and its first passages need not wait for the last. Every word of the sections is
    in some passage. The id is made of document, content and position, so the same content gives the same ids. Raises ValueError
    unless 0 <= overlap_tokens < chunk_tokens, and whatever `count_tokens` raises.
    """
    if not 0 <= overlap_tokens < chunk_tokens:
        raise ValueError(f"overlap_tokens ({overlap_tokens}) must be less than chunk_tokens ({chunk_tokens}), and not negative")
    chunker = _Chunker(document.title, count_tokens, chunk_tokens, overlap_tokens, max_tokens)
    for position, (location, text) in enumerate(chunker.texts(units(document.sections))):
        yield PassageRow(
            id=hashlib.sha256(f"{document_id}{content_hash}{position}".encode()).hexdigest()[:32],
            document_id=document_id,
            content_hash=content_hash,
            position=position,
            text=text,
            title=document.title,
            source=source,
            location=location,
            language=language_of(text, document.language),
        )


@dataclass(slots=True)
class _Chunker:
    title: str
    count_tokens: CountTokens
    chunk_tokens: int
    overlap_tokens: int
    max_tokens: int | None

    def texts(self, found: Iterator[Unit]) -> Iterator[tuple[str | None, str]]:
        """(location, text) of each passage."""
        measure = Measure(self.count_tokens, self.chunk_tokens)
        whole = Measure(self.count_tokens, ARTICLE_MULTIPLE * self.chunk_tokens)
        splitter = Splitter(measure, self.overlap_tokens)
        for unit in _gather(found, measure):
            if unit.article and whole.fits(unit.text, self._article_tokens(unit)):
                yield unit.location(), unit.text
            elif unit.kind == "rows":
                yield from _rows(unit, splitter)
            else:
                yield from _parts(unit, splitter)

    def _article_tokens(self, unit: Unit) -> int:
        """The most that an article may have to be one passage."""
        if self.max_tokens is None:
            return self.chunk_tokens
        around = self.count_tokens(f"{self.title}\n{unit.location() or ''}\n") + SPECIAL_TOKENS
        return max(self.chunk_tokens, min(ARTICLE_MULTIPLE * self.chunk_tokens, self.max_tokens - around))


def _parts(unit: Unit, splitter: Splitter) -> Iterator[tuple[str | None, str]]:
    titled = unit.head_chars > 0 and not splitter.measure.fits(unit.text)
    found = splitter.under_head(unit.text, unit.kind, unit.head_chars) if titled else splitter.pieces(unit.text, unit.kind)
    for index, piece in enumerate(found, 1):
        is_all = index == 1 and len(piece.text) >= len(unit.text.strip())
        yield unit.location(piece.start, piece.end, index if unit.article and not is_all else None), piece.text


def _rows(unit: Unit, splitter: Splitter) -> Iterator[tuple[str | None, str]]:
    """Rows of a table, a line each, as many as fit; each passage names its own rows where every line is one row."""
    where = unit.location()
    named = _ROWS.fullmatch(where or "")
    first = int(named["first"]) if named else 0
    lines = sum(bool(line.strip()) for line in unit.text.split("\n"))
    exact = named is not None and int(named["last"]) - first + 1 == lines
    for piece in splitter.rows(unit.text):
        if named is None or not exact:
            yield where, piece.text
            continue
        start = first + sum(bool(line.strip()) for line in unit.text[: piece.start].split("\n")[:-1])
        end = start + piece.text.strip().count("\n")
        rows = f"{named['noun']} {start}" if start == end else f"{named['noun']}s {start}–{end}"
        yield f"{named['before']}{rows}", piece.text


def _gather(found: Iterator[Unit], measure: Measure) -> Iterator[Unit]:
    """Units, what belongs together joined as long as it fits in one passage: short sections with what follows, speech.

    A heading that ends up inside a joined text is written there, since the location only names the first and the last.
    """
    held: Unit | None = None
    for unit in found:
        if held is not None:
            joined = _joined(held, unit, measure)
            if joined is not None and measure.fits(joined.text):
                held = joined
                continue
            yield held
        held = unit
    if held is not None:
        yield held


def _joined(one: Unit, other: Unit, measure: Measure) -> Unit | None:
    """Both as one, None where they stay apart: articles do, and pages of a PDF, whose number stays exact."""
    if one.kind != other.kind or one.article or other.article or one.names != other.names:
        return None
    where, there = one.location(), other.location()
    if one.kind == "speech":
        return Unit(f"{one.text}\n{other.text}", one.kind, ((0, _times(where, there)),))
    if one.kind not in HEADED or one.names or measure(one.text) >= SMALL_TOKENS:
        return None
    heading = (there or "").split(SEPARATOR)[-1]
    texts = [one.text, other.text] if heading in other.text else [one.text, heading, other.text]
    first = (where or "").split(" … ")[0] or None
    return Unit("\n\n".join(texts), one.kind, ((0, _span(first, there)),))


def _times(first: str | None, last: str | None) -> str | None:
    """From the beginning of one stretch of speech to the end of another: `00:01:23 – 00:02:10`."""
    one, other = _TIMES.fullmatch(first or ""), _TIMES.fullmatch(last or "")
    if one and other and one["before"] == other["before"]:
        return f"{one['before']}{one['first']} – {other['last']}"
    return _span(first, last)


def _span(first: str | None, last: str | None) -> str | None:
    return f"{first} … {last}" if first and last and first != last else first or last
