"""A text to pieces that fit, cut where it hurts least: tables between rows, the rest by semantic_text_splitter.

Knows nothing of documents, locations or articles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rag.chunks.measure import Measure
from rag.loaders import has_words
from rag.outlines import fence_after

WINDOW_CHARS = 200_000
MARKDOWN = ("markdown", "scan")  # a scan is read by a vision model that writes Markdown
_DELIMITERS = frozenset("|:- \t")


class Piece(NamedTuple):
    """A piece of a text, from `start` to `end` there; `verbatim` unless it begins with a table's header once more."""

    start: int
    end: int
    text: str
    verbatim: bool = True


class _Block(NamedTuple):
    start: int
    end: int
    head_end: int | None  # of a table: where its rows begin


Chunk = Callable[[str], list[tuple[int, str]]]


@dataclass(slots=True)
class Splitter:
    """Splits texts into pieces of at most the measure's limit; neighbours share up to `overlap_tokens`, tables nothing."""

    measure: Measure
    overlap_tokens: int

    def pieces(self, text: str, kind: str) -> Iterator[Piece]:
        """The pieces that hold words, in order. Raises what the measure's counter raises."""
        for start, window in _windows(text):
            if self.measure.fits(window):
                found: Iterator[Piece] = iter([Piece(0, len(window), window)])
            else:
                found = self._joined(window, kind)
            for piece in found:
                if has_words(piece.text):
                    yield piece._replace(start=start + piece.start, end=start + piece.end)

    def under_head(self, text: str, kind: str, head_chars: int) -> Iterator[Piece]:
        """The pieces of a text whose first lines are its title: that is no piece alone, but opens the first."""
        end = self._first_end(text, kind, head_chars)
        opening = text[:end]
        if not has_words(opening) or not self.measure.fits(opening):
            yield from self.pieces(text, kind)
            return
        yield Piece(0, end, opening)
        for piece in self.pieces(text[end:], kind):
            yield piece._replace(start=end + piece.start, end=end + piece.end)

    def _first_end(self, text: str, kind: str, head_chars: int) -> int:
        """Where the first piece ends that opens with the title; 0 where the title leaves no room, or a table must not be cut."""
        head = text[:head_chars].rstrip()
        near = text[head_chars : head_chars + math.ceil(self.measure.most_chars()) + 1]  # more than one piece
        room = self.measure.limit_tokens - self.measure(head) - 2
        self.measure.check()
        if not head or room <= self.measure.limit_tokens // 2 or any(block.head_end is not None for block in _blocks(near)):
            return 0
        first = next(iter(self._chunker(kind, room, 0)(near)), None)
        return head_chars + first[0] + len(first[1]) if first else 0

    def _joined(self, text: str, kind: str) -> Iterator[Piece]:
        """The pieces of each block, the last of one joined with the first of the next where both fit: a table's caption."""
        held: Piece | None = None
        for block in _blocks(text):
            for index, piece in enumerate(self._of_block(text, block, kind)):
                if held is not None:
                    both = held.text + text[held.end : piece.end]
                    if index == 0 and piece.verbatim and piece.start >= held.end and self.measure.fits(both):
                        held = Piece(held.start, piece.end, both, held.verbatim)
                        continue
                    yield held
                held = piece
        if held is not None:
            yield held

    def _of_block(self, text: str, block: _Block, kind: str) -> Iterator[Piece]:
        if block.head_end is not None:
            yield from self._table(text, block, block.head_end)
            return
        for offset, chunk in self._chunker(kind, self.measure.limit_tokens, self.overlap_tokens)(text[block.start : block.end]):
            yield Piece(block.start + offset, block.start + offset + len(chunk), chunk)

    def _chunker(self, kind: str, limit_tokens: int, overlap_tokens: int) -> Chunk:
        from semantic_text_splitter import MarkdownSplitter, TextSplitter

        splitter = MarkdownSplitter if kind in MARKDOWN else TextSplitter
        cutter = splitter.from_callback(self.measure, limit_tokens, overlap=overlap_tokens, trim=True)

        def chunks(text: str) -> list[tuple[int, str]]:
            whole = text.strip()
            if self.measure(whole) <= limit_tokens:
                return [(len(text) - len(text.lstrip()), whole)]
            found = list(cutter.chunk_indices(text))
            self.measure.check()
            return found

        return chunks

    def _table(self, text: str, block: _Block, head_end: int) -> Iterator[Piece]:
        """Whole rows under the table's header, which each piece repeats; without it where it takes more than half the room."""
        head = text[block.start : head_end]
        room = self.measure.limit_tokens - self.measure(head) - 1
        repeated = room >= self.measure.limit_tokens // 2
        begin = head_end + 1 if repeated else block.start
        for index, rows in enumerate(self.rows(text[begin : block.end], f"{head}\n" if repeated else "")):
            start, end = begin + rows.start, begin + rows.end
            if repeated and index == 0 and rows.verbatim:
                yield Piece(block.start, end, text[block.start : end])
            elif repeated and self.measure.fits(both := f"{head}\n{rows.text}"):
                yield Piece(start, end, both, verbatim=False)
            else:
                yield Piece(start, end, rows.text, verbatim=not repeated)

    def rows(self, text: str, head: str = "") -> Iterator[Piece]:
        """Lines together as long as they fit below `head`, which is not in the pieces; only a line too long by itself is cut.

        A piece is `verbatim` unless it is a part of such a line.
        """
        lines = list(_lines(text))
        at = 0
        while at < len(lines):
            count = self._most(text, lines, at, head)
            start, end = lines[at][0], lines[at + max(count, 1) - 1][1]
            found = [Piece(start, end, text[start:end])] if count else self._parts(text[start:end], start, head)
            yield from (piece for piece in found if has_words(piece.text))
            at += max(count, 1)

    def _most(self, text: str, lines: Sequence[tuple[int, int]], at: int, head: str) -> int:
        """How many lines from `at` on fit together; by doubling and halving: to measure costs as much as the text is long."""

        def fits(count: int) -> bool:
            return self.measure.fits(head + text[lines[at][0] : lines[at + count - 1][1]])

        most = len(lines) - at
        high = 1
        while high <= most and fits(high):
            high *= 2
        low, high = high // 2, min(high, most + 1)  # low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _parts(self, line: str, start: int, head: str) -> Iterator[Piece]:
        limit = max(self.measure.limit_tokens // 2, self.measure.limit_tokens - (self.measure(head) + 1 if head else 0), 1)
        for offset, part in self._chunker("text", limit, 0)(line):
            yield Piece(start + offset, start + offset + len(part), part, verbatim=False)


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each line with something on it."""
    at = 0
    for line in text.split("\n"):
        if line.strip():
            yield at, at + len(line)
        at += len(line) + 1


def _blocks(text: str) -> Iterator[_Block]:
    """The Markdown tables of a text, and what lies between them. A table in a code fence is code."""
    if "|" not in text:
        yield _Block(0, len(text), None)
        return
    at, offset, fence = 0, 0, ""
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        fence = fence_after(fence, lines[number])
        length = 0 if fence else _table_lines(lines, number)
        size = sum(len(line) + 1 for line in lines[number : number + max(length, 1)])
        if length:
            if text[at:offset].strip():
                yield _Block(at, offset, None)
            head_end = offset + len(lines[number]) + 1 + len(lines[number + 1])
            yield _Block(offset, min(offset + size - 1, len(text)), head_end)
            at = offset + size
        offset += size
        number += max(length, 1)
    if text[at:].strip():
        yield _Block(at, len(text), None)


def _table_lines(lines: Sequence[str], number: int) -> int:
    """How many lines the table has that begins here; 0 where none does."""
    if number + 2 >= len(lines) or not all("|" in line for line in lines[number : number + 3]):
        return 0
    ruler = lines[number + 1].strip()
    if "-" not in ruler or not _DELIMITERS.issuperset(ruler):
        return 0
    end = number + 2
    while end < len(lines) and "|" in lines[end]:
        end += 1
    return end - number


def _windows(text: str) -> Iterator[tuple[int, str]]:
    """Stretches of at most WINDOW_CHARS with their offsets, cut at a paragraph, line or word: what is split in one call
    cannot be interrupted."""
    start = 0
    while len(text) - start > WINDOW_CHARS:
        end = start + WINDOW_CHARS
        cuts = (text.rfind(mark, start + WINDOW_CHARS // 2, end) for mark in ("\n\n", "\n", " "))
        end = next((cut for cut in cuts if cut > 0), end)
        yield _stripped(text, start, end)
        start = end
    yield _stripped(text, start, len(text))


def _stripped(text: str, start: int, end: int) -> tuple[int, str]:
    window = text[start:end]
    return start + len(window) - len(window.lstrip()), window.strip()
