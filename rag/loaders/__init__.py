"""Files to text sections, format by format. Knows nothing of passages, tokens or stores.

A file that cannot be read is refused with a `LoadError` that names the file, the cause and the next step; what could be
read only in part (a wrong byte, a page without text) says so in the document's notes. Pictures and recordings are read by
whoever is given as `MediaReaders`. Every reader is bounded: in bytes
read, bytes expanded and text made of them. None runs macros, computes formulas or fetches what a file refers to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rag.errors import Cancelled
from rag.loaders.document import (
    SEPARATOR,
    LoadedDocument,
    LoadError,
    Parsed,
    Section,
    SectionKind,
    clean,
    has_words,
    printable,
    short,
)
from rag.loaders.files import SUPPORTED, FileProblem, Found, Skipped, SourceFile, find, read, unsupported
from rag.loaders.language import LANGUAGE_LETTERS, detect_language
from rag.loaders.media import IMAGES, NONE, RECORDINGS, MediaReaders

__all__ = [
    "LANGUAGE_LETTERS",
    "LOADER_VERSION",
    "SEPARATOR",
    "SUPPORTED",
    "FileProblem",
    "Found",
    "LoadError",
    "LoadedDocument",
    "MediaReaders",
    "Section",
    "SectionKind",
    "Skipped",
    "SourceFile",
    "detect_language",
    "find",
    "has_words",
    "load",
    "parse",
    "printable",
    "read",
]

LOADER_VERSION = 3  # part of every content hash: raise it when the same file would give other sections


def load(path: Path, max_bytes: int, readers: MediaReaders | None = None) -> LoadedDocument:
    """Read and parse one file. Raises LoadError, and Cancelled where `readers.check` does."""
    return parse(read(path, max_bytes), path, readers)


def parse(data: bytes, path: Path, readers: MediaReaders | None = None) -> LoadedDocument:
    """The document in `data`; its kind is that of the path's suffix. Raises LoadError; Cancelled where `readers.check` does."""
    from rag.loaders.packages import BROKEN, OFFICE, broken_container, check_kind

    name, suffix = printable(path.name), path.suffix.lower()
    if suffix not in SUPPORTED:
        raise LoadError(name, unsupported(path), f"Give one of {' '.join(SUPPORTED)}.")
    try:
        check_kind(name, suffix, data)
        parsed = _parsed(name, suffix, data, readers or NONE)
    except (LoadError, Cancelled):
        raise
    except Exception as problem:  # parsers of third parties fail in any way on broken files
        if isinstance(problem, BROKEN) and suffix in OFFICE:
            raise broken_container(name, suffix) from problem
        cause = f"could not be parsed ({type(problem).__name__}: {problem})"[:500]
        raise LoadError(name, cause, "Repair or convert the file.") from problem
    cleaned = (Section(clean(item.text), short(item.location, 500) or None, item.kind) for item in parsed.sections)
    sections = tuple(item for item in cleaned if has_words(item.text))
    if not sections:
        raise LoadError(name, "holds no words", "Remove it, or check that it was saved with its text.")
    title = short(parsed.title, 300) or printable(path.stem)
    return LoadedDocument(title, sections, parsed.language or detect_language(sections), parsed.notes, parsed.incomplete)


def _parsed(name: str, suffix: str, data: bytes, readers: MediaReaders) -> Parsed:
    from rag.loaders import pdf, scans, speech

    if suffix == ".pdf":
        return pdf.read_pdf(name, data, readers)
    if suffix in IMAGES:
        return scans.read_image(name, data, readers)
    return speech.read_recording(name, data, readers) if suffix in RECORDINGS else _reader(suffix)(name, data)


def _reader(suffix: str) -> Callable[[str, bytes], Parsed]:
    """The format's reader; its libraries are imported when one of its files comes."""
    from rag.loaders import delimited, epub, json_data, sheets, slides, text, word

    readers: dict[str, Callable[[str, bytes], Parsed]] = {".txt": text.read_text, ".epub": epub.read_epub}
    readers |= dict.fromkeys((".md", ".markdown"), text.read_markdown) | dict.fromkeys((".html", ".htm"), text.read_html)
    readers |= dict.fromkeys((".csv", ".tsv"), delimited.read_csv) | dict.fromkeys(
        (".jsonl", ".ndjson"), json_data.read_json_lines
    )
    readers |= {".docx": word.read_docx, ".pptx": slides.read_pptx, ".xlsx": sheets.read_xlsx, ".json": json_data.read_json}
    return readers[suffix]
