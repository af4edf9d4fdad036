"""Files to text sections: `.txt .md .markdown .html .htm .pdf`. Knows nothing of passages, tokens or stores.

A file that cannot be read is refused with a `LoadError` that names the file, the cause and the next step; what could be
read only in part (a wrong byte, a page without text) says so in the document's notes.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rag.errors import RagError
from rag.outlines import Outline, html_outline, markdown_outline

LOADER_VERSION = 1  # part of every content hash: raise it when the same file would give other sections
SUPPORTED = (".txt", ".md", ".markdown", ".html", ".htm", ".pdf")
LANGUAGE_LETTERS = 20
SEPARATOR = " › "

SectionKind = Literal["text", "markdown", "html", "pdf"]

_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b"))
_UNWANTED = dict.fromkeys([*(set(range(32)) - {9, 10}), *range(0x7F, 0xA0), 0xAD, 0xFEFF])


class LoadError(RagError):
    """A file cannot become a document: the message names the file and the cause."""

    def __init__(self, name: str, cause: str, next_step: str) -> None:
        super().__init__(f"{name}: {cause}", kind="bad_input", address=name, next_step=next_step)


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of a document with one place in it: `location` is a page (`p. 3`) or a heading path, None where there is none."""

    text: str
    location: str | None
    kind: SectionKind


@dataclass(frozen=True, slots=True)
class LoadedDocument:
    """`language` is an ISO 639-1 code, None for a short text. `notes` say what was guessed or left out."""

    title: str
    sections: tuple[Section, ...]
    language: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read and the name it is shown by."""

    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A path that was asked for and cannot be read."""

    source: str
    message: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many files of the folders were left out for one reason, and the first of them."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Found:
    """What `find` made of the paths: files to read, paths that are errors, and what was left out without being one."""

    files: tuple[SourceFile, ...]
    refused: tuple[FileProblem, ...] = ()
    skipped: tuple[Skipped, ...] = ()


# 1) finding files


def find(paths: Sequence[Path]) -> Found:
    """Walk the paths. Folders give their supported files, sorted, without hidden ones; each file comes once."""
    search = _Search()
    for path in paths:
        search.add(path.expanduser())
    return search.found()


class _Search:
    def __init__(self) -> None:
        self._files: list[SourceFile] = []
        self._refused: list[FileProblem] = []
        self._skipped: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._seen: set[Path] = set()
        self._folders: set[Path] = set()  # walked already, under the present root

    def found(self) -> Found:
        skipped = tuple(Skipped(reason, count, self._examples[reason]) for reason, count in sorted(self._skipped.items()))
        return Found(tuple(self._files), tuple(self._refused), skipped)

    def add(self, path: Path) -> None:
        name = printable(path.name or str(path))
        try:
            mode = path.stat().st_mode
        except OSError as problem:
            self._refuse(path, problem)
            return
        if stat.S_ISDIR(mode):
            self._add_folder(path)
        elif path.suffix.lower() not in SUPPORTED:
            self._refused.append(FileProblem(name, f"{name}: {_unsupported(path)}", f"Give one of {' '.join(SUPPORTED)}."))
        else:
            self._add_file(path, name)

    def _add_file(self, path: Path, source: str) -> None:
        real = path.resolve()
        if real not in self._seen:
            self._seen.add(real)
            self._files.append(SourceFile(path, source))

    def _add_folder(self, root: Path) -> None:
        """Real files and folders first, links after them: a file that is reachable both ways keeps its real name."""
        label = root.resolve().name if root.name in ("", "..") else root.name
        before, entries = len(self._files), 0
        self._folders.clear()
        todo, links = [root], list[Path]()
        while todo or links:
            folder = todo.pop() if todo else links.pop(0)
            if folder.is_dir():
                for entry in self._entries(folder, links):
                    entries += 1
                    if entry.is_dir():
                        todo.append(entry)
                    else:
                        self._consider(entry, _source(label, root, entry))
            else:
                entries += 1
                self._consider(folder, _source(label, root, folder))
        self._files[before:] = sorted(self._files[before:], key=lambda file: file.source)
        if entries == 0:
            self._skip("an empty folder", printable(str(root)))

    def _entries(self, folder: Path, links: list[Path]) -> list[Path]:
        """The folder's real, visible entries; its links go to `links`. A folder that was already walked has none."""
        try:
            real = folder.resolve()
            if real in self._folders:
                return []
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        except (OSError, RuntimeError) as problem:  # RuntimeError: resolve() on a loop of links
            self._refuse(folder, problem)
            return []
        self._folders.add(real)
        links.extend(entry for entry in entries if entry.is_symlink())
        return [entry for entry in entries if not entry.is_symlink()]

    def _consider(self, path: Path, source: str) -> None:
        if path.suffix.lower() not in SUPPORTED:
            self._skip(_unsupported(path), source)
        elif not path.is_file():
            self._skip("a link that leads nowhere" if path.is_symlink() else "not a regular file", source)
        else:
            self._add_file(path, source)

    def _refuse(self, path: Path, problem: Exception) -> None:
        name = printable(str(path))
        self._refused.append(FileProblem(name, f"{name}: {_os_cause(problem)}", _os_cure(problem)))

    def _skip(self, reason: str, source: str) -> None:
        self._skipped[reason] += 1
        self._examples.setdefault(reason, source)


def _source(label: str, root: Path, path: Path) -> str:
    relative = path.relative_to(root).as_posix()
    return printable(f"{label}/{relative}" if label else relative)


def _unsupported(path: Path) -> str:
    kind = printable(path.suffix.lower()) + " files" if path.suffix else "files without a suffix"
    return f"{kind} are not supported"


def printable(text: str) -> str:
    """`text` as valid UTF-8: file names and PDF text can hold lone surrogates, which no store or JSON takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _os_cause(problem: Exception) -> str:
    if isinstance(problem, FileNotFoundError):
        return "does not exist"
    if isinstance(problem, PermissionError):
        return "may not be read by this user"
    return f"cannot be read ({getattr(problem, 'strerror', None) or problem})"


def _os_cure(problem: Exception) -> str:
    if isinstance(problem, FileNotFoundError):
        return "Check the path; it is read on the machine where this runs."
    if isinstance(problem, PermissionError):
        return "Give the user who runs this the right to read it."
    return "Copy it elsewhere and try again."


# 2) one file


def load(path: Path, max_bytes: int) -> LoadedDocument:
    """Read and parse one file. Raises LoadError."""
    return parse(read(path, max_bytes), path)


def read(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file of 1 to `max_bytes` bytes. Raises LoadError."""
    name = printable(path.name)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or device would block or never end
            raise LoadError(name, "is not a regular file", "Give a file, or the folder that holds the files.")
        with path.open("rb") as handle:
            data = handle.read(max_bytes + 1)
            size = max(len(data), os.fstat(handle.fileno()).st_size)
    except OSError as problem:
        raise LoadError(name, _os_cause(problem), _os_cure(problem)) from problem
    if size > max_bytes:
        raise LoadError(
            name, f"too large ({size:,} bytes; the limit is {max_bytes:,})", "Split the file, or raise ingest.max_file_bytes."
        )
    if not data:
        raise LoadError(name, "is empty", "Remove it or give it a text.")
    return data


def parse(data: bytes, path: Path) -> LoadedDocument:
    """The document in `data`; its kind is that of the path's suffix. Raises LoadError."""
    name, suffix = printable(path.name), path.suffix.lower()
    parsers: dict[str, Callable[[str, bytes], _Parsed]] = {".txt": _text, ".pdf": _pdf, ".html": _html, ".htm": _html}
    parsers |= {".md": _markdown, ".markdown": _markdown}
    if suffix not in parsers:
        raise LoadError(name, _unsupported(path), f"Give one of {' '.join(SUPPORTED)}.")
    try:
        parsed = parsers[suffix](name, data)
    except LoadError:
        raise
    except Exception as problem:  # parsers of third parties fail in any way on broken files
        cause = f"could not be parsed ({type(problem).__name__}: {problem})"[:500]
        raise LoadError(name, cause, "Repair or convert the file.") from problem
    cleaned = (Section(_clean(item.text), _short(item.location, 500) or None, item.kind) for item in parsed.sections)
    sections = tuple(item for item in cleaned if has_words(item.text))
    if not sections:
        raise LoadError(name, "holds no words", "Remove it, or check that it was saved with its text.")
    title = _short(parsed.title, 300) or printable(path.stem)
    return LoadedDocument(title, sections, detect_language(sections), parsed.notes)


@dataclass(frozen=True, slots=True)
class _Parsed:
    title: str | None
    sections: list[Section]
    notes: tuple[str, ...] = ()


def has_words(text: str) -> bool:
    """Whether there is a letter or digit of any script."""
    return any(map(str.isalnum, text))


def _clean(text: str) -> str:
    """One newline convention; no control characters, soft hyphens or lone surrogates, which break words and stores."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\v", "\n")
    return printable(text.translate(_UNWANTED)).strip("\n")


def _short(text: str | None, limit: int) -> str:
    text = " ".join(_clean(text or "").split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


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


# 3) text and its encoding


def decode(name: str, data: bytes, declared: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Text and notes: a BOM decides, then UTF-8, then `declared`, then a guess, noted. Raises LoadError on binary content."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", "replace")
        if "\0" not in text:  # UTF-32 and binary files share the first bytes
            return text, (("some bytes were no UTF-16 and were replaced",) if "\ufffd" in text else ())
    if data.startswith(b"%PDF-") or b"\0" in data:
        raise LoadError(name, "not a text file", "Give it the suffix of its kind, or save it as text in UTF-8.")
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        pass
    if len(data) - len(data.translate(None, _CONTROLS)) > len(data) // 50:
        raise LoadError(name, "not a text file", "Give it the suffix of its kind, or save it as text in UTF-8.")
    for encoding in [declared] if declared else []:
        try:
            return data.decode(encoding), ()
        except (UnicodeDecodeError, LookupError):
            pass
    text = data.decode("utf-8-sig", "replace")
    wrong = text.count("\ufffd")
    if wrong * 10 <= sum(character > "\x7f" for character in text):  # UTF-8 with a few damaged bytes
        return text, (f"{wrong} bytes were no UTF-8 and were replaced",)
    note = "neither UTF-8 nor UTF-16; read as Windows-1252 (Western Europe). If letters look wrong, save it as UTF-8"
    try:
        return data.decode("cp1252"), (note,)
    except UnicodeDecodeError:
        return data.decode("latin-1"), (note.replace("Windows-1252", "Latin-1"),)


def _text(name: str, data: bytes) -> _Parsed:
    text, notes = decode(name, data)
    return _Parsed(None, [Section(text, None, "text")], notes)


def _markdown(name: str, data: bytes) -> _Parsed:
    text, notes = decode(name, data)
    return _outlined("markdown", markdown_outline(text.replace("\r\n", "\n").replace("\r", "\n")), notes)


def _html(name: str, data: bytes) -> _Parsed:
    declared = re.search(rb"charset\s*=\s*[\"']?\s*([\w-]+)", data[:2048], re.IGNORECASE)
    text, notes = decode(name, data, declared[1].decode("ascii") if declared else None)
    return _outlined("html", html_outline(text), notes)


def _outlined(kind: SectionKind, outline: Outline, notes: tuple[str, ...]) -> _Parsed:
    """Locations are heading paths without the document's title, which is shown beside them anyway."""
    title = _short(outline.title, 300)
    sections = []
    for path, text in outline.sections:
        headings = [_short(heading, 300) for heading in path]
        shown = headings[1:] if headings and headings[0].casefold() == title.casefold() else headings
        sections.append(Section(text, SEPARATOR.join(shown) or None, kind))
    return _Parsed(title, sections, notes)


# 4) PDF


def _pdf(name: str, data: bytes) -> _Parsed:
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity that it reads past
    try:
        reader = PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted and not reader.decrypt("")  # many are encrypted only against editing: no password
        pages = 0 if locked else len(reader.pages)
    except Exception as problem:  # pypdf raises more than its own errors on broken files
        cause = f"is a broken PDF ({problem})"[:500]
        raise LoadError(name, cause, "Open it in a viewer and save or print it again as PDF.") from problem
    if locked:
        raise LoadError(name, "is encrypted with a password", "Save a copy without the password and ingest that.")
    sections, empty, broken = [], 0, list[int]()
    for number in range(1, pages + 1):
        try:
            text = reader.pages[number - 1].extract_text()
        except Exception:  # as above; the other pages are still good
            broken.append(number)
            continue
        if has_words(text):
            sections.append(Section(text, f"p. {number}", "pdf"))
        else:
            empty += 1
    if not sections:
        cause = f"none of its {pages} pages can be read" if broken else f"has no text on its {pages} pages, only images"
        cure = "Print it again as PDF." if broken else "Run text recognition over it (for example ocrmypdf) first."
        raise LoadError(name, cause, cure)
    notes = [f"pages that could not be read: {', '.join(map(str, broken))}"[:500]] if broken else []
    notes += [f"{empty} of {pages} pages have no text (images need text recognition)"] if empty else []
    return _Parsed(_pdf_title(reader), sections, tuple(notes))


def _pdf_title(reader: Any) -> str | None:
    """The title of the metadata, unless a program put a file name or nothing there."""
    try:
        title = str(reader.metadata.title or "").strip()
    except Exception:  # a broken title is no reason to refuse the text
        return None
    return None if re.match(r"(untitled|microsoft word - |.*\.(docx?|indd|tex|dvi)$)", title, re.IGNORECASE) else title or None
