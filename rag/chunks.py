"""Sections to passages, by semantic_text_splitter. Knows nothing of files, models or stores: tokens are counted by a callback."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rag.loaders import SEPARATOR, LoadedDocument, Section, has_words
from rag.types import PassageRow

MAX_TEXT_BYTES = 60_000  # Milvus takes 65,535 in a VARCHAR
BYTES_PER_TOKEN = 32  # no prose has so many; WordPiece counts any run of over 100 characters without a space as one token
SMALL_TOKENS = 40
WINDOW_CHARS = 200_000

CountTokens = Callable[[str], int]


def passages(
    document: LoadedDocument,
    document_id: str,
    source: str,
    content_hash: str,
    count_tokens: CountTokens,
    chunk_tokens: int = 220,
    overlap_tokens: int = 32,
) -> Iterator[PassageRow]:
    """The document's passages in order, at most `chunk_tokens` each; neighbours of one section share up to `overlap_tokens`.

    One at a time: a 50 MB text takes minutes, and its first passages need not wait for the last. Every word of the sections is
    in some passage. The id is made of document, content and position, so the same content gives the same ids. Raises ValueError
    unless 0 <= overlap_tokens < chunk_tokens, and whatever `count_tokens` raises.
    """
    if not 0 <= overlap_tokens < chunk_tokens:
        raise ValueError(f"overlap_tokens ({overlap_tokens}) must be less than chunk_tokens ({chunk_tokens}), and not negative")
    measure = _Measure(count_tokens, chunk_tokens)
    texts = (
        (section.location, text)
        for section in _gather(document.sections, measure, chunk_tokens)
        for text in _pieces(section, measure, chunk_tokens, overlap_tokens)
    )
    for position, (location, text) in enumerate(texts):
        yield PassageRow(
            id=hashlib.sha256(f"{document_id}{content_hash}{position}".encode()).hexdigest()[:32],
            document_id=document_id,
            content_hash=content_hash,
            position=position,
            text=text,
            title=document.title,
            source=source,
            location=location,
            language=document.language,
        )


@dataclass(slots=True)
class _Measure:
    """The splitter's callback: tokens, or bytes in units of BYTES_PER_TOKEN where that is more.

    The bytes keep text that is few tokens but long (base64, minified code) within the store's limit, and spare
    tokenising what is too long anyway. An exception may not cross the splitter's Rust: it is kept and raised by `check`.
    """

    count_tokens: CountTokens
    chunk_tokens: int
    problem: Exception | None = None

    def __call__(self, text: str) -> int:
        unit = min(BYTES_PER_TOKEN, MAX_TEXT_BYTES / self.chunk_tokens)
        if len(text) > unit * self.chunk_tokens:
            return math.ceil(len(text) / unit)
        by_bytes = math.ceil(len(text.encode("utf-8", "surrogatepass")) / unit)
        if self.problem is not None or by_bytes > self.chunk_tokens:
            return by_bytes
        try:
            return max(self.count_tokens(text), by_bytes)
        except Exception as problem:
            self.problem = problem
            return by_bytes

    def check(self) -> None:
        if self.problem is not None:
            raise self.problem


def _pieces(section: Section, measure: _Measure, chunk_tokens: int, overlap_tokens: int) -> Iterator[str]:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    kind = MarkdownSplitter if section.kind == "markdown" else TextSplitter
    splitter = kind.from_callback(measure, chunk_tokens, overlap=overlap_tokens, trim=True)
    for window in _windows(section.text):
        chunks = [window] if measure(window) <= chunk_tokens else splitter.chunks(window)
        measure.check()
        yield from (chunk for chunk in chunks if has_words(chunk))


def _windows(text: str) -> Iterator[str]:
    """Stretches of at most WINDOW_CHARS, cut at a paragraph, line or word: what is split in one call cannot be interrupted."""
    start = 0
    while len(text) - start > WINDOW_CHARS:
        end = start + WINDOW_CHARS
        cuts = (text.rfind(mark, start + WINDOW_CHARS // 2, end) for mark in ("\n\n", "\n", " "))
        end = next((cut for cut in cuts if cut > 0), end)
        yield text[start:end].strip()
        start = end
    yield text[start:].strip()


def _gather(sections: Sequence[Section], measure: _Measure, chunk_tokens: int) -> Iterator[Section]:
    """Sections, those under SMALL_TOKENS joined with what follows them as long as both fit in one passage.

    A heading that ends up inside a joined text is written there, since the location only names the first and the last.
    """
    held: Section | None = None
    first: str | None = None
    for section in filter(lambda section: has_words(section.text), sections):
        if held is not None and _joinable(held, section) and measure(held.text) < SMALL_TOKENS:
            heading = (section.location or "").split(SEPARATOR)[-1]
            texts = [held.text, section.text] if heading in section.text else [held.text, heading, section.text]
            if measure(text := "\n\n".join(texts)) <= chunk_tokens:
                held = Section(text, _span(first, section.location), section.kind)
                continue
        if held is not None:
            yield held
        held, first = section, section.location
    if held is not None:
        yield held


def _joinable(one: Section, other: Section) -> bool:
    return one.kind == other.kind and one.kind in ("markdown", "html", "docx")  # a page number of a PDF stays exact


def _span(first: str | None, last: str | None) -> str | None:
    return f"{first} … {last}" if first and last and first != last else first or last
