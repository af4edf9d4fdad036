"""Files to text sections, format by format. Knows nothing of passages, tokens or stores.

A file that cannot be read is refused with a `LoadError` that names the file, the cause and the next step; what could be
read only in part (a wrong byte, a page without text) says so in the document's notes. Every reader is bounded: in bytes
read, bytes expanded and text made of them. None runs macros, computes formulas or fetches what a file refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

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

__all__ = [
    "LOADER_VERSION",
    "SEPARATOR",
    "SUPPORTED",
    "FileProblem",
    "Found",
    "LoadError",
    "LoadedDocument",
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

LOADER_VERSION = 2  # part of every content hash: raise it when the same file would give other sections
LANGUAGE_LETTERS = 20


def load(path: Path, max_bytes: int) -> LoadedDocument:
    """Read and parse one file. Raises LoadError."""
    return parse(read(path, max_bytes), path)


def parse(data: bytes, path: Path) -> LoadedDocument:
    """The document in `data`; its kind is that of the path's suffix. Raises LoadError."""
    from rag.loaders.packages import BROKEN, OFFICE, broken_container, check_kind

    name, suffix = printable(path.name), path.suffix.lower()
    if suffix not in SUPPORTED:
        raise LoadError(name, unsupported(path), f"Give one of {' '.join(SUPPORTED)}.")
    try:
        check_kind(name, suffix, data)
        parsed = _reader(suffix)(name, data)
    except LoadError:
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
    return LoadedDocument(title, sections, detect_language(sections), parsed.notes)


def _reader(suffix: str) -> Callable[[str, bytes], Parsed]:
    """The format's reader; its libraries are imported when one of its files comes."""
    from rag.loaders import delimited, epub, json_data, pdf, sheets, slides, text, word

    readers: dict[str, Callable[[str, bytes], Parsed]] = {".txt": text.read_text, ".pdf": pdf.read_pdf, ".epub": epub.read_epub}
    readers |= dict.fromkeys((".md", ".markdown"), text.read_markdown) | dict.fromkeys((".html", ".htm"), text.read_html)
    readers |= dict.fromkeys((".csv", ".tsv"), delimited.read_csv) | dict.fromkeys(
        (".jsonl", ".ndjson"), json_data.read_json_lines
    )
    readers |= {".docx": word.read_docx, ".pptx": slides.read_pptx, ".xlsx": sheets.read_xlsx, ".json": json_data.read_json}
    return readers[suffix]


def detect_language(sections: Sequence[Section]) -> str | None:
    """ISO 639-1 code of the first 4,000 characters, None with fewer than 20 letters."""
    sample = ""
    for section in sections:
        sample = f"{sample} {section.text[:4000]}"
        if len(sample) > 4000:
            break
    if sum(map(str.isalpha, sample)) < LANGUAGE_LETTERS:
        return None
    import py3langid

    code = str(py3langid.classify(sample)[0])
    return code if len(code) == 2 else None  # `zxx`: no language, such as a list of numbers
