"""What every reader of a format gives: sections with a place, a title, notes; and the error of a file that gives none.

Knows no format and no file system.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rag.errors import RagError

SEPARATOR = " › "
MAX_TEXT_CHARS = 50_000_000  # of a format whose text can be longer than its file

SectionKind = Literal["text", "markdown", "html", "pdf", "docx", "pptx", "rows", "scan", "speech"]

_UNWANTED = dict.fromkeys([*(set(range(32)) - {9, 10}), *range(0x7F, 0xA0), 0xAD, 0xFEFF])


class LoadError(RagError):
    """A file cannot become a document: the message names the file and the cause."""

    def __init__(self, name: str, cause: str, next_step: str) -> None:
        super().__init__(f"{name}: {cause}", kind="bad_input", address=name, next_step=next_step)


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of a document. `location` is a page (`p. 3`), a time (`00:01:23 – 00:01:47`), a slide, rows or a heading path.

    It is None where there is none. The text of `scan` is Markdown, as that of `markdown`.
    """

    text: str
    location: str | None
    kind: SectionKind


@dataclass(frozen=True, slots=True)
class LoadedDocument:
    """`language` is an ISO 639-1 code, None for a short text. `notes` say what was guessed or left out.

    `incomplete`: some pages or stretches failed for reasons outside the file (a server that was away): reading it again may
    give more.
    """

    title: str
    sections: tuple[Section, ...]
    language: str | None
    notes: tuple[str, ...] = ()
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a reader found, not cleaned yet. No title: the file's name stands in; no language: it is detected."""

    title: str | None
    sections: list[Section]
    notes: tuple[str, ...] = ()
    language: str | None = None
    incomplete: bool = False


def collect(name: str, sections: Iterable[Section]) -> list[Section]:
    """The sections as a list of at most MAX_TEXT_CHARS characters. Raises LoadError beyond."""
    kept, length = [], 0
    for section in sections:
        length += len(section.text)
        if length > MAX_TEXT_CHARS:
            raise LoadError(name, f"holds more than {MAX_TEXT_CHARS:,} characters of text", "Split it into several files.")
        kept.append(section)
    return kept


def has_words(text: str) -> bool:
    """Whether there is a letter or digit of any script."""
    return any(map(str.isalnum, text))


def printable(text: str) -> str:
    """`text` as valid UTF-8: file names and PDF text can hold lone surrogates, which no store or JSON takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def clean(text: str) -> str:
    """One newline convention; no control characters, soft hyphens or lone surrogates, which break words and stores."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\v", "\n")
    return printable(text.translate(_UNWANTED)).strip("\n")


def short(text: str | None, limit: int) -> str:
    """`text` on one line of at most `limit` characters."""
    text = " ".join(clean(text or "").split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
