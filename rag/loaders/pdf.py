"""PDF pages to sections: the text layer by pypdf, and pages without a usable one by text recognition where there is some."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rag.loaders import scans
from rag.loaders.document import LoadError, Parsed, Section, has_words
from rag.loaders.media import NO_OCR, Check, MediaReaders, PageReader, page_location, pages_named
from rag.loaders.render import PdfPages

if TYPE_CHECKING:
    from PIL.Image import Image

FEW_LETTERS = 40  # a stamp or a page number over a scan is no text layer
SCAN_SHARE = 0.5  # of the page, covered by one picture
WRONG_SHARE = 0.2  # of the letters that say nothing

_CID = re.compile(r"\(cid:\d+\)")


@dataclass(frozen=True, slots=True)
class _Page:
    """What pypdf found. `layer` is "" where there are no words, None where the page could not be read."""

    number: int
    layer: str | None

    @property
    def usable(self) -> bool:
        return self.layer is not None and has_words(self.layer) and not broken(self.layer)


def read_pdf(name: str, data: bytes, readers: MediaReaders) -> Parsed:
    reader = _open(name, data)
    pages = [_Page(number, _layer(reader, number)) for number in range(1, len(reader.pages) + 1)]
    read = _recognised(data, pages, readers.ocr, readers.check) if readers.ocr else _Recognised()
    found = [(page.number, page.layer or "") for page in pages if page.usable and page.number not in read.texts]
    # a broken layer is better than nothing where nobody can read the picture
    rest = [(page.number, page.layer) for page in pages if not page.usable and page.number not in read.answered and page.layer]
    texts = sorted([*found, *read.texts.items(), *rest])
    if not texts:
        _refuse(name, pages, read, readers)
    sections = [Section(text, page_location(number), "scan" if number in read.texts else "pdf") for number, text in texts]
    notes = (*read.notes, *scans.other_script(texts, read.texts), *_layer_notes(pages, read, readers))
    return Parsed(_title(reader), sections, notes, incomplete=read.failed)


def _open(name: str, data: bytes) -> Any:
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity that it reads past
    try:
        reader = PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted and not reader.decrypt("")  # many are encrypted only against editing: no password
        if not locked:
            len(reader.pages)
    except Exception as problem:  # pypdf raises more than its own errors on broken files
        cause = f"is a broken PDF ({problem})"[:500]
        raise LoadError(name, cause, "Open it in a viewer and save or print it again as PDF.") from problem
    if locked:
        raise LoadError(name, "is encrypted with a password", "Save a copy without the password and ingest that.")
    return reader


def _layer(reader: Any, number: int) -> str | None:
    try:
        text = str(reader.pages[number - 1].extract_text())
    except Exception:  # as above; the other pages are still good
        return None
    return text if has_words(text) else ""


def broken(text: str) -> bool:
    """Whether a text layer is no text: glyph numbers, replacement or private characters where the font names no letters."""
    glyphs = len(_CID.findall(text))
    rest = [character for character in _CID.sub("", text) if not character.isspace()]
    wrong = sum(character == "\ufffd" or "\ue000" <= character <= "\uf8ff" or character < " " for character in rest)
    return glyphs + wrong > WRONG_SHARE * (glyphs + len(rest))


# text recognition


@dataclass(frozen=True, slots=True)
class _Recognised:
    """Pages that were read from their pictures. `answered`: those that the reader answered for, words or not."""

    texts: dict[int, str] = field(default_factory=dict)
    answered: frozenset[int] = frozenset()
    reads: tuple[scans.Read, ...] = ()
    notes: tuple[str, ...] = ()
    failed: bool = False


def _recognised(data: bytes, pages: Sequence[_Page], reader: PageReader, check: Check) -> _Recognised:
    if all(page.usable and not _few(page) for page in pages):
        return _Recognised()
    try:
        drawn = PdfPages(data)
    except Exception as problem:  # PDFium reads fewer broken files than pypdf: the text layers are still good
        return _Recognised(notes=(f"pages without text could not be drawn for text recognition ({problem})"[:300],))
    with drawn:
        wanted = [page.number for page in pages if not page.usable or _few(page) and _is_scan(drawn, page.number)]
        sent, left = wanted[: reader.max_pages], wanted[reader.max_pages :]
        reads = scans.read_pages([(number, _drawer(drawn, number)) for number in sent], reader, check)
    answered = frozenset(read.number for read in reads if read.page is not None)
    notes = scans.notes(reads) + scans.not_sent(left, reader.max_pages)
    return _Recognised(dict(scans.texts(reads)), answered, tuple(reads), notes, scans.failed(reads))


def _few(page: _Page) -> bool:
    return sum(map(str.isalnum, page.layer or "")) < FEW_LETTERS


def _is_scan(drawn: PdfPages, number: int) -> bool:
    try:
        return drawn.picture_share(number) > SCAN_SHARE
    except Exception:  # a page that PDFium cannot open keeps its text layer
        return False


def _drawer(drawn: PdfPages, number: int) -> Callable[[], Image]:
    return lambda: drawn.picture(number)


# what is said of it


def _refuse(name: str, pages: Sequence[_Page], read: _Recognised, readers: MediaReaders) -> None:
    """Raise the LoadError of a document without words."""
    if readers.ocr is not None and read.reads:
        scans.require_some(name, read.reads)
    if readers.ocr is not None and read.notes:
        raise LoadError(name, read.notes[0], "Print it again as PDF.")
    if any(page.layer is None for page in pages):
        raise LoadError(name, f"none of its {len(pages)} pages can be read", "Print it again as PDF.")
    cause = f"has no text on its {len(pages)} pages, only images"
    raise LoadError(name, cause, f"{NO_OCR} Or run text recognition over it (for example ocrmypdf) first.")


def _layer_notes(pages: Sequence[_Page], read: _Recognised, readers: MediaReaders) -> list[str]:
    tried = {item.number for item in read.reads}
    bad = [page.number for page in pages if page.layer is None and page.number not in tried]
    empty = [page.number for page in pages if page.layer == "" and page.number not in tried]
    odd = [page.number for page in pages if page.layer and not page.usable and page.number not in read.answered]
    notes = [f"pages that could not be read: {', '.join(map(str, bad))}"[:500]] if bad else []
    if empty and readers.ocr is None:
        notes.append(f"{len(empty)} of {len(pages)} pages have no text (images need text recognition: ocr.base_url)")
    if odd:
        notes.append(f"{pages_named(odd)}: the text layer is damaged (its fonts name no letters)"[:500])
    return notes


def _title(reader: Any) -> str | None:
    """The title of the metadata, unless a program put a file name or nothing there."""
    try:
        title = str(reader.metadata.title or "").strip()
    except Exception:  # a broken title is no reason to refuse the text
        return None
    return None if re.match(r"(untitled|microsoft word - |.*\.(docx?|indd|tex|dvi)$)", title, re.IGNORECASE) else title or None
